"""SRMAP: a generator with noise in every block, and the discriminator it is trained against.

Source: the report "Explicit MAP Optimization for Photo-Realistic Super Resolution", whose
networks are reproduced to the parameter.
"""

from collections.abc import Sequence
from typing import Literal

import keras
from keras import layers

from superres.errors import check_choice
from superres.layers import (
    BiasedSiLU,
    BilinearDownsampling2D,
    BilinearUpsampling2D,
    BinomialBlur2D,
    ConsistentPicture,
    NoiseInjection,
    PixelShuffle2D,
    PixelUnshuffle2D,
    ReflectedConv2D,
)
from superres.models.upscaler import NoisyUpscaler, Upscaler

SCALES = (2, 4)
MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K's pictures, subtracted from what convolutions see
CRITIC_WIDTHS = (256, 512, 512, 512, 1024, 1024)  # of the report's discriminator

# Arguments of the two networks: the report's, and one for two CPU cores.
SIZES = {
    "full": ({}, {}),
    "reduced": (
        {"stem": 128, "widths": (256, 128, 64), "blocks": (4, 4, 4, 4)},
        {"stem": 48, "widths": (48, 96, 96, 192, 192), "blocks": (1, 1, 2, 2, 1)},
    ),
}


def generator(scale: Literal[2, 4] = 4, stem: int = 256, widths: Sequence[int] = (512, 256, 128),
              blocks: Sequence[int] = (16, 16, 16, 16), compression: int = 4, noise: bool = True,
              initial_noise: float = 0.0, noise_cell: int = 1, consistent: bool = False,
              name: str | None = None) -> Upscaler:
    """Build the generator: LR (B, H, W, 3) in [0, 1] -> SR (B, sH, sW, 3).

    With noise it takes a list of four inputs: `lr`, `seed` (B,) int32, `temperature`
    (B,) and `origin` (B, 2) int32; see `layers.NoiseInjection`. A new network interpolates
    bilinearly.

    Args:
        scale: 2 or 4.
        stem: Channels of the residual trunk.
        widths: Channels of the features that the stages add up to, and after each doubling
            of the size; x2 uses the first two.
        blocks: Residual blocks of each stage.
        compression: A block's width over that of its bottleneck.
        noise: Whether features get noise; without, LR is the only input.
        initial_noise: What the learned scales of the noise start from.
        noise_cell: How many pixels apart the noise of the features at LR's size is drawn. That of
            single pixels becomes rings as large as they are, where SR is consistent.
        consistent: Project SR onto the pictures that MATLAB's bicubic shrinks to LR, once in
            training, and twenty times in turn with clipping when it is used.
        name: The network's name.

    Raises:
        InputError: for another scale.

    Example:
        >>> generator(scale=4).count_params()
        20933504
    """
    check_choice("scale", scale, *SCALES)
    doublings = SCALES.index(scale) + 1

    stream = 0

    def activate(x, name, factor=1):
        nonlocal stream
        if noise:
            cell = noise_cell if factor == 1 else 1
            x = NoiseInjection(stream, factor, initial_noise, cell, name=f"{name}_noise")([x, *extra])
            stream += 1
        return BiasedSiLU(name=f"{name}_act")(x)

    lr = keras.Input((None, None, 3), name="lr")
    extra = [keras.Input((), name="seed", dtype="int32"), keras.Input((), name="temperature"),
             keras.Input((2,), name="origin", dtype="int32")] if noise else []

    # A residual trunk x and its activated map a; what every stage adds to the features f.
    x = _stem(lr, stem)
    a = activate(x, "stem")
    f = _conv(a, widths[0], "stem_features", 1)
    for i, count in enumerate(blocks, start=1):
        for j in range(1, count + 1):
            block = f"stage{i}_block{j}"
            y = activate(_conv(a, stem // compression, f"{block}_conv1"), f"{block}_conv1")
            x = layers.Add(name=block)([x, _conv(y, stem, f"{block}_conv2", gain=0)])
            a = activate(x, block)
        f = layers.Add(name=f"stage{i}")([f, _conv(a, widths[0], f"stage{i}_features", 1, gain=0)])
    g = activate(f, "features")

    # Every doubling adds to the picture what the features say.
    sr = lr
    for i in range(1, doublings + 1):
        up, factor, (before, after) = f"up{i}", 2**i, widths[i - 1 : i + 1]
        y = activate(_conv(g, before // compression, f"{up}_conv1"), f"{up}_conv1", factor // 2)
        y = PixelShuffle2D(name=f"{up}_shuffle")(_conv(y, before, f"{up}_expand", 1))
        y = activate(BinomialBlur2D(name=f"{up}_blur")(y), f"{up}_blur", factor)
        f = layers.Add(name=up)([
            BilinearUpsampling2D(name=f"{up}_features")(_conv(f, after, f"{up}_shortcut", 1, gain=1)),
            _conv(y, after, f"{up}_conv2", gain=0),
        ])
        g = activate(f, up, factor)
        sr = BilinearUpsampling2D(dtype="float32", name=f"{up}_bilinear")(sr)
        sr = layers.Add(dtype="float32", name=f"{up}_picture")([sr, _conv(g, 3, f"{up}_to_rgb", 1, gain=0)])
    if consistent:
        sr = ConsistentPicture(scale, rounds=20, name="consistent")([lr, sr])
    name = name or f"srmap_x{scale}"
    return NoisyUpscaler([lr, *extra], sr, name=name) if noise else Upscaler(lr, sr, name=name)


def crop_of(widths: Sequence[int] = CRITIC_WIDTHS) -> int:
    """The height and width of HR that a `discriminator` of these widths takes."""
    return 3 * 2 ** len(widths)


def discriminator(stem: int = 256, widths: Sequence[int] = CRITIC_WIDTHS,
                  blocks: Sequence[int] = (1, 1, 2, 2, 2, 1), compression: int = 4,
                  name: str = "discriminator") -> keras.Model:
    """Build the discriminator: (B, S, S, 3) in [0, 1] -> logits (B, 1); positive means real.

    S is `crop_of(widths)`: 192 for the report's six stages.

    Args:
        stem: Channels of the first feature map.
        widths: Channels that each stage ends with, at half the size it began with.
        blocks: Blocks of each stage: one that shrinks, then residual ones.
        compression: A block's width over that of its bottleneck.
        name: The network's name.

    Example:
        >>> discriminator().count_params()
        20817025
    """

    def activate(x, name):
        return BiasedSiLU(name=f"{name}_act")(x)

    hr = keras.Input((crop_of(widths), crop_of(widths), 3), name="hr")
    x = _stem(hr, stem)
    width = stem
    for i, (after, count) in enumerate(zip(widths, blocks, strict=True), start=1):
        down, bottleneck = f"stage{i}_down", after // compression
        y = activate(_conv(activate(x, down), bottleneck, f"{down}_conv1"), f"{down}_conv1")
        y = PixelUnshuffle2D(name=f"{down}_unshuffle")(BinomialBlur2D(name=f"{down}_blur")(y))
        y = activate(_conv(y, bottleneck, f"{down}_reduce", 1), f"{down}_reduce")
        shortcut = BilinearDownsampling2D(name=f"{down}_bilinear")(x)
        if after != width:
            shortcut = _conv(shortcut, after, f"{down}_shortcut", 1, gain=1)
        x = layers.Add(name=down)([shortcut, _conv(y, after, f"{down}_conv2", gain=0)])
        width = after
        for j in range(1, count):
            block = f"stage{i}_block{j}"
            y = activate(_conv(activate(x, block), bottleneck, f"{block}_conv1"), f"{block}_conv1")
            x = layers.Add(name=block)([x, _conv(y, width, f"{block}_conv2", gain=0)])
    x = layers.DepthwiseConv2D(3, use_bias=False, depthwise_initializer=_start(1, fan_in=9), name="whole")(
        activate(x, "whole"))
    x = layers.Dense(width // 2, use_bias=False, kernel_initializer=_start(2), name="features")(
        layers.Flatten()(x))
    logits = layers.Dense(1, kernel_initializer=_start(1), dtype="float32", name="logits")(
        activate(x, "features"))
    return keras.Model(hr, logits, name=name)


def _stem(picture, filters):
    centred = layers.Rescaling(1, [-mean for mean in MEAN], dtype="float32", name="centred")(picture)
    return _conv(centred, filters, "stem")


def _conv(x, filters, name, kernel_size=3, gain=2):
    return ReflectedConv2D(
        filters, kernel_size, use_bias=False, kernel_initializer=_start(gain), name=name)(x)


def _start(gain, fan_in=None):
    """N(0, gain / fan_in), or zeros: the branch starts closed."""
    if not gain:
        return "zeros"
    if fan_in:
        return keras.initializers.RandomNormal(stddev=(gain / fan_in) ** 0.5)
    return keras.initializers.VarianceScaling(gain, "fan_in", "untruncated_normal")
