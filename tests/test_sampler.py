"""Networks of pixel recursive super resolution: their sizes, and pictures drawn from them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_pixelcnn import in_state, tiny

from superres.errors import InputError
from superres.layers import SPADEResBlock, SpectralConv2D
from superres.losses import bits_per_dimension, cross_entropy
from superres.models.pixel_recursive import conditioning_network, pixel_recursive, prior_network
from superres.models.sampler import NaiveSampler, Sampler, draw, networks_of
from superres.train.pixel_recursive import PRESETS

ALMOST_ONE = np.nextafter(np.float32(1), np.float32(0))


def softmax(logits):
    p = np.exp(np.asarray(logits, "float64") - np.max(logits, -1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def assert_drawn_from(counts, p):
    """Counts of draws are those of probabilities p: chi-square within five standard deviations."""
    counts, p = np.ravel(counts), np.ravel(p)
    expected = counts.sum() * p
    assert expected.min() > 1, "too few draws to judge by"
    chi_square, freedom = np.sum((counts - expected) ** 2 / expected), len(p) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def inputs(rng, network, pictures=4, temperature=(0.5, 1, 2, np.inf)):
    lr_shape, hr_shape = (shape[1:] for shape in network.input_shape)
    return [rng.random((pictures, *lr_shape), "float32"), rng.random((pictures, *hr_shape), "float32"),
            np.resize(np.float32(temperature), pictures)]


# ------------------------------------------------------------------ networks


def conv(size, inputs, outputs):
    return (size**2 * inputs + 1) * outputs


def spade(channels, hidden):
    return conv(3, 3, hidden) + 2 * conv(3, hidden, channels)


def conditioning(filters, block, transpose_kernel=3):
    """First layer, 6 blocks at 3 resolutions, two transposed convolutions between, logits."""
    return (conv(1, 3, filters) + 18 * block + 2 * conv(transpose_kernel, filters, filters)
            + conv(1, filters, 3 * 256))


@pytest.mark.parametrize(("arguments", "expected", "literal"), [
    ({}, conditioning(32, 2 * (conv(3, 32, 32) + 2 * 32)), 379_200),
    ({"norm": "batch+lr"}, conditioning(32, conv(3, 32 + 3, 32) + conv(3, 32, 32) + 4 * 32), 394_752),
    ({"norm": "spade", "transpose_kernel": 4},
     conditioning(32, 2 * (conv(3, 32, 32) + 77_376), 4), 3_176_768),
    ({name: getattr(PRESETS["improved-spade"][1], name)
      for name in ("norm", "filters", "hidden", "spectral", "blocks", "transpose_kernel")},
     conditioning(24, 2 * (conv(3, 24, 24) + spade(24, 10))), 384_528),
])
def test_parameters_of_conditioning_networks(arguments, expected, literal):
    assert spade(32, 128) == 77_376
    trainable = conditioning_network(**arguments).trainable_weights
    assert sum(int(np.prod(weight.shape)) for weight in trainable) == expected == literal


def test_parameters_of_the_prior_network():
    def block(rows, columns, inputs):
        # Vertical rows x columns, across, horizontal: half of the columns and the current one; output.
        return ((rows * columns * inputs + 1) * 64 + 64 * 64 + ((columns // 2 + 1) * inputs + 1) * 64
                + conv(1, 32, 32))

    expected = block(3, 7, 3) + 20 * block(3, 5, 32) + conv(1, 32, 1024) + conv(1, 1024, 3 * 256)
    assert prior_network().count_params() == expected == 1_673_952
    assert prior_network(condition=32).count_params() == expected + 21 * 32 * 128


@pytest.mark.parametrize(
    ("norm", "shown_to"), [("spade", SPADEResBlock), ("batch+lr", keras.layers.Concatenate)])
def test_blocks_are_told_lr_at_their_resolution(rng, norm, shown_to):
    network = conditioning_network(3, 4, filters=4, blocks=2, norm=norm, hidden=3)
    told = [layer.input[1] for layer in network.layers if isinstance(layer, shown_to)]
    lr = rng.random((2, 3, 3, 3), "float32")
    for s, factor in zip(keras.Model(network.input, told)(lr), (1, 1, 2, 2, 4, 4), strict=True):
        np.testing.assert_allclose(s, (lr - 0.5).repeat(factor, 1).repeat(factor, 2), atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "spade", "batch+lr"])
@pytest.mark.parametrize("scale", [2, 4])
def test_conditioning_networks_make_logits_and_means(rng, norm, scale):
    arguments = {"scale": scale, "channels": 1, "filters": 4, "blocks": 1, "norm": norm, "hidden": 3}
    assert conditioning_network(3, **arguments).output_shape == (None, 3 * scale, 3 * scale, 1, 256)
    mean = conditioning_network(None, head="gaussian", **arguments)
    assert mean(rng.random((2, 4, 5, 1), "float32")).shape == (2, 4 * scale, 5 * scale, 1)


@pytest.mark.parametrize(("build", "message"), [
    (lambda: conditioning_network(scale=3), "scale: must be 2, 4 or 8, not 3"),
    (lambda: conditioning_network(norm="layer"), r"norm: must be batch, spade or batch\+lr, not layer"),
    (lambda: conditioning_network(head="l1"), "head: must be softmax or gaussian, not l1"),
    (lambda: pixel_recursive(conditioning_network(2, 2, filters=2, blocks=0), prior_network(5, 3, 3, 0)),
     r"differ: logits of \(4, 4, 3, 256\) and \(5, 5, 3, 256\)"),
    (lambda: pixel_recursive(conditioning_network(2, 2, filters=2, blocks=0, features=True),
                             prior_network(4, 3, 3, 0, condition=3)),
     r"differ: features of \(4, 4, 2\) and \(4, 4, 3\)"),
    (lambda: pixel_recursive(conditioning_network(2, 2, filters=2, blocks=0),
                             prior_network(4, 3, 3, 0, condition=2)),
     r"differ: features of None and \(4, 4, 2\)"),
])
def test_impossible_networks_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


# ------------------------------------------------------------------ draw


@pytest.mark.parametrize("temperature", [0, 0.5, 1, 3])
def test_draws_follow_the_softmax_of_the_sharpened_logits(rng, temperature):
    logits = np.float32([0.3, -1, 1.5, 0, 0.8])
    drawn = draw(np.broadcast_to(logits, (20_000, 5)), rng.random(20_000, "float32"), temperature)
    assert keras.backend.standardize_dtype(drawn.dtype) == "int32"
    assert_drawn_from(np.bincount(drawn, minlength=5), softmax(logits * temperature))


def test_each_picture_has_its_temperature(rng):
    logits, noise = rng.normal(size=(3, 50, 6)).astype("float32"), rng.random((3, 50), "float32")
    together = draw(logits, noise, np.float32([[0.5], [1], [np.inf]]))
    for i, temperature in enumerate([0.5, 1, np.inf]):
        np.testing.assert_array_equal(together[i], draw(logits[i], noise[i], temperature))
    np.testing.assert_array_equal(together[2], logits[2].argmax(-1))


def test_an_infinite_temperature_takes_the_largest_however_near_the_next(rng):
    logits = np.float32([[0, 10, 10.000001], [10, 0, 10], [3, 3, 3]]).repeat(50, 0)
    drawn = draw(logits, rng.random(150, "float32"), np.inf)
    np.testing.assert_array_equal(drawn, np.repeat([2, 0, 0], 50))  # of equals, the first


@pytest.mark.parametrize("temperature", [1, 1.2, np.inf])
@pytest.mark.parametrize("noise", [0, 1e-30, 0.5, ALMOST_ONE])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_level_of_probability_zero_is_never_drawn(rng, noise, temperature, compiled):
    logits = rng.normal(0, 3, (500, 256)).astype("float32")
    impossible = rng.random((500, 256)) < rng.random((500, 1))
    impossible[:100, :50] = impossible[100:200, -50:] = True  # also the first and last ones
    impossible[np.arange(500), rng.integers(60, 200, 500)] = False
    logits[impossible] = -1e4
    drawn = tf.function(draw, jit_compile=compiled)(logits, np.full(500, noise, "float32"), temperature)
    assert 0 <= np.min(drawn) <= np.max(drawn) <= 255
    assert not impossible[np.arange(500), drawn].any()


# ------------------------------------------------------------------ Sampler


@pytest.mark.parametrize(("channels", "blocks", "state", "jit_compile", "conditioned"), [
    (3, 2, "random", False, False), (1, 2, "random", False, False), (3, 0, "random", False, False),
    (3, 1, "random", True, False), (3, 1, "trained", False, False), (1, 1, "loaded", False, False),
    (3, 1, "loaded", False, False), (3, 2, "trained", False, True), (1, 1, "loaded", False, True),
    (3, 1, "random", True, True),
])
def test_caches_change_nothing(rng, tmp_path, channels, blocks, state, jit_compile, conditioned):
    network = in_state(tiny(channels, blocks=blocks, stddev=0.5, conditioned=conditioned), state, tmp_path)
    batch = inputs(rng, network)
    pictures = Sampler(network, jit_compile).predict_on_batch(batch)
    assert pictures.shape == batch[1].shape
    np.testing.assert_array_equal(pictures, NaiveSampler(network).predict_on_batch(batch))


@pytest.mark.parametrize("conditioned", [False, True])
def test_networks_are_told_by_what_they_do_not_by_their_names(rng, conditioned):
    network = tiny(1, size=1, levels=3, stddev=0.5, conditioned=conditioned)
    batch = inputs(rng, network)
    expected = Sampler(network, jit_compile=False).predict_on_batch(batch)
    a, b = networks_of(network)
    assert (a.name, b.name) == ("conditioning", "prior")
    a.name, b.name = "cond_a", "b"
    renamed = pixel_recursive(a, b)
    within = keras.Model(network.inputs, network(network.inputs), name="mine")
    for other in (renamed, keras.Model(network.inputs, network.outputs, name="mine"), within):
        np.testing.assert_array_equal(Sampler(other, jit_compile=False).predict_on_batch(batch), expected)


@pytest.mark.parametrize("conditioned", [False, True])
def test_pictures_follow_the_joint_distribution(rng, conditioned):
    # All pictures of 2 x 2 grey pixels of three levels, and 20,000 drawn ones.
    network = tiny(1, size=1, levels=3, stddev=0.5, conditioned=conditioned)
    lr = rng.random((1, 1, 1, 1), "float32")
    levels = np.stack(np.unravel_index(np.arange(81), (3,) * 4), -1).reshape(-1, 2, 2, 1)
    a, b = network([np.repeat(lr, 81, 0), (levels / 2).astype("float32")])
    p = np.take_along_axis(softmax(1.5 * np.asarray(a + b)), levels[..., None], -1).prod((1, 2, 3, 4))
    assert p.sum() == pytest.approx(1)

    noise = rng.random((20_000, 2, 2, 1), "float32")
    drawn = Sampler(network, jit_compile=False).predict_on_batch(
        [np.repeat(lr, len(noise), 0), noise, np.full(len(noise), 1.5, "float32")])
    counts = np.bincount(drawn.reshape(-1, 4) @ [27, 9, 3, 1], minlength=81)
    often = p > 1 / 4000
    assert_drawn_from([*counts[often], counts[~often].sum()], [*p[often], p[~often].sum()])


def test_independent_model_draws_each_sub_pixel_from_its_softmax(rng):
    network = conditioning_network(1, 2, filters=4, blocks=1, levels=4, initializer="he_normal")
    lr = rng.random((2, 1, 1, 3), "float32")
    drawn = Sampler(network, jit_compile=False).sample(lr, temperature=1.3, samples=2000, batch=1000)
    assert drawn.shape == (2000, 2, 2, 2, 3)
    assert drawn.dtype == np.uint8
    p = softmax(1.3 * np.asarray(network(lr)))
    for place in np.ndindex(p.shape[:-1]):
        assert_drawn_from([np.sum(drawn[:, *place] == 85 * level) for level in range(4)], p[place])


def test_gaussian_model_gives_its_mean(rng):
    network = conditioning_network(None, 2, filters=4, blocks=1, head="gaussian", initializer="he_normal")
    network = keras.Model(lr := keras.Input((3, 3, 3)), network(lr))  # a sampler's networks have a size
    lr = rng.integers(0, 256, (5, 3, 3, 3), "uint8")
    mean = np.asarray(network((lr / 255).astype("float32")))
    assert mean.min() < 0 or mean.max() > 1
    drawn = Sampler(network, jit_compile=False).sample(lr, samples=2, batch=4)
    for sample in drawn:
        np.testing.assert_array_equal(sample, np.round(mean.clip(0, 1) * 255))


@pytest.fixture(scope="module")
def sampler():
    """A recursive network's, of RGB pictures of 4 x 4 pixels of three levels."""
    keras.utils.set_random_seed(0)
    return Sampler(tiny(size=2, levels=3, stddev=0.5), jit_compile=False)


