"""Pixel recursive networks: what sees what, and that probabilities sum to one."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_layers import convolve

from superres.layers import GatedPixelCNNBlock, MaskedConv2D
from superres.layers.masked_conv import colour_groups, colour_mask
from superres.models.pixel_recursive import conditioning_network, pixel_recursive, prior_network
from superres.models.upscaler import load
from superres.train.pixel_recursive import PixelRecursiveTrainer

GROUPS = {1: "0", 3: "012", 7: "0001122", 8: "00011122", 32: "0" * 11 + "1" * 11 + "2" * 10}


def groups(channels, colours=3):
    return [int(group) for group in GROUPS[channels]] if colours == 3 else [0] * channels


def tiny(channels=3, size=3, levels=256, blocks=1, stddev=0.3, conditioned=False):
    """A recursive network for HR of 2 size x 2 size pixels."""
    random = keras.initializers.RandomNormal(stddev=stddev)
    network = pixel_recursive(
        conditioning_network(size, 2, channels, filters=6, blocks=1, levels=levels, features=conditioned,
                             initializer="he_normal"),
        prior_network(2 * size, channels, 8, blocks, head=60, levels=levels, condition=6 * conditioned,
                      initializer=random))
    for weight in network.get_layer("prior").weights:
        if weight.name == "condition_kernel":  # it starts at zero
            weight.assign(random(weight.shape))
    return network


def in_state(network, state, folder):
    """The network itself, after a step of training, or saved and loaded."""
    if state == "trained":
        random, before = np.random.default_rng(2), network.get_layer("prior").get_weights()
        model = PixelRecursiveTrainer(network)
        model.compile(keras.optimizers.SGD(0.1))
        model.train_step([random.random((2, *shape[1:]), "float32") for shape in network.input_shape])
        for old, new in zip(before, network.get_layer("prior").get_weights(), strict=True):
            assert (old != new).any()
    elif state == "loaded":
        network.save(folder / "network.keras")
        network = load(folder / "network.keras")
    return network


def prior_of(network, rng):
    """Function HR -> B's logits, of a random LR: where the gates are conditioned, they are told it."""
    lr = rng.random((1, *network.input_shape[0][1:]), "float32")
    return lambda hr: network([tf.repeat(lr, len(hr), 0), tf.convert_to_tensor(hr)])[1]


def dependencies(function, picture, outputs=None):
    """Boolean matrix: whether the logits of the sub-pixel of the row depend on the column's."""
    outputs = outputs or picture.size
    pictures = tf.constant(np.repeat(picture[None], outputs, 0))
    with tf.GradientTape() as tape:
        tape.watch(pictures)
        logits = tf.reshape(function(pictures), (outputs, outputs, -1))
        mixture = np.random.default_rng(3).normal(size=logits.shape[-1]).astype("float32")
        total = tf.einsum("iil,l->", logits, mixture)  # picture i's logits of sub-pixel i
    gradient = tape.gradient(total, pictures, unconnected_gradients="zero")
    return gradient.numpy().reshape(outputs, -1) != 0


# ------------------------------------------------------------------ layers


@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize(
    ("colours", "inputs", "outputs"), [(1, 1, 3), (1, 7, 8), (3, 3, 7), (3, 32, 8), (3, 7, 32)])
def test_masked_convolution_sums_over_the_past_only(rng, mask_type, colours, inputs, outputs):
    x = rng.normal(size=(4, 5, inputs)).astype("float32")
    layer = MaskedConv2D(outputs, (3, 5), mask_type, colours, bias_initializer="normal")
    actual = layer(x[None])[0]
    kernel, bias = layer.get_weights()
    seen, sees = np.array(groups(inputs, colours)), np.array(groups(outputs, colours))
    same = seen[:, None] < sees if mask_type == "A" else seen[:, None] <= sees
    expected = np.zeros((4, 5, outputs)) + bias
    for r, c in np.ndindex(4, 5):
        for i, j in np.ndindex(4, 5):
            if abs(i - r) <= 1 and abs(j - c) <= 2 and (i, j) <= (r, c):
                tap = kernel[i - r + 1, j - c + 2]
                expected[r, c] += x[i, j] @ (tap * same if (i, j) == (r, c) else tap)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("colours", [1, 3])
