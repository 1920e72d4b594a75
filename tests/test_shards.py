"""datasets/shards.py: pictures in TFRecord shards train as those of a folder do, in bounded memory."""

import dataclasses
import re
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from test_patches import DEGRADATIONS, assert_equal_batches, batches
from test_train import STEPS, assert_same_run, at_step, interrupt

from superres.datasets import patches as patches_module
from superres.datasets.catalogue import Example, as_needed, load
from superres.datasets.degradations import imresize
from superres.datasets.likeness import cells, thumbprint
from superres.datasets.patches import Patches, split_pictures
from superres.datasets.pictures import write_picture
from superres.datasets.shards import Cache, record, stored
from superres.datasets.thumbnails import Thumbnails
from superres.errors import InputError
from superres.train import pixel_recursive
from superres.train.lapsrn import main
from superres.train.loop import Keeper, RunSettings

SETTINGS = {"scale": 2, "patch": 16, "batch": 4, "pyramid": True}


def write(path, examples):
    with tf.io.TFRecordWriter(str(path)) as file:
        for example in examples:
            file.write(record(example))
    return str(path)


@pytest.fixture(scope="module")
def examples(photos):
    """Twelve different pictures, one of them grey, in the order of their names."""
    rng, pictures = np.random.default_rng(0), list(photos.values())
    found = []
    for number in range(12):
        picture = pictures[number % len(pictures)]
        y, x = rng.integers(200, size=2)
        found.append(Example(f"{number:02}", np.ascontiguousarray(picture[y : y + 96, x : x + 80])))
    assert {example.hr.shape[-1] for example in found} == {1, 3}
    return found


@pytest.fixture(scope="module")
def shards(examples, tmp_path_factory):
    """All in one shard, and a pattern of the same in two."""
    folder = tmp_path_factory.mktemp("shards")
    (folder / "two").mkdir()
    write(folder / "two" / "0.tfrecord", examples[::-2])
    write(folder / "two" / "1.tfrecord", examples[::2])
    return write(folder / "one.tfrecord", examples), str(folder / "two" / "*.tfrecord")


def test_a_record_is_an_example_that_tensorflow_parses(photo):
    lr = imresize(photo, 0.5)[..., :1]
    kinds = {key: tf.io.FixedLenFeature((), tf.string) for key in ("name", "hr", "lr")}
    parsed = tf.io.parse_single_example(record(Example("one", photo, lr)), kinds)
    assert parsed["name"] == b"one"
    np.testing.assert_array_equal(tf.io.decode_png(parsed["hr"]), photo)
    np.testing.assert_array_equal(tf.io.decode_png(parsed["lr"]), lr)
    assert record(Example("one", photo, lr)) == record(Example("one", photo, lr))


