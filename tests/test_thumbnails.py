"""datasets/thumbnails.py and datasets/batches.py: pairs of whole small pictures, by number."""

import time

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from superres.datasets.batches import numbered_batches
from superres.datasets.catalogue import Example
from superres.datasets.degradations import imresize
from superres.datasets.thumbnails import Thumbnails, square, thumbnail
from superres.errors import InputError


@pytest.fixture(scope="module")
def examples(photos):
    return [Example(name, picture[:200, :170]) for name, picture in photos.items()]


@pytest.fixture(scope="module")
def coloured(examples):
    return [example for example in examples if example.hr.shape[-1] == 3]


def as_uint8(values):
    return np.round(values * 255).astype("uint8")


@pytest.fixture(scope="module")
def places():
    """(rows, columns, 2): every pixel holds its row and its column."""
    return np.stack(np.indices((218, 178)), -1)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(218, 178, (20, 198), (0, 178)), (100, 178, (0, 100), (39, 139)), (64, 64, (0, 64), (0, 64))],
)
def test_centre_is_the_largest_square_in_the_middle(places, height, width, rows, columns):
    cut = square(places[:height, :width])
    assert cut.shape == (rows[1] - rows[0], columns[1] - columns[0], 2)
    np.testing.assert_array_equal(cut[0, 0], (rows[0], columns[0]))
    np.testing.assert_array_equal(cut[-1, -1], (rows[1] - 1, columns[1] - 1))


def test_face_of_an_aligned_celeba_picture(places):
    np.testing.assert_array_equal(square(places, "face"), places[50:178, 25:153])


def test_face_of_a_scaled_celeba_picture(places):
    cut = square(places[:109, :89], "face")
    np.testing.assert_array_equal(cut, places[25:89, 12:76])


@pytest.mark.parametrize("crop", ["centre", "face"])
@given(height=st.integers(1, 400), width=st.integers(1, 400))
def test_squares_are_square(crop, height, width):
    """Pictures wider than the face's share of their height, too."""
    cut = square(np.zeros((height, width, 3), "uint8"), crop)
    assert cut.shape[0] == cut.shape[1] > 0
    if crop == "centre":
        assert len(cut) == min(height, width)


def test_hr_is_the_square_shrunk_and_lr_a_function_of_hr(coloured):
    pictures = Thumbnails(coloured, 8, 4)
    assert pictures.names == [example.name for example in coloured]
    assert len(pictures) == len(coloured)
    assert (pictures.lr.shape[1:], pictures.hr.shape[1:]) == ((8, 8, 3), (32, 32, 3))
    assert pictures.lr.dtype == pictures.hr.dtype == "uint8"
    for lr, hr, example in zip(pictures.lr, pictures.hr, coloured, strict=True):
        np.testing.assert_array_equal(hr, imresize(square(example.hr), 32 / 170))
        np.testing.assert_array_equal(lr, imresize(hr, 1 / 4))


@pytest.mark.parametrize("side", [32, 33, 47, 128, 178])
def test_every_size_comes_down_to_that_of_hr(photo, side):
    picture = np.tile(photo, (2, 2, 1))[:side, :side]
    pictures = Thumbnails([Example("one", picture)], 8, 4)
    assert pictures.hr.shape == (1, 32, 32, 3)
    if side == 32:
        np.testing.assert_array_equal(pictures.hr[0], picture)  # untouched


def test_faces_are_cut_when_asked_for(rng):
    picture = rng.integers(0, 256, (218, 178, 3), "uint8")
    pictures = Thumbnails([Example("face", picture)], 8, 4, crop="face")
    np.testing.assert_array_equal(pictures.hr[0], imresize(picture[50:178, 25:153], 1 / 4))


def test_a_face_is_not_enlarged_to_hr(rng):
    large, small = (rng.integers(0, 256, (size, size, 3), "uint8") for size in (45, 44))
    both = [Example("large", large), Example("small", small[:, :43])]
    with pytest.warns(UserWarning, match="left out"):
        assert Thumbnails(both, 8, 4, crop="face").names == ["large"]
    with pytest.raises(InputError, match="no picture is large enough"):
        Thumbnails([Example("small", small[:, :43])], 8, 4, crop="face")


