"""metrics/ and datasets/color.py: against scikit-image and the definitions."""

import numpy as np
import pytest
import tensorflow as tf
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from superres.datasets.color import luma, rgb_to_ycbcr, ycbcr_to_rgb
from superres.datasets.degradations import imresize
from superres.metrics import consistency, diversity, finite_psnr, lr_psnr, ms_ssim, psnr, quality, ssim
from superres.metrics.image import colour_error


@pytest.fixture
def noise(rng):
    return [rng.integers(0, 256, (40, 52, 3), "uint8") for _ in range(2)]


def noisy(rng, picture, amount=8):
    return np.clip(picture + rng.normal(0, amount, picture.shape), 0, 255).astype("uint8")


def inside(picture, border):
    return picture[border : picture.shape[0] - border, border : picture.shape[1] - border]


@pytest.mark.parametrize("border", [0, 2, 4])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(160, 128), (21, 34)])
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_psnr_and_ssim_equal_scikit_image(rng, photo, size, channels, border, dtype):
    hr = photo[: size[0], : size[1], :channels]
    sr = noisy(rng, hr)
    if dtype == "float64":
        hr, sr = hr / 255, sr / 255
    peak = 255 if dtype == "uint8" else 1
    expected = peak_signal_noise_ratio(inside(hr, border), inside(sr, border), data_range=peak)
    assert psnr(hr, sr, border) == pytest.approx(expected, abs=1e-6)
    expected = structural_similarity(
        inside(hr, border), inside(sr, border), data_range=peak, channel_axis=-1,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )
    assert ssim(hr, sr, border) == pytest.approx(expected, abs=1e-6)


def test_unrelated_8_bit_pictures_do_not_wrap_around(noise):
    # The mean square of the difference of two uniform values is 1/6: 7.78 dB.
    assert psnr(*noise) == pytest.approx(7.78, abs=0.2)


def test_psnr_of_a_known_error():
    hr = np.full((8, 8, 3), 100, "uint8")
    assert psnr(hr, hr + np.uint8(1)) == pytest.approx(20 * np.log10(255))


def test_equal_pictures(photo):
    assert psnr(photo, photo) == np.inf
    assert ssim(photo, photo) == pytest.approx(1, abs=1e-12)
    assert lr_psnr(photo, photo, 4) == np.inf


@pytest.mark.parametrize("border", [0, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_perfect_picture_counts_as_one_value_one_level_off(photo, channels, border):
    hr = photo[:40, :30, :channels]
    sr = hr.copy()
    sr[20, 15, 0] ^= 1
    assert finite_psnr(hr, hr, border) == pytest.approx(psnr(hr, sr, border))
    assert finite_psnr(hr, sr, border) == pytest.approx(psnr(hr, sr, border))
    sr[10, 10, 0] ^= 1  # worse is as it was
    assert finite_psnr(hr, sr, border) == psnr(hr, sr, border) < finite_psnr(hr, hr, border) - 3


@pytest.mark.parametrize("picture", [np.full((24, 20, 3), 128, "uint8"), np.zeros((24, 20, 1), "uint8"),
                                     np.full((2, 2, 3), 255, "uint8")])
def test_flat_and_perfect_pictures_have_finite_qualities(picture):
    result = quality(picture, picture, 2)
    assert all(np.isfinite(value) for value in result.values())
    assert result["ssim_y"] == pytest.approx(1)
    assert result["colour_error"] == 0
    # Up by bicubic interpolation, flat pictures are perfect.
    assert quality(picture, imresize(imresize(picture, 0.5), 2), 2) == result


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10])
def test_ssim_of_pictures_smaller_than_its_window(rng, size):
    hr, sr = (rng.random((size, size, 3)) for _ in range(2))
    assert ssim(hr, hr) == pytest.approx(1)
    assert -1 <= ssim(hr, sr) < 0.99


def test_border_is_left_out_on_every_side(photo):
    changed = photo.copy()
    changed[:3] = changed[-3:] = 0
    changed[:, :3] = changed[:, -3:] = 0
    assert psnr(photo, changed, 3) == np.inf
    assert psnr(photo, changed, 2) < 40


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_pictures_of_different_shape_are_refused(photo, measure):
    with pytest.raises(ValueError, match="pictures differ in shape"):
        measure(photo, photo[1:])


@pytest.mark.parametrize("scale", [2, 4])
def test_lr_psnr_measures_the_pictures_shrunk_and_rounded(rng, photo, scale):
    sr = noisy(rng, photo)
    low = [imresize(picture, 1 / scale) for picture in (photo, sr)]
    expected = peak_signal_noise_ratio(*low, data_range=255)
    assert lr_psnr(photo, sr, scale) == pytest.approx(expected, abs=1e-6)
    assert lr_psnr(photo, sr / 255, scale) == pytest.approx(expected, abs=1e-6)


