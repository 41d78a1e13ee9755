"""Plausible facial expressions as expression coefficients: combinations of facial actions (smile, blink, ...)."""

from __future__ import annotations

import numpy as np

from datasets.default_3dmm.head import HeadModel
from datasets.default_3dmm.sampling import sample_expressions

BROAD_SMILES = 0.33  # share of the faces that smile for the camera, showing teeth
EYES_SHUT = 0.45  # how much of a lowered lid is kept in the others: photographers keep pictures with open eyes
# Actions of a broad smile with their strengths (low, high); "*" stands for both sides.
_SMILE = {"mouthSmile*": (0.7, 1.0), "mouthUpperUp*": (0.35, 0.9), "mouthLowerDown*": (0.1, 0.6),
          "cheekSquint*": (0.2, 0.8), "mouthStretch*": (0.0, 0.3), "eyeSquint*": (0.0, 0.35), "jawOpen": (0.0, 0.22)}
_LIDS = ("eyeBlink", "eyeSquint", "eyeLookDown")
_LIMIT = 4.0  # coefficients beyond this are as rare in the samples that the model was made from


def sample_expression(rng: np.random.Generator, head: HeadModel) -> np.ndarray:
    """Expression coefficients (29,) float32, normalised as the encoder's output."""
    names = list(head.actions)
    strengths = sample_expressions(names, 1, rng)[0] * np.float32(rng.uniform(0.6, 1.0))
    if rng.random() < BROAD_SMILES:
        strengths = _broad_smile(rng, names)
    if rng.random() < 0.8:
        strengths = strengths * np.float32([EYES_SHUT if name.startswith(_LIDS) else 1 for name in names])
    moved = strengths @ np.stack(list(head.actions.values()))
    jitter = 0.12 * rng.standard_normal(len(moved))
    return np.clip(head.rest_expression + moved + jitter, -_LIMIT, _LIMIT).astype(np.float32)


def _broad_smile(rng: np.random.Generator, names: list[str]) -> np.ndarray:
    """Strengths (len(names),) of the actions of a smile that bares the upper teeth, a little uneven."""
    strengths = dict.fromkeys(names, 0.0)
    width = rng.uniform(0.65, 1.0)
    for action, (low, high) in _SMILE.items():
        amount = width * rng.uniform(low, high)
        for name in (action[:-1] + "Left", action[:-1] + "Right") if action.endswith("*") else (action,):
            strengths[name] = amount * (1 + 0.08 * rng.standard_normal())
    return np.float32(list(strengths.values()))
