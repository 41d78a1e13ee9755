"""What is asked of a mesh around its z-buffer, compiled: each in one pass over the memory, where PyTorch needs many.

Forward only, in float32, on the CPU: ask `zbuffer.backends.usable` first. `models.renderer` says the same in PyTorch,
which serves everything else and is what the results are compared with (``tests/test_surface.py``); they agree but for
rounding.
Positions, rasters and triangles are as in :mod:`zbuffer`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import Rasterization, backends
from .backends import call, ready

__all__ = ["Texels", "Tolerance", "UVLayout", "draw", "quadratic", "sample", "texel_normals", "vertex_normals",
           "visible_texels"]


class UVLayout(NamedTuple):
    """How a map of (h, w) texels lies over a mesh."""

    nearest: torch.Tensor
    """(h * w,) int64 from 0 to h * w - 1: for each texel the flat index of the nearest one that lies on the mesh, its
    own if it does."""
    on_face: torch.Tensor
    """(h, w) bool: which texels lie on the mesh."""
    corners: torch.Tensor
    """(T, 6) float32: row and column in the map of each triangle's three corners."""
    textured: torch.Tensor
    """(T,) bool: triangles that the map shows where ``corners`` says."""


class Texels(NamedTuple):
    """Where N texels lie on a mesh of V vertices."""

    corners: torch.Tensor
    """(N, 3) int64 from 0 to V - 1: the corners of each texel's triangle."""
    weights: torch.Tensor
    """(N, 3) float32: its barycentrics there."""


class Tolerance(NamedTuple):
    """When a texel still counts as seen; see `models.renderer.Renderer.uv_visibility`."""

    depth: float
    """By which a texel facing the camera may disagree with the z-buffer, in its unit."""
    steepest: float
    """Cosine to the camera below which the tolerance, which grows with the slope, grows no more."""
    negligible: float
    """Weight up to which a pixel of a bilinear sample does not matter."""


def vertex_normals(vertices: torch.Tensor, triangles: torch.Tensor) -> torch.Tensor:
    """Area-weighted unit normals (B, V, 3) of vertices (B, V, 3); 0 where a vertex has no triangle with an area.

    triangles (T, 3) integers, counter-clockwise seen from outside. Raises ValueError if one refers to no vertex, and
    like all functions here if a tensor has another shape or type than said, or lies on a GPU.
    """
    vertices = ready("vertices", vertices, (None, None, 3))
    triangles = _triangles(triangles, vertices.shape[1])
    normals = torch.empty_like(vertices)
    call("surface_vertex_normals", vertices, triangles, len(vertices), vertices.shape[1], len(triangles),
         torch.get_num_threads(), normals, triangles=triangles, vertex_count=vertices.shape[1])
    return normals


def texel_normals(normals: torch.Tensor, rotation: torch.Tensor, texels: Texels, index: torch.Tensor,
                  size: tuple[int, int]) -> torch.Tensor:
    """Normals (B, V, 3) of vertices turned by rotation (B, 3, 3), at N texels: unit normals as maps (B, 3, h, w) of
    this size, 0 elsewhere and where there is no direction.

    index (N,) int64: the texels' flat places in the map, from 0 to h * w - 1.
    """
    normals = ready("normals", normals, (None, None, 3))
    rotation = ready("rotation", rotation, (len(normals), 3, 3))
    index = _places("index", index, len(texels.corners), size[0] * size[1])
    maps = normals.new_empty((len(normals), 3, *size))
    call("surface_texel_normals", normals, *normals.shape[:2], torch.get_num_threads(),
         *_on_mesh(texels, normals.shape[1]), index, size[0] * size[1], rotation, maps)
    return maps


def quadratic(maps: torch.Tensor, on_face: torch.Tensor, coefficients: torch.Tensor, beside: float) -> torch.Tensor:
    """Polynomials of second order of maps (B, 3, h, w) of x, y, z: (B, C, h, w), but `beside` where not on_face (h, w).

    on_face: bool. coefficients (B, C, 10): of 1, x, y, z, x^2, y^2, z^2, xy, xz and yz.
    """
    maps = ready("maps", maps, (None, 3, None, None))
    batch, _, height, width = maps.shape
    on_face = ready("on_face", on_face, (height, width), torch.bool)
    coefficients = ready("coefficients", coefficients, (batch, None, 10))
    results = maps.new_empty((batch, coefficients.shape[1], height, width))
    call("surface_quadratic", maps, batch, height * width, torch.get_num_threads(), on_face, coefficients,
         coefficients.shape[1], float(beside), results)
    return results


