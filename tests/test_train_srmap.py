"""train/srmap.py: a step of adversarial training, its settings, and whole trainings in miniature."""

import dataclasses
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_train import assert_same_run, rows
from test_train_srgan import assert_like_float32, changed, trained

import superres.train.srmap as script
from superres import command_line
from superres.datasets.patches import split_pictures
from superres.datasets.pictures import read_picture
from superres.errors import InputError
from superres.layers import NoiseInjection
from superres.losses import Fidelity, energy_score, relativistic
from superres.models.srmap import SIZES, generator
from superres.models.upscaler import load
from superres.train.loop import RunSettings
from superres.train.srmap import OBJECTIVES, PRESETS, NoisyPatches, Settings, main, trainer

REDUCED = SIZES["reduced"]
TINY = {"stem": 4, "widths": (8, 4), "blocks": (1,)}, {"stem": 4, "widths": (4, 4, 4), "blocks": (1, 1, 1)}
ADVERSARIAL = {"l1": 3.0, "energy": 20.0, "vgg": 9.0, "fidelity": 10.0, "initial_noise": 0.2,
        "r1": 0.1, "r2": 0.2, "ema": 0.9}
pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")  # run eagerly
SMALL = f"""
import os, signal
import superres.train.loop as loop, superres.train.srmap as script
from superres.train.srmap import *
SIZES["reduced"] = {str(TINY).replace("{", "{{").replace("}", "}}")}
GANValidation.draw = lambda *args: None
tf.config.run_functions_eagerly(True)
"""
KILLED = SMALL + """
loop.Keeper.on_train_batch_end = lambda self, batch, logs=None: (
    self.model.optimizer.iterations.numpy() == {step} and os.kill(os.getpid(), signal.SIGKILL))
main("reported", {settings})
"""
# One step of stochastic gradient descent on two logical devices, and on one in two parts without compiling;
# then a run on two. With SR that is drawn anew, the first step is compiled as `fit` does: it has all that
# the other has.
REPLICAS = SMALL + """
import numpy as np
settings = {settings}
patches = NoisyPatches(split_pictures(settings.data, 1, 1, 0)[0], 2, 12, 8)
devices = {{number: strategy(number) for number in (2, 1)}}  # two in a process get into each other's way
script.strategy = lambda replicas, workers: devices[replicas]
for reuse in (True, False):
    results = []
    for replicas in (2, 1):
        keras.utils.set_random_seed(0)
        eagerly = reuse or replicas == 1
        tf.config.run_functions_eagerly(eagerly)
        with devices[replicas].scope():
            assert devices[replicas].num_replicas_in_sync == replicas
            model = trainer(dataclasses.replace(settings, reuse=reuse, accumulate=2 // replicas))
            parts = [model.network, model.discriminator]
            rng = np.random.default_rng(1)
            for part in parts:
                part.set_weights([rng.normal(0, 0.3, w.shape) for w in part.get_weights()])
            before = [part.get_weights() for part in parts]
            model.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(1.0))
            model.optimizer.build(model.network.trainable_variables)
        eager, train_step = [], model.train_step
        model.train_step = lambda batch: (eager.append(tf.executing_eagerly()), train_step(batch))[1]
        logs = model.fit(patches.dataset(), steps_per_epoch=1, verbose=0, shuffle=False).history
        assert set(eager) == {{eagerly}}, eager
        logs = [logs[name] for name in ("loss", "adversarial", "discriminator", "energy", "r1", "r2")]
        results.append((*(part.get_weights() for part in parts), logs))
    for old, one, two in zip(before, *results):
        learned, difference = (max(np.abs(a - b).max() for a, b in zip(one, other)) for other in (old, two))
        assert learned > 1e-3 > 1e-6 > difference, (learned, difference)
    np.testing.assert_allclose(*(logs for *_, logs in results), rtol=1e-4)
main("reported", settings)
"""


