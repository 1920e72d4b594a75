"""Convolution that continues a picture by its reflection."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="superres")
class ReflectedConv2D(keras.layers.Conv2D):
    """Convolution over a picture continued by its reflection: (B, H, W, C) -> (B, H, W, filters).

    The edge itself is not repeated, so that a picture must measure at least
    (kernel_size + 1) / 2 each way.

    Args:
        filters: Channels of the output.
        kernel_size: Odd.
        **kwargs: Anything `keras.layers.Conv2D` takes but strides, padding, dilation and
            groups.

    Raises:
        ValueError: for an even kernel.
    """

    def __init__(self, filters, kernel_size, **kwargs):
        super().__init__(filters, kernel_size, padding="valid", data_format="channels_last", **kwargs)
        if not all(size % 2 for size in self.kernel_size):
            raise ValueError(f"kernel_size must be odd, not {self.kernel_size}")

    def call(self, inputs):
        rows, columns = (size // 2 for size in self.kernel_size)
        if rows or columns:
            inputs = ops.pad(inputs, ((0, 0), (rows, rows), (columns, columns), (0, 0)), "reflect")
        return super().call(inputs)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        config = super().get_config()
        for fixed in ("strides", "padding", "dilation_rate", "groups", "data_format"):
            config.pop(fixed)
        return config
