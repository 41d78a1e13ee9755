"""The colours of a face: skin with its tone and marks, lips, brows, beard and make-up, painted on the UV map."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .atlas import DETAIL, HEIGHT, SKIN, UV_HEIGHT, UV_WIDTH, WIDTH, Atlas
from .fields import LUMA, blend_part, bounding_box, smooth_noise

# Mean albedo of faces from very fair to very dark, display RGB at shade 1.
_TONES = np.float32([[.93, .76, .68], [.88, .68, .58], [.82, .61, .49], [.74, .53, .41], [.60, .42, .31],
                     [.45, .31, .23], [.33, .22, .17]])
_HAIR = np.float32([[.06, .052, .05], [.09, .07, .06], [.14, .10, .07], [.22, .15, .10], [.30, .20, .13],
                    [.43, .30, .18], [.60, .46, .29], [.72, .60, .42], [.45, .21, .11], [.52, .52, .52],
                    [.78, .77, .75]])
_HAIR_ODDS = np.array([.16, .16, .16, .14, .11, .08, .06, .03, .03, .05, .02])


@dataclass
class Complexion:
    """What one person's colours are.

    skin (h, w, 3) float32 albedo texture of the whole head; tone (3,) its mean on the face; hair (3,); gray: the photo
    is black and white.
    """

    skin: np.ndarray
    tone: np.ndarray
    hair: np.ndarray
    gray: bool


def sample_complexion(rng: np.random.Generator, atlas: Atlas, gray: bool) -> Complexion:
    """Mix a few of the head's skins and bring the mixture to a random tone."""
    position = 6 * rng.beta(1.2, 2.3)
    low = min(int(position), 5)
    tone = _TONES[low] + (_TONES[low + 1] - _TONES[low]) * (position - low)
    tone = tone * np.clip(1 + rng.normal(0, 0.03, 3) * [0.5, 1, 1.3], 0.85, 1.15)
    means = atlas.skin_means
    distance = np.abs(np.log(means @ LUMA) - np.log(tone @ LUMA))
    weight = rng.gamma(0.25, 1.0, len(means)) * np.exp(-distance / 0.35) + 1e-9
    chosen = np.argsort(weight)[-3:]
    weight = weight[chosen] / weight[chosen].sum()
    skin = sum(atlas.head.skins[k] * np.float32(share / 255) for k, share in zip(chosen, weight))
    own = np.tensordot(weight, means[chosen], axes=1)
    keep = rng.uniform(0, 0.5)
    tone = np.float32(np.clip(tone * (1 - keep) + own * keep, 0.08, 0.95))
    skin = np.minimum(skin * np.float32(tone / own), 0.985)
    hair = sample_hair_colour(rng, position)
    if gray:
        skin, tone, hair = (np.repeat((x @ LUMA)[..., None], 3, axis=-1) for x in (skin, tone, hair))
    return Complexion(np.ascontiguousarray(skin, np.float32), tone, np.float32(hair), gray)


def sample_hair_colour(rng: np.random.Generator, position: float) -> np.ndarray:
    """Display RGB (3,); position: of the skin among _TONES, from 0, the fairest: dark skin goes with dark hair."""
    odds = _HAIR_ODDS * np.where(np.arange(len(_HAIR)) < 3, 1 + position, np.exp(-0.4 * max(position - 2, 0)))
    return _HAIR[int(rng.choice(len(_HAIR), p=odds / odds.sum()))] * np.float32(rng.uniform(0.75, 1.25))


def _coarse(values: np.ndarray) -> np.ndarray:
    """A painting-sized map at the UV map's own resolution."""
    return cv2.resize(values, (UV_WIDTH, UV_HEIGHT), interpolation=cv2.INTER_AREA)


