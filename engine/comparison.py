"""Several evaluations of the same holes in one table and one picture of curves.

    python -m engine.comparison linear=results/linear 2D=results/2d --output results/comparison

Each NAME=FOLDER is an output folder of ``main.py --eval``. Written are comparison.md, the averages over ranges of the
mask/face ratio, and comparison.png, the means by bins of ten percent. The simple methods come from the first folder.
The paper's own CelebA curve is drawn dashed: it is of another test set and another hole for each image, and stands
there for orientation only.
"""
from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Mapping, Sequence

from engine.report import by_bin, mean, save_figure
from utils.errors import UserError
from utils.files import write_bytes
from utils.logging import note, run_script

MEASURES = ("psnr", "ssim", "lpips")
RANGES = ((0.0, 1.01, "all"), (0.3, 0.5, "30-50 %"), (0.5, 0.7, "50-70 %"), (0.7, 1.01, "70-100 %"))
# The paper on CelebA, read off its plot: +-0.2 dB; means of the bins 0-10 %, 10-20 %, ...
PAPER = {"psnr": (38.6, 34.8, 33.4, 32.2, 31.0, 30.0, 28.9, 28.0, 27.5, 24.9),
         "lpips": (0.008, 0.015, 0.020, 0.025, 0.032, 0.038, 0.045, 0.051, 0.054, 0.062)}

Scores = Mapping[str, Mapping[str, float | None]]  # image -> column -> value; None: not measured


def read(folder: str | Path) -> dict[str, Scores]:
    """Method -> scores of an evaluation's folder; this project's own method is called "".

    Raises UserError if its tables are missing or of images without truth.
    """
    methods: dict[str, dict[str, dict[str, float | None]]] = {}
    for name in ("metrics.csv", "baselines.csv"):
        path = Path(folder) / name
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            for row in rows:
                values = {measure: float(row[measure]) if row[measure] else None for measure in MEASURES}
                if set(values.values()) == {None}:
                    raise ValueError(f"none of {row['name']}")
                values["ratio"] = float(row["ratio"])
                methods.setdefault(row.get("method", ""), {})[row["name"]] = values
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; name an output folder of main.py --eval") from None
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}: no scores of completed faces ({error})") from None
    if "" not in methods:
        raise UserError(f"{folder}: metrics.csv has no rows, so nothing was evaluated there")
    return methods


def collect(folders: Mapping[str, str | Path]) -> dict[str, Scores]:
    """Method -> scores: the folders' own methods by the names given, then the first one's simple methods.

    Raises UserError if two of them are not of the same images and holes.
    """
    found: dict[str, Scores] = {}
    simple: dict[str, Scores] = {}
    for name, folder in folders.items():
        methods = read(folder)
        own = methods.pop("")
        for other, scores in found.items():
            if {key: values["ratio"] for key, values in own.items()} != {key: values["ratio"]
                                                                         for key, values in scores.items()}:
                raise UserError(f"{folder} and the evaluation called {other} are not of the same images and holes")
        simple = simple or methods
        found[name] = own
    if set(found) & set(simple):
        raise UserError(f"{', '.join(set(found) & set(simple))} is a simple method's name: give the evaluation another")
    return {**found, **simple}


def measured(methods: Mapping[str, Scores]) -> list[str]:
    """The measures of which any method has values: LPIPS may not have been available."""
    return [measure for measure in MEASURES
            if any(values[measure] is not None for scores in methods.values() for values in scores.values())]


def table(methods: Mapping[str, Scores]) -> str:
    """A Markdown table, methods down and ranges of the ratio across: PSNR / SSIM / LPIPS, as far as measured."""
    measures = measured(methods)
    some = next(iter(methods.values())).values()
    counts = [sum(low <= values["ratio"] < high for values in some) for low, high, _ in RANGES]
    kept = [index for index, count in enumerate(counts) if count]
    headings = [" / ".join(measures).upper(), *(f"{RANGES[index][2]} ({counts[index]})" for index in kept)]
    lines = [f"| {' | '.join(headings)} |",
             "|---|" + "---|" * len(kept)]
    for name, scores in methods.items():
        cells = []
        for low, high, _ in (RANGES[index] for index in kept):
            inside = [values for values in scores.values() if low <= values["ratio"] < high]
            averages = [mean([values[measure] for values in inside]) for measure in measures]
            cells.append(" / ".join(map(_cell, measures, averages)))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(measure: str, value: float | None) -> str:
    """PSNR with two decimals, the others with four and without the zero before them."""
    if value is None:
        return "-"
    return f"{value:.2f}" if measure == "psnr" else f"{value:.4f}".lstrip("0")


def draw(methods: Mapping[str, Scores], path: Path) -> None:
    """Writes the curves as a PNG: each measure that any method has against the mask/face ratio."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    measures = measured(methods)
    figure, axes = pyplot.subplots(1, len(measures), figsize=(4.6 * len(measures), 3.8), squeeze=False)
    for axis, measure in zip(axes[0], measures):
        for name, scores in methods.items():
            _, means = by_bin([values["ratio"] for values in scores.values()],
                              [values[measure] for values in scores.values()])
            _plot(axis, means, label=name, marker="o", markersize=3)
        if measure in PAPER:
            _plot(axis, PAPER[measure], label="paper, on CelebA", linestyle="--", color="grey")
        axis.set_xlabel("mask / face ratio (%), lower end of the bin")
        axis.set_title(measure.upper() + (" (dB)" if measure == "psnr" else ""))
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    save_figure(figure, path, 110)
    pyplot.close(figure)


def _plot(axis, means: Sequence[float | None], **style) -> None:
    points = [(10 * index, value) for index, value in enumerate(means) if value is not None]
    axis.plot(*zip(*points), **style)


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m engine.comparison", description=__doc__.splitlines()[0])
    parser.add_argument("evaluations", nargs="+", metavar="NAME=FOLDER", help="output folders of main.py --eval")
    parser.add_argument("--output", default="results/comparison", help="folder to write to")
    options = parser.parse_args(arguments)
    folders = {}
    for item in options.evaluations:
        name, equals, folder = item.partition("=")
        if not (name and equals and folder) or name in folders:
            raise UserError(f"{item}: give each evaluation as NAME=FOLDER, with a name of its own")
        folders[name] = folder
    methods, output = collect(folders), Path(options.output)
    text = table(methods)
    write_bytes(output / "comparison.md", text.encode())
    draw(methods, output / "comparison.png")
    note(f"{text}\nwritten to {output}")


if __name__ == "__main__":
    sys.exit(run_script(main))
