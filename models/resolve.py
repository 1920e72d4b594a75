"""Using a trained network: from an LR picture to an SR picture.

Networks of any size are run by `resolve` and `resolve_tiled`, networks of one size (see
`lr_size`) by `models.sampler.Sampler`.
"""

from pathlib import Path

import keras
import numpy as np

import layers  # noqa: F401  registers the custom layers that saved networks hold
from datasets.color import rgb_to_ycbcr, ycbcr_to_rgb
from datasets.degradations import imresize
from datasets.errors import InputError
from datasets.pictures import to_float, to_uint8

# Smaller pictures are continued symmetrically, by so many pixels, before they enter a network.
SMALLEST = 8


def load(path, precision="float32"):
    """Load a saved network (`.keras`) at a compute precision, `"float32"` or `"bfloat16"`.

    Raises:
        InputError: if the file is missing or no saved network.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such model file")
    try:
        network = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises whatever the broken part raised
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: not a saved Keras model ({reason})") from None
    lr = network.inputs[0].shape
    if len(lr) != 4 or lr[-1] not in (1, 3) or len(network.inputs) != 1 + (network.name == "pixel_recursive"):
        raise InputError(f"{path}: not a network from pictures of 1 or 3 channels to pictures")
    return at_precision(network, precision)


def load_blended(path, precision="float32", blend=0.0, other=""):
    """Load a network, its weights interpolated towards another's: (1 - blend) w + blend v.

    Networks trained one from the other can be blended, such as a pretrained and an
    adversarial generator: every blend is a network between the two.

    Args:
        blend: 0 is the network itself, 1 the other.
        other: The other network, a .keras file of the same structure.

    Raises:
        InputError: also if the two differ in structure.

    Source: Wang et al., "ESRGAN", 2018, section 3.4.
    """
    network = load(path, precision)
    if not 0 <= blend <= 1:
        raise InputError(f"--blend: must lie between 0 and 1, not {blend}")
    if not other and not blend:
        return network
    if not other:
        raise InputError("--blend: needs --blend-with, the network to blend with")
    pair = [network.get_weights(), load(other).get_weights()]
    if [w.shape for w in pair[0]] != [w.shape for w in pair[1]]:
        raise InputError(f"--blend-with: {other} has not the structure of {path}")
    network.set_weights([(1 - blend) * w + blend * v for w, v in zip(*pair, strict=True)])
    return network


def at_precision(network, precision):
    """The same network and weights, computing in `"float32"` or `"bfloat16"`.

    Weights stay float32. Layers that make an output stay float32 too, so that the
    8 bits of the picture survive bfloat16's 8 bits of mantissa.
    """
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
    parts = [network, *(part for part in network.layers if isinstance(part, keras.Model))]
    last = {id(tensor._keras_history.operation) for part in parts for tensor in part.outputs}

    def clone(layer):
        config = layer.get_config()
        if "dtype" in config and not isinstance(layer, keras.layers.InputLayer):
            config["dtype"] = "float32" if id(layer) in last else policy
        return type(layer).from_config(config)

    copy = keras.models.clone_model(network, clone_function=clone, recursive=True)
    copy.set_weights(network.get_weights())
    return copy


def lr_size(network):
    """Height and width of the LR that the network takes, or None for any."""
    return network.inputs[0].shape[1]


def scale_of(network):
    """How many times larger than its input the network's (last) output is."""
    if lr_size(network):
        return network.outputs[-1].shape[1] // lr_size(network)
    shape = network.compute_output_shape((1, 16, 16, network.input_shape[-1]))
    return (shape[-1] if isinstance(shape, list) else shape)[1] // 16


def resolve(network, lr):
    """Super-resolve one picture, (H, W, 1|3), uint8 or float in [0, 1].

    A network of one channel gets the luminance (or the grey picture); chrominance is
    upscaled by bicubic interpolation. Pictures of any size from 1 x 1 work.

    Returns:
        (sH, sW, C) float32, clipped to [0, 1].
    """
    lr = to_float(lr)
    scale, channels = scale_of(network), network.input_shape[-1]
    height, width, colours = lr.shape
    below, right = (SMALLEST if size < SMALLEST else 0 for size in (height, width))
    padded = np.pad(lr, ((0, below), (0, right), (0, 0)), "symmetric")

    if channels == colours:
        sr = _run(network, padded)
    elif channels == 1:
        ycbcr = rgb_to_ycbcr(padded)
        y = _run(network, ycbcr[..., :1])
        sr = ycbcr_to_rgb(np.concatenate([y, imresize(ycbcr[..., 1:], scale)], -1))
    else:
        sr = _run(network, np.repeat(padded, 3, -1)).mean(-1, keepdims=True)
    return np.clip(sr[: height * scale, : width * scale], 0, 1)


def resolve_tiled(network, lr, tile=256, progress=None, overlap=None):
    """`resolve` in tiles that overlap by the network's reach: same result, bounded memory.

    Args:
        network: A network whose output depends on a neighbourhood only.
        lr: (H, W, 1|3), uint8 or float in [0, 1].
        tile: Size of the square in LR pixels that is computed at a time.
        progress: Called with the number of LR pixels after each tile.
        overlap: The network's `reach`, where the caller upscales many pictures and knows it.

    Returns:
        (sH, sW, C) uint8, so that a large picture fits in memory.
    """
    # A window smaller than SMALLEST would be continued, where the whole picture is not.
    scale = scale_of(network)
    overlap = max(SMALLEST, reach(network) if overlap is None else overlap)
    height, width, colours = lr.shape
    sr = np.empty((height * scale, width * scale, colours), "uint8")
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            # Where the picture ends, the window ends: there the network pads, as it
            # does with the whole picture.
            y, x = max(0, top - overlap), max(0, left - overlap)
            window = resolve(network, lr[y : bottom + overlap, x : right + overlap])
            sr[top * scale : bottom * scale, left * scale : right * scale] = to_uint8(
                window[(top - y) * scale : (bottom - y) * scale, (left - x) * scale : (right - x) * scale]
            )
            if progress:
                progress((bottom - top) * (right - left))
    return sr


def reach(network):
    """How many LR pixels away an LR pixel can still change the output.

    Found by trying: one pixel is changed by far more than a picture's range, and the
    changed output pixels are looked at. Bicubic chrominance needs at least 3.

    Raises:
        ValueError: if the whole output changes, however large the picture.
    """
    network = at_precision(network, "float32")
    scale = scale_of(network)
    for size in (64, 128, 256):
        picture = np.random.default_rng(0).random((size, size, network.input_shape[-1]), "float32")
        centre = size // 2
        changed = picture.copy()
        changed[centre, centre] += 1e6
        rows, columns = np.nonzero((_run(network, picture) != _run(network, changed)).any(-1))
        at = np.concatenate([rows, columns]) // scale
        if not at.size:  # a constant
            return 3
        if at.min() > 0 and at.max() < size - 1:
            return max(3, int(np.abs(at - centre).max()))
    raise ValueError(f"{network.name} cannot be tiled: one pixel changes the whole picture")


def _run(network, picture):
    return keras.tree.flatten(network.predict_on_batch(picture[None]))[-1][0]
