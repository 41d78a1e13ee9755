"""How far completions believe the direction of the light that the encoder reads from a picture.

A part of the albedo's model is light that the encoder missed, and what it fits to visible skin goes on into the hole.
The encoder's own answer goes there as it is, and real light has shadows, several sources and gloss, which nine
harmonics do not. So completions take its direction most of the way back to the usual light: an average of held-out
faces, measured in training, that travels with the weights (docs/experiments.md, "Light"). This is no part of the paper;
published weights, and others without that average, are used without it.
"""
from __future__ import annotations

from typing import Any, Mapping

import torch
from torch import Tensor, nn

from models.encoder import LIGHT_SIZE, FaceCode
from utils.errors import UserError

# Share of the way from the usual light to the encoder's. Constant terms, brightness and colour, are the encoder's; to
# take the usual ones in proportion to them made no difference (docs/experiments.md).
LIGHT_TRUST = 0.25


class UsualLight(nn.Module):
    """An encoder whose light is led back to the usual one, (27,), but for its constant terms."""

    def __init__(self, encoder: nn.Module, usual: Tensor):
        super().__init__()
        self.encoder = encoder
        self.register_buffer("usual", usual, persistent=False)

    def forward(self, image: Tensor) -> FaceCode:
        """The encoder's code with its light of :func:`lead_back`."""
        code = self.encoder(image)
        return code._replace(light=lead_back(code.light.float(), self.usual))


def lead_back(light: Tensor, usual: Tensor, trust: float = LIGHT_TRUST) -> Tensor:
    """Light (B, 27) with all but the constant term of each channel moved towards the usual (27,); trust in [0, 1]."""
    directed = torch.arange(LIGHT_SIZE, device=light.device) % 9 > 0
    return torch.where(directed, torch.lerp(usual.expand_as(light), light, trust), light)


def usual_light_of(metadata: Mapping[str, Any]) -> Tensor | None:
    """The usual light (27,) of a stored encoder, if it is known; metadata as `models.weights.load_encoder` returns.

    Raises:
        UserError: it is no such light.
    """
    values = metadata.get("usual_light")
    if values is None:
        return None
    light = torch.as_tensor(values, dtype=torch.float32)
    if light.shape != (LIGHT_SIZE,) or not light.isfinite().all():
        raise UserError(f"the encoder's file says usual_light {str(values)[:60]}, which are not {LIGHT_SIZE} finite "
                        "numbers: train it further, or use another")
    return light
