"""From a training checkpoint to the small weight files that completion uses and that the project ships.

    python -m engine.export results/encoder/best.pth checkpoints/encoder.pth

writes the stage's network (the moving average where one was kept) with half-precision kernels, and says how and how
well it was trained in the file's metadata. Other networks of the stage, such as the encoder's albedo decoder, are
chosen with --network. A list of sums in the weight file's folder, as checkpoints/SHA256SUMS, is brought up to date.
With ``--bits 5`` kernels are rounded to so many bits after the leading one, of float16's ten: the file is as long, but
compresses to two thirds, as in git, which keeps every version (the cost: docs/experiments.md, "Rounded weights").
``--keep`` leaves kernels alone that are those of the file to be replaced, because training did: git stores them once.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from utils import config
from utils.errors import UserError
from utils.logging import note, run_script


def export(source: str | Path, target: str | Path, network: str | None = None, half: bool = True,
           bits: int | None = None, keep: bool = False) -> dict[str, Any]:
    """Writes one network of a training checkpoint as a weight file; returns its metadata.

    network: such as "encoder" or "albedo_decoder"; by default the one that the stage is called after.
    half: store kernels as float16. bits: round them as :func:`rounded` does; keep: but for those that the target, an
    older file of the same network, has already.

    Raises:
        UserError: the source is no training checkpoint, or has no such network; with keep, bits are missing, or the
            target is no weight file of this network.
    """
    from utils import checkpoints
    if keep and bits is None:
        raise UserError("--keep says what is not rounded: give --bits, too")
    state = checkpoints.load(source)
    checkpoints.check_training(source, state)
    network = network or state["stage"]
    weights = state["averages"].get(network, state["networks"].get(network))
    if weights is None:
        raise UserError(f"{source}: has no {network}; it holds {', '.join(state['networks'])}")
    metadata = describe(state)
    if bits is not None:
        before = checkpoints.load_weights(target, network)[0] if keep else {}
        kept = {name for name, value in before.items()
                if name in weights and torch.equal(value, weights[name].to(value))}
        weights = {name: value if name in kept else rounded(value, bits) for name, value in weights.items()}
        metadata["bits"] = bits
    checkpoints.save_weights(target, network, weights, metadata, half=half)
    return metadata


def rounded(weights: Tensor, bits: int) -> Tensor:
    """Kernels and matrices to the nearest number with `bits` >= 0 bits after its leading one; others as they are."""
    if weights.dim() < 2 or not weights.is_floating_point():
        return weights
    mantissa, exponent = torch.frexp(weights)  # 0.5 <= |mantissa| < 1
    steps = 2.0 ** (bits + 1)
    return torch.ldexp((mantissa * steps).round() / steps, exponent)


def describe(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a weight file says of its training: steps, images, minutes, held-out scores, settings, morphable model."""
    settings = state["settings"]
    images = state["step"] * settings.get("batch_size", 0) * settings.get("accumulate", 1)
    return {**state["metadata"], "steps": state["step"], "images_per_process": images,
            "minutes": round(state["elapsed"] / 60, 1), "held_out": dict(state["scores"]),
            "settings": {name: settings[name] for name in config.LEARNING if name in settings}}


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m engine.export", description=__doc__.splitlines()[0])
    parser.add_argument("source", help="training checkpoint: a run's best.pth or last.pth")
    parser.add_argument("target", help="weight file to write")
    parser.add_argument("--network", help="which network (default: the one the stage is called after)")
    parser.add_argument("--float32", action="store_true", help="keep full precision")
    parser.add_argument("--bits", type=int, choices=range(2, 11), metavar="N",
                        help="round kernels to N of float16's 10 bits (2 to 10), so that the file compresses better")
    parser.add_argument("--keep", action="store_true",
                        help="with --bits: leave kernels alone that the target has already")
    options = parser.parse_args(arguments)
    metadata = export(options.source, options.target, options.network, half=not options.float32, bits=options.bits,
                      keep=options.keep)
    size = Path(options.target).stat().st_size / 2 ** 20
    note(f"{options.target}: {size:.1f} MB after {metadata['steps']} steps, held out {metadata['held_out']}")


if __name__ == "__main__":
    sys.exit(run_script(main))
