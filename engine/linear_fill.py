"""Makes the linear fill's model from aligned portraits: ``python -m engine.linear_fill --portraits DIR``.

Every portrait is factored by the trained encoder; the albedo of its visible texels, and that of its mirror image, is
what `models.linear.fit_model` learns from. The eyes that stand in where both are hidden are the most typical of them:
those that are most like all others. With ``--finetune`` the model of --linear-ckpt is kept and gets new eyes.
Evaluate it with ``main.py --config args.txt --eval --model-type linear``.
"""
from __future__ import annotations

import sys
from typing import Any, Iterator, Sequence

import numpy as np
import torch

from datasets.faces import FolderFaces
from engine import build
from models.blending import from_uint8
from models.linear import LinearInpainter, fit_model
from models.morphable import UV_HEIGHT, UV_WIDTH, mirror_uv
from models.reduced import blur, reduce
from models.weights import load_linear
from utils import checkpoints, config
from utils.errors import UserError
from utils.logging import note, progress, run_script

COMPONENTS = 64
FOLDS = 5  # models that each do without a fifth of the portraits
HELD_OUT_FOLD = 0
EYE_MARGIN = 10.0  # texels around an eye's landmarks that count as eye
EYE_EDGE = 2.0  # texels within which they cease to
EYE_SIGMA = 10.0  # texels; coarser than this is no detail of an eye


@torch.no_grad()
def collect(completion: Any, faces: FolderFaces, log_type: str,
            device: torch.device = torch.device("cpu")) -> tuple[np.ndarray, np.ndarray]:
    """Reduced albedo maps (2 N, 3, 96, 128) of the portraits and their mirror images, and which texels are known.

    completion: `models.completion.FaceCompletion` on the device. Known texels are seen and, for its occlusion
    net, face.
    """
    maps, known = [], []
    for whole, visible in _unwrapped(completion, faces, "unwrapping portraits", log_type, device):
        for albedo, seen in ((whole, visible), (mirror_uv(whole), mirror_uv(visible))):
            values, weight = reduce(albedo, seen)
            maps.append(values.clamp(-1, 1).cpu())
            known.append((weight > 0.5).cpu())
    return torch.cat(maps).numpy(), torch.cat(known).numpy()


