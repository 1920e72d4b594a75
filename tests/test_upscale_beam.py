"""upscale_beam.py against upscale.py, and after faults: damaged pictures, a full disk, a killed worker."""

import contextlib
import csv
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from conftest import ROOT

pytest.importorskip("apache_beam", reason="Apache Beam is not installed (make beam)")

from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem
from PIL import Image

from superres import upscale, upscale_beam
from superres.datasets.pictures import Picture, read_frames, write_frames, write_picture
from superres.models.lapsrn import lapsrn
from superres.models.srmap import generator


class OtherFileSystem(LocalFileSystem):
    """other://FOLDER/NAME: stands for what is not on this machine."""

    @classmethod
    def scheme(cls):
        return "other"

    def join(self, basepath, *paths):
        return "/".join([basepath, *paths])

    def exists(self, path):
        return super().exists(self.here(path))

    def mkdirs(self, path):
        super().mkdirs(self.here(path))

    def create(self, path, *options):
        return super().create(self.here(path), *options)

    def open(self, path, *options):
        return super().open(self.here(path), *options)

    def rename(self, sources, destinations):
        super().rename(*(list(map(self.here, paths)) for paths in (sources, destinations)))

    def delete(self, paths):
        super().delete(list(map(self.here, paths)))

    def _list(self, folder):
        for found in super()._list(self.here(folder)):
            yield FileMetadata(f"other:/{found.path}", found.size_in_bytes)

    def _url_dirname(self, path):
        return path.rpartition("/")[0]

    @staticmethod
    def here(path):
        return path.removeprefix("other:/")


@pytest.fixture
def beam(monkeypatch, ended):
    """Run upscale_beam.py with a command line in this process: (status, lines of output, lines of errors)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["upscale_beam.py", *map(str, arguments)])
        return ended(upscale_beam.cli)

    return run


@pytest.fixture
def folder(tmp_path, photo):
    """Pictures of all kinds, two of one name beside each other, a third below, and two damaged ones."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    write_picture(folder / "colour.png", photo[:40, :30])
    write_picture(folder / "colour.jpg", photo[40:70, :30])
    write_picture(folder / "below" / "colour.png", photo[70:100, :30])
    write_picture(folder / "grey.tif", photo[:24, :28, :1])
    write_picture(folder / "alpha.png", Picture(photo[:20, :20], photo[20:40, :20, :1]))
    write_picture(folder / "deep.png", Picture(photo[:20, :30] / np.float32(255) ** 1.01), depth=16)
    write_frames(folder / "clip.webp", [Picture(photo[k : k + 16, :12]) for k in (0, 9, 40)])
    (folder / "cut.jpg").write_bytes((folder / "colour.jpg").read_bytes()[:300])
    (folder / "empty.png").write_bytes(b"")
    return folder


TWO_PROCESSES = ("--runner", "DirectRunner", "--direct_running_mode", "multi_processing",
                 "--direct_num_workers", "2")
BAD = ["cut.jpg", "empty.png"]


def contents(folder):
    """What lies below a folder, but for the report: path -> (bytes, time)."""
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in folder.rglob("*") if path.is_file() and path.suffix != ".csv"}


