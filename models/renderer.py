"""Between the image and the UV map: projection, normals, shade, visibility, unwrapping and rendering (paper section 3).

Image positions are (row, column, depth): pixel centres at integer rows and columns, depth in micrometres, larger is
nearer. UV maps are (B, C, 192, 256). Nothing is stored per vertex of a texture, so its detail does not depend on the
mesh: unwrapping samples the image at each texel's projected position, rendering samples the map at each pixel's UV
coordinate, both bilinearly.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import nn

import zbuffer
from models import lighting
from models.morphable import UV_HEIGHT, UV_WIDTH, MorphableModel
from zbuffer import backends, surface

WINDOW_SIZE = 224  # pixels; the pose's translation is relative to this window
VISIBILITY_TOLERANCE = 1000.0  # micrometres of depth by which a texel facing the camera may disagree with the z-buffer
STEEPEST = 0.25  # normal_z below which the tolerance, which grows with the surface's slope, grows no more
SMALLEST_SQUARE = 1e-24  # squared length below which a vector has no direction
NEGLIGIBLE_WEIGHT = 1e-3  # a pixel with less weight in a bilinear sample does not decide about its visibility


def rotation(pose: torch.Tensor) -> torch.Tensor:
    """Rotation matrices (B, 3, 3) = Rx Ry Rz of pose (B, >= 3) in [-1, 1], whose first three are angles / (pi / 2)."""
    angles = pose[:, :3] * (math.pi / 2)
    sx, sy, sz = angles.sin().unbind(-1)
    cx, cy, cz = angles.cos().unbind(-1)
    return torch.stack([
        cy * cz, -cy * sz, sy,
        cx * sz + sx * sy * cz, cx * cz - sx * sy * sz, -sx * cy,
        sx * sz - cx * sy * cz, sx * cz + cx * sy * sz, cx * cy,
    ], dim=-1).unflatten(-1, (3, 3))


def rotate(vectors: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
    """Vectors (B, N, 3) of the model -> camera space (x right, y up, z nearer), by the pose's unscaled rotation.

    In the vectors' precision also under autocast.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        return torch.bmm(vectors, rotation(pose).to(vectors.dtype).transpose(1, 2))


def project(vertices: torch.Tensor, scale: torch.Tensor, pose: torch.Tensor, offset: int = 0) -> torch.Tensor:
    """Weak perspective: vertices (B, V, 3) in micrometres -> image positions (B, V, 3) of (row, column, depth).

    scale (B,) pixels per micrometre; pose (B, 5) in [-1, 1]: three angles, and translations t with
    0.5 * (t + 1) * 224 pixels. x = scale * R_x S + t_x, y = scale * R_y S + t_y, row = 223 - y, column = x,
    depth = R_z S. offset: pixels added to row and column, 16 for the 256 px crop around the window.
    """
    x, y, depth = rotate(vertices, pose).unbind(-1)
    shift = 0.5 * (pose[:, 3:5] + 1) * WINDOW_SIZE
    column = scale[:, None] * x + shift[:, :1] + offset
    row = (WINDOW_SIZE - 1 + offset) - (scale[:, None] * y + shift[:, 1:])
    return torch.stack([row, column, depth], dim=-1)


def vertex_normals(vertices: torch.Tensor, triangles: torch.Tensor,
                   incident: "Incidence | None" = None) -> torch.Tensor:
    """Area-weighted unit normals (B, V, 3) of vertices (B, V, 3); 0 where a vertex has no triangle with an area.

    triangles (T, 3), counter-clockwise seen from outside. incident: their `Incidence`, if it is known,
    which saves time where gradients are wanted and on GPUs.
    """
    if backends.usable(vertices):
        return surface.vertex_normals(vertices, triangles)
    corners = [vertices.index_select(1, triangles[:, k]) for k in range(3)]
    weighted = torch.linalg.cross(corners[1] - corners[0], corners[2] - corners[0], dim=-1)  # length: twice the area
    incident = incident or Incidence.of(triangles, vertices.shape[1])
    return _unit(weighted_sums(weighted, incident.triangles, incident.first))


