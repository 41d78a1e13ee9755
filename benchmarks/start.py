"""What a cold start costs: imports, every file of weights, and test_my.py from its call to its last picture.

    python benchmarks/start.py [--repeats 3]

Each repeat is a process of its own; the shortest times count: wall clock, and the processor alone. A whole start is
`test_my.py --config args.txt` on the example photo; what is not the completion itself (networks, renderer, grain) is
its overhead: interpreter, imports, loading, finding the face, pasting, writing the pictures.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOADING_TARGET = 1.0  # seconds to load all networks
OVERHEAD_TARGET = 3.0  # seconds of a whole start besides the completion
PARTS = """
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
WHOLE = """
import json, runpy, sys, time
from models.completion import FaceCompletion
complete, spent = FaceCompletion.forward, [0.0, 0.0]
def timed(*arguments):
    start = time.perf_counter(), time.process_time()
    result = complete(*arguments)
    spent[0] += time.perf_counter() - start[0]
    spent[1] += time.process_time() - start[1]
    return result
FaceCompletion.forward = timed
script = sys.argv.pop(1)
sys.argv[0] = script
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    if end.code:
        raise
print(json.dumps(spent))
"""


def start(code: str, folder: Path, *arguments: str) -> tuple[list | dict, float, float]:
    """What a fresh interpreter prints last in a folder, as JSON, and its seconds: wall clock, processor."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    before, began = os.times(), time.perf_counter()
    answer = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, env=environment, check=True,
                            text=True, stdout=subprocess.PIPE)
    wall, after = time.perf_counter() - began, os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return json.loads(answer.stdout.splitlines()[-1]), wall, busy


def start_photo() -> dict[str, tuple[float, float]]:
    """(wall clock, processor) seconds of test_my.py on the example photo, in a folder without photos."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "checkpoints").symlink_to(ROOT / "checkpoints")  # args.txt names them from where one stands
        spent, *whole = start(WHOLE, Path(folder), str(ROOT / "test_my.py"), "--config", str(ROOT / "args.txt"),
                              "--ngpu", "0")
    return {"test_my.py on the example photo": tuple(whole), "of it the completion": tuple(spent),
            "overhead": (whole[0] - spent[0], whole[1] - spent[1])}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    runs = [{**start(PARTS, ROOT)[0], **start_photo()} for _ in range(repeats)]
    targets = {"load the networks and the face model": LOADING_TARGET, "overhead": OVERHEAD_TARGET}
    for name in runs[0]:
        target = f"    (target below {targets[name]} s)" if name in targets else ""
        wall, busy = (min(run[name][which] for run in runs) for which in (0, 1))
        print(f"{name:<40}{wall:>7.2f} s, processor {busy:.2f} s{target}")


if __name__ == "__main__":
    main()
