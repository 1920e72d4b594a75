"""datasets/degradations.py: MATLAB's imresize and DIV2KRK's kernels against their definitions."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate

from superres.datasets.catalogue import Example
from superres.datasets.degradations import (
    blur_downsample,
    degraded,
    imresize,
    margin,
    mod_crop,
    random_kernel,
    realworld,
)
from superres.datasets.patches import Patches, shift_between
from superres.errors import InputError

# Half of the one-dimensional kernel of imresize at an interior pixel; the rest mirrors it.
HALF_TAPS = {
    2: [-0.01172, -0.03516, 0.11328, 0.43359],
    4: [-0.00171, -0.01099, -0.01831, -0.01196, 0.02271, 0.09741, 0.18188, 0.24097],
}


def matlab_axis(line, scale):
    """imresize of one line of numbers, as MATLAB's documentation defines it, number by number."""

    def cubic(x):
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    width = 4 / min(scale, 1)
    resized = []
    for i in range(1, math.ceil(len(line) * scale - 1e-9) + 1):
        u = i / scale + 0.5 * (1 - 1 / scale)
        total = weights = 0.0
        for k in range(math.floor(u - width / 2), math.ceil(u + width / 2) + 1):
            weight = cubic(min(scale, 1) * (u - k))
            mirrored = (k - 1) % (2 * len(line))
            total += weight * line[min(mirrored, 2 * len(line) - 1 - mirrored)]
            weights += weight
        resized.append(total / weights)
    return resized


def matlab_imresize(picture, scale):
    """Rows first, then columns, each rounded to 8 bits where the picture has 8 bits."""
    quantise = (lambda x: min(255, max(0, math.floor(x + 0.5)))) if picture.dtype == np.uint8 else float
    planes = []
    for plane in np.moveaxis(picture.astype("float64"), -1, 0):
        rows = np.array([[quantise(x) for x in matlab_axis(column, scale)] for column in plane.T]).T
        planes.append([[quantise(x) for x in matlab_axis(row, scale)] for row in rows])
    return np.moveaxis(np.array(planes), 0, -1).astype(picture.dtype)


@pytest.mark.parametrize("scale", [2, 4])
def test_imresize_has_the_taps_of_matlab(scale):
    taps = HALF_TAPS[scale] + HALF_TAPS[scale][::-1]
    # An impulse at HR pixel x weighs in LR pixel i with tap number x - scale * i + padding.
    padding, i = {2: 3, 4: 6}[scale], 8
    seen = []
    for tap in range(len(taps)):
        impulse = np.zeros((1, 16 * scale, 1))
        impulse[0, scale * i + tap - padding] = 1
        seen.append(imresize(np.repeat(impulse, 16 * scale, 0), 1 / scale)[8, i, 0])
    np.testing.assert_allclose(seen, taps, atol=6e-6)


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 1 / 8, 2, 3, 4, 0.7, 1.3])
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_imresize_is_matlabs_definition(rng, dtype, scale):
    for shape in ((13, 8, 1), (5, 17, 3), (3, 2, 1)):
        # Black and white overshoots, which the rounding between the passes clips.
        picture = rng.choice([0, 255, 7, 128], shape).astype(dtype)
        expected = matlab_imresize(picture, scale)
        np.testing.assert_allclose(imresize(picture, scale), expected, atol=1e-9)


def test_imresize_rounds_between_its_passes(rng):
    picture = rng.integers(0, 256, (64, 64, 1), "uint8")
    once = np.floor(np.clip(imresize(picture.astype("float64"), 0.5), 0, 255) + 0.5)
    assert (imresize(picture, 0.5) != once).mean() > 0.01


@pytest.mark.parametrize("scale", [1 / 8, 1 / 3, 2, 8])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_constant_pictures_stay_constant(scale, value):
    resized = imresize(np.full((11, 6, 3), value, "uint8"), scale)
    assert resized.shape == (math.ceil(11 * scale), math.ceil(6 * scale), 3)
    assert (resized == value).all()


def test_imresize_keeps_its_type_and_its_argument(photo):
    for dtype in ("uint8", "float32", "float64"):
        picture = photo.astype(dtype)
        assert imresize(picture, 0.5).dtype == dtype
        np.testing.assert_array_equal(picture, photo)


def test_imresize_by_1_changes_nothing(photo):
    np.testing.assert_array_equal(imresize(photo, 1), photo)


@pytest.mark.parametrize(("size", "expected"), [((9, 14), (8, 12)), ((8, 8), (8, 8)), ((3, 9), (0, 8))])
def test_mod_crop_cuts_below_and_right(rng, size, expected):
    picture = rng.random((*size, 3))
    np.testing.assert_array_equal(mod_crop(picture, 4), picture[: expected[0], : expected[1]])


