"""The layers of SRMAP, each against its reference, and differentiable twice."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.ndimage import correlate1d
from scipy.stats import kstest

from superres.datasets.degradations import imresize, resize_matrix
from superres.layers import (
    BiasedSiLU,
    BicubicDownsampling2D,
    BilinearDownsampling2D,
    BilinearUpsampling2D,
    BinomialBlur2D,
    ConsistentPicture,
    NoiseInjection,
    PixelShuffle2D,
    PixelUnshuffle2D,
    ReflectedConv2D,
)
from superres.layers.bicubic import BicubicPseudoInverse2D
from superres.metrics import lr_psnr

RESIZING = [BilinearUpsampling2D, BilinearDownsampling2D, BinomialBlur2D, PixelUnshuffle2D]


def resized(x, height, width):
    """TensorFlow's bilinear resizing with antialiasing, which only its second derivatives fail."""
    return tf.image.resize(x, (height, width), antialias=True).numpy()


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 4), (7, 10)])
def test_bilinear_upsampling_is_tensorflows(rng, size):
    x = rng.random((2, *size, 3), "float32")
    expected = resized(x, 2 * size[0], 2 * size[1])
    np.testing.assert_allclose(BilinearUpsampling2D()(x), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(2, 4), (6, 4), (8, 10)])
def test_bilinear_downsampling_is_tensorflows_antialiased_one(rng, size):
    x = rng.random((2, *size, 3), "float32")
    expected = resized(x, size[0] // 2, size[1] // 2)
    np.testing.assert_allclose(BilinearDownsampling2D()(x), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(2, 2), (5, 4), (9, 7)])
def test_blur_is_a_reflected_correlation(rng, size):
    x = rng.random((2, *size, 3), "float32")
    expected = x
    for axis in (1, 2):
        expected = correlate1d(expected, [0.25, 0.5, 0.25], axis, mode="mirror")
    np.testing.assert_allclose(BinomialBlur2D()(x), expected, atol=1e-6)


def test_shuffle_and_unshuffle_undo_each_other(rng):
    x = rng.random((2, 4, 6, 8), "float32")
    np.testing.assert_array_equal(PixelUnshuffle2D()(PixelShuffle2D()(x)), x)
    np.testing.assert_array_equal(PixelShuffle2D()(x), tf.nn.depth_to_space(x, 2))


def test_reflected_convolution_is_a_convolution_of_the_reflected_picture(rng):
    x = rng.random((2, 5, 7, 3), "float32")
    layer = ReflectedConv2D(4, (3, 5))
    padded = np.pad(x, ((0, 0), (1, 1), (2, 2), (0, 0)), "reflect")
    expected = tf.nn.conv2d(padded, layer.build(x.shape) or layer.kernel, 1, "VALID")
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
    with pytest.raises(ValueError, match="odd, not"):
        ReflectedConv2D(4, 2)


@pytest.mark.parametrize(("layer", "arguments", "shape", "weights"), [
    (BilinearUpsampling2D, {}, (2, 10, 14, 4), 0), (BilinearDownsampling2D, {}, (2, 3, 4, 4), 0),
    (BinomialBlur2D, {}, (2, 6, 8, 4), 0), (PixelShuffle2D, {}, (2, 10, 14, 1), 0),
    (PixelUnshuffle2D, {}, (2, 3, 4, 16), 0), (BiasedSiLU, {}, (2, 6, 8, 4), 4),
    (ReflectedConv2D, {"filters": 5, "kernel_size": 3}, (2, 6, 8, 5), 5 * (9 * 4 + 1)),
])
def test_layers_of_srmap_are_good_layers(run_layer_test, layer, arguments, shape, weights):
    size = (5, 7) if shape[1] == 10 else (6, 8)
    run_layer_test(layer, arguments, (2, *size, 4), shape, weights)


@pytest.mark.parametrize("layer", [*RESIZING, PixelShuffle2D, BiasedSiLU, lambda: ReflectedConv2D(2, 3),
                                   lambda: BicubicDownsampling2D(2, dtype="float64")])
