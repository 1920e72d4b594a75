"""models/lapsrn.py: the network is the one that the docstring, the paper and the report describe."""

import dataclasses
import re

import keras
import numpy as np
import pytest

from superres.datasets.degradations import imresize
from superres.errors import InputError
from superres.layers import SubPixelConv2D
from superres.models.lapsrn import lapsrn
from superres.models.upscaler import at_precision
from superres.train.lapsrn import PRESETS, trainer, with_direct_residual
from superres.train.start import take_weights, weights_of

REPORTED = {"chain": "image", "image_branch": "subpixel", "skip_every": 0, "residual": "features",
            "initial": "glorot"}
# A 3x3 convolution from a to b channels has 9ab + b weights:
#   conv64 = 64 -> 64 = 36,928       up = 64 -> 4 * 64 = 147,712      residual = 64 -> 1 = 577
#   first  = 1 -> 64  = 640          image branch = 1 -> 4 = 40
# A level on features has 10 conv64 + up + residual = 517,569; the last one makes its residual
# directly, 5x5 64 -> 4 = 6,404, and has 375,684. The first level's features come from one
# convolution more, the head (640). The reported level starts from a picture:
# first + 9 conv64 + up + residual + image branch = 481,321.
# RGB: head 3 -> 64 = 1,792 and direct residual 5x5 64 -> 12 = 19,212.
PARAMETERS = [
    (2, {}, 640 + 375_684),
    (4, {}, 640 + 517_569 + 375_684),
    (8, {}, 640 + 2 * 517_569 + 375_684),
    (2, {"residual": "features"}, 640 + 517_569),
    (2, {"channels": 3}, 1_792 + 369_280 + 19_212),
    (2, REPORTED, 481_321),
    (4, REPORTED, 2 * 481_321),
    (4, {"depth": (3, 1), "filters": 8}, 80 + (3 * 584 + 2_336 + 73) + (1 * 584 + 804)),
]


@pytest.mark.parametrize(("scale", "arguments", "parameters"), PARAMETERS)
def test_parameters(scale, arguments, parameters):
    assert lapsrn(scale, **arguments).count_params() == parameters


