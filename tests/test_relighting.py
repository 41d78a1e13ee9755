"""Portraits under other light: exactly the light that was asked for, and nothing else."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from engine_samples import FRONTAL, SmallEncoder, SmallFaces, SmallOcclusion, small_definition

from datasets.synthetic.lighting import sample_light
from engine import relighting
from engine.relighting import RelitFaces, Surfaces, fit_surfaces, relight
from models.completion import FaceCompletion
from models.lighting import shade_maps
from models.morphable import MorphableModel

INNER = slice(60, 180)  # of a crop, within the ball and far enough from its outline


def ball() -> torch.Tensor:
    """Unit normals (3, 128, 128) of a ball in the middle of the reduced picture, 0 beside it."""
    y, x = torch.meshgrid(1 - torch.arange(128) / 63.5, torch.arange(128) / 63.5 - 1, indexing="ij")
    x, y = x / 0.8, y / 0.8
    inside = x ** 2 + y ** 2 < 1
    return torch.stack([x, y, (1 - x ** 2 - y ** 2).clamp(min=0).sqrt()]) * inside


def surface(light: torch.Tensor | None = None) -> Surfaces:
    """Of the ball; its light comes from the camera unless another is given."""
    normals = ball()
    light = torch.tensor(FRONTAL * 3) if light is None else light
    return Surfaces((127 * normals).round().to(torch.int8), light, normals[2] == 0)


def picture(light: torch.Tensor) -> torch.Tensor:
    """The ball, of one colour, under a light, on grey: uint8 (3, 256, 256)."""
    normals = ball()
    shade = shade_maps(normals[None], light[None]) * torch.tensor([110.0, 90, 70])[:, None, None]
    small = torch.where(normals[2] > 0, shade, 128.0)
    return torch.nn.functional.interpolate(small, size=256, mode="bilinear")[0].round().clamp(0, 255).to(torch.uint8)


def random_light(seed: int) -> torch.Tensor:
    """A light of the built-in faces' kind."""
    return torch.from_numpy(sample_light(np.random.default_rng(seed)).vector).float()


def test_the_same_light_changes_nothing():
    light = torch.tensor(FRONTAL * 3)
    image, became = relight(picture(light), surface(), light)
    assert (image.int() - picture(light).int()).abs().max() <= 1
    torch.testing.assert_close(became, light, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_relit_picture_is_the_picture_in_that_light(seed):
    """The ball is painted under both lights: one turned into the other is the other."""
    old, new = torch.tensor(FRONTAL * 3), random_light(seed)
    image, became = relight(picture(old), surface(), new, exposure=0.8)
    ratio = became / new
    torch.testing.assert_close(ratio, ratio.mean().expand(27), rtol=1e-4, atol=0)  # of another strength alone
    shade = shade_maps(ball()[None], became[None])[0, :, 30:90, 30:90]
    assert shade.min() > relighting.DARKEST
    expected = picture(became)[:, INNER, INNER].float()
    unclipped = expected < 250
    error = (image[:, INNER, INNER].float() - expected)[unclipped].abs()
    assert error.mean() < 1.5 and error.max() < 8, (float(error.mean()), float(error.max()))


def test_exposure_is_the_change_of_the_mean():
    old = torch.tensor(FRONTAL * 3)
    inside = (ball()[2] > 0.3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    for exposure in (0.7, 1.1):
        image, _ = relight(picture(old), surface(), old, exposure)
        ratio = image[:, inside].float().mean() / picture(old)[:, inside].float().mean()
        assert abs(ratio - exposure) < 0.02


def test_the_background_keeps_its_light():
    old = torch.tensor(FRONTAL * 3)
    image, _ = relight(picture(old), surface(), random_light(4), exposure=0.7)
    still = (ball()[2] == 0).repeat_interleave(2, 0).repeat_interleave(2, 1)
    still[200:] = False  # the neck is lit as the face is
    away = torch.nn.functional.max_pool2d((~still)[None].float(), 21, 1, 10)[0] == 0
    assert away.sum() > 5000
    assert (image.int() - picture(old).int()).abs()[:, away].max() <= 1
    below = slice(240, 250), slice(118, 138)
    assert (image.int() - picture(old).int()).abs()[:, *below].min() > 5


def test_a_face_that_is_not_there_is_left_alone():
    nothing = Surfaces(torch.zeros(3, 128, 128, dtype=torch.int8), torch.tensor(FRONTAL * 3), torch.ones(128, 128) > 0)
    image, _ = relight(picture(random_light(0)), nothing, random_light(1))
    assert torch.equal(image, picture(random_light(0)))


def test_each_face_comes_again_in_other_lights():
    faces = SmallFaces(2)
    surfaces = Surfaces(*(torch.stack([part, part]) for part in surface()))
    relit = RelitFaces(faces, surfaces, 3)
    assert len(relit) == 8
    for index in range(2):
        assert torch.equal(relit[index]["image"], faces[index]["image"])
        others = [relit[index + 2 * time] for time in (1, 2, 3)]
        assert all(item["name"] == faces[index]["name"] for item in others)
        assert all(torch.equal(item["labels"], faces[index]["labels"]) for item in others)
        assert all(set(item) == set(faces[index]) for item in others)
        lights = torch.stack([faces[index]["light"], *(item["light"] for item in others)])
        assert torch.cdist(lights, lights).add(torch.eye(4)).min() > 0.05
    assert torch.equal(relit[5]["image"], RelitFaces(faces, surfaces, 3)[5]["image"])
    assert not torch.equal(relit[5]["image"], RelitFaces(faces, surfaces, 3, seed=1)[5]["image"])
    assert not torch.equal(relit[2]["image"], relit[4]["image"])
    assert next(iter(DataLoader(relit, batch_size=8)))["image"].dtype == torch.uint8


def test_surfaces_are_those_of_the_fitted_faces():
    torch.manual_seed(0)
    completion = FaceCompletion(SmallEncoder(), torch.nn.Identity(), MorphableModel(small_definition()),
                                SmallOcclusion()).eval()
    images = torch.stack([SmallFaces(3)[index]["image"] for index in range(3)])
    surfaces = fit_surfaces(completion, images, "traditional")
    assert surfaces.normals.shape == (3, 3, 128, 128) and surfaces.normals.dtype == torch.int8
    assert surfaces.light.shape == (3, 27) and surfaces.background.shape == (3, 128, 128)
    length = surfaces.normals.float().norm(dim=1) / 127
    assert ((length < 0.01) | (length - 1).abs().lt(0.02)).all() and (length > 0.5).float().mean() > 0.05
    assert (surfaces.normals[:, 2][length > 0.5] >= 0).all()  # what is seen faces the camera
    alone = fit_surfaces(completion, images[1:2], "traditional")
    assert torch.equal(alone.normals[0], surfaces.face(1).normals)
