"""How well samples spread around the truth."""

from keras import ops


def energy_score(hr, one, other):
    """(|one - HR| + |other - HR| - |one - other|) / 2, averaged over a picture: the smaller the better.

    The score of a distribution by two samples of it, fair: its expectation is smallest for
    samples from the truth's own distribution at each pixel. Samples closer to each other
    than to the truth pay for it as samples too far apart do.

    Args:
        hr: (B, H, W, C), pictures, or features of pictures.
        one, other: Two samples drawn from the same LR, of the same shape.

    Returns:
        (B,).

    Source: Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and
    Estimation", 2007, equation 20 (the continuous ranked probability score).
    """
    distances = ops.abs(one - hr) + ops.abs(other - hr) - ops.abs(one - other)
    return 0.5 * ops.mean(distances, axis=(1, 2, 3))
