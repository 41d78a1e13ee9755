"""An exact, differentiable z-buffer for triangle meshes.

Three backends give the same triangle for every pixel: a multi-threaded CPU one and a CUDA one, both compiled
from ``csrc/``, and a slow reference in PyTorch. The compiled ones come from an installed package
(``cd zbuffer && python setup.py install`` or ``pip install ./zbuffer``) or are compiled on first use and kept in the
user's cache folder; without a compiler the reference is used, after one warning. The CPU unit also answers what else a
completion asks of a mesh and of a picture (:mod:`zbuffer.surface`, :mod:`zbuffer.pyramid`).

Conventions: a position is (row, column, depth) with rows growing downwards, columns to the right and depth towards the
camera (larger is nearer). Pixel (r, c) is the point (r, c): centres lie at integer coordinates, so an image of H x W
pixels spans rows 0 to H - 1 and columns 0 to W - 1. A triangle is front-facing if its corners run counter-clockwise as
the camera sees it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from . import backends

__all__ = ["Rasterization", "interpolate", "rasterize"]


class Rasterization(NamedTuple):
    """What each pixel of a batch of images shows; see :func:`rasterize`."""

    triangle: torch.Tensor
    """(B, H, W) int64: index of the visible triangle, -1 where there is none."""
    depth: torch.Tensor
    """(B, H, W): interpolated depth of the visible point, -infinity where there is none."""
    barycentrics: torch.Tensor
    """(B, H, W, 3): weights in [0, 1], summing to 1, of the triangle's corners; zeros where there is none."""
    mask: torch.Tensor
    """(B, H, W) bool: whether a triangle is visible."""


def rasterize(vertices, triangles, size, *, cull=False, backend="auto", trusted=False) -> Rasterization:
    """Find the nearest triangle at every pixel.

    Coverage is exact, however small or large the triangles: a pixel on an edge shared by two triangles belongs to one
    of them (top-left rule), so a closed surface has no holes and no pixel twice. Visibility compares the depth
    interpolated at the pixel, rounded to float32; the lower triangle index wins where it is equal. Triangles without
    area, or with a corner that is not finite (or beyond the float32 range), show nothing. The result does not depend on
    the backend, the number of threads (``torch.get_num_threads()``) or the rest of the batch.

    Args:
        vertices: (B, V, 3) floating point, (row, column, depth) of each vertex in pixels and any unit of depth.
            float16 and bfloat16 are computed and returned as float32.
        triangles: (T, 3) integers, indices of vertices, shared by the batch; int32 is fastest.
        size: (H, W) of the images.
        cull: leave out triangles that face away from the camera.
        backend: "auto", or one of "cpu", "cuda" and "reference" to insist on it.
        trusted: the caller knows that triangles refer to vertices that exist. Then nothing waits for a GPU to tell; a
            triangle that refers to none shows nothing there.

    Returns:
        A :class:`Rasterization`, on the device of ``vertices``. ``depth`` and ``barycentrics`` are differentiable
        (once) in ``vertices``, for a fixed choice of the visible triangle.

    Raises:
        TypeError: an argument is not of the type above.
        ValueError: a shape is wrong, the devices differ, or a triangle refers to a vertex that does not exist (on a GPU
            unless trusted).
        RuntimeError: the backend insisted on cannot be built.
    """
    height, width = _checked_size(size)
    _check_mesh(vertices, triangles)
    if vertices.dtype not in (torch.float32, torch.float64):
        vertices = vertices.float()
    arguments = (vertices, triangles, height, width, bool(cull), backend, bool(trusted))
    differentiable = vertices.requires_grad and torch.is_grad_enabled()
    triangle, depth, barycentrics = _Rasterize.apply(*arguments) if differentiable else backends.run(*arguments)
    return Rasterization(triangle, depth, barycentrics, triangle >= 0)


def interpolate(attributes, triangles, raster) -> torch.Tensor:
    """Interpolate what is known at the vertices to the pixels.

    Args:
        attributes: (B, V, C), or (V, C) for the whole batch.
        triangles: (T, 3) integers, as given to :func:`rasterize`.
        raster: what :func:`rasterize` returned, for B images.

    Returns:
        (B, H, W, C): at each pixel the barycentric mean of its triangle's corners, zeros where there is none.
        Differentiable in ``attributes`` and in ``raster.barycentrics``.

    Raises:
        ValueError: ``attributes`` has another shape or batch size.
    """
    batch = raster.triangle.shape[0]
    if attributes.dim() not in (2, 3) or (attributes.dim() == 3 and attributes.shape[0] != batch):
        raise ValueError(f"attributes must have shape ({batch}, V, C) or (V, C), not {tuple(attributes.shape)}")
    item, row, column = raster.mask.nonzero(as_tuple=True)
    corners = triangles.long()[raster.triangle[item, row, column]]  # (N, 3)
    values = attributes[item[:, None], corners] if attributes.dim() == 3 else attributes[corners]  # (N, 3, C)
    mean = (values * raster.barycentrics[item, row, column, :, None]).sum(1)
    image = mean.new_zeros((*raster.triangle.shape, attributes.shape[-1]))
    return image.index_put((item, row, column), mean)


