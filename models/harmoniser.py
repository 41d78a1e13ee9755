"""Harmonising the fill: a small network that corrects the smooth colours of a completed hole.

No part of the paper. The seam (`models.blending.blend`) carries the colours at the hole's border inside, and knows
nothing of what faces look like: where light falls off, where a beard was, how hair shades a forehead. This network sees
the completed picture, reduced to cells of 8 pixels, and says how much brighter, darker or redder each part of the hole
should be. It can neither add nor blur detail, and it leaves the border as it is.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn

CELL = 8  # pixels; what is smaller is left to the albedo
RAMP = 16.0  # pixels from the hole's border over which the correction grows to its full size
CHANNELS = (32, 64, 96)  # of the network's levels
EVIDENCE = 12  # maps that the network sees
GROUPS = 8  # of the normalisation


@dataclass(frozen=True)
class Evidence:
    """What is known of a completed picture, all (B, C, H, W).

    completed: in [-1, 1], the hole filled; ramp: in [0, 1], see :func:`ramp`; known in [0, 1]: how far a visible pixel
    shows the face; rendered in [-1, 1]: the face before it was blended, 0 outside its coverage bool; shade: its light.
    """

    completed: torch.Tensor
    ramp: torch.Tensor
    known: torch.Tensor
    rendered: torch.Tensor
    coverage: torch.Tensor
    shade: torch.Tensor

    def cells(self) -> torch.Tensor:
        """The maps that the network sees, averaged over cells: (B, EVIDENCE, H / 8, W / 8)."""
        covered = self.coverage.to(self.completed.dtype)
        maps = [self.completed, self.ramp, self.known, self.rendered.clamp(-1, 1) * covered, covered,
                (self.shade - 1) * covered]
        return F.avg_pool2d(torch.cat(maps, dim=1), CELL)


class Harmoniser(nn.Module):
    """Evidence in cells (B, EVIDENCE, h, w), h and w multiples of 4 -> colours to be added (B, 3, h, w).

    A U-Net of three levels with 0.4 million parameters. Untrained it corrects nothing.
    """

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList(_block(*sizes) for sizes in zip((EVIDENCE, *CHANNELS[:-1]), CHANNELS))
        self.up = nn.ModuleList(_block(below + beside, beside) for beside, below in zip(CHANNELS, CHANNELS[1:]))
        self.last = nn.Conv2d(CHANNELS[0], 3, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        levels = []
        for index, block in enumerate(self.down):
            cells = block(F.avg_pool2d(cells, 2) if index else cells)
            levels.append(cells)
        for block, level in zip(reversed(self.up), reversed(levels[:-1])):
            cells = block(torch.cat([F.interpolate(cells, scale_factor=2, mode="bilinear", align_corners=False), level],
                                    dim=1))
        return self.last(cells)


def _block(given: int, returned: int) -> nn.Sequential:
    layers = []
    for channels in (given, returned):
        layers += [nn.Conv2d(channels, returned, 3, padding=1), nn.GroupNorm(GROUPS, returned), nn.SiLU()]
    return nn.Sequential(*layers)


def ramp(hole: torch.Tensor) -> torch.Tensor:
    """How far the colours of each pixel may change, (B, 1, H, W) in [0, 1]: 0 outside the hole (B, 1, H, W) bool, and
    inside growing with the distance to the nearest visible pixel, to 1 from RAMP pixels on."""
    padded = np.pad(hole[:, 0].cpu().numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
    distance = [ndimage.distance_transform_edt(item) if not item.all() else np.full(item.shape, RAMP)
                for item in padded]
    grown = torch.from_numpy(np.stack(distance)[:, None, 1:-1, 1:-1]).to(device=hole.device, dtype=torch.float32)
    return (grown / RAMP).clamp(max=1)


def harmonise(network: nn.Module, evidence: Evidence) -> torch.Tensor:
    """The completed picture (B, 3, H, W) with corrected colours, in [-1, 1]; bit-identical where the ramp is 0."""
    correction = network(evidence.cells()).to(evidence.completed.dtype)
    smooth = F.interpolate(correction, scale_factor=CELL, mode="bilinear", align_corners=False)
    corrected = (evidence.completed + evidence.ramp * smooth).clamp(-1, 1)
    return torch.where(evidence.ramp > 0, corrected, evidence.completed)
