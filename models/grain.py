"""Sharpness and grain of what fills a hole, matched to the photograph around it."""
from __future__ import annotations

import functools
from typing import Iterator

import cv2
import numpy as np
import torch

from models.blending import LUMA
from utils.threads import map_items

FINEST = 0.6  # photo pixels; the finest band of detail is what this Gaussian takes away, each further one is twice that
COARSEST = 1.0  # crop pixels; coarser detail than this the completion has of its own
MIN_SAMPLES = 150  # pixels from which the detail of an area can be told
SAMPLES = 40_000  # pixels that are looked at to tell it
TOO_SHARP = 1.5  # ratio from which a band whose edges are stronger than any around is damped
# Share of the missing amplitude that is made up: on 34 portraits, LPIPS is what it is with all of it (least at 0.8),
# but grain that is not the photograph's own is farther from it, so less of it has the better PSNR and SSIM.
STRENGTH = 0.6
FLAT = 0.2  # share of the pixels taken for flat: where little skin is visible, most of it may be eyes and brows
FLAT_SIGMA = 2.0  # photo pixels, of the Gaussian over which a band's power is averaged to find its flat parts
NOISE_SIDE = 256  # pixels of the picture of noise on which the kinds of noise are measured
EDGES = 98  # percentile of a band's absolute values that stands for its edges
# Luminance and two colour differences, in which grain is nearly independent; rows are the three channels.
_TO_YCC = np.array([LUMA, [0.5, -0.4187, -0.0813], [-0.1687, -0.3313, 0.5]], np.float32)
_FROM_YCC = np.linalg.inv(_TO_YCC).astype(np.float32)


def match_grain(image: torch.Tensor, hole: torch.Tensor, skin: torch.Tensor) -> torch.Tensor:
    """Aligned images (B, 3, H, W) in [-1, 1] with the filled hole as sharp and grainy as around it.

    hole, skin: (B, 1, H, W) bool; a hole may be empty. Each image for itself, always with the same noise; outside the
    hole bit-identical.
    """
    def match(levels: np.ndarray, inside: np.ndarray, area: np.ndarray) -> np.ndarray:
        return match_detail(levels, inside, inside, area, 1.0, 0) if inside.any() else levels

    levels = ((image.detach().float() + 1) * 127.5).permute(0, 2, 3, 1).cpu().numpy()
    matched = np.stack(map_items(match, levels, hole[:, 0].cpu().numpy(), skin[:, 0].cpu().numpy()))
    matched = torch.from_numpy(matched).to(image.device).permute(0, 3, 1, 2).to(image.dtype) / 127.5 - 1
    return torch.where(hole, matched.clamp(-1, 1), image)


