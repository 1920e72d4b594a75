"""Convolution that continues a picture by its reflection."""

import keras
from keras import ops

from superres.layers.base import SameConv2D, Shape, Tensor


@keras.saving.register_keras_serializable(package="superres")
class ReflectedConv2D(SameConv2D):
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

    def __init__(self, filters: int, kernel_size: int | tuple[int, int], **kwargs) -> None:
        super().__init__(filters, kernel_size, **kwargs)
        self.padding = "valid"  # what it needs of the picture is there

    def call(self, inputs: Tensor) -> Tensor:
        rows, columns = (size // 2 for size in self.kernel_size)
        if rows or columns:
            inputs = ops.pad(inputs, ((0, 0), (rows, rows), (columns, columns), (0, 0)), "reflect")
        return super().call(inputs)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.filters)