def _unwrapped(completion: Any, faces: FolderFaces, what: str, log_type: str,
               device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of each face albedo (1, 3, 192, 256) in [-1, 1] and visible (1, 1, 192, 256) 0 or 1, under a bar named `what`."""
    for index in progress(range(len(faces)), what, len(faces), log_type):
        image = from_uint8(faces[index]["image"][None].to(device))
        hole = torch.zeros_like(image[:, :1], dtype=torch.bool)
        factors = completion.factor(image, hole, face=completion.trusted(completion.label(image), hole))
        yield factors.albedo_in, factors.uv_visible.float()


def fold_of(index: int) -> int:
    """The fold of a portrait, given its place among the sorted names."""
    return index % FOLDS


def fold_models(completion: Any, faces: FolderFaces, log_type: str,
                device: torch.device = torch.device("cpu")) -> list[LinearInpainter]:
    """FOLDS models, the k-th of the portraits outside fold k: to portraits of fold k it is what the model of all is to
    a stranger's face. completion, device as for `collect`. Raises UserError if there are too few portraits."""
    check_folds(faces)
    maps, known = collect(completion, faces, log_type, device)
    folds = np.repeat([fold_of(index) for index in range(len(faces))], 2)  # a portrait and its mirror image
    return [fit_model(maps[folds != fold], known[folds != fold], COMPONENTS)
            for fold in progress(range(FOLDS), "linear models", FOLDS, log_type)]


def check_folds(faces: FolderFaces) -> None:
    """Raises UserError if there are too few portraits for `fold_models`."""
    _check_count(len(faces) * (FOLDS - 1) // FOLDS, len(faces), faces.root)


def _check_count(used: int, count: int, folder: Any) -> None:
    if 2 * used <= COMPONENTS:
        raise UserError(f"{folder} holds {count} portraits; the linear fill needs more than "
                        f"{COMPONENTS // 2 * count // max(used, 1)}: add aligned portraits")


@torch.no_grad()
def find_eyes(completion: Any, faces: FolderFaces, model: LinearInpainter, log_type: str,
              device: torch.device = torch.device("cpu")) -> torch.Tensor:
    """What the most typical eyes of the portraits have beyond the model's, (3, 192, 256), 0 elsewhere.

    The model completes each portrait's albedo without its eyes. What it misses of them, but for low frequencies, which
    are light and skin, is compared, and that with the greatest mean cosine to all others is taken: one person's, since
    a mean of many is what the model says already. Only portraits that show as much of their eyes as most do count.
    """
    model.eyes = None
    region = eye_region(completion.morphable)
    hidden = (region > 0.05).float()
    found, shares = [], []
    for albedo, visible in _unwrapped(completion, faces, "typical eyes", log_type, device):
        rest = visible * (1 - hidden)
        missed = albedo - model(albedo * rest, rest).albedo
        detail = missed - blur(missed, visible * region, EYE_SIGMA)
        found.append((detail * visible * region)[0].half().cpu())
        shares.append(float((visible * hidden).sum() / hidden.sum()))
    usable = torch.stack([eyes for eyes, share in zip(found, shares) if share >= np.median(shares)]).float()
    directions = torch.nn.functional.normalize(usable.flatten(1))
    typical = usable[(directions @ directions.mean(0)).argmax()]
    note(f"eyes of {len(usable)} portraits compared")
    return typical.to(device)


def eye_region(morphable: Any) -> torch.Tensor:
    """How far each texel belongs to the eyes, (1, 1, 192, 256) in [0, 1]: boxes around their landmarks."""
    row, column = (torch.arange(size, device=morphable.vertex_uv.device, dtype=torch.float32)
                   for size in (UV_HEIGHT, UV_WIDTH))
    inside = lambda x, points: (torch.sigmoid((x - points.min() + EYE_MARGIN) / EYE_EDGE)
                                * torch.sigmoid((points.max() + EYE_MARGIN - x) / EYE_EDGE))
    eyes = [morphable.vertex_uv[morphable.landmarks[start:start + 6]] for start in (36, 42)]
    return sum(inside(row, eye[:, 0])[:, None] * inside(column, eye[:, 1]) for eye in eyes)[None, None]


def make(settings: Any) -> LinearInpainter:
    """The model of the portraits in settings.portraits, written to settings.linear_ckpt; see the module.

    Raises:
        UserError: no portraits, too few of them, or weights are missing.
    """
    if not settings.portraits:
        raise UserError("say where the aligned portraits are with --portraits DIR")
    faces = FolderFaces(settings.portraits)
    kept, metadata = load_linear(settings.linear_ckpt) if settings.finetune else (None, {})
    if kept is None:
        _check_count(len(faces), len(faces), settings.portraits)
    device = build.choose_device(settings)
    # In float32, so that the model does not depend on the machine.
    completion = build.build_completion(settings.replace(precision="fp32"), device, inpainter=torch.nn.Identity())
    model = kept or fit_model(*collect(completion, faces, settings.log_type, device), COMPONENTS)
    if kept is None:
        metadata = {"portraits": len(faces), "components": COMPONENTS, "noise": float(model.noise),
                    "uv_layout": completion.morphable.uv_layout}
    model.eyes = find_eyes(completion, faces, model.to(device), settings.log_type, device)
    metadata = {**metadata, "eyes_of": len(faces)}
    checkpoints.save_weights(settings.linear_ckpt, "linear", model.state_dict(), metadata)
    note(f"{settings.linear_ckpt}: {len(model.components)} components, noise {float(model.noise):.3f}, eyes of one of "
         f"{len(faces)} portraits")
    return model


def main(arguments: Sequence[str]) -> None:
    """The command line: the options of main.py."""
    make(config.parse(arguments, "Make the linear fill's model from aligned portraits (--portraits DIR)."))


if __name__ == "__main__":
    sys.exit(run_script(main))