def _tone_changes(rng: np.random.Generator, atlas: Atlas) -> np.ndarray:
    """Smooth multiplicative changes of colour (192, 256, 3): blotches, red cheeks, nose and ears, rings under eyes."""
    cells = (float(rng.uniform(3, 7)), float(rng.uniform(9, 22)))
    blotches = rng.uniform(0, 0.05) * smooth_noise(rng, UV_HEIGHT, UV_WIDTH, cells)
    redness = rng.uniform(0, 0.06) * smooth_noise(rng, UV_HEIGHT, UV_WIDTH, (6.0, 15.0))
    if rng.random() < 0.5:
        redness = redness + rng.uniform(0, 0.22) * _coarse(atlas.attributes["blush"])
    changes = 1 + blotches[..., None] - np.maximum(redness, -0.1)[..., None] * np.float32([0.1, 1.0, 0.9])
    if rng.random() < 0.5:
        lids = cv2.GaussianBlur(_coarse(atlas.attributes["eyelid"]), (0, 0), 3.0)
        changes = changes * (1 - rng.uniform(0, 0.35) * lids[..., None] * np.float32([0.7, 1.0, 0.9]))
    return changes


def _marks(rng: np.random.Generator, atlas: Atlas, paint: np.ndarray) -> np.ndarray:
    """Pores, freckles, moles and spots: the painting (H, W, 3) with them."""
    grain = smooth_noise(rng, HEIGHT, WIDTH, (WIDTH / 4, WIDTH / 2))
    paint = paint * (1 + rng.gamma(1.5, 0.005) * grain)[..., None]
    if rng.random() < 0.1:
        paint = paint * (1 - _freckles(rng, atlas)[..., None] * np.float32([0.6, 1.0, 1.2]))
    for _ in range(int(rng.poisson(0.8))):
        row, column = int(rng.integers(20, HEIGHT - 20)), int(rng.integers(60, WIDTH - 60))
        radius = rng.uniform(0.5, 1.5) * DETAIL
        reach = int(3 * radius) + 1
        rows, columns = np.mgrid[-reach:reach + 1, -reach:reach + 1]
        spot = np.exp(-(rows ** 2 + columns ** 2) / (2 * radius ** 2)) * rng.uniform(0.2, 0.65)
        window = paint[row - reach:row + reach + 1, column - reach:column + reach + 1]
        if window.shape[:2] == spot.shape:
            window *= (1 - spot[..., None] * np.float32([0.75, 1.0, 1.0])).astype(np.float32)
    return paint


