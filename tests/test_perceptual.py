"""Distances that networks see, colour errors, and networks blended with others."""

import importlib.util
import json
import sys

import h5py
import keras
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from test_pixelcnn import tiny as pixel_recursive
from test_srgan import drawn

from superres import command_line, evaluate, upscale
from superres.datasets.degradations import imresize
from superres.datasets.pictures import read_picture, to_uint8, write_picture
from superres.errors import InputError
from superres.metrics import colour_error, report
from superres.metrics.perceptual import LPIPS, SqueezeNetDistance
from superres.models.lapsrn import lapsrn
from superres.models.srgan import generator
from superres.models.upscaler import load, load_blended

# Channels of SqueezeNet 1.1: of each fire module, what it gets, squeezes to, and expands to, twice.
FIRES = {2: (64, 16, 64), 3: (128, 16, 64), 4: (128, 32, 128), 5: (256, 32, 128), 6: (256, 48, 192),
         7: (384, 48, 192), 8: (384, 64, 256), 9: (512, 64, 256)}


@pytest.fixture(scope="module")
def arrays():
    """Random weights of SqueezeNet: name of a layer -> (kernel, bias)."""
    rng = np.random.default_rng(0)
    shapes = {"conv1": (3, 3, 3, 64)}
    for number, (given, squeezed, expanded) in FIRES.items():
        shapes[f"fire{number}/squeeze1x1"] = (1, 1, given, squeezed)
        shapes[f"fire{number}/expand1x1"] = (1, 1, squeezed, expanded)
        shapes[f"fire{number}/expand3x3"] = (3, 3, squeezed, expanded)
    return {name: (rng.normal(0, np.prod(shape[:3]) ** -0.5, shape).astype("float32"),
                   rng.normal(0, 0.1, shape[3]).astype("float32")) for name, shape in shapes.items()}


def write(path, arrays, nested=False):
    """As Keras writes them, directly or below the layer's name once more."""
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            group = file.create_group(f"{name}/{name}" if nested else name)
            for key, array in zip(("kernel:0", "bias:0"), values, strict=False):
                group[key] = array
    return path


@pytest.fixture(scope="module")
def squeezenet(arrays, tmp_path_factory):
    return write(tmp_path_factory.mktemp("squeezenet") / "weights.h5", arrays)


@pytest.fixture(scope="module")
def distance(squeezenet):
    return SqueezeNetDistance(squeezenet)


