"""Write pictures as TFRecord shards, to train on more than fits in memory.

    python prepare.py FOLDER [FOLDER ...] -o SHARDS
    python prepare.py FOLDER -o SHARDS --crop 128
    python prepare.py FOLDER -o SHARDS --direct_num_workers 2 --direct_running_mode multi_processing

Then train with `--data SHARDS/*.tfrecord`. A FOLDER is read as the trainings read it: all pictures below
it, or pairs of files of the same name in its subfolders `hr` and `lr`. With `--crop`, tiles of that size
are stored in place of pictures of more, so that a patch does not cost the decoding of a large picture.

It is an Apache Beam pipeline. Options that are not named here are Beam's, which choose where it runs, and
stand last; workers on other machines need the same folders under the same names. In which shard a picture
lies, and where in it, is a matter of its name alone. Files that cannot be read are named in
SHARDS/errors.csv.
"""

from superres.commands import command  # first: it quietens TensorFlow

# isort: split
import csv
import dataclasses
import os
import shutil
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import tensorflow as tf
import tyro

from superres.datasets.catalogue import Example, files_of, read_pair
from superres.datasets.degradations import check_pair
from superres.datasets.shards import record, stored
from superres.errors import InputError, check_range
from superres.files import printable, whole

try:
    import apache_beam as beam

    from superres.pipelines import pipeline_of
except ImportError:
    beam = None

READING = threading.Lock()  # what catches warnings while it reads is not for several threads at once
ALIGNED = 8  # tiles begin where every scale has a pixel of LR


@dataclasses.dataclass
class Settings:
    """Write pictures as TFRecord shards, to train on more than fits in memory.

    Example: prepare.py FOLDER -o SHARDS --crop 128; then train with --data SHARDS/*.tfrecord.

    A folder is read as the trainings read it: all pictures below it, or pairs of files of the same name in
    its subfolders hr and lr. All other options are Beam's, and stand last. Files that cannot be read are
    named in SHARDS/errors.csv.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of pictures."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """A new folder for the shards; it appears when all is done."""
    crop: int = 0
    """Height and width of the tiles that are cut from larger pictures; 0: whole pictures."""
    shards: int = 16
    """How many files; as many can be written at once."""


def tiles(example: Example, size: int) -> Iterator[Example]:
    """Cut a picture that is larger than `size` into tiles, of LR likewise; 0: leave it whole.

    Tiles lie evenly and overlap where the picture is no multiple of them. They cover it but for up to seven
    of its last rows and columns.
    """
    height, width = example.size
    places = [(y, x) for y in _starts(height, size) for x in _starts(width, size)]
    if len(places) == 1:
        yield example
        return
    for y, x in places:
        hr, lr = example.hr[y : y + size, x : x + size], example.lr
        if lr is not None:
            scale = height // len(lr)
            lr = lr[y // scale : (y + size) // scale, x // scale : (x + size) // scale]
        yield Example(f"{example.name}@{y},{x}", hr, lr)


def _starts(length, size):
    if not size or length <= size:
        return [0]
    return [int(start) // ALIGNED * ALIGNED for start in np.linspace(0, length - size, -(-length // size))]


def read_named(name: str, pair: tuple[Path, Path | None]) -> Example:
    """One of `files_of`, under a name.

    Raises:
        InputError: if it cannot be read, or LR is not its HR's.
    """
    example = read_pair(pair)
    if example.paired:
        scale = len(example.hr) // len(example.lr)
        if scale not in (2, 4, 8):
            raise InputError(f"{name}: HR of {len(example.hr)} rows is not x2, x4 or x8 of LR's "
                             f"{len(example.lr)}")
        check_pair(example.lr, example.hr, scale, name)
    return example._replace(name=name)


def write_shard(job: tuple[Path, list[tuple]], crop: int) -> Iterator[tuple[str, str]]:
    """Write one shard, a picture at a time, and yield the (name, error) of those that cannot be read.

    A shard that cannot be written, as on a full disk, ends there, and has no name.
    """
    path, named = job
    try:
        with tf.io.TFRecordWriter(str(path)) as file:
            for name, pair in named:
                try:
                    with READING:
                        example = read_named(name, pair)
                except InputError as error:
                    yield name, printable(str(error))  # Beam hands text on as UTF-8
                    continue
                for tile in tiles(example, crop):
                    file.write(record(tile, example.hr))
    except (OSError, tf.errors.OpError) as error:
        yield "", printable(getattr(error, "strerror", None) or str(error))


def write_errors(errors: list[tuple[str, str]], path: Path) -> None:
    """The table of pictures that were left out."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("picture", "error"), *sorted(errors)])