class Incidence(NamedTuple):
    """Triangles around each of V vertices: triangles (3T,) vertex by vertex, first (V,) each vertex' first place."""

    triangles: torch.Tensor
    first: torch.Tensor

    @classmethod
    def of(cls, triangles: torch.Tensor, vertex_count: int) -> "Incidence":
        """Of triangles (T, 3)."""
        corners = triangles.long().flatten()
        counts = torch.zeros(vertex_count, dtype=torch.int64, device=corners.device)
        counts.index_add_(0, corners, torch.ones_like(corners))
        return cls(corners.argsort(stable=True) // 3, counts.cumsum(0) - counts)


def weighted_sums(values: torch.Tensor, index: torch.Tensor, first: torch.Tensor,
                  weights: torch.Tensor | None = None) -> torch.Tensor:
    """Sums over rows of values (B, M, C): (B, N, C), whose n-th row is that of values[:, index] from first[n] on.

    index (I,); first (N,), ascending, where each sum's part of `index` begins; weights (I,) of the rows. One pass over
    the memory, where gathering, weighting and adding take one each.
    """
    batch, rows = values.shape[:2]
    count = len(index)
    if batch > 1:
        index = (index + rows * torch.arange(batch, device=index.device)[:, None]).flatten()
        first = (first + count * torch.arange(batch, device=index.device)[:, None]).flatten()
        weights = None if weights is None else weights.repeat(batch)
    sums = nn.functional.embedding_bag(index, values.flatten(0, 1), first, mode="sum", per_sample_weights=weights)
    return sums.unflatten(0, (batch, -1))


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (..., 3) of length 1; 0 stays 0."""
    x, y, z = vectors.unbind(-1)
    return vectors / (x * x + y * y + z * z).clamp(min=SMALLEST_SQUARE).sqrt()[..., None]


def sample(maps: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Sample maps (B, C, H, W) bilinearly at rows, columns (B, h, w) -> (B, C, h, w).

    Pixel centres are at integer coordinates. A position outside the map takes the nearest point of its border.
    """
    height, width = maps.shape[-2:]
    grid = torch.stack([columns * (2 / max(width - 1, 1)) - 1, rows * (2 / max(height - 1, 1)) - 1], dim=-1)
    return nn.functional.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=True)


