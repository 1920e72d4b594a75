"""train/pixel_recursive.py: its optimiser, its loss, and whole trainings in miniature."""

import dataclasses
import signal
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from test_pixelcnn import tiny
from test_sampler import softmax
from test_train import assert_same_run, at_step, interrupt, rows, weights

from superres.datasets import catalogue
from superres.datasets.catalogue import load
from superres.datasets.pictures import read_picture, write_picture
from superres.errors import InputError
from superres.layers import SPADEResBlock
from superres.models import upscaler
from superres.models.sampler import Sampler
from superres.train.log import Log
from superres.train.loop import Keeper, RunSettings
from superres.train.pixel_recursive import (
    PRESETS,
    PixelRecursiveTrainer,
    RMSprop,
    main,
    split_thumbnails,
    trainer,
)

STEPS = 2
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
MEASURES = ["val_psnr", "val_ssim", "val_ms_ssim", "val_one_digit"]


# ------------------------------------------------------------------ RMSProp


def rmsprop(accumulator, **changes):
    settings = {"learning_rate": 4e-4, "rho": 0.95, "momentum": 0.9, "epsilon": 1e-8, **changes}
    return RMSprop(accumulator=accumulator, **settings)


def path_of(optimizer, gradients, compiled=False):
    """Where weights that start at zero stand after each of the gradients."""
    weight = keras.Variable(np.zeros(gradients.shape[1:], "float32"))
    path = []

    def step(gradient):
        optimizer.apply([gradient], [weight])

    step = tf.function(step) if compiled else step
    for gradient in gradients:
        step(tf.constant(gradient))
        path.append(np.array(weight))
    return np.stack(path)


def formula(gradients, accumulator):
    """TensorFlow 1's RMSProp, where epsilon stands below the root."""
    ms, m, w, path = accumulator, 0.0, 0.0, []
    for gradient in gradients.astype("float64"):
        ms = 0.95 * ms + 0.05 * gradient**2
        m = 0.9 * m + 4e-4 * gradient / np.sqrt(ms + 1e-8)
        w = w - m
        path.append(w)
    return np.stack(path)


@pytest.fixture
def gradients(rng):
    """Ten gradients of seven weights, of sizes from 1e-5, where epsilon counts, to 10."""
    return (rng.normal(size=(10, 7)) * np.logspace(-5, 1, 7)).astype("float32")


@pytest.mark.parametrize("compiled", [False, True])  # also the optimiser's variables are made inside
@pytest.mark.parametrize("accumulator", [0.0, 1.0])
def test_rmsprop_is_its_formula(gradients, accumulator, compiled):
    path = path_of(rmsprop(accumulator), gradients, compiled)
    np.testing.assert_allclose(path, formula(gradients, accumulator), rtol=1e-4, atol=1e-12)


def test_rmsprop_is_tensorflow_1s(gradients):
    v1, expected = tf.compat.v1, []
    with tf.Graph().as_default(), v1.Session() as session:
        weight = tf.Variable(np.zeros(7, "float32"))
        gradient = v1.placeholder("float32", (7,))
        step = v1.train.RMSPropOptimizer(4e-4, 0.95, 0.9, 1e-8).apply_gradients([(gradient, weight)])
        session.run(v1.global_variables_initializer())
        for values in gradients:
            session.run(step, {gradient: values})
            expected.append(session.run(weight))
    np.testing.assert_allclose(path_of(rmsprop(1.0), gradients), expected, rtol=1e-4, atol=1e-12)


def test_rmsprop_with_accumulator_zero_is_keras_s(gradients):
    plain = keras.optimizers.RMSprop(4e-4, rho=0.95, momentum=0.9, epsilon=1e-8)
    np.testing.assert_array_equal(path_of(rmsprop(0.0), gradients), path_of(plain, gradients))


@pytest.mark.parametrize(("accumulator", "moved"), [(1.0, 1.85e-4), (0.0, 4.4e-2)])
def test_accumulator_decides_the_first_steps(accumulator, moved):
    path = path_of(rmsprop(accumulator), np.full((10, 1), 0.01, "float32"))
    assert -path[-1, 0] == pytest.approx(moved, rel=0.02)


