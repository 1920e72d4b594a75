"""Pixel recursive super resolution: a conditioning network and a PixelCNN, logits added.

    p(y_i | x, y_<i) = softmax(A_i(x) + B_i(y_<i)),   i over rows, columns, then R, G, B

A, the conditioning network, sees the LR picture x; B, the prior network, sees the HR
picture's earlier sub-pixels. Each puts out 256 logits a sub-pixel. The sum alone lets LR
shift what B expects; with conditioned gates, B_i(y_<i, x) also sees A's last features, in
every block.

Sources: Dahl, Norouzi and Shlens, "Pixel Recursive Super Resolution", arXiv 1702.00783
(the paper), section 3 and table 4; the report "Image Super-Resolution with pixel
dependency", which puts SPADE in place of batch normalisation (section 3.4); for conditioned
gates van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", 2016.
"""

from itertools import zip_longest
from typing import Literal

import keras
from keras import layers

from superres.errors import InputError, check_choice
from superres.layers import GatedPixelCNNBlock, MaskedConv2D, SPADEResBlock, batch_norm
from superres.models.upscaler import ThumbnailUpscaler


def conditioning_network(
    size: int | None = 8,
    scale: Literal[2, 4, 8] = 4,
    channels: Literal[1, 3] = 3,
    filters: int = 32,
    blocks: int = 6,
    norm: Literal["batch", "spade", "batch+lr"] = "batch",
    hidden: int = 128,
    spectral: bool = True,
    slope: float = 0.2,
    transpose_kernel: int = 3,
    head: Literal["softmax", "gaussian"] = "softmax",
    levels: int = 256,
    features: bool = False,
    initializer: str | keras.initializers.Initializer = "glorot_uniform",
    name: str = "conditioning",
) -> keras.Model:
    """Build A: LR (B, size, size, channels) in [0, 1] -> (B, HR, HR, channels, levels) logits.

    `blocks` residual blocks at every resolution from LR's on, with a transposed
    convolution of stride 2 between them. `models.upscaler.upscaler` makes it a network that
    upscales by itself.

    The report (4.2) gives the convolutions "within SPADE resnet block" a kernel of 4x4 and
    stride 2. A residual block of stride 2 could not add its input, its figure 3 shows Park's
    block, and it has the picture enlarged "at each convolution step in conditioning network"
    (3.4): 4x4 and stride 2 are taken for the transposed convolutions', and the blocks keep
    their 3x3.

    Args:
        size: Height and width of LR; None for any, with a Gaussian head.
        scale: 2, 4 or 8.
        channels: 3 for RGB, 1 for grey.
        filters: Channels of every feature map.
        blocks: Residual blocks at a resolution.
        norm: `"batch"` (the paper), `"spade"` (the report: `SPADEResBlock`, told LR), or
            `"batch+lr"`, which shows LR to every block too, by concatenation: the
            control for what SPADE owes to seeing LR.
        hidden: SPADE's hidden channels.
        spectral: Normalise the convolutions of SPADE blocks spectrally.
        slope: Of the LeakyReLU in SPADE blocks: 0.2 (Park et al.), or 0, ReLU (the report).
        transpose_kernel: Size of the transposed convolutions: 3, or 4 (the report).
        head: `"softmax"`, or `"gaussian"`: the mean of a Gaussian for each sub-pixel,
            (B, HR, HR, channels) in [0, 1], the paper's L2 regression baseline.
        levels: Values that a sub-pixel can take.
        features: Put out [logits, features], for a prior network with conditioned gates:
            what the logits are made of, (B, HR, HR, filters), normalised.
        initializer: Of all kernels.
        name: The network's name.

    Raises:
        InputError: for another scale, norm or head, or no size with a softmax head.
    """
    check_choice("scale", scale, 2, 4, 8)
    check_choice("norm", norm, "batch", "spade", "batch+lr")
    check_choice("head", head, "softmax", "gaussian")
    if not size and head == "softmax":
        raise InputError("size: must be given with a softmax head")
    initializer = keras.initializers.get(initializer)

    def conv(filters, kernel_size, **kwargs):
        return layers.Conv2D(filters, kernel_size, padding="same",
                             kernel_initializer=initializer.clone(), **kwargs)

    def residual_block(x, s):
        if norm == "spade":
            return SPADEResBlock(filters, hidden, spectral=spectral, slope=slope,
                                 kernel_initializer=initializer.clone())([x, s])
        h = layers.Concatenate()([x, s]) if norm == "batch+lr" else x
        h = batch_norm()(conv(filters, 3)(h))
        h = layers.ReLU()(h)
        h = batch_norm()(conv(filters, 3)(h))
        return layers.Add()([x, h])

    lr = keras.Input((size, size, channels), name="lr")
    centred = layers.Rescaling(1, -0.5)(lr)
    x, factor = conv(filters, 1)(centred), 1
    while True:
        s = layers.UpSampling2D(factor)(centred) if factor > 1 else centred
        for _ in range(blocks):
            x = residual_block(x, s)
        if factor == scale:
            break
        x = layers.Conv2DTranspose(filters, transpose_kernel, 2, "same",
                                   kernel_initializer=initializer.clone())(x)
        factor *= 2
    if head == "gaussian":
        return keras.Model(lr, layers.Rescaling(1, 0.5, dtype="float32")(conv(channels, 1)(x)), name=name)
    logits = conv(channels * levels, 1)(x)
    logits = layers.Reshape((size * scale, size * scale, channels, levels), name="logits")(logits)
    return keras.Model(lr, [logits, batch_norm(name="features")(x)] if features else logits, name=name)


