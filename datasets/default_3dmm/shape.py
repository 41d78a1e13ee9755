"""Shape statistics of the built-in model: sampled heads, aligned on the face, and their components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from .assets import AnnyAssets, BaseMesh
from .sampling import HeadSampler, sample_expressions
from .statistics import FLIP, Components, mirrored, mirrored_pca, similarity, transform
from .topology import HeadTopology, Subdivision, build_topology, close_surface, fit_spheres, loop_subdivision

OUTER_EYE_DISTANCE = 90000.0  # micrometres between the outer corners of the mean face's eyes
MOUTH_DEPTH = 0.09  # decimetres that the mouth's interior may lie behind the lips
FACE_AZIMUTH, FACE_TOP, FACE_BOTTOM = 76.0, 50.0, -51.0  # degrees around the head's axis and above the face's level
IDENTITY_SIZE, EXPRESSION_SIZE = 199, 29
OUTLINE_POWER = 6  # of the superellipse in azimuth and elevation that bounds the face


@dataclass
class HeadShape:
    """Everything known about the head's shape, in micrometres with the origin at the face's centre.

    neutral (C, 3): mean coarse head without expression. identity, expression: components over the coarse head.
    eyes_mean (2, 4), eyes_basis (199, 2, 4): eyeball spheres (x < 0 first) per raw coefficient.
    scale: micrometres per decimetre after alignment; actions: (A, S, 3) facial actions in micrometres on the skin.
    """

    base: BaseMesh
    topology: HeadTopology
    subdivision: Subdivision
    neutral: np.ndarray
    identity: Components
    expression: Components
    eyes_mean: np.ndarray
    eyes_basis: np.ndarray
    actions: dict[str, np.ndarray]
    origin: np.ndarray
    scale: float

    @property
    def mean(self) -> np.ndarray:
        """(C, 3) mean head with the mean expression."""
        return self.identity.mean + self.expression.mean

    @property
    def dense_mean(self) -> np.ndarray:
        """(V, 3) the mean head on the dense mesh."""
        return self.subdivision.matrix @ self.mean.astype(np.float64)

    def posed(self, strengths: dict[str, float]) -> np.ndarray:
        """(C, 3) the mean identity with facial actions of the given strengths."""
        skin = self.neutral[: self.topology.skin_count].copy()
        for name, strength in strengths.items():
            skin += strength * self.actions[name]
        return close_surface(skin[None], self.eyes_mean[None], self.topology, MOUTH_DEPTH * self.scale)[0]


def face_angles(vertices: np.ndarray, lid: np.ndarray, lips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Azimuth and elevation (C,) in degrees around the head's axis, seen from a point behind the face's centre."""
    level = (vertices[lid, 1].mean() + vertices[lips, 1].mean()) / 2
    unit = vertices[lid, 1].mean() - vertices[lips, 1].mean()
    axis_z = vertices[lid, 2].mean() - 1.3 * unit
    x, y, z = vertices[:, 0], vertices[:, 1] - level, vertices[:, 2] - axis_z
    return np.degrees(np.arctan2(x, z)), np.degrees(np.arctan2(y, np.hypot(x, z)))


def face_triangles(vertices: np.ndarray, topology: HeadTopology, triangles: np.ndarray | None = None) -> np.ndarray:
    """(T,) bool: which triangles (T, 3) of a head (V, 3) are the face: one piece with a rounded outline.

    vertices of the coarse head, or of the dense one together with its triangles.
    """
    triangles = topology.triangles if triangles is None else triangles
    azimuth, elevation = face_angles(vertices, topology.right_lid, topology.upper_lip)
    height = np.where(elevation > 0, elevation / FACE_TOP, elevation / FACE_BOTTOM)
    inside = np.abs(azimuth / FACE_AZIMUTH) ** OUTLINE_POWER + np.abs(height) ** OUTLINE_POWER < 1
    chosen = inside[triangles].all(axis=1)
    edges = np.concatenate([triangles[chosen, :2], triangles[chosen, 1:]])
    graph = sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(len(vertices),) * 2)
    _, label = connected_components(graph, directed=False)
    chosen &= label[triangles[:, 0]] == label[topology.upper_lip[0]]
    return trim_spikes(triangles, chosen)


