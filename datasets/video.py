"""Videos whose frames go through a network: decoded and encoded anew, sound and the rest copied.

By PyAV (the extra `video`), whose wheels bring the libraries of FFmpeg.
"""

import contextlib
import functools
import hashlib
import heapq
import io
import itertools
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from superres.datasets.encoding import to_uint8, to_uint16
from superres.datasets.pictures import Picture
from superres.errors import InputError

try:
    import av
except ImportError:
    av = None

LIKE_MP4 = (".mp4", ".m4v", ".mov", ".3gp")
# Of videos in folders; a .ts, which can be TypeScript, has to be named.
SUFFIXES = (*LIKE_MP4, ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mts", ".m2ts", ".vob", ".wmv", ".flv",
            ".ogv", ".mxf")
# So many frames are encoded together: what a killed run loses, and how far apart a player can start.
SEGMENT = 48
FORMATS = {".mp4": "mp4", ".mkv": "matroska"}
MATRICES = {1: "bt709", 4: "fcc", 5: "bt470", 6: "smpte170m", 7: "smpte240m", 9: "bt2020"}
OF_THE_FILE = ("major_brand", "minor_version", "compatible_brands", "encoder")  # texts, not of what it shows


class Colours(NamedTuple):
    """What Y, Cb and Cr of a video mean, in the numbers of ITU-T H.273.

    Attributes:
        matrix: One of `MATRICES`.
        levels: 1 for Y from 16 to 235, 2 for 0 to 255.
        primaries, transfer: These are handed on only.
    """

    matrix: int
    levels: int
    primaries: int
    transfer: int

    def meaning(self, side: Literal["in", "out"]) -> str:
        """Options of FFmpeg's filter `scale`, for its `"in"` or `"out"`."""
        levels = "pc" if self.levels == 2 else "tv"
        return (f"{side}_color_matrix={MATRICES[self.matrix]}:{side}_range={levels}:{side}_chroma_loc=left")