def test_wide_1x1_convolution_is_the_masked_product(rng, colours):
    """It is computed in parts, without what the mask closes."""
    x = tf.constant(rng.normal(size=(2, 3, 4, 257)).astype("float32"))
    layer = MaskedConv2D(7, 1, "B", colours)
    with tf.GradientTape() as tape:
        actual = layer(x)
        squares = tf.reduce_sum(actual**2)
    seen = [*range(colours)] * 257
    mask = np.less_equal.outer(sorted(seen[:257]), groups(7, colours))
    kernel = layer.kernel.numpy()[0, 0] * mask
    np.testing.assert_allclose(actual, x.numpy() @ kernel, atol=1e-5)
    gradient = np.einsum("bhwi,bhwo->io", x, 2 * actual.numpy()) * mask
    np.testing.assert_allclose(tape.gradient(squares, layer.kernel)[0, 0], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mask_type", "inputs"), [("A", 3), ("B", 7)])
def test_masked_convolution_is_a_good_layer(run_layer_test, mask_type, inputs):
    run_layer_test(
        MaskedConv2D, {"filters": 8, "kernel_size": 3, "mask_type": mask_type, "activation": "relu"},
        (2, 5, 7, inputs), (2, 5, 7, 8), weights=(9 * inputs + 1) * 8,
    )


def test_colours_of_feature_maps_survive_the_gate():
    assert colour_groups(32).tolist() == groups(32)
    assert colour_groups(64, gates=2).tolist() == groups(32) * 2
    one_half = colour_mask(8, 32, "A")
    np.testing.assert_array_equal(colour_mask(8, 64, "A", gates=2), np.concatenate([one_half] * 2, 1))


@pytest.mark.parametrize("condition", [0, 4])
@pytest.mark.parametrize(("mask_type", "channels", "rows"), [("A", 3, 2), ("B", 8, 3)])
def test_gated_block_is_a_good_layer(tmp_path, rng, mask_type, channels, rows, condition):
    arguments = {"filters": 8, "kernel_size": 5, "mask_type": mask_type, "kernel_initializer": "he_normal"}
    widths = [channels, channels, condition][: 2 + bool(condition)]
    given = [rng.random((2, 6, 7, width), "float32") for width in widths]
    layer = GatedPixelCNNBlock(**arguments)
    expected = layer(given)
    assert [out.shape for out in expected] == [(2, 6, 7, 8)] * 2
    assert layer.compute_output_shape([x.shape for x in given]) == [(2, 6, 7, 8)] * 2
    # Vertical, across, horizontal, output, condition.
    assert layer.count_params() == ((5 * rows * channels + 1) * 16 + 16 * 16 + (3 * channels + 1) * 16 + 9 * 8
                                    + condition * 32)
    config = layer.get_config()
    assert GatedPixelCNNBlock.from_config(config).get_config() == config

    inputs = [keras.Input((None, None, width)) for width in widths]
    network = keras.Model(inputs, GatedPixelCNNBlock.from_config(config)(inputs))
    assert [out.shape for out in network.outputs] == [(None, None, None, 8)] * 2
    network.set_weights(layer.get_weights())
    network.save(tmp_path / "block.keras")
    again = keras.saving.load_model(tmp_path / "block.keras")
    for one, two, three in zip(expected, network(given), again(given), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(two, three)

    network.compile("sgd", "mse", run_eagerly=True)
    network.train_on_batch(given, [np.ones((2, 6, 7, 8))] * 2)
    for old, new in zip(layer.get_weights(), network.get_weights(), strict=True):
        assert (old != new).any()

    mixed = GatedPixelCNNBlock(**arguments, dtype="mixed_bfloat16")
    mixed.build([x.shape for x in given])
    mixed.set_weights(layer.get_weights())
    for one, two in zip(expected, mixed(given), strict=True):
        assert keras.backend.standardize_dtype(two.dtype) == "bfloat16"
        np.testing.assert_allclose(one, np.asarray(two, "float32"), atol=0.1)
    assert all(weight.dtype == "float32" for weight in mixed.weights)


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_gated_block_is_its_formula(rng, randomize, mask_type, colours, conditioned):
    channels = colours if mask_type == "A" else 8
    v, h, s = (rng.normal(size=(6, 7, width)).astype("float32") for width in (channels, channels, 4))
    given = [x[None] for x in (v, h, s)][: 2 + conditioned]
    block = GatedPixelCNNBlock(8, 5, mask_type, colours)
    block.build([x.shape for x in given])
    actual = randomize(block, 0.3)(given)
    weights = {weight.name: np.asarray(weight) for weight in block.weights}

    def gate(x):
        return np.tanh(x[..., :8]) / (1 + np.exp(-x[..., 8:]))

    # The kernels in a window of 5 x 5 pixels: rows above, and what is left in the row.
    vertical, horizontal = np.zeros((2, 5, 5, channels, 16))
    vertical[: 2 if mask_type == "A" else 3] = weights["vertical_kernel"]
    seen, sees = np.array(groups(channels, colours))[:, None], np.array(groups(8, colours))
    horizontal[2, :2] = weights["horizontal_kernel"][0, :2]
    horizontal[2, 2] = weights["horizontal_kernel"][0, 2] * np.tile(
        seen < sees if mask_type == "A" else seen <= sees, 2)
    above = convolve(v, vertical, weights["vertical_bias"])
    features = convolve(h, horizontal, weights["horizontal_bias"]) + above @ weights["across_kernel"]
    if conditioned:  # each stack's gate is told on its own, every colour everything
        told = s @ weights["condition_kernel"]
        above, features = above + told[..., :16], features + told[..., 16:]
    output = gate(features) @ (weights["output_kernel"] * (sees[:, None] <= sees)) + weights["output_bias"]
    np.testing.assert_allclose(actual[0][0], gate(above), atol=1e-5)
    np.testing.assert_allclose(actual[1][0], output if mask_type == "A" else output + h, atol=1e-5)


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_gated_block_row_by_row_and_pixel_by_pixel(rng, randomize, mask_type, colours, conditioned):
    channels = colours if mask_type == "A" else 8
    v, h = (rng.normal(size=(2, 6, 7, channels)).astype("float32") for _ in range(2))
    s = [rng.normal(size=(2, 6, 7, 4)).astype("float32")] * conditioned
    block = GatedPixelCNNBlock(8, 5, mask_type, colours)
    block.build([x.shape for x in (v, h, *s)])
    whole_v, whole_h = randomize(block, 0.3)([v, h, *s])
    seen, sees = np.array(groups(channels, colours)), np.array(groups(8, colours))
    above = np.pad(v, ((0, 0), (2, 0), (0, 0), (0, 0)))
    left = np.pad(h, ((0, 0), (0, 0), (2, 0), (0, 0)))
    order, kernel, steps = block.by_colours()
    for r in range(6):
        row_v, context = block.vertical(above[:, r : r + (2 if mask_type == "A" else 3)],
                                        *[features[:, r : r + 1] for features in s])
        np.testing.assert_allclose(row_v[:, 0], whole_v[:, r], atol=1e-5)
        for c in range(7):
            before = np.asarray(context)[:, 0, c, order] + np.tensordot(left[:, r, c : c + 2], kernel, 2)
            gated, at = [], 0
            for colour, step in enumerate(steps):
                known = seen < colour if mask_type == "A" else seen <= colour
                pixel = [h[:, r, c, seen == k] for k in range(colours) if known[seen == k].all()]
                own = 2 * (sees == colour).sum()
                found = step(before[:, at : at + own], pixel, gated)
                np.testing.assert_allclose(found, np.asarray(whole_h)[:, r, c, sees == colour], atol=1e-5)
                at += own


@pytest.mark.parametrize("layer", [MaskedConv2D, GatedPixelCNNBlock])
def test_layers_refuse_other_masks_and_even_kernels(layer):
    with pytest.raises(ValueError, match="mask_type must be 'A' or 'B', not 'C'"):
        layer(6, 3, mask_type="C")
    for fixed in ({"strides": 2}, {"dilation_rate": 2}, {"groups": 2}):
        with pytest.raises(ValueError, match="strides, dilation_rate and groups must be 1"):
            MaskedConv2D(6, 3, **fixed)
    with pytest.raises(ValueError, match="kernel_size must be odd, not "):
        layer(6, 4)


def test_block_of_type_b_keeps_its_channels():
    with pytest.raises(ValueError, match="keeps its channels: expected 8, found 6"):
        GatedPixelCNNBlock(8, 5)([np.zeros((1, 4, 4, 6))] * 2)


# ------------------------------------------------------------------ what sees what


@pytest.mark.parametrize("state", ["random", "trained", "loaded"])
@pytest.mark.parametrize(("channels", "conditioned"), [(1, False), (3, False), (1, True), (3, True)])
def test_logits_depend_on_all_earlier_sub_pixels_and_on_no_other(rng, tmp_path, channels, conditioned, state):
    network = in_state(tiny(channels, conditioned=conditioned), state, tmp_path)
    picture = rng.random((6, 6, channels), "float32")
    np.testing.assert_array_equal(dependencies(prior_of(network, rng), picture),
                                  np.tri(picture.size, k=-1, dtype=bool))


@pytest.mark.parametrize("conditioned", [False, True])
def test_conditioned_gates_see_all_of_lr(rng, conditioned):
    network, hr = tiny(conditioned=conditioned), rng.random((1, 6, 6, 3), "float32")
    seen = dependencies(lambda lr: network([lr, tf.repeat(hr, len(lr), 0)])[1],
                        rng.random((3, 3, 3), "float32"), outputs=hr.size)
    assert (seen == conditioned).all()


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_there_is_no_blind_spot_within_reach(rng, blocks):
    # 3 pixels up, left and right for the first block, 2 for each other.
    reach, prior = 3 + 2 * blocks, tiny(1, 5, 8, blocks).get_layer("prior")
    actual = dependencies(prior, rng.random((10, 10, 1), "float32"))
    rows, columns = np.divmod(np.arange(100), 10)
    near = (abs(np.subtract.outer(rows, rows)) <= reach) & (abs(np.subtract.outer(columns, columns)) <= reach)
    np.testing.assert_array_equal(actual, near & np.tri(100, k=-1, dtype=bool))


@pytest.mark.parametrize(("channels", "conditioned"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("pixel", [0, 9, 22])
def test_the_future_may_hold_anything(rng, channels, conditioned, pixel):
    prior = prior_of(tiny(channels, conditioned=conditioned), rng)
    picture = rng.random((36, channels), "float32")
    expected = np.asarray(prior(picture.reshape(1, 6, 6, -1))).reshape(36 * channels, -1)
    for colour in range(channels):
        poisoned = picture.copy()
        poisoned[pixel + 1 :] = np.nan  # later pixels are not even read
        poisoned[pixel, colour:] = 1e6  # later colours of the pixel are multiplied by zero
        actual = np.asarray(prior(poisoned.reshape(1, 6, 6, -1))).reshape(36 * channels, -1)
        known = pixel * channels + colour + 1
        np.testing.assert_allclose(actual[:known], expected[:known], atol=1e-5)
        assert np.isnan(actual[-channels:]).all()


@pytest.mark.parametrize("conditioned", [False, True])
def test_probabilities_of_all_pictures_sum_to_one(rng, conditioned):
    network = tiny(size=1, levels=3, stddev=0.6, conditioned=conditioned)
    lr = rng.random((1, 1, 1, 3), "float32")
    # Every picture of 2 x 2 RGB pixels of three levels, 3^12; the last nine sub-pixels in one batch.
    ends = np.stack(np.unravel_index(np.arange(3**9), (3,) * 9), -1)

    @tf.function
    def likelihoods(start):
        levels = tf.concat([tf.repeat(start[None], len(ends), 0), ends], 1)
        hr = tf.reshape(tf.cast(levels, "float32") / 2, (-1, 2, 2, 3))
        a, b = network([tf.repeat(lr, len(ends), 0), hr])
        chosen = tf.one_hot(tf.reshape(levels, (-1, 2, 2, 3)), 3)
        return [tf.exp(tf.reduce_sum(tf.cast(tf.nn.log_softmax(logits) * chosen, "float64"), (1, 2, 3, 4)))
                for logits in (b, a + b)]

    both = np.stack([likelihoods(tf.constant(start)) for start in np.ndindex(3, 3, 3)])
    np.testing.assert_allclose(both.sum((0, 2)), 1, atol=1e-5)
    assert both.max() > 30 / 3**12  # far from uniform


@pytest.mark.parametrize("conditioned", [False, True])
def test_a_picture_does_not_depend_on_the_batch_at_inference(rng, conditioned):
    network = tiny(conditioned=conditioned)
    lr, hr = rng.random((4, 3, 3, 3), "float32"), rng.random((4, 6, 6, 3), "float32")
    for whole, alone in zip(network([lr, hr]), network([lr[2:3], hr[2:3]]), strict=True):
        np.testing.assert_allclose(whole[2:3], alone, atol=1e-5)
