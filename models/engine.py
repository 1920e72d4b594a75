"""Networks computed by OpenVINO where that is faster, by TensorFlow elsewhere.

    load("lapsrn-x4").upscale(image)

OpenVINO computes the convolutions of LapSRN and SRResNet 1.1 to 2 times as fast as TensorFlow, most
on processors without AVX512 (benchmarks/upscale.py). A network is converted when it is first used
and kept in ~/.cache/superres (or $SUPERRES_CACHE); from then on neither TensorFlow nor Keras is
imported, whose start takes longer than most pictures.
"""

import contextlib
import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from superres.errors import InputError, check_choice
from superres.models.hub import network_file
from superres.models.images import ImageUpscaler
from superres.precision import gpus

if TYPE_CHECKING:
    import openvino

    from superres.models.upscaler import Upscaler

Engine = Literal["auto", "tensorflow", "openvino"]
FORMAT = 1  # of the files in the cache; another number converts every network anew
KEPT = 30  # networks in the cache, those used last


class OpenVINOUpscaler(ImageUpscaler):
    """A network of any size without noise, computed by OpenVINO in float32.

    Args:
        model: An `openvino.Model` as `converted` makes it.
    """

    def __init__(self, model: "openvino.Model") -> None:
        def about(key):
            return model.get_rt_info(["superres", key]).astype(str)

        self.name, self.scale, self.channels = about("name"), int(about("scale")), int(about("channels"))
        self._compiled = compiled(model)
        self._idle = []  # requests, which keep their memory from one tile to the next: one a thread

    def _run(self, lr, noise=None):
        try:
            try:
                request = self._idle.pop()
            except IndexError:
                request = self._compiled.create_infer_request()
            sr = request.infer([lr[None].astype("float32")])[0][0]
            self._idle.append(request)
            return sr
        except RuntimeError as error:
            if "alloc" in str(error):
                raise MemoryError(f"{self.name}: {lr.shape[1]} x {lr.shape[0]} at once") from None
            raise


def load(path: Path | str, precision: Literal["float32", "bfloat16"] = "float32", engine: Engine = "auto",
         blend: float = 0.0, other: Path | str = "") -> ImageUpscaler:
    """Load a network as `models.upscaler.load_blended` does, to be computed by the faster engine.

    Args:
        path: A file, the name of a network that is shipped, or an address on the Hugging Face hub.
        precision: What it computes in. bfloat16 is TensorFlow's, whose images keep their precision.
        engine: `"auto"`: OpenVINO where it is installed, there is no GPU, and the network is one
            that it computes faster. Either can be asked for.
        blend, other: See `models.upscaler.load_blended`.

    Raises:
        InputError: also if OpenVINO is asked for and is not installed, or cannot compute the network.
    """
    check_choice("engine", engine, *get_args(Engine))
    installed = find_spec("openvino") is not None
    if engine == "openvino" and not installed:
        raise InputError("--engine: needs OpenVINO (pip install openvino)")
    if engine == "openvino" and precision != "float32":
        raise InputError(f"--engine: OpenVINO computes in float32, and {precision} was asked for")
    by_openvino = engine == "openvino" or (
        engine == "auto" and installed and precision == "float32"
        and platform.machine() in ("x86_64", "AMD64") and not gpus())
    folder = None if blend or other or not by_openvino else _cache_folder(network_file(path))
    if folder and (kept := _kept(folder)):
        return kept

    import superres.commands  # noqa: F401  # first: it quietens TensorFlow
    from superres.models.upscaler import load_blended

    network = load_blended(path, precision, blend, other)
    if not by_openvino:
        return network
    reason = _unfit(network)
    if not reason:
        try:
            model = converted(network)
            faster = OpenVINOUpscaler(model)
            check_same(network, lambda lr: faster._compiled([lr])[0])
        except Exception as error:  # OpenVINO raises whatever the broken part raised
            reason = " ".join(str(error).split())[-160:]
    if reason:
        if engine == "openvino":
            raise InputError(f"--engine: OpenVINO cannot compute {path} ({reason})")
        return network
    if folder:
        _keep(model, folder)
    return faster


