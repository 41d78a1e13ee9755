"""What a training run has learnt and where it stands: what its checkpoints hold, and how a run is resumed from one."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping

import torch
from torch import nn

from engine.distributed import World
from engine.optimisation import (LearningRate, MovingAverage, build_optimiser, random_states, restore_optimiser,
                                 restore_random_states)
from engine.stage import Stage
from engine.training_options import TrainingOptions
from utils import checkpoints, config
from utils.errors import UserError
from utils.logging import warning


class RunState:
    """The networks with all that surrounds them in a step, and how far the run is: whatever resuming needs.

    items: how many the training set has.

    Attributes:
        average: the moving average of the stage's networks, None without --ema.
        optimisers: "main", and where the stage has critics "critic".
        rates: each optimiser's learning rate before the schedule.
        scaler: of the gradients; at work in fp16 alone.
        step, epoch: the next ones, from 0.
        seen: faces of this epoch that steps have taken, by all processes together.
        elapsed: seconds trained.
        best: the best held-out measure so far, None before the first.
        scores: the latest held-out measures by name.
        skipped: steps left out because a loss or gradient was not finite.

    Raises:
        UserError: there is no such optimiser or schedule, or it does not take its options.
    """

    def __init__(self, stage: Stage, options: TrainingOptions, world: World, items: int):
        self.stage, self.options, self.world, self.items = stage, options, world, items
        self.average = MovingAverage(stage.networks, options.ema) if options.ema > 0 else None
        self.optimisers = {"main": self._optimiser(stage.networks, options.learning_rate)}
        if stage.critics:
            self.optimisers["critic"] = self._optimiser(stage.critics, options.learning_rate * stage.critic_rate)
        self.rates = {name: optimiser.param_groups[0]["lr"] for name, optimiser in self.optimisers.items()}
        self.schedule = LearningRate(options.scheduler_method, options.scheduler_options)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=options.precision == "fp16")
        self.step = self.epoch = self.seen = 0
        self.elapsed = 0.0
        self.best: float | None = None
        self.scores: dict[str, float] = {}
        self.skipped = 0

    def _optimiser(self, modules: Mapping[str, nn.Module], rate: float) -> torch.optim.Optimizer:
        parameters = [parameter for module in modules.values() for parameter in module.parameters()]
        return build_optimiser(self.options.optim_method, self.options.optim_options, parameters, rate)

    # ---- how far it is -----------------------------------------------------------------------------------------

    @property
    def step_faces(self) -> int:
        """Faces of one step of all processes; the training set has as many at least."""
        return self.world.size * self.options.batch_size * self.options.accumulate

    def at_limit(self) -> bool:
        """Is the run as long as it was to be, in epochs, steps or minutes?"""
        o = self.options
        return (self.epoch >= o.epochs or (o.max_steps is not None and self.step >= o.max_steps)
                or (o.max_minutes is not None and self.elapsed >= 60 * o.max_minutes))

    def progress(self) -> float:
        """The share of the run that is done, by whichever limit is closest."""
        o = self.options
        faces = self.items // self.step_faces * self.step_faces  # what is left over counts as no step
        shares = [(self.epoch + self.seen / faces) / o.epochs]
        if o.max_steps:
            shares.append(self.step / o.max_steps)
        if o.max_minutes:
            shares.append(self.elapsed / (60 * o.max_minutes))
        return min(1.0, max(shares))

    def set_rates(self) -> None:
        """Gives the optimisers the learning rates of the next step."""
        for name, optimiser in self.optimisers.items():
            factor = self.schedule.factor(self.rates[name], self.step, self.epoch, self.progress())
            for group in optimiser.param_groups:
                group["lr"] = self.rates[name] * factor

    def count_step(self) -> None:
        """Counts a step that was taken or skipped."""
        self.step += 1
        self._count_seen(self.step_faces)

    def _count_seen(self, faces: int) -> None:
        """Adds to the faces seen; if too few are left for a step in which none comes twice, the next epoch begins."""
        self.seen += faces
        if self.seen + self.step_faces > self.items:
            self.epoch, self.seen = self.epoch + 1, 0

    def take_scores(self, scores: Mapping[str, float]) -> bool:
        """Keeps held-out measures; is the one that counts better than all before?"""
        self.scores = dict(scores)
        measure = self.scores[self.stage.metric]
        better = self.best is None or (measure > self.best if self.stage.higher_is_better else measure < self.best)
        self.best = measure if better else self.best
        return better

    # ---- writing -----------------------------------------------------------------------------------------------

    def content(self) -> dict[str, Any]:
        """A checkpoint of the present moment, in types that a weights-only load admits."""
        states = lambda modules: {name: module.state_dict() for name, module in modules.items()}
        return {"format": checkpoints.TRAINING_FORMAT, "version": checkpoints.VERSION, "stage": self.stage.name,
                "networks": states(self.stage.networks), "critics": states(self.stage.critics),
                "averages": states(self.average.networks) if self.average else {},
                "optimisers": states(self.optimisers), "rates": dict(self.rates), "scaler": self.scaler.state_dict(),
                "random": random_states(), "step": self.step, "epoch": self.epoch,
                "position": self.seen // (self.world.size * self.options.batch_size),  # for programs without "seen"
                "seen": self.seen, "processes": self.world.size,
                "elapsed": self.elapsed, "best": self.best, "scores": dict(self.scores),
                "skipped": self.skipped,
                "settings": self.options.settings, "metadata": self.stage.metadata()}

    def save(self, name: str) -> None:
        """Writes a checkpoint into the run's folder, in the main process.

        Raises:
            UserError: it cannot be written; the file that was there stays.
        """
        if not self.world.is_main:
            return
        try:
            checkpoints.save(self.options.folder / name, self.content())
        except UserError as error:
            raise UserError(f"training stopped at step {self.step}: {error}{self.last_good()}") from None

    def require_finite(self) -> None:
        """UserError if weights, averages or optimisers are not finite: a step since the last look may have been bad."""
        bad = checkpoints.not_finite(self.options.folder, self.content())
        if bad:
            raise UserError(f"training stopped at step {self.step}: {bad} is not finite; lower --learning-rate, use "
                            f"--precision fp32 or --skip-bad-steps{self.last_good()}")

    def last_good(self) -> str:
        """Where to go on from, as the end of a message about what stopped the run; empty without a checkpoint."""
        last = self.options.folder / "last.pth"
        return f"; the last good state is {last}" if last.exists() else ""

    # ---- resuming ----------------------------------------------------------------------------------------------

    def restore(self, path: str | Path, update_rate: bool = False) -> None:
        """Continues from a checkpoint of the same stage; `update_rate` keeps this run's learning rate, not the old one.

        Raises:
            UserError: no training checkpoint, one of another stage, or one that does not fit these networks.
        """
        state = checkpoints.load(path)
        checkpoints.check_training(path, state)
        if state["stage"] != self.stage.name:
            raise UserError(f"{path}: a checkpoint of --stage {state['stage']}, not of --stage {self.stage.name}")
        try:
            self._load_modules(state)
            for name, optimiser in self.optimisers.items():
                restore_optimiser(optimiser, state["optimisers"][name])
            if state["scaler"]:  # empty where the run did not compute in fp16 before
                self.scaler.load_state_dict(state["scaler"])
        except (KeyError, RuntimeError, ValueError) as error:
            first_lines = " ".join(str(error).split())[:300]
            raise UserError(f"{path}: does not fit this run's networks: {first_lines}") from None
        if not update_rate:
            self.rates = dict(state["rates"])
        self.step, self.epoch, self.seen = state["step"], state["epoch"], 0
        self._count_seen(self._seen_before(state))
        self.elapsed, self.scores, self.skipped = state["elapsed"], dict(state["scores"]), state.get("skipped", 0)
        self.best = self._find_best(Path(path), state.get("best"))
        self.stage.restore(state.get("metadata") or {})
        restore_random_states(state["random"])
        self._tell_changes(dict(state.get("settings") or {}), state.get("processes", self.world.size))

    def _load_modules(self, state: Mapping[str, Any]) -> None:
        for group, modules in (("networks", self.stage.networks), ("critics", self.stage.critics)):
            for name, module in modules.items():
                module.load_state_dict(state[group][name])
        if self.average:
            for name, module in self.average.networks.items():
                module.load_state_dict(state["averages"].get(name, state["networks"][name]))

    def _seen_before(self, state: Mapping[str, Any]) -> int:
        """The faces of its epoch that a checkpoint's run has taken, rounded up so that all processes go on at a place.

        Older checkpoints tell the batches of each process alone; they count as of as many processes as this run has.
        """
        if "seen" not in state:
            batch_size = dict(state["settings"]).get("batch_size", self.options.batch_size)
            return state["position"] * batch_size * self.world.size
        return -(-state["seen"] // self.world.size) * self.world.size

    def _find_best(self, path: Path, best: float | None) -> float | None:
        """The best score so far: the checkpoint's, or that of a best.pth beside it, written just before a kill."""
        beside = path.parent / "best.pth"
        if path.parent.resolve() != self.options.folder.resolve() or not beside.exists():
            return best
        try:
            found = checkpoints.load(beside).get("best")
        except UserError as error:
            warning(f"{error}; the next checkpoint replaces it")
            return None
        known = [value for value in (best, found) if isinstance(value, float)]
        return (max if self.stage.higher_is_better else min)(known, default=None)

    def _tell_changes(self, before: Mapping[str, Any], processes: int) -> None:
        """Warns of settings that decide what is learnt and are not those of the run that is continued.

        But for what only its start needed, and what the checkpoint's optimisers bring along. processes: that it had.
        """
        now = self.options.settings
        names = set(config.LEARNING + config.LEARNT_FROM) - {"finetune", "learning_rate", "optim_options"}
        changes = [f"{config.flag_of(name)} {now[name]} (was {before[name]})" for name in sorted(names)
                   if name in before and name in now and before[name] != now[name]]
        if processes != self.world.size:
            changes.append(f"{self.world.size} processes (was {processes})")
        if changes and self.world.is_main:
            warning(f"the run goes on with other settings than before: {', '.join(changes)}")
