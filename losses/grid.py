"""Against the grid that sub-pixel convolutions draw."""

from keras import ops

from superres.layers.base import Tensor


def grid(hr: Tensor, sr: Tensor, scale: int) -> Tensor:
    """Mean |difference| between HR and SR in what the pixels of each phase have on average.

    A picture's pixels fall into scale x scale phases, by their place within an LR pixel. Every phase
    is made by weights of its own, so that an error common to all pixels of one shows as a
    grid; in a real picture the phases have nearly the same mean.

    Args:
        hr: (B, sH, sW, C).
        sr: Of the same shape.
        scale: s.

    Returns:
        (B,).
    """
    _, height, width, channels = hr.shape
    shape = (-1, height // scale, scale, width // scale, scale, channels)
    return ops.mean(ops.abs(ops.mean(ops.reshape(hr - sr, shape), axis=(1, 3))), axis=(1, 2, 3))
