"""The networks as ONNX files, for programs that complete faces without PyTorch.

    python -m engine.onnx_export --config args.txt --output DIR [--check] [--overwrite]

Every file holds what a completion calls, with everything that is built around the network (reduction of the picture,
placing of the head, spectral and batch norms divided out), so that it can stand in its place. Sides are fixed, the
batch is free; numbers are float32 but for masks of pictures, which are bool.

    encoder.onnx      image (B, 3, 224, 224) -> code_shape, code_albedo, ...: the fields of `models.encoder.FaceCode`
    occlusion.onnx    image (B, 3, S, S), S of --resolution -> probabilities (B, 3, S, S)
    refiner.onnx      --model-type refined: image, completed (B, 3, S, S), hole, mesh (B, 1, S, S) -> refined_picture,
                      refined_face, ...: the fields of `models.refiner.Refined`
    inpainter.onnx    --model-type 3dmm_pca, mixed and refined: albedo (B, 3, 192, 256), visible (B, 1, 192, 256) ->
                      completed, confidence
    inpainter2d.onnx  --model-type 2d: image (B, 3, 256, 256), visible (B, 1, 256, 256) -> completed (B, 3, 256, 256)

--check runs every file in onnxruntime and compares the numbers with PyTorch's.
"""
from __future__ import annotations

import importlib.util
import logging
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import torch
from torch import nn

from datasets.alignment import WINDOW_SIZE
from engine import build
from models.encoder import FaceCode
from models.morphable import UV_HEIGHT, UV_WIDTH
from models.refiner import Refined
from utils import config, files
from utils.errors import UserError
from utils.logging import note, progress, run_script

PACKAGES = ("onnx", "onnxscript")  # that PyTorch's exporter needs
TOLERANCE = 1e-4  # largest difference of an output, as a share of its largest absolute value
BATCHES = (1, 3)  # that the check runs: the examples' own is neither, so that a batch baked in is found
EXAMPLES = 2
REPEATS = 5


@dataclass(frozen=True)
class Part:
    """A network as a completion calls it: its inputs by name, called with a number of items, and its outputs' names."""

    name: str
    network: nn.Module
    inputs: Callable[[int], Mapping[str, torch.Tensor]]
    outputs: Sequence[str]


@dataclass(frozen=True)
class Agreement:
    """error: the largest difference as a share of its output's largest value; milliseconds of one item."""

    error: float
    onnxruntime_ms: float
    torch_ms: float


def parts_of(completion: nn.Module, model_type: str, size: int) -> list[Part]:
    """The networks of a completion on the CPU, in the order in which it calls them.

    completion: as `engine.build.build_completion` makes it for a --model-type; size: of its images, 256 or 224. The
    linear fill is no network, so that with "linear" there are two parts only, and half of a mixed fill is in none.
    """
    occlusion = Part("occlusion", completion.occlusion, lambda count: {"image": _picture(count, size)},
                     ["probabilities"])
    if model_type == "2d":
        return [occlusion, Part("inpainter2d", completion.inpainter, lambda count: {
            "image": _picture(count, size), "visible": _mask(count, size, size)}, ["completed"])]
    encoder = Part("encoder", completion.encoder, lambda count: {"image": _picture(count, WINDOW_SIZE)},
                   [f"code_{name}" for name in FaceCode._fields])  # a graph has one name space: "shape" is taken
    parts = [occlusion, encoder]
    if model_type != "linear":
        network = completion.inpainter if model_type == "3dmm_pca" else completion.inpainter.network
        parts.append(Part("inpainter", network, lambda count: {
            "albedo": _noise(count, 3, UV_HEIGHT, UV_WIDTH), "visible": _mask(count, UV_HEIGHT, UV_WIDTH).float()},
            ["completed", "confidence"]))
    if model_type == "refined":
        parts.append(Part("refiner", completion.refiner, lambda count: {
            "image": _picture(count, size), "completed": _picture(count, size).flip(3),
            "hole": _mask(count, size, size), "mesh": _mask(count, size, size).flip(2)},
            [f"refined_{name}" for name in Refined._fields]))
    return parts


def _noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _picture(count: int, size: int) -> torch.Tensor:
    return _noise(count, 3, size, size)


def _mask(count: int, height: int, width: int) -> torch.Tensor:
    return _noise(count, 1, height, width) > -0.5


