"""What a cold start costs: imports, and every file of weights.

    python benchmarks/start.py [--repeats 3]

Each repeat is a process of its own; the shortest times count: wall clock, and the processor alone.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = 1.0  # seconds to load all networks
CODE = """
import json, time
laps, last = {}, (time.perf_counter(), time.process_time())
def lap(name):
    global last
    now = time.perf_counter(), time.process_time()
    laps[name], last = (now[0] - last[0], now[1] - last[1]), now
import torch
lap("import torch")
from utils import config
from engine import build
import engine.photo, models.completion, models.weights, datasets.detection
lap("import the program")
settings = config.parse(["--config", "args.txt", "--ngpu", "0"], "benchmark")
build.build_completion(settings, torch.device("cpu"))
lap("load the networks and the face model")
datasets.detection.Detector()
lap("load the face detector")
print(json.dumps(laps))
"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    runs = [json.loads(subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=environment, check=True, text=True,
                                      stdout=subprocess.PIPE).stdout.splitlines()[-1]) for _ in range(repeats)]
    for name in runs[0]:
        target = f"    (target below {TARGET} s)" if "networks" in name else ""
        wall, busy = (min(run[name][which] for run in runs) for which in (0, 1))
        print(f"{name:<40}{wall:>7.2f} s, processor {busy:.2f} s{target}")


if __name__ == "__main__":
    main()