def test_levels_span_0_to_255(sampler, rng):
    drawn = sampler.sample(rng.random((3, 2, 2, 3), "float32"), samples=4)
    assert drawn.shape == (4, 3, 4, 4, 3)
    assert drawn.dtype == np.uint8
    assert np.unique(drawn).tolist() == [0, 128, 255]


def test_a_picture_depends_neither_on_the_batch_nor_on_other_pictures(sampler, rng):
    lr = rng.random((3, 2, 2, 3), "float32")
    drawn = sampler.sample(lr, samples=4)
    for batch in (1, 5, 12):
        np.testing.assert_array_equal(sampler.sample(lr, samples=4, batch=batch), drawn)
    np.testing.assert_array_equal(sampler.sample(lr[:1], samples=2), drawn[:2, :1])


def test_rows_are_those_of_the_whole_picture(sampler, rng):
    lr = rng.random((2, 2, 2, 3), "float32")
    drawn = sampler.sample(lr, samples=2)
    assert np.array_equal(sampler.sample(lr, samples=2, rows=4), drawn)
    for rows in range(4):
        some = sampler.sample(lr, samples=2, rows=rows)
        np.testing.assert_array_equal(some[:, :, :rows], drawn[:, :, :rows])
        assert (some[:, :, rows:] == 128).all()


