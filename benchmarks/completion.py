"""What completing faces costs beside the networks' own convolutions.

    python benchmarks/completion.py [--batch 8] [--repeats 5] [--threads 1] [--precision auto] [--ngpu 0]

Two completions side by side: the one that args.txt describes (the refined mixed fill, with grain), and the paper's
(the inpainting network, without grain). Networks as they are used for inference (`engine.build.build_completion`), on
built-in faces under a rectangle, in bf16 where the processor computes in it and else in fp32, as programs do. Every
figure is the shortest of several repeats, in processor time of this process, so that what else the machine does counts
little; with --ngpu 1, on a GPU, in time on the clock until the GPU has finished. What a ratio compares is measured in
turns.
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

from models.layers import compute_in  # noqa: E402

RENDERING_TARGET = 0.10  # unwrap, render and shade, as a share of the paper's three networks
THROUGHPUT_TARGET = 0.85  # of the bare networks of the paper
NETWORKS = ("encoder", "fill", "refiner", "occlusion net")
RENDERING = ("vertices", "z-buffer", "normals", "shade", "visibility", "unwrap", "render")


def seconds(device: torch.device) -> float:
    """Processor time of this process; for a GPU the time on the clock once it has nothing left to do."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def shortest(*works: Callable[[], object], repeats: int, device: torch.device = torch.device("cpu")) -> list[float]:
    """Milliseconds (:func:`seconds`) of the fastest run of each, the first one left out; they take turns."""
    times: list[list[float]] = [[] for _ in works]
    for repeat in range(repeats + 1):
        for work, found in zip(works, times):
            start = seconds(device)
            work()
            if repeat:
                found.append(1e3 * (seconds(device) - start))
    return [min(found) for found in times]


def settings(*arguments: str):
    """What args.txt and the arguments say, by default on the CPU."""
    from utils import config

    os.chdir(ROOT)
    return config.parse(["--config", "args.txt", "--ngpu", "0", *arguments], "benchmark")


def build(chosen) -> dict:
    """The two completions of settings. The paper's inpainter has any weights: they do not change its time."""
    from engine.build import build_completion
    from models.inpainter import Inpainter

    return {"args.txt": build_completion(chosen),
            "paper": build_completion(chosen, inpainter=Inpainter(), grain=False)}


def example(count: int, device: torch.device):
    """Built-in faces (B, 3, 256, 256) in [-1, 1] and a hole (B, 1, 256, 256) in each."""
    from datasets.synthetic import SyntheticFaces
    from models.blending import from_uint8

    faces = SyntheticFaces("test", count)
    image = from_uint8(torch.stack([torch.as_tensor(faces[index]["image"]) for index in range(count)]))
    hole = torch.zeros(count, 1, 256, 256)
    hole[:, :, 90:180, 70:170] = 1
    return image.to(device), hole.to(device)


def parts(completion, image, hole, repeats: int) -> dict[str, float]:
    """Milliseconds of every part on one image: NETWORKS and RENDERING, as an iteration runs them, and the grain."""
    from models.grain import match_grain

    renderer, window = completion.renderer, image[..., 16:240, 16:240].contiguous()
    factors = completion.factor(image, hole)
    code, visible = factors.code, factors.uv_visible.to(image.dtype)
    both, hidden = torch.cat([image, hole], dim=1), hole > 0.5

    def call(network, *inputs):
        with compute_in(completion.dtype, image.device):
            return network(*inputs)

    inpainted = call(completion.inpainter, factors.albedo_in, visible)
    works = {
        "encoder": lambda: call(completion.encoder, window),
        "fill": lambda: call(completion.inpainter, factors.albedo_in, visible),
        "occlusion net": lambda: call(completion.occlusion, image),
        "vertices": lambda: completion.morphable.vertices(code.shape),
        "z-buffer": lambda: renderer.rasterize(factors.positions, (256, 256)),
        "normals": lambda: renderer.uv_normals(factors.vertices, code.pose),
        "shade": lambda: renderer.uv_shade(factors.uv_normals, code.light),
        "visibility": lambda: renderer.uv_visibility(factors.positions, factors.uv_normals, factors.raster),
        "unwrap": lambda: renderer.unwrap(both, factors.positions),
        "render": lambda: completion.render_face(inpainted.albedo, factors.uv_shade, factors.raster),
    }
    if completion.refiner is not None:
        works["refiner"] = lambda: call(completion.refiner, image, image, hidden, torch.ones_like(hidden))
    if completion.grain:
        works["grain"] = lambda: match_grain(image, hidden, torch.ones_like(hidden))
    return dict(zip(works, shortest(*works.values(), repeats=repeats, device=image.device)))


