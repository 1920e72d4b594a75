"""losses/: values against the formulas and against Keras's own VGG19."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from superres.errors import InputError
from superres.losses import Charbonnier, Perceptual, PerceptualEnergy, energy_score
from superres.losses.perceptual import vgg


@pytest.fixture
def pair(rng):
    return rng.random((2, 16, 20, 3), "float32"), rng.random((2, 16, 20, 3), "float32")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random VGG19 weights in both file formats, and the network that has them."""
    keras.utils.set_random_seed(3)
    network = keras.applications.VGG19(include_top=False, weights=None)
    folder = tmp_path_factory.mktemp("vgg19")
    arrays = {}
    for layer in network.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, np.random.default_rng(0).normal(0, 1, bias.shape)])
            block, conv = layer.name[5], layer.name[-1]  # block2_conv1 is the paper's conv2_1
            arrays[f"conv{block}_{conv}_w"], arrays[f"conv{block}_{conv}_b"] = layer.get_weights()
    np.savez(folder / "vgg19.npz", **arrays)
    network.save_weights(folder / "vgg19.weights.h5")
    return network, folder


@pytest.mark.parametrize("epsilon", [1e-3, 0.5])
def test_charbonnier_is_its_formula_picture_by_picture(pair, epsilon):
    x, y = pair
    expected = np.sqrt((x - y).astype("float64") ** 2 + epsilon**2).mean((1, 2, 3))
    np.testing.assert_allclose(Charbonnier(epsilon).call(x, y), expected, rtol=1e-5)
    np.testing.assert_allclose(Charbonnier(epsilon)(x, y), expected.mean(), rtol=1e-5)


def test_charbonnier_of_equal_pictures_is_epsilon(pair):
    assert float(Charbonnier(1e-3)(pair[0], pair[0])) == pytest.approx(1e-3)


def test_charbonnier_has_the_gradient_of_its_formula(pair):
    x, y = pair
    y = tf.Variable(np.where(y > 0.5, x, y))  # in part equal: no gradient and no NaN there
    with tf.GradientTape() as tape:
        loss = Charbonnier(0.1)(x, y)
    d = y.numpy() - x
    np.testing.assert_allclose(tape.gradient(loss, y), d / np.sqrt(d**2 + 0.01) / d.size, atol=1e-9)


@pytest.mark.parametrize("file", ["vgg19.npz", "vgg19.weights.h5"])
@pytest.mark.parametrize("layer", ["block1_conv2", "block3_conv4"])
def test_features_are_those_of_keras_vgg19(pair, weights, layer, file):
    network, folder = weights
    features = keras.Model(network.input, network.get_layer(layer).output)
    preprocess = keras.applications.vgg19.preprocess_input
    x, y = (features(preprocess(picture * 255.0)).numpy().astype("float64") for picture in pair)
    expected = ((x - y) ** 2).mean((1, 2, 3)) / 12.75**2
    loss = Perceptual(layer, str(folder / file))
    np.testing.assert_allclose(loss.call(*pair), expected, rtol=1e-3)
    assert expected.min() > 0


def test_perceptual_repeats_luminance_three_times(pair, weights):
    loss = Perceptual("block1_conv2", str(weights[1] / "vgg19.npz"))
    x, y = (picture[..., :1] for picture in pair)
    np.testing.assert_allclose(loss(x, y), loss(np.repeat(x, 3, -1), np.repeat(y, 3, -1)))
    assert float(loss(x, y)) > 0
    assert float(loss(x, x)) == 0


def test_relative_perceptual_loss_does_not_depend_on_the_scale_of_the_features(pair, weights, tmp_path):
    network, folder = weights
    with np.load(folder / "vgg19.npz") as archive:
        arrays = {name: 3 * archive[name] for name in ("conv1_1_w", "conv1_1_b")}
    np.savez(tmp_path / "thrice.npz", **arrays)
    features = keras.Model(network.input, network.get_layer("block1_conv1").output)
    x, y = (features(keras.applications.vgg19.preprocess_input(picture * 255.0)).numpy() for picture in pair)
    expected = np.square(x - y).mean((1, 2, 3)) / np.square(x).mean((1, 2, 3))
    for file in (folder / "vgg19.npz", tmp_path / "thrice.npz"):
        loss = Perceptual("block1_conv1", str(file), "relative")
        np.testing.assert_allclose(loss.call(*pair), expected, rtol=1e-3)


