"""--resident: a training set kept in the memory of the device that trains.

A step on a GPU takes a tenth of the time that a processor core needs to read, turn and relight the faces of its batch.
Items are always the same ones, so they are read once, and batches are picked on the device from then on.
"""
from __future__ import annotations

from typing import Any, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from engine.loading import start_worker
from utils.device import send
from utils.errors import UserError
from utils.logging import progress

READ_AT_A_TIME = 64


class ResidentItems:
    """All items of a dataset by field: tensors on a device, others, such as names, in lists.

    A part that comes several times in a ConcatDataset, as portraits do to make up their share, is read and kept once.

    dataset: all of its items have the same fields, with tensors of one shape and type. workers: processes that read it.

    Raises:
        UserError: they do not fit into the device's memory.
        ValueError: items of different fields or types.
    """

    def __init__(self, dataset: Dataset, device: torch.device, workers: int = 0, log_type: str = "progressbar"):
        self.tensors: dict[str, Tensor] = {}
        self.others: dict[str, list] = {}
        self.places, distinct = _without_repeats(dataset)
        # A generator of its own, or the loader would take a number from the one that a resumed run continues.
        loader = DataLoader(distinct, batch_size=READ_AT_A_TIME, num_workers=workers, worker_init_fn=start_worker,
                            generator=torch.Generator())
        place = 0
        for batch in progress(loader, "reading the training set", len(loader), log_type):
            if not place:
                self._take_room(batch, len(distinct), device)
            place += self._keep(batch, place)

    def _take_room(self, batch: dict[str, Any], count: int, device: torch.device) -> None:
        for name, values in batch.items():
            if not isinstance(values, Tensor):
                self.others[name] = []
                continue
            try:
                self.tensors[name] = torch.empty((count, *values.shape[1:]), dtype=values.dtype, device=device)
            except RuntimeError:  # of a GPU OutOfMemoryError, of a CPU the plain one
                size = count * values[0].numel() * values.element_size() / 2 ** 30
                raise UserError(f"--resident: the memory of {device} has no room for {name!r} of {count} items "
                                f"({size:.1f} GiB): train on fewer, or leave --resident out") from None

    def _keep(self, batch: dict[str, Any], place: int) -> int:
        """Stores a batch from item `place` on; returns its size."""
        if batch.keys() != self.tensors.keys() | self.others.keys():
            raise ValueError(f"items have different fields: {sorted(batch)} from item {place} on")
        for name, values in batch.items():
            if name in self.others:
                self.others[name].extend(values)
                continue
            store = self.tensors[name]
            if values.dtype != store.dtype:
                raise ValueError(f"items have {name!r} of different types: {values.dtype} from item {place} on")
            store[place:place + len(values)].copy_(values)
        return len(next(iter(batch.values())))

    def batches(self, order: Iterable[int], size: int) -> Iterator[dict[str, Any]]:
        """Batches of `size` items in the given order; what is left at the end is dropped, as DataLoader's drop_last."""
        chosen: list[int] = []
        for index in order:
            chosen.append(index)
            if len(chosen) == size:
                yield self._pick(chosen)
                chosen = []

    def _pick(self, chosen: list[int]) -> dict[str, Any]:
        chosen = [self.places[index] for index in chosen]
        index = send(torch.tensor(chosen), next(iter(self.tensors.values())).device)
        return {**{name: values[index] for name, values in self.tensors.items()},
                **{name: [values[place] for place in chosen] for name, values in self.others.items()}}


def _without_repeats(dataset: Dataset) -> tuple[Sequence[int], Dataset]:
    """(place of each item among the distinct ones, these): parts of a ConcatDataset that are one object count once."""
    if not isinstance(dataset, ConcatDataset):
        return range(len(dataset)), dataset
    places: list[int] = []
    distinct: list[int] = []
    begins: dict[int, int] = {}  # of each part among the distinct items
    for part in dataset.datasets:
        if id(part) not in begins:
            begins[id(part)] = len(distinct)
            distinct.extend(range(len(places), len(places) + len(part)))
        places.extend(range(begins[id(part)], begins[id(part)] + len(part)))
    return places, Subset(dataset, distinct)
