"""The files of a run's folder, written by one process at a time."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from superres.errors import InputError
from superres.files import printable, whole

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MAY_CHANGE = ("run.folder", "run.replicas", "run.workers", "run.precision", "run.cache")  # on another machine
ELSEWHERE = "choose another --run.folder (and --start to begin with this run's weights)"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make a folder and be the only process that trains in it, until the block or the process ends.

    The lock is on the file `lock`, which stays; file systems without locks do without.

    Raises:
        InputError: if the folder cannot be written, or another process trains in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        lock = open(folder / "lock", "a")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    with lock:
        if fcntl:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{folder}: another process trains in this folder; wait for it, stop it, "
                                 "or choose another --run.folder") from None
            except OSError:
                pass
        for part in folder.glob(".part_*"):  # what a killed process left
            part.unlink()
        yield


def comparable(settings: Any) -> str:
    """The settings that must not change while a run goes on, and are the same on all machines."""
    flat = _flat(dataclasses.asdict(settings))
    return yaml.safe_dump({key: value for key, value in flat.items() if key not in MAY_CHANGE})


def keep_settings(path: Path, settings: Any, precision: str, begun: bool) -> None:
    """Write the settings with the precision that was chosen, or refuse to go on with others."""
    settings = dataclasses.asdict(settings)
    settings["run"]["precision"] = precision
    now = yaml.safe_dump(settings, sort_keys=False)
    if begun and path.exists():
        before, after = _read(path), _flat(yaml.safe_load(now))
        # A setting that the run does not know is newer.
        changed = [key for key in after
                   if key not in MAY_CHANGE and before.get(key, after[key]) != after[key]]
        # Float16's optimiser keeps more than the others do.
        first = before.get("run.precision", precision)
        if "mixed_float16" in (first, precision) and first not in ("auto", precision):
            changed.append("run.precision")
        if changed:
            raise InputError(f"{path.parent}: this run was started with another {changed[0]} "
                             f"({before[changed[0]]}, now {after[changed[0]]}); {ELSEWHERE}")
    else:
        with whole(path) as part:
            part.write_text(now)


def keep_held_out(path: Path, names: Iterable[str], begun: bool) -> None:
    """Write which pictures a run holds out, or refuse to go on with others: it may have seen them."""
    now = "".join(f"{printable(name)}\n" for name in names)
    if begun and path.exists():
        if path.read_text(encoding="utf-8") != now:
            raise InputError(f"{path}: this run held out other pictures than it would now: some were added, "
                             f"removed, or cannot be read any more; restore them, or {ELSEWHERE}")
    else:
        with whole(path) as part:
            part.write_text(now, encoding="utf-8")


def _read(path):
    """The settings of a run, flat."""
    try:
        settings = _flat(yaml.safe_load(path.read_text()))
        if "run.seed" not in settings:  # `run` comes last
            raise ValueError("its end is missing")
        return settings
    except (ValueError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: damaged ({reason}); restore it, or remove it to go on with the settings "
                         "given now if the run was started with them") from None


def _flat(settings, prefix=""):
    """Nested settings as one dict, with names as on the command line: `run.seed`."""
    flat = {}
    for key, value in (settings or {}).items():
        name = f"{prefix}{key}"
        flat.update(_flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat
