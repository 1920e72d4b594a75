"""prepare.py: the shards that its pipeline writes."""

import csv
import os

import numpy as np
import pytest

pytest.importorskip("apache_beam")

from superres import prepare
from superres.datasets.catalogue import Example, load
from superres.datasets.degradations import imresize
from superres.datasets.likeness import cells
from superres.datasets.pictures import write_picture
from superres.datasets.shards import stored
from superres.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")  # Beam's own


@pytest.fixture
def pictures(tmp_path, photo):
    """A folder of six pictures, one below and one grey, and of two files that are no pictures."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for number in range(4):
        write_picture(folder / f"{number}.png", photo[number : number + 96, : 120 - number])
    write_picture(folder / "below" / "0.png", photo[:40, :50])
    write_picture(folder / "grey.png", photo[..., :1])
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:900])
    return folder


@pytest.fixture
def run(monkeypatch):
    """Run the command with these arguments."""

    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["prepare.py", *map(str, arguments)])
        prepare.cli()

    return command


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_picture_is_stored_as_it_is_and_bad_ones_in_a_table(pictures, tmp_path, run, capsys):
    run(pictures, "-o", tmp_path / "shards", "--shards", 3)
    assert "6 records of 6 pictures in 3 shards, 2 bad ones, see errors.csv" in capsys.readouterr().out
    assert sorted(contents(tmp_path / "shards")) == [
        *(f"{number:05}-of-00003.tfrecord" for number in range(3)), "errors.csv"]
    again = {example.name: example.hr for example in load(tmp_path / "shards" / "*.tfrecord")}
    assert sorted(again) == ["0", "1", "2", "3", "below/0", "grey"]
    for example in load(pictures / "below"):
        np.testing.assert_array_equal(again["below/0"], example.hr)
    for name in "0123":
        np.testing.assert_array_equal(again[name], prepare.read_pair((pictures / f"{name}.png", None)).hr)
    assert again["grey"].shape[-1] == 1
    with open(tmp_path / "shards" / "errors.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"] for row in rows] == ["cut", "text"]
    assert all("not a readable picture" in row["error"] for row in rows)


def test_a_name_need_not_be_utf8(pictures, tmp_path, run):
    for name, of in ((b"caf\xe9.png", "0.png"), (b"cut\xe9.png", "cut.png")):
        (pictures / of).rename(pictures / os.fsdecode(name))
    run(pictures, "-o", tmp_path / "shards", "--shards", 2)
    assert "caf\\udce9" in {example.name for example in load(tmp_path / "shards" / "*.tfrecord")}
    assert "cut\\udce9," in (tmp_path / "shards" / "errors.csv").read_text(encoding="utf-8")


def test_preparing_twice_gives_the_same_bytes_whoever_works(pictures, tmp_path, run):
    run(pictures, "-o", tmp_path / "one", "--crop", 64)
    run(pictures, "-o", tmp_path / "two", "--crop", 64, "--direct_num_workers", 2, "--direct_running_mode",
        "multi_threading")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_tiles_cover_the_picture_and_lie_on_the_grid_of_lr(rng):
    for height, width, size in ((200, 130, 64), (64, 65, 64), (40, 300, 128), (96, 96, 96)):
        hr = rng.integers(0, 256, (height, width, 3), "uint8")
        lr = hr[::4, ::4][: height // 4, : width // 4]
        seen = np.zeros((height, width), int)
        tiles = list(prepare.tiles(Example("one", hr, lr), size))
        for tile in tiles:
            y, x = map(int, tile.name.partition("@")[2].split(",")) if "@" in tile.name else (0, 0)
            assert y % 8 == x % 8 == 0
            assert tile.size == (min(size, height), min(size, width))
            np.testing.assert_array_equal(tile.hr, hr[y : y + size, x : x + size])
            np.testing.assert_array_equal(tile.lr, tile.hr[::4, ::4][: len(tile.lr), : tile.lr.shape[1]])
            seen[y : y + size, x : x + size] += 1
        assert (seen[: height - 7, : width - 7] > 0).all()
        assert len(tiles) == -(-height // size) * -(-width // size)
    (whole,) = prepare.tiles(Example("one", hr), 0)
    assert whole.name == "one"


def test_tiles_are_stored_with_the_look_of_their_picture(pictures, tmp_path, run, capsys, photo):
    run(pictures, "-o", tmp_path / "shards", "--crop", 64)
    assert "records of 6 pictures in 16 shards" in capsys.readouterr().out
    records = stored([tmp_path / "shards" / "*.tfrecord"])
    grey = [picture for picture in records if picture.picture == "grey"]
    assert [picture.name for picture in grey] == [f"grey@{y},{x}" for y in (0, 48, 96) for x in (0, 64)]
    for picture in grey:
        assert picture.size == (64, 64)
        np.testing.assert_array_equal(picture.looks()[1], cells(photo[..., :1]))


def test_an_hr_that_the_scale_does_not_divide_has_an_lr_rounded_down(photo, tmp_path, run):
    for side, picture in (("hr", photo[:121, :101]), ("lr", imresize(photo[:120, :100], 0.5))):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        write_picture(tmp_path / "pairs" / side / "1.png", picture)
    run(tmp_path / "pairs", "-o", tmp_path / "shards", "--shards", 1)
    (example,) = load(tmp_path / "shards" / "*.tfrecord")
    assert (example.size, example.lr.shape[:2]) == ((121, 101), (60, 50))


def test_a_shard_that_cannot_be_written_is_one_line_and_nothing_is_left(pictures, tmp_path, run, monkeypatch,
                                                                        capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare, "record", full)
    with pytest.raises(SystemExit, match="2"):
        run(pictures, "-o", tmp_path / "shards")
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'shards'}: cannot be written (No space left on device)\n")
    assert {path.name for path in tmp_path.iterdir()} == {"pictures"}


def test_pairs_are_stored_and_those_that_do_not_fit_are_bad(photo, photos, tmp_path, run, capsys):
    for side in ("hr", "lr"):
        (tmp_path / "pairs" / side).mkdir(parents=True)
    other = photos["coffee"][:160, :128]
    for name, hr, lr in (("1", photo, photo), ("2", other, other), ("3", photo, other)):
        write_picture(tmp_path / "pairs" / "hr" / f"{name}.png", hr)
        write_picture(tmp_path / "pairs" / "lr" / f"{name}x4.png", imresize(lr, 0.25))
    run(tmp_path / "pairs", "-o", tmp_path / "shards", "--crop", 64)
    assert "12 records of 2 pictures in 16 shards, 1 bad ones" in capsys.readouterr().out
    tile = next(example for example in load(tmp_path / "shards" / "*.tfrecord") if example.name == "1@48,64")
    np.testing.assert_array_equal(tile.hr, photo[48:112, 64:128])
    np.testing.assert_array_equal(tile.lr, imresize(photo, 0.25)[12:28, 16:32])
    assert "LR and HR are different pictures" in (tmp_path / "shards" / "errors.csv").read_text()


def test_pictures_of_several_folders_keep_apart(pictures, tmp_path, run, photo):
    (tmp_path / "more").mkdir()
    write_picture(tmp_path / "more" / "0.png", photo)
    run(pictures, tmp_path / "more", "-o", tmp_path / "shards")
    names = [picture.name for picture in stored([tmp_path / "shards" / "*.tfrecord"])]
    assert names == ["more/0", *(f"pictures/{name}" for name in ("0", "1", "2", "3", "below/0", "grey"))]


def test_no_two_pictures_have_one_name(tmp_path, photo):
    for path in ("a/train/1.png", "a/train/1.jpg", "a/train/2.png", "b/train/1.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        write_picture(tmp_path / path, photo[:16, :16])
    named = prepare.named_files((tmp_path / "a" / "train", tmp_path / "b" / "train", tmp_path / "a"))
    assert [name for name, _ in named] == ["a/train/1.jpg", "a/train/1.png", "a/train/2", "b/train/1"]
    assert [name for name, _ in prepare.named_files((tmp_path / "b",))] == ["train/1"]


@pytest.mark.parametrize(("arguments", "message"), [
    (("in",), "in: no such folder"),
    (("pictures", "--crop", "30"), "crop: must be a multiple of 8, not 30"),
    (("pictures", "--shards", "0"), "shards: must be at least 1"),
    (("pictures", "--shard", "4"), "--shard: neither an option of this command nor one of Beam's"),
])
def test_mistakes_are_one_line(pictures, tmp_path, run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(tmp_path / arguments[0], "-o", tmp_path / "shards", *arguments[1:])
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "shards").exists()


def test_shards_appear_whole_or_not_at_all(pictures, tmp_path, run, capsys, monkeypatch):
    def full(*arguments):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "stored", full)
        with pytest.raises(SystemExit):
            run(pictures, "-o", tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    run(pictures, "-o", tmp_path / "shards")
    with pytest.raises(SystemExit):
        run(pictures, "-o", tmp_path / "shards")
    assert "shards: exists already" in capsys.readouterr().err


def test_nothing_but_bad_pictures_is_an_error(tmp_path, run, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.png").write_text("no picture")
    with pytest.raises(SystemExit):
        run(tmp_path / "in", "-o", tmp_path / "shards")
    assert "none of the 1 pictures can be read" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()
    with pytest.raises(InputError, match="no such folder"):
        prepare.named_files((tmp_path / "absent",))