@given(seed=st.integers(0, 2**32), noise=st.sampled_from([0, 0.25]))
@settings(max_examples=50, deadline=None)
def test_random_kernels_sum_to_1_around_the_aligned_centre(seed, noise):
    kernel = random_kernel(np.random.default_rng(seed), noise=noise)
    assert kernel.shape == (11, 11)
    assert kernel.min() >= 0
    assert kernel.sum() == pytest.approx(1)
    centre = [(kernel.sum(1 - axis) * np.arange(11)).sum() for axis in (0, 1)]
    assert centre == pytest.approx([5.5, 5.5], abs=1e-5)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_random_kernels_have_the_variances_of_div2krk(seed):
    # On a grid that does not cut them off, the variances are those that were drawn.
    kernel = random_kernel(np.random.default_rng(seed), size=31, noise=0)
    offset = np.stack(np.meshgrid(*[np.arange(31) - 15.5] * 2, indexing="ij"), -1)
    covariance = np.einsum("yx,yxi,yxj->ij", kernel, offset, offset)
    drawn = np.random.default_rng(seed).uniform(0.6, 5, 2)
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance), sorted(drawn), rtol=0.01)


def test_random_kernels_turn_and_differ():
    kernels = [random_kernel(np.random.default_rng(seed), noise=0) for seed in range(200)]
    y, x = np.meshgrid(*[np.arange(11) - 5.5] * 2, indexing="ij")
    skew = np.array([(kernel * x * y).sum() for kernel in kernels])
    assert skew.min() < -0.5
    assert skew.max() > 0.5


def test_noise_multiplies_by_up_to_a_quarter():
    with_noise = random_kernel(np.random.default_rng(0))
    without = random_kernel(np.random.default_rng(0), noise=0)
    ratio = (with_noise / without)[2:-2, 2:-2]
    assert 1.4 < ratio.max() / ratio.min() < 2.5  # 1.25 / 0.75, and the shift of the centre


def test_one_step_is_a_correlation_and_every_second_pixel(rng, photo):
    picture, kernel = photo / 255, random_kernel(rng)
    expected = correlate(picture, kernel[..., None], mode="reflect")[::2, ::2]
    np.testing.assert_allclose(blur_downsample(picture, kernel), expected, atol=1e-12)


def test_blurring_takes_little_more_than_the_picture_s_memory(rng):
    picture, kernel = rng.random((1600, 1200, 3)), random_kernel(rng)
    tracemalloc.start()
    blur_downsample(picture, kernel)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * picture.nbytes


def test_two_steps_are_the_step_done_twice(rng, photo):
    picture, kernel = photo / 255, random_kernel(rng)
    twice = blur_downsample(blur_downsample(picture, kernel), kernel)
    # They pad once for both steps, which differs from padding twice near the edge only.
    np.testing.assert_allclose(
        blur_downsample(picture, kernel, steps=2)[4:-4, 4:-4], twice[4:-4, 4:-4], atol=1e-12
    )


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_window_with_its_margin_equals_the_whole_picture(rng, photo, steps):
    picture, kernel = photo / 255, random_kernel(rng)
    scale, around = 2**steps, margin(11, steps)
    whole = blur_downsample(picture, kernel, steps)
    top, left, size = 40 // scale, 48 // scale, 24 // scale
    window = picture[
        top * scale - around : (top + size) * scale + around,
        left * scale - around : (left + size) * scale + around,
    ]
    np.testing.assert_allclose(
        blur_downsample(window, kernel, steps, pad=False),
        whole[top : top + size, left : left + size], atol=1e-12,
    )


@pytest.mark.parametrize(("scale", "tolerance"), [(2, 0.01), (4, 0.05), (8, 0.1)])
def test_realworld_pictures_are_aligned(photos, scale, tolerance):
    pairs = [(realworld(hr, scale, np.random.default_rng(i)), hr)
             for i, hr in enumerate(mod_crop(picture, scale) for picture in photos.values())]
    assert all(lr.shape[0] * scale == hr.shape[0] for lr, hr in pairs)
    assert np.abs(shift_between(pairs, scale)).max() < tolerance


@pytest.mark.parametrize("shift", [(0.5, 0), (0, -0.5), (1, 1)])
@pytest.mark.parametrize("scale", [2, 4])
def test_shifts_of_half_a_pixel_are_measured(photos, scale, shift):
    pairs = []
    for picture in photos.values():
        # Twice the size: a shift by whole pixels there is half a pixel of HR.
        wide = mod_crop(picture, 2 * scale)
        moved = np.roll(wide, [int(2 * step) for step in shift], (0, 1))
        pairs.append((imresize(moved, 0.5 / scale), imresize(wide, 0.5)))
    assert shift_between(pairs, scale) == pytest.approx(shift, abs=0.1)


