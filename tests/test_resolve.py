"""models/resolve.py: from any LR picture to its SR picture."""

import keras
import numpy as np
import pytest

from superres.datasets.color import grey_to_y, rgb_to_ycbcr, y_to_grey
from superres.datasets.degradations import imresize
from superres.datasets.pictures import to_uint8
from superres.errors import InputError
from superres.metrics import psnr
from superres.models.lapsrn import lapsrn
from superres.models.resolve import at_precision, load, reach, resolve, resolve_tiled, scale_of

SIZES = [(1, 1), (1, 9), (7, 5), (8, 8), (20, 31)]


def reach_of(*depths):
    """LR pixels from the first to the last convolution that one output pixel sees."""
    seen = 1  # the head
    for level, depth in enumerate(depths):
        # Convolutions of this level and its upsampling, then the residual one on a grid
        # twice as fine; on the grid of level l, 2^l pixels are one of LR.
        pixels = depth + 1 + (level == len(depths) - 1)
        seen += -(-pixels // 2**level)
    return seen


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_untrained_network_resolves_as_bicubic(rng, channels, colours, size):
    lr = rng.integers(0, 256, (*size, colours), "uint8")
    sr = resolve(lapsrn(2, channels, filters=4, depth=1), lr)
    assert sr.dtype == "float32"
    np.testing.assert_allclose(sr, imresize(lr / 255, 2).clip(0, 1), atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [4, 8])
def test_sizes_at_larger_scales(rng, randomize, scale, size):
    network = randomize(lapsrn(scale, filters=4, depth=1))
    sr = resolve(network, rng.integers(0, 256, (*size, 3), "uint8"))
    assert sr.shape == (size[0] * scale, size[1] * scale, 3)
    assert 0 <= sr.min() <= sr.max() <= 1


def test_luminance_network_changes_the_luminance_alone(rng, photo, randomize):
    lr = photo[:32, :32] // 2 + 64  # far from the limits: nothing is clipped
    network = randomize(lapsrn(2, filters=4, depth=1), 0.02)
    y_sr, *chroma = np.moveaxis(rgb_to_ycbcr(resolve(network, lr).astype("float64")), -1, 0)
    y, *expected = np.moveaxis(imresize(rgb_to_ycbcr(lr / 255), 2), -1, 0)
    np.testing.assert_allclose(chroma, expected, atol=1e-5)
    assert np.abs(y_sr - y).max() > 1e-3
    # ... and the luminance is what the network makes of the luminance.
    direct = network.predict_on_batch(rgb_to_ycbcr(lr / np.float32(255))[None, ..., :1])[0, ..., 0]
    np.testing.assert_allclose(y_sr, direct, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 4])
def test_a_luminance_network_resolves_grey_as_the_same_picture_in_rgb(photo, randomize, scale):
    network = randomize(lapsrn(scale, filters=4, depth=1), 0.05)
    grey = photo[:20, :24, :1].copy()
    grey[:4], grey[4:8] = 0, 255  # the ends of the range
    sr, rgb = (to_uint8(resolve(network, lr)).astype(int) for lr in (grey, grey.repeat(3, -1)))
    assert np.abs(sr - rgb).max() <= 1
    # The network does something, other than it would to a grey picture in its own range.
    assert psnr(to_uint8(imresize(grey / 255, scale)), sr.astype("uint8")) < 40
    as_it_is = keras.tree.flatten(network.predict_on_batch(grey[None] / np.float32(255)))[-1][0]
    assert np.abs(to_uint8(as_it_is).astype(int) - sr).max() > 2


def test_black_and_white_are_those_of_y_to_a_luminance_network():
    lr = keras.Input((None, None, 1))
    negative = keras.Model(lr, keras.layers.Rescaling(-1, 251 / 255)(lr))  # 16 and 235 change places
    levels = np.arange(256, dtype="uint8").reshape(16, 16, 1)
    np.testing.assert_array_equal(to_uint8(resolve(negative, levels)), 255 - levels)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_grey_in_the_range_of_y_is_y_of_rgb(dtype):
    grey = np.linspace(0, 1, 256, dtype=dtype)[:, None]
    y = grey_to_y(grey)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, rgb_to_ycbcr(grey.repeat(3, -1))[..., :1], atol=1e-6)
    np.testing.assert_allclose(y_to_grey(y), grey, atol=1e-6)


def test_floats_and_bytes_are_resolved_alike(photo, randomize):
    network = randomize(lapsrn(2, 3, filters=4, depth=1))
    lr = photo[:20, :20]
    np.testing.assert_array_equal(resolve(network, lr), resolve(network, lr / np.float32(255)))


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_scale_of(scale):
    assert scale_of(lapsrn(scale, filters=4, depth=1)) == scale


@pytest.mark.parametrize("depths", [(1,), (2,), (5,), (2, 2), (2, 3), (1, 4)])
def test_reach_is_the_receptive_field(randomize, depths):
    network = randomize(lapsrn(2 ** len(depths), filters=4, depth=depths))
    assert reach(network) == reach_of(*depths)


def test_reach_leaves_room_for_bicubic_chrominance():
    assert reach(lapsrn(2, filters=4, depth=1)) == 3


def test_network_that_sees_the_whole_picture_cannot_be_tiled():
    x = inputs = keras.Input((None, None, 1))
    x = keras.layers.UpSampling2D(2)(x)
    x = x + keras.ops.mean(x, axis=(1, 2), keepdims=True)
    with pytest.raises(ValueError, match="cannot be tiled"):
        reach(keras.Model(inputs, x))


