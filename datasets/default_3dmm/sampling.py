"""Random heads and expressions from MakeHuman's shape changes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from .assets import AnnyAssets

AGES = ("child", "young", "old")
AGE_YEARS = (12.0, 25.0, 85.0)  # the ages MakeHuman's child, young and old targets stand for
GENDERS = ("female", "male")
ETHNICITIES = ("african", "asian", "caucasian")
LEVELS = {"muscle": ("minmuscle", "averagemuscle", "maxmuscle"), "weight": ("minweight", "averageweight", "maxweight")}

# Spread of the local changes (1 is the full slider): by beginning of the name, the first that fits.
LOCAL_SPREAD = (
    ("head-angle", 0.06), ("head-trans", 0.05), ("head-age", 0.15), ("head-fat", 0.25), ("head-back", 0.25),
    ("nose-trans-out", 0.06), ("mouth-trans-out", 0.06), ("nose-compression", 0.15), ("nose-trans-forward", 0.12),
    ("neck-trans", 0.05), ("neck", 0.2), ("measure-neck", 0.2), ("chin-cleft", 0.2), ("chin-triangle", 0.15),
    ("l-eye-scale", 0.2), ("l-eye-trans", 0.22), ("l-eye-push", 0.2), ("l-eye-eyefold-con", 0.3), ("l-ear-shape", 0.2),
    ("mouth-trans", 0.2), ("mouth-angles", 0.15), ("", 0.26),
)
ONE_WAY = 0.5  # factor for changes without an opposite, such as a square head
SIDE_DIFFERENCE = 0.045  # how much the left side differs from the right one, on the same scale


@dataclass
class HeadSampler:
    """Shape changes restricted to some vertices: base (C, 3), macro targets and local changes in decimetres."""

    base: np.ndarray
    ethnic: np.ndarray
    universal: np.ndarray
    local: list[tuple[str, np.ndarray, np.ndarray | None]]

    @classmethod
    def read(cls, assets: AnnyAssets, base_vertices: np.ndarray, index: np.ndarray) -> "HeadSampler":
        """Read the targets for the base mesh's vertices `index`."""
        count = len(base_vertices)
        pick = lambda name: assets.macro(name, count)[index]
        ethnic = np.stack([pick("-".join(key)) for key in itertools.product(ETHNICITIES, GENDERS, AGES)])
        universal = np.stack([pick("universal-" + "-".join(key)) for key in itertools.product(
            GENDERS, AGES, LEVELS["muscle"], LEVELS["weight"])])
        local = [(name, positive[index], None if negative is None else negative[index])
                 for _, name, positive, negative in assets.local_changes(count)]
        return cls(base_vertices[index].astype(np.float32), ethnic, universal, local)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, C, 3) float32 adult heads in decimetres."""
        gender = np.clip(rng.beta(0.5, 0.5, count), 0, 1)
        gender = np.stack([1 - gender, gender], axis=1)
        years = 18 + 67 * rng.beta(1.0, 1.4, count)
        age = interpolation_weights(years, AGE_YEARS)
        muscle = interpolation_weights(rng.uniform(0.2, 0.8, count), (0.0, 0.5, 1.0))
        weight = interpolation_weights(rng.uniform(0.12, 0.88, count), (0.0, 0.5, 1.0))
        ethnicity = rng.dirichlet(np.full(3, 0.5), count)
        ethnic = np.einsum("be,bg,ba->bega", ethnicity, gender, age).reshape(count, -1)
        universal = np.einsum("bg,ba,bm,bw->bgamw", gender, age, muscle, weight).reshape(count, -1)
        offsets = ethnic.astype(np.float32) @ self.ethnic.reshape(len(self.ethnic), -1)
        offsets += universal.astype(np.float32) @ self.universal.reshape(len(self.universal), -1)
        offsets += self._local_offsets(count, rng)
        return self.base + offsets.reshape(count, -1, 3)

    def _local_offsets(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, 3C) sums of random local changes; both sides change together but for a small difference."""
        shared, rows, amounts = {}, [], []
        for name, positive, negative in self.local:
            side = name[:2] if name[:2] in ("l-", "r-") else ""
            key = "l-" + name[2:] if side else name
            if key not in shared:
                spread = next(value for start, value in LOCAL_SPREAD if key.startswith(start))
                spread *= ONE_WAY if negative is None else 1
                shared[key] = spread * rng.standard_normal(count)
            value = shared[key] + (SIDE_DIFFERENCE * rng.standard_normal(count) if side else 0.0)
            value = np.clip(value, -1, 1)
            rows.append(positive)
            amounts.append(np.maximum(value, 0))
            if negative is not None:
                rows.append(negative)
                amounts.append(np.maximum(-value, 0))
        return np.stack(amounts, axis=1).astype(np.float32) @ np.stack(rows).reshape(len(rows), -1)


