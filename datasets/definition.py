"""The definition of a 3D morphable face model, and its two forms on disk.

`Definition` holds plain numpy arrays, zero-based, with -1 for "none". It is read from

* a folder in the format of the published `3DMM_definition` (raw little-endian files, one-based, 0 = none), with
  `shape_para_mean.npy` and `shape_para_std.npy` beside the folder or in it: :func:`load_original`;
* the built-in model in `datasets/default_3dmm`: :func:`load_builtin`.

:func:`write_original` writes any definition in the published format.

Lengths are in micrometres, x to the face's left (right in the picture), y up, z towards the camera. The UV map has
192 rows and 256 columns; column c mirrors column 254 - c. The published files hold its columns 16..239 only.
"""
from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.default_3dmm.packing import MODEL_FILE, read_model
from utils.errors import UserError
from utils.files import atomic, write_bytes

UV_HEIGHT = 192
UV_WIDTH = 256
FILE_WIDTH = 224  # columns of the UV map in the published files
PADDING = (UV_WIDTH - FILE_WIDTH) // 2
IDENTITY_SIZE = 199
EXPRESSION_SIZE = 29
COEFFICIENTS = IDENTITY_SIZE + EXPRESSION_SIZE
LANDMARKS = 68
MAX_VALENCE = 8  # triangles that 3DMM_vertex_tri.dat lists around a vertex
UV_STEP = 2.0**-12  # texels; vertex_uv of the built-in model is a multiple of it, so that adding one is exact


@dataclass(frozen=True, eq=False)
class Definition:
    """A morphable model of V vertices and T triangles.

    triangles (T, 3) int32 vertex indices. mean (V, 3) float32, the sum of the identity and the expression mean.
    identity_basis (199, V, 3), expression_basis (29, V, 3) float32: displacement per unit of a raw coefficient, where
    raw = normalised * coefficient_std + coefficient_mean, both (228,) float32.
    vertex_uv (V, 2) float32 [row, column] of each vertex in the UV map, clamped to the map.
    uv_triangle (192, 256) int32 triangle of each texel, -1 outside the face; uv_barycentrics (192, 256, 3) float32.
    landmarks (68,) int32 vertices of the iBUG landmarks.
    equal_albedo_pairs (K, 2) int32 or None: the published table of texels of equal albedo, [row, column] in the map.

    Known for the built-in model only, otherwise None: mirror_vertices (V,) int32; region (T,) uint8 (0 skin,
    1 eyeball at x < 0, 2 eyeball at x > 0, 3 inside of the mouth); albedo_mean (192, 256, 3) and albedo_basis
    (K, 192, 256, 3) float32, albedo in [0, 1] units per unit coefficient; coefficient_parity (228,) float32, +1 for
    components that mirroring the face leaves alone, -1 for those that change sign.
    """

    triangles: np.ndarray
    mean: np.ndarray
    identity_basis: np.ndarray
    expression_basis: np.ndarray
    coefficient_mean: np.ndarray
    coefficient_std: np.ndarray
    vertex_uv: np.ndarray
    uv_triangle: np.ndarray
    uv_barycentrics: np.ndarray
    landmarks: np.ndarray
    equal_albedo_pairs: np.ndarray | None = None
    mirror_vertices: np.ndarray | None = None
    region: np.ndarray | None = None
    albedo_mean: np.ndarray | None = None
    albedo_basis: np.ndarray | None = None
    coefficient_parity: np.ndarray | None = None


def load(name_or_folder: str | Path) -> Definition:
    """Load the model called "builtin", or the one in a folder of the published format; UserError if neither works."""
    if str(name_or_folder) == "builtin":
        return load_builtin()
    return load_original(name_or_folder)


def load_builtin() -> Definition:
    """The morphable model that comes with the project. Raises UserError if its file is missing or damaged."""
    try:
        fields = read_model()
    except FileNotFoundError:
        raise UserError(f"the built-in face model {MODEL_FILE} is missing: restore it from the repository") from None
    except Exception as error:  # a damaged archive can fail in many ways inside numpy, zipfile and zlib
        raise UserError(f"the built-in face model {MODEL_FILE} is damaged ({error}): restore it from the "
                        "repository") from error
    fields["vertex_uv"] = (np.round(fields["vertex_uv"] / UV_STEP) * UV_STEP).astype(np.float32)
    return Definition(**fields)


