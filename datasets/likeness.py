"""Finding pictures that are measured on and were trained on."""

import warnings

import numpy as np
from PIL import Image

from superres.datasets.color import luma
from superres.datasets.pictures import to_float, to_uint8

SIZE = 16
# Of 1395 photographs of T91, BSDS and others, no two different ones reach 0.94; of copies shrunk
# to a quarter of their size or enlarged and compressed to JPEG, 1 in 700 stays below 0.97.
ALIKE = 0.97


def thumbprint(picture):
    """The luminance of (H, W, 1|3) uint8 on 16 x 16 cells, without its mean, of length one: (256,).

    Its product with another picture's is their correlation. A flat picture has zeros, and
    is like nothing.
    """
    image = Image.fromarray(to_uint8(luma(to_float(picture)))[..., 0])
    cells = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), "float64").ravel()
    cells -= cells.mean()
    return cells / (np.linalg.norm(cells) or 1)


def likenesses(measured, known):
    """Which pictures show the same as a known one, whatever their size and compression.

    A picture that was turned or flipped is not found, nor is one cut out of a known one.

    Args:
        measured, known: Iterables of (name, (H, W, 1|3) uint8).

    Returns:
        List of (name, name of the known one, correlation), at least `ALIKE`.
    """
    measured = [(name, thumbprint(picture)) for name, picture in measured]
    found = []
    for other, picture in known:
        print_of_other = thumbprint(picture)
        found += [(name, other, float(one @ print_of_other)) for name, one in measured
                  if one @ print_of_other >= ALIKE]
    return found


def warn_of_likenesses(measured, known):
    """One line of warning for each of the `likenesses`."""
    for name, other, correlation in likenesses(measured, known):
        warnings.warn(f"{name}, which is measured on, looks like {other}, which is trained on "
                      f"(correlation {correlation:.3f})", stacklevel=2)
