"""Hair, lashes, hats and other textured surfaces worn on the head, laid over the rendered head by depth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from datasets.default_3dmm.head import Layer

from .atlas import Atlas, rasterize, sample_texture
from .lighting import Light
from .pose import Pose

_SHELLS = {"hair": 3}


@dataclass(frozen=True)
class WornLayer:
    """A layer ready to render: its mesh, shells (lists of triangles from the innermost out), texture and brightness.

    Several shells are rasterized separately, so that what lies behind a transparent part of one is still seen.
    texture (h, w, 4) float32 in [0, 1]; luminance: the mean brightness of its opaque texels.
    """

    layer: Layer
    shells: tuple[np.ndarray, ...]
    texture: np.ndarray
    luminance: float


def _opaque_triangles(layer: Layer, texture: np.ndarray) -> np.ndarray:
    """Triangles (T,) bool of which some point is more than faintly opaque."""
    weights = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1], [.5, .5, 0], [0, .5, .5], [.5, 0, .5], [.34, .33, .33],
                          [.6, .2, .2], [.2, .6, .2], [.2, .2, .6]])
    at = np.einsum("tkc,sk->tsc", layer.uv[layer.triangles], weights).reshape(-1, 2)
    alpha = sample_texture(np.ascontiguousarray(texture[..., 3]), at[:, 0], at[:, 1])
    return alpha.reshape(len(layer.triangles), -1).max(axis=1) > 0.12


def prepare(layer: Layer) -> WornLayer:
    """Sort a layer's triangles into shells by their distance from the head."""
    texture = layer.texture.astype(np.float32) / 255
    triangles = layer.triangles[_opaque_triangles(layer, texture)]
    height = np.linalg.norm(layer.offset, axis=1)[triangles].mean(axis=1)
    count = _SHELLS.get(layer.kind, 1)
    order = np.argsort(height, kind="stable")
    shells = tuple(np.ascontiguousarray(triangles[part]) for part in np.array_split(order, count) if len(part))
    opaque = texture[..., 3] > 0.5
    luminance = float(texture[opaque][:, :3].mean()) if opaque.any() else 0.5
    return WornLayer(layer, shells, texture, max(luminance, 0.02))


class Wardrobe:
    """All layers of the head by kind, and how much of a frontal face each hair style hides.

    layers: kind -> list of WornLayer; hair_cover (n,): hidden share of the face for each of layers["hair"].
    """

    def __init__(self, atlas: Atlas):
        self.layers: dict[str, list[WornLayer]] = {}
        for layer in atlas.head.layers:
            if layer.kind in ("hair", "lash", "hat"):
                self.layers.setdefault(layer.kind, []).append(prepare(layer))
        frontal = Pose(0.9e-3, np.eye(3), np.array([112.0, 112.0]), np.zeros(3))
        placed = frontal.project(atlas.mean_vertices, 0.5)
        triangle, depth, _ = rasterize(placed, atlas.head.triangles, (128, 128), cull=True)
        is_face = np.zeros(len(atlas.head.triangles) + 1, bool)
        is_face[atlas.head.face_triangles] = True
        face = is_face[triangle]
        self.hair_cover = np.array([
            self._cover(worn, atlas, frontal, depth, face) for worn in self.layers.get("hair", [])])

    @staticmethod
    def _cover(worn: WornLayer, atlas: Atlas, pose: Pose, depth: np.ndarray, face: np.ndarray) -> float:
        placed = pose.project(worn.layer.positions(atlas.mean_vertices), 0.5)
        hidden = np.zeros_like(face)
        for shell in worn.shells:
            triangle, layer_depth, barycentrics = rasterize(placed, shell, face.shape)
            covered = np.nonzero((triangle >= 0) & (layer_depth > depth))
            at = np.einsum("nkc,nk->nc", worn.layer.uv[shell[triangle[covered]]], barycentrics[covered])
            hidden[covered] |= sample_texture(worn.texture, at[:, 0], at[:, 1])[:, 3] > 0.5
        return float((hidden & face).sum() / max(face.sum(), 1))

    @staticmethod
    @lru_cache(maxsize=1)
    def load() -> "Wardrobe":
        """The shipped head's layers, prepared once per process."""
        return Wardrobe(Atlas.load())


