"""Hands and single fingers in front of a face: rounded limbs with their own relief, creases and nails."""

from __future__ import annotations

import math

import cv2
import numpy as np

from .fields import blend, draw_polygons
from .scene import Patch, Scene, relief_normals, surface

# Lengths in units of the eye distance (about 62 mm).
_FINGER_LENGTH = (1.25, 1.3, 1.2, 0.95)  # index, middle, ring, little
_FINGER_RADIUS = (0.15, 0.155, 0.145, 0.125)
_KNUCKLE_STEP = 0.29


def _capsule_relief(height: np.ndarray, start: np.ndarray, end: np.ndarray, radii: tuple[float, float]) -> None:
    """Raise the height field (S, S) in place by a rounded limb from start to end (x, y) with two radii."""
    size = height.shape[0]
    reach = max(radii) + 2
    low = np.floor(np.minimum(start, end) - reach).astype(int).clip(0, size)
    high = np.ceil(np.maximum(start, end) + reach).astype(int).clip(0, size)
    if np.any(high <= low):
        return
    rows, columns = np.mgrid[low[1]:high[1], low[0]:high[0]].astype(np.float32)
    axis = end - start
    along = ((columns - start[0]) * axis[0] + (rows - start[1]) * axis[1]) / max(float(axis @ axis), 1e-6)
    along = np.clip(along, 0, 1)
    distance_2 = (columns - start[0] - along * axis[0]) ** 2 + (rows - start[1] - along * axis[1]) ** 2
    radius = radii[0] + (radii[1] - radii[0]) * along
    limb = np.sqrt(np.maximum(radius * radius - distance_2, 0))
    window = height[low[1]:high[1], low[0]:high[0]]
    np.maximum(window, limb, out=window)


def _finger_joints(rng: np.random.Generator, base: np.ndarray, direction: float, length: float) -> np.ndarray:
    """Base, two joints and tip (4, 2) of a slightly bent finger pointing along an angle."""
    joints, angle = [base], direction
    bend = rng.normal(0, 0.12)
    for part in (0.45, 0.3, 0.25):
        joints.append(joints[-1] + length * part * np.array([math.cos(angle), math.sin(angle)]))
        angle += bend
    return np.array(joints)


def _nail(joints: np.ndarray, radius: float) -> np.ndarray:
    """Outline (N, 2) of the nail at a finger's tip."""
    along = joints[3] - joints[2]
    along = along / max(np.hypot(*along), 1e-6)
    across = np.array([-along[1], along[0]])
    turn = np.linspace(0, 2 * math.pi, 20, endpoint=False)[:, None]
    centre = joints[3] + along * radius * 0.3
    return centre + np.cos(turn) * along * radius * 0.62 + np.sin(turn) * across * radius * 0.6


def hand(rng: np.random.Generator, scene: Scene) -> Patch:
    """A hand, or two to four of its fingers, reaching to the face from outside; (x, y) canvas pixels."""
    unit = scene.eye_distance * rng.uniform(0.92, 1.12)
    target = scene.landmarks[int(rng.choice([30, 33, 48, 54, 8, 4, 12, 17, 26, 57]))] + rng.normal(0, 0.25, 2) * unit
    direction = rng.choice([-math.pi / 2, -math.pi / 4, -3 * math.pi / 4]) + rng.normal(0, 0.45)
    forward = np.array([math.cos(direction), math.sin(direction)])
    handed = int(rng.choice([-1, 1]))
    side = np.array([-forward[1], forward[0]]) * handed
    knuckles = target - forward * unit * rng.uniform(0.2, 1.3)
    height = np.zeros((scene.size, scene.size), np.float32)
    shown = np.arange(1, 5) if rng.random() < 0.6 else np.arange(1, 1 + int(rng.integers(1, 4)))
    creases, nails = [], []
    spread = rng.uniform(0.0, 0.14)
    for finger in shown:
        place = (finger - 2.5) * _KNUCKLE_STEP * unit
        base = knuckles + side * place - forward * abs(finger - 2.3) * 0.07 * unit
        angle = direction + spread * (finger - 2.5) * handed
        joints = _finger_joints(rng, base, angle, _FINGER_LENGTH[finger - 1] * unit)
        radius = _FINGER_RADIUS[finger - 1] * unit
        for part in range(3):
            radii = radius * (1 - 0.09 * part), radius * (0.91 - 0.09 * part)
            _capsule_relief(height, joints[part], joints[part + 1], radii)
        wrist = knuckles - forward * unit * 1.5 + side * place * 0.55
        _capsule_relief(height, base, wrist, (radius * 1.25, radius * 1.45))
        creases += [joints[1], joints[2]]
        nails.append(_nail(joints, radius))
    if rng.random() < 0.6 and len(shown) == 4:
        root = knuckles - forward * unit * 0.9 - side * unit * 0.5
        thumb = _finger_joints(rng, root, direction - 0.6 * handed, 1.0 * unit)
        for part in range(3):
            _capsule_relief(height, thumb[part], thumb[part + 1], (0.17 * unit, 0.155 * unit))
    elbow = knuckles - forward * unit * 6
    _capsule_relief(height, knuckles - forward * unit * 1.2, elbow, (0.5 * unit, 0.62 * unit))
    return _skin_patch(rng, scene, height, creases, nails, unit)


def _skin_patch(rng: np.random.Generator, scene: Scene, height: np.ndarray, creases: list[np.ndarray],
                nails: list[np.ndarray], unit: float) -> Patch:
    """Colour the relief as skin of about the face's colour; the back of the hand shows nails."""
    alpha = np.clip(height * 0.8, 0, 1)
    relief = cv2.GaussianBlur(height, (0, 0), 0.03 * unit) * 0.85
    colour = scene.skin_colour * np.clip(1 + rng.normal(0, 0.06, 3), 0.8, 1.2)
    albedo = np.broadcast_to(colour.astype(np.float32), (*height.shape, 3))
    rows, columns = np.mgrid[:scene.size, :scene.size].astype(np.float32)
    fold = np.zeros_like(height)
    for crease in creases:
        squared = (columns - crease[0]) ** 2 + (rows - crease[1]) ** 2
        fold += np.exp(-squared / (2 * (0.07 * unit) ** 2))
    albedo = albedo * (1 - np.minimum(fold, 1)[..., None] * np.float32([0.06, 0.16, 0.16]))
    if rng.random() < 0.65:
        polish = colour * [1.08, 0.98, 0.97] if rng.random() < 0.7 else rng.random(3)
        albedo = blend(albedo, np.float32(polish), draw_polygons(scene.size, scene.size, nails) * 0.85)
    picture = surface(rng, scene, albedo, relief_normals(relief), grain=0.03)
    return Patch(picture, alpha, height > 0.3, shadow=rng.uniform(0.25, 0.5))
