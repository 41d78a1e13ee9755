"""The paths that a GPU takes, where there is none: devices are not mixed, and a training step does not wait.

`fake_gpu.py` says what it can tell and what not.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

import main
import test_my
from engine import build, evaluation, inpainter_stage
from engine.image_stage import ImageStage
from engine.loading import to_device
from engine.optimisation import face_generators
from engine.resident import ResidentItems
from datasets.faces import astronaut
from datasets.synthetic import SyntheticFaces
from models.blending import from_uint8
from models.image_completion import ImageInpainter
from models.refiner import Refiner
from utils import config
from utils.device import send
from utils.images import read_image, write_image

from engine_samples import SmallFaces, SmallOcclusion
from fake_gpu import OnGpu, fake_gpu
from test_refiner import refiner_stage
from test_training_loop import make_stage

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = [ROOT / "checkpoints" / f"{name}.pth"
           for name in ("encoder", "occlusion", "inpainter", "linear", "refiner")]
with_weights = pytest.mark.skipif(not all(path.exists() for path in WEIGHTS), reason="no shipped weights")
AS_SHIPPED = ["--config", str(ROOT / "args.txt"), "--precision", "fp32"]


@pytest.fixture
def gpu(monkeypatch):
    with fake_gpu(monkeypatch) as device:
        yield device


# ---- the GPU of paper itself -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("mixed", [
    lambda ours, theirs: ours + theirs, lambda ours, theirs: theirs * ours, lambda ours, theirs: ours.add_(theirs),
    lambda ours, theirs: torch.cat([ours, theirs]), lambda ours, theirs: torch.nn.functional.linear(ours, theirs)])
def test_devices_do_not_mix(gpu, mixed):
    with pytest.raises(RuntimeError, match="one device"):
        mixed(torch.rand(3, 3).to(gpu), torch.rand(3, 3))


def test_values_are_brought_back_before_they_are_read(gpu):
    there = torch.arange(3.0).to(gpu)
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()
    assert (there + 1).cpu().numpy().tolist() == [1, 2, 3]


@pytest.mark.parametrize("waits", [
    lambda there: there.sum().item(), lambda there: there.cpu(), lambda there: there.nonzero(),
    lambda there: there[there > 0], lambda there: bool(there.any()), lambda there: torch.ones(3).to(there.device),
    lambda there: there.copy_(torch.ones(3)), lambda there: torch.ones(3).to(there.device, non_blocking=True),
    lambda there: there[torch.tensor([0, 2])], lambda there: torch.linalg.solve(there.diag() + 1, there)])
def test_what_waits_is_noted(gpu, waits):
    there = send(torch.rand(3), gpu)
    assert OnGpu.waited == []
    waits(there)
    assert len(OnGpu.waited) == 1


def test_what_a_gpu_does_alone_does_not_wait(gpu):
    there = send(torch.rand(4, 3), gpu)
    moved = torch.ones(4, 3).pin_memory().to(gpu, non_blocking=True)
    torch.where(there > 0.5, moved, 0).sum()
    there.index_select(0, torch.zeros(2, dtype=torch.long, device=gpu))
    there[:, 1:] += 1
    assert OnGpu.waited == []


# ---- the program on it -----------------------------------------------------------------------------------------------

@with_weights
@torch.no_grad()
def test_completions_are_the_cpus(monkeypatch):
    """A batch on the GPU, one by one on the CPU: the same but for rounding; and so are the occluders found."""
    settings = config.parse(AS_SHIPPED, "test")
    faces = SyntheticFaces("test", 2)
    image = torch.stack([from_uint8(faces[index]["image"]) for index in range(2)])
    hole = torch.zeros(2, 1, 256, 256, dtype=torch.bool)
    hole[:, :, 100:170, 90:180] = True
    cpu = build.build_completion(settings, torch.device("cpu"))
    expected = [cpu(image, hole).output, *(cpu.predict_hole(image, hair) for hair in (True, False))]
    with fake_gpu(monkeypatch) as device:
        completion = build.build_completion(settings, device)
        there = image.to(device)
        found = [completion(there, hole.to(device)).output,
                 *(completion.predict_hole(there, hair) for hair in (True, False))]
        assert not completion.one_by_one and all(isinstance(tensor, OnGpu) for tensor in found)
        found = [tensor.cpu() for tensor in found]
    assert torch.equal(found[0][~hole.expand_as(image)], image[~hole.expand_as(image)])
    assert (found[0] - expected[0]).abs().max() < 2 / 127.5
    for ours, theirs in zip(found[1:], expected[1:]):
        assert theirs.any() and (ours ^ theirs).float().mean() < 1e-3


@with_weights
def test_a_photo_is_completed_as_on_the_cpu(tmp_path, monkeypatch):
    write_image(tmp_path / "astronaut.png", astronaut())
    arguments = [*AS_SHIPPED, "--image", str(tmp_path / "astronaut.png"), "--region", "eyes", "--hair", "fill",
                 "--save-mesh", "True", "--output"]
    assert test_my.main([*arguments, str(tmp_path / "cpu"), "--ngpu", "0"]) == 0
    with fake_gpu(monkeypatch):
        assert test_my.main([*arguments, str(tmp_path / "gpu"), "--ngpu", "1"]) == 0
    expected, found = (read_image(tmp_path / where / "astronaut" / "complete_output.png").astype(int)
                       for where in ("cpu", "gpu"))
    assert (expected != astronaut()).any() and np.abs(found - expected).max() <= 2


@with_weights
@pytest.mark.parametrize("more", [["--mask-source", "occlusion", "--resolution", "[224,224]"], ["--stage", "encoder"],
                                  ["--stage", "occlusion"]])
def test_evaluation(gpu, tmp_path, monkeypatch, more):
    monkeypatch.setattr(evaluation, "open_lpips", lambda path, device: (None, "this GPU knows one thread"))
    main.main([*AS_SHIPPED, "--eval", "--test-count", "2", "--ngpu", "1", "--nthreads", "0", "--log-type",
               "traditional", "--output", str(tmp_path), *more])
    assert (tmp_path / "summary.json").exists()


def small_stage(name: str):
    """A stage with small networks; it judges with a discriminator where the trained one does."""
    if name == "refiner":
        return refiner_stage(Refiner(), folds={"face_0": 0})
    if name == "inpainter2d":
        return ImageStage(ImageInpainter(), torch.nn.Identity(), SmallOcclusion())
    return make_stage(name, **({"gan": 1.0} if name == "inpainter" else {}))


@torch.no_grad()
@pytest.mark.parametrize("name", ["encoder", "occlusion", "inpainter", "refiner", "inpainter2d"])
def test_losses_do_not_wait(gpu, monkeypatch, name):
    """From faces in the GPU's memory to the losses; validation and its pictures run there, too."""
    penalties = []
    monkeypatch.setattr(inpainter_stage.L, "gradient_penalty",  # wants derivatives
                        lambda network, real, fake, alpha: penalties.append(alpha) or alpha.sum())
    stage = small_stage(name).to(gpu)
    autocast = lambda: torch.autocast("cuda", enabled=False)
    faces = ResidentItems(SmallFaces(4), gpu, 0, "none")
    OnGpu.waited.clear()
    batch = next(faces.batches(range(4), 2))
    losses, context = stage.losses(batch, face_generators((0,), range(2)), autocast, 1)
    losses |= stage.critic_losses(context, face_generators((0,), range(2)), autocast)
    assert OnGpu.waited == [] and len(penalties) == (name == "inpainter")
    assert all(isinstance(loss, OnGpu) and np.isfinite(loss.item()) for loss in losses.values())
    batch = to_device(default_collate([SmallFaces(2)[index] for index in range(2)]), gpu)
    statistics = stage.validate(stage.networks, batch, face_generators((0,), range(2)), autocast)
    assert np.isfinite(stage.score(statistics.double().cpu())[stage.metric])
    assert stage.pictures(stage.networks, batch, face_generators((0,), range(2))).dtype == torch.uint8