def match_detail(picture: np.ndarray, hole: np.ndarray, hidden: np.ndarray, skin: np.ndarray, scale: float,
                 seed: int) -> np.ndarray:
    """The picture (h, w, 3) float32 with the hole's fine detail as strong as that of the visible pixels: float32.

    picture: in levels of 0 to 255, the hole filled. hole, hidden: bool (h, w), the pixels to be changed (at least one),
    and all that may not be read, `hole` among them. skin: bool (h, w). scale: pixels of the picture for one of the
    aligned crop. seed: of the grain.

    Band by band (differences of Gaussians), down to what the crop resolves: much of what a band lacks in the hole
    (STRENGTH) is made up with noise of several correlations, whose spectra overlap the bands (:func:`_spectra`). How
    strong a band is, its flattest parts say, where there are no edges; skin and what lies beside it are compared with
    their own kind. A band whose edges are stronger in the hole than anywhere around, as in a blurred photo, is damped.
    """
    generator = np.random.default_rng(seed)
    picture = cv2.transform(picture.astype(np.float32), _TO_YCC)
    trusted = ~cv2.dilate(hidden.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    places = {name: _some(where) for name, where in (("hole", hole), ("around", trusted))}
    areas = [(_some(hole & area), _some(trusted & area)) for area in (skin, ~skin)]
    area_of = np.where(hole, np.where(skin, 1, 2), 0).astype(np.uint8)
    result = picture.copy()
    count = 1
    while FINEST * 2 ** count <= max(COARSEST * scale, 2 * FINEST):
        count += 1
    missing = np.zeros((count, 3, 3))  # variance, by band, area (none, skin, beside it) and channel
    for place, band in enumerate(_bands(picture, count)):
        damping = _damping(band, **places)
        power = _local_power(band)
        for index, (inside, around) in enumerate(areas, start=1):
            if len(inside[0]) and len(around[0]) >= MIN_SAMPLES:
                missing[place, index] = _flat_power(power[around]) - damping ** 2 * _flat_power(power[inside])
        if damping < 1:
            result += ((damping - 1) * hole[:, :, None]) * band
    missing = np.maximum(missing, 0).reshape(count, -1)
    variances = np.stack([nonnegative(_spectra(count), column) for column in missing.T], axis=1)
    amplitudes = STRENGTH * np.sqrt(variances).astype(np.float32).reshape(-1, 3, 3)
    for kind in np.flatnonzero(amplitudes.any(axis=(1, 2))):
        noise = generator.standard_normal(picture.shape, dtype=np.float32)
        result += amplitudes[kind][area_of] * _correlated(noise, kind)
    return cv2.transform(result, _FROM_YCC)


def _bands(picture: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """The picture's bands of detail, the finest first; each further one is half as fine."""
    finer = picture
    for place in range(count):
        coarser = cv2.GaussianBlur(picture, (0, 0), FINEST * 2 ** place)
        yield finer - coarser
        finer = coarser


def _correlated(noise: np.ndarray, kind: int) -> np.ndarray:
    """White noise as it is (0), or blurred as a band's coarser end (from 1 on): as in pictures that were enlarged."""
    return cv2.GaussianBlur(noise, (0, 0), FINEST * 2 ** (kind - 1)) if kind else noise


@functools.lru_cache
def _spectra(count: int) -> np.ndarray:
    """How strong noise of count + 1 kinds is in each band, (count, count + 1): variance as :func:`_flat_power` says."""
    noise = np.random.default_rng(0).standard_normal((NOISE_SIDE, NOISE_SIDE, 3), dtype=np.float32)
    return np.array([[_flat_power(_local_power(band).reshape(-1, 3)).mean()
                      for band in _bands(_correlated(noise, kind), count)] for kind in range(count + 1)]).T


def nonnegative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The x >= 0 (N,) with the least |matrix x - target|, matrix (M, N), target (M,).

    Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23; SciPy has it, too, but importing its optimisers
    takes as long as completing a face.
    """
    solution, free = np.zeros(matrix.shape[1]), np.zeros(matrix.shape[1], bool)
    negligible = 1e-12 * (np.abs(matrix).sum() * np.abs(target).sum() + 1e-300)
    for _ in range(3 * len(solution)):
        pull = np.where(free, 0, matrix.T @ (target - matrix @ solution))
        if pull.max() <= negligible:
            break
        free[pull.argmax()] = True
        while free.any():
            trial = np.zeros_like(solution)
            trial[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
            blocked = free & (trial <= 0)
            if not blocked.any():
                solution = trial
                break
            solution = solution + (trial - solution) * (solution[blocked] / (solution - trial)[blocked]).min()
            free &= ~blocked | (solution > 1e-12 * solution.max())
            solution[~free] = 0
    return solution


def _local_power(band: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(band * band, (0, 0), FLAT_SIGMA)


def _some(where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the set pixels, evenly thinned to about SAMPLES: enough for a quantile."""
    rows, columns = np.nonzero(where)
    step = len(rows) // SAMPLES + 1
    return rows[::step], columns[::step]


def _flat_power(power: np.ndarray) -> np.ndarray:
    """Variance per channel of a band's flattest parts, from its local power (N, 3)."""
    return np.quantile(power, FLAT, axis=0)


def _damping(band: np.ndarray, hole: tuple[np.ndarray, ...], around: tuple[np.ndarray, ...]) -> np.float32:
    """Factor in [0, 1] for a band (h, w, 3) in the hole, from its edges in luminance; places as :func:`_some` gives."""
    if len(around[0]) < MIN_SAMPLES:
        return np.float32(1)
    has, there = (np.percentile(np.abs(band[where][:, 0]), EDGES) for where in (hole, around))
    return np.float32(there / has if has > TOO_SHARP * there else 1)
