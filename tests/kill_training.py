"""Kills a small training with SIGKILL again and again and looks at what is left: ``python tests/kill_training.py``.

A training of the occlusion stage with tiny networks runs once without a disturbance. Then the same training is started,
killed and resumed as often as asked: at a random moment, or a random moment after it entered a phase chosen in turn (a
training step, the evaluation, the writing of a checkpoint). After every kill last.pth must be whole, must not be older
than the last one known to be written; how much training is lost is measured. At the end networks, moving averages,
optimisers and scores must equal the undisturbed run's bit for bit, and no partial file may lie about.

Children are forked from this process, which has everything imported, so a start costs little.
"""
from __future__ import annotations

import argparse
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402

from engine import training  # noqa: E402
from engine_samples import SmallFaces  # noqa: E402
from test_training_loop import ALONE, all_tensors, make_stage  # noqa: E402
from utils import checkpoints  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.logging import progress  # noqa: E402

PHASES = ("start", "step", "evaluation", "checkpoint")
SHARED = struct.Struct("iiid")  # phase, steps begun, step of the newest checkpoint that is surely written, seconds
STEPS_PER_KILL = 10  # of the whole training: enough that it does not end before the last kill
STEPS_PER_CHECKPOINT = 2.5
PATIENCE = 60.0  # seconds that a child may take to reach a phase


@dataclass
class Findings:
    """interval: seconds between checkpoints; kills by phase; worst: seconds of training lost by one kill."""

    interval: float
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PHASES, 0))
    lost_steps: int = 0
    worst: float = 0.0
    starts: int = 0


class Shared:
    """What the child tells its parent, in shared memory: it survives the child's death."""

    def __init__(self):
        self.memory = mmap.mmap(-1, SHARED.size)

    def reset(self) -> None:
        self.write(0, 0, -1, 0.0)

    def write(self, *values) -> None:
        self.memory[:] = SHARED.pack(*values)  # in one go: `pack_into` would clear it first

    def read(self) -> tuple[int, int, int, float]:
        return SHARED.unpack_from(self.memory, 0)


FACES = [SmallFaces(24)[index] for index in range(24)]  # made once: children inherit them


def trainer_for(folder: Path, steps: int, interval: float, workers: int) -> training.Trainer:
    """The training that is tormented; `interval` in seconds between checkpoints."""
    options = training.TrainingOptions(folder, batch_size=1, max_steps=steps, workers=workers, ema=0.9, seed=3,
                                       bar=False, checkpoint_minutes=interval / 60, learning_rate=1e-3)
    return training.Trainer(make_stage("occlusion"), FACES, FACES[:2], options, ALONE)


def watched(trainer, shared: Shared) -> None:
    """Makes a trainer report its phase, its steps and its checkpoints."""
    state = {"saved": -1}

    def report(phase: str) -> None:
        shared.write(PHASES.index(phase), trainer.state.step, state["saved"], trainer.state.elapsed)

    def during(phase: str, function):
        def wrapped(*arguments):
            report(phase)
            result = function(*arguments)
            if phase == "checkpoint" and arguments[0] == "last.pth":
                state["saved"] = trainer.state.step
            report("step")
            return result
        return wrapped

    trainer._train_step = during("step", trainer._train_step)
    trainer.validate = during("evaluation", trainer.validate)
    trainer.state.save = during("checkpoint", trainer.state.save)


def child(folder: Path, steps: int, interval: float, workers: int, shared: Shared) -> None:
    """One start of the training: from last.pth if there is one, else from the beginning."""
    with training.own_folder(folder, ALONE):
        trainer = trainer_for(folder, steps, interval, workers)
        if (folder / "last.pth").exists():
            trainer.restore(folder / "last.pth")
        watched(trainer, shared)
        trainer.run()


