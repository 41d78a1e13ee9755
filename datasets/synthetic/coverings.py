"""Medical masks, balaclavas, scarves, microphones, cups, hair strands and abstract shapes in front of a face."""

from __future__ import annotations

import math

import cv2
import numpy as np

from .fields import blend, draw_lines, draw_polygons, random_colour, smooth_noise, smoothstep
from .scene import Patch, Scene, relief_normals, surface


def _smooth_curve(points: np.ndarray, count: int = 40, closed: bool = False) -> np.ndarray:
    """Catmull-Rom curve (count, 2) through points (N, 2)."""
    padded = (np.concatenate([points[-1:], points, points[:2]]) if closed
              else np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]]))
    pieces = len(padded) - 3
    position = np.linspace(0, pieces - 1e-6, count)
    piece = position.astype(int)
    t = (position - piece)[:, None]
    p0, p1, p2, p3 = (padded[piece + k] for k in range(4))
    return 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t ** 2
                  + (3 * p1 - p0 - 3 * p2 + p3) * t ** 3)


def _cloth(rng: np.random.Generator, scene: Scene, colour: np.ndarray) -> np.ndarray:
    """Plain, striped, dotted, blotched or printed cloth, (S, S, 3) albedo."""
    rows, columns = np.mgrid[:scene.size, :scene.size].astype(np.float32)
    kind = rng.choice(["plain", "stripes", "dots", "blotches", "print"], p=[0.5, 0.15, 0.1, 0.15, 0.1])
    other = random_colour(rng, 0.5)
    plain = np.broadcast_to(np.float32(colour), (scene.size, scene.size, 3))
    period = scene.eye_distance * rng.uniform(0.08, 0.4)
    if kind == "stripes":
        angle = rng.uniform(0, math.pi)
        wave = np.sin((rows * math.sin(angle) + columns * math.cos(angle)) * (2 * math.pi / period))
        return blend(plain, other, smoothstep(-0.2, 0.2, wave))
    if kind == "dots":
        wave = np.cos(rows * (2 * math.pi / period)) * np.cos(columns * (2 * math.pi / period))
        return blend(plain, other, smoothstep(0.55, 0.7, wave))
    if kind == "blotches":
        return blend(plain, other, smoothstep(0.2, 0.5, smooth_noise(rng, scene.size, scene.size, (9, 17))))
    if kind == "print":
        return _printed(rng, scene, plain)
    return plain


def _printed(rng: np.random.Generator, scene: Scene, plain: np.ndarray) -> np.ndarray:
    """Cloth (S, S, 3) with a few figures and letters of other colours printed on it."""
    for _ in range(int(rng.integers(2, 9))):
        centre = scene.landmarks[int(rng.integers(68))] + rng.normal(0, 0.3, 2) * scene.eye_distance
        colour = random_colour(rng, 0.9)
        if rng.random() < 0.5:
            corners = rng.normal(0, rng.uniform(0.1, 0.35), (int(rng.integers(3, 7)), 2)) * scene.eye_distance
            ink = draw_polygons(scene.size, scene.size, [centre + corners])
        else:
            stroke = centre + np.cumsum(rng.normal(0, 0.12, (7, 2)), axis=0) * scene.eye_distance
            ink = draw_lines(scene.size, scene.size, [_smooth_curve(stroke)], int(rng.integers(1, 5)))
        plain = blend(plain, colour, ink)
    return plain


