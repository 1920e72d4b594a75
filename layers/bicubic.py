"""Fixed bicubic resizing as convolutions, equal to MATLAB's imresize."""

import keras
import numpy as np
from keras import ops

from superres.cubic import cubic
from superres.layers.base import Configured, Shape, Tensor


class _Bicubic(Configured, keras.layers.Layer):
    """Without weights, and always in float32 or wider: in bfloat16 pictures would lose their last bits."""

    def __init__(self, scale: int = 2, dtype: str | keras.DTypePolicy | None = None, **kwargs) -> None:
        wide = keras.dtype_policies.get(dtype).compute_dtype == "float64"
        super().__init__(dtype="float64" if wide else "float32", **kwargs)
        self.scale = scale


@keras.saving.register_keras_serializable(package="superres")
class BicubicUpsampling2D(_Bicubic):
    """Bicubic upsampling: (B, H, W, C) -> (B, sH, sW, C), equal to MATLAB's imresize.

    Edges are symmetric, so a picture must measure at least 2 x 2.

    Args:
        scale: The upsampling factor s, an integer.
    """

    def build(self, input_shape: Shape) -> None:
        # Output pixel s*i + p lies at i + (p + 0.5) / s - 0.5 in the input; five taps
        # around i hold the four that matter, whatever the phase p.
        phases = (np.arange(self.scale) + 0.5) / self.scale - 0.5
        taps = cubic(np.arange(-2, 3)[:, None] - phases)
        channels = input_shape[-1]
        # depth_to_space keeps sub-pixels in blocks: axis order (row, column, channel).
        kernel = np.einsum("ip,jq,cd->ijcpqd", taps, taps, np.eye(channels))
        self._kernel = kernel.reshape(5, 5, channels, -1).astype("float32")

    def call(self, inputs: Tensor) -> Tensor:
        padded = _mirrored(_mirrored(inputs, 1, 2), 2, 2)
        kernel = ops.convert_to_tensor(self._kernel, dtype=padded.dtype)
        phases = ops.conv(padded, kernel, padding="valid", data_format="channels_last")
        return ops.depth_to_space(phases, self.scale, data_format="channels_last")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *size, channels = input_shape
        return (batch, *(None if n is None else n * self.scale for n in size), channels)


