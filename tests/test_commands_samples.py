"""The commands with networks of one size, which draw samples, run as a user runs them."""

import json
from functools import partial

import keras
import numpy as np
import pytest
from test_pixelcnn import tiny
from test_sampler import softmax

from superres import evaluate, upscale
from superres.datasets.catalogue import Example, load
from superres.datasets.corners import corner_count
from superres.datasets.degradations import imresize
from superres.datasets.pictures import read_picture, write_picture
from superres.datasets.thumbnails import Thumbnails, thumbnail
from superres.errors import InputError
from superres.metrics import consistency, diversity, ms_ssim, psnr, ssim
from superres.metrics.thumbnails import evaluate_thumbnails, likelihood, sample_quality
from superres.models import upscaler
from superres.models.pixel_recursive import conditioning_network, pixel_recursive, prior_network
from superres.models.sampler import Sampler
from superres.models.upscaler import at_precision


def network_of(scale, channels, norm="batch"):
    return pixel_recursive(
        conditioning_network(8, scale, channels, 4, 1, norm, hidden=3, initializer="he_normal"),
        prior_network(8 * scale, channels, 6, 1, head=12, initializer="he_normal"))


def saved(network, folder):
    network.save(folder / "network.keras")
    return folder / "network.keras"


@pytest.fixture(scope="module")
def rgb(tmp_path_factory):
    """8 x 8 -> 32 x 32 RGB."""
    keras.utils.set_random_seed(0)
    return saved(network_of(4, 3), tmp_path_factory.mktemp("rgb"))


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """8 x 8 -> 16 x 16 grey."""
    keras.utils.set_random_seed(0)
    return saved(network_of(2, 1), tmp_path_factory.mktemp("grey"))


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    """8 x 8 -> 16 x 16 RGB, means."""
    keras.utils.set_random_seed(0)
    network = conditioning_network(8, 2, 3, 4, 1, head="gaussian", initializer="he_normal")
    return saved(network, tmp_path_factory.mktemp("regression"))


@pytest.fixture
def folder(tmp_path, photo):
    """8 x 8, a larger picture, a grey one, and a damaged one."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_picture(folder / "a_small.png", photo[40:48, 50:58])
    write_picture(folder / "b_large.png", photo)
    write_picture(folder / "c_grey.png", photo[:20, :30, :1])
    (folder / "d_cut.png").write_bytes((folder / "b_large.png").read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def faces(tmp_path_factory, photos):
    """A folder of seven pictures, as high as wide as CelebA's."""
    folder = tmp_path_factory.mktemp("faces")
    for i in range(7):
        write_picture(folder / f"{i}.png", photos["astronaut"][30 * i : 30 * i + 109, 40 * i : 40 * i + 89])
    return folder


@pytest.fixture(autouse=True)
def _without_xla(monkeypatch):
    """XLA takes seconds to compile."""
    monkeypatch.setattr(upscaler, "Sampler", partial(Sampler, jit_compile=False))


# ------------------------------------------------------------------ upscale


def test_upscale_does_the_good_files_and_counts_the_bad(run_command, rgb, folder, tmp_path):
    result = run_command("upscale.py", rgb, folder, "-o", tmp_path / "out")
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "3 upscaled, 1 failed"
    assert result.stderr.startswith(f"failed: {folder / 'd_cut.png'}: not a readable picture")
    assert result.stderr.count("\n") == 1
    made = {path.name: read_picture(path).pixels.shape for path in (tmp_path / "out").iterdir()}
    assert made == dict.fromkeys(["a_small_x4.png", "b_large_x4.png", "c_grey_x4.png"], (32, 32, 3))


def test_a_grey_network_makes_grey_pictures(draw, grey, folder):
    drawn = draw(grey, folder / "[a-c]*.png")
    assert {name: picture.shape for name, picture in drawn.items()} == dict.fromkeys(
        ["a_small_x2.png", "b_large_x2.png", "c_grey_x2.png"], (16, 16, 1))