def test_another_word_for_a_crop_is_refused(photo):
    with pytest.raises(InputError, match="crop: must be centre or face, not center"):
        thumbnail(photo, 8, crop="center")


def test_given_pairs_are_kept(rng):
    hr, lr = rng.integers(0, 256, (16, 16, 1), "uint8"), rng.integers(0, 256, (8, 8, 1), "uint8")
    pictures = Thumbnails([Example("pair", hr, lr)], 8, 2, channels=1)
    np.testing.assert_array_equal(pictures.hr, hr[None])
    np.testing.assert_array_equal(pictures.lr, lr[None])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("hr", "lr"), [(1, 3), (3, 1)])
def test_given_pairs_become_what_the_network_takes(rng, channels, hr, lr):
    hr, lr = rng.integers(0, 256, (16, 16, hr), "uint8"), rng.integers(0, 256, (8, 8, lr), "uint8")
    pictures = Thumbnails([Example("pair", hr, lr)], 8, 2, channels=channels)
    assert (pictures.hr.shape, pictures.lr.shape) == ((1, 16, 16, channels), (1, 8, 8, channels))
    for picture, found in ((hr, pictures.hr[0]), (lr, pictures.lr[0])):
        expected = Image.fromarray(picture.squeeze()).convert({1: "L", 3: "RGB"}[channels])
        np.testing.assert_allclose(found.squeeze(), np.asarray(expected, float), atol=1)


@pytest.mark.parametrize(
    ("hr", "lr", "found"),
    [((32, 32), (8, 8), "8 x 8 and 32 x 32"), ((16, 16), (4, 4), "4 x 4 and 16 x 16"),
     ((16, 20), (8, 8), "8 x 8 and 20 x 16"), ((20, 16), (8, 10), "10 x 8 and 16 x 20")],
)
def test_pairs_of_other_sizes_are_refused(hr, lr, found):
    pair = Example("pair", np.zeros((*hr, 1), "uint8"), np.zeros((*lr, 1), "uint8"))
    with pytest.raises(InputError) as caught:
        Thumbnails([pair], 8, 2, channels=1)
    assert str(caught.value) == f"pair: expected LR of 8 x 8 and HR of 16 x 16, found {found}"


def test_small_pictures_are_left_out(coloured):
    small = Example("small", coloured[0].hr[:31])
    just = Example("just", coloured[0].hr[:32])
    with pytest.warns(UserWarning, match="1 pictures are smaller than HR's 32 pixels: left out"):
        assert Thumbnails([small, just], 8, 4).names == ["just"]
    with pytest.raises(InputError) as caught:
        Thumbnails([small, small], 8, 4)
    message = str(caught.value)
    assert message == "no picture is large enough: HR needs 32 x 32 pixels (2 smaller pictures found)"


def test_examples_may_be_streamed(coloured):
    pictures = Thumbnails((example for example in coloured), 8, 4)
    np.testing.assert_array_equal(pictures.hr, Thumbnails(coloured, 8, 4).hr)


def test_rgb_becomes_grey_as_in_pillow(coloured):
    example = Example("small", coloured[0].hr[60:92, 60:92])
    grey = Thumbnails([example], 8, 4, channels=1)
    expected = np.asarray(Image.fromarray(example.hr).convert("L"), "int16")
    assert np.abs(grey.hr[0, ..., 0] - expected).max() <= 1
    assert (grey.hr[0, ..., 0] == expected).mean() > 0.99
    np.testing.assert_array_equal(grey.lr[0], imresize(grey.hr[0], 1 / 4))


def test_grey_becomes_rgb_with_equal_channels(examples):
    (camera,) = (example for example in examples if example.hr.shape[-1] == 1)
    rgb, grey = (Thumbnails([camera], 8, 4, channels=channels) for channels in (3, 1))
    for name in ("lr", "hr"):
        np.testing.assert_array_equal(getattr(rgb, name), np.repeat(getattr(grey, name), 3, -1))


def test_grey_pairs_become_rgb(rng):
    hr, lr = rng.integers(0, 256, (16, 16, 1), "uint8"), rng.integers(0, 256, (8, 8, 1), "uint8")
    pictures = Thumbnails([Example("pair", hr, lr)], 8, 2)
    np.testing.assert_array_equal(pictures.lr[0], np.repeat(lr, 3, -1))
    np.testing.assert_array_equal(pictures.hr[0], np.repeat(hr, 3, -1))


