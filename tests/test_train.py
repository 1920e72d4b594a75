"""train/: a whole training in miniature, how it stops, and how it goes on."""

import csv
import dataclasses
import math
import os
import re
import signal

import keras
import numpy as np
import pytest
import yaml

import superres.train.lapsrn as script
from superres.datasets.degradations import degraded
from superres.datasets.patches import Patches, split_pictures
from superres.datasets.pictures import read_picture, write_picture
from superres.errors import InputError, check_range
from superres.losses import Charbonnier
from superres.metrics import finite_psnr
from superres.metrics.report import evaluate
from superres.models.lapsrn import lapsrn
from superres.models.upscaler import load
from superres.train.lapsrn import PRESETS, Settings, main, trainer
from superres.train.log import Log
from superres.train.loop import Keeper, RunSettings, _duration, take_weights, weights_of

STEPS = 3
# One step of stochastic gradient descent on two logical devices and on one: Adam would
# hide gradients that are summed instead of averaged.
REPLICAS = """
import sys
import keras, numpy as np
from superres.datasets.patches import Patches, split_pictures
from superres.train.lapsrn import Settings, trainer, main
from superres.train.loop import RunSettings, strategy

data, folder = sys.argv[1:]
settings = Settings(data=(data,), scale=4, filters=4, depth=(2,), patch=8, batch=4, epochs=1, steps=2,
                    val_pictures=1, test_pictures=0, run=RunSettings(folder=folder, replicas=2))
results = []
for replicas in (2, 1):
    keras.utils.set_random_seed(0)
    with strategy(replicas).scope():
        assert strategy(replicas).num_replicas_in_sync == replicas
        model = trainer(settings)
        before = model.network.get_weights()
        model.compile(keras.optimizers.SGD(0.1), model.loss)
        model.optimizer.build(model.trainable_variables)
    patches = Patches(split_pictures((data,), 1, 0, 0)[0], 4, 8, 4, channels=1, pyramid=True)
    history = model.fit(patches.dataset(), steps_per_epoch=1, verbose=0).history
    results.append((model.network.get_weights(), history))
(two, logs_two), (one, logs_one) = results
assert max(np.abs(a - b).max() for a, b in zip(one, before)) > 1e-3, "nothing was learned"
difference = max(np.abs(a - b).max() for a, b in zip(one, two))
assert difference < 1e-6, difference
for key in ("loss", "psnr"):
    assert abs(logs_one[key][0] / logs_two[key][0] - 1) < 1e-5, (logs_one, logs_two)
main("quick", settings)
"""
KILLED = """
import os, signal, sys
from superres.train.lapsrn import *
from superres.train.loop import Keeper
def kill(self, batch, logs=None):
    if self.model.optimizer.iterations.numpy() == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
Keeper.on_train_batch_end = kill
main("quick", {settings})
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory, photos):
    """A folder of six small photographs."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        write_picture(folder / f"{i}.png", photos["astronaut"][40 * i : 40 * i + 64, 60 * i : 60 * i + 80])
    return folder


@pytest.fixture
def tiny(data, tmp_path):
    """Settings of a training of seconds."""

    def settings(name="run", precision="float32", early_stopping=0, replicas=0, **changes):
        run = RunSettings(str(tmp_path / name), precision, replicas, early_stopping=early_stopping)
        small = {"data": (str(data),), "filters": 4, "depth": (2,), "patch": 8, "batch": 4, "steps": STEPS,
                 "epochs": 3, "val_pictures": 1, "test_pictures": 1}
        return Settings(**{**small, **changes}, run=run)

    return settings


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
        "settings.yaml", "log.csv", "model.keras", "last.keras", "backup.weights.h5", "samples", "lock",
        "tensorboard",
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


# In float16 the loss is scaled, which moves by itself.
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_stopped_run_goes_on_to_the_same_weights_to_the_bit(tiny, tmp_path, monkeypatch, precision):
    main("quick", tiny("whole", precision))
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_train_batch_end", at_step(STEPS + 2, interrupt))
        with pytest.raises(KeyboardInterrupt):
            main("quick", tiny("stopped", precision))
    assert len(rows(tmp_path / "stopped")) == 1
    main("quick", tiny("stopped", precision))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    # Weights that no training changes would be equal, too.
    assert any((one != two).any() for one, two in zip(
        weights(tmp_path / "whole"), lapsrn(2, filters=4, depth=2).get_weights(), strict=True))


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


