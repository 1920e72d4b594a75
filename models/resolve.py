"""Using a trained network: from an LR picture to an SR picture.

Networks of any size are run by `resolve` and `resolve_tiled`, networks of one size (see
`lr_size`) by `models.sampler.Sampler`.
"""

from pathlib import Path

import keras
import numpy as np

from superres.datasets.color import grey_to_y, rgb_to_ycbcr, y_to_grey, ycbcr_to_rgb
from superres.datasets.degradations import imresize
from superres.datasets.pictures import to_float, to_uint8
from superres.errors import InputError
from superres.layers import ConsistentPicture  # and registers all layers that saved networks hold

# Smaller pictures are continued symmetrically, by so many pixels, before they enter a network.
SMALLEST = 8
WEIGHTS = Path(__file__).parents[1] / "weights"


def load(path, precision="float32"):
    """Load a saved network (`.keras`) at a compute precision, `"float32"` or `"bfloat16"`.

    Args:
        path: A file, or the name of a network that is shipped, such as `"lapsrn-x4"`.

    Raises:
        InputError: if the file is missing or no saved network.
    """
    if not Path(path).is_file() and (WEIGHTS / f"{path}.keras").is_file():
        path = WEIGHTS / f"{path}.keras"
    if not Path(path).is_file():
        raise InputError(f"{path}: no such model file")
    try:
        network = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises whatever the broken part raised
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: not a saved Keras model ({reason})") from None
    lr = network.inputs[0].shape
    whole = len(network.inputs) == 1 + (network.name == "pixel_recursive") or stochastic(network)
    if len(lr) != 4 or lr[-1] not in (1, 3) or not whole:
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

    Weights stay float32. Layers that make an output stay float32 too, and so do those
    without weights that hand pictures on, so that the 8 bits of the picture survive
    bfloat16's 8 bits of mantissa.
    """
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
    parts = [network, *(part for part in network.layers if isinstance(part, keras.Model))]
    last = {id(tensor._keras_history.operation) for part in parts for tensor in part.outputs}

    def clone(layer):
        config = layer.get_config()
        if "dtype" in config and not isinstance(layer, keras.layers.InputLayer):
            picture = not layer.weights and layer.output.shape[-1] in (1, 3)
            config["dtype"] = "float32" if picture or id(layer) in last else policy
        return type(layer).from_config(config)

    copy = keras.models.clone_model(network, clone_function=clone, recursive=True)
    copy.set_weights(network.get_weights())
    return copy


def lr_size(network):
    """Height and width of the LR that the network takes, or None for any."""
    return network.inputs[0].shape[1]


def stochastic(network):
    """Whether the network takes noise: the inputs of `layers.NoiseInjection` beside LR."""
    return [tensor.name for tensor in network.inputs[1:]] == ["seed", "temperature", "origin"]


def scale_of(network):
    """How many times larger than its input the network's (last) output is."""
    if lr_size(network):
        return network.outputs[-1].shape[1] // lr_size(network)
    shapes = [(1, 16, 16, tensor.shape[-1]) if tensor is network.inputs[0] else (1, *tensor.shape[1:])
              for tensor in network.inputs]
    shape = network.compute_output_shape(shapes if stochastic(network) else shapes[0])
    return (shape[-1] if isinstance(shape, list) else shape)[1] // 16


def check_ensemble(network):
    """Raise InputError for a network that is not averaged over turns and flips."""
    if stochastic(network) or lr_size(network):
        raise InputError("--ensemble: not for networks with noise, nor for those of one size")


