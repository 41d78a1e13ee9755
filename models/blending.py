"""Filling and joining: smooth extrapolation over pyramids, the seam of a completed hole, and holes beside the face."""
from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F

TELEA_RADIUS = 5  # pixels around a hidden pixel that Telea's method looks at
RELAXATIONS = 4  # smoothing sweeps per pyramid level
GREY = 6 / 127.5  # difference of an image's channels up to which a pixel counts as grey
COLOURED_SHARE = 0.005  # of the visible pixels; a grey photograph has no more that are not
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
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
    total = 4 * F.avg_pool2d(F.pad(weight, padding), 2)
    mean = 4 * F.avg_pool2d(F.pad(values * weight, padding), 2) / total.clamp(min=1e-8)
    coarse = pull_push(mean, total.clamp(max=1))
    smooth = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
    known = values * weight
    filled = known + (1 - weight) * smooth
    for _ in range(RELAXATIONS):
        around = F.pad(filled, (1, 1, 1, 1), mode="replicate")
        average = (around[..., :-2, 1:-1] + around[..., 2:, 1:-1] + around[..., 1:-1, :-2] + around[..., 1:-1, 2:]) / 4
        filled = known + (1 - weight) * average
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
    """Fill hidden pixels beside the face from its surroundings, so that skin does not spread over the background.

    image (B, 3, H, W) in [-1, 1], the face in place; hole (B, 1, H, W) bool, what is to be filled; face (B, 1, H, W)
    bool, the pixels that show the face, outside the hole. Telea's method from the visible pixels that are no face, then
    again from both sides over the RIM pixels next to the face, for a soft outline. Where the whole surroundings are
    hidden, from the face. Pixels outside the hole come back bit-identical; hidden pixels are not read.
    """
    needed = hole.flatten(1).any(1)[:, None, None, None]
    surroundings = torch.where(hole, telea(image, (hole | face) & needed), image)
    rim = F.max_pool2d(face.float(), 2 * RIM + 1, stride=1, padding=RIM) > 0
    all_hidden = (hole | face).flatten(1).all(1)[:, None, None, None]
    return telea(surroundings, hole & (rim | all_hidden))


def telea(image: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Fill the hole of images (B, 3, H, W) in [-1, 1] by fast-marching inpainting (Telea, 2004), on the CPU.

    hole (B, 1, H, W) bool. Pixels outside it come back bit-identical; hidden pixels are not read. An image without any
    visible pixel becomes mid-grey (0). The fill is quantised to 8 bits. Not differentiable.
    """
    return torch.stack([_telea_item(*item) for item in zip(image, hole)]) if len(image) else image


def _telea_item(image: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    if not hole.any():
        return image
    if hole.all():
        return torch.zeros_like(image)
    mask = hole[0].cpu().numpy().astype(np.uint8)
    visible = to_uint8(torch.where(hole, 0, image.detach())).permute(1, 2, 0).cpu().numpy()
    filled = cv2.inpaint(np.ascontiguousarray(visible), mask, TELEA_RADIUS, cv2.INPAINT_TELEA)
    filled = from_uint8(torch.from_numpy(filled).permute(2, 0, 1)).to(image)
    return torch.where(hole, filled, image)
