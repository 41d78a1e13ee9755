"""Checkpoint files: atomic writing, safe reading, the project's weight files, and strict comparison of state dicts.

A weight file holds one network for inference::

    {"format": "3dfacefill-weights", "version": 2, "network": NAME, "state": {key: tensor}, "metadata": {...}}

and a training checkpoint everything that resuming needs; its networks lie under "networks" (name -> state dict) and,
where an exponential moving average is kept, its states under "averages", with "format": "3dfacefill-training".
Files are only ever read with ``torch.load(weights_only=True)``, so a file cannot run code.

Every file that is written here ends with the SHA-256 of all bytes before it, as the comment of its zip archive, and is
read only if that is right; files of version 1, and those of other programs, have none. A folder may hold a list of its
files' sums besides, ``SHA256SUMS`` in the form of ``sha256sum``, as the folder of the shipped weights does: what it
lists is read only if it agrees, and `save_weights` keeps it up to date.
"""
from __future__ import annotations

import hashlib
import math
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Iterator, Mapping

from utils import files
from utils.errors import UserError

WEIGHTS_FORMAT = "3dfacefill-weights"
TRAINING_FORMAT = "3dfacefill-training"
VERSION = 2  # of both formats
READABLE_VERSIONS = (1, 2)
HASHED_SINCE = 2
SUMS_FILE = "SHA256SUMS"
HALF_MAX = 65504.0
MAX_LISTED = 40
DEEPEST = 32  # levels of containers in a checkpoint; ours have six

# What a training checkpoint holds, besides "best", which may be None.
_TRAINING_ENTRIES = {
    "stage": str, "networks": dict, "critics": dict, "averages": dict, "optimisers": dict, "rates": dict,
    "scaler": dict, "random": dict, "step": int, "epoch": int, "position": int, "elapsed": float, "scores": dict,
    "settings": dict, "metadata": dict}
_SEAL = b"3dfacefill sha256 "  # what the hash stands behind
_SEAL_LENGTH = len(_SEAL) + 64
_NO_COMMENT = b"\0\0"  # the length of the archive's comment, its last two bytes
_CHUNK = 2 ** 20


def save(path: str | os.PathLike, content: dict) -> None:
    """Writes ``content`` with torch.save so that ``path`` is at every moment the old file or the whole new one.

    Missing folders are made. Raises UserError if the disk refuses; whatever fails, no partial file stays behind.
    """
    import torch

    with files.atomic(path, durable=True) as stream:
        torch.save(content, stream)
        _seal(stream)


def _seal(stream: BinaryIO) -> None:
    """Ends a zip archive that has no comment with its hash as the comment."""
    stream.seek(-len(_NO_COMMENT), os.SEEK_END)
    if stream.read(2) != _NO_COMMENT:
        raise ValueError("torch.save did not end its archive as expected")
    stream.seek(-len(_NO_COMMENT), os.SEEK_END)
    stream.write(_SEAL_LENGTH.to_bytes(2, "little") + _SEAL)
    stream.write(_digest(stream, stream.seek(0, os.SEEK_END)).encode())


def _digest(stream: BinaryIO, length: int) -> str:
    """SHA-256 of the first ``length`` bytes; the position ends behind them."""
    stream.seek(0)
    digest = hashlib.sha256()
    while length > 0 and (chunk := stream.read(min(_CHUNK, length))):
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest()


