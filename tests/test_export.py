"""Exported networks: what each signature answers, by each way of loading them."""

import contextlib
import inspect
import io
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from google.protobuf import text_format
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.tools import saved_model_cli as cli
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from superres import export
from superres.datasets.degradations import imresize
from superres.datasets.pictures import to_uint8
from superres.errors import InputError
from superres.layers import BicubicUpsampling2D
from superres.models.lapsrn import lapsrn
from superres.models.signatures import continued, signatures
from superres.models.upscaler import load, upscaler

SIGNATURES = {"serving_default", "uint8", "image_bytes"}
SIZES = [(1, 1), (1, 9), (3, 2), (12, 17)]
NETWORKS = {"x2": {"scale": 2}, "x4": {"scale": 4}, "rgb": {"scale": 2, "channels": 3}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folder of small networks whose residual pictures are not zero."""
    folder = tmp_path_factory.mktemp("models")
    keras.utils.set_random_seed(0)
    for name, settings in NETWORKS.items():
        network = lapsrn(**settings, filters=8, depth=2)
        for layer in network.layers:
            if layer.name.endswith("_residual"):
                layer.kernel.assign(keras.random.normal(layer.kernel.shape, stddev=0.05))
        network.save(folder / f"{name}.keras")
    return folder


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    """The folder that a server would mount, with every network in it as version 1."""
    folder = tmp_path_factory.mktemp("served")
    for name in NETWORKS:
        export.export(models / f"{name}.keras", folder, name, 1)
    return folder


@pytest.fixture(scope="module")
def loaded(served):
    # The loaded objects stay referenced: they own the variables of their signatures.
    return {name: tf.saved_model.load(str(served / name / "1")) for name in NETWORKS}


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype="uint8")


def png(picture, **kwargs):
    file = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(file, **{"format": "PNG", **kwargs})
    return file.getvalue()


def assert_same_levels(actual, expected):
    """Equal but for values that lay on the border of two levels."""
    assert actual.dtype == np.uint8
    assert actual.shape == expected.shape
    difference = np.abs(actual.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NETWORKS)
def test_float_and_uint8_signatures_equal_upscale(models, loaded, name, size):
    network = load(models / f"{name}.keras")
    lr = pictures(2, *size)
    sr = np.stack([network.upscale(picture / np.float32(255)) for picture in lr])
    bicubic = np.stack([imresize(picture, NETWORKS[name]["scale"]) for picture in lr])
    assert np.abs(sr - bicubic / 255).mean() > 0.01  # the network does something

    floats = loaded[name].signatures["serving_default"](lr=tf.constant(lr / 255, "float32"))["sr"]
    assert floats.dtype == tf.float32
    np.testing.assert_allclose(floats, sr, atol=1e-4)
    assert_same_levels(loaded[name].signatures["uint8"](lr=tf.constant(lr))["sr"].numpy(), to_uint8(sr))


@pytest.mark.parametrize("size", [(40, 35), (5, 40), (33, 16)])
@pytest.mark.parametrize("name", NETWORKS)
def test_larger_pictures_are_computed_in_tiles_that_do_not_show(models, monkeypatch, name, size):
    computed = []

    def watched(lr, axis):
        if axis == 1:
            tf.py_function(lambda lr: computed.append(lr.shape[1:3]), [lr], [])
        return continued(lr, axis)

    monkeypatch.setattr("superres.models.signatures.TILE", 16)
    monkeypatch.setattr("superres.models.signatures.continued", watched)
    network = load(models / f"{name}.keras")
    lr = pictures(2, *size) / np.float32(255)
    sr = signatures(network, 1)["serving_default"][0](tf.constant(lr))["sr"]
    np.testing.assert_allclose(sr, [network.upscale(picture) for picture in lr], atol=2e-5)
    assert len(computed) == -(-size[0] // 16) * -(-size[1] // 16)
    assert np.max(computed) <= 16 + 2 * max(8, network.reach())


def test_a_network_that_sees_all_of_a_picture_computes_it_whole(monkeypatch):
    lr = keras.Input((None, None, 3))
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True)(lr)
    network = upscaler(keras.Model(lr, BicubicUpsampling2D(2)(lr * 0.5 + mean * 0.5)))
    with pytest.raises(InputError, match="one pixel changes its whole output"):
        network.reach()
    monkeypatch.setattr("superres.models.signatures.TILE", 16)
    batch = pictures(2, 40, 24) / np.float32(255)
    sr = signatures(network, 1)["serving_default"][0](tf.constant(batch))["sr"]
    np.testing.assert_allclose(sr, [network.upscale(picture) for picture in batch], atol=1e-5)


def test_floats_out_of_range_are_clipped(loaded):
    lr = tf.constant(pictures(1, 16, 16) / 255, "float32")
    sr = loaded["x2"].signatures["serving_default"](lr=lr)["sr"].numpy()
    assert sr.min() == 0
    assert sr.max() == 1


def test_uint8_rounds_half_up():
    lr = keras.Input((None, None, 3))
    half = upscaler(keras.Model(lr, keras.layers.Rescaling(0.5)(lr)))
    levels = np.broadcast_to(np.arange(256, dtype="uint8").reshape(1, 16, 16, 1), (1, 16, 16, 3))
    sr = signatures(half, 1)["uint8"][0](tf.constant(levels))["sr"].numpy()
    np.testing.assert_array_equal(sr[0], half.upscale(levels[0]))
    assert (sr == (levels.astype(int) + 1) // 2).mean() > 0.9


@pytest.mark.parametrize("name", NETWORKS)
def test_image_bytes_takes_files_of_every_kind_and_size(models, loaded, name):
    network = load(models / f"{name}.keras")
    rgb = Image.fromarray(pictures(11, 14))
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(pictures(11, 14, seed=1)[..., 0]))
    palette = rgb.quantize(16)
    smooth = Image.fromarray(pictures(3, 3)).resize((19, 23), Image.Resampling.BICUBIC)
    images = [rgb, rgb.crop((0, 0, 1, 1)), rgb.convert("L"), rgb.convert("1"), alpha, palette]
    files = [png(image) for image in images]
    files += [png(smooth, format="JPEG", quality=90), png(smooth.convert("L"), format="JPEG")]

    answers = loaded[name].signatures["image_bytes"](image_bytes=tf.constant(files))["image_bytes"].numpy()
    for file, answer in zip(files, answers, strict=True):
        lr = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
        image = Image.open(io.BytesIO(answer))
        assert (image.format, image.mode) == ("PNG", "RGB")
        assert_same_levels(np.asarray(image), network.upscale(lr))


def test_bfloat16(models, tmp_path):
    target, name, draws = export.export(models / "x2.keras", tmp_path, None, 3, precision="bfloat16")
    assert (target, name, draws) == (tmp_path / "x2" / "3", "x2", False)
    lr = pictures(1, 12, 13)
    sr = tf.saved_model.load(str(target)).signatures["serving_default"](lr=tf.constant(lr / 255, "float32"))
    expected = load(models / "x2.keras", "bfloat16").upscale(lr[0] / np.float32(255))
    exact = load(models / "x2.keras").upscale(lr[0] / np.float32(255))
    assert np.abs(sr["sr"][0] - expected).mean() < 0.2 * np.abs(exact - expected).mean()


def run_in_c(libraries, folder, feed, fetch, source, target):
    """Load a SavedModel and run one signature by TensorFlow's C API alone.

    Reads the input from a .npy file and writes the output to another; a 1-D array of
    bytes stands for one string. Runs in a process that never imports TensorFlow.
    """
    import ctypes
    import sys

    import numpy as np

    framework = ctypes.CDLL(f"{libraries}/libtensorflow_framework.so.2", ctypes.RTLD_GLOBAL)
    api = ctypes.CDLL(f"{libraries}/libtensorflow_cc.so.2")
    pointer, size = ctypes.c_void_p, ctypes.c_size_t

    def call(function, *arguments, returns=pointer, library=api):
        function = getattr(library, function)
        function.restype = returns
        return function(*arguments)

    class Output(ctypes.Structure):
        _fields_ = [("operation", pointer), ("index", ctypes.c_int)]

    def output(name):
        operation, index = name.rsplit(":", 1)
        found = call("TF_GraphOperationByName", graph, operation.encode())
        assert found, name
        return Output(found, int(index))

    def check():
        code = call("TF_GetCode", status, returns=ctypes.c_int, library=framework)
        assert code == 0, call("TF_Message", status, returns=ctypes.c_char_p, library=framework)

    status = pointer(call("TF_NewStatus", library=framework))
    graph = pointer(call("TF_NewGraph"))
    options = pointer(call("TF_NewSessionOptions"))
    tags = (ctypes.c_char_p * 1)(b"serve")
    session = call("TF_LoadSessionFromSavedModel", options, None, folder.encode(), tags, 1, graph, None,
                   status)
    check()

    value = np.ascontiguousarray(np.load(source))
    is_string = value.ndim == 1
    shape = (1,) if is_string else value.shape
    data_type, length = (7, 24) if is_string else ({"float32": 1, "uint8": 4}[value.dtype.name], value.nbytes)
    dimensions = (ctypes.c_int64 * len(shape))(*shape)
    tensor = pointer(call("TF_AllocateTensor", data_type, dimensions, len(shape), size(length),
                          library=framework))
    data = pointer(call("TF_TensorData", tensor, library=framework))
    if is_string:
        call("TF_StringInit", data)
        call("TF_StringCopy", data, value.tobytes(), size(value.size))
    else:
        ctypes.memmove(data, value.ctypes.data, value.nbytes)

    result = pointer()
    call("TF_SessionRun", pointer(session), None, ctypes.byref(output(feed)), ctypes.byref(tensor), 1,
         ctypes.byref(output(fetch)), ctypes.byref(result), 1, None, 0, None, status)
    check()
    data = pointer(call("TF_TensorData", result, library=framework))
    if is_string:
        length = call("TF_StringGetSize", data, returns=size)
        text = ctypes.string_at(call("TF_StringGetDataPointer", data), length)
        answer = np.frombuffer(text, "uint8")
    else:
        rank = call("TF_NumDims", result, returns=ctypes.c_int, library=framework)
        shape = [call("TF_Dim", result, axis, returns=ctypes.c_int64, library=framework)
                 for axis in range(rank)]
        length = call("TF_TensorByteSize", result, returns=size, library=framework)
        answer = np.frombuffer(ctypes.string_at(data, length), value.dtype).reshape(shape)
    np.save(target, answer)
    assert "tensorflow" not in sys.modules


@pytest.mark.skipif(sys.platform != "linux", reason="names Linux's shared libraries")
@pytest.mark.parametrize("signature", sorted(SIGNATURES))
def test_loads_without_python(models, served, tmp_path, signature):
    folder = served / "x2" / "1"
    graph = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    names = graph.meta_graphs[0].signature_def[signature]
    (feed,), fetch = names.inputs.values(), names.outputs["sr" if "sr" in names.outputs else "image_bytes"]
    lr = pictures(9, 10)
    value = {"serving_default": (lr[None] / 255).astype("float32"), "uint8": lr[None],
             "image_bytes": np.frombuffer(png(lr), "uint8")}[signature]
    np.save(tmp_path / "in.npy", value)
    arguments = (Path(tf.sysconfig.get_lib()), folder, feed.name, fetch.name,
                 tmp_path / "in.npy", tmp_path / "out.npy")
    code = f"{inspect.getsource(run_in_c)}\nrun_in_c(*{tuple(map(str, arguments))})"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr

    answer = np.load(tmp_path / "out.npy")
    sr = load(models / "x2.keras").upscale(lr / np.float32(255))
    if signature == "serving_default":
        np.testing.assert_allclose(answer[0], sr, atol=1e-4)
    elif signature == "uint8":
        assert_same_levels(answer[0], to_uint8(sr))
    else:
        assert_same_levels(np.asarray(Image.open(io.BytesIO(answer.tobytes()))), to_uint8(sr))


@pytest.fixture
def saved_model_cli(monkeypatch, capsys):
    """Function that runs TensorFlow's command and returns what it prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["saved_model_cli", *map(str, arguments)])
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return capsys.readouterr().out

    return run


def test_saved_model_cli_shows_the_signatures(served, saved_model_cli):
    shown = saved_model_cli("show", "--dir", served / "x2" / "1", "--tag_set", "serve")
    keys = {line.split('"')[1] for line in shown.splitlines() if line.startswith("SignatureDef key:")}
    assert keys - {"__saved_model_init_op"} == SIGNATURES


def test_saved_model_cli_runs_a_signature(models, served, saved_model_cli, tmp_path):
    lr = pictures(2, 5, 6)
    np.save(tmp_path / "lr.npy", lr)
    saved_model_cli("run", "--dir", served / "x2" / "1", "--tag_set", "serve", "--signature_def", "uint8",
                    "--inputs", f"lr={tmp_path / 'lr.npy'}", "--outdir", tmp_path)
    network = load(models / "x2.keras")
    sr = np.stack([network.upscale(picture) for picture in lr])
    assert_same_levels(np.load(tmp_path / "sr.npy"), sr)


def test_warm_up_requests_name_every_signature_and_run(served, loaded):
    path = served / "x4" / "1" / "assets.extra" / "tf_serving_warmup_requests"
    seen = set()
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        assert request.model_spec.name == "x4"
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        answers = loaded["x4"].signatures[request.model_spec.signature_name](**inputs)
        assert answers.pop("status").numpy().tolist() == [b""]
        (answer,) = answers.values()
        if answer.dtype == tf.string:
            answer = tf.io.decode_png(answer[0])[None]
        assert answer.shape == (1, 256, 256, 3)
        seen.add(request.model_spec.signature_name)
    assert seen == SIGNATURES


def read_config(folder):
    text = (folder / "models.config").read_text()
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    return {entry.name: entry for entry in config.model_config_list.config}


def test_models_config_lists_every_model(served):
    config = read_config(served)
    assert {name: entry.base_path for name, entry in config.items()} == {
        name: f"/models/{name}" for name in NETWORKS
    }
    assert {entry.model_platform for entry in config.values()} == {"tensorflow"}


def test_models_config_keeps_what_was_written_by_hand(models, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "write_saved_model", lambda network, folder, *rest: Path(folder).mkdir())
    by_hand = (
        'model_config_list { config { name: "x2" base_path: "/models/x2" model_platform: "tensorflow" '
        "model_version_policy { all {} } } }"
    )
    (tmp_path / "models.config").write_text(by_hand)
    export.export(models / "x2.keras", tmp_path, "x2", 2)
    assert read_config(tmp_path)["x2"].model_version_policy.HasField("all")
    export.export(models / "rgb.keras", tmp_path, "rgb", 1)
    assert read_config(tmp_path)["x2"].model_version_policy.HasField("all")
    assert set(read_config(tmp_path)) == {"x2", "rgb"}


def test_a_broken_models_config_is_left_alone(models, tmp_path):
    (tmp_path / "models.config").write_text("model_config_list {")
    with pytest.raises(InputError, match=r"models\.config: not a model_config_list"):
        export.export(models / "x2.keras", tmp_path, "x2", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["models.config"]


def test_a_saved_model_needs_the_server_s_package(models, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "predict_pb2", None)
    with pytest.raises(InputError, match="a SavedModel needs its package"):
        export.export(models / "x2.keras", tmp_path, None, 1)
    assert not any(tmp_path.iterdir())


def test_refuses_what_it_cannot_export(models, served, tmp_path):
    before = (served / "x2" / "1" / "saved_model.pb").stat().st_mtime_ns
    with pytest.raises(InputError, match="1 exists already; choose another --version"):
        export.export(models / "rgb.keras", served, "x2", 1)
    assert (served / "x2" / "1" / "saved_model.pb").stat().st_mtime_ns == before
    for name in ("", "a/b", "../x", ".x", "a b"):
        with pytest.raises(InputError, match="--name"):
            export.export(models / "x2.keras", tmp_path, name, 1)
    for megapixels in (0, -1, float("nan")):
        with pytest.raises(InputError, match="--megapixels"):
            export.export(models / "x2.keras", tmp_path, "x2", 1, megapixels=megapixels)
    for version in (0, -1, 2**63):
        with pytest.raises(InputError, match="--version"):
            export.export(models / "x2.keras", tmp_path, "x2", version)
    with pytest.raises(InputError, match="no such model file"):
        export.export(models / "missing.keras", tmp_path, "x2", 1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError):
        export.export(models / "x2.keras", models / "x2.keras", "x2", 1)


@pytest.mark.parametrize("error", [
    OSError("no space left on device"),
    tf.errors.ResourceExhaustedError(None, None, "no space left on device"),
])
def test_a_failure_leaves_no_version(models, tmp_path, monkeypatch, error):
    def fails(network, folder, *rest):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "saved_model.pb").write_text("half")
        raise error

    monkeypatch.setattr(export, "write_saved_model", fails)
    with pytest.raises(OSError, match="no space"):
        export.export(models / "x2.keras", tmp_path, "x2", 1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not list((tmp_path / "x2").iterdir())


def test_main_exports_and_prints_how_to_start_a_server(models, tmp_path, capsys):
    folder = tmp_path / "a folder"
    shutil.copytree(models, folder / "city" / ".1.part")  # what a killed export left
    export.main(str(models / "x2.keras"), str(folder), version=1, name="city")
    printed = capsys.readouterr().out
    assert f"-v '{folder}':/models" in printed
    assert "--model_config_file=/models/models.config" in printed
    assert "/v1/models/city:predict" in printed
    assert """"instances": [{"b64": "'$(base64 -w0 lr.png)'"}]""" in printed
    assert [path.name for path in (folder / "city").iterdir()] == ["1"]
    assert (folder / "city" / "1" / "saved_model.pb").is_file()
    assert not list(folder.rglob("*.keras"))


def test_a_mistake_is_one_line_and_status_2(models, tmp_path):
    script = Path(export.__file__)
    arguments = [str(models / "x2.keras"), str(tmp_path), "--version", "0"]
    process = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr == "error: --version: expected a positive integer of 64 bits, found 0\n"


def test_main_hands_its_options_on(monkeypatch):
    given = []
    monkeypatch.setattr(export, "export", lambda *options: given.append(options) or (Path("f"), "n", False))
    export.main("m", "f", version=3, precision="bfloat16", name="n", megapixels=0.5)
    export.main("m", "f", version=3)
    assert given == [("m", "f", "n", 3, "bfloat16", 0.5), ("m", "f", None, 3, "float32", 4.0)]


def test_a_version_that_cannot_be_listed_is_taken_back(models, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def full(path):
        raise OSError("no space left on device")
        yield

    monkeypatch.setattr(export, "write_saved_model", lambda network, folder, *rest: Path(folder).mkdir())
    monkeypatch.setattr(export, "whole", full)
    with pytest.raises(OSError, match="no space"):
        export.export(models / "x2.keras", tmp_path, "x2", 1)
    assert not [*(tmp_path / "x2").iterdir()]
