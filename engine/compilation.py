"""--compile: networks translated by torch.compile for the processor at hand."""
from __future__ import annotations

import functools
from typing import Callable

import torch
from torch import nn

from utils.errors import UserError
from utils.logging import note


def compile_networks(*networks: nn.Module, training: bool = False) -> None:
    """Compiles networks in place, on their device; state, attributes and outputs (but for rounding) stay.

    training: gradients go through them, as through frozen ones whose answers are compared.

    What has no parameters is no network (the linear fill, stand-ins) and stays as it is. The translation itself happens
    in the first call, and again once when the batch's size changes, after which it holds for all sizes. A network that
    cannot be compiled as a whole, or not for what it is called with, is an error in that call, never run uncompiled
    (only of PyTorch's own layers alone, such as a bare nn.Sequential, PyTorch does no more than warn). Copies are not
    compiled.

    Raises:
        UserError: PyTorch cannot compile here, as without a C++ compiler.
    """
    for network in networks:
        if next(network.parameters(), None) is not None:
            require_compiler(_device(network))
            network.compile(fullgraph=True, options=_options(_device(network), training))


def compile_method(method: Callable) -> Callable:
    """A network's method compiled for its training; the network stays as it is. Otherwise as `compile_networks`."""
    device = _device(method.__self__)
    require_compiler(device)
    return torch.compile(method, fullgraph=True, options=_options(device, True))


def _options(device: str, training: bool) -> dict[str, bool] | None:
    """Of the translation. On a CPU what trains keeps the usual memory order: with channels last, which the translation
    prefers, gradients of convolutions can end in a bus error on processors with AMX (PyTorch 2.12.1)."""
    return {"layout_optimization": False} if training and device == "cpu" else None


def _device(network: nn.Module) -> str:
    return next(network.parameters()).device.type


@functools.cache
def require_compiler(device: str) -> None:
    """Compiles a trifle for "cpu" or "cuda", and says that the first calls will take long.

    Raises:
        UserError: that fails, with its reason.
    """
    try:
        torch.compile(lambda x: x.sin() + 1, fullgraph=True)(torch.zeros(64, device=device))
    except Exception as error:  # of many classes: no compiler, one that fails, no Triton, no headers
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        needed = "a C++ compiler (g++, or what the variable CXX names)"
        if device == "cuda":
            needed = f"Triton and {needed}"
        raise UserError(f"--compile: torch.compile does not work here ({reason}); it needs {needed}: install it, or "
                        "leave --compile out") from None
    note("--compile: the networks are translated when they are first used, which takes a minute or more each")
