"""How well samples spread around the truth."""

from keras import ops


def energy_score(hr, one, other):
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
