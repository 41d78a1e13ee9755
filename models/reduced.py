"""Maps at half their size and smoothed, as the linear fill and the networks on pictures work on them."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F

REDUCTION = 2  # pixels or texels a side for one of the reduced map


def blur(maps: torch.Tensor, weight: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian means of maps (B, C, H, W) over texels of weight (B, 1, H, W) >= 0; 0 far from all of them."""
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=maps.device) / sigma) ** 2)
    joined = torch.cat([maps * weight, weight], 1)
    channels = joined.shape[1]
    for shape, padding in (((1, 1, 1, -1), (0, radius)), ((1, 1, -1, 1), (radius, 0))):
        filters = (kernel / kernel.sum()).reshape(shape).expand(channels, -1, -1, -1)
        joined = F.conv2d(joined, filters, padding=padding, groups=channels)
    return joined[:, :-1] / joined[:, -1:].clamp(min=1e-6)


def enlarge(reduced: torch.Tensor) -> torch.Tensor:
    """Reduced maps (B, C, h, w) at their full size (B, C, REDUCTION h, REDUCTION w)."""
    return F.interpolate(reduced, scale_factor=REDUCTION, mode="bilinear", align_corners=False)


def reduce(albedo: torch.Tensor, visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of the visible texels of maps (B, C, H, W), 0 without any, and the share of them: at reduced size."""
    weight = F.avg_pool2d(visible, REDUCTION)
    return F.avg_pool2d(albedo * visible, REDUCTION) / weight.clamp(min=1e-6), weight
