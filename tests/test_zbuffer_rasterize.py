"""What the rasterizer shows: hand-computed cases, an oracle in rational numbers, PyTorch3D, and its own backends."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zbuffer
from zbuffer import backends, native

ROOT = Path(__file__).resolve().parent.parent
HAS_CPU_UNIT = not isinstance(backends.load("cpu"), native.BuildError)
BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(not HAS_CPU_UNIT, reason="no C++ compiler"))]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def mesh(*corners, dtype=torch.float32):
    """Vertices (1, 3 T, 3) and triangles (T, 3) from lists of three (row, column, depth)."""
    vertices = torch.tensor(corners, dtype=dtype).reshape(1, -1, 3)
    return vertices, torch.arange(vertices.shape[1]).reshape(-1, 3)


def random_mesh(seed, items=1, vertex_count=40, triangle_count=60, extent=24, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    vertices = torch.rand((items, vertex_count, 3), generator=generator, dtype=dtype) * (extent + 8) - 4
    return vertices, torch.randint(0, vertex_count, (triangle_count, 3), generator=generator)


def grid(rows, columns, generator, jitter):
    """A tessellated square [0, 20] x [0, 20] with random diagonals and windings, its inner vertices moved about."""
    r, c = torch.meshgrid(torch.linspace(0, 20, rows + 1), torch.linspace(0, 20, columns + 1), indexing="ij")
    inner = ((r > 0) & (r < 20))[..., None], ((c > 0) & (c < 20))[..., None]
    shift = (torch.rand((rows + 1, columns + 1, 2), generator=generator) - 0.5) * jitter
    positions = torch.stack((r, c), dim=-1) + shift * torch.cat(inner, dim=-1)
    vertices = torch.cat((positions, torch.rand((rows + 1, columns + 1, 1), generator=generator)), dim=-1)
    index = torch.arange((rows + 1) * (columns + 1)).reshape(rows + 1, columns + 1)
    quads = torch.stack((index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]), dim=-1).reshape(-1, 4)
    turn = torch.randint(0, 2, (len(quads), 1), generator=generator)
    quads = torch.where(turn == 1, quads.roll(1, 1), quads)
    triangles = torch.stack((quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]), dim=1).reshape(-1, 3)
    flip = torch.randint(0, 2, (len(triangles), 1), generator=generator)
    return vertices.reshape(1, -1, 3), torch.where(flip == 1, triangles.flip(1), triangles)


def oracle(vertices, triangles, size):
    """Triangle of each pixel by exact rational arithmetic, one pixel and triangle at a time."""
    result = torch.full(size, -1)
    nearest = torch.full(size, -math.inf)
    for t, corners in enumerate(triangles.tolist()):
        if not vertices[corners].isfinite().all():
            continue
        a, b, c = ([Fraction(x) for x in vertices[i].tolist()] for i in corners)
        area = (b[1] - a[1]) * (c[0] - a[0]) - (b[0] - a[0]) * (c[1] - a[1])
        if area == 0:
            continue
        if area < 0:
            b, c = c, b
        for row in range(size[0]):
            for column in range(size[1]):
                weights = []
                for start, end in ((b, c), (c, a), (a, b)):
                    weight = (end[1] - start[1]) * (row - start[0]) - (end[0] - start[0]) * (column - start[1])
                    top_left = end[0] < start[0] or (end[0] == start[0] and end[1] > start[1])
                    if weight > 0 or (weight == 0 and top_left):
                        weights.append(weight)
                if len(weights) == 3:
                    depth = sum(w * corner[2] for w, corner in zip(weights, (a, b, c))) / abs(area)
                    depth = torch.tensor(float(depth), dtype=torch.float64).float()
                    if depth > nearest[row, column]:
                        nearest[row, column], result[row, column] = depth, t
    return result


def assert_equal(ours, theirs):
    for name, a, b in zip(ours._fields, ours, theirs):
        assert torch.equal(a, b), name


@every_backend
def test_one_triangle_by_hand(backend):
    vertices, triangles = mesh([[0, 0, 1], [0, 4, 5], [4, 0, 9]])
    raster = zbuffer.rasterize(vertices, triangles, (5, 6), backend=backend)
    # The left and the top edge belong to the triangle, the slanted one does not.
    expected = torch.zeros(5, 6, dtype=torch.bool)
    for row, count in enumerate((4, 3, 2, 1)):
        expected[row, :count] = True
    assert torch.equal(raster.mask[0], expected)
    assert torch.equal(raster.triangle[0], torch.where(expected, 0, -1))
    assert raster.depth[0, 1, 2] == 1 + 2 * 1 + 1 * 2
    assert torch.equal(raster.barycentrics[0, 1, 2], torch.tensor([0.25, 0.5, 0.25]))
    assert (raster.depth[0, 4] == -torch.inf).all() and (raster.barycentrics[0, 4] == 0).all()
    assert raster.triangle.dtype == torch.int64 and raster.depth.dtype == torch.float32


@every_backend
def test_nearer_wins_per_pixel(backend):
    """Two triangles that cross: each is in front on its own side, and neither is at the depth of its mean."""
    vertices, triangles = mesh([[-1, -1, 0], [-1, 21, 20], [21, -1, 0]], [[-1, -1, 20], [-1, 21, 0], [21, -1, 20]])
    raster = zbuffer.rasterize(vertices, triangles, (3, 12), backend=backend)
    column = torch.arange(12.0)
    first, second = (column + 1) / 22 * 20, 20 - (column + 1) / 22 * 20
    assert torch.equal(raster.triangle[0, 1], (second > first).long())
    torch.testing.assert_close(raster.depth[0, 1], torch.maximum(first, second))


@every_backend
@pytest.mark.parametrize("depth", [0.1, 0.0, -3.7e4, 1e30])
def test_equal_depth_goes_to_the_lower_index(backend, depth):
    square = [[[-1, -1, depth], [-1, 9, depth], [9, -1, depth]]]
    vertices, triangles = mesh(*square * 4)
    # The same triangle with its corners in other orders, some backwards, at 0 also with the other sign of zero.
    triangles = torch.stack((triangles[0].roll(1), triangles[1].flip(0), triangles[2], triangles[3]))
    vertices[0, 9:, 2] *= 1 if depth else -1
    for order in (triangles, triangles.flip(0)):
        raster = zbuffer.rasterize(vertices, order, (4, 4), backend=backend)
        assert (raster.triangle == 0).all()


@every_backend
def test_culling_keeps_what_is_counter_clockwise_for_the_camera(backend):
    # In (x right, y up): (0, 0), (1, 0), (0, 1) is counter-clockwise; row = -y.
    front = [[3, 0, 0], [3, 3, 0], [0, 0, 0]]
    vertices, triangles = mesh(front)
    for order, seen in ((triangles, True), (triangles.flip(1), False)):
        assert zbuffer.rasterize(vertices, order, (4, 4), cull=True, backend=backend).mask.any() == seen
        assert zbuffer.rasterize(vertices, order, (4, 4), cull=False, backend=backend).mask.any()


@every_backend
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 9), columns=st.integers(1, 9), jitter=st.sampled_from([0, 1]))
def test_tessellated_square_is_covered_exactly_once(backend, seed, rows, columns, jitter):
    """No hole and no pixel twice along shared edges, whatever the diagonals and windings; many pixels lie on edges."""
    generator = torch.Generator().manual_seed(seed)
    vertices, triangles = grid(rows, columns, generator, jitter * 20 / max(rows, columns) * 0.4)
    count = torch.zeros(22, 22)
    together = zbuffer.rasterize(vertices, triangles, (22, 22), backend=backend)
    for triangle in triangles:
        count += zbuffer.rasterize(vertices, triangle[None], (22, 22), backend=backend).mask[0]
    expected = torch.zeros(22, 22)
    expected[:20, :20] = 1  # the right and the lower edge belong to neighbours that are not there
    assert torch.equal(count, expected)
    assert torch.equal(together.mask[0], expected.bool())


@every_backend
def test_edges_through_pixels_at_awkward_slopes(backend):
    """A fan around a pixel centre, its rim at coordinates whose products double precision rounds."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        angles = torch.rand(9, generator=generator, dtype=torch.float64).sort().values * 2 * math.pi
        rim = torch.stack((angles.sin(), angles.cos()), dim=-1) * (1 + 1e3 * torch.rand(9, 1, generator=generator)) + 4
        # Each rim point's opposite makes lines that pass through the centre (4, 4) almost exactly.
        rim = torch.cat((rim, 8 - rim * (1 + 1e-16)))
        order = torch.atan2(rim[:, 0] - 4, rim[:, 1] - 4).argsort()
        positions = torch.cat((torch.tensor([[4.0, 4.0]], dtype=torch.float64), rim[order]))
        vertices = torch.cat((positions, torch.zeros(19, 1)), dim=-1)[None]
        count = torch.zeros(9, 9)
        for i in range(18):
            fan = torch.tensor([[0, 1 + i, 1 + (i + 1) % 18]])
            count += zbuffer.rasterize(vertices, fan, (9, 9), backend=backend).mask[0]
        assert count[4, 4] == 1 and count.max() == 1


