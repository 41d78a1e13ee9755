"""Checkpoint files: atomic writing, safe reading, the project's weight files, and strict comparison of state dicts.

A weight file holds one network for inference::

    {"format": "3dfacefill-weights", "version": 1, "network": NAME, "state": {key: tensor}, "metadata": {...}}

and a training checkpoint everything that resuming needs; its networks lie under "networks" (name -> state dict) and,
where an exponential moving average is kept, its states under "averages", with "format": "3dfacefill-training".
Files are only ever read with ``torch.load(weights_only=True)``, so a file cannot run code.
"""
from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Mapping

from utils.errors import UserError

WEIGHTS_FORMAT = "3dfacefill-weights"
WEIGHTS_VERSION = 1
TRAINING_FORMAT = "3dfacefill-training"
HALF_MAX = 65504.0
MAX_LISTED = 40


def save(path: str | os.PathLike, content: dict) -> None:
    """Writes ``content`` with torch.save so that ``path`` is at every moment the old file or the whole new one.

    Missing folders are made. Raises UserError if the disk refuses; whatever fails, no partial file stays behind.
    """
    import torch

    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another folder") from None
    try:
        with os.fdopen(handle, "wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync_folder(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where the system can synchronise folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load(path: str | os.PathLike) -> dict:
    """Reads a checkpoint (a dict) onto the CPU; UserError if it is missing, truncated, unsafe or no checkpoint."""
    import torch

    path = Path(path)
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist; check the path or download the file")
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not a file; give the checkpoint file itself")
    if path.stat().st_size == 0:
        raise UserError(f"checkpoint {path} is empty (0 bytes); copy or download it again")
    try:
        with warnings.catch_warnings():
            # A foreign pickle makes torch warn before it refuses; the refusal says it all.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, error)) from None
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror or error}") from None
    # A broken file can make the readers of zip, tar and pickle raise nearly anything.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path} is truncated or no PyTorch checkpoint ({reason}); "
                        "copy or download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {path} holds a {type(content).__name__}, not a dictionary of networks; "
                        "give a checkpoint of this project or a published one")
    return content


def _refusal(path: Path, error: Exception) -> str:
    """Explains why weights-only loading refused a file: a pickle with foreign objects, or no pickle at all."""
    if "Unsupported global" in str(error) or "Unsupported class" in str(error) or "GLOBAL" in str(error):
        name = str(error).split("GLOBAL", 1)[-1].split()[0] if "GLOBAL" in str(error) else "an object"
        return (f"checkpoint {path} holds Python objects besides tensors ({name}), which could run code, and is not "
                "loaded; save its state dicts alone")
    if zipfile.is_zipfile(path):
        return f"checkpoint {path} is damaged; copy or download it again"
    return f"checkpoint {path} is truncated or no PyTorch checkpoint; copy or download it again"


def check_state(what: str, state: Mapping[str, object], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises one UserError that lists all missing, extra and misshapen keys; ``expected``: key -> shape."""
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


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:MAX_LISTED]) + (f" and {len(keys) - MAX_LISTED} more" if len(keys) > MAX_LISTED else "")


def load_state(network, state: Mapping[str, object], what: str) -> None:
    """Copies ``state`` into ``network``, strictly: UserError with all keys that are missing, extra or misshapen."""
    check_state(what, state, {key: tuple(value.shape) for key, value in network.state_dict().items()})
    network.load_state_dict(state)


def save_weights(path: str | os.PathLike, network: str, state: Mapping[str, object], metadata: Mapping[str, object],
                 half: bool = True) -> None:
    """Writes a weight file (see the module's docstring), atomically.

    network: "encoder", "occlusion", "inpainter" or "albedo_decoder". state: key -> tensor. metadata: plain values
    (numbers, strings, lists, dicts). half: store matrices and kernels as float16; vectors (biases, norms, running
    statistics, singular vectors) stay float32, they are small and sensitive. Raises UserError on non-finite weights.
    """
    import torch

    stored = {}
    for key, value in state.items():
        value = value.detach().to("cpu")
        if value.is_floating_point():
            if not torch.isfinite(value).all():
                raise UserError(f"cannot write {path}: weight {key} of the {network} is not finite")
            small = value.dim() >= 2 and bool((value.abs() <= HALF_MAX).all())
            value = value.to(torch.float16 if half and small else torch.float32)
        stored[key] = value.clone()
    save(path, {"format": WEIGHTS_FORMAT, "version": WEIGHTS_VERSION, "network": network, "state": stored,
                "metadata": dict(metadata)})


def load_weights(path: str | os.PathLike, network: str) -> tuple[dict, dict]:
    """Reads a weight file -> (state dict in float32, metadata). UserError if it is no weight file of ``network``."""
    content = load(path)
    if content.get("format") != WEIGHTS_FORMAT:
        raise UserError(f"{path} is not a weight file of this project (no format {WEIGHTS_FORMAT!r})")
    return weights_of(content, network, str(path))


def weights_of(content: Mapping[str, object], network: str, source: str) -> tuple[dict, dict]:
    """Content of a weight file -> (state dict in float32, metadata); ``source`` is what errors call it."""
    import torch

    if content.get("version") != WEIGHTS_VERSION:
        raise UserError(f"{source} is a weight file of version {content.get('version')}, this program reads version "
                        f"{WEIGHTS_VERSION}; update the program")
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
