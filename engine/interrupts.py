"""Ctrl-C in a training run: the step that is under way is finished, and the run saved."""
from __future__ import annotations

import contextlib
import signal
from typing import Iterator

from engine.distributed import World
from utils.logging import note


class Interrupts:
    """Takes the first Ctrl-C (or SIGTERM) as the wish that the run ends; a second one is a KeyboardInterrupt.

    Attributes:
        asked: has this process been asked to end? Others that train with it may not have been.
    """

    def __init__(self, world: World):
        self.world = world
        self.asked = False

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Inside, signals are taken so; afterwards as before."""
        old = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self.world.is_main:
            when = " after this step" if self.world.size == 1 else ""
            note(f"stopping{when}: the run is saved, then evaluated; Ctrl-C again leaves the evaluation out")
