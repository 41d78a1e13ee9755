"""Random backgrounds, from a plain wall to clutter out of focus."""

from __future__ import annotations

import math

import cv2
import numpy as np

from .fields import blend, draw_polygons, random_colour, smooth_noise


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    """Two related colours along a random direction, sometimes with a vignette: a studio's or a wall's light."""
    rows, columns = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    angle = rng.uniform(0, 2 * math.pi)
    along = rows * math.sin(angle) + columns * math.cos(angle)
    first = random_colour(rng, 0.3)
    second = np.clip(first * rng.uniform(0.4, 1.5) + rng.normal(0, 0.04, 3), 0, 1).astype(np.float32)
    picture = blend(first, second, along + 0.5)
    if rng.random() < 0.5:
        centre = rng.uniform(-0.3, 0.3, 2)
        radius = np.hypot(rows - centre[0], columns - centre[1])
        picture = picture * (1 - rng.uniform(0, 0.6) * np.minimum(radius, 1))[..., None]
    return picture


def _foliage(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise between two or three colours: trees, rock, crowds, cloth."""
    first, second = random_colour(rng), random_colour(rng)
    cells = tuple(rng.choice([3, 6, 11, 23, 47, 90], 3, replace=False))
    mix = 1 / (1 + np.exp(-1.5 * smooth_noise(rng, size, size, cells)))
    picture = blend(first, second, mix)
    light = smooth_noise(rng, size, size, (3, 5))
    return picture * (1 + rng.uniform(0, 0.3) * light)[..., None]


def _shapes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Walls, doors, frames, furniture: overlapping slanted boxes and discs with their own light."""
    picture = _gradient(rng, size)
    for _ in range(int(rng.integers(3, 14))):
        centre = rng.uniform(-0.1, 1.1, 2) * size
        half = size * rng.uniform(0.03, 0.45, 2)
        if rng.random() < 0.75:
            corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
            slant = rng.normal(0, 0.12)
            polygon = corners @ np.array([[math.cos(slant), math.sin(slant)], [-math.sin(slant), math.cos(slant)]])
            polygon = polygon + rng.normal(0, 0.03 * size, (4, 2)) * (rng.random() < 0.5)
        else:
            turn = np.linspace(0, 2 * math.pi, 32, endpoint=False)
            polygon = np.stack([np.cos(turn), np.sin(turn)], 1) * half
        mask = draw_polygons(size, size, [polygon + centre])
        colour = random_colour(rng)
        if rng.random() < 0.3:
            period = rng.uniform(0.02, 0.12) * size
            stripes = np.sin(np.arange(size, dtype=np.float32) * (2 * math.pi / period)) > 0
            stripes = np.tile(stripes, (size, 1)) if rng.random() < 0.5 else np.tile(stripes[:, None], (1, size))
            mask = mask * (0.3 + 0.7 * stripes)
        picture = blend(picture, colour, mask * rng.uniform(0.6, 1.0))
    return picture


def _lights(rng: np.random.Generator, size: int) -> np.ndarray:
    """Dark scene with discs of light out of focus."""
    picture = _foliage(rng, size) * rng.uniform(0.1, 0.5)
    for _ in range(int(rng.integers(4, 25))):
        centre = rng.uniform(0, size, 2)
        turn = np.linspace(0, 2 * math.pi, 24, endpoint=False)
        disc = np.stack([np.cos(turn), np.sin(turn)], 1) * size * rng.uniform(0.01, 0.06) + centre
        colour = np.minimum(random_colour(rng, 0.6) + 0.3, 1)
        picture = blend(picture, colour, draw_polygons(size, size, [disc]) * rng.uniform(0.2, 0.9))
    return picture


def _bright(rng: np.random.Generator, size: int) -> np.ndarray:
    """A white or nearly white backdrop, evenly lit: passport and catalogue pictures."""
    rows, columns = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    slope = rng.normal(0, 0.06, 2)
    level = rng.uniform(0.82, 1.05) + rows * slope[0] + columns * slope[1]
    return level[..., None] * np.float32(1 + rng.normal(0, 0.015, 3))


def _brickwork(rng: np.random.Generator, size: int) -> np.ndarray:
    """Rows of staggered tiles with joints: walls, fences, shelves, windows."""
    rows, columns = np.mgrid[:size, :size].astype(np.float32) / size
    turn = rng.normal(0, 0.08)
    down = rows * math.cos(turn) - columns * math.sin(turn)
    along = columns * math.cos(turn) + rows * math.sin(turn)
    height, width = rng.uniform(0.03, 0.3), rng.uniform(0.05, 0.5)
    course = np.floor(down / height)
    along = along / width + 0.5 * (course % 2) * (rng.random() < 0.7)
    joint = rng.uniform(0.02, 0.2)
    inside = np.abs(down / height % 1 - 0.5) < 0.5 - joint / 2
    inside &= np.abs(along % 1 - 0.5) < 0.5 - joint * height / width
    tiles = rng.random((64, 64, 3), dtype=np.float32) * rng.uniform(0.02, 0.5)
    own = tiles[course.astype(int) % 64, np.floor(along).astype(int) % 64]
    picture = random_colour(rng) * (1 - tiles.mean()) + own
    picture = blend(np.broadcast_to(random_colour(rng, 0.15), picture.shape), picture, inside.astype(np.float32))
    return picture * (1 + 0.1 * smooth_noise(rng, size, size, (5, 60)))[..., None]


_KINDS = (_gradient, _bright, _foliage, _shapes, _brickwork, _lights)
_ODDS = (0.22, 0.2, 0.17, 0.2, 0.15, 0.06)


def sample_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Background (size, size, 3) float32 in [0, 1], mostly out of focus."""
    blur = rng.choice([0.0, 1.0, 3.0, 8.0], p=[0.15, 0.3, 0.35, 0.2]) * rng.uniform(0.6, 1.5)  # crop pixels
    work = size if blur < 0.5 else size // 2 if blur < 4 else size // 4
    picture = _KINDS[int(rng.choice(len(_KINDS), p=_ODDS))](rng, work)
    sigma = blur * work / 256
    if sigma > 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    if work < size:
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.clip(picture, 0, 1).astype(np.float32)
