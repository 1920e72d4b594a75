"""The activation of SRMAP."""

import keras
from keras import ops

from superres.layers.base import Shape, Tensor


@keras.saving.register_keras_serializable(package="superres")
class BiasedSiLU(keras.layers.Layer):
    """SiLU(x + bias), a bias for each channel: what follows noise, or a convolution without a bias."""

    def build(self, input_shape: Shape) -> None:
        self.bias = self.add_weight(name="bias", shape=(input_shape[-1],), initializer="zeros")

    def call(self, inputs: Tensor) -> Tensor:
        return ops.silu(inputs + ops.cast(self.bias, inputs.dtype))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape
