"""Glasses and sunglasses, built in three dimensions in front of the eyes so that they turn with the head."""

from __future__ import annotations

import math

import numpy as np

from .fields import blend, draw_lines, draw_polygons, random_colour, smoothstep
from .scene import Patch, Scene, surface

_FRAME_COLOURS = np.float32([[.04, .04, .05], [.10, .07, .05], [.22, .13, .07], [.55, .47, .30], [.6, .6, .62],
                             [.35, .08, .08], [.1, .15, .3], [.85, .83, .8]])


def _lens_outline(rng_shape: tuple[float, float, float, float], side: int) -> np.ndarray:
    """Outline (N, 2) of one lens in its plane: a superellipse, narrower at the lower inner corner; unit half-width."""
    half_height, squareness, taper, lift = rng_shape
    turn = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    power = 2 / squareness
    x = np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** power
    y = np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** power * half_height
    x = x * (1 - taper * np.maximum(-y / half_height, 0))
    y = y + lift * np.maximum(x, 0) * np.maximum(y, 0)
    return np.stack([side * x, y], axis=1)


def _on_face(outline: np.ndarray, centre: np.ndarray, half_width: float, wrap: float) -> np.ndarray:
    """Lens outline (N, 2) to model points (N, 3): bent backwards with distance from the middle of the face."""
    points = np.concatenate([outline * half_width, np.zeros((len(outline), 1))], axis=1) + centre
    points[:, 2] -= wrap * (points[:, 0] / 1e5) ** 2
    return points


def _visible_run(scene: Scene, points: np.ndarray) -> list[np.ndarray]:
    """Parts (x, y) of a model polyline (N, 3) that are not behind the head."""
    placed = scene.project(points)
    inside = placed[:, :2].round().astype(int).clip(0, scene.size - 1)
    seen = placed[:, 2] > scene.depth[inside[:, 0], inside[:, 1]] - 2e3
    runs, start = [], None
    for i, visible in enumerate([*seen, False]):
        if visible and start is None:
            start = i
        elif not visible and start is not None:
            if i - start > 2:
                runs.append(placed[start:i, 1::-1])
            start = None
    return runs


def _temples(scene: Scene, lenses: list[np.ndarray]) -> list[np.ndarray]:
    """Visible runs (x, y) of both side arms, from the lenses' outer edges to the ears."""
    runs = []
    for lens, ear_landmark in zip(lenses, (0, 16)):
        outer = lens[np.argmax(np.abs(lens[:, 0]))]
        ear = scene.points[ear_landmark]
        side = math.copysign(1.0, ear[0])
        hinge = np.array([side * max(abs(outer[0]), abs(ear[0]) * 0.97), outer[1], outer[2] - 4e3])
        end = np.array([ear[0] + side * 5e3, outer[1] - 4e3, ear[2] - 15e3])
        steps = np.linspace(0, 1, 60)[:, None]
        arm = np.concatenate([outer + (hinge - outer) * steps[:20] / steps[19], hinge + (end - hinge) * steps])
        runs += _visible_run(scene, arm)
    return runs


def _lens_colour(rng: np.random.Generator, scene: Scene, dark: bool) -> tuple[np.ndarray, np.ndarray]:
    """Picture values (S, S, 3) and opacity (S, S) of the lenses: tinted glass, or nearly clear, with a reflection."""
    rows, columns = np.mgrid[:scene.size, :scene.size].astype(np.float32) / scene.size
    if dark:
        colour = np.minimum(random_colour(rng, 0.5) * rng.uniform(0.03, 0.25), 0.3)
        opacity = rng.uniform(0.78, 1.0) - rng.choice([0.0, 0.9]) * np.maximum(rows - rows.mean(), 0)
        strength = rng.uniform(0, 0.5)
    else:
        colour = np.float32([0.75, 0.78, 0.8])
        opacity = np.full((scene.size, scene.size), rng.uniform(0.0, 0.08), np.float32)
        strength = rng.uniform(0, 0.5) * (rng.random() < 0.5)
    angle = rng.uniform(0.3, 1.3)
    along = rows * math.sin(angle) + columns * math.cos(angle)
    position = along[scene.size // 2, scene.size // 2] + rng.normal(0, 0.12)
    streak = smoothstep(0.05, 0.0, np.abs(along - position)) * strength
    picture = blend(np.broadcast_to(colour, (*rows.shape, 3)), np.float32([0.9, 0.93, 0.97]), streak)
    return picture.astype(np.float32), np.clip(opacity + streak * (0.9 if not dark else 0.3), 0, 1)


def glasses(rng: np.random.Generator, scene: Scene) -> Patch:
    """Spectacles or, for about half of the draws, sunglasses; the whole lens counts as hidden."""
    dark = rng.random() < 0.5
    eyes = np.stack([scene.points[36:42].mean(0), scene.points[42:48].mean(0)])
    half_gap = np.abs(eyes[:, 0]).mean()
    half_width = half_gap * (rng.uniform(0.72, 0.9) if dark else rng.uniform(0.6, 0.82))
    shape = (rng.uniform(0.55, 0.95), rng.uniform(2.0, 4.0), rng.uniform(0.0, 0.3), rng.uniform(-0.1, 0.2))
    front = max(eyes[:, 2].max() + 12e3, scene.points[27, 2] + 1e3)
    lenses, drop = [], rng.normal(-2e3, 1.5e3)
    for side, eye in zip((-1, 1), eyes):
        centre = np.array([side * max(half_gap * 1.03, half_width + 7e3), eye[1] + drop, front])
        lenses.append(_on_face(_lens_outline(shape, side), centre, half_width, rng.uniform(8e3, 12e3)))
    outlines = [scene.project(lens)[:, 1::-1] for lens in lenses]
    lens_mask = draw_polygons(scene.size, scene.size, outlines)
    thickness = scene.eye_distance * rng.choice([0.02, 0.045, 0.08], p=[0.35, 0.4, 0.25]) * rng.uniform(0.8, 1.2)
    rim = [np.concatenate([outline, outline[:1]]) for outline in outlines]
    left, right = lenses[0][:, 0].argmax(), lenses[1][:, 0].argmin()
    bridge = np.linspace(lenses[0][left], lenses[1][right], 12)
    bridge[:, 1] += np.sin(np.linspace(0, math.pi, 12)) * 3e3 + half_width * 0.15
    parts = rim + [scene.project(bridge)[:, 1::-1]]
    frame = draw_lines(scene.size, scene.size, parts, round(thickness))
    arms = draw_lines(scene.size, scene.size, _temples(scene, lenses), round(max(thickness, 2)))
    strength = 1.0 if rng.random() < 0.9 else 0.35
    lens_picture, opacity = _lens_colour(rng, scene, dark)
    frame = np.maximum(frame, arms * (1 - lens_mask * opacity)) * strength  # arms lie behind the glass
    metal = _FRAME_COLOURS[int(rng.integers(len(_FRAME_COLOURS)))] * rng.uniform(0.7, 1.2)
    frame_picture = surface(rng, scene, metal, grain=0.02)
    alpha = np.maximum(frame, lens_mask * opacity)
    picture = blend(lens_picture, frame_picture, frame)
    return Patch(picture, alpha, np.maximum(frame, lens_mask) > 0.5, shadow=0.25)
