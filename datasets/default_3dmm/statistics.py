"""Alignment of heads and the principal components of mirror-symmetric data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FLIP = np.array([-1.0, 1.0, 1.0], dtype=np.float32)


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarity transforms that bring source (B, n, 3) onto target (n, 3) in the least squares (Umeyama 1991).

    Returns scale (B,), rotation (B, 3, 3) and translation (B, 3): aligned = scale * points @ rotation + translation.
    """
    source_mean, target_mean = source.mean(axis=1), target.mean(axis=0)
    centred, goal = source - source_mean[:, None], target - target_mean
    left, values, right = np.linalg.svd(np.einsum("bni,nj->bij", centred, goal))
    values[:, 2] *= np.sign(np.linalg.det(left @ right))
    right[:, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
    rotation = left @ right
    scale = values.sum(axis=1) / (centred ** 2).sum(axis=(1, 2))
    translation = target_mean - scale[:, None] * np.einsum("bi,bij->bj", source_mean, rotation)
    return scale, rotation, translation


def transform(points: np.ndarray, scale: np.ndarray, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Apply `similarity`'s transforms to points (B, n, 3)."""
    return (scale[:, None, None] * (points @ rotation) + translation[:, None]).astype(np.float32)


def mirrored(values: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """The mirror image of vertex fields (..., C, 3)."""
    return values[..., mirror, :] * FLIP


@dataclass
class Components:
    """mean (C, 3); basis (K, C, 3), orthonormal over the fitted vertices; sigma, parity (K,); total: the variance."""

    mean: np.ndarray
    basis: np.ndarray
    sigma: np.ndarray
    parity: np.ndarray
    total: float

    def explained(self, count: int) -> float:
        """Share of the variance in the first `count` components."""
        return float((self.sigma[:count] ** 2).sum() / self.total)


def mirrored_pca(samples: np.ndarray, mirror: np.ndarray, fitted: np.ndarray, count: int, seed: int) -> Components:
    """Principal components of samples (N, C, 3) together with their mirror images.

    Such a set splits into symmetric and antisymmetric parts, so that every component is exactly one or the other.
    The components are those of the vertices `fitted`; the other vertices follow by linear regression on the scores.
    """
    reflected = mirrored(samples, mirror)
    mean = (samples + reflected).mean(axis=0) / 2
    mean = (mean + mirrored(mean, mirror)) / 2
    found, total = [], 0.0
    for parity in (1, -1):
        part = (samples + parity * reflected) / 2 - (mean if parity > 0 else 0)
        rows = np.ascontiguousarray(part[:, fitted]).reshape(len(part), -1)
        total += float((rows.astype(np.float64) ** 2).sum() / len(rows))
        scores, sigma = leading_scores(rows, count, seed)
        regression = np.tensordot(scores, part, axes=(0, 0)) / (len(part) * sigma[:, None, None])
        regression = (regression + parity * mirrored(regression, mirror)) / 2
        found += [(value, parity, field) for value, field in zip(sigma, regression)]
    found.sort(key=lambda item: -item[0])
    sigma, parity, basis = (np.array([item[k] for item in found[:count]]) for k in range(3))
    return Components(mean, basis.astype(np.float32), sigma, parity.astype(np.int8), total)


def leading_scores(rows: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit-variance scores (N, k) and standard deviations (k,) of the leading components of rows (N, D).

    Randomised subspace iteration (Halko, Martinsson and Tropp 2011). Components without variance are dropped.
    """
    rng = np.random.default_rng(seed)
    width = min(count + 40, *rows.shape)
    sketch = np.linalg.qr(rows @ rng.standard_normal((rows.shape[1], width)).astype(np.float32))[0]
    for _ in range(3):
        sketch = np.linalg.qr(rows @ (rows.T @ sketch))[0]
    left, values, _ = np.linalg.svd(sketch.T @ rows, full_matrices=False)
    keep = min(count, int((values > values[0] * 1e-5).sum()))
    scores = (sketch @ left[:, :keep]) * np.sqrt(len(rows))
    return scores, values[:keep] / np.sqrt(len(rows))
