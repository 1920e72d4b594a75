"""Where pictures come from: one catalogue of names."""

import importlib
import itertools
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import numpy as np

from superres.datasets.corners import CORNERS, in_corner, scanned_digits
from superres.datasets.dead_leaves import dead_leaves
from superres.datasets.degradations import imresize
from superres.datasets.pictures import fill_invisible, list_pictures, read_picture
from superres.datasets.plates import plate
from superres.errors import InputError, check_choice

if TYPE_CHECKING:
    from superres.datasets.shards import Stored  # which imports this module

# The photographs that scikit-image installs (it can download more; these need nothing).
PHOTOS = {
    "train": ("rocket.jpg", "motorcycle_left.png", "ihc.png", "hubble_deep_field.jpg",
              "retina.jpg", "grass.png", "gravel.png", "brick.png", "moon.png"),
    "test": ("astronaut.png", "chelsea.png", "coffee.png", "camera.png"),
}
# Where TensorFlow Datasets looks for files before it downloads them; it checks their contents.
BY_HAND = "TensorFlow Datasets' downloads/manual (~/tensorflow_datasets/downloads/manual)"
# Pictures in TensorFlow Datasets: the split to test with, and what to do where the download fails.
TFDS = {
    "celeb_a": ("test", (
        "Google Drive often refuses these files: try another day, or put img_align_celeba.zip, "
        "list_eval_partition.txt, list_attr_celeba.txt, list_landmarks_align_celeba.txt and "
        f"identity_CelebA.txt into {BY_HAND}, or give a folder of the aligned pictures instead")),
    "lsun/bedroom": ("validation", (
        "it needs the package tensorflow_io, which supports old versions of TensorFlow only, and a download "
        "of 46 GB: prepare it elsewhere and copy ~/tensorflow_datasets/lsun, or give a folder of pictures "
        "instead")),
    "cars196": ("test", (
        "its addresses at Stanford are dead: put cars_train.tgz, cars_test.tgz, car_devkit.tgz and "
        f"cars_test_annos_withlabels.mat into {BY_HAND}, or give a folder of pictures instead")),
    "svhn_cropped": ("test", (
        "fetch train_32x32.mat, test_32x32.mat and extra_32x32.mat from "
        f"http://ufldl.stanford.edu/housenumbers/ and put them into {BY_HAND}")),
}
NAMES = (f"photos, dead_leaves, plates, corners, corners/mnist, {', '.join(TFDS)}, "
         "div2k/CONFIG (for example div2k/bicubic_x2), a folder of pictures, or shards (FOLDER/*.tfrecord)")


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

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of HR."""
        return self.hr.shape[:2]

    @property
    def paired(self) -> bool:
        """Whether it brings its own LR."""
        return self.lr is not None

    def read(self) -> Self:
        """Itself, as `datasets.shards.Stored` has it."""
        return self


def load(source: Path | str, split: Literal["train", "test"] = "train", limit: int | None = None,
         held_out: int | None = None) -> Iterator[Example]:
    """Yield the pictures of a source, decoded one at a time, in a fixed order.

    Args:
        source: A folder (all pictures below it; with subfolders ``hr`` and ``lr``,
            pairs of files with the same name), a file of `datasets.shards` or a pattern of such,
            or else a name of the catalogue.
            Installed or drawn: `photos` (real photographs of scikit-image),
            `dead_leaves` (for training with no data at all), `plates` (licence plates,
            64 x 64 RGB), `corners` (a digit of scikit-learn's, 8 x 8 grey, as LR, and as
            HR the same in either corner of 16 x 16 black: both when training, a random
            one when testing). Through TensorFlow Datasets: `corners/mnist` (14 x 14 in
            28 x 28), `celeb_a`, `lsun/bedroom`, `cars196`, `svhn_cropped`, and
            `div2k/bicubic_x2` and every other DIV2K configuration.
        split: `"train"` or `"test"`. A folder has no splits of its own: see `held_out`.
        limit: Stop after so many pictures.
        held_out: Of a folder or of shards, one picture in so many is the test split, the first one and
            so on; None: both splits are the whole.

    Files that cannot be read are reported with a warning and left out.

    Raises:
        InputError: if the source is unknown, missing, empty, or cannot be downloaded.
    """
    check_choice("split", split, "train", "test")
    source = str(source)
    if Path(source).is_dir():
        examples = _folder(Path(source), split, held_out)
    elif is_shards(source):
        examples = (picture.read() for picture in as_needed([source], split, held_out))
    elif source == "photos":
        examples = _photos(split)
    elif source == "dead_leaves":
        seeds = range(60) if split == "train" else range(1000, 1006)
        examples = (Example(f"dead_leaves_{seed}", dead_leaves(seed)) for seed in seeds)
    elif source == "plates":
        seeds = range(2000) if split == "train" else range(2000, 2200)
        examples = (Example(f"plate_{seed}", plate(seed)) for seed in seeds)
    elif source == "corners":
        examples = _corners(scanned_digits(split), split)
    elif source == "corners/mnist":
        examples = _corners(_mnist_digits(split), split)
    elif source in TFDS:
        examples = _tfds_pictures(source, split)
    elif source.split("/")[0] == "div2k":
        examples = _div2k(source, split)
    else:
        raise InputError(f"{source}: neither a folder nor a known name; expected {NAMES}")
    try:
        yield from itertools.islice(examples, limit)
    except ModuleNotFoundError as error:
        raise InputError(f"{source}: needs the package {error.name} (the extra `train`)") from None


def as_needed(sources: Iterable[Path | str], split: Literal["train", "test"] = "train",
              held_out: int | None = None) -> "Iterator[Example | Stored]":
    """Yield the pictures of all sources as `load` does, but those of shards unread, after all others.

    Several shards are one source, whose order is that of the names: how the pictures are spread over
    them changes nothing. Tiles of one picture are all in the same split.
    """
    sources = list(sources)
    for source in sources:
        if not is_shards(source):
            yield from load(source, split, held_out=held_out)
    if shards := [source for source in sources if is_shards(source)]:
        from superres.datasets.shards import stored  # which imports this module

        numbers = {}
        for picture in stored(shards):
            number = numbers.setdefault(picture.picture, len(numbers))
            if not held_out or (number % held_out == 0) == (split == "test"):
                yield picture


def is_shards(source: Path | str) -> bool:
    """Whether a source is shards, by its suffix."""
    return str(source).endswith(".tfrecord") and not Path(source).is_dir()


def has_corners(source: Path | str) -> bool:
    """Whether a source's HR is a digit in a corner, of which LR does not tell which (see `load`)."""
    return str(source).split("/")[0] == "corners" and not Path(source).is_dir()


