"""Picture quality as the super-resolution literature measures it."""

import numpy as np
from scipy.ndimage import correlate1d, uniform_filter
from skimage.metrics import structural_similarity

from superres.datasets.color import luma
from superres.datasets.degradations import imresize
from superres.datasets.pictures import to_uint8


def psnr(reference: np.ndarray, picture: np.ndarray, border: int = 0) -> float:
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


def finite_psnr(reference: np.ndarray, picture: np.ndarray, border: int = 0) -> float:
    """`psnr`, but at most what 8 bits can tell: that of one value in the whole picture one level off.

    That is 10 log10(255^2 N) for N values, 97 dB for 256 x 256 grey. Means over pictures are
    taken of this: a single perfect picture, such as a flat one, would make them infinite.
    """
    values = np.size(_pair(reference, picture, border)[0])
    return min(psnr(reference, picture, border), float(10 * np.log10(255**2 * values)))


def ssim(reference: np.ndarray, picture: np.ndarray, border: int = 0) -> float:
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


def ms_ssim(reference: np.ndarray, picture: np.ndarray) -> float:
    """Multi-scale structural similarity of one picture, (H, W, C) in [0, 1] or uint8.

    Wang's five scales with a window of 11 need 161 pixels. This definition exists from
    7 x 7 on: a Gaussian window of 7 with sigma 1.5, or of 11 from 161 pixels on, as
    many of the five scales as leave the window room (three at 32 x 32), their exponents
    divided by their sum. K1, K2 and valid windows as in `ssim`, scales halved by the mean
    of 2 x 2; each channel by itself, then their mean. As `tf.image.ssim_multiscale` with
    that window and those exponents.

    Source: Wang, Simoncelli and Bovik, "Multiscale Structural Similarity for Image
    Quality Assessment", 2003.

    Raises:
        ValueError: for a picture below 7 x 7.
    """
    reference, picture = _pair(reference, picture, 0)
    smallest = min(reference.shape[:2])
    if smallest < 7:
        raise ValueError(f"multi-scale SSIM needs pictures of 7 x 7 pixels, not {reference.shape}")
    size = 11 if smallest >= 161 else 7
    scales = min(5, int(np.log2((smallest - 1) // (size - 1))) + 1)  # odd sizes are halved upwards
    exponents = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333][:scales])
    result = 1
    for number, exponent in enumerate(exponents / exponents.sum(), start=1):
        likeness, contrast = _structure(reference, picture, size)
        result = result * np.maximum(likeness if number == scales else contrast, 0) ** exponent
        reference, picture = _halved(reference), _halved(picture)
    return float(result.mean())


def _structure(x, y, size):
    """SSIM and its contrast-structure factor, averaged over the valid windows: (C,) each."""
    window = np.exp(-np.square(np.arange(size) - (size - 1) / 2) / (2 * 1.5**2))
    window /= window.sum()
    inside = slice(size // 2, -(size // 2))

    def blur(z):
        return correlate1d(correlate1d(z, window, 0), window, 1)[inside, inside]

    means = blur(x) * blur(y)
    squares = blur(x) ** 2 + blur(y) ** 2
    contrast = (2 * (blur(x * y) - means) + 0.03**2) / (blur(x * x + y * y) - squares + 0.03**2)
    likeness = contrast * (2 * means + 0.01**2) / (squares + 0.01**2)
    return likeness.mean((0, 1)), contrast.mean((0, 1))


def _halved(x):
    """Means of 2 x 2 pixels; an odd last row or column is continued."""
    x = np.pad(x, [(0, size % 2) for size in x.shape[:2]] + [(0, 0)], "symmetric")
    return x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).mean((1, 3))


def consistency(lr: np.ndarray, sr: np.ndarray) -> float:
    """Mean squared error between LR and SR shrunk to it by MATLAB's bicubic, both in [0, 1].

    Source: Saharia et al., "Image Super-Resolution via Iterative Refinement", 2021,
    table 2.
    """
    lr, sr = _to_double(lr), _to_double(sr)
    return float(np.mean(np.square(imresize(sr, lr.shape[0] / sr.shape[0]) - lr)))


def diversity(samples: np.ndarray) -> float:
    """How much samples of one picture differ, (K, H, W, C): mean |a - b| over pairs, of 255 levels.

    One sample alone gives zero.
    """
    levels = np.sort(_to_double(samples) * 255, axis=0)
    count = len(levels)
    # Sorted, each value is subtracted from the larger ones and has the smaller subtracted.
    weights = 2 * np.arange(count) - count + 1
    return float(np.tensordot(weights, levels, 1).mean() / max(1, count * (count - 1) / 2))


def lr_psnr(hr: np.ndarray, sr: np.ndarray, scale: int) -> float:
    """PSNR in dB between SR and HR, each rounded to 8 bits and shrunk by MATLAB's bicubic.

    How faithful SR is to the picture it was made from; infinite if to the last bit.

    Source: Lugmayr et al., "NTIRE 2021 Learning the Super-Resolution Space Challenge".
    """
    return psnr(*_shrunk(hr, sr, scale))


def _shrunk(hr, sr, scale):
    return [imresize(to_uint8(picture), 1 / scale) for picture in (hr, sr)]


def colour_error(hr: np.ndarray, sr: np.ndarray) -> float:
    """Mean |HR - SR| in smooth regions, after a blur, of 255 levels: what the eye sees as another colour.

    Smooth is the quarter of the pixels where HR's luminance varies least within 9 x 9. The
    blur, a mean over 9 x 9, leaves texture out.
    """
    hr, sr = _to_double(hr), _to_double(sr)
    y = luma(hr)[..., 0]
    variance = uniform_filter(y**2, 9) - uniform_filter(y, 9) ** 2
    difference = np.abs(uniform_filter(hr - sr, (9, 9, 0))).mean(-1)
    return float(255 * difference[variance <= np.quantile(variance, 0.25)].mean())


def quality(hr: np.ndarray, sr: np.ndarray, scale: int) -> dict[str, float]:
    """PSNR, SSIM, LR-PSNR and colour error of one 8-bit pair, as `evaluate.py` reports them.

    All are finite: see `finite_psnr`.
    """
    y_hr, y_sr = (luma(_to_double(picture)) for picture in (hr, sr))
    # A picture that is all border is measured whole.
    border = scale if min(hr.shape[:2]) > 2 * scale else 0
    return {
        "psnr_y": finite_psnr(y_hr, y_sr, border),
        "ssim_y": ssim(y_hr, y_sr, border),
        "psnr_rgb": finite_psnr(hr, sr, border),
        "lr_psnr": finite_psnr(*_shrunk(hr, sr, scale)),
        "colour_error": colour_error(hr, sr),
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