def test_degraded_pairs_have_the_sizes_and_kernels_that_every_call_has(photo):
    examples = [Example(f"picture{i}", photo[: 41 + i, :62]) for i in range(2)]
    first, second = ([lr for _, lr, _ in degraded(examples, 4, "realworld")] for _ in range(2))
    for (name, lr, hr), again, example in zip(
        degraded(examples, 4, "realworld"), second, examples, strict=True
    ):
        assert (name, lr.shape, hr.shape) == (example.name, (10, 15, 3), (40, 60, 3))
        np.testing.assert_array_equal(lr, again)
    assert (first[0] != first[1]).any()
    name, lr, hr = next(degraded(examples, 4, "bicubic"))
    np.testing.assert_array_equal(lr, imresize(hr, 1 / 4))


def test_degraded_keeps_a_given_lr_and_refuses_one_that_does_not_fit(photo):
    hr, other = photo[:40, :60], imresize(photo[100:140, 60:120], 0.5)
    lr = imresize(hr, 0.5) // 2
    assert next(degraded([Example("given", hr, lr)], 2, "bicubic"))[1] is lr
    for wrong, scale, degradation, message in (
            (lr, 4, "bicubic", "given: LR of 30 x 20 does not belong to HR of 60 x 40 at x4"),
            (other, 2, "bicubic", "given: LR and HR are different pictures"),
            (lr, 2, "realworld", "degradation: given comes with an LR of its own")):
        with pytest.raises(InputError, match=message):
            list(degraded([Example("given", hr, wrong)], scale, degradation))
    with pytest.raises(InputError, match="degradation: given comes with an LR of its own"):
        Patches([Example("given", hr, lr)], 2, 8, 1, degradation="realworld")


@pytest.mark.parametrize("scale", [2, 4])
def test_pictures_that_are_all_border_are_left_out(photo, scale):
    sizes = {"none": (1, 40), "flat": (2 * scale, 40), "thin": (40, 3 * scale - 1), "least": (3 * scale, 40)}
    examples = [Example(name, photo[:height, :width]) for name, (height, width) in sizes.items()]
    with pytest.warns(UserWarning, match=rf"at most {2 * scale} pixels .* at x{scale}: none, flat, thin$"):
        assert [name for name, _, _ in degraded(examples, scale, "realworld")] == ["least"]
    with pytest.raises(InputError, match=r"none: too small, .* \(3 smaller pictures found\)"):
        list(degraded(examples[:3], scale, "bicubic"))
    assert list(degraded([], scale, "bicubic")) == []


def test_another_word_for_a_degradation_is_refused(photo):
    for make in (lambda: list(degraded([Example("", photo)], 2, "blur")),
                 lambda: Patches([Example("", photo)], 2, 16, 1, degradation="blur")):
        with pytest.raises(InputError, match="degradation: must be bicubic, realworld or realworld-fresh"):
            make()


@pytest.mark.parametrize(("hr", "lr", "both"), [(1, 1, 1), (1, 3, 3), (3, 1, 3), (3, 3, 3)])
def test_pairs_become_alike(photo, hr, lr, both):
    given = Example("pair", photo[:40, :60, :hr], imresize(photo[:40, :60, :lr], 0.5))
    (_, *pair), = degraded([given], 2, "bicubic")
    for found, picture in zip(pair, (given.lr, given.hr), strict=True):
        np.testing.assert_array_equal(found, np.broadcast_to(picture, (*picture.shape[:2], both)))


def test_degrading_pictures_needs_no_tensorflow(run_command):
    result = run_command("-c", "import sys, superres.datasets.degradations; "
                         "sys.exit(bool({'tensorflow', 'keras'} & {*sys.modules}))")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("scale", [(0.5, 0.7), (0.7, 0.5), (2, 0.5)])
def test_of_two_scales_the_smaller_comes_first(rng, scale):
    picture = rng.choice([0, 255, 7, 128], (13, 10, 3)).astype("uint8")
    expected = picture.astype("float64")
    for axis in sorted((0, 1), key=lambda axis: scale[axis]):
        expected = np.apply_along_axis(
            lambda line, s: [min(255, max(0, math.floor(x + 0.5))) for x in matlab_axis(line, s)],
            axis, expected, scale[axis])
    np.testing.assert_array_equal(imresize(picture, scale), expected)
