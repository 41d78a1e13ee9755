"""Which things hide the face, and how often."""

from __future__ import annotations

import numpy as np

from .coverings import abstract_shape, balaclava, cup, hair_strands, medical_mask, microphone, scarf
from .eyewear import glasses
from .hands import hand
from .scene import Patch, Scene

# Name, function, relative frequency.
OCCLUDERS = (
    ("balaclava", balaclava, 0.05), ("medical_mask", medical_mask, 0.25), ("scarf", scarf, 0.05),
    ("hair_strands", hair_strands, 0.10), ("glasses", glasses, 0.25), ("cup", cup, 0.04),
    ("microphone", microphone, 0.06), ("hand", hand, 0.14), ("abstract_shape", abstract_shape, 0.11),
)
FREE_FACES = 0.45  # share of the faces that nothing but their own hair, or a hat, hides
TWO_OCCLUDERS = 0.15  # share of the others that get two


def sample_occluders(rng: np.random.Generator, scene: Scene) -> list[Patch]:
    """No, one or two things in front of the face, the farthest (as in OCCLUDERS) first.

    But strands of hair are beneath a balaclava, and not where OCCLUDERS has them: other faces' seeds draw by its order.
    """
    if rng.random() < FREE_FACES:
        return []
    odds = np.array([weight for _, _, weight in OCCLUDERS])
    count = 2 if rng.random() < TWO_OCCLUDERS else 1
    chosen = rng.choice(len(OCCLUDERS), count, replace=False, p=odds / odds.sum())
    patches = {OCCLUDERS[number][0]: OCCLUDERS[number][1](rng, scene) for number in sorted(chosen)}
    order = ("hair_strands", "balaclava") if {"hair_strands", "balaclava"} <= set(patches) else patches
    return [patches[name] for name in order]