def _photos(split):
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    for name in PHOTOS[split]:
        yield Example(name.split(".")[0], read_picture(folder / name).pixels)


def _folder(folder, split, held_out):
    pairs = files_of(folder)
    if held_out:  # by the file's number: nothing is read of the other split
        pairs = [pair for number, pair in enumerate(pairs) if (number % held_out == 0) == (split == "test")]
        if not pairs:
            raise InputError(f"{folder}: one picture cannot be parted, one in {held_out} held out")
    found = 0
    for pair in pairs:
        try:
            yield read_pair(pair)
            found += 1
        except InputError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    if pairs and not found:
        raise InputError(f"{folder}: none of the {len(pairs)} picture files can be read")


def files_of(folder: Path) -> list[tuple[Path, Path | None]]:
    """(HR, LR or None) of every picture below a folder, LR where it has subfolders ``hr`` and ``lr``.

    LR lies in ``lr`` as its HR does in ``hr``. Where none does, it is called as HR alone is, with or without
    the scale behind it, as DIV2K's are: ``hr/DIV2K_train_HR/0001.png``, ``lr/X2/0001x2.png``.

    Raises:
        InputError: if there are none, one stands alone in ``hr`` or ``lr``, or two have one name.
    """
    if not ((folder / "hr").is_dir() and (folder / "lr").is_dir()):
        return [(path, None) for path in list_pictures(folder)]
    high, low = {}, {}
    for part, found in (("hr", high), ("lr", low)):
        for path in list_pictures(folder / part):
            name = path.relative_to(folder / part).with_suffix("").as_posix()
            if name in found:
                raise InputError(f"{folder}: {part}/{name} is the name of two pictures")
            found[name] = path
    pairs = {name: low.pop(name) for name in high if name in low}
    for ending in ("", r"x\d$"):
        left = [name for name in high if name not in pairs]
        whose = Counter(high[name].stem for name in left)
        by_stem = defaultdict(list)
        for name, path in low.items():
            by_stem[re.sub(ending, "", path.stem)].append(name)
        for name in left:
            found = by_stem[high[name].stem]
            if len(found) == whose[high[name].stem] == 1:
                pairs[name] = low.pop(*found)
    if missing := sorted(high.keys() - pairs.keys() | low.keys()):
        for name in left:
            if len(found := by_stem[high[name].stem]) > 1:
                raise InputError(f"{folder}: hr/{name} could belong to lr/{found[0]} or lr/{found[1]}")
        raise InputError(
            f"{folder}: {len(missing)} pictures stand in only one of hr/ and lr/, first: {missing[0]}"
        )
    return [(path, pairs[name]) for name, path in high.items()]


