"""Completing many photos: one after another or several at a time, going on where an earlier run stopped.

A photo's folder holds result.json, which says whose the results are: another photo's are not replaced unasked. Once all
files are written it also says from what they were made: as long as that is the same, a later run over the folder leaves
the photo out.
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

import numpy as np

from datasets.masks import MaskFolder
from engine import holes
from engine.given_faces import GivenFaces
from engine.mesh_export import HEAD_FILES, write_head
from engine.photo import CompletedPhoto, PhotoCompleter, PhotoOptions
from engine.photo_pictures import FACE_FILES, PHOTO_FILES, face_folder, write_landmarks, write_pictures
from utils import files
from utils.errors import UserError
from utils.images import read_colour_profile, read_image
from utils.logging import progress

RECORD = "result.json"
FAILURE = "error.txt"
LANDMARKS = "landmarks.txt"
RESULTS = (*PHOTO_FILES, *FACE_FILES, *HEAD_FILES, LANDMARKS)  # of a photo, or of one of its further faces
VERSION = 2  # raised when the same inputs give other results


@dataclass(frozen=True)
class Source:
    """The photo that results belong to: its file's absolute path (or what it is called), a digest of its content."""

    path: str
    digest: str

    @classmethod
    def of(cls, path: Path) -> Source:
        """Of a file; OSError if it cannot be read. What is no ordinary file has no digest."""
        return cls(os.path.abspath(path), _digest(path) if path.is_file() else "")


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


def complete_file(completer: PhotoCompleter, path: Path, folder: Path, job: Job = Job(),
                  overwrite: bool = False) -> CompletedPhoto:
    """Complete the photo in a file and write its pictures into a folder.

    overwrite: even if the folder holds another photo's results. Raises UserError as the steps do.
    """
    source = Source.of(path)
    refuse_another(folder, source, overwrite)
    photo = read_image(path)
    hole = None
    if job.mask is not None:
        hole = holes.read_photo_mask(job.mask, path, photo.shape[:2], job.mask_is_visible)
    result = completer.complete(photo, str(path), hole, job.landmarks.of(path) if job.landmarks else None)
    write_result(result, folder, source, job, read_colour_profile(path))
    return result


def refuse_another(folder: Path, source: Source, overwrite: bool) -> None:
    """Raises UserError if the folder holds results that are not known to be of this photo, unless ``overwrite``.

    A photo is the same if its file is, whatever became of its content, or if its content is, wherever it lies now.
    """
    if overwrite:
        return
    advice = "replace them with --overwrite, or choose another --output"
    owner = read_record(folder).get("photo")
    if owner is not None:
        if source.path != owner[0] and (source.digest or None) != owner[1]:
            raise UserError(f"{folder} holds the results of another photo, {owner[0]}, not of {source.path}: {advice}")
        return
    found = [name for name in RESULTS if os.path.lexists(folder / name)]
    if found:
        raise UserError(f"{folder} holds files that may not be of {source.path} ({', '.join(found[:3])}): {advice}")


def read_record(folder: Path) -> dict[str, Any]:
    """The content of the folder's result.json, "photo" being None or the pair of a `Source`; empty if it is none."""
    try:
        record = files.read_json(folder / RECORD)
    except UserError:
        return {}
    if not isinstance(record, dict):
        return {}
    owner = record.get("photo")
    known = isinstance(owner, list) and len(owner) == 2 and all(isinstance(part, str) for part in owner)
    return {**record, "photo": owner if known else None}


def write_result(result: CompletedPhoto, folder: Path, source: Source, job: Job = Job(),
                 colour_profile: bytes | None = None) -> None:
    """Write the pictures (see `engine.photo_pictures`) and what the job wants besides; earlier results go.

    Whose they are is written first, so that a run that is interrupted now can be repeated. Of earlier files those that
    a record names go, where they are not written anew; what others put there stays.
    """
    written = _files_of(len(result.faces), job)
    earlier = _recorded_files(folder)
    _write_record(folder, source, sorted({*written, *earlier}), {})
    write_pictures(result, folder, colour_profile)
    for place, face in enumerate(result.faces, start=1):
        own = face_folder(folder, place)
        if job.save_landmarks:
            write_landmarks(face, own / LANDMARKS)
        if job.save_mesh:
            write_head(face, own)
    for name in {*written, *earlier, RECORD}:
        files.remove_unfinished((folder / name).parent, [Path(name).name])
    for name in earlier - written:
        files.inside(folder, name).unlink(missing_ok=True)
    for own in {(folder / name).parent for name in earlier - written} - {folder}:
        with contextlib.suppress(OSError):  # not empty
            own.rmdir()
    _write_record(folder, source, sorted(written), {})


def _files_of(faces: int, job: Job) -> set[str]:
    """The files that are written for so many completed faces, relative to the photo's folder."""
    own = (*FACE_FILES, *((LANDMARKS,) if job.save_landmarks else ()), *(HEAD_FILES if job.save_mesh else ()))
    further = {f"face{place}/{name}" for place in range(2, faces + 1) for name in own}
    return {*PHOTO_FILES, *(own if faces else ()), *further}


def _recorded_files(folder: Path) -> set[str]:
    """The results that the folder's record names, as far as they are files that this program writes."""
    names = read_record(folder).get("files")
    possible = re.compile(rf"(face\d+/)?({'|'.join(map(re.escape, RESULTS))})")
    return {name for name in names if isinstance(name, str) and possible.fullmatch(name)} \
        if isinstance(names, list) else set()


