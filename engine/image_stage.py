"""Training of the 2D baseline: what `engine.inpainter_stage` does on the UV map, done on the image."""
from __future__ import annotations

from typing import Any, Mapping

import torch
from torch import Tensor, nn

from engine import losses as L
from engine import report
from engine.inpainter_stage import FillingStage
from engine.stage import Autocast
from models.blending import blend
from models.image_completion import ImageCompletion

DEFAULT_WEIGHTS = {"albedo": 1.0, "image": 1.0, "gan": 0.0, "perceptual": 0.0, "critic": 1.0, "penalty": 10.0}


class ImageStage(FillingStage):
    """A `models.image_completion.ImageInpainter`, and the frozen occlusion net; other arguments as of `FillingStage`.

    The loss "albedo" is here the distance of the network's picture from the true one on the face, hidden pixels
    weighted as hidden texels are there; "image" that of the completed picture.
    """

    name = "inpainter2d"

    def __init__(self, network: nn.Module, discriminator: nn.Module, occlusion: nn.Module,
                 weights: Mapping[str, float] | None = None, **options: Any):
        super().__init__(network, discriminator, occlusion, {**DEFAULT_WEIGHTS, **(weights or {})},
                         frozen={"occlusion": occlusion}, **options)

    def losses(self, batch, rngs, autocast: Autocast, step: int):
        """Those of the picture and the completed picture (see the class), for `engine.stage.Stage.losses`."""
        image, face, hole, *_ = self._examples(batch, rngs, autocast)
        with autocast():
            picture = self.networks[self.name](torch.where(hole, 0, image), ~hole)
        picture = picture.float()
        weight = face.float() * (1 + self.hole_weight * hole)
        losses = {"albedo": L.guard_pixel(L.pixel_loss(picture, image, self.albedo_kind, weight))}
        completed = blend(image, hole, picture, (face & ~hole).float())
        losses["image"] = L.guard_pixel(L.image_loss(completed, image, face, self.image_kind))
        return self._judge(losses, completed, image, face, autocast, step)

    def _complete(self, inpainter: nn.Module, image: Tensor, hole: Tensor):
        return ImageCompletion(inpainter, self.occlusion)(image, hole)

    def pictures(self, networks, batch, rngs) -> Tensor:
        """Held-out faces: masked, completed, original."""
        few = {name: value[:4] for name, value in batch.items()}
        image, hole = self._held_out(few, rngs, torch.no_grad)
        done = self._complete(networks[self.name], image, hole)
        return report.tile([list(row) for row in zip(torch.where(hole, 0, image), done.output, image)])