def result_suffix(path: Path | str) -> str:
    """The suffix of a video's result, `".mp4"` or `".mkv"`; "": its name is of no video.

    MP4 and QuickTime become MP4, where that can hold their sound and subtitles, all others Matroska.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (*SUFFIXES, ".ts"):
        return ""
    if suffix not in LIKE_MP4:
        return ".mkv"
    try:
        with _opened(path) as clip, av.open(io.BytesIO(), "w", format="mp4") as mp4:
            beside = [stream for stream in clip.streams if stream.type in ("audio", "subtitle")]
            return ".mp4" if all(_copied(stream, mp4) for stream in beside) else ".mkv"
    except Exception:
        return ".mp4"  # whoever reads it says what is wrong


def write_video(path: Path | str, source: Path | str, change: Callable[[Picture], Picture], made_by: str,
                quality: int | None = None, depth: Literal[8, 16] = 8, strip: bool = False,
                progress: Callable[[int, int], None] | None = None) -> None:
    """Write a video whose frames are those of another, changed: H.264 in MP4 or Matroska, as the suffix says.

    Copied as they are: sound, subtitles, fonts, chapters, texts. Kept: the time of every frame, also where
    the rate varies; the colours' matrix, range, primaries and transfer; the shape of pixels that
    are not square. Turned clips come upright, interlaced ones progressive, transparent ones on
    white. Left out: an odd last row or column, as colours have half the resolution (4:2:0); further
    video streams, covers and timecodes; what HDR says of the screen it was made for.

    Frames are encoded in segments, in a hidden folder beside the result, and joined when all are
    there: a run that was killed goes on after the last whole segment, as if it had not been. The
    result appears whole or not at all.

    Args:
        change: Function of an upright RGB `Picture`, uint8 or with depth 16 float32 in [0, 1], to another;
            all results have one size.
        made_by: Text that tells this `change` from others, whose segments are not taken.
        quality: From 1 to 100, 68 by default: x264's constant rate factor is (100 - quality) / 2.
        depth: 8, or 16 for frames of 10 bits a channel, which not every player of H.264 shows.
        strip: Leave out texts such as title, place and time; chapters and languages stay.
        progress: Called after each frame with how many are done, and about how many there are.

    Raises:
        InputError: if the source is no video that can be read, or PyAV is missing. What is missing of
            a damaged one is a warning.
        OSError: if a file cannot be written.

    Example:
        write_video("clip_x2.mp4", "clip.mp4", load("lapsrn-x2").upscale, "lapsrn-x2")
    """
    if av is None:
        raise InputError(f"{source}: videos need PyAV, which is not installed: pip install av")
    path = Path(path)
    parts = path.with_name(f".{path.name}.parts")
    joined = parts / f"joined{path.suffix}"
    _start_or_go_on(parts, source, f"{made_by} {quality} {depth} {SEGMENT} {av.library_versions}")
    try:
        with _only_input_errors(source), _opened(source) as container:
            clip = Clip(container)
            for number, frames in itertools.groupby(enumerate(clip), lambda item: item[0] // SEGMENT):
                part = parts / f"{number:06}.mp4"
                frames = _counted(frames, clip, progress)
                if part.exists():
                    for _ in frames:
                        pass
                else:
                    _write_segment(part, frames, clip, change, quality, depth)
            segments = sorted(parts.glob("[0-9]*.mp4"))
            if not segments:
                raise InputError("it has no frames")
            found = [*clip.found(), *_join(joined, segments, clip, strip)]
            os.replace(joined, path)
            for text in found:
                warnings.warn(f"{source}: {text}", stacklevel=2)
        shutil.rmtree(parts, ignore_errors=True)
    finally:
        joined.unlink(missing_ok=True)
        if not any(parts.glob("[0-9]*.mp4")):
            shutil.rmtree(parts, ignore_errors=True)


def _start_or_go_on(parts, source, made_by):
    """Make the folder of the segments, empty where those in it are of another source or change."""
    try:
        file = os.stat(source)
    except FileNotFoundError:
        raise InputError(f"{source}: no such file") from None
    key = hashlib.sha256(f"{made_by} {file.st_size} {file.st_mtime_ns}".encode()).hexdigest()
    with contextlib.suppress(FileNotFoundError):
        if (parts / "key").read_text() == key:
            return
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    (parts / "key").write_text(key)


@contextlib.contextmanager
def _only_input_errors(path):
    """What FFmpeg cannot read is an InputError that names the file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, MemoryError):  # some of FFmpeg's too
        raise
    except av.FFmpegError as error:
        raise InputError(f"{path}: not a readable video ({error.strerror})") from None


def _opened(path):
    return av.open(os.path.abspath(path), metadata_errors="replace")  # "a:b.mp4" would be of a protocol a


def _written(path, suffix, clip):
    # MP4 says in a unit of its own, else milliseconds, when a stream begins.
    options = {"movie_timescale": str(clip.time_base.denominator)} if suffix == ".mp4" else {}
    return av.open(os.path.abspath(path), "w", format=FORMATS[suffix], container_options=options)


def _counted(frames, clip, progress):
    """The frames of (number, frame), each counted when the next is asked for."""
    for number, frame in frames:
        yield frame
        if progress:
            progress(number + 1, max(number + 1, clip.frames))


