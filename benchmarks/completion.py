"""What completing faces costs beside the networks' own convolutions.

    python benchmarks/completion.py [--batch 8] [--repeats 5] [--threads 1]

Networks as they are used for inference (`engine.build.build_completion`), on one built-in face under a rectangle. Every
figure is the shortest of several repeats, in processor time of this process, so that what else the machine does counts
little; ratios are taken within one run.
"""
from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch  # noqa: E402

RENDERING_TARGET = 0.10  # unwrap, render and shade, as a share of the three networks
THROUGHPUT_TARGET = 0.85  # of the bare networks


def shortest(work: Callable[[], object], repeats: int) -> float:
    """Processor milliseconds of the fastest of several runs, the first one left out."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(1e3 * (time.process_time() - start))
    return min(times)


def build():
    """The completion that args.txt describes, but with the paper's inpainter (any weights: they do not change its time)
    and without matching grain, which is no part of the paper."""
    from engine.build import build_completion
    from models.inpainter import Inpainter
    from models.layers import fold_for_inference
    from utils import config

    os.chdir(ROOT)
    settings = config.parse(["--config", "args.txt", "--ngpu", "0"], "benchmark")
    inpainter = fold_for_inference(Inpainter().eval())
    return build_completion(settings, torch.device("cpu"), inpainter=inpainter, grain=False)


def example(count: int):
    """Built-in faces (B, 3, 256, 256) in [-1, 1] and a hole (B, 1, 256, 256) in each."""
    from datasets.synthetic import SyntheticFaces
    from models.blending import from_uint8

    faces = SyntheticFaces("test", count)
    image = from_uint8(torch.stack([torch.as_tensor(faces[index]["image"]) for index in range(count)]))
    hole = torch.zeros(count, 1, 256, 256)
    hole[:, :, 90:180, 70:170] = 1
    return image, hole


def parts(completion, image, hole, repeats: int) -> dict[str, float]:
    """Milliseconds of every part of one iteration on one image."""
    renderer, window = completion.renderer, image[..., 16:240, 16:240].contiguous()
    factors = completion.factor(image, hole)
    code, visible = factors.code, factors.uv_visible.to(image.dtype)
    inpainted = completion.inpainter(factors.albedo_in, visible)
    both = torch.cat([image, hole], dim=1)
    return {name: shortest(work, repeats) for name, work in {
        "encoder": lambda: completion.encoder(window),
        "inpainter": lambda: completion.inpainter(factors.albedo_in, visible),
        "occlusion net": lambda: completion.occlusion(image),
        "vertices": lambda: completion.morphable.vertices(code.shape),
        "z-buffer": lambda: renderer.rasterize(factors.positions, (256, 256)),
        "normals": lambda: renderer.uv_normals(factors.vertices, code.pose),
        "shade": lambda: renderer.uv_shade(factors.uv_normals, code.light),
        "visibility": lambda: renderer.uv_visibility(factors.positions, factors.uv_normals, factors.raster),
        "unwrap": lambda: renderer.unwrap(both, factors.positions),
        "render": lambda: completion.render_face(inpainted.albedo, factors.uv_shade, factors.raster),
    }.items()}


def bare(completion, image, hole) -> None:
    """The networks alone, as often as the completion runs them."""
    window, uv, visible = image[..., 16:240, 16:240], image[..., :192, :], hole[..., :192, :]
    completion.occlusion(image)
    for _ in range(completion.iterations):
        completion.encoder(window)
        completion.inpainter(uv, visible)
        completion.occlusion(image)


@torch.no_grad()
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    image, hole = example(options.batch)
    completion = build()
    times = parts(completion, image[:1], hole[:1], options.repeats)
    for name, value in times.items():
        print(f"{name:<40}{value:>9.1f} ms")
    networks = sum(list(times.values())[:3])
    share = sum(list(times.values())[3:]) / networks
    print(f"{'unwrap, render and shade / networks':<40}{share:>9.1%}    (target at most {RENDERING_TARGET:.0%})")
    for one_by_one in (True, False):
        completion.one_by_one = one_by_one
        whole = shortest(lambda: completion(image, hole), options.repeats)
        alone = shortest(lambda: bare(completion, image, hole), options.repeats)
        what = f"{'one by one' if one_by_one else 'batch'} of {options.batch}: whole / networks"
        print(f"{what:<40}{whole / options.batch:>9.0f} ms / {alone / options.batch:.0f} ms an image: "
              f"{alone / whole:.0%} of the bare throughput (target at least {THROUGHPUT_TARGET:.0%})")


if __name__ == "__main__":
    main()
