"""A convolution that computes 2 x 2 pixels at a time."""

import keras
from keras import ops

from superres.layers.base import SameConv2D, Tensor


@keras.saving.register_keras_serializable(package="superres")
class PolyphaseConv2D(SameConv2D):
    """`Conv2D` of stride 1 with `same` padding, computed on blocks of 2 x 2 pixels.

    (B, H, W, C) -> (B, H, W, filters), H and W even. Weights and result are Conv2D's. The
    four pixels of a block become channels, so that a convolution of half the size, with
    four times the output channels, does the work: with few output channels (3, of a
    picture) processors otherwise leave most of a vector unused. A 9x9 convolution from 64
    channels to 3 then multiplies 1.23 times as much, and takes about a third of the time.

    Args:
        filters: Channels of the output.
        kernel_size: Odd.
        **kwargs: Anything `keras.layers.Conv2D` takes but strides, padding, dilation
            and groups.

    Raises:
        ValueError: for an even kernel.

    Example:
        >>> PolyphaseConv2D(3, 9)(keras.ops.ones((1, 32, 32, 64))).shape
        (1, 32, 32, 3)
    """

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        blocks = ops.space_to_depth(inputs, 2, data_format="channels_last")
        blocks = super().convolution_op(blocks, self._of_blocks(kernel))
        return ops.depth_to_space(blocks, 2, data_format="channels_last")

    def _of_blocks(self, kernel):
        """(n, n, C, F) -> (m, m, 4 C, 4 F): from blocks to blocks.

        Tap u of sub-pixel p reads sub-pixel (p + u) % 2 of the block (p + u) // 2 away.
        """
        *_, channels, filters = kernel.shape
        reaches = [(size // 2 + 1) // 2 for size in self.kernel_size]  # in blocks

        def shifted(p):
            pads = []
            for phase, size, reach in zip(p, self.kernel_size, reaches, strict=True):
                before = phase - size // 2 + 2 * reach
                pads.append((before, 2 * (2 * reach + 1) - size - before))
            return ops.pad(kernel, (*pads, (0, 0), (0, 0)))

        kernel = ops.stack([shifted(p) for p in ((0, 0), (0, 1), (1, 0), (1, 1))], axis=-2)
        rows, columns = (2 * reach + 1 for reach in reaches)
        kernel = ops.reshape(kernel, (rows, 2, columns, 2, channels, 4 * filters))
        return ops.reshape(ops.transpose(kernel, (0, 2, 1, 3, 4, 5)), (rows, columns, 4 * channels, -1))
