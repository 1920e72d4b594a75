"""train/srgan.py: a step of adversarial training, learning rates, presets and settings."""

import dataclasses
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import superres.train.srgan as script
from superres.command_line import command
from superres.datasets.degradations import imresize
from superres.datasets.patches import Patches, split_pictures
from superres.datasets.pictures import contact_sheet, read_picture
from superres.errors import InputError
from superres.layers import SpectralConv2D
from superres.losses import Fidelity, Perceptual, total_variation
from superres.models.lapsrn import lapsrn
from superres.models.srgan import discriminator, generator
from superres.train.gan import GANValidation, TrainingSamples
from superres.train.loop import RunSettings
from superres.train.srgan import PRESETS, Settings, TwoPhases, main, schedules, trainer
from superres.train.validation import panels

TERMS = ("pixel", "vgg", "adversarial", "variation", "fidelity", "grid")
ADVERSARIAL = {"adversarial_loss": "relativistic", "adversarial": 0.1, "pixel_loss": "l1", "variation": 0.01,
               "fidelity": 1.0, "grid": 0.5, "schedule": "cosine", "ema": 0.9, "initial": "interpolation",
               "warm_up": 2}
pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config:UserWarning")  # run eagerly


def small_settings(data, folder="run", replicas=0, snapshots=(), **changes):
    tiny = {"data": (str(data),), "scale": 2, "blocks": 1, "crop": 16, "batch": 4, "val_pictures": 1,
            "test_pictures": 1, "warm_up": 1, "epochs": 2, "steps": 2}
    tiny["run"] = RunSettings(str(folder), replicas=replicas, snapshots=snapshots)
    return Settings(**{**tiny, **changes})


