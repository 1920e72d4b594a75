"""Distances between pictures as networks see them.

Both take the weights of a network from a file that the user has: none are shipped.
"""

import os
from contextlib import redirect_stdout
from pathlib import Path

import keras
import numpy as np
from keras import layers

from datasets.errors import InputError
from datasets.pictures import to_float

SMALLEST = 64  # smaller pictures are continued symmetrically up to this size

# (squeeze, expand) channels of SqueezeNet 1.1's fire modules 2 to 9; pooling before 2, 4 and 6.
_FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
_MEAN_BGR = np.array((104, 117, 123), "float32")


class SqueezeNetDistance:
    """SqueezeNet distance, uncalibrated: LPIPS's formula without its learned weights.

    Features of seven layers, each position scaled to unit length; the squared
    differences are summed over channels, averaged over positions and added up. It has not
    been fitted to what people see: its values compare with each other, never with LPIPS.

    Args:
        path: Keras weights of SqueezeNet 1.1 without its top (.h5),
            ``squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5``.

    Raises:
        InputError: if the file is missing or is something else.

    Sources: Iandola et al., "SqueezeNet", 2016; Zhang et al., "The Unreasonable
    Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, equation 1.
    """

    name = "SqueezeNet distance (uncalibrated)"

    def __init__(self, path):
        self.features = _squeezenet()
        _load_squeezenet(self.features, path)

    def __call__(self, reference, picture):
        """The distance of two pictures, (H, W, 3) in [0, 1] or uint8."""
        batch = np.stack([_at_least(to_float(x)) for x in (reference, picture)])
        bgr = batch[..., ::-1] * 255 - _MEAN_BGR
        total = 0.0
        for features in self.features.predict_on_batch(bgr):
            unit = features / (np.linalg.norm(features, axis=-1, keepdims=True) + 1e-10)
            total += np.square(unit[0] - unit[1]).sum(-1).mean()
        return float(total)


class LPIPS:
    """LPIPS, version 0.1, of the package `lpips`; its backbone's weights come from a file.

    Args:
        path: ImageNet weights of torchvision's AlexNet (``alexnet-owt-7be5be79.pth``) or
            VGG16 (``vgg16-397923af.pth``).

    Raises:
        InputError: if the package or the file is missing, or the file is something else.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual
    Metric", CVPR 2018.
    """

    name = "LPIPS"

    def __init__(self, path):
        try:
            import lpips
            import torch
        except ImportError as error:
            raise InputError(f"--lpips: needs the package {error.name}; pip install lpips") from None
        self.torch = torch
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; LPIPS needs torchvision's AlexNet or VGG16 weights "
                             "(alexnet-owt-7be5be79.pth, vgg16-397923af.pth)")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            kind = {11: "alex", 3: "vgg"}[state["features.0.weight"].shape[-1]]
            with open(os.devnull, "w") as null, redirect_stdout(null):
                self.model = lpips.LPIPS(net=kind, pnet_rand=True, verbose=False).eval()
            with torch.no_grad():
                for name, parameter in self.model.net.named_parameters():
                    _, layer, kind = name.split(".")  # slice1.0.weight
                    parameter.copy_(state[f"features.{layer}.{kind}"])
        except Exception as error:  # torch raises many kinds
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{path}: not torchvision's weights of AlexNet or VGG16 ({reason})") from None

    def __call__(self, reference, picture):
        """The distance of two pictures, (H, W, 3) in [0, 1] or uint8."""
        pair = [self.torch.from_numpy(_at_least(to_float(x)).transpose(2, 0, 1)[None] * 2 - 1)
                for x in (reference, picture)]
        with self.torch.inference_mode():
            return float(self.model(*pair))


def _at_least(picture, size=SMALLEST):
    """RGB, and large enough for the pooling layers."""
    missing = [(0, max(0, size - n)) for n in picture.shape[:2]]
    picture = np.pad(picture, (*missing, (0, 0)), "symmetric")
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))


def _squeezenet():
    """SqueezeNet 1.1 up to the features that LPIPS compares: seven outputs."""
    x = inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(64, 3, 2, activation="relu", name="conv1")(x)
    outputs = [x]
    for number, (squeeze, expand) in enumerate(_FIRES, start=2):
        if number in (2, 4, 6):
            x = layers.MaxPooling2D(3, 2)(x)
        s = layers.Conv2D(squeeze, 1, activation="relu", name=f"fire{number}_squeeze1x1")(x)
        x = layers.Concatenate()([
            layers.Conv2D(expand, size, padding="same", activation="relu",
                          name=f"fire{number}_expand{size}x{size}")(s) for size in (1, 3)
        ])
        if number not in (2, 4):
            outputs.append(x)
    return keras.Model(inputs, outputs, name="squeezenet")


def _load_squeezenet(network, path):
    import h5py

    if not Path(path).is_file():
        raise InputError(f"{path}: no such file of SqueezeNet weights")
    try:
        with h5py.File(path) as file:
            for layer in network.layers:
                if not layer.weights:
                    continue
                found = []
                file[layer.name.replace("_", "/")].visititems(
                    lambda name, item, found=found: found.append(np.array(item))
                    if isinstance(item, h5py.Dataset) else None)
                layer.set_weights(sorted(found, key=np.ndim, reverse=True))
    except (OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: not Keras's SqueezeNet 1.1 without its top ({reason})") from None
