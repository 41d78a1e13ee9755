"""Small random fields and colours shared by the synthetic-face modules.

Everything takes a `numpy.random.Generator`; no module of this package touches a global random state.
Pictures are float32 arrays (H, W, 3) or (H, W), RGB in [0, 1] unless stated otherwise.
"""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

LUMA = np.float32([0.299, 0.587, 0.114])  # ITU-R BT.601


def smooth_noise(rng: np.random.Generator, height: int, width: int, cells: tuple[float, ...]) -> np.ndarray:
    """Sum of smooth noises, one per entry of `cells` (cells across the longer side); about zero mean, unit variance.

    Returns float32 (height, width).
    """
    total = np.zeros((height, width), np.float32)
    longer = max(height, width)
    for count in cells:
        rows = max(2, int(round(count * height / longer)))
        columns = max(2, int(round(count * width / longer)))
        coarse = rng.standard_normal((rows, columns), dtype=np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return total * (1.2 / np.sqrt(len(cells)))


def random_colour(rng: np.random.Generator, saturation: float = 0.35) -> np.ndarray:
    """A plausible surface colour: any hue, mostly unsaturated, any brightness. float32 (3,) in [0, 1]."""
    chroma = min(1.0, rng.beta(1.2, 2.5) * 2 * saturation)
    return np.array(colorsys.hsv_to_rgb(rng.random(), chroma, rng.uniform(0.05, 1.0)), np.float32)


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """Hermite step from 0 at `low` to 1 at `high` (also for low > high, then falling)."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def blend(under: np.ndarray, over: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`over` on `under` (H, W, 3 or a colour) with alpha (H, W) in [0, 1]."""
    return under + (over - under) * alpha[..., None]


def blend_part(under: np.ndarray, over: np.ndarray, alpha: np.ndarray, box: tuple[slice, slice]) -> None:
    """`blend` in place, only inside a box of rows and columns; `over` and `alpha` have the whole picture's size."""
    part = under[box]
    part += (np.broadcast_to(over, under.shape)[box] - part) * alpha[box][..., None]


def bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """Smallest box of rows and columns around a mask's positive entries; the first pixel where there are none."""
    rows, columns = np.nonzero(mask.max(axis=1) > 0)[0], np.nonzero(mask.max(axis=0) > 0)[0]
    if not len(rows):
        return slice(0, 1), slice(0, 1)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def draw_polygons(height: int, width: int, polygons: list[np.ndarray]) -> np.ndarray:
    """Antialiased union of filled polygons given as (N, 2) arrays of x, y; float32 (height, width) in [0, 1]."""
    mask = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        fixed_point = np.round(np.clip(polygon, -4000, 4000) * 16).astype(np.int32)
        cv2.fillPoly(mask, [fixed_point], 255, lineType=cv2.LINE_AA, shift=4)
    return mask.astype(np.float32) / 255


def draw_lines(height: int, width: int, lines: list[np.ndarray], thickness: int) -> np.ndarray:
    """Antialiased polylines given as (N, 2) arrays of x, y; float32 (height, width) in [0, 1]."""
    mask = np.zeros((height, width), np.uint8)
    fixed_point = [np.round(np.clip(line, -4000, 4000) * 16).astype(np.int32) for line in lines]
    cv2.polylines(mask, fixed_point, False, 255, max(1, int(thickness)), lineType=cv2.LINE_AA, shift=4)
    return mask.astype(np.float32) / 255