def _valve(rng: np.random.Generator, scene: Scene, relief: np.ndarray, cloth: np.ndarray) -> np.ndarray:
    """The mask's cloth (S, S, 3) with a breathing valve; `relief` (S, S) is raised in place."""
    marks, unit = scene.landmarks, scene.eye_distance
    aside = rng.uniform(0.2, 0.5)
    centre = marks[57] * (1 - aside) + marks[int(rng.choice([4, 12, 57]))] * aside + rng.normal(0, 0.06, 2) * unit
    rows, columns = np.mgrid[:scene.size, :scene.size].astype(np.float32)
    radius = unit * rng.uniform(0.13, 0.26)
    distance = np.hypot(columns - centre[0], rows - centre[1]) / radius
    relief += 0.25 * radius * smoothstep(1.0, 0.8, distance) - 0.1 * radius * smoothstep(0.75, 0.6, distance)
    relief += 0.03 * radius * np.cos(distance * rng.uniform(14, 24)) * (distance < 0.6)
    shade = random_colour(rng, 0.3) if rng.random() < 0.5 else np.float32(cloth).reshape(-1, 3).mean(0) * 0.7
    return blend(np.broadcast_to(np.float32(cloth), (*rows.shape, 3)), shade, smoothstep(1.03, 0.97, distance))


def balaclava(rng: np.random.Generator, scene: Scene) -> Patch:
    """A knitted or stretch hood over the whole head that leaves a slot for the eyes, or the face's middle, open."""
    marks, unit = scene.landmarks, scene.eye_distance
    up = marks[17:27].mean(0) - marks[33]
    up = up / max(np.hypot(*up), 1e-6)
    lower = marks[int(rng.choice([28, 29, 30, 57], p=[0.35, 0.3, 0.2, 0.15]))]
    top = marks[17:27] + up * unit * rng.uniform(0.0, 0.3)
    sides = [marks[k] * (1 - share) + marks[j] * share
             for k, j, share in ((0, 36, rng.uniform(0.1, 0.4)), (16, 45, rng.uniform(0.1, 0.4)))]
    low_sides = [side * 0.5 + (lower + side - marks[27]) * 0.5 for side in sides]
    slot = np.array([sides[0], *top[[1, 3, 6, 8]], sides[1], low_sides[1], lower, low_sides[0]])
    opening = draw_polygons(scene.size, scene.size, [_smooth_curve(slot, 80, closed=True)])
    across, down = marks[12] - marks[4], -up * unit * 4
    neck = np.array([marks[4] - across * 0.15, marks[12] + across * 0.15, marks[12] + across * 0.3 + down,
                     marks[4] - across * 0.3 + down])
    below = draw_polygons(scene.size, scene.size, [neck])
    hood = cv2.GaussianBlur(np.maximum(scene.outline, below), (0, 0), 0.03 * unit)
    alpha = np.clip(hood * 1.5, 0, 1) * (1 - opening)
    colour = np.float32(rng.uniform(0.02, 0.12)) * np.ones(3, np.float32)
    if rng.random() < 0.25:
        colour = random_colour(rng, 0.6)
    relief = smooth_noise(rng, scene.size, scene.size, (10, 25, 120)) * 0.012 * unit
    normals = cv2.GaussianBlur(scene.normals, (0, 0), 0.08 * unit) + relief_normals(relief) - np.float32([0, 0, 1])
    normals = (normals / np.linalg.norm(normals, axis=-1, keepdims=True)).astype(np.float32)
    return Patch(surface(rng, scene, _cloth(rng, scene, colour), normals, grain=0.08), alpha, alpha > 0.5, shadow=0.3,
                 beneath_hat=True)