@every_backend
@pytest.mark.parametrize("rounded", [False, True])
def test_equals_the_rational_oracle(backend, rounded):
    for seed in range(4):
        vertices, triangles = random_mesh(seed, vertex_count=20, triangle_count=25, extent=10)
        if rounded:  # many pixels on edges and corners, many equal depths, some triangles without area
            vertices = vertices.round()
        raster = zbuffer.rasterize(vertices, triangles, (9, 10), backend=backend)
        assert torch.equal(raster.triangle[0], oracle(vertices[0], triangles, (9, 10)))


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_depth_and_barycentrics_agree_with_the_positions(backend, dtype):
    vertices, triangles = random_mesh(1, items=2, dtype=dtype)
    raster = zbuffer.rasterize(vertices, triangles, (24, 24), backend=backend)
    item, row, column = raster.mask.nonzero(as_tuple=True)
    points = zbuffer.interpolate(vertices, triangles, raster)[item, row, column]
    expected = torch.stack((row.to(dtype), column.to(dtype), raster.depth[item, row, column]), dim=-1)
    torch.testing.assert_close(points, expected, rtol=1e-5, atol=1e-4 if dtype == torch.float32 else 1e-11)
    weights = raster.barycentrics[raster.mask]
    assert (weights >= 0).all() and (weights <= 1).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights), dtype=dtype))


