"""Albedo of the built-in face in its UV map: unwrapped skins, painted eyes, mouth and brows, and their variation."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

import zbuffer

from .assets import MakeHumanAssets
from .attributes import smooth_step
from .binding import bind, follow
from .packing import UV_MIRROR_SUM, UV_SHAPE
from .shape import HeadShape
from .statistics import leading_scores
from .topology import LEFT_EYE, MOUTH, MOUTH_ROWS, RIGHT_EYE

BROWS = tuple(f"eyebrow{number:03d}" for number in range(1, 13))
IRIS_RADIUS, PUPIL_RADIUS = 0.36, 0.14  # radians seen from the eyeball's centre
SCLERA = np.array([0.78, 0.72, 0.69])
GUMS, TEETH = np.array([0.27, 0.10, 0.09]), np.array([0.74, 0.68, 0.60])
IRIS_COLOURS = np.array([[0.20, 0.12, 0.07], [0.13, 0.08, 0.05], [0.30, 0.20, 0.11], [0.31, 0.40, 0.47],
                         [0.28, 0.33, 0.22], [0.38, 0.42, 0.44], [0.16, 0.10, 0.06]])
HAIR_COLOURS = np.array([[0.05, 0.04, 0.035], [0.10, 0.07, 0.05], [0.18, 0.12, 0.08], [0.28, 0.20, 0.13],
                         [0.42, 0.31, 0.20], [0.34, 0.18, 0.09], [0.45, 0.44, 0.43]])
BRIGHTNESS = 0.78  # MakeHuman's skins are painted a little bright for an albedo
TRAINING_MAPS = 500


@dataclass
class FaceMaps:
    """Fields over the 192x256 UV map.

    inside (H, W) bool; region (H, W); position (H, W, 3) micrometres on the mean face; masks: name -> (H, W) in [0, 1];
    skins (n, H, W, 3) albedo; brows (m, H, W) opacity; eye_angle (H, W) radians from the gaze; mouth_share (H, W): 0 at
    the upper lip, 1 at the lower one.
    """

    inside: np.ndarray
    region: np.ndarray
    position: np.ndarray
    masks: dict[str, np.ndarray]
    skins: np.ndarray
    brows: np.ndarray
    eye_angle: np.ndarray
    mouth_share: np.ndarray


def to_map(values: np.ndarray, triangles: np.ndarray, table: np.ndarray, barycentrics: np.ndarray) -> np.ndarray:
    """Interpolate vertex values (V, ...) at the texels of a table -> (192, 256, ...), 0 outside."""
    corners = values[triangles[np.maximum(table, 0)]]
    weight = barycentrics.reshape(*barycentrics.shape, *(1,) * (values.ndim - 1))
    return (corners * weight).sum(axis=2)


def mirror_image(maps: np.ndarray) -> np.ndarray:
    """UV maps (..., 192, 256, C) flipped about column 127; column 255 becomes 0."""
    flipped = np.zeros_like(maps)
    flipped[..., :UV_MIRROR_SUM + 1, :] = maps[..., UV_MIRROR_SUM::-1, :]
    return flipped


def unwrap_skin(image: np.ndarray, corner_uv: np.ndarray, table: np.ndarray, barycentrics: np.ndarray) -> np.ndarray:
    """A skin texture (h, w, 3) uint8 at the texels -> (192, 256, 3) float in [0, 1]; corner_uv (T, 3, 2), v up."""
    place = (corner_uv[np.maximum(table, 0)] * barycentrics[..., None]).sum(axis=2)
    x = place[..., 0] * image.shape[1] - 0.5
    y = (1 - place[..., 1]) * image.shape[0] - 0.5
    return cv2.remap(image.astype(np.float32) / 255, x.astype(np.float32), y.astype(np.float32), cv2.INTER_CUBIC)


def draw_brow(assets: MakeHumanAssets, name: str, shape: HeadShape, face: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Opacity (192, 256) of one pair of brows, drawn into the UV map through the nearest skin vertices.

    face (F,): head vertices of the face model; uv (F, 2).
    """
    proxy = assets.proxy("eyebrows", name, shape.base.vertices)
    points = follow(bind(shape, proxy.vertices), shape.dense_mean)
    skin = np.flatnonzero(face < shape.topology.skin_count)
    distance = np.linalg.norm(points[:, None] - shape.dense_mean[face[skin]][None], axis=2)
    nearest = np.argsort(distance, axis=1)[:, :4]
    weight = 1 / (np.take_along_axis(distance, nearest, axis=1) + 500)
    weight /= weight.sum(axis=1, keepdims=True)
    place = (uv[skin[nearest]] * weight[..., None]).sum(axis=1)
    positions = np.concatenate([place, np.zeros((len(place), 1))], axis=1).astype(np.float32)
    raster = zbuffer.rasterize(torch.from_numpy(positions)[None], torch.from_numpy(proxy.triangles.astype(np.int32)),
                               UV_SHAPE)
    texture_uv = zbuffer.interpolate(torch.from_numpy(proxy.uv.astype(np.float32)),
                                     torch.from_numpy(proxy.triangles.astype(np.int64)), raster)[0].numpy()
    height, width = proxy.texture.shape[:2]
    smooth = cv2.GaussianBlur(proxy.texture[..., 3].astype(np.float32) / 255, (0, 0), 2.0)
    opacity = cv2.remap(smooth, texture_uv[..., 0] * width - 0.5, texture_uv[..., 1] * height - 0.5, cv2.INTER_LINEAR)
    return np.where(raster.mask[0].numpy(), opacity, 0)


