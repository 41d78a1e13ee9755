"""The CPU unit's kernels for every instruction set, and its filters at their limits, equal the reference to the bit."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess

import pytest
import torch

import zbuffer
from zbuffer import backends, native

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
IS_X86 = platform.machine() in ("x86_64", "AMD64")
KERNELS = {"best": [], "without AVX-512": ["-DZBUFFER_NO_AVX512"], "plain": ["-DZBUFFER_PLAIN"],
           "no SSE": ["-DZBUFFER_PLAIN", "-U__SSE2__"], "compiled for AVX2": ["-mavx2", "-mfma"]}
QUICK = 3  # the first ones are always tested
CHOSEN = [*list(KERNELS)[:QUICK], *(pytest.param(name, marks=pytest.mark.slow) for name in list(KERNELS)[QUICK:])]


@pytest.fixture(scope="module", params=CHOSEN)
def kernel(request, tmp_path_factory):
    """Compiles the CPU unit with further options and makes it the one that is used."""
    if "-mavx2" in KERNELS[request.param] and not (IS_X86 and torch.backends.cpu.get_cpu_capability() != "DEFAULT"):
        pytest.skip("this processor has no AVX2")
    path = tmp_path_factory.mktemp("kernel") / "unit.so"
    options = [option if option != "-O3" else "-O1" for option in native.CPU_OPTIONS]
    subprocess.run([COMPILER, *options, *KERNELS[request.param], str(native.SOURCES / "zbuffer_cpu.cpp"), "-o",
                    str(path)], check=True, capture_output=True)
    library = ctypes.CDLL(str(path))
    before = backends._libraries.get("cpu")
    backends._libraries["cpu"] = library
    yield request.param
    if before is None:
        del backends._libraries["cpu"]
    else:
        backends._libraries["cpu"] = before


def assert_equals_the_reference(vertices, triangles, size, cull=False):
    expected = zbuffer.rasterize(vertices, triangles, size, cull=cull, backend="reference")
    result = zbuffer.rasterize(vertices, triangles, size, cull=cull, backend="cpu")
    for name, ours, theirs in zip(result._fields, result, expected):
        assert torch.equal(ours, theirs), name


def scattered(seed, count, spread, extent, dtype):
    """Vertices (1, 3 count, 3), triangles (count, 3): corners within `spread` pixels around points of the image."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand((count, 1, 3), generator=generator, dtype=dtype) * (extent + 4) - 2
    corners = centres + (torch.rand((count, 3, 3), generator=generator, dtype=dtype) - 0.5) * spread
    return corners.reshape(1, -1, 3), torch.arange(3 * count).reshape(-1, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.5, 2.0, 5.0, 60.0])
def test_triangles_of_every_size(kernel, spread, dtype):
    for seed, cull in ((0, False), (1, True)):
        vertices, triangles = scattered(seed, 1500, spread, 40, dtype)
        assert_equals_the_reference(vertices, triangles, (40, 37), cull)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grain", [1.0, 0.5, 2.0**-18, 2.0**-26])
def test_corners_on_or_next_to_pixel_centres(kernel, grain, dtype):
    """Edges run through pixel centres, or miss them by less than float32 arithmetic can tell."""
    generator = torch.Generator().manual_seed(5)
    vertices = (torch.rand((1, 1500, 3), generator=generator, dtype=torch.float64) * 24 - 2).round()
    offset = torch.randint(-1, 2, vertices.shape, generator=generator) * grain
    vertices = (vertices + offset).to(dtype)
    start = torch.randint(0, 1400, (1500, 1), generator=generator)
    assert_equals_the_reference(vertices, (start + torch.tensor([[0, 37, 90]])), (21, 22))


@pytest.mark.parametrize("scale, shift", [(0.0, 0.0), (1e-42, 0.0), (1.0, 1e7), (1e-3, -1e5), (1e30, 0.0)])
def test_depths_that_hardly_differ_or_differ_enormously(kernel, scale, shift):
    vertices, triangles = scattered(3, 1500, 6.0, 20, torch.float32)
    vertices[..., 2] = vertices[..., 2] * scale + shift
    assert_equals_the_reference(vertices, triangles, (20, 20))


def test_far_outside_and_not_finite(kernel):
    vertices, triangles = scattered(4, 600, 8.0, 20, torch.float32)
    for position, value in enumerate((1e9, -1e20, 3e38, torch.nan, torch.inf, -torch.inf)):
        vertices[0, position::40, position % 3] = value
    assert_equals_the_reference(vertices, triangles, (20, 20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coordinates_whose_products_overflow(kernel, dtype):
    """From about 1e19 on an edge function in float32 may be Inf - Inf: the other two must not decide alone."""
    generator = torch.Generator().manual_seed(7)
    vertices = torch.randn((120, 3, 3), generator=generator, dtype=dtype)
    vertices[..., :2] *= 10.0 ** torch.linspace(18, 23, 120, dtype=dtype)[:, None, None]
    assert_equals_the_reference(vertices, torch.tensor([[0, 1, 2]]), (4, 4))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 300])
def test_any_number_of_triangles_and_the_last_vertex(kernel, count):
    """Vectors that are not full, and triangles all around the vertex that the memory of vertices ends with."""
    generator = torch.Generator().manual_seed(count)
    vertices = torch.rand((1, 40, 3), generator=generator) * 12
    triangles = torch.randint(0, 40, (count, 3), generator=generator)
    triangles[::2, 1] = 39
    assert_equals_the_reference(vertices, triangles, (11, 13))


@pytest.mark.parametrize("corner", [-1, 40, 2**31 - 1])
def test_indices_of_no_vertex_are_named(kernel, corner):
    triangles = torch.arange(39).reshape(-1, 3).repeat(20, 1)
    triangles[77, 2] = corner
    with pytest.raises(ValueError, match=f"vertex {corner}"):
        zbuffer.rasterize(torch.rand(1, 40, 3), triangles, (8, 8), backend="cpu")


def test_images_wider_than_the_boxes_numbers(kernel):
    vertices, triangles = scattered(6, 300, 900.0, 3, torch.float32)
    vertices[..., 1] += 33000
    assert_equals_the_reference(vertices, triangles, (3, 34000))
    vertices[..., 1] -= 2000
    assert_equals_the_reference(vertices, triangles, (3, 32000))