@every_backend
def test_not_finite_degenerate_and_huge(backend):
    nan, inf = math.nan, math.inf
    behind = [[-1, -1, -5], [-1, 99, -5], [99, -1, -5]]
    for value in (nan, inf, -inf):
        for corner in range(3):
            for axis in range(3):
                broken = [[-1.0, -1.0, 1.0], [-1.0, 99.0, 1.0], [99.0, -1.0, 1.0]]
                broken[corner][axis] = value
                vertices, triangles = mesh(broken, behind)
                raster = zbuffer.rasterize(vertices, triangles, (4, 5), backend=backend)
                assert (raster.triangle == 1).all() and (raster.depth == -5).all()
    line = [[0, 0, 1], [2, 2, 1], [4, 4, 1]]
    point = [[1, 1, 1]] * 3
    huge = [[-1e30, -1e30, 2], [-1e30, 3e38, 2], [3e38, -1e30, 2]]
    vertices, triangles = mesh(line, point, huge)
    raster = zbuffer.rasterize(vertices, triangles, (4, 5), backend=backend)
    assert (raster.triangle == 2).all() and (raster.depth == 2).all()
    vertices, triangles = mesh([[-1e200, -1, 0], [-1, 1e200, 0], [1e200, -1, 0]], dtype=torch.float64)
    assert not zbuffer.rasterize(vertices, triangles, (4, 5), backend=backend).mask.any()


