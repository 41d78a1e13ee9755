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

Here are the loop and its steps. `run_state` knows what is learnt and how far the run is, writes checkpoints and resumes
from them; `bad_steps`, `validation`, `run_log` and `interrupts` do what their names say.
"""
from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from engine import distributed
from engine.bad_steps import BadStep, BadSteps
from engine.distributed import World
from engine.interrupts import Interrupts
from engine.loading import start_worker, to_device
from engine.optimisation import face_generators, seed_everything
from engine.report import join_numbers
from engine.resident import ResidentItems
from engine.run_log import RunLog
from engine.run_state import RunState
from engine.stage import Stage
from engine.training_options import TrainingOptions, options_from
from engine.validation import HeldOutFaces
from models.layers import compute_in
from utils import files
from utils.device import choose_dtype
from utils.errors import UserError
from utils.logging import note

LOOK_EVERY = {"cuda": 20}  # steps between the host's looks at the losses, which make it wait for the device; else 1


class Trainer:
    """Trains one stage. `run` returns the last held-out score.

    Attributes:
        state: what is learnt and how far the run is; `average`, `optimisers` and `scaler` are its own.
        interrupted: have all processes agreed to end?
        look_every: steps between two looks at the losses.

    Raises:
        UserError: the training set has too few items for a step, or an option is not understood.
    """

    def __init__(self, stage: Stage, train_set: Dataset, validation_set: Dataset, options: TrainingOptions,
                 world: World):
        if len(train_set) < options.batch_size * options.accumulate * world.size:
            raise UserError(f"the training set has {len(train_set)} items, fewer than one step needs "
                            f"({options.batch_size} x {options.accumulate} x {world.size}): lower --batch-size")
        self.stage, self.options, self.world = stage.to(world.device), options, world
        self.train_set = train_set
        self.held_out = HeldOutFaces(validation_set, stage, options, world)
        torch.backends.cudnn.benchmark = True  # all batches have one size, so that the search for kernels pays
        distributed.same_start([*stage.networks.values(), *stage.critics.values()], world)
        self.state = RunState(stage, options, world, len(train_set))
        self.average, self.optimisers, self.scaler = self.state.average, self.state.optimisers, self.state.scaler
        self.sampler = distributed.EpochSampler(len(train_set), world, options.seed)
        self.saved_step = -1  # the step that last.pth holds
        self.bad_steps = BadSteps(self.state)
        self.interrupts = Interrupts(world)  # of this process alone
        self.interrupted = False  # what all processes have agreed on
        # A bad step can be skipped only before the next one is taken.
        self.look_every = 1 if options.skip_bad_steps else LOOK_EVERY.get(world.device.type, 1)
        self._pending: list[tuple[int, dict[str, Tensor]]] = []  # step and values that the host has not looked at
        self.resident: ResidentItems | None = None
        if options.compile:
            stage.compile()

    # ---- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, float]:
        """Trains until a limit or an interrupt, validating and saving on the way and at the end."""
        self._set_modes()
        self.clock_start = time.monotonic() - self.state.elapsed
        if self.options.resident and self.resident is None:
            log_type = ("progressbar" if self.options.bar else "traditional") if self.world.is_main else "none"
            self.resident = ResidentItems(self.train_set, self.world.device, self.options.workers, log_type)
        self.saved_at = self.state.elapsed
        with RunLog(self.state) as self.log, self.interrupts.heeded():
            while not self._ended():
                self._train_epoch()
            try:
                self._look()
            except BadStep as bad:
                self.log.line(self.bad_steps.skip(bad, [], []))
            self._finish()
        if self.state.skipped and self.world.is_main:
            note(f"{self.state.skipped} steps were skipped, see {self.bad_steps.folder}")
        return self.state.scores

    def _finish(self) -> None:
        """Validates and saves what is not saved yet; says how to go on after an interrupt."""
        try:
            if self.saved_step != self.state.step:
                if self.interrupted:
                    self.state.require_finite()
                    self.state.save("last.pth")  # before the scores, which whoever stops the run may not wait for
                self._validate_and_save()
        finally:
            if self.interrupted and self.world.is_main:
                note(f"stopped at step {self.state.step}; continue with --resume {self.options.folder / 'last.pth'}")

    def _ended(self) -> bool:
        return self.interrupted or self.state.at_limit()

    def _train_epoch(self) -> None:
        epoch = self.state.epoch
        self.sampler.begin(epoch, self.state.seen // self.world.size)
        batches = (self.resident.batches(self.sampler, self.options.batch_size) if self.resident
                   else iter(self._loader(self.train_set, self.sampler)))
        while self.state.epoch == epoch and not self._ended():
            self._train_step([next(batches) for _ in range(self.options.accumulate)])
            self.state.count_step()
            if self.world.size == 1:  # several processes agree in their next look at the losses
                self.interrupted = self.interrupted or self.interrupts.asked
            if self.state.elapsed - self.saved_at >= 60 * self.options.checkpoint_minutes:
                self._validate_and_save()

    def _train_step(self, batches: list[dict]) -> None:
        """One step of all optimisers from `accumulate` micro-batches."""
        self.state.set_rates()
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        buffers = self.bad_steps.copy_buffers()
        try:
            ready = self._gradients(batches)
        except BadStep as bad:
            self.log.line(self.bad_steps.skip(bad, batches, buffers))
            return
        for name in ready:
            self.scaler.step(self.optimisers[name])
        self.scaler.update()
        self.bad_steps.in_row = 0
        if self.average:
            self.average.update(self.stage.networks, self.state.step)

    def _gradients(self, batches: list[dict]) -> list[str]:
        """The names of the optimisers that have gradients, the same in all processes; raises BadStep."""
        values: dict[str, Tensor] = {}
        for micro, batch in enumerate(batches):
            for name, value in self._backward(to_device(batch, self.world.device), micro).items():
                values[name] = values.get(name, 0.0) + value / len(batches)
        self._pending.append((self.state.step, values))
        due = (self.state.step + 1) % self.look_every == 0 or (self.interrupts.asked and self.world.size == 1)
        if due:
            self._look()
        trained = {name: [parameter for group in optimiser.param_groups for parameter in group["params"]]
                   for name, optimiser in self.optimisers.items()}
        ready = [name for name, parameters in trained.items()
                 if any(parameter.grad is not None for parameter in parameters)]  # a discriminator awaits its turn
        for name in ready:
            # Averaged before the scaler looks for infinities, so that all processes skip the same steps.
            distributed.average_gradients(trained[name], self.world)
            self.scaler.unscale_(self.optimisers[name])
            norm = nn.utils.clip_grad_norm_(trained[name], self.stage.gradient_clip)
            if due and not self.scaler.is_enabled() and not torch.isfinite(norm):
                raise BadStep(f"the gradient of the {name} optimiser's networks", float(norm), self.state.step)
        return ready

    def _backward(self, batch: dict, micro: int) -> dict[str, Tensor]:
        """Adds one micro-batch's gradients; returns its losses. The critics are constants for the main losses."""
        places = self.world.places(0, self.options.batch_size)
        rngs = face_generators((self.options.seed, self.state.step, micro), places)
        for critic in self.stage.critics.values():
            critic.requires_grad_(False)
        losses, context = self.stage.losses(batch, rngs, self._autocast, self.state.step)
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
        stop = self.interrupted or self.interrupts.asked
        clock, stop, failed = distributed.largest(
            [time.monotonic() - self.clock_start, float(stop), float(bool(bad))], self.world)
        self.state.elapsed, self.interrupted = clock, bool(stop)
        if failed:
            step, name, value = bad[0] if bad else (self.state.step, "in another process", float("nan"))
            raise BadStep(f"the loss '{name}'", value, step, mine=bool(bad) and step == self.state.step)
        means = iter(distributed.total([value for _, values in steps for value in values.values()], self.world))
        for step, values in steps:
            self._log(step, {name: next(means) / self.world.size for name in values})

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        self.log.losses(step, values)

    # ---- held-out data and checkpoints -------------------------------------------------------------------------

    def _validate_and_save(self) -> None:
        """Scores the moving average on held-out data, then writes last.pth and, if it improved, best.pth."""
        distributed.synchronise_buffers(self.stage.networks.values(), self.world)
        if self.average:
            self.average.copy_buffers(self.stage.networks)  # or each process would validate statistics of its own
        self.state.require_finite()
        better = self.state.take_scores(self.validate())
        self.saved_at, self.saved_step = self.state.elapsed, self.state.step
        if not self.world.is_main:
            return
        mark = " (best)" if better else ""
        self.log.line(f"step {self.state.step} held-out {join_numbers(self.state.scores)}{mark}")
        if better:  # before last.pth, whose resumed run would not write it again: see `RunState._find_best`
            self.state.save("best.pth")
        self.state.save("last.pth")
        if self.log.writer:
            with self._evaluating() as networks:
                pictures = self.held_out.pictures(networks)
            self.log.held_out(pictures)

    def validate(self) -> dict[str, float]:
        """The stage's measures of the averaged (without --ema: current) networks on held-out items."""
        with self._evaluating() as networks:
            return self.held_out.scores(networks, self._autocast)

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[Mapping[str, nn.Module]]:
        networks = self.average.networks if self.average else self.stage.networks
        for network in networks.values():
            network.eval()
        with torch.no_grad():
            yield networks
        self._set_modes()

    def restore(self, path: str | Path, update_rate: bool = False) -> None:
        """Continues from a checkpoint of the same stage; `update_rate` keeps this run's learning rate, not the old one.

        Raises:
            UserError: no training checkpoint, one of another stage, or one that does not fit these networks.
        """
        self.state.restore(path, update_rate)
        self.saved_step = self.state.step

    # ---- small parts -------------------------------------------------------------------------------------------

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
