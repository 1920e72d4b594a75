"""models/engine.py: OpenVINO makes the pictures that TensorFlow makes, where it is the faster."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino
import pytest

from superres import evaluate, upscale
from superres.datasets.pictures import read_picture, write_picture
from superres.errors import InputError
from superres.models import engine, upscaler
from superres.models.engine import OpenVINOUpscaler, load
from superres.models.srmap import generator

SHIPPED = ["lapsrn-x2", "lapsrn-x4", "srresnet-x2"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("SUPERRES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def both():
    """Shipped networks by either engine: name -> (OpenVINO's, TensorFlow's)."""
    return {name: (engine.OpenVINOUpscaler(engine.converted(network)), network)
            for name, network in ((name, upscaler.load(name)) for name in SHIPPED)}


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("options", [{}, {"tile": 16}, {"ensemble": True}], ids=str)
def test_engines_make_the_same_pictures(both, photo, name, options):
    ours, other = both[name]
    assert (ours.name, ours.scale, ours.channels, ours.lr_size, ours.draws_samples) == (
        other.name, other.scale, other.channels, None, False)
    for lr in (photo[:37, :30], photo[:9, :20, :1], photo[:1, :1]):
        sr, wanted = ours.upscale(lr, **options), other.upscale(lr, **options)
        assert sr.shape == wanted.shape
        assert np.abs(sr.astype(int) - wanted).max() <= 1
    lr = photo[:20, :33] / np.float32(255)
    np.testing.assert_allclose(ours.upscale(lr, **options), other.upscale(lr, **options), atol=1e-5)


@pytest.mark.parametrize("name", SHIPPED)
def test_both_see_as_far(both, name):
    assert both[name][0].reach() == both[name][1].reach()


def test_it_computes_in_float32_whatever_the_processor_prefers(both):
    properties = both["lapsrn-x2"][0]._compiled.get_property("INFERENCE_PRECISION_HINT")
    assert properties == openvino.Type.f32


@pytest.mark.parametrize(("name", "arguments", "kind"), [
    ("lapsrn-x2", {}, OpenVINOUpscaler),
    ("lapsrn-x2", {"engine": "openvino"}, OpenVINOUpscaler),
    ("lapsrn-x2", {"engine": "tensorflow"}, upscaler.Upscaler),
    ("lapsrn-x2", {"precision": "bfloat16"}, upscaler.Upscaler),
    ("srmap-x4", {}, upscaler.NoisyUpscaler),
    ("pixel_recursive-corners", {}, upscaler.ThumbnailUpscaler),
], ids=str)
def test_the_engine_that_is_chosen(name, arguments, kind):
    network = load(name, **arguments)
    assert type(network) is kind
    # What is kept for another choice does not change this one.
    assert type(load(name, **arguments)) is kind


def test_reflected_padding_is_left_to_tensorflow(tmp_path):
    path = tmp_path / "srmap.keras"
    generator(2, stem=8, widths=(8, 8, 8), blocks=(1, 1, 1, 1), noise=False).save(path)
    assert type(load(path)) is upscaler.Upscaler
    with pytest.raises(InputError, match=r"--engine: OpenVINO cannot compute .*reflected padding"):
        load(path, engine="openvino")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"path": "srmap-x4"}, "cannot compute srmap-x4.*without noise"),
    ({"path": "lapsrn-x2", "precision": "bfloat16"}, "computes in float32"),
    ({"path": "none"}, "no such model file; shipped are"),
], ids=str)
def test_what_openvino_does_not_compute_is_an_error_where_it_is_asked_for(arguments, message):
    with pytest.raises(InputError, match=message):
        load(**arguments, engine="openvino")


def test_another_word_for_an_engine_is_refused():
    with pytest.raises(InputError, match="engine: must be auto, tensorflow or openvino, not onnx"):
        load("lapsrn-x2", engine="onnx")


def test_without_openvino_tensorflow_computes(monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    assert type(load("lapsrn-x2")) is upscaler.Upscaler
    with pytest.raises(InputError, match="pip install openvino"):
        load("lapsrn-x2", engine="openvino")


def test_a_gpu_is_tensorflow_s(monkeypatch):
    monkeypatch.setattr(engine, "gpus", lambda: ["GPU"])
    assert type(load("lapsrn-x2")) is upscaler.Upscaler


def test_a_conversion_that_computes_something_else_is_not_used(model, monkeypatch, cache):
    right = openvino.convert_model

    def wrong(function):
        converted = right(function)
        for node in converted.get_ops():
            if node.get_type_name() == "LeakyRelu" or node.get_type_name() == "PRelu":
                node.output(0).replace(node.input_value(0))
        return converted

    network = upscaler.load(model)
    network.set_weights([np.random.default_rng(0).normal(0, 0.1, w.shape) for w in network.get_weights()])
    network.save(changed := cache.parent / "changed.keras")
    assert type(load(changed)) is OpenVINOUpscaler
    shutil.rmtree(cache)
    monkeypatch.setattr(openvino, "convert_model", wrong)
    assert type(load(changed)) is upscaler.Upscaler
    with pytest.raises(InputError, match="its result differs by"):
        load(changed, engine="openvino")


def test_a_blend_is_computed_and_not_kept(photo, cache):
    arguments = "srgan-x2", "float32", "auto", 0.5, "srresnet-x2"
    network = load(*arguments)
    assert type(network) is OpenVINOUpscaler
    wanted = upscaler.load_blended("srgan-x2", "float32", 0.5, "srresnet-x2").upscale(photo[:20, :20])
    assert np.abs(network.upscale(photo[:20, :20]).astype(int) - wanted).max() <= 1
    assert not cache.exists()


def test_tensorflow_is_imported_once_a_network(run_command, model, photo, tmp_path):
    write_picture(tmp_path / "lr.png", photo[:20, :20])
    program = ("import sys; from superres import upscale; sys.argv = ['upscale', *sys.argv[1:]]; "
               "upscale.cli(); print({'tensorflow', 'keras'} & set(sys.modules))")
    outputs = [run_command("-c", program, model, tmp_path / "lr.png", "-o", tmp_path / f"out{i}").stdout
               for i in range(2)]
    assert "tensorflow" in outputs[0]
    assert outputs[1].endswith("1 upscaled, 0 failed\nset()\n")
    first, second = (read_picture(tmp_path / f"out{i}" / "lr_x2.png").pixels for i in range(2))
    np.testing.assert_array_equal(first, second)


def test_another_network_of_the_same_name_is_another(tmp_path, model, photo):
    path = tmp_path / "network.keras"
    shutil.copy(model, path)
    before = load(path).upscale(photo[:20, :20])
    network = upscaler.load(path)
    network.set_weights([w + 0.05 for w in network.get_weights()])
    network.save(path)
    assert np.abs(load(path).upscale(photo[:20, :20]).astype(int) - before).max() > 5


@pytest.mark.parametrize("damage", ["cut", "a file"])
def test_a_damaged_cache_is_made_anew(model, cache, damage):
    load(model)
    (folder,) = cache.iterdir()
    if damage == "cut":
        os.truncate(folder / "network.bin", 3)
    else:
        shutil.rmtree(folder)
        folder.write_text("")
    assert type(load(model)) is OpenVINOUpscaler
    if damage != "a file":
        assert engine._kept(folder)


def test_without_a_cache_networks_are_converted_each_time(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SUPERRES_CACHE", str(tmp_path / "file"))
    assert type(load(model)) is OpenVINOUpscaler


def test_the_cache_keeps_what_was_used_last(model, cache, monkeypatch):
    monkeypatch.setattr(engine, "KEPT", 2)
    load(model)
    (first,) = cache.iterdir()
    older, foreign = cache / f"0-{32 * 'a'}", cache / "photographs"
    for folder in (older, foreign):  # a cache may be where others keep their things
        shutil.copytree(first, folder)
        os.utime(folder, (0, 0))
    load("lapsrn-x2")
    assert len(list(cache.iterdir())) == 3
    assert first.is_dir()
    assert foreign.is_dir()
    assert not older.exists()


def test_the_commands_take_an_engine(call, photo, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    write_picture(tmp_path / "in" / "lr.png", photo[:64, :64])
    made = []
    for name in ("tensorflow", "openvino"):
        call(upscale.main, "lapsrn-x2", tmp_path / "in", "-o", tmp_path / name, "--engine", name)
        made.append(read_picture(tmp_path / name / "lr_x2.png").pixels.astype(int))
        call(evaluate.main, "lapsrn-x2", "--data", tmp_path / "in", "--engine", name)
    assert np.abs(made[0] - made[1]).max() <= 1
    tables = capsys.readouterr().out
    assert tables.count("mean") == 2
    with pytest.raises(SystemExit):
        call(upscale.main, "srmap-x4", tmp_path / "in", "-o", tmp_path / "x", "--engine", "openvino")
    assert "without noise" in capsys.readouterr().err


def test_threads_do_not_meet(both, photo):
    network = both["lapsrn-x2"][0]
    pictures = [photo[i : i + 20 + i, : 30 - i] for i in range(12)]
    wanted = [network.upscale(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        for sr, alone in zip(pool.map(network.upscale, pictures), wanted, strict=True):
            np.testing.assert_array_equal(sr, alone)


def test_too_large_a_picture_at_once_is_a_memory_error(both, monkeypatch):
    network = both["lapsrn-x2"][0]

    class Full:
        def create_infer_request(self):
            raise RuntimeError("Exception: std::bad_alloc")

    monkeypatch.setattr(network, "_compiled", Full())
    monkeypatch.setattr(network, "_idle", [])
    with pytest.raises(MemoryError):
        network.upscale(np.zeros((20, 20, 3), "uint8"))