def test_the_seed_decides(sampler, rng):
    lr = rng.random((2, 2, 2, 3), "float32")
    drawn = sampler.sample(lr, seed=5)
    np.testing.assert_array_equal(sampler.sample(lr, seed=5), drawn)
    assert (sampler.sample(lr, seed=6) != drawn).any()


def test_samples_differ_and_greedy_ones_do_not(sampler, rng):
    lr = np.repeat(rng.random((1, 2, 2, 3), "float32"), 2, 0)
    drawn = sampler.sample(lr, samples=3).reshape(6, -1)  # of the same picture twice, too
    assert len(np.unique(drawn, axis=0)) == 6
    greedy = sampler.sample(lr, temperature=np.inf, samples=3).reshape(6, -1)
    assert len(np.unique(greedy, axis=0)) == 1


def test_pictures_may_be_of_8_bits(sampler, rng):
    lr = rng.integers(0, 256, (2, 2, 2, 3), "uint8")
    np.testing.assert_array_equal(sampler.sample(lr), sampler.sample((lr / 255).astype("float32")))


# ------------------------------------------------------------------ likelihood


def test_likelihood_is_the_formula(rng):
    levels = rng.integers(0, 256, (2, 4, 5, 3))
    logits = rng.normal(0, 3, (2, 4, 5, 3, 256)).astype("float32")
    nats = -np.log(np.take_along_axis(softmax(logits), levels[..., None], -1)).mean()
    picture = (levels / 255 - 1e-6).astype("float32")  # rounded, not cut off
    assert float(cross_entropy(picture, logits)) == pytest.approx(nats, rel=1e-5)
    assert float(bits_per_dimension(picture, logits)) == pytest.approx(nats / np.log(2), rel=1e-5)
    assert float(bits_per_dimension(picture, np.zeros_like(logits))) == pytest.approx(8)


def test_a_residual_block_of_batch_normalisation_is_linear_nowhere_but_in_its_relu():
    kinds = [type(layer).__name__ for layer in conditioning_network(3, 2, filters=4, blocks=1).layers]
    assert kinds[3:9] == ["Conv2D", "BatchNormalization", "ReLU", "Conv2D", "BatchNormalization", "Add"]


@pytest.mark.parametrize("spectral", [True, False])
def test_spectral_normalisation_of_spade_blocks_is_a_choice(spectral):
    network = conditioning_network(3, 2, filters=4, blocks=1, norm="spade", hidden=3, spectral=spectral)
    blocks = [layer for layer in network.layers if isinstance(layer, SPADEResBlock)]
    assert blocks
    assert {type(block.conv_0) is SpectralConv2D for block in blocks} == {spectral}
