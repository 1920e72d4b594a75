"""RGB and YCbCr as the super-resolution literature uses them: ITU-R BT.601, 16..235."""

import numpy as np

# MATLAB's rgb2ycbcr, for RGB and YCbCr both in [0, 1].
_MATRIX = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]
) / 255
_OFFSET = np.array([16.0, 128.0, 128.0]) / 255
_INVERSE = np.linalg.inv(_MATRIX)


def rgb_to_ycbcr(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) RGB in [0, 1] -> YCbCr, Y in [16, 235] / 255."""
    rgb = np.asarray(rgb)
    return rgb @ _MATRIX.T.astype(rgb.dtype) + _OFFSET.astype(rgb.dtype)


def ycbcr_to_rgb(ycbcr: np.ndarray) -> np.ndarray:
    """Inverse of `rgb_to_ycbcr`; the result is not clipped."""
    ycbcr = np.asarray(ycbcr)
    return (ycbcr - _OFFSET.astype(ycbcr.dtype)) @ _INVERSE.T.astype(ycbcr.dtype)


def grey_to_y(grey: np.ndarray) -> np.ndarray:
    """Grey in [0, 1] -> Y in [16, 235] / 255: Y of the same picture in RGB."""
    return (16 + 219 * np.asarray(grey)) / 255


def y_to_grey(y: np.ndarray) -> np.ndarray:
    """Inverse of `grey_to_y`; the result is not clipped."""
    return (255 * np.asarray(y) - 16) / 219


def luma(picture: np.ndarray) -> np.ndarray:
    """(..., C) in [0, 1] -> (..., 1): Y of an RGB picture, a grey picture as it is.

    A grey picture keeps its own range: turning it into RGB first would squeeze it to
    16..235 and raise its PSNR.
    """
    picture = np.asarray(picture)
    if picture.shape[-1] == 1:
        return picture
    row = _MATRIX[:1].T.astype(picture.dtype)
    return picture @ row + picture.dtype.type(_OFFSET[0])