def named_files(folders: tuple[Path, ...]) -> list[tuple[str, tuple[Path, Path | None]]]:
    """(name, files) of all pictures, in order of the names, of which no two are the same.

    A name is the path below the folder, or below what several folders have in common, without a suffix
    where no other picture is called so. A file in two of the folders is one picture.

    Raises:
        InputError: as `files_of`.
    """
    paths = {}  # of a picture's file: its path as a name, and the files
    resolved = [*map(Path.resolve, folders)]
    common = Path(os.path.commonpath(resolved))
    for folder in resolved:
        for hr, lr in files_of(folder):
            below = hr.relative_to(folder / "hr" if lr else folder)
            paths.setdefault(hr, (folder.relative_to(common) / below, (hr, lr)))
    stems = Counter(path.with_suffix("") for path, _ in paths.values())
    named = ((path if stems[path.with_suffix("")] > 1 else path.with_suffix(""), files)
             for path, files in paths.values())
    return sorted((printable(path.as_posix()), files) for path, files in named)


def main(settings: Settings, flags: list[str]) -> None:
    """Write the shards.

    Args:
        flags: Beam's.
    """
    if beam is None:
        raise InputError("prepare.py: needs Apache Beam (pip install apache-beam)")
    if not settings.folders:
        raise InputError("folders: none is named")
    check_range(vars(settings), "shards", least=1)
    check_range(vars(settings), "crop", least=0)
    output = settings.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists already; choose another --output, or remove it first")
    if settings.crop % ALIGNED:
        raise InputError(f"crop: must be a multiple of {ALIGNED}, not {settings.crop}")
    named = named_files(settings.folders)
    with whole(output.resolve()) as part:
        shutil.rmtree(part, ignore_errors=True)  # what a killed run left
        part.mkdir(parents=True)
        try:
            jobs = [(part / f"{number:05}-of-{settings.shards:05}.tfrecord", [])
                    for number in range(settings.shards)]
            for name, pair in named:
                number = zlib.crc32(name.encode()) % settings.shards
                jobs[number][1].append((name, pair))
            pipeline = pipeline_of(flags)
            with pipeline:
                # Whole shards are spread over the workers: to sort records into them, Beam would hold all.
                (pipeline | beam.Create(jobs) | beam.Reshuffle()
                 | beam.FlatMap(write_shard, settings.crop)
                 | beam.combiners.ToList() | beam.Map(write_errors, part / "errors.csv"))
            with open(part / "errors.csv", newline="", encoding="utf-8") as file:
                bad = list(csv.reader(file))[1:]
            if bad and not bad[0][0]:  # they are sorted
                raise OSError(bad[0][1])
            if len(bad) == len(named):
                raise InputError(f"none of the {len(bad)} pictures can be read, the first: {bad[0][1]}")
            records = stored(path for path, _ in jobs)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    pictures = len({picture.picture for picture in records})
    print(f"{output}: {len(records)} records of {pictures} pictures in {settings.shards} shards, "
          f"{len(bad)} bad ones" + (", see errors.csv" if bad else ""))


def cli() -> None:
    command(main, settings=Settings)


if __name__ == "__main__":
    # The workers import this module by its name: what they run must not be of `__main__`.
    from superres import prepare

    prepare.cli()