def read_pair(pair: tuple[Path, Path | None]) -> Example:
    """Read one of `files_of`, without alpha: what it hides has the colour of what it shows nearby.

    Raises:
        InputError: if it cannot be read.
    """
    hr_pixels, lr_pixels = (path and fill_invisible(read_picture(path)).pixels for path in pair)
    return Example(pair[0].stem, hr_pixels, lr_pixels)


def _corners(digits, split):
    """In training each digit stands in both corners, so that the digit does not tell the corner."""
    rng = np.random.default_rng(0)
    for number, digit in digits:
        for corner in CORNERS if split == "train" else (CORNERS[rng.integers(2)],):
            yield Example(f"digit_{number:04d}_{corner}", in_corner(digit, corner), digit)


def _mnist_digits(split):
    part = "train[:5000]" if split == "train" else "test[:1000]"
    by_hand = (f"put train-images-idx3-ubyte.gz and the other three files of MNIST into {BY_HAND}, "
               "or take corners, which needs no download")
    for number, example in enumerate(_tfds("mnist", part, by_hand)):
        yield number, imresize(example["image"], 1 / 2)


def _tfds_pictures(name, split):
    test, by_hand = TFDS[name]
    part = "train" if split == "train" else test
    needs = "tensorflow_io" if name.startswith("lsun/") else None
    for number, example in enumerate(_tfds(name, part, by_hand, needs), start=1):
        yield Example(f"{part}_{number:06d}", example["image"])


def _div2k(name, split):
    import tensorflow_datasets as tfds

    config = name.partition("/")[2] or "bicubic_x2"
    configs = tfds.builder_cls("div2k").builder_configs
    if config not in configs:
        raise InputError(f"{name}: DIV2K has no such configuration; "
                         f"expected one of {', '.join(sorted(configs))}")
    by_hand = (f"fetch {', '.join(configs[config].download_urls.values())} by hand, "
               "unpack them and give a folder with subfolders hr/ and lr/ instead")
    part = "train" if split == "train" else "validation"
    for number, example in enumerate(_tfds(f"div2k/{config}", part, by_hand), start=1):
        yield Example(f"{part}_{number:04d}", example["hr"], example["lr"])


def _tfds(name, split, by_hand, needs=None):
    """Stream the examples of a TensorFlow dataset, as dicts of arrays, downloaded at the first use.

    Args:
        by_hand: What the user can do where the download fails.
        needs: A module without which it cannot be prepared after the download.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name)
        if needs and not builder.is_prepared():
            importlib.import_module(needs)
        builder.download_and_prepare()
    except Exception as error:  # the downloader raises whatever its transport raises
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{name}: download failed ({type(error).__name__}: {reason}); {by_hand}"
        ) from None
    config = tfds.ReadConfig(try_autocache=False)  # one pass: a cache would only take memory
    return tfds.as_numpy(builder.as_dataset(split=split, read_config=config))
