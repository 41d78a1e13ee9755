"""The linear fill: a statistical model of complete albedo maps fitted to the visible texels, in the inpainter's place.

A baseline that needs no training run, and what an inpainting network has to beat. Albedo is mean + components * w with
w ~ N(0, 1) and noise; the most probable w given the visible texels has a closed form (Tipping and Bishop, Probabilistic
principal component analysis, 1999; with missing values as in Roweis, EM algorithms for PCA, 1998), which is solved a few
times with less and less weight on texels that do not fit, since hair hangs into faces.
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models.blending import pull_push
from models.inpainter import Inpainting
from models.morphable import UV_HEIGHT, UV_WIDTH

REDUCTION = 2  # texels of the UV map a side for one of the model
CORRELATED = 16  # texels that deviate from the model together, and so count as one observation
OUTLIER = 0.12  # of albedo: texels that fit worse count little: hair, glasses, highlights (Geman and McClure, 1985)
FIRST_OUTLIER = 0.3
ROBUST_ROUNDS = 5
RARELY_KNOWN = 0.1  # share of the maps
TINT_SIGMA = 0.15  # of a constant added to each channel: light that the shade did not explain


class LinearInpainter(nn.Module):
    """(albedo (B, 3, 192, 256) in [-1, 1], visible (B, 1, 192, 256)) -> `Inpainting`, as `models.inpainter.Inpainter`.

    Visible texels come back unchanged, hidden ones as the model says. confidence is 0.
    Buffers: mean (3, 96, 128); components (K, 3, 96, 128), each one standard deviation long; noise ().
    """

    def __init__(self, count: int):
        super().__init__()
        size = (3, UV_HEIGHT // REDUCTION, UV_WIDTH // REDUCTION)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("components", torch.zeros(count, *size))
        self.register_buffer("noise", torch.ones(()))

    def forward(self, albedo: torch.Tensor, visible: torch.Tensor) -> Inpainting:
        """Everything in float32, also under autocast."""
        with torch.autocast(albedo.device.type, enabled=False):
            values, weight = reduce(albedo.float(), visible.float())
            model = self.mean + torch.stack([self._fit(*item) for item in zip(values - self.mean, weight)])
            filled = F.interpolate(model, scale_factor=REDUCTION, mode="bilinear", align_corners=False).clamp(-1, 1)
            return Inpainting(torch.where(visible > 0, albedo, filled.to(albedo.dtype)), torch.zeros_like(visible))

    def _fit(self, difference: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The model's most probable deviation from its mean, (3, h, w), given differences of some weight (1, h, w)."""
        tint = TINT_SIGMA * torch.eye(3, device=difference.device)[:, :, None, None].expand(-1, -1, *weight.shape[1:])
        basis = torch.cat([self.components, tint]).flatten(1)
        evidence = weight / (CORRELATED * self.noise.square())
        model, scale = torch.zeros_like(difference), FIRST_OUTLIER  # at first from the mean face, more generously
        for _ in range(ROBUST_ROUNDS):
            misfit = (difference - model).square().mean(0, keepdim=True)
            trusted = (1 + misfit / scale ** 2) ** -2
            scale = OUTLIER
            seen = (evidence * trusted).expand_as(difference).flatten()
            matrix = (basis * seen) @ basis.T + torch.eye(len(basis), device=basis.device)
            coefficients = torch.linalg.solve(matrix, basis @ (seen * difference.flatten()))
            model = (coefficients @ basis).unflatten(0, difference.shape)
        return model


def reduce(albedo: torch.Tensor, visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of the visible texels (B, 3, 96, 128), 0 without any, and the share of them (B, 1, 96, 128)."""
    weight = F.avg_pool2d(visible, REDUCTION)
    return F.avg_pool2d(albedo * visible, REDUCTION) / weight.clamp(min=1e-6), weight


def fit_model(maps: np.ndarray, known: np.ndarray, count: int, rounds: int = 6) -> LinearInpainter:
    """Mean and `count` components of incomplete albedo maps.

    maps: float32 (N, 3, 96, 128) in [-1, 1]; known: bool (N, 1, 96, 128). Unknown texels are filled with the model of
    the round before, at first with the mean of the known ones. Texels that hardly any map knows, such as the corners of
    the mouth, take mean and components of those around them. Raises ValueError for fewer maps than components.
    """
    if len(maps) <= count:
        raise ValueError(f"{count} components need more than {len(maps)} maps")
    frequent = torch.from_numpy(known.mean(0) >= RARELY_KNOWN)
    known = np.broadcast_to(known, maps.shape).reshape(len(maps), -1)
    data = maps.reshape(len(maps), -1).astype(np.float32)
    mean = (data * known).sum(0) / np.maximum(known.sum(0), 1)
    filled = np.where(known, data, mean)
    for _ in range(rounds):
        mean = filled.mean(0)
        centred = filled - mean
        values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
        values, vectors = values[::-1][:count].clip(1e-12), vectors[:, ::-1][:, :count]
        directions = (vectors.T / np.sqrt(values)[:, None]).astype(np.float32) @ centred
        model = mean + (centred @ directions.T) @ directions
        filled = np.where(known, data, model)
    noise = np.sqrt(np.square(data - model)[known].mean())
    network = LinearInpainter(count)
    sigma = np.sqrt(values / len(maps)).astype(np.float32)
    model = np.concatenate([mean[None], directions * sigma[:, None]]).reshape(-1, *network.mean.shape)
    model = pull_push(torch.from_numpy(model), frequent[None].float())
    network.mean.copy_(model[0])
    network.components.copy_(model[1:])
    network.noise.fill_(float(max(noise, 1e-3)))
    return network.eval()
