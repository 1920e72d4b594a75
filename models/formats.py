"""A network as a file for another runtime: ONNX, OpenVINO's own, LiteRT.

The network itself, without what `models.images` does around it: LR (B, H, W, C) float32 in [0, 1] -> SR
(B, sH, sW, C), not clipped. LR has the network's channels, where that is one, luminance (BT.601's Y, 16..235
over 255), and 8 pixels or more each way. A network with noise has three more inputs: seed (B,) int32,
temperature (B,) float32 and origin (B, 2) int32, zeros but for a tile of a larger picture. Each file is
computed by its runtime and compared with Keras before it is kept.
"""

import os
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import keras

from superres.errors import InputError
from superres.models.engine import check_same, compiled, converted
from superres.models.upscaler import Upscaler

Format = Literal["onnx", "openvino", "litert"]
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "litert": ".tflite"}
NEEDS = {"onnx": ("tf2onnx", "onnxruntime"), "openvino": ("openvino",), "litert": ()}


def write(network: Upscaler, folder: Path | str, name: str, format: Format) -> Path:
    """Write `folder/name` with the format's suffix (OpenVINO's `.xml` has its weights in a `.bin` beside it).

    Raises:
        InputError: if the network cannot be converted or is not the same afterwards, a package is
            missing, or the file exists.
        OSError: if it cannot be written.
    """
    target = Path(folder, name + SUFFIXES[format])
    if network.draws_samples and network.lr_size:
        raise InputError(f"--format: {network.name} draws pixel after pixel, which only savedmodel does")
    if network.draws_samples and format != "openvino":  # neither has the noise's operations on bits
        raise InputError(f"--format: {network.name} draws noise, which only savedmodel and openvino do")
    if missing := [package for package in NEEDS[format] if not find_spec(package)]:
        raise InputError(f"--format: {format} needs {' and '.join(missing)} (requirements-export.txt)")
    for file in (target, target.with_suffix(".bin")) if format == "openvino" else (target,):
        if file.exists():
            raise InputError(f"{file} exists already; choose another --name")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as part:
        try:
            check_same(network, WRITERS[format](network, Path(part, target.name)))
        except OSError:
            raise
        except Exception as error:  # a converter raises whatever its broken part raised
            reason = " ".join(str(error).split())[-160:]
            raise InputError(f"--format: {network.name} cannot be converted to {format} ({reason})") from None
        for file in sorted(Path(part).iterdir()):
            os.replace(file, target.with_name(file.name))
    return target


def _alone(network):
    """The network with SR as its only output."""
    alone = keras.Model(network.inputs, network.outputs[-1], name=network.name)
    alone(alone.inputs)  # Keras exports no model to ONNX that was never called
    return alone


def _onnx(network, path):
    import onnxruntime

    # tf2onnx 1.17 goes through its graph in an order of chance: one conversion in sixteen of a network of one
    # channel loses the operation that removes a fifth axis again.
    alone = _alone(network)
    for _ in range(8):
        alone.export(path, format="onnx", verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        if len(session.get_outputs()[0].shape) == 4:
            break
    return lambda lr: session.run(None, {session.get_inputs()[0].name: lr})[0]


def _openvino(network, path):
    import openvino

    openvino.save_model(converted(network), path, compress_to_fp16=False)
    model = compiled(path)
    return lambda *inputs: model(inputs)[0]


def _litert(network, path):
    import tensorflow as tf

    _alone(network).export(path, format="litert", verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package ai_edge_litert is to replace it
        interpreter = tf.lite.Interpreter(str(path))
    (lr_details,), (sr_details,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(lr):
        interpreter.resize_tensor_input(lr_details["index"], lr.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(lr_details["index"], lr)
        interpreter.invoke()
        return interpreter.get_tensor(sr_details["index"])

    return run


# Each writes a file, and returns a function that computes it by the format's own runtime.
WRITERS = {"onnx": _onnx, "openvino": _openvino, "litert": _litert}