@pytest.fixture
def pair(photo, rng):
    """A photograph of 72 x 80 and a noisy one, uint8."""
    hr = photo[:72, :80]
    return hr, np.clip(hr + rng.normal(0, 20, hr.shape), 0, 255).astype("uint8")


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a `main` with a command line in this process: the status, what it printed, its errors."""

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        try:
            command_line.command(main)
            status = 0
        except SystemExit as stopped:
            status = stopped.code
        return status, *capsys.readouterr()

    return run


def assert_one_line_error(result, *parts):
    status, out, err = result
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(part in err for part in parts)


# ------------------------------------------------------------------ SqueezeNet distance


def convolution(x, kernel, bias, stride=1):
    k = len(kernel)
    x = np.pad(x, [(k // 2, k // 2)] * 2 + [(0, 0)]) if stride == 1 else x
    windows = sliding_window_view(x, (k, k), (0, 1))[::stride, ::stride]
    return np.maximum(np.tensordot(windows, kernel.astype("float64"), ((2, 3, 4), (2, 0, 1))) + bias, 0)


def features(picture, arrays):
    """SqueezeNet 1.1 by hand, of one picture in [0, 255]: the maps that LPIPS compares."""
    x = picture[..., ::-1].astype("float64") - (104, 117, 123)
    x = convolution(x, *arrays["conv1"], stride=2)
    maps = {1: x}
    for number in FIRES:
        if number in (2, 4, 6):
            x = sliding_window_view(x, (3, 3), (0, 1))[::2, ::2].max((-1, -2))
        x = convolution(x, *arrays[f"fire{number}/squeeze1x1"])
        x = np.concatenate([convolution(x, *arrays[f"fire{number}/expand{k}x{k}"]) for k in (1, 3)], -1)
        maps[number] = x
    return [maps[number] for number in (1, 3, 5, 6, 7, 8, 9)]


def test_squeezenet_distance_is_its_formula(pair, arrays, distance):
    expected = 0
    for maps in zip(*(features(picture, arrays) for picture in pair), strict=True):
        one, two = (x / np.sqrt((x**2).sum(-1, keepdims=True)) for x in maps)
        expected += ((one - two) ** 2).sum(-1).mean()
    assert distance(*pair) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.01


def test_squeezenet_distance_is_a_distance(pair, distance):
    hr, noisy = pair
    assert distance(hr, hr) < 1e-9  # of the two in a batch, a processor may round one otherwise
    assert distance(hr, noisy) == pytest.approx(distance(noisy, hr), rel=1e-5)
    assert distance(hr, noisy) > distance(hr, to_uint8(hr / 255 * 0.9 + noisy / 255 * 0.1)) > 0


def test_squeezenet_distance_of_pictures_of_any_kind(pair, distance):
    value = distance(*pair)
    assert distance(*(picture / np.float32(255) for picture in pair)) == pytest.approx(value, rel=1e-4)
    grey = [picture[..., :1] for picture in pair]
    assert distance(*grey) == pytest.approx(distance(*(x.repeat(3, -1) for x in grey)), rel=1e-6)
    small = [picture[:5, :30] for picture in pair]
    grown = [np.pad(x, ((0, 59), (0, 34), (0, 0)), "symmetric") for x in small]
    assert distance(*small) == pytest.approx(distance(*grown), rel=1e-6)
    assert distance(*(picture[:1, :1] for picture in pair)) > 0


@pytest.mark.parametrize("size", [(72, 80), (5, 30)])
def test_a_distance_comes_with_where_pictures_differ(pair, distance, size, monkeypatch):
    pair, runs = [picture[: size[0], : size[1]] for picture in pair], []
    predict = distance.features.predict_on_batch
    monkeypatch.setattr(distance.features, "predict_on_batch", lambda batch: runs.append(1) or predict(batch))
    value, differences = distance.with_map(*pair)
    assert len(runs) == 1
    assert value == pytest.approx(distance(*pair), rel=1e-6)
    assert differences.shape == size
    assert differences.mean() == pytest.approx(value, rel=0.3)  # resized, it is not quite the same


def test_pictures_differ_where_the_map_says(pair, distance):
    hr, noisy = pair
    half = hr.copy()
    half[:, 40:] = noisy[:, 40:]
    differences = distance.with_map(hr, half)[1]
    assert differences[:, 60:].mean() > 3 * differences[:, :20].mean()


def test_squeezenet_weights_may_be_nested_as_keras_nests_them(arrays, distance, tmp_path):
    nested = SqueezeNetDistance(write(tmp_path / "nested.h5", arrays, nested=True))
    for one, two in zip(nested.features.get_weights(), distance.features.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("kind", ["none", "text", "cut", "other", "lacks", "shape", "no bias", "flat"])
def test_wrong_squeezenet_files_are_named(arrays, squeezenet, tmp_path, kind):
    path = tmp_path / "wrong.h5"
    kernel, bias = arrays["conv1"]
    if kind in ("text", "cut"):
        path.write_bytes(b"no weights" if kind == "text" else squeezenet.read_bytes()[:5000])
    elif kind == "other":
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save_weights(tmp_path / "o.weights.h5")
        path = tmp_path / "o.weights.h5"
    elif kind == "flat":
        with h5py.File(path, "w") as file:
            file["conv1"] = kernel
    elif kind != "none":
        wrong = {"lacks": {k: v for k, v in arrays.items() if k != "fire7/expand3x3"},
                 "shape": {**arrays, "conv1": (kernel[..., :63], bias[:63])},
                 "no bias": {**arrays, "conv1": (kernel,)}}
        write(path, wrong[kind])
    with pytest.raises(InputError) as caught:
        SqueezeNetDistance(path)
    expected = "no such file of SqueezeNet weights" if kind == "none" else "not Keras's SqueezeNet 1.1"
    assert str(caught.value).startswith(f"{path}: {expected}")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ LPIPS


@pytest.mark.parametrize("package", ["torch", "lpips"])
def test_lpips_names_the_package_that_it_needs(monkeypatch, package):
    monkeypatch.setattr("superres.metrics.perceptual.find_spec",
                        lambda name: None if name == package else "there")
    with pytest.raises(InputError, match=f"--lpips: needs the package {package}; pip install torch lpips"):
        LPIPS("alexnet.pth")


def test_wrong_lpips_files_are_named(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    monkeypatch.setattr("superres.metrics.perceptual.find_spec", lambda name: "there")
    (tmp_path / "text.pth").write_text("no weights")
    for name, message in (("none", "no such file; LPIPS needs torchvision's"), ("text", "not torchvision's")):
        with pytest.raises(InputError, match=rf"{name}\.pth: {message}"):
            LPIPS(tmp_path / f"{name}.pth")


def test_lpips_refuses_a_backbone_that_fits_its_heads_but_is_another(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("lpips")
    numbers = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)  # VGG19's
    widths = (3, 64, 64, 128, 128, *4 * [256], *8 * [512])
    state = {}
    for number, before, width in zip(numbers, widths, (*widths[1:], 512), strict=True):
        state[f"features.{number}.weight"] = torch.zeros(width, before, 3, 3)
        state[f"features.{number}.bias"] = torch.zeros(width)
    torch.save(state, tmp_path / "vgg19.pth")
    with pytest.raises(InputError, match=r"vgg19\.pth: not torchvision's AlexNet or VGG16"):
        LPIPS(tmp_path / "vgg19.pth")


@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_lpips_is_that_of_the_package(pair, tmp_path, kind):
    torch, lpips = pytest.importorskip("torch"), pytest.importorskip("lpips")
    torch.manual_seed(0)
    reference, state = lpips.LPIPS(net=kind, pnet_rand=True, verbose=False).eval(), {}
    for name, value in reference.net.named_parameters():
        _, number, part = name.split(".")  # slice1.0.weight
        state[f"features.{number}.{part}"] = value.detach()
    torch.save(state, tmp_path / "weights.pth")
    tensors = [torch.tensor(x.transpose(2, 0, 1)[None] / 127.5 - 1).float() for x in pair]
    with torch.no_grad():
        expected = float(reference(*tensors))
    ours = LPIPS(tmp_path / "weights.pth")
    assert ours(*pair) == pytest.approx(expected, rel=1e-4)
    assert ours(*(x / np.float32(255) for x in pair)) == pytest.approx(expected, rel=1e-4)
    assert ours(pair[0], pair[0]) < 1e-9 < expected
    assert ours(*(x[:9, :40, :1] for x in pair)) > 0  # small and grey


# ------------------------------------------------------------------ colour error


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_error_of_a_constant_shift_is_the_shift(photo, channels):
    hr = np.clip(photo[..., :channels], 10, 240)
    assert colour_error(hr, hr) == 0
    for shift in (10, -10):
        assert colour_error(hr, (hr.astype(int) + shift).astype("uint8")) == pytest.approx(10)
    tinted = (hr + np.array((30, -30, 0)[:channels])) / 255  # each channel counts by itself
    assert colour_error(hr, tinted) == pytest.approx({1: 30, 3: 20}[channels])


def test_colour_error_leaves_texture_out(photo, rng):
    hr = photo.astype("float64") / 255
    noise = rng.choice([-10, 10], hr.shape) / 255
    assert np.abs(noise).mean() * 255 == pytest.approx(10)
    assert 0 < colour_error(hr, hr + noise) < 10 / 5


def test_colour_error_looks_where_hr_is_smooth(rng):
    # The left quarter is flat, the rest is noise; means over 9 x 9 see 4 pixels further.
    hr = rng.random((40, 80, 1))
    hr[:, :28] = 0.5
    smooth, rough = hr.copy(), hr.copy()
    smooth[:, :28] += 8 / 255
    rough[:, 28:] += 8 / 255
    assert colour_error(hr, smooth) == pytest.approx(8, rel=0.05)
    assert colour_error(hr, rough) == pytest.approx(0, abs=0.4)


def test_colour_error_is_its_definition(photo, rng):
    hr, sr = photo[:24, :20] / 255, rng.random((24, 20, 3))

    def mean(x):  # over 9 x 9, continued symmetrically
        padded = np.pad(x, ((4, 4), (4, 4)), "symmetric")
        return np.array([[padded[i : i + 9, j : j + 9].mean() for j in range(20)] for i in range(24)])

    y = hr @ np.array([65.481, 128.553, 24.966]) / 255
    variance = mean(y**2) - mean(y) ** 2
    difference = np.mean([np.abs(mean((hr - sr)[..., c])) for c in range(3)], axis=0)
    quarter = np.argsort(variance.ravel())[: 24 * 20 // 4]
    assert colour_error(hr, sr) == pytest.approx(255 * difference.ravel()[quarter].mean(), rel=1e-6)


# ------------------------------------------------------------------ blends and commands


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Two generators of one structure, and one of another: files."""
    folder = tmp_path_factory.mktemp("networks")
    for name, blocks, size in (("one", 1, 0.1), ("two", 1, 0.2), ("other", 2, 0.1)):
        drawn(generator(2, blocks=blocks, filters=4), size).save(folder / f"{name}.keras")
    return folder / "one.keras", folder / "two.keras", folder / "other.keras"


