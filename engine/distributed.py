"""Training and evaluation over processes started by ``torchrun``, each with its share of the faces.

Gradients are averaged by one explicit all-reduce per optimiser step instead of by wrapping the networks. That keeps
the gradient penalty (a second derivative through the discriminator), gradient accumulation and several networks per
stage free of a wrapper's rules, and a run without ``torchrun`` goes through exactly the same code.
"""
from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Callable, Iterable, Iterator, Mapping, Sequence, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from utils.errors import UserError


Finding = TypeVar("Finding")


@dataclass(frozen=True)
class World:
    """This process' place among the processes that work together, and the device that it uses."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    def places(self, first: int, count: int) -> range:
        """Where `count` items of this process, from its own `first` on, lie among all: processes take turns."""
        return range(self.rank + self.size * first, self.rank + self.size * (first + count), self.size)

    def share(self, items: Dataset) -> Dataset:
        """This process' part of a dataset: every size-th item."""
        return items if self.size == 1 else Subset(items, range(self.rank, len(items), self.size))


ALONE = World(0, 1, torch.device("cpu"))


def join(device: torch.device) -> World:
    """Joins the process group that ``torchrun`` describes in the environment (nccl on GPUs, gloo on the CPU).

    Without those variables the world is this process alone. Each process of a GPU run takes the GPU of its local rank.

    Raises:
        UserError: there are more processes on this machine than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(0, 1, device)
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(f"torchrun started process {local + 1} on a machine with {torch.cuda.device_count()} GPUs: "
                            "lower --nproc-per-node, or train on the CPU with --ngpu 0")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=size)
    return World(rank, size, device)


def is_main() -> bool:
    """Whether this process is alone, or the main one of those that have joined."""
    return not dist.is_initialized() or dist.get_rank() == 0


def leave(world: World) -> None:
    """Leaves the process group; does nothing in a world of one."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world of :func:`join`, left at the end."""
    world = join(device)
    try:
        yield world
    finally:
        leave(world)


def in_main(action: Callable[[], None], world: World) -> None:
    """Does something in the main process, while the others wait.

    Raises:
        UserError: it did so in the main process; in the others then too.
    """
    if world.is_main:
        try:
            action()
        except BaseException:
            largest([1.0], world)
            raise
    if largest([0.0], world)[0]:
        raise UserError(f"process {world.rank} of {world.size} stops with process 0, whose message says why")


def gather(findings: Mapping[int, Finding], world: World) -> dict[int, Finding]:
    """What all processes found, by place, in the order of the places; in others than the main process nothing."""
    if world.size == 1:
        return dict(sorted(findings.items()))
    shares = [None] * world.size if world.is_main else None
    dist.gather_object(dict(findings), shares)
    return dict(sorted(item for share in shares or [] for item in share.items()))


def average_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Replaces every gradient by its mean over all processes (a missing gradient counts as zero)."""
    if world.size == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
    dist.all_reduce(flat)
    flat /= world.size
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters])):
        parameter.grad = gradient.view_as(parameter).clone()


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes that train together, of any shape; alone the tensor itself.

    Its gradient is that of this process' share, so that after `average_gradients` a function of the mean has the
    gradient that one process with the whole batch would have. All processes have to call it in the same order.
    """
    if not dist.is_initialized():
        return value
    mean = value.detach().clone()
    dist.all_reduce(mean)
    return value + (mean / dist.get_world_size() - value).detach()


def largest(values: Sequence[float], world: World) -> list[float]:
    """The element-wise maximum over all processes: how they agree on the clock and on stopping."""
    if world.size == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=world.device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()


def total(values: Sequence[float], world: World) -> list[float]:
    """The element-wise sum over all processes."""
    if world.size == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=world.device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def same_start(modules: Iterable[nn.Module], world: World) -> None:
    """Gives every process the first one's parameters and buffers."""
    if world.size == 1:
        return
    for module in modules:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


class EpochSampler:
    """Indices of one epoch for this process: a permutation keyed by (seed, epoch), padded, every size-th from rank.

    A set order makes resuming exact: ``begin(epoch, skip)`` leaves out the first `skip` items, already trained on.
    As torch's DistributedSampler, the permutation is padded from its start so that all processes see equally many.
    """

    def __init__(self, length: int, world: World, seed: int):
        self.length, self.world, self.seed = length, world, seed
        self.epoch, self.skip = 0, 0

    def begin(self, epoch: int, skip: int = 0) -> None:
        """Chooses the epoch (from 0) and how many of this process' items to leave out."""
        self.epoch, self.skip = epoch, skip

    def __len__(self) -> int:
        return -(-self.length // self.world.size) - self.skip

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(hash_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        padding = -self.length % self.world.size
        order += (order * (padding // max(self.length, 1) + 1))[:padding]
        return iter(order[self.world.rank::self.world.size][self.skip:])


def hash_seed(*numbers: int) -> int:
    """Mixes whole numbers into one 63-bit seed, the same on every machine (splitmix64 steps)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ (number & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def synchronise_buffers(modules: Iterable[nn.Module], world: World) -> None:
    """Averages floating-point buffers over all processes (batch-norm statistics differ from process to process)."""
    if world.size == 1:
        return
    for module in modules:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                averaged: Tensor = buffer.detach().clone()
                dist.all_reduce(averaged)
                buffer.copy_(averaged / world.size)