@pytest.mark.parametrize("accumulator", [0.0, 1.0])
def test_rmsprop_comes_back_from_its_config(gradients, accumulator):
    optimizer = rmsprop(accumulator, learning_rate=keras.optimizers.schedules.ExponentialDecay(4e-4, 3, 0.5))
    again = RMSprop.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    np.testing.assert_array_equal(path_of(again, gradients), path_of(optimizer, gradients))


# ------------------------------------------------------------------ loss


@pytest.fixture
def batch(rng):
    return rng.random((2, 3, 3, 3), "float32"), (rng.integers(0, 256, (2, 6, 6, 3)) / 255).astype("float32")


def nats(hr, logits):
    p = np.take_along_axis(softmax(logits), np.round(hr * 255).astype(int)[..., None], -1)
    return -np.log(p).mean()


def gradients_of(model, batch):
    """Of the conditioning network and of the prior network."""
    parts = [model.network.get_layer(name).trainable_variables for name in ("conditioning", "prior")]
    with tf.GradientTape() as tape:
        loss, _ = model.losses_of(*batch)
    return tape.gradient(loss, parts)


@pytest.mark.parametrize(("iteration", "weight"), [(0, 0.9), (4, 0.6), (8, 0.3), (100, 0.3)])
def test_loss_is_both_cross_entropies(batch, iteration, weight):
    model = PixelRecursiveTrainer(tiny(), (0.9, 0.3, 8))
    model.compile(rmsprop(1.0))
    model.optimizer.iterations.assign(iteration)
    a, b = map(np.array, model.network(batch, training=True))
    loss, shown = model.losses_of(*batch)
    both, alone = nats(batch[1], a + b), nats(batch[1], a)
    assert abs(both - alone) > 0.01
    assert float(loss) == pytest.approx(both + weight * alone, rel=1e-5)
    assert float(shown) == pytest.approx(both / np.log(2), rel=1e-5)


def test_second_term_trains_the_conditioning_network_only(batch):
    network = tiny()
    one, other = (PixelRecursiveTrainer(network, (weight, weight, 1)) for weight in (0.0, 5.0))
    for model in (one, other):
        model.compile(rmsprop(1.0))
    (a, b), (a_other, b_other) = (gradients_of(model, batch) for model in (one, other))
    for first, second in zip(b, b_other, strict=True):
        assert np.abs(first).max() > 0
        np.testing.assert_array_equal(first, second)
    assert all(np.abs(second - first).max() > 0.01 * np.abs(first).max()
               for first, second in zip(a[-2:], a_other[-2:], strict=True))


def test_regression_minimises_the_mean_square_error(batch):
    settings = PRESETS["regression"][1]
    data = dataclasses.replace(settings.data, size=3, scale=2)
    model = trainer(dataclasses.replace(settings, data=data, filters=4, blocks=1))
    mean = np.array(model.network(batch[0], training=True))
    loss, shown = map(float, model.losses_of(*batch))
    assert loss == shown == pytest.approx(np.square(mean - batch[1]).mean(), rel=1e-5)


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_trainer(name):
    settings = PRESETS[name][1]
    model = trainer(settings)
    assert model.network.scale == settings.data.scale
    assert model.network.lr_size == settings.data.size == 8
    assert len(model.network.inputs) == (1 if name == "regression" else 2)
    model.optimizer.build(model.trainable_variables)
    assert {float(value) for v in model.optimizer._velocities for value in np.unique(v)} == {
        settings.accumulator}


def test_presets_by_name():
    assert list(PRESETS) == ["reported", "reported-spade", "improved", "improved-spade", "regression",
                             "corners", "quick"]


@pytest.mark.parametrize("name", [name for name, (_, settings) in PRESETS.items() if settings.run.snapshots])
def test_snapshots_of_presets_end_epochs(name):
    settings = PRESETS[name][1]
    assert not any(step % settings.steps for step in settings.run.snapshots)


def test_reported_networks_are_the_report_s():
    # "SPADE block, Relu and Convolution layer"; "kernel size=4x4 and stride=2".
    for name, slopes, size in [("reported", set(), 3), ("reported-spade", {0.0}, 4)]:
        settings = PRESETS[name][1]
        assert settings.epochs * settings.steps == 21_000
        conditioning = trainer(settings).network.get_layer("conditioning")
        blocks = [layer for layer in conditioning.layers if isinstance(layer, SPADEResBlock)]
        assert {block.slope for block in blocks} == slopes
        assert all(block.conv_0.kernel_size == block.conv_1.kernel_size == (3, 3) for block in blocks)
        assert [(layer.kernel_size, layer.strides) for layer in conditioning.layers
                if isinstance(layer, keras.layers.Conv2DTranspose)] == [((size, size), (2, 2))] * 2


