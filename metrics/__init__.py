"""Measures of picture quality, in float64 numpy."""

from metrics.image import lr_psnr, psnr, quality, ssim

__all__ = ["lr_psnr", "psnr", "quality", "ssim"]
