"""Exported networks of one size: those that draw their pictures, and a regression."""

import base64
import io
import json
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from superres import export
from superres.datasets.pictures import to_uint8
from superres.models.pixel_recursive import conditioning_network, pixel_recursive, prior_network
from superres.models.sampler import Sampler
from superres.models.upscaler import load

RANDOM = keras.initializers.RandomNormal(stddev=0.3)
CHANNELS = {"rgb": 3, "grey": 1, "conditioned": 1, "independent": 3, "regression": 3, "regression-grey": 1}
DRAWING = ["rgb", "grey", "conditioned", "independent"]
REGRESSIONS = ["regression", "regression-grey"]


def network(name):
    """8 -> 32 recursive in colour; 2 -> 4 the others, smaller than networks of any size take whole."""
    if name == "rgb":
        return pixel_recursive(
            conditioning_network(8, 4, filters=6, blocks=1, initializer="he_normal"),
            prior_network(32, 3, 6, 1, head=12, initializer=RANDOM))
    head = "gaussian" if name in REGRESSIONS else "softmax"
    conditioning = conditioning_network(2, 2, CHANNELS[name], 6, 1, head=head, initializer="he_normal")
    if name in ("grey", "conditioned"):  # of six levels
        gates = name == "conditioned"
        prior = prior_network(4, 1, 6, 1, head=12, levels=6, condition=6 * gates, initializer=RANDOM)
        prior.set_weights([RANDOM(weight.shape) if weight.name == "condition_kernel" else weight
                           for weight in prior.weights])  # not zero, at which it starts
        return pixel_recursive(
            conditioning_network(2, 2, 1, 6, 1, levels=6, features=gates, initializer="he_normal"), prior)
    return conditioning


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(CHANNELS):
        keras.utils.set_random_seed(seed)
        network(name).save(folder / f"{name}.keras")
    return folder


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    for name in CHANNELS:
        assert export.export(models / f"{name}.keras", folder, name, 1)[2] == (name in DRAWING)
    return folder


@pytest.fixture(scope="module")
def loaded(served):
    return {name: tf.saved_model.load(str(served / name / "1")) for name in CHANNELS}


@pytest.fixture
def ask(loaded):
    """Function that calls a signature, with numpy in and out."""

    def run(name, signature, pictures, *rest):
        key = "image_bytes" if signature == "image_bytes" else "lr"
        rest = {key: tf.constant(value, dtype) for key, value, dtype in
                zip(("temperature", "seed"), rest, ("float32", "int32"), strict=False)}
        answers = loaded[name].signatures[signature](**{key: tf.constant(pictures)}, **rest)
        assert not any(answers["status"].numpy())
        return answers["image_bytes" if signature == "image_bytes" else "sr"].numpy()

    return run


def pictures(name, count=3):
    size = 8 if name == "rgb" else 2
    return np.random.default_rng(0).integers(0, 256, (count, size, size, CHANNELS[name]), "uint8")


def floats(levels):
    return (levels / 255).astype("float32")


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(file, "PNG")
    return file.getvalue()


def unpacked(files):
    """Pictures of the channels that the files have."""
    images = [Image.open(io.BytesIO(file)) for file in files]
    assert {image.format for image in images} == {"PNG"}
    return np.stack([np.asarray(image).reshape(*image.size[::-1], len(image.getbands())) for image in images])


def inputs(loaded, signature):
    specs = loaded.signatures[signature].structured_input_signature[1]
    return {name: (tuple(spec.shape), spec.dtype.name) for name, spec in specs.items()}


@pytest.mark.parametrize("name", CHANNELS)
def test_signatures_have_the_inputs_that_the_network_needs(loaded, name):
    channels, size, hr = CHANNELS[name], 8 if name == "rgb" else 2, 32 if name == "rgb" else 4
    extra = {"temperature": ((None,), "float32"), "seed": ((None,), "int32")} if name in DRAWING else {}
    shape = (None, size, size, channels)
    assert inputs(loaded[name], "serving_default") == {"lr": (shape, "float32"), **extra}
    assert inputs(loaded[name], "uint8") == {"lr": (shape, "uint8"), **extra}
    assert inputs(loaded[name], "image_bytes") == {"image_bytes": ((None,), "string"), **extra}
    for signature, key, dtype in [("serving_default", "sr", "float32"), ("uint8", "sr", "uint8"),
                                  ("image_bytes", "image_bytes", "string")]:
        outputs = loaded[name].signatures[signature].structured_outputs
        assert {key: spec.dtype.name for key, spec in outputs.items()} == {key: dtype, "status": "string"}
        assert tuple(outputs["status"].shape) == (None,)
        assert tuple(outputs[key].shape) == ((None, hr, hr, channels) if key == "sr" else (None,))


