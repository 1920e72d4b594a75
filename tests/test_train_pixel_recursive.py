"""train/pixel_recursive.py: its loss and its steps, its presets, data and settings."""

import dataclasses
import functools
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_optimisers import rmsprop
from test_pixelcnn import tiny
from test_sampler import softmax

from superres.datasets import catalogue
from superres.datasets.catalogue import load
from superres.datasets.pictures import read_picture, write_picture
from superres.datasets.thumbnails import Thumbnails
from superres.errors import InputError
from superres.layers import SPADEResBlock
from superres.train.loop import RunSettings
from superres.train.pixel_recursive import (
    PRESETS,
    PixelRecursiveTrainer,
    main,
    split_thumbnails,
    trainer,
)

STEPS = 2
trainer_of = functools.cache(lambda preset: trainer(PRESETS[preset][1]))


def small_settings(folder, precision="float32", snapshots=(), data=None, **changes):
    """Settings of a training of seconds."""
    corners = PRESETS["corners"][1]
    small = {"blocks": 1, "filters": 6, "prior_filters": 6, "prior_blocks": 1, "prior_head": 12,
             "batch": 4, "steps": STEPS, "epochs": 2}
    return dataclasses.replace(
        corners, data=dataclasses.replace(corners.data, **{"val_pictures": 4, **(data or {})}),
        run=RunSettings(str(folder), precision, snapshots=snapshots), **{**small, **changes})


@pytest.fixture
def settings(tmp_path):
    """Function of what is to be changed to such settings, of a run in a folder of the test."""
    return partial(small_settings, tmp_path / "run")


# ------------------------------------------------------------------ loss and steps


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


def test_training_learns(settings):
    corners = settings(filters=8, prior_filters=8, batch=8, decay_steps=1000)
    batches = split_thumbnails(corners)[0].dataset()
    log = trainer(corners).fit(batches, steps_per_epoch=20, epochs=3, verbose=0, shuffle=False).history
    assert 8 > log["loss"][0] > log["loss"][1] > log["loss"][2]  # bits; eight are a guess


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
    with pytest.raises(InputError, match="conditioned: independent has no prior network"):
        main("corners", settings(conditioned=True, model="independent"))


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


# ------------------------------------------------------------------ presets


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_trainer(name):
    settings, model = PRESETS[name][1], trainer_of(name)
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
        conditioning = trainer_of(name).network.get_layer("conditioning")
        blocks = [layer for layer in conditioning.layers if isinstance(layer, SPADEResBlock)]
        assert {block.slope for block in blocks} == slopes
        assert all(block.conv_0.kernel_size == block.conv_1.kernel_size == (3, 3) for block in blocks)
        assert [(layer.kernel_size, layer.strides) for layer in conditioning.layers
                if isinstance(layer, keras.layers.Conv2DTranspose)] == [((size, size), (2, 2))] * 2


def test_networks_that_are_compared_have_as_many_weights():
    counts = []
    for name in ("improved", "improved-spade"):
        network = trainer_of(name).network.get_layer("conditioning")
        counts.append(sum(int(np.prod(weight.shape)) for weight in network.trainable_weights))
    assert counts[1] == pytest.approx(counts[0], rel=0.02)


def test_learning_rate_falls_in_steps():
    settings = PRESETS["improved"][1]
    schedule = trainer_of("improved").optimizer._learning_rate
    steps = settings.decay_steps
    rates = [float(schedule(step)) for step in (0, steps - 1, steps, 2 * steps - 1, 2 * steps)]
    assert rates == pytest.approx([4e-4, 4e-4, 1e-4, 1e-4, 0.25e-4])


@pytest.mark.parametrize("preset", ["reported", "reported-spade"])
def test_reported_kernels_are_drawn_from_a_truncated_normal_distribution(preset):
    network = trainer_of(preset).network
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
    assert [part.flip for part in split_thumbnails(flipped)] == [True, False, False]
    assert not split_thumbnails(settings())[0].flip


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


@pytest.mark.parametrize(("name", "value"), [("size", 0), ("size", 1), ("val_pictures", 0), ("held_out", 0),
                                             ("held_out", 1)])
def test_bad_numbers_of_the_data_are_an_error(settings, folder, name, value):
    # No traceback, and a message that names the setting.
    data = {"source": (str(folder),), "held_out": 3, "val_pictures": 2, name: value}
    with pytest.raises(InputError, match=name):
        main("corners", settings(data=data))


def test_data_that_does_not_exist_is_named(settings):
    with pytest.raises(InputError, match="nowhere: neither a folder nor a known name"):
        main("corners", settings(data={"source": ("nowhere",)}))


@pytest.mark.parametrize("crop", ["centre", "face"])
def test_the_square_and_the_seed_are_those_asked_for(settings, folder, crop):
    asked = settings(data={"source": (str(folder),), "held_out": 3, "val_pictures": 2, "crop": crop})
    asked.run.seed = 7
    found = split_thumbnails(asked)[0]
    wanted = Thumbnails(load(folder, "train", held_out=3), 8, 2, channels=1, crop=crop, batch=4, seed=7)
    for one, two in zip(found.batch_number(1), wanted.batch_number(1), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_trainer_is_built_as_the_settings_say(settings):
    model = trainer(settings(norm="spade", hidden=3, spectral=False, conditioning_weight=(0.9, 0.3),
                             conditioning_steps=8))
    assert model.weight == (0.9, 0.3, 8)
    optimizer = model.optimizer
    assert (optimizer.rho, optimizer.momentum, optimizer.epsilon) == (0.95, 0.9, 1e-8)
    blocks = [layer for layer in model.network.get_layer("conditioning").layers
              if isinstance(layer, SPADEResBlock)]
    assert {type(block.conv_0) for block in blocks} == {keras.layers.Conv2D}
