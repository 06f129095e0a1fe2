"""How close reconstructions are to their images: PSNR and SSIM on uint8 images.

Both are taken image by image on values in 0 .. 1 after rounding to 8 bits; a set's figure is the
mean over its images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_MIN_ERROR = 1e-10
SSIM_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """-10 log10(mean squared error) of each image, decibels.

    Args:
        images: (B, 3, H, W) uint8.
        reconstructions: the same shape, uint8.

    Returns:
        (B,) fp64; equal images give 100 dB.

    Raises:
        ValueError: shapes or dtypes differ from these.
    """
    a, b = _unit_range(images, reconstructions)
    return -10 * (a - b).square().mean(dim=(1, 2, 3)).clamp(min=_MIN_ERROR).log10()


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity of each image: Gaussian window of 11 pixels with sigma 1.5, C1 0.01^2,
    C2 0.03^2, biased moments, mean over channels and the positions where the window fits.

    Args:
        images: (B, 3, H, W) uint8, H and W at least 11.
        reconstructions: the same shape, uint8.

    Returns:
        (B,) fp64, at most 1.

    Raises:
        ValueError: shapes or dtypes differ from these.
    """
    a, b = _unit_range(images, reconstructions)
    if min(a.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {SSIM_WINDOW} pixels, got {tuple(a.shape)}"
        )
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a**2
    var_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    structure = (2 * covariance + _C2) / (var_a + var_b + _C2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _unit_range(images: Tensor, reconstructions: Tensor) -> tuple[Tensor, Tensor]:
    same = images.shape == reconstructions.shape and images.ndim == 4
    if not same or images.dtype != torch.uint8 or reconstructions.dtype != torch.uint8:
        raise ValueError(
            "images and reconstructions must be uint8 (B, 3, H, W) of one shape, got "
            f"{tuple(images.shape)} {images.dtype} and "
            f"{tuple(reconstructions.shape)} {reconstructions.dtype}"
        )
    return images.double() / 255, reconstructions.double() / 255


def _blur(maps: Tensor) -> Tensor:
    offsets = torch.arange(SSIM_WINDOW, dtype=maps.dtype, device=maps.device) - SSIM_WINDOW // 2
    kernel = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    kernel = kernel / kernel.sum()
    channels = maps.shape[1]
    down = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    across = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(maps, down, groups=channels), across, groups=channels)
