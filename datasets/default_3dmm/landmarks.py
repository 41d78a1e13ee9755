"""The 68 iBUG landmarks of the built-in face, by the mesh's own loops and fixed geometric rules.

Order: 0-16 jaw from image left to image right, 17-21 and 22-26 brows, 27-30 bridge of the nose, 31-35 its base,
36-41 and 42-47 eyes, 48-59 outer lips, 60-67 inner lips. Image left is x < 0.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from .topology import HeadTopology

LID_SHARES = (1 / 3, 2 / 3)  # of the way from the outer to the inner corner
UPPER_LIP_RING, LOWER_LIP_RING = 7, 7  # edge rings from the lips' contact to their border
OUTER_CORNER_RING, INNER_CORNER_RING = 5, 2  # edge rings of the mouth's visible corners
JAW_SLANT = 0.25  # z of the unit normal where a frontal face is seen to end
MIRROR_PAIRS = {**{k: 16 - k for k in range(8)}, **{17 + k: 26 - k for k in range(5)}, 31: 35, 32: 34, 36: 45, 37: 44,
                38: 43, 39: 42, 40: 47, 41: 46, 48: 54, 49: 53, 50: 52, 59: 55, 58: 56, 60: 64, 61: 63, 67: 65}


def ring_distance(triangles: np.ndarray, count: int, start: np.ndarray, allowed: np.ndarray, limit: int) -> np.ndarray:
    """Number of edges (count,) from the start vertices along allowed vertices; limit where it is farther."""
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    ends = np.concatenate([edges, edges[:, ::-1]]).T
    graph = sparse.coo_matrix((np.ones(ends.shape[1]), ends), shape=(count, count)).tocsr()
    distance = np.full(count, limit, float)
    reached = np.zeros(count, bool)
    reached[start] = True
    for ring in range(limit):
        distance[reached & (distance == limit)] = ring
        reached = (reached | (graph @ reached > 0)) & allowed
    return distance


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """(V, 3) unit normals, area weighted."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    face = np.cross(b - a, c - a)
    normals = np.zeros_like(vertices, dtype=np.float64)
    for k in range(3):
        np.add.at(normals, triangles[:, k], face)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


