"""What becomes of a training step whose loss or gradient is not finite: it ends the run, or is undone and counted."""
from __future__ import annotations

import torch
from torch import Tensor

from engine.run_state import RunState
from utils import checkpoints
from utils.errors import UserError

MOST_SKIPPED = 100  # bad steps in a row after which the networks, not the data, must be what is broken
MOST_BAD_BATCHES = 20  # files; a run that skips for weeks must not fill the disk
BATCH_FORMAT = "3dfacefill-batch"


class BadStep(Exception):
    """A loss or gradient of one step is not finite. mine: did this process' present batch cause it, so far as known?"""

    def __init__(self, what: str, value: float, step: int, mine: bool = True):
        super().__init__(f"{what} is {value}")
        self.step, self.mine = step, mine


class BadSteps:
    """Skips a run's bad steps, where its options say so, and keeps their batches in its folder for a look.

    A bad step is found before the optimisers take it, so that only the networks' buffers are to be put back.

    Attributes:
        in_row: steps skipped since the last good one; whoever takes a good one sets it to 0.
        folder: of the batches.
    """

    def __init__(self, state: RunState):
        self.state = state
        self.in_row = 0
        self.folder = state.options.folder / "bad_batches"

    def copy_buffers(self) -> list[Tensor]:
        """What a forward pass changes besides gradients: running means, singular vectors; empty if none is undone."""
        return [buffer.detach().clone() for buffer in self._buffers()] if self.state.options.skip_bad_steps else []

    def _buffers(self) -> list[Tensor]:
        stage = self.state.stage
        return [buffer for module in [*stage.networks.values(), *stage.critics.values()]
                for buffer in module.buffers()]

    def skip(self, bad: BadStep, batches: list[dict], buffers: list[Tensor]) -> str:
        """Saves the step's batches, puts the networks' buffers back and counts it; returns the line that tells of it.

        batches: of all micro-batches; buffers: what `copy_buffers` said before the step.

        Raises:
            UserError: such steps are not to be skipped, or too many in a row were.
        """
        state = self.state
        place = f"step {bad.step} (epoch {state.epoch})"
        saved = self._save_batches(bad, batches) if bad.mine else ""
        if not state.options.skip_bad_steps:
            raise UserError(f"training stopped: {bad} at {place}{saved}; lower --learning-rate, use --precision fp32 "
                            f"or --skip-bad-steps{state.last_good()}")
        state.skipped, self.in_row = state.skipped + 1, self.in_row + 1
        if self.in_row >= MOST_SKIPPED:
            raise UserError(f"training stopped: {self.in_row} steps in a row were skipped, the last because {bad} at "
                            f"{place}{saved}; lower --learning-rate or use --precision fp32{state.last_good()}")
        with torch.no_grad():
            for buffer, before in zip(self._buffers(), buffers):
                buffer.copy_(before)
        return f"{place} skipped, number {state.skipped}: {bad}{saved}"

    def _save_batches(self, bad: BadStep, batches: list[dict]) -> str:
        """Writes them in a form that `utils.checkpoints.load` reads; returns where, for messages."""
        state = self.state
        process = f"_process_{state.world.rank}" if state.world.size > 1 else ""
        path = self.folder / f"step_{state.step}{process}.pth"
        if len(list(self.folder.glob("*.pth"))) >= MOST_BAD_BATCHES:
            return ""
        content = {"format": BATCH_FORMAT, "stage": state.stage.name, "step": state.step, "epoch": state.epoch,
                   "cause": str(bad), "batches": batches}
        try:
            checkpoints.save(path, content)
        except UserError as error:  # the cause matters more than the disk
            return f" ({error})"
        return f" (the batch is in {path})"