def _freckles(rng: np.random.Generator, atlas: Atlas) -> np.ndarray:
    """How much darker freckles make the skin, (H, W) in [0, 0.3]: most on nose and cheeks, none at the face's edge."""
    high = smooth_noise(rng, 3 * HEIGHT // 2, WIDTH, (110.0, 180.0))  # the map is higher on the face than here
    noise = cv2.resize(high, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    spots = np.clip((noise - rng.uniform(0.9, 1.6)) * 1.5, 0, 1)
    patches = np.clip(0.7 + 0.5 * smooth_noise(rng, HEIGHT, WIDTH, (12.0,)), 0, 1)
    cheeks = np.clip(1.6 * cv2.GaussianBlur(atlas.attributes["blush"], (0, 0), 14 * DETAIL), 0, 1)
    return rng.uniform(0.08, 0.3) * spots * patches * cheeks


def _wrinkles(rng: np.random.Generator, atlas: Atlas, paint: np.ndarray) -> None:
    """Folds from nose to mouth, lines of forehead and frown, crow's feet and bags under the eyes, in place.

    How deep they are is one number for the whole face: its age.
    """
    age = rng.beta(1.0, 1.6)
    marks = atlas.vertex_texel[atlas.head.landmarks][:, ::-1]  # column, row
    unit = np.hypot(*(marks[45] - marks[36])) / 10
    middle = marks[27, 0]
    lines = []
    top = marks[17:27, 1].min() - rng.uniform(0.8, 1.4) * unit
    for number in range(int(rng.integers(0, 5))):
        columns = np.linspace(marks[18, 0], marks[25, 0], 12) + rng.normal(0, 0.2) * unit
        rows = top - number * rng.uniform(0.5, 0.8) * unit + rng.normal(0, 0.08 * unit, 12).cumsum() * 0.5
        lines.append((np.stack([columns, rows], 1), 0.6))
    for inner, corner, wing, mouth, bag in ((21, 36, 31, 48, (36, 41, 40, 39)), (22, 45, 35, 54, (45, 46, 47, 42))):
        out = np.sign(marks[corner, 0] - middle) * unit
        lines.append((np.stack([marks[wing] + [0.25 * out, -0.3 * unit], marks[wing] + [0.8 * out, 0.5 * unit],
                                marks[mouth] + [0.7 * out, -0.5 * unit], marks[mouth] + [0.6 * out, 0.6 * unit]]), 1.3))
        lines.append((marks[list(bag)] + [0, rng.uniform(0.5, 0.9) * unit], 0.8))
        start = marks[inner] + [-0.35 * out, 0.2 * unit]
        lines.append((np.stack([start, start + [0, -0.9 * unit]]), 0.5 * (rng.random() < 0.6)))
        for slope in (-0.5, 0.0, 0.5):
            start = marks[corner] + [0.4 * out, slope * 0.6 * unit]
            lines.append((np.stack([start, start + [0.9 * out, slope * unit]]), 0.5))
    depth = np.zeros((HEIGHT, WIDTH), np.float32)
    for points, strength in lines:
        drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.polylines(drawn, [np.round(points * 16).astype(np.int32)], False, 255, 1, cv2.LINE_AA, 4)
        strength *= rng.uniform(0.4, 1.2)
        np.maximum(depth, drawn.astype(np.float32) * np.float32(strength / 255), out=depth)
    fine, broad = (cv2.GaussianBlur(depth, (0, 0), sigma * DETAIL) * sigma for sigma in (0.7, 2.2))
    paint *= (1 - np.clip(age * (0.5 * fine + 0.45 * broad), 0, 0.5)[..., None] * np.float32([0.8, 1, 1]))


def _lips(rng: np.random.Generator, atlas: Atlas, complexion: Complexion, paint: np.ndarray, made_up: bool) -> None:
    lip = atlas.attributes["lip"]
    natural = complexion.tone * np.float32([0.93, 0.70, 0.72]) * np.float32(rng.uniform(0.85, 1.05))
    blend_part(paint, natural, lip * np.float32(rng.uniform(0.1, 0.8)), atlas.boxes["lip"])
    if made_up and rng.random() < 0.6:
        stick = np.float32([0.72, 0.16, 0.22]) * np.float32(np.clip(rng.normal(1, [0.2, 0.5, 0.4]), 0.3, 1.8))
        blend_part(paint, np.clip(stick, 0.05, 0.9), lip * np.float32(rng.uniform(0.3, 0.85)), atlas.boxes["lip"])


def _hair_on_face(rng: np.random.Generator, atlas: Atlas, complexion: Complexion, paint: np.ndarray) -> None:
    """Stubble, moustaches, beards and the shadow of short hair on the scalp."""
    kind = rng.choice(["none", "stubble", "moustache", "beard"], p=[0.45, 0.3, 0.08, 0.17])
    beard, moustache = atlas.attributes["beard"], atlas.attributes["moustache"]
    if kind == "none":
        return
    strength = {"stubble": rng.uniform(0.08, 0.45), "moustache": 0.0, "beard": rng.uniform(0.2, 0.7)}[kind]
    above = {"stubble": strength, "moustache": rng.uniform(0.4, 0.9), "beard": strength * rng.uniform(0.4, 1.1)}[kind]
    fine = smooth_noise(rng, HEIGHT, WIDTH, (WIDTH / 3.5, WIDTH / 2))
    coarse = smooth_noise(rng, HEIGHT, WIDTH, (20.0,))
    density = np.clip(np.maximum(beard * strength, moustache * above) * (1 + 0.2 * fine + 0.12 * coarse), 0, 0.95)
    colour = complexion.hair * np.float32(rng.uniform(0.8, 1.2))
    if kind == "stubble":
        colour = 0.5 * colour + 0.5 * complexion.tone * np.float32([0.42, 0.45, 0.5])
    blend_part(paint, colour, density, bounding_box(density))


def _brows(rng: np.random.Generator, atlas: Atlas, complexion: Complexion, paint: np.ndarray) -> None:
    painted = atlas.brows[int(rng.integers(len(atlas.brows)))]
    moved = np.float32([[1, 0, 0], [0, rng.uniform(0.9, 1.12), 0]])
    rows = np.nonzero(painted[..., 3].max(axis=1) > 0.2)[0]
    moved[1, 2] = rows.mean() * (1 - moved[1, 1]) + rng.normal(0, DETAIL)
    alpha = cv2.warpAffine(np.ascontiguousarray(painted[..., 3]), moved, (WIDTH, HEIGHT))
    if rng.random() < 0.6:
        alpha = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.4, 1.4) * DETAIL) * rng.uniform(1.1, 2.2)
    alpha = np.clip(alpha * rng.uniform(0.55, 1.25), 0, 0.95) * (atlas.region == SKIN)
    texture = 1 + 0.25 * smooth_noise(rng, HEIGHT, WIDTH, (WIDTH / 2.5,))
    colour = np.minimum(complexion.hair * np.float32(rng.uniform(0.45, 0.95)), complexion.tone * 0.75)
    blend_part(paint, colour * texture[..., None], alpha, bounding_box(alpha))


