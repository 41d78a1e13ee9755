"""Photographs of faces under other light: official portraits share one studio's, other photographs do not.

A portrait's pixels are multiplied by the ratio of two shades of its fitted face, the new light's and the encoder's own
(a ratio image, after Shashua and Riklin-Raviv, "The Quotient Image", PAMI 2001); albedo and all detail stay. Around the
face, in hair, ears and neck, the ratio goes on smoothly; the background keeps its light, or its outline would tell the
network what it is to find out. No shadows are cast.
"""
from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from datasets.labels import BACKGROUND
from datasets.synthetic.lighting import sample_light
from models.blending import from_uint8, pull_push
from models.lighting import MIN_SHADE, shade_maps
from models.reduced import blur
from utils.logging import progress

DARKEST = 0.3  # shade: attached shadows of the new light
EXPOSURE = 0.1  # standard deviation of the logarithm of the face's change in brightness
REDUCTION = 2  # the ratio is smooth, so it is computed on pictures of half the size
EDGE = 1.0  # reduced pixels; sigma by which the ratio is smoothed, so that the mesh's outline does not show
ELSEWHERE = 0.5  # largest share of the face's mean change that reaches the picture's border
CHIN = 4  # reduced pixels above the face's lowest row from which on "background" may be neck
BATCH = 16


class Surfaces(NamedTuple):
    """What relighting needs of N aligned faces, on pictures reduced to 128 x 128.

    normals int8 (N, 3, 128, 128): 127 times the camera-space unit normals of the fitted faces, 0 beside them; light
    (N, 27): the encoder's; background bool (N, 128, 128): what the occlusion net calls so.
    """

    normals: Tensor
    light: Tensor
    background: Tensor

    def face(self, index: int) -> "Surfaces":
        """Of one face, without the first dimension."""
        return Surfaces(*(part[index] for part in self))


@torch.no_grad()
def fit_surfaces(completion: Any, images: Tensor, log_type: str = "progressbar") -> Surfaces:
    """Of images uint8 (N, 3, 256, 256), as the networks of a `models.completion.FaceCompletion` see them."""
    device = completion.renderer.uv_mask.device
    found = []
    chunks = images.split(BATCH)
    for chunk in progress(chunks, "portraits' surfaces", len(chunks), log_type):
        image = from_uint8(chunk.to(device))
        factors = completion.factor(image, torch.zeros_like(image[:, :1]))
        drawn, coverage = completion.renderer.render_covered(factors.uv_normals, factors.raster)
        background = completion.label(image).argmax(1, keepdim=True) == BACKGROUND
        drawn, coverage, background = (F.avg_pool2d(part.float(), REDUCTION) for part in (drawn, coverage, background))
        normals = 127 * F.normalize(drawn) * (coverage > 0.5)
        found.append(Surfaces(normals.round().to(torch.int8).cpu(), factors.code.light.cpu(),
                              (background[:, 0] > 0.5).cpu()))
    return Surfaces(*(torch.cat(parts) for parts in zip(*found)))


def relight(image: Tensor, surface: Surfaces, wanted: Tensor, exposure: float = 1.0,
            elsewhere: float = 0.0) -> tuple[Tensor, Tensor]:
    """An aligned crop uint8 (3, 256, 256) under another light (27,): the crop uint8, and the light as it became (27,).

    surface: of this face. The light is scaled so that the face becomes brighter by `exposure` in the mean. elsewhere:
    the share of the mean change that reaches background and borders.
    """
    normals = surface.normals[None].float() / 127
    covered = normals.square().sum(1, keepdim=True) > 0.25
    new = shade_maps(normals, wanted[None]).clamp(min=DARKEST)
    old = shade_maps(normals, surface.light[None]).clamp(min=MIN_SHADE)
    gain = exposure * (old * covered).sum() / (new * covered).sum().clamp(min=1e-3)
    change = torch.where(covered, (new * gain / old).log(), 0)
    mean = change.sum((2, 3), keepdim=True) / covered.sum().clamp(min=1)
    known = covered | _at_rest(surface.background, covered[0, 0])
    change = pull_push(torch.where(covered, change, elsewhere * mean), known.float())
    smooth = blur(change, torch.ones_like(change[:, :1]), EDGE)
    change = F.interpolate(smooth, scale_factor=REDUCTION, mode="bilinear", align_corners=False)
    lit = image[None] * change.exp()
    return lit[0].round().clamp(0, 255).to(torch.uint8), wanted * gain


def _at_rest(background: Tensor, covered: Tensor) -> Tensor:
    """Reduced pixels (128, 128) whose light hardly changes: borders but for the neck's, and what lies behind the head.

    Below the chin, too, pixels are called background: neck and clothes. They stand in the face's light.
    """
    still = background & ~covered
    rows = covered.any(1).nonzero()
    if len(rows):
        still[int(rows[-1]) - CHIN:] = False
    still[0] = still[:, 0] = still[:, -1] = True
    return still


class RelitFaces(Dataset):
    """A dataset's faces, and each again under `times` random lights of the built-in faces' kind.

    Items are those of the dataset (the first len(dataset) just as they are), with another "image" (and "light", where
    they have one). surfaces: of the dataset's faces. The same item always has the same light.
    """

    def __init__(self, dataset: Dataset, surfaces: Surfaces, times: int, seed: int = 0):
        self.dataset, self.surfaces, self.times, self.seed = dataset, surfaces, times, seed

    def __len__(self) -> int:
        return len(self.dataset) * (1 + self.times)

    def __getitem__(self, index: int) -> dict[str, Any]:
        time, face = divmod(index, len(self.dataset))
        item = self.dataset[face]
        if not time:
            return item
        rng = np.random.default_rng([self.seed, index])
        wanted = torch.from_numpy(sample_light(rng).vector).float()
        exposure, elsewhere = float(np.exp(rng.normal(0, EXPOSURE))), rng.uniform(0, ELSEWHERE)
        image, light = relight(item["image"], self.surfaces.face(face), wanted, exposure, elsewhere)
        return {**item, "image": image, **({"light": light} if "light" in item else {})}
