"""Filling and joining: smooth extrapolation over pyramids, the seam of a completed hole, and holes beside the face."""
from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F

from zbuffer import backends, pyramid

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


def least_around(maps: torch.Tensor, reach: int) -> torch.Tensor:
    """Least value of maps (B, C, H, W) at each pixel and up to `reach` rows and columns away (on a CPU pooling
    takes several times as long)."""
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (reach,) * 4, value=float("inf"))
    rows = functools.reduce(torch.minimum, (padded[..., step:step + height, :] for step in range(2 * reach + 1)))
    return functools.reduce(torch.minimum, (rows[..., step:step + width] for step in range(2 * reach + 1)))


def may_look(tensor: torch.Tensor) -> bool:
    """Whether a decision may depend on a tensor's values: looking would hold up a GPU, and is not possible where the
    program is being translated; where it is differentiated, all values take the same way."""
    return tensor.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _average_around(maps: torch.Tensor, reach: int) -> torch.Tensor:
    """Mean of maps (B, C, H, W) over each pixel and those up to `reach` rows and columns away, 0 beyond the border."""
    rows = F.avg_pool2d(maps, (2 * reach + 1, 1), 1, (reach, 0))
    return F.avg_pool2d(rows, (1, 2 * reach + 1), 1, (0, reach))


