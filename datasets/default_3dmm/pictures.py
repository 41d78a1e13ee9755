"""Draw the pictures of CARD.md from the data files:  python -m datasets.default_3dmm.pictures"""

from __future__ import annotations

import cv2
import numpy as np
import torch

import zbuffer

from .head import HeadModel
from .packing import FOLDER, read_model

BACKGROUND = 0.93
LIGHT = np.array([0.3, 0.45, 0.84])


def rotate(vertices: np.ndarray, yaw: float, pitch: float = 0.0) -> np.ndarray:
    """Turn (V, 3) about the vertical axis by yaw, then about the horizontal one by pitch degrees.

    Positive yaw shows the face's side at x < 0, positive pitch the face from above.
    """
    angle, tilt = np.radians(yaw), np.radians(pitch)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    nod = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    return vertices @ turn.T @ nod.T


def normals_of(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Unit vertex normals (V, 3)."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, triangles[:, k], np.cross(b - a, c - a))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)


def render(vertices: np.ndarray, triangles: np.ndarray, colour, size: int, scale: float) -> np.ndarray:
    """Shaded picture (size, size, 3) in [0, 1]; colour: function of (triangle, barycentrics) of the seen pixels."""
    positions = np.stack([size / 2 - vertices[:, 1] * scale, size / 2 + vertices[:, 0] * scale, vertices[:, 2]], axis=1)
    raster = zbuffer.rasterize(torch.from_numpy(positions.astype(np.float32))[None],
                               torch.from_numpy(triangles.astype(np.int32)), (size, size))
    seen = raster.mask[0].numpy()
    triangle, weight = raster.triangle[0].numpy()[seen], raster.barycentrics[0].numpy()[seen]
    normal = (normals_of(vertices, triangles)[triangles[triangle]] * weight[..., None]).sum(axis=1)
    picture = np.full((size, size, 3), BACKGROUND)
    picture[seen] = colour(triangle, weight) * (0.4 + 0.75 * np.clip(normal @ LIGHT, 0, 1))[:, None]
    return np.clip(picture, 0, 1)


def sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear samples (n, 3) of an image (h, w, 3) at pixel places."""
    rows = -(-len(x) // 256)
    grid = [np.pad(v.astype(np.float32), (0, rows * 256 - len(v))).reshape(rows, 256) for v in (x, y)]
    return cv2.remap(image.astype(np.float32), *grid, cv2.INTER_LINEAR).reshape(-1, 3)[: len(x)]


def face_colour(model: dict, albedo: np.ndarray):
    """Colour function of the face model under an albedo map."""
    def colour(triangle, weight):
        uv = (model["vertex_uv"][model["triangles"][triangle]] * weight[..., None]).sum(axis=1)
        return sample(albedo, uv[:, 1], uv[:, 0])
    return colour


def plain(triangle, weight):
    """The colour of clay."""
    return np.full((len(triangle), 3), 0.8)


def mean_picture(model: dict) -> np.ndarray:
    """Mean face with landmarks from two sides, mean albedo, UV layout."""
    size, scale = 420, 420 * 1.0 / 215000
    views = []
    for yaw in (0, -40):
        vertices = rotate(model["mean"].astype(np.float64), yaw)
        view = np.ascontiguousarray((render(vertices, model["triangles"], face_colour(model, model["albedo_mean"]),
                                            size, scale) * 255).astype(np.uint8))
        for x, y, _ in vertices[model["landmarks"]]:
            place = round(size / 2 + x * scale), round(size / 2 - y * scale)
            cv2.circle(view, place, 2, (0, 255, 60), -1, cv2.LINE_AA)
        views.append(view)
    albedo = cv2.resize((model["albedo_mean"] * 255).astype(np.uint8), (560, 420), interpolation=cv2.INTER_CUBIC)
    layout = np.full((420, 560, 3), 255, np.uint8)
    corners = model["vertex_uv"][model["triangles"]][..., ::-1] * (420 / 192)
    for triangle in corners:
        cv2.polylines(layout, [np.round(triangle * 16).astype(np.int32)], True, (90, 90, 90), 1, cv2.LINE_AA, 4)
    return np.hstack([*views, albedo, layout])


def landmark_picture(model: dict, seed: int = 1) -> np.ndarray:
    """The 68 landmarks from five views, on the mean face and on two random ones with random expressions.

    A dot is filled where the landmark faces the camera, hollow where it is turned away.
    """
    size, scale, rng, rows = 300, 300 / 215000, np.random.default_rng(seed), []
    basis = np.concatenate([model["identity_basis"], model["expression_basis"]])
    colour = face_colour(model, model["albedo_mean"])
    for spread in (0.0, 1.0, 1.0):
        coefficients = spread * rng.standard_normal(len(basis)) * model["coefficient_std"]
        face = model["mean"] + np.tensordot(coefficients, basis, 1)
        row = []
        for yaw, pitch in ((-60, 0), (-30, 0), (0, 0), (0, -25), (0, 25)):
            vertices = rotate(face.astype(np.float64), yaw, pitch)
            view = np.ascontiguousarray((render(vertices, model["triangles"], colour, size, scale) * 255)
                                        .astype(np.uint8))
            facing = normals_of(vertices, model["triangles"])[:, 2] > 0
            for index in model["landmarks"]:
                place = round(size / 2 + vertices[index, 0] * scale), round(size / 2 - vertices[index, 1] * scale)
                cv2.circle(view, place, 2, (0, 255, 60), -1 if facing[index] else 1, cv2.LINE_AA)
            row.append(view)
        rows.append(np.hstack(row))
    return np.vstack(rows)


def component_picture(model: dict) -> np.ndarray:
    """Seven identity and seven expression components at -2 (top) and +2 sigma."""
    size, scale = 170, 170 / 240000
    rows = []
    for name, start in (("identity_basis", 0), ("expression_basis", 199)):
        for amount in (-2.0, 2.0):
            row = []
            for k in range(7):
                shape = model["mean"] + amount * model["coefficient_std"][start + k] * model[name][k]
                row.append(render(rotate(shape.astype(np.float64), -25), model["triangles"], plain, size, scale))
            rows.append(np.hstack(row))
    return (np.vstack(rows) * 255).astype(np.uint8)


def head_picture(model: dict, head: HeadModel, seed: int = 4) -> np.ndarray:
    """Random heads: skins, eyes from the mean albedo, random expressions."""
    size, scale, rng, views = 240, 240 / 370000, np.random.default_rng(seed), []
    for number in range(7):
        vertices = head.vertices(rng.standard_normal((1, 199)), 0.7 * rng.standard_normal((1, 29)))[0]
        skin = head.skins[(3 * number) % len(head.skins)] / 255.0
        uv = np.nan_to_num(head.uv)

        def colour(triangle, weight, skin=skin):
            place = (np.nan_to_num(head.skin_uv[triangle]) * weight[..., None]).sum(axis=1)
            painted = sample(skin, place[:, 0] * skin.shape[1] - 0.5, place[:, 1] * skin.shape[0] - 0.5)
            texel = (uv[head.triangles[triangle]] * weight[..., None]).sum(axis=1)
            other = sample(model["albedo_mean"], texel[:, 1], texel[:, 0])
            return np.where((head.region[triangle] > 0)[:, None], other, painted)

        turned = rotate(vertices.astype(np.float64), rng.uniform(-35, 35))
        views.append(render(turned, head.triangles, colour, size, scale))
    return (np.hstack(views) * 255).astype(np.uint8)


def main() -> None:
    """Write the pictures as JPEG files."""
    model, head = read_model(), HeadModel.load()
    for name, picture in (("mean", mean_picture(model)), ("landmarks", landmark_picture(model)),
                          ("components", component_picture(model)), ("heads", head_picture(model, head))):
        cv2.imwrite(str(FOLDER / f"{name}.jpg"), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])


if __name__ == "__main__":
    main()
