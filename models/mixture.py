"""The mixed fill: a mean of the statistical one and the paper's network's.

A departure from the paper. The two err in different ways, the linear model sharply (`models.linear`), the network
smoothly (`models.inpainter`), so a mean of both is nearer to the truth than either (docs/experiments.md).
"""
from __future__ import annotations

import torch
from torch import nn

from models.inpainter import Inpainting

NETWORK_SHARE = 0.45  # of the network in the mean: with more of it fills are more blurred


class Mixture(nn.Module):
    """(albedo (B, 3, 192, 256) in [-1, 1], visible (B, 1, 192, 256)) -> `Inpainting`, as `models.inpainter.Inpainter`.

    linear: `models.linear.LinearInpainter`; network: `models.inpainter.Inpainter`. confidence is the network's.
    """

    def __init__(self, linear: nn.Module, network: nn.Module):
        super().__init__()
        self.linear, self.network = linear, network

    def forward(self, albedo: torch.Tensor, visible: torch.Tensor) -> Inpainting:
        """The mean also where texels are visible: so the seam knows by how much the fill is off beside the hole."""
        linear, network = self.linear(albedo, visible), self.network(albedo, visible)
        # The network's eyes are as mean as the model's, so both get the same detail, and their mean all of it.
        eyes = self.linear.typical_eyes(visible).to(linear.albedo.dtype)
        other = (network.albedo.to(linear.albedo.dtype) + eyes).clamp(-1, 1)
        return Inpainting(torch.lerp(linear.albedo, other, NETWORK_SHARE), network.confidence)