def _make_up(rng: np.random.Generator, atlas: Atlas, complexion: Complexion, paint: np.ndarray) -> None:
    eyelid = atlas.attributes["eyelid"]
    if rng.random() < 0.8:
        blend_part(paint, np.float32([0, 0, 0]), eyelid * np.float32(rng.uniform(0.2, 0.75)), atlas.boxes["eyelid"])
    if rng.random() < 0.3 and not complexion.gray:
        shadow = cv2.resize(cv2.GaussianBlur(_coarse(eyelid), (0, 0), 3.5), (WIDTH, HEIGHT))
        colour = rng.random(3).astype(np.float32) * 0.6
        shadow = np.clip(shadow * rng.uniform(0.3, 1.2), 0, 0.6)
        blend_part(paint, colour, shadow, bounding_box(shadow > 0.01))


def paint_skin(rng: np.random.Generator, atlas: Atlas, complexion: Complexion, buzz_cut: float) -> np.ndarray:
    """Albedo painting (H, W, 3) float32 of everything but the eyeballs and the mouth's inside.

    buzz_cut in [0, 1]: how much the scalp is darkened by short hair.
    """
    skin = complexion.skin
    where = atlas.skin_uv
    paint = cv2.remap(skin, where[..., 0] * skin.shape[1] - 0.5, where[..., 1] * skin.shape[0] - 0.5, cv2.INTER_LINEAR,
                      borderMode=cv2.BORDER_REPLICATE)
    paint = paint * cv2.resize(_tone_changes(rng, atlas), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    paint = _marks(rng, atlas, paint)
    _wrinkles(rng, atlas, paint)
    made_up = rng.random() < 0.35
    _lips(rng, atlas, complexion, paint, made_up)
    if not made_up:
        _hair_on_face(rng, atlas, complexion, paint)
    if buzz_cut > 0:
        edge = 1 + 0.5 * smooth_noise(rng, HEIGHT, WIDTH, (60.0, 150.0))
        density = np.clip(atlas.attributes["scalp"] * edge, 0, 1) * np.float32(buzz_cut)
        blend_part(paint, complexion.hair, density, atlas.boxes["scalp"])
    if made_up:
        _make_up(rng, atlas, complexion, paint)
    _brows(rng, atlas, complexion, paint)
    if complexion.gray:
        paint = np.repeat((paint @ LUMA)[..., None], 3, axis=-1)
    return np.clip(paint, 0.01, 1).astype(np.float32)
