"""The losses of SRMAP: their formulas and gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from superres.losses import Fidelity, energy_score, gradient_penalty, relativistic
from superres.models.srmap import discriminator
from superres.train.gan import penalised


def test_energy_score_by_hand():
    hr, one, other = (np.full((1, 2, 2, 1), value, "float32") for value in (0.5, 0.2, 0.9))
    np.testing.assert_allclose(energy_score(hr, one, other), [(0.3 + 0.4 - 0.7) / 2], atol=1e-7)
    # Equal pictures are a millionth apart, so that there is a gradient.
    np.testing.assert_allclose(energy_score(hr, one, one), [0.3 - 1e-6 / 2], atol=1e-7)
    vectors = [np.reshape(x, (1, 1, 1, 2)).astype("float32") for x in ((0, 0), (3, 4), (3, 0))]
    np.testing.assert_allclose(energy_score(*vectors), [(5 + 3 - 4) / 2 / np.sqrt(2)], rtol=1e-5)


def test_energy_score_of_equal_pictures_has_a_gradient(rng):
    sr = tf.constant(rng.random((1, 4, 4, 3)).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(sr)
        score = energy_score(sr, sr, sr)
    assert np.isfinite(tape.gradient(score, sr)).all()


def test_energy_score_is_best_for_the_truth_s_own_distribution(rng):
    truth, a, b = rng.normal(size=(3, 1, 400, 400, 1)).astype("float32")
    scores = [float(energy_score(truth, size * a, size * b)[0]) for size in (0, 0.7, 1, 1.4)]
    assert min(scores) == scores[2]
    np.testing.assert_allclose(scores[2], 1 / np.sqrt(np.pi), rtol=0.02)  # of the normal distribution
    shifted = float(energy_score(truth, a + 0.5, b + 0.5)[0])
    assert shifted > scores[2] + 0.02


def test_energy_score_knows_channels_that_vary_together(rng):
    truth, a, b = (np.repeat(x, 3, -1) for x in rng.normal(size=(3, 1, 200, 200, 1)).astype("float32"))
    apart = [rng.normal(size=truth.shape).astype("float32") for _ in range(2)]
    assert float(energy_score(truth, a, b)[0]) < float(energy_score(truth, *apart)[0]) - 0.01


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_of_the_losses_equal_finite_differences(rng, compiled):
    keras.mixed_precision.set_dtype_policy("float64")
    fidelity, (lr, hr, other) = Fidelity(2), [rng.random((1, n, n, 3)) for n in (6, 12, 12)]
    losses = {
        "fidelity": lambda sr: fidelity.call(lr, sr),
        "energy": lambda sr: energy_score(hr, sr, other),
        **{f"relativistic {i}": lambda sr, i=i: relativistic(hr[..., 0], sr[..., 0])[i] for i in (0, 1)},
        "penalty": gradient_penalty,
    }
    sr, direction = (tf.constant(rng.random(hr.shape)) for _ in range(2))
    for name, loss in losses.items():
        @tf.function(jit_compile=compiled)
        def value(sr, loss=loss):
            return tf.reduce_sum(loss(sr))

        with tf.GradientTape() as tape:
            tape.watch(sr)
            found = value(sr)
        step = 1e-7
        expected = (value(sr + step * direction) - value(sr - step * direction)) / (2 * step)
        slope = tf.reduce_sum(tape.gradient(found, sr) * direction)
        np.testing.assert_allclose(slope, expected, rtol=1e-5, err_msg=name)


def test_gradient_penalty_by_hand(rng):
    gradient = rng.normal(size=(2, 3, 4, 3)).astype("float32")
    expected = [np.square(g).sum() / 2 for g in gradient]
    np.testing.assert_allclose(gradient_penalty(gradient), expected, rtol=1e-5)


@pytest.mark.parametrize("f", [None, lambda t: -ops.exp(-t), lambda t: -ops.relu(1 - t)])
def test_the_relativistic_game_for_any_concave_f(rng, f):
    real, fake = rng.normal(size=(2, 5, 1)).astype("float32")
    given = {} if f is None else {"f": f}
    by_hand = f or (lambda t: -np.log1p(np.exp(-t)))
    for value, t in zip(relativistic(real, fake, **given), (fake - real, real - fake), strict=True):
        np.testing.assert_allclose(value, -np.asarray(by_hand(t)), rtol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_gradient_of_the_penalty_equals_finite_differences(rng, compiled):
    """That of R1 with respect to the discriminator's weights, through its whole network."""
    keras.mixed_precision.set_dtype_policy("float64")
    network = discriminator(4, (4, 8), (1, 1))
    for weight in network.trainable_variables:
        weight.assign(rng.normal(0, 0.4, weight.shape))
    x = tf.constant(rng.random((2, 12, 12, 3)))
    # Logits are float32 by construction; the penalty differentiates what enters them.
    features = keras.Model(network.input, network.layers[-1].input)

    @tf.function(jit_compile=compiled)
    def penalty():
        return penalised(features, x)[1]

    variables = features.trainable_variables
    with tf.GradientTape() as tape:
        value = penalty()
    gradients = tape.gradient(value, variables)
    directions = [rng.normal(size=v.shape) for v in variables]
    for variable, gradient, direction in zip(variables, gradients, directions, strict=True):
        values, step = [], 1e-3  # the mean is subtracted from pictures in float32
        start = variable.numpy()
        for sign in (1, -1):
            variable.assign(start + sign * step * direction)
            values.append(float(penalty()))
        variable.assign(start)
        found = float(tf.reduce_sum(gradient * direction)) if gradient is not None else 0.0
        np.testing.assert_allclose(found, (values[0] - values[1]) / (2 * step), rtol=1e-3, atol=1e-5)
