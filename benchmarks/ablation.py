"""What the parts of the paper's inpainter bring: each is left out, or added, in a training of its own.

    python benchmarks/ablation.py --synthetic-cache data/faces --portraits PORTRAITS --photos PHOTOS --masks MASKS
        [--regions REGIONS] [--steps 600] [--width 0.25] [--batch-size 8] [--output results/ablation] [--only NAME ...]
        [--parallel 2]

Every variant begins with the same random numbers and sees the same faces and holes, as many of them; then it completes
the aligned photographs in PHOTOS in the holes of MASKS (white: hidden), which nothing was trained on; the mask/face
ratio is by the faces of REGIONS, or else by the occlusion net's. The networks are narrower than the paper's unless
--width 1, so that all of it takes hours, not days; the table says so. The 2D baseline always has the paper's width, so
it is trained with --width 1 alone, or where --only names it. Portraits come in their own light alone. What is finished
is not done again. At the end comes a table (`engine.comparison`), in OUTPUT/comparison.md.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
BASE = {"gan": 0.0}  # weights of the losses; the discriminator, which doubles the time, is a variant


class Variant(NamedTuple):
    """What differs from the first one: of --inpainter-options, of --loss-options, and in other arguments; and the stage
    that trains it."""

    parts: dict[str, Any] = {}
    losses: dict[str, float] = {}
    others: tuple[str, ...] = ()
    stage: str = "inpainter"


FLAT = "2D baseline"
VARIANTS = {
    "all but the discriminator": Variant(),
    "without gates": Variant({"gated": False}),
    "without the mirrored branch": Variant({"mirrored": False}),
    "without the symmetry loss": Variant(losses={"symmetry": 0.0}),
    "without confidence": Variant(others=("--use-conf", "False")),
    "without the image loss": Variant(losses={"image": 0.0}),
    "with attention": Variant({"attention": True}),
    "with the perceptual loss": Variant(others=("--is-using-frecon", "True")),
    "with the discriminator": Variant(losses={"gan": 0.05, "gan_start": 0}),
    FLAT: Variant(stage="inpainter2d"),
}


def run(arguments: list[str], log: Path) -> None:
    """main.py with args.txt; what it says goes to the end of LOG. Raises CalledProcessError."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "ab") as file:
        subprocess.run([sys.executable, str(ROOT / "main.py"), "--config", str(ROOT / "args.txt"), "--log-type",
                        "traditional", *arguments], cwd=ROOT, env=environment, stdout=file, stderr=file, check=True)


def variant(name: str, options: argparse.Namespace) -> Path:
    """Trains and evaluates one variant, unless that is done already; returns the evaluation's folder."""
    differs = VARIANTS[name]
    flat = differs.stage == "inpainter2d"
    folder = options.output / name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    trained, evaluated = folder / differs.stage / "last.pth", folder / "eval"
    if not (folder / "trained").exists():
        shape = [] if flat else ["--inpainter-options", json.dumps({"width": options.width, **differs.parts})]
        resume = ["--resume", str(trained)] if trained.exists() else []
        run(["--stage", differs.stage, "--result-path", str(folder), "--synthetic-cache", str(options.synthetic_cache),
             "--portraits", str(options.portraits), "--portrait-share", "0.6", "--portrait-lights", "0",
             "--batch-size", str(options.batch_size), "--learning-rate", "8e-4", "--scheduler-method",
             "CosineAnnealingLR", "--max-steps", str(options.steps), "--ema", "0.99", "--nthreads", "0", *shape,
             "--loss-options", json.dumps({**BASE, **differs.losses}), *differs.others, *resume], folder / "log.txt")
        (folder / "trained").touch()
    if not (evaluated / "metrics.csv").exists():
        weights = ["2d", "--inpainter2d-ckpt"] if flat else ["3dmm_pca", "--recon-ckpt"]
        run(["--eval", "--dataset-test", "Faces", "--dataroot", str(options.photos), "--mask-dir", str(options.masks),
             *(["--face-dir", str(options.regions)] if options.regions else []), "--output", str(evaluated),
             "--overwrite", "--model-type", *weights, str(trained)], folder / "log.txt")
    return evaluated


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("synthetic-cache", "portraits", "photos", "masks"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--regions", type=lambda text: Path(text).resolve())
    parser.add_argument("--output", type=lambda text: Path(text).resolve(), default=ROOT / "results" / "ablation")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--width", type=float, default=0.25, help="channels, as a share of the paper's")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS))
    parser.add_argument("--parallel", type=int, default=2, help="trainings at a time, a core each")
    options = parser.parse_args()
    options.only = options.only or [name for name in VARIANTS if name != FLAT or options.width == 1]
    with ThreadPoolExecutor(options.parallel) as pool:
        done = {name: pool.submit(variant, name, options) for name in options.only}
        for name, future in tqdm(done.items(), "variants"):
            try:
                future.result()
            except subprocess.CalledProcessError:
                log = options.output / name.replace(" ", "_") / "log.txt"
                print(f"error: {name} failed; {log} says why, and the same command goes on", file=sys.stderr)
                pool.shutdown(cancel_futures=True)
                return 1
    folders = [f"{name}={future.result()}" for name, future in done.items()]
    return subprocess.run([sys.executable, "-m", "engine.comparison", *folders, "--output", str(options.output)],
                          cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
