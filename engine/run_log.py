"""How a training run is seen to go: on the terminal and in TensorBoard, by the main process alone."""
from __future__ import annotations

import contextlib
from typing import Iterator, Mapping

from torch import Tensor

from engine.report import TrainingDisplay
from engine.run_state import RunState
from utils.errors import UserError

SCALAR_EVERY = 20  # steps between TensorBoard scalars


class RunLog:
    """Shows a run, from the step on at which it stands when this is made, until the end of a with-statement.

    Attributes:
        smoothed: losses by name, each a moving average over some 20 steps.
        writer: TensorBoard's; None in other processes than the main one, and where the run has no folder for its files.

    Raises:
        UserError: TensorBoard's files cannot be written; so do `losses`, `held_out` and the end.
    """

    def __init__(self, state: RunState):
        main = state.world.is_main
        self.state = state
        self.smoothed: dict[str, float] = {}
        self.display = TrainingDisplay(state.options.bar and main, main)
        self.writer = None
        if main and state.options.log_folder is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and a library user may not want it
            with self._writing():
                self.writer = SummaryWriter(str(state.options.log_folder), purge_step=state.step or None)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.display.close()
        if self.writer and kind is None:  # else what went wrong before is to be told
            with self._writing():
                self.writer.close()

    def line(self, text: str) -> None:
        """Shows a line on the terminal."""
        self.display.line(text)

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the losses of a step, counted from 0."""
        for name, value in values.items():
            self.smoothed[name] = 0.95 * self.smoothed.get(name, value) + 0.05 * value
        state = self.state
        self.display.update(state.progress(), state.elapsed, step + 1, state.epoch, state.step_faces, self.smoothed)
        if self.writer and step % SCALAR_EVERY == 0:
            with self._writing():
                for name, value in self.smoothed.items():
                    self.writer.add_scalar(f"loss/{name}", value, step)
                self.writer.add_scalar("learning_rate", state.optimisers["main"].param_groups[0]["lr"], step)

    def held_out(self, pictures: Tensor) -> None:
        """Gives the writer, which must be there, the latest held-out measures and pictures, uint8 (3, H, W)."""
        with self._writing():
            for name, value in self.state.scores.items():
                self.writer.add_scalar(f"held_out/{name}", value, self.state.step)
            self.writer.add_image("pictures", pictures, self.state.step)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """TensorBoard's writer works in a thread of its own, and a later call raises what went wrong there."""
        try:
            yield
        except OSError as error:
            raise UserError(f"training stopped at step {self.state.step}: cannot write "
                            f"{self.state.options.log_folder}: {error.strerror or error}"
                            f"{self.state.last_good()}") from None
