"""Measures of picture quality."""

from superres.metrics.image import (
    colour_error,
    consistency,
    diversity,
    finite_psnr,
    lr_psnr,
    ms_ssim,
    psnr,
    quality,
    ssim,
)

__all__ = ["colour_error", "consistency", "diversity", "finite_psnr", "lr_psnr", "ms_ssim", "psnr", "quality",
           "ssim"]