@pytest.fixture(scope="module")
def make(grain, eagerly, tmp_path_factory):
    """Settings of a training of seconds: few channels, no compilation, no drawing."""
    vgg, rng = tmp_path_factory.mktemp("vgg") / "vgg.npz", np.random.default_rng(0)
    channels, arrays = 3, {}
    for name, filters in (("1_1", 64), ("1_2", 64), ("2_1", 128), ("2_2", 128), ("3_1", 256)):
        arrays[f"conv{name}_w"] = rng.normal(0, (2 / 9 / channels) ** 0.5, (3, 3, channels, filters))
        arrays[f"conv{name}_b"], channels = np.zeros(filters), filters
    np.savez(vgg, **arrays)

    def settings(folder="run", replicas=0, **changes):
        tiny = {"data": (str(grain),), "vgg_weights": str(vgg), "scale": 2, "size": "reduced", "crop": 24,
                "batch": 8, "epochs": 2, "val_pictures": 1, "test_pictures": 1, "steps": 2,
                "learning_rate": 1e-3, "sample_every": 3, "scratch": True}
        return Settings(**{**tiny, **changes}, run=RunSettings(str(folder), replicas=replicas))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "reduced", TINY)
        patch.setattr(script.GANValidation, "draw", lambda *args: None)
        yield settings


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    """A run of two epochs of two steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    main("reported", make(folder, **ADVERSARIAL))
    return folder


@pytest.fixture(scope="module")
def processes(make, grain, run_command, tmp_path_factory):
    """What needs processes of its own, two at a time: their folder, and name -> finished process."""
    folder = tmp_path_factory.mktemp("processes")
    commands = {
        "killed": ("-c", KILLED.format(step=3, settings=make(folder / "killed", **ADVERSARIAL))),
        "two": ("-c", REPLICAS.format(settings=make(
            folder / "two", replicas=2, **{**ADVERSARIAL, "vgg": 0.0}, accumulate=2, epochs=1, steps=1))),
        "quick": ("train/srmap.py", "pretrain-l1", "--data", grain, "--run.folder", folder / "quick",
                  "--size", "reduced", "--scale", 2, "--epochs", 1, "--steps", 1, "--crop", 16, "--batch", 2,
                  "--val-pictures", 1, "--test-pictures", 1),
    }
    with ThreadPoolExecutor(2) as pool:
        finished = pool.map(lambda x: run_command(*x), commands.values())
        return folder, dict(zip(commands, finished, strict=True))


def adversarial_step_of(settings):
    """A trainer with random weights that descends gradients at rate 1, and a batch."""
    model = trainer(settings)
    rng = np.random.default_rng(1)
    for part in filter(None, (model.network, model.discriminator)):
        part.set_weights([rng.normal(0, 0.1, w.shape) for w in part.get_weights()])
    model.compile(keras.optimizers.SGD(1.0), keras.optimizers.SGD(1.0) if model.discriminator else None)
    train = split_pictures(settings.data, 1, 1, 0)[0]
    return model, NoisyPatches(train, 2, settings.crop // 2, settings.batch).batch_number(0)


@pytest.mark.parametrize("reuse", [True, False])
def test_a_step_follows_both_gradients_of_the_equations(make, reuse):
    model, batch = adversarial_step_of(make(**ADVERSARIAL, adversarial=0.7, reuse=reuse))
    model.optimizer.iterations.assign(3)
    (lr, seeds), (hr,) = batch

    def sample(i, k):
        extra = [np.ones(4, "float32"), np.zeros((4, 2), "int32")]
        return model.network([lr[i::2], seeds[i::2, k], *extra], training=True)

    def penalty(pictures):
        with tf.GradientTape() as tape:
            tape.watch(pictures)
            total = tf.reduce_sum(model.discriminator(pictures))
        return 0.5 * tf.reduce_sum(tape.gradient(total, pictures) ** 2) / 4

    with tf.GradientTape(persistent=True) as tape:
        one, other, fixed = sample(0, 0), sample(0, 1), tf.stop_gradient(sample(0 if reuse else 1, 0))
        critic = model.discriminator
        expected = {
            "l1": tf.reduce_mean(tf.abs(hr[::2] - one)),
            "energy": tf.reduce_mean(energy_score(hr[::2], one, other)),
            # At step 3 of 4, the cut is one pixel from the left and one from the top.
            "vgg": tf.reduce_mean(model.perceptual(*(x[:, 1:-1, 1:-1] for x in (hr[::2], one, other)))),
            "fidelity": tf.reduce_mean(Fidelity(2)(lr[::2], one)),
            "adversarial": tf.reduce_mean(relativistic(critic(hr[::2]), critic(one))[0]),
        }
        loss = sum(w * term for w, term in zip((3, 20, 9, 10, 0.7), expected.values(), strict=True))
        real, fake = critic(hr[1::2]), critic(fixed)
        expected |= {"discriminator": tf.reduce_mean(relativistic(real, fake)[1]),
                     "r1": penalty(tf.constant(hr[1::2])), "r2": penalty(fixed)}
        theirs = expected["discriminator"] + 0.1 * expected["r1"] + 0.2 * expected["r2"]
    gradients = [tape.gradient(value, part.trainable_variables)
                 for value, part in ((loss, model.network), (theirs, critic))]
    expected |= {"loss": loss, "accuracy": np.mean(np.array(real > fake)),
                 "generator_gradient": tf.linalg.global_norm(gradients[0]),
                 "discriminator_gradient": tf.linalg.global_norm(gradients[1])}
    old = trained(model)
    shown = {key: float(value) for key, value in model.train_step(batch).items()}
    assert shown == pytest.approx({key: float(value) for key, value in expected.items()}, rel=1e-4)
    for before, after, wanted in zip(old, trained(model), gradients, strict=True):
        for one, two, gradient in zip(before, after, wanted, strict=True):
            np.testing.assert_allclose(one - two, gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("term", OBJECTIVES)
def test_every_term_alone_trains_the_whole_generator(make, term):
    alone = {**dict.fromkeys(OBJECTIVES, 0.0), "adversarial": 1e-30, term: 1.0}
    model, batch = adversarial_step_of(make(**{**ADVERSARIAL, **alone}))
    old, _ = trained(model)
    shown = model.train_step(batch)
    assert float(shown["loss"]) == pytest.approx(float(shown[term]))
    assert all(changed(old, trained(model)[0]))


@pytest.mark.parametrize("penalty", ["r1", "r2"])
def test_penalties_train_the_discriminator_alone(make, penalty):
    model, batch = adversarial_step_of(make(**{**ADVERSARIAL, "r1": 0, "r2": 0, penalty: 1e6}))
    without, _ = adversarial_step_of(make(**{**ADVERSARIAL, "r1": 0, "r2": 0}))
    for one in (model, without):
        one.train_step(batch)
    (generator, judge), (other, other_judge) = trained(model), trained(without)
    assert not any(changed(generator, other))
    # What is added to every logit, at the end, no penalty reaches.
    assert all(changed(judge, other_judge)[:-1])


@pytest.mark.parametrize(("reuse", "ways"), [
    (True, [(1, False), (2, False), (2, True)]), (False, [(1, False), (2, False)])])
def test_parts_of_a_batch_make_the_same_step(make, reuse, ways):
    """And so does a graph."""
    results = []
    for parts, compiled in ways:
        model, batch = adversarial_step_of(make(**ADVERSARIAL, accumulate=parts, reuse=reuse))
        tf.config.run_functions_eagerly(not compiled)
        step = tf.function(model.train_step)
        shown = step(tf.nest.map_structure(tf.constant, batch))
        tf.config.run_functions_eagerly(True)
        generator, judge = trained(model)
        results.append([*generator, *judge, *(float(shown[key]) for key in sorted(shown))])
    for values in zip(*results, strict=True):
        for value in values[1:]:
            np.testing.assert_allclose(value, values[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_the_game_works_in_mixed_precision(make, precision):
    assert_like_float32(precision, lambda: adversarial_step_of(make(**ADVERSARIAL, consistent=True)))


def test_pretraining_has_one_network_and_no_noise(make, grain):
    settings = dataclasses.replace(PRESETS["pretrain-l1"][1], size="reduced", scale=2, data=(str(grain),),
                                   crop=16, batch=4)
    model, ((lr, seeds), (hr,)) = adversarial_step_of(settings)
    assert model.discriminator is None
    assert len(model.network.inputs) == 1
    sr = model.network(lr)
    expected = np.abs(hr - sr).mean()
    shown = model.train_step(((lr, seeds), (hr,)))
    assert {key: float(value) for key, value in shown.items()} == pytest.approx(
        {"l1": expected, "loss": expected, "fidelity": np.mean(Fidelity(2)(lr, sr))}, rel=1e-5)


def test_seeds_are_a_function_of_the_batch_s_number(make, grain):
    train = split_pictures((str(grain),), 1, 1, 0)[0]
    batches = [NoisyPatches(train, 2, 12, 8, seed=seed).batch_number(number)[0][1]
               for seed, number in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert batches[0].shape == (8, 2)
    assert batches[0].dtype == "int32"
    np.testing.assert_array_equal(*batches[:2])
    assert len(np.unique(batches)) == 3 * 16  # none twice, not even within a batch


def test_learning_rates_of_both_networks_are_halved(make):
    model = trainer(make(learning_rate=0.5, halve=3, steps=4))
    for optimizer in (model.optimizer, model.discriminator_optimizer):
        found = []
        for step in (0, 11, 12, 100):
            optimizer.iterations.assign(step)
            found.append(float(optimizer.learning_rate))
        assert found == [0.5, 0.5, 0.25, 0.25]
        assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.9, 0.99, 1e-8)


def test_presets_hold_the_report_s_numbers(monkeypatch):
    monkeypatch.setitem(SIZES, "reduced", REDUCED)
    reported, pretrain = PRESETS["reported"][1], PRESETS["pretrain-l1"][1]
    assert (reported.crop, reported.batch, reported.learning_rate, reported.beta_2) == (192, 64, 2e-5, 0.99)
    assert (reported.fidelity, reported.r1) == (10 * 255, pytest.approx(10 / 255**2, rel=2e-3))
    assert (reported.epochs, reported.halve, reported.steps) == (200, 200, 500)
    assert (reported.ema, reported.sample_every) == (0.999, 10)
    assert (reported.energy, reported.l1, reported.r2, reported.consistent) == (0, 0, 0, False)
    assert reported.reuse
    assert (pretrain.batch, pretrain.learning_rate, pretrain.halve) == (16, 1e-4, 200)
    for _, settings in PRESETS.values():
        script.check(dataclasses.replace(settings, scratch=True))


def test_a_run_leaves_its_networks_plots_and_samples(whole):
    assert [row["step"] for row in rows(whole)] == ["2", "4"]
    names = sorted(path.name for path in (whole / "samples").iterdir())
    assert names == ["epoch_0001.png", "epoch_0002.png", "step_000003.png"]
    assert read_picture(whole / "samples" / "step_000003.png").pixels.shape[2] == 3
    assert load(whole / "model.keras").draws_samples


def test_a_killed_run_goes_on_to_the_same_bits(whole, make, processes):
    folder, finished = processes[0] / "killed", processes[1]["killed"]
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    assert len(rows(folder)) == 1
    main("reported", make(folder, **ADVERSARIAL))
    assert_same_run(folder, whole)


def test_two_devices_train_as_one(processes):
    assert processes[1]["two"].returncode == 0, processes[1]["two"].stderr[-2000:]


def test_pretraining_runs_from_the_command_line(processes):
    folder, finished = processes
    assert (finished["quick"].returncode, finished["quick"].stderr) == (0, "")
    assert len(rows(folder / "quick")) == 1


def test_the_game_starts_from_the_pretrained_generator(make, tmp_path, randomize):
    source = randomize(generator(2, **TINY[0], noise=False))
    source.save(tmp_path / "l1.keras")
    network = trainer(make(start=str(tmp_path / "l1.keras"), initial_noise=0.25, consistent=True)).network
    for layer in source.layers:
        assert not any(changed(layer.get_weights(), network.get_layer(layer.name).get_weights()))
    scales = [layer.scale for layer in network.layers if layer.name.endswith("_noise")]
    assert {float(value) for scale in scales for value in np.array(scale)} == {0.25}


@pytest.mark.parametrize(("changes", "message"), [
    *(({name: 0}, f"{name}: must be at least 1, not 0")
      for name in ("batch", "accumulate", "epochs", "steps", "noise_cell")),
    *(({name: -1}, f"{name}: must be at least 0, not -1") for name in (
        "halve", "sample_every", "r2", "energy")),
    ({"ema": 1.0}, r"ema: must be at least 0 and below 1, not 1\.0"),
    ({"batch": 6, "accumulate": 2}, "batch: 6 does not divide into 4 parts"),
    ({"crop": 32}, "crop: the reduced discriminator takes 24, not 32"),
    ({"crop": 15, "adversarial": 0.0}, "crop: 15 is no multiple of the scale, 2"),
    ({"crop": 8, "adversarial": 0.0, "consistent": True}, "crop: must be at least 16 to be consistent"),
    ({"energy": 1.0, "noise": False}, "energy, vgg: need noise"),
    ({"energy": 0.0, "noise": False, "noise_cell": 4}, "initial_noise, noise_cell: need noise"),
    (dict.fromkeys(OBJECTIVES, 0.0), "adversarial: one must have a weight"),
    ({"vgg": 1.0, "vgg_weights": "none.npz"}, r"none\.npz: no such file of VGG19 weights"),
    ({"start": "none.keras"}, r"none\.keras: no such model file"),
])
def test_wrong_settings_are_one_line_errors(make, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        main("reported", make(tmp_path, **changes))


def test_a_batch_is_parted_among_the_devices_of_all_machines(make, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "strategy", lambda *given: SimpleNamespace(num_replicas_in_sync=3))
    with pytest.raises(InputError, match="batch: 4 does not divide into 6 parts"):
        main("reported", make(tmp_path, batch=4))


@pytest.mark.parametrize(("arguments", "trains"), [
    (("reported",), False), (("improved",), False), (("improved", "--scratch"), True),
    (("reported", "--start", "l1.keras"), True), (("quick",), True)])
def test_adversarial_training_needs_a_start(make, grain, monkeypatch, capsys, arguments, trains):
    fitted = []
    monkeypatch.setattr(script, "fit", lambda *given, **named: fitted.append(named["preset"]) or sys.exit(0))
    monkeypatch.setattr(sys, "argv", ["srmap.py", *arguments, "--data", str(grain), "--scale", "2", "--size",
                                      "reduced", "--crop", "24", "--batch", "4", "--val-pictures", "1",
                                      "--test-pictures", "1"])
    with pytest.raises(SystemExit) as end:
        command_line.command(main, PRESETS)
    assert (end.value.code, fitted) == ((0, [arguments[0]]) if trains else (2, []))
    out, err = capsys.readouterr()
    if not trains:
        assert out == ""
        assert err.splitlines() == [
            "error: start: adversarial training does not converge from scratch (report, section 3): first "
            f"train/srmap.py pretrain-l1 --data {grain} --scale 2 --size reduced, "
            "then --start runs/srmap/pretrain-l1/model.keras; or --scratch"]


def test_the_trainer_is_built_as_the_settings_say(make):
    model = trainer(make(**{**ADVERSARIAL, "ema": 0.75}, consistent=True, noise_cell=4))
    kinds = [type(layer).__name__ for layer in model.network.layers]
    assert kinds.count("ConsistentPicture") == 1
    assert {(layer.factor, layer.cell) for layer in model.network.layers
            if isinstance(layer, NoiseInjection)} == {(1, 4), (2, 1)}
    assert (model.optimizer.use_ema, model.optimizer.ema_momentum) == (True, 0.75)
    assert not model.discriminator_optimizer.use_ema
    assert [tensor._keras_history.operation.name for tensor in model.perceptual.features.outputs] == [
        "block1_conv2", "block2_conv2", "block3_conv1"]


@pytest.mark.parametrize(("adversarial", "key"), [(1.0, "epoch"), (0.0, "val_psnr_y")])
def test_of_a_game_the_last_epoch_counts_and_of_pretraining_the_best(make, monkeypatch, adversarial, key):
    given = []
    monkeypatch.setattr(script, "fit", lambda *arguments, **named: given.append(arguments[3]))
    main("reported", make(adversarial=adversarial, l1=1.0))
    assert given[0].key == key