@pytest.mark.parametrize("blend", [0, 0.25, 0.5, 1])
def test_a_blend_has_the_weights_between(networks, blend):
    one, two, _ = networks
    blended = load_blended(one, blend=blend, other=two)
    pairs = zip(*(load(path).get_weights() for path in (one, two)), strict=True)
    for found, (w, v) in zip(blended.get_weights(), pairs, strict=True):
        np.testing.assert_allclose(found, (1 - blend) * w + blend * v, rtol=1e-6)
        if blend in (0, 1):
            np.testing.assert_array_equal(found, v if blend else w)
    assert blend == 0 or (found != w).any()  # of the last layer


def test_a_blend_computes_in_the_precision_asked_for(networks):
    plain, mixed = (load_blended(networks[0], precision, 0.5, networks[1])
                    for precision in ("float32", "bfloat16"))
    assert mixed.get_layer("last").compute_dtype == "bfloat16"
    for one, two in zip(plain.get_weights(), mixed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("command", ["upscale", "evaluate"])
@pytest.mark.parametrize(("arguments", "message"), [
    (["--blend", "1.1"], "--blend: must lie between 0 and 1, not 1.1"),
    (["--blend", "nan"], "--blend: must lie between 0 and 1, not nan"),
    (["--blend", "0.5"], "--blend: needs --blend-with"),
    (["--blend", "0.5", "--blend-with", "none.keras"], "none.keras: no such model file"),
    (["--blend-with", "OTHER"], "other.keras has not the structure of "),
])
def test_impossible_blends_are_one_line_errors(call, networks, photo, tmp_path, command, arguments, message):
    write_picture(tmp_path / "a.png", photo[:16, :16])
    rest = ([upscale.main, networks[0], tmp_path / "a.png", "-o", tmp_path / "out"] if command == "upscale"
            else [evaluate.main, networks[0], "--data", tmp_path])
    arguments = [networks[2] if argument == "OTHER" else argument for argument in arguments]
    assert_one_line_error(call(*rest, *arguments), message)


@pytest.mark.parametrize("blend", [0.0, 0.5, 1.0])
def test_upscale_and_evaluate_blend(call, networks, photo, tmp_path, blend):
    one, two, _ = networks
    hr = photo[:32, :40]
    (tmp_path / "data").mkdir()
    write_picture(tmp_path / "data" / "a.png", hr)
    arguments = "--blend", blend, "--blend-with", two
    blended = load_blended(one, "float32", blend, two)
    status, *_ = call(upscale.main, one, tmp_path / "data", "-o", tmp_path, *arguments)
    assert status == 0
    expected = blended.upscale(hr).astype(int)
    assert np.abs(read_picture(tmp_path / "a_x2.png").pixels - expected).max() <= 1
    result = tmp_path / "result.json"
    status, *_ = call(evaluate.main, one, "--data", tmp_path / "data", "--json", result, *arguments)
    assert status == 0
    found = json.loads(result.read_text())["mean"]
    expected = report.evaluate(blended, [("a", imresize(hr, 0.5), hr)])["mean"]
    assert {**found, "seconds": 0, "mpixel_per_second": 0} == pytest.approx(
        {**expected, "seconds": 0, "mpixel_per_second": 0}, rel=1e-3)


def test_evaluate_measures_the_squeezenet_distance(call, squeezenet, distance, photo, tmp_path):
    lapsrn(2, filters=4, depth=1).save(tmp_path / "network.keras")
    pictures = {"colour": photo[:32, :40], "grey": photo[32:64, :40, :1]}
    (tmp_path / "data").mkdir()
    for name, picture in pictures.items():
        write_picture(tmp_path / "data" / f"{name}.png", picture)
    status, out, err = call(evaluate.main, tmp_path / "network.keras", "--data", tmp_path / "data",
                            "--squeezenet", squeezenet, "--json", tmp_path / "result.json")
    assert (status, err) == (0, "")
    rows = json.loads((tmp_path / "result.json").read_text())["pictures"]
    assert [row["name"] for row in rows] == list(pictures)
    for row, hr in zip(rows, pictures.values(), strict=True):
        bicubic = distance(hr, imresize(imresize(hr, 0.5), 2))
        assert row["bicubic"]["squeezenet_distance"] == pytest.approx(bicubic, rel=1e-4)
        assert row["squeezenet_distance"] == pytest.approx(bicubic, rel=0.05)  # untrained, it is bicubic
        assert "lpips" not in row
    heading, *_, last = out.splitlines()
    assert heading.split()[-2:] == ["SqueezeNet*", "MP/s"]
    assert last == "* SqueezeNet distance, uncalibrated"
    assert f"{rows[0]['squeezenet_distance']:.4f}" in out.splitlines()[1]


@pytest.mark.parametrize("option", ["--squeezenet", "--lpips"])
def test_missing_weights_are_one_line_errors(call, networks, option):
    lacks = option == "--lpips" and not importlib.util.find_spec("lpips")
    message = "--lpips: needs the package" if lacks else "none: no such file"
    assert_one_line_error(call(evaluate.main, networks[0], option, "none"), message)


def test_networks_of_one_size_have_no_distances(call, squeezenet, tmp_path):
    pixel_recursive().save(tmp_path / "network.keras")
    result = call(evaluate.main, tmp_path / "network.keras", "--squeezenet", squeezenet)
    assert_one_line_error(result, "squeezenet: only for networks of any size")