def test_networks_that_are_compared_have_as_many_weights():
    counts = []
    for name in ("improved", "improved-spade"):
        network = trainer(PRESETS[name][1]).network.get_layer("conditioning")
        counts.append(sum(int(np.prod(weight.shape)) for weight in network.trainable_weights))
    assert counts[1] == pytest.approx(counts[0], rel=0.02)


def test_learning_rate_falls_in_steps():
    settings = PRESETS["improved"][1]
    schedule = trainer(settings).optimizer._learning_rate
    steps = settings.decay_steps
    rates = [float(schedule(step)) for step in (0, steps - 1, steps, 2 * steps - 1, 2 * steps)]
    assert rates == pytest.approx([4e-4, 4e-4, 1e-4, 1e-4, 0.25e-4])


def test_reported_kernels_are_drawn_from_a_truncated_normal_distribution():
    network = trainer(PRESETS["reported"][1]).network
    kernels = [np.array(v) for v in network.trainable_variables if "kernel" in v.name]
    assert len(kernels) > 100
    values = np.concatenate([kernel.ravel() for kernel in kernels])
    assert np.abs(values).max() < 0.2  # two standard deviations
    assert values.std() == pytest.approx(0.088, rel=0.01)  # of what is left between them
    assert len({kernel.ravel()[:9].tobytes() for kernel in kernels}) == len(kernels)


