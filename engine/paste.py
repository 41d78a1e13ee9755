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

SURROUNDINGS = 24.0  # crop pixels around a hole that are looked at
SMOOTHING = 1.0  # crop pixels over which the difference between photo and completion is averaged at the seam
REACH = 12.0  # crop pixels into the hole over which that difference fades to 1 / e; the completion's own light counts there
FEATHER = 1.5  # crop pixels over which the completion fades in where it meets hidden pixels that are kept
FINEST = 0.6  # photo pixels; the finest band of detail is what this Gaussian takes away, each further one has twice that
COARSEST = 1.0  # crop pixels; coarser detail than this the completion has of its own
MIN_SAMPLES = 150  # pixels from which the detail of an area can be told
SAMPLES = 40_000  # pixels that are looked at to tell it
TOO_SHARP = 1.5  # ratio from which a band whose edges are stronger than any around is damped
EDGES = 98  # percentile of a band's absolute values that stands for its edges
# Luminance and two colour differences, in which grain is nearly independent; rows are the three channels.
_TO_YCC = np.array([[0.299, 0.587, 0.114], [0.5, -0.4187, -0.0813], [-0.1687, -0.3313, 0.5]], np.float32)
_FROM_YCC = np.linalg.inv(_TO_YCC).astype(np.float32)


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
        completed = _match_detail(np.where(hidden[:, :, None], completed, around), hole, hidden, skin, scale, seed)
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
    smooth = cv2.GaussianBlur(values, (0, 0), sigma) / np.maximum(cv2.GaussianBlur(weight, (0, 0), sigma), 1e-6)[..., None]
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (smooth, weight)]
    carried = pull_push(tensors[0].permute(2, 0, 1)[None], tensors[1][None, None])
    return cv2.resize(carried[0].permute(1, 2, 0).numpy(), (width, height), interpolation=cv2.INTER_LINEAR)


def _match_detail(picture: np.ndarray, hole: np.ndarray, hidden: np.ndarray, skin: np.ndarray, scale: float,
                  seed: int) -> np.ndarray:
    """The picture (h, w, 3) float32 with the hole's fine detail as strong as that of the visible pixels: float32.

    Band by band (differences of Gaussians), down to what the crop resolves: a band that is weaker in the hole than around
    it gets noise of the same band. Strength is the median deviation, which edges hardly change; skin and what lies beside
    it are compared with their own kind. A band whose edges are stronger in the hole than anywhere around, as in a blurred
    photo, is damped.
    """
    generator = np.random.default_rng(seed)
    picture = cv2.transform(picture.astype(np.float32), _TO_YCC)
    noise = generator.standard_normal(picture.shape, dtype=np.float32)
    trusted = ~cv2.dilate(hidden.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    places = {name: _some(where) for name, where in (("hole", hole), ("around", trusted))}
    areas = [(_some(hole & area), _some(trusted & area)) for area in (skin, ~skin)]
    area_of = np.where(hole, np.where(skin, 1, 2), 0).astype(np.uint8)
    result = picture.copy()
    sigma, finer, finer_noise = FINEST, picture, noise
    while sigma <= max(COARSEST * scale, 2 * FINEST):
        coarser, coarser_noise = cv2.GaussianBlur(picture, (0, 0), sigma), cv2.GaussianBlur(noise, (0, 0), sigma)
        band, grain = finer - coarser, finer_noise - coarser_noise
        grain /= np.maximum(grain.std(axis=(0, 1)), 1e-6)
        damping = _damping(band, **places)
        amplitudes = np.zeros((3, 3), np.float32)
        for index, (inside, around) in enumerate(areas, start=1):
            if len(inside[0]) and len(around[0]) >= MIN_SAMPLES:
                missing = _strength(band[around]) ** 2 - (damping * _strength(band[inside])) ** 2
                amplitudes[index] = np.sqrt(np.maximum(missing, 0))
        result += amplitudes[area_of] * grain
        if damping < 1:
            result += ((damping - 1) * hole[:, :, None]) * band
        sigma, finer, finer_noise = 2 * sigma, coarser, coarser_noise
    return cv2.transform(result, _FROM_YCC)


def _some(where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the set pixels, evenly thinned to about SAMPLES: enough for a median."""
    rows, columns = np.nonzero(where)
    step = len(rows) // SAMPLES + 1
    return rows[::step], columns[::step]


def _strength(values: np.ndarray) -> np.ndarray:
    """Standard deviation per channel of (N, 3) values, were they normally distributed, from the median deviation."""
    return (1.4826 * np.median(np.abs(values - np.median(values, axis=0)), axis=0)).astype(np.float32)


def _damping(band: np.ndarray, hole: tuple[np.ndarray, ...], around: tuple[np.ndarray, ...]) -> np.float32:
    """Factor in [0, 1] for a band (h, w, 3) in the hole, from its edges in luminance; places as :func:`_some` gives."""
    if len(around[0]) < MIN_SAMPLES:
        return np.float32(1)
    has, there = (np.percentile(np.abs(band[where][:, 0]), EDGES) for where in (hole, around))
    return np.float32(there / has if has > TOO_SHARP * there else 1)


def _fade(hole: np.ndarray, hidden: np.ndarray, width: float) -> np.ndarray:
    """Weights float32 (h, w) of the completion: 1, but rising from 0 over `width` pixels beside hidden pixels kept."""
    kept = hidden & ~hole
    if not kept.any():
        return np.ones(hole.shape, np.float32)
    distance = cv2.distanceTransform((~kept).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.minimum(distance / (width + 1.0), 1.0)