def medical_mask(rng: np.random.Generator, scene: Scene) -> Patch:
    """A surgical or cloth mask over nose and mouth, worn right, under the nose, or low."""
    marks = scene.landmarks
    worn = rng.choice(["right", "low", "chin"], p=[0.8, 0.14, 0.06])
    bridge = {"right": marks[28] * 0.6 + marks[29] * 0.4, "low": marks[33], "chin": marks[57]}[worn]
    first = {"right": 2, "low": 3, "chin": 4}[worn]
    middle = marks[[33, 51, 57]].mean(0)
    jaw = middle + (marks[first:17 - first] - middle) * np.float32([1.0, rng.uniform(1.0, 1.05)])
    edge = [jaw[-1], jaw[-1] * 0.5 + bridge * 0.5 + (bridge - marks[8]) * 0.02, bridge,
            jaw[0] * 0.5 + bridge * 0.5 + (bridge - marks[8]) * 0.02, jaw[0]]
    outline = np.concatenate([_smooth_curve(jaw, 50), _smooth_curve(np.array(edge), 40)])
    outline = outline + rng.normal(0, 0.01, 2) * scene.eye_distance
    body = draw_polygons(scene.size, scene.size, [outline])
    colours = np.float32([[.60, .77, .88], [.62, .80, .80], [.92, .92, .91], [.05, .05, .06], [.88, .68, .74]])
    colour = colours[int(rng.integers(len(colours)))] if rng.random() < 0.75 else random_colour(rng, 0.8)
    cloth = _cloth(rng, scene, colour) if rng.random() < 0.35 else colour
    down = marks[8] - bridge
    rows, columns = np.mgrid[:scene.size, :scene.size].astype(np.float32)
    depth_along = ((columns - bridge[0]) * down[0] + (rows - bridge[1]) * down[1]) / max(float(down @ down), 1.0)
    relief = np.zeros_like(rows)
    if rng.random() < 0.7:
        for place in (0.36, 0.5, 0.64):
            relief += np.exp(-((depth_along - place) / 0.02) ** 2) * 0.02 * scene.eye_distance
    relief += smooth_noise(rng, scene.size, scene.size, (12, 30)) * 0.008 * scene.eye_distance
    if rng.random() < 0.2:
        cloth = _valve(rng, scene, relief, cloth)
    folds = relief_normals(relief)
    normals = cv2.GaussianBlur(scene.normals, (0, 0), 0.10 * scene.eye_distance) + (folds - [0, 0, 1]) * 1.0
    normals = (normals / np.linalg.norm(normals, axis=-1, keepdims=True)).astype(np.float32)
    picture = surface(rng, scene, cloth, normals, grain=0.025)
    straps = [np.array([jaw[0], marks[0] + (marks[0] - marks[27]) * 0.05]),
              np.array([jaw[-1], marks[16] + (marks[16] - marks[27]) * 0.05])]
    strap = draw_lines(scene.size, scene.size, straps, max(1, round(0.025 * scene.eye_distance)))
    alpha = np.maximum(body, strap)
    return Patch(picture, alpha, alpha > 0.5, shadow=0.3)


def scarf(rng: np.random.Generator, scene: Scene) -> Patch:
    """Cloth over chin, mouth or nose that goes on to the lower border of the picture."""
    marks = scene.landmarks
    top = marks[int(rng.choice([29, 33, 51, 57, 8], p=[0.15, 0.25, 0.2, 0.2, 0.2]))]
    left, right = (marks[int(rng.choice([3, 4, 5]))], marks[int(rng.choice([13, 12, 11]))])
    outward = (right - left) * 0.25
    edge = _smooth_curve(np.array([left - outward, left, top, right, right + outward]), 60)
    edge = edge + rng.normal(0, 0.01, edge.shape) * scene.eye_distance
    below = np.array([[scene.size * 1.3, scene.size * 1.3], [-scene.size * 0.3, scene.size * 1.3]])
    alpha = draw_polygons(scene.size, scene.size, [np.concatenate([edge, below])])
    rows, columns = np.mgrid[:scene.size, :scene.size].astype(np.float32) / scene.eye_distance
    curve = rows + 0.25 * ((columns - top[0] / scene.eye_distance)) ** 2 * rng.uniform(0.2, 1.2)
    wobble = smooth_noise(rng, scene.size, scene.size, (4, 9))
    folds = np.sin(curve * rng.uniform(6, 14) + 1.5 * wobble) * scene.eye_distance * rng.uniform(0.02, 0.06)
    knit = smooth_noise(rng, scene.size, scene.size, (120,)) * 0.004 * scene.eye_distance
    picture = surface(rng, scene, _cloth(rng, scene, random_colour(rng, 0.6)), relief_normals(folds + knit), grain=0.06)
    return Patch(picture, alpha, alpha > 0.5, shadow=0.35)