@keras.saving.register_keras_serializable(package="superres")
class BicubicDownsampling2D(_Bicubic):
    """Antialiased bicubic downsampling: (B, sH, sW, C) -> (B, H, W, C), equal to MATLAB's imresize.

    Edges are symmetric, so a picture must measure at least 3s / 2 each way. Called with
    `clip`, values stay in [0, 1] along the one axis and the other, as those of 8 bits do.

    Args:
        scale: The factor s, an even integer that divides both sizes.

    Raises:
        ValueError: for an odd factor.
    """

    def __init__(self, scale: int = 2, **kwargs) -> None:
        super().__init__(scale, **kwargs)
        if scale % 2:
            raise ValueError(f"scale must be even, not {scale}")

    def build(self, input_shape: Shape) -> None:
        taps = _downsampling_taps(self.scale)
        self._kernel = np.multiply.outer(taps, np.eye(input_shape[-1])).astype("float32")

    def call(self, inputs: Tensor, clip: bool = False) -> Tensor:
        kernel = ops.convert_to_tensor(self._kernel, dtype=inputs.dtype)
        x = inputs
        for axis, window in ((1, kernel[:, None]), (2, kernel[None])):  # rows first
            strides = (self.scale, 1) if axis == 1 else (1, self.scale)
            x = ops.conv(_mirrored(x, axis, 3 * self.scale // 2), window, strides, "valid", "channels_last")
            if clip:
                x = ops.clip(x, 0, 1)
        return x

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, *size, channels = input_shape
        return (batch, *(None if n is None else n // self.scale for n in size), channels)


@keras.saving.register_keras_serializable(package="superres")
class BicubicPseudoInverse2D(BicubicUpsampling2D):
    """The pseudo-inverse of `BicubicDownsampling2D`: (B, H, W, C) -> (B, sH, sW, C).

    Of all pictures that shrink to the given one, the one of least energy. Its taps fall to
    a third with every pixel of distance; those beyond eight, below 2e-4, are left out.
    Edges are symmetric, so a picture must measure at least 8 x 8.

    Args:
        scale: The factor s, an even integer.
    """

    def build(self, input_shape: Shape) -> None:
        # D+ = D^T (D D^T)^-1; on a long periodic line all rows are alike.
        scale, line, reach = self.scale, 64, 8
        down = np.zeros((line, line * scale))
        at = np.arange(4 * scale) - 3 * scale // 2
        for i in range(line):
            down[i, (scale * i + at) % (line * scale)] = _downsampling_taps(scale)
        inverse = np.linalg.pinv(down)[:, line // 2].reshape(line, scale)
        # What pixel i + k gives to phase p of i is what the middle pixel gives at i - k.
        taps = inverse[line // 2 + reach : line // 2 - reach - 1 : -1]
        channels = input_shape[-1]
        kernel = np.einsum("kp,cd->kcpd", taps, np.eye(channels))
        self._kernel = kernel.reshape(len(taps), channels, -1).astype("float32")

    def call(self, inputs: Tensor) -> Tensor:
        kernel, x = ops.convert_to_tensor(self._kernel, dtype=inputs.dtype), inputs
        for axis, window in ((1, kernel[:, None]), (2, kernel[None])):  # rows first
            x = ops.conv(_mirrored(x, axis, len(self._kernel) // 2), window, 1, "valid", "channels_last")
            batch, height, width, _ = ops.shape(x)
            x = ops.reshape(x, (batch, height, width, self.scale, inputs.shape[-1]))
            if axis == 1:
                x = ops.transpose(x, (0, 1, 3, 2, 4))
                height = height * self.scale
            else:
                width = width * self.scale
            x = ops.reshape(x, (batch, height, width, inputs.shape[-1]))
        return x


@keras.saving.register_keras_serializable(package="superres")
class ConsistentPicture(_Bicubic):
    """The nearest picture that MATLAB's bicubic shrinks to LR: [LR, SR] -> SR + D+ (LR - D SR).

    Takes LR (B, H, W, C), at least 8 x 8, and SR (B, sH, sW, C). What a network draws is then
    free in the null space of D alone: faithful to LR whatever it has learned.

    Values beyond [0, 1] would be clipped later, and LR missed where a picture is black or
    white. With `rounds`, but not in training, projections and clipping alternate, each
    projection but the last going half as far again, which meets both sets sooner, and
    pictures are shrunk as those of 8 bits are.

    Args:
        scale: The factor s, an even integer.
        rounds: How often the picture is projected and clipped; 0: projected once.

    Source: Wang et al., "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space
    Model", 2022, equation 8.
    """

    def __init__(self, scale: int = 2, rounds: int = 0, **kwargs) -> None:
        super().__init__(scale, **kwargs)
        self.rounds = rounds
        self.down = BicubicDownsampling2D(scale, dtype=self.dtype_policy)
        self.up = BicubicPseudoInverse2D(scale, dtype=self.dtype_policy)

    def build(self, input_shape: list[Shape]) -> None:
        self.down.build(input_shape[1])
        self.up.build(input_shape[0])

    def call(self, inputs: list[Tensor], training: bool = False) -> Tensor:
        lr, sr = inputs
        if training or not self.rounds:
            return sr + self.up(lr - self.down(sr))

        def nearer(sr, share):
            return ops.clip(sr + share * self.up(lr - self.down(sr, clip=True)), 0, 1)

        return nearer(ops.fori_loop(1, self.rounds, lambda _, sr: nearer(sr, 1.5), sr), 1)

    def compute_output_shape(self, input_shape: list[Shape]) -> Shape:
        return input_shape[1]


def _downsampling_taps(scale):
    """MATLAB's antialiased bicubic at an even scale, 4s taps around the middle of s pixels."""
    # Output pixel i lies at s*i + (s - 1) / 2; the kernel is widened by s.
    taps = cubic((np.arange(4 * scale) - 2 * scale + 0.5) / scale)
    return taps / taps.sum()


def _mirrored(x, axis, count):
    """Continue an axis symmetrically by `count` on both sides; a ValueError if it is shorter than that."""
    if x.shape[axis] is not None and x.shape[axis] < count:
        raise ValueError(f"a picture must measure at least {count} pixels here, not {x.shape[axis]}")
    # The torch backend takes ops.pad's "symmetric" for "replicate": mirror by hand.
    before = (slice(None),) * axis
    first, last = x[(*before, slice(None, count))], x[(*before, slice(-count, None))]
    return ops.concatenate([ops.flip(first, axis), x, ops.flip(last, axis)], axis)
