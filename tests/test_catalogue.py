"""datasets/catalogue.py and what it draws (dead_leaves.py, corners.py, plates.py)."""

import contextlib
import re
import shutil
import sys
import types

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
import tensorflow_datasets as tfds

from superres.datasets.catalogue import NAMES, TFDS, load
from superres.datasets.corners import CORNERS, corner_count, corner_of, in_corner
from superres.datasets.dead_leaves import dead_leaves
from superres.datasets.degradations import imresize
from superres.datasets.pictures import Picture, write_picture
from superres.datasets.plates import plate
from superres.errors import InputError


@pytest.fixture
def folder(tmp_path, photo):
    for name in ("b.png", "sub/a.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_picture(tmp_path / name, photo[:20, :30])
    return tmp_path


@pytest.fixture
def pairs(tmp_path, photo):
    for name in ("hr/0001.png", "hr/0002.png", "lr/0001x2.png", "lr/0002.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        size = 40 if name.startswith("hr") else 20
        write_picture(tmp_path / name, np.full((size, size, 3), int(name[6]), "uint8"))
    return tmp_path


def test_photos_are_real_and_split():
    splits = {split: list(load("photos", split)) for split in ("train", "test")}
    names = [example.name for split in splits.values() for example in split]
    assert len(names) == len(set(names)) == 13
    for example in splits["train"] + splits["test"]:
        assert example.hr.dtype == "uint8"
        assert min(example.hr.shape[:2]) >= 250
        assert example.hr.shape[2] in (1, 3)
        assert example.hr.std() > 10
        assert example.lr is None


def test_dead_leaves_are_drawn_the_same_from_the_same_seed():
    first = dead_leaves(7, size=64)
    assert first.shape == (64, 64, 3)
    assert first.dtype == "uint8"
    np.testing.assert_array_equal(first, dead_leaves(7, size=64))
    assert np.abs(first.astype(int) - dead_leaves(8, size=64)).mean() > 10


def test_dead_leaves_have_the_statistics_of_photographs(photos):
    """Power falls with frequency squared or so; noise's does not fall at all."""

    def slope(picture):
        grey = picture.mean(-1)[:256, :256]
        power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
        radius = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
        used = (radius > 0.02) & (radius < 0.3)
        return np.polyfit(np.log(radius[used]), np.log(power[used]), 1)[0]

    drawn = np.mean([slope(dead_leaves(seed)) for seed in range(3)])
    real = np.mean([slope(picture) for picture in photos.values()])
    assert -3.5 < drawn < -1.5
    assert drawn == pytest.approx(real, abs=1)


def test_dead_leaves_of_the_catalogue_are_split():
    train, test = (next(load("dead_leaves", split)) for split in ("train", "test"))
    assert train.name != test.name
    assert (train.hr != test.hr).any()


@pytest.fixture(scope="module")
def corners():
    """split -> Examples."""
    return {split: list(load("corners", split)) for split in ("train", "test")}


def test_corners_are_a_digit_in_one_corner_of_black(corners):
    assert [len(corners[split]) for split in ("train", "test")] == [3000, 297]
    for name, hr, lr in corners["train"] + corners["test"]:
        assert (hr.shape, lr.shape, hr.dtype, lr.dtype) == ((16, 16, 1), (8, 8, 1), "uint8", "uint8")
        (corner,) = (corner for corner in CORNERS if name.endswith(corner))
        np.testing.assert_array_equal(hr, in_corner(lr, corner))
        assert lr.max() > 200
    assert max(example.lr.max() for example in corners["test"]) == 255


def test_corners_are_the_same_every_time_and_split(corners):
    for split, examples in corners.items():
        for first, again in zip(examples[:20], load("corners", split, limit=20), strict=True):
            assert first.name == again.name
            np.testing.assert_array_equal(first.hr, again.hr)
    train, test = ({example.lr.tobytes() for example in corners[split]} for split in ("train", "test"))
    assert (len(train), len(test)) == (1500, 297)
    assert not train & test


def test_the_digit_does_not_tell_the_corner(corners):
    places = {}
    for example in corners["train"]:
        places.setdefault(example.lr.tobytes(), set()).add(example.hr.tobytes())
    assert {len(found) for found in places.values()} == {2}  # both corners, for every digit
    top = np.array([example.name.endswith("top_left") for example in corners["test"]])
    ink = np.array([example.lr.sum() for example in corners["test"]])
    assert 0.4 < top.mean() < 0.6
    assert abs(np.corrcoef(top, ink)[0, 1]) < 0.15
    assert abs(np.corrcoef(top[1:], top[:-1])[0, 1]) < 0.15


def test_truth_is_one_digit(corners):
    for examples in corners.values():
        hr, lr = (np.stack(pictures) for pictures in list(zip(*examples, strict=True))[1:])
        assert (corner_count(hr, lr) == 1).all()
        assert (corner_count(hr / 255, lr / 255) == 1).all()


def test_what_is_not_one_digit_is_not_counted_as_one(corners, rng):
    lr = np.stack([example.lr for example in corners["test"]])
    both = np.zeros((len(lr), 16, 16, 1), "uint8")
    for corner in CORNERS:
        corner_of(both, corner)[:] = lr
    assert (corner_count(both, lr) == 2).all()
    assert (corner_count(both // 2, lr) == 2).all()  # what the mean square error leads to
    assert (corner_count(both * 0, lr) == 0).all()
    assert (corner_count(both[:, ::-1], lr) == 0).all()  # in the wrong corners
    checkerboard = np.indices((16, 16, 1)).sum(0) % 2 == 0
    assert (corner_count(both * checkerboard, lr) == 2).all()
    # Each pixel drawn by itself, on or off
    counts = np.concatenate([corner_count(both * (rng.random(both.shape) < 0.5), lr) for _ in range(20)])
    assert (counts == 2).mean() > 0.995
    assert (counts == 0).sum() == 0


def test_one_digit_drawn_with_faults_is_one(corners, rng):
    hr, lr = (np.stack(pictures) for pictures in list(zip(*corners["test"], strict=True))[1:])
    noisy = np.clip(hr + rng.normal(0, 8, hr.shape), 0, 255)
    assert (corner_count(noisy, lr) == 1).all()
    assert (corner_count(hr * (rng.random(hr.shape) < 0.8), lr) == 1).all()


@pytest.mark.parametrize(("split", "part"), [("train", "train[:5000]"), ("test", "test[:1000]")])
def test_corners_of_mnist(tmp_path, split, part):
    digits = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), "uint8")
    with mocked(tmp_path, {"image": digits}) as asked:
        examples = list(load("corners/mnist", split))
    assert asked == [("mnist", part)]
    assert len(examples) == (6 if split == "train" else 3)
    for number, example in enumerate(examples):
        np.testing.assert_array_equal(
            example.lr, imresize(digits[number // 2 if split == "train" else number], 0.5))
        assert (example.lr.shape, example.hr.shape) == ((14, 14, 1), (28, 28, 1))
        assert corner_count(example.hr[None], example.lr[None]) == [1]


def test_plates_are_drawn_the_same_from_the_same_seed():
    splits = {split: list(load("plates", split, limit=6)) for split in ("train", "test")}
    examples = splits["train"] + splits["test"]
    assert len({example.name for example in examples}) == 12
    assert len({example.hr.tobytes() for example in examples}) == 12
    for _name, hr, lr in examples:
        assert (hr.shape, hr.dtype, lr) == ((64, 64, 3), "uint8", None)
    np.testing.assert_array_equal(splits["test"][1].hr, plate(2001))
    assert len(list(load("plates", "test"))) == 200


def test_plates_can_be_read():
    parts = []
    for seed in range(60):
        picture = plate(seed)
        assert (picture == picture[..., :1]).all()  # black on white
        grey = picture[..., 0]
        assert min(grey[0].min(), grey[-1].min(), grey[:, 0].min(), grey[:, -1].min()) > 250
        parts.append(scipy.ndimage.label(grey < 128)[1])
        assert 0.15 < (grey[14:50, 14:50] < 128).mean() < 0.5
        # Two lines apart, also in a thumbnail
        rows = imresize(picture, 0.5)[:, 8:24].mean((1, 2))
        assert rows[12:20].max() > 240
        assert max(rows[7:13].min(), rows[19:25].min()) < 215
    # The frame and six characters, now and then two that touch
    assert min(parts) >= 6
    assert np.mean(np.array(parts) >= 7) > 0.9


def test_folder_is_read_in_order(folder, photo):
    examples = list(load(folder))
    assert [example.name for example in examples] == ["b", "c", "a"]
    np.testing.assert_array_equal(examples[0].hr, photo[:20, :30])
    assert examples[0].lr is None


@pytest.mark.parametrize(("limit", "number"), [(0, 0), (2, 2), (9, 3), (None, 3)])
def test_limit(folder, limit, number):
    assert len(list(load(folder, limit=limit))) == number


def test_folder_of_pairs(pairs):
    examples = list(load(pairs))
    assert [(e.name, e.hr.shape, e.lr.shape) for e in examples] == [
        ("0001", (40, 40, 3), (20, 20, 3)), ("0002", (40, 40, 3), (20, 20, 3)),
    ]
    assert [(e.hr.max(), e.lr.max()) for e in examples] == [(1, 1), (2, 2)]


@pytest.mark.parametrize("names", [("a/1", "b/1"), ("fax1", "fax2"), ("fx2", "f")])
def test_pictures_of_nearly_one_name_keep_their_own_lr(tmp_path, names):
    for name, value in zip(names, (10, 200), strict=True):
        for part, size in (("hr", 16), ("lr", 8)):
            (tmp_path / part / name).parent.mkdir(parents=True, exist_ok=True)
            write_picture(tmp_path / part / f"{name}.png", np.full((size, size, 3), value, "uint8"))
    assert sorted((e.hr.max(), e.lr.max()) for e in load(tmp_path)) == [(10, 10), (200, 200)]


def test_pairs_as_div2k_is_unpacked(tmp_path):
    for name, value in (("0001", 10), ("0002", 200)):
        for path, size in ((f"hr/DIV2K_train_HR/{name}.png", 16), (f"lr/DIV2K/X2/{name}x2.png", 8)):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            write_picture(tmp_path / path, np.full((size, size, 3), value, "uint8"))
    assert sorted((e.hr.max(), e.lr.max()) for e in load(tmp_path)) == [(10, 10), (200, 200)]
    (tmp_path / "lr" / "again").mkdir()
    shutil.copy(tmp_path / "lr/DIV2K/X2/0001x2.png", tmp_path / "lr" / "again")  # which of the two?
    with pytest.raises(InputError, match=r"hr/\S+/0001 could belong to lr/\S+/0001x2 or lr/\S+/0001x2"):
        list(load(tmp_path))


def test_two_pictures_of_one_name_are_an_error(pairs):
    (pairs / "lr" / "0001x2.tif").write_bytes(b"II*")
    with pytest.raises(InputError, match="lr/0001x2 is the name of two pictures"):
        list(load(pairs))


@pytest.mark.parametrize(("source", "package"), [("corners", "sklearn"), ("cars196", "tensorflow_datasets")])
def test_a_missing_package_is_named(monkeypatch, source, package):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "sklearn":
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=f"{source}: needs the package {package}"):
        next(load(source))


def test_pictures_without_their_partner_are_named(pairs):
    (pairs / "lr" / "0001x2.png").rename(pairs / "lr" / "0003.png")
    with pytest.raises(InputError, match="2 pictures stand in only one of hr/ and lr/, first: 0001"):
        list(load(pairs))


def test_bad_file_is_left_out_with_a_warning(folder):
    (folder / "b.png").write_text("no picture")
    with pytest.warns(UserWarning, match=r"left out: .*b\.png: not a readable picture"):
        examples = list(load(folder))
    assert [example.name for example in examples] == ["c", "a"]


def test_one_picture_cannot_be_parted(tmp_path, photo):
    write_picture(tmp_path / "a.png", photo)
    assert len(list(load(tmp_path, "test", held_out=2))) == 1
    with pytest.raises(InputError, match="one picture cannot be parted, one in 2 held out"):
        list(load(tmp_path, "train", held_out=2))


def test_folder_of_bad_files_alone(tmp_path):
    (tmp_path / "a.png").touch()
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(InputError, match="none of the 1 picture files can be read"),
    ):
        list(load(tmp_path))


@pytest.mark.parametrize(
    ("source", "message"),
    [("nothing", "nothing: neither a folder nor a known name; expected photos"),
     ("div2k/bicubic_x7", "no such configuration; expected one of bicubic_x2")],
)
def test_unknown_sources_are_named(source, message):
    with pytest.raises(InputError, match=message):
        list(load(source))


def test_another_word_for_a_split_is_refused():
    with pytest.raises(InputError, match="split: must be train or test, not val"):
        list(load("photos", "val"))


def test_every_name_is_told():
    for name in ("photos", "dead_leaves", "plates", "corners", "corners/mnist", "celeb_a", "lsun/bedroom",
                 "cars196", "svhn_cropped", "div2k/bicubic_x2"):
        assert name in NAMES
        assert name in load.__doc__


@pytest.mark.parametrize("name", ["photos", "corners", "celeb_a", "div2k"])
def test_a_folder_comes_before_a_name(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    (folder / "sub").rename(name)
    assert [example.name for example in load(name)] == ["a"]


def test_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=f"^{tmp_path}: no pictures"):
        list(load(tmp_path))


@contextlib.contextmanager
def mocked(folder, arrays):
    """TensorFlow Datasets without downloads: every dataset holds `arrays`; yields what is asked of it."""
    asked = []

    def as_dataset(builder, split, **kwargs):
        asked.append((builder.info.full_name.rsplit("/", 1)[0], split))
        return tf.data.Dataset.from_tensor_slices(arrays)

    with tfds.testing.mock_data(as_dataset_fn=as_dataset, data_dir=folder):
        yield asked


@pytest.mark.parametrize(("split", "part"), [("train", "train"), ("test", "validation")])
def test_div2k_through_tensorflow_datasets(tmp_path, rng, split, part):
    hr = rng.integers(0, 256, (3, 40, 60, 3), "uint8")
    with mocked(tmp_path, {"hr": hr, "lr": hr[:, ::4, ::4]}) as asked:
        examples = list(load("div2k/bicubic_x4", split))
    assert asked == [("div2k/bicubic_x4", part)]
    assert [example.name for example in examples] == [f"{part}_000{i}" for i in (1, 2, 3)]
    for number, example in enumerate(examples):
        assert example.hr.dtype == example.lr.dtype == "uint8"
        np.testing.assert_array_equal(example.hr, hr[number])
        np.testing.assert_array_equal(example.lr, hr[number, ::4, ::4])


@pytest.mark.parametrize(
    ("source", "split", "part"),
    [("celeb_a", "train", "train"), ("celeb_a", "test", "test"), ("lsun/bedroom", "train", "train"),
     ("lsun/bedroom", "test", "validation"), ("cars196", "test", "test"), ("svhn_cropped", "test", "test")],
)
def test_pictures_through_tensorflow_datasets(tmp_path, rng, monkeypatch, source, split, part):
    monkeypatch.setitem(sys.modules, "tensorflow_io", types.ModuleType("tensorflow_io"))
    pictures = rng.integers(0, 256, (3, 20, 30, 3), "uint8")
    with mocked(tmp_path, {"image": pictures, "label": np.arange(3)}) as asked:
        examples = list(load(source, split, limit=2))
    assert asked == [(source, part)]
    assert [example.name for example in examples] == [f"{part}_00000{i}" for i in (1, 2)]
    for example, picture in zip(examples, pictures, strict=False):
        assert (example.hr.dtype, example.lr) == ("uint8", None)
        np.testing.assert_array_equal(example.hr, picture)


def test_lsun_asks_for_what_it_needs_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_io", None)
    with mocked(tmp_path, {}), pytest.raises(InputError, match=r"^lsun/bedroom: .*tensorflow_io"):
        list(load("lsun/bedroom"))


FETCH = {
    "div2k/bicubic_x2": ["DIV2K_train_LR_bicubic_X2.zip", "hr/ and lr/"],
    "corners/mnist": ["train-images-idx3-ubyte.gz", "downloads/manual", "corners"],
    "celeb_a": ["img_align_celeba.zip", "downloads/manual", "folder"],
    "lsun/bedroom": ["46 GB", "folder"],
    "cars196": ["cars_train.tgz", "downloads/manual", "folder"],
    "svhn_cropped": ["train_32x32.mat", "downloads/manual"],
}


@pytest.mark.parametrize("source", FETCH)
def test_failed_download_says_what_to_fetch(monkeypatch, source):
    def fails(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tfds, "builder", fails)
    with pytest.raises(InputError) as caught:
        list(load(source))
    message = str(caught.value)
    name = {"corners/mnist": "mnist"}.get(source, source)
    assert message.startswith(f"{name}: download failed (ConnectionError: no route to host); ")
    assert "\n" not in message
    for words in FETCH[source]:
        assert words in message


@pytest.mark.parametrize("source", ["celeb_a", "cars196", "svhn_cropped"])
def test_files_to_fetch_are_those_that_tensorflow_datasets_looks_for(source):
    told = re.findall(r"\w+\.(?:zip|txt|tgz|mat)\b", TFDS[source][1])
    assert sorted(told) == sorted(info.filename for info in tfds.builder_cls(source).url_infos.values())


def test_what_alpha_hides_has_the_colour_of_what_it_shows(tmp_path):
    y, x = np.mgrid[:24, :24]
    white = np.where((y - 12) ** 2 + (x - 12) ** 2 < 60, 255, 0).astype("uint8")[..., None]
    write_picture(tmp_path / "disc.png", Picture(white.repeat(3, -1), white))
    (example,) = load(tmp_path)
    assert (example.hr == 255).all()
