"""What a GPU computes beside what the CPU computes: the renderer, a completed face, steps of training.

Skipped without one. The z-buffer's own tests on a GPU are in test_zbuffer_cuda.py.
"""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datasets.definition import load as load_definition
from engine import build
from engine.distributed import World
from engine.training import Trainer, TrainingOptions
from models.morphable import MorphableModel
from models.renderer import Renderer, project
from utils import config

from engine_samples import SmallFaces
from test_training_loop import make_stage

ROOT = Path(__file__).resolve().parents[1]
GPU = torch.device("cuda")
WEIGHTS = [ROOT / "checkpoints" / f"{name}.pth" for name in ("encoder", "occlusion", "linear", "refiner")]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(scope="module")
def faces():
    """The built-in model's renderer, and normalised shapes, scales and poses of four faces."""
    generator = torch.Generator().manual_seed(0)
    shape = torch.randn(4, 228, generator=generator)
    pose = 0.3 * torch.randn(4, 5, generator=generator)
    return Renderer(MorphableModel(load_definition("builtin"))), shape, torch.full((4,), 8e-4), pose.clamp(-0.5, 0.5)


def test_rasterization_has_the_cpus_bits(faces):
    renderer, shape, scale, pose = faces
    positions = project(renderer.morphable.vertices(shape), scale, pose)
    expected = renderer.rasterize(positions, (224, 224))
    found = renderer.to(GPU).rasterize(positions.to(GPU), (224, 224))
    renderer.cpu()
    assert (expected.triangle >= 0).float().mean() > 0.1
    for ours, theirs in zip(found, expected):
        assert torch.equal(ours.cpu(), theirs)


def test_gradients_through_the_renderer_are_the_cpus(faces):
    renderer, shape, scale, pose = faces
    albedo = torch.rand(4, 3, 192, 256, generator=torch.Generator().manual_seed(1))
    gradients = []
    for device in (torch.device("cpu"), GPU):
        renderer.to(device)
        inputs = [value.clone().to(device).requires_grad_() for value in (shape, pose, albedo)]
        positions = project(renderer.morphable.vertices(inputs[0]), scale.to(device), inputs[1])
        drawn = renderer.render(inputs[2], renderer.rasterize(positions, (224, 224)))
        weight = torch.linspace(0, 1, 224, device=device)
        (drawn * weight).sum().backward()
        gradients.append([value.grad.cpu() for value in inputs])
    renderer.cpu()
    errors = [float((ours - theirs).norm() / theirs.norm()) for theirs, ours in zip(*gradients)]
    assert max(errors) < 5e-3  # sums over thousands of pixels, in another order


@pytest.mark.skipif(not all(path.exists() for path in WEIGHTS), reason="no shipped weights")
@pytest.mark.parametrize("precision, mean, most", [("fp32", 0.1, 4), ("bf16", 0.5, 12)])
def test_completion_is_the_cpus(precision, mean, most):
    from datasets.synthetic import SyntheticFaces
    from models.blending import from_uint8
    settings = config.parse(["--config", str(ROOT / "args.txt"), "--precision", precision], "test")
    faces = SyntheticFaces("test", 2, occluders=False)
    image = torch.stack([from_uint8(faces[index]["image"][None])[0] for index in range(2)])
    hole = torch.zeros(2, 1, 256, 256, dtype=torch.bool)
    hole[:, :, 100:170, 90:180] = True
    outputs = []
    for device in (torch.device("cpu"), GPU):
        with torch.no_grad():
            outputs.append(build.build_completion(settings, device)(image.to(device), hole.to(device)).output.cpu())
    difference = (outputs[0] - outputs[1]).abs() * 127.5
    assert torch.equal(outputs[1][~hole.expand_as(image)], outputs[0][~hole.expand_as(image)])
    assert difference.mean() < mean and difference.quantile(0.999) < most  # gray levels; TF32 convolutions round


@pytest.mark.parametrize("name, precision", [("encoder", "fp32"), ("occlusion", "fp32"), ("inpainter", "fp32"),
                                             ("occlusion", "bf16"), ("inpainter", "bf16")])
def test_training_steps_are_the_cpus(tmp_path, name, precision):
    """The losses of four steps of small networks, the same faces, holes and start on both."""
    losses = []
    for device in (torch.device("cpu"), GPU):
        stage = make_stage(name)
        seen = []
        trainer = Trainer(stage, SmallFaces(10), SmallFaces(2),
                          TrainingOptions(tmp_path / device.type, batch_size=2, max_steps=4, epochs=100, bar=False,
                                          checkpoint_minutes=1e9, precision=precision), World(0, 1, device))
        trainer._log = lambda step, values: seen.append(values)
        trainer.run()
        losses.append(seen)
    assert len(losses[0]) == len(losses[1]) == 4
    for theirs, ours in zip(*losses):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key] == pytest.approx(value, rel=0.05 if precision == "bf16" else 0.02, abs=0.02), key
