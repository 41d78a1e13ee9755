"""Pictures extended smoothly over a pyramid, compiled (``csrc/pyramid.h``).

Forward only, in float32, on the CPU: ask `zbuffer.backends.usable` first. `models.blending.pull_push` defines the
result in PyTorch, which serves everything else.
"""

from __future__ import annotations

import operator

import torch

from .backends import call, ready

__all__ = ["fill"]


def fill(values: torch.Tensor, weight: torch.Tensor, box: tuple[int, int, int, int], relaxations: int) -> torch.Tensor:
    """Values (B, C, H, W), known to the degree weight (B, 1, H, W) in [0, 1], extended to the rows and columns of box
    (top, bottom, left, right); the rest of the result may be anything.

    relaxations: smoothing sweeps per level. Raises ValueError if a tensor has another shape or type, or lies on a GPU,
    for an empty picture, a box beyond it, and fewer than 0 sweeps; TypeError for numbers that are not whole.
    """
    values = ready("values", values, (None, None, None, None))
    batch, channels, height, width = values.shape
    weight = ready("weight", weight, (batch, 1, height, width))
    top, bottom, left, right, relaxations = map(operator.index, (*box, relaxations))
    if not (0 <= top <= bottom <= height and 0 <= left <= right <= width and min(height, width) > 0):
        raise ValueError(f"the box {tuple(box)} does not lie in a picture of {height} x {width} pixels")
    if relaxations < 0:
        raise ValueError(f"relaxations must not be negative, but are {relaxations}")
    result = torch.zeros_like(values)
    call("pyramid_fill", values, weight, batch, channels, height, width, torch.get_num_threads(), top, bottom, left,
         right, relaxations, result)
    return result