@every_backend
def test_partly_and_wholly_outside(backend):
    vertices, triangles = mesh([[-50, 2, 0], [60, -40, 0], [70, 45, 0]])
    large = zbuffer.rasterize(vertices + torch.tensor([60.0, 60, 0]), triangles, (140, 140), backend=backend)
    inside = zbuffer.rasterize(vertices, triangles, (9, 7), backend=backend)
    assert torch.equal(inside.mask[0], large.mask[0, 60:69, 60:67])
    for shift in (torch.tensor([200.0, 0, 0]), torch.tensor([0, -200.0, 0]), torch.tensor([-0.0, 1e9, 0])):
        assert not zbuffer.rasterize(vertices + shift, triangles, (9, 7), backend=backend).mask.any()


@every_backend
@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 0), (2, 5, 0)])
@pytest.mark.parametrize("size", [(0, 0), (0, 3), (4, 0), (4, 3)])
def test_nothing_to_draw(backend, shape, size):
    items, vertex_count, triangle_count = shape
    vertices = torch.rand(items, vertex_count, 3)
    triangles = torch.zeros(triangle_count, 3, dtype=torch.int64)
    raster = zbuffer.rasterize(vertices, triangles, size, backend=backend)
    assert raster.triangle.shape == (items, *size) and raster.barycentrics.shape == (items, *size, 3)
    assert not raster.mask.any() and (raster.depth == -torch.inf).all()
    assert zbuffer.interpolate(vertices, triangles, raster).shape == (items, *size, 3)


@every_backend
def test_batch_equals_its_items(backend):
    vertices, triangles = random_mesh(4, items=5)
    batch = zbuffer.rasterize(vertices, triangles, (24, 20), backend=backend)
    for i in range(5):
        alone = zbuffer.rasterize(vertices[i:i + 1], triangles, (24, 20), backend=backend)
        assert_equal(zbuffer.Rasterization(*(part[i:i + 1] for part in batch)), alone)


@pytest.mark.skipif(not HAS_CPU_UNIT, reason="no C++ compiler")
@pytest.mark.parametrize("dtype, items", [(torch.float32, 1), (torch.float32, 3), (torch.float64, 1)])
def test_compiled_equals_the_reference_for_every_thread_count(dtype, items):
    threads = torch.get_num_threads()
    try:
        for seed, cull in ((0, False), (1, True), (2, False)):
            # Enough of them for two slices; most lie outside.
            vertices, triangles = random_mesh(seed, items, 9000, 270_000, extent=200, dtype=dtype)
            vertices = vertices[:, triangles[:, :1]] + torch.randn(items, 270_000, 3, 3, dtype=dtype)  # small ones
            vertices = (vertices * 8).round() / 8 if seed == 2 else vertices  # pixels on edges, ties
            vertices, triangles = vertices.reshape(items, -1, 3), torch.arange(810_000).reshape(-1, 3)
            expected = zbuffer.rasterize(vertices, triangles, (60, 61), cull=cull, backend="reference")
            for count in (1, 2, 3, 7, 16):
                torch.set_num_threads(count)
                assert_equal(zbuffer.rasterize(vertices, triangles, (60, 61), cull=cull, backend="cpu"), expected)
    finally:
        torch.set_num_threads(threads)