def _write_record(folder: Path, source: Source, written: Sequence[str], content: Mapping[str, Any]) -> None:
    record = {"photo": [source.path, source.digest], "files": written, **content}
    files.write_bytes(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def complete_all(completer: PhotoCompleter, photos: Mapping[str, Path], output: Path, job: Job, workers: int = 1,
                 keep_going: bool = True, overwrite: bool = False) -> Iterator[Outcome]:
    """Complete photos, each into the folder of its name inside `output`; yields outcomes as they come.

    workers: photos worked on at a time (threads: the networks are loaded once). overwrite: replace another photo's
    results. Whatever goes wrong with one photo is its outcome and does not stop the others; only without keep_going a
    defect of the program is an exception. What need not be done again `find_earlier` knows.
    """
    def one(item: tuple[str, Path]) -> Outcome:
        return _attempt(completer, *item, output, job, keep_going, overwrite)

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


def find_earlier(photos: Mapping[str, Path], output: Path, options: PhotoOptions, job: Job,
                 log_type: str = "none") -> dict[str, Outcome]:
    """The outcomes of the photos that an earlier run completed from the same, by name; without any network.

    A photo that cannot be read, or whose mask or landmarks cannot, is not among them: completing it will tell.
    log_type: see `utils.logging.progress`; it reads every photo's file.
    """
    found = {}
    for name, path in progress(photos.items(), "photos of before", len(photos), log_type):
        with contextlib.suppress(UserError, OSError):
            folder = files.output_folder(output, name)
            if (folder / RECORD).is_file():
                outcome = _earlier(name, path, folder, fingerprint(Source.of(path), path, options, job))
                if outcome is not None:
                    found[name] = outcome
    return found


def _attempt(completer: PhotoCompleter, name: str, path: Path, output: Path, job: Job, keep_going: bool,
             overwrite: bool) -> Outcome:
    began = time.perf_counter()
    folder = output / files.safe_name(name)
    try:
        folder = files.output_folder(output, name)
        source = Source.of(path)
        key = fingerprint(source, path, completer.options, job)
        result = complete_file(completer, path, folder, job, overwrite)
        outcome = _done(name, path, folder, result, time.perf_counter() - began)
        (folder / FAILURE).unlink(missing_ok=True)
        _write_record(folder, source, sorted(_files_of(outcome.faces, job)),
                      {"made_from": key, "outcome": asdict(outcome)})
        return outcome
    except (UserError, OSError, MemoryError) as error:
        reason = str(error) if isinstance(error, UserError) else f"{path}: {error or 'not enough memory'}"
        return Outcome(name, str(path), str(folder), "failed", seconds=time.perf_counter() - began, error=reason)
    except Exception as error:  # a defect of the program, which must not cost the other photos
        if not keep_going:
            raise
        reason = f"{path}: unexpected {type(error).__name__}"
        try:
            files.write_bytes(folder / FAILURE, traceback.format_exc().encode(errors="backslashreplace"))
            reason += f", see {folder / FAILURE}"
        except (UserError, OSError):  # where nothing can be written, the message has to do
            reason += f": {' '.join(str(error).split())[:200]}"
        return Outcome(name, str(path), str(folder), "failed", seconds=time.perf_counter() - began, error=reason)


def _done(name: str, path: Path, folder: Path, result: CompletedPhoto, seconds: float) -> Outcome:
    height, width = result.photo.shape[:2]
    hidden = result.faces[0].hidden_share if result.faces else 0.0
    return Outcome(name, str(path), str(folder), "done", width, height, len(result.faces), hidden, seconds,
                   result.remarks)


def fingerprint(source: Source, path: Path, options: PhotoOptions, job: Job) -> str:
    """A digest of all that decides about a photo's results: its file, mask and landmarks, options, the signature."""
    mask = job.mask
    if mask is not None and mask.is_dir():
        mask = MaskFolder(mask).find(path.stem)
    hole = _digest(mask) if mask is not None and mask.is_file() else "missing" if job.mask is not None else ""
    given = job.landmarks.of(path) if job.landmarks else None
    places = None if given is None else [np.round(face.landmarks, 3).tolist() for face in given]
    decisive = [VERSION, source.digest, hole, asdict(options), job.mask_is_visible, places, job.save_landmarks,
                job.save_mesh, job.signature]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while part := stream.read(2 ** 20):
            digest.update(part)
    return digest.hexdigest()


def _earlier(name: str, path: Path, folder: Path, key: str) -> Outcome | None:
    """The outcome of an earlier run that made the folder's files from the same; both may have been moved since."""
    record = read_record(folder)
    written = {*PHOTO_FILES, *_recorded_files(folder)}
    if record.get("made_from") != key or not all((folder / name).is_file() for name in written):
        return None
    try:
        outcome = Outcome(**{**record["outcome"], "status": "earlier"})
        return replace(outcome, name=name, path=str(path), folder=str(folder), remarks=tuple(outcome.remarks))
    except (KeyError, TypeError):  # of another version, or changed by hand
        return None


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
    what = "1 photo" if len(outcomes) == 1 else f"{len(outcomes)} photos"
    lines.append(f"{what}: {counts['done']} completed, {counts['earlier']} by an earlier run, "
                 f"{counts['failed']} failed")
    return "\n".join(lines)
