"""datasets/patches.py: LR and HR patches of one place, the same batches at every start."""

import numpy as np
import pytest

from superres.datasets.catalogue import Example
from superres.datasets.color import luma
from superres.datasets.degradations import check_pair, degraded, imresize, mod_crop, random_kernel, realworld
from superres.datasets.patches import Patches, check_alignment, split_pictures
from superres.datasets.pictures import write_picture
from superres.errors import InputError
from superres.metrics import psnr

DEGRADATIONS = ("bicubic", "realworld", "realworld-fresh")


@pytest.fixture(scope="module")
def examples(photos):
    return [Example(name, picture[:256, :240]) for name, picture in photos.items()]


def batches(dataset, number):
    return [(lr.numpy(), [t.numpy() for t in targets]) for lr, targets in dataset.take(number)]


def assert_equal_batches(first, second):
    for (lr, targets), (other_lr, other_targets) in zip(first, second, strict=True):
        np.testing.assert_array_equal(lr, other_lr)
        for target, other in zip(targets, other_targets, strict=True):
            np.testing.assert_array_equal(target, other)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("degradation", DEGRADATIONS)
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_lr_and_hr_patches_show_the_same_place(examples, scale, degradation, augment):
    patches = Patches(examples, scale, 16, 24, degradation=degradation, augment=augment)
    lr, (hr,) = patches.batch_number(0)
    assert lr.shape == (24, 16, 16, 3)
    assert hr.shape == (24, 16 * scale, 16 * scale, 3)
    # Brought down again, HR is LR: up to the blur, and wherever the patch was cut.
    low = [imresize(target, 1 / scale) for target in hr]
    aligned = [psnr(a, b, 2) for a, b in zip(lr, low, strict=True)]
    turned = [psnr(np.rot90(a), b, 2) for a, b in zip(lr, low, strict=True)]
    shuffled = [psnr(a, b, 2) for a, b in zip(np.roll(lr, 1, 0), low, strict=True)]
    assert np.median(aligned) > (35 if degradation == "bicubic" else 22)
    assert np.median(aligned) > max(np.median(turned), np.median(shuffled)) + 6


def test_every_picture_has_a_kernel_of_its_own_that_none_is_measured_with(examples):
    same = [Example(str(i), examples[0].hr[:64, :64]) for i in range(3)]
    lrs = [picture[0] for seed in (0, 1)
           for picture in Patches(same, 2, 16, 1, degradation="realworld", seed=seed).pictures]
    lrs += [lr for _, lr, _ in degraded(same, 2, "realworld")]
    assert len({lr.tobytes() for lr in lrs}) == 9


def test_bicubic_patches_are_cut_from_the_picture_that_imresize_makes(examples):
    patches = Patches(examples[:1], 2, 16, 8, augment=False)
    hr = mod_crop(examples[0].hr, 2)
    low = np.lib.stride_tricks.sliding_window_view(imresize(hr, 0.5), (16, 16), (0, 1))
    high = np.lib.stride_tricks.sliding_window_view(hr, (32, 32), (0, 1))[::2, ::2]
    lrs, (targets,) = patches.batch_number(0)
    for lr, target in zip(lrs, targets, strict=True):
        lr, target = (np.round(x * 255).astype("uint8").transpose(2, 0, 1) for x in (lr, target))
        places = np.argwhere((low == lr).all((2, 3, 4)))
        assert any((high[y, x] == target).all() for y, x in places)