def _check_seal(path: Path, stream: BinaryIO, known: bool) -> bool:
    """Has the file a hash? UserError if it is wrong, which it is not where the whole file is `known` by its sum."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(size - _SEAL_LENGTH, 0))
    seal = stream.read(_SEAL_LENGTH)
    if not seal.startswith(_SEAL):
        return False
    if not known and _digest(stream, size - 64) != seal[len(_SEAL):].decode(errors="replace"):
        raise UserError(f"checkpoint {path} is damaged: its content does not match its hash; copy or download it again")
    return True


def load(path: str | os.PathLike) -> dict:
    """Reads a checkpoint (a dict) onto the CPU; UserError if it is missing, truncated, unsafe or no checkpoint."""
    path = Path(path)
    if not os.path.exists(path):
        raise UserError(f"checkpoint {path} does not exist; check the path or download the file")
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not a file; give the checkpoint file itself")
    if path.stat().st_size == 0:
        raise UserError(f"checkpoint {path} is empty (0 bytes); copy or download it again")
    try:
        with open(path, "rb") as stream:
            sealed = _check_seal(path, stream, known=_check_sum(path, stream))
            _check_archive(path, stream)
            content = _unpickle(path, stream)
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror or error}") from None
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {path} holds a {type(content).__name__}, not a dictionary of networks; "
                        "give a checkpoint of this project or a published one")
    _check_tensors(path, content)
    _check_version(path, content, sealed)
    return content


def _unpickle(path: Path, stream: BinaryIO) -> Any:
    import torch

    stream.seek(0)
    try:
        with warnings.catch_warnings():
            # A foreign pickle makes torch warn before it refuses; the refusal says it all.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, error)) from None
    # A broken file can make the readers of zip, tar and pickle raise nearly anything.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path} is truncated or no PyTorch checkpoint ({reason}); "
                        "copy or download it again") from None


def is_archive(path: str | os.PathLike) -> bool:
    """Does the file begin as those that torch.save writes since version 1.6?"""
    with open(path, "rb") as stream:
        return _is_archive(stream)


def _is_archive(stream: BinaryIO) -> bool:
    stream.seek(0)
    return stream.read(4) == b"PK\x03\x04"


def _check_archive(path: Path, stream: BinaryIO) -> None:
    """UserError for an archive that would grow when it is read: compressed members, or members that share bytes."""
    if not _is_archive(stream):
        return  # torch's format before 1.6, or no checkpoint
    size = stream.seek(0, os.SEEK_END)
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
    # A broken archive can make zipfile raise many kinds.
    except Exception:
        raise UserError(f"checkpoint {path} is truncated or damaged; copy or download it again") from None
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or sum(
            member.file_size for member in members) > size:
        raise UserError(f"checkpoint {path} is a compressed archive, not what torch.save writes; give the checkpoint "
                        "itself")


def _check_tensors(path: Path, content: dict) -> None:
    """UserError for tensors that are not what they seem: larger than their memory, sparse, quantised; and for depth."""
    import torch

    for where, value in _tensors(path, content):
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
            raise UserError(f"checkpoint {path}: {where} is a tensor of an unusual kind ({value.layout}, {value.dtype},"
                            f" {value.device}); give a checkpoint of this project or a published one")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"checkpoint {path} is damaged: {where} claims {tuple(value.shape)} values, which the file "
                            "does not hold")


def _tensors(path: Path, content: Any) -> Iterator[tuple[str, Any]]:
    """(place, tensor) of every tensor in nested containers, each container once."""
    import torch

    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [("the checkpoint", content, 0)]
    while waiting:
        where, value, depth = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield where, value
        elif isinstance(value, (Mapping, list, tuple, set)) and id(value) not in seen:
            if depth >= DEEPEST:
                raise UserError(f"checkpoint {path} is nested more than {DEEPEST} levels deep; give a checkpoint of "
                                "this project or a published one")
            seen.add(id(value))
            parts = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += [(str(key)[:100], part, depth + 1) for key, part in parts]


def _check_version(path: Path, content: dict, sealed: bool) -> None:
    """UserError for one of this project's files in a form that this program does not read, or without its hash."""
    form, version = content.get("format"), content.get("version")
    if form not in (WEIGHTS_FORMAT, TRAINING_FORMAT):
        return
    kind = "weight file" if form == WEIGHTS_FORMAT else "training checkpoint"
    if not isinstance(version, int) or version not in READABLE_VERSIONS:
        newer = isinstance(version, int) and version > max(READABLE_VERSIONS)
        advice = "update the program" if newer else f"write it again with a program of version {VERSION}"
        known = " and ".join(map(str, READABLE_VERSIONS))
        raise UserError(f"{path} is a {kind} of version {version}, this program reads versions {known}; {advice}")
    if version >= HASHED_SINCE and not sealed:
        raise UserError(f"checkpoint {path} is damaged: its hash is missing; copy or download it again")