@pytest.mark.parametrize("compiled", [False, True])
def test_second_derivatives_equal_finite_differences(rng, layer, compiled):
    """Of the squared gradient of a function of the layer: what a gradient penalty differentiates."""
    keras.mixed_precision.set_dtype_policy("float64")
    layer = layer()
    x = tf.constant(rng.normal(size=(1, 4, 6, 4)))
    layer.build(x.shape)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    direction = tf.constant(rng.normal(size=x.shape))

    @tf.function(jit_compile=compiled)
    def penalty(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(tf.sin(2 * layer(x)))
        return tf.reduce_sum(tape.gradient(total, x) ** 2)

    with tf.GradientTape() as tape:
        tape.watch(x)
        value = penalty(x)
    slope = tf.reduce_sum(tape.gradient(value, x) * direction)
    step = 1e-6
    expected = (penalty(x + step * direction) - penalty(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_pseudo_inverse_is_numpys(rng, scale):
    size = 12
    rows = np.eye(size * scale)[:, :, None, None].repeat(scale, 2)  # each a picture as wide as `scale`
    down = np.stack([imresize(row, 1 / scale)[:, 0, 0] for row in rows], 1)
    inverse = np.linalg.pinv(down)
    x = rng.random((size, size))
    expected = inverse @ x @ inverse.T
    layer = BicubicPseudoInverse2D(scale)
    np.testing.assert_allclose(layer(x[None, :, :, None].astype("float32"))[0, :, :, 0], expected, atol=4e-4)


@pytest.mark.parametrize("scale", [2, 4])
def test_a_consistent_picture_shrinks_to_lr_and_moves_no_further_than_it_must(rng, scale):
    lr, sr = rng.random((2, 9, 13, 3), "float32"), rng.random((2, 9 * scale, 13 * scale, 3), "float32")
    layer = ConsistentPicture(scale)
    result = np.asarray(layer([lr, sr]))
    for small, large in zip(lr, result.astype("float64"), strict=True):
        np.testing.assert_allclose(imresize(large, 1 / scale), small, atol=2e-4)
    # Once there, it stays; a step within the null space of D is not undone.
    np.testing.assert_allclose(layer([lr, result]), result, atol=2e-4)
    assert np.abs(result - sr).mean() < 0.5
    other = np.asarray(layer([lr, 1 - sr]))
    inside = (result - other).astype("float64")
    assert max(np.abs(imresize(x, 1 / scale)).max() for x in inside) < 4e-4 < np.abs(inside).mean()


def test_rounds_make_saturated_pictures_consistent_and_clipped(photos):
    """Black and white leave no room beyond them: one projection, clipped, misses LR there."""
    hr = photos["astronaut"][:256, :256]
    lr = imresize(hr, 1 / 4)
    start = [lr[None] / np.float32(255), imresize(lr, 4)[None] / np.float32(255)]
    once, often = ConsistentPicture(4), ConsistentPicture(4, rounds=12)
    found = [lr_psnr(hr, np.clip(np.asarray(layer(start))[0], 0, 1), 4) for layer in (once, often)]
    assert found[0] < 58
    assert found[1] > 65
    assert 0 <= np.min(often(start)) < np.max(often(start)) <= 1
    np.testing.assert_array_equal(often(start, training=True), once(start))
    assert ConsistentPicture.from_config(often.get_config()).rounds == 12


def test_consistent_pictures_stay_in_float32(rng):
    layer = ConsistentPicture(2, dtype="mixed_bfloat16")
    assert layer([np.ones((1, 8, 8, 3)), np.ones((1, 16, 16, 3))]).dtype == "float32"


def place(count, seeds=None, temperature=1.0, origin=(0, 0)):
    """The inputs of noise beside x."""
    seeds = np.arange(count) if seeds is None else np.asarray(seeds)
    return [seeds.astype("int32"), np.full(count, temperature, "float32"),
            np.tile(np.array([origin], "int32"), (count, 1))]


def test_noise_is_normal_and_independent():
    x = np.zeros((4, 96, 96, 6), "float32")
    noise = np.asarray(NoiseInjection(initial=1.0)([x, *place(4)]))
    assert kstest(noise.ravel()[::7], "norm").pvalue > 1e-3
    bound = 5 / np.sqrt(noise[0].size)

    def correlation(a, b):
        return abs(np.corrcoef(a.ravel(), b.ravel())[0, 1])

    others = [noise[1], np.roll(noise[0], 1, 0), np.roll(noise[0], 1, 1), np.roll(noise[0], 1, 2),
              noise[0].transpose(1, 0, 2), np.asarray(NoiseInjection(1, initial=1.0)([x, *place(4)]))[0]]
    for number, other in enumerate(others):
        assert correlation(noise[0], other) < bound, number
        assert correlation(noise[0] ** 2, other**2) < bound, number


@pytest.mark.parametrize("cell", [1, 4, 5])
def test_noise_belongs_to_seed_and_place(rng, cell):
    layer = NoiseInjection(initial=1.0, cell=cell)
    x = np.zeros((2, 20, 30, 3), "float32")
    whole = np.asarray(layer([x, *place(2, (5, 9))]))
    np.testing.assert_array_equal(layer([x, *place(2, (5, 9))]), whole)
    np.testing.assert_array_equal(layer([x, *place(2, (9, 5))]), whole[::-1])
    assert np.abs(whole[0] - whole[1]).mean() > 0.5
    for top in range(10, 14):
        for height in range(1, 7):
            tile = layer([x[:, :height, :8], *place(2, (5, 9), origin=(top, 13))])
            np.testing.assert_allclose(tile, whole[:, top : top + height, 13:21], atol=1e-6)
    # On a map of twice the size, the origin counts twice.
    double = NoiseInjection(factor=2, initial=1.0, cell=cell)
    whole = np.asarray(double([x, *place(2)]))
    tile = double([x[:, :4, :4], *place(2, origin=(3, 5))])
    np.testing.assert_allclose(tile, whole[:, 6:10, 10:14], atol=1e-6)


def test_noise_of_a_cell_is_interpolated():
    x = np.zeros((64, 40, 40, 8), "float32")
    noise = np.asarray(NoiseInjection(initial=1.0, cell=4)([x, *place(64)]))
    np.testing.assert_allclose(noise.std((0, 3)), 1, atol=0.2)  # everywhere
    assert kstest(noise[:, ::8, ::8].ravel(), "norm").pvalue > 1e-3
    places = np.asarray(NoiseInjection(initial=1.0)([x, *place(64)]))[:, :11, :11]
    np.testing.assert_allclose(noise[:, ::4, ::4], places[:, :10, :10], atol=1e-6)
    between = (places[:, :10, :10] + 3 * places[:, :10, 1:]) / np.sqrt(10)
    np.testing.assert_allclose(noise[:, ::4, 3::4], between, atol=1e-6)


def test_noise_is_scaled_by_channel_and_temperature(rng):
    x = rng.random((2, 5, 5, 3), "float32")
    layer = NoiseInjection()
    np.testing.assert_array_equal(layer([x, *place(2)]), x)  # scales start at zero
    layer.scale.assign([0.0, 1.0, 2.0])
    noise = np.asarray(layer([x, *place(2)])) - x
    assert np.abs(noise[..., 0]).max() == 0 < np.abs(noise[..., 1]).min()
    np.testing.assert_array_equal(layer([x, *place(2, temperature=0)]), x)
    np.testing.assert_allclose(np.asarray(layer([x, *place(2, temperature=0.5)])) - x, noise / 2, atol=1e-6)
    assert layer.get_config() == NoiseInjection.from_config(layer.get_config()).get_config()


def test_scales_of_noise_learn():
    layer = NoiseInjection()
    x = tf.zeros((3, 6, 6, 2))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer([x, *place(3)]))
    noise = layer.noise((6, 6), *[tf.constant(v) for v in (place(3)[0], place(3)[2])])
    np.testing.assert_allclose(tape.gradient(loss, layer.scale), tf.reduce_sum(noise, (0, 1, 2)), rtol=1e-4)


def test_the_activation_is_silu_of_what_the_bias_moves(rng):
    x, bias = rng.normal(0, 2, (2, 3, 4, 5)).astype("float32"), rng.normal(0, 1, 5).astype("float32")
    layer = BiasedSiLU()
    layer.build(x.shape)
    layer.bias.assign(bias)
    np.testing.assert_allclose(layer(x), (x + bias) / (1 + np.exp(-(x + bias))), rtol=1e-5, atol=1e-6)


def test_clipping_is_after_each_axis_of_shrinking(rng):
    """As the real picture is made: MATLAB rounds to 8 bits in between."""
    x = rng.integers(0, 2, (1, 16, 24, 1)).astype("float32")
    rows, columns = (resize_matrix(size, 1 / 2).toarray() for size in (16, 24))
    expected = np.clip(np.clip(rows @ x[0, ..., 0], 0, 1) @ columns.T, 0, 1)
    np.testing.assert_allclose(BicubicDownsampling2D(2)(x, clip=True)[0, ..., 0], expected, atol=1e-5)
    assert np.abs(BicubicDownsampling2D(2)(x)[0, ..., 0] - expected).max() > 0.01
