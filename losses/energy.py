"""How well samples spread around the truth."""

from collections.abc import Sequence
from pathlib import Path

import keras
from keras import ops

from superres.errors import InputError
from superres.layers.base import Tensor
from superres.losses.perceptual import to_vgg, vgg


def energy_score(hr: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """(|one - HR| + |other - HR| - |one - other|) / 2, averaged over a picture: the smaller the better.

    |.| is the root mean square over channels. The score of a distribution by two samples of
    it, fair: its expectation is smallest for samples from the truth's own distribution at
    each pixel, all channels together. Samples closer to each other than to the truth pay
    for it as samples too far apart do.

    Args:
        hr: (B, H, W, C), pictures, or features of pictures.
        one, other: Two samples drawn from the same LR, of the same shape.

    Returns:
        (B,).

    Source: Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and
    Estimation", 2007, equation 22.
    """
    def distance(a, b):
        # Where two are equal, a square root has no gradient.
        return ops.sqrt(ops.maximum(ops.mean(ops.square(a - b), axis=-1), 1e-12))

    distances = distance(one, hr) + distance(other, hr) - distance(one, other)
    return 0.5 * ops.mean(distances, axis=(1, 2))


class PerceptualEnergy:
    """The energy score of VGG19's features, which know textures: each layer's over its mean in HR.

    Called as `energy_score` is, with pictures (B, H, W, 3) in [0, 1]; the average over the
    layers, (B,), does not depend on how large the features of some file of weights are.

    Args:
        weights: VGG19's, as `losses.Perceptual` takes them.
        layers: Names of VGG19's layers, the deepest last.

    Raises:
        InputError: for an unknown layer, or weights that are missing or do not fit.
    """

    def __init__(self, weights: Path | str = "imagenet",
                 layers: Sequence[str] = ("block1_conv2", "block2_conv2", "block3_conv1")) -> None:
        deepest = vgg(layers[-1], weights)
        known = {layer.name for layer in deepest.layers}
        if unknown := [name for name in layers if name not in known]:
            raise InputError(f"{unknown[0]}: no layer of VGG before {layers[-1]}, which must be the deepest")
        self.features = keras.Model(deepest.input, [deepest.get_layer(name).output for name in layers])

    def __call__(self, hr: Tensor, one: Tensor, other: Tensor) -> Tensor:
        pictures = [[ops.cast(of_layer, "float32") for of_layer in self.features(to_vgg(picture))]
                    for picture in (hr, one, other)]
        return sum(energy_score(*of_layer) / ops.mean(of_layer[0], axis=(1, 2, 3))
                   for of_layer in zip(*pictures, strict=True)) / len(pictures[0])