@pytest.mark.parametrize("name", DRAWING)
def test_pictures_are_the_samplers_of_the_seeds_noise(models, ask, name):
    sampler = Sampler(load(models / f"{name}.keras"), jit_compile=False)
    lr, temperature, seed = floats(pictures(name)), [0.5, 1, 3], [7, 0, 2**31 - 1]
    size = sampler.network.outputs[0].shape[1:4]
    noise = np.stack([tf.random.stateless_uniform(size, (value, 0), alg="philox") for value in seed])
    levels = sampler.predict_on_batch([lr, noise, np.float32(temperature)])
    sr = ask(name, "serving_default", lr, temperature, seed)
    assert len(np.unique(levels)) > 3
    np.testing.assert_allclose(sr, levels / (sampler.levels - 1), atol=1e-6)


@pytest.mark.parametrize("name", DRAWING)
def test_a_picture_depends_on_its_own_inputs_only(ask, name):
    lr = np.repeat(pictures(name, 1), 4, 0)
    lr[3] = 255 - lr[3]
    a, b, same, _ = together = ask(name, "uint8", lr, [1, 1, 1, 2], [3, 4, 3, 4])
    np.testing.assert_array_equal(a, same)
    assert (a != b).any()
    for i in (1, 3):
        alone = ask(name, "uint8", lr[i : i + 1], [[1, 1, 1, 2][i]], [[3, 4, 3, 4][i]])
        np.testing.assert_array_equal(alone[0], together[i])


@pytest.mark.parametrize("name", DRAWING)
def test_an_infinite_temperature_is_greedy(models, ask, name):
    lr = np.repeat(pictures(name, 1), 3, 0)
    sr = ask(name, "uint8", lr, [np.inf, np.inf, 1e6], [1, 2, 3])
    np.testing.assert_array_equal(sr[:2], sr[:1].repeat(2, 0))
    np.testing.assert_array_equal(sr[2], sr[0])
    sampler = Sampler(load(models / f"{name}.keras"), jit_compile=False)
    np.testing.assert_array_equal(sampler.sample(lr[:1], temperature=np.inf)[0], sr[:1])


@pytest.mark.parametrize("name", CHANNELS)
def test_signatures_agree(ask, name):
    lr = pictures(name)
    rest = ([1, 2, 0.5], [5, 6, 7]) if name in DRAWING else ()
    expected = to_uint8(ask(name, "serving_default", floats(lr), *rest))
    assert len(np.unique(expected)) > 3
    np.testing.assert_array_equal(ask(name, "uint8", lr, *rest), expected)
    answers = ask(name, "image_bytes", [png(picture) for picture in lr], *rest)
    np.testing.assert_array_equal(unpacked(answers), expected)  # RGB or grey as the network


@pytest.mark.parametrize("name", REGRESSIONS)
def test_a_regression_gives_its_clipped_mean(models, ask, name):
    lr = floats(pictures(name))
    mean = load(models / f"{name}.keras").predict_on_batch(lr)
    assert mean.min() < 0 or mean.max() > 1
    np.testing.assert_allclose(ask(name, "serving_default", lr), mean.clip(0, 1), atol=1e-5)


