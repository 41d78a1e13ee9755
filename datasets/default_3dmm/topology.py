"""The head's surface: the skin cut out of MakeHuman's body, closed at eyes and mouth, and its Loop subdivision."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from .assets import BaseMesh

TORSO_BOTTOM, TORSO_HALF_WIDTH = 4.9, 2.05  # decimetres on the base mesh: head, neck and the tops of the shoulders
EYE_RINGS = (0.74, 0.5, 0.27, 0.0)  # how far from the eye's middle the rings of an eyeball patch lie
MOUTH_ROWS = (0.2, 0.4, 0.6, 0.8)  # rows of the mouth's interior between upper and lower lip
SKIN, RIGHT_EYE, LEFT_EYE, MOUTH = 0, 1, 2, 3


@dataclass
class HeadTopology:
    """Coarse head: NS skin vertices, then the patches of the eye at x < 0, the eye at x > 0, and the mouth.

    base_index (NS,): the skin vertices' numbers in the base mesh. triangles (T, 3), region (T,), corner_uv (TS, 3, 2)
    texture coordinates of the TS skin triangles, which come first. mirror (NC,). right_lid, left_lid (n,): lid loops
    from the outer corner over the upper lid. upper_lip (m,), lower_lip (n,): lip contact rows, both from corner to
    corner (x < 0 first), the corners being shared; opposite_lip (m - 2, n): the point of the lower row below each
    inner point of the upper one.
    """

    base_index: np.ndarray
    triangles: np.ndarray
    region: np.ndarray
    corner_uv: np.ndarray
    mirror: np.ndarray
    right_lid: np.ndarray
    left_lid: np.ndarray
    upper_lip: np.ndarray
    lower_lip: np.ndarray
    opposite_lip: np.ndarray

    @property
    def skin_count(self) -> int:
        """Number of skin vertices; patch vertices come after them."""
        return len(self.base_index)


def boundary_loops(faces: np.ndarray) -> list[np.ndarray]:
    """Closed boundary loops of a mesh of (F, k) faces, as ordered vertex lists."""
    edges = np.concatenate([faces[:, [k, (k + 1) % faces.shape[1]]] for k in range(faces.shape[1])])
    edges = edges[edges[:, 0] != edges[:, 1]]
    count = Counter(map(tuple, np.sort(edges, axis=1)))
    neighbours = defaultdict(list)
    for (a, b), uses in count.items():
        if uses == 1:
            neighbours[a].append(b)
            neighbours[b].append(a)
    loops, seen = [], set()
    for start in neighbours:
        if start in seen:
            continue
        loop, previous, current = [], None, start
        while current is not None and current not in seen:
            seen.add(current)
            loop.append(current)
            ahead = [v for v in neighbours[current] if v != previous and v not in seen]
            previous, current = current, (ahead[0] if ahead else None)
        loops.append(np.array(loop))
    return loops


def cut_skin(base: BaseMesh) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(base_index (NS,), quads (Q, 4) of those vertices, quad_uv (Q, 4)): the skin of head, neck and shoulders.

    The mouth's cavity and the eye sockets are other islands of the texture map and fall away.
    """
    quads, quad_uv = base.quads["body"], base.quad_uv["body"]
    vertices = base.vertices
    above = ((vertices[:, 1] > TORSO_BOTTOM) & (np.abs(vertices[:, 0]) < TORSO_HALF_WIDTH))[quads].all(axis=1)
    quads, quad_uv = quads[above], quad_uv[above]
    edges = np.concatenate([quad_uv[:, [k, (k + 1) % 4]] for k in range(4)])
    graph = sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(len(base.uv),) * 2)
    _, label = connected_components(graph, directed=False)
    quad_label = label[quad_uv[:, 0]]
    nose, chest = vertices[quads[:, 0], 2].argmax(), vertices[quads[:, 0], 1].argmin()
    island = np.isin(quad_label, quad_label[[nose, chest]])
    base_index, compact = np.unique(quads[island], return_inverse=True)
    return base_index, compact.reshape(-1, 4), quad_uv[island]