class Clip:
    """An open video as an iterable of its frames (`av.VideoFrame`), and what is found out on the way.

    A frame's time `pts` is in units of `time_base`, from the beginning of the file on, and
    increases. Interlaced frames come deinterlaced.

    Attributes:
        frames: About how many there are.
    """

    def __init__(self, container: Any) -> None:
        self.container = container
        videos = [stream for stream in container.streams.video
                  if not stream.disposition & av.stream.Disposition.attached_pic]
        if not videos:
            raise InputError("it has no video")
        self.stream = videos[0]
        self.time_base = self.stream.time_base
        self.start = Fraction(container.start_time or 0, av.time_base)
        self.rate = self.stream.average_rate or self.stream.guessed_rate or Fraction(25)
        self.frames = self.stream.frames or round((container.duration or 0) / av.time_base * self.rate)
        self.first = None
        self._end, self._damaged, self._interlaced = 0, 0, False

    def __iter__(self) -> Iterator[Any]:
        last = None
        by_order = self.container.format.name == "avi"  # which does not tell when a frame is shown
        for frame in self._progressive(self._decoded()):
            if by_order or frame.pts is None:
                pts = 0 if last is None else last + max(1, round(1 / (self.rate * self.time_base)))
            else:
                pts = round((frame.pts * frame.time_base - self.start) / self.time_base)
            frame.pts = last = pts if last is None else max(pts, last + 1)
            frame.time_base = self.time_base
            self.first = self.first or frame
            if (frame.width, frame.height) != (self.first.width, self.first.height):
                raise InputError(f"its frames change from {self.first.width} x {self.first.height} pixels "
                                 f"to {frame.width} x {frame.height}")
            self._damaged += frame.is_corrupt
            self._end = (pts + (frame.duration or 0)) * self.time_base
            yield frame

    def _decoded(self):
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                yield from packet.decode()
            except av.error.InvalidDataError:
                self._damaged += 1

    def _progressive(self, frames):
        """The frames, interlaced ones with both fields joined; from the first on, all take that way."""
        graph = None
        for frame in frames:
            if frame.interlaced_frame and not graph:
                self._interlaced = True
                graph = _graph(frame.width, frame.height, frame.format.name, frame.colorspace,
                               frame.color_range, [("bwdif", "mode=send_frame:deint=interlaced")],
                               frame.time_base)
            if graph:
                graph.vpush(frame)
                yield from _pulled(graph)
            else:
                yield frame
        if graph:
            graph.vpush(None)
            yield from _pulled(graph)

    @functools.cached_property
    def colours(self) -> Colours:
        """The `Colours`; of what the file does not say, those that players suppose."""
        frame, matrix = self.first, self.first.colorspace
        if self._is_rgb:
            return Colours(1, 1, frame.color_primaries, frame.color_trc)
        if matrix in (0, 2, 3):  # not said: players go by the size, which changes
            matrix = 1 if frame.height >= 720 else 6
        if matrix not in MATRICES:
            raise InputError(f"its colours are of a kind that is not read (matrix {matrix} of H.273)")
        full = frame.color_range == 2 or (not frame.color_range and frame.format.name[:4] in ("yuvj", "gray"))
        return Colours(matrix, 2 if full else 1, frame.color_primaries, frame.color_trc)

    @functools.cached_property
    def _is_rgb(self):
        return self.first.format.is_rgb or self.first.format.has_palette

    @functools.cached_property
    def _alpha(self):
        return any(component.is_alpha for component in self.first.format.components)

    def picture(self, frame: Any, depth: Literal[8, 16]) -> Picture:
        """A frame as an upright RGB `Picture`, uint8 or (depth 16) float32 in [0, 1], on white."""
        if self._is_rgb:
            frame.colorspace, frame.color_range, meaning = 0, 2, "in_range=pc"
        else:
            frame.colorspace, frame.color_range = self.colours.matrix, self.colours.levels
            meaning = self.colours.meaning("in")
        kind = {(8, False): "rgb24", (8, True): "rgba", (16, False): "rgb48le", (16, True): "rgba64le"}
        planes = _converted(frame, kind[depth, self._alpha], meaning).to_ndarray()
        if depth == 16 or self._alpha:
            planes = planes / np.float32(np.iinfo(planes.dtype).max)
        if self._alpha:
            planes = 1 - planes[..., 3:] * (1 - planes[..., :3])
        swap, down, left = _orientation(frame)
        planes = planes.swapaxes(0, 1) if swap else planes
        planes = planes[:: -1 if down else 1, :: -1 if left else 1]
        return Picture(np.ascontiguousarray(planes if depth == 16 else to_uint8(planes)))

    def encoder(self, output: Any, lr: Picture, sr: Picture, quality: int | None,
                depth: Literal[8, 16]) -> Any:
        """A stream of an open output for frames like `sr`, which was made of `lr`."""
        (height, width), (lr_height, lr_width) = sr.pixels.shape[:2], lr.pixels.shape[:2]
        if min(height, width) < 2:
            raise InputError("a video has at least 2 x 2 pixels")
        stream = output.add_stream(
            "libx264", rate=self.rate, width=width // 2 * 2, height=height // 2 * 2, time_base=self.time_base,
            pix_fmt="yuv420p10le" if depth == 16 else "yuv420p",
            options={"crf": str((100 - (68 if quality is None else quality)) / 2),
                     "x264-params": f"force-cfr={int(self.stream.average_rate == self.stream.base_rate)}"})
        context, colours = stream.codec_context, self.colours
        context.flags |= av.codec.context.Flags.frame_duration  # how long the last one is shown
        context.colorspace, context.color_range = colours.matrix, colours.levels
        context.color_primaries, context.color_trc = colours.primaries, colours.transfer
        pixel = self.stream.sample_aspect_ratio or Fraction(1)  # width over height
        if pixel != 1:
            pixel = 1 / pixel if _orientation(self.first)[0] else pixel
            pixel *= Fraction(lr_width * height, lr_height * width)
            context.sample_aspect_ratio = pixel.limit_denominator(1000)
        return stream

    def encodable(self, frame: Any, sr: Picture, depth: Literal[8, 16]) -> Any:
        """A `Picture` made of a frame, as the frame that is encoded, at the same time."""
        height, width = (length // 2 * 2 for length in sr.pixels.shape[:2])
        pixels = np.ascontiguousarray((to_uint16 if depth == 16 else to_uint8)(sr.pixels[:height, :width]))
        rgb = av.VideoFrame.from_ndarray(pixels, "rgb48le" if depth == 16 else "rgb24")
        rgb.pts, rgb.time_base, rgb.colorspace, rgb.color_range = frame.pts, frame.time_base, 0, 2
        made = _converted(rgb, "yuv420p10le" if depth == 16 else "yuv420p", self.colours.meaning("out"))
        made.pts, made.time_base, made.duration = frame.pts, frame.time_base, frame.duration
        return made

    def found(self) -> Iterator[str]:
        """What the user should know of the source, once all frames are read, a line each."""
        if self._interlaced:
            yield "interlaced: the two fields of a frame are joined"
        if self._alpha:
            yield "transparent: put on white"
        if self._damaged:
            yield f"damaged in {self._damaged} places, where frames are missing or wrong"
        tags = [text for name, text in self.stream.metadata.items() if name.startswith("DURATION")]
        missing = 0
        if self.stream.duration:
            missing = (self.stream.duration + self.first.pts) * self.time_base - self._end
        elif tags and (found := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d*)?)\s*", tags[0])):  # Matroska's
            hours, minutes, seconds = map(float, found.groups())
            missing = 3600 * hours + 60 * minutes + seconds - self._end
        if missing > 0.5:
            yield f"its end is missing, {float(missing):.1f} s"