def compiled(model: "openvino.Model | Path") -> "openvino.CompiledModel":
    """A model, or the file of one, for this processor and float32."""
    import openvino

    # OpenVINO's own choice is bfloat16 where the processor has it, at a loss of 0.03 to 0.06 dB.
    # What it compiles for a size of picture it would keep for 5,000 of them, half a MiB each.
    options = {"INFERENCE_PRECISION_HINT": "f32", "CPU_RUNTIME_CACHE_CAPACITY": "256"}
    return openvino.Core().compile_model(model, "CPU", options)


def converted(network: "Upscaler") -> "openvino.Model":
    """A Keras network as an `openvino.Model` from its inputs, LR (B, H, W, C) first, to SR (B, sH, sW, C)."""
    import keras
    import openvino
    import tensorflow as tf

    specs = [tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in network.inputs]
    function = tf.function(
        lambda *inputs: keras.tree.flatten(network(keras.tree.pack_sequence_as(network.input, inputs),
                                                   training=False))[-1], specs)
    model = openvino.convert_model(function.get_concrete_function())
    for key in ("name", "scale", "channels"):
        model.set_rt_info(str(getattr(network, key)), ["superres", key])
    return model


def check_same(network: "Upscaler", run: Callable[..., np.ndarray]) -> None:
    """Compare what another library computes with what Keras does, for batches of two sizes.

    Args:
        run: From the network's inputs, as arrays, to SR.

    Raises:
        ValueError: if they differ in shape, or by 1e-4 of the largest value.
    """
    import keras

    for shape in ((1, 24, 32), (2, 17, 9)):
        inputs = network.example(shape[0], *[network.lr_size or size for size in shape[1:]])
        given = keras.tree.pack_sequence_as(network.input, inputs)
        wanted = keras.tree.flatten(network.predict_on_batch(given))[-1]
        sr = run(*inputs)
        if sr.shape != wanted.shape:
            raise ValueError(f"its result has shape {sr.shape}, not {wanted.shape}")
        difference = np.abs(sr - wanted).max() / max(1, np.abs(wanted).max())
        if not difference < 1e-4:
            raise ValueError(f"its result differs by {difference:.1e}")


def _unfit(network):
    """Why a network is left to TensorFlow, or None."""
    from superres.layers import ReflectedConv2D

    if network.lr_size or network.draws_samples:
        return "it computes networks of any size without noise"
    if any(isinstance(layer, ReflectedConv2D) for layer in network.layers):
        return "it transposes features for every reflected padding, which takes longer than in TensorFlow"
    return None


def _cache_folder(file):
    """Where the converted network of a file is kept, or None where there is no home for it."""
    try:
        cache = Path(os.environ.get("SUPERRES_CACHE") or Path.home() / ".cache" / "superres")
        return cache / f"{FORMAT}-{hashlib.sha256(Path(file).read_bytes()).hexdigest()[:32]}"
    except (OSError, RuntimeError):
        return None


def _kept(folder):
    """The network in a folder of the cache, or None where there is none that can be read."""
    if not folder.is_dir():
        return None
    import openvino

    try:
        network = OpenVINOUpscaler(openvino.Core().read_model(folder / "network.xml"))
        with contextlib.suppress(OSError):  # another user's, or a read-only disk
            os.utime(folder)
        return network
    except Exception:  # damaged, or of a version that this one cannot read: it is converted anew
        return None


def _keep(model, folder):
    """Put a network into the cache, whole or not at all."""
    import openvino

    with contextlib.suppress(OSError, RuntimeError):  # a full disk: then without
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as new:
            openvino.save_model(model, Path(new) / "network.xml", compress_to_fp16=False)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(new, folder)
            os.mkdir(new)  # for the end of the block to remove
        # Nothing else: the folder may be one that others use, too.
        networks = [path for path in folder.parent.iterdir() if re.fullmatch(r"\d+-[0-9a-f]{32}", path.name)]
        for old in sorted(networks, key=os.path.getmtime)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
