"""SPADE and spectral normalisation: the formulas, gradients, batches, two devices."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_layers import convolve

from superres.layers import SPADE, SPADEResBlock, SpectralConv2D

# One step of plain stochastic gradient descent on two logical devices and on one.
REPLICAS = """
import keras, numpy as np, tensorflow as tf
from superres.models.pixel_recursive import conditioning_network, pixel_recursive, prior_network
from superres.train.devices import strategy
from superres.train.pixel_recursive import PixelRecursiveTrainer

rng = np.random.default_rng(0)
# Pictures of differing brightness: the statistics of two halves of the batch differ.
lr, hr = (rng.random((4, size, size, 3), "float32") ** np.float32([[[[1]]], [[[2]]], [[[3]]], [[[4]]]])
          for size in (3, 6))
strategies = strategy(2), strategy(1)
for norm in ("batch", "spade"):
    results = []
    for devices in strategies:
        keras.utils.set_random_seed(0)
        with devices.scope():
            network = pixel_recursive(
                conditioning_network(3, 2, filters=6, blocks=1, norm=norm, hidden=4, spectral=True),
                prior_network(6, filters=6, blocks=1, head=9))
            before = network.get_weights()
            model = PixelRecursiveTrainer(network)
            model.compile(keras.optimizers.SGD(0.1))
        batches = tf.data.Dataset.from_tensor_slices((lr, hr)).batch(4)
        loss = model.fit(batches, verbose=0).history["loss"][0]
        results.append((network.get_weights(), loss))
    (two, loss_two), (one, loss_one) = results
    assert [devices.num_replicas_in_sync for devices in strategies] == [2, 1]
    changed = [w.path for w, a, b in zip(network.weights, one, before) if np.abs(a - b).max() > 1e-6]
    for part in ("kernel", "bias", "moving_mean", "moving_variance") + (("/u",) if norm == "spade" else ()):
        assert any(path.endswith(part) for path in changed), (norm, part)
    difference = max(np.abs(a - b).max() for a, b in zip(one, two))
    assert difference < 3e-6, (norm, difference)
    assert abs(loss_one / loss_two - 1) < 1e-5, (loss_one, loss_two)
"""


def nearest(s, height, width):
    """(H, W, C) resized by nearest neighbour: the pixel under the centre of the new one."""
    rows, columns = ((np.arange(new) + 0.5) * old / new
                     for new, old in zip((height, width), s.shape[:2], strict=True))
    return s[rows.astype(int)][:, columns.astype(int)]


def modulated(layer, normalized, s):
    """SPADE's formula for one picture, given the normalised x."""
    def conv(part, x):
        return convolve(x, *part.get_weights())

    features = np.maximum(conv(layer.shared, nearest(s, *normalized.shape[:2])), 0)
    return normalized * (1 + conv(layer.gamma, features)) + conv(layer.beta, features)


def of_random_weights(layer, x, s, rng):
    """The layer, built, no weight of which is at its initial value: averages and variances are positive."""
    layer.build([x.shape, s.shape])
    layer.set_weights([rng.uniform(0.05, 0.5, w.shape) if "moving" in v.path or v.path.endswith("/u")
                       else rng.normal(0, 0.3, w.shape)
                       for v, w in zip(layer.weights, layer.get_weights(), strict=True)])
    return layer


@pytest.fixture
def pair(rng):
    """(x, s): pictures of different brightness and contrast."""
    x = rng.normal(size=(3, 6, 8, 5)) * [[[[1]]], [[[2]]], [[[5]]]] + [[[[0]]], [[[1]]], [[[-3]]]]
    return x.astype("float32"), rng.random((3, 3, 4, 2), "float32")


# ------------------------------------------------------------------ SPADE


@pytest.mark.parametrize("size", [(6, 8), (3, 4), (1, 1), (4, 5), (11, 9)])
def test_spade_at_inference_is_its_formula(rng, pair, size):
    x, s = pair[0], rng.random((3, *size, 2), "float32")
    layer = of_random_weights(SPADE(4), x, s, rng)
    averages = mean, variance = [np.asarray(w) for w in layer.normalize.weights]
    actual = layer([x, s])
    for i in range(3):
        normalized = (x[i] - mean) / np.sqrt(variance + 1e-3)
        np.testing.assert_allclose(actual[i], modulated(layer, normalized, s[i]), rtol=1e-4, atol=1e-4)
    for before, after in zip(averages, layer.normalize.weights, strict=True):
        np.testing.assert_array_equal(before, after)


