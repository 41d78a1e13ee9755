"""Reading the compact data files of the built-in model.

`model.npz` keeps the statistics on the coarse mesh, in half precision; one Loop subdivision step, stored as a small
table of weights, brings them to the dense mesh. Everything returned is zero-based, float32 unless said otherwise.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from scipy import sparse

FOLDER = Path(__file__).resolve().parent
MODEL_FILE = FOLDER / "model.npz"
HEAD_FILE = FOLDER / "head.npz"
LANDMARK_FILE = FOLDER / "landmarks.txt"
UV_SHAPE = (192, 256)
UV_MIRROR_SUM = 254  # column c of the UV map mirrors column 254 - c; column 255 has no mirror


def subdivide(values: np.ndarray, matrix: sparse.csr_matrix) -> np.ndarray:
    """values (..., C, 3) on the coarse mesh times a sparse matrix (V, C) -> (..., V, 3) float32."""
    flat = np.moveaxis(np.asarray(values, dtype=np.float32), -2, 0)
    dense = matrix @ flat.reshape(len(flat), -1)
    return np.ascontiguousarray(np.moveaxis(dense.reshape(-1, *flat.shape[1:]), 0, -2))


def read_subdivision(data) -> sparse.csr_matrix:
    """The (V, C) float32 subdivision matrix of a file."""
    indptr = data["subdivision_indptr"]
    return sparse.csr_matrix((data["subdivision_data"], data["subdivision_indices"].astype(np.int32), indptr),
                             shape=(len(indptr) - 1, int(data["subdivision_indices"].max()) + 1))


def mirror_exactly(values: np.ndarray, mirror: np.ndarray, parity: np.ndarray | float = 1.0) -> np.ndarray:
    """Copy every vertex of one half from its partner with x negated, so that no rounding breaks the symmetry.

    values (..., V, 3) is changed in place and returned; parity (...,) is +1 for symmetric and -1 for antisymmetric
    fields. A vertex on the middle line keeps only what its parity allows.
    """
    flip = np.array([-1.0, 1.0, 1.0], dtype=np.float32)
    sign = np.asarray(parity, dtype=np.float32)[..., None, None] * flip
    source = np.flatnonzero(mirror > np.arange(len(mirror)))
    values[..., mirror[source], :] = sign * values[..., source, :]
    middle = np.flatnonzero(mirror == np.arange(len(mirror)))
    values[..., middle, :] *= (1 + sign) / 2
    return values


def mirror_map(half: np.ndarray, parity: np.ndarray) -> np.ndarray:
    """The whole UV map from its columns 0..127: half (K, 192, 128, C), parity (K,) of +1 or -1 -> (K, 192, 256, C)."""
    full = np.zeros((len(half), *UV_SHAPE, half.shape[-1]), dtype=np.float32)
    full[:, :, :128] = half
    full[:, :, 128:255] = parity[:, None, None, None] * half[:, :, 126::-1]
    return full


def normalised(barycentrics: np.ndarray) -> np.ndarray:
    """Barycentrics (..., 3) rounded in the file, summing to 1 again; zeros stay zeros."""
    total = barycentrics.sum(axis=-1, keepdims=True)
    return barycentrics / np.where(total > 0, total, 1)


def decode_image(buffer: np.ndarray) -> np.ndarray:
    """PNG or JPEG bytes (uint8 vector) -> (H, W), (H, W, 3) RGB or (H, W, 4) RGBA uint8."""
    image = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    if image.ndim == 2:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def read_statistics(data, prefix: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean (C, 3), identity (199, C, 3), expression (29, C, 3)) of the coarse vertices stored under a prefix."""
    return tuple(data[f"{prefix}_{name}"].astype(np.float32) for name in ("mean", "identity", "expression"))


def read_landmarks(path: Path = LANDMARK_FILE) -> np.ndarray:
    """(68,) int32: the face model's vertices of the iBUG landmarks, from a text file of one number per line."""
    landmarks = np.loadtxt(path, dtype=np.int32)
    if landmarks.shape != (68,):
        raise ValueError(f"{path.name} holds {landmarks.size} numbers instead of 68")
    return landmarks


def read_model(path: Path = MODEL_FILE) -> dict[str, np.ndarray]:
    """All fields of the built-in definition as dense arrays, named as in `datasets.definition.Definition`.

    Lengths in micrometres; vertex_uv in [row, column] texels of the 192x256 map; albedo in [0, 1] units.
    Raises OSError or KeyError if the file is missing or is not this model.
    """
    with np.load(path) as file:
        data = {key: file[key] for key in file.files}
    matrix = read_subdivision(data)
    mirror = data["mirror_vertices"].astype(np.int32)
    mean, identity, expression = (subdivide(x, matrix) for x in read_statistics(data, "coarse"))
    parity = data["coefficient_parity"].astype(np.float32)
    mirror_exactly(mean, mirror)
    mirror_exactly(identity, mirror, parity[:199])
    mirror_exactly(expression, mirror, parity[199:])
    albedo_parity = data["albedo_parity"].astype(np.float32)
    albedo_half = data["albedo_half"].astype(np.float32) * data["albedo_scale"][:, None, None, None]
    mean_half = data["albedo_mean_half"].astype(np.float32)[None] / 65535.0
    return {
        "triangles": data["triangles"].astype(np.int32),
        "mean": mean,
        "identity_basis": identity,
        "expression_basis": expression,
        "coefficient_mean": np.zeros(228, dtype=np.float32),
        "coefficient_std": data["coefficient_std"].astype(np.float32),
        "coefficient_parity": parity,
        "vertex_uv": data["vertex_uv"].astype(np.float32),
        "uv_triangle": data["uv_triangle"].astype(np.int32),
        "uv_barycentrics": normalised(data["uv_barycentrics"].astype(np.float32)),
        "landmarks": read_landmarks(path.parent / LANDMARK_FILE.name),
        "mirror_vertices": mirror,
        "region": data["region"].astype(np.uint8),
        "albedo_mean": mirror_map(mean_half, np.ones(1, np.float32))[0],
        "albedo_basis": mirror_map(albedo_half, albedo_parity),
    }
