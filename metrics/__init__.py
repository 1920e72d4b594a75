"""Measures of picture quality, in float64 numpy."""

from metrics.image import consistency, diversity, lr_psnr, ms_ssim, psnr, quality, ssim

__all__ = ["consistency", "diversity", "lr_psnr", "ms_ssim", "psnr", "quality", "ssim"]
