"""Derivatives of depth and barycentrics in the vertices, against finite differences in double precision."""

from __future__ import annotations

import torch
from test_zbuffer_rasterize import every_backend, random_mesh

import zbuffer


@every_backend
def test_gradcheck(backend):
    vertices, triangles = random_mesh(0, items=2, vertex_count=9, triangle_count=10, extent=5, dtype=torch.float64)

    def seen(vertices):
        raster = zbuffer.rasterize(vertices, triangles, (6, 5), backend=backend)
        return torch.where(raster.mask, raster.depth, 0), raster.barycentrics

    assert torch.autograd.gradcheck(seen, vertices.requires_grad_())


def test_gradcheck_through_interpolate():
    vertices, triangles = random_mesh(3, items=2, vertex_count=9, triangle_count=10, extent=5, dtype=torch.float64)
    attributes = torch.rand(2, 9, 3, dtype=torch.float64, requires_grad=True)

    def image(vertices, attributes):
        raster = zbuffer.rasterize(vertices, triangles, (6, 5))
        return zbuffer.interpolate(attributes, triangles, raster)

    assert torch.autograd.gradcheck(image, (vertices.requires_grad_(), attributes))


def test_float32_gradients_agree_with_float64():
    vertices, triangles = random_mesh(4, items=2)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = vertices.to(dtype).detach().requires_grad_()
        raster = zbuffer.rasterize(leaf, triangles, (24, 24))
        (raster.depth[raster.mask].sum() + raster.barycentrics[..., 1].square().sum()).backward()
        assert leaf.grad.dtype == dtype
        gradients.append(leaf.grad.double())
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_vertices_that_are_not_seen_or_not_finite_get_zero():
    vertices = torch.tensor([[[0, 0, 5.0], [0, 8, 5], [8, 0, 5], [0, 0, 1], [0, 8, 1], [8, 0, 1], [torch.nan, 0, 9]]])
    triangles = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 1, 6]])
    vertices.requires_grad_()
    raster = zbuffer.rasterize(vertices, triangles, (4, 4))
    raster.depth[raster.mask].sum().backward()
    assert (vertices.grad[0, 3:] == 0).all()
    torch.testing.assert_close(vertices.grad[0, :3, 2].sum(), raster.mask.sum().float())


def test_only_what_needs_a_gradient_is_asked_for():
    vertices, triangles = random_mesh(5)
    raster = zbuffer.rasterize(vertices, triangles, (8, 8))
    assert not raster.depth.requires_grad and not raster.barycentrics.requires_grad
    raster = zbuffer.rasterize(vertices.requires_grad_(), triangles, (8, 8))
    assert raster.depth.requires_grad and not raster.triangle.requires_grad
    with torch.no_grad():
        assert not zbuffer.rasterize(vertices, triangles, (8, 8)).depth.requires_grad
