"""Files that are whole or not there, names that stay inside their folder, and folders of one process at a time."""
from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import Any, BinaryIO, Iterable, Iterator, TextIO

from utils.errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

TEMPORARY_SUFFIX = ".tmp"  # of files that are being written; their names begin with a dot
LONGEST_NAME = 120  # bytes of a safe name in UTF-8; file systems take 255, and suffixes are to come
LOCK_FILE = ".lock"
LARGEST_TEXT = 100_000_000  # bytes
_DIGEST = 8  # hexadecimal digits that tell changed names apart
# Names of devices on Windows, with any suffix.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)
_FORBIDDEN = set('/\\:*?"<>|')
_UMASK = os.umask(0)  # read once, since reading means changing it, for all threads
os.umask(_UMASK)


class _Recorder:
    """A binary stream that remembers the error of a failed write, which torch.save turns into one of its own."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self.error: OSError | None = None

    def write(self, data) -> int:
        try:
            return self._stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def atomic(path: str | os.PathLike, durable: bool = False) -> Iterator[BinaryIO]:
    """A binary stream (read and write) whose content becomes the file ``path`` when the block ends without an error.

    At every moment ``path`` is the old file, the whole new one, or absent; a link of that name is replaced, not
    followed. Missing folders are made. durable: the new file survives a power cut. Raises UserError if the file system
    refuses (a full disk, no permission); whatever fails, no partial file stays behind.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=_temporary_prefix(path), suffix=TEMPORARY_SUFFIX, dir=path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another folder") from None
    try:
        # Without a buffer of Python's: an error belongs to the write that caused it, not to the closing of the file.
        with os.fdopen(handle, "w+b", buffering=0) as raw:
            stream = _Recorder(_Whole(raw))
            try:
                yield stream
            except Exception:
                if stream.error is None:
                    raise
                raise stream.error from None
            if durable:
                os.fsync(raw.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    if durable:
        _sync_folder(path.parent)


class _Whole:
    """A raw file whose `write` writes everything or raises."""

    def __init__(self, raw: BinaryIO):
        self._raw = raw

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            done += self._raw.write(view[done:])
        return done

    def __getattr__(self, name: str):
        return getattr(self._raw, name)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file atomically, see :func:`atomic`."""
    with atomic(path) as stream:
        stream.write(data)


def read_text(path: str | os.PathLike) -> str:
    """The text of a UTF-8 file of at most 100 MB; UserError if there is none."""
    path = Path(path)
    try:
        if os.path.exists(path) and not path.is_file():
            raise UserError(f"{path} is not a file: give a text file")
        if path.stat().st_size > LARGEST_TEXT:
            raise UserError(f"{path} is larger than {LARGEST_TEXT // 10 ** 6} MB: give a text file of this program")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8: check that it is the right file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}): check the name") from None


def read_json(path: str | os.PathLike) -> Any:
    """The content of a JSON file; UserError if it is none."""
    try:
        return json.loads(read_text(path))
    except RecursionError:
        raise UserError(f"{path} is nested too deeply: check that it is the right file") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): check that it is the right file") from None


def _temporary_prefix(path: Path) -> str:
    # A name as long as file systems allow leaves no room for more.
    return "." + path.name.encode()[:LONGEST_NAME].decode(errors="ignore") + "."


def remove_unfinished(folder: str | os.PathLike, names: Iterable[str]) -> None:
    """Deletes what a killed process left of writing files called ``names`` into the folder.

    Only for a folder that is held (:func:`held`), where no other process writes these files.
    """
    for name in names:
        for path in Path(folder).glob(f"{_temporary_prefix(Path(name))}*{TEMPORARY_SUFFIX}"):
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where the system can synchronise folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def held(folder: str | os.PathLike, what: str, advice: str) -> Iterator[None]:
    """Keeps a folder (made if missing) to this process, until the block ends or the process does, however it dies.

    Folders made for it that are empty at the end are removed. what, advice: of the UserError that another process gets,
    "FOLDER is in use by WHAT (process N): ADVICE". Threads of one process do not exclude each other. Where the system
    cannot lock files nothing is held.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    if fcntl is None:
        yield
        return
    try:
        lock = _lock(folder)
    except BlockingIOError as busy:
        raise UserError(f"{folder} is in use by {what} (process {busy.strerror}): {advice}") from None
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}; choose another folder") from None
    with lock:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / LOCK_FILE).unlink()
                for path in made:
                    path.rmdir()


def _lock(folder: Path) -> TextIO:
    """The locked and open lock file of a folder; BlockingIOError with the holder's number as its text if it is held."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK_FILE, "a+")
        try:
            # Record locks, as lockf sets them, belong to this process alone: a data worker that outlives it has none.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(folder / LOCK_FILE).st_ino == os.fstat(lock.fileno()).st_ino:
                lock.truncate(0)
                lock.write(str(os.getpid()))
                lock.flush()
                return lock
        except FileNotFoundError:
            pass  # its last holder has just deleted it
        except OSError as error:
            lock.seek(0)
            holder = lock.read(20).strip() or "unknown"
            lock.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError(error.errno, holder) from None
            raise
        lock.close()


def safe_name(name: str) -> str:
    """A file or folder name for what the user calls ``name``: the name itself, if it is good on every system.

    Separators, control and invisible characters, what Windows forbids, names of devices, "." and "..", dots and blanks
    at either end, and more than 120 bytes are replaced or cut; a changed name ends with eight digits of the original's
    hash, so that different names stay different (but for Unicode's normal form). The result never leads out of the
    folder it is joined to, and never begins with a dot.
    """
    text = unicodedata.normalize("NFC", name)
    kept = "".join("_" if character in _FORBIDDEN or unicodedata.category(character)[0] == "C" else character
                   for character in text).strip(". \t\n")
    if not kept or _DEVICES.fullmatch(kept):
        kept = f"_{kept}"
    if kept == text and len(kept.encode()) <= LONGEST_NAME:
        return kept
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:_DIGEST]
    short = kept.encode()[:LONGEST_NAME - _DIGEST - 1].decode(errors="ignore")
    return f"{short.rstrip('. ')}-{digest}"


def inside(folder: str | os.PathLike, name: str) -> Path:
    """The path ``folder/name`` for writing; name may have subfolders ("a/b.png").

    Raises UserError if it would lie outside the folder: an absolute name, "..", or a link on the way that leads out.
    """
    folder = Path(folder)
    path = folder / name
    parts = Path(name).parts
    leads_out = not parts or Path(name).is_absolute() or ".." in parts or "\0" in name
    if leads_out or not path.parent.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{name!r} would be written outside {folder}: rename it, or remove the link that leads there")
    return path


def output_folder(base: str | os.PathLike, name: str) -> Path:
    """The folder for the results of what is called ``name``: base/safe_name(name), not made yet.

    Raises UserError if a link of that name leads out of ``base``.
    """
    return inside(base, f"{safe_name(name)}/x").parent


def refuse_overwriting(folder: str | os.PathLike, names: Iterable[str], overwrite: bool) -> None:
    """Raises UserError if one of the files ``names`` exists in the folder, unless ``overwrite``."""
    folder = Path(folder)
    found = [name for name in names if (folder / name).exists()]
    if found and not overwrite:
        raise UserError(f"{folder} holds results already ({', '.join(found[:3])}): replace them with --overwrite, or "
                        "choose another --output")