def _orientation(frame):
    """What makes a frame upright: whether rows become columns, and then whether it is flipped down and left.

    From the display matrix (ISO/IEC 14496-12, 8.3.2): x' = a x + c y, y' = b x + d y.
    """
    stored = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return False, False, False
    (a, b, _), (c, d, _), _ = np.frombuffer(stored, "int32").reshape(3, 3)
    return (True, b < 0, c < 0) if abs(b) > abs(a) else (False, d < 0, a < 0)


def _converted(frame, format, meaning):
    """A frame in another pixel format, by swscale at its most exact."""
    graph = _scaler(frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range,
                    format, meaning)
    graph.vpush(frame)
    return graph.vpull()


@functools.lru_cache(4)
def _scaler(width, height, source, matrix, levels, format, meaning):
    exact = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
    return _graph(width, height, source, matrix, levels,
                  [("scale", f"{exact}:{meaning}"), ("format", format)])


def _graph(width, height, format, matrix, levels, filters, time_base=Fraction(1, 1000)):
    """A chain of FFmpeg's filters, (name, options) each."""
    graph = av.filter.Graph()
    source = graph.add("buffer", video_size=f"{width}x{height}", pix_fmt=format, time_base=str(time_base),
                       pixel_aspect="1/1", colorspace=str(matrix), range=str(levels))
    graph.link_nodes(source, *(graph.add(*each) for each in filters), graph.add("buffersink")).configure()
    return graph


