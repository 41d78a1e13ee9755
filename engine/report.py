"""What people see of training and evaluation: progress, tables, curves, grids of pictures."""
from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
import time
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence, TextIO

import cv2
import numpy as np
import torch
from torch import Tensor

from datasets.masks import RATIO_BINS, ratio_bin
from utils.files import write_bytes
from utils.images import write_image

LINE_SECONDS = 10.0  # a log that is no terminal gets a line this often
SPEED_SECONDS = 20.0  # over which the speed that is shown is smoothed
HOLE_GREY = 128  # how a hole is shown


class TrainingDisplay:
    """Losses, speed and remaining time of a training run: a bar on a terminal, else a line every ten seconds."""

    def __init__(self, bar: bool, active: bool):
        self.active, self.bar = active, None
        self.printed = 0.0
        self.speed: float | None = None
        self.since: float | None = None  # seconds trained when `items` began to be counted
        self.items = 0
        if active and bar and sys.stderr.isatty():
            from tqdm import tqdm
            self.bar = tqdm(total=1.0, bar_format="{percentage:3.0f}%|{bar:20}| {desc}", dynamic_ncols=True)

    def update(self, fraction: float, elapsed: float, step: int, epoch: int, items: int,
               losses: Mapping[str, float]) -> None:
        """fraction of the run in [0, 1], seconds trained, `items` seen in this step, smoothed losses by name."""
        now = time.monotonic()
        self._measure(elapsed, items)
        if not self.active or (self.bar is None and now - self.printed < LINE_SECONDS):
            return
        self.printed = now
        remaining = elapsed * (1 - fraction) / fraction if fraction > 0 else float("inf")
        speed = f"{self.speed:.1f} img/s" if self.speed else "-"
        text = f"step {step} epoch {epoch} {join_numbers(losses)} | {speed} | ETA {clock(remaining)}"
        if self.bar is None:
            print(f"{100 * fraction:5.1f} % {text}", flush=True)
        else:
            self.bar.n = fraction
            self.bar.set_description_str(text)

    def _measure(self, elapsed: float, items: int) -> None:
        """Keeps the speed, smoothed over SPEED_SECONDS. Of a GPU's steps many are told at one time."""
        if self.since is None:
            self.since = elapsed
        elif elapsed > self.since:
            passed = elapsed - self.since
            share = min(1.0, passed / SPEED_SECONDS)
            current = self.items / passed
            self.speed = current if self.speed is None else (1 - share) * self.speed + share * current
            self.since, self.items = elapsed, 0
        self.items += items

    def line(self, text: str) -> None:
        """Prints a line of its own, above the bar if there is one."""
        if self.bar is not None:
            self.bar.write(text)
        elif self.active:
            print(text, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss; "?" if they are not finite."""
    if not np.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def join_numbers(values: Mapping[str, float]) -> str:
    """"name 1.23, other 0.0456": four significant digits each."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


# ---- tables ------------------------------------------------------------------------------------------------------

def by_bin(ratios: Sequence[float], values: Sequence[float | None]) -> tuple[list[int], list[float | None]]:
    """(counts, means) of `values` per tenth of the mask/face ratio in [0, 1]; None where there is nothing."""
    bins = [ratio_bin(ratio) for ratio in ratios]
    groups = [[value for value, where in zip(values, bins) if where == index] for index in range(RATIO_BINS)]
    return [len(group) for group in groups], [mean(group) for group in groups]


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are there; None if none is."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def format_table(ratios: Sequence[float], scores: Mapping[str, Mapping[str, Sequence[float | None]]]) -> str:
    """The evaluation's table as text: for each measure a row per mask/face bin that has images, a column per method.

    ratios: mask/face of each image; scores: measure -> method -> one value per image (None: not available).
    """
    lines: list[str] = []
    for measure, methods in scores.items():
        width = max(12, *(len(name) + 2 for name in methods))
        lines += ["", f"{measure:<10}{'images':>8}" + "".join(f"{name:>{width}}" for name in methods)]
        per_method = {name: by_bin(ratios, values) for name, values in methods.items()}
        counts = next(iter(per_method.values()))[0]
        for index, count in enumerate(counts):
            if count:
                cells = "".join(cell(means[index], measure, width) for _, means in per_method.values())
                lines.append(f"{10 * index:>3}-{10 * index + 10:<3} %{count:>9}" + cells)
        cells = "".join(cell(mean(values), measure, width) for values in methods.values())
        lines.append(f"{'average':<10}{len(ratios):>8}" + cells)
    return "\n".join(lines[1:])


def cell(value: float | None, measure: str, width: int) -> str:
    """One number of the table: PSNR with two decimals, the others with four."""
    if value is None:
        return f"{'-':>{width}}"
    return f"{value:>{width}.{2 if measure == 'PSNR' else 4}f}"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Writes rows atomically; floats with six digits behind the point, None as an empty cell."""
    def text(value: Any) -> Any:
        return "" if value is None else f"{value:.6f}" if isinstance(value, float) else value
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([text(row[column]) for column in columns] for row in rows)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, indented."""
    with atomic_text(path) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


@contextlib.contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """A text file that appears under its name only when it is complete. Names that are no UTF-8 are written escaped."""
    text = io.StringIO(newline="")
    yield text
    write_bytes(path, text.getvalue().encode(errors="backslashreplace"))


def save_figure(figure: Any, path: str | Path, dpi: int) -> None:
    """Writes a figure of matplotlib as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    write_bytes(path, buffer.getvalue())


# ---- pictures ----------------------------------------------------------------------------------------------------

class Spread:
    """Chooses up to `count` of `length` faces, spread evenly, to be shown as examples; some may turn out unusable.

    For each of `count` places it takes the first usable face from there on. Processes that share the faces have one
    each; a further one, asked about all that these took, leaves what a single process would have taken.
    """

    def __init__(self, count: int, length: int):
        self.due = np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()

    def takes(self, place: int) -> bool:
        """Is the usable face at this place, which is beyond the last one asked about, an example?"""
        taken = bool(self.due) and self.due[0] <= place
        if taken:
            del self.due[0]
        return taken


def draw_curves(path: Path, ratios: Sequence[float],
                scores: Mapping[str, Mapping[str, Sequence[float | None]]]) -> None:
    """Each measure against the mask/face ratio, one curve per method, like the paper's figure; a PNG."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    measures = [name for name, methods in scores.items()
                if any(mean(values) is not None for values in methods.values())]
    figure, axes = pyplot.subplots(1, len(measures), figsize=(4.6 * len(measures), 3.6), squeeze=False)
    for axis, measure in zip(axes[0], measures):
        for name, values in scores[measure].items():
            _, means = by_bin(ratios, values)
            points = [(10 * index, value) for index, value in enumerate(means) if value is not None]
            if points:
                axis.plot(*zip(*points), marker="o", label=name)
        axis.set_xlabel("mask / face ratio (%), lower end of the bin")
        axis.set_ylabel(measure + (" (dB)" if measure == "PSNR" else ""))
        axis.set_xlim(-5, 95)
        axis.grid(alpha=0.3)
    axes[0][0].legend()
    figure.tight_layout()
    save_figure(figure, path, 110)
    pyplot.close(figure)


