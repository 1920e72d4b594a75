"""Files that appear whole or not at all, and errors of the disk that name them."""

import contextlib
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def printable(name: str) -> str:
    """A file's name as text that can be written and drawn: bytes that are not UTF-8 become `\\udc..`."""
    return name.encode(errors="backslashreplace").decode()


@contextlib.contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """Gives a path to write to, which becomes `path` at the end of the block, or vanishes if that fails.

    A full disk or a killed process leaves no half file under the name.

    Raises:
        OSError: if it cannot be written, with the path, the reason and its `errno`.
    """
    path = Path(path)
    # Names have a limit; the number tells those of one end apart, the suffix says the kind.
    part = path.with_name(f".part_{zlib.crc32(os.fsencode(path.name)):08x}_{path.name[-30:]}")
    try:
        yield part
        os.replace(part, path)
    except OSError as error:
        unwritten = OSError(f"{path}: cannot be written ({error.strerror or error})")
        unwritten.errno = error.errno
        raise unwritten from None
    finally:
        with contextlib.suppress(OSError):  # or it would hide what went wrong
            part.unlink(missing_ok=True)


def write_figure(path: Path | str, figure: "Figure", dpi: int = 100) -> None:
    """Write a matplotlib figure as the kind that the suffix says, whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    drawn = io.BytesIO()  # on a full disk, matplotlib's own writers lose the reason
    figure.savefig(drawn, format=Path(path).suffix[1:].lower(), dpi=dpi)
    with whole(path) as part:
        part.write_bytes(drawn.getvalue())
