"""Training by one and by two processes on this machine's cores, and the table of docs/scaling.md.

    python benchmarks/scaling.py [--stage inpainter] [--batch 2] [--steps 4] [--step-ms MS]

Each process has one thread and the same batch (gloo). The table says what larger machines can reach at most, from the
bytes that a step shares and the measured time of a step, or --step-ms of a GPU's with 28 images.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

BATCH = 28  # images a process, as published
IMAGES = 162_079  # 80 % of CelebA
INSIDE, BETWEEN = 100e9, 12.5e9  # bytes a second inside a machine and between machines
PER_MACHINE = 8
WARM = 1  # steps before the measured ones


def measure(stage: str, batch: int, steps: int) -> None:
    """One process' part of a training; the main one prints seconds a step and bytes shared in it."""
    import torch

    from datasets.synthetic import SyntheticFaces
    from engine import build, distributed
    from engine.training import Trainer, TrainingOptions
    from utils import config

    torch.set_num_threads(1)
    os.chdir(ROOT)
    arguments = ["--config", "args.txt", "--stage", stage, "--ngpu", "0"]
    if stage == "inpainter":  # the discriminator takes part from the first step on
        arguments += ["--loss-options", '{"gan_start": 0}']
    settings = config.parse(arguments, "benchmark")
    with distributed.joined(torch.device("cpu")) as world, tempfile.TemporaryDirectory() as folder:
        source = SyntheticFaces("train", world.size * batch)
        faces = [source[index] for index in range(len(source))]
        options = TrainingOptions(Path(folder), batch_size=batch, max_steps=WARM + steps, ema=0, bar=False)
        trainer = Trainer(build.build_stage(settings, source), faces, faces, options, world)
        trainer._validate_and_save = lambda: None  # not timed
        original, ends = trainer._train_step, []

        def step(batches):
            original(batches)
            ends.append(time.perf_counter())

        trainer._train_step = step
        with contextlib.redirect_stdout(None):
            trainer.run()
        modules = [*trainer.stage.networks.values(), *trainer.stage.critics.values()]
        shared = 4 * sum(parameter.numel() for module in modules for parameter in module.parameters())
    if world.is_main:
        print((ends[-1] - ends[WARM - 1]) / steps, shared)


def run(processes: int, arguments: list[str]) -> tuple[float, int]:
    """(seconds a step, bytes of gradients shared in it) of a training by so many processes."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    result = subprocess.run([sys.executable, *start, __file__, *arguments, "--measure"], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"error: a training by {processes} processes failed:\n{result.stderr}")
    seconds, shared = result.stdout.split()[-2:]
    return float(seconds), int(shared)


def table(step: float, shared: int) -> str:
    """What N processes share and reach when a step alone takes so many seconds; see docs/scaling.md."""
    lines = [f"{'processes':<12}{'bytes a step':>14}{'time for them':>16}{'of linear':>12}{'steps an epoch':>16}"]
    for count in (1, 8, 64):
        sent = shared * 2 * (count - 1) / count
        delay = sent / (INSIDE if count <= PER_MACHINE else BETWEEN)
        lines.append(f"{count:<12}{sent / 1e6:>11.0f} MB{1000 * delay:>13.1f} ms{step / (step + delay):>12.1%}"
                     f"{IMAGES // (BATCH * count):>16,}")
    return "\n".join(lines)


def main() -> None:
    """The command line; with --measure it is one of the processes that train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("encoder", "occlusion", "inpainter"), default="inpainter")
    parser.add_argument("--batch", type=int, default=2, help="images a process")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--step-ms", type=float, help="time of a step of 28 images for the table")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.stage, options.batch, options.steps)
        return
    arguments = ["--stage", options.stage, "--batch", str(options.batch), "--steps", str(options.steps)]
    (alone, shared), (together, _) = (run(count, arguments) for count in (1, 2))
    print(f"{options.stage}, batch {options.batch}: one process {options.batch / alone:.2f} images/s, two "
          f"{2 * options.batch / together:.2f} images/s: {2 * alone / together:.2f} times")
    step = options.step_ms / 1000 if options.step_ms else alone * BATCH / options.batch
    origin = "given" if options.step_ms else "measured on one core"
    print(f"with {1000 * step:.0f} ms a step of {BATCH} images ({origin}):")
    print(table(step, shared))


if __name__ == "__main__":
    main()
