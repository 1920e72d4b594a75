"""Upscale any number of pictures with Apache Beam: in several processes, or on a cluster.

    python upscale_beam.py lapsrn-x4 "photos/**" upscaled
    python upscale_beam.py lapsrn-x4 "photos/**.jpg" upscaled --runner DirectRunner \\
        --direct_running_mode multi_processing --direct_num_workers 8
    python upscale_beam.py lapsrn-x4 "gs://bucket/photos/**" gs://bucket/upscaled --runner FlinkRunner \\
        --flink_master HOST:8081 --environment_type DOCKER --environment_config IMAGE

Every picture becomes what upscale.py makes of it, to one level of 255, at the same place below
OUTPUT as it has below the pattern's folder. Results appear whole or not at all, and what is there
already is left: the same command goes on with a job that was stopped. OUTPUT/errors.csv names the
pictures that could not be upscaled, and why; the next run tries them again. OUTPUT/report.csv says
how many were written, were there already and failed.

Options that are not named here are Beam's, and stand last: `--runner` and what the runner takes.
"""

import contextlib
import csv
import dataclasses
import errno
import functools
import io
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import uuid
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, BinaryIO, Literal, Self

import tyro

try:
    import apache_beam as beam
    from apache_beam.io import fileio
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems
except ImportError as error:
    sys.exit(f"error: needs Apache Beam, pip install 'apache-beam>=2.77,<3' ({error})")

from superres.command_line import command
from superres.datasets.pictures import animation_suffix, read_frames, write_frames
from superres.datasets.thumbnails import Crop
from superres.errors import InputError
from superres.files import printable
from superres.models.engine import Engine, load
from superres.models.images import ImageUpscaler
from superres.pipelines import pipeline_of
from superres.precision import chosen_precision
from superres.upscale import Format, Model, claimed, reason_for, results, sample_paths

WRITTEN, THERE, BAD = "written", "there already", "bad"
# Of the threads of a worker process, one computes, with all cores and the memory for one picture;
# the others fetch and put pictures meanwhile.
COMPUTING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Job:
    """Upscale any number of pictures with Apache Beam, in several processes or on a cluster.

    Example: upscale_beam.py lapsrn-x4 "photos/**" upscaled --runner DirectRunner
    --direct_running_mode multi_processing --direct_num_workers 8

    All other options are Beam's, and stand last. OUTPUT/errors.csv names the pictures that could not be
    upscaled; the same command again goes on with a job that was stopped.
    """

    model: tyro.conf.Positional[Model]
    """A shipped network's name, a .keras file (on any of Beam's file systems, too), or hf://user/name."""
    pattern: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="INPUT_PATTERN")]
    """The pictures, on any of Beam's file systems: * stands for any part of a name, ** also for folders."""
    output: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUTPUT")]
    """Folder for the results, NAME_xSCALE.png; a second NAME in a folder becomes NAME_xSCALE_2.png."""
    format: Format | None = None
    """What pictures are written as; png unless given, and of animations their own kind."""
    suffix: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """What is added to a name in place of _xSCALE."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is faster on processors that have it, at a loss of some hundredths of a dB."""
    engine: Engine = "auto"
    """What computes the network. auto: OpenVINO where it is installed and faster, TensorFlow elsewhere."""
    ensemble: bool = False
    """Take the mean over the picture's eight turns and flips: better, in eight times the time."""
    tile: int | None = None
    """Networks of any size: the square computed at a time, in LR pixels, 256 unless given."""
    crop: Crop | None = None
    """Networks of one size: the square that is cut out, the largest in the middle or a face."""
    samples: int | None = None
    """Networks that draw samples: how many, NAME_xSCALE_1.png and so on; 1 unless given."""
    temperature: float | None = None
    """Networks that draw samples: what noise, or of networks of one size logits, is multiplied by."""
    seed: int | None = None
    """Networks that draw samples: another seed draws others; 0 unless given."""

    @property
    def folder(self) -> str:
        """The pattern's folder: all before its first wildcard, up to a slash."""
        return re.split(r"[*?[]", self.pattern)[0].rpartition("/")[0]

    @property
    def parts(self) -> str:
        """Folder for what is being written."""
        return f"{self.output}/.parts"

    def below(self, file: str) -> PurePosixPath:
        """Where a file that the pattern matches lies below its folder."""
        return PurePosixPath(file[len(self.folder) + 1 :])

    def checked(self) -> Self:
        """The job with whole paths and its suffix, ready to run.

        Raises:
            InputError: if it cannot run: there is no such network, it does not take such options, the
                pattern matches nothing, or the output cannot be written to.
        """
        model = os.path.abspath(self.model) if Path(self.model).is_file() else self.model
        pattern, output = (os.path.abspath(path) if FileSystems.get_scheme(path) is None else path
                           for path in (self.pattern, self.output))
        network = network_of(model, self.precision, self.engine)
        network.check(self.samples, self.temperature, self.seed, self.tile, self.ensemble, self.crop)
        suffix = f"_x{network.scale}" if self.suffix is None else self.suffix
        if "/" in suffix or re.fullmatch(r"(.*_\d+)?", suffix):  # or the second a would be called as a_2 is
            raise InputError(f"--suffix: holds no / and ends in no number as _2 does, not {suffix!r}")
        output = output.rstrip("/")
        job = dataclasses.replace(self, model=model, pattern=pattern, output=output, suffix=suffix)
        if f"{job.folder}/".startswith(f"{job.output}/"):
            raise InputError(f"{job.output}: holds the pictures; choose a folder below or beside theirs")
        try:
            (found,) = FileSystems.match([pattern], [1])
        except (OSError, ValueError) as error:
            raise InputError(f"{pattern}: {error}") from None
        if not found.metadata_list:
            raise InputError(f"{pattern}: matches no file")
        try:
            put(io.BytesIO(), f"{job.parts}/begun", job.parts)
        except (OSError, ValueError) as error:
            raise InputError(f"{job.output}: cannot be written to ({error})") from None
        return job