@pytest.mark.parametrize(("name", "size"), [("rgb", 8), ("regression", 2)])
def test_a_file_of_another_size_is_told_the_size_and_fails_alone(ask, loaded, name, size):
    right = png(np.zeros((size, size, 3), "uint8"))
    rest = {"temperature": tf.ones(3), "seed": tf.range(3)} if name in DRAWING else {}
    shapes = [(size, size + 1), (size // 2, 2 * size)]
    files = [right, *(png(np.zeros((*shape, 3), "uint8")) for shape in shapes)]
    answers = loaded[name].signatures["image_bytes"](image_bytes=tf.constant(files), **rest)
    assert answers["status"].numpy().tolist() == [b"", *(
        f"image_bytes: {height} x {width} pixels, not {size} x {size}".encode() for height, width in shapes)]
    alone = ask(name, "image_bytes", [right], *([1], [0]) if rest else ())
    assert answers["image_bytes"].numpy().tolist() == [alone[0], b"", b""]


@pytest.mark.parametrize("name", DRAWING)
def test_rows_that_cannot_be_drawn_say_why_and_the_others_are_as_ever(ask, loaded, name):
    lr = pictures(name, 5)
    values = floats(lr)
    values[1, 0, 0, 0] = np.nan
    temperature, seed = [1, 1, np.nan, -1, 1], [3, 3, 3, 3, -1]
    rest = {"temperature": tf.constant(temperature, "float32"), "seed": tf.constant(seed)}
    wanted = [b"", b"lr: values must lie from 0 to 1", *[b"temperature: must be 0 or more"] * 2,
              b"seed: must be 0 or more, below 2^31"]
    alone = ask(name, "serving_default", values[:1], [1], [3])
    answers = loaded[name].signatures["serving_default"](lr=tf.constant(values), **rest)
    assert answers["status"].numpy().tolist() == wanted
    np.testing.assert_array_equal(answers["sr"][:1], alone)
    assert not answers["sr"][1:].numpy().any()
    answers = loaded[name].signatures["image_bytes"](image_bytes=tf.constant([png(x) for x in lr]), **rest)
    assert answers["status"].numpy().tolist() == [b"", b"", *wanted[2:]]
    assert [bool(answer) for answer in answers["image_bytes"].numpy()] == [True, True, False, False, False]


@pytest.mark.parametrize("name", CHANNELS)
def test_a_server_without_xla_can_run_the_graph(served, name):
    model = saved_model_pb2.SavedModel.FromString((served / name / "1" / "saved_model.pb").read_bytes())
    (graph,) = [meta.graph_def for meta in model.meta_graphs]
    nodes = [node for part in (graph, *graph.library.function)
             for node in (part.node if part is graph else part.node_def)]
    assert len(nodes) > 100
    assert not [node.op for node in nodes if node.op.lower().startswith("xla")]
    for part in [*nodes, *graph.library.function]:
        assert not part.attr["_XlaMustCompile"].b


@pytest.mark.parametrize("name", ["rgb", "independent", "regression-grey"])
def test_warm_up_requests_run(served, loaded, name):
    path = served / name / "1" / "assets.extra" / "tf_serving_warmup_requests"
    seen = set()
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        signature = request.model_spec.signature_name
        assert set(request.inputs) == set(inputs(loaded[name], signature))
        values = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        answers = loaded[name].signatures[signature](**values)
        assert answers["status"].numpy().tolist() == [b""]
        assert {answer.shape[0] for answer in answers.values()} == {1}
        seen.add(signature)
    assert seen == {"serving_default", "uint8", "image_bytes"}


@pytest.mark.parametrize("name", ["grey", "regression"])
def test_the_printed_request_fits_the_network(models, loaded, ask, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(export, "write_saved_model", lambda network, folder, *rest: folder.mkdir())
    export.main(str(models / f"{name}.keras"), str(tmp_path), version=1)
    printed = capsys.readouterr().out
    (echo,) = [line.strip().removesuffix("|") for line in printed.splitlines() if "echo" in line]
    (lr,) = pictures(name, 1)
    (tmp_path / "lr.png").write_bytes(png(lr))
    request = json.loads(subprocess.check_output(["bash", "-c", echo], cwd=tmp_path))
    assert set(request) == {"signature_name", "instances"}
    assert request["signature_name"] == "image_bytes"
    (instance,) = request["instances"]
    # As TensorFlow Serving reads it: of a single input, the name is left out.
    names = inputs(loaded[name], "image_bytes")
    instance = {"image_bytes": instance} if len(names) == 1 else instance
    assert set(instance) == set(names)
    rest = [[instance[key]] for key in ("temperature", "seed") if key in instance]
    assert rest == ([[1], [0]] if name in DRAWING else [])
    answer = ask(name, "image_bytes", [base64.b64decode(instance["image_bytes"]["b64"])], *rest)
    np.testing.assert_array_equal(unpacked(answer), ask(name, "uint8", lr[None], *rest))
