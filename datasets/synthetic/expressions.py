"""Plausible facial expressions as expression coefficients: combinations of facial actions (smile, blink, ...)."""

from __future__ import annotations

import numpy as np

from datasets.default_3dmm.head import HeadModel
from datasets.default_3dmm.sampling import sample_expressions

_LIMIT = 4.0  # coefficients beyond this are as rare in the samples that the model was made from


def sample_expression(rng: np.random.Generator, head: HeadModel) -> np.ndarray:
    """Expression coefficients (29,) float32, normalised as the encoder's output."""
    strengths = sample_expressions(list(head.actions), 1, rng)[0] * np.float32(rng.uniform(0.6, 1.0))
    moved = strengths @ np.stack(list(head.actions.values()))
    jitter = 0.12 * rng.standard_normal(len(moved))
    return np.clip(head.rest_expression + moved + jitter, -_LIMIT, _LIMIT).astype(np.float32)
