"""Likelihood of 8-bit pictures."""

import math

from keras import ops

from superres.layers.base import Tensor


def cross_entropy(picture: Tensor, logits: Tensor) -> Tensor:
    """-log p of each sub-pixel, in nats, averaged over everything.

    Args:
        picture: (B, H, W, C) in [0, 1], multiples of 1 / 255.
        logits: (B, H, W, C, 256).
    """
    levels = ops.cast(ops.round(picture * 255), "int32")
    logits = ops.cast(logits, "float32")
    return ops.mean(ops.sparse_categorical_crossentropy(levels, logits, from_logits=True))


def bits_per_dimension(picture: Tensor, logits: Tensor) -> Tensor:
    """`cross_entropy` in bits: bits per sub-pixel."""
    return cross_entropy(picture, logits) / math.log(2)
