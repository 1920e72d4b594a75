"""layers/: what they compute, and that any Keras backend computes it."""

import ast
import importlib.util
import inspect

import keras
import numpy as np
import pytest
from conftest import ROOT

from superres.datasets.degradations import imresize
from superres.layers import (
    ICNR,
    SPADE,
    BicubicUpsampling2D,
    ConsistentPicture,
    GatedPixelCNNBlock,
    MaskedConv2D,
    NoiseInjection,
    PolyphaseConv2D,
    ReflectedConv2D,
    SPADEResBlock,
    SubPixelConv2D,
)

SAME = ("strides", "padding", "dilation_rate", "groups", "data_format")  # of convolutions that keep the size
BACKEND_FREE = sorted(
    path for folder in ("layers", "models", "losses") for path in (ROOT / folder).glob("*.py")
    if path.name not in ("engine.py", "formats.py", "signatures.py")  # which make TensorFlow's graphs
)
# Runs in a process of its own: the forward pass of each layer, loss and network.
OTHER_BACKEND = """
import keras, numpy as np
from superres.datasets.degradations import imresize
from superres.layers import (
    BicubicUpsampling2D, ConsistentPicture, NoiseInjection, PolyphaseConv2D, SubPixelConv2D)
from superres.losses import (
    Charbonnier, Fidelity, energy_score, gradient_penalty, grid, relativistic, total_variation)
from superres.models import pixel_recursive, srgan, srmap
from superres.models.lapsrn import lapsrn
assert keras.backend.backend() == "{backend}"
x = np.random.default_rng(0).random((1, 9, 11, 3), "float32")
numpy = keras.ops.convert_to_numpy
layer = SubPixelConv2D(5, 3, scale=2)
up = numpy(layer(x))
assert up.shape == (1, 18, 22, 5) and np.ptp(up.reshape(1, 9, 2, 11, 2, 5), axis=(2, 4)).max() == 0
for scale in (2, 4):
    assert np.abs(numpy(BicubicUpsampling2D(scale)(x))[0] - imresize(x[0], scale)).max() < 1e-5
assert abs(numpy(Charbonnier(1e-3)(x, x)) - 1e-3) < 1e-6
assert np.abs(lapsrn(2, filters=4, depth=2).upscale(x[0]) - imresize(x[0], 2).clip(0, 1)).max() < 1e-4
place = [np.array([7], "int32"), np.ones(1, "float32"), np.array([[3, 5]], "int32")]
noise = numpy(NoiseInjection(2, initial=1.0)([np.zeros((1, 2, 2, 3), "float32"), *place]))
assert np.abs(noise.ravel() - {noise}).max() < 1e-6
lr = np.random.default_rng(1).random((1, 9, 11, 3), "float32")
sr = np.random.default_rng(2).random((1, 18, 22, 3), "float32")
consistent = numpy(ConsistentPicture(2)([lr, sr]))[0].astype("float64")
assert np.abs(imresize(consistent, 0.5) - lr[0]).max() < 1e-3
layer = PolyphaseConv2D(3, 9)
assert np.abs(numpy(layer(sr)) - numpy(keras.ops.conv(sr, layer.kernel, padding="same"))).max() < 1e-4
generator = srmap.generator(2, stem=4, widths=(8, 4), blocks=(1,))
assert np.abs(generator.upscale(x[0]) - numpy(generator([x, *place]))[0]).max() < 1e-6
assert srgan.generator(4, 1, 4).upscale(x[0]).shape == (36, 44, 3)
real, fake = (numpy(srmap.discriminator(4, (4, 8), (1, 1))(z[:, :12, :12])) for z in (sr, 1 - sr))
conditioning = pixel_recursive.conditioning_network(4, 2, 3, 4, 1, norm="spade", hidden=3)
recursive = pixel_recursive.pixel_recursive(conditioning, pixel_recursive.prior_network(8, 3, 6, 1, head=12))
assert np.isfinite(numpy(recursive([lr[:, :4, :4], sr[:, :8, :8]])[0])).all()
values = [*relativistic(real, fake), energy_score(sr, sr, sr), gradient_penalty(sr), grid(sr, sr, 2),
          total_variation(sr), Fidelity(2)(lr, consistent[None].astype("float32"))]
assert np.isfinite([float(keras.ops.mean(value)) for value in values]).all()
assert abs(float(values[-1])) < 1e-3
"""


