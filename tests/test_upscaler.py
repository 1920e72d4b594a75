"""models/upscaler.py: from any LR image to its SR image."""

import functools
import itertools
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image, ImageCms

from superres.datasets.color import grey_to_y, rgb_to_ycbcr, y_to_grey
from superres.datasets.degradations import imresize
from superres.datasets.pictures import to_float, to_uint8
from superres.errors import InputError
from superres.metrics import psnr, report
from superres.models import upscaler as module
from superres.models.lapsrn import lapsrn
from superres.models.pixel_recursive import conditioning_network, pixel_recursive, prior_network
from superres.models.srmap import generator
from superres.models.upscaler import NoisyUpscaler, ThumbnailUpscaler, Upscaler, at_precision, load, upscaler
from superres.upscale import shipped_networks

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
def test_untrained_network_upscales_as_bicubic(rng, channels, colours, size):
    lr = rng.integers(0, 256, (*size, colours), "uint8")
    sr = lapsrn(2, channels, filters=4, depth=1).upscale(to_float(lr))
    assert sr.dtype == "float32"
    np.testing.assert_allclose(sr, imresize(lr / 255, 2).clip(0, 1), atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [4, 8])
def test_sizes_at_larger_scales(rng, randomize, scale, size):
    network = randomize(lapsrn(scale, filters=4, depth=1))
    sr = network.upscale(to_float(rng.integers(0, 256, (*size, 3), "uint8")))
    assert sr.shape == (size[0] * scale, size[1] * scale, 3)
    assert 0 <= sr.min() <= sr.max() <= 1


def test_luminance_network_changes_the_luminance_alone(rng, photo, randomize):
    lr = photo[:32, :32] // 2 + 64  # far from the limits: nothing is clipped
    network = randomize(lapsrn(2, filters=4, depth=1), 0.02)
    y_sr, *chroma = np.moveaxis(rgb_to_ycbcr(network.upscale(to_float(lr)).astype("float64")), -1, 0)
    y, *expected = np.moveaxis(imresize(rgb_to_ycbcr(lr / 255), 2), -1, 0)
    np.testing.assert_allclose(chroma, expected, atol=1e-5)
    assert np.abs(y_sr - y).max() > 1e-3
    # ... and the luminance is what the network makes of the luminance.
    direct = network.predict_on_batch(rgb_to_ycbcr(lr / np.float32(255))[None, ..., :1])[0, ..., 0]
    np.testing.assert_allclose(y_sr, direct, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 4])
def test_a_luminance_network_upscales_grey_as_the_same_picture_in_rgb(photo, randomize, scale):
    network = randomize(lapsrn(scale, filters=4, depth=1), 0.05)
    grey = photo[:20, :24, :1].copy()
    grey[:4], grey[4:8] = 0, 255  # the ends of the range
    sr, rgb = (network.upscale(lr).astype(int) for lr in (grey, grey.repeat(3, -1)))
    assert np.abs(sr - rgb).max() <= 1
    # The network does something, other than it would to a grey picture in its own range.
    assert psnr(to_uint8(imresize(grey / 255, scale)), sr.astype("uint8")) < 40
    as_it_is = keras.tree.flatten(network.predict_on_batch(grey[None] / np.float32(255)))[-1][0]
    assert np.abs(to_uint8(as_it_is).astype(int) - sr).max() > 2


def test_black_and_white_are_those_of_y_to_a_luminance_network():
    lr = keras.Input((None, None, 1))
    negative = keras.Model(lr, keras.layers.Rescaling(-1, 251 / 255)(lr))  # 16 and 235 change places
    levels = np.arange(256, dtype="uint8").reshape(16, 16, 1)
    np.testing.assert_array_equal(upscaler(negative).upscale(levels), 255 - levels)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_grey_in_the_range_of_y_is_y_of_rgb(dtype):
    grey = np.linspace(0, 1, 256, dtype=dtype)[:, None]
    y = grey_to_y(grey)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, rgb_to_ycbcr(grey.repeat(3, -1))[..., :1], atol=1e-6)
    np.testing.assert_allclose(y_to_grey(y), grey, atol=1e-6)