def face_maps(assets: MakeHumanAssets, shape: HeadShape, face: np.ndarray, triangles: np.ndarray, region: np.ndarray,
              uv: np.ndarray, table: np.ndarray, barycentrics: np.ndarray, corner_uv: np.ndarray,
              masks: dict[str, np.ndarray]) -> FaceMaps:
    """Fill `FaceMaps`. face (F,) head vertices; triangles (T, 3) among them; corner_uv (T, 3, 2); masks on the head."""
    vertices = shape.dense_mean[face]
    inside = table >= 0
    texel_region = np.where(inside, region[np.maximum(table, 0)], 0)
    position = to_map(vertices, triangles, table, barycentrics)
    fields = {name: to_map(mask[face], triangles, table, barycentrics) for name, mask in masks.items()}
    skins = np.stack([unwrap_skin(image, corner_uv, table, barycentrics) for image in assets.skins().values()])
    skins = skins.astype(np.float32)
    brows = np.stack([draw_brow(assets, name, shape, face, uv) for name in BROWS])
    brows = np.maximum(brows, mirror_image(brows[..., None])[..., 0]) * inside * (texel_region == 0)
    eye_angle = np.full(UV_SHAPE, np.pi)
    for number, sphere in ((RIGHT_EYE, shape.eyes_mean[0]), (LEFT_EYE, shape.eyes_mean[1])):
        direction = position - sphere[:3]
        angle = np.arccos(np.clip(direction[..., 2] / np.linalg.norm(direction, axis=-1), -1, 1))
        eye_angle = np.where(texel_region == number, angle, eye_angle)
    share = to_map(mouth_shares(shape)[face], triangles, table, barycentrics)
    return FaceMaps(inside, texel_region, position, fields, skins, brows, eye_angle, share)


def mouth_shares(shape: HeadShape) -> np.ndarray:
    """(V,) how far down between the lips a dense vertex of the mouth's interior lies, 0..1; 0 elsewhere."""
    topology = shape.topology
    share = np.zeros(len(topology.mirror))
    inner = len(topology.upper_lip) - 2
    share[-len(MOUTH_ROWS) * inner:] = np.repeat(MOUTH_ROWS, inner)
    share[topology.lower_lip[1:-1]] = 1
    return shape.subdivision.matrix @ share


@dataclass
class Painter:
    """Paints random plausible albedo maps."""

    maps: FaceMaps
    rng: np.random.Generator

    def paint(self) -> np.ndarray:
        """(192, 256, 3) float32 albedo in [0, 1]."""
        rng, maps = self.rng, self.maps
        share = rng.dirichlet(np.full(len(maps.skins), 0.15)).astype(np.float32)
        skin = np.tensordot(share, maps.skins, axes=1) * BRIGHTNESS
        skin = self._tone(skin)
        hair = HAIR_COLOURS[rng.integers(len(HAIR_COLOURS))] * rng.uniform(0.7, 1.3)
        male = rng.random() < 0.5
        skin = self._lips(skin, 0.25 if male else 0.6)
        if male and rng.random() < 0.5:
            amount = rng.uniform(0.05, 0.6)
            for name, gain in (("beard", rng.uniform(0.3, 1)), ("moustache", rng.uniform(0.3, 1))):
                skin = blend(skin, hair, maps.masks[name] * amount * gain)
        cheeks = maps.masks["blush"][..., None] * rng.uniform(-0.03, 0.14) * np.array([0.15, 1.0, 0.8])
        skin = skin * (1 - cheeks)
        skin = skin * (1 - maps.masks["eyelid"][..., None] * rng.uniform(-0.05, 0.35))
        brow = maps.brows[rng.choice(len(maps.brows), 3)].mean(axis=0)
        skin = blend(skin, hair * rng.uniform(0.6, 1.2), np.clip(brow * rng.uniform(0.6, 1.3), 0, 0.95))
        return np.clip(self._openings(skin), 0, 1).astype(np.float32) * maps.inside[..., None]

    def _tone(self, skin: np.ndarray) -> np.ndarray:
        """Change melanin and haemoglobin, in log reflectance, evenly and in soft patches."""
        rng = self.rng
        melanin = np.array([0.55, 0.75, 1.0]) * rng.normal(0, 0.2)
        blood = np.array([0.1, 0.6, 0.5]) * rng.normal(0, 0.12)
        change = np.exp(-(melanin + blood)) * np.exp(rng.normal(0, 0.07))
        patch = cv2.resize(rng.normal(0, 0.05, (6, 8, 1)).astype(np.float32), UV_SHAPE[::-1],
                           interpolation=cv2.INTER_CUBIC)[..., None]
        red = cv2.resize(rng.normal(0, 0.05, (8, 10, 1)).astype(np.float32), UV_SHAPE[::-1],
                         interpolation=cv2.INTER_CUBIC)[..., None]
        return skin * change * np.exp(patch - red * np.array([0.2, 1.0, 0.9]))

    def _lips(self, skin: np.ndarray, chance: float) -> np.ndarray:
        rng = self.rng
        natural = skin * np.array([0.92, 0.72, 0.74])
        skin = blend(skin, natural, self.maps.masks["lip"] * rng.uniform(0.2, 0.9))
        if rng.random() < chance:
            colour = np.array([0.55, 0.2, 0.22]) * rng.uniform(0.5, 1.3) * np.exp(rng.normal(0, 0.15, 3))
            skin = blend(skin, colour, self.maps.masks["lip"] * rng.uniform(0, 0.7))
        return skin

    def _openings(self, skin: np.ndarray) -> np.ndarray:
        rng = self.rng
        eyes = eye_colours(self.maps, IRIS_COLOURS[rng.integers(len(IRIS_COLOURS))] * rng.uniform(0.6, 1.4),
                           SCLERA * rng.uniform(0.75, 1.15) * np.exp(rng.normal(0, 0.03, 3)))
        mouth = mouth_colours(self.maps, rng.uniform(0.1, 0.7), rng.uniform(0, 1), rng.uniform(0.6, 1.15))
        region = self.maps.region[..., None]
        return np.where(region == MOUTH, mouth, np.where(region > 0, eyes, skin))


