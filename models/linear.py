"""The linear fill: a statistical model of complete albedo maps fitted to the visible texels, in the inpainter's place.

A baseline that needs no training run, and what an inpainting network has to beat. Albedo is mean + components * w with
w ~ N(0, 1) and noise; the most probable w given the visible texels has a closed form (Tipping and Bishop,
Probabilistic principal component analysis, 1999; with missing values as in Roweis, EM algorithms for PCA, 1998), which
is solved a few times with less and less weight on texels that do not fit, since hair hangs into faces.

What the model misses of the visible texels, their detail, is added to the hidden ones that mirror them, since faces
are symmetric: an eye gets the other one's lashes and catchlight. Its low frequencies are left out, as light is not
symmetric.

Where both eyes are hidden there is no such detail, and the most probable albedo is a mean of many gazes and lids: pale
and without pupils. There the model adds what the eyes of one typical person have beyond it.
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models.blending import least_around, pull_push
from models.inpainter import Inpainting
from models.morphable import UV_HEIGHT, UV_WIDTH, mirror_uv
from models.reduced import REDUCTION, blur, enlarge, reduce

CORRELATED = 16  # texels that deviate from the model together, and so count as one observation
OUTLIER = 0.12  # of albedo: texels that fit worse count little: hair, glasses, highlights (Geman and McClure, 1985)
FIRST_OUTLIER = 0.3
ROBUST_ROUNDS = 5
THINNED = 2  # in all but the last of them every so many rows and columns of reduced texels are looked at
RARELY_KNOWN = 0.1  # share of the maps
DETAIL_GAIN = 0.7  # of the mirrored detail
EYE_GAIN = 0.5  # of the typical eyes: with more they are livelier, and farther from most people's
DETAIL_SIGMA = 6.0  # reduced texels; coarser than this is light, not detail
DETAIL_OUTLIER = 0.25  # of albedo, root mean square over a few texels: glasses and hair are not mirrored
MISFIT_SIGMA = 1.5  # reduced texels
DETAIL_RIM = 2  # texels along the outline of what is visible that are not mirrored
EYE_RIM = 2  # texels over which the typical eyes begin beside what is visible
TINT_SIGMA = 0.15  # of a constant added to each channel: light that the shade did not explain


class LinearInpainter(nn.Module):
    """(albedo (B, 3, 192, 256) in [-1, 1], visible (B, 1, 192, 256)) -> `Inpainting`, as `models.inpainter.Inpainter`.

    All texels come back as the model says, with mirrored detail, the visible ones too: so the seam
    (`models.blending.blend`) knows by how much the model is off beside the hole. confidence is 0.
    Buffers: mean (3, 96, 128); components (K, 3, 96, 128), each one standard deviation long; noise (); eyes
    (3, 192, 256), 0 elsewhere, if it knows any: see `typical_eyes`.
    """

    def __init__(self, count: int, knows_eyes: bool = False):
        super().__init__()
        size = (3, UV_HEIGHT // REDUCTION, UV_WIDTH // REDUCTION)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("components", torch.zeros(count, *size))
        self.register_buffer("noise", torch.ones(()))
        self.register_buffer("eyes", torch.zeros(3, UV_HEIGHT, UV_WIDTH) if knows_eyes else None)

    def forward(self, albedo: torch.Tensor, visible: torch.Tensor) -> Inpainting:
        """Everything in float32, also under autocast."""
        with torch.autocast(albedo.device.type, enabled=False):
            albedo_32, known = albedo.float(), (visible > 0).float()
            values, weight = reduce(albedo_32, known)
            reduced = self.mean + self._fit(values - self.mean, weight)
            model = enlarge(reduced)
            filled = model + DETAIL_GAIN * mirror_uv(_detail(albedo_32 - model, values - reduced, known, weight))
            filled = filled + self.typical_eyes(visible)
            return Inpainting(filled.clamp(-1, 1).to(albedo.dtype), torch.zeros_like(visible))

    def typical_eyes(self, visible: torch.Tensor) -> torch.Tensor:
        """What one person's eyes have beyond the most probable ones, (B, 3, 192, 256) in units of the albedo, float32.

        0 where a texel or the one that mirrors it is visible (B, 1, 192, 256), and where no eyes are known.
        """
        if self.eyes is None:
            return torch.zeros_like(visible, dtype=torch.float32).expand(-1, 3, -1, -1)
        hidden = (visible <= 0).float()
        hidden = hidden * mirror_uv(hidden)
        near = least_around(hidden, EYE_RIM)
        return EYE_GAIN * F.avg_pool2d(near, 2 * EYE_RIM + 1, 1, EYE_RIM) * hidden * self.eyes

    def _fit(self, difference: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The model's most probable deviations from its mean, (B, 3, h, w), given differences of some weight
        (B, 1, h, w)."""
        tint = TINT_SIGMA * torch.eye(3, device=difference.device)[:, :, None, None].expand(-1, -1, *weight.shape[2:])
        every = torch.cat([self.components, tint]), difference, weight / (CORRELATED * self.noise.square())
        # Which texels to trust a part of them tells nearly as well, in a fraction of the time.
        some = [part[..., ::THINNED, ::THINNED].contiguous() for part in every]
        some[2] *= THINNED ** 2
        coefficients = difference.new_zeros(len(difference), len(every[0]))
        scale = FIRST_OUTLIER  # first the mean face, more generously
        for parts in [some] * (ROBUST_ROUNDS - 1) + [every]:
            coefficients = _refit(*parts, coefficients, scale)
            scale = OUTLIER
        return (coefficients @ every[0].flatten(1)).view_as(difference)


def _refit(basis: torch.Tensor, difference: torch.Tensor, evidence: torch.Tensor, coefficients: torch.Tensor,
           scale: float) -> torch.Tensor:
    """The most probable coefficients (B, K) of basis (K, 3, h, w) given differences (B, 3, h, w) of some evidence
    (B, 1, h, w).

    coefficients: those of the round before; texels that they miss by `scale` and more count less.
    """
    basis = basis.flatten(1)
    misfit = difference - (coefficients @ basis).view_as(difference)
    trusted = (1 + misfit.square().mean(1, keepdim=True) / scale ** 2) ** -2
    seen = (evidence * trusted).expand_as(difference).flatten(1)
    matrix = (basis * seen[:, None]) @ basis.T + torch.eye(len(basis), device=basis.device)
    known = (seen * difference.flatten(1)) @ basis.T
    # Positive definite whatever is seen; asking whether it was would hold up a GPU.
    return torch.linalg.solve_ex(matrix, known)[0]


def _detail(misfit: torch.Tensor, reduced_misfit: torch.Tensor, known: torch.Tensor,
            weight: torch.Tensor) -> torch.Tensor:
    """What the model misses of known texels (B, 3, 192, 256) without its low frequencies, 0 elsewhere.

    misfit: albedo - model (B, 3, 192, 256), reduced_misfit the same reduced (B, 3, 96, 128); known: 0 or 1
    (B, 1, 192, 256), weight: its means (B, 1, 96, 128).
    """
    coarse = enlarge(blur(reduced_misfit, weight, DETAIL_SIGMA))
    size = enlarge(blur(reduced_misfit.square().mean(1, keepdim=True), weight, MISFIT_SIGMA))
    trusted = (1 + size / DETAIL_OUTLIER ** 2) ** -2
    inner = least_around(known, DETAIL_RIM)
    return (misfit - coarse) * trusted * inner


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