def test_spade_in_training_normalises_over_the_batch_and_keeps_averages(rng, pair):
    x, s = pair
    layer = of_random_weights(SPADE(4), x, s, rng)
    averages = [np.asarray(w) for w in layer.normalize.weights]
    actual = layer([x, s], training=True)
    statistics = x.mean((0, 1, 2)), x.var((0, 1, 2))
    for i in range(3):
        normalized = (x[i] - statistics[0]) / np.sqrt(statistics[1] + 1e-3)
        np.testing.assert_allclose(actual[i], modulated(layer, normalized, s[i]), rtol=1e-4, atol=1e-4)
    for before, now, after in zip(averages, statistics, layer.normalize.weights, strict=True):
        np.testing.assert_allclose(after, 0.99 * before + 0.01 * now, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_spade_can_normalise_each_picture(rng, pair, training):
    x, s = pair
    layer = of_random_weights(SPADE(4, "instance"), x, s, rng)
    actual = layer([x, s], training=training)
    for i in range(3):
        normalized = (x[i] - x[i].mean((0, 1))) / np.sqrt(x[i].var((0, 1)) + 1e-5)
        np.testing.assert_allclose(actual[i], modulated(layer, normalized, s[i]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_parameters_of_spade(norm):
    layer = SPADE(hidden=128, norm=norm)
    layer.build([(None, 8, 8, 32), (None, 8, 8, 3)])
    trainable = sum(int(np.prod(weight.shape)) for weight in layer.trainable_weights)
    assert trainable == (9 * 3 + 1) * 128 + 2 * (9 * 128 + 1) * 32 == 77_376
    assert layer.count_params() - trainable == (2 * 32 if norm == "batch" else 0)


def test_spade_refuses_another_norm():
    with pytest.raises(ValueError, match="norm must be 'batch' or 'instance', not 'layer'"):
        SPADE(norm="layer")


@pytest.mark.parametrize(("spectral", "slope"), [(True, {}), (False, {}), (True, {"slope": 0.0})])
@pytest.mark.parametrize("filters", [5, 3, 9])
def test_residual_block_has_a_shortcut_where_widths_differ(rng, pair, filters, spectral, slope):
    x, s = pair
    block = of_random_weights(SPADEResBlock(filters, 4, spectral=spectral, **slope), x, s, rng)

    def leaky(x):
        return np.where(x > 0, x, slope.get("slope", 0.2) * x)  # Park's, unless it is told

    h = block.conv_0(leaky(block.norm_0([x, s])))
    assert h.shape[-1] == min(filters, 5)
    h = block.conv_1(leaky(block.norm_1([h, s])))
    if filters == 5:
        assert block.conv_s is block.norm_s is None
        shortcut = x
    else:
        shortcut = block.conv_s(block.norm_s([x, s]))
        assert [tuple(w.shape) for w in block.conv_s.trainable_weights] == [(1, 1, 5, filters)]
    np.testing.assert_allclose(block([x, s]), h + shortcut, rtol=1e-4, atol=1e-4)
    kind = SpectralConv2D if spectral else keras.layers.Conv2D
    assert {type(conv) for conv in (block.conv_0, block.conv_1, block.conv_s)} <= {kind, type(None)}
    assert type(block.norm_0.gamma) is keras.layers.Conv2D


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_picture_does_not_depend_on_the_batch_at_inference(rng, pair, norm):
    x, s = pair
    block = of_random_weights(SPADEResBlock(7, 4, norm), x, s, rng)
    np.testing.assert_allclose(block([x, s])[1:2], block([x[1:2], s[1:2]]), atol=1e-5)


@pytest.mark.parametrize(("layer_class", "arguments", "channels"), [
    (SPADE, {"hidden": 4, "kernel_initializer": "he_normal"}, 5),
    (SPADE, {"hidden": 4, "norm": "instance"}, 5),
    (SPADEResBlock, {"filters": 7, "hidden": 4, "slope": 0.0}, 7),
    (SPADEResBlock, {"filters": 5, "hidden": 4, "norm": "instance", "spectral": False}, 5),
])
def test_layers_of_two_inputs_are_good_layers(rng, pair, tmp_path, layer_class, arguments, channels):
    x, s = pair
    layer = layer_class(**arguments)
    assert layer([x, s]).shape == layer.compute_output_shape([x.shape, s.shape]) == (3, 6, 8, channels)
    config = layer.get_config()
    assert layer_class.from_config(config).get_config() == config

    inputs = keras.Input((None, None, 5)), keras.Input((None, None, 2))
    network = keras.Model(inputs, layer_class.from_config(config)(inputs))
    assert network.output_shape == (None, None, None, channels)
    before = layer.get_weights()
    network.set_weights(before)
    np.testing.assert_array_equal(layer([x, s]), network([x, s]))
    network.compile("sgd", "mse", run_eagerly=True)
    network.train_on_batch([x, s], np.ones((3, 6, 8, channels)))
    for weight, old, new in zip(network.weights, before, network.get_weights(), strict=True):
        assert (old != new).any(), weight.path
    network.save(tmp_path / "layer.keras")
    again = keras.saving.load_model(tmp_path / "layer.keras")
    np.testing.assert_array_equal(network([x, s]), again([x, s]))

    mixed = layer_class(**arguments, dtype="mixed_bfloat16")
    mixed.build([x.shape, s.shape])
    mixed.set_weights(before)
    output = mixed([x, s])
    assert keras.backend.standardize_dtype(output.dtype) == "bfloat16"
    assert all(weight.dtype == "float32" for weight in mixed.weights)
    np.testing.assert_allclose(np.asarray(output, "float32"), layer([x, s]), rtol=0.03, atol=0.2)


# ------------------------------------------------------------------ spectral normalisation


def convolution(**kwargs):
    """A convolution of 3x3, 4 to 6 channels, with a bias."""
    layer = SpectralConv2D(6, 3, padding="same", bias_initializer="normal", **kwargs)
    layer.build((None, 5, 7, 4))
    return layer


@pytest.fixture
def spectral(rng):
    return convolution()


def matrix(layer):
    return np.asarray(layer.kernel).reshape(-1, layer.filters)


def test_power_iteration_starts_in_no_direction_of_its_own():
    layer = SpectralConv2D(2000, 1)
    layer.build((None, 5, 7, 1))
    u = np.asarray(layer.u)
    assert abs(u.mean()) < 0.1
    assert u.std() == pytest.approx(1, rel=0.1)


def test_sigma_becomes_the_largest_singular_value(rng, spectral):
    x = rng.random((1, 5, 7, 4), "float32")
    largest = np.linalg.svd(matrix(spectral))[1][0]
    assert abs(float(spectral.sigma()) / largest - 1) > 1e-3
    for _ in range(100):
        spectral(x, training=True)
    np.testing.assert_allclose(spectral.sigma(), largest, rtol=1e-5)
    kernel, bias = np.asarray(spectral.kernel), np.asarray(spectral.bias)
    np.testing.assert_allclose(spectral(x)[0], convolve(x[0], kernel / largest, bias), atol=1e-5)


def test_sigma_is_as_precise_in_bfloat16(rng, monkeypatch):
    x, kernels = rng.random((1, 5, 7, 4), "float32"), []
    layer = convolution(dtype="mixed_bfloat16")
    monkeypatch.setattr(keras.layers.Conv2D, "convolution_op",
                        lambda self, inputs, kernel: kernels.append(kernel) or tf.nn.conv2d(
                            inputs, kernel, 1, "SAME"))
    for _ in range(100):
        output = layer(x, training=True)
    assert keras.backend.standardize_dtype(output.dtype) == "bfloat16"
    largest = np.linalg.svd(matrix(layer))[1][0]
    np.testing.assert_allclose(layer.sigma(), largest, rtol=1e-5)
    assert np.linalg.norm(layer.u) == pytest.approx(1, abs=1e-6)
    # The kernel that is used is rounded once, after the division.
    used = np.asarray(tf.cast(kernels[-1], "float32")).reshape(-1, 6)
    np.testing.assert_allclose(used, matrix(layer) / largest, rtol=2**-8)


def test_a_training_step_takes_one_step_of_power_iteration(rng, spectral):
    x, kernel, u = rng.random((1, 5, 7, 4), "float32"), np.asarray(spectral.kernel), np.asarray(spectral.u)
    at_first = np.asarray(spectral(x))
    np.testing.assert_array_equal(spectral.u, u)  # nothing at inference
    in_training = np.asarray(spectral(x, training=True))
    v = matrix(spectral) @ u
    expected = matrix(spectral).T @ (v / np.linalg.norm(v))
    np.testing.assert_allclose(spectral.u, expected / np.linalg.norm(expected), rtol=1e-5)
    np.testing.assert_array_equal(spectral.kernel, kernel)  # normalised where it is used only
    np.testing.assert_allclose(spectral(x), in_training, rtol=1e-5)
    assert np.abs(in_training - at_first).max() > 1e-4


@pytest.mark.parametrize("training", [False, True])
def test_gradient_of_spectral_normalisation(rng, spectral, training):
    # Miyato et al. 2018, equation 12: with K = W / sigma and G the gradient with regard to K,
    # that with regard to W is (G - <G, K> v u^T) / sigma. u and v are constants.
    x, r = rng.random((2, 5, 7, 4), "float32"), rng.normal(size=(2, 5, 7, 6)).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(spectral(x, training=training) * r)
    actual = tape.gradient(loss, spectral.kernel.value)

    w = matrix(spectral).astype("float64")
    v = w @ np.asarray(spectral.u)
    v /= np.linalg.norm(v)
    u = w.T @ v
    u /= np.linalg.norm(u)
    kernel = tf.constant((w / (v @ w @ u)).reshape(3, 3, 4, 6), "float32")
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        loss = tf.reduce_sum(tf.nn.conv2d(x, kernel, 1, "SAME") * r)
    g = np.asarray(tape.gradient(loss, kernel), "float64").reshape(w.shape)
    expected = (g - np.sum(g * np.asarray(kernel).reshape(w.shape)) * np.outer(v, u)) / (v @ w @ u)
    np.testing.assert_allclose(np.asarray(actual).reshape(w.shape), expected, rtol=1e-3, atol=1e-3)
    # The output does not change with the kernel's size, so that the gradient is orthogonal to it.
    assert abs(np.sum(np.asarray(actual).reshape(w.shape) * w)) < 1e-3 * np.abs(g).sum()


def test_gradient_of_spectral_normalisation_is_the_slope(rng):
    # At the fixed point of the power iteration, u and v stand still when the kernel moves a little.
    layer = SpectralConv2D(3, 1, use_bias=False)
    x, r = rng.random((1, 4, 4, 2), "float32"), rng.normal(size=(1, 4, 4, 3)).astype("float32")
    for _ in range(200):
        layer(x, training=True)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x) * r)
    gradient = tape.gradient(loss, layer.kernel.value).numpy()
    kernel, step = np.asarray(layer.kernel), 1e-2
    for index in np.ndindex(kernel.shape):
        ends = []
        for sign in (1, -1):
            moved = kernel.copy()
            moved[index] += sign * step
            layer.kernel.assign(moved)
            ends.append(float(tf.reduce_sum(layer(x) * r)))
        assert gradient[index] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.01, abs=0.01)