def blend(under: np.ndarray, over: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Lay a colour or map over a map (H, W, 3) with opacity (H, W)."""
    return under * (1 - opacity[..., None]) + over * opacity[..., None]


def eye_colours(maps: FaceMaps, iris: np.ndarray, sclera: np.ndarray) -> np.ndarray:
    """(192, 256, 3) colours of the eyeballs: sclera, iris with a dark rim, pupil, and the lids' shadow above."""
    angle = maps.eye_angle[..., None]
    rim = np.exp(-((angle - IRIS_RADIUS) / 0.05) ** 2)
    ring = iris * (0.8 + 0.6 * angle / IRIS_RADIUS) * (1 - 0.5 * rim)
    inside = smooth_step(angle, IRIS_RADIUS + 0.03, IRIS_RADIUS - 0.03)
    pupil = smooth_step(angle, PUPIL_RADIUS + 0.04, PUPIL_RADIUS - 0.04)
    colour = sclera * (1 - inside) + ring * inside
    return colour * (1 - pupil) + 0.03 * pupil


def mouth_colours(maps: FaceMaps, upper_teeth: float, lower_teeth: float, brightness: float) -> np.ndarray:
    """(192, 256, 3) colours between the lips: dark gums and tongue, and teeth down to a share of the opening."""
    share = maps.mouth_share[..., None]
    across = np.abs(maps.position[..., :1])
    teeth = smooth_step(share, upper_teeth + 0.1, upper_teeth - 0.1)
    teeth = np.maximum(teeth, lower_teeth * 0.5 * smooth_step(share, 0.8, 0.95))
    teeth = teeth * smooth_step(across, 27000, 12000)
    tooth = TEETH * brightness * (0.55 + 0.45 * smooth_step(across, 24000, 6000))
    return GUMS * (1 - teeth) + tooth * teeth


def albedo_components(maps: FaceMaps, count: int, seed: int, log=print):
    """Mean (192, 256, 3), basis (count, 192, 256, 3) scaled to one standard deviation, and parity (count,)."""
    painter = Painter(maps, np.random.default_rng(seed))
    samples = np.stack([painter.paint() for _ in range(TRAINING_MAPS)])
    mean = samples.mean(axis=0)
    mean = (mean + mirror_image(mean)) / 2
    samples -= mean
    half = maps.inside & (np.arange(UV_SHAPE[1]) <= UV_MIRROR_SUM // 2)
    found, total = [], 0.0
    for parity in (1, -1):
        part = (samples + parity * mirror_image(samples)) / 2
        rows = part[:, half].reshape(len(part), -1)
        total += float((rows.astype(np.float64) ** 2).sum() / len(rows))
        scores, sigma = leading_scores(rows, count, seed)
        fields = np.tensordot(scores, part, axes=(0, 0)) / len(part)
        found += [(value, parity, field) for value, field in zip(sigma, fields)]
    found.sort(key=lambda item: -item[0])
    sigma = np.array([item[0] for item in found[:count]])
    log(f"albedo: {count} components explain {(sigma ** 2).sum() / total:.4f}, {TRAINING_MAPS} painted maps")
    return mean, np.stack([item[2] for item in found[:count]]), np.array([item[1] for item in found[:count]], np.int8)
