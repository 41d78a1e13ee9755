"""What loaders of items need: how their processes begin, and the way of a batch to the device."""
from __future__ import annotations

import signal
from typing import Any, Mapping

import cv2
import torch
from torch import Tensor


def start_worker(index: int) -> None:
    """A data worker uses one thread (pools of threads do not survive a fork), and leaves Ctrl-C to the main process."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors on the device, without waiting for those in pinned memory; the rest is as it was."""
    return {name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()}
