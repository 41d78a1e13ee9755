"""Turning the head in a photograph: pixels follow the mesh, light the skin, the crop its aligner."""
from __future__ import annotations

import pytest
import torch
from test_portraits import code, face, landmarks_of  # noqa: F401

from engine.framing import settle
from engine.turning import _follow, _was_seen, turn_head, turn_light
from models.lighting import shade
from models.renderer import project, rotation, sample


def settled_code(face, seed):
    values = code(1, seed, spread=0.3)
    return settle(values, landmarks_of(values, face[1]), 1.0)


def test_without_a_turn_the_picture_stays(face):
    values = settled_code(face, 2)
    image = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    image = torch.nn.functional.interpolate(image, size=(256, 256), mode="bicubic").clamp(0, 255)[0].to(torch.uint8)
    turned, found = turn_head(image, values, 0.0, 0.0, *face)
    torch.testing.assert_close(found.pose, values.pose, atol=1e-3, rtol=0)
    assert (turned.float() - image.float()).abs().mean() < 0.5


@pytest.mark.parametrize("yaw", [-30.0, 30.0])
def test_points_of_the_face_take_their_colours_along(face, yaw):
    model, geometry = face
    values = settled_code(face, 4)
    rows, columns = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros(256, 256)]).to(torch.uint8)  # each pixel's colour is its place
    turned, found = turn_head(image, values, yaw, 5.0, model, geometry)
    vertices = model.vertices(values.shape)
    before = project(vertices, values.scale, values.pose, 16)[0, model.landmarks[27:]]
    after = project(vertices, found.scale, found.pose, 16)[0, model.landmarks[27:]]
    colours = sample(turned[None].float(), after[None, :, None, 0], after[None, :, None, 1])[0, :2, :, 0].T
    error = (colours - before[:, :2]).norm(dim=-1)
    assert error.median() < 1.5  # a corner beyond the bridge of the nose may be hidden
    assert (before[:, 1] - after[:, 1]).abs().max() > 3  # something moved


def test_another_shape_takes_the_picture_along(face):
    """Each landmark's colour is found where the new head has it, and the new head is partly the other one."""
    model, geometry = face
    values = settled_code(face, 4)
    other = torch.randn(1, 228, generator=torch.Generator().manual_seed(5))
    rows, columns = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    image = torch.stack([rows, columns, torch.zeros(256, 256)]).to(torch.uint8)
    bent, found = turn_head(image, values, 0.0, 0.0, model, geometry, other)
    torch.testing.assert_close(found.shape, 0.8 * values.shape + 0.6 * other)
    before = project(model.vertices(values.shape), values.scale, values.pose, 16)[0, model.landmarks[27:]]
    after = project(model.vertices(found.shape), found.scale, found.pose, 16)[0, model.landmarks[27:]]
    colours = sample(bent[None].float(), after[None, :, None, 0], after[None, :, None, 1])[0, :2, :, 0].T
    assert (colours - before[:, :2]).norm(dim=-1).median() < 1.5
    assert (before[:, :2] - after[:, :2]).norm(dim=-1).median() > 1.0


def test_what_the_photograph_did_not_show_is_not_taken_from_what_hid_it(face):
    """A point behind the face, at a place where the camera saw the nose, was hidden; the nose itself was not."""
    model, _ = face
    values = settled_code(face, 4)
    positions = project(model.vertices(values.shape), values.scale, values.pose, 16)
    nose = positions[:, model.landmarks[30]][:, None]
    behind = nose - torch.tensor([0.0, 0.0, 20_000.0])
    assert _was_seen(nose, positions, model).all() and not _was_seen(behind, positions, model).any()


def test_the_new_crop_is_the_aligners(face):
    image = torch.zeros(3, 256, 256, dtype=torch.uint8)
    _, found = turn_head(image, settled_code(face, 6), 25.0, -8.0, *face)
    again = settle(found, landmarks_of(found, face[1]), 1.0)
    torch.testing.assert_close(again.pose, found.pose, atol=1e-3, rtol=0)
    torch.testing.assert_close(again.scale, found.scale, rtol=1e-3, atol=0)


def test_turned_light_shades_turned_normals_as_before():
    generator = torch.Generator().manual_seed(0)
    light = torch.randn(2, 27, generator=generator)
    normals = torch.nn.functional.normalize(torch.randn(2, 50, 3, generator=generator), dim=-1)
    matrix = rotation(torch.tensor([[0.2, -0.3, 0.1], [0.0, 0.5, 0.0]]))
    moved = normals @ matrix.mT
    torch.testing.assert_close(shade(moved, turn_light(light, matrix)), shade(normals, light), atol=1e-4, rtol=1e-4)


def test_surroundings_follow_less_and_less():
    known = torch.zeros(256, 256, dtype=torch.bool)
    known[96:160, 96:160] = True
    field = _follow(torch.where(known, 20.0, 0.0).expand(2, -1, -1), known)
    line = field[0, 128, 160:]
    assert line[0] > 15 and line[-1].abs() < 2
    assert (line[1:] <= line[:-1] + 1e-3).all()
