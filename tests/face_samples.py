"""A small face in closed form, mirror-symmetric, whose nose can hide its cheek, and stand-ins for the networks."""
from __future__ import annotations

import functools

import numpy as np
import torch
from torch import nn

from datasets.definition import COEFFICIENTS, Definition
from models.encoder import FaceCode
from models.inpainter import Inpainting
from models.morphable import MorphableModel, mirror_uv

ROWS, COLUMNS = 33, 31
UV_TOP, UV_LEFT, UV_ROWS, UV_COLUMNS = 8, 22, 176, 210
MIRRORED_LIGHT = [3, 6, 7]  # the basis functions that contain x an odd number of times


def mesh() -> tuple[np.ndarray, np.ndarray]:
    """(vertices (V, 3) in micrometres, triangles (T, 3)) of the grid; diagonals mirror each other left and right."""
    down, across = np.meshgrid(np.linspace(1, -1, ROWS), np.linspace(-1, 1, COLUMNS), indexing="ij")
    x = 75e3 * np.sin(1.2 * across) / np.sin(1.2)
    z = 80e3 * np.cos(1.2 * across) * np.sqrt(1 - 0.5 * down**2)
    z += 35e3 * np.exp(-(across**2 / 0.02 + (down + 0.1)**2 / 0.03))
    vertices = np.stack([x, 95e3 * down, z], axis=-1).reshape(-1, 3).astype(np.float32)
    index = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    triangles = []
    for row in range(ROWS - 1):
        for column in range(COLUMNS - 1):
            a, b = index[row, column], index[row, column + 1]
            c, d = index[row + 1, column], index[row + 1, column + 1]
            triangles += [(a, c, b), (b, c, d)] if column < COLUMNS // 2 else [(a, c, d), (a, d, b)]
    return vertices, np.array(triangles, dtype=np.int32)


def _uv_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    vertex_row, vertex_column = np.meshgrid(np.linspace(UV_TOP, UV_TOP + UV_ROWS, ROWS),
                                            np.linspace(UV_LEFT, UV_LEFT + UV_COLUMNS, COLUMNS), indexing="ij")
    vertex_uv = np.stack([vertex_row, vertex_column], axis=-1).reshape(-1, 2).astype(np.float32)
    triangle = np.full((192, 256), -1, dtype=np.int32)
    barycentrics = np.zeros((192, 256, 3), dtype=np.float32)
    for row in range(UV_TOP, UV_TOP + UV_ROWS + 1):
        for column in range(UV_LEFT, UV_LEFT + UV_COLUMNS + 1):
            down, right = (row - UV_TOP) / UV_ROWS * (ROWS - 1), (column - UV_LEFT) / UV_COLUMNS * (COLUMNS - 1)
            i, j = min(int(down), ROWS - 2), min(int(right), COLUMNS - 2)
            v, u = down - i, right - j
            if j < COLUMNS // 2:
                second = u + v > 1
                weights = (1 - v, 1 - u, u + v - 1) if second else (1 - u - v, v, u)
            else:
                second = u > v
                weights = (1 - u, v, u - v) if second else (1 - v, v - u, u)
            triangle[row, column] = 2 * (i * (COLUMNS - 1) + j) + second
            barycentrics[row, column] = weights
    return vertex_uv, triangle, barycentrics


@functools.lru_cache(maxsize=1)
def definition() -> Definition:
    """The face; identity component 0 widens it, expression component 0 pulls the chin down."""
    vertices, triangles = mesh()
    vertex_uv, uv_triangle, uv_barycentrics = _uv_tables()
    identity = np.zeros((199, len(vertices), 3), dtype=np.float32)
    identity[0, :, 0] = 0.1 * vertices[:, 0]
    expression = np.zeros((29, len(vertices), 3), dtype=np.float32)
    expression[0, :, 1] = np.minimum(vertices[:, 1], 0) * 0.1
    return Definition(
        triangles=triangles, mean=vertices, identity_basis=identity, expression_basis=expression,
        coefficient_mean=np.zeros(COEFFICIENTS, np.float32), coefficient_std=np.full(COEFFICIENTS, 0.5, np.float32),
        vertex_uv=vertex_uv, uv_triangle=uv_triangle, uv_barycentrics=uv_barycentrics,
        landmarks=(np.arange(68, dtype=np.int32) * 13 + 7) % len(vertices))


@functools.lru_cache(maxsize=1)
def morphable() -> MorphableModel:
    """The model of :func:`definition`; shared, do not change it."""
    return MorphableModel(definition())


def pose(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0, x: float = 111.5, y: float = 111.5) -> torch.Tensor:
    """(1, 5) pose in the encoder's range from degrees and the window position of the model's origin in pixels."""
    angles = [angle / 90 for angle in (pitch, yaw, roll)]
    return torch.tensor([[*angles, 2 * x / 224 - 1, 2 * y / 224 - 1]])


class StandInEncoder(nn.Module):
    """Code from image moments, so that every pixel of the window matters; mirroring the image mirrors the code."""

    def forward(self, image: torch.Tensor) -> FaceCode:
        batch, width = len(image), image.shape[-1]
        ramp = torch.linspace(-1, 1, width, dtype=image.dtype)
        mean = image.mean(dim=(1, 2, 3))
        tilt = (image * ramp).mean(dim=(1, 2, 3))
        shape = torch.zeros(batch, 228)
        shape[:, 0] = mean
        shape[:, 199] = mean.abs()
        centre = 2 * 111.5 / 224 - 1
        pose = torch.stack([0.02 * mean, tilt, 0.1 * tilt, centre + 0.05 * tilt, 0.05 * mean], dim=-1)
        light = torch.zeros(batch, 3, 9)
        light[:, :, 0] = 2.0 + mean[:, None]
        light[:, :, 1] = 0.4
        light[:, :, MIRRORED_LIGHT] = tilt[:, None, None]
        codes = torch.zeros(batch, 512)
        return FaceCode(shape, codes, codes, torch.full((batch,), 1e-3) + 1e-5 * mean, pose, light.flatten(1))


class StandInInpainter(nn.Module):
    """Visible albedo, else the mirrored one, else grey: exactly symmetric, and reads hidden albedo if there is any."""

    def forward(self, albedo: torch.Tensor, visible: torch.Tensor) -> Inpainting:
        mirrored, known = mirror_uv(albedo), mirror_uv(visible)
        filled = visible * albedo + (1 - visible) * (known * mirrored + (1 - known) * -0.3)
        return Inpainting(filled, torch.zeros_like(visible))


class StandInOcclusion(nn.Module):
    """Red pixels are an occluder, dark ones background, the others face."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        red = (image[:, 0] > 0.5) & (image[:, 1] < -0.5)
        dark = image.amax(dim=1) < -0.9
        labels = torch.where(red, 1, torch.where(dark, 2, 0))
        return 0.96 * nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).to(image.dtype) + 0.01

    def with_hair(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self(image), torch.full_like(image[:, :1], -torch.inf)


def picture(batch: int, size: int, seed: int = 0) -> torch.Tensor:
    """Smooth random images (B, 3, size, size) in [-1, 1]."""
    noise = torch.rand(batch, 3, 9, 9, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(noise, size=(size, size), mode="bilinear", align_corners=True)
