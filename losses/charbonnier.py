"""The Charbonnier penalty."""

import keras
from keras import ops

from superres.layers.base import Configured, Tensor


@keras.saving.register_keras_serializable(package="superres")
class Charbonnier(Configured, keras.losses.Loss):
    """sqrt((y - x)^2 + epsilon^2), averaged: a smooth absolute difference.

    Takes tensors (B, H, W, C) of one shape, values in [0, 1].

    Args:
        epsilon: Width of the smooth part, in units of the pixels.

    Source: Lai et al., "Deep Laplacian Pyramid Networks for Fast and Accurate
    Super-Resolution", CVPR 2017, equation 2.
    """

    def __init__(self, epsilon: float = 1e-3, name: str = "charbonnier", **kwargs) -> None:
        super().__init__(name=name, **kwargs)
        self.epsilon = epsilon

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return ops.mean(ops.sqrt(ops.square(y_true - y_pred) + self.epsilon**2), axis=(1, 2, 3))
