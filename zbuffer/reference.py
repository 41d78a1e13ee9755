"""The rasterizer in PyTorch: slow, short and the yardstick for the compiled ones.

It repeats ``csrc/triangle.h`` operation for operation in double precision, so triangle, depth and barycentrics agree
with the compiled backends exactly. Where rounding makes the side of an edge uncertain it asks exact rational arithmetic
(:mod:`fractions`), where the compiled code uses floating-point expansions.
"""

from __future__ import annotations

from fractions import Fraction

import torch

LARGEST = torch.finfo(torch.float32).max  # coordinates beyond it count as not finite, whatever the type
UNCERTAIN = 2.0**-51  # bound on the relative rounding error of an edge function, see csrc/triangle.h
EMPTY = torch.iinfo(torch.int64).min  # key of a pixel that no triangle covers
FRAGMENTS_AT_ONCE = 1 << 20  # (triangle, pixel) pairs per step, to bound memory
LOWER_HALF = 0xFFFFFFFF


def rasterize(vertices, triangles, height, width, cull):
    """Rasterize a batch; arguments as :func:`zbuffer.rasterize` has checked them, ``triangles`` as int64.

    Returns triangle (B, H, W) int64, depth (B, H, W) and barycentrics (B, H, W, 3).
    """
    items = [_rasterize_item(item, triangles, height, width, cull) for item in vertices]
    if not items:
        return (torch.empty((0, height, width), dtype=torch.int64, device=vertices.device),
                vertices.new_empty((0, height, width)), vertices.new_empty((0, height, width, 3)))
    return tuple(torch.stack(part) for part in zip(*items))


def _rasterize_item(vertices, triangles, height, width, cull):
    corners = vertices.double()[triangles]  # (T, 3 corners, 3)
    first, last, visible = _pixel_boxes(corners, height, width)
    area = edge(corners[:, 0], corners[:, 1], corners[:, 2, :2])
    # Rows grow downwards, so counter-clockwise as the camera sees it (front-facing) is a negative area.
    visible = visible & (area < 0 if cull else area != 0)
    sign = torch.where(area > 0, 1.0, -1.0).to(area)

    keys = torch.full((height * width,), EMPTY, dtype=torch.int64, device=vertices.device)
    for chosen in _chunks(visible.nonzero()[:, 0], first, last):
        index, pixel = _fragments(chosen, first, last)
        weights, covered = _cover(corners[index], sign[index], pixel)
        index, pixel, weights = index[covered], pixel[covered], weights[covered]
        key = pack(_interpolated_depth(corners[index], weights), index)
        keys.scatter_reduce_(0, pixel[:, 0] * width + pixel[:, 1], key, "amax")
    return _resolve(keys, corners, sign, vertices.dtype, height, width)


