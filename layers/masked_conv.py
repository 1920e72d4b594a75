"""Convolutions that see the past only: pixels in raster order, then colours R, G, B."""

from typing import Literal

import keras
import numpy as np
from keras import ops

from superres.layers.base import Configured, SameConv2D, Shape, Tensor


def colour_groups(channels: int, colours: int = 3, gates: int = 1) -> np.ndarray:
    """Which colour each of `channels` feature maps belongs to: an integer vector.

    The maps are split into `colours` runs as equal as can be: 32 gives 11 of R, 11 of
    G and 10 of B. With gates, the maps consist of that many halves, each split so.
    """
    half = np.concatenate([np.full(len(part), colour) for colour, part in
                           enumerate(np.array_split(np.arange(channels // gates), colours))])
    return np.tile(half, gates)


def colour_mask(inputs: int, outputs: int, mask_type: Literal["A", "B"], colours: int = 3,
                gates: int = 1) -> np.ndarray:
    """(inputs, outputs) mask of what one pixel's maps may see of the same pixel.

    Type A, on the picture itself: earlier colours. Type B, on features: these and the
    own colour. `gates` is the number of halves the outputs consist of.
    """
    seen, sees = colour_groups(inputs, colours)[:, None], colour_groups(outputs, colours, gates)[None]
    return (seen < sees if mask_type == "A" else seen <= sees).astype("float32")


@keras.saving.register_keras_serializable(package="superres")
class MaskedConv2D(Configured, SameConv2D):
    """Causal convolution: (B, H, W, C) -> (B, H, W, filters).

    An output sees the rows above, the pixels to the left, and of its own pixel the
    earlier colours (type A) or also its own colour (type B). The mask is a constant
    that multiplies the kernel at every use, so that no update of the kernel and no
    loaded weight can open it.

    Args:
        filters: Channels of the output, split over the colours (see `colour_groups`).
        kernel_size: Odd, or a pair of odd numbers.
        mask_type: `"A"` for the first layer, whose input is the picture, `"B"` after it.
        colours: Channels of the picture: 3 for RGB, 1 for grey.
        **kwargs: Anything `keras.layers.Conv2D` takes but strides, padding, dilation
            and groups.

    Raises:
        ValueError: for another mask type, an even kernel, strides or dilation.

    Example:
        >>> MaskedConv2D(64, 7, mask_type="A")(keras.ops.ones((1, 32, 32, 3))).shape
        (1, 32, 32, 64)

    Source: van den Oord et al., "Pixel Recurrent Neural Networks", 2016, section 3.4.
    """

    def __init__(self, filters: int, kernel_size: int | tuple[int, int], mask_type: Literal["A", "B"] = "B",
                 colours: int = 3, **kwargs) -> None:
        super().__init__(filters, kernel_size, **kwargs)
        if mask_type not in ("A", "B"):
            raise ValueError(f"mask_type must be 'A' or 'B', not {mask_type!r}")
        self.mask_type = mask_type
        self.colours = colours

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        (rows, columns), channels = self.kernel_size, input_shape[-1]
        mask = np.zeros((rows, columns, channels, self.filters), "float32")
        mask[: rows // 2] = 1
        mask[rows // 2, : columns // 2] = 1
        mask[rows // 2, columns // 2] = colour_mask(channels, self.filters, self.mask_type, self.colours)
        self._mask = mask

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        # Of narrow inputs, the parts would be too thin; in bfloat16, products cost less than parts.
        wide = self.colours > 1 and kernel.shape[2] >= 256 and inputs.dtype == "float32"
        if self.kernel_size == (1, 1) and self.mask_type == "B" and wide:
            return self._by_colours(inputs, kernel)
        return super().convolution_op(inputs, kernel * ops.cast(self._mask, kernel.dtype))

    def _by_colours(self, inputs, kernel):
        """1x1, type B: each colour's features go to the outputs of this colour and the later ones.

        The masked third of the products is not computed at all.
        """
        inputs_end, outputs_end = (
            np.searchsorted(colour_groups(channels, self.colours), np.arange(self.colours), "right")
            for channels in (kernel.shape[2], self.filters)
        )
        parts, done, later = [], [0, 0], 0
        for features, *end in zip(
            ops.split(inputs, inputs_end[:-1].tolist(), axis=-1), inputs_end, outputs_end, strict=True
        ):
            later += super().convolution_op(features, kernel[:, :, done[0] : end[0], done[1] :])
            own, later = ops.split(later, [int(end[1] - done[1])], axis=-1)
            parts.append(own)
            done = end
        return ops.concatenate(parts, axis=-1)

    def masked_kernel(self) -> Tensor:
        """The kernel as it is used."""
        return self.kernel * self._mask