def convolve(x, kernel, bias):
    """'same' correlation of (H, W, C) with an odd (k, k, C, F) kernel, tap by tap."""
    k = kernel.shape[0]
    padded = np.pad(x, ((k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    height, width = x.shape[:2]
    return bias + sum(
        padded[i : i + height, j : j + width] @ kernel[i, j] for i in range(k) for j in range(k)
    )


def shuffle(z, scale):
    """(H, W, s*s*F) -> (sH, sW, F): channel block number p * s + q is sub-pixel (p, q)."""
    height, width, channels = z.shape
    filters = channels // scale**2
    out = np.empty((height * scale, width * scale, filters), z.dtype)
    for p in range(scale):
        for q in range(scale):
            block = p * scale + q
            out[p::scale, q::scale] = z[..., block * filters : (block + 1) * filters]
    return out


def blocks_vary(picture, scale):
    """Largest difference between two pixels of one s x s block of a (B, sH, sW, C) array."""
    batch, height, width, channels = picture.shape
    blocks = picture.reshape(batch, height // scale, scale, width // scale, scale, channels)
    return np.ptp(blocks, (2, 4)).max()


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_sub_pixel_convolution_is_a_convolution_and_a_block_major_shuffle(rng, scale, kernel_size):
    x = rng.random((5, 7, 4), "float32")
    layer = SubPixelConv2D(3, kernel_size, scale=scale, icnr=False, bias_initializer="normal")
    expected = shuffle(convolve(x, *(np.asarray(w) for w in (layer(x[None]), *layer.weights)[1:])), scale)
    np.testing.assert_allclose(layer(x[None])[0], expected, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3])
def test_sub_pixel_convolution_is_a_good_layer(run_layer_test, scale):
    run_layer_test(
        SubPixelConv2D, {"filters": 3, "kernel_size": 3, "scale": scale, "activation": "relu"},
        (2, 5, 7, 4), (2, 5 * scale, 7 * scale, 3), weights=(9 * 4 + 1) * 3 * scale**2,
    )


@pytest.mark.parametrize(("wrong", "message"), [
    ({"scale": 0}, "scale must be at least 1, not 0"), ({"strides": 2}, "strides and groups must be 1"),
    ({"groups": 3}, "strides and groups must be 1")])
def test_sub_pixel_convolution_refuses_what_it_cannot_do(wrong, message):
    with pytest.raises(ValueError, match=message):
        SubPixelConv2D(3, 3, **wrong)


@pytest.mark.parametrize("scale", [2, 3])
def test_icnr_starts_without_checkerboard(rng, scale):
    x = rng.random((1, 5, 7, 4), "float32")
    layer = SubPixelConv2D(3, 3, scale=scale)
    assert blocks_vary(np.asarray(layer(x)), scale) == 0
    # The mistake to guard against: one filter's sub-pixels beside one another.
    kernel = np.asarray(layer.kernel)
    layer.kernel.assign(np.repeat(kernel[..., :3], scale**2, axis=-1))
    assert blocks_vary(np.asarray(layer(x)), scale) > 0.1


def test_icnr_draws_a_kernel_for_each_filter():
    kernel = np.asarray(ICNR("he_normal", 2)((3, 3, 8, 16)))
    assert len(np.unique(kernel)) == 3 * 3 * 8 * 4


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(7, 10, 1), (12, 5, 3), (2, 2, 3)])
def test_bicubic_upsampling_equals_imresize_up_to_the_border(rng, scale, shape):
    x = rng.random(shape, "float32")
    sr = np.asarray(BicubicUpsampling2D(scale)(x[None])[0])
    np.testing.assert_allclose(sr, imresize(x.astype("float64"), scale), atol=2e-6)


@pytest.mark.parametrize("scale", [2, 4])
def test_bicubic_upsampling_is_a_good_layer(run_layer_test, scale):
    # It stays in float32 in mixed precision: bfloat16 has fewer bits than a pixel.
    run_layer_test(
        BicubicUpsampling2D, {"scale": scale}, (2, 5, 7, 3), (2, 5 * scale, 7 * scale, 3), weights=0,
        computes="float32",
    )


def test_bicubic_upsampling_hands_the_gradient_on(rng):
    # The weights of every input pixel sum to scale^2 over a picture: rows of the
    # upsampling sum to one, and the symmetric border returns what falls outside.
    import tensorflow as tf

    x = tf.constant(rng.random((1, 6, 6, 2), "float32"))
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(BicubicUpsampling2D(2)(x))
    np.testing.assert_allclose(tape.gradient(total, x), 4, atol=1e-5)


@pytest.mark.parametrize("path", BACKEND_FREE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_tensorflow_in_what_any_backend_runs(path):
    tree = ast.parse(path.read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    roots = {name.removeprefix("superres.").split(".")[0] for name in names}
    assert roots.isdisjoint({"tensorflow", "train", "evaluate"})


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_layers_losses_and_networks_run_on_other_backends(run_command, backend):
    if not importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    place = [np.array([7], "int32"), np.ones(1, "float32"), np.array([[3, 5]], "int32")]
    noise = NoiseInjection(2, initial=1.0)([np.zeros((1, 2, 2, 3), "float32"), *place])
    script = OTHER_BACKEND.format(backend=backend, noise=np.asarray(noise).ravel().tolist())
    result = run_command("-c", script, KERAS_BACKEND=backend)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize(("layer_class", "arguments", "left_out"), [
    (SPADE, {"hidden": 4, "norm": "instance"}, ()),
    (SPADEResBlock, {"filters": 4, "hidden": 3, "norm": "instance", "spectral": False, "slope": 0.0}, ()),
    (GatedPixelCNNBlock, {"filters": 6, "kernel_size": 5, "mask_type": "A", "colours": 1}, ()),
    (NoiseInjection, {"stream": 3, "factor": 2, "initial": 0.5, "cell": 4}, ()),
    (BicubicUpsampling2D, {"scale": 4}, ()),
    (ConsistentPicture, {"scale": 4, "rounds": 3}, ()),
    (MaskedConv2D, {"filters": 6, "kernel_size": (3, 5), "mask_type": "A", "colours": 1}, SAME),
    (PolyphaseConv2D, {"filters": 6, "kernel_size": (3, 3), "activation": "tanh"}, SAME),
    (ReflectedConv2D, {"filters": 6, "kernel_size": (3, 3), "use_bias": False}, SAME),
    (SubPixelConv2D, {"filters": 6, "kernel_size": (3, 3), "scale": 4, "icnr": False},
     ("strides", "groups", "data_format")),
])
def test_layers_write_down_their_arguments(layer_class, arguments, left_out):
    """All of them and nothing else, so that files written by one version are read by the next."""
    named = inspect.signature(layer_class.__init__).parameters
    drawn = {"kernel_initializer": "he_normal"} if "kernel_initializer" in named else {}
    config = layer_class(**arguments, **drawn, name="one").get_config()
    of_base = ({*keras.layers.Conv2D(1, 1).get_config()} if issubclass(layer_class, keras.layers.Conv2D)
               else {"name", "trainable", "dtype"})
    assert config.keys() == of_base - {*left_out} | {*arguments, *drawn}
    assert config.items() >= {**arguments, "name": "one"}.items()
    if drawn:
        assert config["kernel_initializer"]["class_name"] == "HeNormal"


def test_layers_are_registered_for_loading():
    for layer in (SubPixelConv2D, BicubicUpsampling2D, ICNR):
        assert keras.saving.get_registered_name(layer) == f"superres>{layer.__name__}"