def test_equals_pytorch3d():
    rasterize_meshes = pytest.importorskip("pytorch3d.renderer.mesh.rasterize_meshes").rasterize_meshes
    structures = pytest.importorskip("pytorch3d.structures")
    size = 32
    for seed in range(3):
        vertices, triangles = random_mesh(seed, extent=size)
        raster = zbuffer.rasterize(vertices, triangles, (size, size))
        # PyTorch3D: x left, y up, z away from the camera, pixel centres at half integers, z > 0.
        row, column, depth = vertices[0].unbind(-1)
        points = torch.stack((1 - (2 * column + 1) / size, 1 - (2 * row + 1) / size, 100 - depth), dim=-1)
        index, distance, weights, _ = rasterize_meshes(
            structures.Meshes([points], [triangles]), image_size=size, faces_per_pixel=1, perspective_correct=False)
        # It leaves out pixels on an edge and, in float32, may see one of two crossing triangles first.
        same = raster.triangle == index[..., 0]
        assert same.float().mean() > 0.998
        both = same & raster.mask
        torch.testing.assert_close(raster.depth[both], 100 - distance[..., 0][both], atol=2e-3, rtol=0)
        torch.testing.assert_close(raster.barycentrics[both], weights[:, :, :, 0][both], atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.uint8, torch.uint64])
def test_other_types_and_layouts_give_the_same(kind):
    vertices, triangles = random_mesh(5, items=2)
    expected = zbuffer.rasterize(vertices, triangles, (24, 24))
    strided = torch.stack((vertices, vertices), dim=-1)[..., 0]
    assert not strided.is_contiguous()
    assert_equal(zbuffer.rasterize(strided, triangles.to(kind).t().contiguous().t(), (24, 24)), expected)
    half = zbuffer.rasterize(vertices.bfloat16(), triangles, (24, 24))
    assert_equal(half, zbuffer.rasterize(vertices.bfloat16().float(), triangles, (24, 24)))


@every_backend
@pytest.mark.parametrize("bad", [-1, 3, 2**31 - 1, 2**31, 2**32, -2**63])
def test_index_that_is_no_vertex(backend, bad):
    vertices, triangles = mesh([[0, 0, 0], [0, 4, 0], [4, 0, 0]])
    triangles = torch.tensor([[0, 1, 2], [0, bad, 1]])
    with pytest.raises(ValueError, match=f"refer to vertex {bad}, but the vertices are 0 to 2"):
        zbuffer.rasterize(vertices, triangles, (4, 4), backend=backend)


@every_backend
@pytest.mark.parametrize("kind, bad", [(torch.uint64, 2**32), (torch.uint64, 2**63), (torch.uint32, 2**32 - 1)])
def test_unsigned_index_that_is_no_vertex(backend, kind, bad):
    """None may wrap around to one that is: 2**32 to vertex 0."""
    vertices, triangles = mesh([[0, 0, 0], [0, 4, 0], [4, 0, 0]])
    with pytest.raises(ValueError, match="refer to vertex"):
        zbuffer.rasterize(vertices, torch.tensor([[0, 1, 2], [bad, 1, 2]], dtype=kind), (4, 4), backend=backend)


@every_backend
def test_trusted_triangles_give_the_same(backend):
    generator = torch.Generator().manual_seed(3)
    vertices = (torch.rand((2, 30, 3), generator=generator) * 12).requires_grad_()
    triangles = torch.randint(0, 30, (20, 3), generator=generator)
    known, trusted = (zbuffer.rasterize(vertices, triangles, (12, 12), backend=backend, trusted=trust)
                      for trust in (False, True))
    assert all(torch.equal(*pair) for pair in zip(known, trusted))
    trusted.barycentrics.sum().backward()
    assert vertices.grad is not None


@pytest.mark.parametrize("vertices, triangles, size, error", [
    (torch.zeros(3, 3), torch.zeros(1, 3, dtype=torch.int64), (4, 4), ValueError),
    (torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.int64), (4, 4), ValueError),
    (torch.zeros(1, 3, 3), torch.zeros(3, dtype=torch.int64), (4, 4), ValueError),
    (torch.zeros(1, 3, 3), torch.zeros(1, 3), (4, 4), TypeError),
    (torch.zeros(1, 3, 3), torch.zeros(1, 3, dtype=torch.bool), (4, 4), TypeError),
    (torch.zeros(1, 3, 3, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64), (4, 4), TypeError),
    (torch.zeros(1, 3, 3), torch.zeros(1, 3, dtype=torch.int64), (4, -1), ValueError),
    (torch.zeros(1, 3, 3), torch.zeros(1, 3, dtype=torch.int64), 4, TypeError),
])
def test_wrong_arguments(vertices, triangles, size, error):
    with pytest.raises(error):
        zbuffer.rasterize(vertices, triangles, size)


