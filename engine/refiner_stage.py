"""Training of the refiner: the colours that the mixed fill of real and built-in faces gets wrong in the hole, and
which of its pixels are hair or background instead.

The linear model knows the portraits that it was made of, so on these its fill is better than on anybody else's face.
Each portrait is therefore filled by a model that does without it (cross-validation), or the refiner would learn to
trust a fill that it never meets again. The frozen encoder sees the masked image, as at inference, and the fill is drawn
as in a completion; the refiner alone is trained: on the face on smoothed colours, since detail is none of its business
there. As in completions the fill is mixed with the paper's network's (`models.mixture`), which knows the portraits,
too, but is only 0.1 dB better on them than on others (docs/experiments.md). Occluders other than the face's own hair
are nothing that a hole should be filled with, so they teach it nothing.
"""
from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine import losses as L
from engine.augmentation import chances
from engine.inpainter_stage import InpainterStage
from engine.stage import Autocast
from models.blending import blend
from models.completion import FaceCompletion, visible_face
from models.inpainter import Inpainting
from models.mixture import Mixture
from models.reduced import REDUCTION, blur
from models.refiner import SMOOTHNESS

DEFAULT_WEIGHTS = {"colour": 1.0, "beside": 0.25, "odds": 0.1}
REACHING = 0.5  # share of the rectangular holes that hide pixels around the face, too, hair and background
REACH = 12  # of so many pixels
SMALL_SQUARE = 1e-6  # added to squared errors, so that the root has a gradient at 0
VISIBLE_WEIGHT = 0.1  # of visible pixels in the loss "odds": to tell what they show is easy


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

    def typical_eyes(self, visible: Tensor) -> Tensor:
        """As `models.linear.LinearInpainter.typical_eyes`."""
        return torch.cat([self.models[model].typical_eyes(visible[index:index + 1])
                          for index, model in enumerate(self.choice)])


class Fill(NamedTuple):
    """What completes one batch: the mixed fill of its items, and the refiner."""

    prior: Mixture
    refiner: nn.Module


class RefinerStage(InpainterStage):
    """The refiner, `models.refiner.Refiner`, between a drawn mixed fill and the picture.

    completion: FaceCompletion with the frozen encoder and occlusion net. network: the trained inpainter of the mixed
    fill. prior: the linear model of all portraits, for faces that are none. fold_models: those that each leave out a
    fold; folds: a portrait's name -> its fold. only: what of the refiner is trained: all (""); "beside": what draws
    what is beside the face, whose colours stay as they are; "decoder": that and the decoder, a quarter of the weights.
    """

    name = "refiner"

    def __init__(self, completion: FaceCompletion, refiner: nn.Module, network: nn.Module, prior: nn.Module,
                 fold_models: Sequence[nn.Module], folds: Mapping[str, int],
                 weights: Mapping[str, float] | None = None, only: str = ""):
        completion.inpainter = refiner
        super().__init__(completion, nn.Identity(), {"gan": 0.0})
        self.only = only
        for part in _left_alone(refiner, only):
            part.requires_grad_(False)
        if only == "beside":
            refiner.gain.requires_grad_(False)
        self.weights = {**DEFAULT_WEIGHTS, **(weights or {})}  # none of the inpainter's losses
        self.priors, self.folds = nn.ModuleList([*fold_models, prior]), dict(folds)
        self.network = network
        self.frozen.update(priors=self.priors, network=network)

    def frozen_networks(self) -> list[nn.Module]:
        return [*super().frozen_networks(), self.network]

    def losses(self, batch, rngs, autocast: Autocast, step: int):
        """The smoothed colours on the face, those beside it, and the odds of either (paper: none; see the module)."""
        image, face, hole, _, occluder = self._examples(batch, rngs, autocast)
        fill = self._inpainter(self.networks, batch)
        with torch.no_grad(), autocast():
            masked = torch.where(hole, 0, image)
            factors = self.completion.factor(masked, hole, face=visible_face(face.float(), hole))
            albedo = fill.prior(factors.albedo_in, factors.uv_visible.float()).albedo
            drawn, coverage = self.completion.render_face(albedo, factors.uv_shade, factors.raster)
            completed = blend(masked, hole & coverage, drawn, (coverage & face & ~hole).float())
        for part in _left_alone(fill.refiner, self.only):
            part.eval()  # their singular vectors stay as they are, too
        with autocast():
            refined = fill.refiner(masked, completed, hole, coverage)
        colour = _smooth_error(refined.face.float() - image, hole & coverage & face)
        return {"colour": L.guard_pixel(colour.detach() if self.only == "beside" else colour),
                "beside": L.guard_pixel(L.pixel_loss(refined.beside.float(), image, mask=hole & ~face & ~occluder)),
                "odds": L.guard_pixel(_odds_loss(refined.odds, face, hole, coverage & ~occluder))}, None

    def _may_be_hidden(self, face: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        beyond = chances(rngs, REACHING, face.device)[:, None, None, None]
        return face | beyond & (F.max_pool2d(face.float(), 2 * REACH + 1, 1, REACH) > 0)

    def _inpainter(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Any]) -> Fill:
        choice = [self.folds.get(name, len(self.priors) - 1) for name in batch["name"]]
        return Fill(Mixture(FoldedPrior(self.priors, choice), self.network), networks[self.name])

    def _complete(self, inpainter: Fill, image: Tensor, hole: Tensor):
        self.completion.refiner = inpainter.refiner
        try:
            return super()._complete(inpainter.prior, image, hole)
        finally:
            self.completion.refiner = None


def _left_alone(refiner: nn.Module, only: str) -> list[nn.Module]:
    """The parts of a `models.refiner.Refiner` that do not learn, if `only` this does."""
    network = refiner.network
    return {"": [], "beside": [network],
            "decoder": [network.direct, network.mirrored, network.down, network.middle]}[only]


def _smooth_error(difference: Tensor, known: Tensor) -> Tensor:
    """Size of a difference (B, 3, H, W), smoothed as the refiner's correction is, where known (B, 1, H, W).

    The mean over the images of each one's root mean square: that is what PSNR measures, where a mean magnitude would
    ask for medians. Images where nothing is known count nothing.
    """
    weight = F.avg_pool2d(known.float(), REDUCTION)
    smooth = blur(F.avg_pool2d(difference * known, REDUCTION) / weight.clamp(min=1e-6), weight, SMOOTHNESS)
    area = weight.sum((1, 2, 3))
    square = (smooth.square().mean(1) * weight[:, 0]).sum((1, 2)) / area.clamp(min=1)
    return L.weighted_mean((square + SMALL_SQUARE).sqrt(), (area > 0).float())


def _odds_loss(odds: Tensor, face: Tensor, hole: Tensor, asked: Tensor) -> Tensor:
    """Cross-entropy of log odds with face; all (B, 1, H, W), asked: which pixels count."""
    loss = F.binary_cross_entropy_with_logits(odds, face.to(odds.dtype), reduction="none")
    return L.weighted_mean(loss, asked * (VISIBLE_WEIGHT + (1 - VISIBLE_WEIGHT) * hole))
