"""Against the grid that sub-pixel convolutions draw."""

from collections.abc import Sequence

from keras import ops

from superres.layers.base import Tensor


def grid(hr: Tensor, sr: Tensor, scale: int, window: int = 0) -> Tensor:
    """Mean |difference| between HR and SR in how each phase's mean deviates from that of all phases.

    A picture's pixels fall into scale x scale phases, by their place within an LR pixel. Every phase
    is made by weights of its own, so that an error common to all pixels of one shows as a
    grid; in a real picture the phases have nearly the same mean. A network can draw one grid here and
    another there, which cancel over a whole picture: windows see them.

    Args:
        hr: (B, sH, sW, C).
        sr: Of the same shape.
        scale: s.
        window: Size of the square windows whose means are compared, in LR pixels; what is left over at
            the bottom and right is not compared. 0: the whole picture.

    Returns:
        (B,).
    """
    _, height, width, channels = hr.shape
    rows, columns = height // scale, width // scale
    high, wide = (window, window) if window else (rows, columns)
    error = (hr - sr)[:, : rows // high * high * scale, : columns // wide * wide * scale]
    error = ops.reshape(error, (-1, rows // high, high, scale, columns // wide, wide, scale, channels))
    phases = ops.mean(error, axis=(2, 5))
    deviations = phases - ops.mean(phases, axis=(2, 4), keepdims=True)
    return ops.mean(ops.abs(deviations), axis=(1, 2, 3, 4, 5))


def shifted(pictures: Sequence[Tensor], scale: int, step: Tensor | int) -> list[Tensor]:
    """Cut the pictures at a place that is another at every step, `scale` pixels smaller each way.

    Strides and poolings have gradients that repeat from pixel to pixel, and a generator whose phases
    always lie in the same places of them draws that pattern. So each phase takes each place in turn.

    Args:
        pictures: Of (B, sH, sW, C) each.
        scale: s.
        step: How many steps were made before; after s^2 the places come again.

    Returns:
        The pictures, (B, s(H - 1), s(W - 1), C), all cut at the same place.

    Source: Odena et al., "Deconvolution and Checkerboard Artifacts", Distill 2016, on gradients; Kettunen
    et al., "E-LPIPS", 2019, which shifts pictures before VGG.
    """
    step = ops.cast(step, "int32")
    start = ops.stack([0, step % scale, step // scale % scale, 0])
    return [ops.slice(picture, start, (ops.shape(picture)[0], height - scale, width - scale, channels))
            for picture in pictures for _, height, width, channels in [picture.shape]]