def load_original(folder: str | Path, parameter_folder: str | Path | None = None) -> Definition:
    """Read a folder in the published format (see the module's docstring).

    parameter_folder: where shape_para_mean.npy and shape_para_std.npy are; by default the folder, its parent or, of a
    linked folder, the parent of what the link leads to.
    The numbers of vertices and triangles come from the files' sizes. Raises UserError naming the file, and the
    expected and found size, if anything is missing, truncated or refers outside the model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"3DMM definition folder {folder} does not exist: unpack 3DMM_definition.zip there, or use "
                        "--definition builtin")
    vertex_count = _vertex_count(folder)
    triangles = _read_triangles(folder, vertex_count)
    identity_mean, identity_basis = _read_basis(folder, "3DMM_shape_basis.dat", IDENTITY_SIZE, vertex_count)
    expression_mean, expression_basis = _read_basis(folder, "3DMM_exp_basis.dat", EXPRESSION_SIZE, vertex_count)
    _read_indices(folder, "3DMM_vertex_tri.dat", (MAX_VALENCE, vertex_count), 0, len(triangles), "triangle")
    uv_triangle = _read_indices(folder, "3DMM_tri_2d.dat", (UV_HEIGHT, FILE_WIDTH), 0, len(triangles), "triangle") - 1
    barycentrics = _read_floats(folder, "3DMM_tri_2d_barycoord.dat", (UV_HEIGHT, FILE_WIDTH, 3))
    parameters = _parameter_folder(folder, parameter_folder)
    return Definition(
        triangles=triangles,
        mean=identity_mean + expression_mean,
        identity_basis=identity_basis,
        expression_basis=expression_basis,
        coefficient_mean=_read_parameters(parameters / "shape_para_mean.npy"),
        coefficient_std=_read_parameters(parameters / "shape_para_std.npy"),
        vertex_uv=_read_vertex_uv(folder, vertex_count),
        uv_triangle=np.pad(uv_triangle, ((0, 0), (PADDING, PADDING)), constant_values=-1),
        uv_barycentrics=np.pad(barycentrics, ((0, 0), (PADDING, PADDING), (0, 0))),
        landmarks=_read_indices(folder, "3DMM_keypoints.dat", (LANDMARKS,), 1, vertex_count, "vertex") - 1,
        equal_albedo_pairs=_read_equal_albedo_pairs(folder),
    )


def write_original(definition: Definition, folder: str | Path) -> None:
    """Write a definition in the published format: the .dat files into the folder, the two .npy files beside it.

    `load_original` reads the same model back, apart from the fields that the format has no place for (those known
    for the built-in model only). Raises UserError if the UV map uses columns outside the format's 16..239.
    """
    folder = Path(folder)
    uv_triangle = definition.uv_triangle
    columns = slice(PADDING, PADDING + FILE_WIDTH)
    if (uv_triangle[:, :PADDING] >= 0).any() or (uv_triangle[:, PADDING + FILE_WIDTH:] >= 0).any():
        raise UserError("this model's UV map is wider than the 224 columns of the 3DMM_definition format")
    vertex_count = len(definition.mean)

    def put(name: str, array: np.ndarray, dtype: str) -> None:
        write_bytes(folder / name, np.ascontiguousarray(array, dtype=dtype).tobytes())

    def put_parameters(name: str, array: np.ndarray) -> None:
        with atomic(folder.parent / name) as stream:
            np.lib.format.write_array(stream, array.astype(np.float32), allow_pickle=False)

    def with_mean(mean: np.ndarray, basis: np.ndarray) -> np.ndarray:
        return np.concatenate([mean.reshape(1, -1), basis.reshape(len(basis), -1)])

    put("3DMM_tri.dat", definition.triangles.T + 1, "<i4")
    put("3DMM_vertex_tri.dat", vertex_triangles(definition.triangles, vertex_count) + 1, "<i4")
    put("3DMM_tri_2d.dat", uv_triangle[:, columns] + 1, "<i4")
    put("3DMM_tri_2d_barycoord.dat", definition.uv_barycentrics[:, columns], "<f4")
    put("vertices_2d_u.dat", definition.vertex_uv[:, 0] + 1, "<f4")
    put("vertices_2d_v.dat", definition.vertex_uv[:, 1] - PADDING + 1, "<f4")
    put("3DMM_keypoints.dat", definition.landmarks + 1, "<i4")
    put("3DMM_shape_basis.dat", with_mean(definition.mean, definition.identity_basis), "<f4")
    put("3DMM_exp_basis.dat", with_mean(np.zeros_like(definition.mean), definition.expression_basis), "<f4")
    if definition.equal_albedo_pairs is not None:
        put("3DMM_const_alb_mask.dat", definition.equal_albedo_pairs - [0, PADDING] + 1, "u1")
    put_parameters("shape_para_mean.npy", definition.coefficient_mean)
    put_parameters("shape_para_std.npy", definition.coefficient_std)


def vertex_triangles(triangles: np.ndarray, vertex_count: int) -> np.ndarray:
    """The first eight triangles around each vertex: (T, 3) int -> (8, V) int32 in ascending order, -1 where none."""
    corners = triangles.reshape(-1)
    order = np.argsort(corners, kind="stable")
    vertices = corners[order]
    first = np.searchsorted(vertices, vertices)  # position of each vertex's first corner in the sorted list
    rank = np.arange(len(vertices)) - first
    listed = rank < MAX_VALENCE
    table = np.full((MAX_VALENCE, vertex_count), -1, dtype=np.int32)
    table[rank[listed], vertices[listed]] = order[listed] // 3
    return table


def _vertex_count(folder: Path) -> int:
    """The number of vertices that most files agree on; UserError naming the file that disagrees."""
    bytes_per_vertex = {
        "3DMM_shape_basis.dat": (1 + IDENTITY_SIZE) * 3 * 4,
        "3DMM_exp_basis.dat": (1 + EXPRESSION_SIZE) * 3 * 4,
        "3DMM_vertex_tri.dat": MAX_VALENCE * 4,
        "vertices_2d_u.dat": 4,
        "vertices_2d_v.dat": 4,
    }
    found = {name: _size(folder / name) for name in bytes_per_vertex}
    votes = Counter(size // bytes_per_vertex[name] for name, size in found.items() if not size % bytes_per_vertex[name])
    votes.pop(0, None)
    if not votes:
        raise UserError(f"the files in {folder} are no 3DMM definition: unpack 3DMM_definition.zip again")
    count = votes.most_common(1)[0][0]
    for name, size in found.items():
        _check_size(folder / name, size, count * bytes_per_vertex[name])
    return count


def _read_triangles(folder: Path, vertex_count: int) -> np.ndarray:
    path = folder / "3DMM_tri.dat"
    size = _size(path)
    if size == 0 or size % 12:
        raise UserError(f"{path} has {size} bytes, expected a positive multiple of 12 (three int32 per triangle): the "
                        "file is damaged, unpack 3DMM_definition.zip again")
    return np.ascontiguousarray(_read_indices(folder, path.name, (3, size // 12), 1, vertex_count, "vertex").T) - 1


def _read_basis(folder: Path, name: str, components: int, vertex_count: int) -> tuple[np.ndarray, np.ndarray]:
    values = _read_floats(folder, name, (1 + components, vertex_count, 3))
    return values[0], values[1:]


def _read_vertex_uv(folder: Path, vertex_count: int) -> np.ndarray:
    row = _read_floats(folder, "vertices_2d_u.dat", (vertex_count,)) - np.float32(1)
    column = _read_floats(folder, "vertices_2d_v.dat", (vertex_count,)) - np.float32(1)
    row = np.clip(row, 0, UV_HEIGHT - 1)
    column = np.clip(column, 0, FILE_WIDTH - 1) + np.float32(PADDING)
    return np.stack([row, column], axis=1)


def _read_equal_albedo_pairs(folder: Path) -> np.ndarray | None:
    path = folder / "3DMM_const_alb_mask.dat"
    if not path.exists():
        return None
    size = _size(path)
    if size % 2:
        raise UserError(f"{path} has {size} bytes, expected a multiple of 2: the file is damaged, unpack "
                        "3DMM_definition.zip again")
    return _read(path, (size // 2, 2), "u1").astype(np.int32) - 1 + np.array([0, PADDING], dtype=np.int32)


def _parameter_folder(folder: Path, given: str | Path | None) -> Path:
    if given is not None:
        return Path(given)
    beside = Path(os.path.abspath(folder)).parent  # of a linked folder, where the link is
    known = (place for place in (folder, beside) if (place / "shape_para_mean.npy").exists())
    return next(known, folder.resolve().parent)


def _read_parameters(path: Path) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: it comes with 3DMM_definition.zip and belongs beside its folder") from None
    except Exception as error:  # numpy parses the header as Python's literals, which can fail in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is no readable .npy file ({reason}): unpack 3DMM_definition.zip again") from None
    if not isinstance(values, np.ndarray) or values.shape != (COEFFICIENTS,) or values.dtype.kind != "f":
        shape = getattr(values, "shape", "no array")
        raise UserError(f"{path} holds {shape}, expected {COEFFICIENTS} floating point numbers")
    if not np.isfinite(values).all():
        raise UserError(f"{path} holds values that are not finite: the file is damaged")
    return values.astype(np.float32)


def _read_indices(folder: Path, name: str, shape: tuple, low: int, high: int, what: str) -> np.ndarray:
    """One-based int32 indices, as stored; UserError unless all are within low..high."""
    values = _read(folder / name, shape, "<i4").astype(np.int32)
    if values.min() < low or values.max() > high:
        raise UserError(f"{folder / name} refers to {what} {values.min() if values.min() < low else values.max()}, "
                        f"expected {low}..{high}: it belongs to another model or is damaged")
    return values


def _read_floats(folder: Path, name: str, shape: tuple) -> np.ndarray:
    values = _read(folder / name, shape, "<f4").astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{folder / name} holds values that are not finite: the file is damaged")
    return values


def _read(path: Path, shape: tuple, dtype: str) -> np.ndarray:
    _check_size(path, _size(path), int(np.prod(shape)) * np.dtype(dtype).itemsize)
    try:
        return np.fromfile(path, dtype=dtype).reshape(shape)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error})") from None


def _size(path: Path) -> int:
    if not path.is_file():
        raise UserError(f"{path} is missing: unpack 3DMM_definition.zip again, or use --definition builtin")
    return path.stat().st_size


def _check_size(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(f"{path} has {found} bytes, expected {expected}: the file is truncated or belongs to another "
                        "model, unpack 3DMM_definition.zip again")
