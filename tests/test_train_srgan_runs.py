"""train/srgan.py: whole trainings in miniature, how they stop and go on, and on two devices."""

import dataclasses
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import h5py
import numpy as np
import pytest
from test_train import assert_same_run, at_step, interrupt, rows, weights
from test_train_srgan import ADVERSARIAL, TERMS, changed, small_networks, small_settings

from superres.datasets.patches import Patches
from superres.datasets.pictures import read_picture
from superres.errors import InputError
from superres.models.upscaler import load
from superres.train.gan import GANValidation
from superres.train.loop import Keeper
from superres.train.srgan import main

DRAW = GANValidation.draw
pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")  # run eagerly
SMALL = """
import os, signal
from functools import partial
import superres.train.loop as loop, superres.train.srgan as script
from superres.train.srgan import *
script.generator, script.discriminator = partial(generator, filters=6), partial(discriminator, filters=2)
GANValidation.draw = lambda *args: None
tf.config.run_functions_eagerly(True)
"""
KILLED = SMALL + """
loop.Keeper.on_train_batch_end = lambda self, batch, logs=None: (
    self.model.optimizer.iterations.numpy() == {step} and os.kill(os.getpid(), signal.SIGKILL))
main("quick", {settings})
"""
# One step of stochastic gradient descent on two logical devices, the first one as `fit` compiles it, and on
# one, without compiling: what both networks' weights change by are their gradients. Adam would hide gradients
# that are summed instead of averaged. And a run on two devices.
REPLICAS = SMALL + """
import numpy as np
settings = {settings}
patches = Patches(split_pictures(settings.data, 1, 0, 0)[0], 2, 8, 4)
devices = {{number: strategy(number) for number in (2, 1)}}  # two in a process get into each other's way
script.strategy = lambda replicas, workers: devices[replicas]
for kind, frozen, r1 in (("standard", False, 0.01), ("relativistic", True, 0.01)):
    results = []
    for replicas in (2, 1):
        eagerly = frozen or replicas == 1
        tf.config.run_functions_eagerly(eagerly)
        keras.utils.set_random_seed(0)
        with devices[replicas].scope():
            assert devices[replicas].num_replicas_in_sync == replicas
            model = trainer(dataclasses.replace(settings, adversarial_loss=kind, frozen_norm=frozen, r1=r1))
            parts = [model.network, model.discriminator]
            before = [part.get_weights() for part in parts]
            model.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1))
            model.optimizer.build(model.network.trainable_variables)
            model.discriminator_active = True
        traced, step = [], model.train_step
        model.train_step = lambda batch: traced.append(tf.executing_eagerly()) or step(batch)
        logs = model.fit(patches.dataset(), steps_per_epoch=1, verbose=0, shuffle=False).history
        assert {{*traced}} == {{eagerly}}
        logs = [logs[name] for name in ("loss", "adversarial", "discriminator", "r1")]
        results.append((*(part.get_weights() for part in parts), logs))
    for part, old, two, one in zip(parts, before, *results):
        learned, difference = (max(np.abs(a - b).max() for a, b in zip(one, other)) for other in (old, two))
        # Through a gradient's gradient and seven normalisations of few values, rounding leaves four digits.
        assert learned > 1e-3 and difference < 2e-4 * learned, (kind, part.name, learned, difference)
    np.testing.assert_allclose(*(logs for *_, logs in results), rtol=1e-5)
    statistics = [w for layer in model.network.layers if isinstance(layer, keras.layers.BatchNormalization)
                  for w in (layer.moving_mean, layer.moving_variance)]
    assert frozen == all(float(tf.reduce_max(abs(w - w[0]))) == 0 for w in statistics)  # zeros and ones
tf.config.run_functions_eagerly(True)
main("quick", settings)
"""


@pytest.fixture(scope="module")
def make(grain, eagerly):
    """Settings of a training of seconds: few channels, no compilation, no drawing."""
    with small_networks():
        yield partial(small_settings, grain)


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    """A run of two epochs of warm-up and two of adversarial training, and the weights after its steps."""
    folder, passed = tmp_path_factory.mktemp("whole") / "run", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GANValidation, "draw", lambda *given: len(given[2]) < 4 or DRAW(*given))
        patch.setattr(Keeper, "on_train_batch_end", lambda self, batch, logs=None: passed.append(
            [np.array(v) for v in self.network.trainable_variables]))
        main("quick", make(folder, **ADVERSARIAL))
    return folder, passed


@pytest.fixture(scope="module")
def processes(make, grain, run_command, tmp_path_factory):
    """What needs processes of its own, two at a time: their folder, and name -> finished process."""
    folder = tmp_path_factory.mktemp("processes")
    two = make(folder / "two", replicas=2, warm_up=1, epochs=0, ema=0.5, adversarial=0.5, fidelity=1.0)
    commands = {
        "two": ("-c", REPLICAS.format(settings=two)),  # the longest first
        "killed": ("-c", KILLED.format(step=7, settings=make(folder / "killed", **ADVERSARIAL))),
        "quick": ("train/srgan.py", "quick", "--data", grain, "--run.folder", folder / "quick",
                  "--warm-up", 1, "--epochs", 1, "--steps", 1, "--blocks", 1, "--crop", 16, "--batch", 2),
    }
    with ThreadPoolExecutor(2) as pool:
        finished = pool.map(lambda x: run_command(*x, KERAS_HOME=str(folder / "home")), commands.values())
        return folder, dict(zip(commands, finished, strict=True))


def backup(folder):
    """What a run goes on from: path -> array."""
    names = []
    with h5py.File(folder / "backup.weights.h5") as file:
        file.visit(names.append)
        return {name: file[name][()] for name in names if isinstance(file[name], h5py.Dataset)}


