"""train/lapsrn.py: its loss, what it shows, its presets and settings."""

import dataclasses
import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_train import STEPS, rows, weights

from superres.datasets.degradations import degraded
from superres.datasets.patches import Patches, split_pictures
from superres.datasets.pictures import write_picture
from superres.errors import InputError, check_range
from superres.losses import Charbonnier
from superres.metrics import finite_psnr
from superres.train.lapsrn import PRESETS, Settings, main, trainer
from superres.train.loop import RunSettings

pytestmark = [pytest.mark.usefixtures("eagerly"),
              pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")]
# One step of stochastic gradient descent on two logical devices, compiled, and on one, not compiled: Adam
# would hide gradients that are summed instead of averaged. And whole runs on two devices and on one.
REPLICAS = """
import sys
import keras, numpy as np
from superres.datasets.patches import Patches, split_pictures
from superres.train import lapsrn
from superres.train.devices import strategy
from superres.train.lapsrn import RunSettings, Settings, main, tf, trainer

data, folder = sys.argv[1:]
settings = Settings(data=(data,), scale=4, filters=4, depth=(2,), patch=8, batch=4, epochs=1, steps=2,
                    val_pictures=1, test_pictures=0, run=RunSettings(folder=folder, replicas=2))
devices = {number: strategy(number) for number in (2, 1)}  # two in a process get into each other's way
lapsrn.strategy = lambda replicas, workers: devices[replicas]
results = []
for replicas in (2, 1):
    tf.config.run_functions_eagerly(replicas == 1)
    keras.utils.set_random_seed(0)
    with devices[replicas].scope():
        assert devices[replicas].num_replicas_in_sync == replicas
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
for replicas in (2, 1):
    settings.run.folder, settings.run.replicas = f"{folder}{replicas}", replicas
    main("quick", settings)

# In float16, of two devices the second alone overflows.
tf.config.run_functions_eagerly(False)
keras.config.set_dtype_policy("mixed_float16")
with devices[2].scope():
    model = trainer(settings)
    model.optimizer.build(model.network.trainable_variables)
before, (lr, hr) = model.network.get_weights(), patches.batch_number(0)
def half(context):
    number = context.replica_id_in_sync_group
    rows = slice(2 * number, 2 * number + 2)
    wrong = np.float32(np.nan if number and failing else 0)
    return tf.constant(lr[rows]), tuple(tf.constant(x[rows] + wrong) for x in hr)
for failing in (1, 0):
    batch = devices[2].experimental_distribute_values_from_function(half)
    devices[2].run(tf.function(model.train_step, autograph=False), args=(batch,))
    changed = max(np.abs(a - b).max() for a, b in zip(model.network.get_weights(), before))
    assert int(model.optimizer.iterations.numpy()) == 1 - failing and (changed == 0) == failing, changed
    assert float(model.optimizer.dynamic_scale.numpy()) == 2**14
"""


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
    ({"depth": (2, 0)}, "depth: must be at least 1, not 0"),
    ({"skip_every": -1}, "skip_every: must be at least 0, not -1"),
    ({"ema": 1.0}, r"ema: must be at least 0 and below 1, not 1\.0"),
    ({"patches": 4}, "steps: 16 patches in batches of 4 are 4 steps an epoch, not 3"),
    ({"patches": -1}, "patches: must be at least 0, not -1"),
])
def test_wrong_settings_are_one_line_errors(tiny, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        main("quick", tiny(**changes))
    assert not (tmp_path / "run").exists()


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


def test_perceptual_loss_trains(tiny, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "vgg.npz", conv1_1_w=rng.normal(0, 0.1, (3, 3, 3, 64)), conv1_1_b=np.zeros(64))
    settings = tiny(epochs=1, loss="perceptual", vgg_layer="block1_conv1",
                    vgg_weights=str(tmp_path / "vgg.npz"))
    main("quick", settings)
    keras.utils.set_random_seed(settings.run.seed)
    start = trainer(settings).network.get_weights()
    assert all((one != two).any() for one, two in zip(weights(tmp_path / "run"), start, strict=True))


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
    monkeypatch.setattr("superres.models.upscaler.Upscaler.upscale", lambda network, lr, tile: np.full(
        (lr.shape[0] * 2, lr.shape[1] * 2, 3), 0.5, "float32"))
    main("quick", tiny(epochs=1))
    assert "ALARM: the output is almost constant (0% of the contrast of HR)" in capsys.readouterr().out


def test_one_device_trains_under_a_mirrored_strategy(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr("superres.train.lapsrn.fit", lambda *arguments, **named: seen.append(arguments[0]))
    main("quick", tiny())
    assert [(type(each), each.num_replicas_in_sync) for each in seen] == [(tf.distribute.MirroredStrategy, 1)]


def test_two_devices_train_as_one(tiny, tmp_path, run_command):
    result = run_command("-c", REPLICAS, tiny().data[0], tmp_path / "run")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "2 device(s)" in result.stdout
    (two,), (one,) = (rows(tmp_path / f"run{number}") for number in (2, 1))
    for key in ("loss", "psnr", "val_psnr_y"):
        assert float(two[key]) == pytest.approx(float(one[key]), rel=1e-4)


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
    for layer in model.network.layers:
        if hasattr(layer, "kernel"):  # as Keras starts them: no layer of zeros, no equal sub-pixels
            fans = layer.kernel.shape[-2] + layer.kernel.shape[-1]
            bound = math.sqrt(6 / math.prod(layer.kernel.shape[:2]) / fans)
            kernel = np.asarray(layer.kernel)
            assert 0.9 * bound < np.abs(kernel).max() <= bound, layer.name
            assert len(np.unique(kernel)) > 0.9 * kernel.size, layer.name


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_trainer(name):
    settings = dataclasses.replace(PRESETS[name][1], filters=4)
    assert trainer(settings).network.scale == settings.scale


def test_cosine_schedule_ends_at_zero(tiny):
    schedule = trainer(tiny()).optimizer._learning_rate
    assert [float(schedule(step)) for step in (0, 3 * STEPS)] == pytest.approx([1e-3, 0])


@pytest.mark.parametrize("levels", ["all", "last"])
def test_the_data_are_those_of_the_settings(tiny, monkeypatch, levels):
    settings = tiny(scale=4, levels=levels, degradation="realworld", patch=6, train_pictures=2,
                    test_pictures=2)
    settings.run.seed, given = 5, {}
    monkeypatch.setattr("superres.train.lapsrn.fit", lambda *arguments, **named: given.update(
        named, batches=arguments[2], pairs=arguments[3].pairs))
    main("quick", settings)
    train, val, test = split_pictures(settings.data, 1, 2, 5, 2)
    wanted = Patches(train, 4, 6, 4, channels=1, degradation="realworld", pyramid=levels == "all", seed=5)
    batches = (keras.tree.flatten(patches.batch_number(3)) for patches in (given["batches"], wanted))
    for one, two in zip(*batches, strict=True):
        np.testing.assert_array_equal(one, two)
    ((_, lr, _),) = degraded(val, 4, "realworld")
    np.testing.assert_array_equal(given["pairs"][0][1], lr)
    assert given["held_out"] == [example.name for example in val + test]


@pytest.mark.parametrize(("skip_every", "skips"), [(0, 1), (2, 3)])
def test_skips_are_those_of_the_settings(tiny, skip_every, skips):
    layers = trainer(tiny(depth=(6,), skip_every=skip_every)).network.layers
    assert sum("_skip" in layer.name for layer in layers) == skips
