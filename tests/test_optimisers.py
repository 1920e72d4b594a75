"""train/optimisers.py: RMSProp as TensorFlow 1 has it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from superres.train.optimisers import RMSprop


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
