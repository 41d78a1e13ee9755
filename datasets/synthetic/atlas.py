"""Tables that tie the face model's UV map to the head: where each texel lies, and what is painted there.

The face is painted at 1.5 times the resolution of the 192x256 UV map, so that rendered eyes and brows stay sharp; a
painting reduced to the map's size is the ground-truth albedo.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

import zbuffer
from datasets.default_3dmm.head import HeadModel, Layer
from datasets.default_3dmm.packing import MODEL_FILE

from .fields import bounding_box

UV_HEIGHT, UV_WIDTH = 192, 256
DETAIL = 1.5
HEIGHT, WIDTH = int(UV_HEIGHT * DETAIL), int(UV_WIDTH * DETAIL)
SKIN, RIGHT_EYE, LEFT_EYE, MOUTH, NOTHING = 0, 1, 2, 3, 255


def rasterize(positions: np.ndarray, triangles: np.ndarray, size: tuple[int, int], cull: bool = False):
    """`zbuffer.rasterize` for one mesh of numpy arrays: positions (V, 3) row, column, depth; triangles (T, 3).

    Returns triangle (H, W) int64 with -1 where empty, depth (H, W) float32, barycentrics (H, W, 3) float32.
    """
    with torch.no_grad():
        raster = zbuffer.rasterize(torch.from_numpy(np.ascontiguousarray(positions, np.float32))[None],
                                   torch.from_numpy(triangles), size, cull=cull)
    return raster.triangle[0].numpy(), raster.depth[0].numpy(), raster.barycentrics[0].numpy()


def sample_texture(texture: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear samples of a texture (h, w, C) at n coordinates in [0, 1] (u right, v down): (n, C)."""
    count = len(u)
    padded = -(-max(count, 1) // 512) * 512
    grid = np.zeros((2, padded), np.float32)
    grid[0, :count] = u * texture.shape[1] - 0.5
    grid[1, :count] = v * texture.shape[0] - 0.5
    sampled = cv2.remap(texture, grid[0].reshape(-1, 512), grid[1].reshape(-1, 512), cv2.INTER_LINEAR,
                        borderMode=cv2.BORDER_REPLICATE)
    return sampled.reshape(padded, -1)[:count]


class Atlas:
    """Constants of the painted UV map of HEIGHT x WIDTH texels.

    head: the HeadModel; triangle (H, W): head triangle of each texel, -1 outside; barycentrics (H, W, 3);
    region (H, W) uint8: SKIN, RIGHT_EYE (x < 0), LEFT_EYE, MOUTH or NOTHING; inside (H, W) bool;
    official (192, 256) bool: texels of the model's own UV map that belong to the face;
    vertex_texel (N, 2): row, column of each head vertex in the painting, NaN outside the face;
    attributes: name -> (H, W) float32, and boxes: name -> the rows and columns where they are positive;
    skin_uv (H, W, 2): texture coordinates of skin texels;
    skin_means (n, 3): mean face albedo of each of the head's skins;
    brows: list of paintings (H, W, 4) float32, RGB luminance-normalised and alpha, of the head's layers.
    """

    def __init__(self) -> None:
        self.head = HeadModel.load()
        head = self.head
        with np.load(MODEL_FILE) as file:
            self.official = file["uv_triangle"] >= 0
        self.vertex_texel = (head.uv + 0.5) * DETAIL - 0.5
        plane = np.concatenate([np.nan_to_num(self.vertex_texel), np.zeros((len(head.uv), 1), np.float32)], axis=1)
        face_triangles = head.triangles[head.face_triangles]
        local, _, self.barycentrics = rasterize(plane, face_triangles, (HEIGHT, WIDTH))
        self.inside = local >= 0
        self.triangle = np.where(self.inside, head.face_triangles[np.maximum(local, 0)], -1)
        self.region = np.where(self.inside, head.region[np.maximum(self.triangle, 0)], NOTHING).astype(np.uint8)
        self.nearest = ndimage.distance_transform_edt(~self.inside, return_distances=False, return_indices=True)
        self.corners = head.triangles[np.maximum(self.triangle, 0)]
        self.attributes = {name: self.interpolate(values[:, None])[..., 0] for name, values in head.attributes.items()}
        self.boxes = {name: bounding_box(values) for name, values in self.attributes.items()}
        self._place_skin()
        self.skin_means = self._skin_means()
        mean = head.vertices(np.zeros((1, 199), np.float32), np.zeros((1, 29), np.float32))[0]
        self.mean_vertices = mean
        self.mean_points = self.interpolate(mean)
        self.eye_texels = [np.nonzero(self.region == eye) for eye in (RIGHT_EYE, LEFT_EYE)]
        self.mouth_texels = np.nonzero(self.region == MOUTH)
        skin = self.region == SKIN
        self._tree = cKDTree(self.mean_points[skin])
        self._tree_texels = np.argwhere(skin).astype(np.float32)
        self.brows = [self._flatten(layer) for layer in head.layers if layer.kind == "brow"]
        self.lid_shadow = self._lid_shadow()

    @staticmethod
    @lru_cache(maxsize=1)
    def load() -> "Atlas":
        """The tables of the shipped head, computed once per process."""
        return Atlas()

    def interpolate(self, values: np.ndarray) -> np.ndarray:
        """Head vertex values (N, C) at every texel: (H, W, C) float32, 0 outside the face."""
        picked = np.nan_to_num(values.astype(np.float32))[self.corners]
        return (picked * self.barycentrics[..., None]).sum(axis=2) * self.inside[..., None]

    def interpolate_at(self, values: np.ndarray, texels: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Head vertex values (N, C) at n texels given as (rows, columns): (n, C)."""
        return np.einsum("nkc,nk->nc", values[self.corners[texels]], self.barycentrics[texels])

    def _place_skin(self) -> None:
        corner_uv = np.nan_to_num(self.head.skin_uv)[np.maximum(self.triangle, 0)]
        skin_uv = (corner_uv * self.barycentrics[..., None]).sum(axis=2)
        rows, columns = ndimage.distance_transform_edt(self.region != SKIN, return_distances=False, return_indices=True)
        self.skin_uv = np.ascontiguousarray(skin_uv[rows, columns])

    def _skin_means(self) -> np.ndarray:
        texels, skins = self.skin_uv[self.region == SKIN][::37], self.head.skins
        rows = np.clip(texels[:, 1] * skins.shape[1], 0, skins.shape[1] - 1).astype(int)
        columns = np.clip(texels[:, 0] * skins.shape[2], 0, skins.shape[2] - 1).astype(int)
        return skins[:, rows, columns].mean(axis=1).astype(np.float32) / 255

    def _flatten(self, layer: Layer) -> np.ndarray:
        """Paint a worn layer onto the UV map along the shortest way to the mean face's skin."""
        points = layer.positions(self.mean_vertices)
        distance, index = self._tree.query(points)
        texels = self._tree_texels[index]
        plane = np.concatenate([texels, -distance[:, None].astype(np.float32)], axis=1).astype(np.float32)
        longest = np.ptp(texels[layer.triangles], axis=1).max(axis=1)
        triangle, _, barycentrics = rasterize(plane, layer.triangles[longest < 20 * DETAIL], (HEIGHT, WIDTH))
        uv = layer.uv[layer.triangles[longest < 20 * DETAIL]]
        covered = np.nonzero(triangle >= 0)
        at = np.einsum("nkc,nk->nc", uv[triangle[covered]], barycentrics[covered])
        colour = sample_texture(layer.texture.astype(np.float32) / 255, at[:, 0], at[:, 1])
        painting = np.zeros((HEIGHT, WIDTH, 4), np.float32)
        painting[covered] = colour
        luminance = (painting[..., :3].mean(-1) * painting[..., 3]).sum() / max(painting[..., 3].sum(), 1e-3)
        painting[..., :3] = np.clip(painting[..., :3] / max(luminance, 1e-3), 0, 2)
        painting[self.region != SKIN, 3] = 0
        return painting

    def _lid_shadow(self) -> np.ndarray:
        """Darkening of the eyeballs by the lids, (H, W): 1 in the middle of the opening, lower at its upper edge."""
        eyes = (self.region == RIGHT_EYE) | (self.region == LEFT_EYE)
        shifted = np.roll(eyes, round(2.5 * DETAIL), axis=0) & eyes
        soft = cv2.GaussianBlur(shifted.astype(np.float32), (0, 0), 1.25 * DETAIL)
        return np.where(eyes, 0.45 + 0.55 * np.clip(soft * 1.15, 0, 1), 1).astype(np.float32)
