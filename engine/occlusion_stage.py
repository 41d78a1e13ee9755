"""Training of the occlusion net: every pixel is face, occlusion or background.

Cross-entropy balanced between the classes, heavier along the boundaries between them, plus a soft Dice term. The
completion's hole is the predicted occlusion, so a boundary that is off by pixels leaves a rim of the occluder.
"""
from __future__ import annotations

from typing import Any, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.labels import OCCLUSION
from engine import report
from engine.augmentation import Similarity, colour_jitter
from engine.compilation import compile_method
from engine.distributed import mean_over_processes
from engine.losses import weighted_mean
from engine.stage import Autocast, Stage
from models.blending import from_uint8
from models.occlusion import CLASS_WEIGHTS, N_LABELS
from utils.device import send

BOUNDARY_WEIGHT = 2.0  # added to the weight 1 of pixels within BOUNDARY_WIDTH / 2 of another class
BOUNDARY_WIDTH = 7
DEFAULT_WEIGHTS = {"cross_entropy": 1.0, "dice": 0.5, "hair": 1.0}
IOUS = ("iou_face", "iou_occlusion", "iou_background")  # in the order of the labels
COLOURS = ((0.1, 0.9, 0.1), (0.9, 0.1, 0.1), (0.1, 0.1, 0.9))  # of the labels in pictures


class OcclusionStage(Stage):
    """The occlusion net on items {"image", "labels"}; trained on 224 px windows, validated on whole crops.

    A net with heads for hair learns them from items that have "hair" (1 where occlusion is hair, else 0), too.
    only: "hair", the heads alone, or "decoder", they and all that is finer than 1/16 of the pictures, a fifth of the
    weights: nothing else changes, not even the statistics of norms; "" for everything.
    """

    name, metric, higher_is_better = "occlusion", "mean_iou", True
    validation_items = 128
    gradient_clip = 20.0

    def __init__(self, occlusion: nn.Module, weights: Mapping[str, float] | None = None, only: str = ""):
        super().__init__({"occlusion": occlusion}, {**DEFAULT_WEIGHTS, **(weights or {})})
        self._compiled_scores, self.only = None, only
        parts = {"hair": [occlusion], "decoder": [occlusion.inlet, occlusion.down, occlusion.up[0]]} if only else {}
        self._left_alone = parts.get(only, [])
        for part in self._left_alone:
            part.requires_grad_(False)
        if only == "hair":
            occlusion.hair_heads.requires_grad_(True)

    def metadata(self) -> dict[str, Any]:
        return {"class_weights": list(CLASS_WEIGHTS)}

    def compile(self) -> None:
        # Training calls this method, which compiling the network as a whole would not reach.
        self._compiled_scores = compile_method(self.networks["occlusion"].scores)

    def losses(self, batch, rngs, autocast: Autocast, step: int):
        """Cross-entropy and Dice of the labels, and of hair where it is told, for `engine.stage.Stage.losses`."""
        change = Similarity.draw(rngs, batch["image"].device, zoom=0.12, angle=0.1, shift=8.0)
        image = colour_jitter(change.warp(from_uint8(batch["image"])), rngs)
        truth = [batch["labels"], *([batch["hair"]] if "hair" in batch else [])]
        labels, *hair = change.warp(torch.stack(truth, 1).float(), mode="nearest").round().long().unbind(1)
        network, losses = self.networks["occlusion"], {}
        for part in self._left_alone:
            part.eval()
        with autocast():
            logits, score = (self._compiled_scores or network.scores)(image)
        if self.only != "hair":
            logits = logits.float()
            losses = {"cross_entropy": balanced_cross_entropy(logits, labels), "dice": dice_loss(logits, labels)}
        if hair and score is not None:
            losses["hair"] = hair_loss(score.float(), hair[0], labels)
        return losses, None

    def validate(self, networks, batch, rngs, autocast: Autocast) -> Tensor:
        """Pixels of every (true, predicted) pair of classes, flattened 3x3."""
        with autocast():
            predicted = networks["occlusion"].logits(from_uint8(batch["image"])).argmax(1)
        return confusion(batch["labels"], predicted).flatten()

    def score(self, statistics: Tensor) -> dict[str, float]:
        table = statistics.reshape(N_LABELS, N_LABELS)
        ious = overlaps(table)
        present = [iou for iou in ious.values() if iou is not None]
        return {"mean_iou": sum(present) / len(present), **{name: iou or 0.0 for name, iou in ious.items()},
                "accuracy": float(table.diagonal().sum() / table.sum())}

    def pictures(self, networks, batch, rngs) -> Tensor:
        """Held-out images, true and predicted labels."""
        image = from_uint8(batch["image"][:4])
        predicted = networks["occlusion"].logits(image).argmax(1)
        colours = send(torch.tensor(COLOURS), image.device) * 2 - 1
        labels = [colours[labels.long()].permute(0, 3, 1, 2) for labels in (batch["labels"][:4], predicted)]
        return report.tile([list(row) for row in (image, *labels)])


def confusion(labels: Tensor, predicted: Tensor) -> Tensor:
    """Pixels of every (true, predicted) pair of labels, int64 (3, 3), of two label maps of one shape."""
    pairs = labels.long() * N_LABELS + predicted.long()
    return torch.bincount(pairs.flatten(), minlength=N_LABELS ** 2).reshape(N_LABELS, N_LABELS)


def overlaps(table: Tensor) -> dict[str, float | None]:
    """IoU of each label from a confusion table (3, 3); None for a label that is neither there nor predicted."""
    union = table.sum(0) + table.sum(1) - table.diagonal()
    return {name: int(common) / int(size) if size else None
            for name, common, size in zip(IOUS, table.diagonal(), union)}


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (B, 3, H, W) with labels (B, H, W), weighted by class and along boundaries."""
    weight = send(torch.tensor(CLASS_WEIGHTS), logits.device)[labels] * (1 + BOUNDARY_WEIGHT * boundary(labels))
    return (F.cross_entropy(logits, labels, reduction="none") * weight).sum() / mean_over_processes(weight.sum())


def hair_loss(score: Tensor, hair: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of log odds (B, 1, H, W) with hair (B, H, W), 0 or 1, where labels are OCCLUSION."""
    loss = F.binary_cross_entropy_with_logits(score[:, 0], hair.to(score.dtype), reduction="none")
    return weighted_mean(loss[:, None], (labels == OCCLUSION)[:, None])


def boundary(labels: Tensor) -> Tensor:
    """1 where a (B, H, W) label map has another label within 3 pixels, else 0; float."""
    values = labels[:, None].float()
    highest = F.max_pool2d(values, BOUNDARY_WIDTH, 1, BOUNDARY_WIDTH // 2)
    lowest = -F.max_pool2d(-values, BOUNDARY_WIDTH, 1, BOUNDARY_WIDTH // 2)
    return (highest != lowest).float()[:, 0]


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - soft Dice overlap of each class over the batch, averaged over the classes (Milletari et al., 2016)."""
    probabilities = logits.softmax(1)
    truth = (labels[:, None] == torch.arange(N_LABELS, device=labels.device)[:, None, None]).to(probabilities.dtype)
    overlap = (probabilities * truth).sum((2, 3)).mean(0)  # pixels of an image, whatever the batch
    size = (probabilities + truth).sum((2, 3)).mean(0)
    overlap, size = mean_over_processes(torch.stack([overlap, size]))
    return (1 - (2 * overlap + 1) / (size + 1)).mean()