@pytest.mark.parametrize("fixed", [0, 60])
def test_augmentation_flips_and_turns(examples, fixed):
    plain, augmented = (Patches(examples[:1], 2, 12, 1, augment=augment, fixed=fixed)
                        for augment in (False, True))
    seen = set()
    for number in range(60):
        original, changed = (patches.batch_number(number)[0][0] for patches in (plain, augmented))
        for flip in (False, True):
            for turns in range(4):
                if np.array_equal(np.rot90(original[:, ::-1] if flip else original, turns), changed):
                    seen.add((flip, turns))
    assert len(seen) == 8


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_batch_is_a_function_of_pictures_seed_and_number(examples, degradation):
    arguments = {"scale": 4, "patch": 8, "batch": 4, "degradation": degradation, "pyramid": True}
    first, again, other = (Patches(examples, **arguments, seed=seed) for seed in (3, 3, 4))
    assert_equal_batches(*([patches.batch_number(n) for n in (5, 0)] for patches in (first, again)))
    assert (first.batch_number(5)[0] != other.batch_number(5)[0]).any()
    assert (first.batch_number(5)[0] != first.batch_number(6)[0]).any()


def test_dataset_goes_on_from_any_batch_in_order(examples):
    patches = Patches(examples, 2, 8, 4, pyramid=True)
    whole = batches(patches.dataset(), 12)
    assert_equal_batches(whole, [patches.batch_number(n) for n in range(12)])
    assert_equal_batches(whole[7:], batches(patches.dataset(start=7), 5))


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_fixed_patches_are_walked_epoch_by_epoch(rng, degradation):
    # Noise tells places apart, its brightness tells the pictures apart.
    pictures = [Example(str(level), rng.integers(level, level + 40, (60, 72, 3), "uint8"))
                for level in (0, 100, 200)]
    arguments = {"scale": 2, "patch": 8, "batch": 5, "degradation": degradation, "fixed": 10}
    patches = Patches(pictures, **arguments)
    assert patches.total == 30
    epochs = []
    for epoch in range(3):
        walked = [patches.batch_number(6 * epoch + step) for step in range(6)]
        lr, hr = (np.concatenate(side) for side in zip(*((lr, hr) for lr, (hr,) in walked), strict=True))
        assert np.bincount((hr.mean((1, 2, 3)) * 255 // 100).astype(int)).tolist() == [10, 10, 10]
        epochs.append([low.tobytes() + high.tobytes() for low, high in zip(lr, hr, strict=True)])
        assert len(set(epochs[-1])) == 30
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # To the bit from any batch on, in the middle of an epoch too; other patches for another seed.
    assert_equal_batches(batches(patches.dataset(start=9), 4),
                         [patches.batch_number(n) for n in range(9, 13)])
    assert_equal_batches([patches.batch_number(9)], [Patches(pictures, **arguments).batch_number(9)])
    other = Patches(pictures, **arguments, seed=1)
    assert set(epochs[0]).isdisjoint(
        low.tobytes() + high.tobytes() for lr, (hr,) in map(other.batch_number, range(6))
        for low, high in zip(lr, hr, strict=True))


def test_fixed_patches_must_make_whole_batches(examples):
    with pytest.raises(InputError, match="patches: 28 do not make whole batches of 8"):
        Patches(examples[:4], 2, 8, 8, fixed=7)


def test_dataset_has_static_shapes(examples):
    lr, targets = Patches(examples, 4, 8, 3, channels=1, pyramid=True).dataset().element_spec
    assert lr.shape == (3, 8, 8, 1)
    assert [target.shape for target in targets] == [(3, 16, 16, 1), (3, 32, 32, 1)]


def test_pyramid_targets_are_hr_shrunk_by_bicubic(examples):
    patches = Patches(examples[:1], 8, 8, 6, pyramid=True, augment=False)
    hr = mod_crop(examples[0].hr, 8)
    lr, targets = patches.batch_number(0)
    assert [target.shape for target in targets] == [(6, 8 * f, 8 * f, 3) for f in (2, 4, 8)]
    for factor, target in zip((2, 4), targets, strict=False):
        levels = np.lib.stride_tricks.sliding_window_view(
            imresize(hr, factor / 8), (8 * factor, 8 * factor), (0, 1)
        )[::factor, ::factor]
        for patch in np.round(target * 255).astype("uint8").transpose(0, 3, 1, 2):
            assert (levels == patch).all((2, 3, 4)).any()
        for level, top in zip(target, targets[-1], strict=True):
            assert psnr(level, imresize(top, factor / 8), 2) > 35
    assert psnr(lr[0], imresize(targets[-1][0], 1 / 8), 2) > 35


def test_fresh_kernels_differ_from_patch_to_patch(examples):
    tall = Example("one place", examples[0].hr[:64, :64])
    fresh, fixed = (
        Patches([tall], 2, 32, 4, degradation=degradation, augment=False).batch_number(0)[0]
        for degradation in ("realworld-fresh", "realworld")
    )
    # One place only fits: what differs is the kernel.
    assert np.abs(fresh[0] - fresh[1]).max() > 0.02
    np.testing.assert_array_equal(fixed[0], fixed[1])


def test_fresh_patches_equal_the_whole_picture_degraded_by_their_kernel(examples, monkeypatch):
    kernel = random_kernel(np.random.default_rng(8))
    monkeypatch.setattr("superres.datasets.patches.random_kernel", lambda rng, size: kernel)
    monkeypatch.setattr("superres.datasets.degradations.random_kernel", lambda rng: kernel)
    small = Example("picture", examples[0].hr[:48, :56])  # so small that windows cross the edge
    for scale, patch in ((2, 16), (4, 10)):
        patches = Patches([small], scale, patch, 8, degradation="realworld-fresh", augment=False)
        whole = realworld(small.hr, scale, None)
        windows = np.lib.stride_tricks.sliding_window_view(whole, (patch, patch), (0, 1))
        for lr in patches.batch_number(0)[0]:
            difference = windows.astype("float64") / 255 - lr.transpose(2, 0, 1)
            assert np.abs(difference).max((2, 3, 4)).min() < 1.5 / 255


def test_luminance_patches_are_the_luma_of_the_colour_patches(examples):
    colour, grey = (Patches(examples, 2, 8, 4, channels=channels).batch_number(0) for channels in (3, 1))
    np.testing.assert_allclose(grey[0], luma(colour[0]), atol=1e-6)
    np.testing.assert_allclose(grey[1][0], luma(colour[1][0]), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_pictures_train_as_rgb(examples, channels):
    (camera,) = (example for example in examples if example.hr.shape[-1] == 1)
    lr, (hr,) = Patches([camera], 2, 8, 4, channels=channels).batch_number(0)
    rgb = np.repeat(camera.hr, 3, -1)
    again_lr, (again_hr,) = Patches([Example("rgb", rgb)], 2, 8, 4, channels=channels).batch_number(0)
    assert lr.shape[-1] == channels
    np.testing.assert_array_equal(lr, again_lr)
    np.testing.assert_array_equal(hr, again_hr)


def test_given_lr_pictures_are_used(examples):
    lr = np.clip(imresize(examples[0].hr, 0.5).astype(int) + 9, 0, 255).astype("uint8")
    given = Patches([Example("pair", examples[0].hr, lr)], 2, 8, 4, augment=False).batch_number(0)[0]
    made = Patches([Example("pair", examples[0].hr)], 2, 8, 4, augment=False).batch_number(0)[0]
    assert np.median(given - made) == pytest.approx(9 / 255)


def test_small_pictures_are_left_out_with_a_warning(examples):
    small = Example("small", examples[0].hr[:31])
    with pytest.warns(UserWarning, match="1 pictures are smaller than a patch of 32 pixels"):
        assert len(Patches([small, examples[1]], 2, 16, 1).pictures) == 1
    with pytest.raises(InputError, match=r"patches need 32 x 32 pixels \(1 smaller pictures found\)"):
        Patches([small], 2, 16, 1)


def test_picture_of_just_a_patch_is_large_enough(examples):
    lr, _ = Patches([Example("just", examples[0].hr[:33, :32])], 2, 16, 2).batch_number(0)
    assert lr.shape == (2, 16, 16, 3)


def test_shuffled_pairs_are_refused(examples):
    hr, other = examples[0].hr, examples[1].hr
    check_pair(imresize(hr, 0.5), hr, 2, "good")
    with pytest.raises(InputError, match="bad: LR and HR are different pictures"):
        check_pair(imresize(other, 0.5), hr, 2, "bad")
    with pytest.raises(InputError, match="bad: LR and HR are different pictures"):
        Patches([Example("bad", hr, imresize(other, 0.5))], 2, 8, 1)
    check_pair(imresize(hr[:238, :254], 0.5), hr[:239, :255], 2, "rounded down")
    with pytest.raises(InputError, match="size: LR of 60 x 64 does not belong to HR of 240 x 256 at x2"):
        check_pair(imresize(hr, 0.25), hr, 2, "size")


def test_flat_pictures_pass(examples):
    flat = Example("flat", np.full((64, 64, 3), 90, "uint8"), np.full((32, 32, 3), 90, "uint8"))
    assert Patches([flat], 2, 8, 1).batch_number(0)[0].shape == (1, 8, 8, 3)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_shifted_pairs_are_refused(photos, scale):
    hr = [mod_crop(picture, scale) for picture in photos.values()]
    aligned = [(imresize(picture, 1 / scale), picture) for picture in hr]
    check_alignment(aligned, scale)
    # Turning each about its own size / 2 shifts LR by scale - 1 HR pixels: the least is 1.
    shifted = [(imresize(np.roll(picture, 1, 1), 1 / scale), picture) for picture in hr]
    with pytest.raises(InputError, match=r"shifted against HR by \([+-]0.\d\d, \+[01].\d\d\) HR pixels"):
        check_alignment(shifted, scale)
    with pytest.raises(InputError, match="shifted against HR"):
        Patches([Example("shifted", hr, lr) for lr, hr in shifted], scale, 8, 1)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_single_realworld_pair_is_not_taken_for_shifted(examples, scale):
    for seed, (name, hr, _) in enumerate(examples):
        hr = mod_crop(hr, scale)
        lr = realworld(hr, scale, np.random.default_rng(seed))
        Patches([Example(name, hr, lr)], scale, 8, 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, photo):
    """Two folders of four and two pictures."""
    folders = [tmp_path_factory.mktemp("pictures") for _ in range(2)]
    for number in range(6):
        write_picture(folders[number // 4] / f"{number}.png", photo[number : number + 8, :8])
    return [str(folder) for folder in folders]


def test_split_is_disjoint_and_drawn_by_the_seed(folders):
    def names(*args, **kwargs):
        return [[example.name for example in part] for part in split_pictures(folders, *args, **kwargs)]

    parts = names(2, 1, 0)
    assert [len(part) for part in parts] == [3, 2, 1]
    assert sorted(name for part in parts for name in part) == list("012345")
    assert parts == names(2, 1, 0) != names(2, 1, 1)
    assert [len(part) for part in names(2, 1, 0, train=2)] == [2, 2, 1]


@pytest.mark.parametrize(("name", "value"), [("train", -1), ("val", 0), ("val", -1), ("test", -1)])
def test_numbers_of_pictures_are_checked(folders, name, value):
    with pytest.raises(InputError, match=f"{name}_pictures: must be at least [01], not {value}"):
        split_pictures(folders, **{"val": 1, "test": 1, "seed": 0, name: value})


def test_no_source_is_an_error():
    with pytest.raises(InputError, match="data: name folders of pictures, shards, or names of the catalogue"):
        split_pictures((), 1, 1, 0)


@pytest.mark.parametrize("arguments", [{"train": 5}, {"val": 5}])
def test_too_few_pictures_are_an_error(folders, arguments):
    with pytest.raises(InputError, match="data: 6 pictures are too few"):
        split_pictures(folders, **{"val": 1, "test": 1, "seed": 0, **arguments})
