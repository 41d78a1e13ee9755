"""Head pose of a synthetic face, and the crop that the aligner would make of it, as one weak-perspective pose.

The pose has the encoder's convention (models/renderer.py): in the 224-pixel window x = scale * (R S)_x + t_x,
y = scale * (R S)_y + t_y with y upwards, row = 223 - y, column = x; the 256-pixel crop adds 16 to both.
R = Rx(a) Ry(b) Rz(c) are Euler angles "XYZ"; S are model coordinates in micrometres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from datasets.alignment import CENTRE_SHIFT, EYE_FACTOR, MOUTH_FACTOR

WINDOW = 224
CROP = 256
OFFSET = (CROP - WINDOW) // 2
MAX_SCALE = 2e-3
DETECTION_NOISE = 0.03  # of the eye distance: how far detected eyes and mouth corners are off


@dataclass(frozen=True)
class Pose:
    """`scale` px per um, `rotation` (3, 3), `translation` (2,) px in the window, `angles` (3,) rad."""

    scale: float
    rotation: np.ndarray
    translation: np.ndarray
    angles: np.ndarray

    def encoded(self) -> np.ndarray:
        """(5,) float32 in [-1, 1]: angles / (pi / 2), then translation / 112 - 1."""
        return np.concatenate([self.angles / (math.pi / 2), self.translation / (WINDOW / 2) - 1]).astype(np.float32)

    def project(self, points: np.ndarray, supersampling: float = 1.0) -> np.ndarray:
        """Model points (N, 3) um to (row, column, depth) (N, 3) float32 of the crop enlarged by `supersampling`.

        Pixel centres are integers in both pictures; depth stays in um, larger is nearer.
        """
        rotated = np.asarray(points, np.float32) @ self.rotation.T.astype(np.float32)
        column = rotated[:, 0] * np.float32(self.scale) + np.float32(self.translation[0] + OFFSET)
        row = np.float32(WINDOW - 1 - self.translation[1] + OFFSET) - rotated[:, 1] * np.float32(self.scale)
        enlarge = np.float32(supersampling)
        return np.stack([(row + 0.5) * enlarge - 0.5, (column + 0.5) * enlarge - 0.5, rotated[:, 2]], axis=1)


def euler_to_matrix(angles: np.ndarray) -> np.ndarray:
    """Rx(a) Ry(b) Rz(c) as float64 (3, 3)."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def matrix_to_euler(rotation: np.ndarray) -> np.ndarray:
    """Inverse of `euler_to_matrix` for |b| < pi / 2."""
    return np.array([math.atan2(-rotation[1, 2], rotation[2, 2]), math.asin(float(np.clip(rotation[0, 2], -1, 1))),
                     math.atan2(-rotation[0, 1], rotation[0, 0])])


def sample_rotation(rng: np.random.Generator) -> np.ndarray:
    """Yaw mostly within 30 degrees with tails to 60, pitch within about 20, a little roll; float64 (3, 3)."""
    spread = rng.choice([9.0, 18.0, 32.0], p=[0.45, 0.37, 0.18])
    yaw = math.radians(np.clip(rng.normal(0, spread), -62, 62))
    pitch = math.radians(np.clip(rng.normal(2, 8), -24, 24))
    roll = math.radians(rng.normal(0, 6))
    tilt = euler_to_matrix(np.array([pitch, 0, 0]))
    turn = euler_to_matrix(np.array([0, yaw, 0]))
    return euler_to_matrix(np.array([0, 0, roll])) @ tilt @ turn


def _crop_frame(eyes: np.ndarray, mouth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half side (2,) and centre (2,) of the oriented crop around two eye centres and two mouth corners, y downwards."""
    eye_to_eye = eyes[1] - eyes[0]
    eye_to_mouth = mouth.mean(0) - eyes.mean(0)
    axis = eye_to_eye - np.array([-eye_to_mouth[1], eye_to_mouth[0]])
    axis /= np.hypot(*axis)
    half = max(EYE_FACTOR * np.hypot(*eye_to_eye), MOUTH_FACTOR * np.hypot(*eye_to_mouth))
    return axis * half, eyes.mean(0) + CENTRE_SHIFT * eye_to_mouth


def crop_pose(rng: np.random.Generator, landmarks: np.ndarray, rotation: np.ndarray) -> Pose | None:
    """Pose of the crop that an aligner with imperfect five points would make of a head in this rotation.

    landmarks: (68, 3) model coordinates in um. Returns None where the pose leaves the encoder's ranges.
    """
    flat = (landmarks @ rotation.T)[:, :2] * [1, -1]
    points = np.stack([flat[36:42].mean(0), flat[42:48].mean(0), flat[48], flat[54]])
    eye_distance = max(np.hypot(*(points[1] - points[0])), 3e4)
    points += rng.normal(0, DETECTION_NOISE, (4, 2)) * eye_distance
    half, centre = _crop_frame(points[:2], points[2:])
    scale = CROP / 2 / np.hypot(*half)
    level = math.atan2(half[1], half[0])
    rotation = euler_to_matrix(np.array([0, 0, level])) @ rotation
    angles = matrix_to_euler(rotation)
    middle = np.array([(CROP - 1) / 2 - OFFSET, (WINDOW - 1) - ((CROP - 1) / 2 - OFFSET)])
    turned = euler_to_matrix(np.array([0, 0, level]))[:2, :2] @ (centre * [1, -1])
    translation = middle - turned * scale
    inside = np.all(np.abs(angles) < 0.97 * math.pi / 2) and np.all(np.abs(translation / 112 - 1) < 0.97)
    if not inside or scale > 0.97 * MAX_SCALE:
        return None
    return Pose(float(scale), rotation, translation, angles)
