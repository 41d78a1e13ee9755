"""The UV map of the built-in face: layout of the vertices and the table of texels.

The layout is a convex combination map with the outline on a superellipse (Tutte 1963; Floater 2003), so no triangle
can flip; its weights are relaxed towards low, evenly spread stretch (Yoshizawa, Belyaev and Seidel 2004), with more
texels where they matter.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import spsolve

from .packing import UV_MIRROR_SUM, UV_SHAPE
from .topology import boundary_loops

CENTRE_ROW, CENTRE_COLUMN = 95.5, 127.0
HALF_HEIGHT, HALF_WIDTH = 94.5, 110.5  # texels from the centre to the outline: columns 16.5..237.5
OUTLINE_POWER = 4.5  # superellipse |x|^p + |y|^p = 1
STEP = 2.0 ** -12  # vertices lie on multiples of this, so that mirroring a column is exact


def mean_value_weights(vertices: np.ndarray, triangles: np.ndarray) -> sparse.csr_matrix:
    """Floater's mean value weights, rows not normalised: (V, V), w_ij = (tan(a/2) + tan(b/2)) / |ij|."""
    rows, columns, values = [], [], []
    for k in range(3):
        i, j, m = triangles[:, k], triangles[:, (k + 1) % 3], triangles[:, (k + 2) % 3]
        first, second = vertices[j] - vertices[i], vertices[m] - vertices[i]
        length = [np.maximum(np.linalg.norm(edge, axis=1), 1e-9) for edge in (first, second)]
        cosine = np.clip((first * second).sum(axis=1) / (length[0] * length[1]), -0.9999, 0.9999)
        half = np.sqrt((1 - cosine) / (1 + cosine))
        rows += [i, i]
        columns += [j, m]
        values += [half / length[0], half / length[1]]
    rows, columns, values = (np.concatenate(part) for part in (rows, columns, values))
    return sparse.coo_matrix((values, (rows, columns)), shape=(len(vertices),) * 2).tocsr()


