"""The commands, run as a user runs them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from superres import evaluate, upscale
from superres.datasets.degradations import imresize, realworld
from superres.datasets.pictures import Picture, read_picture, write_picture
from superres.errors import InputError
from superres.metrics import quality, report
from superres.models import srgan, srmap
from superres.models.lapsrn import lapsrn
from superres.models.upscaler import load
from superres.train.lapsrn import PRESETS, Settings
from superres.train.lapsrn import main as train
from superres.train.loop import RunSettings


@pytest.fixture
def folder(tmp_path, photo):
    """Pictures of several kinds, one of them damaged."""
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    write_picture(folder / "a_rgb.png", photo[:20, :30])
    write_picture(folder / "c_alpha.png", Picture(photo[:9, :7], photo[:9, :7, :1]))
    write_picture(folder / "deeper" / "d_grey.png", photo[:12, :12, :1])
    (folder / "b_cut.png").write_bytes((folder / "a_rgb.png").read_bytes()[:300])
    return folder


def assert_one_line_error(result, *parts):
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert all(part in result.stderr for part in parts)


def test_upscale_does_the_good_files_and_counts_the_bad(run_command, model, folder, tmp_path):
    result = run_command("upscale.py", model, folder, "-o", tmp_path / "out")
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "3 upscaled, 1 failed"
    assert result.stderr.startswith(f"failed: {folder / 'b_cut.png'}: not a readable picture")
    assert result.stderr.count("\n") == 1
    made = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert made == ["a_rgb_x2.png", "c_alpha_x2.png", "deeper/d_grey_x2.png"]
    for name in made:
        before, after = read_picture(folder / name.replace("_x2", "")), read_picture(tmp_path / "out" / name)
        expected = imresize(before.pixels / 255, 2).clip(0, 1) * 255
        assert np.abs(after.pixels - expected).max() <= 0.51
        assert (after.alpha is None) == (before.alpha is None)
    alpha = read_picture(folder / "c_alpha.png").alpha
    np.testing.assert_array_equal(
        read_picture(tmp_path / "out" / "c_alpha_x2.png").alpha, imresize(alpha, 2)
    )


def test_missing_model_is_one_line(run_command, folder, tmp_path):
    result = run_command("upscale.py", tmp_path / "none.keras", folder, "-o", tmp_path / "out")
    assert_one_line_error(result, "none.keras: no such model file")
    assert not (tmp_path / "out").exists()


def test_results_that_are_all_in_place_are_no_mistake(call, model, photo, tmp_path, capsys):
    (tmp_path / "in" / "out").mkdir(parents=True)
    write_picture(tmp_path / "in" / "out" / "a_x2.png", photo[:8, :8])
    call(upscale.main, model, tmp_path / "in", "-o", tmp_path / "in" / "out", "--format", "jpg")
    assert capsys.readouterr().out.splitlines()[-1] == "0 upscaled, 0 failed"


def test_upscale_takes_patterns_and_keeps_names_apart(call, model, folder, tmp_path, capsys):
    twin = tmp_path / "twin" / "a_rgb.png"
    twin.parent.mkdir()
    shutil.copy(folder / "a_rgb.png", twin)
    # The same file once more is no second picture, a file of the same name is.
    call(upscale.main, model, folder / "a*.png", folder / "**" / "d*.png", folder / "a_rgb.png", twin,
         "--output", tmp_path / "out", "--tile", 8)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_rgb_x2.png", "a_rgb_x2_2.png", "d_grey_x2.png",
    ]
    assert capsys.readouterr().out.splitlines()[-1] == "3 upscaled, 0 failed"


def test_a_name_with_the_characters_of_a_pattern_is_a_file(model, photo, tmp_path):
    write_picture(tmp_path / "a[1].png", photo[:8, :8])
    jobs = upscale.destinations([str(tmp_path / "a[1].png")], tmp_path / "out", "_x2")
    assert jobs == [(tmp_path / "a[1].png", tmp_path / "out" / "a[1]_x2.png")]


def test_output_that_is_a_file_is_named(call, model, folder, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit):
        call(upscale.main, model, folder / "a_rgb.png", "--output", tmp_path / "out")
    assert "out: cannot be made a folder" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--limit", -1), ("--json", "no/folder.json"),
                                               ("--figure", "figure.xyz")])
def test_evaluate_refuses_before_it_measures(call, model, folder, capsys, option, value):
    with pytest.raises(SystemExit):
        call(evaluate.main, model, "--data", folder, option, value)
    out, err = capsys.readouterr()
    assert out == ""
    assert str(value) in err


def test_input_that_stands_for_nothing_is_named(folder):
    with pytest.raises(InputError, match=r"z\*\.png: no such file, folder or pattern"):
        upscale.destinations([str(folder / "z*.png")], "out", 2)


def test_evaluate_degrades_as_asked(call, model, photo, tmp_path):
    hr = photo[:64, :80]
    (tmp_path / "data").mkdir()
    write_picture(tmp_path / "data" / "a.png", hr)
    call(evaluate.main, model, "--data", tmp_path / "data", "--degradation", "realworld", "--json",
         tmp_path / "result.json")
    lr = realworld(hr, 2, np.random.default_rng((1, 0)))
    assert json.loads((tmp_path / "result.json").read_text())["bicubic"]["psnr_y"] == pytest.approx(
        quality(hr, imresize(lr, 2), 2)["psnr_y"])


def test_evaluate_measures_the_test_split_up_to_the_limit(call, model, tmp_path):
    call(evaluate.main, model, "--data", "plates", "--limit", 2, "--json", tmp_path / "result.json")
    rows = json.loads((tmp_path / "result.json").read_text())["pictures"]
    assert [row["name"] for row in rows] == ["plate_2000", "plate_2001"]


def test_figures_that_are_no_numbers_are_null(tmp_path):
    figures = {"mean": {"a": float("nan")}, "pictures": [{"a": float("inf")}]}
    evaluate._write_json(tmp_path / "a.json", figures)
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == {
        "mean": {"a": None}, "pictures": [{"a": None}]}


def test_upscale_hands_its_options_on(call, model, folder, tmp_path, monkeypatch):
    precisions, tiles = [], []

    def spied(file, precision, *rest):
        precisions.append(precision)
        network = load(model)
        upscaled = network.upscale
        monkeypatch.setattr(network, "upscale", lambda *a, **k: tiles.append(k["tile"]) or upscaled(*a, **k))
        return network

    monkeypatch.setattr(upscale, "load", spied)
    monkeypatch.setattr(upscale, "chosen_precision", lambda precision: precision)
    for options in ((), ("--tile", 8, "--precision", "bfloat16")):
        call(upscale.main, model, folder / "a_rgb.png", "-o", tmp_path / f"out{len(options)}", *options)
    assert (precisions, tiles) == (["float32", "bfloat16"], [256, 8])


def test_evaluate_writes_figures_and_a_drawing(run_command, model, photo, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    pictures = {"colour_$5_$10": photo[:65, :82], "grey": photo[:64, :80, :1]}
    for name, picture in pictures.items():
        write_picture(data / f"{name}.png", picture)
    result = run_command("evaluate.py", model, "--data", data, "--json", tmp_path / "result.json",
                         "--figure", tmp_path / "figure.png")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    figures = json.loads((tmp_path / "result.json").read_text())
    assert [picture["name"] for picture in figures["pictures"]] == list(pictures)
    for row, hr in zip(figures["pictures"], pictures.values(), strict=True):
        hr = hr[:64, :82]
        sr = imresize(imresize(hr, 0.5), 2)
        for key, value in quality(hr, sr, 2).items():
            assert row["bicubic"][key] == pytest.approx(value)
            # The untrained network is bicubic, but for the rounding between the passes.
            assert row[key] == pytest.approx(value, abs=1.5 if key == "lr_psnr" else 0.05)
    for method in (figures["mean"], figures["bicubic"]):
        assert set(method) == {"psnr_y", "ssim_y", "psnr_rgb", "lr_psnr", "colour_error", "seconds",
                               "mpixel_per_second"}
    scores = [picture["psnr_y"] for picture in figures["pictures"]]
    assert figures["mean"]["psnr_y"] == pytest.approx(np.mean(scores))
    assert f"{figures['mean']['psnr_y']:.2f}" in result.stdout.splitlines()[-2]
    assert read_picture(tmp_path / "figure.png").pixels.std() > 10


def test_the_ensemble_is_what_is_drawn_and_measured(call, photo, randomize, tmp_path):
    network = randomize(lapsrn(2, filters=4, depth=1), 0.05)
    network.save(tmp_path / "random.keras")
    (tmp_path / "data").mkdir()
    write_picture(tmp_path / "data" / "a.png", photo[:40, :60])
    call(upscale.main, tmp_path / "random.keras", tmp_path / "data", "-o", tmp_path / "out", "--ensemble")
    expected = network.upscale(photo[:40, :60], ensemble=True)
    difference = np.abs(read_picture(tmp_path / "out" / "a_x2.png").pixels.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3

    scores = {}
    for options in ((), ("--ensemble",)):
        call(evaluate.main, tmp_path / "random.keras", "--data", tmp_path / "data", "--json",
             tmp_path / "result.json", *options)
        scores[options] = json.loads((tmp_path / "result.json").read_text())["mean"]["psnr_y"]
    sr = network.upscale(imresize(photo[:40, :60], 0.5), ensemble=True)
    assert scores["--ensemble",] == pytest.approx(quality(photo[:40, :60], sr, 2)["psnr_y"], abs=1e-3)
    assert scores["--ensemble",] != pytest.approx(scores[()], abs=0.01)


def test_evaluate_measures_the_smallest_pictures(model):
    hr = np.random.default_rng(0).integers(0, 256, (2, 4, 3), "uint8")
    result = report.evaluate(load(model), [("tiny", imresize(hr, 0.5), hr)])
    assert np.isfinite(result["mean"]["psnr_y"])


@pytest.mark.parametrize("suffix", ["PNG", "Jpg", "PDF"])
def test_a_figure_may_be_named_in_capitals(call, model, photo, tmp_path, suffix):
    write_picture(tmp_path / "a.png", photo[:20, :24])
    call(evaluate.main, model, "--data", tmp_path, "--figure", tmp_path / f"figure.{suffix}")
    start = {"PNG": b"\x89PNG", "Jpg": b"\xff\xd8", "PDF": b"%PDF"}[suffix]
    assert (tmp_path / f"figure.{suffix}").read_bytes().startswith(start)


@pytest.mark.parametrize("network", [
    lambda: lapsrn(2, filters=4, depth=1), lambda: srgan.generator(2, blocks=1, filters=4),
    lambda: srmap.generator(2, stem=8, widths=(8, 8), blocks=(1,))])
def test_pictures_and_pairs_of_all_kinds_are_measured(call, network, photo, tmp_path):
    network().save(tmp_path / "network.keras")
    hr, lr = photo[:32, :40], imresize(photo[:32, :40], 0.5)
    for folder in ("pairs/hr", "pairs/lr", "mixed"):
        (tmp_path / folder).mkdir(parents=True)
    for a, b in ((1, 1), (1, 3), (3, 1), (3, 3)):
        write_picture(tmp_path / "pairs" / "hr" / f"{a}{b}.png", hr[..., :a])
        write_picture(tmp_path / "pairs" / "lr" / f"{a}{b}.png", lr[..., :b])
        write_picture(tmp_path / "mixed" / f"{a}{b}.png", hr[..., :a])
    for folder in ("pairs", "mixed"):
        call(evaluate.main, tmp_path / "network.keras", "--data", tmp_path / folder,
             "--json", tmp_path / "result.json", "--figure", tmp_path / "figure.png")
        for row in json.loads((tmp_path / "result.json").read_text())["pictures"]:
            a, b = map(int, row["name"])
            if folder == "mixed":
                b = a
            alike = np.broadcast_to(hr[..., :a], (32, 40, max(a, b)))
            expected = quality(alike, np.broadcast_to(imresize(lr[..., :b], 2), alike.shape), 2)
            assert row["bicubic"]["psnr_y"] == pytest.approx(expected["psnr_y"])
            assert np.isfinite(row["psnr_rgb"])


def test_pictures_that_are_all_border_are_named(call, model, photo, tmp_path, capsys):
    write_picture(tmp_path / "small.png", photo[:4, :40])
    with pytest.raises(SystemExit):
        call(evaluate.main, model, "--data", tmp_path)
    assert capsys.readouterr() == ("", "error: small: too small, no picture has more than 4 pixels on both "
                                       "sides, which are all border at x2 (1 smaller pictures found)\n")
    write_picture(tmp_path / "large.png", photo[:40, :40])
    call(evaluate.main, model, "--data", tmp_path, "--json", tmp_path / "result.json")
    assert capsys.readouterr().err == ("warning: left out, at most 4 pixels on a side are all border at x2: "
                                       "small\n")
    assert len(json.loads((tmp_path / "result.json").read_text())["pictures"]) == 1


@pytest.mark.parametrize("arguments", [["--data", "photo"], ["--data", "photos", "--limit", "0"]])
def test_evaluate_on_nothing_is_one_line(call, model, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        call(evaluate.main, model, *arguments)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_training_names_its_presets(run_command):
    result = run_command("train/lapsrn.py", "--help")
    assert result.returncode == 0
    assert result.stderr == ""
    assert all(preset in result.stdout for preset in PRESETS)


@pytest.mark.parametrize(("arguments", "preset", "epochs"), [
    ([], "quick", PRESETS["quick"][1].epochs), (["--epochs", "3"], "quick", 3),
    (["--epochs", "3", "--start", "improved-x2"], "quick", 3),  # a preset's name, but a value here
    (["improved-x2", "--epochs", "3"], "improved-x2", 3)])
def test_training_without_a_preset_takes_the_quick_one_and_says_so(call, capsys, arguments, preset, epochs):
    def main(name, settings):
        """Nothing."""
        start = "improved-x2" if "--start" in arguments else ""
        assert name == preset
        assert settings == dataclasses.replace(PRESETS[preset][1], epochs=epochs, start=start)

    call(main, *arguments, presets=PRESETS)
    out = capsys.readouterr().out
    if preset == "quick":
        assert out.startswith("preset quick: A small x2 network on photographs that scikit-image ships. ")
        assert all(name in out for name in PRESETS)
    else:
        assert not out


def test_a_preset_that_does_not_exist_is_named(call, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(train, "improved-x3", presets=PRESETS)
    assert stopped.value.code == 2
    assert "improved-x3" in capsys.readouterr().err


def test_training_explains_every_setting(call, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(train, "quick", "--help", presets=PRESETS)
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for settings, prefix in ((Settings, "--"), (RunSettings, "--run.")):
        for field in dataclasses.fields(settings):
            assert field.name == "run" or prefix + field.name.replace("_", "-") in text
    assert "Patches a batch, over all devices together." in text


def test_training_without_enough_data_is_one_line(run_command, tmp_path, photo):
    write_picture(tmp_path / "one.png", photo)
    result = run_command("train/lapsrn.py", "quick", "--data", tmp_path, "--run.folder", tmp_path / "run")
    assert_one_line_error(result, "data: 1 pictures are too few")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("a.png: torn\n  apart"), 2, "error: a.png: torn apart\n"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_mistakes_and_interruptions_end_in_one_line(call, capsys, error, status, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as stopped:
        call(main)
    assert stopped.value.code == status
    assert capsys.readouterr().err == line


def test_mistakes_of_the_program_keep_their_traceback(call):
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call(main)