def test_floats_and_bytes_are_upscaled_alike(photo, randomize):
    network = randomize(lapsrn(2, 3, filters=4, depth=1))
    lr = photo[:20, :20]
    np.testing.assert_array_equal(network.upscale(to_float(lr)), network.upscale(lr / np.float32(255)))


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_scale_of(scale):
    assert lapsrn(scale, filters=4, depth=1).scale == scale


@pytest.mark.parametrize("depths", [(1,), (2,), (5,), (2, 2), (2, 3), (1, 4)])
def test_reach_is_the_receptive_field(randomize, depths):
    network = randomize(lapsrn(2 ** len(depths), filters=4, depth=depths))
    assert network.reach() == reach_of(*depths)


def test_reach_leaves_room_for_bicubic_chrominance():
    assert lapsrn(2, filters=4, depth=1).reach() == 3


def test_network_that_sees_the_whole_picture_cannot_be_tiled():
    x = inputs = keras.Input((None, None, 1))
    x = keras.layers.UpSampling2D(2)(x)
    x = x + keras.ops.mean(x, axis=(1, 2), keepdims=True)
    network = upscaler(keras.Model(inputs, x))
    assert network.upscale(np.zeros((20, 30, 3), "uint8"), tile=30).shape == (40, 60, 3)
    with pytest.raises(InputError, match="cannot be tiled"):
        network.upscale(np.zeros((20, 30, 3), "uint8"), tile=20)


@pytest.mark.parametrize(
    ("size", "tile"), [((33, 25), 32), ((33, 25), 8), ((17, 40), 16), ((9, 12), 256), ((5, 30), 4)]
)
@pytest.mark.parametrize(("scale", "channels"), [(2, 1), (2, 3), (4, 1)])
def test_tiles_make_the_whole_picture(photo, randomize, scale, channels, size, tile):
    network = randomize(lapsrn(scale, channels, filters=6, depth=1))
    lr = photo[: size[0], : size[1]]
    whole = network.upscale(lr)
    # What the network adds must matter, at the borders too, or nothing is shown.
    assert psnr(whole, imresize(lr, scale)) < 35
    tiled = network.upscale(lr, tile=tile)
    difference = np.abs(tiled.astype(int) - whole)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("size", [(1, 3), (13, 19)])
@pytest.mark.parametrize(("channels", "colours"), [(1, 1), (1, 3), (3, 3)])
def test_the_ensemble_of_an_equivariant_network_is_the_network(rng, channels, colours, size):
    network = lapsrn(2, channels, filters=4, depth=1)  # untrained: bicubic interpolation
    lr = rng.random((*size, colours), "float32")
    np.testing.assert_allclose(network.upscale(lr, ensemble=True), network.upscale(lr), atol=1e-5)


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
    np.testing.assert_allclose(network.upscale(lr, ensemble=True), expected, atol=1e-5)


@pytest.mark.parametrize(("size", "tile"), [((33, 25), 16), ((5, 30), 8)])
def test_tiles_make_the_whole_ensemble(photo, randomize, size, tile):
    network = randomize(lapsrn(2, filters=6, depth=1))
    lr = photo[: size[0], : size[1]]
    whole = network.upscale(lr, ensemble=True)
    assert psnr(whole, network.upscale(lr)) < 40
    tiled = network.upscale(lr, tile=tile, ensemble=True)
    difference = np.abs(tiled.astype(int) - whole)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_progress_counts_every_pixel_once(photo, randomize):
    pixels = []
    randomize(lapsrn(2, filters=4, depth=1)).upscale(photo[:21, :30], tile=8, progress=pixels.append)
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
    exact, quick = network.upscale(to_float(lr)), fast.upscale(to_float(lr))
    assert quick.dtype == "float32"
    assert psnr(exact, imresize(lr / 255, scale)) < 40
    assert psnr(exact, quick) > 55


