"""Random spherical-harmonics light for synthetic faces.

The light vector has the convention of `models/lighting.py`: 27 numbers, nine coefficients for red, nine for green,
nine for blue, in the basis whose first functions are 1, z, y, x; the shade of a surface with unit normal n (x right,
y up, z towards the camera) is basis(n) . light. Surface colour times shade is the picture's value in [0, 1].
"""

from __future__ import annotations

import math

import numpy as np

# Normalised real spherical harmonics Y of bands 0, 1, 2, and the factors that the shading basis puts on them.
# For a clamped cosine these factors are (pi, 2 pi / 3, pi / 4) (Ramamoorthi and Hanrahan 2001, An efficient
# representation for irradiance environment maps); the basis leaves pi out of the constant.
_Y0 = 1 / math.sqrt(4 * math.pi)
_Y1 = math.sqrt(3 / (4 * math.pi))
_Y2 = math.sqrt(15 / (4 * math.pi))
_CONSTANTS = np.array([_Y0, _Y1, _Y1, _Y1, _Y2 / (2 * math.sqrt(3)), _Y2, _Y2, _Y2, _Y2 / 2], np.float32)
_BAND = np.array([1.0] + [2 * math.pi / 3] * 3 + [math.pi / 4] * 5, np.float32)


def harmonics(directions: np.ndarray) -> np.ndarray:
    """Real spherical harmonics of unit directions (..., 3), order 1, z, y, x, zz, yz, xz, xy, xx-yy: (..., 9)."""
    x, y, z = np.moveaxis(np.asarray(directions, np.float32), -1, 0)
    return _CONSTANTS * np.stack([np.ones_like(x), z, y, x, 2 * z * z - x * x - y * y, y * z, x * z, x * y,
                                  x * x - y * y], axis=-1)


def shade(normals: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Shade (..., 3) of unit camera-space normals (..., 3) under the light (27,); not clamped."""
    normals = np.asarray(normals, np.float32)
    x, y, z = np.ascontiguousarray(normals.reshape(-1, 3).T)
    ones = np.ones_like(x)
    monomials = np.stack([ones, z, y, x, 2 * z * z - x * x - y * y, y * z, x * z, x * y, x * x - y * y])
    factors = np.asarray(light, np.float32).reshape(3, 9) * (_BAND * _CONSTANTS)
    return np.ascontiguousarray((factors @ monomials).T).reshape(normals.shape)


def ambient(strength: float) -> np.ndarray:
    """Nine coefficients whose shade is `strength` everywhere."""
    coefficients = np.zeros(9, np.float32)
    coefficients[0] = strength / _Y0
    return coefficients


def directional(direction: np.ndarray, strength: float) -> np.ndarray:
    """Nine coefficients of a distant source: shade is about strength * max(0, normal . direction)."""
    coefficients = harmonics(np.asarray(direction)) * strength
    coefficients[0] *= math.pi
    return coefficients.astype(np.float32)


def from_angles(azimuth: float, elevation: float) -> np.ndarray:
    """Unit direction: azimuth 0 is the camera, positive to the picture's right; elevation positive upwards."""
    return np.array([math.sin(azimuth) * math.cos(elevation), math.sin(elevation),
                     math.cos(azimuth) * math.cos(elevation)], np.float32)


class Light:
    """One sampled light: `vector` (27,), the main source's unit `direction` (3,) and relative `hardness` in [0, 1]."""

    def __init__(self, vector: np.ndarray, direction: np.ndarray, hardness: float):
        self.vector = vector
        self.direction = direction
        self.hardness = hardness

    def shade(self, normals: np.ndarray, floor: float = 0.12) -> np.ndarray:
        """Shade (..., 3), clamped below at `floor`, because two bands of harmonics can dip below zero."""
        return np.maximum(shade(normals, self.vector), floor)

    def scaled(self, gain: np.ndarray) -> "Light":
        """The same light after a per-channel gain (3,) of the picture (exposure, white balance)."""
        vector = (self.vector.reshape(3, 9) * np.asarray(gain, np.float32)[:, None]).reshape(27)
        return Light(vector, self.direction, self.hardness)


def _tint(rng: np.random.Generator, strength: float) -> np.ndarray:
    """Colour of a source: along the warm-cold axis of real lamps and skies, with a little of anything."""
    warmth = strength * rng.standard_normal()
    other = 0.25 * strength * rng.standard_normal(3)
    return np.clip(np.array([1 + warmth, 1.0, 1 - warmth]) + other, 0.6, 1.4).astype(np.float32)


def sample_light(rng: np.random.Generator, gray: bool = False) -> Light:
    """Ambient light and one to three directional sources; the mean shade of a frontal face is about 0.75 to 1.1.

    With `gray` every source is white, so that a gray albedo gives a gray picture.
    """
    tint_strength = 0.0 if gray else 1.0
    total = np.zeros((3, 9), np.float32)
    share = rng.beta(2.6, 1.8) * 0.75 + 0.15
    total += _tint(rng, 0.05 * tint_strength)[:, None] * ambient(share)
    strongest, direction = 0.0, np.array([0, 0, 1], np.float32)
    for number in range(int(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2]))):
        azimuth = rng.normal(0, 0.75) if number == 0 else rng.uniform(-2.2, 2.2)
        elevation = rng.normal(0.45, 0.35)
        strength = (1 - share) * (rng.uniform(0.7, 1.2) if number == 0 else rng.uniform(0.1, 0.6))
        towards = from_angles(azimuth, elevation)
        total += _tint(rng, 0.05 * tint_strength)[:, None] * directional(towards, strength)
        if strength > strongest:
            strongest, direction = strength, towards
    frontal = shade(np.array([[0, 0.1, 0.995], [0.5, 0.1, 0.86], [-0.5, 0.1, 0.86]], np.float32), total.reshape(27))
    total *= np.clip(rng.normal(0.98, 0.13), 0.62, 1.3) / frontal.mean()
    return Light(total.reshape(27), direction, float(np.clip(strongest / (strongest + share), 0, 1)))
