"""How fast process_celeba.py's work goes: a JPEG of CelebA's size with five landmarks to an aligned crop.

    python benchmarks/alignment.py [--repeats 50]
"""
from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

import process_celeba  # noqa: E402
from datasets.alignment import CROP_SIZE, Alignment  # noqa: E402
from utils.images import read_image  # noqa: E402

TARGET = 90.0  # images a second on one core
SIZE = (178, 218)
LANDMARKS = (69.0, 109.0, 106.0, 113.0, 77.0, 142.0, 73.0, 152.0, 108.0, 154.0)  # CelebA's first picture


def fastest(function, repeats: int) -> tuple[float, float]:
    """Shortest and median processor time in seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times), float(np.median(times))


def recipe(image: np.ndarray, alignment: Alignment) -> np.ndarray:
    """The crop by Pillow's two resamplings, which `Alignment.crop` computes in less time."""
    picture = Image.fromarray(image).crop(alignment.box)
    picture = picture.transform((4 * CROP_SIZE, 4 * CROP_SIZE), Image.Transform.QUAD, alignment.quad.ravel().tolist(),
                                Image.Resampling.BILINEAR)
    return np.asarray(picture.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.LANCZOS))


def main() -> None:
    """The command line."""
    import cv2
    from skimage import data

    cv2.setNumThreads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "000001.jpg"
        Image.fromarray(data.astronaut()[:300, 80:325]).resize(SIZE).save(source, quality=95)
        task = process_celeba.Task(source, Path(scratch) / "crop.jpg", LANDMARKS)
        assert process_celeba.align_task(task, True).status == "written"
        shortest, median = fastest(lambda: process_celeba.align_task(task, True), repeats)
        print(f"fastest {1 / shortest:.0f} images/s, median {1 / median:.0f} images/s of processor time "
              f"(target at least {TARGET:.0f})")
        image = read_image(source)
    alignment = Alignment.from_landmarks(np.array(LANDMARKS).reshape(5, 2), *image.shape[:2])
    crop, expected = alignment.crop(image), recipe(image, alignment)
    ours, theirs = (fastest(function, repeats)[0] for function in
                    (lambda: alignment.crop(image), lambda: recipe(image, alignment)))
    difference = np.abs(crop.astype(int) - expected)
    print(f"the crop alone {1000 * ours:.1f} ms, by Pillow's resamplings {1000 * theirs:.1f} ms: {theirs / ours:.1f} "
          f"times; {(difference > 0).mean():.2%} of the values differ, by at most {difference.max()}")


if __name__ == "__main__":
    main()
