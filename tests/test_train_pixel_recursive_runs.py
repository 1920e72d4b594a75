"""train/pixel_recursive.py: whole trainings in miniature, and how they stop and go on."""

import signal
from contextlib import redirect_stdout
from functools import partial
from io import StringIO

import numpy as np
import pytest
import yaml
from test_train import assert_same_run, at_step, interrupt, rows, weights
from test_train_pixel_recursive import STEPS, small_settings

from superres.datasets.pictures import read_picture
from superres.models import upscaler
from superres.models.sampler import Sampler
from superres.train.log import Log
from superres.train.loop import Keeper
from superres.train.pixel_recursive import main, trainer

KILLED = """
import os, signal
from functools import partial
import superres.train.pixel_recursive as script
from superres.train.pixel_recursive import *
from superres.train.loop import Keeper
from superres.models import upscaler
upscaler.Sampler = partial(upscaler.Sampler, jit_compile=False)
def kill(self, batch, logs=None):
    if self.model.optimizer.iterations.numpy() == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
Keeper.on_train_batch_end = kill
main("corners", {settings})
"""
IMPROVED = {"precision": "mixed_bfloat16", "data": {"flip": True}, "conditioned": True, "ema": 0.5}
MEASURES = ["val_psnr", "val_ssim", "val_ms_ssim", "val_one_digit"]


def run_of(settings):
    """What a run prints that draws without XLA, whose compilation would take most of the time."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setattr(upscaler, "Sampler", partial(Sampler, jit_compile=False))
        main("corners", settings)
    return out.getvalue()


@pytest.fixture(scope="module")
def improved(tmp_path_factory):
    """A run as `improved` is: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("improved")
    return folder, run_of(small_settings(folder, **IMPROVED))


@pytest.fixture(scope="module")
def independent(tmp_path_factory):
    """A run of the conditioning network alone: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("independent")
    return folder, run_of(small_settings(folder, model="independent"))


def test_a_run_leaves_its_network_log_settings_snapshots_and_samples(tmp_path, capsys):
    main("corners", small_settings(tmp_path / "run", snapshots=(2, 4, 6)))  # the last one is past the end
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "settings.yaml", "held_out.txt", "log.csv", "model.keras", "last.keras", "step_2.keras",
        "step_4.keras", "backup.weights.h5", "samples", "tensorboard", "lock",
    }
    assert yaml.safe_load((folder / "settings.yaml").read_text())["data"]["val_pictures"] == 4
    log = rows(folder)
    assert list(log[0]) == ["epoch", "step", "seconds", "step_seconds", "loss",
                            "val_bits", "val_bits_a", "val_bits_b", *MEASURES]
    assert [(row["epoch"], row["step"]) for row in log] == [("1", "2"), ("2", "4")]
    assert all(0 < float(row["val_bits"]) < 16 for row in log)
    for one, two in zip(weights(folder, "step_4.keras"), weights(folder), strict=True):
        np.testing.assert_array_equal(one, two)
    assert any((one != two).any() for one, two in
               zip(weights(folder, "step_2.keras"), weights(folder), strict=True))
    samples = sorted(path.name for path in (folder / "samples").iterdir())
    assert samples == ["epoch_0001.png", "epoch_0002.png", "test.png"]
    # Four pictures: LR, a sample, the most probable values, HR; three times as large, with gaps of 4.
    assert read_picture(folder / "samples" / samples[0]).pixels.shape == (4 * 52, 4 * 52, 3)
    out = capsys.readouterr().out
    assert "bits per dimension: A + B " in out
    assert "one_digit" in out


def test_conditioned_gates_train_and_are_measured_with_lr(improved):
    folder, out = improved
    assert [key for key in rows(folder)[0] if "bits" in key] == ["val_bits", "val_bits_a"]
    assert ", B " not in out  # alone it is no model of HR
    network = upscaler.load(folder / "model.keras")
    assert len(network.get_layer("prior").inputs) == 2


def test_a_stopped_run_goes_on_to_the_same_weights_to_the_bit(improved, tmp_path, monkeypatch):
    stopped = small_settings(tmp_path, **IMPROVED)
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_train_batch_end", at_step(STEPS + 1, interrupt))
        with pytest.raises(KeyboardInterrupt):
            run_of(stopped)
    assert len(rows(tmp_path)) == 1
    run_of(stopped)
    assert_same_run(tmp_path, improved[0])
    assert any((one != two).any() for one, two in
               zip(weights(tmp_path), trainer(stopped).network.get_weights(), strict=True))


def test_a_killed_process_goes_on(independent, tmp_path, run_command):
    killed = small_settings(tmp_path, model="independent")
    result = run_command("-c", KILLED.format(step=STEPS + 1, settings=repr(killed)))
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert len(rows(tmp_path)) == 1
    run_of(killed)
    assert_same_run(tmp_path, independent[0])


@pytest.mark.parametrize(("model", "score", "text"), [
    ("regression", "val_mse", "mean square error: "),
    ("independent", "val_bits", "bits per dimension: A + B "),
])
def test_networks_without_a_prior_train(independent, tmp_path, model, score, text):
    folder, out = independent
    if model == "regression":
        folder, out = tmp_path, run_of(small_settings(tmp_path, model=model))
    log = rows(folder)
    assert list(log[0]) == ["epoch", "step", "seconds", "step_seconds", "loss", score, *MEASURES]
    best = min(log, key=lambda row: float(row[score]))
    same = [(one == two).all() for one, two in
            zip(weights(folder, "model.keras"), weights(folder), strict=True)]
    assert all(same) == (best is log[-1])
    assert text in out


def test_log_knows_that_fewer_bits_are_better(tmp_path):
    log, best = Log(tmp_path / "log.csv", "val_bits", min), []
    for epoch, bits in enumerate([3.0, 2.0, 2.0, 2.5], start=1):
        log.add({"epoch": epoch, "val_bits": bits})
        best.append(log.is_best())
    assert best == [True, True, False, False]
    assert log.stale(2)
    assert not log.stale(3)
