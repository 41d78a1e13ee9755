"""Closed formulas behind tests/golden: pseudo-random inputs and weights that need not be stored.

Every array is seeded with the CRC-32 of a name, so numbers computed elsewhere from the same names can be compared.
"""
from __future__ import annotations

import functools
import json
import zlib
from pathlib import Path
from typing import Iterator

import numpy as np
import torch

from models import legacy

GOLDEN = Path(__file__).parent / "golden"
LAYOUT = json.loads((GOLDEN / "layout.json").read_text())
TOLERANCES = json.loads((GOLDEN / "models_tolerance.json").read_text())
POWER_ITERATIONS = 10


def _generator(name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("ascii"))))


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 numbers."""
    return _generator(name).standard_normal(int(np.prod(shape))).astype(np.float32).reshape(shape)


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform float32 numbers in [0, 1)."""
    return _generator(name).random(int(np.prod(shape))).astype(np.float32).reshape(shape)


def smooth(name: str, shape: tuple[int, int, int, int], waves: int = 6, highest: float = 5.0) -> np.ndarray:
    """Float32 pictures (B, C, H, W) in [-1, 1]: 95 % a normalised sum of plane waves, 5 % noise."""
    batch, channels, height, width = shape
    parameters = uniform(f"{name}/p", (batch, channels, waves, 4)).astype(np.float64)[..., None, None]
    rows = (np.arange(height) / height)[:, None]
    columns = (np.arange(width) / width)[None, :]
    picture = np.zeros(shape)
    for wave in range(waves):
        along_rows, along_columns, phase, amplitude = (parameters[:, :, wave, index] for index in range(4))
        turns = 2 * highest * ((along_rows - 0.5) * rows + (along_columns - 0.5) * columns) + phase
        picture += (0.3 + amplitude) * np.sin(2 * np.pi * turns)
    picture /= np.abs(picture).max(axis=(2, 3), keepdims=True)
    noise = 2 * uniform(f"{name}/n", shape).astype(np.float64) - 1
    return (0.95 * picture + 0.05 * noise).astype(np.float32)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(np.linalg.norm(vector), 1e-12)


def _parameter(key: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = key.rsplit(".", 1)[-1]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    numbers = normal(key, shape)
    if kind in ("weight_u", "weight_v"):
        return _unit(numbers.astype(np.float64)).astype(np.float32)
    if len(shape) >= 2:
        return numbers * np.float32(1 / np.sqrt(np.prod(shape[1:])))
    offset, factor = {"bias": (0, 0.1), "running_mean": (0, 0.1), "running_var": (1, 0.1), "weight": (1, 0.1),
                      "gamma": (0.5, 0.1)}[kind]
    return np.float32(offset) + np.float32(factor) * (np.abs(numbers) if kind == "running_var" else numbers)


@functools.cache
def published_state(name: str) -> dict[str, np.ndarray]:
    """A full state dict of the published class ``name``, keys as published; built once, do not change it.

    Singular vectors are refined by ten power iterations, else sigma would be near zero and outputs ill-conditioned.
    """
    state = {key: _parameter(key, tuple(shape)) for key, shape in LAYOUT[name]["keys"].items()}
    for key in [key for key in state if key.endswith(".weight_orig")]:
        weight = np.moveaxis(state[key], 1 if key in LAYOUT[name]["transposed"] else 0, 0).astype(np.float64)
        left, right = key.replace("_orig", "_u"), key.replace("_orig", "_v")
        state[left], state[right] = _refined(weight.reshape(len(weight), -1), state[left].astype(np.float64))
    return state


def _refined(matrix: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for _ in range(POWER_ITERATIONS):
        v = _unit(matrix.T @ u)
        u = _unit(matrix @ v)
    return u.astype(np.float32), v.astype(np.float32)


@functools.cache
def network(name: str) -> torch.nn.Module:
    """The network of the published class ``name`` with those weights; built once, do not change it."""
    return legacy.build(name, published_state(name))


def _image(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(smooth(name, shape))


def _inpainter_outputs(name: str, net: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    inner = {}

    def keep(where: str):
        return lambda module, inputs, output: inner.__setitem__(where, (inputs[0], output))

    handles = [net.direct.gate.register_forward_hook(keep("direct")),
               net.mirrored.gate.register_forward_hook(keep("mirrored")),
               net.down[0].gate.register_forward_hook(keep("down"))]
    if net.attention is not None:
        handles.append(net.attention.register_forward_hook(keep("attention")))
    visible = (_image_waves("in/UnetSelfAttn/m64", 2, 1, 64, 96) > 0).float()
    albedo, confidence = net(_image("in/UnetSelfAttn/64", 2, 3, 64, 96) * visible, visible)
    for handle in handles:
        handle.remove()
    yield f"{name}/64/albedo", albedo
    yield f"{name}/64/conf", confidence
    yield f"{name}/64/gate1", torch.cat([inner["direct"][1], inner["mirrored"][1]], dim=1).sigmoid()
    yield f"{name}/64/gate2", inner["down"][1].sigmoid()
    if net.attention is not None:
        yield f"{name}/64/attn", net.attention.weights(inner["attention"][0])


def _image_waves(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(smooth(name, shape, waves=3, highest=1.5))


@torch.no_grad()
def outputs(name: str, net: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """(key of models.npz, full output) for all stored outputs of a network."""
    if name == "Encoder":
        code = net(_image("in/Encoder/64", 2, 3, 64, 64))
        keys = ("shape", "tex", "conf", "scale", "pose", "il")
        return [(f"Encoder/64/{key}", value) for key, value in zip(keys, code, strict=True)]
    if name.endswith("Decoder"):
        return [(f"{name}/a/out", net(0.5 * torch.from_numpy(normal(f"in/{name}", (2, 512)))))]
    if name == "UnetSeg":
        return [("UnetSeg/96/out", net(_image("in/UnetSeg/96", 2, 3, 96, 96))),
                ("UnetSeg/odd/out", net(_image("in/UnetSeg/odd", 1, 3, 100, 76)))]
    if name.startswith("UnetSelfAttn"):
        return list(_inpainter_outputs(name, net))
    scores = net(_image(f"in/{name}/96", 2, 3, 96, 96))
    if isinstance(scores, list):
        return [(f"{name}/96/out{index}", value) for index, value in enumerate(scores)]
    return [(f"{name}/96/out", scores)]


def errors(name: str, net: torch.nn.Module) -> dict[str, tuple[float, float]]:
    """Key of models.npz -> (largest deviation, tolerance); the deviation is infinite if the shape is wrong."""
    stored = np.load(GOLDEN / "models.npz")
    found = {}
    for key, value in outputs(name, net):
        entry = TOLERANCES[key]
        if list(value.shape) != entry["shape"]:
            found[key] = (float("inf"), entry["tolerance"])
            continue
        full = value.numpy()
        part = full[tuple(slice(None, None, step) for step in entry["stride"])]
        statistics = np.array([full.mean(dtype=np.float64), full.std(dtype=np.float64), full.min(), full.max()])
        error = max(np.abs(part - stored[key]).max(), np.abs(statistics - stored[f"{key}/stats"]).max())
        found[key] = (float(error), entry["tolerance"])
    return found
