"""Distances between pictures as networks see them.

Both take the weights of a network from a file that the user has: none are shipped.
"""

from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
from keras import layers
from skimage.transform import resize

from superres.datasets.pictures import to_float
from superres.errors import InputError

SMALLEST = 64  # smaller pictures are continued symmetrically up to this size

_CONVOLUTIONS = {"alex": [0, 3, 6, 8, 10], "vgg": [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]}
# (squeeze, expand) channels of SqueezeNet 1.1's fire modules 2 to 9; pooling before 2, 4 and 6.
_FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
_MEAN_BGR = np.array((104, 117, 123), "float32")


class _FeatureDistance:
    """Squared differences of features scaled to unit length, which `_differences` yields by layer."""

    def __call__(self, reference: np.ndarray, picture: np.ndarray) -> float:
        """The distance of two pictures, (H, W, 3) in [0, 1] or uint8."""
        return float(sum(map(np.mean, self._differences(reference, picture))))

    def with_map(self, reference: np.ndarray, picture: np.ndarray) -> tuple[float, np.ndarray]:
        """The distance, and where they differ, (H, W): the layers' differences, resized bilinearly and added.

        The map's mean is nearly, but not exactly, the distance: resizing changes a layer's mean.
        """
        differences = list(self._differences(reference, picture))
        enlarged = [max(n, SMALLEST) for n in reference.shape[:2]]
        total = sum(resize(difference, enlarged, order=1, mode="edge") for difference in differences)
        return float(sum(map(np.mean, differences))), total[: reference.shape[0], : reference.shape[1]]


class SqueezeNetDistance(_FeatureDistance):
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

    def __init__(self, path: Path | str) -> None:
        self.features = _squeezenet()
        _load_squeezenet(self.features, path)

    def _differences(self, reference, picture):
        batch = np.stack([_at_least(to_float(x)) for x in (reference, picture)])
        for features in self.features.predict_on_batch(batch[..., ::-1] * 255 - _MEAN_BGR):
            unit = features / (np.linalg.norm(features, axis=-1, keepdims=True) + 1e-10)
            yield np.square(unit[0] - unit[1]).sum(-1)


class LPIPS(_FeatureDistance):
    """LPIPS, version 0.1: the learned weights of the package `lpips`, on a backbone from a file.

    Args:
        path: ImageNet weights of torchvision's AlexNet (``alexnet-owt-7be5be79.pth``) or
            VGG16 (``vgg16-397923af.pth``).

    Raises:
        InputError: if a package or the file is missing, or the file is something else.

    Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual
    Metric", CVPR 2018.
    """

    def __init__(self, path: Path | str) -> None:
        for package in ("torch", "lpips"):
            if not find_spec(package):
                raise InputError(f"--lpips: needs the package {package}; pip install torch lpips")
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; LPIPS needs torchvision's AlexNet or VGG16 weights "
                             "(alexnet-owt-7be5be79.pth, vgg16-397923af.pth)")
        import torch

        self.torch = torch
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.kind = {11: "alex", 3: "vgg"}[state["features.0.weight"].shape[-1]]
            # By their number in torchvision's `features`, where activations count too.
            self.convolutions = {
                int(name.split(".")[1]): (weight, state[name.replace("weight", "bias")])
                for name, weight in state.items() if name.startswith("features.") and weight.ndim == 4
            }
            if sorted(self.convolutions) != _CONVOLUTIONS[self.kind]:  # VGG19's would fit the heads, too
                raise ValueError(f"it has convolutions {sorted(self.convolutions)}")
            # The package itself is not imported: it needs torchvision, only to download the backbone.
            heads = Path(find_spec("lpips").origin).parent / "weights" / "v0.1" / f"{self.kind}.pth"
            heads = torch.load(heads, map_location="cpu", weights_only=True)
            self.heads = [heads[f"lin{i}.model.1.weight"] for i in range(5)]
        except Exception as error:  # torch raises many kinds
            reason = " ".join(str(error).split())[:120]
            raise InputError(f"{path}: not torchvision's AlexNet or VGG16 ({reason})") from None

    def _differences(self, reference, picture):
        torch = self.torch
        batch = np.stack([_at_least(to_float(x)) for x in (reference, picture)]) * 2 - 1
        batch = (batch - np.array((-0.030, -0.088, -0.188))) / np.array((0.458, 0.448, 0.450))
        with torch.inference_mode():
            features = self._features(torch.from_numpy(batch.transpose(0, 3, 1, 2)).float())
            for x, head in zip(features, self.heads, strict=True):
                unit = x / (x.norm(dim=1, keepdim=True) + 1e-10)
                yield torch.conv2d((unit[:1] - unit[1:]).square(), head)[0, 0].numpy()

    def _features(self, x):
        functional, numbers = self.torch.nn.functional, sorted(self.convolutions)
        features = []
        for number, following in zip(numbers, [*numbers[1:], None], strict=True):
            weight, bias = self.convolutions[number]
            first = self.kind == "alex" and number == 0
            x = functional.conv2d(x, weight, bias, 4 if first else 1, 2 if first else weight.shape[-1] // 2)
            x = functional.relu(x)
            ends_block = following is None or following - number == 3  # a pooling layer comes between
            if self.kind == "alex" or ends_block:
                features.append(x)
            if ends_block:
                x = functional.max_pool2d(x, 3 if self.kind == "alex" else 2, 2)
        return features


def diversity_score(maps: np.ndarray | list[np.ndarray]) -> float:
    """How much of the way to the truth samples of one picture go by differing: S, in percent.

    100 (G - L) / G, where G is the smallest of the samples' mean distances from HR, and L the
    mean of the distance of whichever sample is nearest at each pixel. Alike samples give 0.

    Args:
        maps: (K, H, W), the distance of each sample from HR at each pixel, such as
            `LPIPS.with_map` gives; S10 is that of ten samples.

    Source: Lugmayr et al., "NTIRE 2021 Learning the Super-Resolution Space Challenge",
    section 3.2.
    """
    maps = np.asarray(maps, "float64")
    best = maps.mean((1, 2)).min()
    return float(100 * (best - maps.min(0).mean()) / best) if best else 0.0


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
    except (OSError, KeyError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: not Keras's SqueezeNet 1.1 without its top ({reason})") from None