def trim_spikes(triangles: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Drop triangles (T, 3) from the choice (T,) that hang on by a single edge, until there are none."""
    sides = np.sort(np.stack([triangles, np.roll(triangles, -1, axis=1)], axis=2).reshape(-1, 2), axis=1)
    _, edge = np.unique(sides, axis=0, return_inverse=True)
    edge = edge.reshape(-1, 3)
    while True:
        uses = np.bincount(edge[chosen].reshape(-1), minlength=edge.max() + 1)
        spikes = chosen & ((uses[edge] == 1).sum(axis=1) >= 2)
        if not spikes.any():
            return chosen
        chosen = chosen & ~spikes


def build_shape(assets: AnnyAssets, identities: int, expressions: int, seed: int, log=print) -> HeadShape:
    """Sample, align and analyse. The same arguments give the same model."""
    base = assets.base_mesh()
    topology = build_topology(base)
    subdivision = loop_subdivision(topology.triangles, topology.mirror)
    eye_index = [np.unique(base.quads[name]) for name in ("helper-r-eye", "helper-l-eye")]
    index = np.concatenate([topology.base_index, *eye_index])
    skin_count, eye_count = topology.skin_count, len(eye_index[0])
    log(f"head: {len(topology.mirror)} coarse vertices, {len(subdivision.triangles)} dense triangles")
    rng = np.random.default_rng(seed)
    heads = HeadSampler.read(assets, base.vertices, index).sample(identities, rng)
    log(f"sampled {identities} heads")
    heads, spheres, scale, origin = align(heads, topology, skin_count, eye_count)
    closed = close_surface(heads[:, :skin_count], spheres, topology, MOUTH_DEPTH * scale)
    dense_mean = subdivision.matrix @ (closed.mean(axis=0) + mirrored(closed.mean(axis=0), topology.mirror)) / 2
    face = subdivision.triangles[face_triangles(dense_mean, topology, subdivision.triangles)]
    fitted = np.flatnonzero(np.asarray(subdivision.matrix[np.unique(face)].sum(axis=0))[0] > 0)
    identity = mirrored_pca(closed, topology.mirror, fitted, IDENTITY_SIZE, seed)
    log("identity: " + ", ".join(f"{k}: {identity.explained(k):.4f}" for k in (10, 30, 60, 100, IDENTITY_SIZE)))
    eyes_mean, eyes_basis = regress_spheres(closed, spheres, identity, fitted)
    neutral = identity.mean.copy()
    actions = {name: offsets[topology.base_index] * scale
               for name, offsets in assets.facial_actions(len(base.vertices)).items()}
    strengths = sample_expressions(list(actions), expressions, rng)
    moved = strengths @ np.stack(list(actions.values())).reshape(len(actions), -1)
    moved = neutral[:skin_count] + moved.reshape(expressions, skin_count, 3)
    still = close_surface(neutral[None, :skin_count], eyes_mean[None], topology, MOUTH_DEPTH * scale)
    moved = close_surface(moved, np.broadcast_to(eyes_mean, (expressions, 2, 4)), topology, MOUTH_DEPTH * scale) - still
    expression = mirrored_pca(moved, topology.mirror, fitted, EXPRESSION_SIZE, seed)
    log("expression: " + ", ".join(f"{k}: {expression.explained(k):.4f}" for k in (5, 10, 20, EXPRESSION_SIZE)))
    return HeadShape(base, topology, subdivision, neutral, identity, expression, eyes_mean, eyes_basis, actions,
                     origin, scale)


def align(heads: np.ndarray, topology: HeadTopology, skin_count: int, eye_count: int):
    """Bring heads (B, S + eyes, 3) in decimetres onto their mean face, in micrometres about the face's centre.

    Returns heads (B, S + eyes, 3), eyeball spheres (B, 2, 4), micrometres per decimetre, and the origin (decimetres).
    """
    mirror = np.concatenate([topology.mirror[:skin_count], skin_count + eye_count + np.arange(eye_count),
                             skin_count + np.arange(eye_count)])
    mean = heads.mean(axis=0)
    mean = (mean + mirrored(mean, mirror)) / 2
    azimuth, elevation = face_angles(mean, topology.right_lid, topology.upper_lip)
    face = np.flatnonzero((np.abs(azimuth) < 62) & (elevation < 42) & (elevation > -46)
                          & (np.arange(len(mean)) < skin_count))
    eyes = mean[topology.right_lid].mean(axis=0)
    lips = mean[topology.upper_lip].mean(axis=0)
    origin = np.array([0.0, (eyes[1] + lips[1]) / 2, (eyes[2] + lips[2]) / 2])
    target = (mean - origin) * OUTER_EYE_DISTANCE / (2 * abs(mean[topology.right_lid[0], 0]))
    for _ in range(2):
        scale, rotation, translation = similarity(heads[:, face].astype(np.float64), target[face])
        aligned = transform(heads, scale, rotation.astype(np.float32), translation)
        target = aligned.mean(axis=0)
        target = (target + mirrored(target, mirror)) / 2
    spheres = np.stack([fit_spheres(aligned[:, start:start + eye_count]) for start in
                        (skin_count, skin_count + eye_count)], axis=1)
    radius = spheres[..., 3].mean(axis=1, keepdims=True)
    spheres[..., 3] = radius
    return aligned, spheres, float(scale.mean()), origin


def regress_spheres(samples: np.ndarray, spheres: np.ndarray, identity: Components, fitted: np.ndarray):
    """Eyeball spheres as a linear function of raw identity coefficients: mean (2, 4), basis (199, 2, 4)."""
    basis = identity.basis[:, fitted].reshape(len(identity.basis), -1)
    basis = basis / np.linalg.norm(basis, axis=1, keepdims=True)
    raw = (samples[:, fitted] - identity.mean[fitted]).reshape(len(samples), -1) @ basis.T
    swapped = spheres[:, ::-1] * np.append(FLIP, 1)
    mean = (spheres + swapped).mean(axis=0) / 2
    scores = np.concatenate([raw, raw * identity.parity])
    values = np.concatenate([spheres, swapped]) - mean
    rows = (scores.T @ values.reshape(len(values), -1)) / (len(values) * identity.sigma[:, None] ** 2)
    return mean.astype(np.float32), rows.reshape(-1, 2, 4).astype(np.float32)