@functools.cache  # once a process
def network_of(model: str, precision: str, engine: Engine) -> ImageUpscaler:
    """The network of a job, wherever it is."""
    with tempfile.TemporaryDirectory() as folder:
        if FileSystems.get_scheme(model) not in (None, "hf"):
            model = fetch(model, Path(folder, PurePosixPath(model).name))
        return load(model, chosen_precision(precision), engine)


def opened(file: str) -> BinaryIO:
    """A file of Beam's file systems, as its bytes are."""
    return FileSystems.open(file, compression_type=CompressionTypes.UNCOMPRESSED)


def fetch(file: str, path: Path) -> Path:
    """Copy a file of Beam's file systems to a local path, and return that."""
    with opened(file) as there, open(path, "wb") as here:
        shutil.copyfileobj(there, here)
    return path


def put(content: BinaryIO, file: str, parts: str) -> None:
    """Write a file of Beam's file systems, which appears whole or not at all.

    Args:
        content: An open file that is read to its end.
        parts: Folder of the same file system, for what is not whole yet.
    """
    part = f"{parts}/{uuid.uuid4().hex}"  # another worker may be at the same picture
    with FileSystems.create(part, compression_type=CompressionTypes.UNCOMPRESSED) as there:
        shutil.copyfileobj(content, there)
    with contextlib.suppress(OSError):  # it is there already
        FileSystems.mkdirs(file.rpartition("/")[0])
    FileSystems.rename([part], [file])


