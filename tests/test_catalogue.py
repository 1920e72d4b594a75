"""datasets/catalogue.py and datasets/dead_leaves.py: where pictures come from."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from datasets.catalogue import load
from datasets.dead_leaves import dead_leaves
from datasets.errors import InputError
from datasets.pictures import write_picture


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


def test_pictures_without_their_partner_are_named(pairs):
    (pairs / "lr" / "0001x2.png").rename(pairs / "lr" / "0003.png")
    with pytest.raises(InputError, match="2 pictures stand in only one of hr/ and lr/, first: 0001"):
        list(load(pairs))


def test_bad_file_is_left_out_with_a_warning(folder):
    (folder / "b.png").write_text("no picture")
    with pytest.warns(UserWarning, match=r"left out: .*b\.png: not a readable picture"):
        examples = list(load(folder))
    assert [example.name for example in examples] == ["c", "a"]


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


def test_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=f"^{tmp_path}: no pictures"):
        list(load(tmp_path))


@pytest.mark.parametrize(("split", "part"), [("train", "train"), ("test", "validation")])
def test_div2k_through_tensorflow_datasets(tmp_path, split, part):
    asked = []

    def as_dataset(builder, split, **kwargs):
        asked.append((builder.builder_config.name, split))
        hr = tf.random.stateless_uniform((3, 40, 60, 3), (0, 1), 0, 256, tf.int32)
        return tf.data.Dataset.from_tensor_slices(
            {"hr": tf.cast(hr, tf.uint8), "lr": tf.cast(hr[:, ::4, ::4], tf.uint8)}
        )

    with tfds.testing.mock_data(as_dataset_fn=as_dataset, data_dir=tmp_path):
        examples = list(load("div2k/bicubic_x4", split))
    assert asked == [("bicubic_x4", part)]
    assert [example.name for example in examples] == [f"{part}_000{i}" for i in (1, 2, 3)]
    for example in examples:
        assert example.hr.dtype == example.lr.dtype == "uint8"
        np.testing.assert_array_equal(example.hr[::4, ::4], example.lr)


def test_failed_download_says_what_to_fetch(monkeypatch):
    def fails(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tfds, "builder", fails)
    with pytest.raises(InputError) as caught:
        list(load("div2k/bicubic_x2"))
    message = str(caught.value)
    assert message.startswith("div2k/bicubic_x2: download failed (ConnectionError: no route to host)")
    assert "DIV2K_train_LR_bicubic_X2.zip" in message
    assert "hr/ and lr/" in message
