"""How fast process_celeba.py's work goes: a JPEG of CelebA's size with five landmarks to an aligned crop.

    python benchmarks/alignment.py [--repeats 50]
"""
from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

import process_celeba  # noqa: E402

TARGET = 90.0  # images a second on one core
SIZE = (178, 218)
LANDMARKS = (69.0, 109.0, 106.0, 113.0, 77.0, 142.0, 73.0, 152.0, 108.0, 154.0)  # CelebA's first picture


def main() -> None:
    """The command line."""
    from skimage import data

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "000001.jpg"
        Image.fromarray(data.astronaut()[:300, 80:325]).resize(SIZE).save(source, quality=95)
        task = process_celeba.Task(source, Path(scratch) / "crop.jpg", LANDMARKS)
        times = []
        for _ in range(repeats):
            start = time.process_time()
            assert process_celeba.align_task(task, True).status == "written"
            times.append(time.process_time() - start)
    print(f"fastest {1 / min(times):.0f} images/s, median {1 / float(np.median(times)):.0f} images/s of processor time "
          f"(target at least {TARGET:.0f})")


if __name__ == "__main__":
    main()