@pytest.mark.parametrize("crop", ["centre", "face"])
def test_of_a_larger_picture_a_square_is_upscaled(draw, grey, folder, photo, crop):
    lr = thumbnail(photo, 8, 1, crop)
    expected = Sampler(upscaler.load(grey), jit_compile=False).sample(lr[None], seed=3)[0, 0]
    (drawn,) = draw(grey, folder / "b_large.png", "--crop", crop, "--seed", 3).values()
    np.testing.assert_array_equal(drawn, expected)


def test_samples_are_numbered_and_differ(draw, grey, folder):
    drawn = draw(grey, folder / "a_small.png", folder / "b_large.png", "--samples", 3)
    assert list(drawn) == [f"{stem}_x2_{i}.png" for stem in ("a_small", "b_large") for i in (1, 2, 3)]
    assert len(np.unique([picture.ravel() for picture in drawn.values()], axis=0)) == 6


def test_the_seed_decides(draw, grey, folder):
    options = (grey, folder / "a_small.png", "--samples", 2)
    first, again, other = (list(draw(*options, "--seed", seed, out=out).values())
                           for seed, out in ((5, "first"), (5, "again"), (6, "other")))
    np.testing.assert_array_equal(first, again)
    assert all((one != two).any() for one in first for two in other)


def test_at_infinite_temperature_nothing_is_left_to_chance(draw, grey, folder):
    options = (grey, folder / "a_small.png", "--temperature", "inf", "--samples", 2)
    one, two = (list(draw(*options, "--seed", seed, out=str(seed)).values()) for seed in (1, 2))
    assert len(np.unique([picture.ravel() for picture in one + two], axis=0)) == 1


@pytest.mark.parametrize("main", [upscale.main, evaluate.main])
@pytest.mark.parametrize(("option", "value"), [("--samples", "0"), ("--temperature", "-1"), ("--seed", "-1")])
def test_bad_settings_of_samples_are_one_line(call, grey, folder, tmp_path, capsys, main, option, value):
    rest = [folder, "-o", tmp_path / "out"] if main is upscale.main else ["--data", "corners"]
    with pytest.raises(SystemExit) as stopped:
        call(main, grey, *rest, option, value)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {option.strip('-')}: must be ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("main", [upscale.main, evaluate.main])
def test_networks_of_one_size_have_no_ensemble(call, grey, folder, tmp_path, capsys, main):
    rest = [folder, "-o", tmp_path / "out"] if main is upscale.main else ["--data", "corners"]
    with pytest.raises(SystemExit):
        call(main, grey, *rest, "--ensemble")
    assert capsys.readouterr() == (
        "", "error: ensemble: only for networks of any size without noise, and pixel_recursive is none\n")


# ------------------------------------------------------------------ evaluate