def check_training(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """UserError unless ``content``, from `load`, has all of a training checkpoint's entries, and finite weights."""
    if content.get("format") != TRAINING_FORMAT:
        raise UserError(f"{path}: not a training checkpoint of this project; give a run's last.pth or best.pth")
    for name, kind in _TRAINING_ENTRIES.items():
        if not isinstance(content.get(name), kind):
            raise UserError(f"checkpoint {path} is damaged: its entry {name} is missing or no {kind.__name__}; copy it "
                            "again")
    bad = not_finite(path, content)
    if bad:
        raise UserError(f"checkpoint {path}: {bad} is not finite; go on from an earlier one")


def not_finite(path: str | os.PathLike, content: Mapping[str, Any]) -> str | None:
    """What of a training checkpoint's weights, averages or optimisers has a NaN or Inf: "KEY of the GROUP"."""
    for group in ("networks", "critics", "averages", "optimisers"):
        for where, value in _tensors(Path(path), content[group]):
            if not _is_finite(value):
                return f"{where} of the {group}"
    return None


def _refusal(path: Path, error: Exception) -> str:
    """Explains why weights-only loading refused a file: a pickle with foreign objects, or no pickle at all."""
    if "Unsupported global" in str(error) or "Unsupported class" in str(error) or "GLOBAL" in str(error):
        name = str(error).split("GLOBAL", 1)[-1].split()[0] if "GLOBAL" in str(error) else "an object"
        return (f"checkpoint {path} holds Python objects besides tensors ({name}), which could run code, and is not "
                "loaded; save its state dicts alone")
    return f"checkpoint {path} is damaged, truncated or no PyTorch checkpoint; copy or download it again"


# ---- sums of a folder's files --------------------------------------------------------------------------------------

def read_sums(folder: str | os.PathLike) -> dict[str, list[str]]:
    """File name -> SHA-256 sums that the folder's list accepts (two while a file is replaced); empty without a list."""
    path = Path(folder) / SUMS_FILE
    sums: dict[str, list[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it from the repository") from None
    for number, line in enumerate(lines, start=1):
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise UserError(f"{path}, line {number}: expected a SHA-256 sum, two blanks and a file name; restore it "
                            "from the repository")
        sums.setdefault(name, []).append(digest.lower())
    return sums


def _check_sum(path: Path, stream: BinaryIO) -> bool:
    """Is the file in the list of sums beside it? UserError if it is another one."""
    accepted = read_sums(path.parent).get(path.name)
    if accepted and _digest(stream, stream.seek(0, os.SEEK_END)) not in accepted:
        raise UserError(f"{path} does not match its sum in {path.parent / SUMS_FILE}: it is damaged or was replaced; "
                        "restore it, or, if you put it there yourself, delete its line from that list")
    return bool(accepted)


def _write_sums(folder: Path, sums: Mapping[str, list[str]]) -> None:
    lines = [f"{digest}  {name}\n" for name in sorted(sums) for digest in sums[name]]
    with files.atomic(folder / SUMS_FILE, durable=True) as stream:
        stream.write("".join(lines).encode())


def _save_listed(path: Path, content: dict) -> None:
    """As `save`; a list of sums beside the file accepts the old and the new one meanwhile, then the new one alone."""
    import torch

    if not (path.parent / SUMS_FILE).exists():
        save(path, content)
        return
    with files.held(path.parent, "another export", "try again when it is done"):
        with files.atomic(path, durable=True) as stream:
            torch.save(content, stream)
            _seal(stream)
            digest = _digest(stream, stream.seek(0, os.SEEK_END))
            sums = read_sums(path.parent)
            old = sums.get(path.name, []) if path.exists() else []
            _write_sums(path.parent, {**sums, path.name: [*old, digest]})
        _write_sums(path.parent, {**sums, path.name: [digest]})


# ---- state dicts and weight files ----------------------------------------------------------------------------------

def check_state(what: str, state: Mapping[str, object], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises one UserError that lists all missing, extra and misshapen keys; ``expected``: key -> shape.

    Values that fit must be finite as well.
    """
    missing = [key for key in expected if key not in state]
    extra = [str(key) for key in state if key not in expected]
    misshapen = []
    for key, shape in expected.items():
        if key not in state:
            continue
        found = getattr(state[key], "shape", None)
        if found is None:
            misshapen.append(f"{key} (a {type(state[key]).__name__} instead of {tuple(shape)})")
        elif tuple(found) != tuple(shape):
            misshapen.append(f"{key} ({tuple(found)} instead of {tuple(shape)})")
    problems = [f"{len(keys)} {kind}: {_listed(keys)}"
                for kind, keys in (("missing", missing), ("extra", extra), ("misshapen", misshapen)) if keys]
    if problems:
        raise UserError(f"{what}: the weights do not fit; {'; '.join(problems)}; give a checkpoint of this network")
    not_finite = [key for key, value in state.items() if not _is_finite(value)]
    if not_finite:
        raise UserError(f"{what}: weights are not finite: {_listed(not_finite)}; copy or download the file again, or "
                        "go on from an earlier one")


def _is_finite(value: Any) -> bool:
    """Are all values of a tensor or numpy array numbers?"""
    import torch

    tensor = torch.as_tensor(value)
    if not tensor.is_floating_point() or not tensor.numel():
        return bool(torch.isfinite(tensor).all())
    return all(math.isfinite(extreme) for extreme in tensor.aminmax())  # both a NaN if any is; isfinite is slower


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:MAX_LISTED]) + (f" and {len(keys) - MAX_LISTED} more" if len(keys) > MAX_LISTED else "")


def check_fits(network, state: Mapping[str, object], what: str) -> None:
    """UserError unless ``state`` has the network's keys, shapes and kinds of values (floating-point or not)."""
    own = network.state_dict()
    check_state(what, state, {key: tuple(value.shape) for key, value in own.items()})
    other = [key for key, value in state.items() if value.is_floating_point() != own[key].is_floating_point()]
    if other:
        raise UserError(f"{what}: values are of another type than the network's: {_listed(other)}; give a checkpoint "
                        "of this network")


def save_weights(path: str | os.PathLike, network: str, state: Mapping[str, object], metadata: Mapping[str, object],
                 half: bool = True) -> None:
    """Writes a weight file (see the module's docstring), atomically.

    network: its name, such as "encoder". state: key -> tensor. metadata: plain values
    (numbers, strings, lists, dicts). half: store matrices and kernels as float16; vectors (biases, norms, running
    statistics, singular vectors) stay float32, they are small and sensitive. A list of sums in the folder
    (``SHA256SUMS``) is brought up to date. Raises UserError on non-finite weights.
    """
    import torch

    stored = {}
    for key, value in state.items():
        value = value.detach().to("cpu")
        if value.is_floating_point():
            if not _is_finite(value):
                raise UserError(f"cannot write {path}: weight {key} of the {network} is not finite")
            small = value.dim() >= 2 and bool((value.abs() <= HALF_MAX).all())
            value = value.to(torch.float16 if half and small else torch.float32)
        stored[key] = value.clone()
    _save_listed(Path(path), {"format": WEIGHTS_FORMAT, "version": VERSION, "network": network, "state": stored,
                              "metadata": dict(metadata)})


def load_weights(path: str | os.PathLike, network: str) -> tuple[dict, dict]:
    """Reads a weight file -> (state dict in float32, metadata). UserError if it is no weight file of ``network``."""
    content = load(path)
    if content.get("format") != WEIGHTS_FORMAT:
        raise UserError(f"{path} is not a weight file of this project (no format {WEIGHTS_FORMAT!r})")
    return weights_of(content, network, str(path))


def weights_of(content: Mapping[str, object], network: str, source: str) -> tuple[dict, dict]:
    """Content of a weight file, from `load` -> (state dict in float32, metadata); ``source`` is what errors call it."""
    import torch

    if content.get("network") != network:
        raise UserError(f"{source} holds the weights of the {content.get('network')}, not of the {network}; "
                        "check which file is given where")
    state, metadata = content.get("state"), content.get("metadata")
    if not isinstance(state, Mapping) or not isinstance(metadata, Mapping):
        raise UserError(f"{source} is a damaged weight file: no state or metadata; copy or download it again")
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{source} is a damaged weight file: its state holds other things than tensors")
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    return state, dict(metadata)