def visible_texels(positions: torch.Tensor, triangles: torch.Tensor, raster: Rasterization, texels: torch.Tensor,
                   cosine: torch.Tensor, tolerance: Tolerance) -> torch.Tensor:
    """Which of N texels every pixel of their bilinear sample shows: (B, N) bool.

    positions (B, V, 3) of the mesh and their raster, of at least 2 x 2 pixels; texels (B, N, 3): their positions;
    cosine (B, N) of their normals to the camera. Raises ValueError if a triangle refers to no vertex.
    """
    positions = ready("positions", positions, (None, None, 3))
    batch, vertex_count, _ = positions.shape
    triangles, triangle = _triangles(triangles, vertex_count), _shown(raster, batch)
    height, width = _at_least_two("the raster", triangle.shape[1:])
    depth = ready("the raster's depth", raster.depth, (batch, height, width))
    texels = ready("texels", texels, (batch, None, 3))
    cosine = ready("cosine", cosine, (batch, texels.shape[1]))
    visible = torch.empty_like(cosine, dtype=torch.bool)
    call("surface_visible_texels", positions, triangles, batch, vertex_count, len(triangles), torch.get_num_threads(),
         height, width, triangle, depth, *map(float, tolerance), texels.shape[1], texels, cosine, visible,
         triangles=triangles, vertex_count=vertex_count)
    return visible


def draw(maps: torch.Tensor, layout: UVLayout, raster: Rasterization) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (B, C, h, w), of at least 2 x 2 texels, seen through the mesh: images (B, C, H, W), 0 outside their coverage
    (B, 1, H, W) bool, the pixels that show a part of the mesh within a texel of what the map covers."""
    maps = ready("maps", maps, (None, None, None, None))
    batch, channels, map_height, map_width = maps.shape
    _at_least_two("maps", (map_height, map_width))
    nearest = _places("nearest", layout.nearest, map_height * map_width, map_height * map_width)
    on_face = ready("on_face", layout.on_face, (map_height, map_width), torch.bool)
    corners = ready("corners", layout.corners, (None, 6))
    textured = ready("textured", layout.textured, (len(corners),), torch.bool)
    triangle = _shown(raster, batch)
    height, width = triangle.shape[1:]
    barycentrics = ready("the raster's barycentrics", raster.barycentrics, (batch, height, width, 3))
    images = maps.new_empty((batch, channels, height, width))
    coverage = torch.empty_like(triangle[:, None], dtype=torch.bool)
    call("surface_draw", maps, batch, channels, map_height, map_width, nearest, on_face, corners, textured,
         len(textured), torch.get_num_threads(), height, width, triangle, barycentrics, images, coverage)
    return images, coverage


def sample(images: torch.Tensor, texels: torch.Tensor, index: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Images (B, C, H, W), of at least 2 x 2 pixels, at the positions (B, N, 3) of N texels, bilinearly, as maps
    (B, C, h, w) of this size that are 0 elsewhere.

    index (N,) int64: the texels' flat places in the map, from 0 to h * w - 1. A position outside the image takes its
    border's value.
    """
    images = ready("images", images, (None, None, None, None))
    batch, channels, height, width = images.shape
    _at_least_two("images", (height, width))
    texels = ready("texels", texels, (batch, None, 3))
    index = _places("index", index, texels.shape[1], size[0] * size[1])
    maps = images.new_empty((batch, channels, *size))
    call("surface_sample", images, batch, channels, height, width, torch.get_num_threads(), len(index), texels, index,
         size[0] * size[1], maps)
    return maps


def _places(what: str, places: torch.Tensor, count: int, size: int) -> torch.Tensor:
    """Flat places in a map of `size` elements, int64 (count,)."""
    places = ready(what, places, (count,), torch.int64)
    if count:
        least, most = map(int, places.aminmax())
        if least < 0 or most >= size:
            raise ValueError(f"{what} must be from 0 to {size - 1}, not from {least} to {most}")
    return places


def _on_mesh(texels: Texels, vertex_count: int) -> tuple[int, torch.Tensor, torch.Tensor]:
    corners = ready("texels' corners", texels.corners, (None, 3), torch.int64)
    weights = ready("texels' weights", texels.weights, corners.shape)
    _places("texels' corners", corners.flatten(), corners.numel(), vertex_count)
    return len(corners), corners, weights


def _triangles(triangles: torch.Tensor, vertex_count: int) -> torch.Tensor:
    if triangles.is_floating_point() or triangles.is_complex() or triangles.dtype == torch.bool:
        raise ValueError(f"triangles must be integers, not {triangles.dtype}")
    return ready("triangles", backends.as_int32(triangles, vertex_count), (None, 3), torch.int32)


def _shown(raster: Rasterization, batch: int) -> torch.Tensor:
    return ready("the raster's triangles", raster.triangle, (batch, None, None), torch.int64)


def _at_least_two(what: str, size: tuple[int, int]) -> tuple[int, int]:
    if min(size) < 2:
        raise ValueError(f"{what} must have at least 2 x 2 elements, not {tuple(size)}")
    return size
