"""LapSRN with sub-pixel convolution: a Laplacian pyramid of residual networks."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from keras import layers

from superres.errors import InputError, check_choice
from superres.layers import BicubicUpsampling2D, SubPixelConv2D
from superres.models.upscaler import Upscaler

SCALES = (2, 4, 8)


def lapsrn(
    scale: Literal[2, 4, 8],
    channels: Literal[1, 3] = 1,
    filters: int = 64,
    depth: int | Sequence[int] = 10,
    slope: float = 0.02,
    skip_every: int = 0,
    chain: Literal["features", "image"] = "features",
    image_branch: Literal["bicubic", "subpixel"] = "bicubic",
    residual: Literal["direct", "features"] = "direct",
    initial: Literal["interpolation", "glorot"] = "interpolation",
    name: str | None = None,
) -> Upscaler:
    """Build LapSRN: (B, H, W, channels) in [0, 1] -> one picture for each level.

    Level i puts out (B, 2^i H, 2^i W, channels); the last is the super-resolved
    picture. A network of one level returns its picture, others a list. A level
    extracts features at its input's resolution, upsamples them with a sub-pixel
    convolution and adds the residual picture made of them to its upsampled input (the
    image branch). Outputs are not clipped.

    Args:
        scale: 2, 4 or 8.
        channels: 1 for luminance (chrominance then goes through bicubic), 3 for RGB.
        filters: Channels of every feature map.
        depth: 3x3 convolutions of a level before the upsampling; one number, or one
            for each level.
        slope: Slope of the LeakyReLU before each of them.
        skip_every: Add a skip connection around every so many convolutions, which must
            divide the depth; 0: around the whole level.
        chain: What a level hands to the next: `"features"` (the original LapSRN), or
            `"image"`, one picture of one channel (the report's network).
        image_branch: `"bicubic"` (fixed) or `"subpixel"` (learned).
        residual: How the last level makes its residual picture. `"features"`: upsampled
            feature maps, then a convolution (the report, the original LapSRN).
            `"direct"`: one 5x5 sub-pixel convolution, which is what those two linear
            layers amount to (see `direct_residual`), at a 24th of the arithmetic.
        initial: The weights of a new network. `"interpolation"`: residual pictures of zeros on
            top of the image branch, whose sub-pixels start equal (see `layers.ICNR`), and
            He's initialisation of what is before them. `"glorot"`: Keras's default throughout
            (the report names no other), so that every sub-pixel starts with weights of its own.
        name: The network's name.

    Raises:
        InputError: for another scale, word or number of channels than those named, a number of
            depths that differs from the number of levels, a depth that `skip_every` does not
            divide, or a chain of pictures in RGB.

    Example:
        >>> network = lapsrn(scale=4)
        >>> [output.shape for output in network.outputs]
        [(None, None, None, 1), (None, None, None, 1)]

    Sources: Lai et al., CVPR 2017, section 3.2, for the pyramid; the report
    "Real world image super resolution with LapSRN", sections 3.2 and 3.3, for
    pre-activation, local skip and sub-pixel convolution.
    """
    check_choice("scale", scale, *SCALES)
    check_choice("channels", channels, 1, 3)
    check_choice("chain", chain, "features", "image")
    check_choice("image_branch", image_branch, "bicubic", "subpixel")
    check_choice("residual", residual, "direct", "features")
    check_choice("initial", initial, "interpolation", "glorot")
    levels = SCALES.index(scale) + 1
    depths = [depth] * levels if isinstance(depth, int) else list(depth)
    if len(depths) != levels:
        raise InputError(f"scale {scale} has {levels} levels, but depth names {len(depths)}: {depth}")
    if skip_every and any(convolutions % skip_every for convolutions in depths):
        raise InputError(f"skip_every ({skip_every}) must divide every depth: {depths}")
    if chain == "image" and channels != 1:
        raise InputError(f"chain: image works with 1 channel, not {channels}")

    interpolation = initial == "interpolation"
    feature, last = ("he_normal", "zeros") if interpolation else ("glorot_uniform", "glorot_uniform")

    def conv(width, **kwargs):
        return layers.Conv2D(width, 3, padding="same", kernel_initializer=feature, **kwargs)

    def subpixel(filters, size, initializer, name, **kwargs):
        return SubPixelConv2D(filters, size, icnr=interpolation, kernel_initializer=initializer, name=name,
                              **kwargs)

    image = inputs = layers.Input((None, None, channels), name="lr")
    features = conv(filters, name="head")(image) if chain == "features" else image
    outputs = []
    for level, convolutions in enumerate(depths, start=1):
        # Feature extraction
        x = skip = features
        for i in range(1, convolutions + 1):
            x = layers.LeakyReLU(slope, name=f"level{level}_act{i}")(x)
            x = conv(filters, name=f"level{level}_conv{i}")(x)
            if i % (skip_every or convolutions) == 0:
                # A one-channel skip is broadcast over the feature maps.
                x = skip = layers.Add(name=f"level{level}_skip{i}")([skip, x])
        if residual == "direct" and level == levels:
            detail = subpixel(channels, 5, last, f"level{level}_residual")(x)
        else:
            x = subpixel(filters, 3, feature, f"level{level}_up")(x)
            detail = layers.Conv2D(
                channels, 3, padding="same", kernel_initializer=last, name=f"level{level}_residual"
            )(x)

        # Image reconstruction, in float32 whatever the precision of the features
        if image_branch == "bicubic":
            image = BicubicUpsampling2D(2, dtype="float32", name=f"level{level}_image")(image)
        else:
            image = subpixel(channels, 3, "glorot_uniform", f"level{level}_image", dtype="float32")(image)
        image = layers.Add(dtype="float32", name=f"level{level}_sr")([image, detail])
        outputs.append(image)
        features = x if chain == "features" else image
    return Upscaler(inputs, outputs, name=name or f"lapsrn_x{scale}")


def direct_residual(up: list[np.ndarray], residual: list[np.ndarray]) -> list[np.ndarray]:
    """Weights of the `"direct"` residual layer that equals two layers of `"features"`.

    Args:
        up: [kernel (3, 3, F, 4F), bias (4F,)] of the sub-pixel convolution.
        residual: [kernel (3, 3, F, C), bias (C,)] of the convolution after it.

    Returns:
        [kernel (5, 5, F, 4C), bias (4C,)]. The two agree but for the outermost ring of
        HR pixels, where the convolution pads the upsampled features with zeros.
    """
    (up_kernel, up_bias), (kernel, bias) = up, residual
    filters, channels = kernel.shape[2:]
    up_kernel = up_kernel.reshape(3, 3, filters, 2, 2, filters)
    up_bias = up_bias.reshape(2, 2, filters)
    direct, constant = np.zeros((5, 5, filters, 2, 2, channels)), np.zeros((2, 2, channels))
    for p, q, u, v in np.ndindex(2, 2, 3, 3):
        # Tap (u, v) at sub-pixel (p, q) reads sub-pixel (y % 2, x % 2), (y // 2, x // 2) away.
        y, x = p + u - 1, q + v - 1
        top, left = y // 2 + 1, x // 2 + 1
        direct[top : top + 3, left : left + 3, :, p, q] += up_kernel[:, :, :, y % 2, x % 2] @ kernel[u, v]
        constant[p, q] += up_bias[y % 2, x % 2] @ kernel[u, v]
    return [direct.reshape(5, 5, filters, -1), (constant + bias).ravel()]
