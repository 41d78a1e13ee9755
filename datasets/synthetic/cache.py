"""Synthetic faces on disk: rendered once, then read through memory maps.

A cache is a folder with `cache.json` and shards `shard_00000/` of up to 500 faces, each with one .npy file per field. A
shard is written beside its place and renamed when complete, so an interrupted run leaves only whole shards and the next
run goes on after them.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import signal
import threading
import warnings
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from datasets.default_3dmm.packing import HEAD_FILE, MODEL_FILE
from utils import files
from utils.errors import UserError

from .dataset import SyntheticFaces, face_identity, face_name

SHARD = 500
_CHUNK = 5  # faces of one task; small, or many workers would wait for the last at the end of every shard
_VERSION = 1
_FIELDS = {
    "image": (np.uint8, (3, 256, 256)), "labels": (np.uint8, (256, 256)), "hair": (np.uint8, (256, 256)),
    "shape": (np.float32, (228,)),
    "scale": (np.float32, ()), "pose": (np.float32, (5,)), "light": (np.float32, (27,)),
    "landmarks": (np.float32, (68, 2)), "albedo": (np.uint8, (3, 192, 256)),
}


def _prepare_worker() -> None:
    """Rendering is parallel over faces; more threads inside one only disturb others. Ctrl-C is the main process's."""
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()


def _end_with(process) -> None:
    """Ends this process when the other one is gone, however it ended: a killed one tells its workers nothing."""
    process.join()
    os._exit(1)


def _render_chunk(task: tuple[dict, str, int, int, int, bool]) -> int:
    """Render faces first..last-1 into the open shard beginning at face `start`; returns how many."""
    settings, folder, start, first, last, albedo = task
    faces = SyntheticFaces(settings["split"], last, settings["seed"], settings["occluders"])
    arrays = {name: np.lib.format.open_memmap(Path(folder) / f"{name}.npy", mode="r+")
              for name in _FIELDS if albedo or name != "albedo"}
    for index in range(first, last):
        face = faces[index]
        for name, array in arrays.items():
            array[index - start] = face[name].numpy()
    for array in arrays.values():
        array.flush()
    return last - first


def _read_settings(folder: Path) -> dict | None:
    path = folder / "cache.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable cache description ({error}): delete the folder and write it again")


def _write_settings(folder: Path, settings: dict) -> None:
    files.write_bytes(folder / "cache.json", json.dumps(settings, indent=1).encode())


@functools.lru_cache
def generator_digest() -> str:
    """Sixteen hexadecimal digits of what makes the faces: the source of the generator and of the head that it renders,
    and the head's data."""
    here, head = Path(__file__).parent, HEAD_FILE.parent
    others = {"__init__.py", "__main__.py", "sheet.py", Path(__file__).name}
    digest = hashlib.sha256()
    for path in [*sorted(path for path in here.glob("*.py") if path.name not in others),
                 *(head / name for name in ("head.py", "sampling.py", "packing.py")), here.parent / "alignment.py",
                 HEAD_FILE, MODEL_FILE]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _shard_length(folder: Path) -> int:
    """Number of faces in a complete shard; 0 if it does not exist."""
    path = folder / "scale.npy"
    return len(np.load(path, mmap_mode="r")) if path.exists() else 0


def _mapped(path: Path) -> np.ndarray:
    """The array of a .npy file through a memory map that keeps no file open.

    np.load's does, and all fields of a large cache are more files than systems let a process open (256, 1,024).
    """
    described = np.load(path, mmap_mode="r")
    content = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy()
    return content[described.offset:].view(described.dtype).reshape(described.shape)


def _reserve(path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """Make an empty .npy file with room on the disk: a memory map that finds none would end the process (SIGBUS).

    Raises UserError if the disk is full.
    """
    try:
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # what file systems say that reserve nothing
            raise UserError(f"cannot write {path}: {error.strerror or error}; make room, or choose another --output, "
                            "and run the command again to continue") from None


def _write_shard(folder: Path, number: int, settings: dict, progress: tqdm, pool: Executor | None) -> None:
    start, end = number * SHARD, min((number + 1) * SHARD, settings["count"])
    final, partial = folder / f"shard_{number:05d}", folder / f"shard_{number:05d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, (dtype, shape) in _FIELDS.items():
        if settings["albedo"] or name != "albedo":
            _reserve(partial / f"{name}.npy", dtype, (end - start, *shape))
    tasks = [(settings, str(partial), start, first, min(first + _CHUNK, end), settings["albedo"])
             for first in range(start, end, _CHUNK)]
    for done in (pool.map if pool else map)(_render_chunk, tasks):
        progress.update(done)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)