@contextmanager
def small_networks():
    """Few channels, and no drawing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "generator", partial(generator, filters=6))
        patch.setattr(script, "discriminator", partial(discriminator, filters=2))
        patch.setattr(GANValidation, "draw", lambda *args: None)
        yield


@pytest.fixture(scope="module")
def make(grain, eagerly):
    """Settings of a training of seconds: few channels, no compilation, no drawing."""
    with small_networks():
        yield partial(small_settings, grain)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """Settings with random VGG19 weights up to block1_conv1."""
    path, rng = tmp_path_factory.mktemp("vgg") / "vgg.npz", np.random.default_rng(0)
    np.savez(path, conv1_1_w=rng.normal(0, 0.1, (3, 3, 3, 64)), conv1_1_b=rng.normal(0, 1, 64))
    return {"vgg": 0.1, "vgg_layer": "block1_conv1", "vgg_weights": str(path)}


def changed(before, after):
    return [bool((one != two).any()) for one, two in zip(before, after, strict=True)]


def adversarial_step_of(settings):
    """A trainer that descends gradients at rate 1, in adversarial training, and a batch."""
    model = trainer(settings)
    model.compile(keras.optimizers.SGD(1.0), keras.optimizers.SGD(1.0))
    model.discriminator_active = True
    train = split_pictures(settings.data, 1, 1, 0)[0]
    return model, Patches(train, 2, settings.crop // 2, settings.batch).batch_number(0)


def trained(model):
    """The trainable weights of both networks."""
    return [[np.array(v) for v in part.trainable_variables] for part in (model.network, model.discriminator)]


@pytest.mark.parametrize(("kind", "pixel_loss", "shift"),
                         [("standard", "mse", False), ("relativistic", "l1", True)])
def test_a_step_follows_both_gradients_of_the_formula(make, vgg, kind, pixel_loss, shift):
    model, batch = adversarial_step_of(make(
        adversarial_loss=kind, pixel_loss=pixel_loss, pixel=0.5, adversarial=0.2, variation=0.3, fidelity=0.7,
        grid=0.9, grid_window=3, shift=shift, crop=18, **vgg))
    lr, (hr,) = batch
    model.optimizer.iterations.assign(3)
    cut = np.s_[:, 1:17, 1:17] if shift else np.s_[:]  # the last of four places

    def minus_log(logit):  # of the probability
        return tf.reduce_mean(-tf.math.log(1 / (1 + tf.exp(-logit))))

    with tf.GradientTape(persistent=True) as tape:
        sr = model.network(lr, training=True)
        real, fake = (model.discriminator(picture, training=True) for picture in (hr[cut], sr[cut]))
        ours, theirs = ((minus_log(fake), minus_log(real) + minus_log(-fake)) if kind == "standard" else
                        (minus_log(fake - real), minus_log(real - fake)))
        expected = {
            "pixel": tf.reduce_mean((2 * hr - 2 * sr) ** 2 if pixel_loss == "mse" else tf.abs(hr - sr)),
            "vgg": Perceptual(vgg["vgg_layer"], vgg["vgg_weights"])(hr[cut], sr[cut]),
            "adversarial": ours,
            "variation": tf.reduce_mean(total_variation(sr)),
            "fidelity": Fidelity(2)(lr, sr),
            "grid": tf.reduce_mean([
                tf.abs(tf.reduce_mean(window[:, y::2, x::2], (1, 2)) - tf.reduce_mean(window, (1, 2)))
                for top in (0, 6, 12) for left in (0, 6, 12)
                for window in [(hr - sr)[:, top : top + 6, left : left + 6]]
                for y in (0, 1) for x in (0, 1)]),
        }
        weights = 0.5, 0.1, 0.2, 0.3, 0.7, 0.9
        loss = sum(weight * term for weight, term in zip(weights, expected.values(), strict=True))
    gradients = [tape.gradient(value, part.trainable_variables)
                 for value, part in ((loss, model.network), (theirs, model.discriminator))]
    expected |= {"loss": loss, "discriminator": theirs, "accuracy": np.mean(np.array(real > fake)),
                 "generator_gradient": tf.linalg.global_norm(gradients[0]),
                 "discriminator_gradient": tf.linalg.global_norm(gradients[1])}
    old = trained(model)
    shown = {key: float(value) for key, value in model.train_step(batch).items()}
    assert shown == pytest.approx({key: float(value) for key, value in expected.items()}, rel=1e-4)
    for one, two, wanted in zip(old, trained(model), gradients, strict=True):
        for before, after, gradient in zip(one, two, wanted, strict=True):
            np.testing.assert_allclose(before - after, gradient, rtol=1e-3, atol=1e-5)


def test_the_penalty_is_the_discriminator_s_alone(make):
    settings = make(**ADVERSARIAL, r1=0.5)
    model, batch = adversarial_step_of(settings)
    with tf.GradientTape() as tape:
        with tf.GradientTape() as inner:
            hr = tf.constant(batch[1][0])
            inner.watch(hr)
            real = model.discriminator(hr, training=True)
            total = tf.reduce_sum(real)
        penalty = 0.5 * tf.reduce_sum(inner.gradient(total, hr) ** 2) / len(hr)
        fake = model.discriminator(model.network(batch[0], training=True), training=True)
        loss = tf.reduce_mean(tf.math.softplus(fake - real)) + 0.5 * penalty
    gradients = tape.gradient(loss, model.discriminator.trainable_variables)
    old = trained(model)
    shown = model.train_step(batch)
    assert float(shown["r1"]) == pytest.approx(float(penalty), rel=1e-4)
    for before, after, gradient in zip(old[1], trained(model)[1], gradients, strict=True):
        np.testing.assert_allclose(before - after, gradient, rtol=1e-3, atol=1e-5)
    without, _ = adversarial_step_of(dataclasses.replace(settings, r1=0.0))
    without.network.set_weights(model.network.get_weights())
    assert "r1" not in without.train_step(batch)


def test_a_discriminator_of_bounded_kernels_plays(make):
    model, batch = adversarial_step_of(make(**ADVERSARIAL, r1=0.5, norm="spectral"))
    layers = [layer for layer in model.discriminator.layers if isinstance(layer, SpectralConv2D)]
    assert len(layers) > 1
    (_, old), vectors = trained(model), [np.array(layer.u) for layer in layers]
    assert float(model.train_step(batch)["discriminator_gradient"]) > 0
    assert sum(changed(old, trained(model)[1])) >= len(layers)
    assert all(changed(vectors[:-1], [np.array(layer.u) for layer in layers[:-1]]))  # the last has one filter


@pytest.mark.parametrize("active", [False, True])
def test_frozen_statistics_are_the_warm_up_s(make, active):
    model, batch = adversarial_step_of(make(**ADVERSARIAL, frozen_norm=True))
    model.discriminator_active = active
    norms = [layer for layer in model.network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    rng = np.random.default_rng(0)
    for layer in norms:
        layer.moving_variance.assign(rng.uniform(0.5, 2, layer.moving_variance.shape))
    before = [np.array(layer.moving_variance) for layer in norms]
    expected = np.abs(batch[1][0] - model.network(batch[0], training=not active)).mean()
    if not active:  # that call counted
        before = [np.array(layer.moving_variance) for layer in norms]
    shown = model.train_step(batch)
    assert float(shown["pixel"]) == pytest.approx(expected, rel=1e-4)
    assert all(changed(before, [np.array(layer.moving_variance) for layer in norms])) == (not active)


@pytest.mark.parametrize("term", TERMS)
def test_every_term_alone_trains_the_generator_and_never_vgg(make, vgg, monkeypatch, term):
    made = []
    monkeypatch.setattr(script, "Perceptual", lambda *args: made.append(Perceptual(*args)) or made[-1])
    model, batch = adversarial_step_of(make(**{**vgg, **dict.fromkeys(TERMS, 0.0), term: 1.0}))
    assert len(made) == (term == "vgg")
    fixed, (old, _) = [loss.features.get_weights() for loss in made], trained(model)
    shown = model.train_step(batch)
    assert float(shown["loss"]) == pytest.approx(float(shown[term]))
    assert float(shown["generator_gradient"]) > 1e-4
    learned = zip(model.network.trainable_variables, changed(old, trained(model)[0]), strict=True)
    assert all(change or weight.path.endswith("bias") for weight, change in learned)
    for loss, values in zip(made, fixed, strict=True):
        assert not any(changed(values, loss.features.get_weights()))


@pytest.mark.parametrize(("adversarial", "rate"), [(0.0, 1.0), (1.0, 0.0)])
def test_each_network_can_learn_alone(make, adversarial, rate):
    model, batch = adversarial_step_of(make(pixel=0.0, adversarial=adversarial))
    model.discriminator_optimizer.learning_rate = rate
    old = trained(model)
    model.train_step(batch)
    learned = [any(changed(*pair)) for pair in zip(old, trained(model), strict=True)]
    assert learned == [adversarial > 0, rate > 0]


def test_the_warm_up_knows_pixels_alone(make, vgg):
    model, batch = adversarial_step_of(make(pixel=0.0041, fidelity=1.0, **vgg))
    model.discriminator_active = False
    old, other = model.network.get_weights(), model.discriminator.get_weights()
    shown = model.train_step(batch)
    assert sorted(shown) == ["generator_gradient", "loss", "pixel"]
    assert float(shown["loss"]) == float(shown["pixel"]) > 0  # whole, whatever its weight later
    assert any(changed(old, model.network.get_weights()))
    assert not any(changed(other, model.discriminator.get_weights()))


def assert_like_float32(precision, adversarial_step):
    """A step at a precision shows what one in float32 does; `adversarial_step` gives trainer and batch."""
    shown = {}
    for policy in ("float32", precision):
        keras.utils.set_random_seed(0)
        keras.mixed_precision.set_dtype_policy(policy)
        model, batch = adversarial_step()
        optimizers = model.optimizer, model.discriminator_optimizer
        for optimizer in optimizers:
            assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
            optimizer.build(model.network.trainable_variables if optimizer is optimizers[0] else
                            model.discriminator.trainable_variables)
            if policy == "mixed_float16":
                optimizer.dynamic_scale.assign(2.0**6 if optimizer is model.optimizer else 2.0**5)
        shown[policy] = {key: float(value) for key, value in model.train_step(batch).items()}
        assert [int(optimizer.iterations.numpy()) for optimizer in optimizers] == [1, 1]
    for key, value in shown["float32"].items():
        if key != "accuracy":
            rel = 0.3 if key in ("r1", "r2") or key.endswith("_gradient") else 0.1
            assert shown[precision][key] == pytest.approx(value, rel=rel, abs=0.02), key


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_the_game_works_in_mixed_precision(make, precision):
    assert_like_float32(precision, lambda: adversarial_step_of(make(**ADVERSARIAL)))


def test_norms_of_gradients_that_overflow_are_left_out(make):
    model = trainer(make())
    for norm in (1.0, np.inf, 4.0, np.nan):
        shown = model.averaged({"loss": tf.constant(norm), "generator_gradient": tf.constant(norm)})
    assert float(shown["generator_gradient"]) == 2.5
    assert np.isnan(shown["loss"])  # which stops the run


@pytest.mark.parametrize(("schedule", "warming", "adversarial"), [
    # The rates' shares after 0, 4 and 7 of 8 steps, and after 0, 4, 5, 7 and 11 of 12.
    ("constant", (1, 1, 1), (1, 1, 1, 1, 1)),
    ("step", (1, 1, 1), (1, 1, 1, 0.1, 0.1)),
    ("cosine", (1, 0.5, 0.0380602), (1, 0.75, 0.6294095, 0.3705905, 0.0170371)),
])
def test_learning_rates_of_both_optimisers(make, schedule, warming, adversarial):
    model = trainer(make(schedule=schedule, warm_up=4, epochs=6, warm_up_rate=0.5, learning_rate=0.25))
    for optimizer, steps, rate, shares in (
        (model.optimizer, (0, 4, 7), 0.5, warming), (model.optimizer, (8, 12, 13, 15, 19), 0.25, adversarial),
        (model.discriminator_optimizer, (0, 4, 5, 7, 11), 0.25, adversarial),
    ):
        for step, share in zip(steps, shares, strict=True):
            optimizer.iterations.assign(step)
            assert float(optimizer.learning_rate) == pytest.approx(rate * share, rel=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_the_schedule_comes_back_from_its_config(make, schedule):
    rate, other = schedules(make(schedule=schedule, warm_up=0, warm_up_rate=0.5, learning_rate=0.25))
    assert float(rate(0)) == float(other(0)) == 0.25  # no warm-up
    rate, _ = schedules(make(schedule=schedule, warm_up=2, warm_up_rate=0.5, learning_rate=0.25))
    again = keras.optimizers.Adam.from_config(keras.optimizers.Adam(rate).get_config())._learning_rate
    assert isinstance(again, TwoPhases)
    assert [float(again(step)) for step in range(12)] == [float(rate(step)) for step in range(12)]


@pytest.mark.parametrize(("norm", "prelu", "scale", "activated"), [
    ("batch", "scalar", "paper", True), ("spectral", "channel", "relative", False)])
def test_the_trainer_is_built_as_the_settings_say(make, vgg, rng, norm, prelu, scale, activated):
    model = trainer(make(norm=norm, prelu=prelu, vgg_scale=scale, vgg_activated=activated, beta_2=0.5,
                         initial="interpolation", **vgg))
    kinds = {type(layer) for layer in model.discriminator.layers}
    assert (SpectralConv2D in kinds) == (norm == "spectral") != (keras.layers.BatchNormalization in kinds)
    slopes = {tuple(layer.alpha.shape) for layer in model.network.layers
              if isinstance(layer, keras.layers.PReLU)}
    assert slopes == {(1, 1, 1 if prelu == "scalar" else 6)}
    assert model.optimizer.beta_2 == model.discriminator_optimizer.beta_2 == 0.5
    hr, sr = rng.random((2, 2, 16, 16, 3), "float32")
    wanted = Perceptual(vgg["vgg_layer"], vgg["vgg_weights"], scale=scale, activated=activated)
    np.testing.assert_allclose(model.terms["vgg"][1](None, hr, sr, (hr, sr)), wanted.call(hr, sr), rtol=1e-5)
    flat = np.array(model.network(np.full((1, 24, 24, 3), 0.7, "float32")))[0, 8:-8, 8:-8]
    np.testing.assert_allclose(flat, 0.5 + 0.5 * np.tanh(1.2 * 0.4), atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_trainers_and_hold_the_papers_numbers(make, vgg, name):
    settings = PRESETS[name][1]
    model = trainer(dataclasses.replace(settings, **{**vgg, "vgg": settings.vgg}))
    # Scale, blocks, PReLU, size of HR for the dense head, weights of pixels, VGG and the adversarial loss.
    mended = {"pixel": 0.3, "vgg": settings.vgg, "fidelity": 1.0, "grid": 20.0}
    mended = {key: weight for key, weight in mended.items() if weight}
    expected = {"reported": (2, 5, "scalar", None, {"pixel": 0.0041, "vgg": 0.001}, 1e-3, "standard"),
                "paper": (4, 16, "channel", 96, {"pixel": 0.0, "vgg": 1.0}, 1e-3, "standard"),
                "improved": (4, 5, "scalar", None, mended, 5e-3, "relativistic"),
                "improved-x2": (2, 5, "scalar", None, mended, 5e-3, "relativistic"),
                "quick": (2, 2, "scalar", None, mended, 5e-3, "relativistic")}
    found = (settings.scale, settings.blocks, settings.prelu, model.discriminator.input.shape[1],
             {key: weight for key, (weight, _) in model.terms.items()}, model.adversarial,
             settings.adversarial_loss)
    assert found == expected[name]


@pytest.mark.parametrize(("preset", "arguments", "epochs"), [
    ("reported", ["--vgg", "0"], [10, 20, 30, 40, 50]),  # the warm-up, then as the report shows its results
    ("improved-x2", ["--vgg", "0", "--epochs", "6"], [16, 17, 19, 20, 22]),
    ("quick", ["--warm-up", "0", "--scratch"], [1, 2]),
    ("quick", ["--warm-up", "0", "--start", "network.keras"], [1, 2]),
    ("quick", ["--warm-up", "1", "--epochs", "0"], []),
    ("quick", ["--warm-up", "0"], None),
])
def test_snapshots_and_a_game_from_scratch_on_the_command_line(grain, monkeypatch, capsys, preset, arguments,
                                                               epochs):
    class Reached(BaseException):
        pass

    def reached(*args, run, steps, **kwargs):
        raise Reached([step / steps for step in run.snapshots])

    monkeypatch.setattr(script, "fit", reached)
    monkeypatch.setattr("sys.argv", ["srgan.py", preset, "--data", str(grain), "--crop", "16",
                                     "--val-pictures", "1", "--test-pictures", "1", *arguments])
    with pytest.raises((Reached, SystemExit)) as caught:
        command(main, PRESETS)
    if epochs is None:
        assert caught.value.code == 2
        assert capsys.readouterr() == ("", "error: warm_up: adversarial training of an untrained generator "
                                           "does not converge; give --start a network, or --scratch to try\n")
    else:
        assert caught.value.args == (epochs,)


@pytest.mark.parametrize(("changes", "message"), [
    *(({name: 0}, f"{name}: must be at least 1, not 0") for name in ("batch", "steps")),
    *(({name: -1}, f"{name}: must be at least 0, not -1") for name in (
        "blocks", "warm_up", "epochs", "r1", "vgg", "learning_rate")),
    *(({"crop": crop}, f"crop: {crop} is no multiple of the scale, 2") for crop in (0, 15)),
    ({"grid": 1.0, "grid_window": 9}, "grid_window: must be at least 0 and below 9, not 9"),
    ({"crop": 2, "fidelity": 1.0}, "crop"),  # too small to be shrunk
    ({"crop": 4, "shift": True}, "crop: must be at least 6, not 4"),
    *(({"ema": ema}, f"ema: must be at least 0 and below 1, not {ema}") for ema in (1.0, -0.1)),
    ({"start": "none.keras"}, r"none\.keras: no such model file"),
    ({"warm_up": 0, "epochs": 0}, "warm_up, epochs: nothing to train, both are 0"),
    ({"vgg": 1.0, "vgg_layer": "block9_conv1"}, "VGG19 has no layer block9_conv1"),
    ({"vgg": 1.0, "vgg_weights": "none.npz"}, r"none\.npz: no such file of VGG19 weights"),
    ({"vgg": 1.0}, r"VGG19's ImageNet weights cannot be downloaded \(.*offline.*\); give the file vgg19"),
])
def test_wrong_settings_are_one_line_errors(make, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(keras.applications, "VGG19", lambda **kwargs: (tmp_path / "offline").read_text())
    with pytest.raises(InputError, match=message):
        main("quick", make(tmp_path, **changes))


def test_adversarial_training_is_not_stopped_early(make, tmp_path):
    run = RunSettings(str(tmp_path / "run"), early_stopping=1)
    with pytest.raises(InputError, match=r"run\.early_stopping: of adversarial training, the last epoch"):
        main("quick", make(run=run))


def test_a_generator_starts_from_another_as_far_as_they_are_alike(make, tmp_path):
    source = generator(4, blocks=1, filters=6)
    source.save(tmp_path / "x4.keras")
    lapsrn(2, filters=4, depth=1).save(tmp_path / "other.keras")
    for scale in (2, 4):
        for layer in trainer(make(scale=scale, start=str(tmp_path / "x4.keras"))).network.layers:
            assert not any(changed(layer.get_weights(), source.get_layer(layer.name).get_weights()))
    with pytest.raises(InputError, match="start: the network has no layer in common with srgan_x2"):
        trainer(make(start=str(tmp_path / "other.keras")))


def test_samples_are_of_the_weights_of_the_moment(tmp_path, rng):
    hr = rng.integers(0, 256, (48, 48, 3), "uint8")
    lr, model = imresize(hr, 0.5), SimpleNamespace(network=generator(2, blocks=1, filters=4))
    samples = TrainingSamples(tmp_path, [("a", lr, hr)], 2)
    samples.set_model(model)
    samples.set_params({"steps": 3})
    samples.on_train_begin()
    samples.on_epoch_begin(1)
    for batch in range(3):
        model.network.set_weights([w + 0.05 for w in model.network.get_weights()])
        samples.on_train_batch_end(batch)
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"step_000004.png", "step_000006.png"}
    row = [lr.repeat(2, 0).repeat(2, 1), imresize(lr, 2), model.network.upscale(lr), hr]
    np.testing.assert_array_equal(read_picture(tmp_path / "samples" / "step_000006.png").pixels,
                                  contact_sheet([row]))


def test_panels_are_one_central_square(rng):
    hr = rng.integers(0, 256, (12, 20, 3), "uint8")
    lr = imresize(hr, 0.5)
    for found, whole in zip(panels(lr, 255 - hr, hr, 8),
                            (lr.repeat(2, 0).repeat(2, 1), imresize(lr, 2), 255 - hr, hr), strict=True):
        np.testing.assert_array_equal(found, whole[2:10, 6:14])
