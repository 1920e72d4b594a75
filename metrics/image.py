"""Picture quality as the super-resolution literature measures it."""

import numpy as np
from skimage.metrics import structural_similarity

from datasets.color import luma
from datasets.degradations import imresize
from datasets.pictures import to_uint8


def psnr(reference, picture, border=0):
    """Peak signal-to-noise ratio in dB of one picture, (H, W, C) in [0, 1] or uint8.

    The squared error is averaged over pixels and channels together, in float64: in
    uint8 the difference wraps around and reads 28 dB for two unrelated pictures.
    Equal pictures give infinity.

    Args:
        border: Pixels left out on every side.
    """
    reference, picture = _pair(reference, picture, border)
    error = np.mean(np.square(reference - picture))
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def ssim(reference, picture, border=0):
    """Structural similarity of one picture, (H, W, C) in [0, 1] or uint8.

    Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, population
    statistics, averaged over the windows that fit inside the picture. Pictures smaller
    than the window are continued symmetrically up to its size.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to
    Structural Similarity", 2004.
    """
    reference, picture = _pair(reference, picture, border)
    missing = [(0, max(0, 11 - size)) for size in reference.shape[:2]]
    reference, picture = (np.pad(x, (*missing, (0, 0)), "symmetric") for x in (reference, picture))
    return float(
        structural_similarity(
            reference, picture, data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
    )


def lr_psnr(hr, sr, scale):
    """PSNR in dB between SR and HR, each rounded to 8 bits and shrunk by MATLAB's bicubic.

    How faithful SR is to the picture it was made from; infinite if exactly.

    Source: Lugmayr et al., "NTIRE 2021 Learning the Super-Resolution Space Challenge".
    """
    return psnr(*(imresize(to_uint8(picture), 1 / scale) for picture in (hr, sr)))


def quality(hr, sr, scale):
    """All of the above for one 8-bit pair, as `evaluate.py` reports them."""
    y_hr, y_sr = (luma(_to_double(picture)) for picture in (hr, sr))
    # A picture hardly larger than its border is measured whole.
    border = scale if min(hr.shape[:2]) > 4 * scale else 0
    return {
        "psnr_y": psnr(y_hr, y_sr, border),
        "ssim_y": ssim(y_hr, y_sr, border),
        "psnr_rgb": psnr(hr, sr, border),
        "lr_psnr": lr_psnr(hr, sr, scale),
    }


def _to_double(picture):
    picture = np.asarray(picture)
    scale = 255 if picture.dtype == np.uint8 else 1
    return picture.astype("float64") / scale


def _pair(reference, picture, border):
    if np.shape(reference) != np.shape(picture):
        raise ValueError(f"pictures differ in shape: {np.shape(reference)} and {np.shape(picture)}")
    inside = slice(border, -border or None)
    return tuple(_to_double(x)[inside, inside] for x in (reference, picture))
