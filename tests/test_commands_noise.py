"""The commands, and exported models, with networks that take noise."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from superres import evaluate, export, upscale
from superres.datasets.degradations import degraded, imresize
from superres.datasets.pictures import read_picture, to_float, to_uint8, write_picture
from superres.errors import InputError
from superres.metrics import lr_psnr, quality, report
from superres.metrics.perceptual import diversity_score
from superres.models.srmap import generator
from superres.models.upscaler import load


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """x2, its noise as large as it may be."""
    keras.utils.set_random_seed(0)
    built = generator(2, stem=8, widths=(8, 8), blocks=(1,), initial_noise=0.5)
    rng = np.random.default_rng(0)
    for layer in built.layers:
        if layer.name.endswith(("conv2", "to_rgb")):
            layer.kernel.assign(rng.normal(0, 0.05, layer.kernel.shape))
    path = tmp_path_factory.mktemp("noisy") / "noisy.keras"
    built.save(path)
    return path


@pytest.fixture
def folder(tmp_path, photo):
    (tmp_path / "pictures").mkdir()
    write_picture(tmp_path / "pictures" / "a.png", photo[:40, :30])
    write_picture(tmp_path / "pictures" / "b.png", photo[:24, :28, :1])
    return tmp_path / "pictures"


class Distance:
    """Absolute differences, as a distance with a map."""

    def __call__(self, hr, sr):
        return float(np.abs(hr.astype(float) - sr).mean())

    def with_map(self, hr, sr):
        return self(hr, sr), np.abs(hr.astype(float) - sr).mean(-1)


# ------------------------------------------------------------------ upscale


def test_samples_are_those_of_consecutive_seeds(draw, network, folder):
    drawn = draw(network, folder, "--samples", 2, "--seed", 5)
    assert list(drawn) == [f"{name}_x2_{k}.png" for name in "ab" for k in (1, 2)]
    lr, loaded = read_picture(folder / "a.png").pixels, load(network)
    for k in (1, 2):
        expected = loaded.upscale(lr, temperature=1.0, seed=4 + k)
        np.testing.assert_array_equal(drawn[f"a_x2_{k}.png"], expected)
    (one,) = draw(network, folder / "a.png", "--seed", 6, out="one").values()
    np.testing.assert_array_equal(one, drawn["a_x2_2.png"])
    assert drawn["b_x2_1.png"].shape == (48, 56, 1)


def test_without_temperature_there_is_no_noise(draw, network, folder):
    one, two = (draw(network, folder / "a.png", "--temperature", 0, "--seed", seed, out=str(seed))["a_x2.png"]
                for seed in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_tiles_do_not_show(draw, network, folder):
    one, two = (draw(network, folder / "a.png", "--tile", tile, out=str(tile))["a_x2.png"].astype(int)
                for tile in (256, 16))
    assert np.abs(one - two).max() <= 1
    assert (one != two).mean() < 1e-3


def test_the_stochasticity_map_is_the_samples_deviation(draw, network, folder):
    drawn = draw(network, folder / "a.png", "--samples", 3, "--stochasticity")
    assert list(drawn) == ["a_x2_1.png", "a_x2_2.png", "a_x2_3.png", "a_x2_std.png"]
    deviation = np.std([drawn[f"a_x2_{k}.png"] for k in (1, 2, 3)], axis=0).mean(-1)
    found = drawn["a_x2_std.png"][..., 0].astype(float)
    inside = found < 255
    assert 0.98 <= inside.mean() < 1
    ratio = deviation[inside & (found > 20)] / found[inside & (found > 20)]
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=0.05)


def test_a_stochasticity_map_that_is_there_is_left_as_it_is(draw, network, folder):
    draw(network, folder / "a.png", "--samples", 2, "--stochasticity")
    (folder.parent / "out" / "a_x2_std.png").write_bytes((folder / "b.png").read_bytes())
    drawn = draw(network, folder / "a.png", "--samples", 3, "--stochasticity", "--skip-existing")
    assert "a_x2_3.png" in drawn
    np.testing.assert_array_equal(drawn["a_x2_std.png"], read_picture(folder / "b.png").pixels)


@pytest.mark.parametrize(("options", "message"), [
    (("--stochasticity",), "--stochasticity: needs --samples 2 or more"),
    (("--ensemble",), "ensemble: only for networks of any size without noise"),
    (("--temperature", "inf"), "temperature: must be finite, noise is multiplied by it"),
    (("--temperature", "-1"), "temperature: must be 0 or more"),
    (("--seed", "2147483647", "--samples", "2"), "seed: must be 0 or more and below 2^31"),
])
def test_bad_options_are_one_line(draw, network, folder, capsys, options, message):
    with pytest.raises(SystemExit):
        draw(network, folder / "a.png", *options)
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------ evaluate


def test_measures_are_means_over_the_samples(network, folder):
    pairs = list(degraded(evaluate.load(str(folder), "test"), 2, "bicubic"))
    loaded, distance = load(network), Distance()
    result = report.evaluate(loaded, pairs, {"lpips": distance}, samples=3, temperature=0.8, seed=4)
    faithful = []
    for (_, lr, hr), row in zip(pairs, result["pictures"], strict=True):
        drawn = [loaded.upscale(lr, temperature=0.8, seed=4 + k) for k in range(3)]
        scores = [quality(hr, sr, 2) for sr in drawn]
        for key in ("psnr_y", "ssim_y", "lr_psnr", "colour_error"):
            assert row[key] == pytest.approx(np.mean([score[key] for score in scores]))
        faithful.append([lr_psnr(hr, sr, 2) for sr in drawn])
        assert row["lr_psnr_worst"] == pytest.approx(min(faithful[-1]))
        errors = [np.mean((imresize(hr, 0.5) / 255 - imresize(sr, 0.5) / 255) ** 2) for sr in drawn]
        assert row["lr_psnr_pooled"] == pytest.approx(-10 * np.log10(np.mean(errors)))
        assert row["diversity_score"] == pytest.approx(
            diversity_score([distance.with_map(hr, sr)[1] for sr in drawn]))
        assert row["lpips"] == pytest.approx(np.mean([distance(hr, sr) for sr in drawn]))
        assert row["diversity_score"] > 1
        assert row["bicubic"]["lr_psnr_worst"] == row["bicubic"]["lr_psnr"]
    assert result["mean"]["lr_psnr_worst"] == pytest.approx(np.min(faithful))
    assert result["mean"]["lr_psnr"] == pytest.approx(np.mean(faithful))


def test_exact_pictures_leave_means_finite(photo):
    exact = quality(photo[:16, :16], photo[:16, :16], 2)
    most = 10 * np.log10(255**2 * 8 * 8 * 3)
    assert exact["lr_psnr"] == pytest.approx(most)
    rows = [{"lr_psnr": exact["lr_psnr"]}, {"lr_psnr": 60.0}]
    result = report.average(rows, drawn=True)
    assert result["lr_psnr"] == pytest.approx((most + 60) / 2)
    pooled = -10 * np.log10((1e-6 + 1 / (255**2 * 192)) / 2)
    assert result["lr_psnr_pooled"] == pytest.approx(pooled)
    assert result["lr_psnr_worst"] == 60
    assert report.average(rows[:1], drawn=True)["lr_psnr_pooled"] == pytest.approx(most)


def test_the_table_has_a_column_for_all_of_it(call, network, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "SqueezeNetDistance", lambda path: Distance())
    write_picture(folder / "c.png", np.zeros((24, 24, 3), "uint8"))  # exact
    call(evaluate.main, network, "--data", folder, "--samples", 2, "--squeezenet", "some.h5",
         "--json", tmp_path / "result.json")
    header, *rows = capsys.readouterr().out.splitlines()
    assert re.split("  +", header) == ["picture", "PSNR-Y", "SSIM-Y", "PSNR-RGB", "LR-PSNR", "worst LR-PSNR",
                                       "pooled LR-PSNR", "colour error", "SqueezeNet*", "diversity", "MP/s"]
    assert {len(row) for row in rows[:-1]} == {len(header)}
    text = (tmp_path / "result.json").read_text()
    pictures = json.loads(text, parse_constant=pytest.fail)["pictures"]
    exact = 10 * np.log10(255**2 * 20 * 20)  # of the values within the border
    assert [row["bicubic"]["psnr_y"] == pytest.approx(exact) for row in pictures] == [False, False, True]


def test_the_drawing_is_of_the_sample_asked_for(network, folder):
    loaded = load(network)
    name, lr, hr = next(iter(degraded(evaluate.load(str(folder), "test"), 2, "bicubic")))
    for temperature, seed in ((1.0, 5), (0.5, 6)):
        sheet = report.figure(loaded, [(name, lr, hr)], temperature=temperature, seed=seed)
        drawn = np.asarray(sheet.axes[2].images[0].get_array())
        sr = loaded.upscale(lr, temperature=temperature, seed=seed)
        windows = np.lib.stride_tricks.sliding_window_view(sr, drawn.shape)
        assert (windows == drawn).all((-3, -2, -1)).any()


def test_diversity_score_by_hand():
    assert diversity_score([[[1.0, 3.0]], [[3.0, 1.0]]]) == 50  # the best has 2, the nearest of each pixel 1
    assert diversity_score([[[1.0, 3.0]]] * 10) == 0
    assert diversity_score(np.zeros((2, 3, 3))) == 0


# ------------------------------------------------------------------ export


@pytest.fixture(scope="module")
def served(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("superres.models.signatures.TILE", 16)
        path, _, drawn = export.export(network, folder, "noisy", 1)
    assert drawn
    return path


def test_served_pictures_are_those_of_upscale(network, served, photo):
    signatures, loaded = tf.saved_model.load(str(served)).signatures, load(network)
    for size in ((40, 24), (3, 1)):  # the first of six tiles
        lr = np.stack([photo[: size[0], : size[1]], photo[-size[0] :, -size[1] :]])
        extra = {"temperature": tf.constant([0.7, 0.0]), "seed": tf.constant([3, 9])}
        expected = [loaded.upscale(to_float(x), temperature=t, seed=s)
                    for x, t, s in zip(lr, (0.7, 0), (3, 9), strict=True)]
        floats = signatures["serving_default"](lr=tf.constant(lr / np.float32(255)), **extra)["sr"]
        np.testing.assert_allclose(floats, expected, atol=1e-5)
        integers = signatures["uint8"](lr=tf.constant(lr), **extra)["sr"].numpy()
        assert np.abs(integers.astype(int) - to_uint8(np.stack(expected))).max() <= 1
        files = [tf.io.encode_png(x).numpy() for x in lr]
        answer = signatures["image_bytes"](image_bytes=tf.constant(files), **extra)["image_bytes"]
        for one, two in zip(answer.numpy(), integers, strict=True):
            np.testing.assert_array_equal(tf.io.decode_png(one), two)


def test_several_samples_are_served_at_once(network, served, photo):
    signatures, loaded = tf.saved_model.load(str(served)).signatures, load(network)
    lr = np.stack([photo[:9, :12], photo[20:29, :12]])
    drawn = signatures["samples"](
        lr=tf.constant(lr / np.float32(255)), temperature=tf.constant([1.0, 0.5]), seed=tf.constant([3, 9]),
        count=tf.constant(3))["sr"]
    assert drawn.shape == (2, 3, 18, 24, 3)
    for samples, x, temperature, seed in zip(drawn, lr, (1.0, 0.5), (3, 9), strict=True):
        for k, sample in enumerate(samples):
            expected = loaded.upscale(to_float(x), temperature=temperature, seed=seed + k)
            np.testing.assert_allclose(sample, expected, atol=1e-5)


def test_warm_up_requests_fit_their_signatures(served):
    signatures = tf.saved_model.load(str(served)).signatures
    requests = {}
    for record in tf.data.TFRecordDataset(str(served / "assets.extra" / "tf_serving_warmup_requests")):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log
        requests[log.request.model_spec.signature_name] = log.request.inputs
    assert set(signatures) == {*requests, "samples"} == {"serving_default", "uint8", "image_bytes", "samples"}
    assert "samples" not in requests
    for name, inputs in requests.items():
        signatures[name](**{key: tf.constant(tf.make_ndarray(value)) for key, value in inputs.items()})


def test_a_network_without_noise_has_neither(tmp_path):
    generator(2, stem=8, widths=(8, 8), blocks=(1,), noise=False).save(tmp_path / "calm.keras")
    path, _, drawn = export.export(tmp_path / "calm.keras", tmp_path, "calm", 1)
    assert not drawn
    signatures = tf.saved_model.load(str(path)).signatures
    assert "samples" not in signatures
    assert list(signatures["uint8"].structured_input_signature[1]) == ["lr"]
    for options in ({"stochasticity": True}, {"samples": 2}, {"temperature": 1.0}, {"seed": 0}):
        with pytest.raises(InputError, match=f"{next(iter(options))}: only for networks"):
            upscale.main(str(tmp_path / "calm.keras"), ("none.png",), output=str(tmp_path), **options)
        if "stochasticity" not in options:
            with pytest.raises(InputError, match=f"{next(iter(options))}: only for networks"):
                evaluate.main(str(tmp_path / "calm.keras"), **options)


def test_evaluate_draws_at_the_temperature_and_from_the_seed(call, network, folder, tmp_path):
    call(evaluate.main, network, "--data", folder, "--temperature", 0.5, "--seed", 7, "--json",
         tmp_path / "result.json")
    loaded = load(network)
    pairs = list(degraded(evaluate.load(str(folder), "test"), 2, "bicubic"))
    rows = json.loads((tmp_path / "result.json").read_text())["pictures"]
    for row, (_, lr, hr) in zip(rows, pairs, strict=True):
        sr = loaded.upscale(lr, temperature=0.5, seed=7)
        assert row["psnr_y"] == pytest.approx(quality(hr, sr, 2)["psnr_y"], abs=1e-3)