def bare(completion, image, hole, one_by_one: bool) -> None:
    """The networks (for args.txt: with the linear fill) alone, as often as the completion runs them."""
    items = zip(image.split(1), hole.split(1)) if one_by_one else [(image, hole)]
    with compute_in(completion.dtype, image.device):
        for picture, hidden in items:
            window, uv, visible = picture[..., 16:240, 16:240], picture[..., :192, :], hidden[..., :192, :]
            for _ in range(max(2, completion.iterations)):
                completion.occlusion(picture)
            for _ in range(completion.iterations):
                completion.encoder(window)
                completion.inpainter(uv, visible)
            if completion.refiner is not None:
                completion.refiner(picture, picture, hidden > 0.5, hidden > 0.5)


def print_parts(completions: dict, image, hole, repeats: int) -> None:
    """A column of milliseconds per completion, and what rendering costs beside the networks."""
    times = {name: parts(completion, image[:1], hole[:1], repeats) for name, completion in completions.items()}
    print(f"{'one image, ms':<44}" + "".join(f"{name:>10}" for name in times))
    for part in (*NETWORKS, *RENDERING, "grain"):
        print(f"{part:<44}" + "".join(f"{column[part]:>10.1f}" if part in column else f"{'-':>10}"
                                      for column in times.values()))
    shares = [sum(column[part] for part in RENDERING) / sum(column.get(part, 0.0) for part in NETWORKS)
              for column in times.values()]
    print(f"{'unwrap, render and shade / encoder, fill, net':<46}" + "".join(f"{share:>9.1%} " for share in shares)
          + f"  (target for the paper's at most {RENDERING_TARGET:.0%})")


def print_throughput(completions: dict, image, hole, repeats: int) -> None:
    """Whole completions beside their bare networks, and beside each other."""
    for one_by_one in (True, False):
        works = []
        for completion in completions.values():
            completion.one_by_one = one_by_one
            works += [lambda completion=completion: completion(image, hole),
                      lambda completion=completion: bare(completion, image, hole, one_by_one)]
        times = [value / len(image) for value in shortest(*works, repeats=repeats, device=image.device)]
        for name, whole, alone in zip(completions, times[::2], times[1::2]):
            target = f" (target at least {THROUGHPUT_TARGET:.0%})" if name == "paper" else ""
            what = f"{name}, {'one by one' if one_by_one else 'batch'} of {len(image)}"
            print(f"{what:<30}{whole:>7.1f} ms an image, bare {alone:.1f} ms: {alone / whole:.0%} of the bare "
                  f"throughput{target}")
        print(f"{'args.txt / paper':<30}{times[0] / times[2]:>10.2f}")


@torch.no_grad()
def main() -> None:
    """The command line."""
    from engine.build import choose_device, choose_precision

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--ngpu", default="0", help="1: on the GPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = settings("--precision", options.precision, "--ngpu", options.ngpu)
    device, precision = choose_device(chosen), choose_precision(chosen)
    image, hole = example(options.batch, device)
    why = ", which this processor computes in" if precision == "bf16" else ": this processor has no bf16"
    print(f"networks in {precision}{why if options.precision == 'auto' else ''}; {device}; threads: {options.threads}")
    completions = build(chosen)
    print_parts(completions, image, hole, options.repeats)
    print_throughput(completions, image, hole, options.repeats)


if __name__ == "__main__":
    main()