def interpolation_weights(values: np.ndarray, anchors: tuple[float, ...]) -> np.ndarray:
    """(B,) values -> (B, len(anchors)) piecewise linear interpolation weights."""
    return np.stack([np.interp(values, anchors, row) for row in np.eye(len(anchors))], axis=1)


@dataclass(frozen=True)
class Gesture:
    """A facial movement: how often it occurs, a power shaping its strength, and its actions with (low, high) gains."""

    chance: float
    power: float
    actions: dict[str, tuple[float, float]]


GESTURES = (
    Gesture(0.5, 0.8, {"mouthSmile*": (0.75, 1.0), "mouthUpperUp*": (0.0, 0.85), "mouthLowerDown*": (0.0, 0.6),
                       "cheekSquint*": (0.1, 0.7), "mouthDimple*": (0.0, 0.4), "mouthStretch*": (0.0, 0.35),
                       "eyeSquint*": (0.0, 0.4), "jawOpen": (0.0, 0.15)}),
    Gesture(0.45, 2.0, {"jawOpen": (0.9, 1.0), "mouthFunnel": (0.0, 0.3)}),
    Gesture(0.3, 1.3, {"eyeSquint*": (0.8, 1.0)}),
    Gesture(0.3, 1.5, {"eyeBlink*": (0.4, 0.5)}),
    Gesture(0.08, 0.3, {"eyeBlink*": (0.9, 1.0)}),
    Gesture(0.25, 1.0, {"eyeLookDown*": (0.6, 0.7)}),
    Gesture(0.15, 1.0, {"eyeLookUp*": (0.6, 0.7)}),
    Gesture(0.2, 1.0, {"eyeWide*": (0.8, 1.0), "browOuterUp*": (0.0, 0.6)}),
    Gesture(0.3, 1.0, {"browDown*": (0.8, 1.0), "noseSneer*": (0.0, 0.3)}),
    Gesture(0.3, 1.0, {"browInnerUp": (0.8, 1.0)}),
    Gesture(0.3, 1.0, {"browOuterUp*": (0.8, 1.0)}),
    Gesture(0.15, 1.0, {"mouthFrown*": (0.7, 1.0), "mouthShrugLower": (0.0, 0.5)}),
    Gesture(0.12, 1.0, {"mouthPress*": (0.7, 1.0)}),
    Gesture(0.12, 1.0, {"mouthStretch*": (0.6, 0.8), "jawOpen": (0.0, 0.3)}),
    Gesture(0.12, 1.0, {"noseSneer*": (0.6, 0.8), "mouthUpperUp*": (0.0, 0.5)}),
    Gesture(0.12, 1.0, {"mouthPucker": (0.7, 0.9)}),
    Gesture(0.1, 1.0, {"mouthFunnel": (0.6, 0.8), "jawOpen": (0.0, 0.4)}),
    Gesture(0.08, 1.0, {"cheekPuff": (0.6, 0.8)}),
    Gesture(0.08, 1.0, {"mouthRollLower": (0.6, 0.8), "mouthRollUpper": (0.0, 0.7)}),
    Gesture(0.08, 1.0, {"mouthRollUpper": (0.6, 0.8)}),
    Gesture(0.08, 1.0, {"mouthShrugLower": (0.6, 0.8), "mouthShrugUpper": (0.0, 0.7)}),
    Gesture(0.08, 1.0, {"mouthShrugUpper": (0.6, 0.8)}),
    Gesture(0.08, 1.0, {"jawForward": (0.6, 0.8)}),
    Gesture(0.07, 1.0, {"mouthLeft": (0.6, 0.8)}),
    Gesture(0.07, 1.0, {"mouthRight": (0.6, 0.8)}),
    Gesture(0.06, 1.0, {"jawLeft": (0.6, 0.8)}),
    Gesture(0.06, 1.0, {"jawRight": (0.6, 0.8)}),
)
NEUTRAL_CHANCE = 0.12
ONE_SIDED = 0.1  # relative difference of a movement's strength between the sides


def sample_expressions(names: list[str], count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, len(names)) strengths of facial actions in plausible combinations, each in [0, 1.1]."""
    place = {name: k for k, name in enumerate(names)}
    strengths = np.zeros((count, len(names)), dtype=np.float32)
    for gesture in GESTURES:
        strength = (rng.random(count) < gesture.chance) * rng.random(count) ** gesture.power
        for action, (low, high) in gesture.actions.items():
            amount = strength * rng.uniform(low, high, count)
            if action.endswith("*"):
                for side in ("Left", "Right"):
                    unequal = 1 + ONE_SIDED * rng.standard_normal(count)
                    strengths[:, place[action[:-1] + side]] += amount * unequal
            else:
                strengths[:, place[action]] += amount
    wink = rng.random(count) < 0.05
    lone = rng.integers(0, len(names), count)
    strengths[np.arange(count), lone] += wink * 0.7 * rng.random(count)
    strengths[rng.random(count) < NEUTRAL_CHANCE] = 0
    return np.clip(strengths, 0, 1.1)
