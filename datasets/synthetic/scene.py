"""What an occluder needs to know about the picture it is put into, and how one is laid over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import cv2
import numpy as np

from .fields import blend, smooth_noise
from .lighting import Light


@dataclass
class Scene:
    """The rendered head in its crop of `size` x `size` pixels.

    landmarks: (68, 2) x, y pixels; points: (68, 3) model coordinates in um; project: model points (N, 3) um to
    (row, column, depth) in the crop; depth (S, S) um of the head and its hair, -inf elsewhere; outline (S, S) float: 1
    within about the head's outline; normals (S, S, 3) smoothed unit normals of the head, facing the camera elsewhere;
    eye_distance: pixels that 62 mm, a usual distance of the eyes, cover; hat, hat_light (S, S): coverage by the hat in
    [0, 1] and the factor of its shadow on what is beneath, None without a hat.
    """

    size: int
    landmarks: np.ndarray
    points: np.ndarray
    project: Callable[[np.ndarray], np.ndarray]
    depth: np.ndarray
    outline: np.ndarray
    normals: np.ndarray
    light: Light
    skin_colour: np.ndarray
    hair_colour: np.ndarray
    eye_distance: float
    hat: np.ndarray | None = None
    hat_light: np.ndarray | None = None


@dataclass
class Patch:
    """Something in front of the face: picture values (S, S, 3), alpha (S, S), and what counts as hidden (S, S).

    `hidden` may exceed alpha: a clear lens belongs to the glasses. `shadow` is the darkness of its contact shadow.
    hair: it is hair of the face's own. beneath_hat: a hat is worn over it.
    """

    colour: np.ndarray
    alpha: np.ndarray
    hidden: np.ndarray
    shadow: float = 0.3
    hair: bool = False
    beneath_hat: bool = False


def lay_over(rng: np.random.Generator, scene: Scene, picture: np.ndarray, labels: np.ndarray, patch: Patch,
             occlusion: int) -> np.ndarray:
    """The picture with the patch and its soft shadow; `labels` (S, S) become `occlusion` where it hides the head.

    The picture shows the scene's hat already: it stays where the patch is beneath it.
    """
    hat = scene.hat if patch.beneath_hat else None
    colour, hidden, bare = patch.colour, patch.hidden > 0.5, picture
    if hat is not None:
        colour, hidden = colour * scene.hat_light[..., None], hidden & (hat <= 0.5)
    if patch.shadow > 0:
        reach = scene.eye_distance * rng.uniform(0.03, 0.10)
        away = -scene.light.direction[:2] * reach
        moved = np.float32([[1, 0, away[0]], [0, 1, -away[1]]])
        cast = cv2.warpAffine(patch.alpha, moved, (scene.size, scene.size))
        cast = cv2.GaussianBlur(cast, (0, 0), max(1.0, reach * 0.6))
        picture = picture * (1 - patch.shadow * cast * scene.outline)[..., None]
    soft = cv2.GaussianBlur(patch.alpha, (3, 3), rng.uniform(0.25, 0.8))
    labels[hidden & (scene.outline > 0.5)] = occlusion
    laid = blend(picture, colour, soft)
    return laid if hat is None else blend(laid, bare, hat)


def relief_normals(height: np.ndarray) -> np.ndarray:
    """Unit normals (S, S, 3) of a height field (S, S) in pixels; x right, y up, z towards the camera."""
    height = np.ascontiguousarray(height, np.float32)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)
    normals = np.stack([-slope_x, slope_y, np.ones_like(height)], axis=-1)
    return normals / np.sqrt((normals * normals).sum(-1, keepdims=True))


def surface(rng: np.random.Generator, scene: Scene, colour: np.ndarray, normals: np.ndarray | None = None,
            grain: float = 0.08) -> np.ndarray:
    """A lit, slightly uneven surface of one colour (3,) or a picture (S, S, 3) as picture values (S, S, 3)."""
    cells = (float(rng.uniform(3, 10)), float(rng.uniform(30, 120)))
    texture = 1 + grain * smooth_noise(rng, scene.size, scene.size, cells)
    shade = scene.light.shade(scene.normals if normals is None else normals)
    return np.clip(np.asarray(colour, np.float32) * texture[..., None] * shade, 0, 1.2)