def write_cache(folder: str | Path, split: str, count: int, seed: int = 0, occluders: bool = True, albedo: bool = True,
                num_workers: int = 0, progress: bool = True) -> Path:
    """Render faces 0..count-1 of a split into a cache; complete shards of an earlier run are kept.

    num_workers: processes (0 renders in this one). Returns the folder.
    Raises UserError if the folder holds a cache with other settings or of another generator, if another process is
    writing there, if the disk is full or a process died, or for an unknown split.
    """
    folder = Path(folder)
    SyntheticFaces(split, count, seed, occluders)
    with files.held(folder, "another writer of faces", "wait for it, or choose another --output"):
        _write_missing(folder, split, count, seed, occluders, albedo, num_workers, progress)
    return folder


def _write_missing(folder: Path, split: str, count: int, seed: int, occluders: bool, albedo: bool, num_workers: int,
                   progress: bool) -> None:
    """Write what the held folder lacks."""
    settings = {"format": "synthetic-faces", "version": _VERSION, "split": split, "seed": int(seed),
                "occluders": bool(occluders), "albedo": bool(albedo), "shard": SHARD, "count": int(count),
                "generator": generator_digest()}
    known = _read_settings(folder)
    if known is not None and {**known, "generator": settings["generator"]} != known:
        raise UserError(f"{folder} holds faces of another version of the generator, which are not to be mixed with "
                        "this one's: choose another folder or delete it")
    if known is not None and {**known, "count": 0} != {**settings, "count": 0}:
        raise UserError(f"{folder} holds faces with other settings ({known}): choose another folder or delete it")
    settings["count"] = max(count, known["count"] if known else 0)
    _write_settings(folder, settings)
    shards = range(-(-settings["count"] // SHARD))
    missing = [k for k in shards
               if _shard_length(folder / f"shard_{k:05d}") < min(SHARD, settings["count"] - k * SHARD)]
    todo = sum(min(SHARD, settings["count"] - k * SHARD) for k in missing)
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), _prepare_worker) if num_workers else None
    try:
        with tqdm(total=todo, unit="face", desc=f"faces ({split})", disable=not progress) as bar:
            for number in missing:
                _write_shard(folder, number, settings, bar, pool)
    except BrokenProcessPool:
        raise UserError("a process that renders faces died, perhaps for lack of memory: run the command again to "
                        "continue, with a smaller --num-workers") from None
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


class CachedFaces(Dataset):
    """The faces of a cache; items equal those of `SyntheticFaces` (without "albedo" if it was left out).

    Only whole shards from the beginning count; a cache that is still growing, or was interrupted, is used as far as it
    goes, with a warning. Raises UserError if the folder holds no cache or no whole shard, or fewer than `length` faces.
    """

    def __init__(self, folder: str | Path, length: int | None = None):
        self.folder = Path(folder)
        settings = _read_settings(self.folder)
        if settings is None or settings.get("format") != "synthetic-faces":
            raise UserError(f"{self.folder} holds no cache of synthetic faces: write one with "
                            f"python -m datasets.synthetic --output {self.folder} --split train --count 20000")
        if settings["version"] != _VERSION or settings["shard"] != SHARD:
            raise UserError(f"{self.folder} was written by another version: delete it and write it again")
        self.split, self.seed, self.occluders = settings["split"], settings["seed"], settings["occluders"]
        absent = {"albedo"} if not settings["albedo"] else set()
        if not (self.folder / "shard_00000" / "hair.npy").exists():  # written before faces told their hair
            absent.add("hair")
        self._fields = [name for name in _FIELDS if name not in absent]
        available = self._available(settings["count"])
        if available < (length or 1):
            raise UserError(f"{self.folder} holds {available} whole faces, fewer than the {length or 1} asked for: "
                            "let python -m datasets.synthetic finish it")
        if length is None and available < settings["count"]:
            warnings.warn(f"{self.folder} holds {available} of {settings['count']} faces; the rest is not written yet")
        self.length = length or available
        self._shards: dict[int, dict[str, np.ndarray]] = {}

    def _available(self, count: int) -> int:
        total = 0
        for number in range(-(-count // SHARD)):
            found = _shard_length(self.folder / f"shard_{number:05d}")
            total += found
            if found < SHARD:
                break
        return total

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        if not -self.length <= index < self.length:
            raise IndexError(index)
        index = int(index) % self.length
        number, place = divmod(index, SHARD)
        if number not in self._shards:
            shard = self.folder / f"shard_{number:05d}"
            self._shards[number] = {name: _mapped(shard / f"{name}.npy") for name in self._fields}
        item = {name: torch.from_numpy(np.array(array[place])) for name, array in self._shards[number].items()}
        item["name"] = face_name(self.split, index)
        item["identity"] = face_identity(self.split, index)
        return item

    def __getstate__(self) -> dict:
        """Workers open the memory maps themselves."""
        return {**self.__dict__, "_shards": {}}
