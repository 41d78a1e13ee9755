"""The fitted head as files that mesh viewers open: Wavefront OBJ (with its material) and PLY, both with a texture."""
from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from engine.photo import CompletedFace, FittedHead
from utils.files import write_bytes
from utils.images import write_image

MILLIMETRES = 1e-3  # of a micrometre
TEXTURE = "head_texture.png"
HEAD_FILES = (TEXTURE, "head.mtl", "head.obj", "head.ply")


def write_head(face: CompletedFace, folder: Path) -> None:
    """Write head.obj, head.mtl, head.ply and head_texture.png: the head upright, in millimetres, y up, z to the front.

    The texture is the completed one. Triangles that the UV map does not show (the back of the head) have its mean
    colour.
    """
    texture = _extended(face.texture_out, face.head.uv_mask)
    colour = face.texture_out[face.head.uv_mask].mean(axis=0)
    write_image(folder / TEXTURE, texture)
    write_bytes(folder / "head.mtl", _material(colour))
    write_bytes(folder / "head.obj", _obj(face.head))
    write_bytes(folder / "head.ply", _ply(face.head, texture, colour))


def _extended(texture: np.ndarray, face: np.ndarray) -> np.ndarray:
    """The UV map with the colour of the nearest texel of the face, bool (H, W), outside it: nothing bleeds in there."""
    rows, columns = ndimage.distance_transform_edt(~face, return_distances=False, return_indices=True)
    return texture[rows, columns]


def _material(colour: np.ndarray) -> bytes:
    red, green, blue = colour / 255
    return (f"newmtl face\nKa 1 1 1\nKd 1 1 1\nKs 0 0 0\nmap_Kd {TEXTURE}\n\n"
            f"newmtl skin\nKa 1 1 1\nKd {red:.4f} {green:.4f} {blue:.4f}\nKs 0 0 0\n").encode()


def _coordinates(head: FittedHead, shape: tuple[int, int] = (192, 256)) -> np.ndarray:
    """Texture coordinates (V, 2) in [0, 1], the origin at the lower left."""
    rows, columns = head.vertex_uv.T
    return np.stack([(columns + 0.5) / shape[1], 1 - (rows + 0.5) / shape[0]], axis=1)


def _obj(head: FittedHead) -> bytes:
    lines = ["# fitted head, millimetres", "mtllib head.mtl"]
    lines += [f"v {x:.4f} {y:.4f} {z:.4f}" for x, y, z in head.vertices * MILLIMETRES]
    lines += [f"vt {u:.6f} {v:.6f}" for u, v in _coordinates(head)]
    lines += ["usemtl face"]
    lines += [f"f {a}/{a} {b}/{b} {c}/{c}" for a, b, c in head.triangles[head.textured] + 1]
    lines += ["usemtl skin"]
    lines += [f"f {a} {b} {c}" for a, b, c in head.triangles[~head.textured] + 1]
    return ("\n".join(lines) + "\n").encode()


def _ply(head: FittedHead, texture: np.ndarray, colour: np.ndarray) -> bytes:
    """Binary PLY with texture coordinates and, for viewers that ignore them, the colour of each vertex."""
    rows, columns = np.rint(head.vertex_uv).astype(int).T
    colours = texture[rows.clip(0, texture.shape[0] - 1), columns.clip(0, texture.shape[1] - 1)]
    shown = np.zeros(len(head.vertices), bool)
    shown[head.triangles[head.textured]] = True
    vertices = np.zeros(len(head.vertices), [("xyz", "<f4", 3), ("st", "<f4", 2), ("rgb", "u1", 3)])
    vertices["xyz"], vertices["st"] = head.vertices * MILLIMETRES, _coordinates(head)
    vertices["rgb"] = np.where(shown[:, None], colours, np.rint(colour).astype(np.uint8))
    faces = np.zeros(len(head.triangles), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, head.triangles
    header = ["ply", "format binary_little_endian 1.0", f"comment TextureFile {TEXTURE}",
              f"element vertex {len(vertices)}", *(f"property float {name}" for name in ("x", "y", "z", "s", "t")),
              *(f"property uchar {name}" for name in ("red", "green", "blue")),
              f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(header).encode() + vertices.tobytes() + faces.tobytes()