class _Rasterize(torch.autograd.Function):
    """Rasterization by a backend, with the derivative of barycentrics and depth for the triangle that it chose.

    The barycentrics b of a pixel p solve sum_i b_i v_i = p, sum_i b_i = 1 for the corners' image positions v_i.
    Moving corner j by dv_j therefore acts as moving the pixel by -b_j dv_j: db_i = -b_j <grad b_i, dv_j>, where grad
    b_i is the constant gradient of b_i over the image.
    """

    @staticmethod
    def forward(ctx, vertices, triangles, *how):
        triangle, depth, barycentrics = backends.run(vertices, triangles, *how)
        ctx.save_for_backward(vertices, triangles, triangle, barycentrics)
        ctx.mark_non_differentiable(triangle)
        ctx.set_materialize_grads(False)
        return triangle, depth, barycentrics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, _, depth_gradient, barycentrics_gradient):
        """The vertices' gradient, for those of depth (B, H, W) and barycentrics (B, H, W, 3), None where none came."""
        vertices, triangles, triangle, barycentrics = ctx.saved_tensors
        pixels = (triangle >= 0).nonzero(as_tuple=True)
        corners = triangles.long()[triangle[pixels]]  # (N, 3)
        index = pixels[0][:, None] * vertices.shape[1] + corners  # into the batch's vertices, one after the other
        positions = vertices.reshape(-1, 3)[index].double()  # (N, 3 corners, 3)
        weights = barycentrics[pixels].double()  # (N, 3)

        slope = torch.zeros_like(weights)  # derivative of the loss in the barycentrics
        if barycentrics_gradient is not None:
            slope += barycentrics_gradient[pixels]
        gradient = torch.zeros_like(positions)
        if depth_gradient is not None:
            of_depth = depth_gradient[pixels].double()[:, None]
            slope += of_depth * positions[..., 2]
            gradient[..., 2] = of_depth * weights
        of_pixel = torch.einsum("ni,nix->nx", slope, _barycentric_gradients(positions[..., :2]))
        gradient[..., :2] = -weights[..., None] * of_pixel[:, None]

        total = torch.zeros((vertices.shape[0] * vertices.shape[1], 3), dtype=torch.float64, device=vertices.device)
        total.index_add_(0, index.reshape(-1), gradient.reshape(-1, 3))
        return total.reshape(vertices.shape).to(vertices.dtype), *[None] * 6


def _barycentric_gradients(positions):
    """Gradients (N, 3 barycentrics, 2) over the image, from the corners' (row, column) (N, 3, 2)."""
    opposite = positions.roll(-2, 1) - positions.roll(-1, 1)  # edge from corner i + 1 to corner i + 2
    across = torch.stack((opposite[..., 1], -opposite[..., 0]), dim=-1)
    area = (opposite[:, 2, 1] * -opposite[:, 1, 0]) - (opposite[:, 2, 0] * -opposite[:, 1, 1])
    return across / area[:, None, None]


def _checked_size(size):
    try:
        height, width = (int(extent) for extent in size)
    except (TypeError, ValueError):
        raise TypeError(f"size must be two integers (height, width), not {size!r}") from None
    if not (0 <= height < 2**31 and 0 <= width < 2**31):
        raise ValueError(f"size must not be negative or beyond 2**31, but is {(height, width)}")
    return height, width


def _check_mesh(vertices, triangles):
    if not (torch.is_tensor(vertices) and vertices.is_floating_point()):
        raise TypeError("vertices must be a floating-point tensor")
    if not torch.is_tensor(triangles) or triangles.is_floating_point() or triangles.is_complex() or (
            triangles.dtype == torch.bool):
        raise TypeError("triangles must be an integer tensor")
    if vertices.dim() != 3 or vertices.shape[2] != 3:
        raise ValueError(f"vertices must have shape (B, V, 3), not {tuple(vertices.shape)}")
    if triangles.dim() != 2 or triangles.shape[1] != 3:
        raise ValueError(f"triangles must have shape (T, 3), not {tuple(triangles.shape)}")
    if vertices.device != triangles.device:
        raise ValueError(f"vertices are on {vertices.device}, but triangles on {triangles.device}")
    if max(vertices.shape[1], triangles.shape[0]) >= 2**31:
        raise ValueError("a mesh must have fewer than 2**31 vertices and triangles")
