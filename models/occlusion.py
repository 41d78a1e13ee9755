"""The occlusion net O: a U-Net that labels each pixel face, occlusion or background."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import ResidualDouble

N_LABELS = 3  # those of `datasets.labels`
# Of the labels in our training's cross-entropy: occluders are the rarest (`engine.occlusion_stage`).
CLASS_WEIGHTS = (0.8, 1.4, 0.8)
MIN_SIZE = 32


def _double(inputs: int, outputs: int) -> ResidualDouble:
    return ResidualDouble(inputs, outputs, conv=nn.Conv2d, norm=nn.BatchNorm2d, activation=F.relu)


class _Up(nn.Module):
    """Doubles the deeper map's size, pads it to the skip's and joins the two (inputs/2 channels each)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.upsample = nn.ConvTranspose2d(inputs // 2, inputs // 2, 2, 2)
        self.join = _double(inputs, outputs)

    def forward(self, deeper: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        deeper = self.upsample(deeper)
        rows, columns = skip.shape[-2] - deeper.shape[-2], skip.shape[-1] - deeper.shape[-1]
        deeper = F.pad(deeper, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return self.join(torch.cat([skip, deeper], dim=1))


class OcclusionNet(nn.Module):
    """Image (B, 3, H, W) in [-1, 1], any H and W of at least 32 -> label probabilities (B, 3, H, W).

    reduction: in (0, 1]; below 1 the image is reduced by about it first, by averaging, to multiples of 32 pixels, and
    the scores are enlarged again. A departure from the published net (1) that costs a fraction of the time, for weights
    trained in this way.
    knows_hair: another departure: small heads on the decoder's maps tell the face's own hair from what else hides it,
    for those who ask (`hair`). The labels do not depend on them.
    class_weights: those of the cross-entropy that the weights were trained with, None for equal ones. Such weights
    multiply the odds that training teaches, so they are divided out again, except during training (Elkan, The
    Foundations of Cost-Sensitive Learning, 2001).
    """

    def __init__(self, reduction: float = 1.0, knows_hair: bool = False):
        super().__init__()
        self.reduction = reduction
        widths = (32, 64, 128, 256, 256, 256)
        self.inlet = _double(3, widths[0])
        self.down = nn.ModuleList(_double(*pair) for pair in zip(widths[:-1], widths[1:]))
        self.up = nn.ModuleList([_Up(512, 256), _Up(512, 128), _Up(256, 64), _Up(128, 32), _Up(64, 32)])
        self.output = nn.Conv2d(32, N_LABELS, 1)
        self.class_weights: tuple[float, ...] | None = None
        self.hair_heads: nn.ModuleList | None = None
        if knows_hair:
            self.learn_hair()

    @property
    def knows_hair(self) -> bool:
        """Whether there are heads for hair."""
        return self.hair_heads is not None

    def learn_hair(self) -> None:
        """Adds heads for hair, which know nothing yet."""
        self.hair_heads = nn.ModuleList(nn.Conv2d(stage.join.conv2.out_channels, 1, 1) for stage in self.up)
        self.hair_heads.to(self.output.weight.device)

    @torch.no_grad()
    def with_hair(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Label probabilities (B, 3, H, W) as of the net itself, and log odds (B, 1, H, W), float32, that occlusion is
        hair: minus infinity if the net does not know it. In one pass.
        """
        return self(image, hair=True)  # through the call, which alone is compiled with --compile

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """Scores (B, 3, H, W) before the softmax, float32 under autocast; raises ValueError below 32 pixels."""
        return self._label_scores(self._decoded(image)[-1], image)

    def scores(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(`logits`, log odds (B, 1, H, W) that occlusion is hair, or None if the net does not know it), in one pass.

        Gradients of the odds reach the heads alone.
        """
        maps = self._decoded(image)
        hair = None
        if self.knows_hair:
            hair = sum(self._enlarged(head(decoded.detach()), image) for head, decoded in zip(self.hair_heads, maps))
        return self._label_scores(maps[-1], image), hair

    def _label_scores(self, decoded: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        scores = self._enlarged(self.output(decoded), image)
        if self.training or self.class_weights is None:
            return scores
        weighted = zip(scores.unbind(1), self.class_weights)
        return torch.stack([score - math.log(weight) for score, weight in weighted], dim=1)

    @staticmethod
    def _enlarged(scores: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        if scores.shape[-2:] != image.shape[-2:]:
            scores = F.interpolate(scores, image.shape[-2:], mode="bilinear", align_corners=False)
        return scores

    def _reduced(self, image: torch.Tensor) -> torch.Tensor:
        if self.reduction >= 1:
            return image
        # Multiples of the deepest map's stride, as in training: else maps are padded on one side on the way up.
        reduced = [MIN_SIZE * max(1, round(side * self.reduction / MIN_SIZE)) for side in image.shape[-2:]]
        return F.interpolate(image, reduced, mode="area")

    def _decoded(self, image: torch.Tensor) -> list[torch.Tensor]:
        """What the decoder's stages give for the reduced image, the coarsest map first."""
        if image.dim() != 4 or image.shape[1] != 3 or min(image.shape[-2:]) < MIN_SIZE:
            raise ValueError(f"the occlusion net takes images (B, 3, H, W) of at least {MIN_SIZE} pixels a side; "
                             f"got {tuple(image.shape)}")
        maps = [self.inlet(self._reduced(image))]
        for stage in self.down:
            maps.append(stage(F.max_pool2d(maps[-1], 2)))
        decoded = [maps.pop()]
        for stage in self.up:
            decoded.append(stage(decoded[-1], maps.pop()))
        return decoded[1:]

    def forward(self, image: torch.Tensor, hair: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The label probabilities; hair: and what `with_hair` returns besides."""
        if not hair:
            return self.logits(image).softmax(dim=1)
        logits, odds = self.scores(image)
        if odds is None:
            odds = torch.full_like(logits[:, :1], -torch.inf)
        return logits.softmax(dim=1), odds.float()