def start(*arguments) -> int:
    """Forks a child that runs `child`; returns its process number."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            child(*arguments)
            status = 0
        except BaseException as error:
            print(f"child: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    return process


def kill_in(process: int, shared: Shared, phase: str | None, delay: float) -> bool:
    """Waits until the child is in `phase` (None: no matter), then `delay`, then kills; False if it ended before."""
    end = time.monotonic() + PATIENCE
    while phase is not None and PHASES[shared.read()[0]] != phase:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        if time.monotonic() > end:
            raise SystemExit(f"the training never came to the phase {phase}")
        time.sleep(0.0002)
    time.sleep(delay)
    if os.waitpid(process, os.WNOHANG)[0]:
        return False
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return True


def check(folder: Path, shared: Shared, findings: Findings) -> None:
    """What must hold after every kill."""
    phase, step, saved, elapsed = shared.read()
    findings.kills[PHASES[phase]] += 1
    state = {"step": 0, "elapsed": 0.0}
    if (folder / "last.pth").exists():
        state = checkpoints.load(folder / "last.pth")
        checkpoints.check_training(folder / "last.pth", state)
    assert state["step"] >= saved, f"step {saved} was saved, but last.pth holds step {state['step']}"
    if (folder / "best.pth").exists():
        checkpoints.load(folder / "best.pth")
    findings.lost_steps += max(step - state["step"], 0)
    findings.worst = max(findings.worst, elapsed - state["elapsed"])


def phase_seconds(trainer: training.Trainer) -> dict[str, float]:
    """Runs the training undisturbed; returns how long each phase lasts at a time."""
    total, count = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 1e-9)

    def timed(phase: str, function):
        def wrapped(*arguments):
            begun = time.monotonic()
            result = function(*arguments)
            total[phase], count[phase] = total[phase] + time.monotonic() - begun, count[phase] + 1
            return result
        return wrapped

    trainer._train_step = timed("step", trainer._train_step)
    trainer.validate = timed("evaluation", trainer.validate)
    trainer.state.save = timed("checkpoint", trainer.state.save)
    trainer.run()
    return {phase: total[phase] / count[phase] for phase in PHASES}


def torment(kills: int, workers: int, seed: int, folder: Path) -> Findings:
    """The whole experiment; AssertionError or SystemExit if a promise is broken."""
    steps = STEPS_PER_KILL * kills
    rng = random.Random(seed)
    torch.set_num_threads(1)
    whole = trainer_for(folder / "whole", steps, 1e9, workers)
    lasts = phase_seconds(whole)
    interval = STEPS_PER_CHECKPOINT * lasts["step"]
    shared, findings = Shared(), Findings(interval)
    run = folder / "killed"
    targets = [None, *PHASES[1:]]
    for number in progress(range(kills), "kills", log_type="traditional" if kills > 10 else "none"):
        shared.reset()
        process = start(run, steps, interval, workers, shared)
        findings.starts += 1
        target = targets[number % len(targets)]
        delay = rng.uniform(0, interval if target is None else lasts[target])
        if not kill_in(process, shared, target, delay):
            raise SystemExit(f"the training ended after {number} kills")
        check(run, shared, findings)
    shared.reset()
    process = start(run, steps, interval, workers, shared)
    findings.starts += 1
    _, status = os.waitpid(process, 0)
    assert status == 0, "the last start of the training failed"
    compare(whole, run)
    return findings


def compare(whole, run: Path) -> None:
    """The tormented run's last checkpoint holds what the undisturbed trainer holds, bit for bit."""
    state = checkpoints.load(run / "last.pth")
    again = trainer_for(run, 1, 1e9, 0)
    again.restore(run / "last.pth")
    expected, found = all_tensors(whole), all_tensors(again)
    assert expected.keys() == found.keys()
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert not different, f"other than without kills: {different}"
    places = (state["step"], state["epoch"], state["seen"]), (whole.state.step, whole.state.epoch, whole.state.seen)
    assert places[0] == places[1], f"the runs ended at different places (step, epoch, position): {places}"
    assert state["scores"] == whole.state.scores, (state["scores"], whole.state.scores)
    partial = [path.name for path in run.iterdir() if path.suffix == ".tmp"]
    assert not partial, f"partial files were left: {partial}"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            findings = torment(options.kills, options.workers, options.seed, Path(scratch))
        except (AssertionError, UserError) as error:
            print(f"broken: {error}", file=sys.stderr)
            return 1
    by_phase = ", ".join(f"{count} during {phase}" for phase, count in findings.kills.items())
    print(f"{sum(findings.kills.values())} kills survived ({by_phase}) in {time.monotonic() - begun:.0f} s; "
          f"{findings.lost_steps} steps done twice, at most {findings.worst:.2f} s of training lost by one kill with a "
          f"checkpoint every {findings.interval:.2f} s; final state equal bit for bit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