@pytest.mark.parametrize(("layer", "size"), [("block1_conv1", 16), ("block2_conv2", 110)])
def test_unit_mean_features_are_brought_to_the_size_of_keras_s(pair, weights, tmp_path, layer, size):
    arrays = dict(np.load(weights[1] / "vgg19.npz"))
    # Rectifiers: with the first kernels and all biases divided by a number, all features are.
    arrays = {name: a / size if name[-1] == "b" or name == "conv1_1_w" else a for name, a in arrays.items()}
    np.savez(tmp_path / "unit.npz", **arrays)
    whole, unit = (str(folder / name) for folder, name in ((weights[1], "vgg19.npz"), (tmp_path, "unit.npz")))
    np.testing.assert_allclose(Perceptual(layer, unit)(*pair), Perceptual(layer, whole)(*pair), rtol=1e-4)
    np.testing.assert_allclose(Perceptual(layer, unit, size / 12.75)(*pair), Perceptual(layer, whole)(*pair),
                               rtol=1e-4)  # a number is taken as it is
    with pytest.raises(InputError, match=r"unit\.npz: features of mean one, .* at block3_conv2, but up to"):
        Perceptual("block3_conv2", unit)
    assert Perceptual("block3_conv2", unit, "relative").layer == "block3_conv2"


def test_features_before_the_activation(pair, weights):
    network, folder = weights
    layer = network.get_layer("block1_conv2")
    features = keras.Model(network.input, network.get_layer("block1_conv1").output)
    before = (features(keras.applications.vgg19.preprocess_input(picture * 255.0)) for picture in pair)
    x, y = (tf.nn.conv2d(one, layer.kernel, 1, "SAME") + layer.bias for one in before)
    assert np.min(x) < 0 < np.max(x)
    loss = Perceptual("block1_conv2", str(folder / "vgg19.npz"), 1.0, activated=False)
    np.testing.assert_allclose(loss.call(*pair), np.square(x - y).mean((1, 2, 3)), rtol=1e-3)
    assert loss.get_config()["activated"] is False


def test_mixed_precision_computes_features_in_bfloat16_and_not_in_float16(pair, weights):
    x, y = map(tf.constant, pair)

    def losses():
        file = str(weights[1] / "vgg19.npz")
        energy = PerceptualEnergy(file)
        for loss in (Perceptual("block3_conv1", file, "relative").call,
                     lambda x, y: energy(x, y, y[:, ::-1])):
            with tf.GradientTape() as tape:
                tape.watch(y)
                value = loss(x, y)
            assert value.dtype == "float32"
            yield value, tape.gradient(value, y)

    expected = list(losses())
    for policy in ("mixed_bfloat16", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        for pairs in zip(losses(), expected, strict=True):
            # Of the gradient more is lost: what is close to a rectifier's or a pooling's edge.
            for actual, wanted, most in zip(*pairs, (2e-3, 0.2), strict=True):
                error = float(tf.norm(actual - wanted) / tf.norm(wanted))
                assert 1e-6 < error < most if policy == "mixed_bfloat16" else error == 0


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory):
    """Random VGG16 weights of 16 bits in an archive, and the network that has them."""
    keras.utils.set_random_seed(4)
    network, arrays = keras.applications.VGG16(include_top=False, weights=None), {}
    for layer in network.layers:
        if layer.weights:
            kernel, bias = (array.astype("float16") for array in layer.get_weights())
            layer.set_weights([kernel, bias := bias + np.float16(0.5)])
            arrays |= {f"{layer.name}_kernel": kernel, f"{layer.name}_bias": bias}
    path = tmp_path_factory.mktemp("vgg16") / "vgg16.npz"
    np.savez(path, **arrays)
    return network, str(path)


@pytest.mark.parametrize("layer", ["block2_conv2", "block5_conv3"])
def test_features_are_those_of_keras_vgg16(pair, vgg16, layer):
    network, path = vgg16
    features = keras.Model(network.input, network.get_layer(layer).output)
    given = [keras.applications.vgg16.preprocess_input(picture * 255.0) for picture in pair]
    x, y = (features(picture).numpy() for picture in given)
    loss = Perceptual(layer, path)
    np.testing.assert_allclose(loss.features(given[0]), x, rtol=1e-3, atol=1e-5 * x.max())
    expected = np.square(x - y).mean((1, 2, 3)) / 12.75**2
    np.testing.assert_allclose(loss.call(*pair), expected, rtol=1e-3)
    assert expected.min() > 0