class Renderer(nn.Module):
    """Unwraps images to the UV map of a morphable model, and renders UV maps through its mesh.

    Buffers (not stored in checkpoints): uv_mask (192, 256) bool, the texels that lie on the face; textured (T,) bool,
    the triangles that the UV map shows where vertex_uv says (published models clamp vertices outside the map).
    """

    def __init__(self, morphable: MorphableModel):
        super().__init__()
        self.morphable = morphable
        least, most = morphable.triangles.aminmax()
        if least < 0 or most >= len(morphable.mean):
            raise ValueError(f"triangles refer to vertices {least} to {most}, but there are {len(morphable.mean)}")
        mask = morphable.uv_triangle >= 0
        inside = mask.flatten().nonzero()[:, 0]
        nearest = ndimage.distance_transform_edt(~mask.cpu().numpy(), return_distances=False, return_indices=True)

        def buffer(name: str, tensor: torch.Tensor) -> None:
            self.register_buffer(name, tensor, persistent=False)

        buffer("uv_mask", mask)
        buffer("triangles", morphable.triangles.int())  # what the z-buffer takes without a copy
        buffer("corner_uv", morphable.vertex_uv[morphable.triangles].flatten(1))
        incident = Incidence.of(morphable.triangles, len(morphable.mean))
        buffer("incident_triangles", incident.triangles)
        buffer("incident_first", incident.first)
        buffer("texels", inside)
        buffer("texel_corners", morphable.triangles[morphable.uv_triangle.flatten()[inside]].flatten())
        buffer("texel_first", torch.arange(0, 3 * len(inside), 3, device=inside.device))
        buffer("texel_weights", morphable.uv_barycentrics.flatten(0, 1)[inside].flatten())
        nearest_texel = nearest[0].astype(np.int64) * UV_WIDTH + nearest[1]
        buffer("nearest_texel", torch.from_numpy(nearest_texel).flatten().to(mask.device))
        buffer("textured", self._find_textured())

    def _find_textured(self) -> torch.Tensor:
        """Triangles whose centre the UV map shows at the centre of their vertex_uv, give or take some texels."""
        triangles, mean = self.morphable.triangles, self.morphable.mean
        corners, uv_corners = mean[triangles], self.morphable.vertex_uv[triangles]
        size = (corners - corners.roll(1, dims=1)).norm(dim=-1).amax(dim=1)
        row, column = uv_corners.mean(dim=1).round().long().unbind(-1)
        texel_positions = self.to_uv(mean[None])[0]
        shown = texel_positions.flatten(1).T[self.nearest_texel].reshape(UV_HEIGHT, UV_WIDTH, 3)[row, column]
        texel_size = (texel_positions[:, :, 1:] - texel_positions[:, :, :-1]).norm(dim=0)
        texel_size = texel_size[self.uv_mask[:, 1:] & self.uv_mask[:, :-1]].median()
        return (shown - corners.mean(dim=1)).norm(dim=-1) <= size / 4 + 3 * texel_size

    def to_uv(self, attributes: torch.Tensor) -> torch.Tensor:
        """Interpolate vertex attributes (B, V, C) to the UV map (B, C, 192, 256), 0 outside the face."""
        return self._to_map(self._at_texels(attributes))

    def _at_texels(self, attributes: torch.Tensor) -> torch.Tensor:
        """Interpolate vertex attributes (B, V, C) to the N texels that lie on the face: (B, N, C)."""
        return weighted_sums(attributes, self.texel_corners, self.texel_first, self.texel_weights.to(attributes.dtype))

    def _to_map(self, values: torch.Tensor) -> torch.Tensor:
        """Values (B, N, C) of the face's texels -> UV map (B, C, 192, 256), 0 (False) outside."""
        maps = values.new_zeros(len(values), values.shape[-1], UV_HEIGHT * UV_WIDTH)
        return maps.index_copy(2, self.texels, values.transpose(1, 2)).unflatten(-1, (UV_HEIGHT, UV_WIDTH))

    def rasterize(self, positions: torch.Tensor, size: tuple[int, int]) -> zbuffer.Rasterization:
        """What the pixels of an image of size (H, W) show of the mesh at positions (B, V, 3), without back faces."""
        return zbuffer.rasterize(positions, self.triangles, size, cull=True, trusted=True)

    def uv_normals(self, vertices: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
        """Unit camera-space normals on the UV map, 0 outside: vertices (B, V, 3), pose (B, 5) -> (B, 3, 192, 256)."""
        incident = Incidence(self.incident_triangles, self.incident_first)
        normals = vertex_normals(vertices, self.triangles, incident)
        if backends.usable(normals, pose, self.texel_weights):
            texels = surface.Texels(self.texel_corners.view(-1, 3), self.texel_weights.view(-1, 3))
            return surface.texel_normals(normals, rotation(pose), texels, self.texels, (UV_HEIGHT, UV_WIDTH))
        return self._to_map(_unit(rotate(self._at_texels(normals), pose)))

    def uv_shade(self, normals: torch.Tensor, light: torch.Tensor) -> torch.Tensor:
        """Shade, not clamped, of UV normals (B, 3, 192, 256) under light (B, 27); 1 outside the face."""
        if backends.usable(normals, light):
            return surface.quadratic(normals, self.uv_mask, lighting.shade_polynomials(light), 1.0)
        return torch.where(self.uv_mask, lighting.shade_maps(normals, light), 1.0)

    def unwrap(self, image: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Image (B, C, H, W) through the mesh at positions (B, V, 3) -> UV map (B, C, 192, 256), 0 outside the face.

        Texels that are not visible (see :meth:`uv_visibility`) show whatever covers them.
        """
        texels = self._at_texels(positions)
        if backends.usable(image, texels, self.texel_weights) and min(image.shape[2:]) > 1:
            return surface.sample(image, texels, self.texels, (UV_HEIGHT, UV_WIDTH))
        rows, columns, _ = self._to_map(texels).unbind(1)
        return sample(image, rows, columns) * self.uv_mask

    @torch.no_grad()
    def uv_visibility(self, positions: torch.Tensor, normals: torch.Tensor,
                      raster: zbuffer.Rasterization) -> torch.Tensor:
        """Which texels the image shows -> (B, 1, 192, 256) bool.

        positions (B, V, 3) and their raster; normals (B, 3, 192, 256) from :meth:`uv_normals`. A texel is visible if
        its normal faces the camera, it lies inside the image, and every pixel that its bilinear sample uses shows the
        surface at the texel's depth: the plane of the pixel's triangle, continued to the texel's position, agrees
        within VISIBILITY_TOLERANCE / normal_z. So neither self-occluded texels nor those on an outline, whose sample is
        mixed with what lies behind, are visible.
        """
        batch, height, width = raster.mask.shape
        texels = self._at_texels(positions)
        steepness = normals[:, 2].flatten(1).index_select(1, self.texels).expand(batch, -1)
        if backends.usable(positions, texels, steepness, raster.depth) and min(height, width) > 1:
            tolerance = surface.Tolerance(VISIBILITY_TOLERANCE, STEEPEST, NEGLIGIBLE_WEIGHT)
            visible = surface.visible_texels(positions, self.triangles, raster, texels, steepness, tolerance)
            return self._to_map(visible[..., None])
        rows, columns, depth = texels.unbind(-1)  # (B, N) each
        visible = (steepness > 0) & (rows >= 0) & (rows <= height - 1) & (columns >= 0) & (columns <= width - 1)
        tolerance = VISIBILITY_TOLERANCE / steepness.clamp(min=STEEPEST)
        planes = [part.flatten() for part in self._planes(positions, raster)]
        # Clamped as whole numbers: a position that is no number must not become the index of a pixel.
        top, left = rows.floor().long().clamp(0, height - 2), columns.floor().long().clamp(0, width - 2)
        first = torch.arange(0, batch * height * width, height * width, device=positions.device)[:, None]
        first_pixel = (first + top * width + left).flatten()
        pixels = torch.stack([first_pixel + step for step in (0, 1, width, width + 1)]).flatten()
        shown, per_row, per_column = (part.index_select(0, pixels).view(4, *rows.shape) for part in planes)
        below, beside = rows - top, columns - left
        shown = torch.addcmul(shown, per_row, torch.stack([below, below, below - 1, below - 1]))
        shown = torch.addcmul(shown, per_column, torch.stack([beside, beside - 1, beside, beside - 1]))
        agrees = (shown - depth).abs() <= tolerance  # false where the pixel is empty
        above, left_of = 1 - below, 1 - beside
        share = torch.stack([above * left_of, above * beside, below * left_of, below * beside])
        visible &= (agrees | (share <= NEGLIGIBLE_WEIGHT)).all(0)
        return self._to_map(visible[..., None])

    def _planes(self, positions: torch.Tensor, raster: zbuffer.Rasterization) -> tuple[torch.Tensor, ...]:
        """Depth, and its change per row and per column, of the triangle that each pixel shows: (B, H, W) each."""
        first, second, third = (positions.index_select(1, self.triangles[:, k]) for k in range(3))
        x, y, z = torch.linalg.cross(second - first, third - first, dim=-1).unbind(-1)
        start = torch.arange(0, z.numel(), z.shape[1], device=positions.device)
        shown = (start[:, None, None] + raster.triangle.clamp(min=0)).flatten()
        # The change is that of every triangle: there are fewer of them than pixels.
        changes = ((-part / z).flatten().index_select(0, shown).view_as(raster.depth) for part in (x, y))
        return raster.depth, *changes

    def uv_coordinates(self, raster: zbuffer.Rasterization) -> torch.Tensor:
        """UV coordinate [row, column] of the point that each pixel shows: (B, H, W, 2), 0 where there is none."""
        return torch.stack(self._uv_coordinates(raster), dim=-1)

    def _uv_coordinates(self, raster: zbuffer.Rasterization) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`uv_coordinates`, rows and columns (B, H, W)."""
        corners = self.corner_uv.to(raster.barycentrics.dtype).index_select(0, raster.triangle.clamp(min=0).flatten())
        row0, column0, row1, column1, row2, column2 = corners.view(*raster.triangle.shape, 6).unbind(-1)
        first, second, third = raster.barycentrics.unbind(-1)
        rows = torch.addcmul(torch.addcmul(row0 * first, row1, second), row2, third)
        return rows, torch.addcmul(torch.addcmul(column0 * first, column1, second), column2, third)

    def coverage(self, raster: zbuffer.Rasterization) -> torch.Tensor:
        """Pixels that show a part of the mesh within a texel of what the UV map covers: (B, 1, H, W) bool."""
        empty = self.uv_mask.new_zeros(len(raster.mask), 0, UV_HEIGHT, UV_WIDTH, dtype=raster.barycentrics.dtype)
        return self.render_covered(empty, raster)[1]

    def render(self, uv_map: torch.Tensor, raster: zbuffer.Rasterization) -> torch.Tensor:
        """UV map (B, C, 192, 256) seen through the mesh -> image (B, C, H, W), 0 outside :meth:`coverage`.

        Texels outside the face first take the value of the nearest texel on it, so that no zeros bleed in at the map's
        edge. Differentiable in the map, and in the positions through the raster's barycentrics.
        """
        return self.render_covered(uv_map, raster)[0]

    def render_covered(self, uv_map: torch.Tensor, raster: zbuffer.Rasterization) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`render` and :meth:`coverage` at once, for little more than one of them."""
        if backends.usable(uv_map, raster.barycentrics, self.corner_uv):
            layout = surface.UVLayout(self.nearest_texel, self.uv_mask, self.corner_uv, self.textured)
            return surface.draw(uv_map, layout, raster)
        # With two dimensions PyTorch selects ten times as fast as with three.
        filled = uv_map.flatten(2).flatten(0, 1).index_select(1, self.nearest_texel).view(uv_map.shape)
        on_face = self.uv_mask.to(filled.dtype).expand(len(filled), 1, -1, -1)
        sampled = sample(torch.cat([filled, on_face], dim=1), *self._uv_coordinates(raster))
        textured = self.textured.index_select(0, raster.triangle.clamp(min=0).flatten()).view_as(raster.mask)
        coverage = (raster.mask & textured)[:, None] & (sampled[:, -1:] > 0)
        return sampled[:, :-1] * coverage, coverage
