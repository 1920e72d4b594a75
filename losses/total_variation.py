"""Total variation."""

from keras import ops

from superres.layers.base import Tensor


def total_variation(picture: Tensor) -> Tensor:
    """Mean absolute difference between neighbouring pixels: (B, H, W, C) -> (B,).

    Rows and columns are averaged each by themselves, then added. A picture of one row or
    column has no neighbours that way: H and W must be at least 2.

    Source: Rudin, Osher and Fatemi, 1992, in its anisotropic form.
    """
    rows = ops.abs(picture[:, 1:] - picture[:, :-1])
    columns = ops.abs(picture[:, :, 1:] - picture[:, :, :-1])
    return ops.mean(rows, axis=(1, 2, 3)) + ops.mean(columns, axis=(1, 2, 3))