class LandmarkFinder:
    """Finds landmarks on a dense head: vertices (V, 3) micrometres whose first vertices are the coarse ones."""

    def __init__(self, topology: HeadTopology, vertices: np.ndarray, triangles: np.ndarray, mirror: np.ndarray,
                 candidates: np.ndarray):
        self.topology, self.vertices, self.mirror = topology, vertices, mirror
        self.normals = vertex_normals(vertices, triangles)
        self.candidates = candidates
        self.found = np.full(68, -1)

    def find(self, brows: np.ndarray) -> np.ndarray:
        """(68,) vertices; brows (5, 3): points on the brow at x < 0, outer end first."""
        self._eyes()
        self._lips()
        self._nose()
        for k, point in enumerate(brows):
            self.found[17 + k] = self._nearest(point)
        self._jaw()
        for right, left in MIRROR_PAIRS.items():
            self.found[left] = self.mirror[self.found[right]]
        return self.found

    def _nearest(self, point: np.ndarray) -> int:
        distance = np.linalg.norm(self.vertices[self.candidates] - point, axis=1)
        return int(self.candidates[distance.argmin()])

    def _at(self, loop: np.ndarray, x: float) -> int:
        return int(loop[np.abs(self.vertices[loop, 0] - x).argmin()])

    def _eyes(self) -> None:
        lid = self.topology.right_lid
        inner = int(np.abs(self.vertices[lid, 0]).argmin())
        outer_x, inner_x = self.vertices[lid[[0, inner]], 0]
        upper, lower = lid[1:inner], lid[inner + 1:]
        first, second = (outer_x + share * (inner_x - outer_x) for share in LID_SHARES)
        self.found[36:42] = [lid[0], self._at(upper, first), self._at(upper, second), lid[inner],
                             self._at(lower, second), self._at(lower, first)]

    def _lips(self) -> None:
        topology, found, vertices = self.topology, self.found, self.vertices
        upper, lower = topology.upper_lip, topology.lower_lip
        count = len(topology.mirror)
        skin = np.arange(count) < topology.skin_count
        ring = ring_distance(topology.triangles, count, np.append(upper, lower), skin, 10)
        border = {}
        height = vertices[upper[0], 1]
        for name, number, above in (("upper", UPPER_LIP_RING, True), ("lower", LOWER_LIP_RING, False)):
            loop = np.flatnonzero(ring == number)
            border[name] = loop[(vertices[loop, 1] > height) == above]
        found[48], found[60] = (self._corner(np.flatnonzero(ring == number), upper[0])
                                for number in (OUTER_CORNER_RING, INNER_CORNER_RING))
        width = abs(vertices[found[48], 0])
        inner = abs(vertices[found[60], 0])
        found[49], found[50], found[51] = (self._at(border["upper"], -width * share) for share in (0.62, 0.25, 0))
        found[59], found[58], found[57] = (self._at(border["lower"], -width * share) for share in (0.66, 0.33, 0))
        found[61], found[62] = self._at(upper, -inner * 0.45), self._at(upper, 0)
        found[67], found[66] = self._at(lower, -inner * 0.45), self._at(lower, 0)

    def _corner(self, ring: np.ndarray, corner: int) -> int:
        """Of a ring's five vertices farthest towards x < 0, the one at the height of the contact line's corner."""
        outermost = ring[np.argsort(self.vertices[ring, 0])[:5]]
        return int(outermost[np.abs(self.vertices[outermost, 1] - self.vertices[corner, 1]).argmin()])

    def _nose(self) -> None:
        found, vertices, normals = self.found, self.vertices, self.normals
        middle = self.candidates[self.mirror[self.candidates] == self.candidates]
        between_eyes = vertices[found[[36, 39]], 1].mean()
        zone = middle[(vertices[middle, 1] < between_eyes) & (vertices[middle, 1] > vertices[found[51], 1])]
        tip = zone[vertices[zone, 2].argmax()]
        found[30] = tip
        bridge = middle[vertices[middle, 1] > vertices[tip, 1]]
        root_y, tip_y = between_eyes, vertices[tip, 1]
        for number, share in ((27, 1.0), (28, 2 / 3), (29, 1 / 3)):
            found[number] = bridge[np.abs(vertices[bridge, 1] - (tip_y + share * (root_y - tip_y))).argmin()]
        below = zone[vertices[zone, 1] < tip_y]
        found[33] = below[vertices[below, 2].argmin()] if len(below) else tip
        base_y = vertices[found[33], 1]
        wing = self.candidates[(np.abs(vertices[self.candidates, 1] - tip_y) < 9000)
                               & (vertices[self.candidates, 0] > -26000) & (vertices[self.candidates, 0] < -9000)
                               & (normals[self.candidates, 0] < -0.6)
                               & (vertices[self.candidates, 2] > vertices[found[33], 2] - 9000)]
        half_width = abs(vertices[wing, 0].min())
        front = self.candidates[normals[self.candidates, 2] > -0.2]
        for number, share, lift in ((31, 0.82, 5000), (32, 0.42, 2000)):
            flat = np.hypot(vertices[front, 0] + share * half_width, vertices[front, 1] - base_y - lift)
            found[number] = front[(flat - 0.2 * vertices[front, 2]).argmin()]

    def _jaw(self) -> None:
        """Equal steps along the line where the surface turns away from a frontal camera, ear to chin."""
        found, vertices, normals = self.found, self.vertices, self.normals
        centre = np.array([0.0, vertices[found[[27, 57]], 1].mean()])
        eye_y = vertices[found[36], 1]
        offset = vertices[self.candidates, :2] - centre
        angle = np.arctan2(-offset[:, 0], -offset[:, 1])  # 0 towards the chin, growing towards the ear at x < 0
        far = np.hypot(*offset.T) > 40000
        angles = np.linspace(0, 2.3, 93)
        line = []
        for direction in angles:
            cost = np.abs(angle - direction) * 60000 + np.abs(normals[self.candidates, 2] - JAW_SLANT) * 20000
            cost[~far] = np.inf
            line.append(vertices[self.candidates[cost.argmin()]])
        line = np.array(line)
        line[0, 0] = 0
        smooth = np.stack([np.polyval(np.polyfit(angles, line[:, k], 7), angles) for k in range(3)], axis=1)
        end = int(np.flatnonzero(smooth[:, 1] >= eye_y)[0]) if (smooth[:, 1] >= eye_y).any() else len(angles) - 1
        walked = np.append(0, np.cumsum(np.linalg.norm(np.diff(smooth[:end + 1, :2], axis=0), axis=1)))
        for step in range(9):
            place = walked[-1] * step / 8
            point = np.array([np.interp(place, walked, smooth[:end + 1, k]) for k in range(3)])
            if step == 0:
                middle = self.candidates[self.mirror[self.candidates] == self.candidates]
                found[8] = middle[np.linalg.norm(vertices[middle] - point, axis=1).argmin()]
            else:
                found[8 - step] = self._nearest(point)