def draw_grid(path: Path, columns: Sequence[str], rows: Sequence[Sequence[np.ndarray]], names: Sequence[str]) -> None:
    """A grid of examples: uint8 RGB pictures of one size, a heading per column, a name per row; a PNG."""
    height, width = rows[0][0].shape[:2]
    margin, header = 110, 24
    canvas = np.full((header + len(rows) * (height + 2), margin + len(columns) * (width + 2), 3), 255, np.uint8)
    for column, title in enumerate(columns):
        _write(canvas, title, (margin + column * (width + 2) + 4, 17))
    for index, (pictures, name) in enumerate(zip(rows, names)):
        top = header + index * (height + 2)
        _write(canvas, name[:14], (4, top + height // 2))
        for column, picture in enumerate(pictures):
            left = margin + column * (width + 2)
            canvas[top:top + height, left:left + width] = picture
    write_image(path, canvas)


def draw_sheet(path: Path, pictures: Sequence[np.ndarray], captions: Sequence[str], columns: int) -> None:
    """A contact sheet: uint8 RGB pictures of one size, row by row, each below its caption; a PNG."""
    height, width = pictures[0].shape[:2]
    header, gap = 18, 2
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * (header + height), columns * (width + gap), 3), 255, np.uint8)
    for index, (picture, caption) in enumerate(zip(pictures, captions)):
        top, left = index // columns * (header + height), index % columns * (width + gap)
        _write(canvas, caption, (left + 2, top + 13))
        canvas[top + header:top + header + height, left:left + width] = picture
    write_image(path, canvas)


def _write(canvas: np.ndarray, text: str, place: tuple[int, int]) -> None:
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)


def tile(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Pictures (3, H, W) in [-1, 1], all of one size, as one uint8 picture (3, sum H, sum W), row by row."""
    joined = torch.cat([torch.cat([picture.detach().float().cpu() for picture in row], dim=2) for row in rows], dim=1)
    return ((joined.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
