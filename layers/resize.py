"""Resizing by fixed filters and by rearranging, as often differentiable as you like.

All are sums of shifted pictures: TensorFlow's own bilinear resizing has silently wrong
second-order gradients, which a gradient penalty needs. Layers take (B, H, W, C) and have
no weights.
"""

import keras
from keras import ops


class _Separable(keras.layers.Layer):
    """The same along the rows, then along the columns."""

    factor = 1.0  # the output's size over the input's

    def call(self, inputs):
        return self.along(self.along(inputs, 1), 2)

    def compute_output_shape(self, input_shape):
        batch, *size, channels = input_shape
        return (batch, *(None if n is None else int(n * self.factor) for n in size), channels)


@keras.saving.register_keras_serializable(package="superres")
class BilinearUpsampling2D(_Separable):
    """Bilinear interpolation to twice the size, edges continued: (B, H, W, C) -> (B, 2H, 2W, C)."""

    factor = 2.0

    def along(self, x, axis):
        before = ops.concatenate([_part(x, axis, 0, 1), _part(x, axis, 0, -1)], axis)
        after = ops.concatenate([_part(x, axis, 1, None), _part(x, axis, -1, None)], axis)
        pairs = ops.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis + 1)
        shape = list(ops.shape(x))
        shape[axis] = 2 * shape[axis]
        return ops.reshape(pairs, shape)


@keras.saving.register_keras_serializable(package="superres")
class BilinearDownsampling2D(_Separable):
    """Antialiased bilinear interpolation to half the size: (B, 2H, 2W, C) -> (B, H, W, C).

    A triangle of four pixels, [1, 3, 3, 1] / 8; at the edges, where one pixel is missing,
    [3, 3, 1] / 7.
    """

    factor = 0.5

    def along(self, x, axis):
        return _weighed(x, axis) / _weighed(ops.ones_like(x[:1, :, :, :1]), axis)


def _weighed(x, axis):
    """1, 3, 3 and 1 times four pixels in a row around the middle of two, zeros beyond the edges."""
    first, second = _part(x, axis, 0, None, 2), _part(x, axis, 1, None, 2)
    nothing = ops.zeros_like(_part(x, axis, 0, 1))
    before = ops.concatenate([nothing, _part(second, axis, 0, -1)], axis)
    after = ops.concatenate([_part(first, axis, 1, None), nothing], axis)
    return before + 3 * (first + second) + after


@keras.saving.register_keras_serializable(package="superres")
class BinomialBlur2D(_Separable):
    """Blur by [1, 2, 1] / 4 each way, edges reflected: (B, H, W, C) -> (B, H, W, C)."""

    def along(self, x, axis):
        before = ops.concatenate([_part(x, axis, 1, 2), _part(x, axis, 0, -1)], axis)
        after = ops.concatenate([_part(x, axis, 1, None), _part(x, axis, -2, -1)], axis)
        return 0.5 * x + 0.25 * (before + after)


@keras.saving.register_keras_serializable(package="superres")
class PixelShuffle2D(keras.layers.Layer):
    """Channels into space: (B, H, W, 4C) -> (B, 2H, 2W, C), sub-pixels in blocks of channels.

    Source: Shi et al., CVPR 2016, equation 4.
    """

    def call(self, inputs):
        return ops.depth_to_space(inputs, 2, data_format="channels_last")

    def compute_output_shape(self, input_shape):
        batch, *size, channels = input_shape
        return (batch, *(None if n is None else 2 * n for n in size), channels // 4)


@keras.saving.register_keras_serializable(package="superres")
class PixelUnshuffle2D(keras.layers.Layer):
    """Space into channels, the inverse of `PixelShuffle2D`: (B, 2H, 2W, C) -> (B, H, W, 4C)."""

    def call(self, inputs):
        return ops.space_to_depth(inputs, 2, data_format="channels_last")

    def compute_output_shape(self, input_shape):
        batch, *size, channels = input_shape
        return (batch, *(None if n is None else n // 2 for n in size), 4 * channels)


def _part(x, axis, start, stop, step=1):
    """x[start:stop:step] along an axis."""
    return x[(*(slice(None),) * axis, slice(start, stop, step))]
