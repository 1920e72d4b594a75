"""SRGAN's networks, layers and losses: what they compute."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from superres.datasets.degradations import imresize, resize_matrix
from superres.errors import InputError
from superres.layers import BicubicDownsampling2D, PolyphaseConv2D, SpectralConv2D
from superres.losses import Fidelity, grid, relativistic, shifted, standard, total_variation
from superres.models.srgan import discriminator, generator, start_as_interpolation

# Generator of 64 channels: head 9x9 3 -> 64 = 15,616; a block's two convolutions 2 * 36,928 and
# normalisations 2 * 128; trunk 36,928 + 128; an upsampling 64 -> 256 = 147,712; last 9x9
# 64 -> 3 = 15,555; and a slope, or 64, for every PReLU: head, blocks, upsamplings.
BLOCK, TRUNK, UP = 74_112, 37_056, 147_712
PARAMETERS = [
    (2, 5, "scalar", 586_506),
    (4, 5, "scalar", 734_219),
    (8, 5, "scalar", 881_932),
    (2, 16, "channel", 1_402_883),
    (4, 16, "channel", 1_550_659),
]


def count(network):
    return sum(int(np.prod(weight.shape)) for weight in network.trainable_weights)


def drawn(network, size):
    """Give every trainable weight a random value."""
    rng = np.random.default_rng(7)
    for weight in network.trainable_variables:
        weight.assign(rng.normal(0, size, weight.shape))
    return network


def of_kind(network, kind):
    return [layer for layer in network.layers if isinstance(layer, kind)]


# ------------------------------------------------------------------ networks


@pytest.mark.parametrize(("scale", "blocks", "prelu", "parameters"), PARAMETERS)
def test_parameters_of_the_generator(scale, blocks, prelu, parameters):
    network = generator(scale, blocks, prelu=prelu)
    assert count(network) == parameters
    ups = int(np.log2(scale))
    slopes = (1 + blocks + ups) * (1 if prelu == "scalar" else 64)
    assert parameters == 15_616 + blocks * BLOCK + TRUNK + ups * UP + 15_555 + slopes


def test_parameters_of_the_discriminator():
    assert count(discriminator()) == 5_215_425
    # Sixteen channels of 2 x 2 pixels of 32 x 32, to 32 units.
    average, dense = (discriminator(filters=2, size=size) for size in (None, 32))
    assert count(dense) - count(average) == (2 * 2 - 1) * 16 * 32
    # Spectral normalisation learns nothing; batch normalisation a scale and a shift for all but the first.
    spectral = discriminator(norm="spectral")
    assert count(spectral) == 5_215_425 - 2 * (64 + 2 * (128 + 256 + 512))
    kernels = of_kind(spectral, keras.layers.Conv2D)
    assert len(kernels) == 10
    assert all(isinstance(layer, SpectralConv2D) for layer in kernels)
    assert not of_kind(spectral, keras.layers.BatchNormalization)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"norm": "layer"}, "norm: must be batch or spectral, not layer"),
    ({"norm": "spectral", "size": 32}, "norm: spectral has no dense head"),
])
def test_impossible_discriminators_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        discriminator(filters=2, **arguments)


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("prelu", ["scalar", "channel"])
def test_pictures_have_the_scale_s_size_and_the_range_of_pictures(rng, scale, prelu):
    network = generator(scale, blocks=1, filters=4, prelu=prelu)
    assert network.output.shape == (None, None, None, 3)
    assert network.name == f"srgan_x{scale}"
    sr = np.asarray(drawn(network, 1.0)(rng.random((2, 5, 7, 3), "float32")))
    assert sr.shape == (2, 5 * scale, 7 * scale, 3)
    assert sr.dtype == "float32"
    # Large weights reach both ends, and go no further.
    assert 0 <= sr.min() < 0.01
    assert 0.99 < sr.max() <= 1


def test_without_its_last_convolution_the_picture_is_grey(rng):
    network = generator(2, blocks=1, filters=4)
    of_kind(network, PolyphaseConv2D)[0].kernel.assign(np.zeros((9, 9, 4, 3)))
    np.testing.assert_array_equal(network(rng.random((1, 5, 7, 3), "float32")), np.full((1, 10, 14, 3), 0.5))


@pytest.mark.parametrize(("prelu", "shape"), [("scalar", (1, 1, 1)), ("channel", (1, 1, 4))])
def test_slopes_start_at_a_quarter(prelu, shape):
    network = generator(4, blocks=2, filters=4, prelu=prelu)
    slopes = [np.array(layer.alpha) for layer in of_kind(network, keras.layers.PReLU)]
    assert [slope.shape for slope in slopes] == [shape] * (1 + 2 + 2)
    assert {float(value) for slope in slopes for value in slope.ravel()} == {0.25}


def test_blocks_and_the_trunk_are_added_to_what_they_get(rng):
    network = drawn(generator(2, blocks=3, filters=4), 0.5)
    for layer in of_kind(network, keras.layers.BatchNormalization):
        for weight in (layer.gamma, layer.beta):
            weight.assign(np.zeros(4))
    head, adds = of_kind(network, keras.layers.PReLU)[0], of_kind(network, keras.layers.Add)
    assert len(adds) == 3 + 1
    one, *blocks, skip = keras.Model(network.input, [layer.output for layer in (head, *adds)])(
        rng.random((1, 5, 7, 3), "float32"))
    for block in blocks:
        np.testing.assert_array_equal(block, one)
    np.testing.assert_array_equal(skip, one)
    # With normalisations that let something through, the trunk is added to the head, not to the blocks.
    for layer in of_kind(network, keras.layers.BatchNormalization)[:-1]:
        layer.beta.assign(np.ones(4))
    one, *_, last, skip = keras.Model(network.input, [layer.output for layer in (head, *adds)])(
        rng.random((1, 5, 7, 3), "float32"))
    np.testing.assert_allclose(last, one + 3, rtol=1e-5)  # one a block
    np.testing.assert_array_equal(skip, one)


def test_normalisations_are_synchronized_over_devices():
    for network, number in ((generator(2, blocks=2, filters=4), 5), (discriminator(filters=2), 7)):
        norms = of_kind(network, keras.layers.BatchNormalization)
        assert [layer.synchronized for layer in norms] == [True] * number


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("prelu", ["scalar", "channel"])
def test_a_generator_can_start_as_bilinear_interpolation(rng, scale, prelu):
    network = generator(scale, blocks=2, filters=8, prelu=prelu)
    start_as_interpolation(network)
    x = rng.random((1, 9, 10, 3), "float32")
    expected = 2 * x.astype("float64") - 1
    for _ in range(int(np.log2(scale))):
        for axis in (1, 2):
            before, after = (np.roll(expected, shift, axis) for shift in (1, -1))
            phases = 0.75 * expected + 0.25 * before, 0.75 * expected + 0.25 * after
            expected = np.stack(phases, axis + 1).reshape(
                [size * (1 + (i == axis)) for i, size in enumerate(expected.shape)])
    inside = (0, slice(scale, -scale), slice(scale, -scale))  # beyond the border are zeros
    np.testing.assert_allclose(network(x)[inside], 0.5 + 0.5 * np.tanh(1.2 * expected[inside]), atol=1e-5)
    assert all(np.asarray(weight).any() for weight in network.trainable_weights if "kernel" in weight.path)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"scale": 3}, "scale: must be 2, 4 or 8, not 3"),
    ({"prelu": "pixel"}, "prelu: must be scalar or channel, not pixel"),
])
def test_impossible_generators_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        generator(**arguments)


@pytest.mark.parametrize("build", [
    lambda: generator(8, blocks=1, filters=4),
    lambda: generator(2, blocks=1, filters=4, prelu="channel"),
    lambda: discriminator(filters=2),
    lambda: discriminator(filters=2, size=32),
    lambda: discriminator(filters=2, norm="spectral"),
], ids=["x8", "channel", "average", "dense", "spectral"])
def test_saved_and_loaded_networks_are_equal(tmp_path, rng, build):
    network = drawn(build(), 0.5)
    network.save(tmp_path / "network.keras")
    again = keras.saving.load_model(tmp_path / "network.keras")
    x = rng.random((2, 32, 32, 3), "float32")
    before, after = (model.predict_on_batch(x) for model in (network, again))
    np.testing.assert_array_equal(before, after)
    assert np.ptp(before) > 0


def test_pictures_stay_in_float32_in_mixed_precision(rng):
    x = rng.random((1, 16, 16, 3), "float32")
    plain = generator(2, blocks=1, filters=4)
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    mixed = generator(2, blocks=1, filters=4)
    mixed.set_weights(plain.get_weights())
    assert [layer.compute_dtype for layer in mixed.layers[-3:]] == ["bfloat16", "float32", "float32"]
    sr = np.asarray(mixed(x))
    np.testing.assert_allclose(sr, plain(x), atol=0.02)
    assert sr.dtype == "float32"


@pytest.mark.parametrize("size", [None, 32])
def test_logits_stay_in_float32_in_mixed_precision(size):
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    network = discriminator(filters=2, size=size)
    assert of_kind(network, keras.layers.Conv2D)[0].compute_dtype == "bfloat16"
    assert network.output.dtype == "float32"


def test_discriminator_judges_pictures_of_any_size_and_its_dense_head_of_one(rng):
    network = discriminator(filters=2)
    for size in ((16, 16), (33, 50), (1, 1)):
        assert network(rng.random((3, *size, 3), "float32")).shape == (3, 1)
    dense = discriminator(filters=2, size=32)
    assert dense.input.shape == (None, 32, 32, 3)
    assert dense(rng.random((3, 32, 32, 3), "float32")).shape == (3, 1)


def test_discriminator_halves_every_second_map_and_doubles_its_channels():
    network = discriminator(filters=2, size=96)
    maps = [layer.output.shape[1:] for layer in of_kind(network, keras.layers.Conv2D)]
    assert maps == [(96 // 2 ** -(-i // 2), 96 // 2 ** -(-i // 2), 2 ** (1 + i // 2)) for i in range(8)]
    slopes = [layer.negative_slope for layer in of_kind(network, keras.layers.LeakyReLU)]
    assert slopes == [0.2] * 9


# ------------------------------------------------------------------ layers


@pytest.mark.parametrize("size", [(2, 8, 10), (1, 2, 4)])  # the second smaller than the kernels
@pytest.mark.parametrize("kernel", [9, 5, 3, (3, 9), 7, 1])
def test_polyphase_convolution_is_conv2d_and_so_are_its_gradients(rng, kernel, size):
    arguments = {"dtype": "float64", "bias_initializer": "normal", "activation": "tanh"}
    fast = PolyphaseConv2D(2, kernel, **arguments)
    plain = keras.layers.Conv2D(2, kernel, padding="same", **arguments)
    x = tf.Variable(rng.normal(size=(*size, 3)))
    for layer in (fast, plain):
        layer.build(x.shape)
    plain.set_weights(fast.get_weights())
    wanted, results = rng.normal(size=(*size, 2)), []
    for layer in (fast, plain):
        with tf.GradientTape() as tape:
            y = layer(x)
            loss = tf.reduce_sum(wanted * y)
        results.append([y, *tape.gradient(loss, [layer.kernel.value, layer.bias.value, x])])
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)
        assert np.abs(one).max() > 0


@pytest.mark.parametrize("kernel", [9, (3, 5)])
def test_polyphase_convolution_is_a_good_layer(run_layer_test, kernel):
    taps = 81 if kernel == 9 else 15
    run_layer_test(PolyphaseConv2D, {"filters": 3, "kernel_size": kernel, "activation": "relu"},
                   (2, 6, 8, 4), (2, 6, 8, 3), weights=(taps * 4 + 1) * 3)


@pytest.mark.parametrize("kernel", [2, (3, 4)])
def test_polyphase_convolution_refuses_even_kernels(kernel):
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        PolyphaseConv2D(3, kernel)


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("shape", [(2, 2, 3), (5, 7, 1), (6, 3, 3)])
def test_bicubic_downsampling_equals_imresize_up_to_the_border(rng, scale, shape):
    height, width, channels = shape
    x = rng.random((2, height * scale, width * scale, channels), "float32")
    lr = BicubicDownsampling2D(scale)(x)
    assert lr.shape == (2, *shape)
    for one, two in zip(lr, x, strict=True):
        np.testing.assert_allclose(one, imresize(two.astype("float64"), 1 / scale), atol=2e-6)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_bicubic_downsampling_is_a_good_layer(run_layer_test, scale):
    run_layer_test(BicubicDownsampling2D, {"scale": scale}, (2, 2 * scale, 3 * scale, 3), (2, 2, 3, 3),
                   weights=0, computes="float32")


@pytest.mark.parametrize("scale", [2, 4])
def test_bicubic_downsampling_is_twice_differentiable(rng, scale):
    # D x = A x B': of |D x|^2 / 2, the gradient is D' D x; of |D' D x|^2 / 2, (D' D)^2 x.
    x = tf.Variable(rng.normal(size=(1, 3 * scale, 4 * scale, 1)))
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            half = tf.reduce_sum(BicubicDownsampling2D(scale, dtype="float64")(x) ** 2) / 2
        gradient = inner.gradient(half, x)
        penalty = tf.reduce_sum(gradient**2) / 2
    rows, columns = (resize_matrix(n * scale, 1 / scale).toarray() for n in (3, 4))

    def there_and_back(picture):
        return rows.T @ rows @ picture @ columns.T @ columns

    once = there_and_back(x.numpy()[0, ..., 0])
    np.testing.assert_allclose(gradient[0, ..., 0], once, atol=1e-6)
    np.testing.assert_allclose(outer.gradient(penalty, x)[0, ..., 0], there_and_back(once), atol=1e-6)


def test_bicubic_downsampling_refuses_odd_scales():
    with pytest.raises(ValueError, match="scale must be even, not 3"):
        BicubicDownsampling2D(3)


@pytest.mark.parametrize("shape", [(1, 4, 12, 3), (1, 12, 5, 3)])
def test_bicubic_downsampling_refuses_pictures_that_it_cannot_continue(shape):
    with pytest.raises(ValueError, match=f"at least 6 pixels here, not {min(shape[1:3])}"):
        BicubicDownsampling2D(4)(np.ones(shape, "float32"))
    with pytest.raises(ValueError, match="at least 6 pixels"):
        Fidelity(4)(np.ones((1, shape[1] // 4, shape[2] // 4, 3), "float32"), np.ones(shape, "float32"))


def test_layers_and_losses_are_registered_for_loading():
    for thing in (PolyphaseConv2D, BicubicDownsampling2D, Fidelity):
        assert keras.saving.get_registered_name(thing) == f"superres>{thing.__name__}"


# ------------------------------------------------------------------ losses


@pytest.fixture
def logits(rng):
    """Of five real and five fake pictures."""
    return rng.normal(0, 3, (5, 1)).astype("float32"), rng.normal(0, 3, (5, 1)).astype("float32")


def log_sigmoid(t):
    return np.log(1 / (1 + np.exp(-t.astype("float64"))))


def test_standard_game_is_its_formula(logits):
    real, fake = logits
    expected = -log_sigmoid(fake), -log_sigmoid(real) - np.log(1 - np.exp(log_sigmoid(fake)))
    for one, two in zip(standard(real, fake), expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)


def test_relativistic_networks_want_the_opposite(logits):
    real, fake = logits
    ours, theirs = relativistic(real, fake)
    for one, two in zip(relativistic(fake, real), (theirs, ours), strict=True):
        np.testing.assert_array_equal(one, two)
    # The generator gains by a higher logit of its own picture, the discriminator by one of HR.
    raised, lowered = relativistic(real, fake + 1), relativistic(real + 1, fake)
    assert (raised[0] < ours).numpy().all()
    assert (raised[1] > theirs).numpy().all()
    assert (lowered[0] > ours).numpy().all()
    assert (lowered[1] < theirs).numpy().all()


@pytest.mark.parametrize("adversarial_loss", [standard, relativistic])
def test_adversarial_losses_are_stable_however_sure_the_discriminator_is(adversarial_loss):
    fake = tf.Variable([[-1e4], [-1e4], [1e4], [1e4]])
    real = tf.Variable([[1e4], [-1e4], [1e4], [-1e4]])
    with tf.GradientTape(persistent=True) as tape:
        ours, theirs = adversarial_loss(real, fake)
    gradients = [tape.gradient(loss, pair) for loss in (ours, theirs) for pair in (fake, real)]
    arrays = [np.array(x) for x in (ours, theirs, *gradients) if x is not None]
    assert len(arrays) == (5 if adversarial_loss is standard else 6)  # of the standard one, ours has no real
    assert all(np.isfinite(array).all() for array in arrays)
    # A discriminator that is sure and right leaves the generator all of its gradient.
    assert float(gradients[0][0, 0]) == -1
    assert float(ours[0, 0]) == (1e4 if adversarial_loss is standard else 2e4)


def test_total_variation_is_its_formula(rng):
    x = rng.random((2, 4, 5, 3), "float32")
    for picture, value in zip(x, total_variation(x), strict=True):
        rows = np.mean([abs(picture[i + 1, j, c] - picture[i, j, c]) for i, j, c in np.ndindex(3, 5, 3)])
        columns = np.mean([abs(picture[i, j + 1, c] - picture[i, j, c]) for i, j, c in np.ndindex(4, 4, 3)])
        assert float(value) == pytest.approx(rows + columns, rel=1e-5)
    np.testing.assert_array_equal(total_variation(np.full((1, 4, 5, 3), 0.3, "float32")), [0])


@pytest.mark.parametrize("scale", [2, 4])
def test_fidelity_is_the_distance_of_the_shrunk_picture(rng, scale):
    sr = rng.random((2, 4 * scale, 5 * scale, 3), "float32")
    shrunk = np.stack([imresize(picture, 1 / scale) for picture in sr])
    loss = Fidelity(scale)
    np.testing.assert_allclose(loss.call(shrunk, sr), [0, 0], atol=1e-6)
    off = shrunk + rng.normal(size=shrunk.shape).astype("float32")
    expected = np.abs(off - shrunk).mean((1, 2, 3))
    np.testing.assert_allclose(loss.call(off, sr), expected, rtol=1e-4)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert again.get_config() == loss.get_config()
    assert float(again(off, sr)) == pytest.approx(expected.mean(), rel=1e-4)


def test_shifted_pictures_begin_at_every_pixel_in_turn(rng):
    hr = rng.random((3, 12, 18, 3), "float32")
    cut = tf.function(lambda pictures, step: shifted((pictures, 2 * pictures), 3, step),
                      [tf.TensorSpec((None, 12, 18, 3)), tf.TensorSpec((), "int64")])
    starts = set()
    for step in range(10):
        one, two = cut(hr, step)
        (start,) = [(y, x) for y in range(3) for x in range(3)
                    if np.array_equal(one, hr[:, y : y + 9, x : x + 15])]
        np.testing.assert_array_equal(two, 2 * one)
        starts.add(start)
    assert len(starts) == 9


@pytest.mark.parametrize("scale", [2, 4])
def test_grid_is_the_phases_difference_and_no_other(rng, scale):
    hr = rng.random((2, 4 * scale, 3 * scale, 3), "float32")
    pattern = rng.normal(size=(1, scale, scale, 3)).astype("float32")
    pattern -= pattern.mean((1, 2), keepdims=True)
    tiled = np.tile(pattern, (2, 4, 3, 1))
    np.testing.assert_allclose(grid(hr, hr + tiled, scale), np.abs(pattern).mean() * np.ones(2), rtol=1e-4)
    # What differs from one LR pixel to the next, in all phases alike, and another colour cancel out.
    detail = rng.normal(size=(2, 4, 3, 3)).astype("float32").repeat(scale, 1).repeat(scale, 2)
    np.testing.assert_allclose(grid(hr, hr + detail, scale), 0, atol=1e-6)
    np.testing.assert_allclose(grid(hr, hr + detail, scale, 2), 0, atol=1e-6)


def test_grids_that_cancel_over_the_picture_are_seen_in_windows(rng):
    hr = rng.random((2, 13, 16, 3), "float32")  # 6 x 8 LR pixels, and a row that belongs to none
    pattern = rng.normal(size=(2, 2, 2, 3)).astype("float32")
    pattern -= pattern.mean((1, 2), keepdims=True)
    signs = np.array([1, -1, 0, 1, -1, 0, 1, -1]).repeat(2)[:, None]
    sr = hr + signs * np.pad(np.tile(pattern, (1, 6, 8, 1)), ((0, 0), (0, 1), (0, 0), (0, 0)))
    size = np.abs(pattern).mean((1, 2, 3))
    np.testing.assert_allclose(grid(hr, sr, 2), 0, atol=1e-6)
    np.testing.assert_allclose(grid(hr, sr, 2, 1), size * 6 / 8, rtol=1e-4)
    np.testing.assert_allclose(grid(hr, sr, 2, 3), 0, atol=1e-6)  # columns 0 to 2, 3 to 5, none of 6 and 7
    np.testing.assert_allclose(grid(hr, sr, 2, 2), size * (0 + .5 + .5 + 0) / 4, rtol=1e-4)


def test_the_average_head_is_two_convolutions_of_the_mean(rng):
    network = drawn(discriminator(filters=2), 0.5)
    convs, acts = (of_kind(network, kind) for kind in (keras.layers.Conv2D, keras.layers.LeakyReLU))
    last, logits = keras.Model(network.input, [acts[7].output, network.output])(
        rng.random((2, 32, 48, 3), "float32"))
    expected = np.mean(last, (1, 2))
    for number, conv in enumerate(convs[8:]):
        expected = np.maximum(expected, 0.2 * expected) if number else expected
        expected = expected @ np.array(conv.kernel)[0, 0] + np.array(conv.bias)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_normalisation_is_between_convolution_and_activation():
    network = generator(2, blocks=1, filters=4)
    assert network.get_layer("block1_conv1_act").input is network.get_layer("block1_conv1_norm").output
    for norm in of_kind(discriminator(filters=2), keras.layers.BatchNormalization):
        assert isinstance(norm.input._keras_history.operation, keras.layers.Conv2D)
