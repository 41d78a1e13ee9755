"""A small head, small networks and small faces, so that the engine's tests run in seconds."""
from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from datasets.definition import Definition
from models.encoder import FaceCode
from models.inpainter import Inpainting
from models.morphable import UV_HEIGHT, UV_WIDTH
from utils.device import send

ROWS, COLUMNS = 24, 25  # vertices of the head, a mirror-symmetric half ellipsoid
LEFT, RIGHT = 16, 238  # columns of the UV map that it fills
FRONTAL = [2.5, 0.8, 0, 0, 0, 0, 0, 0, 0]  # spherical harmonics of a light from the camera
RADIUS = (70_000.0, 95_000.0, 80_000.0)  # micrometres


def small_definition() -> Definition:
    """A half ellipsoid with 228 random displacements, half of them mirror-symmetric and half antisymmetric."""
    across = np.linspace(-1, 1, COLUMNS) * 1.3
    down = np.linspace(1, -1, ROWS) * 1.2
    elevation, azimuth = np.meshgrid(down, across, indexing="ij")
    mean = np.stack([RADIUS[0] * np.sin(azimuth) * np.cos(elevation), RADIUS[1] * np.sin(elevation),
                     RADIUS[2] * np.cos(azimuth) * np.cos(elevation)], -1).reshape(-1, 3)
    index = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    triangles = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], 2).reshape(-1, 3)
    mirror = index[:, ::-1].reshape(-1)
    rng = np.random.default_rng(5)
    parity = np.where(np.arange(228) % 2, -1.0, 1.0)
    basis = rng.normal(0, 1, (228, len(mean), 3))
    reflected = basis[:, mirror] * [-1, 1, 1]
    basis = (basis + parity[:, None, None] * reflected) * 400 / np.sqrt(1 + np.arange(228))[:, None, None]
    uv_triangle, weights, vertex_uv = _uv_tables()
    return Definition(
        triangles=triangles.astype(np.int32), mean=mean.astype(np.float32),
        identity_basis=basis[:199].astype(np.float32), expression_basis=basis[199:].astype(np.float32),
        coefficient_mean=np.zeros(228, np.float32), coefficient_std=np.ones(228, np.float32), vertex_uv=vertex_uv,
        uv_triangle=uv_triangle, uv_barycentrics=weights,
        landmarks=np.linspace(0, len(mean) - 1, 68).astype(np.int32), mirror_vertices=mirror.astype(np.int32),
        coefficient_parity=parity.astype(np.float32))


def _uv_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The regular grid as UV map: triangle and barycentric weights of each texel, UV position of each vertex."""
    row, column = np.mgrid[:UV_HEIGHT, :UV_WIDTH].astype(np.float64)
    v = row / (UV_HEIGHT - 1) * (ROWS - 1)
    u = (column - LEFT) / (RIGHT - LEFT) * (COLUMNS - 1)
    inside = (u >= 0) & (u <= COLUMNS - 1)
    i, j = np.minimum(v.astype(int), ROWS - 2), np.clip(np.floor(u).astype(int), 0, COLUMNS - 2)
    y, x = v - i, u - j
    lower = y >= x  # the triangle a, b, c
    weights = np.where(lower[..., None], np.stack([1 - y, y - x, x], -1), np.stack([1 - x, y, x - y], -1))
    triangle = 2 * (i * (COLUMNS - 1) + j) + ~lower
    vertex_row, vertex_column = np.mgrid[:ROWS, :COLUMNS].astype(np.float64)
    vertex_uv = np.stack([vertex_row * (UV_HEIGHT - 1) / (ROWS - 1),
                          LEFT + vertex_column * (RIGHT - LEFT) / (COLUMNS - 1)], -1)
    return (np.where(inside, triangle, -1).astype(np.int32), np.where(inside[..., None], weights, 0).astype(np.float32),
            vertex_uv.reshape(-1, 2).astype(np.float32))


class SmallFaces(Dataset):
    """Random items with the built-in faces' fields, each determined by its index."""

    def __init__(self, length: int, labels: bool = True):
        self.length, self.labels = length, labels

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng(index)
        coarse = torch.from_numpy(rng.random((1, 3, 16, 16), dtype=np.float32))
        image = nn.functional.interpolate(coarse, size=(256, 256), mode="bilinear")[0]
        row, column = np.mgrid[:256, :256]
        face = ((row - 128) / 90.0) ** 2 + ((column - 128) / 65.0) ** 2 < 1
        labels = np.where(face, np.where(row > 200, 1, 0), 2).astype(np.uint8)
        item = {"image": (image * 255).to(torch.uint8), "name": f"face_{index}"}
        if self.labels:
            pose = np.concatenate([rng.normal(0, 0.05, 3), [0.0, 0.0]]).astype(np.float32)
            light = rng.normal(0, 0.1, 27) + np.tile(FRONTAL, 3)
            points = rng.normal(0, 1, (68, 2)) + np.linspace(40, 210, 68)[:, None]
            numbers = {"shape": rng.normal(0, 1, 228), "pose": pose, "light": light, "landmarks": points, "scale": 1e-3}
            item.update({name: torch.tensor(value, dtype=torch.float32) for name, value in numbers.items()})
            item["labels"] = torch.from_numpy(labels)
            item["albedo"] = torch.from_numpy(rng.integers(60, 200, (3, 192, 256)).astype(np.uint8))
        return item


class SmallEncoder(nn.Module):
    """An encoder of one convolution with the real one's outputs and last layers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 7, 4)
        self.shape_linear, self.pose_linear, self.light_linear = nn.Linear(8, 228), nn.Linear(8, 6), nn.Linear(8, 27)

    def forward(self, image):
        features = self.conv(image).relu().mean((2, 3)).float()
        pose = torch.tanh(0.1 * self.pose_linear(features))
        light = self.light_linear(features) + send(torch.tensor(FRONTAL * 3), image.device)
        codes = features.new_zeros(len(image), 512)
        return FaceCode(0.1 * self.shape_linear(features), codes, codes, 1e-3 * (1 + pose[:, 0]), pose[:, 1:], light)


class SmallInpainter(nn.Module):
    """An inpainter of one convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, albedo, visible):
        output = self.conv(torch.cat([albedo, visible.to(albedo.dtype)], 1))
        return Inpainting(output[:, :3].clamp(-1, 1), output[:, 3:])


class SmallOcclusion(nn.Module):
    """An occlusion net of one convolution with batch normalisation."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def logits(self, image):
        return self.norm(self.conv(image))

    def scores(self, image):
        return self.logits(image), None

    def with_hair(self, image):
        return self(image), torch.full_like(image[:, :1], -torch.inf)

    def forward(self, image):
        return self.logits(image).softmax(1)


class SmallDiscriminator(nn.Module):
    """A discriminator with two score maps."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 4, 8), nn.Conv2d(4, 1, 2, 2)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, image):
        features = nn.functional.leaky_relu(self.first(image), 0.2)
        return [self.head(features), self.second(features)]


def settings(**values) -> SimpleNamespace:
    """Settings with the program's defaults, some changed."""
    from utils.config import defaults
    return defaults().replace(**values)


def interrupt_second_step(trainer) -> None:
    """Lets a Ctrl-C arrive at the end of the trainer's second step."""
    original = trainer._train_step

    def with_signal(batches):
        original(batches)
        if trainer.state.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    trainer._train_step = with_signal
