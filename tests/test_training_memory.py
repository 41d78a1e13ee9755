"""Training does not take more memory the longer it goes on."""
from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest

from test_training_loop import make_stage, make_trainer

WARM, MEASURED = 100, 200  # steps
TOLERATED = 4.0  # MiB: what the allocators' pools move by; a picture kept a step would be 100


def resident() -> float:
    """Resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("stage, weights", [("encoder", {}), ("occlusion", {}), ("inpainter", {"gan": 1.0})])
def test_memory_does_not_grow(tmp_path, stage, weights):
    """Over some hundred steps with small networks, with a checkpoint and a validation every few of them."""
    trainer = make_trainer(tmp_path, make_stage(stage, **weights), faces=12, max_steps=WARM + MEASURED,
                           checkpoint_minutes=0.01)
    original, memory = trainer._train_step, []

    def step(batches):
        original(batches)
        memory.append(resident())

    trainer._train_step = step
    trainer.run()
    before, after = memory[WARM:WARM + 20], memory[-20:]
    assert sum(after) / 20 - sum(before) / 20 < TOLERATED
