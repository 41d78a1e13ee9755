#!/usr/bin/env python
"""Align and crop faces to 256x256: CelebA with its annotated landmarks, or any folder of portraits with MTCNN's.

    python process_celeba.py --celeba datasets/CelebA
    python process_celeba.py --folder portraits --output faces
    python process_celeba.py --celeba datasets/CelebA --shard 2/8      # the second of eight machines' shares

An interrupted run continues where it stopped: crops that exist and can be read are kept.
"""
from __future__ import annotations

import argparse
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Iterator, Sequence

from utils.errors import UserError
from utils.files import read_text
from utils.logging import note, progress, run_script

DEFAULT_CELEBA = "datasets/CelebA"
# Folder of pictures and the annotation that belongs to it, in order of preference.
CELEBA_VARIANTS = (
    ("img_celeba", "list_landmarks_celeba"),
    ("img_align_celeba", "list_landmarks_align_celeba"),
)
LISTED = 20  # failures listed in the summary

_detector = None  # MTCNN of this worker process, loaded for its first picture


@dataclass(frozen=True)
class Task:
    """One picture to align: ``landmarks`` are its 10 annotated numbers, or None to find them with MTCNN."""

    source: Path
    target: Path
    landmarks: tuple[float, ...] | None


@dataclass(frozen=True)
class Outcome:
    """What became of a task: "written", "kept" (was there already) or "failed" for ``reason``."""

    status: str
    reason: str = ""


