"""Videos: what goes through the network, what is kept, what goes on after a kill or a fault."""

import errno
import os
import resource
import signal
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from superres import upscale
from superres.datasets import video
from superres.datasets.pictures import Picture, write_picture
from superres.datasets.video import result_suffix, write_video
from superres.errors import InputError
from superres.models.lapsrn import lapsrn
from superres.models.srmap import generator
from superres.models.upscaler import load

av = pytest.importorskip("av")

RATE, FRAMES = 25, 10
# Grey, so that nothing is lost where colours have half the resolution.
PICTURE = np.kron(np.random.default_rng(3).integers(0, 256, (6, 8, 1), "uint8"), np.ones((4, 4, 3), "uint8"))


def rolled(k):
    """Frame k of the tests' clips, 24 x 32."""
    return np.roll(PICTURE, k, 1)


def make(path, codec="libx264", frames=None, times=None, base=None, format="yuv420p", options=(), sound=0,
         prepare=None, file_options=(), **settings):
    """Write a clip: frames (H, W, C) uint8, at times in units of `base`; so many seconds of sound, AAC."""
    frames = [rolled(k) for k in range(FRAMES)] if frames is None else frames
    base = base or Fraction(1, RATE)
    with av.open(str(path), "w", options=dict(file_options)) as output:
        height, width = frames[0].shape[:2]
        stream = output.add_stream(codec, rate=RATE, width=width, height=height, pix_fmt=format,
                                   time_base=base, options={"crf": "1", **dict(options)})
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        audio = output.add_stream("aac", rate=48000, layout="mono") if sound else None
        if prepare:
            prepare(output, stream)
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgba" if pixels.shape[-1] == 4 else "rgb24")
            frame = frame.reformat(format=format)
            frame.pts, frame.time_base = times[k] if times else k, base
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if sound:
            samples = np.random.default_rng(0).normal(0, 0.1, (1, int(48000 * sound))).astype("float32")
            for start in range(0, samples.shape[1], 1024):
                frame = av.AudioFrame.from_ndarray(samples[:, start : start + 1024].copy(), "fltp", "mono")
                frame.sample_rate, frame.pts = 48000, start
                output.mux(audio.encode(frame))
            output.mux(audio.encode())
    return path


def frames_of(path):
    """[(seconds, RGB)] of a clip's frames, by the library's own conversion."""
    with av.open(str(path)) as clip:
        return [(frame.pts * frame.time_base, frame.to_ndarray(format="rgb24"))
                for frame in clip.decode(video=0)]


def sound_of(path):
    """[(seconds, bytes)] of a clip's packets of sound."""
    with av.open(str(path)) as clip:
        return [(float(packet.pts * packet.time_base), bytes(packet)) for packet in clip.demux(audio=0)
                if packet.dts is not None]


def doubled(picture):
    return Picture(picture.pixels.repeat(2, 0).repeat(2, 1))


def converted(source, change=doubled, suffix=None, **options):
    """Where `write_video` has put the clip."""
    path = source.with_name(f"{source.stem}_out{suffix or result_suffix(source)}")
    write_video(path, source, change, "test", **options)
    assert [hidden for hidden in source.parent.iterdir() if hidden.name.startswith(".")] == []
    return path


# ------------------------------------------------------------------ what comes out


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_frames_go_through_the_network_and_sound_stays(run, model, tmp_path, suffix):
    clip = make(tmp_path / f"clip.{suffix}", sound=0.7)  # longer than the frames
    write_picture(tmp_path / "a.png", PICTURE)
    options = ("-o", tmp_path / "out", "--quality", 96)
    assert run(clip, tmp_path / "a.png", *options)[1][-1] == "2 upscaled, 0 failed"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_x2.png", f"clip_x2.{suffix}"]
    result = tmp_path / "out" / f"clip_x2.{suffix}"
    before, after, network = frames_of(clip), frames_of(result), load(model)
    assert [seconds for seconds, _ in before] == [seconds for seconds, _ in after]
    for (_, lr), (_, sr) in zip(before, after, strict=True):
        assert np.abs(network.upscale(lr).astype(int) - sr).mean() < 1
    (then, then_bytes), (now, now_bytes) = (zip(*sound_of(path), strict=True) for path in (clip, result))
    assert then_bytes == now_bytes
    np.testing.assert_allclose(then, now, atol=0.001)
    with av.open(str(result)) as output:
        assert output.streams.video[0].average_rate == RATE
        assert output.streams.video[0].codec_context.name == "h264"


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("matrix", "luma"), [
    (1, (0.2126, 0.7152, 0.0722)), (6, (0.299, 0.587, 0.114)), (9, (0.2627, 0.678, 0.0593))])