class Box(NamedTuple):
    """Rows top to bottom - 1 and columns left to right - 1 of a map."""

    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def around(cls, region: torch.Tensor) -> "Box | None":
        """Of a region (B, 1, H, W) bool; None, for everything, where one must not look (:func:`may_look`)."""
        if not may_look(region):
            return None
        rows, columns = (region.any(dim).any(0).flatten().nonzero() for dim in (3, 2))
        if not len(rows):
            return cls(0, 0, 0, 0)
        return cls(int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)

    def grown(self, pixels: int, height: int, width: int) -> "Box":
        """With so many pixels around it, as far as a map of (height, width) goes, from even rows and columns on."""
        return Box(max(self.top - pixels, 0) // 2 * 2, min(self.bottom + pixels, height),
                   max(self.left - pixels, 0) // 2 * 2, min(self.right + pixels, width))

    def halved(self) -> "Box":
        """The same on a map of half the size."""
        return Box(self.top // 2, -(-self.bottom // 2), self.left // 2, -(-self.right // 2))

    def of(self, maps: torch.Tensor) -> torch.Tensor:
        """This part of maps (B, C, H, W), a view."""
        return maps[..., self.top:self.bottom, self.left:self.right]

    def into(self, maps: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Writes values into this part of maps (B, C, H, W), in place; returns the maps."""
        self.of(maps).copy_(values)
        return maps


def pull_push(values: torch.Tensor, weight: torch.Tensor, box: Box | None = None) -> torch.Tensor:
    """Extend values (B, C, H, W), known to the degree weight (B, 1, H, W) in [0, 1], smoothly to all pixels.

    Pixels of weight 1 keep their value; the others approach the membrane (harmonic) interpolation of the known ones:
    pull-push over a pyramid (Gortler et al., The Lumigraph, 1996) with a few relaxation sweeps per level. 0 everywhere
    where nothing is known. Values of weight 0 are not read (but must be finite). Differentiable in the values.
    box: all that is asked for, to the same bits; the rest may be anything.
    """
    height, width = values.shape[-2:]
    if max(height, width) == 1:
        return values * (weight > 0)
    if backends.usable(values, weight) and weight.shape == (len(values), 1, height, width):
        return pyramid.fill(values, weight, box or Box(0, height, 0, width), RELAXATIONS)
    known = values * weight
    total, sums = (4 * F.avg_pool2d(part, 2) for part in (_even(weight), _even(known)))  # ONNX knows no other divisor
    mean = sums / total.clamp(min=1e-8)
    # A sweep reaches a pixel further, and the coarser level is interpolated between neighbours.
    part = (box or Box(0, height, 0, width)).grown(RELAXATIONS, height, width)
    around = part.halved().grown(1, *total.shape[-2:])
    coarse = pull_push(mean, total.clamp(max=1), around if box else None)
    smooth = F.interpolate(around.of(coarse), scale_factor=2, mode="bilinear", align_corners=False)
    top, left = part.top - 2 * around.top, part.left - 2 * around.left
    smooth = smooth[..., top:top + part.bottom - part.top, left:left + part.right - part.left]
    held, free = part.of(known), 1 - part.of(weight)
    filled = torch.addcmul(held, free, smooth)
    quarter = free / 4
    for _ in range(RELAXATIONS):
        padded = F.pad(filled, (1, 1, 1, 1), mode="replicate")
        vertical = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1]
        horizontal = padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
        filled = torch.addcmul(held, quarter, vertical + horizontal)
    if filled.shape == values.shape:
        return filled
    return part.into(torch.zeros_like(values), filled)


def _even(maps: torch.Tensor) -> torch.Tensor:
    """Maps (B, C, H, W) with zeros below and to the right, where their sides are odd."""
    rows, columns = (side % 2 for side in maps.shape[-2:])
    return F.pad(maps, (0, columns, 0, rows)) if rows or columns else maps


def blend(image: torch.Tensor, hole: torch.Tensor, rendered: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Put a rendered face into the hole without a seam.

    image, rendered (B, 3, H, W) in [-1, 1]; hole (B, 1, H, W) bool, True where `rendered` replaces the image;
    known (B, 1, H, W) in [0, 1], ignored in the hole: how far a pixel shows the same surface as `rendered`.
    The difference image - rendered at the known pixels is carried smoothly into the hole and added there. The result is
    clamped to [-1, 1] inside the hole and bit-identical to the image outside.
    """
    weight = known.to(rendered.dtype) * ~hole
    box = Box.around(hole)
    correction = pull_push(torch.where(weight > 0, image - rendered, 0), weight, box)
    if box is None:
        return torch.where(hole, (rendered + correction).clamp(-1, 1), image)
    joined = (box.of(rendered) + box.of(correction)).clamp(-1, 1)
    return box.into(image.clone(), torch.where(box.of(hole), joined, box.of(image)))


def keep_grey(filled: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Makes what fills the hole of a black-and-white photograph grey, too.

    filled (B, 3, H, W) in [-1, 1], right outside the hole (B, 1, H, W) bool. Others come back as they are.
    """
    coloured = (filled.amax(1, keepdim=True) - filled.amin(1, keepdim=True) > GREY) & ~hole
    visible = (~hole).sum((1, 2, 3), keepdim=True)
    grey = (coloured.sum((1, 2, 3), keepdim=True) <= COLOURED_SHARE * visible) & (visible > 0)
    if may_look(grey) and not grey.any():
        return filled
    luma = sum(weight * filled[:, channel:channel + 1] for channel, weight in enumerate(LUMA))
    return torch.where(grey & hole, luma, filled)


def fill_beside(image: torch.Tensor, hole: torch.Tensor, face: torch.Tensor) -> torch.Tensor:
    """Fill hidden pixels beside the face smoothly from its surroundings, so that skin does not spread over them.

    image (B, 3, H, W) in [-1, 1], the face in place; hole (B, 1, H, W) bool, what is to be filled; face (B, 1, H, W)
    bool, the pixels that show the face, outside the hole. Within RIM pixels of the face its colours run into those of
    the visible pixels that are no face. Where these are all hidden, the face is continued; where nothing is visible, 0.
    Pixels outside the hole come back bit-identical; hidden pixels are not read. Differentiable in the image.
    """
    box = Box.around(hole)
    if box and not box.bottom:
        return image
    visible = torch.where(hole, 0, image)
    weight = torch.where(hole, 0, torch.where(face, FACE_WEIGHT, 1.0)).to(image.dtype)
    surroundings = pull_push(visible, weight, box)
    height, width = image.shape[-2:]
    part = (box or Box(0, height, 0, width)).grown(RIM, height, width)
    seen, on_face = part.of(visible), part.of(face & ~hole).to(image.dtype)
    share, sums = (_average_around(maps, RIM) for maps in (on_face, seen * on_face))
    nearest = sums / share.clamp(min=1e-6)
    # Beside a straight outline share is 1/2.
    filled = torch.lerp(part.of(surroundings), nearest, (2 * share).clamp(max=1))
    filled = torch.where(part.of(hole), filled, part.of(image))
    return filled if box is None else part.into(image.clone(), filled)
