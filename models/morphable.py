"""The 3D morphable model: coefficients to vertices, its triangles, landmarks and UV tables (paper section 3.1).

Lengths are in micrometres: x to the right in the picture, y up, z towards the camera.
"""
from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn

UV_HEIGHT = 192
UV_WIDTH = 256
BUILTIN_LAYOUT = "6a963ec15aa6ac47"  # the built-in model's `MorphableModel.uv_layout`
UV_MIRROR_AXIS = 127  # column of the UV map on the face's symmetry plane: column c mirrors column 254 - c


def mirror_uv(maps: torch.Tensor) -> torch.Tensor:
    """Mirror UV maps (..., 192, 256) about the face's symmetry plane; column 255, which has no mirror, becomes 0."""
    paired = 2 * UV_MIRROR_AXIS + 1
    mirrored = torch.zeros_like(maps)
    mirrored[..., :paired] = maps[..., :paired].flip(-1)
    return mirrored


class MorphableModel(nn.Module):
    """A linear 3D face model of V vertices and T triangles.

    definition: a `datasets.definition.Definition`, or any object with its numpy fields.

    Buffers: triangles (T, 3) int64, counter-clockwise seen from outside whatever their order in the definition;
    landmarks (68,) int64 vertex indices; vertex_uv (V, 2) [row, column]; uv_triangle (192, 256) int64, -1 outside the
    face; uv_barycentrics (192, 256, 3); mean (V, 3), the face of zero normalised coefficients. None of them is
    stored in checkpoints.
    """

    def __init__(self, definition):
        super().__init__()
        basis = np.concatenate([definition.identity_basis, definition.expression_basis])
        basis = basis.reshape(len(basis), -1)
        mean = definition.mean.astype(np.float64).reshape(-1) + definition.coefficient_mean.astype(np.float64) @ basis
        triangles, barycentrics = definition.triangles, definition.uv_barycentrics
        if not _faces_outward(mean.reshape(-1, 3), triangles):
            triangles, barycentrics = triangles[:, [0, 2, 1]], barycentrics[..., [0, 2, 1]]

        def buffer(name: str, array: np.ndarray, dtype: torch.dtype) -> None:
            self.register_buffer(name, torch.tensor(np.ascontiguousarray(array), dtype=dtype), persistent=False)

        buffer("mean", mean.reshape(-1, 3), torch.float32)
        buffer("basis", definition.coefficient_std[:, None] * basis, torch.float32)
        buffer("triangles", triangles, torch.int64)
        buffer("landmarks", definition.landmarks, torch.int64)
        buffer("vertex_uv", definition.vertex_uv, torch.float32)
        buffer("uv_triangle", definition.uv_triangle, torch.int64)
        buffer("uv_barycentrics", barycentrics, torch.float32)

    @property
    def uv_layout(self) -> str:
        """Sixteen hexadecimal digits of which triangle each texel shows: albedo belongs to one such map alone."""
        return hashlib.sha256(self.uv_triangle.cpu().int().numpy().tobytes()).hexdigest()[:16]

    def vertices(self, shape: torch.Tensor) -> torch.Tensor:
        """Normalised coefficients (B, 228), 199 identity then 29 expression -> vertices (B, V, 3) in micrometres.

        S = mean + basis * (std * shape + mean coefficients). Computed in the model's precision also under autocast.
        """
        with torch.autocast(shape.device.type, enabled=False):
            displacement = shape.to(self.basis.dtype) @ self.basis
        return self.mean + displacement.unflatten(1, (-1, 3))


def _faces_outward(vertices: np.ndarray, triangles: np.ndarray) -> bool:
    """Whether the triangles of a face or head are counter-clockwise seen from outside.

    By the divergence theorem the integral of depth * normal_z over an outward surface is its volume, so it is positive;
    for an open face it is the volume between the face and the plane of its rearmost vertex.
    """
    corners = vertices[triangles] - [0, 0, vertices[:, 2].min()]
    edge1, edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    normal_z = edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0]
    return float((corners[:, :, 2].mean(axis=1) * normal_z).sum()) >= 0
