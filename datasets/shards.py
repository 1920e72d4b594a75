"""TFRecord shards of pictures: training data that do not fit in memory. `prepare.py` writes them.

A record is a `tf.train.Example` of `name`, `hr` and, where the source brings its own LR, `lr` (files of
pictures, PNG as we write them), and `cells`, by which likenesses are told. What a run has to know of all
pictures when it starts, their names and sizes, stands in a record's first bytes.
"""

import glob
import io
import re
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from superres.datasets.catalogue import Example
from superres.datasets.decoding import decode
from superres.datasets.likeness import SIZE, cells
from superres.datasets.pictures import to_uint8
from superres.errors import InputError
from superres.files import printable

FRAME = 12  # bytes: a record's length and its checksum stand before it, the checksum of its bytes behind
HEAD = 1024  # bytes of a record that are read to know of it
PNG = b"\x89PNG\r\n\x1a\n"
TILE = re.compile(r"@\d+,\d+$")  # what `prepare.py` adds to the name of a picture for each of its tiles


class Stored(NamedTuple):
    """A picture in a shard, which is read when it is asked for.

    Attributes:
        path: The shard's.
        offset: Where in it the record begins, in bytes.
        name: As `Example.name`.
        size: (H, W) of HR.
        paired: As `Example.paired`.
    """

    path: str
    offset: int
    name: str
    size: tuple[int, int]
    paired: bool

    @property
    def picture(self) -> str:
        """The name of the picture that a tile was cut from."""
        return TILE.sub("", self.name)

    def read(self) -> Example:
        """The decoded picture.

        Raises:
            InputError: if the shard is damaged there, or changed since.
        """
        record = _parsed(self.path, self.offset)
        return Example(self.name, *(_decoded(record[key], self) if key in record else None
                                    for key in ("hr", "lr")))

    def looks(self) -> tuple[str, np.ndarray]:
        """(name, (H, W, C) uint8), small, of the whole picture that this shows, for `likenesses`.

        Read from the record's first bytes; of records without `cells`, which other programs wrote, the
        picture is decoded: a run begins with that of all of them, some minutes for 100,000 tiles.
        """
        with open(self.path, "rb", buffering=0) as file:
            first, _ = _first(_head(file, self.offset)[1])
        if "cells" in first:
            return self.picture, np.frombuffer(first["cells"], "uint8").reshape(SIZE, SIZE, 1)
        return self.name, self.read().hr


def stored(sources: Iterable[Path | str]) -> list[Stored]:
    """Every picture of some shards, in the order of their names, whatever shard they lie in.

    Reads a kilobyte of each record, and keeps some 250 bytes.

    Args:
        sources: Files and patterns such as `"shards/*.tfrecord"`.

    Raises:
        InputError: if there is no such file, no picture in them, or one is no shard, damaged or truncated.
    """
    paths = {}
    for source in map(str, sources):
        found = [source] if Path(source).is_file() else sorted(glob.glob(source))
        if not found:
            raise InputError(f"{source}: no such shards")
        paths.update(dict.fromkeys(found))
    pictures = [picture for path in paths for picture in _index(path)]
    if not pictures:
        raise InputError(f"{next(iter(paths))}: no pictures in {len(paths)} shards")
    return sorted(pictures, key=lambda picture: (picture.picture, picture.name))


def record(example: Example, whole: np.ndarray | None = None) -> bytes:
    """An `Example` as the bytes of a record.

    Args:
        whole: The picture that its HR was cut from, where it is a tile.
    """
    import tensorflow as tf

    seen = cells(example.hr if whole is None else whole).tobytes()
    parts = [{"name": printable(example.name).encode(), "cells": seen}, {"hr": _encoded(example.hr)}]
    if example.paired:
        parts.append({"lr": _encoded(example.lr)})
    # Messages in a row are one message; in one alone, the name would stand behind the pictures.
    return b"".join(
        tf.train.Example(features=tf.train.Features(feature={
            key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) for key, value in part.items()
        })).SerializeToString(deterministic=True)
        for part in parts)


