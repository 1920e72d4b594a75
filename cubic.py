"""The kernel of bicubic interpolation."""

import numpy as np


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic interpolation kernel with a = -0.5, the one of MATLAB's imresize, in numpy."""
    x = np.abs(x)
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, inner, np.where(x < 2, outer, 0.0))
