"""Tying points in space to the head's skin, so that they follow it."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from .shape import HeadShape


def bind(shape: HeadShape, points: np.ndarray, neighbours: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tie points (M, 3), decimetres on MakeHuman's base mesh, to coarse skin vertices.

    Returns index (M, K), weight (M, K) summing to 1, and offset (M, 3) in micrometres. Coarse vertices keep their
    numbers on the dense mesh, but move a little under subdivision: the index is meant for dense vertices.
    """
    skin = shape.topology.base_index
    base = shape.base.vertices[skin]
    dense = smoothed_base(shape)
    distance, index = cKDTree(base).query(points, k=neighbours)
    weight = 1 / (distance + 0.02) ** 2
    weight /= weight.sum(axis=1, keepdims=True)
    offset = (points - (dense[index] * weight[..., None]).sum(axis=1)) * shape.scale
    return index.astype(np.int32), weight.astype(np.float32), offset.astype(np.float32)


def smoothed_base(shape: HeadShape) -> np.ndarray:
    """(S, 3) places of the skin's coarse vertices after subdivision of the base mesh, in decimetres."""
    skin = shape.topology.skin_count
    closed = np.zeros((len(shape.topology.mirror), 3))
    closed[:skin] = shape.base.vertices[shape.topology.base_index]
    rows = shape.subdivision.matrix[:skin]
    own = rows[:, :skin]
    share = np.asarray(own.sum(axis=1))
    return (own @ closed[:skin]) / share


def follow(binding: tuple[np.ndarray, np.ndarray, np.ndarray], vertices: np.ndarray) -> np.ndarray:
    """Bound points (M, 3) on dense head vertices (V, 3)."""
    index, weight, offset = binding
    return (vertices[index] * weight[..., None]).sum(axis=1) + offset
