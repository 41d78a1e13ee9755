"""The numbers of a training run, and how the command line's settings become them."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class TrainingOptions:
    """Numbers of one run; `epochs`, `max_steps` and `max_minutes` (None: no limit) each end it.

    Attributes:
        folder: of checkpoints; log_folder: of TensorBoard's files, None: none.
        batch_size: faces of a process' forward pass; accumulate: such passes in a step.
        checkpoint_minutes: between validations, each of which is saved.
        ema: the moving average's largest decay, 0: no average.
        precision: fp32, bf16 or fp16.
        workers: processes that read items.
        bar: progress is shown as a bar, else as lines.
        settings: the command line's, plain values by name, as checkpoints keep them.
    """

    folder: Path
    log_folder: Path | None = None
    batch_size: int = 28
    accumulate: int = 1
    learning_rate: float = 1e-4
    optim_method: str = "Adam"
    optim_options: dict = field(default_factory=dict)
    scheduler_method: str = "ExponentialLR"
    scheduler_options: dict = field(default_factory=dict)
    epochs: int = 500
    max_steps: int | None = None
    max_minutes: float | None = None
    checkpoint_minutes: float = 10.0
    ema: float = 0.999
    precision: str = "fp32"
    workers: int = 0
    seed: int = 0
    skip_bad_steps: bool = False
    compile: bool = False
    resident: bool = False
    bar: bool = True
    settings: dict = field(default_factory=dict)


def options_from(settings: Any) -> TrainingOptions:
    """The run's numbers from the command line's settings.

    Raises:
        UserError: another run's checkpoint lies in the folder already.
    """
    from engine import build
    folder = build.run_folder(settings)
    return TrainingOptions(
        folder=folder, log_folder=build.log_folder(settings, folder), batch_size=settings.batch_size,
        accumulate=settings.accumulate, learning_rate=settings.learning_rate, optim_method=settings.optim_method,
        optim_options=dict(settings.optim_options or {}), scheduler_method=settings.scheduler_method,
        scheduler_options=dict(settings.scheduler_options or {}), epochs=settings.nepochs, max_steps=settings.max_steps,
        max_minutes=settings.max_minutes, checkpoint_minutes=settings.checkpoint_minutes, ema=settings.ema,
        precision=build.choose_precision(settings), workers=settings.nthreads, seed=settings.manual_seed,
        skip_bad_steps=settings.skip_bad_steps, compile=settings.compile, resident=settings.resident,
        bar=settings.log_type == "progressbar", settings=build.plain_settings(settings))