@pytest.mark.parametrize("use_bias", [True, False])
def test_spectral_convolution_keeps_u(rng, tmp_path, use_bias):
    lr = keras.Input((None, None, 4))
    network = keras.Model(lr, SpectralConv2D(6, 3, use_bias=use_bias, activation="relu", name="conv")(lr))
    x = rng.random((1, 5, 7, 4), "float32")
    network(x, training=True)
    network.save(tmp_path / "network.keras")
    again = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(network.get_layer("conv").u, again.get_layer("conv").u)
    np.testing.assert_array_equal(network(x), again(x))
    assert len(again.weights) == 2 + use_bias


def test_two_replicas_equal_one_device(run_command):
    result = run_command("-c", REPLICAS)
    assert result.returncode == 0, result.stderr[-2000:]


def test_a_block_s_normalisations_are_of_its_kind():
    block = SPADEResBlock(7, 4, "instance")
    block.build([(1, 6, 8, 5), (1, 3, 4, 2)])
    kinds = {type(spade.normalize) for spade in (block.norm_0, block.norm_1, block.norm_s)}
    assert kinds == {keras.layers.GroupNormalization}


@pytest.mark.parametrize("slope", [0.0, 0.1, 0.2])
def test_a_graph_computes_what_single_operations_do(rng, slope):
    """TensorFlow fuses a convolution, a sum and a leaky ReLU, and forgets its slope."""
    block = SPADEResBlock(6, 5, slope=slope)
    block.build([(None, 8, 8, 6), (None, 4, 4, 3)])
    for weight in block.trainable_variables:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    inputs = [tf.constant(rng.random((4, *shape), "float32")) for shape in ((8, 8, 6), (4, 4, 3))]
    graph = tf.function(lambda *inputs: block([*inputs]))(*inputs)
    np.testing.assert_allclose(graph, block(inputs), rtol=1e-4, atol=1e-4)
