"""The albedo and confidence decoders, trained together with the encoder; completion does not use them."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import ConvUnit, SpectralConv2d, UpUnit

CODE_SIZE = 512
BASE_SIZE = (3, 4)
MIN_CONFIDENCE = -10.0


class AlbedoDecoder(nn.Module):
    """Albedo code (B, 512) -> UV albedo (B, 3, 192, 256) in [-1, 1]."""

    def __init__(self):
        super().__init__()

        def level(inputs: int, first: int, second: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(UpUnit(inputs, first), ConvUnit(first, second), ConvUnit(second, outputs))

        self.expand = UpUnit(CODE_SIZE, 512, BASE_SIZE)
        self.project = SpectralConv2d(512, 256, 3, 1, 1)
        self.levels = nn.Sequential(
            level(256, 256, 128, 128), level(128, 160, 96, 128), level(128, 128, 64, 96),
            level(96, 96, 64, 64), level(64, 64, 32, 32), level(32, 32, 16, 16),
        )
        self.output = nn.Conv2d(16, 3, 1)

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        base = F.elu(self.project(self.expand(code[:, :, None, None])))
        return torch.tanh(self.output(self.levels(base)))


class ConfidenceDecoder(nn.Module):
    """Confidence code (B, 512) -> per-texel log-uncertainty (B, 1, 192, 256), at least -10."""

    def __init__(self):
        super().__init__()
        widths = (256, 128, 160, 128, 96, 64, 32)
        self.expand = UpUnit(CODE_SIZE, widths[0], BASE_SIZE)
        self.levels = nn.Sequential(*(UpUnit(*pair) for pair in zip(widths[:-1], widths[1:])))
        self.output = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        return self.output(self.levels(self.expand(code[:, :, None, None]))).clamp(min=MIN_CONFIDENCE)
