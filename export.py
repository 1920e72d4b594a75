"""Export a trained network for TensorFlow Serving.

    python export.py lapsrn-x2 served --version 1
    python export.py lapsrn-x4 served --version 1 --precision bfloat16
    python export.py lapsrn-x4 files --format onnx     or openvino, litert: see models/formats.py

writes, and later exports into the same folder add to it:

    served/models.config                   what `--model_config_file` takes
    served/<name>/<version>/               a SavedModel with its warm-up requests

Signatures, each for a batch of RGB pictures of any size from 1 x 1:

    serving_default   lr (B, H, W, 3) float32 in [0, 1] -> sr (B, sH, sW, 3) float32 in [0, 1]
    uint8             lr (B, H, W, 3) uint8             -> sr (B, sH, sW, 3) uint8
    image_bytes       image_bytes (B,) PNG or JPEG files -> image_bytes (B,) PNG files, whose
                      sizes may differ; grey becomes RGB, alpha is dropped, EXIF
                      rotation is not applied, 16 bits are cut to 8

and each has a second output:

    status            (B,) string, "" or one line that says why this picture was not upscaled,
                      such as a damaged file or NaN; its sr is black, its image_bytes are empty

Other pictures of the batch are answered as ever, so that a server may put requests together. Pictures of
more than `--megapixels` are not upscaled; of a file that is read before a pixel is decoded. What is
wrong with the whole batch (none, pictures of 0 x 5 pixels, too large ones) is an INVALID_ARGUMENT.

A network of one size takes LR of that size alone, with its own channels (grey stays grey).
One that draws its pictures has two more inputs in every signature, a value for each picture:

    temperature       (B,) float32. Of a network with noise, such as SRMAP's: what the noise is
                      multiplied by, 0 for none. Of a pixel recursive one: what the logits are
                      multiplied by, 1e6 and more take the most probable value each time
    seed              (B,) int32, not negative: the same seed draws the same picture

A network with noise also draws several pictures at once, from the seeds seed, seed + 1, ...:

    samples           lr (B, H, W, 3) float32, temperature (B,), seed (B,), count () int32
                      -> sr (B, count, sH, sW, 3) float32
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Annotated, Literal

import keras
import numpy as np
import tensorflow as tf
import tyro
from google.protobuf import text_format

from superres.errors import InputError, check_range
from superres.files import whole
from superres.models import formats, hub
from superres.models.signatures import signatures
from superres.models.upscaler import Upscaler, load

try:
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    from tensorflow_serving.config import model_server_config_pb2
except ImportError:  # other formats do without
    predict_pb2 = None

MOUNT = "/models"  # where the server finds the folder
MEGAPIXELS = 4.0  # of a picture that is sent to the server, unless told


def write_saved_model(network: Upscaler, folder: Path, name: str, megapixels: float) -> None:
    """Write the network as a SavedModel with a warm-up request for each signature but `samples`.

    A server that batches cannot batch `count`, and would refuse to load a model that warms up with it.
    """
    archive = keras.export.ExportArchive()
    archive.track(network)
    entries = signatures(network, megapixels)
    for signature, (function, specs) in entries.items():
        archive.add_endpoint(signature, function, input_signature=specs)
    archive.write_out(folder, verbose=False)

    shape = [size or 64 for size in entries["uint8"][1][0].shape[1:]]
    picture = np.linspace(0, 255, np.prod(shape)).reshape(1, *shape).astype("uint8")
    examples = {
        "serving_default": {"lr": picture.astype("float32") / 255},
        "uint8": {"lr": picture},
        "image_bytes": {"image_bytes": [tf.io.encode_png(picture[0]).numpy()]},
    }
    extra = {"temperature": np.ones(1, "float32"), "seed": np.zeros(1, "int32")}
    assets = Path(folder, "assets.extra")
    assets.mkdir()
    with tf.io.TFRecordWriter(str(assets / "tf_serving_warmup_requests")) as file:
        for signature, example in examples.items():
            values, specs = {**extra, **example}, entries[signature][1]
            request = predict_pb2.PredictRequest(
                inputs={spec.name: tf.make_tensor_proto(values[spec.name]) for spec in specs})
            request.model_spec.name = name
            request.model_spec.signature_name = signature
            log = prediction_log_pb2.PredictLog(request=request)
            file.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def read_config(path: Path) -> "model_server_config_pb2.ModelServerConfig":
    """Read `models.config`; a missing file is an empty one.

    Raises:
        InputError: if the file is no configuration of TensorFlow Serving.
    """
    config = model_server_config_pb2.ModelServerConfig()
    try:
        return text_format.Parse(path.read_text(), config) if path.exists() else config
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a model_config_list of TensorFlow Serving ({error})") from None


def named(model: Path | str, name: str | None) -> str:
    """The name that is given, or the model's own.

    Raises:
        InputError: if a server cannot have it in an address, or a folder as a file.
    """
    name = hub.stem(model) if name is None else name
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise InputError(f"--name: expected letters, digits, '_', '-' and '.', found {name!r}")
    return name


def export(model: Path | str, folder: Path | str, name: str | None, version: int,
           precision: Literal["float32", "bfloat16"] = "float32",
           megapixels: float = MEGAPIXELS) -> tuple[Path, str, bool]:
    """Export a `.keras` file to `folder`, whole or not at all.

    Returns:
        (path of the version's folder, name of the model, whether it takes temperature and seed).

    Raises:
        InputError: if the model, the name, the version or the number of megapixels cannot be
            used, or the version exists.
        OSError: if it cannot be written.
    """
    if predict_pb2 is None:
        raise InputError("export.py: a SavedModel needs its package (pip install tensorflow-serving-api)")
    if not 0 < version < 2**63:
        raise InputError(f"--version: expected a positive integer of 64 bits, found {version}")
    check_range({"--megapixels": megapixels}, least=0.01)
    listed = Path(folder, "models.config")
    read_config(listed)  # before anything is computed
    network = load(model, precision)
    name = named(model, name)
    target = Path(folder, name, str(version))
    if target.exists():
        raise InputError(f"{target} exists already; choose another --version")

    part = target.with_name(f".{version}.part")  # no number: the server overlooks it
    part.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(part, ignore_errors=True)
    try:
        write_saved_model(network, part, name, megapixels)
        os.rename(part, target)
        config = read_config(listed)
        if name not in [entry.name for entry in config.model_config_list.config]:
            config.model_config_list.config.add(
                name=name, base_path=f"{MOUNT}/{name}", model_platform="tensorflow")
            try:
                with whole(listed) as new:
                    new.write_text(text_format.MessageToString(config))
            except BaseException:  # listed and in place, or neither
                shutil.rmtree(target)
                raise
    except tf.errors.OpError as error:  # a full disk and the like
        raise OSError(f"{target}: {error.message}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target, name, network.draws_samples


def main(
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    folder: Annotated[str, tyro.conf.arg(metavar="FOLDER")],
    /,
    version: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    name: str | None = None,
    megapixels: float | None = None,
    format: Literal["savedmodel", "onnx", "openvino", "litert"] = "savedmodel",
) -> None:
    """Export a trained network for TensorFlow Serving, or for another runtime.

    Example: export.py lapsrn-x4 served --version 1
    Example: export.py lapsrn-x4 files --format onnx

    Args:
        model: A shipped network's name, a .keras file, or hf://user/name on the Hugging Face hub.
        folder: Where the served models live; a second model is added to it.
        version: A positive number, which TensorFlow Serving wants. It serves the highest one.
        precision: What the network computes in.
        name: The model's name at the server; by default the file's, without its suffix.
        megapixels: The most that a picture sent to the server may have, 4 unless given. It is computed
            in tiles: lapsrn-x4 takes 1.2 GiB in all, and 0.3 a megapixel.
        format: savedmodel is TensorFlow Serving's. The others are the network alone, of float32.
    """
    if format != "savedmodel":
        if precision != "float32" or version is not None or megapixels is not None:
            raise InputError(f"--format: {format} takes neither --precision, --version nor --megapixels")
        target = formats.write(load(model), folder, named(model, name), format)
        print(f"{target}: exported, the same as Keras's")
        return
    if version is None:
        raise InputError("--version: a positive number is needed for TensorFlow Serving")
    target, name, drawn = export(model, folder, name, version, precision,
                                 MEGAPIXELS if megapixels is None else megapixels)
    instance = """{"b64": "'$(base64 -w0 lr.png)'"}"""
    if drawn:
        instance = f'{{"image_bytes": {instance}, "temperature": 1.0, "seed": 0}}'
    print(f"""{target}: exported

Start a server:
  docker pull tensorflow/serving
  docker run -p 8501:8501 -v {shlex.quote(str(Path(folder).resolve()))}:{MOUNT} tensorflow/serving \\
    --model_config_file={MOUNT}/models.config
Upscale a picture:
  echo '{{"signature_name": "image_bytes", "instances": [{instance}]}}' |
    curl -s -d @- localhost:8501/v1/models/{name}:predict |
    jq -r '.predictions[0].image_bytes.b64' | base64 -d > sr.png""")


def cli() -> None:
    command(main)


if __name__ == "__main__":
    cli()
