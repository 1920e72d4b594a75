"""train/loop.py: how a run stops, goes on, and tells; a training of small networks, not compiled."""

import os
import re
import shutil
import signal

import keras
import numpy as np
import pytest
import yaml
from test_train import STEPS, assert_same_run, at_step, interrupt, rows, weights

import superres.train.lapsrn as script
from superres.datasets.degradations import degraded
from superres.datasets.patches import Patches, split_pictures
from superres.errors import InputError
from superres.metrics.report import evaluate
from superres.models.upscaler import load
from superres.train.lapsrn import main
from superres.train.log import Log
from superres.train.loop import Keeper, RunSettings, _duration
from superres.train.pixel_recursive import ThumbnailValidation
from superres.train.validation import PictureValidation

pytestmark = [pytest.mark.usefixtures("eagerly"),
              pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")]
KILLED = """
import os, signal, sys
from superres.train.lapsrn import *
from superres.train.loop import Keeper
tf.config.run_functions_eagerly(True)
def kill(self, batch, logs=None):
    if self.model.optimizer.iterations.numpy() == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
Keeper.on_train_batch_end = kill
main("quick", {settings})
"""


@pytest.fixture(scope="module")
def whole(settings_of, eagerly, tmp_path_factory):
    """A run of three epochs that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    main("quick", settings_of(folder))
    return folder


def test_a_run_on_fixed_patches_walks_them_and_goes_on_to_the_bit(tiny, tmp_path, monkeypatch):
    # Four pictures train: 4 x 3 patches in batches of 4 are STEPS steps.
    seen, numbers = {}, Patches._numbers

    def noted(self, number):
        seen[number] = numbers(self, number)
        return seen[number]

    monkeypatch.setattr(Patches, "_numbers", noted)
    main("quick", tiny("whole", patches=3))
    for epoch in range(3):
        walked = np.concatenate([seen[STEPS * epoch + step] for step in range(STEPS)])
        assert sorted(walked) == list(range(12))
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_train_batch_end", at_step(STEPS + 2, interrupt))
        with pytest.raises(KeyboardInterrupt):
            main("quick", tiny("stopped", patches=3))
    main("quick", tiny("stopped", patches=3))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_run_stopped_while_it_saves_goes_on(tiny, tmp_path, monkeypatch, whole):
    saved = []

    def save_weights(self, path, **options):
        saved.append(path)
        if len(saved) == 2:
            path.write_bytes(b"half a backup")
            raise OSError("No space left on device")
        return keras.Model.save_weights(self, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(script.LapSRNTrainer, "save_weights", save_weights, raising=False)
        with pytest.raises(OSError, match="No space left"):
            main("quick", tiny("stopped"))
    assert len(rows(tmp_path / "stopped")) == 2  # one more than the backup knows of
    main("quick", tiny("stopped"))
    assert_same_run(tmp_path / "stopped", whole)


def test_a_killed_process_goes_on(tiny, tmp_path, run_command, whole):
    result = run_command("-c", KILLED.format(step=STEPS + 2, settings=repr(tiny("killed"))))
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert len(rows(tmp_path / "killed")) == 1
    main("quick", tiny("killed"))
    assert_same_run(tmp_path / "killed", whole)


def test_a_finished_run_is_left_as_it_is(tiny, tmp_path, capsys):
    main("quick", tiny(epochs=1))
    files = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    main("quick", tiny(epochs=1))
    assert "done already, after 1 of 1 epochs" in capsys.readouterr().out
    assert files == {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    assert len(rows(tmp_path / "run")) == 1


def test_a_run_does_not_go_on_with_other_settings(tiny):
    main("quick", tiny(epochs=1))
    with pytest.raises(InputError, match=r"started with another learning_rate \(0.001, now 0.1\)"):
        main("quick", tiny(epochs=1, learning_rate=0.1))


def test_a_run_does_not_go_on_where_other_pictures_are_held_out(tiny, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny().data[0], data)
    main("quick", tiny(epochs=1, data=(str(data),)))
    names = (tmp_path / "run" / "held_out.txt").read_text().split()
    (data / f"{names[0]}.png").unlink()
    with pytest.raises(InputError, match=r"held_out\.txt: this run held out other pictures than"):
        main("quick", tiny(epochs=1, data=(str(data),)))


def test_a_run_does_not_go_on_with_another_optimiser(tiny):
    main("quick", tiny(epochs=2))
    with pytest.warns(UserWarning, match="only emulates"), pytest.raises(
            InputError, match=r"started with another run\.precision \(float32, now mixed_float16\)"):
        main("quick", tiny("run", "mixed_float16", epochs=2))
    with pytest.warns(UserWarning, match="only emulates"):
        main("quick", tiny("half", "mixed_float16", epochs=1))
    with pytest.raises(InputError, match=r"another run\.precision \(mixed_float16, now float32\)"):
        main("quick", tiny("half", epochs=1))


def test_a_run_goes_on_without_the_network_that_it_started_from(tiny, tmp_path, capsys):
    main("quick", tiny("first", epochs=1))
    start = tmp_path / "first" / "model.keras"
    main("quick", tiny(epochs=1, start=str(start)))
    start.unlink()
    capsys.readouterr()
    main("quick", tiny(epochs=1, start=str(start)))
    assert "done already" in capsys.readouterr().out


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"seed": -1}, "run.seed: must be at least 0 and below 4294967296, not -1"),
    ({"seed": 2**32}, "run.seed: must be at least 0 and below 4294967296"),
    ({"cache": -1}, "run.cache: must be at least 0, not -1"),
    ({"early_stopping": -1}, "run.early_stopping: must be at least 0, not -1"),
    ({"replicas": -1}, "run.replicas: must be at least 0, not -1"),
    ({"snapshots": (3, 0)}, "run.snapshots: must be at least 1, not 0"),
])
def test_a_run_s_numbers_are_checked(changes, complaint):
    with pytest.raises(InputError, match=re.escape(complaint)):
        RunSettings(**changes).check()


def test_settings_that_never_trained_do_not_bind(tiny, tmp_path):
    with pytest.raises(InputError, match="scale 2 has 1 levels, but depth names 2"):
        main("quick", tiny(epochs=1, depth=(2, 2)))
    main("quick", tiny(epochs=1))
    assert yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())["depth"] == [2]


def test_a_damaged_backup_is_named(tiny, tmp_path):
    main("quick", tiny())
    (tmp_path / "run" / "backup.weights.h5").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"backup\.weights\.h5: cannot go on from it"):
        main("quick", tiny())


def test_batch_must_divide_by_the_replicas(tiny, monkeypatch):
    class Three:
        num_replicas_in_sync = 3

    monkeypatch.setattr("superres.train.lapsrn.strategy", lambda replicas, workers: Three)
    with pytest.raises(InputError, match="batch: 4 does not divide by 3 replicas"):
        main("quick", tiny())


def test_a_run_that_diverges_stops_and_keeps_the_best_network(tiny, tmp_path, monkeypatch):
    batch = Patches.batch_number

    def poisoned(self, number, rows):
        lr, targets = batch(self, number, rows)
        return (lr * np.nan if number == STEPS + 1 else lr), targets

    monkeypatch.setattr(Patches, "batch_number", poisoned)
    with pytest.raises(InputError, match=r"the loss is nan at step 2 of the epoch; model\.keras holds"):
        main("quick", tiny())
    assert len(rows(tmp_path / "run")) == 1
    assert all(np.isfinite(array).all() for array in weights(tmp_path / "run", "model.keras"))


def test_a_learning_rate_beyond_all_bounds_is_an_error(tiny):
    with pytest.raises(InputError, match="stopped, the loss is"):
        main("quick", tiny(learning_rate=1e30, loss="charbonnier"))


def test_a_collapse_is_six_decibels_below_bicubic(photo):
    judge = PictureValidation([("a", photo[::2, ::2], photo)])
    assert judge.bicubic < 36
    before = [{"epoch": 3, "val_psnr_y": judge.bicubic + 1}]
    good, bad = ({"epoch": 4, "val_psnr_y": judge.bicubic - below} for below in (5.9, 6.1))
    assert judge.failure(good, before) is judge.failure(bad, []) is None
    assert "collapsed in epoch 4" in judge.failure(bad, before)
    assert judge.failure({**good, "adversarial": np.inf}, before) == "adversarial is inf after epoch 4"
    # A network may be worse than bicubic at first: then it must not fall from there.
    poor = [{"epoch": 3, "val_psnr_y": judge.bicubic - 8}]
    assert judge.failure({"epoch": 4, "val_psnr_y": judge.bicubic - 13}, poor) is None
    assert "collapsed" in judge.failure({"epoch": 4, "val_psnr_y": judge.bicubic - 15}, poor)
    # Of flat pictures bicubic is exact, and networks come and go by many decibels.
    flat = PictureValidation([("a", photo[::2, ::2] * 0, photo * 0)])
    exact = [{"epoch": 3, "val_psnr_y": flat.bicubic}]
    assert flat.failure({"epoch": 4, "val_psnr_y": 31.0}, exact) is None
    assert "collapsed" in flat.failure({"epoch": 4, "val_psnr_y": 29.0}, exact)


@pytest.mark.parametrize(("model", "key", "most"), [
    ("recursive", "val_bits", 8), ("regression", "val_mse", 0.25)])
def test_a_collapse_costs_all_that_knowing_nothing_does(model, key, most):
    judge, before = ThumbnailValidation(np.zeros(1), model), [{"epoch": 1, key: 14.0}, {"epoch": 2, key: 3.0}]
    assert judge.failure({"epoch": 1, key: 14.0}, []) is None
    assert judge.failure({"epoch": 3, key: 3 + 0.99 * most}, before) is None
    assert f"collapsed in epoch 3: {key}" in judge.failure({"epoch": 3, key: 3 + 1.01 * most}, before)


def test_a_collapse_stops_and_keeps_the_best_network(tiny, tmp_path, monkeypatch):
    scores = iter([30.0, 30.0, 30.0, 10.0])  # bicubic interpolation's, and three epochs'
    monkeypatch.setattr("superres.train.validation.quality",
                        lambda *args: {"psnr_y": next(scores), "ssim_y": 0.5})
    with pytest.raises(InputError, match=r"collapsed in epoch 3: PSNR 10\.00 dB after 30\..*; model\.keras"):
        main("quick", tiny())
    assert [float(row["val_psnr_y"]) for row in rows(tmp_path / "run")] == [30, 30]


def test_early_stopping_ends_a_run_for_good(tiny, tmp_path, capsys):
    # Nothing is learned, so that no epoch is better than the first.
    for _ in range(2):
        main("quick", tiny(epochs=9, steps=1, learning_rate=0.0, early_stopping=2))
        assert len(rows(tmp_path / "run")) == 3
    out = capsys.readouterr().out
    assert "early stopping: no better val_psnr_y for 2 epochs" in out
    assert "done already, after 3 of 9 epochs" in out


def test_model_is_the_best_epoch_and_last_is_the_last(tiny, tmp_path, monkeypatch):
    scores = iter([20.0, 20.0, 30.0, 25.0])  # bicubic interpolation's, and three epochs'
    kept = {}
    on_epoch_end = Keeper.on_epoch_end

    def keep(self, epoch, logs=None):
        on_epoch_end(self, epoch, logs)
        kept[epoch] = self.network.get_weights()

    monkeypatch.setattr(Keeper, "on_epoch_end", keep)
    monkeypatch.setattr("superres.train.validation.quality",
                        lambda *args: {"psnr_y": next(scores, 0.0), "ssim_y": 0.5})
    main("quick", tiny())
    for name, epoch in (("model.keras", 1), ("last.keras", 2)):
        for one, two in zip(weights(tmp_path / "run", name), kept[epoch], strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_run_leaves_the_precision_as_it_was(tiny):
    main("quick", tiny(precision="mixed_bfloat16", epochs=1))
    assert keras.config.dtype_policy().name == "float32"


def test_a_run_tells_when_it_ends(tiny, capsys):
    main("quick", tiny(epochs=2))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert re.fullmatch(r"epoch 1 of 2: \d\.\d{3} s a step, ends in about \d+ s", lines[0])
    assert re.fullmatch(r"epoch 2 of 2: \d\.\d{3} s a step", lines[1])


@pytest.mark.parametrize(("seconds", "text"), [
    (5.4, "5 s"), (89, "89 s"), (120, "2 min"), (3599, "1 h 0 min"), (7500, "2 h 5 min")])
def test_durations_are_words(seconds, text):
    assert _duration(seconds) == text


def test_log_can_be_cut_back(tmp_path):
    log = Log(tmp_path / "log.csv", "val_psnr_y")
    for epoch, score in enumerate([1.0, 3.0, 2.0], start=1):
        log.add({"epoch": epoch, "val_psnr_y": score})
        assert log.is_best() == (epoch < 3)
    again = Log(tmp_path / "log.csv", "val_psnr_y")
    again.rewind(3)
    assert not again.is_best()
    assert not again.stale(2)
    assert again.stale(1)
    again = Log(tmp_path / "log.csv", "val_psnr_y")
    again.rewind(2)
    assert again.is_best()
    assert not again.stale(1)
    assert os.listdir(tmp_path) == ["log.csv"]


def test_averages_are_saved_and_do_not_change_the_training(tiny, tmp_path, monkeypatch):
    passed = []
    monkeypatch.setattr(Keeper, "on_train_batch_end", lambda self, batch, logs=None: passed.append(
        [np.array(v) for v in self.network.trainable_variables]))
    for ema in (0.0, 0.9):
        main("quick", tiny(str(ema), ema=ema))
    half = len(passed) // 2
    for plain, averaged in zip(passed[:half], passed[half:], strict=True):
        for one, two in zip(plain, averaged, strict=True):
            np.testing.assert_array_equal(one, two)
    average = passed[0]
    for step in passed[1:half]:
        average = [0.9 * a + 0.1 * b for a, b in zip(average, step, strict=True)]
    for one, two in zip(weights(tmp_path / "0.9"), average, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-7)


def test_another_seed_starts_from_other_weights(tiny, tmp_path):
    for seed in (0, 1):
        settings = tiny(str(seed), epochs=1, steps=1, learning_rate=0.0, initial="glorot")
        settings.run.seed = seed
        main("quick", settings)
    assert any((a != b).any() for a, b in zip(weights(tmp_path / "0"), weights(tmp_path / "1"), strict=True))


def test_the_log_and_the_table_have_the_right_figures(tiny, tmp_path, monkeypatch, capsys):
    settings = tiny(val_pictures=2, epochs=1)
    _, *held_out = split_pictures(settings.data, 2, 1, 0)
    val, test = (list(degraded(part, 2, "bicubic")) for part in held_out)
    main("quick", settings)
    score = evaluate(load(tmp_path / "run" / "last.keras"), val)["mean"]["psnr_y"]
    assert float(rows(tmp_path / "run")[0]["val_psnr_y"]) == pytest.approx(score, rel=1e-4)

    scores = iter([20.0, 20.0, 30.0, 30.0, 20.0, 20.0])  # bicubic; of two epochs, the first is the best
    monkeypatch.setattr("superres.train.validation.quality",
                        lambda *pair: {"psnr_y": next(scores), "ssim_y": 0.5})
    main("quick", tiny("two", val_pictures=2, epochs=2, learning_rate=0.1))
    *_, first, _, mean, bicubic = capsys.readouterr().out.splitlines()
    ((name, *_),) = test
    result = evaluate(load(tmp_path / "two" / "model.keras"), test)
    assert first.split()[:2] == [name, "network"]
    assert mean.split()[:3] == ["mean", "network", f"{result['mean']['psnr_y']:.2f}"]
    assert bicubic.split()[:2] == ["bicubic", f"{result['bicubic']['psnr_y']:.2f}"]