@pytest.mark.parametrize(
    ("size", "tile"), [((33, 25), 32), ((33, 25), 8), ((17, 40), 16), ((9, 12), 256), ((5, 30), 4)]
)
@pytest.mark.parametrize(("scale", "channels"), [(2, 1), (2, 3), (4, 1)])
def test_tiles_make_the_whole_picture(photo, randomize, scale, channels, size, tile):
    network = randomize(lapsrn(scale, channels, filters=6, depth=1))
    lr = photo[: size[0], : size[1]]
    whole = to_uint8(resolve(network, lr))
    # What the network adds must matter, at the borders too, or nothing is shown.
    assert psnr(whole, imresize(lr, scale)) < 35
    tiled = resolve_tiled(network, lr, tile)
    difference = np.abs(tiled.astype(int) - whole)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("size", [(1, 3), (13, 19)])
@pytest.mark.parametrize(("channels", "colours"), [(1, 1), (1, 3), (3, 3)])
def test_the_ensemble_of_an_equivariant_network_is_the_network(rng, channels, colours, size):
    network = lapsrn(2, channels, filters=4, depth=1)  # untrained: bicubic interpolation
    lr = rng.random((*size, colours), "float32")
    np.testing.assert_allclose(resolve(network, lr, ensemble=True), resolve(network, lr), atol=1e-5)


@pytest.mark.parametrize("scale", [2, 4])
def test_the_ensemble_is_the_mean_over_turns_and_flips(photo, randomize, scale):
    network = randomize(lapsrn(scale, 3, filters=4, depth=1), 0.05)
    lr = photo[:12, :17] / np.float32(255)
    # The symmetries of a rectangle, each its own inverse, of the picture and of its transpose.
    mirrors = [lambda x: x, np.flipud, np.fliplr, lambda x: x[::-1, ::-1]]
    seen = [(mirror(lr), mirror) for mirror in mirrors]
    seen += [(mirror(lr).transpose(1, 0, 2), lambda x, m=mirror: m(x.transpose(1, 0, 2)))
             for mirror in mirrors]
    made = [back(keras.tree.flatten(network.predict_on_batch(picture[None]))[-1][0])
            for picture, back in seen]
    assert min(np.abs(a - b).max() for i, a in enumerate(made) for b in made[:i]) > 0.01
    expected = np.mean(made, 0).clip(0, 1)
    np.testing.assert_allclose(resolve(network, lr, ensemble=True), expected, atol=1e-5)


@pytest.mark.parametrize(("size", "tile"), [((33, 25), 16), ((5, 30), 8)])
def test_tiles_make_the_whole_ensemble(photo, randomize, size, tile):
    network = randomize(lapsrn(2, filters=6, depth=1))
    lr = photo[: size[0], : size[1]]
    whole = to_uint8(resolve(network, lr, ensemble=True))
    assert psnr(whole, to_uint8(resolve(network, lr))) < 40
    tiled = resolve_tiled(network, lr, tile, ensemble=True)
    difference = np.abs(tiled.astype(int) - whole)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_progress_counts_every_pixel_once(photo, randomize):
    pixels = []
    resolve_tiled(randomize(lapsrn(2, filters=4, depth=1)), photo[:21, :30], 8, pixels.append)
    assert len(pixels) == 3 * 4
    assert sum(pixels) == 21 * 30


@pytest.mark.parametrize("scale", [2, 4])
def test_bfloat16_keeps_weights_and_picture(photo, randomize, scale):
    network = randomize(lapsrn(scale, filters=8, depth=2), 0.05)
    fast = at_precision(network, "bfloat16")
    assert fast.get_layer("level1_conv1").compute_dtype == "bfloat16"
    assert {weight.dtype for weight in fast.weights} == {"float32"}
    for one, other in zip(network.get_weights(), fast.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    lr = photo[:40, :40]
    exact, quick = resolve(network, lr), resolve(fast, lr)
    assert quick.dtype == "float32"
    assert psnr(exact, imresize(lr / 255, scale)) < 40
    assert psnr(exact, quick) > 55


def test_bfloat16_leaves_the_bicubic_picture_exact(photo):
    network = lapsrn(2, filters=4, depth=1)
    np.testing.assert_array_equal(
        resolve(at_precision(network, "bfloat16"), photo[:20, :20]), resolve(network, photo[:20, :20])
    )


def test_float32_copy_of_a_bfloat16_network_is_the_float32_network(photo, randomize):
    network = randomize(lapsrn(2, filters=4, depth=1))
    again = at_precision(at_precision(network, "bfloat16"), "float32")
    np.testing.assert_array_equal(resolve(again, photo[:20, :20]), resolve(network, photo[:20, :20]))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_load(tmp_path, photo, randomize, precision):
    network = randomize(lapsrn(4, filters=4, depth=1))
    network.save(tmp_path / "network.keras")
    expected = resolve(at_precision(network, precision), photo[:20, :20])
    np.testing.assert_array_equal(
        resolve(load(tmp_path / "network.keras", precision), photo[:20, :20]), expected
    )


@pytest.mark.parametrize("content", [None, b"", b"no network", "cut"])
def test_files_that_are_no_network_are_named(tmp_path, content):
    path = tmp_path / "network.keras"
    if content == "cut":
        lapsrn(2, filters=4, depth=1).save(path)
        content = path.read_bytes()[:4000]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"no such model file|not a saved Keras model") as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
