"""What Keras's optimisers and schedules lack."""

from typing import Any, Self

import keras

from superres.layers.base import Tensor


class RMSprop(keras.optimizers.RMSprop):
    """RMSProp whose mean squared gradient starts at `accumulator`.

    TensorFlow 1 starts it at one, Keras at zero. From zero the first step is
    1 / sqrt(1 - rho) times the learning rate, whatever the gradient; from one, steps grow
    from learning rate times gradient, over a few hundred steps.

        ms <- rho ms + (1 - rho) g^2;  m <- momentum m + lr g / sqrt(ms + epsilon);  w <- w - m
    """

    def __init__(self, *args, accumulator: float = 1.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.accumulator = accumulator

    def add_optimizer_variables(
        self, trainable_variables: list[keras.Variable], name: str,
        initializer: str | keras.initializers.Initializer = "zeros",
    ) -> list[keras.Variable]:
        if name == "velocity":
            initializer = keras.initializers.Constant(self.accumulator)
        return super().add_optimizer_variables(trainable_variables, name, initializer)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "accumulator": self.accumulator}


@keras.saving.register_keras_serializable(package="superres")
class TwoPhases(keras.optimizers.schedules.LearningRateSchedule):
    """One schedule for the first steps, another, which starts from zero, for the others."""

    def __init__(self, first: keras.optimizers.schedules.LearningRateSchedule,
                 second: keras.optimizers.schedules.LearningRateSchedule, steps: int) -> None:
        self.first, self.second, self.steps = first, second, steps

    def __call__(self, step: Tensor) -> Tensor:
        first = self.first(keras.ops.minimum(step, self.steps))
        return keras.ops.where(step < self.steps, first, self.second(keras.ops.maximum(step - self.steps, 0)))

    def get_config(self) -> dict[str, Any]:
        serialize = keras.optimizers.schedules.serialize
        return {"first": serialize(self.first), "second": serialize(self.second), "steps": self.steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        deserialize = keras.optimizers.schedules.deserialize
        return cls(deserialize(config["first"]), deserialize(config["second"]), config["steps"])
