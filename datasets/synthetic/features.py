"""Eyeballs and the mouth's inside, painted on the UV map from the positions that this very face gives their texels."""

from __future__ import annotations

import numpy as np

from .atlas import Atlas, sample_texture
from .fields import LUMA, smoothstep
from .lighting import Light
from .skin import Complexion

_IRIS_RADIUS = 5.9e3  # um
_TOOTH_EDGES = np.float32([0, 8.3, 14.6, 21.8, 28.5, 35]) * 1e3  # um along the upper arch from its middle


def sample_gaze(rng: np.random.Generator, rotation: np.ndarray) -> np.ndarray:
    """Unit gaze (3,) in model coordinates: mostly at the camera as far as eyes turn, else somewhere in front."""
    camera = rotation.T @ np.array([0, 0, 1.0])
    wanted = camera if rng.random() < 0.65 else np.array([rng.normal(0, 0.28), rng.normal(-0.03, 0.13), 1.0])
    sideways = np.clip(wanted[0] / max(wanted[2], 0.2) + rng.normal(0, 0.03), -0.5, 0.5)
    upwards = np.clip(wanted[1] / max(wanted[2], 0.2) + rng.normal(0, 0.02), -0.25, 0.1)
    gaze = np.array([sideways, upwards, 1.0])
    return (gaze / np.linalg.norm(gaze)).astype(np.float32)


def paint_eyes(rng: np.random.Generator, atlas: Atlas, paint: np.ndarray, vertices: np.ndarray,
               eyes: tuple[np.ndarray, np.ndarray], rotation: np.ndarray, light: Light,
               complexion: Complexion) -> np.ndarray:
    """Paint iris, pupil and sclera into `paint` (H, W, 3) in place; returns the eyes' gloss (H, W) in [0, 1].

    vertices (N, 3) um of the head; eyes: centres (2, 3) and radii (2,) in um, the eye at x < 0 first.
    """
    gloss = np.zeros(paint.shape[:2], np.float32)
    gaze = sample_gaze(rng, rotation)
    iris = atlas.head.irises[int(rng.integers(len(atlas.head.irises)))].astype(np.float32) / 255
    fairness = np.clip(complexion.tone.mean() / 0.65, 0.35, 1)
    iris = iris * np.float32(fairness)
    if rng.random() < 1.15 - fairness * 0.6:
        iris = iris.mean(-1, keepdims=True) * np.float32([1.25, 0.85, 0.6])
    iris = iris * rng.uniform(0.5, 0.95) * np.clip(1 + rng.normal(0, 0.08, 3), 0.8, 1.2)
    iris = np.clip(iris, 0, 1).astype(np.float32)
    warm_rim = np.ones(3, np.float32) if complexion.gray else np.float32([1, 0.985, 0.98])
    sclera = np.float32([0.80, 0.76, 0.74]) * np.float32(rng.uniform(0.75, 1.08))
    if complexion.gray:
        iris = np.repeat((iris @ LUMA)[..., None], 3, axis=-1)
        sclera = np.repeat(sclera @ LUMA, 3)
    radius = _IRIS_RADIUS * rng.uniform(0.95, 1.06)
    pupil = rng.uniform(0.28, 0.5)
    half_way = light.direction + np.float32([0, 0, 1])
    half_way = half_way / max(np.linalg.norm(half_way), 1e-3)
    sparkle = rng.uniform(0.2, 0.9)
    for texels, centre in zip(atlas.eye_texels, eyes[0]):
        outward = atlas.interpolate_at(vertices, texels) - centre
        distance = np.linalg.norm(outward, axis=1, keepdims=True)
        outward = outward / distance
        right = np.cross(np.float32([0, 1, 0]), gaze)
        right /= np.linalg.norm(right)
        x, y = outward @ right, outward @ np.cross(gaze, right)
        reach = np.hypot(x, y) * distance[:, 0] / radius
        reach = np.where(outward @ gaze > 0, reach, 9)
        scale = distance[:, 0] / radius / 2
        colour = sample_texture(iris, 0.5 + x * scale, 0.5 - y * scale)
        colour = colour * (1 - 0.55 * smoothstep(0.8, 1.0, reach))[:, None]
        colour = colour * (1 - smoothstep(pupil + 0.06, pupil - 0.02, reach))[:, None] + 0.02
        white = sclera * (1 - 0.12 * np.clip(reach - 1.2, 0, 1.5))[:, None] * warm_rim
        edge = smoothstep(1.03, 0.93, reach)[:, None]
        paint[texels] = (white + (colour - white) * edge) * atlas.lid_shadow[texels][:, None]
        facing = np.clip((outward @ rotation.T.astype(np.float32)) @ half_way, 0, 1)
        gloss[texels] = sparkle * facing ** 260
    return gloss


