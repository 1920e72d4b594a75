"""Networks as files for other runtimes: what each computes, and what cannot be written."""

from importlib.util import find_spec

import keras
import numpy as np
import pytest

from superres import export
from superres.errors import InputError
from superres.models import formats
from superres.models.lapsrn import lapsrn
from superres.models.pixel_recursive import conditioning_network
from superres.models.srgan import generator
from superres.models.srmap import generator as noisy


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    keras.utils.set_random_seed(0)
    for name, network in {"lapsrn": lapsrn(4, filters=4, depth=1), "srgan": generator(2, filters=4, blocks=1),
                          "noisy": noisy(2, stem=8, widths=(8, 8), blocks=(1,))}.items():
        network.set_weights([w + keras.random.normal(w.shape, stddev=0.05) for w in network.get_weights()])
        network.save(folder / f"{name}.keras")
    return folder


def runtime(file):
    """Function of LR that computes a file, with nothing of ours."""
    if file.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file)
        return lambda lr: session.run(None, {session.get_inputs()[0].name: lr})[0]
    if file.suffix == ".xml":
        import openvino

        model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda *inputs: model(inputs)[0]
    import tensorflow as tf

    def run(lr):
        interpreter = tf.lite.Interpreter(str(file))
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], lr.shape)
        runner = interpreter.get_signature_runner()
        return next(iter(runner(**{next(iter(runner.get_input_details())): lr}).values()))

    return run


@pytest.mark.parametrize("format", formats.SUFFIXES)
@pytest.mark.parametrize("name", ["lapsrn", "srgan"])
def test_a_file_computes_what_keras_computes_at_any_size(networks, tmp_path, capsys, name, format):
    if missing := [package for package in formats.NEEDS[format] if not find_spec(package)]:
        pytest.skip(f"needs {missing}")
    export.main(str(networks / f"{name}.keras"), str(tmp_path / "out"), format=format)
    file = tmp_path / "out" / f"{name}{formats.SUFFIXES[format]}"
    assert capsys.readouterr().out == f"{file}: exported, the same as Keras's\n"
    assert {path.stem for path in file.parent.iterdir()} == {name}
    network, run = keras.saving.load_model(networks / f"{name}.keras"), runtime(file)
    for shape in ((1, 31, 8), (3, 12, 13)):
        lr = np.random.default_rng(1).random((*shape, network.channels), "float32")
        wanted = keras.tree.flatten(network.predict_on_batch(lr))[-1]
        assert wanted.std() > 0.1
        np.testing.assert_allclose(run(lr), wanted, atol=1e-5)
    with pytest.raises(InputError, match="exists already; choose another --name"):
        export.main(str(networks / f"{name}.keras"), str(tmp_path / "out"), format=format)


def test_openvino_draws_the_noise_that_keras_draws(networks, tmp_path):
    export.main(str(networks / "noisy.keras"), str(tmp_path), format="openvino")
    network, run = keras.saving.load_model(networks / "noisy.keras"), runtime(tmp_path / "noisy.xml")
    lr = np.random.default_rng(1).random((2, 9, 14, 3), "float32")
    place = np.array([3, 2**30], "int32"), np.array([1, 0.5], "float32"), np.array([[0, 0], [7, 2]], "int32")
    drawn = network.predict_on_batch([lr, *place])
    np.testing.assert_allclose(run(lr, *place), drawn, atol=1e-5)
    assert np.abs(drawn - network.predict_on_batch([lr, place[0] + 1, *place[1:]])).max() > 0.01


def test_a_network_of_one_size_is_written(tmp_path):
    network = conditioning_network(head="gaussian", filters=4, blocks=1)
    network.save(tmp_path / "mean.keras")
    export.main(str(tmp_path / "mean.keras"), str(tmp_path), format="openvino")
    lr = np.random.default_rng(1).random((3, *network.input_shape[1:]), "float32")
    np.testing.assert_allclose(runtime(tmp_path / "mean.xml")(lr), network.predict_on_batch(lr), atol=1e-5)


def test_no_file_of_the_user_s_is_written_over(networks, tmp_path):
    (tmp_path / "lapsrn.bin").write_text("mine")
    with pytest.raises(InputError, match=r"lapsrn\.bin exists already; choose another --name"):
        export.main(str(networks / "lapsrn.keras"), str(tmp_path), format="openvino")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"lapsrn.bin": b"mine"}


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(networks, tmp_path, monkeypatch):
    def fails(network, path):
        path.write_text("half")
        raise NotImplementedError("no such\noperation")

    def main(file="lapsrn", **options):
        export.main(str(networks / f"{file}.keras"), str(tmp_path), format="litert", **options)

    with pytest.raises(InputError, match="draws noise, which only savedmodel and openvino do"):
        main("noisy")
    for option in ({"version": 1}, {"megapixels": 1.0}, {"precision": "bfloat16"}):
        with pytest.raises(InputError, match="neither --precision, --version nor --megapixels"):
            main(**option)
    with pytest.raises(InputError, match="--name: expected letters"):
        main(name="../x")
    monkeypatch.setitem(formats.NEEDS, "litert", ("no_such_package",))
    with pytest.raises(InputError, match=r"litert needs no_such_package \(requirements-export.txt\)"):
        main()
    monkeypatch.setitem(formats.NEEDS, "litert", ())
    monkeypatch.setitem(formats.WRITERS, "litert", fails)
    with pytest.raises(InputError, match=r"cannot be converted to litert \(no such operation\)"):
        main()
    monkeypatch.setitem(formats.WRITERS, "litert",
                        lambda network, path: lambda lr: 1.01 * network.predict_on_batch(lr)[-1])
    with pytest.raises(InputError, match=r"cannot be converted to litert \(its result differs by"):
        main()
    monkeypatch.setitem(formats.WRITERS, "litert",
                        lambda network, path: lambda lr: network.predict_on_batch(lr)[-1][None])
    with pytest.raises(InputError, match=r"its result has shape \(1, 1, 96, 128, 1\), not \(1, 96, 128, 1\)"):
        main()
    assert not list(tmp_path.iterdir())


def test_a_conversion_to_onnx_that_leaves_an_axis_too_many_is_done_again(networks, tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    right, axes = keras.Model.export, [5, 4]

    def export_wrongly(model, path, **options):
        right(model, path, **options)
        if axes.pop(0) == 5:
            written = onnx.load(path)
            last = written.graph.output[0]
            axis = onnx.numpy_helper.from_array(np.array([0]), "axis")
            written.graph.initializer.append(axis)
            written.graph.node.append(onnx.helper.make_node("Unsqueeze", [last.name, axis.name], ["wrong"]))
            del written.graph.output[:]
            written.graph.output.append(onnx.helper.make_tensor_value_info("wrong", 1, [1, *"bhw", 1]))
            onnx.save(written, path)

    monkeypatch.setattr(keras.Model, "export", export_wrongly)
    export.main(str(networks / "srgan.keras"), str(tmp_path), format="onnx")
    assert not axes
    assert runtime(tmp_path / "srgan.onnx")(np.zeros((1, 8, 9, 3), "float32")).shape == (1, 16, 18, 3)
