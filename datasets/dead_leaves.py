"""Dead-leaves pictures: overlapping shapes with the scale statistics of photographs."""

import numpy as np
from PIL import Image, ImageDraw

from superres.datasets.degradations import imresize
from superres.datasets.pictures import to_uint8


def dead_leaves(seed: int, size: int = 256, leaves: int = 1200) -> np.ndarray:
    """Draw one picture, (size, size, 3) uint8, the same for the same seed.

    Ellipses and polygons with radii drawn from r^-3, each with a colour gradient and
    some with stripes, fall onto one another at random until hardly any ground is left.
    Edges are antialiased by drawing at twice the size.

    Source: Lee, Mumford, Huang, "Occlusion Models for Natural Images", IJCV 2001.
    """
    rng = np.random.default_rng(seed)
    wide = 2 * size
    ramp = np.linspace(-1, 1, wide)
    canvas = np.full((wide, wide, 3), 0.5)
    small, large = 10.0, wide / 2
    radii = 1 / np.sqrt(rng.uniform(1 / large**2, 1 / small**2, leaves))
    for radius in radii:
        x, y = rng.uniform(0, wide, 2)
        corners = int(rng.integers(3, 9))
        if corners > 6:  # round
            corners = 48
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners)) if corners < 48 else (
            np.linspace(0, 2 * np.pi, corners, endpoint=False))
        stretch = rng.uniform(0.4, 1.0)
        turn = rng.uniform(0, np.pi)
        px, py = radius * np.cos(angles), radius * stretch * np.sin(angles)
        points = np.stack([x + px * np.cos(turn) - py * np.sin(turn),
                           y + px * np.sin(turn) + py * np.cos(turn)], -1)
        left, top = np.clip(np.floor(points.min(0)).astype(int), 0, wide)
        right, bottom = np.clip(np.ceil(points.max(0)).astype(int) + 1, 0, wide)
        if right <= left or bottom <= top:
            continue
        mask = Image.new("1", (int(right - left), int(bottom - top)))
        ImageDraw.Draw(mask).polygon([tuple(p) for p in points - (left, top)], fill=1)
        colour = rng.uniform(0, 1) + rng.normal(0, 0.15, 3)
        slope = rng.normal(0, 0.15, (2, 3))
        shade = (colour + ramp[top:bottom, None, None] * slope[0]
                 + ramp[None, left:right, None] * slope[1])
        if rng.random() < 0.5:  # stripes
            fx, fy = rng.normal(0, 0.5, 2)
            wave = np.sin(fx * np.arange(left, right) + fy * np.arange(top, bottom)[:, None])
            shade = shade + rng.uniform(0, 0.15) * wave[..., None]
        part = canvas[top:bottom, left:right]
        part[:] = np.where(np.asarray(mask)[..., None], shade, part)
    return imresize(to_uint8(canvas), 0.5)
