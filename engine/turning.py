"""Photographs of other heads, seen from elsewhere: a fitted portrait turned and reshaped, the picture bent to match.

Official portraits look into the camera, so an encoder that learns from them takes turned heads for frontal ones; and of
a few hundred it learns by heart which shape belongs to which, unless they come with others. The fitted mesh says where
each pixel of a face came from once the head has turned; around the face the picture follows elastically and rests at
the crop's border (after Zhu et al., "Face Alignment Across Large Poses", CVPR 2016, section 4). What was hidden in the
photograph is stretched from its edge, so turns are kept to what that bears.
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zbuffer
from datasets.alignment import CROP_SIZE, WINDOW_OFFSET
from engine.encoder_stage import crop_landmarks
from engine.framing import settle
from models.encoder import FaceCode
from models.lighting import sh_basis
from models.morphable import MorphableModel
from models.renderer import project, rotation, sample

YAW = (0.0, 36.0)  # degrees by which a head is turned, to either side
PITCH = 12.0
RESHAPING = 0.6  # share of a random head's shape in the new one: the variance of shapes stays as it is
HIDDEN = 3000.0  # micrometres behind what the photograph shows from which on a point was hidden in it
COARSE = 64  # pixels a side of the grid on which the surroundings follow the face
SWEEPS = 300
_DIRECTIONS = 200


@torch.no_grad()
def turn_head(image: Tensor, code: FaceCode, yaw: float, pitch: float, model: MorphableModel,
              geometry: nn.Module, other: Tensor | None = None) -> tuple[Tensor, FaceCode]:
    """A crop (3, 256, 256) uint8 and its code (a batch of one) with the head turned further, aligned anew.

    yaw, pitch: degrees added to the pose's; the light turns with the head, since its shading stays on the skin.
    other: normalised coefficients (1, 228) of a head whose shape this one takes on by RESHAPING.
    """
    degrees = torch.tensor([pitch, yaw, 0.0, 0.0, 0.0])
    pose = (code.pose + degrees / 90).clamp(-1, 1)
    shape = code.shape if other is None else (1 - RESHAPING ** 2) ** 0.5 * code.shape + RESHAPING * other
    turned = code._replace(pose=pose, shape=shape)
    before = crop_landmarks(turned.shape, turned.scale, turned.pose, geometry)
    settled = settle(turned, before, 1.0)
    settled = settled._replace(light=turn_light(code.light, rotation(settled.pose) @ rotation(code.pose).mT))
    after = crop_landmarks(settled.shape, settled.scale, settled.pose, geometry)
    source = _sources(code, settled, _similarity(after[0], before[0]), model)
    bent = sample(image[None].float(), source[None, 1], source[None, 0])
    return bent[0].round().to(torch.uint8), settled


def random_turn(rng: np.random.Generator) -> tuple[float, float]:
    """Yaw, of a size in YAW to either side, and pitch, up to PITCH, in degrees."""
    return float(rng.choice([-1, 1]) * rng.uniform(*YAW)), float(rng.uniform(-PITCH, PITCH))


def turn_light(light: Tensor, matrix: Tensor) -> Tensor:
    """Spherical-harmonics light (B, 27) turned along by (B, 3, 3): shade(R n, new) = shade(n, old).

    The nine functions of turned normals are combinations of the nine, so a least-squares fit is exact.
    """
    normals = F.normalize(torch.from_numpy(np.random.default_rng(0).normal(size=(_DIRECTIONS, 3))), dim=-1)
    seen = sh_basis(normals @ matrix.double().mT)
    shade = sh_basis(normals) @ light.double().unflatten(1, (3, 9)).mT
    return torch.linalg.lstsq(seen, shade).solution.mT.flatten(1).to(light.dtype)


def _similarity(points: Tensor, wanted: Tensor) -> Tensor:
    """The matrix (2, 3) of the similarity that takes points (N, 2) to `wanted`, by least squares."""
    x, y, one, zero = points[:, 0], points[:, 1], torch.ones(len(points)), torch.zeros(len(points))
    system = torch.cat([torch.stack([x, -y, one, zero], 1), torch.stack([y, x, zero, one], 1)])
    a, b, c, d = torch.linalg.lstsq(system, torch.cat([wanted[:, 0], wanted[:, 1]])[:, None]).solution[:, 0]
    return torch.stack([torch.stack([a, -b, c]), torch.stack([b, a, d])])


def _sources(old: FaceCode, new: FaceCode, frame: Tensor, model: MorphableModel) -> Tensor:
    """Where each pixel of the new crop lies in the old one: (2, 256, 256), (x, y).

    frame (2, 3): the same for what does not turn with the head.
    """
    before = project(model.vertices(old.shape), old.scale, old.pose, WINDOW_OFFSET)
    after = project(model.vertices(new.shape), new.scale, new.pose, WINDOW_OFFSET)
    raster = zbuffer.rasterize(after, model.triangles, (CROP_SIZE, CROP_SIZE), cull=True)
    triangle = raster.triangle[0]
    corners = before[0, model.triangles[triangle.clamp(min=0).long()]]  # (256, 256, 3, 3)
    points = (corners * raster.barycentrics[0][..., None]).sum(2)
    covered = (triangle >= 0) & _was_seen(points, before, model)
    place = points[..., [1, 0]].permute(2, 0, 1)
    rows, columns = torch.meshgrid(*[torch.arange(CROP_SIZE, dtype=torch.float32)] * 2, indexing="ij")
    still = frame[:, 0, None, None] * columns + frame[:, 1, None, None] * rows + frame[:, 2, None, None]
    moved = torch.where(covered, place - still, 0.0)
    return still + torch.where(covered, moved, _follow(moved, covered))


def _was_seen(points: Tensor, positions: Tensor, model: MorphableModel) -> Tensor:
    """Which points (H, W, 3), [row, column, depth], nothing hid of a head at positions (1, V, 3): bool (H, W)."""
    raster = zbuffer.rasterize(positions, model.triangles, (CROP_SIZE, CROP_SIZE), cull=True)
    row, column = (points[..., axis].round().long().clamp(0, CROP_SIZE - 1) for axis in (0, 1))
    return raster.depth[0, row, column] - points[..., 2] < HIDDEN


def _follow(moved: Tensor, known: Tensor) -> Tensor:
    """Extends a displacement (2, H, H) from where it is known (H, H) to 0 at the border, by Laplace's equation."""
    weight = F.adaptive_avg_pool2d(known[None, None].float(), COARSE)
    fixed = F.adaptive_avg_pool2d(moved[None], COARSE) / weight.clamp(min=1e-6)
    inside = weight > 0
    field = fixed * inside
    kernel = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]).div(4)[None, None].expand(2, 1, 3, 3)
    for _ in range(SWEEPS):
        field = torch.where(inside, fixed, F.conv2d(field, kernel, padding=1, groups=2))  # 0 beyond the border
    return F.interpolate(field, size=known.shape, mode="bilinear", align_corners=False)[0]
