"""Completed faces for the harmoniser to learn from:

    python -m engine.harmoniser_examples --config args.txt --portraits DIR --synthetic-cache DIR --examples FILE

Completing takes a hundred times as long as a training step of the harmoniser, so the completions are made once. Faces
are portraits, each filled by a linear model that does without it, as a stranger's would be, and built-in faces; half of
them mirrored, most with changed colours, each with a hole of its own. What is kept is what the harmoniser sees and the
true picture, both in cells of 8 pixels.
"""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datasets.faces import FolderFaces
from datasets.masks import mask_ratio, random_hole
from engine import build
from engine.augmentation import colour_jitter, to_float
from engine.encoder_stage import blobs
from engine.linear_fill import HELD_OUT_FOLD, fold_models, fold_of
from engine.portraits import label_faces
from engine.training import start_worker
from models.completion import FaceCompletion
from models.harmoniser import CELL, EVIDENCE
from models.occlusion import FACE
from utils import config
from utils.errors import UserError
from utils.files import atomic
from utils.logging import note, progress, run_script

BUILT_IN, HELD_OUT_BUILT_IN = -1, -2  # in place of a portrait's fold
HELD_OUT_SHARE = 0.1  # of the built-in faces
RECTANGLES = 0.8  # share of the holes; the others are ellipses
JITTERED = 0.8  # share of the pictures whose colours are changed
HIDDEN = (0.15, 0.97)  # share of the face that a hole may hide
ATTEMPTS = 20


class Examples(Dataset):
    """Completed faces in cells: {"cells": float32 (12, 32, 32), "truth": float32 (3, 32, 32)}.

    path: a file of :func:`make`. held_out: those that choose the best checkpoint, which share no face with the others.
    Raises UserError if the file is missing or something else.
    """

    def __init__(self, path: str | Path, held_out: bool):
        try:
            with np.load(path, allow_pickle=False) as content:
                cells, truth, fold = (content[name] for name in ("cells", "truth", "fold"))
        except (OSError, ValueError, KeyError, EOFError):
            raise UserError(f"--examples {path} is no file of completed faces: make it with python -m "
                            "engine.harmoniser_examples --examples FILE") from None
        if cells.ndim != 4 or cells.shape[1] != EVIDENCE or len(cells) != len(truth) or len(cells) != len(fold):
            raise UserError(f"--examples {path} was made by another version: make it anew with python -m "
                            "engine.harmoniser_examples --overwrite")
        chosen = np.isin(fold, (HELD_OUT_FOLD, HELD_OUT_BUILT_IN)) == held_out
        self.cells, self.truth = (torch.from_numpy(values[chosen]) for values in (cells, truth))
        if not len(self):
            raise UserError(f"--examples {path} holds no faces to {'validate with' if held_out else 'learn from'}: "
                            "make more of them")

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"cells": self.cells[index].float(), "truth": self.truth[index].float()}


class _Recorder(nn.Module):
    """In the harmoniser's place: keeps what it would see, and corrects nothing."""

    def forward(self, cells: Tensor) -> Tensor:
        self.cells = cells
        return torch.zeros_like(cells[:, :3])


class _Completions(Dataset):
    """Item k: the k-th completed face; every item depends on the seed and k alone."""

    def __init__(self, completion: FaceCompletion, faces: Sequence[tuple[Dataset, int, nn.Module, int]], seed: int):
        self.completion, self.faces, self.seed = completion, faces, seed

    def __len__(self) -> int:
        return len(self.faces)

    @torch.no_grad()
    def __getitem__(self, index: int) -> dict[str, Any]:
        source, place, inpainter, fold = self.faces[index]
        rng = np.random.default_rng([self.seed, index])
        item = source[place]
        image, hole = self._example(item, rng)
        self.completion.inpainter, self.completion.harmoniser = inpainter, _Recorder()
        self.completion(image, hole)
        cells, truth = self.completion.harmoniser.cells[0], F.avg_pool2d(image, CELL)[0]
        return {"cells": cells.half().numpy(), "truth": truth.half().numpy(), "fold": np.int16(fold)}

    def _example(self, item: Mapping[str, Any], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The picture (1, 3, 256, 256) and its hole (1, 1, 256, 256) bool."""
        image = to_float(torch.as_tensor(item["image"])[None])
        labels = torch.as_tensor(item["labels"])[None, None]
        if rng.random() < 0.5:
            image, labels = image.flip(3), labels.flip(3)
        if rng.random() < JITTERED:
            image = colour_jitter(image, [rng])
        return image, torch.from_numpy(_hole(rng, (labels == FACE)[0, 0].numpy()))[None, None]


def _hole(rng: np.random.Generator, face: np.ndarray) -> np.ndarray:
    """A hole on the face, bool (256, 256), that hides a share of it in HIDDEN; the whole face if none is found."""
    for _ in range(ATTEMPTS):
        if rng.random() < RECTANGLES:
            hole = random_hole(rng, face, evaluation=True)
        else:
            hole = blobs(rng, *face.shape) & face
        if HIDDEN[0] <= mask_ratio(face, hole) <= HIDDEN[1]:
            return hole
    return face


def make(settings: Any) -> None:
    """Completes settings.example_rounds times each portrait and once settings.example_built_in built-in faces, and
    writes them to settings.examples.

    Raises:
        UserError: portraits, cache or weights are missing, or the file exists.
    """
    from datasets.synthetic import CachedFaces
    from models.weights import load_linear
    for value, option in ((settings.portraits, "--portraits DIR"), (settings.synthetic_cache, "--synthetic-cache DIR"),
                          (settings.examples, "--examples FILE")):
        if not value:
            raise UserError(f"{option} is missing: see python -m engine.harmoniser_examples --help")
    if Path(settings.examples).exists() and not settings.overwrite:
        raise UserError(f"{settings.examples} exists: give another name, or --overwrite")
    folder, built_in = FolderFaces(settings.portraits), CachedFaces(settings.synthetic_cache)
    completion = build.build_completion(settings, torch.device("cpu"), inpainter=nn.Identity(), grain=False)
    completion.iterations = 1
    models = fold_models(completion, folder, settings.log_type)
    portraits = label_faces(folder, completion.occlusion, settings.log_type)
    stranger = load_linear(settings.linear_ckpt)
    rng = np.random.default_rng(settings.manual_seed)
    faces: list[tuple] = [(portraits, index, models[fold_of(index)], fold_of(index))
                          for _ in range(settings.example_rounds) for index in range(len(portraits))]
    chosen = rng.permutation(len(built_in))[:settings.example_built_in]
    held_out = int(len(chosen) * HELD_OUT_SHARE)
    faces += [(built_in, int(index), stranger, HELD_OUT_BUILT_IN if place < held_out else BUILT_IN)
              for place, index in enumerate(chosen)]
    completions = _Completions(completion, faces, settings.manual_seed)
    loader = DataLoader(completions, batch_size=None, num_workers=settings.nthreads, worker_init_fn=start_worker)
    rows = list(progress(loader, "completing faces", len(faces), settings.log_type))
    with atomic(settings.examples) as file:
        np.savez(file, **{name: np.stack([row[name] for row in rows]) for name in rows[0]})
    note(f"{settings.examples}: {len(rows)} completed faces")


def main(arguments: Sequence[str]) -> None:
    """The command line: the options of main.py."""
    make(config.parse(arguments, "Complete faces for the harmoniser to learn from."))


if __name__ == "__main__":
    sys.exit(run_script(main))