def write_table(rows: Iterable[Iterable], file: str, heading: Iterable[str], parts: str) -> None:
    """Write rows, sorted, as a CSV file of Beam's file systems."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heading, *sorted(rows)])
    put(io.BytesIO(text.getvalue().encode()), file, parts)


class Upscale(beam.DoFn):
    """From (name, files that have it but for their suffix) to (file, outcome, reason) of each file.

    What comes in is bytes, since names need not be UTF-8, which Beam writes text as.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def setup(self) -> None:
        with COMPUTING:
            self._network()

    def _network(self):
        return network_of(self.job.model, self.job.precision, self.job.engine)

    def process(self, element: tuple[bytes, Iterable[bytes]]) -> Iterator[tuple[str, str, str]]:
        taken = set()
        for file in sorted(map(os.fsdecode, element[1])):
            below = self.job.below(file)
            ending = f".{self.job.format}" if self.job.format else self._ending(file)
            destination = claimed(below.with_name(f"{below.stem}{self.job.suffix}{ending}"), taken)
            names = [f"{self.job.output}/{path}" for path in sample_paths(destination, self.job.samples)]
            with tempfile.TemporaryDirectory() as folder:
                try:
                    outcome, reason = self._upscale(file, names, Path(folder)), ""
                except Exception as error:  # of any library: a million pictures do not stop for one
                    if getattr(error, "errno", None) == errno.ENOSPC:
                        raise
                    outcome = BAD
                    reason = reason_for(error).replace(f"{folder}/", "").removeprefix("picture: ")
            yield printable(file), outcome, printable(reason)

    def _ending(self, file):
        """`.png`, or of an animation the suffix of its kind."""
        try:
            with opened(file) as there:
                return animation_suffix(there) or ".png"
        except Exception:
            return ".png"  # whoever reads it says what is wrong

    def _upscale(self, file, names, folder):
        """Write those of a picture's results that are not there already; returns the outcome."""
        missing = [name for name in names if not FileSystems.exists(name)]
        if not missing:
            return THERE
        job, source = self.job, fetch(file, folder / "picture")
        with COMPUTING, warnings.catch_warnings(record=True) as caught:
            drawings = results(self._network(), lambda: read_frames(source), job.samples, job.crop, job.tile,
                               job.ensemble, job.temperature, job.seed)
            for name, frames in zip(names, drawings, strict=True):
                if name in missing:
                    write_frames(folder / PurePosixPath(name).name, frames)
        for warning in caught:
            logging.warning("%s", str(warning.message).replace(str(source), file))
        for name in missing:
            with open(folder / PurePosixPath(name).name, "rb") as made:
                put(made, name, job.parts)
        return WRITTEN


def main(job: Job, flags: list[str]) -> None:
    """Run the job; the flags are Beam's."""
    if flags and not flags[0].startswith("-"):
        raise InputError(f"{flags[0]}: there is one pattern, in quotes, and one output")
    pipeline = pipeline_of(flags)
    job = job.checked()
    with contextlib.suppress(OSError):  # of an earlier run
        FileSystems.delete([f"{job.output}/{name}.csv" for name in ("errors", "report")])
    try:
        run(job, pipeline)
    except Exception:
        print("the job failed; the same command goes on with it", file=sys.stderr)
        raise
    with contextlib.suppress(OSError):  # what workers left that were killed
        FileSystems.delete([job.parts])
    with opened(f"{job.output}/report.csv") as report:
        count = {**dict.fromkeys((WRITTEN, THERE, BAD), 0), **dict(csv.reader(io.TextIOWrapper(report)))}
    print(", ".join(f"{count[outcome]} {outcome}" for outcome in (WRITTEN, THERE, BAD)))
    if count[BAD]:
        print(f"{job.output}/errors.csv names the bad ones, and why", file=sys.stderr)
        sys.exit(1)


def run(job: Job, pipeline: beam.Pipeline) -> None:
    """Upscale all pictures of a job, and write the table of errors and the report."""
    with pipeline:
        outcomes = (
            pipeline
            | fileio.MatchFiles(job.pattern)
            # Neither results nor the empty objects that stand for folders in a bucket.
            | "pictures" >> beam.Filter(lambda found: not found.path.startswith(f"{job.output}/")
                                        and not found.path.endswith("/"))
            | "by name" >> beam.Map(lambda found: (os.fsencode(job.below(found.path).with_suffix("")),
                                                   os.fsencode(found.path)))
            | beam.GroupByKey()  # which also spreads the pictures over the workers
            | beam.ParDo(Upscale(job))
        )
        bad = outcomes | beam.Filter(lambda row: row[1] == BAD) | beam.Map(lambda row: (row[0], row[2]))
        counts = outcomes | "outcomes" >> beam.Map(lambda row: row[1]) | beam.combiners.Count.PerElement()
        for name, rows, heading in (("errors", bad, ["file", "reason"]),
                                    ("report", counts, ["outcome", "pictures"])):
            _ = (rows | f"all {name}" >> beam.combiners.ToList()
                 | f"write {name}" >> beam.Map(write_table, f"{job.output}/{name}.csv", heading, job.parts))


def cli() -> None:
    command(main, settings=Job)


if __name__ == "__main__":
    # The workers import this module by its name: what they run must not be of `__main__`.
    from superres import upscale_beam

    upscale_beam.cli()
