"""Time the z-buffer at the size of the original morphable model: about 53,000 vertices and 105,000 triangles, 224 x 224.

    python benchmarks/zbuffer.py [--pytorch3d] [--cuda] [--repeats N]

Prints one row per rasterizer and thread count: the median and the shortest time of an image, wall clock, and of the
shortest the processor time. ``--pytorch3d`` adds PyTorch3D's CPU rasterizer, which takes seconds per image.
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


def head():
    """A closed bumpy ellipsoid that fills the image as a head does: vertices (1, V, 3), triangles (T, 3) int32."""
    polar = torch.linspace(1e-3, math.pi - 1e-3, RINGS)[:, None]
    around = torch.arange(RINGS)[None] / RINGS * 2 * math.pi
    radius = 1 + 0.05 * torch.sin(5 * polar) * torch.cos(4 * around)
    row = SIZE / 2 - 105 * radius * torch.cos(polar)
    column = SIZE / 2 + 85 * radius * torch.sin(polar) * torch.sin(around)
    depth = 1e5 * radius * torch.sin(polar) * torch.cos(around)
    index = torch.arange(RINGS * RINGS).reshape(RINGS, RINGS)
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pytorch3d", action="store_true", help="also time PyTorch3D's CPU rasterizer")
    parser.add_argument("--cuda", action="store_true", help="also time the CUDA unit")
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    vertices, triangles = head()
    print(f"{vertices.shape[1]:,} vertices, {triangles.shape[0]:,} triangles, {SIZE} x {SIZE} pixels\n")
    print(f"{'rasterizer':<24}{'threads':>8}{'median ms':>12}{'shortest ms':>13}{'processor ms':>14}")
    rows = [("zbuffer cpu", threads, options.repeats, lambda: zbuffer.rasterize(vertices, triangles, (SIZE, SIZE)))
            for threads in (1, 2)]
    if options.cuda:
        on_gpu = vertices.cuda(), triangles.cuda()  # the unit itself waits for the GPU
        rows.append(("zbuffer cuda", 1, options.repeats, lambda: zbuffer.rasterize(*on_gpu, (SIZE, SIZE))))
    if options.pytorch3d:
        rows.append(("pytorch3d cpu", 1, 1, pytorch3d_draw(vertices, triangles)))
    for name, threads, repeats, draw in rows:
        torch.set_num_threads(threads)
        median, shortest, processor = measure(draw, repeats)
        print(f"{name:<24}{threads:>8}{median:>12.2f}{shortest:>13.2f}{processor:>14.2f}")


if __name__ == "__main__":
    main()