def test_colours_come_and_go_by_the_matrix_and_range_of_the_clip(tmp_path, matrix, luma, full):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 30, 90], [0, 0, 0], [255, 255, 255]])
    r, g, b = colours.T / 255
    y = luma[0] * r + luma[1] * g + luma[2] * b
    cb, cr = (b - y) / (2 - 2 * luma[2]), (r - y) / (2 - 2 * luma[0])
    narrow = [16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr]
    planes = [255 * y, 128 + 255 * cb, 128 + 255 * cr] if full else narrow
    planes = np.clip(np.round(planes), 0, 255).astype("uint8")
    with av.open(str(tmp_path / "clip.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=RATE, width=32, height=24, options={"crf": "1"})
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, 2 if full else 1
        context.color_primaries, context.color_trc = 9, 13
        for k, ycc in enumerate(planes.T):
            frame = av.VideoFrame.from_ndarray(ycc.repeat([768, 192, 192]).reshape(36, 32), "yuv420p")
            frame.pts, frame.time_base = k, Fraction(1, RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    seen = []
    result = converted(tmp_path / "clip.mp4", lambda lr: seen.append(lr.pixels) or doubled(lr), quality=96)
    for pixels, colour in zip(seen, colours, strict=True):
        assert np.abs(pixels.astype(int) - colour).max() <= 2
    with av.open(str(result)) as output:
        context = output.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (matrix, 2 if full else 1)
        assert (context.color_primaries, context.color_trc) == (9, 13)
        for frame, ycc in zip(output.decode(video=0), planes.T, strict=True):
            for plane, value in zip(frame.planes, ycc.astype(int), strict=True):
                assert np.abs(np.frombuffer(plane, "uint8")[: plane.width].astype(int) - value).max() <= 2


def test_what_a_small_clip_does_not_say_of_its_colours_is_said_of_the_large_one(tmp_path):
    result = converted(make(tmp_path / "clip.mp4", frames=[PICTURE]), lambda lr: Picture(
        np.zeros((720, 1280, 3), "uint8")))
    with av.open(str(result)) as output:  # where players would suppose 1
        assert output.streams.video[0].codec_context.colorspace == 6


def test_colours_are_not_shifted_against_the_picture(tmp_path):
    edge = np.zeros((24, 32, 3), "uint8")
    edge[:, 16:] = 255, 0, 0
    seen = []
    result = converted(make(tmp_path / "clip.mkv", "ffv1", [edge] * 2, format="bgr0"),
                       lambda lr: seen.append(lr.pixels) or doubled(lr), quality=100)
    np.testing.assert_array_equal(seen, [edge] * 2)
    # Of each pair of columns, colours are those of the left one (H.273, chroma sample location 0).
    with av.open(str(result)) as output:
        frame = next(output.decode(video=0))
        red = np.frombuffer(frame.planes[2], "uint8").reshape(24, -1)[12, :32].astype(int)
    # The sample at the first red column has three quarters of red, and one of the column before.
    assert (np.abs(red[:15] - 128) <= 1).all()
    assert abs(red[16] - (128 + 3 * 240) / 4) <= 2
    assert (np.abs(red[18:] - 240) <= 1).all()


def test_times_stay_where_the_rate_varies(tmp_path):
    times = list(np.cumsum([600, 3003, 3003, 9009, 1500] * 12) + 90000)
    clip = make(tmp_path / "clip.mp4", frames=[rolled(k) for k in range(60)], times=[int(t) for t in times],
                base=Fraction(1, 90000), sound=1)
    result = converted(clip)
    assert [seconds for seconds, _ in frames_of(result)] == [seconds for seconds, _ in frames_of(clip)]


def test_frames_of_60_come_in_two_segments_in_order(tmp_path):
    clip = make(tmp_path / "clip.mkv", frames=[rolled(k) for k in range(60)])
    counts = []
    result = converted(clip, quality=100, progress=lambda *count: counts.append(count))
    assert len(frames_of(result)) == 60
    for k, (_, pixels) in enumerate(frames_of(result)):
        assert np.abs(pixels[::2, ::2].astype(int) - rolled(k)).max() <= 2
    assert [done for done, _ in counts] == list(range(1, 61))


@pytest.mark.parametrize(("degrees", "mirrored"), [
    (90, False), (180, False), (270, False), (0, True), (90, True), (270, True), (180, True)])
def test_turned_clips_come_upright(tmp_path, degrees, mirrored):
    clip = make(tmp_path / "clip.mp4", frames=[PICTURE], sample_aspect_ratio=Fraction(4, 3),
                options={"crf": "0"},
                prepare=lambda output, stream: stream.set_display_rotation(degrees, hflip=mirrored))
    seen = []
    result = converted(clip, lambda lr: seen.append(lr.pixels) or doubled(lr))
    # FFmpeg mirrors what it has turned.
    upright = np.rot90(PICTURE, degrees // 90)
    upright = upright[:, ::-1] if mirrored else upright
    assert seen[0].shape == upright.shape
    assert np.abs(seen[0].astype(int) - upright).max() <= 2
    with av.open(str(result)) as output:
        frame = next(output.decode(video=0))
        assert frame.rotation == 0
        turned = degrees % 180 != 0
        assert (frame.width, frame.height) == ((48, 64) if turned else (64, 48))
        assert output.streams.video[0].sample_aspect_ratio == (Fraction(3, 4) if turned else Fraction(4, 3))


def test_interlaced_clips_become_progressive(tmp_path):
    fields = []
    for k in range(6):  # a bar that moves from field to field
        frame = np.zeros((48, 64, 3), "uint8")
        for parity in (0, 1):
            frame[parity::2, 8 * k + 4 * parity : 8 * k + 4 * parity + 12] = 255
        fields.append(frame)
    clip = make(tmp_path / "clip.mpg", "mpeg2video", fields,
                options={"flags": "+ildct+ilme", "qmin": "1", "qmax": "1"})
    seen = []
    with pytest.warns(UserWarning, match="interlaced"):
        result = converted(clip, lambda lr: seen.append(lr.pixels.astype(int)) or doubled(lr))

    def combed(frame):
        return np.abs(frame[1:-1] - (frame[:-2] + frame[2:]) / 2).mean()

    assert len(seen) == 6
    assert combed(seen[3]) < combed(fields[3].astype(int)) / 3
    with av.open(str(result)) as output:
        assert not any(frame.interlaced_frame for frame in output.decode(video=0))
    assert np.allclose(np.diff([float(seconds) for seconds, _ in frames_of(result)]), 1 / RATE, atol=0.0011)


def test_transparent_clips_come_on_white(tmp_path):
    frame = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, "uint8")])
    frame[:, :16] = 10, 20, 30, 0
    clip = make(tmp_path / "clip.mov", "png", [frame], format="rgba")
    seen = []
    with pytest.warns(UserWarning, match="transparent: put on white"):
        converted(clip, lambda lr: seen.append(lr.pixels) or doubled(lr))
    assert (seen[0][:, :16] == 255).all()
    np.testing.assert_array_equal(seen[0][:, 16:], PICTURE[:, 16:])


def test_ten_bits_are_kept_where_asked_for(tmp_path):
    ramp = np.linspace(0.25, 0.5, 64, dtype="float32")[None, :, None].repeat(48, 0).repeat(3, 2)
    clip = make(tmp_path / "clip.mp4", frames=[PICTURE], format="yuv420p10le")
    seen = []
    result = converted(clip, lambda lr: seen.append(lr.pixels) or Picture(ramp), depth=16, quality=96)
    assert seen[0].dtype == np.float32
    assert 0 <= seen[0].min() < seen[0].max() <= 1
    assert np.abs(seen[0] * 255 - PICTURE).mean() < 1
    with av.open(str(result)) as output:
        frame = next(output.decode(video=0))
        assert frame.format.name == "yuv420p10le"
        row = np.frombuffer(frame.planes[0], "uint16")[:64]
        assert len(np.unique(row)) > 40  # 8 bits have 56 / 64 of it at most: 4 x 219 / 4 levels, 64 columns
    with av.open(str(converted(clip))) as output:
        assert output.streams.video[0].codec_context.pix_fmt == "yuv420p"


@pytest.mark.parametrize(("options", "size"), [
    ((), (62, 46)), (("--scale", 1.5), (46, 34)), (("--size", "40x20"), (40, 20))])
def test_sizes_are_even(run, tmp_path, options, size):
    clip = make(tmp_path / "clip.mkv", "ffv1", [rolled(k)[:23, :31] for k in range(2)], format="yuv444p")
    assert run(clip, "-o", tmp_path / "out", "--suffix", "_out", *options)[0] == 0
    assert frames_of(tmp_path / "out" / "clip_out.mkv")[0][1].shape == (*size[::-1], 3)


def test_texts_chapters_and_languages_stay_and_a_switch_strips(tmp_path):
    chapters = [{"id": k, "start": 200 * k, "end": 200 * k + 200, "time_base": Fraction(1, 1000),
                 "metadata": {"title": title}} for k, title in enumerate(("one", "two"))]

    def prepare(output, stream):
        output.metadata["title"] = "A holiday"
        output.streams.audio[0].metadata["language"] = "deu"
        output.set_chapters(chapters)

    clip = make(tmp_path / "clip.mp4", sound=0.4, prepare=prepare)
    for strip in (False, True):
        with av.open(str(converted(clip, strip=strip))) as output:
            assert output.metadata.get("title") == (None if strip else "A holiday")
            assert output.streams.audio[0].metadata["language"] == "deu"
            there = [(chapter["start"] * chapter["time_base"], chapter["metadata"]["title"])
                     for chapter in output.chapters()]
            assert there == [(0, "one"), (Fraction(1, 5), "two")]


def test_subtitles_and_fonts_stay(tmp_path):
    def prepare(output, stream):
        output.add_attachment("font.ttf", "font/ttf", b"a font")

    clip = make(tmp_path / "plain.mkv", prepare=prepare)
    (tmp_path / "words.srt").write_text("1\n00:00:00,080 --> 00:00:00,200\nHello\n")
    with av.open(str(clip)) as frames, av.open(str(tmp_path / "words.srt")) as words, \
            av.open(str(tmp_path / "clip.mkv"), "w") as output:
        streams = {each: output.add_stream_from_template(each, opaque=True)
                   for each in (*frames.streams, *words.streams)}
        for packet in [*words.demux(0), *frames.demux(video=0)]:
            if packet.size:
                packet.stream = streams[packet.stream]
                output.mux(packet)
    with av.open(str(converted(tmp_path / "clip.mkv"))) as output:
        assert [stream.type for stream in output.streams] == ["video", "subtitle", "attachment"]
        assert output.streams[2].data == b"a font"
        packet = next(packet for packet in output.demux(1) if packet.size)
        assert (bytes(packet), packet.pts * packet.time_base) == (b"Hello", Fraction(8, 100))
    with av.open(str(converted(clip))) as output:  # a font alone
        assert [stream.type for stream in output.streams] == ["video", "attachment"]


def test_containers(tmp_path):
    for name, suffix in {"a.mp4": ".mp4", "a.MOV": ".mp4", "a.webm": ".mkv", "a.avi": ".mkv", "a.ts": ".mkv",
                         "a.png": "", "a": "", "a.gif": ""}.items():
        assert result_suffix(tmp_path / name) == suffix
    make(tmp_path / "clip.avi", sound=0.4, options={"bf": "2"})
    result = converted(tmp_path / "clip.avi")
    assert [round(float(seconds) * RATE) for seconds, _ in frames_of(result)] == list(range(FRAMES))
    make(tmp_path / "late.ts", sound=0.4)
    first, sound = (float(of(converted(tmp_path / "late.ts"))[0][0]) for of in (frames_of, sound_of))
    then, then_sound = (float(of(tmp_path / "late.ts")[0][0]) for of in (frames_of, sound_of))
    assert abs((first - sound) - (then - then_sound)) < 0.002
    assert min(first, sound) < 0.03 < then


def test_a_network_with_noise_draws_the_same_noise_for_every_frame(call, tmp_path, randomize):
    network = randomize(generator(2, stem=8, widths=(8, 8), blocks=(1,), initial_noise=0.5))
    network.save(tmp_path / "noisy.keras")
    clip = make(tmp_path / "clip.mp4", frames=[PICTURE] * 3)
    call(upscale.main, tmp_path / "noisy.keras", clip, "-o", tmp_path / "out", "--samples", 2,
         "--quality", 100)
    drawn = [[pixels.astype(int) for _, pixels in frames_of(tmp_path / "out" / f"clip_x2_{k}.mp4")]
             for k in (1, 2)]
    for frames in drawn:
        assert len(frames) == 3
        for pixels in frames:
            assert np.abs(pixels - frames[0]).max() <= 2
    assert np.abs(drawn[0][0] - drawn[1][0]).max() > 5


# ------------------------------------------------------------------ what goes on


KILLED = """
import os, sys
from superres.datasets import video

def change(lr, count=iter(range(200))):
    if next(count) == 110:
        os.kill(os.getpid(), 9)
    return lr._replace(pixels=lr.pixels.repeat(2, 0).repeat(2, 1))

video.write_video(sys.argv[2], sys.argv[1], change, "test", quality=100)
"""


def test_a_killed_run_goes_on_to_the_same_frames(tmp_path):
    # Without loss: with it, x264 itself makes frames of few blocks a little different each time.
    clip = make(tmp_path / "clip.mp4", frames=[rolled(k) for k in range(130)], sound=5)
    whole, result = converted(clip, quality=100), tmp_path / "killed.mp4"
    killed = subprocess.run([sys.executable, "-c", KILLED, clip, result], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-500:]
    assert not result.exists()
    parts = tmp_path / ".killed.mp4.parts"
    assert {"000000.mp4", "000001.mp4"} < {path.name for path in parts.iterdir()}
    changed = []
    write_video(result, clip, lambda lr: changed.append(0) or doubled(lr), "test", quality=100)
    assert len(changed) == 130 - 2 * video.SEGMENT
    assert not parts.exists()
    assert sound_of(result) == sound_of(whole)
    for (seconds, pixels), (same, expected) in zip(frames_of(result), frames_of(whole), strict=True):
        assert seconds == same
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("other", ["made_by", "quality", "source"])
def test_segments_of_another_run_are_not_taken(tmp_path, other):
    clip = make(tmp_path / "clip.mp4", frames=[rolled(k) for k in range(50)])

    done = []

    def stops(picture):
        done.append(0)
        if len(done) == 50:
            raise KeyboardInterrupt
        return doubled(picture)

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "out.mp4", clip, stops, "test")
    assert [path.name for path in (tmp_path / ".out.mp4.parts").glob("*.mp4")] == ["000000.mp4"]
    if other == "source":
        os.utime(clip, (1, 1))
    changed = []
    write_video(tmp_path / "out.mp4", clip, lambda lr: changed.append(0) or doubled(lr),
                "another" if other == "made_by" else "test", quality=50 if other == "quality" else None)
    assert len(changed) == 50


