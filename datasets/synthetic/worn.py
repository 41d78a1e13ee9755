"""Hair, lashes, hats and other textured surfaces worn on the head, laid over the rendered head by depth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from datasets.default_3dmm.head import HeadModel, Layer

from .atlas import Atlas, rasterize, sample_texture
from .lighting import Light
from .pose import Pose

_SHELL = 120  # partly transparent triangles of hair that are rasterized together
STREAKS = 256  # places across the strands
_OPAQUE = 0.85  # opacity of a texel from which nothing behind it is seen
_ALPHA_CUT = 0.3  # `HairDo.alpha_cut` of lashes and hats


@dataclass(frozen=True)
class WornLayer:
    """A layer ready to render: its mesh, shells (numbers of triangles), texture and brightness.

    The shells are rasterized one after another: of hair at first all opaque triangles, then the partly transparent
    ones, few at a time and from the innermost out, so that what lies behind a transparent part is still seen.
    triangles (T, 3) int32 from the innermost out; texture (h, w, 4) float32 in [0, 1]; luminance: the mean brightness
    of its opaque texels.
    """

    layer: Layer
    triangles: np.ndarray
    shells: tuple[np.ndarray, ...]
    texture: np.ndarray
    luminance: float


def _opacity(layer: Layer, texture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest opacity of each triangle's points, (T,) each in [0, 1]."""
    weights = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1], [.5, .5, 0], [0, .5, .5], [.5, 0, .5], [.34, .33, .33],
                          [.6, .2, .2], [.2, .6, .2], [.2, .2, .6]])
    at = np.einsum("tkc,sk->tsc", layer.uv[layer.triangles], weights).reshape(-1, 2)
    alpha = sample_texture(np.ascontiguousarray(texture[..., 3]), at[:, 0], at[:, 1])
    alpha = alpha.reshape(len(layer.triangles), -1)
    return alpha.min(axis=1), alpha.max(axis=1)


def prepare(layer: Layer) -> WornLayer:
    """Sort a layer's triangles by their distance from the head, and into shells."""
    texture = layer.texture.astype(np.float32) / 255
    least, most = _opacity(layer, texture)
    height = np.linalg.norm(layer.offset, axis=1)[layer.triangles].mean(axis=1)
    order = np.argsort(height, kind="stable")
    order = order[most[order] > 0.12]  # the others are never seen
    if layer.kind == "hair":
        opaque = least[order] > _OPAQUE
        rest = np.flatnonzero(~opaque)
        shells = [np.flatnonzero(opaque), *np.array_split(rest, -(-len(rest) // _SHELL) or 1)]
    else:
        shells = [np.arange(len(order))]
    opaque = texture[..., 3] > 0.5
    luminance = float(texture[opaque][:, :3].mean()) if opaque.any() else 0.5
    return WornLayer(layer, np.ascontiguousarray(layer.triangles[order]),
                     tuple(shell for shell in shells if len(shell)), texture, max(luminance, 0.02))


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
            triangles = worn.triangles[shell]
            triangle, layer_depth, barycentrics = rasterize(placed, triangles, face.shape)
            covered = np.nonzero((triangle >= 0) & (layer_depth > depth))
            at = np.einsum("nkc,nk->nc", worn.layer.uv[triangles[triangle[covered]]], barycentrics[covered])
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

    hair: the part of `hidden` where hair hides the face. hat, hat_light (S, S): see `scene.Scene`.
    """

    picture: np.ndarray
    depth: np.ndarray
    face: np.ndarray
    hidden: np.ndarray
    hair: np.ndarray
    hat: np.ndarray | None = None
    hat_light: np.ndarray | None = None


@dataclass(frozen=True)
class HairDo:
    """What one person makes of a hair style.

    mirrored: left and right exchanged; volume, length: how far the hair stands off and how far it hangs, as multiples
    of the style's; alpha_cut in [0, 1): opacities below it vanish, the rest is stretched; second (3,): colour of its
    streaks; streaks (STREAKS,) in [0, 1]: how much of it is mixed in across the strands.
    """

    mirrored: bool
    volume: float
    length: float
    alpha_cut: float
    second: np.ndarray
    streaks: np.ndarray

    def positions(self, layer: Layer, head: HeadModel, head_vertices: np.ndarray) -> np.ndarray:
        """Head vertices (N, 3) in micrometres -> the layer's vertices (M, 3) float32."""
        across = np.float32([-1 if self.mirrored else 1, 1, 1])
        points = layer.positions((head_vertices[head.mirror_vertices] if self.mirrored else head_vertices) * across,
                                 self.volume) * across
        root = head_vertices[head.landmarks[[0, 16]], 1].mean()  # where the ears are: what grows above keeps its length
        points[:, 1] = np.where(points[:, 1] < root, root + (points[:, 1] - root) * self.length, points[:, 1])
        return points

    def colours(self, colour: np.ndarray, across: np.ndarray) -> np.ndarray:
        """Hair of a colour (3,) at n places across the strands, in [0, 1], with its streaks: (n, 3)."""
        share = self.streaks[np.clip(across * STREAKS, 0, STREAKS - 1).astype(int)][:, None]
        return colour + (self.second - colour) * share


def put_on(canvas: Canvas, worn: WornLayer, points: np.ndarray, centre: np.ndarray, pose: Pose, supersampling: float,
           light: Light, colour: np.ndarray | None, hair_do: HairDo | None = None) -> np.ndarray:
    """Lay a layer with vertices at points (M, 3) over the canvas, shell by shell; returns its coverage (S, S) float32.

    centre (3,): of the head. colour (3,): dye for hair and lashes, whose texture then only gives light and dark; None
    keeps its own colours. hair_do: of hair, whose opacities and streaks it decides.
    """
    alpha_cut = _ALPHA_CUT if hair_do is None else hair_do.alpha_cut
    placed = pose.project(points, supersampling)
    size = canvas.depth.shape
    coverage = np.zeros(size, np.float32)
    for shell in worn.shells:
        triangle, depth, barycentrics = rasterize(placed, worn.triangles[shell], size)
        seen = np.flatnonzero(depth > canvas.depth)
        if not len(seen):
            continue
        shown = shell[triangle.reshape(-1)[seen]]
        chosen, weight = worn.triangles[shown], barycentrics.reshape(-1, 3)[seen]
        at = np.einsum("nkc,nk->nc", worn.layer.uv[chosen], weight)
        texel = sample_texture(worn.texture, at[:, 0], at[:, 1])
        alpha = np.clip((texel[:, 3] - alpha_cut) / max(_OPAQUE - alpha_cut, 0.05), 0, 1)
        shade = light.shade(_normals(points, chosen, weight, centre, pose.rotation.astype(np.float32)))
        if colour is None:
            lit = texel[:, :3] * shade
        else:
            relative = texel[:, :3].mean(axis=1, keepdims=True) / worn.luminance
            depth_shade = (0.62 + 0.38 * shown / len(worn.triangles))[:, None].astype(np.float32)
            dye = colour if hair_do is None else hair_do.colours(colour, at[:, 0])
            lit = (dye * np.clip(0.25 + 0.75 * relative, 0, 2.2) + 0.03 * relative ** 2) * shade * depth_shade
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
