"""From one person's recipe to a picture with its labels: the head with its light, what it wears, what is around it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy import sparse

from .atlas import MOUTH, Atlas, rasterize, sample_texture
from ..labels import BACKGROUND, FACE, OCCLUSION
from .clothes import Outfit
from .fields import blend, smooth_noise
from .lighting import Light
from .pose import CROP, Pose
from .skin import Complexion

SUPERSAMPLING = 1.25
SIZE = int(CROP * SUPERSAMPLING)
HAIR = 3  # of the occlusion, what is hair: in labels under construction alone


@dataclass
class HeadPicture:
    """The bare head on the canvas.

    picture (S, S, 3); depth (S, S) um, -inf outside; normals (S, S, 3) camera space, (0, 0, 1) outside;
    face (S, S) bool: the face model's surface but for the mouth's inside; surface (S, S) bool: all of it;
    head (S, S) bool: any part of the head, worn clothes left out.
    """

    picture: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    face: np.ndarray
    surface: np.ndarray
    head: np.ndarray


class HeadRenderer:
    """Renders the bare head from painted albedo under a light; holds the tables that this takes."""

    def __init__(self, atlas: Atlas):
        self.atlas = atlas
        triangles = atlas.head.triangles
        count = len(triangles)
        self._gather = sparse.csr_matrix(
            (np.ones(3 * count, np.float32), (triangles.reshape(-1), np.repeat(np.arange(count), 3))),
            shape=(len(atlas.head.uv), count))
        self._is_face = np.zeros(count, bool)
        self._is_face[atlas.head.face_triangles] = True
        attributes = atlas.head.attributes
        self._scalp = attributes["scalp"][:, None]
        self._below_chin = atlas.mean_vertices[atlas.head.landmarks[8], 1] - atlas.mean_vertices[:, 1]
        self._sideways = np.abs(atlas.mean_vertices[:, :1]) / 1e3
        self._texel = np.nan_to_num(atlas.vertex_texel)

    def neckline(self, depth: float, slope: float) -> np.ndarray:
        """How far (N, 1) in mm each vertex lies below a neckline; clothes are where it is positive.

        The neckline lies `depth` mm under the chin in front and rises to the sides by `slope`.
        """
        return (self._below_chin[:, None] / 1e3 + slope * self._sideways - depth).astype(np.float32)

    def normals(self, vertices: np.ndarray) -> np.ndarray:
        """Unit vertex normals (N, 3), area-weighted."""
        corner = [vertices[self.atlas.head.triangles[:, k]] for k in range(3)]
        summed = self._gather @ np.cross(corner[1] - corner[0], corner[2] - corner[0])
        return summed / (np.linalg.norm(summed, axis=1, keepdims=True) + 1e-6)

    def cast_shadow(self, rotated: np.ndarray, light: Light) -> np.ndarray:
        """How much of the main source each vertex (N, 3; camera space) loses behind other parts: (N,) in [0, 1]."""
        towards = light.direction / np.linalg.norm(light.direction)
        across = np.cross(np.float32([0, 1, 0]), towards)
        across /= max(np.linalg.norm(across), 1e-3)
        frame = np.stack([across, np.cross(towards, across), towards])
        seen = rotated @ frame.T.astype(np.float32)
        low, high = seen[:, :2].min(0), seen[:, :2].max(0)
        size = 160
        step = (size - 3) / max((high - low).max(), 1.0)
        placed = np.stack([(high[1] - seen[:, 1]) * step + 1, (seen[:, 0] - low[0]) * step + 1, seen[:, 2]], axis=1)
        depth = rasterize(placed, self.atlas.head.triangles, (size, size))[1]
        cell = placed[:, :2].round().astype(int)
        nearest = depth[cell[:, 0], cell[:, 1]]
        return np.clip((nearest - seen[:, 2] - 5e3) / 5e3, 0, 1).astype(np.float32)

    def render(self, vertices: np.ndarray, pose: Pose, painting: np.ndarray, complexion: Complexion, light: Light,
               outfit: Outfit, buzz_cut: float, shadow: float, gloss: float) -> HeadPicture:
        """The bare head.

        vertices (N, 3) um; painting (H, W, 4): albedo and eye gloss of the face; shadow, gloss in [0, 1]: strengths of
        cast shadows and of highlights (0 gives exactly albedo times shade).
        """
        head = self.atlas.head
        placed = pose.project(vertices, SUPERSAMPLING)
        triangle, depth, barycentrics = rasterize(placed, head.triangles, (SIZE, SIZE), cull=True)
        covered = np.flatnonzero(triangle >= 0)
        shown, weight = triangle.reshape(-1)[covered], barycentrics.reshape(-1, 3)[covered]
        rotated = vertices @ pose.rotation.T.astype(np.float32)
        lost = self.cast_shadow(rotated, light)[:, None] if shadow > 0 else np.zeros((len(vertices), 1), np.float32)
        channels = np.concatenate(
            [self.normals(rotated), self._texel, self._scalp, self.neckline(*outfit.neckline), lost, self._sideways],
            axis=1)
        corners = head.triangles[shown]
        values = sum(channels[corners[:, k]] * weight[:, k:k + 1] for k in range(3))
        normal = values[:, :3] / (np.linalg.norm(values[:, :3], axis=1, keepdims=True) + 1e-6)
        on_face = self._is_face[shown]
        albedo, eye_gloss = self._albedo(shown, weight, on_face, values, painting, complexion, outfit, buzz_cut)
        lit = albedo * light.shade(normal)
        if shadow > 0:
            facing = np.clip(normal @ light.direction * 2, 0, 1)
            lit *= 1 - (shadow * light.hardness * facing * values[:, 7])[:, None]
        if gloss > 0:
            lit += self._highlights(normal, light, eye_gloss, gloss, values[:, 6])[:, None]
        return self._compose(covered, lit, depth, normal, on_face, shown, values[:, 6])

    def _albedo(self, shown, weight, on_face, values, painting, complexion, outfit, buzz_cut):
        """Albedo (n, 3) and eye gloss (n,) of the covered pixels."""
        result = np.zeros((len(shown), 4), np.float32)
        at = values[on_face, 3:5]
        result[on_face] = sample_texture(painting, (at[:, 1] + 0.5) / painting.shape[1],
                                         (at[:, 0] + 0.5) / painting.shape[0])
        rest = ~on_face
        uv = np.einsum("nkc,nk->nc", np.nan_to_num(self.atlas.head.skin_uv[shown[rest]]), weight[rest])
        colour = sample_texture(complexion.skin, uv[:, 0], uv[:, 1])
        scalp, worn = values[rest, 5:6], values[rest, 6:7]
        colour = colour + (complexion.hair - colour) * scalp * buzz_cut
        clothes = outfit.albedo(worn, values[rest, 8:9])
        colour = colour + (clothes - colour) * np.clip(worn, 0, 1)
        result[rest, :3] = colour
        return result[:, :3], result[:, 3]

    @staticmethod
    def _highlights(normal, light, eye_gloss, gloss, clothes):
        """Blinn-Phong highlights of skin, and the sparkle of the eyes: (n,)."""
        half_way = light.direction + np.float32([0, 0, 1])
        half_way = half_way / max(np.linalg.norm(half_way), 1e-3)
        shine = np.clip(normal @ half_way, 0, 1) ** (12 + 40 * gloss)
        return 0.15 * gloss * light.hardness * shine * (clothes < 0) + eye_gloss

    def _compose(self, covered, lit, depth, normal, on_face, shown, clothes) -> HeadPicture:
        picture = np.zeros((SIZE, SIZE, 3), np.float32)
        normals = np.zeros((SIZE, SIZE, 3), np.float32)
        normals[..., 2] = 1
        face, surface, head = (np.zeros((SIZE, SIZE), bool) for _ in range(3))
        picture.reshape(-1, 3)[covered] = lit
        normals.reshape(-1, 3)[covered] = normal
        surface.reshape(-1)[covered] = on_face
        face.reshape(-1)[covered] = on_face & (self.atlas.head.region[shown] != MOUTH)
        head.reshape(-1)[covered] = clothes < 0
        return HeadPicture(picture, depth.copy(), normals, face, surface, head)


def fill_gaps(atlas: Atlas, painting: np.ndarray) -> np.ndarray:
    """Continue a painting (H, W, C) beyond the face's edge, so that bilinear samples at the edge stay clean."""
    rows, columns = atlas.nearest
    return np.ascontiguousarray(painting[rows, columns])