def test_bfloat16_leaves_the_bicubic_picture_exact(photo):
    network, lr = lapsrn(2, filters=4, depth=1), to_float(photo[:20, :20])
    np.testing.assert_array_equal(at_precision(network, "bfloat16").upscale(lr), network.upscale(lr))


def test_float32_copy_of_a_bfloat16_network_is_the_float32_network(photo, randomize):
    network = randomize(lapsrn(2, filters=4, depth=1))
    again = at_precision(at_precision(network, "bfloat16"), "float32")
    lr = to_float(photo[:20, :20])
    np.testing.assert_array_equal(again.upscale(lr), network.upscale(lr))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_load(tmp_path, photo, randomize, precision):
    network = randomize(lapsrn(4, filters=4, depth=1))
    network.save(tmp_path / "network.keras")
    expected = at_precision(network, precision).upscale(to_float(photo[:20, :20]))
    np.testing.assert_array_equal(
        load(tmp_path / "network.keras", precision).upscale(to_float(photo[:20, :20])), expected
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


def test_another_word_for_a_precision_is_refused():
    with pytest.raises(InputError, match="precision: must be float32 or bfloat16, not half"):
        load("lapsrn-x2", precision="half")


# ------------------------------------------------------------------ kinds of networks

PRIOR = {"filters": 4, "blocks": 1, "head": 8}


def networks():
    """A small network of every kind: name -> (network, its kind, scale, lr_size, channels, draws_samples)."""
    a, b = conditioning_network(4, 2, filters=4, blocks=1, name="cond_a"), prior_network(8, **PRIOR, name="b")
    regression = conditioning_network(4, 2, channels=1, filters=4, blocks=1, head="gaussian")
    return {
        "plain": (lapsrn(4, filters=4, depth=1), Upscaler, 4, None, 1, False),
        "noisy": (generator(2, stem=8, widths=(8, 8), blocks=(1,)), NoisyUpscaler, 2, None, 3, True),
        "recursive": (pixel_recursive(a, b), ThumbnailUpscaler, 2, 4, 3, True),
        "independent": (upscaler(a), ThumbnailUpscaler, 2, 4, 3, True),
        "regression": (upscaler(regression), ThumbnailUpscaler, 2, 4, 1, False),
    }


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", list(networks()))
def test_every_kind_is_kept_in_its_file_and_told_in_files_of_plain_keras_models(tmp_path, name, wrapped):
    network, kind, scale, lr_size, channels, draws_samples = networks()[name]
    assert type(network) is kind
    saved = keras.Model(network.inputs, network.outputs, name="mine") if wrapped else network
    saved.save(tmp_path / "network.keras")
    for precision in ("float32", "bfloat16"):
        loaded = load(tmp_path / "network.keras", precision)
        assert type(loaded) is kind
        assert (loaded.scale, loaded.lr_size, loaded.channels) == (scale, lr_size, channels)
        assert loaded.draws_samples == draws_samples


@pytest.mark.parametrize("name", list(networks()))
def test_images_come_back_as_what_they_were(photo, monkeypatch, name):
    monkeypatch.setattr(module, "Sampler", functools.partial(module.Sampler, jit_compile=False))
    network, _, scale, size, channels, draws_samples = networks()[name]
    rgb = photo[:12, :20]
    sides = (size, size) if size else (12, 20)
    shape = tuple(side * scale for side in sides)
    colours = {1: channels if size else 1, 3: channels if size else 3}
    assert network.upscale(rgb[..., 0]).shape == shape
    if channels == 3:
        drawn = to_float(network.upscale(rgb[..., :1].repeat(3, -1))).mean(-1)
        np.testing.assert_allclose(to_float(network.upscale(rgb[..., 0])), drawn, atol=1.01 / 255)
    for count in (1, 3):
        sr = network.upscale(rgb[..., :count])
        assert (sr.shape, sr.dtype) == ((*shape, colours[count]), np.uint8)
        floats = network.upscale(rgb[..., :count] / np.float32(255))
        assert (floats.shape, floats.dtype) == (sr.shape, np.float32)
        np.testing.assert_array_equal(to_uint8(floats), sr)
    image = network.upscale(Image.fromarray(rgb))
    assert isinstance(image, Image.Image)
    np.testing.assert_array_equal(np.asarray(image).reshape(*shape, -1), network.upscale(rgb))
    if draws_samples:
        samples = network.upscale(rgb, 3, seed=5, temperature=0.5)
        assert [sample.shape for sample in samples] == 3 * [(*shape, colours[3])]
        np.testing.assert_array_equal(samples[0], network.upscale(rgb, seed=5, temperature=0.5))


def test_transparent_and_indexed_images_keep_what_they_are(photo, randomize):
    network = randomize(lapsrn(2, filters=4, depth=1))
    rgb, alpha = photo[:12, :20], photo[:12, :20, :1]
    sr = network.upscale(Image.fromarray(np.concatenate([rgb, alpha], -1)))
    assert (sr.mode, sr.size) == ("RGBA", (40, 24))
    np.testing.assert_array_equal(np.asarray(sr)[..., :3], network.upscale(rgb))
    np.testing.assert_array_equal(np.asarray(sr)[..., 3:], imresize(alpha, 2))
    indexed = Image.fromarray(rgb).quantize(16)
    np.testing.assert_array_equal(np.asarray(network.upscale(indexed)),
                                  network.upscale(np.asarray(indexed.convert("RGB"))))


@pytest.mark.parametrize("image", [np.zeros((0, 4, 3), "uint8"), np.zeros((4, 4, 2), "uint8"), np.zeros(4),
                                   np.zeros((4, 4), "int32"), np.zeros((1, 4, 4, 3))])
def test_what_is_no_image_is_said(image):
    with pytest.raises(InputError, match="image: must be"):
        lapsrn(2, filters=4, depth=1).upscale(image)


@pytest.mark.parametrize(("value", "shown"), [(100.0, "100"), (-1.0, "-1"), (np.nan, "nan")])
def test_floats_of_another_range_are_refused(value, shown):
    image = np.full((4, 4), 0.5)
    image[1, 2] = value
    with pytest.raises(InputError, match=f"image: floats must lie in .0, 1., not go from .*{shown}"):
        lapsrn(2, filters=4, depth=1).upscale(image)
    # But those that interpolation leaves a little beyond it are not.
    assert lapsrn(2, filters=4, depth=1).upscale(np.full((4, 4), 1.1)).max() == 1


def test_a_network_of_one_size_keeps_the_profile_and_sees_no_hidden_colours(monkeypatch):
    monkeypatch.setattr(module, "Sampler", functools.partial(module.Sampler, jit_compile=False))
    network = upscaler(conditioning_network(4, 2, filters=4, blocks=1, head="gaussian"))
    pixels = np.full((8, 8, 3), 200, "uint8")
    alpha = np.full((8, 8, 1), 255, "uint8")
    hidden = pixels.copy()
    alpha[:4], hidden[:4] = 0, 0
    image = Image.fromarray(np.concatenate([hidden, alpha], -1))
    profile = image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    sr = network.upscale(image)
    assert sr.info["icc_profile"] == profile
    np.testing.assert_array_equal(np.asarray(sr), network.upscale(pixels))
    grey = networks()["regression"][0].upscale(image)
    assert grey.mode == "L"
    assert "icc_profile" not in grey.info


@pytest.mark.parametrize(("name", "options", "message"), [
    ("plain", {"samples": 2}, "samples: only for networks that draw samples, and lapsrn_x4 is none"),
    ("plain", {"seed": 0}, "seed: only for networks that draw samples"),
    ("plain", {"temperature": 1.0}, "temperature: only for networks that draw samples"),
    ("plain", {"crop": "centre"}, "crop: only for networks of one size"),
    ("plain", {"tile": 0}, "tile: must be at least 1, not 0"),
    ("noisy", {"ensemble": True}, "ensemble: only for networks of any size without noise"),
    ("noisy", {"crop": "face"}, "crop: only for networks of one size"),
    ("noisy", {"samples": 0}, "samples: must be at least 1, not 0"),
    ("noisy", {"temperature": -1.0}, "temperature: must be 0 or more"),
    ("noisy", {"temperature": np.nan}, "temperature: must be 0 or more"),
    ("noisy", {"temperature": np.inf}, "temperature: must be finite"),
    ("noisy", {"temperature": 1e39}, "temperature: must be finite"),
    ("noisy", {"seed": -1}, "seed: must be 0 or more and below"),
    ("noisy", {"seed": 2**31 - 1, "samples": 2}, "seed: must be 0 or more and below"),
    ("recursive", {"tile": 8}, "tile: only for networks of any size"),
    ("recursive", {"ensemble": True}, "ensemble: only for networks of any size without noise"),
    ("regression", {"samples": 2}, "samples: only for networks that draw samples"),
    ("regression", {"seed": 1}, "seed: only for networks that draw samples"),
])
def test_options_that_a_network_does_not_take_are_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        networks()[name][0].upscale(np.zeros((4, 4, 3), "uint8"), **options)


@pytest.mark.parametrize("outputs", [
    lambda: keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(1)]),
    lambda: prior_network(8, channels=2, **PRIOR),
    lambda: keras.Model([a := keras.Input((None, None, 3)), b := keras.Input((None, None, 3))], a + b),
])
def test_what_does_not_upscale_is_refused(outputs):
    with pytest.raises(InputError, match="not a network from images of 1 or 3 channels to images"):
        upscaler(outputs())


