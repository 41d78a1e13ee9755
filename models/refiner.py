"""The refined completion: the linear fill, drawn, and its colours corrected in the hole by the gated U-Net.

A departure from the paper, whose network invents the hidden albedo alone (`models.inpainter`). A statistical model of
albedo knows little of the light in a photograph, and with a large hole sees little of the face. This network sees the
whole picture, where hair, neck, ears and background tell of skin and light, and the drawn face, and says how the
colours should be; shape and detail stay those of the three-dimensional face.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.inpainter import STRIDE, Inpainter
from models.linear import REDUCTION, blur, enlarge, reduce

FIRST_GAIN = 0.5  # of the network's output
SMOOTHNESS = 2.5  # reduced pixels; sigma of the correction: colours are corrected, and the fill's detail stays


class Refiner(nn.Module):
    """A picture completed in its hole -> the same with other colours there.

    The U-Net (in: visible pixels, the completed picture, visible share) works on halves of the picture's sides. The
    difference of its output to the completed picture, smoothed inside the hole on the face and times a learnt gain, is
    added there.
    """

    def __init__(self):
        super().__init__()
        self.network = Inpainter(channels=6)
        self.gain = nn.Parameter(torch.full((1,), FIRST_GAIN))

    def forward(self, image: torch.Tensor, completed: torch.Tensor, hole: torch.Tensor,
                face: torch.Tensor) -> torch.Tensor:
        """The refined picture (B, 3, H, W) in [-1, 1]: `completed` but for the hole on the face.

        image (B, 3, H, W) in [-1, 1], its hidden pixels are not read; completed (B, 3, H, W), neither read where the
        hole lies beside the face; hole, face (B, 1, H, W) bool, face: where the face is drawn. H and W are even.
        """
        inside = hole & face
        values, share = reduce(torch.where(hole, 0, image), (~hole).to(image.dtype))
        drawn = F.avg_pool2d(torch.where(hole & ~face, 0, completed), REDUCTION)
        rows, columns = (-side % STRIDE for side in drawn.shape[-2:])
        padded = [F.pad(part, (0, columns, 0, rows)) for part in (torch.cat([values, drawn], 1), share)]
        colours = self.network(*padded).albedo[..., :drawn.shape[-2], :drawn.shape[-1]].float()
        weight = F.avg_pool2d(inside.float(), REDUCTION)
        correction = enlarge(self.gain * blur(colours - drawn.float(), weight, SMOOTHNESS))
        return torch.where(inside, (completed + correction.to(completed.dtype)).clamp(-1, 1), completed)

    @torch.no_grad()
    def start_from(self, state: dict[str, torch.Tensor]) -> None:
        """Takes the weights of the 2D baseline's network (`models.image_completion`), which lacks the drawn face.

        Its weights for the drawn face's channels begin at 0.
        """
        for name, wanted in self.network.state_dict().items():
            given = state[f"network.{name}"]
            if given.shape != wanted.shape:  # in the first layers: kernels (out, 4, k, k), singular vectors (4 k k)
                channels = given.reshape(len(given) if given.dim() > 1 else 1, 4, -1)
                picture, visible = channels[:, :3], channels[:, 3:]
                given = torch.cat([picture, torch.zeros_like(picture), visible], 1).reshape(wanted.shape)
            wanted.copy_(given)
