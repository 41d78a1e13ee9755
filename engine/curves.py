"""A picture of how trainings went, from the TensorBoard files in their run folders.

    python -m engine.curves results/encoder results/occlusion --output docs/pictures/training.png

draws, one row per run, every loss over the steps and the held-out measures.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Mapping, Sequence

from engine.report import save_figure
from utils.errors import UserError
from utils.logging import note, run_script

Curve = tuple[list[int], list[float]]


def read_scalars(run: str | Path) -> dict[str, Curve]:
    """Scalar curves of a run folder (or its logs): tag -> (steps, values); of repeated steps the last one counts.

    Raises UserError if the folder holds no TensorBoard file.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = Path(run)
    files = sorted(path.parent for path in run.rglob("events.out.tfevents.*")) if run.is_dir() else []
    if not files:
        raise UserError(f"{run} holds no TensorBoard files: name a training's run folder, such as results/encoder")
    curves: dict[str, dict[int, float]] = {}
    for folder in dict.fromkeys(files):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            curves.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    return {tag: (sorted(values), [values[step] for step in sorted(values)]) for tag, values in curves.items()}


def draw(runs: Mapping[str, Mapping[str, Curve]], path: str | Path) -> None:
    """Writes the picture: per run its losses, each divided by its first value, and its held-out measures."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(len(runs), 2, figsize=(12, 3.6 * len(runs)), squeeze=False)
    for (name, curves), (losses, held_out) in zip(runs.items(), axes):
        for tag, (steps, values) in sorted(curves.items()):
            kind, _, label = tag.partition("/")
            if kind == "loss":
                losses.plot(steps, [value / (abs(values[0]) or 1) for value in values], label=label, linewidth=1)
            elif kind == "held_out":
                held_out.plot(steps, values, marker="o", markersize=3, label=label, linewidth=1)
        losses.set_title(f"{name}: losses, relative to their first value")
        losses.set_yscale("log")
        held_out.set_title(f"{name}: held-out measures")
        for axis in (losses, held_out):
            axis.set_xlabel("optimiser step")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)
    figure.tight_layout()
    save_figure(figure, path, 90)
    pyplot.close(figure)


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m engine.curves", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders of trainings")
    parser.add_argument("--output", default="training.png", metavar="PNG", help="picture to write")
    options = parser.parse_args(arguments)
    draw({run: read_scalars(run) for run in options.runs}, options.output)
    note(f"{options.output}: curves of {', '.join(options.runs)}")


if __name__ == "__main__":
    sys.exit(run_script(main))