@pytest.mark.parametrize(("scale", "levels"), [(2, 1), (4, 2), (8, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_level_doubles_the_picture(rng, scale, levels, channels):
    network = lapsrn(scale, channels, filters=4, depth=1)
    outputs = keras.tree.flatten(network(rng.random((2, 5, 7, channels), "float32")))
    assert [out.shape for out in outputs] == [
        (2, 5 * 2**i, 7 * 2**i, channels) for i in range(1, levels + 1)
    ]
    assert [out.shape for out in network.outputs] == [(None, None, None, channels)] * levels


@pytest.mark.parametrize(("channels", "chain"), [(1, "features"), (3, "features"), (1, "image")])
def test_untrained_network_is_bicubic_at_every_level(rng, channels, chain):
    x = rng.random((9, 6, channels), "float32")
    expected = x.astype("float64")
    for sr in keras.tree.flatten(lapsrn(8, channels, filters=4, depth=2, chain=chain)(x[None])):
        expected = imresize(expected, 2)
        np.testing.assert_allclose(sr[0], expected, atol=1e-5)


def new_network(preset):
    """What a preset starts from, with fewer features."""
    return trainer(dataclasses.replace(PRESETS[preset][1], filters=8)).network


@pytest.mark.parametrize(("preset", "levels"), [("reported-x2", 1), ("reported-x4", 2)])
def test_the_reported_network_starts_from_keras_default_weights(rng, preset, levels):
    network = new_network(preset)
    for layer in network.layers:
        if not layer.weights:
            continue
        *window, inputs, outputs = layer.kernel.shape
        limit = np.sqrt(6 / (np.prod(window) * (inputs + outputs)))  # Glorot and Bengio, equation 16
        size = np.abs(layer.kernel)
        assert 0.9 * limit < size.max() <= limit, layer.name
        assert size.mean() == pytest.approx(limit / 2, rel=0.2), layer.name
        assert not np.any(layer.bias)
        if isinstance(layer, SubPixelConv2D):
            blocks = np.split(np.array(layer.kernel), 4, axis=-1)
            assert all((blocks[i] != blocks[j]).all() for i in range(4) for j in range(i))
    # ... so that no level starts as its image branch.
    lr = rng.random((1, 6, 6, 1), "float32")
    for level in range(1, levels + 1):
        branches = keras.Model(network.input, [network.get_layer(f"level{level}_{part}").output
                                               for part in ("image", "sr")])
        image, sr = branches(lr)
        assert np.abs(image - sr).max() > 1e-2


@pytest.mark.parametrize("preset", ["improved-x2", "improved-x4", "improved-x8"])
def test_the_improved_network_starts_as_bicubic_interpolation(rng, preset):
    keras.mixed_precision.set_dtype_policy("float32")
    network = new_network(preset)
    expected = lr = rng.random((6, 6, 1))
    for sr in keras.tree.flatten(network(lr[None])):
        expected = imresize(expected, 2)
        np.testing.assert_allclose(sr[0], expected, atol=1e-5)
    for layer in network.layers:
        if isinstance(layer, SubPixelConv2D):
            blocks = np.split(np.array(layer.kernel), 4, axis=-1)
            assert all((block == blocks[0]).all() for block in blocks)


def test_new_features_have_he_s_spread():
    network = lapsrn(4, filters=32, depth=1)
    for name in ("level1_conv1", "level1_up", "level2_conv1"):
        assert np.std(network.get_layer(name).kernel) == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("depth", [4, (4, 2)])
def test_depth_counts_the_convolutions_of_a_level(depth):
    network = lapsrn(4, filters=4, depth=depth)
    for level, expected in zip((1, 2), (4, 4) if depth == 4 else depth, strict=True):
        name = re.compile(rf"level{level}_conv\d+")
        convolutions = [layer for layer in network.layers if name.fullmatch(layer.name)]
        assert len(convolutions) == expected
        assert {layer.kernel_size for layer in convolutions} == {(3, 3)}


def test_activations_stand_before_the_convolutions_with_the_reports_slope():
    network = lapsrn(2, filters=4, depth=3)
    slopes = [layer for layer in network.layers if isinstance(layer, keras.layers.LeakyReLU)]
    assert [layer.negative_slope for layer in slopes] == [0.02] * 3
    for i, activation in enumerate(slopes, start=1):
        assert network.get_layer(f"level1_conv{i}").input is activation.output


@pytest.mark.parametrize(("skip_every", "skips"), [(0, 1), (2, 3), (3, 2), (6, 1)])
def test_skips_surround_so_many_convolutions(rng, skip_every, skips):
    network = lapsrn(2, filters=4, depth=6, skip_every=skip_every)
    adds = [layer for layer in network.layers if "_skip" in layer.name]
    assert len(adds) == skips
    # Convolutions of zeros leave nothing but the chain of skips: the head's features.
    for layer in network.layers:
        if "_conv" in layer.name:
            layer.kernel.assign(np.zeros(layer.kernel.shape))
    x = rng.random((1, 5, 5, 1), "float32")
    both = keras.Model(network.input, [network.get_layer("head").output, adds[-1].output])
    np.testing.assert_array_equal(*both(x))


def test_a_skip_begins_where_the_last_one_ended():
    network = lapsrn(2, filters=4, depth=6, skip_every=2)
    for before, after in ((2, 4), (4, 6)):
        skip = network.get_layer(f"level1_skip{after}").input[0]
        assert skip is network.get_layer(f"level1_skip{before}").output


def test_reported_levels_are_chained_by_the_picture():
    network = lapsrn(4, filters=4, depth=2, **REPORTED)
    assert network.get_layer("level2_act1").input is network.get_layer("level1_sr").output
    assert network.get_layer("level2_image").input is network.get_layer("level1_sr").output


def test_levels_are_chained_by_their_features():
    network = lapsrn(4, filters=4, depth=2)
    assert network.get_layer("level2_act1").input is network.get_layer("level1_up").output
    assert network.get_layer("level2_image").input is network.get_layer("level1_sr").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 3}, "scale: must be 2, 4 or 8, not 3"),
        ({"scale": 4, "depth": (1, 2, 3)}, "scale 4 has 2 levels, but depth names 3"),
        ({"scale": 4, "depth": (4, 3), "skip_every": 2}, r"skip_every \(2\) must divide every depth"),
        ({"scale": 4, "channels": 3, "chain": "image"}, "image works with 1 channel, not 3"),
        ({"scale": 2, "chain": "Image"}, "chain: must be features or image, not Image"),
        ({"scale": 2, "image_branch": "bilinear"}, "image_branch: must be bicubic or subpixel, not bilinear"),
        ({"scale": 2, "residual": "Direct"}, "residual: must be direct or features, not Direct"),
        ({"scale": 2, "initial": "he"}, "initial: must be interpolation or glorot, not he"),
        ({"scale": 2, "channels": 2}, "channels: must be 1 or 3, not 2"),
    ],
)
def test_impossible_networks_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        lapsrn(**arguments)


@pytest.mark.parametrize("arguments", [{}, REPORTED])
def test_saved_and_loaded_network_is_equal(tmp_path, rng, randomize, arguments):
    network = randomize(lapsrn(4, filters=4, depth=2, **arguments))
    network.save(tmp_path / "network.keras")
    again = keras.saving.load_model(tmp_path / "network.keras")
    x = rng.random((1, 9, 8, 1), "float32")
    for before, after in zip(network.predict_on_batch(x), again.predict_on_batch(x), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_picture_stays_in_float32_in_mixed_precision(rng):
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    network = lapsrn(2, filters=4, depth=2)
    assert network.get_layer("level1_conv1").compute_dtype == "bfloat16"
    x = rng.random((9, 8, 1), "float32")
    np.testing.assert_allclose(network(x[None])[0], imresize(x.astype("float64"), 2), atol=1e-6)


def test_so_does_that_of_a_learned_image_branch(rng):
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    network = lapsrn(2, filters=4, depth=2, image_branch="subpixel", chain="image")  # no residual at first
    x = rng.random((1, 9, 8, 1), "float32")
    expected = at_precision(network, "float32")(x)
    np.testing.assert_allclose(network(x), expected, atol=1e-6)
    np.testing.assert_allclose(at_precision(network, "bfloat16")(x), expected, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_direct_residual_equals_the_two_layers_it_stands_for(rng, randomize, channels):
    two = randomize(lapsrn(2, channels, filters=6, depth=2, residual="features"))
    one = lapsrn(2, channels, filters=6, depth=2, residual="direct")
    take_weights(one, with_direct_residual(weights_of(two), one))
    lr = rng.random((2, 9, 7, channels), "float32")
    difference = np.abs(one(lr) - two(lr))
    assert difference[:, 1:-1, 1:-1].max() < 1e-5
    # The outermost ring differs: there the second layer pads with zeros.
    assert difference.max() > 1e-4
