"""The training loop of all stages; `train(settings)` is what ``main.py`` calls.

A run's folder holds ``last.pth`` and ``best.pth`` (complete: networks, moving averages, optimisers, gradient scaler,
random states, step, epoch, place within the epoch, clock, settings), the settings in a form that ``--config`` reads
back, and TensorBoard's files. "Best" is by the stage's own measure on held-out data. Stopping (end of run, Ctrl-C, a
killed machine) and resuming continues as if there had been no stop: the data order is keyed by (seed, epoch), each
face's randomness by (seed, step, place in the step), and learning rates are pure functions of where training stands. A
schedule or a limit in minutes follows the clock and so cannot repeat bit for bit; one in steps or epochs does, on the
CPU. N processes with batches of B faces train as one with batches of N B would, up to rounding, except for batch
normalisation, whose statistics are each process' own.

A step whose loss or gradient is not finite ends the run, or with `skip_bad_steps` is left out. On the CPU, and with
`skip_bad_steps` anywhere, it changes nothing, and ``bad_batches/`` in the run's folder gets the batch that caused it.
On a GPU the losses are looked at every 20 steps only, so the run ends up to 19 steps later, mostly without the batch.
Wherever it is, no checkpoint is written of networks that are not finite.
"""
from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path
from typing import Any, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from engine import distributed, report
from engine.distributed import World
from engine.loading import start_worker, to_device
from engine.optimisation import (LearningRate, MovingAverage, build_optimiser, face_generators, random_states,
                                 restore_optimiser, restore_random_states, seed_everything)
from engine.resident import ResidentItems
from engine.stage import Stage
from engine.training_options import TrainingOptions, options_from
from models.layers import compute_in
from utils import checkpoints, config, files
from utils.device import choose_dtype
from utils.errors import UserError
from utils.logging import note, progress, warning

VALIDATION_KEY = 0x76616C  # randomness of validation is keyed by this alone, so that scores of all runs compare
SCALAR_EVERY = 20  # steps between TensorBoard scalars
MOST_SKIPPED = 100  # bad steps in a row after which the networks, not the data, must be what is broken
MOST_BAD_BATCHES = 20  # files; a run that skips for weeks must not fill the disk
BATCH_FORMAT = "3dfacefill-batch"
LOOK_EVERY = {"cuda": 20}  # steps between the host's looks at the losses, which make it wait for the device; else 1


class _BadStep(Exception):
    """A loss or gradient of one step is not finite. mine: did this process' present batch cause it, so far as known?"""

    def __init__(self, what: str, value: float, step: int, mine: bool = True):
        super().__init__(f"{what} is {value}")
        self.step, self.mine = step, mine


