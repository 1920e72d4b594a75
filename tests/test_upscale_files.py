"""upscale.py and the files of its user: what is kept, what is written, what goes on after a fault."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageCms

from superres import upscale
from superres.datasets import pictures
from superres.datasets.degradations import imresize
from superres.datasets.pictures import Picture, read_frames, read_picture, write_frames, write_picture
from superres.models.hub import WEIGHTS
from superres.models.upscaler import load


@pytest.fixture
def folder(tmp_path, photo):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in "abc":
        write_picture(folder / f"{name}.png", photo[:12, :10] // (1 + "abc".index(name)))
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------ what stands there already


def test_nothing_that_stood_there_is_written_over(run, folder):
    (folder / "a_x2.png").write_bytes((folder / "b.png").read_bytes())  # the user's own
    before = contents(folder)
    status, out, err = run(folder / "a.png", folder / "b.png", "-o", folder)
    assert status == 1
    assert out[-1] == "1 upscaled, 1 failed"
    assert err == [f"failed: {folder / 'a.png'}: {folder / 'a_x2.png'} is there already; --overwrite writes "
                   "over it, --skip-existing leaves it"]
    assert {**contents(folder), **before} == contents(folder)
    assert sorted(contents(folder).keys() - before.keys()) == ["b_x2.png"]


def test_no_input_is_written_over_even_when_told_to(run, folder, photo):
    write_picture(folder / "a_x2.png", photo[:8, :8])
    before = contents(folder)
    status, out, err = run(folder / "a.png", folder / "a_x2.png", "-o", folder, "--overwrite")
    assert (status, out[-1]) == (1, "1 upscaled, 1 failed")
    assert err == [f"failed: {folder / 'a.png'}: {folder / 'a_x2.png'} is an input, which no result is "
                   "written over; choose another --output"]
    assert {**contents(folder), **before} == contents(folder)
    assert read_picture(folder / "a_x2_x2.png").pixels.shape == (16, 16, 3)


def test_results_of_an_earlier_run_are_no_inputs(run, folder):
    assert run(folder, "-o", folder)[0] == 0
    before = contents(folder)
    status, out, err = run(folder, "-o", folder, "--skip-existing")
    assert (status, err, out[-1]) == (0, [], "0 upscaled, 3 there already, 0 failed")
    assert sum("looks like a result of" in line for line in out) == 3
    assert contents(folder) == before
    # Named, it is one; and a picture that is called so where there is no other is one too.
    assert run(folder / "a_x2.png", "-o", folder)[1][-1] == "1 upscaled, 0 failed"
    (folder / "c.png").unlink()
    out = run(folder / "c*.png", "-o", folder)[1]
    assert out[-1] == "1 upscaled, 0 failed"


def test_results_below_an_input_folder_are_no_inputs(run, folder):
    out = folder / "up" / "scaled"
    assert run(folder, "-o", out)[1][-1] == "3 upscaled, 0 failed"
    before = contents(out)
    status, lines, err = run(folder, "-o", out, "--skip-existing")
    assert (status, err) == (0, [])
    assert lines[0] == f"left out: 3 pictures in {out}, where results go"
    assert lines[-1] == "0 upscaled, 3 there already, 0 failed"
    assert contents(out) == before
    assert run(folder / "**" / "*.png", "-o", out, "--skip-existing")[1][-1] == lines[-1]
    assert contents(out) == before
    # Named, they are.
    assert run(out, "-o", out / "again")[1][-1] == "3 upscaled, 0 failed"


def test_linked_pictures_hide_no_others_where_results_go_beside_them(run, folder, tmp_path):
    (folder / "c.png").rename(tmp_path / "elsewhere.png")
    (folder / "c.png").symlink_to(tmp_path / "elsewhere.png")
    for given in (folder, folder / "[abc].png"):
        assert run(given, "-o", folder, "--overwrite")[1][-1] == "3 upscaled, 0 failed"


@pytest.mark.parametrize(("name", "option"), [("a_x4", "--strip"), ("a_x1.5_2", "--suffix=_big"),
                                              ("a_30x20", "--size=10x12")])
def test_results_of_another_scale_or_size_are_no_inputs_either(run, folder, name, option):
    write_picture(folder / f"{name}.png", np.zeros((4, 4, 3), "uint8"))
    status, out, _ = run(folder, "-o", folder, option)
    assert (status, out[-1]) == (0, "3 upscaled, 0 failed")
    assert f"left out: {folder / name}.png looks like a result of a; name it to upscale it" in out


def test_a_stopped_batch_goes_on(run, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(folder / "a.png", folder / "b.png", "-o", out)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(folder, "-o", out, "--skip-existing")[1][-1] == "1 upscaled, 2 there already, 0 failed"
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert run(folder, "-o", out, "--overwrite")[1][-1] == "3 upscaled, 0 failed"
    assert all(path.stat().st_mtime_ns != time for path, time in times.items())


# ------------------------------------------------------------------ faults


def test_a_name_that_is_too_long_is_one_file_s_fault(run, folder, tmp_path, photo):
    name = "n" * 250 + ".png"
    write_picture(folder / name, photo[:8, :8])
    status, out, err = run(folder, "-o", tmp_path / "out")
    assert (status, out[-1]) == (1, "3 upscaled, 1 failed")
    assert len(err) == 1
    assert "File name too long" in err[0]
    assert name[:-4] in err[0]


def test_a_full_disk_ends_the_run_with_what_was_done(run, folder, tmp_path, monkeypatch):
    save = pictures.save

    def full(part, path, *rest):
        save(part, path, *rest)
        if path.name.startswith("b"):
            raise OSError(errno.ENOSPC, "No space left on device")  # as of an open file: without a name

    monkeypatch.setattr(pictures, "save", full)
    status, out, err = run(folder, "-o", tmp_path / "out")
    assert status == 1
    assert out[-1] == "1 upscaled, 1 failed, 1 not tried"
    assert err == [f"failed: {folder / 'b.png'}: {tmp_path / 'out' / 'b_x2.png'}: cannot be written "
                   "(No space left on device)", "the disk is full: stopped after 2 of 3"]
    assert list(contents(tmp_path / "out")) == ["a_x2.png"]


def test_a_reader_of_the_output_that_goes_ends_the_run(model, folder, tmp_path):
    command = [sys.executable, "-u", upscale.__file__, str(model), str(folder), "-o", str(tmp_path / "out")]
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    assert process.returncode == 141
    assert process.stderr == "nobody reads the output: stopped after 1 of 3\n"


def test_a_name_that_begins_with_a_dash_gets_a_hint(run, tmp_path, monkeypatch, photo, capsys):
    write_picture(tmp_path / "-dash.png", photo[:8, :8])
    monkeypatch.chdir(tmp_path)
    status, _, err = run("-o", "out", "--", "-gone.png")
    assert status == 2
    assert "for a name that begins with a dash, write ./-gone.png" in err[0]
    monkeypatch.setattr(sys, "argv", ["upscale.py", "lapsrn-x2", "-dash.png", "-o", "out"])
    with pytest.raises(SystemExit, match="2"):
        upscale.cli()
    hint = "error: -dash.png: for a name that begins with a dash, write ./-dash.png\n"
    assert capsys.readouterr().err == hint
    assert run("./-dash.png", "-o", "out")[1][-1] == "1 upscaled, 0 failed"


@pytest.mark.parametrize(("options", "message"), [
    (("--quality", 90), "--quality: from 1 to 100, for --format jpg"),
    (("--quality", 0, "--format", "jpg"), "--quality: from 1 to 100"),
    (("--depth", 16, "--format", "jpg"), "--depth: 16 bits go into png and tiff, not jpg"),
    (("--size", "20"), "--size: must be WIDTHxHEIGHT, such as 1920x1080, not 20"),
    (("--size", "0x20"), "--size: must be WIDTHxHEIGHT"),
    (("--size", "20x00"), "--size: must be WIDTHxHEIGHT"),
    (("--size", "20x20", "--scale", 2), "--size, --scale: give one of them"),
    (("--scale", 3), "--scale: must be above 0 and at most the network's, 2, not 3"),
    (("--overwrite", "--skip-existing"), "--overwrite, --skip-existing: give one of them"),
    (("--suffix", "a/b"), "--suffix: is added to a name and holds no /"),
    (("--tile", 0), "tile: must be at least 1"),
    (("--white", 0), "--white: must be a finite number above 0, not 0"),
    (("--white", "nan"), "--white: must be a finite number above 0, not nan"),
])
def test_options_that_cannot_be_are_one_line(run, folder, tmp_path, options, message):
    status, out, err = run(folder, "-o", tmp_path / "out", *options)
    assert (status, out) == (2, [])
    assert len(err) == 1
    assert message in err[0]
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ what comes out


def test_results_keep_profile_resolution_and_exif_and_a_switch_strips(run, folder, tmp_path, photo):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"  # turned by a quarter
    Image.fromarray(photo[:12, :10]).save(folder / "d.jpg", icc_profile=profile, exif=exif, dpi=(300, 300),
                                          quality=100, subsampling=0)
    run(folder / "d.jpg", "-o", tmp_path / "out")
    with Image.open(tmp_path / "out" / "d_x2.png") as image:
        assert image.size == (24, 20)
        assert image.info["icc_profile"] == profile
        assert np.round(image.info["dpi"]).tolist() == [300, 300]
        assert (image.getexif().get(0x0112, 1), image.getexif()[0x010F]) == (1, "Maker")
    run(folder / "d.jpg", "-o", tmp_path / "bare", "--strip")
    with Image.open(tmp_path / "bare" / "d_x2.png") as image:
        assert image.info["icc_profile"] == profile
        assert "dpi" not in image.info
        assert not image.getexif()


@pytest.mark.parametrize(("format", "kind"), [
    ("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("tiff", "TIFF"), ("avif", "AVIF"), ("gif", "GIF")])
def test_formats(run, folder, tmp_path, format, kind):
    options = ("--quality", 90) if format in ("jpg", "webp", "avif") else ()
    assert run(folder / "a.png", "-o", tmp_path / "out", "--format", format, *options)[0] == 0
    with Image.open(tmp_path / "out" / f"a_x2.{format}") as image:
        assert (image.format, image.size) == (kind, (20, 24))


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_16_bits_come_from_the_network_s_floats(run, model, folder, tmp_path, format):
    levels = (np.arange(120).reshape(12, 10, 1) * 500 + np.arange(3) * 100).astype("uint16")
    write_picture(folder / "deep.png", Picture(levels / np.float32(65535)), depth=16)
    run(folder / "deep.png", folder / "a.png", "-o", tmp_path / "out", "--depth", 16, "--format", format)
    network = load(model)
    shallow = read_picture(folder / "a.png").pixels
    for name, lr in (("deep", levels / np.float32(65535)), ("a", shallow / 255)):
        sr = read_picture(tmp_path / "out" / f"{name}_x2.{format}", depth=16).pixels
        assert sr.dtype == np.float32
        assert len(np.unique(sr)) > 256
        np.testing.assert_allclose(sr, network.upscale(lr.astype("float32")), atol=0.51 / 65535)


@pytest.mark.parametrize(("options", "size"), [
    (("--size", "15x20"), (15, 20)), (("--scale", 1.5), (15, 18)), (("--size", "20x24"), (20, 24))])
def test_exact_sizes_are_matlabs_bicubic_of_the_result(run, folder, tmp_path, options, size):
    run(folder / "a.png", "-o", tmp_path / "whole")
    run(folder / "a.png", "-o", tmp_path / "out", "--suffix", "_small", *options)
    whole = read_picture(tmp_path / "whole" / "a_x2.png").pixels
    expected = imresize(whole, (size[1] / 24, size[0] / 20)) if size != (20, 24) else whole
    np.testing.assert_array_equal(read_picture(tmp_path / "out" / "a_small.png").pixels, expected)


def test_larger_than_the_network_makes_is_said(run, folder, tmp_path):
    status, out, err = run(folder / "a.png", "-o", tmp_path / "out", "--size", "21x20")
    assert (status, out[-1]) == (1, "0 upscaled, 1 failed")
    assert "--size: 21 x 20 is larger than what the network makes, 20 x 24" in err[0]
    assert contents(tmp_path / "out") == {}


def test_no_rim_around_what_is_transparent(run, tmp_path):
    y, x = np.mgrid[:24, :24]
    disc = ((y - 12) ** 2 + (x - 12) ** 2 < 60)[..., None]
    white = np.where(disc, 255, 0).astype("uint8")
    write_picture(tmp_path / "disc.png", Picture(white.repeat(3, -1), white))
    run(tmp_path / "disc.png", "-o", tmp_path / "out")
    sr = read_picture(tmp_path / "out" / "disc_x2.png")
    assert (sr.alpha > 0).sum() > 4 * disc.sum()
    assert sr.pixels[sr.alpha[..., 0] > 0].min() >= 254


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_animations_stay_animations(run, model, tmp_path, photo, suffix):
    frames = [Picture(photo[k : k + 16, :12]) for k in (0, 9, 40)]
    write_frames(tmp_path / f"clip{suffix}", frames)
    run(tmp_path / f"clip{suffix}", "-o", tmp_path / "out")
    network = load(model)
    before, after = (list(read_frames(folder / name)) for folder, name in (
        (tmp_path, f"clip{suffix}"), (tmp_path / "out", f"clip_x2{suffix}")))
    assert len(before) == len(after) == 3
    for one, two in zip(before, after, strict=True):
        expected = network.upscale(one.pixels).astype(int)
        assert two.pixels.shape == expected.shape
        assert np.abs(two.pixels - expected).mean() < (12 if suffix == ".gif" else 0.01)  # of 256 colours


def test_white_of_floats_is_asked_for_and_taken(run, tmp_path):
    values = np.linspace(0, 4000, 120, dtype="float32").reshape(12, 10)
    Image.fromarray(values).save(tmp_path / "floats.tif")
    status, _, err = run(tmp_path / "floats.tif", "-o", tmp_path / "out")
    assert status == 1
    assert "--white VALUE" in err[0]
    run(tmp_path / "floats.tif", "-o", tmp_path / "out", "--white", 4000)
    sr = read_picture(tmp_path / "out" / "floats_x2.png").pixels
    assert (sr.min(), sr.max()) == (0, 255)


# ------------------------------------------------------------------ networks by name


def test_list_shows_every_network_that_is_shipped(run_command):
    result = run_command("upscale.py", "--list")
    assert (result.returncode, result.stderr) == (0, "")
    heading, *lines = result.stdout.splitlines()
    assert heading.split() == ["network", "scale", "for", "figure"]
    assert sorted(line.split()[0] for line in lines) == sorted(path.stem for path in WEIGHTS.glob("*.keras"))


def test_who_reads_the_list_may_go():
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run([sys.executable, "upscale.py", "--list"], cwd=ROOT, stdout=writing,
                            stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, "")


def test_a_name_need_not_be_utf8(run_command, model, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    write_picture(tmp_path / name, np.zeros((8, 8, 3), "uint8"))
    result = run_command("upscale.py", model, tmp_path / name, "-o", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert "caf\\udce9.png -> " in result.stdout
    assert (tmp_path / "out" / os.fsdecode(b"caf\xe9_x2.png")).exists()


def test_help_has_an_example_and_calls_a_model_a_model(run_command):
    result = run_command("upscale.py", "--help", COLUMNS="120")
    assert result.returncode == 0
    assert "upscale.py lapsrn-x4 photo.jpg holiday/ -o upscaled" in result.stdout
    assert "MODEL" in result.stdout
    assert "STR" not in result.stdout
    assert "PNG, JPEG" in result.stdout