def test_ycbcr_is_bt601_in_studio_range(photo):
    np.testing.assert_allclose(rgb_to_ycbcr(photo / 255) * 255, rgb2ycbcr(photo), atol=1e-9)
    corners = rgb_to_ycbcr(np.array([[0.0, 0, 0], [1, 1, 1], [1, 0, 0]])) * 255
    np.testing.assert_allclose(corners, [[16, 128, 128], [235, 128, 128], [81.481, 90.203, 240]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ycbcr_and_back(photo, dtype):
    rgb = (photo / 255).astype(dtype)
    again = ycbcr_to_rgb(rgb_to_ycbcr(rgb))
    assert again.dtype == dtype
    np.testing.assert_allclose(again, rgb, atol=2e-6 if dtype == "float32" else 1e-12)


def test_luma_is_y_of_rgb_and_a_grey_picture_itself(photo):
    np.testing.assert_allclose(luma(photo / 255)[..., 0] * 255, rgb2ycbcr(photo)[..., 0], atol=1e-9)
    np.testing.assert_array_equal(luma(photo[..., :1]), photo[..., :1])


def test_quality_follows_the_protocol_of_the_literature(rng, photo):
    sr = noisy(rng, photo)
    y_hr, y_sr = (inside(rgb2ycbcr(picture), 4) for picture in (photo, sr))
    result = quality(photo, sr, 4)
    y = [picture[..., 0] for picture in (y_hr, y_sr)]
    assert result["psnr_y"] == pytest.approx(peak_signal_noise_ratio(*y, data_range=255), abs=1e-6)
    expected = structural_similarity(
        *y, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert result["ssim_y"] == pytest.approx(expected, abs=1e-6)
    assert result["psnr_rgb"] == psnr(photo, sr, 4)
    assert result["lr_psnr"] == lr_psnr(photo, sr, 4)
    assert result["colour_error"] == colour_error(photo, sr)


def test_quality_measures_a_picture_without_inside_whole(noise):
    hr, sr = (picture[:2, :2] for picture in noise)
    assert quality(hr, sr, 2)["psnr_rgb"] == psnr(hr, sr)


def test_bicubic_loses_more_at_larger_scales(photo):
    scores = [
        quality(photo, imresize(imresize(photo, 1 / scale), scale), scale)["psnr_y"] for scale in (2, 4, 8)
    ]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
@pytest.mark.parametrize(
    ("size", "window", "scales"),
    [(7, 7, 1), (32, 7, 3), (45, 7, 3), (64, 7, 4), (97, 7, 5), (160, 7, 5), (161, 11, 5), (180, 11, 5)],
)
def test_ms_ssim_equals_tensorflow(rng, photo, size, window, scales, dtype):
    hr = np.tile(photo, (2, 2, 1))[:size, : size + 3]
    sr = noisy(rng, hr, 20)
    if dtype == "float64":
        hr, sr = hr / 255, sr / 255
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    expected = tf.image.ssim_multiscale(
        tf.constant(hr), tf.constant(sr), 255 if dtype == "uint8" else 1, weights / weights.sum(),
        filter_size=window)
    assert ms_ssim(hr, sr) == pytest.approx(float(expected), abs=2e-5)
    assert ms_ssim(hr, sr) < 0.99


def test_ms_ssim_of_equal_and_of_opposite_pictures(photo):
    assert ms_ssim(photo, photo) == pytest.approx(1, abs=1e-12)
    assert ms_ssim(photo[:32, :32], 255 - photo[:32, :32]) == 0  # negative structure, not a root of it


@pytest.mark.parametrize("size", [(6, 40), (40, 6), (1, 1)])
def test_ms_ssim_needs_room_for_its_window(size):
    with pytest.raises(ValueError, match="needs pictures of 7 x 7 pixels"):
        ms_ssim(np.zeros((*size, 3)), np.zeros((*size, 3)))


@pytest.mark.parametrize("scale", [2, 4])
def test_consistency_is_the_error_of_the_picture_shrunk(photo, scale):
    sr = 0.25 + photo / 510
    lr = imresize(sr, 1 / scale)
    assert consistency(lr, sr) == pytest.approx(0, abs=1e-12)
    assert consistency(lr + 0.1, sr) == pytest.approx(0.01)
    assert consistency(lr, sr - 0.2) == pytest.approx(0.04)
    # Of 8 bits, only LR's rounding is left, after either pass: 1 / 12 of a squared level each.
    sr = photo // 2 + 64  # nothing is clipped
    assert 0 < consistency(imresize(sr, 1 / scale), sr) < 2 / 12 / 255**2


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_diversity_is_the_mean_difference_of_pairs(rng, count, dtype):
    samples = rng.integers(0, 256, (count, 5, 4, 3), "uint8")
    pairs = [np.abs(samples[i].astype(int) - samples[j]).mean() for i in range(count) for j in range(i)]
    given = samples if dtype == "uint8" else samples / 255
    assert diversity(given) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("count", [1, 4])
def test_equal_samples_have_no_diversity(photo, count):
    assert diversity(np.stack([photo] * count)) == pytest.approx(0, abs=1e-9)