def paint_mouth(rng: np.random.Generator, atlas: Atlas, paint: np.ndarray, vertices: np.ndarray, neutral: np.ndarray,
                gray: bool) -> None:
    """Paint teeth, gums, tongue and darkness into `paint` (H, W, 3) in place.

    vertices, neutral (N, 3) um: the head with and without its expression. The upper teeth stay with the skull, so they
    are placed from the neutral face's mouth line; the lower ones move with the chin.
    """
    marks = atlas.head.landmarks
    points = atlas.interpolate_at(vertices, atlas.mouth_texels)
    line = neutral[marks[[61, 62, 63, 65, 66, 67]], 1].mean()
    upper_edge = line - rng.normal(1.2e3, 1.2e3)
    jaw_drop = neutral[marks[7:10], 1].mean() - vertices[marks[7:10], 1].mean()
    lower_edge = line - rng.uniform(0.5e3, 3e3) - max(jaw_drop, 0)
    sideways, height = np.abs(points[:, 0] - vertices[marks[[51, 57]], 0].mean()), points[:, 1]
    arch = sideways * (1 + 0.35 * (sideways / 25e3) ** 2)
    gap = np.abs(arch[:, None] - _TOOTH_EDGES).min(axis=1)
    tooth = np.float32([0.86, 0.82, 0.74]) * np.float32(rng.uniform(0.72, 1.08))
    enamel = tooth * (1 - 0.35 * np.exp(-(gap / 350.0) ** 2) - 0.5 * smoothstep(8e3, 30e3, sideways))[:, None]
    inside = np.float32([0.30, 0.10, 0.09]) * np.float32(rng.uniform(0.35, 0.9))
    tongue = np.float32([0.62, 0.30, 0.28]) * np.float32(rng.uniform(0.6, 0.95))
    gum = np.float32([0.66, 0.36, 0.34]) * np.float32(rng.uniform(0.7, 1.0))
    colour = np.broadcast_to(inside, points.shape).copy()
    tongue_top = lower_edge - rng.uniform(0, 3e3)
    colour += (tongue - colour) * (smoothstep(tongue_top + 2e3, tongue_top - 2e3, height)
                                   * smoothstep(22e3, 12e3, sideways) * rng.uniform(0.2, 1))[:, None]
    if rng.random() < 0.9:
        rounded = upper_edge + 0.8e3 * np.exp(-(gap / 700.0) ** 2)
        shown = smoothstep(rounded - 250, rounded + 250, height) * (arch < 35e3)
        colour += (enamel - colour) * shown[:, None]
        colour += (gum - colour) * smoothstep(upper_edge + 9.5e3, upper_edge + 11e3, height)[:, None]
    if rng.random() < 0.55:
        shown = smoothstep(lower_edge + 250, lower_edge - 250, height)
        shown = shown * smoothstep(lower_edge - 9e3, lower_edge - 8e3, height)
        colour += (enamel * 0.85 - colour) * (shown * (arch < 30e3))[:, None]
    colour *= (1 - 0.35 * smoothstep(10e3, 28e3, sideways))[:, None] * np.float32(rng.uniform(0.75, 1))
    if gray:
        colour = np.repeat((colour @ LUMA)[:, None], 3, axis=1)
    paint[atlas.mouth_texels] = colour