@pytest.mark.parametrize("name", [row[0] for row in shipped_networks()[1:]])
def test_a_shipped_network_s_graph_computes_what_single_operations_do(name, rng):
    """What a graph's optimiser makes of a network is still that network."""
    network = load(name)
    inputs = [rng.random((2, *[n or 12 for n in tensor.shape[1:]]), "float32") if tensor.dtype == "float32"
              else np.zeros((2, *tensor.shape[1:]), tensor.dtype) for tensor in network.inputs]
    results = network(inputs, training=False), network.predict_on_batch(inputs)
    for single, graph in zip(*map(keras.tree.flatten, results), strict=True):
        scale = np.abs(single).max()
        np.testing.assert_allclose(graph, single, rtol=1e-3, atol=1e-3 * scale)


def test_large_images_are_tiled_where_they_can_be():
    network, large = lapsrn(2, filters=4, depth=1), np.zeros((10, 257, 3))
    assert (network.tile_for(large), network.tile_for(large[:, :256])) == (256, None)
    x = inputs = keras.Input((None, None, 1))
    x = keras.layers.UpSampling2D(2)(x)
    whole = upscaler(keras.Model(inputs, x + keras.ops.mean(x, axis=(1, 2), keepdims=True)))
    assert whole.tile_for(large) is None


def test_speed_is_hr_s_megapixels_by_the_seconds_of_all(rng, monkeypatch):
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)  # a second a call
    monkeypatch.setattr(report, "time", clock)
    pictures = [rng.integers(0, 256, size, "uint8") for size in ((40, 30, 3), (20, 10, 3))]
    pairs = [("", imresize(hr, 0.5), hr) for hr in pictures]
    result = report.evaluate(lapsrn(2, filters=4, depth=1), pairs)
    assert result["mean"]["seconds"] == 1
    assert result["mean"]["mpixel_per_second"] == pytest.approx((1200 + 200) / 1e6 / 2)
