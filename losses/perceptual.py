"""Perceptual loss: distance between features of VGG19 or VGG16."""

from pathlib import Path
from typing import Literal

import keras
import numpy as np
from keras import ops

from superres.errors import InputError
from superres.layers.base import Configured, Tensor

# Convolutions of each block, with so many filters; a pooling layer follows each block.
_NETWORKS = {"VGG19": (2, 2, 4, 4, 4), "VGG16": (2, 2, 3, 3, 3)}
_FILTERS = (64, 128, 256, 512, 512)
# Means of ImageNet's blue, green and red, subtracted by VGG's own preprocessing.
_MEAN_BGR = (103.939, 116.779, 123.68)
# How many times as large the features of Keras's VGG19 are as those of weights that were scaled until
# every feature's mean is one (Gatys et al., "Image Style Transfer Using Convolutional Neural Networks",
# CVPR 2016, section 2). Estimated: a rectifier lets every filter be scaled by itself, and the first four
# layers of VGG16, which are alike filter by filter, have kernels whose norms tell how much: 16, 49, 115, 108
# and 121 times for the error of SRResNet x2 on Set5. What is published of Keras's weights agrees: in
# Chen and Koltun (ICCV 2017, their code) the mean error of block1_conv2 is 2.6 times, that of block2_conv2
# 4.8 times the pixels' in 0..255; with these factors it is 1.0 to 3.0 and 2.0 to 8.4 times, from whole
# pictures that differ to details that are missing.
_OVER_UNIT_MEAN = {"block1_conv1": 16, "block1_conv2": 50, "block2_conv1": 110, "block2_conv2": 110,
                   "block3_conv1": 120}


@keras.saving.register_keras_serializable(package="superres")
class Perceptual(Configured, keras.losses.Loss):
    """Mean squared difference of VGG's features, one value a picture.

    Takes (B, H, W, 3) RGB or (B, H, W, 1) luminance, values in [0, 1]; luminance is
    repeated three times, as the report does. The picture is then brought to VGG's own
    range (BGR, 0..255, mean subtracted). The gradient flows into `y_pred`.

    Args:
        layer: The layer whose features are compared, as Keras names it, such as
            `"block2_conv2"` (SRGAN's VGG22) or `"block5_conv4"` (VGG54).
        weights: `"imagenet"` (Keras downloads VGG19's), or a file: Keras's
            ``vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5``; an ``.npz`` of VGG19 with
            arrays `conv1_1_w` (HWIO), `conv1_1_b`, ... up to the layer; or an ``.npz`` of VGG16
            with arrays `block1_conv1_kernel` (HWIO), `block1_conv1_bias`, ...
        scale: What features are multiplied by. `"paper"`: by 1 / 12.75, as Ledig et al. do
            with the features of ImageNet's VGG19. A VGG19 file with unit-mean features, which is
            known by the small kernels of its first layer, is brought to their size before: to
            within a factor of about 1.5, one factor for the whole layer (110 at block2_conv2). All
            other weights count as they are. A number: the features are multiplied by it and nothing
            else. `"relative"`: the loss is divided by the mean square of the true picture's features,
            and does not depend on how large the features of some file of weights are.
        activated: Whether features are compared after the activation (Ledig et al.) or before it
            (Wang et al., "ESRGAN", 2018, section 3.2).

    Raises:
        InputError: for an unknown layer, or weights that are missing or do not fit.

    Sources: Johnson et al., "Perceptual Losses for Real-Time Style Transfer and
    Super-Resolution", ECCV 2016; Ledig et al., CVPR 2017, equation 5 and section 3.2.
    """

    def __init__(self, layer: str = "block2_conv2", weights: str = "imagenet",
                 scale: float | Literal["paper", "relative"] = "paper", activated: bool = True,
                 name: str = "perceptual", **kwargs) -> None:
        super().__init__(name=name, **kwargs)
        self.layer, self.weights, self.scale, self.activated = layer, weights, scale, activated
        self.features = vgg(layer, weights, activated)
        self.factor = scale
        if scale == "paper":
            self.factor = _size(self.features, layer, weights) / 12.75

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        true, predicted = (ops.cast(self.features(to_vgg(picture)), "float32")
                           for picture in (y_true, y_pred))
        error = ops.mean(ops.square(true - predicted), axis=(1, 2, 3))
        if self.scale == "relative":
            return error / ops.mean(ops.square(true), axis=(1, 2, 3))
        return error * self.factor**2


