"""How fast synthetic faces come: rendered on two processes, and read back from a cache.

    python benchmarks/synthetic.py [--count 200] [--num-workers 2] [--cache DIR]
"""
from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402


def rendering(folder: Path, count: int, workers: int) -> float:
    """Faces with labels per second, written to a cache; the processes' start is left out by a warm-up of their own."""
    from datasets.synthetic.cache import write_cache

    started = []
    for name, faces in (("short", count // 4), ("long", count)):
        begin = time.perf_counter()
        write_cache(folder / name, "val", faces, num_workers=workers, progress=False)
        started.append((faces, time.perf_counter() - begin))
    (few, short), (many, long) = started
    return (many - few) / (long - short)


def reading(folder: Path, passes: int = 3) -> float:
    """Items per second of a cache read in random order by one process, as a training's loader does; best of passes."""
    from datasets.synthetic import CachedFaces

    faces = CachedFaces(folder)
    best = 0.0
    for seed in range(passes):
        order = np.random.default_rng(seed).permutation(len(faces))[:1000]
        begin = time.perf_counter()
        for index in order:
            faces[int(index)]
        best = max(best, len(order) / (time.perf_counter() - begin))
    return best


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="faces to render")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--cache", help="existing cache to read (default: the one just rendered)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(f"rendering, {options.num_workers} processes: "
              f"{rendering(Path(scratch), options.count, options.num_workers):.1f} faces/s")
        cache = options.cache or Path(scratch) / "long"
        print(f"reading the cache, 1 process: {reading(Path(cache)):.0f} faces/s")


if __name__ == "__main__":
    main()