def test_values_are_floats_from_0_to_1(coloured):
    black_and_white = np.zeros((32, 32, 3), "uint8")
    black_and_white[:, 16:] = 255
    for pictures in (Thumbnails(coloured, 8, 4), Thumbnails([Example("two", black_and_white)], 8, 4)):
        for values in pictures.batch_number(0):
            assert values.dtype == "float32"
            assert values.min() >= 0
            assert values.max() <= 1
    assert (values.min(), values.max()) == (0, 1)


def test_batches_are_pairs_of_the_pictures(coloured):
    pictures = Thumbnails(coloured, 8, 4, batch=20)
    lr, hr = pictures.batch_number(0)
    assert (lr.shape, hr.shape) == ((20, 8, 8, 3), (20, 32, 32, 3))
    chosen = {bytes(picture): number for number, picture in enumerate(pictures.hr)}
    numbers = [chosen[bytes(picture)] for picture in as_uint8(hr)]
    np.testing.assert_array_equal(as_uint8(lr), pictures.lr[numbers])
    assert set(numbers) == set(range(len(coloured)))


def test_flips_mirror_lr_and_hr_alike(coloured):
    plain, flipped = (Thumbnails(coloured, 8, 4, batch=40, flip=flip) for flip in (False, True))
    seen = []
    for pairs in zip(*plain.batch_number(3), *flipped.batch_number(3), strict=True):
        lr, hr, lr_flipped, hr_flipped = pairs
        mirrored = not np.array_equal(hr, hr_flipped)
        step = -1 if mirrored else 1
        np.testing.assert_array_equal(hr_flipped, hr[:, ::step])
        np.testing.assert_array_equal(lr_flipped, lr[:, ::step])
        seen.append(mirrored)
    assert 0.25 < np.mean(seen) < 0.75


@pytest.mark.parametrize("flip", [False, True])
def test_batch_is_a_function_of_pictures_seed_and_number(coloured, flip):
    first, again, other = (Thumbnails(coloured, 8, 4, batch=8, flip=flip, seed=seed) for seed in (3, 3, 4))
    for number in (5, 0, 5):
        for values, same in zip(first.batch_number(number), again.batch_number(number), strict=True):
            np.testing.assert_array_equal(values, same)
    assert (first.batch_number(5)[0] != other.batch_number(5)[0]).any()
    assert (first.batch_number(5)[0] != first.batch_number(6)[0]).any()


@pytest.mark.parametrize("start", [0, 7])
def test_dataset_goes_on_from_any_batch_in_order(coloured, start):
    pictures = Thumbnails(coloured, 8, 4, batch=4, flip=True)
    dataset = pictures.dataset(start)
    assert [spec.shape for spec in dataset.element_spec] == [(4, 8, 8, 3), (4, 32, 32, 3)]
    for number, batch in enumerate(dataset.take(6), start=start):
        for values, expected in zip(batch, pictures.batch_number(number), strict=True):
            np.testing.assert_array_equal(values, expected)


def test_numbered_batches_keep_structure_and_types():
    def get(number):
        return np.full((2, 3), number, "float32"), (np.array([number], "uint8"), np.int64(number))

    dataset = numbered_batches(get, start=5)
    first, (second, third) = dataset.element_spec
    assert (first.shape, first.dtype) == ((2, 3), tf.float32)
    assert (second.shape, second.dtype) == ((1,), tf.uint8)
    assert (third.shape, third.dtype) == ((), tf.int64)
    for number, (a, (b, c)) in enumerate(dataset.take(20), start=5):
        assert (a.numpy() == number).all()
        assert (b.numpy() == number).all()
        assert c == number


def test_numbered_batches_never_end_and_stay_in_order_when_some_take_longer():
    def get(number):
        time.sleep(0.02 * (number % 3 == 0))
        return (np.array([number]),)

    assert [int(batch[0][0]) for batch in numbered_batches(get).take(30)] == list(range(30))


def test_numbered_batches_are_not_autotuned():
    """What tunes waits up to a minute before it notices that its iterator is given up."""
    assert numbered_batches(lambda number: (np.zeros(1),)).options().autotune.enabled is False
