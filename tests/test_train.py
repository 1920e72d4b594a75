"""train/: a whole training in miniature, compiled as it is, and how it stops and goes on to the bit."""

import csv
import functools
import os

import h5py
import keras
import numpy as np
import pytest
import yaml

from superres.datasets.degradations import degraded
from superres.datasets.patches import split_pictures
from superres.datasets.pictures import read_picture
from superres.metrics.report import evaluate
from superres.models.lapsrn import lapsrn
from superres.models.upscaler import load
from superres.train.lapsrn import main
from superres.train.loop import Keeper

STEPS = 3  # an epoch


def rows(folder):
    with open(os.path.join(folder, "log.csv"), newline="") as file:
        return list(csv.DictReader(file))


def weights(folder, name="last.keras"):
    return load(os.path.join(folder, name)).get_weights()


def assert_same_run(folder, other):
    """Equal to the bit, but for the time taken."""
    for name in ("last.keras", "model.keras"):
        for one, two in zip(weights(folder, name), weights(other, name), strict=True):
            np.testing.assert_array_equal(one, two)
    first, second = ([{**row, "seconds": 0, "step_seconds": 0} for row in rows(run)]
                     for run in (folder, other))
    assert first == second


def at_step(step, action):
    """A callback method that does something when the optimiser has made so many steps."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations.numpy() == step:
            action()

    return on_train_batch_end


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("scale", [2, 4])
def test_a_run_leaves_its_network_log_settings_and_samples(tiny, tmp_path, capsys, scale):
    settings = tiny(scale=scale, epochs=2)
    main("quick", settings)
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "settings.yaml", "held_out.txt", "log.csv", "model.keras", "last.keras", "backup.weights.h5",
        "samples", "lock", "tensorboard",
    }
    log = rows(folder)
    assert list(log[0]) == [
        "epoch", "step", "seconds", "step_seconds", "loss", "psnr", "val_psnr_y", "val_ssim_y",
    ]
    assert [(row["epoch"], row["step"]) for row in log] == [("1", "3"), ("2", "6")]
    assert 15 < float(log[-1]["val_psnr_y"]) < 60
    assert yaml.safe_load((folder / "settings.yaml").read_text())["filters"] == 4
    samples = sorted(path.name for path in (folder / "samples").iterdir())
    assert samples == ["epoch_0001.png", "epoch_0002.png"]
    assert read_picture(folder / "samples" / samples[0]).pixels.shape == (68, 4 * 68, 3)
    assert list((folder / "tensorboard").rglob("events*"))
    assert load(folder / "model.keras").scale == scale
    out = capsys.readouterr().out
    assert "mean" in out
    assert "ALARM" not in out


def test_training_beats_bicubic_on_what_it_learns_from(tiny, tmp_path):
    settings = tiny(filters=8, epochs=2, steps=150, learning_rate=2e-3)
    main("quick", settings)
    log = rows(tmp_path / "run")
    assert float(log[1]["loss"]) < float(log[0]["loss"])
    pairs = list(degraded(split_pictures(settings.data, 1, 1, 0)[0], 2, "bicubic"))
    result = evaluate(load(tmp_path / "run" / "model.keras"), pairs)
    assert result["mean"]["psnr_y"] > result["bicubic"]["psnr_y"] + 0.1


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_stopped_run_goes_on_to_the_same_weights_to_the_bit(tiny, tmp_path, monkeypatch, precision):
    # In float16 the loss is scaled, and steps are skipped until no gradient overflows.
    scaled = keras.optimizers.LossScaleOptimizer.__init__
    monkeypatch.setattr(keras.optimizers.LossScaleOptimizer, "__init__", functools.partialmethod(
        scaled, initial_scale=2.0**24))
    main("quick", tiny("whole", precision))
    with h5py.File(tmp_path / "whole" / "backup.weights.h5") as file:
        optimizer = file["optimizer"]
        steps = int(optimizer.get("inner_optimizer", optimizer)["vars/0"][()])
        assert int(file["vars/0"][()]) == 3  # epochs
    assert 0 < steps < 3 * STEPS if precision == "mixed_float16" else steps == 3 * STEPS
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_train_batch_end",
                      lambda self, batch, logs: self.model.epochs_done == 1 and batch == 1 and interrupt())
        with pytest.raises(KeyboardInterrupt):
            main("quick", tiny("stopped", precision))
    assert len(rows(tmp_path / "stopped")) == 1
    main("quick", tiny("stopped", precision))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    # Weights that no training changes would be equal, too.
    assert any((one != two).any() for one, two in zip(
        weights(tmp_path / "whole"), lapsrn(2, filters=4, depth=2).get_weights(), strict=True))