def main(arguments: Sequence[str]) -> int:
    """Align what the command line names; returns the exit status."""
    options = parse_arguments(arguments)
    if options.folder is not None:
        output = options.output or options.folder.resolve().with_name(options.folder.resolve().name + "_aligned")
        tasks, failures = folder_tasks(options.folder, output, options.format)
    else:
        from datasets.alignment import CROP_FOLDER

        output = options.output or options.celeba / CROP_FOLDER
        tasks, failures = celeba_tasks(options.celeba, output, options.format)
    tasks, failures = (share(items, options.shard) for items in (tasks, failures))
    if not tasks and not failures:
        note(f"shard {options.shard[0]}/{options.shard[1]} has no pictures: there are fewer than shards")
        return 0
    counts, more = align_all(tasks, options.num_workers, options.overwrite)
    return summarise(counts, failures + more, output)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; see --help."""
    parser = argparse.ArgumentParser(
        description="Align and crop faces to 256x256, as the networks want them.",
        epilog="Exit status: 0 all done, 1 some pictures could not be done (they are listed), or none.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--celeba", type=Path, default=Path(DEFAULT_CELEBA), metavar="DIR",
                        help="CelebA's folder: img_celeba/ or img_align_celeba/, and the landmark list in Anno/ or "
                             "beside them (default: %(default)s)")
    source.add_argument("--folder", type=Path, metavar="DIR",
                        help="align any folder of portraits (and its subfolders), finding the largest face of each")
    parser.add_argument("--output", type=Path, metavar="DIR",
                        help="folder for the crops (default: celebahq_crop in CelebA's folder, or DIR_aligned beside "
                             "--folder DIR)")
    parser.add_argument("--num-workers", "--nthreads", type=int, default=os.cpu_count() or 1, metavar="N",
                        help="worker processes (default: %(default)s)")
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg", help="of the crops (default: %(default)s)")
    parser.add_argument("--shard", type=parse_shard, default=(1, 1), metavar="I/N",
                        help="do every N-th picture only, from the I-th on: N commands with I from 1 to N, on as many "
                             "machines, do each picture once and may share an --output")
    parser.add_argument("--overwrite", action="store_true", help="make crops again that exist already")
    options = parser.parse_args(arguments)
    if options.num_workers < 1:
        parser.error(f"--num-workers is {options.num_workers}: give at least 1")
    return options


def parse_shard(text: str) -> tuple[int, int]:
    """--shard's "I/N" as (I, N), 1 <= I <= N."""
    index, _, count = text.partition("/")
    try:
        shard = int(index), int(count)
    except ValueError:
        shard = 0, 0
    if not 1 <= shard[0] <= shard[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is no share such as 2/8: give I/N with I from 1 to N")
    return shard


def share(items: list, shard: tuple[int, int]) -> list:
    """The items of shard (I, N): every N-th from the I-th on."""
    index, count = shard
    return items[index - 1::count]


def celeba_tasks(celeba: Path, output: Path, suffix: str) -> tuple[list[Task], list[str]]:
    """The pictures of CelebA with their landmarks, and a line for each picture that has none.

    Raises UserError if the folder, its pictures or its landmark file are missing.
    """
    from utils.files import inside
    from utils.images import list_images

    folder, annotation = find_celeba(celeba)
    landmarks = read_landmarks(annotation)
    tasks, failures = [], []
    for source in list_images(folder, recursive=True):
        if source.stem in landmarks:
            tasks.append(Task(source, inside(output, f"{source.stem}.{suffix}"), landmarks[source.stem]))
        else:
            failures.append(f"{source} has no landmarks in {annotation}")
    if not tasks:
        raise UserError(f"no picture of {folder} is named in {annotation}: check that both belong to CelebA")
    absent = len(landmarks) - len(tasks)
    if absent > 0:
        note(f"{absent} of the {len(landmarks)} pictures named in {annotation.name} are not in {folder}")
    return without_collisions(tasks, failures)


def folder_tasks(folder: Path, output: Path, suffix: str) -> tuple[list[Task], list[str]]:
    """All pictures below ``folder``, their subfolders kept, and a line for each that cannot be named.

    Raises UserError if the folder is missing or empty, or if the crops would be written among the pictures.
    """
    from utils.files import inside
    from utils.images import list_images

    sources = list_images(folder, recursive=True)
    if not sources:
        raise UserError(f"{folder} holds no pictures: give a folder of .jpg or .png portraits")
    if output.resolve() == folder.resolve():
        raise UserError(f"--output is the folder of the pictures itself, {folder}: give another one")
    if folder.resolve() in output.resolve().parents:  # its crops are not pictures to align
        sources = [source for source in sources if output.resolve() not in source.resolve().parents]
        if not sources:
            raise UserError(f"{folder} holds no pictures but those in the output, {output}")
    tasks = [Task(source, inside(output, str(source.relative_to(folder).with_suffix(f".{suffix}"))), None)
             for source in sources]
    return without_collisions(tasks, [])


def without_collisions(tasks: list[Task], failures: list[str]) -> tuple[list[Task], list[str]]:
    """Drop tasks whose crop would replace that of an earlier one (a.png after a.jpg), with a line for each."""
    first: dict[Path, Task] = {}
    for task in tasks:
        if task.target in first:
            failures.append(f"{task.source} would replace the crop of {first[task.target].source}: rename it")
        else:
            first[task.target] = task
    return list(first.values()), failures


def find_celeba(celeba: Path) -> tuple[Path, Path]:
    """The folder of pictures and its landmark file. Raises UserError saying which of them is missing."""
    if not celeba.is_dir():
        raise UserError(f"{celeba} does not exist: give CelebA's folder as --celeba DIR, or --folder DIR to align "
                        "other portraits")
    found = [(celeba / pictures, name) for pictures, name in CELEBA_VARIANTS if (celeba / pictures).is_dir()]
    for pictures, name in found:
        for place in (celeba / "Anno", celeba):
            for file in (place / f"{name}.txt", place / f"{name}.csv"):
                if file.is_file():
                    return pictures, file
    if found:
        pictures, name = found[0]
        raise UserError(f"{celeba} has {pictures.name}/ but not Anno/{name}.txt: put CelebA's landmark list there")
    raise UserError(f"{celeba} has neither img_celeba/ nor img_align_celeba/: unpack CelebA's pictures there")


def read_landmarks(path: Path) -> dict[str, tuple[float, ...]]:
    """Name without suffix -> 10 numbers x0 y0 ... x4 y4 from CelebA's list (or its comma-separated form).

    The count and header lines before the first picture are passed over. Raises UserError naming a malformed line, or
    saying that it is no text.
    """
    landmarks: dict[str, tuple[float, ...]] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        fields = line.replace(",", " ").split()
        if not fields or number <= 2 and "." not in fields[0]:
            continue
        try:
            values = tuple(float(field) for field in fields[1:])
        except ValueError:
            values = ()
        if len(values) != 10 or not all(map(math.isfinite, values)):
            raise UserError(f"{path}, line {number}: expected a name and 10 numbers, found {line.strip()[:60]!r}")
        landmarks[Path(fields[0]).stem] = values
    if not landmarks:
        raise UserError(f"{path} names no pictures: put CelebA's landmark list there")
    return landmarks


def align_all(tasks: list[Task], num_workers: int, overwrite: bool) -> tuple[dict[str, int], list[str]]:
    """Do all tasks with a progress bar; returns the number of tasks per status, and a line for each failure."""
    counts = {"written": 0, "kept": 0, "failed": 0}
    failures = []
    for outcome in progress(run_tasks(tasks, num_workers, overwrite), "aligning", total=len(tasks)):
        counts[outcome.status] += 1
        if outcome.status == "failed":
            failures.append(outcome.reason)
    return counts, failures


def run_tasks(tasks: list[Task], num_workers: int, overwrite: bool) -> Iterator[Outcome]:
    """Outcomes in the order of the tasks, from this process or from ``num_workers`` others."""
    num_workers = min(num_workers, len(tasks))
    if num_workers <= 1:
        yield from map(align_task, tasks, [overwrite] * len(tasks))
        return
    # Spawned, not forked: a fork would copy OpenCV's and onnxruntime's threads half-way through what they do.
    executor = ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"), initializer=_limit_threads)
    try:
        chunk = max(1, min(16, len(tasks) // (4 * num_workers)))
        yield from executor.map(align_task, tasks, [overwrite] * len(tasks), chunksize=chunk)
    except BrokenProcessPool as error:
        raise UserError("a worker process died, perhaps for lack of memory: run the command again to continue, with a "
                        "smaller --num-workers") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def align_task(task: Task, overwrite: bool = False) -> Outcome:
    """Align one picture and write its crop; anything wrong with the picture is the outcome, not an exception."""
    import cv2
    import numpy as np

    from datasets.alignment import align
    from utils.images import read_image, write_image

    if not overwrite and _is_done(task.target):
        return Outcome("kept")
    try:
        image = read_image(task.source)
        if task.landmarks is None:
            landmarks = _worker_detector().detect(image, str(task.source))[0].landmarks
        else:
            landmarks = np.array(task.landmarks).reshape(5, 2)
        crop = align(image, landmarks)
    except (UserError, MemoryError, cv2.error) as error:
        reason = " ".join(str(error).split()) or "not enough memory"
        return Outcome("failed", reason if str(task.source) in reason else f"{task.source}: {reason}")
    write_image(task.target, crop)  # a full disk concerns all pictures, so its UserError ends the run
    return Outcome("written")


def summarise(counts: dict[str, int], failures: Sequence[str], output: Path) -> int:
    """Print what was done and what was not; returns the exit status."""
    note(f"{counts['written']} crops written, {counts['kept']} were there already, "
         f"{len(failures)} pictures left out; crops are in {output}")
    for line in failures[:LISTED]:
        print(f"  left out: {line}", file=sys.stderr)
    if len(failures) > LISTED:
        print(f"  ... and {len(failures) - LISTED} more", file=sys.stderr)
    if counts["written"] + counts["kept"] == 0:
        raise UserError("no picture could be aligned: see the list above")
    return 1 if failures else 0


def _is_done(target: Path) -> bool:
    """Is there already a readable crop of the right size?"""
    from datasets.alignment import CROP_SIZE
    from utils.images import read_image

    if not target.is_file():
        return False
    try:
        return read_image(target).shape[:2] == (CROP_SIZE, CROP_SIZE)
    except UserError:
        return False


def _worker_detector():
    """MTCNN, loaded once per process, with one thread: the processes are the parallelism."""
    global _detector
    if _detector is None:
        from datasets.detection import Detector

        _detector = Detector(threads=1)
    return _detector


def _limit_threads() -> None:
    """Keep a worker process to one thread: NumPy's reads these variables when it is loaded, OpenCV's are set."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    import cv2

    cv2.setNumThreads(1)


if __name__ == "__main__":
    sys.exit(run_script(main))