def ground_truth_albedo(atlas: Atlas, painting: np.ndarray) -> np.ndarray:
    """The painting (H, W, 3) filled beyond its edge, as the UV map (3, 192, 256) uint8; 0 outside the face."""
    small = cv2.resize(painting, (256, 192), interpolation=cv2.INTER_AREA)
    stored = (np.clip(small, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray((stored * atlas.official[..., None]).transpose(2, 0, 1))


def clothes_behind(rng: np.random.Generator, background: np.ndarray, picture: HeadPicture, colour: np.ndarray,
                   light: Light) -> np.ndarray:
    """Continue the shoulders below the head mesh's lower edge, where the canvas reaches further than the mesh."""
    rows = np.nonzero(picture.depth > -np.inf)[0]
    lowest = int(rows.max()) if len(rows) else SIZE - 1
    if lowest >= SIZE - 2:
        return background
    columns = np.nonzero((picture.depth > -np.inf)[lowest - 6:lowest + 1].any(axis=0))[0]
    if not len(columns):
        return background
    left, right = columns.min(), columns.max()
    mask = np.zeros((SIZE, SIZE), np.float32)
    polygon = np.array([[left, lowest - 4], [right, lowest - 4], [right + 20, SIZE], [left - 20, SIZE]], np.int32)
    cv2.fillPoly(mask, [polygon], 1.0)
    texture = 1 + 0.06 * smooth_noise(rng, SIZE, SIZE, (6.0, 60.0))
    cloth = colour * texture[..., None] * light.shade(np.float32([[0, 0.3, 0.95]]))[0]
    return blend(background, cloth, mask)


def reduce_labels(face: np.ndarray, hidden: np.ndarray, hair: np.ndarray) -> np.ndarray:
    """Canvas masks (S, S) bool to labels (256, 256) uint8: the class that covers most of a pixel.

    hair: the part of `hidden` that is HAIR, not OCCLUSION.
    """
    masks = (mask.astype(np.uint8) * 250 for mask in (face & ~hidden, hidden, hair))
    face_share, hidden_share, hair_share = (
        cv2.resize(mask, (CROP, CROP), interpolation=cv2.INTER_AREA).astype(np.int16) for mask in masks)
    rest = 250 - face_share - hidden_share
    labels = np.full((CROP, CROP), BACKGROUND, np.uint8)
    labels[(hidden_share >= rest) & (hidden_share > face_share)] = OCCLUSION
    labels[(labels == OCCLUSION) & (2 * hair_share > hidden_share)] = HAIR
    labels[(face_share >= rest) & (face_share >= hidden_share)] = FACE
    return labels
