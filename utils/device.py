"""Which processor the networks run on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from utils.logging import warn_once

if TYPE_CHECKING:
    import torch


def choose_dtype(precision: str) -> torch.dtype:
    """What "fp32", "bf16" and "fp16" stand for."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU's on the device; PyTorch's plain `to` waits until a GPU has done all it was asked for."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def choose_device(ngpu: int) -> torch.device:
    """The processor of this process: a GPU if `ngpu` > 0 and there is one, else the CPU (said in one line).

    Under torchrun, process LOCAL_RANK of this machine gets GPU LOCAL_RANK."""
    import torch

    if ngpu == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if int(os.environ.get("RANK", 0)) == 0:
            warn_once(f"--ngpu {ngpu}: no GPU found that PyTorch can use; running on the CPU")
        return torch.device("cpu")
    if ngpu > 1 and "LOCAL_RANK" not in os.environ:
        warn_once(f"--ngpu {ngpu}: one process uses one GPU; for all, start with "
                  f"torchrun --nproc_per_node {ngpu} main.py ...")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
