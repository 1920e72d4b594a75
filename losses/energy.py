"""How well samples spread around the truth."""

from keras import ops


def energy_score(hr, one, other):
    """(|one - HR| + |other - HR| - |one - other|) / 2, averaged over a picture: the smaller the better.

    The score of a distribution by two samples of it, fair: its expectation is smallest for
    samples from the truth's own distribution at each pixel. Samples closer to each other
    than to the truth pay for it as samples too far apart do.

    Args:
        hr: (B, H, W, C), a picture or anything computed from one, such as its `texture`.
        one, other: Two samples drawn from the same LR, of the same shape.

    Returns:
        (B,).

    Source: Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and
    Estimation", 2007, equation 20 (the continuous ranked probability score).
    """
    distances = ops.abs(one - hr) + ops.abs(other - hr) - ops.abs(one - other)
    return 0.5 * ops.mean(distances, axis=(1, 2, 3))


def texture(pictures, window=8):
    """How much a picture varies from pixel to pixel around a place.

    The mean of |difference| between neighbours, below each other and beside each other, in windows
    of so many pixels. The energy score of this tells strong texture from weak where that of
    pixels sees but errors of either.

    Args:
        pictures: (B, H, W, C).

    Returns:
        (B, (H - 1) // window, (W - 1) // window, 2 C): the last row and column have no neighbours.
    """
    down = ops.abs(pictures[:, 1:, :-1] - pictures[:, :-1, :-1])
    right = ops.abs(pictures[:, :-1, 1:] - pictures[:, :-1, :-1])
    return ops.average_pool(ops.concatenate([down, right], -1), window, padding="valid")