def test_a_name_need_not_be_utf8(photo, tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as file:
        file.write(record(Example("caf\udce9", photo[:40, :40])))
    (example,) = load(tmp_path / "a.tfrecord")
    assert example.name == "caf\\udce9"


def test_pictures_come_back_as_they_were(examples, shards, photo, tmp_path):
    for source in shards:
        assert [picture.name for picture in stored([source])] == [example.name for example in examples]
        for again, example in zip(load(source), examples, strict=True):
            np.testing.assert_array_equal(again.hr, example.hr)
            assert again.lr is None
    pair = Example("a picture of a very long name " * 60, photo, imresize(photo, 0.5))
    (one,) = stored([write(tmp_path / "pair.tfrecord", [pair])])
    assert (one.name, one.size, one.picture) == (pair.name, photo.shape[:2], pair.name)
    np.testing.assert_array_equal(one.read().lr, pair.lr)


def test_records_of_other_programs_are_read(photo, tmp_path):
    def feature(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    write_picture(tmp_path / "one.bmp", photo)
    features = {"hr": feature((tmp_path / "one.bmp").read_bytes()), "name": feature(b"one")}
    with tf.io.TFRecordWriter(str(tmp_path / "one.tfrecord")) as file:
        file.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    (one,) = stored([tmp_path / "one.tfrecord"])
    assert (one.name, one.size) == ("one", photo.shape[:2])
    np.testing.assert_array_equal(one.read().hr, photo)
    np.testing.assert_array_equal(one.looks()[1], photo)


@pytest.mark.parametrize("arguments", [*({"degradation": kind} for kind in DEGRADATIONS),
                                       {"fixed": 3, "channels": 1}, {"scale": 4}],
                         ids=lambda arguments: "-".join(map(str, arguments.values())))
@pytest.mark.parametrize("cache", [0, 2048])
def test_batches_are_those_of_the_same_pictures_in_memory(examples, shards, arguments, cache):
    inside = Patches(examples, **{**SETTINGS, **arguments})
    for source in shards:
        outside = Patches(stored([source]), **{**SETTINGS, **arguments}, cache=cache)
        assert outside.total == inside.total
        for number in (0, 7):
            assert_equal_batches(*([patches.batch_number(number)] for patches in (inside, outside)))


def test_a_dataset_goes_on_from_any_batch_whatever_the_cache_holds(shards):
    whole = batches(Patches(stored(shards[:1]), **SETTINGS).dataset(), 12)
    assert_equal_batches(whole[7:], batches(Patches(stored(shards[:1]), **SETTINGS, cache=0).dataset(7), 5))


def test_given_lr_pictures_are_used_and_checked(photos, tmp_path):
    pairs = [Example(name, hr[:256, :240], imresize(hr[:256, :240], 0.5)) for name, hr in photos.items()]
    path = write(tmp_path / "pairs.tfrecord", pairs)
    pairs = sorted(pairs)
    inside, outside = (Patches(some, 2, 16, 4) for some in (pairs, stored([path])))
    assert_equal_batches([inside.batch_number(3)], [outside.batch_number(3)])
    shifted = [pair._replace(lr=imresize(np.roll(pair.hr, 1, 1), 0.5)) for pair in pairs]
    with pytest.raises(InputError, match="shifted against HR"):
        Patches(stored([write(tmp_path / "shifted.tfrecord", shifted)]), 2, 16, 4)


@pytest.mark.parametrize("crop", ["centre", "face"])
def test_pairs_of_shards_are_kept_as_those_in_memory_are(rng, tmp_path, crop):
    hr, lr = rng.integers(0, 256, (32, 32, 3), "uint8"), rng.integers(0, 256, (8, 8, 3), "uint8")
    (kept,) = stored([write(tmp_path / "pair.tfrecord", [Example("pair", hr, lr)])])
    (alone,) = stored([write(tmp_path / "alone.tfrecord", [Example("alone", hr)])])
    assert (kept.paired, alone.paired) == (True, False)
    for pairs in (Thumbnails(some, 8, 4, crop=crop, batch=1) for some in ([Example("pair", hr, lr)], [kept])):
        for batch, expected in zip(pairs.batch_number(0), (lr, hr), strict=True):
            np.testing.assert_array_equal(batch[0] * 255, expected)


def test_pairs_of_shards_of_another_size_are_refused_at_once(tmp_path):
    pair = Example("pair", np.zeros((16, 16, 3), "uint8"), np.zeros((4, 4, 3), "uint8"))
    kept = stored([write(tmp_path / "pair.tfrecord", [pair])])
    expected = "pair: expected LR of 8 x 8 and HR of 32 x 32, found 4 x 4 and 16 x 16"
    with pytest.raises(InputError, match=expected):
        Thumbnails(kept, 8, 4)


def test_the_cache_keeps_what_was_used_last_within_its_bytes():
    cache, made = Cache(250), []

    def get(key, size=100):
        return cache.get(key, lambda: (made.append(key), (None, np.zeros(size, "uint8")))[1])

    for key in (0, 1, 0, 2, 0, 1):  # 2 comes for 1, then 1 for 2
        assert get(key)[1].nbytes == 100
        assert cache.bytes <= 250
    assert made == [0, 1, 2, 1]
    get("large", 300)
    assert cache.bytes == 0


def test_memory_is_bounded_by_the_cache(tmp_path, rng):
    """Sixteen pictures of 0.75 MiB and their LR, of which a cache of 3 MiB holds three."""
    path = tmp_path / "noise.tfrecord"
    write(path, (Example(str(i), rng.integers(0, 256, (512, 512, 3), "uint8")) for i in range(16)))
    patches, peaks = Patches(stored([path]), 2, 16, 8, cache=3), []
    tracemalloc.start()
    for number in range(4):
        patches.batch_number(number)
        assert 2 * 2**20 < patches.cache.bytes <= 3 * 2**20
        peaks.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(peaks) < 3.5 * 2**20
    assert len({peak // 2**18 for peak in peaks}) <= 2


def test_pictures_are_read_when_they_are_needed(shards, monkeypatch):
    monkeypatch.setattr(patches_module, "ALIGNMENT_SAMPLE", 0)
    read = []
    monkeypatch.setattr(patches_module.Stored, "read",
                        lambda picture, old=patches_module.Stored.read: read.append(picture) or old(picture))
    patches = Patches(stored(shards[:1]), 2, 16, 4)
    assert not read
    patches.batch_number(0)
    first = len(read)
    assert 1 <= first <= 4
    patches.batch_number(0)
    assert len(read) == first


def test_small_pictures_are_left_out_unread(examples, tmp_path):
    small = Example("small", examples[0].hr[:31])
    path = write(tmp_path / "some.tfrecord", [small, examples[1]])
    with pytest.warns(UserWarning, match="1 pictures are smaller than a patch of 32 pixels"):
        assert len(Patches(stored([path]), 2, 16, 1).pictures) == 1


@pytest.fixture
def damaged(shards, tmp_path):
    """A function that changes the bytes of the shard: the new one's path."""

    def change(function):
        path = tmp_path / "damaged.tfrecord"
        with open(shards[0], "rb") as file:
            path.write_bytes(function(bytearray(file.read())))
        return str(path)

    return change


def flipped(place):
    return lambda data: data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


@pytest.mark.parametrize("place", [0, 3, 7], ids="byte {}".format)
def test_a_damaged_length_is_one_line_that_names_the_file(damaged, shards, place):
    second = stored(shards[:1])[1].offset
    for offset in (0, second):
        path = damaged(flipped(offset + place))
        with pytest.raises(InputError, match=rf"^{re.escape(path)}: .*(damaged|truncated)") as caught:
            stored([path])
        assert "\n" not in str(caught.value)


def test_damaged_bytes_are_found_when_they_are_read(damaged, shards):
    place = stored(shards[:1])[4].offset + 2000
    path = damaged(flipped(place))
    with pytest.raises(InputError, match=rf"^{re.escape(path)}: the record at byte \d+ is damaged"):
        list(load(path))
    with pytest.raises(InputError, match=rf"^{re.escape(path)}: the record at byte \d+ is damaged"):
        Patches(stored([path]), 2, 16, 4)


@pytest.mark.parametrize("left", [5, 11, 2000, -3, -1])
def test_a_truncated_shard_is_named(damaged, left):
    path = damaged(lambda data: data[:left])
    message = rf"^{re.escape(path)}: damaged, or truncated in the record at byte \d+$"
    with pytest.raises(InputError, match=message):
        stored([path])


def test_what_is_no_shard_or_not_there_is_one_line(tmp_path, photo):
    write_picture(tmp_path / "picture.png", photo)
    (tmp_path / "picture.png").rename(tmp_path / "picture.tfrecord")
    (tmp_path / "empty.tfrecord").touch()
    with tf.io.TFRecordWriter(str(tmp_path / "other.tfrecord")) as file:
        file.write(b"no example at all")
    for name, message in (("picture", "damaged, or truncated"), ("empty", "no pictures in 1 shards"),
                          ("other", "damaged, or no picture"), ("a*", "no such shards"),
                          ("absent", "no such shards")):
        with pytest.raises(InputError, match=message) as caught:
            list(load(tmp_path / f"{name}.tfrecord"))
        assert str(caught.value).startswith(str(tmp_path / f"{name}.tfrecord: "))


def test_a_run_that_comes_to_a_damaged_record_ends_with_one_line(shards, damaged, tiny, monkeypatch):
    monkeypatch.setattr(patches_module, "ALIGNMENT_SAMPLE", 0)
    path = damaged(flipped(stored(shards[:1])[4].offset + 2000))
    sound, draw = Patches(load(shards[0]), 2, 8, 4, channels=1, pyramid=True), Patches.batch_number
    # The first batch is drawn before a run starts: the error is to come from within the dataset.
    monkeypatch.setattr(Patches, "batch_number",
                        lambda self, number, *rows: draw(self if number else sound, number, *rows))
    with pytest.raises(InputError, match=rf"^{re.escape(path)}: the record at byte \d+ is damaged") as caught:
        main("quick", tiny(data=(path,), steps=20))
    assert "\n" not in str(caught.value)


def test_a_run_from_shards_is_that_from_the_folder_and_goes_on_to_the_bit(tiny, tmp_path, monkeypatch):
    def settings(name, data, cache=2048):
        given = tiny(name, data=data)
        return dataclasses.replace(given, run=dataclasses.replace(given.run, cache=cache))

    (folder,) = tiny().data
    (tmp_path / "shards").mkdir()
    for part in range(2):
        write(tmp_path / "shards" / f"{part}.tfrecord", list(load(folder))[part::2])
    shards = (str(tmp_path / "shards" / "*.tfrecord"),)
    main("quick", settings("folder", (folder,)))
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_train_batch_end", at_step(STEPS + 2, interrupt))
        with pytest.raises(KeyboardInterrupt):
            main("quick", settings("shards-run", shards))
    main("quick", settings("shards-run", shards, cache=0))
    assert_same_run(tmp_path / "shards-run", tmp_path / "folder")


def tiles_of(examples):
    """Each picture as two tiles that were cut from it."""
    return [record(Example(f"{example.name}@{y},0", example.hr[y : y + 48]), example.hr)
            for example in examples for y in (0, 48)]


def test_tiles_of_a_held_out_picture_are_not_trained_on(examples, tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "tiles.tfrecord")) as file:
        for tile in tiles_of(examples):
            file.write(tile)
    train, val, test = split_pictures([tmp_path / "tiles.tfrecord"], 3, 2, 0)
    assert [len(part) for part in (val, test)] == [3, 2]
    held_out = {example.name[:2] for example in val + test}
    assert sorted(picture.name for picture in train) == [
        f"{example.name}@{y},0" for example in examples if example.name not in held_out for y in (0, 48)]
    for seed in range(8):
        parts = split_pictures([tmp_path / "tiles.tfrecord"], 3, 3, seed, 8)
        assert [len(part) for part in parts] == [8, 3, 3]
        train, val, test = ({example.name[:2] for example in part} for part in parts)
        assert train.isdisjoint(val | test)
        assert val.isdisjoint(test)
    with pytest.raises(InputError, match="data: the tiles of the pictures that are held out leave too few: "):
        split_pictures([tmp_path / "tiles.tfrecord"], 8, 3, 0, 8)
    sides = [{picture.picture for picture in as_needed([tmp_path / "tiles.tfrecord"], side, 4)}
             for side in ("train", "test")]
    assert sides[1] == {"00", "04", "08"}
    assert not sides[0] & sides[1]


def test_likenesses_are_told_by_the_whole_picture(examples, photos, tmp_path, recwarn):
    whole = photos["coffee"][:300, :300]
    copy = [record(Example(f"{name}@0,0", picture[:64, :64]), picture)
            for name, picture in (("copy", imresize(whole, 0.5)), ("whole", whole))]
    with tf.io.TFRecordWriter(str(tmp_path / "all.tfrecord")) as file:
        for tile in [*tiles_of(examples), *copy]:
            file.write(tile)
    for seed in range(20):
        _, val, _ = split_pictures([tmp_path / "all.tfrecord"], 1, 0, seed)
        if val[0].name == "copy@0,0":
            break
    (warned,) = recwarn
    assert "looks like" in str(warned.message)
    assert {"copy", "whole"} == set(re.findall(r"copy|whole", str(warned.message)))
    np.testing.assert_allclose(thumbprint(cells(whole)), thumbprint(whole))


def test_thumbnails_are_those_of_the_same_pictures_in_memory(examples, shards):
    arguments = {"channels": 3, "batch": 8, "flip": True, "seed": 3}
    inside = Thumbnails(examples, 8, 4, **arguments)
    for cache in (0, 1):
        outside = Thumbnails(stored([shards[1]]), 8, 4, **arguments, cache=cache)
        assert len(outside) == len(inside)
        assert outside.names == inside.names
        for number in (0, 5):
            for one, other in zip(inside.batch_number(number), outside.batch_number(number), strict=True):
                np.testing.assert_array_equal(one, other)
    mixed = Thumbnails([*examples[:5], *stored([shards[0]])[5:]], 8, 4, **arguments)
    np.testing.assert_array_equal(mixed.batch_number(2)[1], inside.batch_number(2)[1])


def test_pixel_recursive_splits_shards_as_a_folder(examples, shards, tmp_path):
    for example in examples:
        write_picture(tmp_path / f"{example.name}.png", example.hr)
    data = pixel_recursive.Data(crop="centre", held_out=4, val_pictures=1)
    splits = [pixel_recursive.split_thumbnails(pixel_recursive.Settings(
        data=dataclasses.replace(data, source=(source,)), batch=4, run=RunSettings()))
        for source in (str(tmp_path), shards[1])]
    for one, other in zip(*splits, strict=True):
        assert one.names == other.names
        np.testing.assert_array_equal(one.batch_number(1)[1], other.batch_number(1)[1])
    assert len(splits[1][0].stored) == 9
    assert not splits[1][1].stored
