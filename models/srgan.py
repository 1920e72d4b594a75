"""SRGAN: a residual generator (SRResNet) and the discriminator it is trained against.

Sources: Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative
Adversarial Network", CVPR 2017, figure 4 (the paper); the report "Image Super-Resolution
using Generative Adversarial Networks", section 3 (the report).
"""

from typing import Literal

import keras
import numpy as np
from keras import layers

from superres.errors import InputError, check_choice
from superres.layers import PolyphaseConv2D, SpectralConv2D, SubPixelConv2D, batch_norm
from superres.models.upscaler import Upscaler

SCALES = (2, 4, 8)


def generator(scale: Literal[2, 4, 8] = 4, blocks: int = 5, filters: int = 64,
              prelu: Literal["scalar", "channel"] = "scalar", name: str | None = None) -> Upscaler:
    """Build the generator: (B, H, W, 3) in [0, 1] -> (B, sH, sW, 3) in [0, 1].

    Args:
        scale: 2, 4 or 8.
        blocks: Residual blocks; the paper has 16.
        filters: Channels of every feature map.
        prelu: What a PReLU learns: one slope, `"scalar"` (the report), or one for each
            `"channel"` (the paper).
        name: The network's name.

    Raises:
        InputError: for another scale or kind of PReLU.

    Example:
        >>> generator(scale=2).count_params()
        587914
    """
    check_choice("scale", scale, *SCALES)
    check_choice("prelu", prelu, "scalar", "channel")

    def conv(x, kernel_size, name):
        return layers.Conv2D(filters, kernel_size, padding="same", name=name)(x)

    def activate(x, name):
        shared = [1, 2, 3] if prelu == "scalar" else [1, 2]
        slopes = keras.initializers.Constant(0.25)
        return layers.PReLU(alpha_initializer=slopes, shared_axes=shared, name=f"{name}_act")(x)

    def normalise(x, name):
        return batch_norm(name=f"{name}_norm")(x)

    lr = keras.Input((None, None, 3), name="lr")
    x = layers.Rescaling(2, -1, dtype="float32", name="centred")(lr)
    x = head = activate(conv(x, 9, "head"), "head")
    for i in range(1, blocks + 1):
        one, two = f"block{i}_conv1", f"block{i}_conv2"
        h = activate(normalise(conv(x, 3, one), one), one)
        x = layers.Add(name=f"block{i}")([x, normalise(conv(h, 3, two), two)])
    x = layers.Add(name="skip")([head, normalise(conv(x, 3, "trunk"), "trunk")])
    for i in range(1, SCALES.index(scale) + 2):
        x = activate(SubPixelConv2D(filters, 3, scale=2, name=f"up{i}")(x), f"up{i}")
    x = PolyphaseConv2D(3, 9, name="last")(x)
    x = layers.Activation("tanh", dtype="float32", name="tanh")(x)
    sr = layers.Rescaling(0.5, 0.5, dtype="float32", name="sr")(x)
    return Upscaler(lr, sr, name=name or f"srgan_x{scale}")


def start_as_interpolation(network: Upscaler) -> None:
    """Give a new generator weights that make it upscale bilinearly, up to tanh's curve.

    Three feature maps carry the colours and three their negatives, which PReLUs pass on
    together without loss; residual branches start at zero. A generator with random weights
    spends thousands of steps on learning to copy its input.
    """
    slope = 0.25  # of a new PReLU: v - slope * -v and back
    colours = np.arange(3)
    for layer in network.layers:
        if layer.name == "trunk_norm" or layer.name.endswith("conv2_norm"):
            layer.gamma.assign(np.zeros(layer.gamma.shape))
        elif layer.name == "head":
            kernel, bias = layer.get_weights()
            kernel[..., :6], bias[:6] = 0, 0
            kernel[4, 4, colours, colours], kernel[4, 4, colours, colours + 3] = 1, -1
            layer.set_weights([kernel, bias])
        elif isinstance(layer, SubPixelConv2D):
            kernel, bias = layer.get_weights()
            phases = kernel.reshape(3, 3, -1, 2, 2, layer.filters // 4)  # a view
            phases[..., :6] = 0
            taps = np.array([[0.25, 0], [0.75, 0.75], [0, 0.25]])
            bilinear = np.einsum("ip,jq->ijpq", taps, taps) / (1 + slope)
            for source, target in np.ndindex(2, 2):
                sign = 1 if source == target else -1
                phases[:, :, colours + 3 * source, :, :, colours + 3 * target] = sign * bilinear
            layer.set_weights([kernel, bias])
        elif layer.name == "last":
            kernel, bias = layer.get_weights()
            kernel[...] = 0
            # tanh(1.2 v) stays within 0.17 of v.
            kernel[4, 4, colours, colours], kernel[4, 4, colours + 3, colours] = 0.96, -0.96
            layer.set_weights([kernel, bias])


def discriminator(filters: int = 64, size: int | None = None, norm: Literal["batch", "spectral"] = "batch",
                  name: str = "discriminator") -> keras.Model:
    """Build the discriminator: (B, H, W, 3) in [0, 1] -> logits (B, 1); positive means real.

    Args:
        filters: Channels of the first feature map; the last has eight times as many.
        size: None for the report's head, which averages over the picture and takes any
            size; or the height and width of HR for the paper's, dense over all positions.
        norm: `"batch"` normalisation of all features but the first (the paper and the report);
            or `"spectral"` normalisation of every kernel instead (Miyato et al., "Spectral
            Normalization for Generative Adversarial Networks", 2018), for the report's head.
        name: The network's name.

    Raises:
        InputError: for another norm, or spectral normalisation with the dense head.

    Example:
        >>> discriminator()(keras.ops.ones((1, 96, 96, 3))).shape
        (1, 1)
    """
    check_choice("norm", norm, "batch", "spectral")
    if size and norm == "spectral":
        raise InputError("norm: spectral has no dense head")
    conv = layers.Conv2D if norm == "batch" else SpectralConv2D

    hr = x = keras.Input((size, size, 3), name="hr")
    for i, (factor, strides) in enumerate((f, s) for f in (1, 2, 4, 8) for s in (1, 2)):
        x = conv(filters * factor, 3, strides, "same")(x)
        if i and norm == "batch":
            x = batch_norm()(x)
        x = layers.LeakyReLU(0.2)(x)
    if size:
        x = layers.Flatten()(x)
        x = layers.LeakyReLU(0.2)(layers.Dense(16 * filters)(x))
        logits = layers.Dense(1, dtype="float32", name="logits")(x)
    else:
        x = layers.GlobalAveragePooling2D(keepdims=True)(x)
        x = layers.LeakyReLU(0.2)(conv(16 * filters, 1)(x))
        logits = layers.Flatten(dtype="float32", name="logits")(conv(1, 1, dtype="float32")(x))
    return keras.Model(hr, logits, name=name)
