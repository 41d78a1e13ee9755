"""The losses (paper section 3.3), each a scalar tensor.

Maps are NCHW. A mask says where a loss counts (1) and where not (0); a confidence map is the predicted log-uncertainty
c, which weighs a loss l as (l * exp(-c) + c) / 2, so that an uncertain texel costs less but uncertainty has its price.
"""
from __future__ import annotations

from typing import Callable, Sequence, Union

import torch
import torch.nn.functional as F
from torch import nn

from engine.distributed import mean_over_processes

EPSILON_L21 = 1e-16
EPSILON_AREA = 1e-8
SYMMETRY_TOLERANCE = 0.005
PIXEL_LIMIT = 50.0
GAN_LIMIT = 20.0

Scores = Union[torch.Tensor, Sequence[torch.Tensor]]  # of a discriminator: one map or several


def weighted_mean(loss: torch.Tensor, mask: torch.Tensor | None = None,
                  confidence: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of an element-wise loss (B, C, H, W) -> scalar.

    With ``confidence`` (B, 1, H, W): the mean over channels l becomes (l * exp(-c) + c) / 2. With ``mask``
    (B, 1, H, W), or any shape that broadcasts: the mean over the masked part; 0 if the mask is empty. Where several
    processes train together, the masked part is divided by its mean size over them: the mean of all their losses is
    then that of their whole batch.
    """
    if confidence is not None:
        loss = (loss.mean(dim=1, keepdim=True) * torch.exp(-confidence) + confidence) / 2
    if mask is not None:
        mask = mask.to(loss.dtype)
        loss = loss * (mask * (mask.numel() / (mean_over_processes(mask.sum()) + EPSILON_AREA)))
    return loss.mean()


def pixel_loss(prediction: torch.Tensor, target: torch.Tensor, kind: str = "l1", mask: torch.Tensor | None = None,
               confidence: torch.Tensor | None = None, power: float = 1.0) -> torch.Tensor:
    """Distance of two maps (B, C, H, W) -> scalar.

    kind: "l1" |d|, "l2" d^2, "l21" the Euclidean norm over channels; element-wise raised to ``power``. mask and
    confidence as in :func:`weighted_mean`. Raises ValueError for another kind.
    """
    difference = prediction - target
    if kind == "l1":
        loss = difference.abs()
    elif kind == "l2":
        loss = difference.square()
    elif kind == "l21":
        loss = (difference.square().sum(dim=1, keepdim=True) + EPSILON_L21).sqrt()
    else:
        raise ValueError(f"kind of pixel loss must be l1, l2 or l21, not {kind!r}")
    if power != 1.0:
        loss = loss.pow(power)
    return weighted_mean(loss, mask, confidence)


def albedo_loss(albedo: torch.Tensor, true_albedo: torch.Tensor, face: torch.Tensor,
                confidence: torch.Tensor | None = None, kind: str = "l1") -> torch.Tensor:
    """Inpainted against true UV albedo (B, 3, H, W) on the UV face mask (B, 1, H, W), weighted by the uncertainty."""
    return pixel_loss(albedo, true_albedo, kind, face, confidence)


def image_loss(image: torch.Tensor, true_image: torch.Tensor, face: torch.Tensor, kind: str = "l1") -> torch.Tensor:
    """Completed against true image (B, 3, H, W) on the face mask (B, 1, H, W)."""
    return pixel_loss(image, true_image, kind, face)


def symmetry_loss(albedo: torch.Tensor, visible: torch.Tensor, mirror: Callable[[torch.Tensor], torch.Tensor],
                  confidence: torch.Tensor | None = None) -> torch.Tensor:
    """Hidden texels should look like their visible mirror texels.

    albedo: (B, 3, H, W) output. visible: (B, 1, H, W), 1 where the input was known. mirror: mirrors a map left-right,
    leaving 0 where a texel has no mirror. The mirrored albedo is detached, so that the hidden half learns from the
    visible one and not the reverse; differences of at most 0.005 are ignored.
    """
    visible = visible.to(albedo.dtype)
    where = (1 - visible) * mirror(visible)
    difference = (albedo - mirror(albedo).detach()).abs()
    difference = difference * (difference.detach() > SYMMETRY_TOLERANCE)
    return weighted_mean(difference, where, confidence)


def _score_maps(scores: Scores) -> list[torch.Tensor]:
    return [scores] if isinstance(scores, torch.Tensor) else list(scores)


def hinge_discriminator_loss(real: Scores, fake: Scores, mask: torch.Tensor | None = None,
                             confidence: torch.Tensor | None = None) -> torch.Tensor:
    """max(0, 1 - D(real)) + max(0, 1 + D(fake)), averaged over each score map (B, 1, h, w) and over the maps."""
    losses = [weighted_mean(F.relu(1 - r) + F.relu(1 + f), mask, confidence)
              for r, f in zip(_score_maps(real), _score_maps(fake), strict=True)]
    return torch.stack(losses).mean()


def hinge_generator_loss(fake: Scores, mask: torch.Tensor | None = None,
                         confidence: torch.Tensor | None = None) -> torch.Tensor:
    """-D(fake), averaged over each score map and over the maps."""
    return torch.stack([weighted_mean(-scores, mask, confidence) for scores in _score_maps(fake)]).mean()


def gradient_penalty(discriminator: Callable[[torch.Tensor], Scores], real: torch.Tensor, fake: torch.Tensor,
                     alpha: torch.Tensor | None = None, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of (|gradient of D| - 1)^2 at random points between real and fake (Gulrajani et al., 2017), per pixel.

    real, fake: (B, 3, H, W). alpha: (B,) or (B, 1) in [0, 1], the share of the real image, drawn uniformly if None.
    mask: (B, H, W) or (B, 1, H, W), where the penalty counts. The gradients of all score maps are added before the
    norm over channels is taken. Differentiable in the discriminator's parameters.
    """
    if alpha is None:
        alpha = torch.rand(real.shape[0], device=real.device, dtype=real.dtype)
    alpha = alpha.reshape(-1, 1, 1, 1)
    between = (alpha * real + (1 - alpha) * fake).detach().requires_grad_(True)
    total = sum(scores.sum() for scores in _score_maps(discriminator(between)))
    (gradient,) = torch.autograd.grad(total, between, create_graph=True)
    # The norm's own gradient at zero is defined as zero, unlike that of sqrt(sum of squares).
    penalty = (torch.linalg.vector_norm(gradient, dim=1, keepdim=True) - 1).square()
    if mask is not None:
        mask = mask.reshape(penalty.shape).to(penalty.dtype)
        penalty = penalty * (mask * (mask.numel() / (mean_over_processes(mask.sum()) + EPSILON_AREA)))
    return penalty.mean()


def guard(loss: torch.Tensor, limit: float) -> torch.Tensor:
    """Scales a loss that exceeds ``limit`` down to it; its gradient shrinks by the same factor."""
    return loss * (limit / loss.detach().clamp(min=limit))


def guard_pixel(loss: torch.Tensor) -> torch.Tensor:
    """:func:`guard` at 50, for the pixel losses."""
    return guard(loss, PIXEL_LIMIT)


def guard_gan(loss: torch.Tensor) -> torch.Tensor:
    """:func:`guard` at 20, for the adversarial terms."""
    return guard(loss, GAN_LIMIT)


class PerceptualLoss(nn.Module):
    """L1 distance of ImageNet VGG16 features at relu1_2, relu2_2 and relu3_3, averaged over the three layers.

    features: from :func:`engine.pretrained.load_vgg_features`. Images are (B, 3, H, W) in [-1, 1]; ``mask``
    (B, 1, H, W) is shrunk to each layer's size by area.
    """

    def __init__(self, features: nn.Module):
        super().__init__()
        self.features = features.eval().requires_grad_(False)

    def forward(self, image: torch.Tensor, true_image: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The loss (), of images (B, 3, H, W) in [-1, 1]; differentiable in the first."""
        losses = []
        with torch.no_grad():
            wanted = self.features(true_image)
        for found, target in zip(self.features(image), wanted, strict=True):
            weight = None if mask is None else F.adaptive_avg_pool2d(mask.float(), found.shape[-2:])
            # Under autocast the features are half precision; their average over a whole map must not be.
            losses.append(weighted_mean((found - target).abs().float(), weight))
        return torch.stack(losses).mean()
