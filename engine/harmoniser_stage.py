"""Training of the harmoniser: the smooth colours of completed faces towards those of the true pictures."""
from __future__ import annotations

from typing import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from engine import report
from engine.augmentation import chances, normal
from engine.distributed import mean_over_processes
from engine.stage import Autocast, Stage

ABSOLUTE = 0.02  # weight of absolute beside squared differences
GAIN_ALL, GAIN_CHANNEL = 0.12, 0.05  # sigmas of the logarithms of a picture's and of its channels' gains
SHOWN = 8  # times as large as its cells is a picture shown
# Places of the maps of `models.harmoniser.Evidence.cells`.
COMPLETED, RAMP, RENDERED, COVERAGE = slice(0, 3), slice(3, 4), slice(5, 8), slice(8, 9)


class HarmoniserStage(Stage):
    """network: `models.harmoniser.Harmoniser`; items as of `engine.harmoniser_examples.Examples`."""

    name, metric, higher_is_better = "harmoniser", "gain_db", True
    validation_items = 1000
    gradient_clip = 1.0

    def __init__(self, network: nn.Module, weights: Mapping[str, float] | None = None):
        super().__init__({self.name: network}, {"colour": 1.0, **(weights or {})})

    def losses(self, batch, rngs, autocast: Autocast, step: int):
        cells, truth = _vary(batch["cells"], batch["truth"], rngs)
        with autocast():
            correction = self.networks[self.name](cells)
        ramp = cells[:, RAMP]
        error = cells[:, COMPLETED] + ramp * correction.float() - truth
        cost = (error.square() + ABSOLUTE * error.abs()) * (ramp > 0)
        return {"colour": cost.sum() / mean_over_processes(ramp.sum()).clamp(min=1)}, None

    def validate(self, networks, batch, rngs, autocast: Autocast) -> Tensor:
        """What the correction gains, in dB of the hole's squared error, summed over the items, and their count."""
        cells, truth = batch["cells"], batch["truth"]
        with autocast():
            correction = networks[self.name](cells)
        before, after = (_squared_error(cells, truth, change) for change in (0, correction.float()))
        gain = 10 * torch.log10(before / after)
        return torch.stack([gain.sum(), torch.full_like(gain[0], len(cells))])

    def score(self, statistics: Tensor) -> dict[str, float]:
        return {"gain_db": float(statistics[0] / statistics[1])}

    def pictures(self, networks, batch, rngs) -> Tensor:
        """Held-out faces in cells: completed, corrected, true."""
        cells, truth = batch["cells"][:4], batch["truth"][:4]
        corrected = cells[:, COMPLETED] + cells[:, RAMP] * networks[self.name](cells)
        large = [values.clamp(-1, 1).repeat_interleave(SHOWN, 2).repeat_interleave(SHOWN, 3)
                 for values in (cells[:, COMPLETED], corrected, truth)]
        return report.tile([list(row) for row in zip(*large)])


def _squared_error(cells: Tensor, truth: Tensor, correction: Tensor | int) -> Tensor:
    """Of each item's hole, (B,); never 0."""
    error = cells[:, COMPLETED] + cells[:, RAMP] * correction - truth
    return (error.square() * (cells[:, RAMP] > 0)).sum((1, 2, 3)).clamp(min=1e-6)


def _vary(cells: Tensor, truth: Tensor, rngs: Sequence[np.random.Generator]) -> tuple[Tensor, Tensor]:
    """The items with other colours, half of them mirrored."""
    device = cells.device
    gain = (normal(rngs, GAIN_ALL, device, 1, 1, 1) + normal(rngs, GAIN_CHANNEL, device, 3, 1, 1)).exp()

    def brighten(colours: Tensor) -> Tensor:
        return ((colours + 1) * gain - 1).clamp(-1, 1)

    rendered = torch.where(cells[:, COVERAGE] > 0, brighten(cells[:, RENDERED]), 0)
    cells = torch.cat([brighten(cells[:, COMPLETED]), cells[:, 3:5], rendered, cells[:, 8:]], dim=1)
    mirror = chances(rngs, 0.5, device)[:, None, None, None]
    return torch.where(mirror, cells.flip(3), cells), torch.where(mirror, brighten(truth).flip(3), brighten(truth))
