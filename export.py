"""Export a trained network for TensorFlow Serving.

    python export.py lapsrn-x2 served --version 1
    python export.py lapsrn-x4 served --version 1 --precision bfloat16

writes, and later exports into the same folder add to it:

    served/models.config                   what `--model_config_file` takes
    served/<name>/<version>/               a SavedModel with its warm-up requests

Signatures, each for a batch of RGB pictures of any size from 1 x 1:

    serving_default   lr (B, H, W, 3) float32 in [0, 1] -> sr (B, sH, sW, 3) float32 in [0, 1]
    uint8             lr (B, H, W, 3) uint8             -> sr (B, sH, sW, 3) uint8
    image_bytes       image_bytes (B,) PNG or JPEG files -> image_bytes (B,) PNG files, whose
                      sizes may differ; grey becomes RGB, alpha is dropped, EXIF
                      rotation is not applied

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
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import keras
import numpy as np
import tensorflow as tf
import tyro
from google.protobuf import text_format
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from superres.datasets.color import rgb_to_ycbcr, ycbcr_to_rgb
from superres.errors import InputError
from superres.files import whole
from superres.layers import BicubicUpsampling2D
from superres.models import hub
from superres.models.images import SMALLEST
from superres.models.sampler import Sampler
from superres.models.upscaler import ThumbnailUpscaler, Upscaler, load

MOUNT = "/models"  # where the server finds the folder


def sampled(network: ThumbnailUpscaler) -> Callable[..., tf.Tensor]:
    """A `ThumbnailUpscaler` as TensorFlow operations, with noise from a seed.

    Returns:
        Function of (lr (B, h, w, C), temperature (B,), seed (B,)), or of lr alone where the
        network draws nothing, -> (B, H, W, C) float32 in [0, 1]. Each image depends on its own
        inputs only, so that a server may put requests together.
    """
    if not network.draws_samples:
        return lambda lr: tf.clip_by_value(network(lr, training=False), 0, 1)
    # XLA is left out: a server need not have it.
    model = Sampler(network, jit_compile=False)
    size = network.outputs[0].shape[1:4]

    @tf.function(autograph=False)  # once in the SavedModel, whichever signatures call it
    def upscale(lr, temperature, seed):
        def noise(seed):
            return tf.random.stateless_uniform(size, (seed, 0), alg="philox")

        noises = tf.ensure_shape(tf.map_fn(noise, seed, tf.float32), (None, *size))
        return tf.cast(model([lr, noises, temperature]), "float32") / (model.levels - 1)

    return upscale


def computed(network: Upscaler) -> Callable[..., tf.Tensor]:
    """An `Upscaler` of images of any size as TensorFlow operations, for a batch of RGB images.

    Returns:
        Function of (lr (B, H, W, 3)), and (temperature (B,), seed (B,)) where the network
        draws samples, -> (B, sH, sW, 3), float32 in [0, 1], clipped.
    """
    scale = network.scale
    bicubic = BicubicUpsampling2D(scale, dtype="float32")

    def run(lr, temperature=None, seed=None):
        origin = tf.zeros((tf.shape(lr)[0], 2), "int32")
        return keras.tree.flatten(network(network.feed(lr, temperature, seed, origin), training=False))[-1]

    @tf.function(autograph=False)  # once in the SavedModel, whichever signatures call it
    def upscale(lr, *noise):
        height, width = tf.shape(lr)[1], tf.shape(lr)[2]
        for axis in (1, 2):
            lr = continued(lr, axis)
        if network.channels == 1:
            ycbcr = converted(lr, rgb_to_ycbcr)
            y, cbcr = run(ycbcr[..., :1], *noise), bicubic(ycbcr[..., 1:])
            sr = converted(tf.concat([y, cbcr], -1), ycbcr_to_rgb)
        else:
            sr = run(lr, *noise)
        return tf.clip_by_value(sr[:, : height * scale, : width * scale], 0, 1)

    return upscale


def continued(pictures: tf.Tensor, axis: int) -> tf.Tensor:
    """Continue an axis smaller than SMALLEST symmetrically by as much."""
    size = tf.shape(pictures)[axis]
    index = tf.range(tf.where(size < SMALLEST, size + SMALLEST, size)) % (2 * size)
    return tf.gather(pictures, tf.minimum(index, 2 * size - 1 - index), axis=axis)


def converted(pictures: tf.Tensor, conversion: Callable[[np.ndarray], np.ndarray]) -> tf.Tensor:
    """Apply an affine colour conversion of `datasets.color` to (..., 3) float32."""
    offset = conversion(np.zeros(3))
    matrix = conversion(np.eye(3)) - offset
    # A matrix product would lose the last bits of 8 on GPUs that multiply in TF32.
    return sum(pictures[..., i, None] * row for i, row in enumerate(matrix.astype("float32"))) + offset


def signatures(network: Upscaler) -> dict[str, tuple[Callable, list[tf.TensorSpec]]]:
    """The signatures of a network.

    Returns:
        Dict of name -> (function, list of the `tf.TensorSpec` of its inputs).
    """
    size, extra = network.lr_size, []
    channels = network.channels if size else 3
    upscale = sampled(network) if size else computed(network)
    if network.draws_samples:
        extra = [tf.TensorSpec((None,), "float32", "temperature"), tf.TensorSpec((None,), "int32", "seed")]

    def floats(lr, *rest):
        return {"sr": upscale(lr, *rest)}

    def integers(lr, *rest):
        sr = upscale(tf.cast(lr, "float32") / 255, *rest)
        return {"sr": tf.cast(tf.floor(sr * 255 + 0.5), "uint8")}

    def decoded(encoded):
        # PNG too, whatever the name. The default DCT errs by several levels.
        return tf.io.decode_jpeg(encoded, channels=channels, dct_method="INTEGER_ACCURATE")

    def files(image_bytes, *rest):
        def one(inputs):
            encoded, *rest = inputs
            return tf.io.encode_png(integers(decoded(encoded)[None], *[x[None] for x in rest])["sr"][0])

        def one_of_size(encoded):
            lr = decoded(encoded)
            fits = tf.reduce_all(tf.shape(lr)[:2] == size)
            message = f"image_bytes: pictures must be {size} x {size} pixels, height and width found:"
            with tf.control_dependencies([tf.debugging.Assert(fits, [message, tf.shape(lr)[:2]])]):
                # `tf.ensure_shape` would be run first and raise something less clear.
                return tf.reshape(lr, (size, size, channels))

        if size:
            lr = tf.map_fn(one_of_size, image_bytes, tf.uint8)
            return {"image_bytes": tf.map_fn(tf.io.encode_png, integers(lr, *rest)["sr"], tf.string)}
        # One picture after the other: memory then holds the features of one.
        return {"image_bytes": tf.map_fn(one, (image_bytes, *rest), tf.string, parallel_iterations=1)}

    def several(lr, temperature, seed, count):
        drawn = tf.map_fn(lambda k: upscale(lr, temperature, seed + k), tf.range(count), tf.float32,
                          parallel_iterations=1)
        return {"sr": tf.transpose(drawn, (1, 0, 2, 3, 4))}

    shape = (None, size, size, channels)
    entries = {
        "serving_default": (floats, [tf.TensorSpec(shape, "float32", "lr"), *extra]),
        "uint8": (integers, [tf.TensorSpec(shape, "uint8", "lr"), *extra]),
        "image_bytes": (files, [tf.TensorSpec((None,), "string", "image_bytes"), *extra]),
    }
    if network.draws_samples and not size:
        count = tf.TensorSpec((), "int32", "count")
        entries["samples"] = several, [tf.TensorSpec(shape, "float32", "lr"), *extra, count]
    return entries


def write_saved_model(network: Upscaler, folder: Path, name: str) -> None:
    """Write the network as a SavedModel with one warm-up request for each signature."""
    archive = keras.export.ExportArchive()
    archive.track(network)
    entries = signatures(network)
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
    examples["samples"] = {**examples["serving_default"], "count": np.int32(2)}
    assets = Path(folder, "assets.extra")
    assets.mkdir()
    with tf.io.TFRecordWriter(str(assets / "tf_serving_warmup_requests")) as file:
        for signature, (_, specs) in entries.items():
            values = {**extra, **examples[signature]}
            request = predict_pb2.PredictRequest(
                inputs={spec.name: tf.make_tensor_proto(values[spec.name]) for spec in specs})
            request.model_spec.name = name
            request.model_spec.signature_name = signature
            log = prediction_log_pb2.PredictLog(request=request)
            file.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def read_config(path: Path) -> model_server_config_pb2.ModelServerConfig:
    """Read `models.config`; a missing file is an empty one.

    Raises:
        InputError: if the file is no configuration of TensorFlow Serving.
    """
    config = model_server_config_pb2.ModelServerConfig()
    try:
        return text_format.Parse(path.read_text(), config) if path.exists() else config
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a model_config_list of TensorFlow Serving ({error})") from None


def export(model: Path | str, folder: Path | str, name: str | None, version: int,
           precision: Literal["float32", "bfloat16"] = "float32") -> tuple[Path, str, bool]:
    """Export a `.keras` file to `folder`, whole or not at all.

    Returns:
        (path of the version's folder, name of the model, whether it takes temperature and seed).

    Raises:
        InputError: if the model, the name or the version cannot be used, or the
            version exists.
        OSError: if it cannot be written.
    """
    if not 0 < version < 2**63:
        raise InputError(f"--version: expected a positive integer of 64 bits, found {version}")
    config = read_config(Path(folder, "models.config"))
    network = load(model, precision)
    name = hub.stem(model) if name is None else name
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise InputError(f"--name: expected letters, digits, '_', '-' and '.', found {name!r}")
    target = Path(folder, name, str(version))
    if target.exists():
        raise InputError(f"{target} exists already; choose another --version")

    part = target.with_name(f".{version}.part")  # no number: the server overlooks it
    part.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(part, ignore_errors=True)
    try:
        write_saved_model(network, part, name)
        os.rename(part, target)
    except tf.errors.OpError as error:  # a full disk and the like
        raise OSError(f"{target}: {error.message}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)

    if name not in [entry.name for entry in config.model_config_list.config]:
        config.model_config_list.config.add(
            name=name, base_path=f"{MOUNT}/{name}", model_platform="tensorflow"
        )
        with whole(Path(folder, "models.config")) as part:
            part.write_text(text_format.MessageToString(config))
    return target, name, network.draws_samples


def main(
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    folder: Annotated[str, tyro.conf.arg(metavar="FOLDER")],
    /,
    version: int,
    precision: Literal["float32", "bfloat16"] = "float32",
    name: str | None = None,
) -> None:
    """Export a trained network for TensorFlow Serving.

    Example: export.py lapsrn-x4 served --version 1

    Args:
        model: A shipped network's name, a .keras file, or hf://user/name on the Hugging Face hub.
        folder: Where the served models live; a second model is added to it.
        version: A positive number. The server serves the highest one.
        precision: What the network computes in.
        name: The model's name at the server; by default the file's, without its suffix.
    """
    target, name, drawn = export(model, folder, name, version, precision)
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
    jq -r '.predictions[0].b64' | base64 -d > sr.png""")


def cli() -> None:
    command(main)


if __name__ == "__main__":
    cli()