def test_evaluate_measures_held_out_pictures(run_command, rgb, faces, tmp_path):
    result = run_command("evaluate.py", rgb, "--data", faces, "--held-out", 3, "--crop", "face",
                         "--samples", 2, "--json", tmp_path / "result.json",
                         "--figure", tmp_path / "figure.png")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    figures = json.loads((tmp_path / "result.json").read_text())
    assert list(figures["likelihood"]) == ["bits", "bits_a", "bits_b"]
    assert all(4 < bits < 40 for bits in figures["likelihood"].values())
    assert list(figures["methods"]) == ["network", "bicubic", "nearest neighbour"]
    network, bicubic, neighbour = figures["methods"].values()
    assert list(network) == ["psnr", "ssim", "ms_ssim", "consistency", "diversity"]
    assert network["diversity"] > 1

    known, held_out = (Thumbnails(load(faces, side, held_out=3), 8, 4, crop="face")
                       for side in ("train", "test"))
    assert held_out.names == ["0", "3", "6"]
    for measure in (psnr, ssim, ms_ssim):
        scores = [measure(hr, imresize(lr, 4)) for lr, hr in zip(held_out.lr, held_out.hr, strict=True)]
        assert bicubic[measure.__name__] == pytest.approx(np.mean(scores))
        alike = [((known.lr.astype(int) - lr) ** 2).mean((1, 2, 3)).argmin() for lr in held_out.lr]
        scores = [measure(hr, known.hr[i]) for hr, i in zip(held_out.hr, alike, strict=True)]
        assert neighbour[measure.__name__] == pytest.approx(np.mean(scores))
    assert f"{network['psnr']:.3f}" in result.stdout
    # Three pictures: LR, two samples, bicubic, nearest neighbour, HR.
    assert read_picture(tmp_path / "figure.png").pixels.shape == (3 * 100, 6 * 100, 3)


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<?xml"), ("a.PDF", b"%PDF"), ("a.JPG", b"\xff\xd8")])
def test_a_figure_is_what_its_suffix_says(call, grey, tmp_path, name, start):
    call(evaluate.main, grey, "--data", "corners", "--limit", 2, "--figure", tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_evaluate_on_corners_counts_digits(call, grey, tmp_path, capsys):
    call(evaluate.main, grey, "--data", "corners", "--limit", 5, "--samples", 2,
         "--json", tmp_path / "a.json")
    out, err = capsys.readouterr()
    assert err == ""
    assert "one_digit" in out
    assert "consistency" not in out
    figures = json.loads((tmp_path / "a.json").read_text())
    assert list(figures["methods"]) == ["network"]
    pictures = Thumbnails(load("corners", "test", 5), 8, 2, channels=1, corners=True)
    drawn = Sampler(upscaler.load(grey), jit_compile=False).sample(pictures.lr, samples=2)
    one = np.mean([corner_count(samples, pictures.lr) == 1 for samples in drawn])
    assert figures["methods"]["network"]["one_digit"] == pytest.approx(one)


def test_evaluate_measures_the_error_of_a_regression(call, regression, faces, tmp_path, capsys):
    call(evaluate.main, regression, "--data", faces, "--json", tmp_path / "a.json")
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("mean square error: ")
    figures = json.loads((tmp_path / "a.json").read_text())
    pictures = Thumbnails(load(faces), 8, 2)
    mean = upscaler.load(regression).predict_on_batch(pictures.lr / np.float32(255))
    error = np.square(mean - pictures.hr / 255).mean()
    assert figures["likelihood"] == {"mse": pytest.approx(error, rel=1e-4)}
    assert list(figures["methods"]) == ["network", "bicubic"]


@pytest.mark.parametrize(("options", "message"), [
    (["--data", "corners", "--held-out", 3], "--held-out: takes a number from 2 on, and --data a folder"),
    (["--held-out", 1], "--held-out: takes a number from 2 on"),
    (["--held-out", 0], "--held-out: takes a number from 2 on"),
    (["--degradation", "realworld"], "degradation: only for networks of any size"),
    (["--data", "corners"], "expected LR of 8 x 8 and HR of 32 x 32, found 8 x 8 and 16 x 16"),
])
def test_evaluate_refuses_what_it_cannot_measure(call, rgb, faces, capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        call(evaluate.main, rgb, *([] if "--data" in options else ["--data", faces]), *options)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


# ------------------------------------------------------------------ networks


def test_networks_of_one_size_are_loaded(rgb, grey, regression):
    for path, scale, channels in ((rgb, 4, 3), (grey, 2, 1), (regression, 2, 3)):
        network, original = upscaler.load(path), keras.saving.load_model(path, compile=False)
        assert (network.lr_size, network.scale) == (8, scale)
        assert network.inputs[0].shape == (None, 8, 8, channels)
        for one, two in zip(network.get_weights(), original.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)


def test_other_networks_of_two_pictures_or_of_none_are_refused(tmp_path):
    a, b = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    vector, five = keras.Input((8,)), keras.Input((8, 8, 5))
    for network in (keras.Model([a, b], a + b, name="sum"),
                    keras.Model(vector, vector * 2), keras.Model(five, five * 2)):
        with pytest.raises(InputError, match=r"network\.keras: .*not a network from images of 1 or 3"):
            upscaler.load(saved(network, tmp_path))


@pytest.mark.parametrize("norm", ["batch", "spade"])
def test_float32_copy_of_a_network_trained_in_bfloat16(rng, norm):
    inputs = [rng.random((2, 8, 8, 3), "float32"), rng.random((2, 16, 16, 3), "float32")]
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    trained = network_of(2, 3, norm)
    copy = at_precision(trained, "float32")
    keras.mixed_precision.set_dtype_policy("float32")
    plain = network_of(2, 3, norm)
    plain.set_weights(trained.get_weights())
    for one, two in zip(trained.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    passive = keras.Model, keras.layers.InputLayer  # they compute nothing
    for network, precisions in ((copy, {"float32"}), (trained, {"bfloat16"}), (plain, {"float32"})):
        computing = [layer for layer in network._flatten_layers() if not isinstance(layer, passive)]
        assert len(computing) > 15
        assert {layer.compute_dtype for layer in computing} == precisions
    for expected, actual in zip(plain(inputs), copy(inputs), strict=True):
        assert keras.backend.standardize_dtype(actual.dtype) == "float32"
        np.testing.assert_array_equal(actual, expected)


def test_bfloat16_copy_makes_float32_logits_near_those_of_float32(rng):
    inputs = [rng.random((2, 3, 3, 3), "float32"), rng.random((2, 6, 6, 3), "float32")]
    network = tiny()
    copy = at_precision(network, "bfloat16")
    for one, two in zip(network.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    for exact, quick in zip(network(inputs), copy(inputs), strict=True):
        assert keras.backend.standardize_dtype(quick.dtype) == "float32"
        assert 0 < np.abs(quick - exact).max() < 0.05 * np.abs(exact).max()


@pytest.fixture
def three(rng):
    """Three pairs of noise, 8 x 8 and 16 x 16, grey."""
    return Thumbnails([Example(str(i), *(rng.integers(0, 256, (size, size, 1), "uint8") for size in (16, 8)))
                       for i in range(3)], 8, 2, channels=1)


def test_bits_are_of_both_networks_and_of_each_and_every_picture_counts_alike(three):
    network = network_of(2, 1)
    logits = network.predict_on_batch([x / np.float32(255) for x in (three.lr, three.hr)])
    found = likelihood(network, three, batch=2)
    for key, z in zip(("bits", "bits_a", "bits_b"), (sum(logits), *logits), strict=True):
        p = np.take_along_axis(softmax(z), three.hr[..., None].astype(int), -1)
        assert found[key] == pytest.approx(-np.log2(p).mean(), rel=1e-4)


def test_samples_are_held_against_lr_and_one_another(three, rng):
    drawn = rng.integers(0, 256, (2, 3, 16, 16, 1), "uint8")
    found = sample_quality(three, drawn)
    assert found["diversity"] == pytest.approx(np.mean([diversity(drawn[:, i]) for i in range(3)]))
    assert found["consistency"] == pytest.approx(np.mean([
        consistency(lr, sr) for samples in drawn for lr, sr in zip(three.lr, samples, strict=True)]))


def test_an_independent_network_is_measured_in_bits_and_as_it_was_asked_to_draw(three):
    network = upscaler.upscaler(conditioning_network(8, 2, 1, 4, 1, initializer="he_normal"))
    p = softmax(network.predict_on_batch(three.lr / np.float32(255)))
    p = np.take_along_axis(p, three.hr[..., None].astype(int), -1)
    assert likelihood(network, three, batch=2) == {"bits": pytest.approx(-np.log2(p).mean(), rel=1e-4)}
    _, drawn = evaluate_thumbnails(network, three, samples=2, temperature=3.0, seed=5)
    expected = Sampler(network, jit_compile=False).sample(three.lr, 3.0, 5, 2)
    np.testing.assert_array_equal(drawn["network"], expected)
