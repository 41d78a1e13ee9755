"""The 2D baseline: the inpainter's gated U-Net on the image itself, without any idea of a head.

What the analysis by synthesis has to beat (paper section 4): the same number of parameters, the same training faces,
losses and seam, but no shape, pose or light.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from datasets.labels import FACE
from models.blending import blend, keep_grey
from models.completion import MIN_FACE, check_images, occluders, visible_face, with_features
from models.grain import match_grain
from models.inpainter import Inpainter
from models.layers import compute_in
from models.reduced import enlarge, reduce


@dataclass(frozen=True)
class ImageResult:
    """output (B, 3, H, W) in [-1, 1], bit-identical to the input outside the hole; hole (B, 1, H, W) bool."""

    output: torch.Tensor
    hole: torch.Tensor
    landmarks: None = None


class ImageInpainter(nn.Module):
    """Image (B, 3, H, W) in [-1, 1], 0 where hidden, and visible (B, 1, H, W) -> what the network sees (B, 3, H, W).

    H and W are multiples of 64. The network works on pictures of half the size, as the refiner on half the UV map.
    """

    def __init__(self):
        super().__init__()
        self.network = Inpainter()

    def forward(self, image: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        return enlarge(self.network(*reduce(image, visible.to(image.dtype))).albedo)


class ImageCompletion(nn.Module):
    """Completes faces in two dimensions; what evaluation uses of it is as in `models.completion.FaceCompletion`.

    inpainter: `ImageInpainter`; occlusion: image -> label probabilities; grain, dtype: as there.
    """

    def __init__(self, inpainter: nn.Module, occlusion: nn.Module, grain: bool = False,
                 dtype: torch.dtype = torch.float32):
        super().__init__()
        self.inpainter, self.occlusion, self.grain, self.dtype = inpainter, occlusion, grain, dtype

    @torch.no_grad()
    def forward(self, image: torch.Tensor, hole: torch.Tensor) -> ImageResult:
        """Complete image (B, 3, H, W) in [-1, 1] inside its hole (B, 1, H, W); H = W = 256 (224 is no multiple of 64).

        The colours of the fill are led into those of the visible face, which the occlusion net finds in a first
        completion. Raises ValueError if a shape is wrong.
        """
        check_images(image, hole)
        hole = hole > 0.5
        masked = torch.where(hole, 0, image)
        with compute_in(self.dtype, image.device):
            generated = self.inpainter(masked, ~hole)
        first = blend(masked, hole, generated, (~hole).float())
        face = self.label(first)[:, FACE:FACE + 1]
        known = visible_face(with_features(face, hole), hole)
        filled = keep_grey(blend(masked, hole, generated, known), hole)
        if self.grain:
            filled = match_grain(filled, hole, face >= MIN_FACE)
        return ImageResult(torch.where(hole, filled, image), hole)

    @torch.no_grad()
    def predict_hole(self, image: torch.Tensor, hair: bool = True) -> torch.Tensor:
        """As `models.completion.FaceCompletion.predict_hole`."""
        if hair:
            return occluders(self.label(image))
        with compute_in(self.dtype, image.device):
            labels, hair_odds = self.occlusion.with_hair(image)
        return occluders(labels.float(), hair_odds)

    @torch.no_grad()
    def label(self, image: torch.Tensor) -> torch.Tensor:
        """As `models.completion.FaceCompletion.label`."""
        with compute_in(self.dtype, image.device):
            return self.occlusion(image).float()
