"""Random holes of training images, drawn on the device that trains on them.

The numbers that describe a hole come from its face's own source of randomness on the host; the pixels are filled on the
device, so that a GPU neither waits for the regions of a batch to come to the host nor for its holes to come back.
"""
from __future__ import annotations

import math
from typing import Sequence

import numpy as np
import torch
from torch import Tensor

from datasets.masks import rectangle_bounds
from utils.device import send

MOST_ELLIPSES = 3
_NO_RECTANGLE = (0, 0, 0, 0)
_NO_ELLIPSE = (-1e6, -1e6, 1.0, 1.0, 0.0)  # far outside


class Shapes:
    """The shapes of B holes: at most a rectangle and MOST_ELLIPSES ellipses each, of pictures (height, width)."""

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width
        self._rectangles: list[tuple[int, int, int, int]] = []
        self._ellipses: list[list[tuple[float, ...]]] = []

    def add_nothing(self) -> None:
        """A hole of no shape."""
        self._add(_NO_RECTANGLE, [])

    def add_rectangle(self, rng: np.random.Generator, evaluation: bool = False) -> None:
        """A hole of the paper's kind, `datasets.masks.random_rectangle`."""
        self._add(rectangle_bounds(rng, self.height, self.width, evaluation), [])

    def add_ellipses(self, rng: np.random.Generator) -> None:
        """One to three random slanted ellipses: the holes of hands, glasses and masks are no rectangles."""
        self._add(_NO_RECTANGLE, [self._ellipse(rng) for _ in range(int(rng.integers(1, MOST_ELLIPSES + 1)))])

    def draw(self, device: torch.device) -> Tensor:
        """The holes, bool (B, 1, height, width)."""
        rows = torch.arange(self.height, device=device, dtype=torch.float32)[:, None]
        columns = torch.arange(self.width, device=device, dtype=torch.float32)
        numbers = torch.tensor([[*rectangle, *(value for ellipse in ellipses for value in ellipse)]
                                for rectangle, ellipses in zip(self._rectangles, self._ellipses)])
        numbers = send(numbers, device)[..., None, None]
        top, left, bottom, right = numbers[:, :4].unbind(1)
        hole = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        for ellipse in numbers[:, 4:].split(len(_NO_ELLIPSE), 1):
            y, x, first, second, angle = ellipse.unbind(1)
            along = (columns - x) * angle.cos() + (rows - y) * angle.sin()
            across = (rows - y) * angle.cos() - (columns - x) * angle.sin()
            hole |= (along / first) ** 2 + (across / second) ** 2 < 1
        return hole[:, None]

    def _add(self, rectangle: tuple[int, int, int, int], ellipses: list[tuple[float, ...]]) -> None:
        self._rectangles.append(rectangle)
        self._ellipses.append([*ellipses, *[_NO_ELLIPSE] * (MOST_ELLIPSES - len(ellipses))])

    def _ellipse(self, rng: np.random.Generator) -> tuple[float, ...]:
        """Centre (row, column), half axes and angle."""
        y, x = rng.uniform(0.15, 0.9, 2) * (self.height, self.width)
        first, second = rng.uniform(0.06, 0.28, 2) * self.height
        return y, x, first, second, rng.uniform(0, math.pi)


def rectangles_on(regions: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
    """The paper's holes of evaluation inside regions: both bool (B, 1, H, W); rngs: a source for each, or more."""
    shapes = Shapes(*regions.shape[2:])
    for rng in rngs[:len(regions)]:
        shapes.add_rectangle(rng, evaluation=True)
    return shapes.draw(regions.device) & regions
