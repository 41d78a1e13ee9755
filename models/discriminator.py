"""The discriminators: the multi-scale ("pyramid") one of the paper, its larger variant, and a patch one."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import SpectralConv2d, group_norm

LEAK = 0.2


def _leaky(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, LEAK)


class PyramidDiscriminator(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] -> list of four score maps (B, 1, H/s, W/s), s = 4, 8, 16, 32, fine to coarse.

    large: each level is a 3x3 convolution and a 3x3 one of stride 2 instead of a single 4x4 one of stride 2.
    """

    def __init__(self, large: bool = False):
        super().__init__()
        widths = (32, 64, 128, 256, 512)
        self.first = SpectralConv2d(3, widths[0], 4, 2, 1)
        self.levels = nn.ModuleList()
        for inputs, outputs in zip(widths[:-1], widths[1:]):
            if large:
                convs = [SpectralConv2d(inputs, outputs, 3, 1, 1), SpectralConv2d(outputs, outputs, 3, 2, 1)]
            else:
                convs = [SpectralConv2d(inputs, outputs, 4, 2, 1)]
            self.levels.append(nn.ModuleList(convs))
        self.heads = nn.ModuleList(SpectralConv2d(width, 1, 1) for width in widths[1:])

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Scores (B, 1, h, w) of images (B, 3, H, W) in [-1, 1], a map for each level, the finest first."""
        x = _leaky(self.first(image))
        scores = []
        for convs, head in zip(self.levels, self.heads):
            for conv in convs:
                x = _leaky(conv(x))
            scores.append(head(x))
        return scores


class PatchDiscriminator(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] -> one score map (B, 1, H/32, W/32)."""

    def __init__(self):
        super().__init__()
        widths = (64, 128, 256, 512, 512)
        self.first = nn.Conv2d(3, widths[0], 4, 2, 1)
        self.convs = nn.ModuleList(nn.Conv2d(*pair, 4, 2, 1) for pair in zip(widths[:-1], widths[1:]))
        self.norms = nn.ModuleList(group_norm(width) for width in widths[1:])
        self.last_conv = nn.Conv2d(512, 512, 3, 1, 1)
        self.last_norm = group_norm(512)
        self.output = nn.Conv2d(512, 1, 3, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = _leaky(self.first(image))
        for conv, norm in zip(self.convs, self.norms):
            x = _leaky(norm(conv(x)))
        return self.output(_leaky(self.last_norm(self.last_conv(x))))
