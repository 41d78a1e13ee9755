"""Memory that training takes: the peak of each stage at its real size, and whether it grows with the steps.

    python benchmarks/memory.py [--batch 8] [--steps 12] [--growth-steps 500] [--stages encoder,occlusion,inpainter]

Each training has a process of its own, since a peak never falls. Growth is the slope of a line through the resident
memory after each step of the second half; it is measured over many steps with images of 64 pixels, for the encoder and
the occlusion net, which --train-size can reduce.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np  # noqa: E402

STAGES = ("encoder", "occlusion", "inpainter")
REDUCIBLE = ("encoder", "occlusion")
SMALL = 64  # pixels
FEWEST = 100  # steps of which a slope is said: in the first ones the allocator fills its pools
FACES = 32  # made once: what is measured is training, not the generator


def resident() -> float:
    """Resident memory of this process in MiB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def slope(memory: list[float]) -> float:
    """KiB a step of a line through the second half of the values, in MiB."""
    late = memory[len(memory) // 2:]
    return 1024 * float(np.polyfit(np.arange(len(late)), late, 1)[0]) if len(late) > 1 else 0.0


def train(stage: str, batch: int, steps: int, size: int) -> tuple[list[float], float]:
    """Trains some steps; (resident memory after each step, peak) in MiB."""
    import torch

    from datasets.synthetic import SyntheticFaces
    from engine import build
    from engine.distributed import ALONE
    from engine.training import Trainer, TrainingOptions
    from utils import config

    torch.set_num_threads(1)
    os.chdir(ROOT)
    arguments = ["--config", "args.txt", "--stage", stage, "--ngpu", "0", "--train-size", str(size)]
    if stage == "inpainter":  # the discriminator takes part from the first step on
        arguments += ["--loss-options", '{"gan_start": 0}']
    settings = config.parse(arguments, "benchmark")
    source = SyntheticFaces("train", max(FACES, batch))
    faces = [source[index] for index in range(len(source))]
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingOptions(Path(folder), batch_size=batch, max_steps=steps, checkpoint_minutes=1e9, bar=False)
        trainer = Trainer(build.build_stage(settings, source), faces, faces[:batch], options, ALONE)
        original = trainer._train_step

        def step(batches):
            original(batches)
            memory.append(resident())

        trainer._train_step = step
        with contextlib.redirect_stdout(None):
            trainer.run()
    return memory, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> int:
    """The command line; with --one-stage it is the process that trains."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12, help="of full size")
    parser.add_argument("--growth-steps", type=int, default=500, help="of 64 pixels; 0: none")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--one-stage", nargs=3, metavar=("STAGE", "STEPS", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_stage:
        stage, steps, size = options.one_stage[0], *map(int, options.one_stage[1:])
        memory, peak = train(stage, options.batch, steps, size)
        growth = f"; growth {slope(memory):.1f} KiB a step" if steps >= FEWEST else ""
        print(f"{stage:<10}{size:>4} px {steps:>5} steps of {options.batch}: peak {peak / 1024:.2f} GiB; "
              f"after the first step {memory[0]:.0f} MiB, after the last {memory[-1]:.0f} MiB{growth}", flush=True)
        return 0
    stages = options.stages.split(",")
    runs = [(stage, options.steps, 224) for stage in stages]
    runs += [(stage, options.growth_steps, SMALL) for stage in stages if options.growth_steps and stage in REDUCIBLE]
    return max(subprocess.run([sys.executable, __file__, "--batch", str(options.batch), "--one-stage",
                               *map(str, run)]).returncode for run in runs)


if __name__ == "__main__":
    sys.exit(main())
