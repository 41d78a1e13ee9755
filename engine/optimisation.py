"""What surrounds a training step: optimiser, learning rate, moving average of the weights, reproducible randomness."""
from __future__ import annotations

import copy
import math
import random
from typing import Any, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from utils.errors import UserError

# Published recipe (spec of 3DFaceFill's training): Adam with these betas and this weight decay.
PUBLISHED_OPTIMISER = {"betas": (0.5, 0.999), "weight_decay": 4e-5}
LOWEST_RATE = 1e-7  # the published exponential decay stops here

# Schedules and their options' defaults. An option of another schedule is left unused, so that a file that sets gamma
# need not be edited for a run with another schedule.
SCHEDULES = {"exponentiallr": {"gamma": 0.98}, "cosineannealinglr": {"warmup": 100, "floor": 0.01}, "constant": {}}


def build_optimiser(method: str, options: Mapping[str, Any], parameters: Iterable[nn.Parameter],
                    rate: float) -> torch.optim.Optimizer:
    """An optimiser of torch.optim by its name; Adam is fused, with the published betas and weight decay, unless
    `options` differ.

    Raises:
        UserError: torch has no such optimiser, or it does not take these options.
    """
    base = torch.optim.Optimizer
    kinds = {name.lower(): kind for name, kind in vars(torch.optim).items()
             if isinstance(kind, type) and issubclass(kind, base) and kind is not base}
    if method.lower() not in kinds:
        raise UserError(f"--optim-method {method}: torch.optim has no such optimiser; use Adam or AdamW, for example")
    chosen = dict(PUBLISHED_OPTIMISER) if method.lower() in ("adam", "adamw") else {}
    if chosen and not {"foreach", "differentiable"} & set(options):
        chosen["fused"] = True  # one pass over the memory, four times as fast, also on a CPU
    if "lr" in options:
        raise UserError("--optim-options lr: the learning rate is what --learning-rate says; leave lr out")
    chosen.update(options)
    try:
        if "betas" in chosen:
            chosen["betas"] = tuple(chosen["betas"])
        return kinds[method.lower()](list(parameters), lr=rate, **chosen)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"--optim-options {dict(options)}: {error}") from None


def restore_optimiser(optimiser: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads an optimiser's state, which may be of a time when it was not fused; it stays as fused as it is.

    Raises ValueError for a state of other parameters.
    """
    fused = [{"fused": group["fused"]} if "fused" in group else {} for group in optimiser.param_groups]
    groups = [{**group, **kept} for group, kept in zip(state["param_groups"], fused, strict=True)]
    optimiser.load_state_dict({**state, "param_groups": groups})


class LearningRate:
    """The factor on the base learning rate at any moment of training, as a pure function of where training stands.

    * ``ExponentialLR``: gamma ** epoch (published: 0.98), not below 1e-7 / base.
    * ``CosineAnnealingLR``: linear warm-up over `warmup` steps; half a cosine from 1 to `floor` over the run.
    * ``Constant``: 1.
    """

    def __init__(self, method: str, options: Mapping[str, Any]):
        self.method = method.lower()
        if self.method not in SCHEDULES:
            raise UserError(f"--scheduler-method {method}: use ExponentialLR, CosineAnnealingLR or Constant")
        known = {name: value for defaults in SCHEDULES.values() for name, value in defaults.items()}
        unknown = set(options) - set(known)
        if unknown:
            raise UserError(f"--scheduler-options: {', '.join(sorted(unknown))} is unknown; use {', '.join(known)}")
        for name, value in options.items():
            if not isinstance(value, (int, float)):
                raise UserError(f"--scheduler-options: {name} is a number, not {value!r}")
        self.options = {**known, **options}

    def factor(self, base: float, step: int, epoch: int, progress: float) -> float:
        """The factor for step `step` (from 0) of `epoch` (from 0); progress in [0, 1] is the share of the run done."""
        if self.method == "exponentiallr":
            return max(self.options["gamma"] ** epoch, min(1.0, LOWEST_RATE / base))
        if self.method == "cosineannealinglr":
            floor = self.options["floor"]
            cosine = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
            return min(1.0, (step + 1) / max(self.options["warmup"], 1)) * (floor + (1 - floor) * cosine)
        return 1.0


class MovingAverage:
    """Exponential moving average of networks' parameters; buffers are copied.

    The decay grows from 0.1 as (1 + n) / (10 + n) up to `decay`, so that a short run's average is not its start.
    """

    def __init__(self, networks: Mapping[str, nn.Module], decay: float):
        self.networks = {name: copy.deepcopy(network).eval().requires_grad_(False)
                         for name, network in networks.items()}
        self.decay = decay

    @torch.no_grad()
    def update(self, networks: Mapping[str, nn.Module], step: int) -> None:
        """Moves the average towards `networks` after optimiser step `step` (from 0)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, network in networks.items():
            averaged, current = list(self.networks[name].parameters()), list(network.parameters())
            torch._foreach_lerp_(averaged, [p.detach() for p in current], weight)
        self.copy_buffers(networks)

    @torch.no_grad()
    def copy_buffers(self, networks: Mapping[str, nn.Module]) -> None:
        """Takes over the buffers of `networks`."""
        for name, network in networks.items():
            for mine, theirs in zip(self.networks[name].buffers(), network.buffers()):
                mine.copy_(theirs)


def face_generators(key: Sequence[int], places: Iterable[int]) -> list[np.random.Generator]:
    """One source of randomness for each face of a batch, keyed by (*key, place): a step's by (seed, step, ...).

    places: of the faces among those of all processes. So a face is changed alike after a resume as without one, and in
    one process as in any division among several.
    """
    return [np.random.default_rng([*map(int, key), int(place)]) for place in places]


def seed_everything(seed: int) -> None:
    """Seeds Python's, numpy's and torch's global generators (network initialisation draws from them)."""
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """The global generators' states in types that a weights-only checkpoint can hold."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {"python": [version, list(internal), gauss_next],
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Puts back what `random_states` took. GPU states are left alone when the number of GPUs differs."""
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