def test_unknown_and_unfit_backend():
    vertices, triangles = mesh([[0, 0, 0], [0, 4, 0], [4, 0, 0]])
    with pytest.raises(ValueError, match="backend must be one of"):
        zbuffer.rasterize(vertices, triangles, (4, 4), backend="fast")
    with pytest.raises(ValueError, match="cannot work on tensors on cpu"):
        zbuffer.rasterize(vertices, triangles, (4, 4), backend="cuda")


def test_interpolate():
    vertices, triangles = mesh([[0, 0, 1], [0, 4, 5], [4, 0, 9]])
    vertices = torch.cat((vertices, vertices + 1))
    raster = zbuffer.rasterize(vertices, triangles, (5, 6))
    shared = torch.tensor([[1.0, 10], [2, 20], [3, 30]])
    image = zbuffer.interpolate(shared, triangles, raster)
    assert image.shape == (2, 5, 6, 2)
    assert torch.equal(image[0, 1, 2], torch.tensor([2.0, 20.0])) and torch.equal(image[1, 2, 3], image[0, 1, 2])
    assert (image[~raster.mask] == 0).all()
    own = zbuffer.interpolate(torch.stack((shared, 2 * shared)), triangles, raster)
    assert torch.equal(own[0], image[0]) and torch.equal(own[1], 2 * image[1])
    unseen = zbuffer.interpolate(torch.full((3, 1), torch.nan), triangles, raster)
    assert not unseen[~raster.mask].isnan().any()
    for shape in ((3,), (3, 3, 2)):
        with pytest.raises(ValueError, match="attributes must have shape"):
            zbuffer.interpolate(torch.zeros(shape), triangles, raster)


def test_an_uncertain_edge_is_rounded_alike():
    """Corners of 1e38 beside ones of 10: the exact sum of the edge's products has more digits than a double."""
    vertices = torch.tensor([[[9.0, 0, 0], [3.4028234e38, -1e38, 1e30], [10, 13, 12]]], dtype=torch.float64)
    vertices = torch.cat([vertices, torch.tensor([[[0.0, 0, 0], [1e200, 1e200, 0], [2e200, 2e200, 0]]])])
    triangles = torch.tensor([[0, 1, 2], [0, 2, 1]])
    found, expected = (zbuffer.rasterize(vertices, triangles, (39, 9), backend=name) for name in ("cpu", "reference"))
    assert found.mask[0].any() and not found.mask[1].any()
    for name in ("triangle", "depth", "barycentrics"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


@pytest.mark.skipif(not HAS_CPU_UNIT or not sys.platform.startswith("linux"), reason="limits as on Linux")
@pytest.mark.parametrize("threads", [1, 2])
def test_running_out_of_memory_is_an_error_and_no_crash(threads):
    """Each thread needs memory of its own; an exception that left a thread would end the process."""
    code = f"""
import resource, torch, zbuffer
torch.set_num_threads({threads})
triangle = torch.tensor([[[0.0, 0, 0], [9, 0, 0], [0, 9, 0]]]).repeat(2, 1, 1)
corners = torch.tensor([[0, 1, 2]], dtype=torch.int32)
zbuffer.rasterize(triangle, corners, (16, 16), backend="cpu")
size = (5000, 5000)
results = 2 * size[0] * size[1] * (8 + 4 + 12)  # bytes, allocated before the threads start
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + results + size[0] * size[1] * 4 + {threads} * 2 ** 26
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    zbuffer.rasterize(triangle, corners, size, backend="cpu")
except MemoryError as error:
    print("told:", error)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and "told: zbuffer: not enough memory" in run.stdout, run.stderr[-500:]
