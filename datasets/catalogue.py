"""Where pictures come from: one catalogue of names."""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.dead_leaves import dead_leaves
from datasets.errors import InputError
from datasets.pictures import list_pictures, read_picture

# The photographs that scikit-image installs (it can download more; these need nothing).
PHOTOS = {
    "train": ("rocket.jpg", "motorcycle_left.png", "ihc.png", "hubble_deep_field.jpg",
              "retina.jpg", "grass.png", "gravel.png", "brick.png", "moon.png"),
    "test": ("astronaut.png", "chelsea.png", "coffee.png", "camera.png"),
}
NAMES = "photos, dead_leaves, div2k/CONFIG (for example div2k/bicubic_x2), or a folder of pictures"


class Example(NamedTuple):
    """One picture.

    Attributes:
        name: What to call it: the file's name without its suffix.
        hr: (H, W, 3) RGB or (H, W, 1) grey, uint8.
        lr: Its low-resolution version where the source brings one, else None.
    """

    name: str
    hr: np.ndarray
    lr: np.ndarray | None = None


def load(source, split="train", limit=None) -> Iterator[Example]:
    """Yield the pictures of a source, decoded one at a time, in a fixed order.

    Args:
        source: A folder (all pictures below it; with subfolders ``hr`` and ``lr``,
            pairs of files with the same name), or a name of the catalogue: `photos`
            (real photographs installed with scikit-image), `dead_leaves` (drawn, for
            training with no data at all), `div2k/bicubic_x2` and every other DIV2K
            configuration of TensorFlow Datasets.
        split: `"train"` or `"test"`. A folder has no splits and ignores it.
        limit: Stop after so many pictures.

    Files that cannot be read are reported with a warning and left out.

    Raises:
        InputError: if the source is unknown, missing, empty, or cannot be downloaded.
    """
    source = str(source)
    if source == "photos":
        examples = _photos(split)
    elif source == "dead_leaves":
        seeds = range(60) if split == "train" else range(1000, 1006)
        examples = (Example(f"dead_leaves_{seed}", dead_leaves(seed)) for seed in seeds)
    elif source.split("/")[0] == "div2k" and not Path(source).is_dir():
        examples = _div2k(source, split)
    elif Path(source).is_dir():
        examples = _folder(Path(source))
    else:
        raise InputError(f"{source}: neither a folder nor a known name; expected {NAMES}")
    for number, example in enumerate(examples):
        if number == limit:
            return
        yield example


def _photos(split):
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    for name in PHOTOS[split]:
        yield Example(name.split(".")[0], read_picture(folder / name).pixels)


def _folder(folder):
    paired = (folder / "hr").is_dir() and (folder / "lr").is_dir()
    paths = list_pictures(folder / "hr" if paired else folder)
    low = {_stem(path): path for path in list_pictures(folder / "lr")} if paired else {}
    if paired and (missing := sorted({_stem(path) for path in paths} ^ set(low))):
        raise InputError(
            f"{folder}: {len(missing)} pictures stand in only one of hr/ and lr/, first: {missing[0]}"
        )
    found = 0
    for path in paths:
        try:
            lr = read_picture(low[_stem(path)]).pixels if paired else None
            yield Example(path.stem, read_picture(path).pixels, lr)
            found += 1
        except InputError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    if not found:
        raise InputError(f"{folder}: none of the {len(paths)} picture files can be read")


def _stem(path):
    """`0001x2.png` and `0001.png` are the same picture."""
    return re.sub(r"x\d$", "", path.stem)


def _div2k(name, split):
    import tensorflow_datasets as tfds

    config = name.partition("/")[2] or "bicubic_x2"
    known = sorted(tfds.builder_cls("div2k").builder_configs)
    if config not in known:
        raise InputError(f"{name}: DIV2K has no such configuration; expected one of {', '.join(known)}")
    try:
        builder = tfds.builder(f"div2k/{config}")
        builder.download_and_prepare()
    except Exception as error:  # the downloader raises whatever its transport raises
        urls = tfds.builder_cls("div2k").builder_configs[config].download_urls
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{name}: download failed ({type(error).__name__}: {reason}); fetch {', '.join(urls.values())} "
            f"by hand, unpack them and give a folder with subfolders hr/ and lr/ instead"
        ) from None
    part = "train" if split == "train" else "validation"
    for number, example in enumerate(tfds.as_numpy(builder.as_dataset(split=part)), start=1):
        yield Example(f"{part}_{number:04d}", example["hr"], example["lr"])
