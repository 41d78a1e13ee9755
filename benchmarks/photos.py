"""What the whole way through a photo brings and costs: quality at the seam, a contact sheet, seconds and memory.

    python benchmarks/photos.py quality --faces DIR --masks DIR [--enlarge 2] [--count N]
    python benchmarks/photos.py sheet --photos DIR --output FILE.png
    python benchmarks/photos.py cost [--megapixels 1,4,24]

quality: aligned faces (or any photos) with their holes (255 = hidden) go the whole way: found by MTCNN, aligned again,
completed, pasted back; the hidden pixels are grey by then. PSNR, SSIM and LPIPS of the photo, and "seam": the error of
the gradient within two pixels of the hole's edge, in grey levels. cost: each size in a process of its own.
"""
from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy import ndimage  # noqa: E402

from datasets.faces import astronaut  # noqa: E402
from engine.paste import Seam  # noqa: E402
from engine.photo import PhotoCompleter, PhotoOptions, load_completer  # noqa: E402
from utils.images import list_images, read_image, read_mask  # noqa: E402
from utils.logging import progress  # noqa: E402

SEAMS = {"pasted as it is": Seam(False, False), "gradient": Seam(True, False), "grain": Seam(False, True),
         "gradient and grain": Seam(True, True)}
HOLE_IN_EXAMPLE = (slice(110, 155), slice(190, 260))  # the astronaut's mouth and nose, in her photo's 512x512 pixels


def quality(folder: Path, masks: Path, enlarge: int, count: int | None) -> None:
    """Print a table, a line per way of treating the seam."""
    from engine.metrics import Lpips, psnr, ssim
    from engine.pretrained import load_lpips_alex

    base = load_completer(ngpu=0)
    lpips = Lpips(load_lpips_alex())
    scores: dict[str, list[list[float]]] = {name: [] for name in SEAMS}
    for path in progress(list_images(folder)[:count], "photos", min(count or 10 ** 6, len(list_images(folder)))):
        photo, hole = read_image(path), read_mask(masks / f"{path.stem}.png")
        if enlarge > 1:
            size = (photo.shape[1] * enlarge, photo.shape[0] * enlarge)
            photo = cv2.resize(photo, size, interpolation=cv2.INTER_LANCZOS4)
            hole = hole.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
        landmarks = base.detector.detect(photo, str(path))[0].landmarks
        hidden = np.where(hole[:, :, None], np.uint8(128), photo)
        completion = Remembering(base.completion)
        for name, seam in SEAMS.items():
            completer = PhotoCompleter(completion, base.detector, base.device, PhotoOptions(seam=seam))
            output = completer.complete(hidden, path.stem, hole, landmarks).complete_output
            scores[name].append([psnr(output, photo), ssim(output, photo), lpips(output, photo),
                                 seam_error(output, photo, hole)])
    print(f"{len(scores['gradient'])} photos, enlarged {enlarge} times\n"
          f"{'':<20}{'PSNR':>8}{'SSIM':>8}{'LPIPS':>8}{'seam':>8}")
    for name, values in scores.items():
        means = np.mean(values, axis=0)
        print(f"{name:<20}{means[0]:>8.2f}{means[1]:>8.4f}{means[2]:>8.4f}{means[3]:>8.2f}")


class Remembering:
    """A completion whose last result serves again for the same picture and hole: only the seam differs."""

    def __init__(self, completion):
        self._completion, self._key, self._result = completion, None, None

    def __getattr__(self, name: str):
        return getattr(self._completion, name)

    def __call__(self, image: torch.Tensor, hole: torch.Tensor):
        key = (image.numpy().tobytes(), hole.numpy().tobytes())
        if key != self._key:
            self._key, self._result = key, self._completion(image, hole)
        return self._result


def seam_error(output: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> float:
    """Mean absolute error of the gradient within two pixels of the hole's edge, in grey levels."""
    rim = ndimage.binary_dilation(hole, iterations=2) & ~ndimage.binary_erosion(hole, iterations=2)
    error = output.astype(np.float32) - truth
    along = [np.abs(np.diff(error, axis=axis)).mean(axis=2) for axis in (0, 1)]
    return float((along[0][rim[1:]].sum() + along[1][rim[:, 1:]].sum()) / max(rim[1:].sum() + rim[:, 1:].sum(), 1))


def sheet(folder: Path, output: Path) -> None:
    """Write a contact sheet: found hole and result of every photo of a folder."""
    from engine.photo_pictures import hole_overlay
    from engine.report import draw_sheet
    from utils.errors import UserError

    completer = load_completer(ngpu=0)
    pictures, captions = [], []
    for path in progress(list_images(folder), "photos"):
        photo = read_image(path)
        try:
            result = completer.complete(photo, str(path))
        except UserError as error:
            print(error)
            continue
        pair = [hole_overlay(photo, result.mask), result.complete_output]
        small = [cv2.resize(picture, (192, 192), interpolation=cv2.INTER_AREA) for picture in pair]
        pictures.append(np.concatenate(small, axis=1))
        captions.append(path.stem)
    draw_sheet(output, pictures, captions, 4)
    print(f"{len(pictures)} photos -> {output}")


def cost(megapixels: float) -> None:
    """Print seconds and peak memory for the astronaut enlarged to a photo of so many megapixels, mouth hidden."""
    began = time.perf_counter()
    completer = load_completer(ngpu=0)
    loaded = time.perf_counter() - began
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    side = int(round(np.sqrt(megapixels * 1e6)))
    photo = cv2.resize(astronaut(), (side, side), interpolation=cv2.INTER_CUBIC)
    mask = np.zeros((512, 512), np.uint8)
    mask[HOLE_IN_EXAMPLE] = 1
    mask = cv2.resize(mask, (side, side), interpolation=cv2.INTER_NEAREST) > 0
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        result = completer.complete(photo, "astronaut", mask)
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scale = result.faces[0].alignment.photo_scale
    print(f"{megapixels:5.1f} MP ({side}x{side}, {scale:.1f} photo pixels per crop pixel): {min(seconds):.1f} s, peak "
          f"memory {peak / 1024:.0f} MiB ({before / 1024:.0f} MiB once loaded, in {loaded:.1f} s)")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("quality")
    command.add_argument("--faces", type=Path, required=True)
    command.add_argument("--masks", type=Path, required=True)
    command.add_argument("--enlarge", type=int, default=1)
    command.add_argument("--count", type=int)
    command = commands.add_parser("sheet")
    command.add_argument("--photos", type=Path, required=True)
    command.add_argument("--output", type=Path, required=True)
    command = commands.add_parser("cost")
    command.add_argument("--megapixels", default="1,4,24")
    options = parser.parse_args()
    if options.command == "quality":
        quality(options.faces, options.masks, options.enlarge, options.count)
    elif options.command == "sheet":
        if options.output.suffix not in (".png", ".jpg"):
            parser.error(f"--output {options.output}: the sheet is one picture, name it .png or .jpg")
        sheet(options.photos, options.output)
    elif "," in options.megapixels:
        for size in options.megapixels.split(","):
            subprocess.run([sys.executable, __file__, "cost", "--megapixels", size], check=True)
    else:
        cost(float(options.megapixels))


if __name__ == "__main__":
    main()