def triangulate(quads: np.ndarray, quad_uv: np.ndarray, vertices: np.ndarray, mirror: np.ndarray):
    """Split quads along their shorter diagonal, the half at x < 0 being the exact mirror of the other.

    vertices (N, 3) and mirror (N,) of the same numbering as quads. Returns triangles (T, 3) and texture indices (T, 3).
    """
    texture_of = {frozenset(quad): dict(zip(quad, uv)) for quad, uv in zip(quads.tolist(), quad_uv.tolist())}
    triangles, textures = [], []
    for quad in quads:
        if vertices[quad, 0].mean() < 0:
            continue
        diagonals = np.linalg.norm(vertices[quad[[0, 1]]] - vertices[quad[[2, 3]]], axis=1)
        split = ((0, 1, 2), (0, 2, 3)) if diagonals[0] <= diagonals[1] else ((0, 1, 3), (1, 2, 3))
        own = texture_of[frozenset(quad.tolist())]
        partner = texture_of[frozenset(mirror[quad].tolist())]
        for corners in split:
            triangle = quad[list(corners)]
            if len(set(triangle)) < 3:
                continue
            mirrored = mirror[triangle[::-1]]
            triangles += [triangle, mirrored]
            textures += [[own[v] for v in triangle], [partner[v] for v in mirrored]]
    return np.array(triangles), np.array(textures)


