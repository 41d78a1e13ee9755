"""The morphable model: coefficients to vertices, orientation, UV mirror."""
from __future__ import annotations

from dataclasses import replace

import face_samples
import numpy as np
import pytest
import torch

from datasets.definition import load_builtin
from models.morphable import BUILTIN_LAYOUT, UV_MIRROR_AXIS, MorphableModel, mirror_uv
from models.renderer import vertex_normals


def test_vertices_are_mean_plus_scaled_bases():
    definition = face_samples.definition()
    rng = np.random.default_rng(0)
    definition = replace(
        definition, coefficient_mean=rng.normal(size=228).astype(np.float32),
        identity_basis=rng.normal(size=definition.identity_basis.shape).astype(np.float32) * 100,
        expression_basis=rng.normal(size=definition.expression_basis.shape).astype(np.float32) * 100)
    shape = torch.from_numpy(rng.normal(size=(3, 228)).astype(np.float32))
    raw = shape.numpy().astype(np.float64) * definition.coefficient_std + definition.coefficient_mean
    expected = definition.mean + np.einsum("bk,kvc->bvc", raw[:, :199], definition.identity_basis) \
        + np.einsum("bk,kvc->bvc", raw[:, 199:], definition.expression_basis)
    assert np.abs(MorphableModel(definition).vertices(shape).numpy() - expected).max() < 0.1


def test_zero_coefficients_give_the_mean():
    model = face_samples.morphable()
    assert torch.equal(model.vertices(torch.zeros(2, 228)), model.mean.expand(2, -1, -1))


def test_autocast_does_not_lower_the_precision():
    model = face_samples.morphable()
    shape = torch.randn(2, 228, generator=torch.Generator().manual_seed(0))
    expected = model.vertices(shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.vertices(shape), expected)


@pytest.mark.parametrize("flipped", [False, True])
def test_triangles_face_outward_whatever_their_order_in_the_file(flipped):
    definition = face_samples.definition()
    if flipped:
        definition = replace(definition, triangles=definition.triangles[:, [1, 0, 2]],
                             uv_barycentrics=definition.uv_barycentrics[..., [1, 0, 2]])
    model = MorphableModel(definition)
    normals = vertex_normals(model.mean[None], model.triangles)[0]
    assert (normals[:, 2] > 0).float().mean() > 0.97
    texel = (100, 90)
    corners = model.mean[model.triangles[model.uv_triangle[texel]]]
    reference = face_samples.morphable()
    expected = reference.mean[reference.triangles[reference.uv_triangle[texel]]]
    assert torch.allclose(model.uv_barycentrics[texel] @ corners, reference.uv_barycentrics[texel] @ expected)


def test_tables_are_no_part_of_checkpoints():
    assert face_samples.morphable().state_dict() == {}


def test_uv_mirror_is_about_column_127():
    maps = torch.arange(256.0).expand(1, 1, 192, 256)
    mirrored = mirror_uv(maps)
    assert UV_MIRROR_AXIS == 127
    assert mirrored[0, 0, 5, :255].tolist() == list(range(254, -1, -1))  # column c shows column 254 - c
    assert (mirrored[..., 255] == 0).all()
    assert torch.equal(mirror_uv(mirrored)[..., :255], maps[..., :255])


def test_uv_mirror_maps_the_mirrored_face_onto_itself():
    model = face_samples.morphable()
    on_face = model.uv_triangle >= 0
    assert torch.equal(mirror_uv(on_face), on_face)
    points = torch.zeros(192, 256, 3)
    corners = model.mean[model.triangles[model.uv_triangle[on_face]]]
    points[on_face] = (model.uv_barycentrics[on_face][..., None] * corners).sum(1)
    mirrored = mirror_uv(points.permute(2, 0, 1)) * torch.tensor([-1.0, 1, 1])[:, None, None]
    assert (mirrored.permute(1, 2, 0) - points).abs().max() < 1  # micrometres


def test_the_layout_of_the_uv_map_is_told_apart():
    assert MorphableModel(load_builtin()).uv_layout == BUILTIN_LAYOUT
    assert face_samples.morphable().uv_layout != BUILTIN_LAYOUT
