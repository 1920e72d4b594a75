"""Drawn licence plates: text, the kind of picture in which one wrong stroke can be read."""

from functools import lru_cache
from pathlib import Path
from string import ascii_uppercase, digits

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from superres.datasets.degradations import imresize

# Of the fonts that matplotlib installs, those that can still be read in a 32 x 32 thumbnail.
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif-Bold")
FINE = 4  # drawn so many times larger, then shrunk, for smooth edges


def plate(seed: int, size: int = 64) -> np.ndarray:
    """Draw one plate, (size, size, 3) uint8, black on white, the same for the same seed.

    A frame around two lines, three letters above three digits, in one of five fonts; each
    plate at 92 to 102 % size, moved by up to 2 % of the picture and turned by up to 3
    degrees, always with some white around it.
    """
    rng = np.random.default_rng(seed)
    lines = ("".join(rng.choice(list(ascii_uppercase), 3)), "".join(rng.choice(list(digits), 3)))
    font = FONTS[rng.integers(len(FONTS))]
    wide = size * FINE
    image = Image.new("L", (wide, wide), 255)
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle([0.07 * wide, 0.07 * wide, 0.93 * wide, 0.93 * wide], 0.08 * wide,
                           outline=0, width=round(0.03 * wide))
    for text, middle in zip(lines, (0.32, 0.68), strict=True):
        fitted = _fitted(text, font, 0.70 * wide, 0.28 * wide)
        left, top, right, bottom = fitted.getbbox(text)
        draw.text(((wide - left - right) / 2, middle * wide - (top + bottom) / 2), text, 0, fitted)
    scale, turn = rng.uniform(0.92, 1.02), np.deg2rad(rng.uniform(-3, 3))
    shift = rng.uniform(-0.02, 0.02, 2) * wide
    # Pillow asks for the way back: from a place in the result to one in the drawing.
    back = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) / scale
    offset = wide / 2 - back @ (wide / 2 + shift)
    image = image.transform(image.size, Image.Transform.AFFINE, np.c_[back, offset].ravel(),
                            Image.Resampling.BICUBIC, fillcolor=255)
    return imresize(np.repeat(np.asarray(image)[..., None], 3, -1), 1 / FINE)


def _fitted(text, font, width, height):
    """The font at the largest size at which the text's ink fits into width x height."""
    left, top, right, bottom = _font(font, 100).getbbox(text)
    return _font(font, int(100 * min(width / (right - left), height / (bottom - top))))


@lru_cache(maxsize=256)
def _font(name, size):
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)
