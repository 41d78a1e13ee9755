"""Pictures of a completed photo, written to its folder output/NAME/:

    complete_output.png  the photo with the completed faces in their places
    mask_photo.png       the hole in the photo's pixels, 255 = hidden: to be edited and given back with --mask
    overview.png         photo, hole, fitted mesh, albedo in and out, result, side by side
    faces.json           the faces' boxes and five landmarks, to be given back with --landmarks

and of its first completed face, the aligned 256x256 crop or the 192x256 UV map (further faces: in face2/, face3/, ...):

    original.png         the aligned face          texture_in.png       what is visible of it, on the UV map
    mask.png             its hole, 255 = hidden    texture_out.png      the completed UV map
    input.png            the face, hole in grey    albedo_in.png        both without light
    output.png           the completed face        albedo_out.png
    mesh.png             the fitted head over it
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Sequence

import cv2
import numpy as np
import torch
from PIL import Image

import zbuffer
from datasets.alignment import CROP_SIZE
from engine.photo import CompletedFace, CompletedPhoto, FittedHead
from models.renderer import vertex_normals
from utils.files import output_folder, write_bytes
from utils.images import write_image
from utils.threads import map_items

FACE_PICTURES = ("original", "input", "output", "texture_in", "texture_out", "albedo_in", "albedo_out")
FACE_FILES = tuple(f"{name}.png" for name in (*FACE_PICTURES, "mask", "mesh"))
PHOTO_FILES = ("complete_output.png", "overview.png", "mask_photo.png", "faces.json")
GAP = 4  # pixels between the pictures of an overview
TITLE = 18  # pixels of height for the pictures' titles
OVERVIEW_WIDTH = 640  # pixels; wider photos are shown smaller
HOLE_COLOUR = (230, 60, 40)
MESH_COLOUR = (120, 190, 255)
MESH_OPACITY = 0.55
MESH_SHARPNESS = 2  # the mesh is drawn at this many times the crop's size
GRID = 12  # texels between the lines drawn on the mesh


def write_pictures(result: CompletedPhoto, folder: Path, colour_profile: bytes | None = None) -> None:
    """Write the files listed at the top into a folder; earlier ones of the same names are replaced.

    colour_profile: the photo's ICC profile, which complete_output.png keeps.
    """
    meshes = [mesh_overlay(face) for face in result.faces]
    pictures = {folder / "mask_photo.png": result.mask, folder / "overview.png": overview(result, meshes)}
    for place, (face, mesh) in enumerate(zip(result.faces, meshes), start=1):
        pictures |= _pictures_of(face, mesh, face_folder(folder, place))
    map_items(write_image, *zip(*pictures.items()))
    faces = [{"number": face.number, "box": np.asarray(face.found.box, np.float64).tolist(),
              "score": round(face.found.score, 4), "landmarks": np.asarray(face.found.landmarks, np.float64).tolist()}
             for face in result.faces]
    write_bytes(folder / "faces.json", (json.dumps({"faces": faces}, indent=1) + "\n").encode())
    write_image(folder / "complete_output.png", result.complete_output, colour_profile)


def face_folder(folder: Path, place: int) -> Path:
    """Where the files of a photo's completed face go, the first being 1. Raises UserError if a link leads out."""
    return folder if place == 1 else output_folder(folder, f"face{place}")


def _pictures_of(face: CompletedFace, mesh: np.ndarray, folder: Path) -> dict[Path, np.ndarray]:
    """A face's pictures by the files that they belong in."""
    pictures = {folder / f"{name}.png": getattr(face, name) for name in FACE_PICTURES}
    return {**pictures, folder / "mask.png": face.hole, folder / "mesh.png": mesh}


def write_landmarks(face: CompletedFace, path: Path) -> None:
    """Write the 68 fitted landmarks, 'x y' in crop pixels, a line each."""
    write_bytes(path, "".join(f"{x:.3f} {y:.3f}\n" for x, y in face.landmarks).encode())


