"""datasets/likeness.py: copies are found, other pictures are not."""

import io
import warnings

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from superres import evaluate
from superres.datasets.catalogue import Example, load
from superres.datasets.likeness import ALIKE, likenesses, thumbprint, warn_of_likenesses
from superres.datasets.patches import split_pictures
from superres.datasets.pictures import write_picture
from superres.datasets.shards import record
from superres.models.lapsrn import lapsrn


def copied(picture, size, quality):
    """Resized and compressed."""
    file = io.BytesIO()
    image = Image.fromarray(picture.squeeze())
    image.resize([round(size * n) for n in image.size], Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=quality)
    return np.atleast_3d(np.asarray(Image.open(file)))


@pytest.fixture(scope="module")
def pictures():
    return {example.name: example.hr for part in ("train", "test") for example in load("photos", part)}


def test_different_pictures_are_not_alike(pictures):
    names = list(pictures.items())
    assert likenesses(names[:6], names[6:]) == []


@pytest.mark.parametrize(("size", "quality"), [(0.5, 60), (0.31, 30), (1.5, 50)])
def test_copies_are_found(photos, size, quality):
    known = [(name, copied(picture, size, quality)) for name, picture in photos.items()]
    found = likenesses(photos.items(), known)
    assert [(one, other) for one, other, _ in found] == [(name, name) for name in photos]
    assert min(correlation for *_, correlation in found) >= ALIKE


def test_the_correlation_is_that_of_the_means_of_cells(rng):
    one, two = (rng.integers(0, 256, (48, 32, 1), "uint8") for _ in range(2))
    cells = [x.reshape(16, 3, 16, 2).mean((1, 3)).ravel() for x in (one, two)]
    assert thumbprint(one) @ thumbprint(two) == pytest.approx(np.corrcoef(cells)[0, 1], abs=0.02)


def test_grey_is_like_its_rgb_and_flat_is_like_nothing(photo):
    grey, flat = photo[..., :1], np.full((20, 20, 3), 90, "uint8")
    assert likenesses([("grey", grey)], [("rgb", grey.repeat(3, -1))])
    assert likenesses([("flat", flat)], [("flat", flat), ("photo", photo)]) == []


def test_of_many_copies_ten_are_named(photo, recwarn):
    copies = [(str(i), np.roll(photo, i, 1)) for i in range(0, 39, 3)]
    found = likenesses(copies[::-1], [("flat", np.full((20, 20, 3), 90, "uint8")), *copies])
    assert [(one, other) for one, other, _ in found] == [(name, name) for name, _ in copies[::-1]]
    warn_of_likenesses(copies, copies)
    assert [str(w.message).split(",")[0] for w in recwarn] == [*(name for name, _ in copies[:10]),
                                                               "so do 3 more"]


def test_evaluate_warns_of_a_copy(call, photos, tmp_path, capsys):
    lapsrn(2, filters=4, depth=1).save(tmp_path / "network.keras")
    for folder, name, picture in (("data", "woman", photos["astronaut"][:80, :90]),
                                  ("data", "cat", photos["chelsea"][:60, :60]),
                                  ("known", "302003", copied(photos["astronaut"][:80, :90], 0.7, 60)),
                                  ("known", "coffee", photos["coffee"])):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_picture(tmp_path / folder / f"{name}.png", picture)
    call(evaluate.main, tmp_path / "network.keras", "--data", tmp_path / "data", "--against",
         tmp_path / "known")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: woman, which is measured on, looks like 302003, which is trained on")
    whole = photos["astronaut"][:80, :90]
    with tf.io.TFRecordWriter(str(tmp_path / "tiles.tfrecord")) as file:
        file.write(record(Example("302003@0,0", whole[:64, :64]), whole))
    call(evaluate.main, tmp_path / "network.keras", "--data", tmp_path / "data", "--against",
         tmp_path / "*.tfrecord")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: woman, which is measured on, looks like 302003, which is trained on")


def test_split_warns_of_a_copy_across_its_parts_only(photos, tmp_path, recwarn):
    for name, picture in photos.items():
        write_picture(tmp_path / f"{name}.png", picture)
    split_pictures([str(tmp_path)], 1, 1, 0)
    assert not recwarn.list
    write_picture(tmp_path / "copy.jpg", copied(photos["coffee"], 0.5, 60))
    warned = set()
    for seed in range(8):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            parts = split_pictures([str(tmp_path)], 1, 1, seed)
        places = {example.name: k for k, part in enumerate(parts) for example in part}
        across = (places["copy"] == 0) != (places["coffee"] == 0)
        assert [("copy" in str(w.message), "coffee" in str(w.message)) for w in caught] == (
            [(True, True)] * across)
        warned.add(across)
    assert warned == {True, False}


@pytest.mark.parametrize("place", [0, 63, 64, 149])
def test_a_copy_is_found_among_many(rng, photo, place):
    known = [(str(i), rng.integers(0, 256, (16, 16, 1), "uint8")) for i in range(150)]
    known.insert(place, ("copy", photo))
    assert [found[:2] for found in likenesses([("photo", photo)], known)] == [("photo", "copy")]