def prior_network(
    size: int = 32,
    channels: Literal[1, 3] = 3,
    filters: int = 32,
    blocks: int = 20,
    kernel_size: int = 5,
    head: int = 1024,
    levels: int = 256,
    condition: int = 0,
    initializer: str | keras.initializers.Initializer = "glorot_uniform",
    name: str = "prior",
) -> keras.Model:
    """Build B: HR (B, size, size, channels) in [0, 1] -> (B, size, size, channels, levels) logits.

    The logits of a sub-pixel depend on the sub-pixels before it. A first block sees 7x7
    pixels of the picture; the others kernel_size x kernel_size features each. With
    conditioned gates, the inputs are [HR, features of A], which every block is shown.

    Args:
        size: Height and width of HR.
        channels: 3 for RGB, 1 for grey.
        filters: Channels of each stack.
        blocks: `GatedPixelCNNBlock`s of type B.
        kernel_size: Their window.
        head: Channels of the 1x1 convolution before the last.
        levels: Values that a sub-pixel can take.
        condition: Channels of A's features for conditioned gates; 0: none.
        initializer: Of all kernels.
        name: The network's name.
    """
    initializer = keras.initializers.get(initializer)

    def block(kernel_size, mask_type, name):
        return GatedPixelCNNBlock(filters, kernel_size, mask_type, channels,
                                  kernel_initializer=initializer.clone(), name=name)

    def conv(filters, **kwargs):
        return MaskedConv2D(filters, 1, "B", channels, kernel_initializer=initializer.clone(), **kwargs)

    hr = keras.Input((size, size, channels), name="hr")
    s = [keras.Input((size, size, condition), name="features")] if condition else []
    y = layers.Rescaling(1, -0.5)(hr)
    v, h = block(7, "A", "block_0")([y, y, *s])
    for i in range(blocks):
        v, h = block(kernel_size, "B", f"block_{i + 1}")([v, h, *s])
    x = conv(head, activation="relu", name="head")(h)
    x = conv(channels * levels, name="last")(x)
    logits = layers.Reshape((size, size, channels, levels), name="logits")(x)
    return keras.Model([hr, *s] if s else hr, logits, name=name)


def pixel_recursive(conditioning: keras.Model, prior: keras.Model) -> ThumbnailUpscaler:
    """Build the whole: [LR, HR] -> [A's logits, B's logits], whose sum are the model's.

    Args:
        conditioning: A `conditioning_network`.
        prior: A `prior_network` of the same size and channels. Either both have to do with
            features or neither.

    Raises:
        InputError: where the two do not fit together.
    """
    shapes = [[tensor.shape[1:] for tensor in tensors] for tensors in (
        conditioning.outputs, [*prior.outputs, *prior.inputs[1:]])]
    for what, *pair in zip_longest(("logits", "features"), *shapes):
        if len({*pair}) > 1:
            raise InputError(f"conditioning network and prior network differ: {what} of "
                             f"{pair[0]} and {pair[1]}")
    lr = keras.Input(conditioning.input_shape[1:], name="lr")
    hr = keras.Input(prior.inputs[0].shape[1:], name="hr")
    if not is_conditioned(prior):
        return ThumbnailUpscaler([lr, hr], [conditioning(lr), prior(hr)], name="pixel_recursive")
    logits, features = conditioning(lr)
    return ThumbnailUpscaler([lr, hr], [logits, prior([hr, features])], name="pixel_recursive")


def is_conditioned(prior: keras.Model) -> bool:
    """Whether a prior network has conditioned gates: what it puts out then depends on LR too."""
    return len(prior.inputs) == 2
