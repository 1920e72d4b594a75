"""Noise that belongs to a place in the picture."""

import keras
import numpy as np
from keras import ops
from scipy.special import ndtri

from superres.layers.base import Configured, Shape, Tensor

# What 14 random bits stand for: four values of the standard normal distribution, whose quantiles
# each column has in an order of its own. Looked up together, they take a quarter of the time.
# RandomState, unlike numpy's newer generators, gives the same numbers in all versions.
_ORDERS = np.argsort(np.random.RandomState(0).random((16384, 4)), axis=0)
_NORMAL = ndtri((_ORDERS + 0.5) / 16384).astype("float32")


def _int32(number):
    """The 32 lowest bits of an integer, as a signed one."""
    return int(np.int64(number).astype("int32"))


def _mixed(bits):
    """MurmurHash3's finaliser on int32: every bit that goes in changes half of those that come out."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        # A shift of signed integers brings copies of the sign: they are masked out.
        shifted = ops.bitwise_and(ops.right_shift(bits, shift), (1 << (32 - shift)) - 1)
        bits = ops.bitwise_xor(bits, shifted) * _int32(factor)
    return bits


@keras.saving.register_keras_serializable(package="superres")
class NoiseInjection(Configured, keras.layers.Layer):
    """x + temperature * scale * n, n drawn from N(0, 1) for every pixel and channel.

    Takes [x (B, H, W, C), seed (B,) int32, temperature (B,), origin (B, 2) int32] and gives
    (B, H, W, C). `scale` is learned, one for each channel. n is a function of the picture's
    seed, of the pixel's absolute position and of the layer's `stream`: a tile of a picture
    has the noise that the whole picture has there, pictures differ by their seeds, on
    however many devices, and a temperature of zero is no noise.

    Args:
        stream: Tells the layers of a network apart: their noise is independent.
        factor: x's size over that of the picture in whose pixels `origin` counts.
        initial: Every scale at the start.
        cell: 1: pixels are independent. A larger number: noise is drawn for places so many
            pixels apart, and interpolated between them, with the same variance everywhere.

    Example:
        >>> x, seed, temperature = np.zeros((2, 8, 8, 4)), np.array([1, 2], "int32"), np.ones(2)
        >>> origin = np.zeros((2, 2), "int32")
        >>> NoiseInjection(initial=1.0)([x, seed, temperature, origin]).shape
        (2, 8, 8, 4)

    Source: Karras et al., "A Style-Based Generator Architecture for Generative Adversarial
    Networks", CVPR 2019, section 2.
    """

    def __init__(self, stream: int = 0, factor: int = 1, initial: float = 0.0, cell: int = 1,
                 **kwargs) -> None:
        super().__init__(**kwargs)
        self.stream, self.factor, self.initial, self.cell = stream, factor, initial, cell

    def build(self, input_shape: list[Shape]) -> None:
        channels = input_shape[0][-1]
        self.scale = self.add_weight(
            name="scale", shape=(channels,), initializer=keras.initializers.Constant(self.initial))
        numbers = (np.arange(-(-channels // 4)) + 0x9E3779B9 * (self.stream + 1)).astype("int32")
        self._fours = ops.convert_to_numpy(_mixed(numbers))  # of channels

    def call(self, inputs: list[Tensor]) -> Tensor:
        x, seed, temperature, origin = inputs
        noise = self.noise(ops.shape(x)[1:3], seed, origin)
        amplitude = ops.cast(temperature, x.dtype)[:, None, None, None] * ops.cast(self.scale, x.dtype)
        return x + amplitude * ops.cast(noise, x.dtype)

    def noise(self, size: tuple[int, int], seed: Tensor, origin: Tensor) -> Tensor:
        """The noise of (height, width) pixels: (B, height, width, C) float32."""
        origin = origin * self.factor
        if self.cell == 1:
            return self._drawn(size, seed, origin)
        first, inside = origin // self.cell, origin % self.cell
        places = [n // self.cell + 3 for n in size]
        noise = self._drawn(places, seed, first)
        # Each place's weight in each pixel of a column, and then of a row.
        for axis, pattern in enumerate(("byk,bkxc->byxc", "bxk,bykc->byxc")):
            at = (inside[:, axis, None] + ops.arange(size[axis], dtype="int32"))[..., None]
            distance = ops.abs(at - self.cell * ops.arange(places[axis], dtype="int32"))
            weights = ops.cast(ops.maximum(self.cell - distance, 0), "float32")
            weights = weights / ops.sqrt(ops.sum(weights**2, -1, keepdims=True))
            noise = ops.einsum(pattern, weights, noise)
        return noise

    def _drawn(self, size, seed, origin):
        bits = _mixed(seed)[:, None, None]
        for axis, factor in enumerate((0x27D4EB2F, 0x165667B1)):
            position = origin[:, axis, None] + ops.arange(size[axis], dtype="int32")
            position = position[:, None] if axis else position[:, :, None]
            bits = _mixed(ops.bitwise_xor(bits, position * _int32(factor)))
        bits = ops.bitwise_xor(bits[..., None], self._fours) * _int32(0x85EBCA6B)
        rows = ops.bitwise_and(ops.right_shift(bits, 18), 0x3FFF)
        noise = ops.take(ops.convert_to_tensor(_NORMAL), rows, axis=0)
        return ops.reshape(noise, (*ops.shape(rows)[:3], -1))[..., : self.scale.shape[0]]

    def compute_output_shape(self, input_shape: list[Shape]) -> Shape:
        return input_shape[0]
