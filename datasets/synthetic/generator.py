"""One synthetic face with all its ground truth, from three numbers: seed, split and index."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from . import camera
from .atlas import HEIGHT, WIDTH, Atlas
from .background import sample_background
from .clothes import Outfit, sample_outfit
from .expressions import sample_expression
from .features import paint_eyes, paint_mouth
from .fields import LUMA, smooth_noise
from .lighting import Light, sample_light
from .occluders import sample_occluders
from .pose import CROP, crop_pose, sample_rotation
from .render import (FACE, HAIR, OCCLUSION, SIZE, SUPERSAMPLING, HeadRenderer, clothes_behind, fill_gaps,
                     ground_truth_albedo, reduce_labels)
from .scene import Scene, lay_over
from .skin import paint_skin, sample_complexion, sample_hair_colour
from .worn import STREAKS, Canvas, HairDo, Wardrobe, put_on, shadow_of

SPLITS = ("train", "val", "test")
GRAY_PHOTOS = 0.05
_STREAMS = ("identity", "expression", "pose", "skin", "light", "style", "occluders", "background", "camera", "hair")
_SAMPLE_EYE_DISTANCE = 62e3  # um
_HAT_SLACK = 15e3  # um by which a head may be too large for a hat without coming through


@dataclass(frozen=True)
class Style:
    """What the person wears. hair: index of the style or -1; hat: index or -1; lash: index or -1; buzz_cut in [0, 1];
    outfit: the clothes.
    """

    hair: int
    hat: int
    lash: int
    buzz_cut: float
    outfit: Outfit


def streams(seed: int, split: str, index: int) -> dict[str, np.random.Generator]:
    """Independent generators for the parts of one face; they depend on the three numbers alone."""
    root = np.random.SeedSequence([int(seed), SPLITS.index(split), int(index)])
    return {name: np.random.Generator(np.random.PCG64(child))
            for name, child in zip(_STREAMS, root.spawn(len(_STREAMS)))}


def sample_identity(rng: np.random.Generator) -> np.ndarray:
    """Identity coefficients (199,) float32: about standard normal, some people more unusual than others."""
    spread = rng.choice([0.8, 1.0, 1.25], p=[0.35, 0.5, 0.15])
    return np.clip(rng.standard_normal(199) * spread, -4, 4).astype(np.float32)


def sample_style(rng: np.random.Generator, wardrobe: Wardrobe, occluders: bool, gray: bool) -> Style:
    """Hair, hat, lashes and clothes; without occluders no hat, and only hair that leaves the face free."""
    cover = wardrobe.hair_cover
    hair, hat, buzz_cut = -1, -1, 0.0
    if len(cover) and rng.random() < 0.86:
        odds = np.where(cover < 0.03, 1.0, np.where(cover < 0.2, 0.7, np.where(cover < 0.5, 0.2, 0.1)))
        if not occluders:
            odds = (cover <= max(0.03, cover.min())).astype(float)
        hair = int(rng.choice(len(cover), p=odds / odds.sum()))
        buzz_cut = rng.uniform(0.4, 0.9)
    elif rng.random() < 0.8:
        buzz_cut = rng.uniform(0.3, 0.95)
    hats = wardrobe.layers.get("hat", [])
    if occluders and hats and rng.random() < 0.06:
        hat = int(rng.integers(len(hats)))
    lashes = wardrobe.layers.get("lash", [])
    lash = int(rng.integers(len(lashes))) if lashes and rng.random() < 0.6 else -1
    outfit = sample_outfit(rng)
    return Style(hair, hat, lash, buzz_cut, outfit.gray() if gray else outfit)


def sample_hair_do(rng: np.random.Generator, gray: bool) -> HairDo:
    """Side, fullness, length and streaks of the hair."""
    second = sample_hair_colour(rng, 2.0)
    if gray:
        second = np.repeat(second @ LUMA, 3)
    noise = smooth_noise(rng, 1, STREAKS, (rng.uniform(6, 24), rng.uniform(40, 120)))[0]
    streaks = np.clip(0.35 * noise + rng.uniform(-0.6, 0.4), 0, 1) * rng.uniform(0, 0.8)
    length = rng.uniform(0.45, 1.25) if rng.random() < 0.6 else 1.0
    return HairDo(bool(rng.random() < 0.5), 1 + 0.25 * float(rng.beta(1, 2)), float(length),
                  float(rng.uniform(0.1, 0.35)), np.float32(second), streaks.astype(np.float32))


class FaceGenerator:
    """Renders synthetic faces; holds the tables, no random state."""

    def __init__(self) -> None:
        self.atlas = Atlas.load()
        self.wardrobe = Wardrobe.load()
        self.renderer = HeadRenderer(self.atlas)

    @staticmethod
    @lru_cache(maxsize=1)
    def load() -> "FaceGenerator":
        """One generator per process."""
        return FaceGenerator()

    def generate(self, seed: int, split: str, index: int, occluders: bool = True, clean: bool = False) -> dict:
        """The face as numpy arrays, named as in `SyntheticFaces`.

        With `clean` the picture is exactly albedo times shade on the face: no hair, no occluders, no shadows or
        highlights, and neither antialiasing at the eyes nor camera effects.
        """
        rng = streams(seed, split, index)
        gray = bool(rng["camera"].random() < GRAY_PHOTOS)
        identity = sample_identity(rng["identity"])
        expression, vertices, neutral, pose = self._pose(rng, identity)
        light = sample_light(rng["light"], gray)
        light = light.scaled(camera.sample_gain(rng["camera"], gray))
        complexion = sample_complexion(rng["skin"], self.atlas, gray)
        style = sample_style(rng["style"], self.wardrobe, occluders, gray)
        painting = self._paint(rng, complexion, style, vertices, neutral, identity, pose, light, gray, clean)
        picture, labels = self._picture(rng, vertices, pose, painting, complexion, light, style, occluders, clean)
        if clean:
            image = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
        else:
            image, light = self._photograph(rng["camera"], picture, labels, light, gray)
        marks = pose.project(vertices[self.atlas.head.landmarks])
        hair = labels == HAIR
        labels[hair] = OCCLUSION
        return {
            "image": np.ascontiguousarray(image.transpose(2, 0, 1)), "labels": labels, "hair": hair.astype(np.uint8),
            "shape": np.concatenate([identity, expression]).astype(np.float32), "scale": np.float32(pose.scale),
            "pose": pose.encoded(), "light": light.vector.astype(np.float32),
            "landmarks": np.ascontiguousarray(marks[:, 1::-1]).astype(np.float32),
            "albedo": ground_truth_albedo(self.atlas, painting[..., :3]),
        }

    def _pose(self, rng, identity):
        """Expression, head vertices with and without it, and a pose within the encoder's ranges."""
        head = self.atlas.head
        expression = sample_expression(rng["expression"], head)
        both = head.vertices(np.stack([identity, identity]), np.stack([expression, head.rest_expression]))
        marks = both[0][head.landmarks].astype(np.float64)
        pose = None
        while pose is None:
            pose = crop_pose(rng["pose"], marks, sample_rotation(rng["pose"]))
        return expression, both[0], both[1], pose

    def _paint(self, rng, complexion, style, vertices, neutral, identity, pose, light, gray, clean):
        """Albedo and eye gloss of the face, (H, W, 4), continued beyond its edge."""
        painting = np.zeros((HEIGHT, WIDTH, 4), np.float32)
        painting[..., :3] = paint_skin(rng["skin"], self.atlas, complexion, style.buzz_cut)
        eyes = tuple(part[0] for part in self.atlas.head.eyes(identity[None]))
        albedo = painting[..., :3]
        gloss = paint_eyes(rng["skin"], self.atlas, albedo, vertices, eyes, pose.rotation, light, complexion)
        paint_mouth(rng["skin"], self.atlas, albedo, vertices, neutral, gray)
        if not clean:
            painting[..., 3] = gloss
        return fill_gaps(self.atlas, painting)

    def _picture(self, rng, vertices, pose, painting, complexion, light, style, occluders, clean):
        """The crop before the camera, (256, 256, 3) float32, and its labels (256, 256) uint8."""
        shadow = 0.0 if clean else rng["light"].uniform(0.2, 0.8) * (rng["light"].random() < 0.7)
        gloss = 0.0 if clean else rng["light"].beta(1.2, 2.0)
        head = self.renderer.render(vertices, pose, painting, complexion, light, style.outfit, style.buzz_cut, shadow,
                                    gloss)
        background = sample_background(rng["background"], SIZE)
        if complexion.gray:
            background = np.repeat(background.mean(-1, keepdims=True), 3, axis=-1)
        background = clothes_behind(rng["background"], background, head, style.outfit.colour, light)
        covered = head.depth > -np.inf
        canvas = Canvas(np.where(covered[..., None], head.picture, background), head.depth.copy(), head.face,
                        np.zeros_like(covered), np.zeros_like(covered))
        outline = cv2.dilate(head.head.astype(np.uint8), np.ones((15, 15), np.uint8)).astype(np.float32)
        if not clean:
            hair_do = sample_hair_do(rng["hair"], complexion.gray)
            self._dress(rng["style"], canvas, head, vertices, pose, light, complexion, style, hair_do, outline)
        picture = cv2.resize(canvas.picture, (CROP, CROP), interpolation=cv2.INTER_AREA)
        labels = reduce_labels(canvas.face, canvas.hidden, canvas.hair)
        if occluders and not clean:
            scene = self._scene(canvas, head, vertices, pose, light, complexion, outline)
            picture = self._occlude(rng["occluders"], scene, picture, labels, complexion.gray)
        return picture, labels

    def _dress(self, rng, canvas, head, vertices, pose, light, complexion, style, hair_do, outline):
        """Lashes, hair and hat, in place; hair over the face and hats within the head's outline hide it."""
        layers, where = self.wardrobe.layers, (vertices.mean(axis=0), pose, SUPERSAMPLING, light)
        if style.lash >= 0:
            worn = layers["lash"][style.lash]
            put_on(canvas, worn, worn.layer.positions(vertices), *where, complexion.hair * 0.4)
        reach = _SAMPLE_EYE_DISTANCE * pose.scale * SUPERSAMPLING * rng.uniform(0.03, 0.12)
        if style.hair >= 0:
            worn = layers["hair"][style.hair]
            points = hair_do.positions(worn.layer, self.atlas.head, vertices)
            cover = put_on(canvas, worn, points, *where, complexion.hair, hair_do)
            lit = shadow_of(cover, light, reach, rng.uniform(0.1, 0.5))
            canvas.picture *= (1 - (1 - lit) * head.head * (1 - cover))[..., None]
            canvas.hair |= (cover > 0.5) & head.surface
            canvas.hidden |= canvas.hair
        if style.hat >= 0:
            worn = layers["hat"][style.hat]
            over_hair = replace(canvas, depth=head.depth - _HAT_SLACK)  # a hat presses the hair down
            cover = put_on(over_hair, worn, worn.layer.positions(vertices), *where, None)
            canvas.depth = np.where(cover > 0.5, over_hair.depth, canvas.depth)
            lit = shadow_of(cover, light, 2 * reach, rng.uniform(0.2, 0.6))
            canvas.picture *= (1 - (1 - lit) * head.head * (1 - cover))[..., None]
            canvas.hidden |= (cover > 0.5) & (outline > 0.5)
            canvas.hair &= cover <= 0.5
            canvas.hat, canvas.hat_light = cover, lit

    def _scene(self, canvas, head, vertices, pose, light, complexion, outline) -> Scene:
        """What the occluders have to know, at the crop's own size."""
        points = vertices[self.atlas.head.landmarks]
        shrink = lambda values, method: cv2.resize(values, (CROP, CROP), interpolation=method)
        hat = {name: shrink(values, cv2.INTER_AREA)
               for name, values in (("hat", canvas.hat), ("hat_light", canvas.hat_light)) if values is not None}
        return Scene(
            size=CROP, landmarks=np.ascontiguousarray(pose.project(points)[:, 1::-1]), points=points,
            project=pose.project, depth=shrink(canvas.depth, cv2.INTER_NEAREST),
            outline=shrink(outline, cv2.INTER_NEAREST), normals=shrink(head.normals, cv2.INTER_AREA), light=light,
            skin_colour=complexion.tone, hair_colour=complexion.hair, eye_distance=_SAMPLE_EYE_DISTANCE * pose.scale,
            **hat)

    @staticmethod
    def _occlude(rng, scene, picture, labels, gray):
        """The picture with things in front of the face; labels (256, 256) is changed in place."""
        for patch in sample_occluders(rng, scene):
            if gray:
                patch.colour = np.repeat(patch.colour.mean(-1, keepdims=True), 3, axis=-1)
            picture = lay_over(rng, scene, picture, labels, patch, HAIR if patch.hair else OCCLUSION)
        return picture

    @staticmethod
    def _photograph(rng, picture, labels, light: Light, gray: bool):
        """Camera effects; what the tone curve does to the face's brightness goes into the light."""
        seen = labels == FACE
        toned = camera.tone_curve(rng, picture)
        if seen.sum() > 200:
            before, after = picture[seen].mean(axis=0), toned[seen].mean(axis=0)
            light = light.scaled(after / np.maximum(before, 1e-3))
        return camera.photograph(rng, toned, gray), light
