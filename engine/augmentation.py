"""Random changes of training images, with the same change made exactly to the ground truth of a face.

Geometry is a similarity (zoom, rotation, shift) and a mirror image. In the window's coordinates p = (x, y), y upwards
(see `models.renderer`), the similarity is p' = zoom Z (p - c) + c + shift about the centre c; Z turns the image.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.alignment import CROP_SIZE, WINDOW_OFFSET, WINDOW_SIZE
from models.lighting import ODD_IN_X
from utils.device import send

CENTRE = (WINDOW_SIZE - 1) / 2
CALM = 0.25


@dataclass
class Similarity:
    """B random placements: zoom (B,), angle (B,) in radians, shift (B, 2) in pixels, mirror (B,) bool.

    Positive angles turn counter-clockwise. The mirror image comes first, then the similarity.
    """

    zoom: Tensor
    angle: Tensor
    shift: Tensor
    mirror: Tensor

    @classmethod
    def draw(cls, rngs: Sequence[np.random.Generator], device: torch.device, *, zoom: float = 0.05,
             angle: float = 0.06, shift: float = 3.0, mirror: bool = True, calm: float = 0.0) -> "Similarity":
        """Normal deviates of the given standard deviations (`zoom` of its logarithm); mirrored half of the time.

        rngs: one source of randomness for each of the B faces. calm: share of the faces that are moved by CALM as much.
        """
        flips = chances(rngs, 0.5, device) & mirror
        strength = torch.where(chances(rngs, calm, device), CALM, 1.0)
        return cls((normal(rngs, zoom, device) * strength).exp(), normal(rngs, angle, device) * strength,
                   normal(rngs, shift, device, 2) * strength[:, None], flips)

    def rotation(self) -> Tensor:
        """Z as (B, 3, 3) about the viewing axis."""
        matrix = torch.zeros(len(self.angle), 3, 3, device=self.angle.device)
        matrix[:, 0, 0] = matrix[:, 1, 1] = self.angle.cos()
        matrix[:, 1, 0] = self.angle.sin()
        matrix[:, 0, 1] = -self.angle.sin()
        matrix[:, 2, 2] = 1
        return matrix

    def warp(self, crops: Tensor, mode: str = "bilinear") -> Tensor:
        """Crops (B, C, 256, 256) -> their windows (B, C, 224, 224) after the change; the crop's edge continues."""
        crops = torch.where(self.mirror[:, None, None, None], crops.flip(3), crops)
        steps = torch.arange(WINDOW_SIZE, device=crops.device, dtype=torch.float32)
        y, x = torch.meshgrid(WINDOW_SIZE - 1 - steps, steps, indexing="ij")
        target = torch.stack([x, y], -1).reshape(1, -1, 2) - CENTRE - self.shift[:, None]
        source = target @ self.rotation()[:, :2, :2] / self.zoom[:, None, None] + CENTRE
        columns = source[..., 0] + WINDOW_OFFSET
        rows = WINDOW_SIZE - 1 - source[..., 1] + WINDOW_OFFSET
        grid = torch.stack([columns, rows], -1) * (2 / (CROP_SIZE - 1)) - 1
        grid = grid.reshape(-1, WINDOW_SIZE, WINDOW_SIZE, 2)
        return F.grid_sample(crops, grid, mode=mode, padding_mode="border", align_corners=True)

    def pose(self, rotation: Tensor, scale: Tensor, translation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The changed pose: rotation (B, 3, 3), scale (B,), translation (B, 2) in window pixels, y upwards.

        A mirror image x -> -x of both the head and the picture turns R into M R M with M = diag(-1, 1, 1).
        """
        signs = send(torch.tensor([-1.0, 1.0, 1.0]), rotation.device)
        flipped = rotation * signs[:, None] * signs[None, :]
        rotation = torch.where(self.mirror[:, None, None], flipped, rotation)
        flipped = torch.stack([WINDOW_SIZE - 1 - translation[:, 0], translation[:, 1]], 1)
        translation = torch.where(self.mirror[:, None], flipped, translation)
        turn = self.rotation()
        turned = (turn[:, :2, :2] @ (translation - CENTRE)[..., None])[..., 0]
        return turn @ rotation, scale * self.zoom, turned * self.zoom[:, None] + CENTRE + self.shift

    def light(self, light: Tensor) -> Tensor:
        """The changed spherical-harmonics light (B, 27): per channel of 1, z, y, x, 2z2-x2-y2, yz, xz, xy, x2-y2.

        Under a rotation by a about z, (x, y) and (xz, yz) turn by a, and (x2-y2, 2xy) by 2a.
        """
        band = light.reshape(-1, 3, 9)
        signs = send(torch.tensor([-1.0 if index in ODD_IN_X else 1.0 for index in range(9)]), light.device)
        band = torch.where(self.mirror[:, None, None], band * signs, band)
        c1, s1 = self.angle.cos()[:, None], self.angle.sin()[:, None]
        c2, s2 = (2 * self.angle).cos()[:, None], (2 * self.angle).sin()[:, None]
        one, z, y, x, z2, yz, xz, xy, x2 = band.unbind(-1)
        return torch.stack([one, z, c1 * y + s1 * x, c1 * x - s1 * y, z2, c1 * yz + s1 * xz, c1 * xz - s1 * yz,
                            c2 * xy + s2 * x2, c2 * x2 - s2 * xy], -1).reshape(-1, 27)


def colour_jitter(images: Tensor, rngs: Sequence[np.random.Generator], strength: float = 1.0) -> Tensor:
    """Random contrast, brightness and colour cast of images (B, 3, H, W) in [-1, 1]; the result is clamped to that.

    rngs: one source of randomness for each of the B images.
    """
    def deviates(scale: float, channels: int) -> Tensor:
        return normal(rngs, scale * strength, images.device, channels, 1, 1)

    images = images * (1 + deviates(0.15, 1)) + deviates(0.1, 1)
    return (images * (1 + deviates(0.05, 3))).clamp(-1, 1)


def normal(rngs: Sequence[np.random.Generator], scale: float, device: torch.device, *shape: int) -> Tensor:
    """Normal deviates of the standard deviation `scale`, float32 (B, *shape), each face's from its own source."""
    deviates = np.stack([rng.normal(0, scale, shape) for rng in rngs]).astype(np.float32)
    return send(torch.from_numpy(deviates), device)


def chances(rngs: Sequence[np.random.Generator], probability: float, device: torch.device) -> Tensor:
    """True with a probability, bool (B,), each face's from its own source."""
    return send(torch.tensor([rng.random() < probability for rng in rngs]), device)