def export_network(part: Part) -> bytes:
    """The ONNX file of a network in evaluation mode; its batch is free.

    Raises:
        UserError: the packages that PyTorch exports with are not installed.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"exporting to ONNX needs the package{'s' * (len(missing) > 1)} {' and '.join(missing)}, not "
                        "installed here: pip install -r requirements.txt -c constraints.txt")
    inputs = part.inputs(EXAMPLES)
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter about its own deprecated parts
        exporter.setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                part.network, tuple(inputs.values()), dynamo=True, verbose=False, input_names=list(inputs),
                output_names=list(part.outputs), dynamic_shapes=tuple({0: "batch"} for _ in inputs))
        finally:
            exporter.setLevel(level)
    return program.model_proto.SerializeToString()


@torch.no_grad()
def compare(part: Part, model: bytes) -> Agreement:
    """What onnxruntime makes of a network's ONNX file on this processor, with as many threads as PyTorch uses.

    Raises:
        UserError: onnxruntime is not installed, or the numbers differ by more than TOLERANCE.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError("--check needs the package onnxruntime, not installed here: "
                        "pip install -r requirements.txt -c constraints.txt")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    error = 0.0
    for count in BATCHES:
        inputs = part.inputs(count)
        result = part.network(*inputs.values())
        expected = [result] if torch.is_tensor(result) else list(result)
        found = session.run(list(part.outputs), {name: value.numpy() for name, value in inputs.items()})
        for name, ours, theirs in zip(part.outputs, expected, found, strict=True):
            difference = _difference(ours, torch.from_numpy(theirs))
            if not difference <= TOLERANCE:
                raise UserError(f"{part.name}.onnx: onnxruntime's {name} differs from PyTorch's by {difference:.1e} of "
                                f"its largest value at a batch of {count}, {TOLERANCE:.0e} is allowed: use another "
                                "version of onnxruntime, or do without the file")
            error = max(error, difference)
    inputs = part.inputs(1)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    return Agreement(error, _shortest(lambda: session.run(None, arrays)),
                     _shortest(lambda: part.network(*inputs.values())))


def _difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """The largest absolute difference as a share of the largest expected value; infinite for another shape."""
    if expected.shape != found.shape:
        return float("inf")
    if not expected.numel():  # codes of an encoder that has none
        return 0.0
    largest = float(expected.abs().max())
    error = float((expected - found).abs().max())
    return error / largest if largest else error


def _shortest(work: Callable[[], object]) -> float:
    """Milliseconds of the fastest of several runs after a first one."""
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)


def export(settings: Any, check: bool) -> list[Path]:
    """Writes the files of the networks that the settings name into settings.output; returns their paths.

    Raises:
        UserError: no folder is given or it holds such files (without --overwrite), weights or packages are missing, or
            the check fails. A file that fails it is not written.
    """
    if not settings.output:
        raise UserError("say where the ONNX files are to go with --output DIR")
    if settings.compile:
        raise UserError("--compile is for running the networks in PyTorch: leave it out to export them")
    folder = Path(settings.output)
    # ONNX files hold float32; whoever runs them chooses another precision there.
    completion = build.build_completion(settings.replace(precision="fp32"), torch.device("cpu"))
    parts = parts_of(completion, settings.model_type, settings.resolution[0])
    files.refuse_overwriting(folder, [f"{part.name}.onnx" for part in parts], settings.overwrite)
    if settings.model_type in ("linear", "mixed", "refined"):
        note("the linear fill is no network (a system of linear equations is solved for each image, see "
             "models/linear.py), so there is no ONNX file of it; --model-type 3dmm_pca does without")
    paths = []
    for part in progress(parts, "exporting", len(parts), settings.log_type):
        model = export_network(part)
        path = folder / f"{part.name}.onnx"
        told = f"{path}: {len(model) / 2 ** 20:.1f} MB"
        if check:
            found = compare(part, model)
            told += (f"; onnxruntime differs from PyTorch by {found.error:.1e} of the largest value (allowed "
                     f"{TOLERANCE:.0e}), one image takes {found.onnxruntime_ms:.0f} ms, PyTorch {found.torch_ms:.0f} "
                     f"ms, threads: {torch.get_num_threads()}")
        files.write_bytes(path, model)
        paths.append(path)
        note(told)
    return paths


def main(arguments: Sequence[str]) -> None:
    """The command line: the options of main.py, and --check."""
    known = [argument for argument in arguments if argument != "--check"]
    settings = config.parse(known, "Write the networks as ONNX files into --output DIR; with --check, compare "
                            "onnxruntime's numbers and speed with PyTorch's.", "python -m engine.onnx_export")
    export(settings, check=len(known) < len(arguments))


if __name__ == "__main__":
    sys.exit(run_script(main))
