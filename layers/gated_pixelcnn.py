"""The gated block of PixelCNN, in parallel over a picture and one row or pixel at a time."""

from typing import Literal, NamedTuple

import keras
import numpy as np
from keras import initializers, ops

from superres.layers.base import Configured, Shape, Tensor
from superres.layers.masked_conv import colour_groups, colour_mask


@keras.saving.register_keras_serializable(package="superres")
class GatedPixelCNNBlock(Configured, keras.layers.Layer):
    """Gated convolution of a vertical and a horizontal stack: [v, h] or [v, h, s] -> [v, h].

    The vertical stack sees the rows above. The horizontal stack sees, of its own row,
    the pixels to the left and the earlier colours of its own pixel, and is told what
    the vertical stack has found. Together they see every earlier sub-pixel within
    reach, without a blind spot: the vertical stack is shifted down by one row in the
    first block and never again. Its kernel holds `kernel_size // 2` rows (and the
    current one after the first block), the horizontal one as many pixels and the
    current one, so that no tap is computed to be masked away.

    Both stacks are (B, H, W, filters); the first block (type A) takes the picture for
    both. A third input s, (B, H, W, any channels), conditions the block: 1x1 convolutions
    without a mask add it to what both stacks put into their gates, wherever it comes from.

        tanh(W_f * x + V_f * s) sigmoid(W_g * x + V_g * s)

    `call` computes a whole picture. A sampler, which knows the picture only up
    to a pixel, calls `vertical` with the last rows, then `left` and `pixel` for one
    pixel instead: the same weights on a smaller window.

    Args:
        filters: Channels of each stack.
        kernel_size: Odd width of the window.
        mask_type: `"A"` for the first block, whose input is the picture and which has
            no residual connection; `"B"` for the others.
        colours: Channels of the picture: 3 for RGB, 1 for grey.
        kernel_initializer: Of all kernels but the condition's, which starts at zero.

    Raises:
        ValueError: for another mask type or an even kernel, and for a block of type B
            that would change the number of channels.

    Example:
        >>> picture = keras.ops.ones((1, 32, 32, 3))
        >>> v, h = GatedPixelCNNBlock(32, 7, mask_type="A")([picture, picture])
        >>> v, h = GatedPixelCNNBlock(32, 5)([v, h])
        >>> h.shape
        (1, 32, 32, 32)

    Source: van den Oord et al., "Conditional Image Generation with PixelCNN Decoders",
    2016, sections 2.2 and 2.3 (equation 4 with the feature maps of equation 5), figure 2.
    """

    def __init__(self, filters: int, kernel_size: int, mask_type: Literal["A", "B"] = "B", colours: int = 3,
                 kernel_initializer: str | initializers.Initializer = "glorot_uniform", **kwargs) -> None:
        super().__init__(**kwargs)
        if mask_type not in ("A", "B"):
            raise ValueError(f"mask_type must be 'A' or 'B', not {mask_type!r}")
        if not kernel_size % 2:
            raise ValueError(f"kernel_size must be odd, not {kernel_size}")
        self.filters = filters
        self.kernel_size = kernel_size
        self.mask_type = mask_type
        self.colours = colours
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.past = kernel_size // 2  # rows above, and pixels to the left

    def build(self, input_shape: list[Shape]) -> None:
        channels, filters = input_shape[0][-1], self.filters
        if self.mask_type == "B" and channels != filters:
            raise ValueError(f"a block of type B keeps its channels: expected {filters}, found {channels}")
        rows = self.past + (self.mask_type == "B")

        def kernel(name, *shape):
            return self.add_weight(name=name, shape=shape, initializer=self.kernel_initializer.clone())

        def bias(name, size):
            return self.add_weight(name=name, shape=(size,), initializer="zeros")

        self.vertical_kernel = kernel("vertical_kernel", rows, self.kernel_size, channels, 2 * filters)
        self.vertical_bias = bias("vertical_bias", 2 * filters)
        self.across_kernel = kernel("across_kernel", 2 * filters, 2 * filters)
        self.horizontal_kernel = kernel("horizontal_kernel", 1, self.past + 1, channels, 2 * filters)
        self.horizontal_bias = bias("horizontal_bias", 2 * filters)
        self.output_kernel = kernel("output_kernel", filters, filters)
        self.output_bias = bias("output_bias", filters)
        if len(input_shape) == 3:
            # Of the vertical stack and of the horizontal one. From zero, training starts without
            # a condition: gates that random features fill learn more slowly.
            self.condition_kernel = self.add_weight(
                name="condition_kernel", shape=(input_shape[2][-1], 4 * filters), initializer="zeros")
        mask = np.ones((1, self.past + 1, channels, 2 * filters), "float32")
        mask[0, -1] = colour_mask(channels, 2 * filters, self.mask_type, self.colours, gates=2)
        self._horizontal_mask = mask
        self._output_mask = colour_mask(filters, filters, "B", self.colours)

    def call(self, inputs: list[Tensor]) -> list[Tensor]:
        v, h, *condition = inputs
        # Type A stops one row earlier: the one shift of the vertical stack.
        above = ops.pad(v, ((0, 0), (self.past, 0), (0, 0), (0, 0)))
        v, context = self.vertical(above[:, :-1] if self.mask_type == "A" else above, *condition)
        left = ops.pad(h, ((0, 0), (0, 0), (self.past, 0), (0, 0)))
        kernel = ops.cast(self.horizontal_kernel * self._horizontal_mask, h.dtype)
        gated = _gate(_convolve(left, kernel) + context)
        output_kernel = ops.cast(self.output_kernel * self._output_mask, h.dtype)
        output = ops.tensordot(gated, output_kernel, 1) + ops.cast(self.output_bias, h.dtype)
        return [v, output if self.mask_type == "A" else output + h]

    def vertical(self, rows: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The vertical stack: (B, r + n - 1, W, C) -> (B, n, W, filters) and (B, n, W, 2 filters).

        Each output row sees r input rows: r is `past`, and one more for type B. The
        second output is what the horizontal stack is told: about the rows above, and
        about the condition, (B, n, W, any channels), where the block takes one.
        """
        dtype = rows.dtype
        rows = ops.pad(rows, ((0, 0), (0, 0), (self.past, self.past), (0, 0)))
        features = _convolve(rows, ops.cast(self.vertical_kernel, dtype))
        features = features + ops.cast(self.vertical_bias, dtype)
        context = ops.tensordot(features, ops.cast(self.across_kernel, dtype), 1)
        context = context + ops.cast(self.horizontal_bias, dtype)
        if condition is not None:
            told = ops.tensordot(ops.cast(condition, dtype), ops.cast(self.condition_kernel, dtype), 1)
            told_vertical, told_horizontal = ops.split(told, 2, axis=-1)
            features, context = features + told_vertical, context + told_horizontal
        return _gate(features), context

    def by_colours(self) -> tuple[np.ndarray, Tensor, list["ColourStep"]]:
        """The horizontal stack, cut for computing one pixel, colour after colour.

        Returns:
            order: (2 filters,), the columns of both gates, sorted by colour.
            left: (past, C, 2 filters), the kernel for the pixels to the left, in that order.
            steps: One for each colour.
        """
        ends = np.cumsum([0, *np.bincount(colour_groups(self.filters, self.colours))])
        seen = range(self.colours) if self.mask_type == "A" else ends[1:]
        order, steps = [], []
        for count, first, end in zip(seen, ends, ends[1:], strict=False):
            order.extend([*range(first, end), *range(self.filters + first, self.filters + end)])
            own = order[2 * first :]
            steps.append(ColourStep(ops.take(self.horizontal_kernel[0, -1, :count], own, axis=1),
                                    self.output_kernel[:end, first:end], self.output_bias[first:end],
                                    self.mask_type == "B"))
        return np.array(order), ops.take(self.horizontal_kernel[0, :-1], order, axis=2), steps

    def compute_output_shape(self, input_shape: list[Shape]) -> list[Shape]:
        return [(*shape[:-1], self.filters) for shape in input_shape[:2]]


class ColourStep(NamedTuple):
    """The horizontal stack of a block at one pixel and colour, whose share of the filters is `own`.

    Attributes:
        entering: (n, 2 own), for the n features of the pixel that the colour sees.
        output: (m, own), for what has passed the gates of the colours up to this one.
        bias: (own,).
        residual: Whether the colour's own features are added.
    """

    entering: Tensor
    output: Tensor
    bias: Tensor
    residual: bool

    def __call__(self, left: Tensor, pixel: list[Tensor], gated: list[Tensor]) -> Tensor:
        """The colour's features.

        Args:
            left: (B, 2 own), what the rows above and the pixels to the left tell.
            pixel: (B, any) for each colour that it sees: all that enter, up to here.
            gated: (B, any) for each earlier colour, what has passed its gate; this one's is added.
        """
        features = left + ops.matmul(ops.concatenate(pixel, -1), self.entering) if pixel else left
        gated.append(_gate(features))
        output = ops.matmul(ops.concatenate(gated, -1), self.output) + self.bias
        return output + pixel[-1] if self.residual else output


def _convolve(features, kernel):
    return ops.conv(features, kernel, padding="valid", data_format="channels_last")


def _gate(features):
    # TensorFlow's tanh is slower in bfloat16 than in float32, casts included.
    tanh, sigmoid = ops.split(ops.cast(features, "float32"), 2, axis=-1)
    return ops.cast(ops.tanh(tanh) * ops.sigmoid(sigmoid), features.dtype)
