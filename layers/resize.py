"""Resizing by fixed filters and by rearranging, as often differentiable as you like.

The filters are depthwise convolutions: TensorFlow's own bilinear resizing has silently wrong
second-order gradients, which a gradient penalty needs. Layers take (B, H, W, C) and have
no weights.
"""

import keras
import numpy as np
from keras import ops

from superres.layers.base import Shape, Tensor


@keras.saving.register_keras_serializable(package="superres")
class BilinearUpsampling2D(keras.layers.Layer):
    """Bilinear interpolation to twice the size, edges continued: (B, H, W, C) -> (B, 2H, 2W, C)."""

    def call(self, inputs: Tensor) -> Tensor:
        x, taps = _padded(inputs, "symmetric"), ((0.25, 0.75, 0), (0, 0.75, 0.25))
        phases = [_filtered(x, rows, columns) for rows in taps for columns in taps]
        return ops.depth_to_space(ops.concatenate(phases, -1), 2, data_format="channels_last")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return _resized(input_shape, 2)


@keras.saving.register_keras_serializable(package="superres")
class BilinearDownsampling2D(keras.layers.Layer):
    """Antialiased bilinear interpolation to half the size: (B, 2H, 2W, C) -> (B, H, W, C).

    A triangle of four pixels, [1, 3, 3, 1] / 8; at the edges, where one pixel is missing,
    [3, 3, 1] / 7.
    """

    def call(self, inputs: Tensor) -> Tensor:
        taps = (0.125, 0.375, 0.375, 0.125)
        sums, weights = (_filtered(_padded(x, "constant"), taps, taps, strides=2)
                         for x in (inputs, ops.ones_like(inputs[:1, :, :, :1])))
        return sums / weights

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return _resized(input_shape, 0.5)


@keras.saving.register_keras_serializable(package="superres")
class BinomialBlur2D(keras.layers.Layer):
    """Blur by [1, 2, 1] / 4 each way, edges reflected: (B, H, W, C) -> (B, H, W, C)."""

    def call(self, inputs: Tensor) -> Tensor:
        taps = (0.25, 0.5, 0.25)
        return _filtered(_padded(inputs, "reflect"), taps, taps)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


@keras.saving.register_keras_serializable(package="superres")
class PixelShuffle2D(keras.layers.Layer):
    """Channels into space: (B, H, W, 4C) -> (B, 2H, 2W, C), sub-pixels in blocks of channels.

    Source: Shi et al., CVPR 2016, equation 4.
    """

    def call(self, inputs: Tensor) -> Tensor:
        return ops.depth_to_space(inputs, 2, data_format="channels_last")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*_resized(input_shape, 2)[:-1], input_shape[-1] // 4)


@keras.saving.register_keras_serializable(package="superres")
class PixelUnshuffle2D(keras.layers.Layer):
    """Space into channels, the inverse of `PixelShuffle2D`: (B, 2H, 2W, C) -> (B, H, W, 4C)."""

    def call(self, inputs: Tensor) -> Tensor:
        return ops.space_to_depth(inputs, 2, data_format="channels_last")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*_resized(input_shape, 0.5)[:-1], 4 * input_shape[-1])


def _padded(x, mode):
    """x with one more pixel on every side."""
    return ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode)


def _filtered(x, rows, columns, strides=1):
    """Every channel's correlation with weights of rows and of columns."""
    kernel = np.einsum("i,j,c->ijc", rows, columns, np.ones(x.shape[-1]))[..., None]
    kernel = ops.convert_to_tensor(kernel, dtype=x.dtype)
    return ops.depthwise_conv(x, kernel, strides, "valid", data_format="channels_last")


def _resized(shape, factor):
    batch, *size, channels = shape
    return (batch, *(None if n is None else int(n * factor) for n in size), channels)