def _pulled(graph):
    """The frames that a graph has ready."""
    with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
        while True:
            yield graph.vpull()


def _write_segment(part, frames, clip, change, quality, depth):
    new = part.with_suffix(".new")
    try:
        with _written(new, ".mp4", clip) as output:
            stream = None
            for frame in frames:
                lr = clip.picture(frame, depth)
                sr = change(lr)
                stream = stream or clip.encoder(output, lr, sr, quality, depth)
                output.mux(stream.encode(clip.encodable(frame, sr, depth)))
            output.mux(stream.encode())
        os.replace(new, part)
    finally:
        new.unlink(missing_ok=True)


def _join(path, segments, clip, strip):
    """Write the frames of the segments, and what stands beside frames in the clip.

    Returns:
        What had to be left out, a line each.
    """
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_opened(clip.container.name))  # anew: the clip has been read to its end
        opened = [stack.enter_context(_opened(segments[0]))]
        output = stack.enter_context(_written(path, path.suffix, clip))
        if not strip:
            texts = source.metadata.items()
            output.metadata.update({name: text for name, text in texts if name.lower() not in OF_THE_FILE})
        output.set_chapters(source.chapters())
        frames = _copied(opened[0].streams.video[0], output)
        frames.metadata.update(_texts(clip.stream))
        copies, left_out = {}, []
        for stream in source.streams:
            if stream.index == clip.stream.index or stream.type in ("data", "unknown"):
                continue
            copy = None if stream.type == "video" else _copied(stream, output)
            if copy:
                copy.metadata.update(_texts(stream))
                copies[stream] = copy
            else:
                name = stream.codec_context.name if stream.codec_context else stream.type
                left_out.append(f"{stream.type} stream {stream.index} ({name}) is left out")

        def time(packet):
            return packet.dts * packet.time_base

        for packet in heapq.merge(_frame_packets(segments, frames),
                                  _other_packets(source, copies, clip.start), key=time):
            output.mux(packet)
    return left_out


def _texts(stream):
    names = ("language", "title", "handler_name")
    return {name: text for name, text in stream.metadata.items() if name in names}


def _copied(stream, output):
    """A stream of an open output for another's packets as they are; None: the output cannot hold them."""
    if stream.type == "attachment" and output.format.name != "matroska":
        return None
    try:
        copy = output.add_stream_from_template(stream, opaque=True)
    except ValueError:
        return None
    copy.disposition = stream.disposition
    return copy


def _frame_packets(segments, stream):
    last = None
    for segment in segments:
        with _opened(segment) as part:
            for packet in part.demux(video=0):
                if packet.dts is None:  # after the last
                    continue
                # Where the rate varies, a segment can begin to be decoded before the last one ends.
                packet.dts = last = packet.dts if last is None else max(packet.dts, last + 1)
                packet.stream = stream
                yield packet


def _other_packets(source, copies, start):
    streams = [stream for stream in copies if stream.type != "attachment"]
    if not streams:  # of none, demux gives the packets of all
        return
    with contextlib.suppress(av.error.InvalidDataError):  # a damaged end
        for packet in source.demux(*streams):
            first = packet.pts if packet.dts is None else packet.dts
            if first is None:  # after the last
                continue
            shift = round(start / packet.time_base)
            packet.dts, packet.pts = first - shift, (first if packet.pts is None else packet.pts) - shift
            packet.stream = copies[packet.stream]
            yield packet