@dataclass
class Canvas:
    """The picture under construction: picture (S, S, 3), depth (S, S) um; face, hidden and hair (S, S) bool.

    hair: the part of `hidden` where hair hides the face.
    """

    picture: np.ndarray
    depth: np.ndarray
    face: np.ndarray
    hidden: np.ndarray
    hair: np.ndarray


def put_on(canvas: Canvas, worn: WornLayer, head_vertices: np.ndarray, pose: Pose, supersampling: float, light: Light,
           colour: np.ndarray | None, alpha_cut: float) -> np.ndarray:
    """Lay a layer over the canvas, shell by shell; returns its coverage (S, S) float32.

    colour (3,): dye for hair and lashes, whose texture then only gives light and dark; None keeps its own colours.
    alpha_cut in [0, 1): alphas below it vanish, the rest is stretched.
    """
    points = worn.layer.positions(head_vertices)
    placed = pose.project(points, supersampling)
    centre = head_vertices.mean(axis=0)
    size = canvas.depth.shape
    coverage = np.zeros(size, np.float32)
    for number, shell in enumerate(worn.shells):
        triangle, depth, barycentrics = rasterize(placed, shell, size)
        seen = np.flatnonzero(depth > canvas.depth)
        if not len(seen):
            continue
        chosen, weight = shell[triangle.reshape(-1)[seen]], barycentrics.reshape(-1, 3)[seen]
        at = np.einsum("nkc,nk->nc", worn.layer.uv[chosen], weight)
        texel = sample_texture(worn.texture, at[:, 0], at[:, 1])
        alpha = np.clip((texel[:, 3] - alpha_cut) / max(0.85 - alpha_cut, 0.05), 0, 1)
        shade = light.shade(_normals(points, chosen, weight, centre, pose.rotation.astype(np.float32)))
        if colour is None:
            lit = texel[:, :3] * shade
        else:
            relative = texel[:, :3].mean(axis=1, keepdims=True) / worn.luminance
            depth_shade = 0.62 + 0.38 * (number + 1) / len(worn.shells)
            lit = (colour * np.clip(0.25 + 0.75 * relative, 0, 2.2) + 0.03 * relative ** 2) * shade * depth_shade
        picture, flat_coverage = canvas.picture.reshape(-1, 3), coverage.reshape(-1)
        under = picture[seen]
        picture[seen] = under + (lit - under) * alpha[:, None]
        flat_coverage[seen] = np.maximum(flat_coverage[seen], alpha)
        solid = seen[alpha > 0.5]
        canvas.depth.reshape(-1)[solid] = depth.reshape(-1)[solid]
    return coverage


def _normals(points: np.ndarray, corners: np.ndarray, weight: np.ndarray, centre: np.ndarray,
             rotation: np.ndarray) -> np.ndarray:
    """Camera-space normals (n, 3): the surface's, facing the camera, softened towards outwards from the head."""
    a, b, c = (points[corners[:, k]] for k in range(3))
    flat = np.cross(b - a, c - a)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6
    outward = (a * weight[:, :1] + b * weight[:, 1:2] + c * weight[:, 2:]) - centre
    outward /= np.linalg.norm(outward, axis=1, keepdims=True) + 1e-6
    flat = flat @ rotation.T
    flat = np.where(flat[:, 2:] < 0, -flat, flat)
    mixed = 0.5 * flat + outward @ rotation.T
    return mixed / (np.linalg.norm(mixed, axis=1, keepdims=True) + 1e-6)


def shadow_of(coverage: np.ndarray, light: Light, reach: float, strength: float) -> np.ndarray:
    """Factor (S, S) that a worn layer's contact shadow puts on what it lies on."""
    away = -light.direction[:2] * reach + np.float32([0, -0.5 * reach])
    moved = np.float32([[1, 0, away[0]], [0, 1, -away[1]]])
    cast = cv2.warpAffine(coverage, moved, coverage.shape[::-1])
    cast = cv2.GaussianBlur(cast, (0, 0), max(reach * 0.7, 1.0))
    return 1 - strength * cast
