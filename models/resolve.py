"""Using a trained network: from an LR picture to an SR picture."""

from pathlib import Path

import keras
import numpy as np

import layers  # noqa: F401  registers the custom layers that saved networks hold
from datasets.color import rgb_to_ycbcr, ycbcr_to_rgb
from datasets.degradations import imresize
from datasets.errors import InputError
from datasets.pictures import to_float

# Smaller pictures are continued symmetrically before they enter a network.
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
    return at_precision(network, precision)


def at_precision(network, precision):
    """The same network and weights, computing in `"float32"` or `"bfloat16"`.

    Weights stay float32. Layers that make an output stay float32 too, so that the
    8 bits of the picture survive bfloat16's 8 bits of mantissa.
    """
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
    last = {tensor._keras_history.operation.name for tensor in network.outputs}
    config = network.get_config()
    for layer in config["layers"]:
        keep = layer["name"] in last or layer["class_name"] == "InputLayer"
        fixed = layer["config"].get("autocast") is False
        if "dtype" in layer["config"] and not keep and not fixed:
            layer["config"]["dtype"] = policy
    copy = type(network).from_config(config)
    copy.set_weights(network.get_weights())
    return copy


def scale_of(network):
    """How many times larger than its input the network's (last) output is."""
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
    below, right = (max(0, SMALLEST - size) for size in (height, width))
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


def _run(network, picture):
    return keras.tree.flatten(network.predict_on_batch(picture[None]))[-1][0]
