"""Putting a completed crop back into its photo: only inside the hole, without a seam, as sharp and grainy as around it.

Nothing here reads a hidden pixel of the photo: an occluder's rim cannot shine through.
"""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from datasets.alignment import CROP_SIZE, Alignment
from models.blending import pull_push
from models.grain import match_detail

SURROUNDINGS = 48.0  # crop pixels around a hole that are looked at
SMOOTHING = 1.0  # crop pixels over which the difference between photo and completion is averaged at the seam
REACH = 12.0  # crop pixels into the hole over which that difference fades to 1 / e: deeper in, the completion is right
FEATHER = 1.5  # crop pixels over which the completion fades in where it meets hidden pixels that are kept


@dataclass(frozen=True)
class Seam:
    """What is done at the seam; switched off only to measure what it brings.

    gradient: carry the difference between photo and completion around the hole into it. grain: match sharpness and
    grain to the surroundings.
    """

    gradient: bool = True
    grain: bool = True


def paste(photo: np.ndarray, alignment: Alignment, crop: np.ndarray, hole: np.ndarray, hidden: np.ndarray,
          region: tuple[slice, slice], face: np.ndarray, seed: int = 0, seam: Seam = Seam()) -> None:
    """Put a completed crop into the photo, in place.

    photo: uint8 (H, W, 3), changed. crop: uint8 (256, 256, 3), completed. region: rows and columns of the photo
    to work in, see :func:`working_region`. hole, hidden: bool of the region's size: the pixels that are replaced,
    and all that may not be read, `hole` among them. face: bool (256, 256), the crop's pixels that show skin.
    seed: of the grain.
    """
    if not hole.any():
        return
    around = photo[region]
    scale = alignment.photo_scale
    completed = alignment.resample(crop, region)
    inside = alignment.mask_in_photo(np.ones((CROP_SIZE, CROP_SIZE), bool), region)
    skin = alignment.mask_in_photo(face, region)
    if seam.gradient:
        # Hair beside a cheek says nothing about its colour: each is carried into its own kind.
        difference, known = around - completed, inside & ~hidden
        carried = np.where(skin[:, :, None], _carried_in(difference, known & skin, scale),
                           _carried_in(difference, known & ~skin, scale))
        depth = cv2.distanceTransform(hidden.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        completed = completed + carried * np.exp(-depth / (REACH * scale))[:, :, None]
    if seam.grain:
        completed = match_detail(np.where(hidden[:, :, None], completed, around), hole, hidden, skin, scale, seed)
    alpha = _fade(hole, hidden, FEATHER * scale)[:, :, None]
    mixed = completed if alpha.min() == 1 else alpha * completed + (1 - alpha) * around
    pasted = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    photo[region] = np.where(hole[:, :, None], pasted, around)


def working_region(alignment: Alignment, hole: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns of the photo with a hole, bool (256, 256) of the crop, and its surroundings; None if outside."""
    return alignment.photo_region(hole, SURROUNDINGS)


def _carried_in(difference: np.ndarray, known: np.ndarray, scale: float) -> np.ndarray:
    """The difference (h, w, 3), averaged where it is known (h, w) bool, continued smoothly over the region: float32.

    Computed at about the crop's resolution: finer differences are detail, not light or colour.
    """
    height, width = known.shape
    shrink = max(int(scale), 1)
    size = (-(-width // shrink), -(-height // shrink))
    weight = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    values = cv2.resize(difference * known[:, :, None].astype(np.float32), size, interpolation=cv2.INTER_AREA)
    if not weight.any():
        return np.zeros_like(difference)
    sigma = SMOOTHING * scale / shrink
    share = np.maximum(cv2.GaussianBlur(weight, (0, 0), sigma), 1e-6)[:, :, None]
    smooth = cv2.GaussianBlur(values, (0, 0), sigma) / share
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (smooth, weight)]
    carried = pull_push(tensors[0].permute(2, 0, 1)[None], tensors[1][None, None])
    return cv2.resize(carried[0].permute(1, 2, 0).numpy(), (width, height), interpolation=cv2.INTER_LINEAR)


def _fade(hole: np.ndarray, hidden: np.ndarray, width: float) -> np.ndarray:
    """Weights float32 (h, w) of the completion: 1, but rising from 0 over `width` pixels beside hidden pixels kept."""
    kept = hidden & ~hole
    if not kept.any():
        return np.ones(hole.shape, np.float32)
    distance = cv2.distanceTransform((~kept).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.minimum(distance / (width + 1.0), 1.0)