class Trainer:
    """Trains one stage. `run` returns the last held-out score."""

    def __init__(self, stage: Stage, train_set: Dataset, validation_set: Dataset, options: TrainingOptions,
                 world: World):
        if len(train_set) < options.batch_size * options.accumulate * world.size:
            raise UserError(f"the training set has {len(train_set)} items, fewer than one step needs "
                            f"({options.batch_size} x {options.accumulate} x {world.size}): lower --batch-size")
        self.stage, self.options, self.world = stage.to(world.device), options, world
        self.train_set, self.validation_set = train_set, validation_set
        torch.backends.cudnn.benchmark = True  # all batches have one size, so that the search for kernels pays
        distributed.same_start([*stage.networks.values(), *stage.critics.values()], world)
        self.average = MovingAverage(stage.networks, options.ema) if options.ema > 0 else None
        self.optimisers = {"main": self._optimiser(stage.networks, options.learning_rate)}
        if stage.critics:
            self.optimisers["critic"] = self._optimiser(stage.critics, options.learning_rate * stage.critic_rate)
        self.rates = {name: optimiser.param_groups[0]["lr"] for name, optimiser in self.optimisers.items()}
        self.schedule = LearningRate(options.scheduler_method, options.scheduler_options)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=options.precision == "fp16")
        self.sampler = distributed.EpochSampler(len(train_set), world, options.seed)
        self.step = self.epoch = 0
        self.seen = 0  # faces of this epoch that steps have taken, by all processes together
        self.saved_step = -1  # the step that last.pth holds
        self.elapsed = 0.0
        self.skipped = self.skipped_in_row = 0  # steps with a loss or gradient that was not finite
        self.best: float | None = None
        self.scores: dict[str, float] = {}
        self.interrupted = False
        self._asked_to_stop = False  # this process alone; `interrupted` is what all processes have agreed on
        # A bad step can be skipped only before the next one is taken.
        self.look_every = 1 if options.skip_bad_steps else LOOK_EVERY.get(world.device.type, 1)
        self._pending: list[tuple[int, dict[str, Tensor]]] = []  # step and values that the host has not looked at
        self._held_out: list[dict] = []
        self._running: dict[str, float] = {}
        self.resident: ResidentItems | None = None
        if options.compile:
            stage.compile()

    # ---- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, float]:
        """Trains until a limit or an interrupt, validating and saving on the way and at the end."""
        self._set_modes()
        self.clock_start = time.monotonic() - self.elapsed
        if self.options.resident and self.resident is None:
            log_type = ("progressbar" if self.options.bar else "traditional") if self.world.is_main else "none"
            self.resident = ResidentItems(self.train_set, self.world.device, self.options.workers, log_type)
        self.saved_at = self.elapsed
        self.display = report.TrainingDisplay(self.options.bar and self.world.is_main, self.world.is_main)
        self.writer = self._open_writer()
        with self._interruptible(), contextlib.closing(self.display):
            while not self._finished():
                self._train_epoch()
            try:
                self._look()
            except _BadStep as bad:
                self._handle(bad, [], [])
            self._finish()
        if self.writer:
            with self._logging():
                self.writer.close()
        if self.skipped and self.world.is_main:
            note(f"{self.skipped} steps were skipped, see {self.options.folder / 'bad_batches'}")
        return self.scores

    def _finish(self) -> None:
        """Validates and saves what is not saved yet; says how to go on after an interrupt."""
        try:
            if self.saved_step != self.step:
                if self.interrupted:
                    self._require_finite()
                    self._save("last.pth")  # before the scores, which whoever stops the run may not wait for
                self._validate_and_save()
        finally:
            if self.interrupted and self.world.is_main:
                note(f"stopped at step {self.step}; continue with --resume {self.options.folder / 'last.pth'}")

    def _finished(self) -> bool:
        o = self.options
        return (self.interrupted or self.epoch >= o.epochs or (o.max_steps is not None and self.step >= o.max_steps)
                or (o.max_minutes is not None and self.elapsed >= 60 * o.max_minutes))

    def _progress(self) -> float:
        """The share of the run that is done, by whichever limit is closest."""
        o = self.options
        faces = len(self.train_set) // self._step_faces() * self._step_faces()  # what is left over counts as no step
        shares = [(self.epoch + self.seen / faces) / o.epochs]
        if o.max_steps:
            shares.append(self.step / o.max_steps)
        if o.max_minutes:
            shares.append(self.elapsed / (60 * o.max_minutes))
        return min(1.0, max(shares))

    def _step_faces(self) -> int:
        """Faces of one step of all processes; the training set has as many at least."""
        return self.world.size * self.options.batch_size * self.options.accumulate

    def _train_epoch(self) -> None:
        epoch = self.epoch
        self.sampler.begin(epoch, self.seen // self.world.size)
        batches = (self.resident.batches(self.sampler, self.options.batch_size) if self.resident
                   else iter(self._loader(self.train_set, self.sampler)))
        while self.epoch == epoch and not self._finished():
            self._train_step([next(batches) for _ in range(self.options.accumulate)])
            self.step += 1
            self._count_seen(self._step_faces())
            if self.world.size == 1:  # several processes agree in their next look at the losses
                self.interrupted = self.interrupted or self._asked_to_stop
            if self.elapsed - self.saved_at >= 60 * self.options.checkpoint_minutes:
                self._validate_and_save()

    def _count_seen(self, faces: int) -> None:
        """Adds to the faces seen; if too few are left for a step in which none comes twice, the next epoch begins."""
        self.seen += faces
        if self.seen + self._step_faces() > len(self.train_set):
            self.epoch, self.seen = self.epoch + 1, 0

    def _train_step(self, batches: list[dict]) -> None:
        """One step of all optimisers from `accumulate` micro-batches."""
        for name, optimiser in self.optimisers.items():
            factor = self.schedule.factor(self.rates[name], self.step, self.epoch, self._progress())
            for group in optimiser.param_groups:
                group["lr"] = self.rates[name] * factor
            optimiser.zero_grad(set_to_none=True)
        buffers = self._copy_buffers() if self.options.skip_bad_steps else []
        try:
            ready = self._gradients(batches)
        except _BadStep as bad:
            self._handle(bad, batches, buffers)
            return
        for name in ready:
            self.scaler.step(self.optimisers[name])
        self.scaler.update()
        self.skipped_in_row = 0
        if self.average:
            self.average.update(self.stage.networks, self.step)

    def _gradients(self, batches: list[dict]) -> list[str]:
        """The names of the optimisers that have gradients, the same in all processes; raises _BadStep."""
        values: dict[str, Tensor] = {}
        for micro, batch in enumerate(batches):
            for name, value in self._backward(to_device(batch, self.world.device), micro).items():
                values[name] = values.get(name, 0.0) + value / len(batches)
        self._pending.append((self.step, values))
        due = (self.step + 1) % self.look_every == 0 or (self._asked_to_stop and self.world.size == 1)
        if due:
            self._look()
        trained = {"main": self._parameters(self.stage.networks), "critic": self._parameters(self.stage.critics)}
        ready = [name for name in self.optimisers
                 if any(parameter.grad is not None for parameter in trained[name])]  # a discriminator awaits its turn
        for name in ready:
            # Averaged before the scaler looks for infinities, so that all processes skip the same steps.
            distributed.average_gradients(trained[name], self.world)
            self.scaler.unscale_(self.optimisers[name])
            norm = nn.utils.clip_grad_norm_(trained[name], self.stage.gradient_clip)
            if due and not self.scaler.is_enabled() and not torch.isfinite(norm):
                raise _BadStep(f"the gradient of the {name} optimiser's networks", float(norm), self.step)
        return ready

    def _backward(self, batch: dict, micro: int) -> dict[str, Tensor]:
        """Adds one micro-batch's gradients; returns its losses. The critics are constants for the main losses."""
        rngs = face_generators((self.options.seed, self.step, micro), self.world.places(0, self.options.batch_size))
        for critic in self.stage.critics.values():
            critic.requires_grad_(False)
        losses, context = self.stage.losses(batch, rngs, self._autocast, self.step)
        self._accumulate(losses)
        for critic in self.stage.critics.values():
            critic.requires_grad_(True)
        critic_losses = self.stage.critic_losses(context, rngs, self._autocast)
        if critic_losses:
            self._accumulate(critic_losses)
        return {name: value.detach().float() for name, value in {**losses, **critic_losses}.items()}

    def _accumulate(self, losses: Mapping[str, Tensor]) -> None:
        weighted = sum(self.stage.weights.get(name, 1.0) * value for name, value in losses.items())
        self.scaler.scale(weighted / self.options.accumulate).backward()

    def _look(self) -> None:
        """Checks and shows the losses since the last look: the one place in a step where the host waits for the device.

        Shown are the means over the processes. All processes take the latest clock, stop together, and fail together
        when any has a loss of NaN or Inf.
        """
        if not self._pending:
            return
        numbers = iter(torch.stack([value for _, values in self._pending for value in values.values()]).tolist())
        steps = [(step, {name: next(numbers) for name in values}) for step, values in self._pending]
        self._pending.clear()
        bad = [(step, name, value) for step, values in steps for name, value in values.items()
               if not abs(value) < float("inf")]
        stop = self.interrupted or self._asked_to_stop
        clock, stop, failed = distributed.largest(
            [time.monotonic() - self.clock_start, float(stop), float(bool(bad))], self.world)
        self.elapsed, self.interrupted = clock, bool(stop)
        if failed:
            step, name, value = bad[0] if bad else (self.step, "in another process", float("nan"))
            raise _BadStep(f"the loss '{name}'", value, step, mine=bool(bad) and step == self.step)
        means = iter(distributed.total([value for _, values in steps for value in values.values()], self.world))
        for step, values in steps:
            self._log(step, {name: next(means) / self.world.size for name in values})

    # ---- steps that are not finite -----------------------------------------------------------------------------

    def _handle(self, bad: _BadStep, batches: list[dict], buffers: list[Tensor]) -> None:
        """Saves the batch and counts the step, whose traces are undone; UserError unless such steps are skipped."""
        place = f"step {bad.step} (epoch {self.epoch})"
        saved = self._save_batch(bad, batches) if bad.mine else ""
        if not self.options.skip_bad_steps:
            raise UserError(f"training stopped: {bad} at {place}{saved}; lower --learning-rate, use --precision fp32 "
                            f"or --skip-bad-steps{self._last_good()}")
        self.skipped, self.skipped_in_row = self.skipped + 1, self.skipped_in_row + 1
        if self.skipped_in_row >= MOST_SKIPPED:
            raise UserError(f"training stopped: {self.skipped_in_row} steps in a row were skipped, the last because "
                            f"{bad} at {place}{saved}; lower --learning-rate or use --precision fp32"
                            f"{self._last_good()}")
        with torch.no_grad():
            for buffer, before in zip(self._buffers(), buffers):
                buffer.copy_(before)
        self.display.line(f"{place} skipped, number {self.skipped}: {bad}{saved}")

    def _last_good(self) -> str:
        last = self.options.folder / "last.pth"
        return f"; the last good state is {last}" if last.exists() else ""

    def _buffers(self) -> list[Tensor]:
        """What a forward pass changes besides gradients: running means, singular vectors."""
        return [buffer for module in [*self.stage.networks.values(), *self.stage.critics.values()]
                for buffer in module.buffers()]

    def _copy_buffers(self) -> list[Tensor]:
        return [buffer.detach().clone() for buffer in self._buffers()]

    def _save_batch(self, bad: _BadStep, batches: list[dict]) -> str:
        """Writes the step's batches for a look, `utils.checkpoints.load` reads them; returns where, for messages."""
        folder = self.options.folder / "bad_batches"
        process = f"_process_{self.world.rank}" if self.world.size > 1 else ""
        path = folder / f"step_{self.step}{process}.pth"
        if len(list(folder.glob("*.pth"))) >= MOST_BAD_BATCHES:
            return ""
        content = {"format": BATCH_FORMAT, "stage": self.stage.name, "step": self.step, "epoch": self.epoch,
                   "cause": str(bad), "batches": batches}
        try:
            checkpoints.save(path, content)
        except UserError as error:  # the cause matters more than the disk
            return f" ({error})"
        return f" (the batch is in {path})"

    # ---- held-out data and checkpoints -------------------------------------------------------------------------

    def _validate_and_save(self) -> None:
        """Scores the moving average on held-out data, then writes last.pth and, if it improved, best.pth."""
        distributed.synchronise_buffers(self.stage.networks.values(), self.world)
        if self.average:
            self.average.copy_buffers(self.stage.networks)  # or each process would validate statistics of its own
        self._require_finite()
        self.scores = self.validate()
        measure = self.scores[self.stage.metric]
        better = self.best is None or (measure > self.best if self.stage.higher_is_better else measure < self.best)
        self.best = measure if better else self.best
        self.saved_at, self.saved_step = self.elapsed, self.step
        if not self.world.is_main:
            return
        mark = " (best)" if better else ""
        self.display.line(f"step {self.step} held-out {report.join_numbers(self.scores)}{mark}")
        if better:  # before last.pth, whose resumed run would not write it again: see `_find_best`
            self._save("best.pth")
        self._save("last.pth")
        if self.writer:
            with self._evaluating() as networks:
                pictures = self.stage.pictures(networks, *next(self._held_out_faces()))
            with self._logging():
                for name, value in self.scores.items():
                    self.writer.add_scalar(f"held_out/{name}", value, self.step)
                self.writer.add_image("pictures", pictures, self.step)

    def _require_finite(self) -> None:
        """UserError if weights, averages or optimisers are not finite: a step since the last look may have been bad."""
        bad = checkpoints.not_finite(self.options.folder, self.state())
        if bad:
            raise UserError(f"training stopped at step {self.step}: {bad} is not finite; lower --learning-rate, use "
                            f"--precision fp32 or --skip-bad-steps{self._last_good()}")

    def _save(self, name: str) -> None:
        """Writes a checkpoint of the present moment into the run's folder, in the main process."""
        if not self.world.is_main:
            return
        try:
            checkpoints.save(self.options.folder / name, self.state())
        except UserError as error:
            raise UserError(f"training stopped at step {self.step}: {error}{self._last_good()}") from None

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        """TensorBoard's writer works in a thread of its own, and a later call raises what went wrong there."""
        try:
            yield
        except OSError as error:
            raise UserError(f"training stopped at step {self.step}: cannot write {self.options.log_folder}: "
                            f"{error.strerror or error}{self._last_good()}") from None

    def validate(self) -> dict[str, float]:
        """The stage's measures of the averaged (without --ema: current) networks on held-out items."""
        statistics = None
        with self._evaluating() as networks:
            for batch, rngs in self._held_out_faces():
                part = self.stage.validate(networks, batch, rngs, self._autocast).double().cpu()
                statistics = part if statistics is None else statistics + part
        return self.stage.score(torch.tensor(distributed.total(statistics.tolist(), self.world), dtype=torch.float64))

    def _held_out_faces(self) -> Iterator[tuple[dict, list[np.random.Generator]]]:
        """The held-out batches with each face's randomness, the same whenever and by however many it is validated."""
        seen = 0
        for batch in self._held_out_batches():
            count = len(next(iter(batch.values())))
            yield batch, face_generators((VALIDATION_KEY,), self.world.places(seen, count))
            seen += count

    def _held_out_batches(self) -> list[dict]:
        """This process' share of the held-out items, made once and kept: generating them again would cost minutes."""
        if not self._held_out:
            count = min(len(self.validation_set), self.stage.validation_items)
            if count < self.world.size:
                raise UserError(f"{count} held-out items are too few for {self.world.size} processes")
            items = Subset(self.validation_set, range(self.world.rank, count, self.world.size))
            loader = DataLoader(items, batch_size=min(self.options.batch_size, 16), num_workers=self.options.workers,
                                worker_init_fn=start_worker,
                                generator=torch.Generator().manual_seed(self.options.seed))
            log_type = "progressbar" if self.options.bar and self.world.is_main else "none"
            self._held_out = [to_device(batch, self.world.device)
                              for batch in progress(loader, "held-out faces", len(loader), log_type)]
        return self._held_out

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[Mapping[str, nn.Module]]:
        networks = self.average.networks if self.average else self.stage.networks
        for network in networks.values():
            network.eval()
        with torch.no_grad():
            yield networks
        self._set_modes()

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, in types that a weights-only load admits."""
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
        self.saved_step = self.step
        self._tell_changes(dict(state.get("settings") or {}), state.get("processes", self.world.size))

    def _seen_before(self, state: Mapping[str, Any]) -> int:
        """The faces of its epoch that a checkpoint's run has taken, rounded up so that all processes go on at a place.

        Older checkpoints tell the batches of each process alone; they count as of as many processes as this run has.
        """
        if "seen" not in state:
            batch_size = dict(state["settings"]).get("batch_size", self.options.batch_size)
            return state["position"] * batch_size * self.world.size
        return -(-state["seen"] // self.world.size) * self.world.size

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

    def _load_modules(self, state: Mapping[str, Any]) -> None:
        for group, modules in (("networks", self.stage.networks), ("critics", self.stage.critics)):
            for name, module in modules.items():
                module.load_state_dict(state[group][name])
        if self.average:
            for name, module in self.average.networks.items():
                module.load_state_dict(state["averages"].get(name, state["networks"][name]))

    # ---- small parts -------------------------------------------------------------------------------------------

    def _optimiser(self, modules: Mapping[str, nn.Module], rate: float) -> torch.optim.Optimizer:
        return build_optimiser(self.options.optim_method, self.options.optim_options, self._parameters(modules), rate)

    @staticmethod
    def _parameters(modules: Mapping[str, nn.Module]) -> list[nn.Parameter]:
        return [parameter for module in modules.values() for parameter in module.parameters()]

    def _autocast(self) -> contextlib.AbstractContextManager:
        return compute_in(choose_dtype(self.options.precision), self.world.device)

    def _set_modes(self) -> None:
        for module in [*self.stage.networks.values(), *self.stage.critics.values()]:
            module.train()

    def _loader(self, dataset: Dataset, sampler: distributed.EpochSampler) -> DataLoader:
        workers = self.options.workers
        return DataLoader(dataset, batch_size=self.options.batch_size, sampler=sampler, drop_last=True,
                          num_workers=workers, pin_memory=self.world.device.type == "cuda", worker_init_fn=start_worker,
                          prefetch_factor=4 if workers else None,
                          generator=torch.Generator().manual_seed(self.options.seed))

    def _open_writer(self):
        if not self.world.is_main or self.options.log_folder is None:
            return None
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and a library user may not want it
        with self._logging():
            return SummaryWriter(str(self.options.log_folder), purge_step=self.step or None)

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._running[name] = 0.95 * self._running.get(name, value) + 0.05 * value
        items = self.options.batch_size * self.options.accumulate * self.world.size
        self.display.update(self._progress(), self.elapsed, step + 1, self.epoch, items, self._running)
        if self.writer and step % SCALAR_EVERY == 0:
            with self._logging():
                for name, value in self._running.items():
                    self.writer.add_scalar(f"loss/{name}", value, step)
                self.writer.add_scalar("learning_rate", self.optimisers["main"].param_groups[0]["lr"], step)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C (or SIGTERM) ends the run after the current step, saved; a second one kills it."""
        def stop(number, frame):
            if self._asked_to_stop:
                raise KeyboardInterrupt
            self._asked_to_stop = True
            if self.world.is_main:
                when = " after this step" if self.world.size == 1 else ""
                note(f"stopping{when}: the run is saved, then evaluated; Ctrl-C again leaves the evaluation out")
        old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def train(settings: Any) -> dict[str, float]:
    """Trains ``settings.stage`` and returns its last held-out measures.

    Raises:
        UserError: something needed is missing, does not fit, or a loss stopped being a number.
    """
    from engine import build
    with distributed.joined(build.choose_device(settings)) as world:
        seed_everything(settings.manual_seed)
        options = options_from(settings)
        if world.is_main:
            build.tell_ignored(settings)
        with own_folder(options.folder, world):
            train_set, validation_set = build.build_training_data(settings)
            trainer = Trainer(build.build_stage(settings, train_set), train_set, validation_set, options, world)
            if settings.resume:
                trainer.restore(build.resume_file(settings), update_rate=settings.update_lr)
            if world.is_main:
                # A run that is started again from this file is to ask before it replaces this one.
                settings.replace(resume=None, overwrite=False).write(options.folder / "args.txt")
                note(f"training the {settings.stage} on {len(train_set)} items, {len(validation_set)} held out, "
                     f"{options.precision} on {world.device}; run folder {options.folder}")
            return trainer.run()


@contextlib.contextmanager
def own_folder(folder: Path, world: World) -> Iterator[None]:
    """Keeps other runs out of a run's folder, and clears what a killed one left half written in it.

    Raises:
        UserError: another run is at work there.
    """
    with contextlib.ExitStack() as holding:
        def hold() -> None:
            holding.enter_context(files.held(folder, "another run", "wait for it, or choose another --save-dir"))
            files.remove_unfinished(folder, ("last.pth", "best.pth", "args.txt"))

        distributed.in_main(hold, world)
        yield