@pytest.mark.parametrize("name", ["cut.mkv", "cut.mp4"])
def test_a_clip_without_its_end_gives_what_there_is(tmp_path, name):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (24, 32, 3), "uint8") for _ in range(60)]
    whole = make(tmp_path / f"whole{name[3:]}", frames=frames, sound=2.4,
                 file_options={"movflags": "faststart"} if name.endswith("mp4") else {})
    (tmp_path / name).write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    with pytest.warns(UserWarning, match=r"cut\.mp.*|cut\.mkv.*") as warned:
        result = converted(tmp_path / name)
    assert any("its end is missing" in str(warning.message) for warning in warned)
    assert 20 < len(frames_of(result)) < 45


def test_bad_files_are_one_line_and_the_batch_goes_on(run, tmp_path):
    clip = make(tmp_path / "good.mp4", frames=[PICTURE])
    data = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.mkv").write_bytes(b"")
    (tmp_path / "text.mov").write_text("no video" * 100)
    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        audio = output.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), "float32"), "fltp", "mono")
        frame.sample_rate = 48000
        output.mux([*audio.encode(frame), *audio.encode()])
    status, out, err = run(tmp_path, "-o", tmp_path / "out")
    assert (status, out[-1]) == (1, "1 upscaled, 4 failed")
    assert [line.partition(" (")[0] for line in err] == [
        f"failed: {tmp_path / 'cut.mp4'}: not a readable video",
        f"failed: {tmp_path / 'empty.mkv'}: not a readable video",
        f"failed: {tmp_path / 'sound.mp4'}: it has no video",
        f"failed: {tmp_path / 'text.mov'}: not a readable video"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good_x2.mp4"]


@pytest.mark.parametrize("kept", [False, True])
def test_a_full_disk_leaves_no_half_result(tmp_path, kept):
    clip = make(tmp_path / "clip.mkv", frames=[rolled(k) for k in range(60)])
    size = converted(clip, quality=100).stat().st_size
    (tmp_path / "out").mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size * 19 // 20 if kept else size // 4, limits[1]))
    try:
        with pytest.raises(OSError) as full:
            write_video(tmp_path / "out" / "out.mkv", clip, doubled, "test", quality=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full.value.errno == errno.EFBIG
    left = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert left == (["000000.mp4", "000001.mp4", "key"] if kept else [])
    write_video(tmp_path / "out" / "out.mkv", clip, doubled, "test", quality=100)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["out.mkv"]


@pytest.mark.parametrize(("options", "message"), [
    (("--format", "png"), "--format, --white: for pictures, and all inputs are videos"),
    (("--quality", 101), "--quality: from 1 to 100"),
    (("--size", "31x20"), "--size: a video's width and height are even, not 31x20"),
])
def test_options_that_videos_do_not_take_are_one_line(run, tmp_path, options, message):
    status, _, err = run(make(tmp_path / "clip.mp4", frames=[PICTURE]), "-o", tmp_path / "out", *options)
    assert (status, len(err)) == (2, 1)
    assert message in err[0]
    assert not (tmp_path / "out").exists()


def test_networks_of_one_size_take_no_videos(call, tmp_path, capsys):
    clip = make(tmp_path / "clip.mp4", frames=[PICTURE])
    with pytest.raises(SystemExit):
        call(upscale.main, "pixel_recursive-celeba-regression", clip, "-o", tmp_path / "out")
    assert "clip.mp4: a video is for networks of any size" in capsys.readouterr().err


def test_without_the_library_a_line_says_what_to_install(run, tmp_path, monkeypatch):
    clip = make(tmp_path / "clip.mp4", frames=[PICTURE])
    write_picture(tmp_path / "a.png", PICTURE)
    monkeypatch.setattr(video, "av", None)
    status, out, err = run(tmp_path, "-o", tmp_path / "out")
    assert (status, out[-1]) == (1, "1 upscaled, 1 failed")
    assert err == [f"failed: {clip}: videos need PyAV, which is not installed: pip install av"]
    with pytest.raises(InputError, match="PyAV"):
        write_video(tmp_path / "b.mp4", clip, doubled, "test")


def test_a_large_clip_that_says_nothing_of_its_colours_is_of_bt709(tmp_path):
    clip = make(tmp_path / "clip.mp4", frames=[np.full((720, 1280, 3), (200, 30, 90), "uint8")])
    with av.open(str(converted(clip, lambda lr: Picture(PICTURE)))) as output:
        assert output.streams.video[0].codec_context.colorspace == 1


@pytest.mark.parametrize(("quality", "factor"), [(None, b"crf=16.0"), (96, b"crf=2.0")])
def test_quality_is_x264_s_rate_factor(tmp_path, quality, factor):  # x264 writes its settings into the stream
    assert factor in converted(make(tmp_path / "clip.mp4"), quality=quality).read_bytes()


def test_pixels_that_are_not_square_keep_the_picture_s_shape(tmp_path):
    clip = make(tmp_path / "clip.mp4", frames=[PICTURE], sample_aspect_ratio=Fraction(4, 3))
    result = converted(clip, lambda lr: Picture(np.zeros((32, 64, 3), "uint8")))
    with av.open(str(result)) as output:  # 4 / 3 * 32 / 24 = x * 64 / 32
        assert output.streams.video[0].sample_aspect_ratio == Fraction(8, 9)


def test_segments_are_told_apart_by_all_that_makes_them(call, model, tmp_path, randomize, monkeypatch):
    made = []
    monkeypatch.setattr(upscale, "write_video", lambda *arguments: made.append(arguments[3]))
    randomize(lapsrn(2, filters=4, depth=1)).save(other := tmp_path / "other.keras")
    clip = make(tmp_path / "clip.mp4", frames=[PICTURE])
    for network, *options in ((model,), (other,), (model, "--blend", 0.5, "--blend-with", other),
                              (model, "--scale", 1.5), (model, "--size", "40x20"), (model, "--ensemble"),
                              (model, "--precision", "bfloat16")):
        call(upscale.main, network, clip, "-o", tmp_path / "out", *options)
    assert len(made) == len(set(made)) == 7