def _rod(scene: Scene, start: np.ndarray, end: np.ndarray, radii: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A straight tapering rod from start to end (x, y): its alpha (S, S) and normals (S, S, 3)."""
    along = (end - start) / max(np.hypot(*(end - start)), 1e-6)
    across = np.array([-along[1], along[0]])
    polygon = np.array([start + across * radii[0], end + across * radii[1], end - across * radii[1],
                        start - across * radii[0]])
    alpha = draw_polygons(scene.size, scene.size, [polygon])
    rows, columns = np.mgrid[:scene.size, :scene.size].astype(np.float32)
    sideways = ((columns - start[0]) * across[0] + (rows - start[1]) * across[1]) / np.float32(max(radii))
    sideways = np.clip(sideways, -0.98, 0.98)
    normals = np.stack([sideways * across[0], -sideways * across[1], np.sqrt(1 - sideways ** 2)], -1)
    return alpha, normals.astype(np.float32)


def microphone(rng: np.random.Generator, scene: Scene) -> Patch:
    """A hand-held microphone before the mouth or chin."""
    unit = scene.eye_distance
    head = scene.landmarks[57] + np.array([rng.normal(0, 0.35), rng.uniform(0.05, 0.7)]) * unit
    radius = unit * rng.uniform(0.28, 0.42)
    angle = rng.normal(math.pi / 2, 0.5)
    end = head + np.array([math.cos(angle), math.sin(angle)]) * unit * 6
    alpha, normals = _rod(scene, head, end, (radius * 0.62, radius * 0.5))
    dark = np.float32([0.06, 0.06, 0.07]) if rng.random() < 0.7 else random_colour(rng, 0.4)
    picture = surface(rng, scene, dark, normals, grain=0.03)
    rows, columns = np.mgrid[:scene.size, :scene.size].astype(np.float32)
    x, y = (columns - head[0]) / radius, (rows - head[1]) / radius
    squared = x * x + y * y
    ball = np.clip((1 - np.sqrt(squared)) * radius + 0.5, 0, 1)
    front = np.stack([x, -y, np.sqrt(np.maximum(1 - squared, 0.02))], -1).astype(np.float32)
    mesh = 0.75 + 0.25 * np.sin(columns * (24 / radius)) * np.sin(rows * (24 / radius))
    grille = surface(rng, scene, np.float32(rng.choice([0.12, 0.3, 0.5])) * mesh[..., None] * np.ones(3, np.float32),
                     front / np.linalg.norm(front, axis=-1, keepdims=True), grain=0.03)
    return Patch(blend(picture, grille, ball), np.maximum(alpha, ball), np.maximum(alpha, ball) > 0.5, shadow=0.3)


def cup(rng: np.random.Generator, scene: Scene) -> Patch:
    """A cup or glass raised to the mouth."""
    unit = scene.eye_distance
    rim = scene.landmarks[57] + np.array([rng.normal(0, 0.15), rng.uniform(-0.25, 0.25)]) * unit
    angle = rng.normal(math.pi / 2, 0.3)
    along = np.array([math.cos(angle), math.sin(angle)])
    radius = unit * rng.uniform(0.5, 0.75)
    bottom = rim + along * unit * rng.uniform(1.3, 1.9)
    alpha, normals = _rod(scene, rim, bottom, (radius, radius * rng.uniform(0.6, 0.95)))
    picture = surface(rng, scene, _cloth(rng, scene, random_colour(rng, 0.5)), normals, grain=0.02)
    turn = np.linspace(0, 2 * math.pi, 40)[:, None]
    across = np.array([-along[1], along[0]])
    ellipse = rim + np.cos(turn) * across * radius + np.sin(turn) * along * radius * rng.uniform(0.1, 0.25)
    lid = draw_polygons(scene.size, scene.size, [ellipse])
    picture = blend(picture, np.clip(picture.mean((0, 1)) * rng.uniform(0.5, 1.3), 0, 1).astype(np.float32), lid)
    alpha = np.maximum(alpha, lid)
    return Patch(picture, alpha, alpha > 0.5, shadow=0.35)


def hair_strands(rng: np.random.Generator, scene: Scene) -> Patch:
    """Loose strands that fall over forehead, eyes or cheeks."""
    unit, marks = scene.eye_distance, scene.landmarks
    brow = marks[17:27].mean(0)
    up = (brow - marks[33]) / max(np.hypot(*(brow - marks[33])), 1e-6)
    alpha, tone = (np.zeros((scene.size, scene.size), np.uint8) for _ in range(2))
    t = np.linspace(0, 1, 24)[:, None]
    weights = (1 - t) ** 2, 2 * t * (1 - t), t ** 2
    for _ in range(int(rng.integers(1, 4))):
        root = brow + up * unit * rng.uniform(0.9, 1.4) + rng.normal(0, 0.9, 2) * unit * np.array([1, 0.1])
        tip = marks[int(rng.choice([0, 3, 17, 19, 24, 26, 13, 16, 36, 45]))] + rng.normal(0, 0.35, 2) * unit
        bend = (root + tip) / 2 + rng.normal(0, 0.35, 2) * unit
        width = unit * rng.uniform(0.04, 0.22)
        for shift in rng.normal(0, width, (int(rng.integers(6, 28)), 2)):
            ends = root + shift * 0.7, bend + shift * [1, 0.6], tip + shift * rng.uniform(0.3, 1.4)
            line = sum(weight * end for weight, end in zip(weights, ends))
            fixed_point = np.round(line * 16).astype(np.int32)
            thickness = int(rng.choice([1, 1, 2, 3]))
            cv2.polylines(alpha, [fixed_point], False, int(rng.integers(130, 256)), thickness, cv2.LINE_AA, 4)
            cv2.polylines(tone, [fixed_point], False, int(rng.integers(100, 230)), thickness + 1, cv2.LINE_8, 4)
    alpha = alpha.astype(np.float32) / 255
    colour = scene.hair_colour * np.maximum(tone.astype(np.float32) / 170, 0.5)[..., None]
    solid = (cv2.GaussianBlur(alpha, (0, 0), 0.012 * unit + 0.6) > 0.4) | (alpha > 0.5)
    return Patch(surface(rng, scene, colour, grain=0.05), alpha, solid, shadow=0.2, hair=True,
                 beneath_hat=True)


def abstract_shape(rng: np.random.Generator, scene: Scene) -> Patch:
    """A rectangle, an ellipse or a blob of plain colour, cloth or noise anywhere over the face."""
    unit = scene.eye_distance
    centre = scene.landmarks[int(rng.integers(68))] + rng.normal(0, 0.4, 2) * unit
    half = unit * rng.uniform(0.25, 1.1, 2)
    kind = rng.choice(["rectangle", "ellipse", "blob"], p=[0.5, 0.2, 0.3])
    if kind == "rectangle":
        outline = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
        slant = rng.normal(0, 0.5) * (rng.random() < 0.4)
    else:
        turn = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        radius = np.ones(48)
        if kind == "blob":
            for wave in range(2, 6):
                radius += rng.normal(0, 0.22 / wave * 1.5) * np.cos(wave * turn + rng.uniform(0, 7))
        outline = np.stack([np.cos(turn) * radius, np.sin(turn) * radius], 1) * half
        slant = rng.uniform(0, math.pi)
    turned = outline @ np.array([[math.cos(slant), math.sin(slant)], [-math.sin(slant), math.cos(slant)]])
    alpha = draw_polygons(scene.size, scene.size, [turned + centre])
    if rng.random() < 0.1:
        picture = rng.random((scene.size, scene.size, 3), dtype=np.float32)
    elif rng.random() < 0.25:
        picture = np.broadcast_to(random_colour(rng, 0.8), (scene.size, scene.size, 3)).astype(np.float32)
    else:
        picture = surface(rng, scene, _cloth(rng, scene, random_colour(rng, 0.6)), grain=0.1)
    return Patch(picture, alpha, alpha > 0.5, shadow=float(rng.choice([0.0, 0.3])))
