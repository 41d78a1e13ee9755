"""Filling and joining: smooth extrapolation over pyramids, the seam of a completed hole, and holes beside the face."""
from __future__ import annotations

import torch
import torch.nn.functional as F

RELAXATIONS = 4  # smoothing sweeps per pyramid level
GREY = 6 / 127.5  # difference of an image's channels up to which a pixel counts as grey
COLOURED_SHARE = 0.005  # of the visible pixels; a grey photograph has no more that are not
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
FACE_WEIGHT = 1e-4  # of the face in the colours of its surroundings: only where nothing else is to be seen
RIM = 4  # pixels around the face over which its colours run into what is filled in beside it


def to_uint8(image: torch.Tensor) -> torch.Tensor:
    """Image in [-1, 1] -> uint8, rounded; inverts :func:`from_uint8` exactly."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(image: torch.Tensor) -> torch.Tensor:
    """uint8 image -> float32 in [-1, 1]."""
    return image.float() / 127.5 - 1


def pull_push(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Extend values (B, C, H, W), known to the degree weight (B, 1, H, W) in [0, 1], smoothly to all pixels.

    Pixels of weight 1 keep their value; the others approach the membrane (harmonic) interpolation of the known ones:
    pull-push over a pyramid (Gortler et al., The Lumigraph, 1996) with a few relaxation sweeps per level. 0 everywhere
    where nothing is known. Values of weight 0 are not read (but must be finite). Differentiable in the values.
    """
    height, width = values.shape[-2:]
    if max(height, width) == 1:
        return values * (weight > 0)
    padding = (0, width % 2, 0, height % 2)
    known, free = values * weight, 1 - weight
    total = 4 * F.avg_pool2d(F.pad(weight, padding), 2)
    mean = 4 * F.avg_pool2d(F.pad(known, padding), 2) / total.clamp(min=1e-8)
    coarse = pull_push(mean, total.clamp(max=1))
    smooth = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
    filled = torch.addcmul(known, free, smooth)
    quarter = free / 4
    for _ in range(RELAXATIONS):
        around = F.pad(filled, (1, 1, 1, 1), mode="replicate")
        vertical = around[..., :-2, 1:-1] + around[..., 2:, 1:-1]
        horizontal = around[..., 1:-1, :-2] + around[..., 1:-1, 2:]
        filled = torch.addcmul(known, quarter, vertical + horizontal)
    return filled


def blend(image: torch.Tensor, hole: torch.Tensor, rendered: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Put a rendered face into the hole without a seam.

    image, rendered (B, 3, H, W) in [-1, 1]; hole (B, 1, H, W) bool, True where `rendered` replaces the image;
    known (B, 1, H, W) in [0, 1], ignored in the hole: how far a pixel shows the same surface as `rendered`.
    The difference image - rendered at the known pixels is carried smoothly into the hole and added there. The result is
    clamped to [-1, 1] inside the hole and bit-identical to the image outside.
    """
    weight = known.to(rendered.dtype) * ~hole
    correction = pull_push(torch.where(weight > 0, image - rendered, 0), weight)
    return torch.where(hole, (rendered + correction).clamp(-1, 1), image)


def keep_grey(filled: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Makes what fills the hole of a black-and-white photograph grey, too.

    filled (B, 3, H, W) in [-1, 1], right outside the hole (B, 1, H, W) bool. Others come back as they are.
    """
    coloured = (filled.amax(1, keepdim=True) - filled.amin(1, keepdim=True) > GREY) & ~hole
    visible = (~hole).sum((1, 2, 3), keepdim=True)
    grey = (coloured.sum((1, 2, 3), keepdim=True) <= COLOURED_SHARE * visible) & (visible > 0)
    luma = sum(weight * filled[:, channel:channel + 1] for channel, weight in enumerate(LUMA))
    return torch.where(grey & hole, luma, filled)


def fill_beside(image: torch.Tensor, hole: torch.Tensor, face: torch.Tensor) -> torch.Tensor:
    """Fill hidden pixels beside the face smoothly from its surroundings, so that skin does not spread over them.

    image (B, 3, H, W) in [-1, 1], the face in place; hole (B, 1, H, W) bool, what is to be filled; face (B, 1, H, W)
    bool, the pixels that show the face, outside the hole. Within RIM pixels of the face its colours run into those of
    the visible pixels that are no face. Where these are all hidden, the face is continued; where nothing is visible, 0.
    Pixels outside the hole come back bit-identical; hidden pixels are not read. Differentiable in the image.
    """
    visible = torch.where(hole, 0, image)
    on_face = (face & ~hole).to(image.dtype)
    weight = torch.where(hole, 0, torch.where(face, FACE_WEIGHT, 1.0)).to(image.dtype)
    surroundings = pull_push(visible, weight)
    size = 2 * RIM + 1
    share = F.avg_pool2d(on_face, size, 1, RIM)
    nearest = F.avg_pool2d(visible * on_face, size, 1, RIM) / share.clamp(min=1e-6)
    filled = torch.lerp(surroundings, nearest, (2 * share).clamp(max=1))  # beside a straight outline share is 1/2
    return torch.where(hole, filled, image)
