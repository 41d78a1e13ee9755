"""Between two looks of the host at the losses a training step leaves the device alone: nothing waits for a value.

Whole steps, with their derivatives and optimisers, on the CPU, whose tensors stand in for the device's: so what is
copied to a device is not seen here, but in test_fake_gpu.py.
"""

from __future__ import annotations

import contextlib
import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fake_gpu import WAITING, is_mask
from test_training_loop import make_stage, make_trainer
from utils.errors import UserError
from zbuffer import backends

READING = ("cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__", "__index__", "__array__")


def has_mask(argument) -> bool:
    """Whether an operator's argument is a list of indices with a mask."""
    return isinstance(argument, (list, tuple)) and any(
        isinstance(index, torch.Tensor) and is_mask(index) for index in argument)


class Watch(TorchDispatchMode):
    """Collects operators that make the host wait on a GPU, however they were called."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def see(self, name: str) -> None:
        """Notes what waits; torch's optimisers may read their step counters, which lie on the host."""
        frames = traceback.extract_stack()
        if not any("torch/optim/" in frame.filename for frame in frames):
            self.found.append(f"{name} in {frames[-3].filename.rsplit('/', 1)[-1]} or above")

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.__name__.split(".")[0]
        if name in WAITING or (name.startswith("index") and any(map(has_mask, arguments))):
            self.see(name)
        return function(*arguments, **(keywords or {}))


@contextlib.contextmanager
def watched(monkeypatch):
    """Names of operators and methods that read device data inside; on the CPU, tensors stand in for the device's."""
    watch = Watch()
    with monkeypatch.context() as patch, watch:
        for method in READING:
            original = getattr(torch.Tensor, method)

            def reading(tensor, *arguments, _original=original, _name=method, **keywords):
                watch.see(_name)
                return _original(tensor, *arguments, **keywords)
            patch.setattr(torch.Tensor, method, reading)
        yield watch.found


@pytest.mark.parametrize("expression", [
    lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: bool(x.any()),
    lambda x: x.tolist(), lambda x: float(x.mean())])
def test_the_watch_sees_what_waits(expression, monkeypatch):
    with watched(monkeypatch) as found:
        expression(torch.rand(5))
    assert found


def test_the_watch_lets_work_pass(monkeypatch):
    with watched(monkeypatch) as found:
        torch.where(torch.rand(5) > 0.5, torch.rand(5), 0).sum()
        torch.rand(4, 3).index_select(0, torch.tensor([1, 2]))
    assert found == []


@pytest.mark.parametrize("stage, options", [("occlusion", {}), ("inpainter", {"gan": 1.0})])
def test_steps_between_two_looks_never_wait(stage, options, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, make_stage(stage, **options), max_steps=6)
    trainer.look_every = 100
    original, waits = trainer._train_step, []
    monkeypatch.setattr(backends, "usable", lambda *tensors: False)  # what is compiled for the CPU no GPU calls

    def step(batches):
        with watched(monkeypatch) as found:
            original(batches)
        waits.append(list(found))

    trainer._train_step = step
    trainer.run()
    assert waits == [[]] * 6
    assert trainer._pending == [] and trainer.log.smoothed  # the run's end looked


def test_looking_seldom_trains_the_same_and_names_the_step_of_a_bad_loss(tmp_path):
    often, seldom = (make_trainer(tmp_path / str(every), make_stage("occlusion"), max_steps=5) for every in (1, 4))
    seldom.look_every = 4
    assert often.run() == seldom.run()
    assert often.log.smoothed == seldom.log.smoothed

    broken = make_trainer(tmp_path / "broken", make_stage("occlusion"), max_steps=8)
    broken.look_every = 4
    original = broken.stage.losses

    def losses(batch, rng, autocast, step):
        values, context = original(batch, rng, autocast, step)
        return {**values, "dice": values["dice"] * (float("nan") if step == 1 else 1)}, context

    broken.stage.losses = losses
    with pytest.raises(UserError, match=r"'dice' is nan at step 1"):
        broken.run()
    assert broken.state.step == 3 and not (tmp_path / "broken" / "last.pth").exists()