class Cache:
    """Keeps what was used last, up to a number of bytes. Threads may share it.

    Attributes:
        bytes: How many it keeps.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._kept, self._lock = OrderedDict(), threading.Lock()

    def get(self, key: Hashable, make: Callable[[], tuple[np.ndarray | None, ...]]
            ) -> tuple[np.ndarray | None, ...]:
        """What is kept under the key, or else what `make()` returns."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()  # two threads may make the same, which is the same
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self.bytes += _bytes(made)
            while self.bytes > self.limit:
                self.bytes -= _bytes(self._kept.popitem(last=False)[1])
        return made


def _bytes(arrays):
    return sum(array.nbytes for array in arrays if array is not None)


def _index(path):
    """A `Stored` of every record of a file."""
    end = Path(path).stat().st_size
    with open(path, "rb", buffering=0) as file:
        offset = 0
        while offset < end:
            length, head = _head(file, offset)
            after = offset + FRAME + length + 4
            if length < 0 or after > end:
                raise InputError(f"{path}: damaged, or truncated in the record at byte {offset}")
            yield Stored(path, offset, *(_known_by(head, length) or _known_by_all(path, offset)))
            offset = after


def _head(file, offset):
    """(length, first bytes) of the record at a place; -1 where the file ends before."""
    file.seek(offset)
    data = file.read(FRAME + HEAD)
    length = int.from_bytes(data[:8], "little") if len(data) > FRAME else -1
    return length, data[FRAME:][: max(0, length)]


def _first(head):
    """Dict of name -> bytes of a record's first message, and where that ends; empty where it is not whole."""
    try:
        end = _end(head, 0)
        return _features(head[:end]), end
    except Exception:  # the bytes end, or are none of protobuf's
        return {}, 0


def _end(data, start):
    """Where the message that begins there ends: its tag, its length, seven bits a byte, and its bytes."""
    if data[start] != 0x0A:
        raise ValueError("no message of a `tf.train.Example`")
    length, place = 0, start + 1
    while True:
        length |= (data[place] & 127) << 7 * (place - start - 1)
        place += 1
        if data[place - 1] < 128:
            return place + length


def _known_by(head, length):
    """(name, size, paired) of a record that begins so, or None where it is not as `record` makes it."""
    first, end = _first(head)
    key, _, png = head[end:].partition(PNG)
    if "name" not in first or b"\x02hr" not in key or png[4:8] != b"IHDR" or len(png) < 16:
        return None
    width, height = struct.unpack(">II", png[8:16])
    return first["name"].decode(errors="replace"), (height, width), _end(head, end) < length


def _known_by_all(path, offset):
    """(name, size, paired) of any record, which is read whole."""
    record = _parsed(path, offset)
    try:
        with Image.open(io.BytesIO(record["hr"])) as image:
            return record["name"].decode(errors="replace"), image.size[::-1], "lr" in record
    except Exception as error:
        raise _damaged(path, offset, error) from None


def _parsed(path, offset):
    """Dict of name -> bytes of the record at a place, whose checksums are verified."""
    from tensorflow.python.lib.io.tf_record import tf_record_random_reader  # public ones read from the start

    try:
        return _features(tf_record_random_reader(path).read(offset)[0])
    except Exception as error:  # of TensorFlow, of protobuf, of a file that has gone
        raise _damaged(path, offset, error) from None


def _features(data):
    import tensorflow as tf

    return {key: feature.bytes_list.value[0]
            for key, feature in tf.train.Example.FromString(data).features.feature.items()
            if feature.bytes_list.value}


def _damaged(path, offset, error):
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return InputError(f"{path}: the record at byte {offset} is damaged, or no picture ({reason})")


def _encoded(pixels):
    file = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.save(file, "PNG", compress_level=3)  # as small as at 6, in half the time
    return file.getvalue()


def _decoded(data, where):
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return to_uint8(decode(image)[0])  # `pictures.decoded` catches warnings, which threads cannot
    except Exception as error:
        raise _damaged(where.path, where.offset, error) from None
