"""Our imresize against MATLAB's own files, and its speed against Pillow's bicubic.

    python benchmarks/imresize.py HR_FOLDER LR_FOLDER

LR_FOLDER holds X2/, X4/ and X8/ with pictures of the same names that MATLAB's
`imresize(hr, 1 / scale)` made of the HR pictures, cropped to a multiple of the scale. The
goal is not one pixel of difference. Pillow is timed on the same resize, which it computes
in 8-bit integers; its kernel has the same a = -0.5, but not the same rounding.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
from pathlib import Path

import numpy as np
from common import interleaved, save, table
from PIL import Image

from superres.datasets.degradations import imresize, mod_crop
from superres.datasets.pictures import list_pictures, read_picture
from superres.errors import InputError


def main(hr_folder: str, lr_folder: str, /, rounds: int = 5):
    """Our imresize against MATLAB's own files, and its speed against Pillow's bicubic.

    Args:
        hr_folder: Pictures.
        lr_folder: X2/, X4/, X8/ with MATLAB's LR pictures of the same names.
        rounds: How often each is timed.
    """
    pictures = [(path.stem, read_picture(path).pixels) for path in list_pictures(hr_folder)]
    rows = []
    for scale in (2, 4, 8):
        folder = Path(lr_folder) / f"X{scale}"
        matlab = {path.stem: read_picture(path).pixels for path in list_pictures(folder)}
        if missing := {name for name, _ in pictures} ^ set(matlab):
            raise InputError(f"{folder}: has not the same pictures as {hr_folder}, such as {min(missing)}")
        cropped = {name: mod_crop(hr, scale) for name, hr in pictures}
        engines = {"ours": lambda hr, scale=scale: imresize(hr, 1 / scale), "pillow": pillow(scale)}
        seconds = interleaved(
            {name: lambda f=f, all_=cropped: [f(hr) for hr in all_.values()] for name, f in engines.items()},
            rounds,
        )
        megapixels = sum(hr.shape[0] * hr.shape[1] for hr in cropped.values()) / 1e6
        for engine, resize in engines.items():
            made = {name: resize(hr) for name, hr in cropped.items()}
            unequal = {name: (made[name] != lr).any(-1) for name, lr in matlab.items()}
            rows.append({
                "scale": scale, "engine": engine, "pictures": len(matlab),
                "pixels": sum(map(np.size, unequal.values())),
                "different_pixels": int(sum(map(np.sum, unequal.values()))),
                "largest_difference": max(
                    int(np.abs(made[name].astype(int) - lr).max()) for name, lr in matlab.items()
                ),
                "hr_mpixel_per_second": megapixels / seconds[engine]["median"],
            })
    print(table(rows, {"scale": "d", "engine": "", "pictures": "d", "pixels": "d", "different_pixels": "d",
                       "largest_difference": "d", "hr_mpixel_per_second": ".1f"}))
    save("imresize", rows, goal="ours: no different pixel")


def pillow(scale):
    """Function that shrinks an 8-bit picture with Pillow."""

    def shrink(hr):
        size = (hr.shape[1] // scale, hr.shape[0] // scale)
        small = np.asarray(Image.fromarray(hr.squeeze()).resize(size, Image.Resampling.BICUBIC))
        return small.reshape(size[1], size[0], -1)

    return shrink


if __name__ == "__main__":
    command(main)
