"""Convolution with spectral normalisation."""

from collections.abc import MutableMapping

import keras
from keras import ops

from superres.layers.base import Shape, Tensor


@keras.saving.register_keras_serializable(package="superres")
class SpectralConv2D(keras.layers.Conv2D):
    """Convolution whose kernel is divided by its largest singular value.

    The kernel is seen as a matrix (everything else, filters). Its largest singular
    value sigma is estimated by one step of power iteration at every training step, from
    a vector u that is kept as a weight; gradients flow through sigma but not through
    the singular vectors. The kernel itself is what the optimiser sees. All of this is
    computed in float32, whatever the layer's precision.
    (`keras.layers.SpectralNormalization` overwrites the kernel instead, and its
    gradient leaves sigma out.)

    Args:
        *args, **kwargs: As for `keras.layers.Conv2D`.

    Source: Miyato et al., "Spectral Normalization for Generative Adversarial
    Networks", 2018, equation 8 and algorithm 1.
    """

    def add_weight(self, *args, name: str | None = None, **kwargs) -> keras.Variable:
        # In bfloat16, sigma would have two digits, and u would be no unit vector.
        return super().add_weight(*args, name=name, autocast=name == "bias", **kwargs)

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.u = self.add_weight(
            name="u", shape=(self.filters,), trainable=False, aggregation="only_first_replica",
            initializer=keras.initializers.RandomNormal(stddev=1.0),
        )

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        if training:
            self.u.assign(self._vectors()[1])
        return super().call(inputs)

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return super().convolution_op(inputs, ops.cast(kernel / self.sigma(), inputs.dtype))

    def sigma(self) -> Tensor:
        """The kernel's largest singular value, as u has it."""
        v, u = self._vectors()
        return ops.sum(v * ops.matmul(self._matrix(), u))

    def _matrix(self):
        return ops.reshape(ops.convert_to_tensor(self.kernel), (-1, self.filters))

    def _vectors(self):
        """One step of power iteration from u: unit vectors v, u, no gradient through them."""
        matrix = ops.stop_gradient(self._matrix())
        v = ops.normalize(ops.matmul(matrix, ops.convert_to_tensor(self.u)))
        u = ops.normalize(ops.matmul(v, matrix))
        return v, u

    def save_own_variables(self, store: MutableMapping[str, Tensor]) -> None:
        super().save_own_variables(store)
        store["u"] = self.u

    def load_own_variables(self, store: MutableMapping[str, Tensor]) -> None:
        super().load_own_variables(store)
        self.u.assign(store["u"])