def overview(result: CompletedPhoto, meshes: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """Photo, and for each completed face a row of crop, found hole, mesh, albedo in and out, and output; then the
    result: uint8 (H, W, 3). meshes: the faces' :func:`mesh_overlay`, if they are drawn already."""
    rows = []
    for face, mesh in zip(result.faces, meshes or map(mesh_overlay, result.faces)):
        row = [("face", face.original), ("hole", hole_overlay(face.original, face.hole)), ("mesh", mesh),
               ("albedo in", face.albedo_in), ("albedo out", face.albedo_out), ("completed", face.output)]
        rows.append(_side_by_side([(title, _to_height(picture, CROP_SIZE)) for title, picture in row]))
    height = max(len(rows), 1) * (CROP_SIZE + TITLE + GAP) - TITLE - GAP
    faces = np.concatenate([np.pad(row, ((0, GAP), (0, 0), (0, 0)), constant_values=255) for row in rows])[:-GAP] \
        if rows else np.full((height + TITLE, 0, 3), 255, np.uint8)
    photo = _to_height(result.photo, min(result.photo.shape[0], 2 * height))  # large ones take seconds to be tinted
    hole = cv2.resize(result.mask.astype(np.uint8), photo.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
    ends = [_framed(title, _fitted(picture, height)) for title, picture in
            (("photo", hole_overlay(photo, hole)), ("result", result.complete_output))]
    gap = np.full((faces.shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([ends[0], gap, faces, gap, ends[1]], axis=1)


def hole_overlay(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A picture uint8 (H, W, 3) with its hole bool (H, W) outlined and tinted."""
    width = max(picture.shape[0] // 250, 1)
    tinted = np.where(hole[:, :, None], (0.6 * picture + 0.4 * np.array(HOLE_COLOUR)).astype(np.uint8), picture)
    edge = cv2.morphologyEx(hole.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((2 * width + 1,) * 2, np.uint8)) > 0
    return np.where(edge[:, :, None], np.array(HOLE_COLOUR, np.uint8), tinted)


def mesh_overlay(face: CompletedFace) -> np.ndarray:
    """The aligned face with its fitted head, shaded and with lines of equal UV coordinate: uint8 (256, 256, 3)."""
    size = CROP_SIZE * MESH_SHARPNESS
    backdrop = cv2.resize(face.original, (size, size), interpolation=cv2.INTER_CUBIC)
    shade, lines, covered = _draw_head(face.head, size)
    colour = np.clip(shade[:, :, None] * np.array(MESH_COLOUR, np.float32), 0, 255)
    mixed = backdrop + covered[:, :, None] * MESH_OPACITY * (colour - backdrop)
    mixed[lines] = 0.35 * mixed[lines] + 0.65 * 255
    picture = np.ascontiguousarray(mixed.round().astype(np.uint8))
    for x, y in (face.landmarks + 0.5) * MESH_SHARPNESS - 0.5:
        cv2.circle(picture, (int(round(x * 16)), int(round(y * 16))), 3 * 16, (255, 220, 0), -1, cv2.LINE_AA, shift=4)
    return cv2.resize(picture, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_AREA)


def _draw_head(head: FittedHead, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shade (size, size) float, lines of the UV map bool, and what the head covers bool."""
    scale = size / CROP_SIZE
    positions = torch.from_numpy(head.positions.astype(np.float32))[None]
    positions = torch.cat([(positions[..., :2] + 0.5) * scale - 0.5, positions[..., 2:]], dim=-1)
    triangles = torch.from_numpy(head.triangles)
    raster = zbuffer.rasterize(positions, triangles, (size, size), cull=True)
    # Rows grow downwards and depth is in micrometres: to pixels of equal length for normals of the seen surface.
    per_pixel = _micrometres_per_pixel(head) / scale
    seen = torch.stack([positions[..., 1], -positions[..., 0], positions[..., 2] / per_pixel], dim=-1)
    normals = zbuffer.interpolate(vertex_normals(seen, triangles)[0], triangles, raster)[0]
    shade = (0.25 + 0.75 * normals[..., 2].clamp(min=0)).numpy()
    grid = zbuffer.interpolate(torch.from_numpy(head.vertex_uv), triangles, raster)[0]
    cells = torch.div(grid, GRID, rounding_mode="floor").numpy()
    covered = raster.mask[0].numpy()
    textured = covered & head.textured[raster.triangle[0].clamp(min=0).numpy()]
    lines = np.zeros_like(covered)
    lines[:-1] |= (cells[1:] != cells[:-1]).any(axis=-1) & textured[1:] & textured[:-1]
    lines[:, :-1] |= (cells[:, 1:] != cells[:, :-1]).any(axis=-1) & textured[:, 1:] & textured[:, :-1]
    return shade, lines, covered


def _micrometres_per_pixel(head: FittedHead) -> float:
    """Of the crop: the size of the head over that of its picture (weak perspective has one scale)."""
    spread = np.linalg.norm(head.vertices - head.vertices.mean(axis=0), axis=1)
    flat = head.positions[:, :2] - head.positions[:, :2].mean(axis=0)
    depth = head.positions[:, 2] - head.positions[:, 2].mean()
    return float(np.sqrt(max((spread ** 2).sum() - (depth ** 2).sum(), 1.0) / max((flat ** 2).sum(), 1e-6)))


def _side_by_side(pictures: list[tuple[str, np.ndarray]]) -> np.ndarray:
    framed = [_framed(title, picture) for title, picture in pictures]
    gap = np.full((framed[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for picture in framed for part in (picture, gap)][:-1], axis=1)


def _framed(title: str, picture: np.ndarray) -> np.ndarray:
    """The picture with its title above it."""
    canvas = np.full((picture.shape[0] + TITLE, picture.shape[1], 3), 255, np.uint8)
    canvas[TITLE:] = picture
    cv2.putText(canvas, title, (2, TITLE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return canvas


def _fitted(picture: np.ndarray, height: int) -> np.ndarray:
    """The picture reduced to fit into OVERVIEW_WIDTH x height, centred from top to bottom on white."""
    scale = min(height / picture.shape[0], OVERVIEW_WIDTH / picture.shape[1])
    shown = _to_height(picture, max(round(picture.shape[0] * scale), 1))
    canvas = np.full((height, shown.shape[1], 3), 255, np.uint8)
    top = (height - shown.shape[0]) // 2
    canvas[top:top + shown.shape[0]] = shown
    return canvas


def _to_height(picture: np.ndarray, height: int) -> np.ndarray:
    if picture.shape[0] == height:
        return picture
    width = max(round(picture.shape[1] * height / picture.shape[0]), 1)
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
