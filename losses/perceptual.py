"""Perceptual loss: distance between features of VGG19."""

from pathlib import Path

import keras
import numpy as np
from keras import ops

from datasets.errors import InputError

# (block, filters, convolutions) of VGG19; a pooling layer follows each block.
_BLOCKS = ((1, 64, 2), (2, 128, 2), (3, 256, 4), (4, 512, 4), (5, 512, 4))
# Means of ImageNet's blue, green and red, subtracted by VGG's own preprocessing.
_MEAN_BGR = (103.939, 116.779, 123.68)


@keras.saving.register_keras_serializable(package="superres")
class Perceptual(keras.losses.Loss):
    """Mean squared difference of VGG19 features, one value a picture.

    Takes (B, H, W, 3) RGB or (B, H, W, 1) luminance, values in [0, 1]; luminance is
    repeated three times, as the report does. The picture is then brought to VGG's own
    range (BGR, 0..255, mean subtracted). The gradient flows into `y_pred`.

    Args:
        layer: VGG19's layer whose features are compared, after activation, such as
            `"block2_conv2"` (SRGAN's VGG22) or `"block5_conv4"` (VGG54).
        weights: `"imagenet"` (Keras downloads them), or a file: Keras's
            ``vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5``, or an ``.npz`` with
            arrays `conv1_1_w` (HWIO), `conv1_1_b`, ... up to the layer.
        scale: What features are multiplied by; Ledig et al. use 1 / 12.75. Or `"relative"`: the
            loss is divided by the mean square of the true picture's features, and no longer
            depends on how large the features of some file of weights are.

    Raises:
        InputError: for an unknown layer, or weights that are missing or do not fit.

    Sources: Johnson et al., "Perceptual Losses for Real-Time Style Transfer and
    Super-Resolution", ECCV 2016; Ledig et al., CVPR 2017, equation 5.
    """

    def __init__(self, layer="block2_conv2", weights="imagenet", scale=1 / 12.75,
                 name="perceptual", **kwargs):
        super().__init__(name=name, **kwargs)
        self.layer, self.weights, self.scale = layer, weights, scale
        self.features = vgg19(layer, weights)

    def call(self, y_true, y_pred):
        true, predicted = (self.features(to_vgg(picture)) for picture in (y_true, y_pred))
        error = ops.mean(ops.square(true - predicted), axis=(1, 2, 3))
        if self.scale == "relative":
            return error / ops.mean(ops.square(true), axis=(1, 2, 3))
        return error * self.scale**2

    def get_config(self):
        return {**super().get_config(), "layer": self.layer, "weights": self.weights,
                "scale": self.scale}


def vgg19(layer, weights="imagenet"):
    """VGG19 up to a convolution, frozen: (B, H, W, 3) in VGG's range -> its features."""
    x = inputs = keras.Input((None, None, 3))
    names = []
    for block, filters, convolutions in _BLOCKS:
        for i in range(1, convolutions + 1):
            names.append(f"block{block}_conv{i}")
            # The loss is computed in float32 whatever precision the network has.
            x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu", name=names[-1],
                                    dtype="float32")(x)
            if names[-1] == layer:
                break
        if names[-1] == layer:
            break
        x = keras.layers.MaxPooling2D(2, dtype="float32", name=f"block{block}_pool")(x)
    else:
        raise InputError(f"VGG19 has no layer {layer}; expected one of {', '.join(names)}")
    network = keras.Model(inputs, x, name=f"vgg19_{layer}")
    network.trainable = False
    _load(network, names, weights)
    return network


def _load(network, names, weights):
    if weights == "imagenet":
        try:
            source = keras.applications.VGG19(include_top=False, weights="imagenet")
        except Exception as error:  # the downloader raises whatever its transport raises
            reason = " ".join(str(error).split())[:120]
            raise InputError(
                f"VGG19's ImageNet weights cannot be downloaded ({reason}); give the file "
                "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5 instead"
            ) from None
        arrays = {name: source.get_layer(name).get_weights() for name in names}
    elif not Path(weights).is_file():
        raise InputError(f"{weights}: no such file of VGG19 weights")
    elif str(weights).endswith(".npz"):
        arrays = _from_npz(weights, names)
    else:
        source = keras.applications.VGG19(include_top=False, weights=None)
        try:
            source.load_weights(weights)
        except Exception as error:  # h5py and Keras raise many kinds
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{weights}: not VGG19's weights without its top ({reason})") from None
        arrays = {name: source.get_layer(name).get_weights() for name in names}
    for name in names:
        try:
            network.get_layer(name).set_weights(arrays[name])
        except ValueError as error:
            raise InputError(f"{weights}: {error}") from None


def _from_npz(path, names):
    """Arrays named after the VGG paper's layers: block2_conv1 is conv2_1."""
    try:
        archive = np.load(path)
        arrays = {}
        for name in names:
            short = name.replace("block", "conv").replace("_conv", "_")
            arrays[name] = [archive[f"{short}_w"], archive[f"{short}_b"]]
    except Exception as error:  # numpy and zipfile raise many kinds
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: VGG19 weights up to {names[-1]} expected ({reason})") from None
    return arrays


def to_vgg(picture):
    """Pictures in [0, 1], of one channel or three, in VGG's range."""
    if picture.shape[-1] == 1:
        picture = ops.repeat(picture, 3, axis=-1)
    bgr = ops.flip(ops.cast(picture, "float32"), axis=-1) * 255
    return bgr - ops.convert_to_tensor(np.array(_MEAN_BGR, "float32"))
