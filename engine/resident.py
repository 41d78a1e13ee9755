"""--resident: a training set kept in the memory of the device that trains.

A step on a GPU takes a tenth of the time that a processor core needs to read, turn and relight the faces of its batch.
Items are always the same ones, so they are read once, and batches are picked on the device from then on.
"""
from __future__ import annotations

from typing import Any, Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.errors import UserError
from utils.logging import progress

READ_AT_A_TIME = 64


class ResidentItems:
    """All items of a dataset on a device, by field; fields that are no tensors are left out.

    dataset: its items' tensors are of one shape and type by field. workers: processes that read it, each prepared by
    `prepare_worker`.

    Raises:
        UserError: they do not fit into the device's memory.
    """

    def __init__(self, dataset: Dataset, device: torch.device, workers: int = 0, log_type: str = "progressbar",
                 prepare_worker: Callable[[int], None] | None = None):
        self.fields: dict[str, Tensor] = {}
        loader = DataLoader(dataset, batch_size=READ_AT_A_TIME, num_workers=workers, worker_init_fn=prepare_worker)
        place = 0
        for batch in progress(loader, "reading the training set", len(loader), log_type):
            tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
            if not self.fields:
                self.fields = {name: self._room(name, value, len(dataset), device) for name, value in tensors.items()}
            size = len(next(iter(tensors.values())))
            for name, value in tensors.items():
                self.fields[name][place:place + size].copy_(value)
            place += size

    @staticmethod
    def _room(name: str, values: Tensor, count: int, device: torch.device) -> Tensor:
        try:
            return torch.empty((count, *values.shape[1:]), dtype=values.dtype, device=device)
        except RuntimeError:  # of a GPU OutOfMemoryError, of a CPU the plain one
            size = count * values[0].numel() * values.element_size() / 2 ** 30
            raise UserError(f"--resident: the memory of {device} has no room for {name!r} of {count} items "
                            f"({size:.1f} GiB): train on fewer, or leave --resident out") from None

    def batches(self, order: Iterable[int], size: int) -> Iterator[dict[str, Any]]:
        """Batches of `size` items in the given order; what is left at the end is dropped, as DataLoader's drop_last."""
        chosen: list[int] = []
        for index in order:
            chosen.append(index)
            if len(chosen) == size:
                yield self._pick(torch.tensor(chosen))
                chosen = []

    def _pick(self, index: Tensor) -> dict[str, Tensor]:
        return {name: values[index.to(values.device)] for name, values in self.fields.items()}