def _lid_loop(loop: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Order a lid loop from the outer corner over the upper lid."""
    loop = np.roll(loop, -np.abs(vertices[loop, 0]).argmax())
    if vertices[loop[2], 1] < vertices[loop[-2], 1]:
        loop = np.roll(loop[::-1], 1)
    return loop


def _lip_rows(loop: np.ndarray, vertices: np.ndarray, mirror: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower contact row of the lips, each from the corner at x < 0 to the corner at x > 0."""
    loop = np.roll(loop, -vertices[loop, 0].argmin())
    if vertices[loop[3], 1] < vertices[loop[-3], 1]:
        loop = np.roll(loop[::-1], 1)
    end = int(np.flatnonzero(loop == mirror[loop[0]])[0])
    return loop[:end + 1], np.concatenate([loop[:1], loop[:end - 1:-1]])


class _Patches:
    """Collects triangles of the surfaces that close eyes and mouth, mirrored copies included."""

    def __init__(self, mirror: np.ndarray):
        self.mirror, self.triangles, self.region = mirror, [], []

    def add(self, triangle, region: int) -> None:
        """Append one triangle."""
        self.triangles.append(list(triangle))
        self.region.append(region)

    def strip(self, first: np.ndarray, second: np.ndarray, region: int) -> None:
        """Quads between two rows of equal length, the first one lying above/outside the second."""
        for a, b, c, d in zip(first[:-1], first[1:], second[:-1], second[1:]):
            for triangle in ((a, c, d), (a, d, b)):
                if len(set(triangle)) == 3:
                    self.add(triangle, region)


def _close_eye(patches: _Patches, lid: np.ndarray, first: int) -> None:
    """Rings of the eyeball patch of the eye at x > 0 (lid running counter-clockwise seen from the front)."""
    count = len(lid)
    rings = [lid] + [first + k * count + np.arange(count) for k in range(len(EYE_RINGS) - 1)]
    for outer, inner in zip(rings[:-1], rings[1:]):
        patches.strip(np.append(inner, inner[0]), np.append(outer, outer[0]), LEFT_EYE)
    centre = first + (len(EYE_RINGS) - 1) * count
    for a, b in zip(rings[-1], np.roll(rings[-1], -1)):
        patches.add((a, b, centre), LEFT_EYE)


def _zip_rows(patches: _Patches, above: np.ndarray, below: np.ndarray, place: np.ndarray) -> None:
    """Triangles between two rows of different length that start and end together; place (NC,) orders the vertices."""
    i = j = 0
    while i < len(above) - 1 or j < len(below) - 1:
        step_above = j == len(below) - 1 or (i < len(above) - 1 and place[above[i + 1]] <= place[below[j + 1]])
        third = above[i + 1] if step_above else below[j + 1]
        triangle = (above[i], below[j], third)
        if len(set(triangle)) == 3:
            patches.add(triangle, MOUTH)
        i, j = i + step_above, j + (not step_above)


def _close_mouth(patches: _Patches, upper: np.ndarray, lower: np.ndarray, first: int, across: np.ndarray) -> None:
    """Rows of the mouth's interior, the half at x < 0 mirroring the other; across (NC,): x of the vertices."""
    inner = len(upper) - 2
    rows = [upper] + [np.concatenate([upper[:1], first + k * inner + np.arange(inner), upper[-1:]])
                      for k in range(len(MOUTH_ROWS))]
    half = len(upper) // 2
    start = len(patches.triangles)
    for above, below in zip(rows[:-1], rows[1:]):
        patches.strip(above[half:], below[half:], MOUTH)
    _zip_rows(patches, rows[-1][half:], lower[len(lower) // 2:], across)
    for triangle in patches.triangles[start:]:
        patches.add(patches.mirror[triangle[::-1]], MOUTH)


def build_topology(base: BaseMesh) -> HeadTopology:
    """Cut, triangulate and close the head."""
    base_index, quads, quad_uv = cut_skin(base)
    vertices = base.vertices[base_index]
    place = np.full(len(base.vertices), -1)
    place[base_index] = np.arange(len(base_index))
    mirror = place[base.mirror[base_index]]
    triangles, textures = triangulate(quads, quad_uv, vertices, mirror)
    loops = [loop for loop in boundary_loops(quads) if vertices[loop, 1].mean() > 6.2]
    mouth = min(loops, key=lambda loop: vertices[loop, 1].mean())
    left = max(loops, key=lambda loop: vertices[loop, 0].mean())
    left_lid = _lid_loop(left, vertices)
    right_lid = mirror[left_lid]
    upper, lower = _lip_rows(mouth, vertices, mirror)
    if len(loops) != 3:
        raise ValueError(f"unexpected openings in the face: {len(loops)} loops instead of two eyes and a mouth")
    eye_size = (len(EYE_RINGS) - 1) * len(left_lid) + 1
    mouth_size = len(MOUTH_ROWS) * (len(upper) - 2)
    first = len(base_index)
    right_eye, left_eye = first + np.arange(eye_size), first + eye_size + np.arange(eye_size)
    mouth_rows = (first + 2 * eye_size + np.arange(mouth_size)).reshape(len(MOUTH_ROWS), -1)
    mirror = np.concatenate([mirror, left_eye, right_eye, mouth_rows[:, ::-1].reshape(-1)])
    patches = _Patches(mirror)
    _close_eye(patches, left_lid, left_eye[0])
    for triangle in list(patches.triangles):
        patches.add(mirror[triangle[::-1]], RIGHT_EYE)
    row_x = np.tile(vertices[upper[1:-1], 0], len(MOUTH_ROWS))
    across = np.concatenate([vertices[:, 0], np.zeros(2 * eye_size), row_x])
    _close_mouth(patches, upper, lower, mouth_rows[0, 0], across)
    region = np.concatenate([np.zeros(len(triangles), int), patches.region]).astype(np.uint8)
    return HeadTopology(base_index, np.concatenate([triangles, patches.triangles]), region, base.uv[textures], mirror,
                        right_lid, left_lid, upper, lower, _opposite_lip(vertices[upper, 0], vertices[lower, 0]))


def _opposite_lip(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Weights (U - 2, L) of the lower row's points that lie below the upper row's, from both rows' x."""
    basis = np.eye(len(lower))
    return np.stack([np.interp(upper[1:-1], lower, column) for column in basis], axis=1)


def fit_spheres(points: np.ndarray) -> np.ndarray:
    """Least-squares spheres through (B, n, 3) points -> (B, 4): centre and radius."""
    spheres = np.empty((len(points), 4))
    for row, cloud in zip(spheres, points.astype(np.float64)):
        matrix = np.concatenate([2 * cloud, np.ones((len(cloud), 1))], axis=1)
        solution = np.linalg.lstsq(matrix, (cloud ** 2).sum(axis=1), rcond=None)[0]
        row[:3] = solution[:3]
        row[3] = np.sqrt(solution[3] + (solution[:3] ** 2).sum())
    return spheres


def close_surface(skin: np.ndarray, eyes: np.ndarray, topology: HeadTopology, depth: float) -> np.ndarray:
    """Append the patches' vertices to skin vertices.

    skin (B, NS, 3), eyes (B, 2, 4) eyeball spheres (x < 0 first), depth: how far the mouth's interior may lie behind
    the lips, in the same unit -> (B, NC, 3). Eyeball patches leave the lids and settle on the sphere.
    """
    parts = [skin]
    for lid, sphere in ((topology.right_lid, eyes[:, 0]), (topology.left_lid, eyes[:, 1])):
        rim = skin[:, lid]
        middle = rim.mean(axis=1, keepdims=True)
        for reach in EYE_RINGS:
            flat = middle + reach * (rim - middle) if reach else middle
            direction = flat - sphere[:, None, :3]
            direction = direction / np.linalg.norm(direction, axis=-1, keepdims=True)
            round_ = sphere[:, None, :3] + direction * sphere[:, None, 3:]
            settle = min(1.0, 3.0 * (1.0 - reach))
            parts.append(flat * (1 - settle) + round_ * settle)
    upper = skin[:, topology.upper_lip[1:-1]]
    lower = np.einsum("ul,blc->buc", topology.opposite_lip, skin[:, topology.lower_lip])
    gap = np.linalg.norm(upper - lower, axis=-1)
    for share in MOUTH_ROWS:
        row = upper * (1 - share) + lower * share
        row[..., 2] -= np.minimum(gap, depth) * 4 * share * (1 - share)
        parts.append(row)
    return np.concatenate(parts, axis=1).astype(np.float32)


@dataclass
class Subdivision:
    """One Loop step: matrix (V, C) sparse, triangles (4T, 3), parent (4T,) coarse triangle, mirror (V,)."""

    matrix: sparse.csr_matrix
    triangles: np.ndarray
    parent: np.ndarray
    mirror: np.ndarray


def loop_subdivision(triangles: np.ndarray, mirror: np.ndarray) -> Subdivision:
    """Loop's scheme with Warren's weights and the cubic B-spline rule along boundaries (Loop 1987; Warren 1995)."""
    count = len(mirror)
    sides = np.sort(np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), axis=1)
    opposite = np.concatenate([triangles[:, 2], triangles[:, 0], triangles[:, 1]])
    edges, side_edge, uses = np.unique(sides, axis=0, return_inverse=True, return_counts=True)
    side_edge, border = side_edge.reshape(-1), uses == 1
    on_border = np.zeros(count, bool)
    on_border[edges[border]] = True
    valence = np.bincount(edges.reshape(-1), minlength=count)
    beta = np.where(valence > 3, 3 / (8 * np.maximum(valence, 1)), 3 / 16) * (valence > 0)
    odd = count + np.arange(len(edges))
    entries = [(np.arange(count), np.arange(count), np.where(on_border, 0.75, 1 - valence * beta))]
    entries += [(odd, edges[:, k], np.where(border, 0.5, 0.375)) for k in (0, 1)]
    inner = ~border[side_edge]
    entries.append((odd[side_edge[inner]], opposite[inner], np.full(inner.sum(), 0.125)))
    for here, there in ((edges[:, 0], edges[:, 1]), (edges[:, 1], edges[:, 0])):
        free = ~on_border[here]
        entries.append((here[free], there[free], beta[here[free]]))
        entries.append((here[border], there[border], np.full(border.sum(), 0.125)))
    rows, columns, weights = (np.concatenate(part) for part in zip(*entries))
    matrix = sparse.coo_matrix((weights, (rows, columns)), shape=(count + len(edges), count)).tocsr()
    ab, bc, ca = (odd[side_edge[k * len(triangles):(k + 1) * len(triangles)]] for k in range(3))
    a, b, c = triangles.T
    parts = (a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)
    fine = np.concatenate([np.stack(part, axis=1) for part in parts])
    number = {tuple(edge): index for index, edge in enumerate(edges.tolist())}
    partner = [number[tuple(sorted(pair))] for pair in mirror[edges].tolist()]
    return Subdivision(matrix, fine, np.tile(np.arange(len(triangles)), 4),
                       np.concatenate([mirror, count + np.array(partner)]))


def subdivide_corners(corners: np.ndarray) -> np.ndarray:
    """Per-corner values (T, 3, C) of the coarse triangles -> (4T, 3, C) in `loop_subdivision`'s triangle order."""
    middle = (corners + np.roll(corners, -1, axis=1)) / 2
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    ab, bc, ca = middle[:, 0], middle[:, 1], middle[:, 2]
    return np.concatenate([np.stack(part, axis=1) for part in ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))])
