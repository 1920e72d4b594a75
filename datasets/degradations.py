"""How a low-resolution picture is made from a high-resolution one."""

import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from scipy import sparse

from superres.cubic import cubic
from superres.datasets.color import luma
from superres.datasets.pictures import to_float, to_uint8
from superres.errors import InputError, check_choice

if TYPE_CHECKING:
    from superres.datasets.catalogue import Example  # which imports this module

Degradation = Literal["bicubic", "realworld", "realworld-fresh"]
Triple = tuple[str, np.ndarray, np.ndarray]
"""(name, LR, HR) of a picture, (H, W, C) and (sH, sW, C) uint8."""


def mirror(index: np.ndarray, size: int) -> np.ndarray:
    """Indices beyond an axis of `size` pixels, continued symmetrically, however far."""
    index = index % (2 * size)
    return np.where(index < size, index, 2 * size - 1 - index)


@lru_cache(maxsize=256)
def resize_matrix(size: int, scale: float) -> sparse.csr_array:
    """The sparse matrix (round up(size * scale), size) of MATLAB's bicubic imresize.

    The kernel is widened by 1 / scale when shrinking (antialiasing), edges are
    symmetric and every row sums to one.
    """
    out = int(np.ceil(size * scale - 1e-9))
    stretch = min(scale, 1.0)
    centre = (np.arange(out) + 0.5) / scale - 0.5
    taps = int(np.ceil(4 / stretch)) + 2
    index = np.floor(centre - taps / 2).astype(int)[:, None] + 1 + np.arange(taps)
    weights = cubic(stretch * (centre[:, None] - index))
    weights /= weights.sum(axis=1, keepdims=True)
    column = mirror(index, size)
    row = np.broadcast_to(np.arange(out)[:, None], column.shape)
    matrix = sparse.coo_array((weights.ravel(), (row.ravel(), column.ravel())), shape=(out, size))
    return matrix.tocsr()


def imresize(picture: np.ndarray, scale: float | tuple[float, float]) -> np.ndarray:
    """Resize (H, W, C) as MATLAB's ``imresize(picture, scale)`` does (bicubic).

    On uint8 the result is bit-exact: rows first, then columns, each rounded to uint8.
    Floats are computed in float64, unrounded, and returned in their own type.

    Args:
        scale: The new size over the old; or a pair, of rows and of columns, the smaller of which
            is taken first.
    """
    rows, columns = scale if isinstance(scale, tuple) else (scale, scale)
    if columns < rows:
        return imresize(picture.transpose(1, 0, 2), (columns, rows)).transpose(1, 0, 2)
    picture = np.asarray(picture)
    # Half of an integer picture's values can lie on a tie; MATLAB rounds them up.
    quantise = (
        (lambda x: np.floor(np.clip(x, 0, 255) + 0.5)) if picture.dtype == np.uint8 else lambda x: x
    )
    height, width, channels = picture.shape
    x = picture.reshape(height, -1).astype("float64")
    x = quantise(resize_matrix(height, rows) @ x).reshape(-1, width, channels)
    x = x.transpose(1, 0, 2).reshape(width, -1)
    x = quantise(resize_matrix(width, columns) @ x).reshape(-1, x.shape[1] // channels, channels)
    return np.ascontiguousarray(x.transpose(1, 0, 2).astype(picture.dtype))


def imresize_clipped(planes: np.ndarray, scale: float | tuple[float, float]) -> np.ndarray:
    """`imresize` of uint8 or of floats in [0, 1], which stay there as uint8 stays in its range."""
    result = imresize(planes, scale)
    return result if result.dtype == np.uint8 else result.clip(0, 1)


def mod_crop(picture: np.ndarray, scale: int) -> np.ndarray:
    """Cut off the last rows and columns until both sizes divide by `scale`."""
    height, width = picture.shape[:2]
    return picture[: height - height % scale, : width - width % scale]


def random_kernel(rng: np.random.Generator, size: int = 11, scale: int = 2,
                  noise: float = 0.25) -> np.ndarray:
    """A random anisotropic blur kernel of DIV2KRK, (size, size) float64, sum 1.

    Its centre of mass lies where `blur_downsample` needs it for LR and HR to be
    aligned to a fraction of a hundredth of a pixel.

    Source: Bell-Kligler et al., "Blind Super-Resolution Kernel Estimation using an
    Internal-GAN", NeurIPS 2019, section 5.1: variances U(0.6, 5), angle U(-pi, pi),
    multiplicative noise U(-0.25, 0.25).
    """
    variances = rng.uniform(0.6, 5, 2)
    theta = rng.uniform(-np.pi, np.pi)
    weights = 1 + rng.uniform(-noise, noise, (size, size))
    rotation = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    precision = rotation @ np.diag(1 / variances) @ rotation.T
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), axis=-1)
    target = size // 2 + 0.5 * (scale - size % 2)

    # Noise and the cut at the border move the centre of mass: move the Gaussian back,
    # which is exact where resampling a finished kernel would blur it.
    mean = np.full(2, float(target))
    for _ in range(20):
        offset = grid - mean
        kernel = np.exp(-0.5 * np.einsum("yxi,ij,yxj->yx", offset, precision, offset)) * weights
        kernel /= kernel.sum()
        error = target - np.einsum("yx,yxi->i", kernel, grid)
        if np.abs(error).max() < 1e-6:
            break
        mean += error
    return kernel


