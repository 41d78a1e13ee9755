"""Ready networks from files: this project's weight files and training checkpoints, and the published checkpoints."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, Mapping

import torch
from torch import nn

from models import legacy
from models.encoder import Encoder
from models.image_completion import ImageInpainter
from models.inpainter import Inpainter
from models.linear import LinearInpainter
from models.occlusion import CLASS_WEIGHTS, OcclusionNet
from models.refiner import Refiner
from models.renderer import WINDOW_SIZE
from utils import checkpoints
from utils.errors import UserError

_OPTIONS = {"encoder": "--3dmm-ckpt", "occlusion": "--occ-ckpt", "inpainter": "--recon-ckpt",
            "linear": "--linear-ckpt", "refiner": "--refiner-ckpt", "inpainter2d": "--inpainter2d-ckpt"}
_REMEDIES = {"linear": "make it with python -m engine.linear_fill",
             "inpainter": "train it with --stage inpainter, or leave the option out for the weights that come along"}


def load_encoder(path: str | os.PathLike) -> tuple[Encoder, dict]:
    """(encoder in evaluation mode, metadata) from any of the three kinds of files; UserError if there is none.

    metadata is what was stored with the weights; "source" is "weights", "training" or "published". The encoder reduces
    its images to the size at which it was trained, if that is known.
    """
    encoder, metadata = _load(path, "encoder", Encoder.like)
    encoder.input_size = _train_size(metadata)
    return encoder, metadata


def load_occlusion(path: str | os.PathLike) -> tuple[OcclusionNet, dict]:
    """(occlusion net in evaluation mode, metadata), as :func:`load_encoder`."""
    occlusion, metadata = _load(path, "occlusion",
                                lambda state: OcclusionNet(knows_hair="hair_heads.0.weight" in state))
    if metadata.get("source") != "published":  # files from before it was stored have these very weights
        occlusion.class_weights = tuple(metadata.get("class_weights", CLASS_WEIGHTS))
    occlusion.reduction = (_train_size(metadata) or WINDOW_SIZE) / WINDOW_SIZE
    return occlusion, metadata


def load_inpainter(path: str | os.PathLike, mirror: Callable | None = None) -> tuple[Inpainter, dict]:
    """(inpainter in evaluation mode, metadata), as :func:`load_encoder`; the file says which parts it has.

    mirror: see :class:`~models.inpainter.Inpainter`. The program gives published weights the UV map's true mirror
    image, too, not the flip that they were trained with: the released code's was off by a column.
    """
    network, metadata = _load(path, "inpainter", Inpainter.like)
    if mirror is not None:
        network.mirror = mirror
    return network, metadata


def load_linear(path: str | os.PathLike) -> tuple[LinearInpainter, dict]:
    """(the linear fill's model, metadata) from its weight file; UserError if there is none."""
    return _load(path, "linear", lambda state: LinearInpainter(len(state.get("components", ())), "eyes" in state))


def load_refiner(path: str | os.PathLike) -> Refiner:
    """The network that corrects the drawn fill, in evaluation mode; UserError if there is none."""
    return _load(path, "refiner", lambda state: Refiner())[0]


def load_image_inpainter(path: str | os.PathLike) -> ImageInpainter:
    """The network of the 2D baseline, in evaluation mode; UserError if there is none."""
    return _load(path, "inpainter2d", lambda state: ImageInpainter())[0]


def _train_size(metadata: Mapping) -> int | None:
    """The side in pixels at which a network saw the 224 px windows when it was trained; None if that is unknown."""
    return dict(metadata.get("settings") or {}).get("train_size")


def _load(path: str | os.PathLike, name: str, create: Callable[[Mapping], nn.Module]) -> tuple[nn.Module, dict]:
    if path is None or str(path) == "":
        raise UserError(f"no weights for the {name}: name a file with {_OPTIONS[name]}")
    if not Path(path).exists():
        raise UserError(f"the {name}'s weights {path} do not exist: give the right file with {_OPTIONS[name]}, or "
                        + _REMEDIES.get(name, f"train it with --stage {name}"))
    content = checkpoints.load(path)
    if content.get("format") == checkpoints.WEIGHTS_FORMAT:
        state, metadata = checkpoints.weights_of(content, name, str(path))
        return _fill(create, state, path), {**metadata, "source": "weights"}
    if content.get("format") == checkpoints.TRAINING_FORMAT:
        state = _training_state(content, name, path)
        metadata = {key: content[key] for key in ("settings", "step", "epoch") if key in content}
        return _fill(create, state, path), {**(content.get("metadata") or {}), **metadata, "source": "training"}
    if legacy.is_published(content):
        networks = legacy.build_networks(content, str(path))
        if name not in networks:
            raise UserError(f"{path} is a published checkpoint of {', '.join(networks)}, not of the {name}; check "
                            f"which file is given with {_OPTIONS[name]}")
        return networks[name], {"source": "published"}
    found = ", ".join(map(str, list(content)[:8])) or "nothing"
    raise UserError(f"{path} is no checkpoint of the {name}: it holds {found}; give a weight file, a training "
                    "checkpoint of this project or a published checkpoint")


def _training_state(content: Mapping, name: str, path: str | os.PathLike) -> dict:
    """The network's averaged state if the training kept one, else its raw state."""
    for group in ("averages", "networks"):
        states = content.get(group)
        if isinstance(states, Mapping) and isinstance(states.get(name), Mapping):
            return legacy.strip_module(states[name])
    held = ", ".join(content.get("networks") or {}) or "no network"
    raise UserError(f"{path} is a training checkpoint of {held}, not of the {name}; check which file is given with "
                    f"{_OPTIONS[name]}")


def _fill(create: Callable[[Mapping], nn.Module], state: Mapping, path: str | os.PathLike) -> nn.Module:
    """A network in evaluation mode that holds these very tensors; UserError with all keys that do not fit."""
    with torch.device("meta"):  # initial weights would only be thrown away, and take longer to make than these to read
        network = create(state)
    checkpoints.check_fits(network, state, str(path))
    network.load_state_dict(state, assign=True)
    return network.eval()
