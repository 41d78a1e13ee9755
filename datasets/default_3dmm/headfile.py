"""The arrays of head.npz: the head around the face, skins, irises, and what is worn; see `head.HeadModel`."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .assets import MakeHumanAssets
from .binding import bind
from .head import ATTRIBUTES
from .shape import HeadShape

TEXTURE_SIZE, SKIN_QUALITY = 256, 92
IRIS_CENTRE, IRIS_RADIUS, IRIS_SIZE = (361, 152), 60, 64  # in the eyeball textures of 512 texels
# Only things by the MakeHuman team, which released its own assets as CC0; contributed ones have other terms.
WORN = (
    *(("brow", "eyebrows", f"eyebrow{number:03d}", None) for number in range(1, 13)),
    *(("lash", "eyelashes", name, None) for name in ("Eyelashes01", "eyelashes02", "eyelashes03", "eyelashes04")),
    *(("hair", "hair", name, None) for name in ("afro01", "bob01", "bob02", "Braid01", "long01", "ponytail01",
                                                "short01", "short02", "short03", "short04")),
    ("hat", "clothes", "fedora", "fedora_texture.png"),
    ("hat", "clothes", "fedora_cocked", "fedora_texture_grey.png"),
)


@dataclass(frozen=True)
class Crop:
    """The part of the body textures that the head uses, as fractions: left, top, right, bottom, v down."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, corners: np.ndarray, size: int) -> "Crop":
        """The smallest crop on whole texels of a size x size texture around coordinates (..., 2)."""
        low = np.floor(corners.reshape(-1, 2).min(axis=0) * size - 2) / size
        high = np.ceil(corners.reshape(-1, 2).max(axis=0) * size + 2) / size
        return cls(*np.clip(np.concatenate([low, high]), 0, 1))

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Cut an image (h, w, 3)."""
        height, width = image.shape[:2]
        return image[round(self.top * height):round(self.bottom * height),
                     round(self.left * width):round(self.right * width)]

    def relative(self, corners: np.ndarray) -> np.ndarray:
        """Coordinates (..., 2) of the whole texture as fractions of the crop."""
        origin = np.array([self.left, self.top])
        return (corners - origin) / (np.array([self.right, self.bottom]) - origin)


def encode(image: np.ndarray, quality: int | None = None) -> np.ndarray:
    """RGB or RGBA uint8 -> PNG bytes, or JPEG bytes of a quality, as a uint8 vector."""
    swapped = cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    if quality is None:
        return cv2.imencode(".png", swapped, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].reshape(-1)
    return cv2.imencode(".jpg", swapped, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].reshape(-1)


def shrink(texture: np.ndarray, size: int) -> np.ndarray:
    """(h, w, 4) uint8 RGBA -> at most size texels, colours weighted by opacity so that edges keep theirs."""
    values = texture.astype(np.float32)
    if max(texture.shape[:2]) <= size:
        return texture
    alpha = values[..., 3:] / 255
    target = (size * texture.shape[1] // max(texture.shape[:2]), size * texture.shape[0] // max(texture.shape[:2]))
    colour = cv2.resize(values[..., :3] * alpha, target, interpolation=cv2.INTER_AREA)
    small = cv2.resize(alpha, target, interpolation=cv2.INTER_AREA)[..., None]
    colour = np.where(small > 1e-3, colour / np.maximum(small, 1e-3), 0)
    return np.round(np.clip(np.concatenate([colour, small * 255], axis=2), 0, 255)).astype(np.uint8)


def layer_arrays(shape: HeadShape, wardrobe: MakeHumanAssets) -> dict[str, np.ndarray]:
    """The worn meshes, bound to the head."""
    arrays = {"layer_count": np.array(len(WORN))}
    for number, (kind, folder, name, file) in enumerate(WORN):
        proxy = wardrobe.proxy(folder, name, shape.base.vertices, file)
        index, weight, offset = bind(shape, proxy.vertices)
        values = dict(
            name=np.array(name), kind=np.array(kind), triangles=proxy.triangles.astype(np.uint16),
            uv=np.round(into_texture(proxy.uv) * 65535).astype(np.uint16),
            texture=encode(shrink(proxy.texture, TEXTURE_SIZE)), index=index.astype(np.uint16),
            weight=np.round(weight * 65535).astype(np.uint16), offset=offset.astype(np.float32).round())
        arrays.update({f"layer_{number}_{key}": value for key, value in values.items()})
    return arrays


def into_texture(uv: np.ndarray) -> np.ndarray:
    """Texture coordinates of a tiled texture in [0, 1]; what passes its edge by a little is led to the edge, since a
    triangle of which one corner is wrapped shows all of the texture."""
    near = (uv > -0.02) & (uv < 1.02)
    return np.where(near, uv.clip(0, 1), np.mod(uv, 1.0))


def texture_arrays(wardrobe: MakeHumanAssets, corner_uv: np.ndarray) -> dict[str, np.ndarray]:
    """Skins cropped to what the head uses, their coordinates per corner, and irises. corner_uv (T, 3, 2), v up."""
    skins = wardrobe.skins()
    corners = np.stack([corner_uv[..., 0], 1 - corner_uv[..., 1]], axis=-1)
    crop = Crop.around(corners, next(iter(skins.values())).shape[0])
    arrays = {"skin_uv": np.round(crop.relative(corners) * 65535).astype(np.uint16),
              "skin_names": np.array(list(skins))}
    arrays.update({f"skin_{k}": encode(crop.apply(image), SKIN_QUALITY) for k, image in enumerate(skins.values())})
    (x, y), radius = IRIS_CENTRE, IRIS_RADIUS
    irises = wardrobe.irises()
    for number, image in enumerate(irises.values()):
        cut = cv2.resize(image[y - radius:y + radius, x - radius:x + radius], (IRIS_SIZE, IRIS_SIZE),
                         interpolation=cv2.INTER_AREA)
        arrays[f"iris_{number}"] = encode(cut, SKIN_QUALITY)
    arrays["iris_count"] = np.array(len(irises))
    return arrays


def action_arrays(shape: HeadShape, fitted: np.ndarray) -> dict[str, np.ndarray]:
    """Facial actions and the face at rest as normalised expression coefficients, least squares on vertices `fitted`."""
    rest = shape.posed({})
    moved = np.stack([shape.posed({name: 1.0}) - rest for name in shape.actions])
    basis = shape.expression.basis * shape.expression.sigma[:, None, None]
    matrix = basis[:, fitted].reshape(len(basis), -1).T
    goals = np.concatenate([moved, -shape.expression.mean[None]])[:, fitted].reshape(len(moved) + 1, -1).T
    coefficients = np.linalg.lstsq(matrix, goals, rcond=None)[0].T.astype(np.float32)
    return {"action_names": np.array(list(shape.actions)), "action_coefficients": coefficients[:-1],
            "action_rest": coefficients[-1]}


def head_arrays(shape: HeadShape, wardrobe: MakeHumanAssets, face, masks: dict[str, np.ndarray],
                corner_uv: np.ndarray, coarse_order: np.ndarray) -> dict[str, np.ndarray]:
    """Everything in head.npz.

    face: `build.Face`; masks and corner_uv (T, 3, 2; v up, NaN off the skin) on the dense head;
    coarse_order: the coarse vertices that the face model's file already holds, which come first.
    """
    dense = shape.subdivision
    rest = np.setdiff1d(np.arange(len(shape.mean)), coarse_order)
    matrix = dense.matrix[:, np.concatenate([coarse_order, rest])].tocsr()
    matrix.sort_indices()
    uv = np.full((len(dense.mirror), 2), np.nan, np.float32)
    uv[face.vertices] = face.uv
    region = shape.topology.region[dense.parent]
    return {
        "rest_mean": shape.mean[rest].astype(np.float32),
        "rest_identity": shape.identity.basis[:, rest].astype(np.float16),
        "rest_expression": shape.expression.basis[:, rest].astype(np.float16),
        "subdivision_indptr": matrix.indptr.astype(np.int32),
        "subdivision_indices": matrix.indices.astype(np.uint16),
        "subdivision_data": matrix.data.astype(np.float32),
        "triangles": dense.triangles.astype(np.uint16),
        "mirror_vertices": dense.mirror.astype(np.uint16),
        "face_vertices": face.vertices.astype(np.uint16),
        "face_triangles": face.head_triangles.astype(np.uint16),
        "region": region.astype(np.uint8),
        "uv": uv,
        "attributes": np.stack([np.round(masks[name] * 255) for name in ATTRIBUTES]).astype(np.uint8),
        "eyes_mean": shape.eyes_mean.astype(np.float32),
        "eyes_basis": shape.eyes_basis.astype(np.float32),
        **action_arrays(shape, coarse_order),
        **texture_arrays(wardrobe, corner_uv[region == 0]),
        **layer_arrays(shape, wardrobe),
    }
