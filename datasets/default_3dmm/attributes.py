"""Smooth masks on the head's vertices: where lips, lids, beard, hair, blush, brows and clothes are."""

from __future__ import annotations

import numpy as np

from .landmarks import LOWER_LIP_RING, ring_distance
from .shape import HeadShape


def smooth_step(value: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 at start, 1 at end (which may be smaller), cubic between."""
    share = np.clip((value - start) / (end - start), 0, 1)
    return share * share * (3 - 2 * share)


def head_attributes(shape: HeadShape, landmarks: np.ndarray, brow_points: np.ndarray) -> dict[str, np.ndarray]:
    """Masks (V,) in [0, 1] on the dense head, by the names of `head.ATTRIBUTES`.

    brow_points (n, 3): points of the brow meshes on the mean head, micrometres.
    """
    topology, matrix = shape.topology, shape.subdivision.matrix
    count = len(topology.mirror)
    skin = (np.arange(count) < topology.skin_count).astype(float)
    lips = np.append(topology.upper_lip, topology.lower_lip)
    rings = ring_distance(topology.triangles, count, lips, skin > 0, 10)
    lids = np.append(topology.right_lid, topology.left_lid)
    lid_rings = ring_distance(topology.triangles, count, lids, skin > 0, 8)
    vertices = shape.mean
    place = shape.dense_mean[landmarks]
    x, y, z = vertices.T
    mouth_y, nose_y, chin_y = place[[48, 54], 1].mean(), place[33, 1], place[8, 1]
    eye_y = place[36:48, 1].mean()
    lip = np.clip(LOWER_LIP_RING + 0.4 - rings, 0, 1) * skin
    front = smooth_step(z, -75000, -45000)
    below_nose = smooth_step(y, nose_y + 1000, nose_y - 5000)
    side_line = mouth_y + 0.75 * (np.abs(x) - 30000)
    beard = below_nose * smooth_step(y, chin_y - 42000, chin_y - 12000) * front
    beard *= np.where(np.abs(x) > 26000, smooth_step(y - side_line, 6000, -8000), 1.0)
    beard *= (1 - lip) * skin
    moustache = below_nose * smooth_step(y, mouth_y - 6000, mouth_y + 2000) * smooth_step(np.abs(x), 34000, 24000)
    moustache *= (1 - lip) * skin * (z > place[48, 2] - 15000)
    hairline = eye_y + 72000 + 0.9 * np.minimum(0, z - place[27, 2] + 38000)
    scalp = smooth_step(y - np.maximum(hairline, eye_y - 55000), -5000, 5000) * skin
    scalp *= smooth_step(z - 0.35 * (y - eye_y), place[36, 2] - 45000, place[36, 2] - 58000) * (y < hairline + 1) + (
        y >= hairline + 1)
    distance = np.hypot(np.abs(x) - 44000, y - (nose_y + 10000))
    blush = np.exp(-(distance / 19000) ** 2) * front * skin
    gap = np.sqrt(((vertices[:, None] - brow_points[None]) ** 2).sum(axis=2)).min(axis=1)
    brow = smooth_step(gap, 7000, 2500) * skin
    clothes = smooth_step(y + 0.25 * np.abs(x), chin_y - 50000, chin_y - 74000)
    eyelid = np.clip((4.5 - lid_rings) / 4, 0, 1) * skin
    masks = dict(lip=lip, eyelid=eyelid, beard=beard, moustache=moustache, scalp=scalp, blush=blush, brow=brow,
                 clothes=clothes)
    return {name: np.clip(matrix @ mask, 0, 1).astype(np.float32) for name, mask in masks.items()}