def _resolve(keys, corners, sign, dtype, height, width):
    """What each pixel shows, from its key."""
    triangle = torch.where(keys == EMPTY, -1, LOWER_HALF - (keys & LOWER_HALF))
    depth = torch.full((height * width,), -torch.inf, dtype=dtype, device=keys.device)
    barycentrics = torch.zeros((height * width, 3), dtype=dtype, device=keys.device)
    covered = (triangle >= 0).nonzero()[:, 0]
    index = triangle[covered]
    pixel = torch.stack((covered // max(width, 1), covered % max(width, 1)), dim=-1)
    weights, _ = _cover(corners[index], sign[index], pixel)
    depth[covered] = _interpolated_depth(corners[index], weights).to(dtype)
    barycentrics[covered] = (weights / _sum(weights)[:, None]).to(dtype)
    return (triangle.reshape(height, width), depth.reshape(height, width),
            barycentrics.reshape(height, width, 3))


def _pixel_boxes(corners, height, width):
    """First and last (row, column) (T, 2) int64 that each triangle may cover, and which (T,) may cover any."""
    limit = torch.tensor([height - 1.0, width - 1.0], dtype=corners.dtype, device=corners.device)
    positions = corners[..., :2]
    first = positions.amin(1).ceil().clamp(min=0)
    last = torch.minimum(positions.amax(1).floor(), limit)
    finite = (corners.abs() <= LARGEST).all(-1).all(-1)  # NaN compares false
    visible = finite & (first <= last).all(-1)
    zero = torch.zeros_like(first)
    return torch.where(visible[:, None], first, zero).long(), torch.where(visible[:, None], last, zero).long(), visible


def _chunks(chosen, first, last):
    """Split triangle indices so that no part has many more than FRAGMENTS_AT_ONCE fragments."""
    fragments = (last[chosen] - first[chosen] + 1).prod(-1)
    step = (fragments.cumsum(0) - fragments) // FRAGMENTS_AT_ONCE
    sizes = torch.unique_consecutive(step, return_counts=True)[1]
    return chosen.split(sizes.tolist()) if len(chosen) else []


def _fragments(chosen, first, last):
    """All pairs of a triangle (N,) and a pixel (N, 2) of its box."""
    extent = last[chosen] - first[chosen] + 1
    counts = extent.prod(-1)
    index = chosen.repeat_interleave(counts)
    start = (counts.cumsum(0) - counts).repeat_interleave(counts)
    within = torch.arange(len(index), device=chosen.device) - start
    columns = extent[:, 1].repeat_interleave(counts)
    pixel = first[index] + torch.stack((within // columns, within % columns), dim=-1)
    return index, pixel


def _cover(corners, sign, pixel):
    """Barycentrics (N, 3) up to a common positive factor, and whether (N,) the triangle covers the pixel."""
    weights, inside = [], torch.ones_like(sign, dtype=torch.bool)
    for corner in range(3):
        start, end = corners[:, (corner + 1) % 3], corners[:, (corner + 2) % 3]
        weight = sign * edge(start, end, pixel.to(corners.dtype))
        # Top-left rule: of two triangles that share an edge the one to the right of it, or below it if it is
        # horizontal, owns the pixels exactly on it.
        rise = sign * (start[:, 0] - end[:, 0])
        owned = (rise > 0) | ((rise == 0) & (sign * (end[:, 1] - start[:, 1]) > 0))
        inside &= (weight > 0) | ((weight == 0) & owned)
        weights.append(weight)
    return torch.stack(weights, dim=-1), inside


def _sum(values):
    return values[..., 0] + values[..., 1] + values[..., 2]  # in this order, as in csrc/triangle.h


def _interpolated_depth(corners, weights):
    return _sum(weights * corners[..., 2]) / _sum(weights)


def edge(start, end, point):
    """Twice the signed area of the triangles (start, end, point), (N, 2 or more) double -> (N,).

    Positive if they run clockwise on the screen. The sign is exact; the value has double precision.
    """
    left = (end[:, 1] - start[:, 1]) * (point[:, 0] - start[:, 0])
    right = (end[:, 0] - start[:, 0]) * (point[:, 1] - start[:, 1])
    value = left - right
    certain = value.abs() > UNCERTAIN * (left.abs() + right.abs())
    certain |= (left == 0) & (right == 0)  # a factor of each product is exactly zero
    certain |= ~torch.isfinite(value)  # such triangles are left out anyway
    for i in (~certain).nonzero()[:, 0].tolist():
        numbers = (*start[i, :2].tolist(), *end[i, :2].tolist(), *point[i, :2].tolist())
        if all(abs(number) <= LARGEST for number in numbers):  # products of others may overflow; they are left out, too
            value[i] = _exact_edge(*numbers)
    return value


def _exact_edge(ar, ac, br, bc, pr, pc):
    """The edge function of Python floats, its sign exact, its value rounded as exact_edge of csrc/triangle.h rounds."""
    expansion = []
    for a, b in ((bc, pr), (-bc, ar), (-ac, pr), (br, ac), (-br, pc), (ar, pc)):
        product = a * b
        _add_exactly(expansion, float(Fraction(a) * Fraction(b) - Fraction(product)))
        _add_exactly(expansion, product)
    value = 0.0
    for part in expansion:
        value += part
    return value


def _add_exactly(expansion, term):
    """Adds a float to a list of non-overlapping floats, smallest first, without rounding."""
    for i, part in enumerate(expansion):
        total = term + part
        virtual = total - term
        expansion[i] = (term - (total - virtual)) + (part - virtual)
        term = total
    expansion.append(term)


def pack(depth, index):
    """One int64 per fragment whose maximum is the nearest triangle and, at equal depth, the lowest index.

    The depth, rounded to float32, is the upper half (its bits reordered so that integers compare as the floats do), the
    inverted index the lower half.
    """
    bits = (depth.float() + 0.0).view(torch.int32)  # adding zero turns -0 into +0, which compare equal
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (ordered << 32) | (LOWER_HALF - index)
