"""Hands in front of a face, flat, loosely closed or pointing: rounded limbs with relief, creases and nails."""

from __future__ import annotations

import math

import cv2
import numpy as np

from .fields import blend, draw_polygons
from .scene import Patch, Scene, relief_normals, surface

# Lengths in units of the eye distance (about 62 mm).
_FINGER_LENGTH = (1.25, 1.3, 1.2, 0.95)  # index, middle, ring, little
_FINGER_RADIUS = (0.15, 0.155, 0.145, 0.125)
_PHALANGES = (0.45, 0.3, 0.25)  # shares of a finger's length
_KNUCKLE_STEP = 0.29
_PALM = 1.45  # from the knuckles to the wrist; across the knuckles a palm is 1.25 wide
_WRIST_RADIUS, _ELBOW_RADIUS = 0.46, 0.58

POSES = (("flat", 0.6), ("loose", 0.2), ("pointing", 0.2))  # with their shares
_FORESHORTENED = 0.2  # a part of a finger that appears shorter than this share points away and is behind the others


def _capsule_relief(height: np.ndarray, start: np.ndarray, end: np.ndarray, radii: tuple[float, float],
                    thickness: float = 1.0) -> None:
    """Raise the height field (S, S) in place by a rounded limb from start to end (x, y) with two radii.

    thickness: of the limb, as a share of its width.
    """
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
    limb = np.sqrt(np.maximum(radius * radius - distance_2, 0)) * thickness
    window = height[low[1]:high[1], low[0]:high[0]]
    np.maximum(window, limb, out=window)


def _finger_joints(rng: np.random.Generator, base: np.ndarray, direction: float, length: float,
                   curl: np.ndarray | None = None) -> np.ndarray:
    """Base, two joints and tip (4, 2) of a slightly bent finger pointing along an angle.

    curl (3,): angles by which its parts point away from the camera, in radians; without, it lies flat.
    """
    joints, angle = [base], direction
    bend = rng.normal(0, 0.12)
    for part, share in enumerate(_PHALANGES if curl is None else _PHALANGES * np.cos(curl)):
        joints.append(joints[-1] + length * share * np.array([math.cos(angle), math.sin(angle)]))
        angle += bend
    return np.array(joints)


def _curls(rng: np.random.Generator, pose: str) -> list[np.ndarray | None]:
    """How each of the four fingers is curled in one of the POSES, see `_finger_joints`."""
    straight = {"flat": 4, "pointing": 2 if rng.random() < 0.3 else 1, "loose": 0}[pose]
    closed = (0.4, 0.6, 0.6) if pose == "loose" else (1.1, 1.5, 1.0)
    bent = [np.cumsum(np.maximum(closed + rng.normal(0, 0.1, 3), 0.1)) for _ in range(4 - straight)]
    return [None] * straight + bent


def _nail(joints: np.ndarray, radius: float) -> np.ndarray:
    """Outline (N, 2) of the nail at a finger's tip."""
    along = joints[3] - joints[2]
    along = along / max(np.hypot(*along), 1e-6)
    across = np.array([-along[1], along[0]])
    turn = np.linspace(0, 2 * math.pi, 20, endpoint=False)[:, None]
    centre = joints[3] + along * radius * 0.3
    return centre + np.cos(turn) * along * radius * 0.62 + np.sin(turn) * across * radius * 0.6


def hand(rng: np.random.Generator, scene: Scene) -> Patch:
    """A hand and its forearm, reaching to the face from outside: flat, loosely closed or pointing."""
    unit = scene.eye_distance * rng.uniform(0.92, 1.12)
    target = scene.landmarks[int(rng.choice([30, 33, 48, 54, 8, 4, 12, 17, 26, 57]))] + rng.normal(0, 0.25, 2) * unit
    direction = rng.choice([-math.pi / 2, -math.pi / 4, -3 * math.pi / 4]) + rng.normal(0, 0.45)
    forward = np.array([math.cos(direction), math.sin(direction)])
    handed = int(rng.choice([-1, 1]))
    side = np.array([-forward[1], forward[0]]) * handed
    pose = str(rng.choice([name for name, _ in POSES], p=[share for _, share in POSES]))
    knuckles = target - forward * unit * (rng.uniform(-0.3, 0.6) if pose == "loose" else rng.uniform(0.2, 1.3))
    wrist = knuckles - forward * _PALM * unit
    height = np.zeros((scene.size, scene.size), np.float32)
    _capsule_relief(height, wrist - forward * 5 * unit, wrist, (_ELBOW_RADIUS * unit, _WRIST_RADIUS * unit), 0.55)
    _capsule_relief(height, knuckles - forward * 0.35 * unit, wrist, (0.52 * unit, 0.42 * unit), 0.38)
    creases, nails = [], []
    spread = rng.uniform(0.0, 0.14)
    for finger, curl in enumerate(_curls(rng, pose)):
        place = (finger - 1.5) * _KNUCKLE_STEP * unit
        base = knuckles + side * place - forward * abs(finger - 1.3) * 0.07 * unit
        angle = direction + spread * (finger - 1.5) * handed
        joints = _finger_joints(rng, base, angle, _FINGER_LENGTH[finger] * unit, curl)
        radius = _FINGER_RADIUS[finger] * unit
        seen = 3 if curl is None else int((np.cos(curl) > _FORESHORTENED).sum())
        for part in range(seen):
            radii = radius * (1 - 0.09 * part), radius * (0.91 - 0.09 * part)
            _capsule_relief(height, joints[part], joints[part + 1], radii)
        _capsule_relief(height, base, wrist + side * place * 0.55, (radius * 1.2, radius * 1.3))
        creases += [joints[1], joints[2]][:seen]
        if curl is None:
            nails.append(_nail(joints, radius))
    if rng.random() < 0.8:  # else it is behind the hand
        _thumb(rng, height, knuckles, wrist, side, direction - (0.6 if pose == "flat" else 0.2) * handed, unit)
    return _skin_patch(rng, scene, height, creases, nails, unit)


def _thumb(rng: np.random.Generator, height: np.ndarray, knuckles: np.ndarray, wrist: np.ndarray, side: np.ndarray,
           direction: float, unit: float) -> None:
    """Raise the height field (S, S) by a thumb, with its ball, on the hand's other side than `side`."""
    root = knuckles * 0.4 + wrist * 0.6 - side * 0.5 * unit
    _capsule_relief(height, wrist - side * 0.2 * unit, root, (0.24 * unit, 0.2 * unit))
    joints = _finger_joints(rng, root, direction, 1.0 * unit)
    for part in range(3):
        _capsule_relief(height, joints[part], joints[part + 1], (0.17 * unit, 0.155 * unit))


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