def test_numbers_out_of_range_are_named():
    values = {"limit": None, "tile": 0, "ema": 1.0}
    check_range(values, least=0)
    check_range(values, "limit", "ema", least=1)
    for value, limits, message in ((0, {"least": 1}, "at least 1, not 0"),
                                   (1.0, {"least": 0, "below": 1}, "at least 0 and below 1, not 1.0"),
                                   (math.nan, {"least": 0}, "at least 0, not nan")):
        with pytest.raises(InputError, match=f"^tile: must be {re.escape(message)}$"):
            check_range({**values, "tile": value}, "limit", "tile", **limits)


@pytest.mark.parametrize(("changes", "message"), [
    *(({name: 0}, f"{name}: must be at least 1, not 0")
      for name in ("patch", "batch", "filters", "epochs", "steps")),
    ({"ema": 1.0}, r"ema: must be at least 0 and below 1, not 1\.0"),
    ({"patches": 4}, "steps: 16 patches in batches of 4 are 4 steps an epoch, not 3"),
    ({"patches": -1}, "patches: must be at least 0, not -1"),
])
def test_wrong_settings_are_one_line_errors(tiny, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        main("quick", tiny(**changes))
    assert not (tmp_path / "run").exists()


def test_a_run_stopped_while_it_saves_goes_on(tiny, tmp_path, monkeypatch):
    main("quick", tiny("whole"))
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
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_killed_process_goes_on(tiny, tmp_path, run_command):
    main("quick", tiny("whole"))
    result = run_command("-c", KILLED.format(step=STEPS + 2, settings=repr(tiny("killed"))))
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert len(rows(tmp_path / "killed")) == 1
    main("quick", tiny("killed"))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_finished_run_is_left_as_it_is(tiny, tmp_path, capsys):
    for _ in range(2):
        main("quick", tiny(epochs=1))
        files = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    assert "done already, after 1 of 1 epochs" in capsys.readouterr().out
    assert files == {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    assert len(rows(tmp_path / "run")) == 1


def test_a_run_does_not_go_on_with_other_settings(tiny):
    main("quick", tiny(epochs=1))
    with pytest.raises(InputError, match=r"started with another learning_rate \(0.001, now 0.1\)"):
        main("quick", tiny(epochs=1, learning_rate=0.1))


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

    monkeypatch.setattr("superres.train.loop.strategy", lambda replicas: Three)
    with pytest.raises(InputError, match="batch: 4 does not divide by 3 replicas"):
        main("quick", tiny())


def test_a_run_that_diverges_stops_and_keeps_the_best_network(tiny, tmp_path, monkeypatch):
    batch = Patches.batch_number

    def poisoned(self, number):
        lr, targets = batch(self, number)
        return (lr * np.nan if number == STEPS + 1 else lr), targets

    monkeypatch.setattr(Patches, "batch_number", poisoned)
    with pytest.raises(InputError, match=r"the loss is nan at step 2 of the epoch; model\.keras holds"):
        main("quick", tiny())
    assert len(rows(tmp_path / "run")) == 1
    assert all(np.isfinite(array).all() for array in weights(tmp_path / "run", "model.keras"))


def test_a_learning_rate_beyond_all_bounds_is_an_error(tiny):
    with pytest.raises(InputError, match=r"stopped, the (loss|validation PSNR) is"):
        main("quick", tiny(learning_rate=1e30, loss="charbonnier"))


def test_early_stopping_ends_a_run_for_good(tiny, tmp_path, capsys):
    # Nothing is learned, so that no epoch is better than the first.
    for _ in range(2):
        main("quick", tiny(epochs=9, steps=1, learning_rate=0.0, early_stopping=2))
        assert len(rows(tmp_path / "run")) == 3
    out = capsys.readouterr().out
    assert "early stopping: no better val_psnr_y for 2 epochs" in out
    assert "done already, after 3 of 9 epochs" in out


def test_model_is_the_best_epoch_and_last_is_the_last(tiny, tmp_path, monkeypatch):
    scores = iter([20.0, 30.0, 25.0])
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


def test_a_flat_picture_ends_no_training(tmp_path, photos, capsys):
    """Black pictures among the others, and nothing else: perfect patches and scores are no fault."""
    for name, count in (("some", 9), ("all", 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            picture = photos["astronaut"][30 * i : 30 * i + 48, 40 * i : 40 * i + 48]
            write_picture(tmp_path / name / f"{i}.png", picture if name == "some" and i else picture * 0)
        for seed in range(3):  # another one is held out
            run = RunSettings(str(tmp_path / f"{name}{seed}"), seed=seed)
            main("quick", Settings(data=(str(tmp_path / name),), filters=4, depth=(2,), patch=8, batch=2,
                                   steps=2, epochs=1, val_pictures=1, test_pictures=1, run=run))
            row, = rows(run.folder)
            assert all(np.isfinite(float(value)) for value in row.values())
    assert "ALARM" not in capsys.readouterr().out


def test_constant_output_raises_the_alarm(tiny, monkeypatch, capsys):
    monkeypatch.setattr("superres.models.upscaler.Upscaler.upscale", lambda network, lr: np.full(
        (lr.shape[0] * 2, lr.shape[1] * 2, 3), 0.5, "float32"))
    main("quick", tiny(epochs=1))
    assert "ALARM: the output is almost constant (0% of the contrast of HR)" in capsys.readouterr().out


def test_two_devices_train_as_one(data, tmp_path, run_command):
    result = run_command("-c", REPLICAS, data, tmp_path / "run")
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(rows(tmp_path / "run")) == 1
    assert "2 device(s)" in result.stdout


def test_perceptual_loss_trains(tiny, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "vgg.npz", conv1_1_w=rng.normal(0, 0.1, (3, 3, 3, 64)), conv1_1_b=np.zeros(64))
    settings = tiny(epochs=1, loss="perceptual", vgg_layer="block1_conv1",
                    vgg_weights=str(tmp_path / "vgg.npz"))
    main("quick", settings)
    keras.utils.set_random_seed(settings.run.seed)
    start = trainer(settings).network.get_weights()
    assert all((one != two).any() for one, two in zip(weights(tmp_path / "run"), start, strict=True))


def test_the_psnr_of_a_step_is_the_mean_over_patches_and_finite(tiny, rng):
    model = trainer(tiny())  # new: bicubic interpolation, which is exact on flat patches
    lr = rng.random((3, 8, 8, 1), "float32")
    lr[0] = 0.5
    sr = np.clip(model.network(lr), 0, 1)
    hr = np.clip(sr + 0.1 * rng.random(sr.shape, "float32"), 0, 1)
    hr[0] = 0.5
    expected = np.mean([finite_psnr(a, b) for a, b in zip(hr, sr, strict=True)])
    assert finite_psnr(hr[0], sr[0]) == pytest.approx(10 * np.log10(255**2 * 256))
    assert float(model.train_step((lr, (hr,)))["psnr"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("levels", ["all", "last"])
def test_loss_sees_the_levels_that_the_settings_name(tiny, levels):
    settings = tiny(scale=4, levels=levels)
    model = trainer(settings)
    examples = split_pictures(settings.data, 1, 1, 0)[0]
    batch = Patches(examples, 4, 8, 4, channels=1, pyramid=levels == "all").batch_number(0)
    outputs = model.network(batch[0])
    expected = sum(
        Charbonnier(1e-3)(hr, sr) for hr, sr in zip(batch[1][::-1], outputs[::-1], strict=False)
    )
    result = model.train_step((batch[0], tuple(batch[1])))
    assert float(result["loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_reported_presets_hold_the_reports_numbers():
    x2, x4 = (PRESETS[name][1] for name in ("reported-x2", "reported-x4"))
    expected = {
        "scale": 2, "batch": 16, "patch": 128, "channels": 1, "filters": 64, "depth": (10,),
        "train_pictures": 80, "epochs": 100, "learning_rate": 1e-3, "schedule": "exponential",
        "loss": "charbonnier", "levels": "last", "chain": "image",
        "image_branch": "subpixel", "skip_every": 0, "degradation": "realworld",
    }
    assert {key: getattr(x2, key) for key in expected} == expected
    assert {key: getattr(x4, key) for key in expected} == {**expected, "scale": 4, "batch": 4}
    assert sorted([x2.val_pictures, x2.test_pictures]) == [5, 15]
    # Fixed sets, 80 pictures x 100 patches in batches of 16, and 2000 patches in batches of 4
    assert (80 * x2.patches, x2.steps) == (8000, 8000 // 16)
    assert (80 * x4.patches, x4.steps) == (2000, 2000 // 4)
    assert x2.run.early_stopping > 0
    assert x2.run.precision == "float32"


def test_reported_optimiser_and_network():
    model = trainer(PRESETS["reported-x4"][1])
    assert model.network.count_params() == 2 * 481_321  # see test_models.py
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    schedule = model.optimizer._learning_rate
    assert [float(schedule(step)) for step in (0, 1000, 2000)] == pytest.approx(
        [1e-3, 0.95e-3, 0.95**2 * 1e-3])
    assert model.loss.epsilon == 1e-3


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_trainer(name):
    settings = dataclasses.replace(PRESETS[name][1], filters=4)
    assert trainer(settings).network.scale == settings.scale


def test_cosine_schedule_ends_at_zero(tiny):
    schedule = trainer(tiny()).optimizer._learning_rate
    assert [float(schedule(step)) for step in (0, 3 * STEPS)] == pytest.approx([1e-3, 0])


def test_a_network_starts_from_the_levels_of_another(tiny, tmp_path, randomize):
    source = randomize(lapsrn(2, filters=4, depth=2, residual="features"))
    source.save(tmp_path / "x2.keras")
    settings = tiny(scale=4, start=str(tmp_path / "x2.keras"), start_partial=True)
    keras.utils.set_random_seed(1)
    started = trainer(settings).network
    keras.utils.set_random_seed(1)
    plain = trainer(dataclasses.replace(settings, start="")).network
    for layer in started.layers:
        owner = plain if layer.name.startswith("level2") else source
        for one, two in zip(layer.get_weights(), owner.get_layer(layer.name).get_weights()
                            if layer.weights else [], strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_network_that_shares_nothing_cannot_be_started_from():
    with pytest.raises(InputError, match="start: the network has no layer in common with lapsrn_x2"):
        take_weights(lapsrn(2, filters=4, depth=1), weights_of(lapsrn(4, filters=5, depth=1, channels=3)))


def test_a_part_is_taken_only_where_it_is_asked_for(tmp_path, tiny, capsys):
    lapsrn(2, filters=4, depth=2, residual="features").save(tmp_path / "x2.keras")
    settings = tiny(scale=4, start=str(tmp_path / "x2.keras"))
    with pytest.raises(InputError, match=r"only 5 of 8 layers find weights .* level2_conv1 does not"):
        trainer(settings)
    trainer(dataclasses.replace(settings, start_partial=True))
    assert "start: took 5 of 8 layers, 965 of 1,665 weights" in capsys.readouterr().out


def test_networks_of_one_structure_need_no_names_in_common():
    def network(width=3):
        inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(width), keras.layers.Dense(1)])
        x = keras.Input((2,))
        return keras.Model(x, keras.layers.Dense(2)(inner(x)))

    one, two, other = network(), network(), network(4)
    assert not weights_of(one).keys() & weights_of(two).keys()
    take_weights(two, weights_of(one))
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="no layer in common"):
        take_weights(other, weights_of(one))


def test_layers_that_may_be_new_are_no_part():
    source, target = (keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="same"), *more])
                      for more in ([], [keras.layers.BatchNormalization(name="new")]))
    with pytest.raises(InputError, match="only 1 of 2 layers find weights"):
        take_weights(target, weights_of(source))
    take_weights(target, weights_of(source), new=(keras.layers.BatchNormalization,))
    np.testing.assert_array_equal(target.get_weights()[0], source.get_weights()[0])


def test_a_run_leaves_the_precision_as_it_was(tiny):
    main("quick", tiny(precision="mixed_bfloat16", epochs=1))
    assert keras.config.dtype_policy().name == "float32"


def test_a_run_tells_when_it_ends(tiny, capsys):
    main("quick", tiny(epochs=2))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert re.fullmatch(r"epoch 1 of 2: 0\.\d{3} s a step, ends in about \d+ s", lines[0])
    assert re.fullmatch(r"epoch 2 of 2: 0\.\d{3} s a step", lines[1])


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