def table(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def assert_same_pictures(folder, other):
    """Both hold the same names, and pictures that are the same to one level of 255."""
    assert contents(folder).keys() == contents(other).keys()
    for name in contents(folder):
        for one, two in zip(read_frames(folder / name), read_frames(other / name), strict=True):
            assert one.info == two.info
            for a, b in ((one.pixels, two.pixels), (one.alpha, two.alpha)):
                assert (a is None) == (b is None)
                if a is not None:
                    assert a.shape == b.shape
                    assert np.abs(a.astype(int) - b).max() <= 1


def test_the_same_pictures_as_upscale_py_and_a_second_run_writes_none(beam, run, model, folder, tmp_path):
    status, out, _ = run(folder, "-o", tmp_path / "expected")
    assert (status, out[-1]) == (1, "7 upscaled, 2 failed")
    upscale_beam.network_of.cache_clear()
    status, out, err = beam(model, folder / "**", tmp_path / "out")
    assert upscale_beam.network_of.cache_info().misses == 1  # loaded once
    assert (status, out) == (1, ["7 written, 0 there already, 2 bad"])
    assert err[-1] == f"{tmp_path / 'out' / 'errors.csv'} names the bad ones, and why"
    assert_same_pictures(tmp_path / "expected", tmp_path / "out")
    assert {"colour_x2.png", "colour_x2_2.png", "below/colour_x2.png", "clip_x2.webp"} < contents(
        tmp_path / "out").keys()
    heading, *rows = table(tmp_path / "out" / "errors.csv")
    assert heading == ["file", "reason"]
    assert [file for file, _ in rows] == [str(folder / name) for name in BAD]
    assert all("not a readable picture" in reason and str(tmp_path) not in reason for _, reason in rows)

    before = contents(tmp_path / "out")
    for name in BAD:
        (folder / name).unlink()
    write_picture(folder / "cut.jpg", np.zeros((4, 4, 3), "uint8"))
    assert beam(model, folder / "**", tmp_path / "out")[:2] == (0, ["1 written, 7 there already, 0 bad"])
    after = contents(tmp_path / "out")
    assert after.keys() - before.keys() == {"cut_x2.png"}
    assert {**after, **before} == after
    assert table(tmp_path / "out" / "errors.csv") == [["file", "reason"]]
    assert table(tmp_path / "out" / "report.csv") == [
        ["outcome", "pictures"], ["there already", "7"], ["written", "1"]]


def test_names_that_are_no_text_and_names_too_long(beam, model, photo, tmp_path):
    for name in ("good\udcff.png", "n" * 250 + ".png"):  # the byte 255, which UTF-8 does not have
        write_picture(tmp_path / name, photo[:8, :8])
    (tmp_path / "bad\udcfe,\n.png").write_bytes(b"")
    assert beam(model, tmp_path / "*", tmp_path / "out")[1] == ["1 written, 0 there already, 2 bad"]
    assert contents(tmp_path / "out").keys() == {"good\udcff_x2.png"}
    (bad, reason), (long, too_long) = table(tmp_path / "out" / "errors.csv")[1:]
    assert bad == rf"{tmp_path}/bad\udcfe,{chr(10)}.png"
    assert reason.startswith("not a readable picture")
    assert long.endswith("nnn.png")
    assert "File name too long" in too_long


def test_options_are_those_of_upscale_py(beam, draw, folder, tmp_path):
    network = tmp_path / "noisy.keras"
    generator(2, stem=8, widths=(8, 8), blocks=(1,), initial_noise=0.5).save(network)
    options = ("--samples", 2, "--temperature", 0.5, "--seed", 3, "--tile", 16, "--format", "webp",
               "--suffix", "_big")
    draw(network, folder / "colour.png", *options, out="expected")
    assert beam(network, folder / "colour.p*", tmp_path / "out", *options)[0] == 0
    assert_same_pictures(tmp_path / "expected", tmp_path / "out")
    assert contents(tmp_path / "out").keys() == {"colour_big_1.webp", "colour_big_2.webp"}


def test_the_mean_over_turns_is_upscale_py_s(beam, draw, folder, tmp_path, randomize):
    randomize(lapsrn(2, filters=4, depth=1)).save(network := tmp_path / "any.keras")
    once = draw(network, folder / "colour.png", out="once")
    mean = draw(network, folder / "colour.png", "--ensemble", out="expected")
    assert (once["colour_x2.png"] != mean["colour_x2.png"]).any()
    assert beam(network, folder / "colour.p*", tmp_path / "out", "--ensemble")[0] == 0
    assert_same_pictures(tmp_path / "expected", tmp_path / "out")


def test_other_file_systems_and_results_among_the_pictures(beam, run, model, folder, tmp_path):
    assert upscale_beam.FileSystems.get_filesystem("other://a").scheme() == "other"
    there, out = f"other:/{folder}", folder / "out"
    assert beam(f"other:/{model}", f"{there}/**", f"other:/{out}")[1] == ["7 written, 0 there already, 2 bad"]
    assert table(out / "errors.csv")[1][0] == f"{there}/cut.jpg"
    assert beam(f"other:/{model}", f"{there}/**", f"other:/{out}")[1] == ["0 written, 7 there already, 2 bad"]
    names = contents(out).keys()
    assert len(names) == 7
    assert not any(name.startswith(".parts") for name in names)


def test_a_full_disk_ends_the_job_and_leaves_no_half_picture(beam, model, folder, tmp_path, monkeypatch):
    copy, copied = upscale_beam.shutil.copyfileobj, []

    def full(source, destination):
        copied.append(destination)
        if len(copied) > 6 and "/.parts/" in destination.name:
            destination.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, destination)

    monkeypatch.setattr(upscale_beam.shutil, "copyfileobj", full)
    with pytest.raises(Exception, match="No space left"):
        beam(model, folder / "**", tmp_path / "out")
    assert list((tmp_path / "out").glob("*.png"))
    monkeypatch.undo()
    assert beam(model, folder / "**", tmp_path / "out")[0] == 1
    assert len(contents(tmp_path / "out")) == 7
    assert not (tmp_path / "out" / ".parts").exists()


