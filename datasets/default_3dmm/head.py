"""The whole head around the built-in face model: ears, scalp, neck, shoulders, skins, hair, hats.

The synthetic faces are rendered from it. The face part is the face model itself: for the same coefficients,
`vertices(...)[:, face_vertices]` are the face model's vertices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from . import packing

ATTRIBUTES = ("lip", "eyelid", "beard", "moustache", "scalp", "blush", "brow", "clothes")


@dataclass(frozen=True)
class Layer:
    """Something worn on the head, as a textured surface that follows the head's vertices.

    name: its name; kind: "hair", "brow", "lash" or "hat".
    triangles (T, 3) int32, uv (M, 2) float32 texture coordinates in [0, 1], u to the right and v down, so that the
    texel is (u * width - 0.5, v * height - 0.5); texture (h, w, 4) uint8 RGBA; all are two-sided.
    index (M, K) int32, weight (M, K) float32, offset (M, 3) float32 micrometres: each vertex is the weighted sum of
    head vertices plus the offset.
    """

    name: str
    kind: str
    triangles: np.ndarray
    uv: np.ndarray
    texture: np.ndarray
    index: np.ndarray
    weight: np.ndarray
    offset: np.ndarray

    def positions(self, head_vertices: np.ndarray, volume: float = 1.0) -> np.ndarray:
        """(B, N, 3) head vertices in micrometres -> (B, M, 3) float32; (N, 3) -> (M, 3).

        volume: how far it stands off the head, as a multiple of how far it was made to.
        """
        bound = (head_vertices[..., self.index, :] * self.weight[..., None]).sum(axis=-2)
        return (bound + self.offset * volume).astype(np.float32)


class HeadModel:
    """A head of N vertices and T triangles driven by the face model's normalised coefficients.

    Attributes
      face_vertices (V,) int32: head vertex of each face model vertex; face_triangles (F,) int32: head triangle of each
      face model triangle, in order.
      triangles (T, 3) int32, counter-clockwise seen from outside; mirror_vertices (N,) int32.
      region (T,) uint8: 0 skin, 1 eyeball at x < 0, 2 eyeball at x > 0, 3 mouth interior.
      skin_uv (T, 3, 2) float32: per corner coordinates into `skins`, u right, v down, in [0, 1]; NaN where region > 0.
      skins (n, h, w, 3) uint8: albedo of the head part of n skins; skin_names: e.g. "old_asian_female".
      uv (N, 2) float32: [row, column] in the 192x256 UV map, NaN outside the face.
      attributes: dict of (N,) float32 in [0, 1]: lip, eyelid, beard, moustache, scalp, blush, brow, clothes
      (also as properties: head.lip, ...).
      landmarks (68,) int32: head vertices of the iBUG landmarks.
      irises (n, h, h, 3) uint8: iris textures seen from the front, pupil in the centre, the iris' edge at radius h/2.
      actions: dict of (29,) float32: normalised expression coefficients that a facial action such as "jawOpen" adds at
      full strength; rest_expression (29,): those of the face at rest (zero is the mean, mouth a little open).
      layers: list of Layer.
    """

    def __init__(self, path: Path = packing.HEAD_FILE, model_path: Path = packing.MODEL_FILE):
        with np.load(path) as file:
            data = {key: file[key] for key in file.files}
        with np.load(model_path) as file:
            face = packing.read_statistics(file, "coarse")
            self.coefficient_std = file["coefficient_std"].astype(np.float32)
        rest = packing.read_statistics(data, "rest")
        mean, identity, expression = (np.concatenate(pair, axis=-2) for pair in zip(face, rest))
        scale = self.coefficient_std[:, None, None]
        self._mean = mean.reshape(-1)
        self._basis = (np.concatenate([identity, expression]) * scale).reshape(228, -1)
        self._subdivision = packing.read_subdivision(data)
        for name in ("triangles", "face_vertices", "face_triangles", "mirror_vertices"):
            setattr(self, name, data[name].astype(np.int32))
        self.landmarks = self.face_vertices[packing.read_landmarks(model_path.parent / packing.LANDMARK_FILE.name)]
        self.region = data["region"].astype(np.uint8)
        self.uv = data["uv"].astype(np.float32)
        self.skin_uv = np.full((len(self.triangles), 3, 2), np.nan, dtype=np.float32)
        self.skin_uv[self.region == 0] = data["skin_uv"].astype(np.float32) / 65535.0
        self.skin_names = [str(name) for name in data["skin_names"]]
        self.skins = np.stack([packing.decode_image(data[f"skin_{i}"]) for i in range(len(self.skin_names))])
        self.irises = np.stack([packing.decode_image(data[f"iris_{i}"]) for i in range(int(data["iris_count"]))])
        self.attributes = dict(zip(ATTRIBUTES, data["attributes"].astype(np.float32) / 255.0))
        self._eyes_mean = data["eyes_mean"]
        self._eyes_basis = data["eyes_basis"] * self.coefficient_std[:199, None, None]
        self.actions = dict(zip(map(str, data["action_names"]), data["action_coefficients"]))
        self.rest_expression = data["action_rest"]
        self.layers = [self._read_layer(data, i) for i in range(int(data["layer_count"]))]

    @staticmethod
    @lru_cache(maxsize=1)
    def load() -> "HeadModel":
        """The shipped head, read once per process."""
        return HeadModel()

    def __getattr__(self, name: str) -> np.ndarray:
        if name in ATTRIBUTES and "attributes" in self.__dict__:
            return self.attributes[name]
        raise AttributeError(name)

    @staticmethod
    def _read_layer(data: dict[str, np.ndarray], number: int) -> Layer:
        get = lambda name: data[f"layer_{number}_{name}"]
        return Layer(
            name=str(get("name")), kind=str(get("kind")), triangles=get("triangles").astype(np.int32),
            uv=get("uv").astype(np.float32) / 65535.0, texture=packing.decode_image(get("texture")),
            index=get("index").astype(np.int32), weight=get("weight").astype(np.float32) / 65535.0,
            offset=get("offset").astype(np.float32))

    def vertices(self, identity: np.ndarray, expression: np.ndarray) -> np.ndarray:
        """Normalised coefficients identity (B, 199), expression (B, 29) -> (B, N, 3) float32 micrometres."""
        coefficients = np.concatenate([identity, expression], axis=1).astype(np.float32)
        coarse = (self._mean + coefficients @ self._basis).reshape(len(coefficients), -1, 3)
        return np.stack([self._subdivision @ head for head in coarse])

    def eyes(self, identity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Identity (B, 199) -> eyeball centres (B, 2, 3) and radii (B, 2) in micrometres; the eye at x < 0 first."""
        spheres = self._eyes_mean + np.einsum("bk,ken->ben", identity.astype(np.float32), self._eyes_basis)
        return spheres[..., :3].astype(np.float32), spheres[..., 3].astype(np.float32)
