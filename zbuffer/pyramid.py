"""Pictures extended smoothly over a pyramid, compiled (``csrc/pyramid.h``).

Forward only, in float32, on the CPU: ask `zbuffer.backends.usable` first. `models.blending.pull_push` defines the result
in PyTorch, which serves everything else.
"""

from __future__ import annotations

import torch

from .backends import call

__all__ = ["fill"]


def fill(values: torch.Tensor, weight: torch.Tensor, box: tuple[int, int, int, int], relaxations: int) -> torch.Tensor:
    """Values (B, C, H, W), known to the degree weight (B, 1, H, W) in [0, 1], extended to the rows and columns of box
    (top, bottom, left, right); the rest of the result may be anything.

    relaxations: smoothing sweeps per level.
    """
    batch, channels, height, width = values.shape
    result = torch.zeros(values.shape)
    call("pyramid_fill", values.contiguous(), weight.contiguous(), batch, channels, height, width,
         torch.get_num_threads(), *box, relaxations, result)
    return result
