"""The refined fill: the linear fill of the UV albedo, corrected in the hole by the gated U-Net.

A departure from the paper, whose network has to invent the hidden albedo alone (`models.inpainter`): here the network
sees the most probable face of a statistical model and learns what that gets wrong, which takes a fraction of the
training.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.inpainter import Inpainter, Inpainting
from models.linear import REDUCTION, blur, enlarge

FIRST_GAIN = 0.1  # of the network's output, so that training starts near the linear fill
SMOOTHNESS = 4.0  # reduced texels; sigma of the correction: colours are corrected, and the fill's detail stays


class Refiner(nn.Module):
    """Filled UV albedo (B, 3, 192, 256) in [-1, 1] and its visible mask (B, 1, 192, 256) -> `Inpainting`.

    The U-Net works on halves of the map's sides, as the linear fill does, and its output, smoothed and times a learnt
    gain, is added where nothing was visible. Visible texels come back unchanged. confidence is 0. The reduced map's
    axis of symmetry lies half a reduced texel beside its middle, which does not matter, so that its mirror image is the
    plain one.
    """

    def __init__(self):
        super().__init__()
        self.network = Inpainter()
        self.gain = nn.Parameter(torch.full((1,), FIRST_GAIN))

    def forward(self, filled: torch.Tensor, visible: torch.Tensor) -> Inpainting:
        """Raises ValueError unless the sides are multiples of 64."""
        known = visible.to(filled.dtype)
        share = F.avg_pool2d(known, REDUCTION)
        reduced = self.network(F.avg_pool2d(filled, REDUCTION), share).albedo.float()
        refined = (filled + enlarge(self.gain * blur(reduced, 1 - share, SMOOTHNESS)).to(filled.dtype)).clamp(-1, 1)
        return Inpainting(torch.where(visible > 0, filled, refined), torch.zeros_like(known))


class RefinedInpainter(nn.Module):
    """(albedo (B, 3, 192, 256), 0 where hidden, visible (B, 1, 192, 256)) -> `Inpainting`, as `Inpainter`.

    prior: such an inpainter, `models.linear.LinearInpainter`; visible texels come back as it says.
    """

    def __init__(self, prior: nn.Module, refiner: Refiner):
        super().__init__()
        self.prior, self.refiner = prior, refiner

    def forward(self, albedo: torch.Tensor, visible: torch.Tensor) -> Inpainting:
        with torch.no_grad():
            prior = self.prior(albedo, visible).albedo
        refined = self.refiner(torch.where(visible > 0, albedo, prior), visible)
        return refined._replace(albedo=torch.where(visible > 0, prior, refined.albedo))