def workers(group):
    """The worker processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            words = (path / "cmdline").read_bytes().split(b"\0")
            if os.getpgid(int(path.name)) == group and b"apache_beam.runners.worker.sdk_worker_main" in words:
                found.append(int(path.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_worker_loses_nothing(model, tmp_path, rng):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    for k in range(300):
        write_picture(pictures / f"{k}.png", rng.integers(0, 256, (8, 8, 3), "uint8"))
    (pictures / "7.png").write_bytes(b"")
    command = [sys.executable, ROOT / "upscale_beam.py", model, pictures / "*.png", out, *TWO_PROCESSES]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    while job.poll() is None and len(list(out.glob("*.png"))) < 5:
        time.sleep(0.02)
    try:
        found = workers(job.pid)
        assert len(found) >= 2  # for moments, a third that one of them has forked
        os.kill(min(found), signal.SIGKILL)
        assert job.wait(300) != 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    written = contents(out)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1  # one of them is bad
    count = dict(table(out / "report.csv"))
    assert int(count.get("written", 0)) + int(count["there already"]) == 299
    assert int(count["there already"]) >= 5
    after = contents(out)
    assert after.keys() == {f"{k}_x2.png" for k in range(300) if k != 7}
    whole = {name: content for name, content in written.items() if not name.startswith(".parts")}
    assert {**after, **whole} == after  # what the first run wrote was whole, and is not written again
    for name in after:
        with Image.open(out / name) as image:
            assert np.asarray(image).shape == (16, 16, 3)
    assert table(out / "errors.csv")[1:][0][0] == str(pictures / "7.png")


@pytest.mark.parametrize(("name", "pattern", "output", "options", "message"), [
    ("none.keras", "**", "out", (), "none.keras: no such model file"),
    ("", "*.bmp", "out", (), "*.bmp: matches no file"),
    ("", "**", "a_file", (), "a_file: cannot be written to"),
    ("", "**", "pictures", (), "pictures: holds the pictures"),
    ("", "**", "out", ("--tile", 0), "tile: must be at least 1"),
    ("", "**", "out", ("--samples", 2), "samples: only for networks that draw samples"),
    ("", "**", "out", ("--suffix", "_2"), "--suffix: holds no / and ends in no number as _2 does, not '_2'"),
    ("", "**", "nosuch://out", (), "nosuch://out: cannot be written to"),
    ("", "**", "out", ("--runner", "NoSuchRunner"), "NoSuchRunner"),
    ("", "**", "out", ("--format", "jpg", "--quality", "50"), "--quality: neither an option of this"),
    ("", "**", "out", ("--direct_num_workers", "many"), "invalid int value: 'many'"),
    ("", "**", "out", ("another", "out"), "another: there is one pattern, in quotes, and one output"),
])
def test_what_cannot_be_is_one_line(beam, model, folder, tmp_path, name, pattern, output,
                                   options, message):
    (tmp_path / "a_file").write_text("")
    output = output if "://" in output else tmp_path / output
    status, out, err = beam(name or model, folder / pattern, output, *options)
    assert (status, out) == (2, [])
    assert len(err) == 1
    assert message in err[0]


def test_a_pattern_of_no_known_file_system_is_one_line(beam, model, tmp_path):
    status, _, err = beam(model, "nosuch://pictures/**", tmp_path / "out")
    assert (status, len(err)) == (2, 1)
    assert "nosuch://pictures/**: Unable to get filesystem" in err[0]


def test_a_name_that_is_taken_is_numbered():
    taken, name = set(), PurePosixPath("below/a_x1.5.png")
    assert [upscale.claimed(name, taken).name for _ in range(3)] == [
        "a_x1.5.png", "a_x1.5_2.png", "a_x1.5_3.png"]
    assert upscale.claimed(PurePosixPath("a_x1.5.png"), taken).name == "a_x1.5.png"