def resolve(network, lr, temperature=1.0, seed=0, origin=(0, 0), ensemble=False):
    """Super-resolve one picture, (H, W, 1|3), uint8 or float in [0, 1].

    A network of one channel gets the luminance, of a grey picture too, in the range that it
    was trained on, 16..235 over 255; chrominance is upscaled by bicubic interpolation.
    Pictures of any size from 1 x 1 work.

    Args:
        temperature, seed: What the noise of a `stochastic` network is multiplied by, and
            which noise; other networks take no notice.
        origin: Where in a larger picture, whose noise it shares, this one lies: row and
            column of its first pixel.
        ensemble: Take the mean over the eight turns and flips of the picture, each turned
            back: a little better, in eight times the time. Source: Timofte et al., "Seven
            ways to improve example-based single image super resolution", CVPR 2016.

    Returns:
        (sH, sW, C) float32, clipped to [0, 1].

    Raises:
        InputError: for the ensemble of a network with noise.
    """
    if ensemble:
        check_ensemble(network)
    lr = to_float(lr)
    scale, channels = scale_of(network), network.inputs[0].shape[-1]
    height, width, colours = lr.shape
    below, right = (SMALLEST if size < SMALLEST else 0 for size in (height, width))
    padded = np.pad(lr, ((0, below), (0, right), (0, 0)), "symmetric")

    def run(picture):
        if ensemble:
            return _mean_of_turns(network, picture)
        return _run(network, picture, (temperature, seed, origin))

    if channels == colours == 1:
        sr = y_to_grey(run(grey_to_y(padded)))
    elif channels == colours:
        sr = run(padded)
    elif channels == 1:
        ycbcr = rgb_to_ycbcr(padded)
        y = run(ycbcr[..., :1])
        sr = ycbcr_to_rgb(np.concatenate([y, imresize(ycbcr[..., 1:], scale)], -1))
    else:
        sr = run(np.repeat(padded, 3, -1)).mean(-1, keepdims=True)
    return np.clip(sr[: height * scale, : width * scale], 0, 1)


def resolve_tiled(network, lr, tile=256, progress=None, overlap=None, temperature=1.0, seed=0,
                  ensemble=False):
    """`resolve` in tiles that overlap by the network's reach: same result, bounded memory.

    Args:
        network: A network whose output depends on a neighbourhood only.
        lr: (H, W, 1|3), uint8 or float in [0, 1].
        tile: Size of the square in LR pixels that is computed at a time.
        progress: Called with the number of LR pixels after each tile.
        overlap: The network's `reach`, where the caller upscales many pictures and knows it.
        temperature, seed, ensemble: See `resolve`.

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
            window = lr[y : bottom + overlap, x : right + overlap]
            window = resolve(network, window, temperature, seed, (y, x), ensemble)
            sr[top * scale : bottom * scale, left * scale : right * scale] = to_uint8(
                window[(top - y) * scale : (bottom - y) * scale, (left - x) * scale : (right - x) * scale]
            )
            if progress:
                progress((bottom - top) * (right - left))
    return sr


def reach(network):
    """How many LR pixels away an LR pixel can still change the output.

    Found by trying, along the rows and along the columns of a strip: one pixel is changed
    by far more than a picture's range, and the changed output pixels are looked at. Bicubic
    chrominance needs at least 3.

    Raises:
        ValueError: if the whole output changes, however large the picture.
    """
    network = at_precision(network, "float32")
    for layer in network.layers:
        if isinstance(layer, ConsistentPicture):
            layer.rounds = 0  # what further rounds carry further is less than a level
    return max(3, *(_reach_along(network, axis) for axis in (0, 1)))


def _reach_along(network, axis, width=16):
    scale = scale_of(network)
    for size in (64, 128, 256, 512):
        shape = (size, width) if axis == 0 else (width, size)
        picture = np.random.default_rng(0).random((*shape, network.inputs[0].shape[-1]), "float32")
        changed = picture.copy()
        changed[shape[0] // 2, shape[1] // 2] += 1e6
        at = np.nonzero((_run(network, picture) != _run(network, changed)).any(-1))[axis] // scale
        if not at.size:  # a constant
            return 0
        if at.min() > 0 and at.max() < size - 1:
            return int(np.abs(at - size // 2).max())
    raise ValueError(f"{network.name} cannot be tiled: one pixel changes the whole picture")


def _run(network, picture, noise=(1.0, 0, (0, 0))):
    inputs = picture[None]
    if stochastic(network):
        temperature, seed, origin = noise
        inputs = [inputs, np.array([seed], "int32"), np.array([temperature], "float32"),
                  np.array([origin], "int32")]
    return keras.tree.flatten(network.predict_on_batch(inputs))[-1][0]


def _mean_of_turns(network, picture):
    """The mean of what a network makes of a picture's eight turns and flips, each turned back."""
    total = 0
    for turns, flip in np.ndindex(4, 2):
        turned = np.rot90(picture, turns)
        sr = _run(network, turned[:, ::-1] if flip else turned)
        total = total + np.rot90(sr[:, ::-1] if flip else sr, -turns)
    return total / 8
