"""Completing many photos: one after another or several at a time, going on where an earlier run stopped.

A photo's folder holds result.json once all its files are written. It says from what they were made: as long as that is
the same, a later run over the folder leaves the photo out.
"""
from __future__ import annotations

import hashlib
import json
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import numpy as np

from engine import holes
from engine.given_faces import GivenFaces
from engine.mesh_export import write_head
from engine.photo import CompletedPhoto, PhotoCompleter
from engine.photo_pictures import write_landmarks, write_pictures
from utils.errors import UserError
from utils.images import read_colour_profile, read_image, write_bytes

RECORD = "result.json"
FAILURE = "error.txt"
VERSION = 1  # raised when the same inputs give other results


@dataclass(frozen=True)
class Job:
    """What is wanted for every photo besides the completer's options.

    mask: picture, or folder of them, of the hole; mask_is_visible: with the other convention. signature: what
    else decides about a result, such as the weights' files; any JSON.
    """

    mask: Path | None = None
    mask_is_visible: bool = False
    landmarks: GivenFaces | None = None
    save_landmarks: bool = False
    save_mesh: bool = False
    signature: Any = None


@dataclass(frozen=True)
class Outcome:
    """What became of a photo. status: "done", "earlier" (by an earlier run) or "failed", then error says why.

    hidden: share of the first completed face, in [0, 1].
    """

    name: str
    path: str
    folder: str
    status: str
    width: int = 0
    height: int = 0
    faces: int = 0
    hidden: float = 0.0
    seconds: float = 0.0
    remarks: tuple[str, ...] = ()
    error: str = ""


def complete_file(completer: PhotoCompleter, path: Path, folder: Path, job: Job = Job()) -> CompletedPhoto:
    """Complete the photo in a file and write its pictures into a folder. Raises UserError as the steps do."""
    photo = read_image(path)
    hole = None
    if job.mask is not None:
        hole = holes.read_photo_mask(job.mask, path, photo.shape[:2], job.mask_is_visible)
    result = completer.complete(photo, str(path), hole, job.landmarks.of(path) if job.landmarks else None)
    write_result(result, folder, job, read_colour_profile(path))
    return result


def write_result(result: CompletedPhoto, folder: Path, job: Job = Job(), colour_profile: bytes | None = None) -> None:
    """Write the pictures, and of the first completed face (see `engine.photo_pictures`) what the job wants besides."""
    write_pictures(result, folder, colour_profile)
    for place, face in enumerate(result.faces, start=1):
        own = folder if place == 1 else folder / f"face{place}"
        if job.save_landmarks:
            write_landmarks(face, own / "landmarks.txt")
        if job.save_mesh:
            write_head(face, own)


def complete_all(completer: PhotoCompleter, photos: Mapping[str, Path], output: Path, job: Job, workers: int = 1,
                 resume: bool = False, keep_going: bool = True) -> Iterator[Outcome]:
    """Complete photos, by the names of their folders inside `output`; yields outcomes as they come.

    workers: photos worked on at a time (threads: the networks are loaded once). resume: leave out what an earlier run
    made from the same. Whatever goes wrong with one photo is its outcome and does not stop the others; only without
    keep_going a defect of the program is an exception.
    """
    def one(item: tuple[str, Path]) -> Outcome:
        return _attempt(completer, *item, output / item[0], job, resume, keep_going)

    if workers <= 1:
        yield from map(one, photos.items())
        return
    waiting, pool = iter(photos.items()), ThreadPoolExecutor(workers)
    try:
        running = {pool.submit(one, item) for item in islice(waiting, workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(one, item) for item in islice(waiting, len(done))}
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _attempt(completer: PhotoCompleter, name: str, path: Path, folder: Path, job: Job, resume: bool,
             keep_going: bool) -> Outcome:
    began = time.perf_counter()
    try:
        key = fingerprint(path, completer, job)
        earlier = _earlier(folder, key) if resume else None
        if earlier is not None:
            return earlier
        (folder / RECORD).unlink(missing_ok=True)  # an interrupted run must not look finished
        result = complete_file(completer, path, folder, job)
    except (UserError, OSError, MemoryError) as error:
        reason = str(error) if isinstance(error, UserError) else f"{path}: {error or 'not enough memory'}"
        return Outcome(name, str(path), str(folder), "failed", seconds=time.perf_counter() - began, error=reason)
    except Exception as error:  # a defect of the program, which must not cost the other photos
        if not keep_going:
            raise
        write_bytes(folder / FAILURE, traceback.format_exc().encode())
        reason = f"{path}: unexpected {type(error).__name__}, see {folder / FAILURE}"
        return Outcome(name, str(path), str(folder), "failed", seconds=time.perf_counter() - began, error=reason)
    (folder / FAILURE).unlink(missing_ok=True)
    height, width = result.photo.shape[:2]
    hidden = result.faces[0].hidden_share if result.faces else 0.0
    outcome = Outcome(name, str(path), str(folder), "done", width, height, len(result.faces), hidden,
                      time.perf_counter() - began, result.remarks)
    write_bytes(folder / RECORD, (json.dumps({"made_from": key, **asdict(outcome)}, indent=1) + "\n").encode())
    return outcome


def fingerprint(path: Path, completer: PhotoCompleter, job: Job) -> str:
    """A digest of all that decides about a photo's results: its file, mask and landmarks, the options, the signature."""
    digest = hashlib.sha256(path.read_bytes())
    mask = job.mask
    if mask is not None and mask.is_dir():
        mask = next((file for file in sorted(mask.rglob("*")) if file.stem == path.stem and file.is_file()), None)
    digest.update(mask.read_bytes() if mask is not None and mask.is_file() else b"")
    given = job.landmarks.of(path) if job.landmarks else None
    places = None if given is None else [np.round(face.landmarks, 3).tolist() for face in given]
    rest = [VERSION, asdict(completer.options), job.mask_is_visible, places, job.save_landmarks, job.save_mesh,
            job.signature]
    digest.update(json.dumps(rest, sort_keys=True).encode())
    return digest.hexdigest()


def _earlier(folder: Path, key: str) -> Outcome | None:
    """The outcome of an earlier run that made the folder's files from the same."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.pop("made_from", None) != key \
            or not (folder / "complete_output.png").is_file():
        return None
    record.update(status="earlier", folder=str(folder), remarks=tuple(record["remarks"]))
    return Outcome(**record)


def summary(outcomes: Sequence[Outcome]) -> str:
    """A table of the photos as text, a line each."""
    width = min(max((len(outcome.name) for outcome in outcomes), default=0), 40)
    lines = [f"{'photo':<{width}}  {'status':<8}{'pixels':>12}{'faces':>7}{'hidden':>8}{'seconds':>9}"]
    for outcome in outcomes:
        pixels = f"{outcome.width}x{outcome.height}" if outcome.width else "-"
        hidden = f"{100 * outcome.hidden:.0f} %" if outcome.faces else "-"
        lines.append(f"{outcome.name[:width]:<{width}}  {outcome.status:<8}{pixels:>12}{outcome.faces:>7}{hidden:>8}"
                     f"{outcome.seconds:>9.1f}")
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in ("done", "earlier", "failed")}
    lines.append(f"{len(outcomes)} photos: {counts['done']} completed, {counts['earlier']} by an earlier run, "
                 f"{counts['failed']} failed")
    return "\n".join(lines)
