"""Time the z-buffer at the original morphable model's size: about 53,000 vertices and 105,000 triangles, 224 x 224.

    python benchmarks/zbuffer.py [--pytorch3d] [--cuda] [--repeats N]

Prints one row per rasterizer, batch and thread count: the median and the shortest time of an image, wall clock, and
the shortest processor time; then how the time grows with triangles and pixels. The shortest is what the program itself
costs; the median also what else the machine does. ``--pytorch3d`` adds PyTorch3D's CPU rasterizer, which takes seconds.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import zbuffer  # noqa: E402 (found only through the line above when started as a script)

SIZE = 224
RINGS = 230
BATCH = 8
TARGET_MS = 0.9  # an image on one thread
TARGET_SPEEDUP = 1.8  # of a batch on two threads
SCALING = ((23, 112), (23, 224), (23, 1024), (230, 112), (230, 224), (230, 512), (230, 1024), (708, 224), (708, 1024))


def head(rings=RINGS, size=SIZE):
    """A closed bumpy ellipsoid that fills the image as a head does: vertices (1, V, 3), triangles (T, 3) int32."""
    polar = torch.linspace(1e-3, math.pi - 1e-3, rings)[:, None]
    around = torch.arange(rings)[None] / rings * 2 * math.pi
    radius = 1 + 0.05 * torch.sin(5 * polar) * torch.cos(4 * around)
    row = size / 2 - 0.47 * size * radius * torch.cos(polar)
    column = size / 2 + 0.38 * size * radius * torch.sin(polar) * torch.sin(around)
    depth = 1e5 * radius * torch.sin(polar) * torch.cos(around)
    index = torch.arange(rings * rings).reshape(rings, rings)
    a, b, c, d = index[:-1], index[:-1].roll(-1, 1), index[1:], index[1:].roll(-1, 1)
    triangles = torch.stack((torch.stack((a, c, b), -1), torch.stack((b, c, d), -1)), -2).reshape(-1, 3)
    return torch.stack((row, column, depth), -1).reshape(1, -1, 3), triangles.int()


def measure(draw, repeats):
    """(median, shortest wall clock, shortest processor time) in milliseconds."""
    draw()
    wall, processor = [], []
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        draw()
        wall.append(1e3 * (time.perf_counter() - start))
        processor.append(1e3 * (time.process_time() - busy))
    return sorted(wall)[repeats // 2], min(wall), min(processor)


def pytorch3d_draw(vertices, triangles):
    """PyTorch3D's CPU rasterizer on the same mesh."""
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    row, column, depth = vertices[0].unbind(-1)
    points = torch.stack((1 - (2 * column + 1) / SIZE, 1 - (2 * row + 1) / SIZE, 1e6 - depth), dim=-1)
    meshes = Meshes([points], [triangles.long()])
    return lambda: rasterize_meshes(meshes, image_size=SIZE, faces_per_pixel=1, perspective_correct=False)


def compare(options):
    """One row per rasterizer; returns {(name, batch, threads): shortest ms an image}."""
    vertices, triangles = head()
    batch = vertices.repeat(BATCH, 1, 1)
    print(f"{vertices.shape[1]:,} vertices, {triangles.shape[0]:,} triangles, {SIZE} x {SIZE} pixels\n")
    print(f"{'rasterizer':<24}{'batch':>6}{'threads':>8}{'median ms':>12}{'shortest ms':>13}{'processor ms':>14}")
    rows = [(f"zbuffer cpu{', culled' * cull}", items, threads, options.repeats // len(points),
             lambda p=points, c=cull: zbuffer.rasterize(p, triangles, (SIZE, SIZE), cull=c))
            for cull in (False, True) for items, points in ((1, vertices), (BATCH, batch)) for threads in (1, 2)]
    if options.cuda:
        on_gpu = vertices.cuda(), triangles.cuda()  # the unit itself waits for the GPU
        rows.append(("zbuffer cuda", 1, 1, options.repeats, lambda: zbuffer.rasterize(*on_gpu, (SIZE, SIZE))))
    if options.pytorch3d:
        rows.append(("pytorch3d cpu", 1, 1, 1, pytorch3d_draw(vertices, triangles)))
    shortest = {}
    for name, items, threads, repeats, draw in rows:
        torch.set_num_threads(threads)
        times = [value / items for value in measure(draw, max(repeats, 1))]
        shortest[name, items, threads] = times[1]
        print(f"{name:<24}{items:>6}{threads:>8}{times[0]:>12.2f}{times[1]:>13.2f}{times[2]:>14.2f}")
    return shortest


def scaling(repeats):
    """Shortest time over triangles and pixels, and the same per triangle plus pixel."""
    torch.set_num_threads(1)
    print(f"\n{'triangles':>10}{'pixels':>12}{'shortest ms':>13}{'ns per triangle or pixel':>26}")
    for rings, size in SCALING:
        vertices, triangles = head(rings, size)
        _, shortest, _ = measure(lambda: zbuffer.rasterize(vertices, triangles, (size, size)), repeats)
        each = 1e6 * shortest / (len(triangles) + size * size)
        print(f"{len(triangles):>10,}{size:>7} x {size:<4}{shortest:>11.2f}{each:>26.1f}")


def main():
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pytorch3d", action="store_true", help="also time PyTorch3D's CPU rasterizer")
    parser.add_argument("--cuda", action="store_true", help="also time the CUDA unit")
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    shortest = compare(options)
    print(f"\none image, one thread: {shortest['zbuffer cpu', 1, 1]:.2f} ms (target at most {TARGET_MS})")
    speedup = shortest["zbuffer cpu", BATCH, 1] / shortest["zbuffer cpu", BATCH, 2]
    print(f"batch of {BATCH}, two threads against one: {speedup:.2f} times (target at least {TARGET_SPEEDUP})")
    scaling(max(options.repeats // 20, 3))


if __name__ == "__main__":
    main()