def blur_downsample(picture: np.ndarray, kernel: np.ndarray, steps: int = 1, pad: bool = True) -> np.ndarray:
    """Correlate with `kernel` and keep every second pixel, `steps` times: x2, x4, x8.

    Args:
        picture: (H, W, C) float, H and W multiples of ``2 ** steps``.
        kernel: (k, k) with its centre of mass at k // 2 + 0.5, as `random_kernel` makes.
        steps: How many times the x2 step is done.
        pad: Continue the picture symmetrically beyond its edges. Without it, the
            picture must bring `margin` pixels of context on every side.

    Source: DIV2KRK, where the x4 pictures are the x2 step done twice.
    """
    if pad:
        around = margin(kernel.shape[0], steps)
        picture = np.pad(picture, ((around, around), (around, around), (0, 0)), "symmetric")
    for _ in range(steps):
        windows = np.lib.stride_tricks.sliding_window_view(picture, kernel.shape, axis=(0, 1))[::2, ::2]
        rows = max(1, 2**21 // windows[0].size)  # at once: each window is a copy of its pixels
        weights = kernel.astype(picture.dtype)
        picture = np.concatenate([np.tensordot(windows[top : top + rows], weights, axes=2)
                                  for top in range(0, len(windows), rows)])
    return picture


def margin(size: int, steps: int) -> int:
    """Pixels of context on every side that `steps` x2 steps need, for an odd kernel size."""
    return (2**steps - 1) * (size // 2)


def realworld(picture: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
    """Degrade a whole uint8 picture with one random kernel; returns (H / s, W / s, C) uint8."""
    steps = int(np.log2(scale))
    floats = picture.astype("float64") / 255
    return to_uint8(blur_downsample(floats, random_kernel(rng), steps))


def check_pair(lr: np.ndarray, hr: np.ndarray, scale: int, name: str) -> None:
    """Raise InputError unless `lr` is the picture `hr` at 1 / scale of its size, rounded down."""
    expected = tuple(size // scale for size in hr.shape[:2])
    if lr.shape[:2] != expected:
        raise InputError(
            f"{name}: LR of {lr.shape[1]} x {lr.shape[0]} does not belong to HR of "
            f"{hr.shape[1]} x {hr.shape[0]} at x{scale} (expected {expected[1]} x {expected[0]})"
        )
    small = luma(to_float(imresize(mod_crop(hr, scale), 1 / scale))).ravel()
    with np.errstate(invalid="ignore"):
        likeness = np.corrcoef(small, luma(to_float(lr)).ravel())[0, 1]
    # Pictures without contrast have no correlation to speak of: let them pass.
    if likeness < 0.5:
        raise InputError(f"{name}: LR and HR are different pictures (correlation {likeness:.2f})")


def degraded(examples: "Iterable[Example]", scale: int,
             degradation: Degradation) -> Iterator[Triple]:
    """Yield (name, lr, hr) of every example; `realworld` kernels are the same at every call.

    Where one picture of a given pair is grey and the other RGB, both become RGB. Pictures that
    have nothing within the border of `scale` pixels, which measures leave out, are left out
    with a warning.

    Raises:
        InputError: if a given LR is not its HR's or is to be degraded, or no picture is left.
    """
    check_choice("degradation", degradation, *get_args(Degradation))
    small, found = [], False
    for number, example in enumerate(examples):
        hr = mod_crop(example.hr, scale)
        if min(hr.shape[:2]) <= 2 * scale:
            small.append(example.name)
            continue
        if example.paired:
            if degradation != "bicubic":
                raise InputError(f"degradation: {example.name} comes with an LR of its own")
            lr = example.lr
            check_pair(lr, hr, scale, example.name)
            if lr.shape[-1] != hr.shape[-1]:
                lr, hr = (np.repeat(x, 3 // x.shape[-1], -1) for x in (lr, hr))
        elif degradation == "bicubic":
            lr = imresize(hr, 1 / scale)
        else:
            lr = realworld(hr, scale, np.random.default_rng((1, number)))
        found = True
        yield example.name, lr, hr
    if small and not found:
        raise InputError(f"{small[0]}: too small, no picture has more than {2 * scale} pixels on both sides, "
                         f"which are all border at x{scale} ({len(small)} smaller pictures found)")
    if small:
        warnings.warn(f"left out, at most {2 * scale} pixels on a side are all border at x{scale}: "
                      + ", ".join(small), stacklevel=2)
