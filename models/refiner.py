"""The refined completion: the fill, drawn, its colours corrected, and hair and background where no face is.

A departure from the paper, whose network invents the hidden albedo alone (`models.inpainter`). A statistical model of
albedo knows little of the light in a photograph, and with a large hole sees little of the face; and a mesh says nothing
of the fringe that hangs into a forehead. This network, a gated U-Net, sees the whole picture, where hair, neck, ears
and background tell of skin and light, and the drawn face. It says how the colours should be, and which hidden pixels
show the face at all; shape and detail of the face stay those of the three-dimensional one.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.blending import blend
from models.inpainter import STRIDE, FinerHalf, Inpainter
from models.reduced import REDUCTION, blur, enlarge, reduce

FIRST_GAIN = 0.5  # of the network's colours
FIRST_ODDS = 2.0  # log odds that a hidden pixel of the mesh shows the face
SMOOTHNESS = 1.0  # reduced pixels; sigma of the correction: colours are corrected, and the fill's detail stays
PREFERENCE = 1.0  # added to the log odds: more holes end at the face than in its training (docs/experiments.md)
SOFT_EDGE = 2  # pixels along the mesh's outline over which the face fades


class Refined(NamedTuple):
    """picture (B, 3, H, W) in [-1, 1]: `face` and `beside` in the hole, by `share`, and the image outside.

    face, beside (B, 3, H, W) in [-1, 1]: what the hole would show if all of it were face, or nothing of it; odds
    (B, 1, H, W): log odds that a pixel is face; share (B, 1, H, W) in [0, 1]: of `face` in the picture, 0 beside the
    mesh.
    """

    picture: torch.Tensor
    face: torch.Tensor
    beside: torch.Tensor
    odds: torch.Tensor
    share: torch.Tensor


class Refiner(nn.Module):
    """A picture with a drawn face in its hole -> `Refined`.

    The U-Net (in: visible pixels, the drawn face, visible share) works on halves of the picture's sides. The difference
    of its colours to the drawn face, smoothed inside the hole on the mesh and times a learnt gain, is added to the
    face. A second end of its decoder, which gives no gradients to the rest, says which pixels are face at all (its
    fourth output, the paper's confidence) and draws what is beside it; these colours are used as they are, and led into
    those of the visible pixels that are no face.
    """

    def __init__(self):
        super().__init__()
        self.network = Inpainter(channels=6)
        self.gain = nn.Parameter(torch.full((1,), FIRST_GAIN))
        self.beside = FinerHalf()
        self._begin_beside()

    @torch.no_grad()
    def _begin_beside(self) -> None:
        """Lets the second end begin as the first one, and take nearly all hidden pixels of the mesh for face."""
        if self.gain.is_meta:  # to be filled from a file
            return
        first = self.network.state_dict()
        for name, value in self.beside.state_dict().items():
            part, _, rest = name.partition(".")
            if part == "up":
                index, _, rest = rest.partition(".")
                part = f"up.{int(index) + 1}"
            value.copy_(first[f"{part}.{rest}"])
        self.beside.output.weight[3] = 0
        self.beside.output.bias[3] = FIRST_ODDS

    def forward(self, image: torch.Tensor, completed: torch.Tensor, hole: torch.Tensor, mesh: torch.Tensor) -> Refined:
        """image (B, 3, H, W) in [-1, 1], its hidden pixels are not read; completed (B, 3, H, W), not read where the
        hole lies beside the mesh; hole, mesh (B, 1, H, W) bool, mesh: where the face is drawn. H and W are even.
        """
        inside = hole & mesh
        masked = torch.where(hole, 0, image)
        values, visible = reduce(masked, (~hole).to(image.dtype))
        drawn = F.avg_pool2d(torch.where(hole & ~mesh, 0, completed), REDUCTION)
        rows, columns = (-side % STRIDE for side in drawn.shape[-2:])
        padded = [F.pad(part, (0, columns, 0, rows)) for part in (torch.cat([values, drawn], 1), visible)]
        first, maps = self.network.with_maps(*padded)
        second = self.beside([part.detach() for part in maps])
        height, width = drawn.shape[-2:]
        colours, odds = first.albedo[..., :height, :width].float(), enlarge(second.confidence[..., :height, :width])
        weight = F.avg_pool2d(inside.float(), REDUCTION)
        correction = enlarge(self.gain * blur(colours - drawn.float(), weight, SMOOTHNESS))
        face = torch.where(inside, (completed + correction.to(completed.dtype)).clamp(-1, 1), masked)
        others = enlarge(second.albedo[..., :height, :width]).to(image.dtype)
        beside = blend(masked, hole, others, torch.sigmoid(-odds.detach()))
        share = torch.sigmoid(odds + PREFERENCE) * soft_edge(mesh)
        picture = torch.where(hole, beside + share.to(image.dtype) * (face - beside), image)
        return Refined(picture, face, beside, odds, share)

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
        self._begin_beside()


def soft_edge(region: torch.Tensor) -> torch.Tensor:
    """A region (B, 1, H, W) bool as float32 that rises from 0 to 1 within SOFT_EDGE pixels inside its outline."""
    around = F.avg_pool2d(region.float(), 2 * SOFT_EDGE + 1, 1, SOFT_EDGE, count_include_pad=False)
    return region * (2 * around - 1).clamp(min=0)