# ------------------------------------------------------------------ data


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photos):
    """Seven pictures, 0.png to 6.png."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(7):
        write_picture(folder / f"{i}.png", photos["astronaut"][40 * i : 40 * i + 40, 60 * i : 60 * i + 50])
    return folder


@pytest.mark.parametrize(("held_out", "expected"), [(2, "0246"), (3, "036"), (8, "0")])
def test_of_a_folder_one_picture_in_so_many_is_held_out(folder, monkeypatch, held_out, expected):
    read = []
    monkeypatch.setattr(catalogue, "read_picture", lambda path: read.append(path.stem) or read_picture(path))
    train, test = ([example.name for example in load(folder, side, held_out=held_out)]
                   for side in ("train", "test"))
    assert test == list(expected)
    assert train == [name for name in "0123456" if name not in expected]
    assert sorted(read) == list("0123456")  # each of them once


def test_the_whole_of_a_folder_is_both_splits_unless_some_are_held_out(folder):
    for side in ("train", "test"):
        assert [example.name for example in load(folder, side)] == list("0123456")
        assert [example.name for example in load("photos", side, held_out=3)] == [
            example.name for example in load("photos", side)]


@pytest.fixture
def settings(tmp_path):
    """Settings of a training of seconds."""

    def make(name="run", precision="float32", snapshots=(), data=None, **changes):
        corners = PRESETS["corners"][1]
        small = {"blocks": 1, "filters": 6, "prior_filters": 6, "prior_blocks": 1, "prior_head": 12,
                 "batch": 4, "steps": STEPS, "epochs": 2}
        return dataclasses.replace(
            corners, data=dataclasses.replace(corners.data, **{"val_pictures": 4, **(data or {})}),
            run=RunSettings(str(tmp_path / name), precision, snapshots=snapshots), **{**small, **changes})

    return make


def test_validation_and_test_pictures_are_not_trained_on(settings, folder):
    data = {"source": (str(folder), "photos"), "held_out": 3, "val_pictures": 2}
    pictures = split_thumbnails(settings(data=data))
    train, val, test = (part.names for part in pictures)
    assert val == ["0", "3"]
    assert test == ["6", "astronaut", "chelsea", "coffee", "camera"]
    assert train[:5] == ["1", "2", "4", "5", "rocket"]
    assert not {*train} & {*val, *test}
    assert pictures[0].hr.shape[1:] == (16, 16, 1)


def test_a_copy_across_the_split_is_warned_of(settings, folder, photos, tmp_path, recwarn):
    data = {"source": (str(folder), str(tmp_path)), "held_out": 3, "val_pictures": 2}
    for name in ("0", "1"):
        write_picture(tmp_path / f"other_{name}.png", photos["coffee"][:40, int(name) : 50 + int(name)])
    split_thumbnails(settings(data={**data, "source": (str(folder),)}))
    split_thumbnails(settings())  # digits in corners, which are alike
    assert not recwarn.list
    with pytest.warns(match="^other_0, which is measured on, looks like other_1, which is trained on"):
        split_thumbnails(settings(data=data))


def test_flips_are_for_training(settings):
    flipped = settings(data={"flip": True})
    train, *_ = split_thumbnails(flipped)
    assert train.flip
    assert not split_thumbnails(settings())[0].flip


# ------------------------------------------------------------------ runs


@pytest.fixture
def uncompiled(monkeypatch):
    """Draw without XLA, whose compilation would take most of the time."""
    monkeypatch.setattr(upscaler, "Sampler", partial(Sampler, jit_compile=False))


def test_a_run_leaves_its_network_log_settings_snapshots_and_samples(settings, tmp_path, capsys):
    main("corners", settings(snapshots=(2, 4, 6)))  # the last one is past the end
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "settings.yaml", "log.csv", "model.keras", "last.keras", "step_2.keras", "step_4.keras",
        "backup.weights.h5", "samples", "tensorboard", "lock",
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


def test_training_learns(settings):
    corners = settings(filters=8, prior_filters=8, batch=8, decay_steps=1000)
    batches = split_thumbnails(corners)[0].dataset()
    log = trainer(corners).fit(batches, steps_per_epoch=20, epochs=3, verbose=0, shuffle=False).history
    assert 8 > log["loss"][0] > log["loss"][1] > log["loss"][2]  # bits; eight are a guess


def test_conditioned_gates_train_and_are_measured_with_lr(settings, tmp_path, uncompiled, capsys):
    main("corners", settings(conditioned=True, ema=0.5, epochs=1))
    assert [key for key in rows(tmp_path / "run")[0] if "bits" in key] == ["val_bits", "val_bits_a"]
    assert ", B " not in capsys.readouterr().out  # alone it is no model of HR
    network = upscaler.load(tmp_path / "run" / "model.keras")
    assert len(network.get_layer("prior").inputs) == 2


@pytest.mark.parametrize("conditioned", [False, True])
def test_a_network_starts_from_another(settings, tmp_path, conditioned):
    first = settings(conditioned=conditioned)
    source = trainer(first).network
    source.save(tmp_path / "first.keras")
    again = dataclasses.replace(first, start=str(tmp_path / "first.keras"))
    for one, two in zip(source.get_weights(), trainer(again).network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert any((one != plain).any() for one, plain in
               zip(source.get_weights(), trainer(first).network.get_weights(), strict=True))
    with pytest.raises(InputError, match=r"start: only 1 of 1[56] layers find weights of their shape in it"):
        trainer(dataclasses.replace(again, filters=8, prior_filters=8))


def test_average_is_that_of_the_steps(settings):
    averaged = settings(ema=0.75)
    model, batches, steps = trainer(averaged), split_thumbnails(averaged)[0], []
    variables = model.network.trainable_variables
    for i in range(3):
        model.train_step(batches.batch_number(i))
        steps.append([np.array(weight) for weight in variables])
    model.optimizer.finalize_variable_values(variables)
    for one, two, three, average in zip(*steps, variables, strict=True):  # it starts with the first step's
        np.testing.assert_allclose(average, 0.75 * (0.75 * one + 0.25 * two) + 0.25 * three,
                                   rtol=1e-5, atol=1e-7)
        assert (one != two).any()
    with pytest.raises(InputError, match="ema: must be at least 0 and below 1, not 1"):
        main("corners", settings(ema=1.0))


def test_a_stopped_run_goes_on_to_the_same_weights_to_the_bit(settings, tmp_path, uncompiled, monkeypatch):
    changes = {"precision": "mixed_bfloat16", "data": {"flip": True}}  # as `improved`
    main("corners", settings("whole", **changes))
    stopped = settings("stopped", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_train_batch_end", at_step(STEPS + 1, interrupt))
        with pytest.raises(KeyboardInterrupt):
            main("corners", stopped)
    assert len(rows(tmp_path / "stopped")) == 1
    main("corners", stopped)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    assert any((one != two).any() for one, two in
               zip(weights(tmp_path / "whole"), trainer(stopped).network.get_weights(), strict=True))


def test_a_killed_process_goes_on(settings, tmp_path, uncompiled, run_command):
    changes = {"model": "independent", "data": {"val_pictures": 2}}
    main("corners", settings("whole", **changes))
    result = run_command("-c", KILLED.format(step=STEPS + 1, settings=repr(settings("killed", **changes))))
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert len(rows(tmp_path / "killed")) == 1
    main("corners", settings("killed", **changes))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("model", ["recursive", "independent", "regression"])
@pytest.mark.parametrize("norm", ["batch", "spade", "batch+lr"])
def test_a_step_trains_every_weight(settings, model, norm):
    small = settings(model=model, norm=norm, hidden=3, initializer="truncated_normal", conditioned=True)
    trained = trainer(small)
    before = [np.array(weight) for weight in trained.trainable_variables]
    for i in range(2):  # the features' scale stands still until the gates make use of them
        result = trained.train_step(split_thumbnails(small)[0].batch_number(i))
    assert np.isfinite(result["loss"])
    still = [weight.path for old, weight in zip(before, trained.trainable_variables, strict=True)
             if (old == np.array(weight)).all()]
    assert not still


@pytest.mark.parametrize(("model", "score"), [("regression", "val_mse"), ("independent", "val_bits")])
def test_networks_without_a_prior_train(settings, tmp_path, uncompiled, capsys, model, score):
    main("corners", settings(model=model))
    log = rows(tmp_path / "run")
    assert list(log[0]) == ["epoch", "step", "seconds", "step_seconds", "loss", score, *MEASURES]
    best = min(log, key=lambda row: float(row[score]))
    same = [(one == two).all() for one, two in
            zip(weights(tmp_path / "run", "model.keras"), weights(tmp_path / "run"), strict=True)]
    assert all(same) == (best is log[-1])
    out = capsys.readouterr().out
    assert ("mean square error: " if model == "regression" else "bits per dimension: A + B ") in out


def test_log_knows_that_fewer_bits_are_better(tmp_path):
    log, best = Log(tmp_path / "log.csv", "val_bits", min), []
    for epoch, bits in enumerate([3.0, 2.0, 2.0, 2.5], start=1):
        log.add({"epoch": epoch, "val_bits": bits})
        best.append(log.is_best())
    assert best == [True, True, False, False]
    assert log.stale(2)
    assert not log.stale(3)


# ------------------------------------------------------------------ mistakes


def test_snapshots_must_end_an_epoch(settings):
    with pytest.raises(InputError, match=r"run\.snapshots: 3 does not end an epoch of 2 steps"):
        main("corners", settings(snapshots=(2, 3)))


def test_too_few_pictures_are_an_error(settings, folder):
    with pytest.raises(InputError, match="data: 297 pictures held out are too few to validate on 297"):
        main("corners", settings(data={"val_pictures": 297}))
    with pytest.raises(InputError, match="data: 3 pictures held out are too few to validate on 4"):
        main("corners", settings(data={"source": (str(folder),), "held_out": 3}))


@pytest.mark.parametrize("name", ["batch", "filters", "blocks", "epochs", "steps", "decay_steps",
                                  "conditioning_steps", "prior_filters", "prior_head"])
def test_numbers_below_one_are_an_error(settings, name):
    with pytest.raises(InputError, match=f"{name}: must be at least 1, not 0"):
        main("corners", settings(**{name: 0}))


@pytest.mark.parametrize(("name", "value"), [("size", 0), ("val_pictures", 0), ("held_out", 0),
                                             ("held_out", 1)])
def test_bad_numbers_of_the_data_are_an_error(settings, folder, name, value):
    # No traceback, and a message that names the setting.
    data = {"source": (str(folder),), "held_out": 3, "val_pictures": 2, name: value}
    with pytest.raises(InputError, match=name):
        main("corners", settings(data=data))


def test_data_that_does_not_exist_is_named(settings):
    with pytest.raises(InputError, match="nowhere: neither a folder nor a known name"):
        main("corners", settings(data={"source": ("nowhere",)}))
