"""models/srmap.py: what its networks compute."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from superres.datasets.degradations import imresize
from superres.errors import InputError
from superres.layers import BiasedSiLU, NoiseInjection, ReflectedConv2D
from superres.metrics import lr_psnr
from superres.models.srmap import SIZES, discriminator, generator
from superres.models.upscaler import load

pytestmark = pytest.mark.usefixtures("eagerly")
TINY = {"stem": 8, "widths": (16, 8, 8), "blocks": (1, 2)}


def of_kind(network, kind):
    return [layer for layer in network.layers if isinstance(layer, kind)]


def place(count, seeds=None, temperature=1.0):
    seeds = np.arange(count) if seeds is None else np.asarray(seeds)
    return [seeds.astype("int32"), np.full(count, temperature, "float32"), np.zeros((count, 2), "int32")]


@pytest.mark.parametrize(("scale", "parameters"), [(4, 20_933_504), (2, 20_662_272)])
def test_parameters_of_the_generator(scale, parameters):
    network = generator(scale)
    assert network.count_params() == parameters
    scales = sum(layer.count_params() for layer in of_kind(network, NoiseInjection))
    assert generator(scale, noise=False).count_params() == parameters - scales
    if scale == 4:
        # The published generator without noise, of 20,912,064, keeps 576 scales: as many as two of an
        # upsampling block's three have, after the blur (128 + 64) and the sum (256 + 128).
        kept = sum(layer.count_params() for layer in of_kind(network, NoiseInjection)
                   if layer.name in ("up1_blur_noise", "up1_noise", "up2_blur_noise", "up2_noise"))
        assert (scales, kept) == (22_016, 576)
        assert parameters - scales + kept == 20_912_064


def test_parameters_of_the_discriminator():
    network = discriminator()
    assert network.count_params() == 20_817_025
    assert network.input_shape == (None, 192, 192, 3)


def test_reduced_networks_are_small():
    small, judge = (build(**arguments) for build, arguments in
                    zip((generator, discriminator), SIZES["reduced"], strict=True))
    assert (small.count_params(), judge.count_params()) == (1_692_096, 650_257)
    assert judge.input_shape == (None, 96, 96, 3)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("noise", [False, True])
def test_a_new_generator_interpolates_bilinearly(rng, scale, noise):
    lr = expected = rng.random((2, 9, 12, 3), "float32")
    network = generator(scale, **TINY, noise=noise)
    for _ in range(scale // 2):
        expected = tf.image.resize(expected, (2 * expected.shape[1], 2 * expected.shape[2]))
    np.testing.assert_allclose(network([lr, *place(2)] if noise else lr), expected, atol=1e-6)


def test_no_convolution_has_a_bias_and_all_reflect():
    for network in (generator(**TINY), discriminator(8, (8, 8), (1, 2))):
        convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
        assert len(convolutions) >= 9
        for layer in convolutions:
            assert isinstance(layer, ReflectedConv2D)
            assert not layer.use_bias


def test_initialisation():
    """N(0, 2 / fan_in), zero at the end of every residual branch, gain 1 for shortcuts and the critic."""
    network = generator(stem=64, widths=(128, 64, 32), blocks=(1,))
    for layer in of_kind(network, ReflectedConv2D):
        kernel = np.asarray(layer.kernel)
        closed = layer.name.endswith(("conv2", "to_rgb")) or layer.name == "stage1_features"
        gain = 0 if closed else 1 if layer.name.endswith("shortcut") else 2
        expected = np.sqrt(gain / np.prod(kernel.shape[:3]))
        np.testing.assert_allclose(kernel.std(), expected, rtol=4 / np.sqrt(2 * kernel.size))
    assert {float(np.abs(layer.bias).max()) for layer in of_kind(network, BiasedSiLU)} == {0.0}
    judge = discriminator(32, (32, 64), (1, 1))
    depthwise = of_kind(judge, keras.layers.DepthwiseConv2D)[0]
    np.testing.assert_allclose(np.std(depthwise.kernel), 1 / 3, rtol=0.15)
    one, last = of_kind(judge, keras.layers.Dense)
    np.testing.assert_allclose(np.std(one.kernel), np.sqrt(2 / 64), rtol=0.1)
    np.testing.assert_allclose(np.std(last.kernel), np.sqrt(1 / 32), rtol=0.5)
    assert one.bias is None
    assert last.bias is not None


def test_residual_branches_leave_the_trunk_alone_at_the_start(rng):
    network = generator(**TINY, noise=False)
    stem, *blocks = (network.get_layer(name).output for name in ("stem", "stage1_block1", "stage2_block2"))
    values = keras.Model(network.input, [stem, *blocks])(rng.random((1, 6, 6, 3), "float32"))
    for value in values[1:]:
        np.testing.assert_array_equal(value, values[0])


@pytest.mark.parametrize("size", [(96, 96), (8, 9), (1, 3)])
def test_noise_of_a_network_is_a_function_of_place_and_seed(rng, randomize, size):
    network = randomize(generator(2, **TINY))
    lr = rng.random((*size, 3), "float32")
    one = network.upscale(lr, seed=1)
    assert one.shape == (2 * size[0], 2 * size[1], 3)
    np.testing.assert_array_equal(one, network.upscale(lr, seed=1))
    assert np.abs(one - network.upscale(lr, seed=2)).max() > 1e-3
    calm = [network.upscale(lr, temperature=0, seed=seed) for seed in (1, 2)]
    np.testing.assert_array_equal(*calm)
    assert np.abs(calm[0] - one).max() > 1e-3


@pytest.mark.parametrize("cell", [1, 4])
def test_tiles_have_the_noise_of_the_whole(photos, randomize, cell):
    network = randomize(generator(4, **TINY, noise_cell=cell, consistent=True), 0.05)
    lr = imresize(photos["astronaut"], 1 / 4)[:30, :50]  # black and white in places
    whole = network.upscale(lr, temperature=0.7, seed=3)
    tiled, other = (network.upscale(lr, temperature=0.7, seed=seed, tile=32) for seed in (3, 4))
    # A product summed in another order may fall on the other side of a rounding.
    assert np.abs(tiled.astype(int) - whole).max() <= 1
    assert (tiled != whole).mean() < 1e-3
    assert (tiled != other).mean() > 0.1


def test_a_consistent_generator_shrinks_to_lr_in_8_bits(photos, randomize):
    hr = np.minimum(2 * photos["astronaut"][:96, 160:288].astype(int), 255).astype("uint8")  # white in places
    lr = imresize(hr, 1 / 4)
    consistent, free = (randomize(generator(4, **TINY, consistent=flag), 0.05) for flag in (True, False))
    for seed in (0, 1):
        drawn = [network.upscale(lr, seed=seed) for network in (consistent, free)]
        faithful, loose = (lr_psnr(hr, sr, 4) for sr in drawn)
        assert loose < 40
        assert faithful > 65


def test_saved_and_at_another_precision_it_is_the_same(rng, randomize, tmp_path):
    network = randomize(generator(4, **TINY, consistent=True), 0.02)
    network.save(tmp_path / "srmap.keras")
    lr = rng.random((16, 16, 3), "float32")
    loaded = load(tmp_path / "srmap.keras")
    np.testing.assert_array_equal(loaded.upscale(lr), network.upscale(lr))
    mixed = load(tmp_path / "srmap.keras", "bfloat16")
    kinds = {layer.name: layer.compute_dtype for layer in mixed.layers}
    assert kinds["stem"] == kinds["stage1_block1_noise"] == "bfloat16"
    assert {kinds[name] for name in ("centred", "up1_bilinear", "up2_picture", "consistent")} == {"float32"}
    np.testing.assert_allclose(mixed.upscale(lr), network.upscale(lr), atol=0.02)
    assert loaded.scale == 4
    assert loaded.draws_samples


def test_the_discriminator_takes_its_size_alone(rng):
    network = discriminator(8, (8, 8), (1, 1))
    assert network(rng.random((3, 12, 12, 3), "float32")).shape == (3, 1)
    with pytest.raises(ValueError, match="incompatible"):
        network(rng.random((3, 16, 16, 3), "float32"))
    with pytest.raises(InputError, match="scale: must be 2 or 4, not"):
        generator(3)


@pytest.mark.parametrize("cell", [1, 4])
def test_every_noise_is_another_and_only_that_at_lr_s_size_has_cells(cell):
    noises = of_kind(generator(4, **TINY, noise_cell=cell), NoiseInjection)
    assert sorted(layer.stream for layer in noises) == list(range(len(noises)))
    assert {(layer.factor, layer.cell) for layer in noises} == {(1, cell), (2, 1), (4, 1)}


def test_blurs_and_noise_stand_where_they_must():
    for network, before, after in (
            (generator(4, **TINY), "up1_shuffle", "up1_blur"),
            (generator(4, **TINY), "up1_blur", "up1_blur_noise"),
            (generator(4, **TINY), "stem_noise", "stem_act"),
            (generator(4, **TINY), "stage2", "up1_shortcut"),
            (generator(4, **TINY), "up1", "up2_shortcut"),
            (discriminator(8, (8, 8), (1, 1)), "stage1_down_blur", "stage1_down_unshuffle")):
        assert keras.tree.flatten(network.get_layer(after).input)[0] is network.get_layer(before).output


def test_blocks_of_a_new_discriminator_add_nothing(rng):
    network = discriminator(8, (8, 8), (1, 2))
    names = "stage2_down", "stage2_block1"
    down, block = keras.Model(network.input, [network.get_layer(name).output for name in names])(
        rng.random((1, 12, 12, 3), "float32"))
    assert np.abs(down).max() > 0
    np.testing.assert_array_equal(down, block)


def test_the_mean_of_div2k_is_taken_off(rng):
    network, lr = generator(4, **TINY, noise=False), rng.random((1, 8, 9, 3), "float32")
    centred = keras.Model(network.input, network.get_layer("centred").output)(lr)
    np.testing.assert_allclose(centred, lr - np.float32([0.4488, 0.4371, 0.4040]), atol=1e-6)
