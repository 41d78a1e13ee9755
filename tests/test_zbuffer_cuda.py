"""The CUDA kernels, run on the CPU under a stand-in for thread indices and atomics, in many random interleavings."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import zbuffer
from zbuffer import backends, native

SHIM = Path(__file__).parent / "cuda_shim" / "shim.cpp"
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


def compile_shim(folder, *options):
    path = folder / "shim.so"
    subprocess.run([COMPILER, "-O0", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", f"-I{native.SOURCES}",
                    *native.SANITIZERS, *options, str(SHIM), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    return compile_shim(tmp_path_factory.mktemp("shim"))


def run(library, vertices, triangles, size, cull=False, seed=0, block_size=32):
    """Rasterize by the kernels: triangle, depth, barycentrics; or the position of a bad index."""
    suffix = "double" if vertices.dtype == torch.float64 else "float"
    function = getattr(library, f"shim_rasterize_{suffix}")
    function.restype = ctypes.c_int64
    items = vertices.shape[0]
    triangles = triangles.int().contiguous()
    outputs = (torch.empty((items, *size), dtype=torch.int64), vertices.new_empty((items, *size)),
               vertices.new_empty((items, *size, 3)))
    numbers = [items, vertices.shape[1], triangles.shape[0], *size, int(cull), block_size, seed]
    code = function(ctypes.c_void_p(vertices.data_ptr()), ctypes.c_void_p(triangles.data_ptr()),
                    *map(ctypes.c_int64, numbers), *(ctypes.c_void_p(output.data_ptr()) for output in outputs))
    return outputs if code == -1 else code


def crowded_mesh(seed, dtype=torch.float32):
    """Many overlapping triangles on few pixels, some depths equal, some vertices not finite."""
    generator = torch.Generator().manual_seed(seed)
    vertices = torch.rand((2, 40, 3), generator=generator, dtype=dtype) * 14 - 2
    vertices[..., 2].round_()
    vertices[0, 3, 0], vertices[0, 4, 2], vertices[1, 5, 1] = torch.nan, torch.inf, -torch.inf
    triangles = torch.randint(0, 40, (60, 3), generator=generator)
    return vertices, torch.cat((triangles, triangles[:20].flip(1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cull", [False, True])
def test_any_interleaving_equals_the_reference(shim, dtype, cull):
    for mesh in range(3):
        vertices, triangles = crowded_mesh(mesh, dtype)
        expected = zbuffer.rasterize(vertices, triangles, (11, 9), cull=cull, backend="reference")
        for seed in range(12):
            result = run(shim, vertices, triangles, (11, 9), cull, seed, block_size=(1, 7, 32, 128)[seed % 4])
            for ours, theirs in zip(result, expected):
                assert torch.equal(ours, theirs)


def test_interleavings_would_find_a_race(tmp_path):
    broken = compile_shim(tmp_path, "-DBROKEN_ATOMICS")
    vertices, triangles = crowded_mesh(0)
    expected = zbuffer.rasterize(vertices, triangles, (11, 9), backend="reference").triangle
    results = [run(broken, vertices, triangles, (11, 9), seed=seed)[0] for seed in range(10)]
    assert not all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("bad", [-1, 40, 2**31 - 1])
def test_first_index_that_is_no_vertex_is_reported(shim, bad):
    vertices, triangles = crowded_mesh(0)
    triangles[7, 2] = triangles[50, 0] = bad
    for seed in range(5):
        assert run(shim, vertices, triangles, (11, 9), seed=seed) == 7 * 3 + 2


@pytest.mark.parametrize("kind, bad", [(torch.int64, 2**32), (torch.int64, -2**32 + 1), (torch.int64, 40),
                                       (torch.int32, -1), (torch.uint64, 2**32)])
def test_trusted_index_that_is_no_vertex_stays_none(shim, kind, bad):
    """Nobody looks at it before the kernels, which leave out its triangle: it must not wrap around to a vertex."""
    vertices, triangles = crowded_mesh(0)
    triangles[7, 2] = bad
    assert run(shim, vertices, backends.as_int32_unseen(triangles.to(kind), 40), (11, 9)) == 7 * 3 + 2


def test_nothing_to_draw(shim):
    vertices, triangles = crowded_mesh(0)
    triangle, depth, barycentrics = run(shim, vertices, triangles[:0], (3, 4))
    assert (triangle == -1).all() and (depth == -torch.inf).all() and (barycentrics == 0).all()


@pytest.mark.skipif(not torch.cuda.is_available() or native.cuda_problem() is not None, reason="no GPU or no nvcc")
def test_gpu_equals_the_reference():
    for seed in range(5):
        vertices, triangles = crowded_mesh(seed)
        expected = zbuffer.rasterize(vertices, triangles, (11, 9), backend="reference")
        result = zbuffer.rasterize(vertices.cuda(), triangles.cuda(), (11, 9), backend="cuda")
        for ours, theirs in zip(result, expected):
            assert torch.equal(ours.cpu(), theirs)
    with pytest.raises(ValueError, match="vertex 99"):
        zbuffer.rasterize(vertices.cuda(), triangles.new_tensor([[0, 1, 99]]).cuda(), (11, 9), backend="cuda")
    nobodys = triangles.new_tensor([[2**32, 2**32 + 1, 2**32 + 2]]).cuda()
    assert not zbuffer.rasterize(vertices.cuda(), nobodys, (11, 9), backend="cuda", trusted=True).mask.any()


@pytest.mark.slow
@pytest.mark.skipif(native.cuda_problem() is not None, reason="the CUDA unit cannot be built here")
def test_cuda_unit_compiles_and_links(tmp_path):
    assert native.build("cuda", tmp_path).stat().st_size > 0