def test_vgg16_has_its_own_layers(vgg16, tmp_path):
    with pytest.raises(InputError, match="VGG16 has no layer block3_conv4; expected one of block1_conv1, "):
        vgg("block3_conv4", vgg16[1])
    arrays = {"block1_conv1_kernel": np.zeros((3, 3, 3, 64)), "block1_conv1_bias": np.zeros(64)}
    np.savez(tmp_path / "short.npz", **arrays)
    assert vgg("block1_conv1", str(tmp_path / "short.npz")).count_params() == 1792
    with pytest.raises(InputError, match=r"short\.npz: VGG16 weights up to block1_conv2 expected"):
        vgg("block1_conv2", str(tmp_path / "short.npz"))


def test_perceptual_gradient_flows_into_the_prediction_and_no_weight(pair, weights):
    loss = Perceptual("block2_conv2", str(weights[1] / "vgg19.npz"))
    x, y = pair[0], tf.Variable(pair[1])
    with tf.GradientTape() as tape:
        value = loss(x, y)
    gradient = tape.gradient(value, y).numpy()
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).sum(-1) > 0).mean() > 0.99
    assert loss.features.trainable_variables == []


def test_perceptual_energy_is_that_of_every_layer_over_its_mean(pair, weights, tmp_path, rng):
    network, folder = weights
    names, pictures = ("block1_conv2", "block2_conv1"), (*pair, rng.random(pair[0].shape, "float32"))
    features = keras.Model(network.input, [network.get_layer(name).output for name in names])
    hr, one, other = (features(keras.applications.vgg19.preprocess_input(x * 255.0)) for x in pictures)
    expected = np.mean([energy_score(*of_layer) / np.mean(of_layer[0], (1, 2, 3))
                        for of_layer in zip(hr, one, other, strict=True)], 0)
    with np.load(folder / "vgg19.npz") as archive:  # those whose features are thrice as large
        arrays = {name: 3 * value if name == "conv1_1_w" or name.endswith("b") else value
                  for name, value in archive.items()}
    np.savez(tmp_path / "thrice.npz", **arrays)
    for file in (folder / "vgg19.npz", tmp_path / "thrice.npz"):  # whatever the size of the features
        keras.mixed_precision.set_dtype_policy("mixed_bfloat16")  # of the network that is trained
        loss = PerceptualEnergy(str(file), names)
        np.testing.assert_allclose(loss(*pictures), expected, rtol=1e-3)
        assert loss.features.trainable_variables == []
    for wrong in (["block9_conv1", names[-1]], [names[-1], names[0]]):
        with pytest.raises(InputError, match="no layer"):
            PerceptualEnergy(str(folder / "vgg19.npz"), wrong)


def test_losses_are_rebuilt_from_their_config(pair, weights):
    for loss in (Charbonnier(0.2), Perceptual("block1_conv1", str(weights[1] / "vgg19.npz"), scale=0.5)):
        again = keras.losses.deserialize(keras.losses.serialize(loss))
        assert again.get_config() == loss.get_config()
        assert float(again(*pair)) == float(loss(*pair))


def test_unknown_layer_is_named(weights):
    with pytest.raises(InputError, match=r"no layer block9_conv1; expected one of block1_conv1, "):
        vgg("block9_conv1", str(weights[1] / "vgg19.npz"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.npz", None, "no such file"),
        ("text.npz", b"not an archive", "VGG19 weights up to block1_conv1 expected"),
        ("text.h5", b"not an archive", "not VGG19's weights"),
        ("empty.npz", b"", "VGG19 weights up to block1_conv1 expected"),
        ("cut.npz", "cut", "VGG19 weights up to block1_conv1 expected"),
    ],
)
def test_bad_weight_files_are_named(tmp_path, weights, name, content, message):
    path = tmp_path / name
    if content == "cut":
        content = (weights[1] / "vgg19.npz").read_bytes()[:5000]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        vgg("block1_conv1", str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_archive_that_lacks_a_layer_or_has_another_shape_is_named(tmp_path, weights):
    arrays = dict(np.load(weights[1] / "vgg19.npz"))
    np.savez(tmp_path / "lacks.npz", **{k: v for k, v in arrays.items() if k != "conv1_2_w"})
    np.savez(tmp_path / "shape.npz", **{**arrays, "conv1_2_w": arrays["conv1_1_w"]})
    for name in ("lacks.npz", "shape.npz"):
        with pytest.raises(InputError, match=name):
            vgg("block1_conv2", str(tmp_path / name))


def test_without_a_network_the_error_says_which_file_to_give(monkeypatch):
    def fails(**kwargs):
        raise OSError("URL fetch failure\non the way")

    monkeypatch.setattr(keras.applications, "VGG19", fails)
    with pytest.raises(InputError, match=r"cannot be downloaded \(URL fetch failure on the way\); give the "
                                         r"file vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"):
        Perceptual()
