"""Sharpness and grain of what fills a hole, matched to the photograph around it."""
from __future__ import annotations

import cv2
import numpy as np
import torch

from models.blending import LUMA

FINEST = 0.6  # photo pixels; the finest band of detail is what this Gaussian takes away, each further one is twice that
COARSEST = 1.0  # crop pixels; coarser detail than this the completion has of its own
MIN_SAMPLES = 150  # pixels from which the detail of an area can be told
SAMPLES = 40_000  # pixels that are looked at to tell it
TOO_SHARP = 1.5  # ratio from which a band whose edges are stronger than any around is damped
FLAT = 0.2  # share of the pixels that are taken for flat: where little skin is visible, most of it may be eyes and brows
FLAT_SIGMA = 2.0  # photo pixels, of the Gaussian over which a band's power is averaged to find its flat parts
EDGES = 98  # percentile of a band's absolute values that stands for its edges
# Luminance and two colour differences, in which grain is nearly independent; rows are the three channels.
_TO_YCC = np.array([LUMA, [0.5, -0.4187, -0.0813], [-0.1687, -0.3313, 0.5]], np.float32)
_FROM_YCC = np.linalg.inv(_TO_YCC).astype(np.float32)


def match_grain(image: torch.Tensor, hole: torch.Tensor, skin: torch.Tensor) -> torch.Tensor:
    """Aligned images (B, 3, H, W) in [-1, 1] with the filled hole as sharp and grainy as around it.

    hole, skin: (B, 1, H, W) bool; a hole may be empty. Each image for itself, always with the same noise; outside the
    hole bit-identical.
    """
    results = []
    for picture, hidden, area in zip(image, hole, skin):
        if not hidden.any():
            results.append(picture)
            continue
        levels = ((picture.detach().float() + 1) * 127.5).permute(1, 2, 0).cpu().numpy()
        inside = hidden[0].cpu().numpy()
        matched = match_detail(levels, inside, inside, area[0].cpu().numpy(), 1.0, 0)
        matched = torch.from_numpy(matched).permute(2, 0, 1).to(image) / 127.5 - 1
        results.append(torch.where(hidden, matched.clamp(-1, 1), picture))
    return torch.stack(results)


def match_detail(picture: np.ndarray, hole: np.ndarray, hidden: np.ndarray, skin: np.ndarray, scale: float,
                 seed: int) -> np.ndarray:
    """The picture (h, w, 3) float32 with the hole's fine detail as strong as that of the visible pixels: float32.

    picture: in levels of 0 to 255, the hole filled. hole, hidden: bool (h, w), the pixels to be changed (at least one),
    and all that may not be read, `hole` among them. skin: bool (h, w). scale: pixels of the picture for one of the
    aligned crop. seed: of the grain.

    Band by band (differences of Gaussians), down to what the crop resolves: a band that is weaker in the hole than
    around it gets noise of the same band. Strength is that of the flattest parts, where there are no edges; skin and what
    lies beside it are compared with their own kind. A band whose edges are stronger in the hole than anywhere around,
    as in a blurred photo, is damped.
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
        grain /= np.maximum(cv2.meanStdDev(grain)[1].ravel(), 1e-6).astype(np.float32)
        damping = _damping(band, **places)
        power = cv2.GaussianBlur(band * band, (0, 0), FLAT_SIGMA)
        amplitudes = np.zeros((3, 3), np.float32)
        for index, (inside, around) in enumerate(areas, start=1):
            if len(inside[0]) and len(around[0]) >= MIN_SAMPLES:
                missing = _strength(power[around]) ** 2 - (damping * _strength(power[inside])) ** 2
                amplitudes[index] = np.sqrt(np.maximum(missing, 0))
        result += amplitudes[area_of] * grain
        if damping < 1:
            result += ((damping - 1) * hole[:, :, None]) * band
        sigma, finer, finer_noise = 2 * sigma, coarser, coarser_noise
    return cv2.transform(result, _FROM_YCC)


def _some(where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the set pixels, evenly thinned to about SAMPLES: enough for a quantile."""
    rows, columns = np.nonzero(where)
    step = len(rows) // SAMPLES + 1
    return rows[::step], columns[::step]


def _strength(power: np.ndarray) -> np.ndarray:
    """Standard deviation per channel of a band's flattest parts, from its local power (N, 3)."""
    return np.sqrt(np.quantile(power, FLAT, axis=0)).astype(np.float32)


def _damping(band: np.ndarray, hole: tuple[np.ndarray, ...], around: tuple[np.ndarray, ...]) -> np.float32:
    """Factor in [0, 1] for a band (h, w, 3) in the hole, from its edges in luminance; places as :func:`_some` gives."""
    if len(around[0]) < MIN_SAMPLES:
        return np.float32(1)
    has, there = (np.percentile(np.abs(band[where][:, 0]), EDGES) for where in (hole, around))
    return np.float32(there / has if has > TOO_SHARP * there else 1)
