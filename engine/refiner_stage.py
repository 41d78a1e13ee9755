"""Training of the refiner: what the linear fill of real and built-in faces gets wrong in the hole.

The linear model knows the portraits that it was made of, so on these its fill is better than on anybody else's face.
Each portrait is therefore filled by a model that does without it (cross-validation), or the refiner would learn to
trust a fill that it never meets again. Otherwise training is that of the inpainter: the frozen encoder sees the masked
image, and the true one, unwrapped, is the target.
"""
from __future__ import annotations

from typing import Any, Mapping, Sequence

import torch
from torch import Tensor, nn

from engine.inpainter_stage import InpainterStage
from models.completion import FaceCompletion
from models.inpainter import Inpainting
from models.refiner import RefinedInpainter

DEFAULT_WEIGHTS = {"albedo": 1.0, "symmetry": 0.0, "image": 1.0, "gan": 0.0, "perceptual": 0.0, "hidden_albedo": 0.0}


class FoldedPrior(nn.Module):
    """Fills each item of a batch with its own linear model: (albedo, visible) -> Inpainting, in that order.

    models: inpainters; choice: for each item the index of its model.
    """

    def __init__(self, models: Sequence[nn.Module], choice: Sequence[int]):
        super().__init__()
        self.models, self.choice = list(models), list(choice)

    def forward(self, albedo: Tensor, visible: Tensor) -> Inpainting:
        items = [self.models[model](albedo[index:index + 1], visible[index:index + 1])
                 for index, model in enumerate(self.choice)]
        return Inpainting(*(torch.cat(parts) for parts in zip(*items)))


class RefinerStage(InpainterStage):
    """The refiner, `models.refiner.Refiner`, as completion.inpainter; other arguments as of `InpainterStage`.

    prior: the linear model of all portraits, for faces that are none. fold_models: those that each leave out a fold;
    folds: a portrait's name -> its fold.
    """

    name = "refiner"

    def __init__(self, completion: FaceCompletion, discriminator: nn.Module, prior: nn.Module,
                 fold_models: Sequence[nn.Module], folds: Mapping[str, int],
                 weights: Mapping[str, float] | None = None, **options: Any):
        super().__init__(completion, discriminator, {**DEFAULT_WEIGHTS, **(weights or {})}, use_confidence=False,
                         **options)
        self.priors, self.folds = nn.ModuleList([*fold_models, prior]), dict(folds)
        self.frozen["priors"] = self.priors

    def _inpainter(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Any]) -> nn.Module:
        choice = [self.folds.get(name, len(self.priors) - 1) for name in batch["name"]]
        return RefinedInpainter(FoldedPrior(self.priors, choice), networks[self.name])