def assert_same_run_and_backup(folder, other):
    assert_same_run(folder, other)
    one, two = backup(folder), backup(other)
    assert one.keys() == two.keys()
    assert not [key for key in one if (one[key] != two[key]).any()]


def test_a_run_trains_adversarially_after_its_warm_up_and_draws(whole):
    folder, _ = whole
    assert {path.name for path in folder.iterdir()} == {
        "settings.yaml", "held_out.txt", "log.csv", "model.keras", "last.keras", "step_4.keras",
        "step_6.keras", "step_8.keras", "backup.weights.h5", "samples", "tensorboard", "lock", "losses.png",
        "comparison.png"}
    log = rows(folder)
    assert [(row["epoch"], row["step"]) for row in log] == [("1", "2"), ("2", "4"), ("3", "6"), ("4", "8")]
    for row in log:
        filled = {key for key, value in row.items() if value}
        assert ({*TERMS, "discriminator", "accuracy"} - {"vgg"} <= filled) == (int(row["epoch"]) > 2)
    four, six, eight, best, last = (weights(folder, f"{name}.keras") for name in
                                    ("step_4", "step_6", "step_8", "model", "last"))
    assert [any(changed(*pair)) for pair in ((four, six), (six, eight), (eight, last), (best, last))] == [
        True, True, False, False]
    assert GANValidation.key == "epoch"  # the last is the best, whatever its PSNR
    iterations = [int(value) for value in backup(folder).values() if value.dtype.kind in "iu"]
    assert sorted(iterations) == [4, 4, 8]  # epochs; the discriminator joined for half of the steps
    # Bicubic, warm-up, one and two epochs of adversarial training, HR; at 110 points an inch.
    assert read_picture(folder / "comparison.png").pixels.shape == (253, 5 * 242, 3)
    assert read_picture(folder / "losses.png").pixels.std() > 10


def test_a_killed_run_goes_on_to_the_same_bits(whole, make, processes):
    folder, finished = processes[0] / "killed", processes[1]["killed"]
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    assert len(rows(folder)) == 3  # of four
    main("quick", make(folder, **ADVERSARIAL))
    assert_same_run_and_backup(folder, whole[0])


def test_a_run_stopped_in_its_warm_up_goes_on_to_the_same_bits(whole, make, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_train_batch_end", at_step(3, interrupt))
        with pytest.raises(KeyboardInterrupt):
            main("quick", make(tmp_path, **ADVERSARIAL))
    assert len(rows(tmp_path)) == 1
    main("quick", make(tmp_path, **ADVERSARIAL))
    assert_same_run_and_backup(tmp_path, whole[0])


def test_two_devices_train_as_one(processes):
    assert processes[1]["two"].returncode == 0, processes[1]["two"].stderr[-2000:]


def test_the_quick_preset_runs_from_the_command_line_and_downloads_nothing(processes):
    folder, finished = processes
    assert (finished["quick"].returncode, finished["quick"].stderr) == (0, "")
    assert [bool(row["adversarial"]) for row in rows(folder / "quick")] == [False, True]
    assert not list((folder / "home").rglob("*.h5"))


def test_averages_are_what_is_saved(whole):
    (folder, passed), average = whole, whole[1][0]
    for number, step in enumerate(passed[1:], start=2):
        average = [0.9 * one + 0.1 * two for one, two in zip(average, step, strict=True)]
        if number in (4, 8):
            saved = [np.array(v) for v in load(folder / f"step_{number}.keras").trainable_variables]
            for one, two in zip(saved, average, strict=True):
                np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-7)
            assert max(np.abs(one - last).max() for one, last in zip(saved, step, strict=True)) > 1e-5


def test_without_a_game_the_best_epoch_is_kept(make, tmp_path, monkeypatch):
    scores = iter([20.0, 20.0, 30.0, 25.0])  # bicubic interpolation's, and three epochs'
    monkeypatch.setattr("superres.train.validation.quality",
                        lambda *args: {"psnr_y": next(scores, 0.0), "ssim_y": 0.5})
    main("quick", make(tmp_path, steps=1, warm_up=3, epochs=0, snapshots=(1, 2, 3)))
    kept = weights(tmp_path, "model.keras")
    same = [not any(changed(kept, weights(tmp_path, f"step_{step}.keras"))) for step in (1, 2, 3)]
    assert same == [False, True, False]


@pytest.mark.parametrize(("poison", "rate", "message"), [
    (np.nan, 1e-4, r"stopped, the loss is nan at step 1 of the epoch; model\.keras holds the best weights"),
    (1.0, 1e3, r"stopped, collapsed in epoch 2: PSNR .* dB after .*, where bicubic .*; model\.keras"),
], ids=["nan", "collapse"])
def test_what_is_ruined_stops_and_leaves_a_good_network(make, settings_of, tmp_path, monkeypatch, poison,
                                                       rate, message):
    batch, photos = Patches.batch_number, settings_of("run").data  # of noise, a grey network is no bad one

    def poisoned(self, number, rows):
        lr, hr = batch(self, number, rows)
        return lr * (poison if number == 2 else 1), hr

    monkeypatch.setattr(Patches, "batch_number", poisoned)
    settings = make(tmp_path, learning_rate=rate, initial="interpolation")
    with pytest.raises(InputError, match=message):
        main("quick", dataclasses.replace(settings, data=photos))
    assert len(rows(tmp_path)) == 1
    assert not any(changed(weights(tmp_path, "model.keras"), weights(tmp_path, "step_2.keras")))
    assert all(np.isfinite(array).all() for array in weights(tmp_path, "model.keras"))