def vgg(layer: str, weights: Path | str = "imagenet", activated: bool = True) -> keras.Model:
    """VGG up to a convolution, frozen: (B, H, W, 3) in VGG's range -> its features.

    It is VGG16 where `weights` is an archive of VGG16's, otherwise VGG19. In mixed bfloat16 all but the
    first convolution, whose input is too finely graded, are computed in bfloat16.
    """
    kind = "VGG16" if _is_vgg16(weights) else "VGG19"
    names = [f"block{block}_conv{i}" for block, convolutions in enumerate(_NETWORKS[kind], start=1)
             for i in range(1, convolutions + 1)]
    if layer not in names:
        raise InputError(f"{kind} has no layer {layer}; expected one of {', '.join(names)}")
    names = names[: names.index(layer) + 1]
    # Not in float16: ImageNet's features do not fit.
    dtype = keras.config.dtype_policy() if keras.config.dtype_policy().name == "mixed_bfloat16" else "float32"
    x = inputs = keras.Input((None, None, 3))
    for name in names:
        block = int(name[5])
        if block > 1 and name.endswith("_conv1"):
            x = keras.layers.MaxPooling2D(2, dtype=dtype, name=f"block{block - 1}_pool")(x)
        activation = "relu" if activated or name != layer else None
        x = keras.layers.Conv2D(_FILTERS[block - 1], 3, padding="same", activation=activation, name=name,
                                dtype="float32" if name == names[0] else dtype)(x)
    network = keras.Model(inputs, x, name=f"{kind.lower()}_{layer}")
    network.trainable = False
    _load(network, kind, names, weights)
    return network


def _is_vgg16(weights):
    """Whether this is an archive with VGG16's names; what is no archive is complained about later."""
    try:
        return str(weights).endswith(".npz") and "block1_conv1_kernel" in np.load(weights)
    except Exception:  # numpy and zipfile raise many kinds
        return False


def _size(network, layer, weights):
    """How many times as large ImageNet's features are as the network's: 1 but for unit-mean VGG19."""
    kernel = network.get_layer("block1_conv1").get_weights()[0]
    # Unit-mean kernels have a mean norm of 0.06 there; as they were trained, of about 0.9.
    if not network.name.startswith("vgg19") or np.sqrt((kernel**2).sum((0, 1, 2))).mean() > 0.15:
        return 1
    if layer not in _OVER_UNIT_MEAN:
        raise InputError(f"{weights}: features of mean one, whose true size is not known at {layer}, but "
                         f"up to {list(_OVER_UNIT_MEAN)[-1]}; compare them relatively instead")
    return _OVER_UNIT_MEAN[layer]


def _load(network, kind, names, weights):
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
        arrays = _from_npz(weights, kind, names)
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


def _from_npz(path, kind, names):
    """VGG19's arrays are named after the paper's layers, block2_conv1 is conv2_1; VGG16's after Keras's."""
    try:
        archive = np.load(path)
        arrays = {}
        for name in names:
            short = name.replace("block", "conv").replace("_conv", "_")
            keys = {"VGG19": (f"{short}_w", f"{short}_b"), "VGG16": (f"{name}_kernel", f"{name}_bias")}[kind]
            arrays[name] = [archive[key].astype("float32") for key in keys]
    except Exception as error:  # numpy and zipfile raise many kinds
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: {kind} weights up to {names[-1]} expected ({reason})") from None
    return arrays


def to_vgg(picture: Tensor) -> Tensor:
    """Pictures in [0, 1], of one channel or three, in VGG's range."""
    if picture.shape[-1] == 1:
        picture = ops.repeat(picture, 3, axis=-1)
    bgr = ops.flip(ops.cast(picture, "float32"), axis=-1) * 255
    return bgr - ops.convert_to_tensor(np.array(_MEAN_BGR, "float32"))