def outline(vertices: np.ndarray, triangles: np.ndarray, mirror: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outline vertices (n,) and their places (n, 2) [x, y] on the unit superellipse, spread by arc length."""
    loop = max(boundary_loops(triangles), key=len)
    middle = [k for k, v in enumerate(loop) if mirror[v] == v]
    top = max(middle, key=lambda k: vertices[loop[k], 1])
    loop = np.roll(loop, -top)
    bottom = min((k for k, v in enumerate(loop) if mirror[v] == v), key=lambda k: vertices[loop[k], 1])
    half = loop[:bottom + 1]
    if vertices[half, 0].mean() < 0:
        half = mirror[half]
    curve_angle = np.linspace(0, np.pi, 4001)
    curve = np.stack([np.sin(curve_angle), np.cos(curve_angle)], axis=1)
    curve = np.sign(curve) * np.abs(curve) ** (2 / OUTLINE_POWER)
    along = np.append(0, np.cumsum(np.linalg.norm(np.diff(curve, axis=0) * [HALF_WIDTH, HALF_HEIGHT], axis=1)))
    walked = np.append(0, np.cumsum(np.linalg.norm(np.diff(vertices[half], axis=0), axis=1)))
    share = walked / walked[-1] * along[-1]
    place = np.stack([np.interp(share, along, curve[:, k]) for k in (0, 1)], axis=1)
    place[[0, -1], 0] = 0
    inner = half[1:-1]
    return np.concatenate([half, mirror[inner]]), np.concatenate([place, place[1:-1] * [-1, 1]])


def triangle_stretch(vertices: np.ndarray, triangles: np.ndarray, plane: np.ndarray) -> np.ndarray:
    """Root mean square stretch (T,) of the map from the plane (V, 2) to the surface (V, 3) (Sander et al. 2001)."""
    p, q = plane[triangles], vertices[triangles]
    area = 0.5 * ((p[:, 1, 0] - p[:, 0, 0]) * (p[:, 2, 1] - p[:, 0, 1])
                  - (p[:, 2, 0] - p[:, 0, 0]) * (p[:, 1, 1] - p[:, 0, 1]))
    area = np.maximum(np.abs(area), 1e-12)[:, None]
    ds = sum(q[:, k] * (p[:, (k + 1) % 3, 1] - p[:, (k + 2) % 3, 1])[:, None] for k in range(3)) / (2 * area)
    dt = sum(q[:, k] * (p[:, (k + 2) % 3, 0] - p[:, (k + 1) % 3, 0])[:, None] for k in range(3)) / (2 * area)
    return np.sqrt(((ds ** 2).sum(axis=1) + (dt ** 2).sum(axis=1)) / 2)


def layout(vertices: np.ndarray, triangles: np.ndarray, mirror: np.ndarray, importance: np.ndarray,
           rounds: int = 12) -> np.ndarray:
    """Vertex positions (V, 2) [row, column] in the 192x256 map, mirror symmetric about column 127.

    vertices (V, 3): the surface, eyes and mouth open; importance (T,): wished texels per length, relative.
    """
    rim, rim_place = outline(vertices, triangles, mirror)
    fixed = np.zeros(len(vertices), bool)
    fixed[rim] = True
    free = np.flatnonzero(~fixed)
    plane = np.zeros((len(vertices), 2))
    plane[rim] = rim_place * [HALF_WIDTH, HALF_HEIGHT]
    weights = mean_value_weights(vertices, triangles)
    edges = vertices[triangles[:, 1:]] - vertices[triangles[:, :1]]
    area = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1)
    best, best_score = None, np.inf
    for _ in range(rounds):
        laplacian = sparse.diags(np.asarray(weights.sum(axis=1))[:, 0]) - weights
        rows = laplacian[free]
        plane[free] = spsolve(rows[:, free].tocsc(), -(rows[:, rim] @ plane[rim]))
        plane = (plane + plane[mirror] * [-1, 1]) / 2
        stretch = triangle_stretch(vertices, triangles, plane) * importance
        score = np.sqrt((area * stretch ** 2).sum() / area.sum())
        if score < best_score:
            best, best_score = plane.copy(), score
        mass, total = np.zeros(len(vertices)), np.zeros(len(vertices))
        for k in range(3):
            np.add.at(mass, triangles[:, k], area)
            np.add.at(total, triangles[:, k], area * stretch ** 2)
        sigma = np.sqrt(total / np.maximum(mass, 1e-12))
        weights = weights @ sparse.diags(1 / np.maximum((sigma / sigma.mean()) ** 0.7, 1e-3))
    half = np.round(best[:, 0] / STEP) * STEP
    row = np.round((CENTRE_ROW - best[:, 1]) / STEP) * STEP
    left = np.flatnonzero(mirror > np.arange(len(mirror)))
    half[mirror[left]], row[mirror[left]] = -half[left], row[left]
    half[mirror == np.arange(len(mirror))] = 0
    return np.stack([row, CENTRE_COLUMN + half], axis=1)


def mirrored_triangles(triangles: np.ndarray, mirror: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each triangle's mirror image (T,) and, for each corner of that one, the own corner that it mirrors (T, 3)."""
    number = {tuple(sorted(t)): k for k, t in enumerate(triangles.tolist())}
    partner = np.array([number[tuple(sorted(t))] for t in mirror[triangles].tolist()])
    corner = (mirror[triangles][:, None, :] == triangles[partner][:, :, None]).argmax(axis=2)
    return partner, corner


def texel_table(uv: np.ndarray, triangles: np.ndarray, mirror: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Triangle (192, 256) int32 and barycentrics (192, 256, 3) float32 at every texel's centre, -1 and 0 outside.

    Columns 0..127 are computed, the others are their mirror image; on the middle column the triangle at x < 0 counts.
    """
    index = np.full(UV_SHAPE, -1, np.int32)
    barycentrics = np.zeros((*UV_SHAPE, 3), np.float32)
    margin = np.full(UV_SHAPE, -1e-6)
    corners = uv[triangles]
    for number in np.flatnonzero(corners[:, :, 1].min(axis=1) < CENTRE_COLUMN):
        (r0, c0), (r1, c1), (r2, c2) = corners[number]
        rows = np.arange(int(np.ceil(min(r0, r1, r2))), int(max(r0, r1, r2)) + 1)
        columns = np.arange(int(np.ceil(min(c0, c1, c2))), min(int(max(c0, c1, c2)), int(CENTRE_COLUMN)) + 1)
        area = (r1 - r0) * (c2 - c0) - (r2 - r0) * (c1 - c0)
        if not len(rows) or not len(columns) or area == 0:
            continue
        row, column = rows[:, None], columns[None]
        b1 = ((row - r0) * (c2 - c0) - (r2 - r0) * (column - c0)) / area
        b2 = ((r1 - r0) * (column - c0) - (row - r0) * (c1 - c0)) / area
        weights = np.stack([1 - b1 - b2, b1, b2], axis=-1)
        least = weights.min(axis=-1)
        block = np.ix_(rows, columns)
        better = least > margin[block]
        margin[block] = np.where(better, least, margin[block])
        index[block] = np.where(better, number, index[block])
        clipped = np.maximum(weights, 0)
        clipped /= clipped.sum(axis=-1, keepdims=True)
        barycentrics[block] = np.where(better[..., None], clipped, barycentrics[block])
    return mirror_table(index, barycentrics, triangles, mirror)


def mirror_table(index: np.ndarray, barycentrics: np.ndarray, triangles: np.ndarray, mirror: np.ndarray):
    """Fill columns 128..254 of a texel table from columns 126..0."""
    partner, corner = mirrored_triangles(triangles, mirror)
    left = np.arange(int(CENTRE_COLUMN))
    source = index[:, left]
    known = source >= 0
    right = UV_MIRROR_SUM - left
    index[:, right] = np.where(known, partner[source], -1)
    picked = np.take_along_axis(barycentrics[:, left], corner[source], axis=-1)
    barycentrics[:, right] = np.where(known[..., None], picked, 0)
    return index, barycentrics
