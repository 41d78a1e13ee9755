"""A training run's validation: the stage's own measures of networks on held-out faces."""
from __future__ import annotations

from typing import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from engine import distributed
from engine.distributed import World
from engine.loading import start_worker, to_device
from engine.optimisation import face_generators
from engine.stage import Autocast, Stage
from engine.training_options import TrainingOptions
from utils.errors import UserError
from utils.logging import progress

VALIDATION_KEY = 0x76616C  # randomness of validation is keyed by this alone, so that scores of all runs compare
LARGEST_BATCH = 16  # faces


class HeldOutFaces:
    """This process' share of the held-out items, with each face's randomness.

    It is the same whenever and by however many processes networks are validated. The networks that are given are in
    evaluation mode, and gradients off.
    """

    def __init__(self, dataset: Dataset, stage: Stage, options: TrainingOptions, world: World):
        self.dataset, self.stage, self.options, self.world = dataset, stage, options, world
        self._kept: list[dict] = []

    def scores(self, networks: Mapping[str, nn.Module], autocast: Autocast) -> dict[str, float]:
        """The stage's measures by name, of the faces of all processes.

        Raises:
            UserError: there are fewer held-out items than processes.
        """
        statistics = None
        for batch, rngs in self._faces():
            part = self.stage.validate(networks, batch, rngs, autocast).double().cpu()
            statistics = part if statistics is None else statistics + part
        return self.stage.score(torch.tensor(distributed.total(statistics.tolist(), self.world), dtype=torch.float64))

    def pictures(self, networks: Mapping[str, nn.Module]) -> Tensor:
        """The stage's grid of what the networks do with the first batch: uint8 (3, H, W)."""
        return self.stage.pictures(networks, *next(self._faces()))

    def _faces(self) -> Iterator[tuple[dict, list[np.random.Generator]]]:
        """Batches, and a source of randomness for each of their faces."""
        seen = 0
        for batch in self._batches():
            count = len(next(iter(batch.values())))
            yield batch, face_generators((VALIDATION_KEY,), self.world.places(seen, count))
            seen += count

    def _batches(self) -> list[dict]:
        """The batches on the device, made once and kept: generating them again would cost minutes."""
        if not self._kept:
            count = min(len(self.dataset), self.stage.validation_items)
            if count < self.world.size:
                raise UserError(f"{count} held-out items are too few for {self.world.size} processes")
            items = Subset(self.dataset, range(self.world.rank, count, self.world.size))
            loader = DataLoader(items, batch_size=min(self.options.batch_size, LARGEST_BATCH),
                                num_workers=self.options.workers, worker_init_fn=start_worker,
                                generator=torch.Generator().manual_seed(self.options.seed))
            log_type = "progressbar" if self.options.bar and self.world.is_main else "none"
            self._kept = [to_device(batch, self.world.device)
                          for batch in progress(loader, "held-out faces", len(loader), log_type)]
        return self._kept
