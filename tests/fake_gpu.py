"""A GPU played by the CPU: tensors that say they are on "cuda" and mix with the CPU's no more than a GPU's do.

With it the paths that a GPU takes run where there is none: what forgets to move a tensor, or reads one that was not
brought back, fails as it would there, and what would wait for a GPU is noted. What a GPU computes, and how fast, it
cannot tell (see test_gpu.py); nor does PyTorch's engine differentiate here. torch.tensor(..., device="cuda") and lists
as indices, which make a tensor on the CPU and wait, fail as if there were no driver.
"""
from __future__ import annotations

import contextlib
import functools
from typing import Any, Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from zbuffer import backends

GPU = torch.device("cuda", 0)
CROSSING = {"_to_copy", "copy_", "copy"}  # operators that take tensors of both
# Operators whose indices may be on the CPU, as PyTorch has it.
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
# What reads values on the host, or makes tensors whose size depends on them.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "is_nonzero", "equal",
           "_linalg_check_errors"}


class OnGpu(torch.Tensor):
    """A tensor that claims to be on the GPU; `held` is where its values are."""

    held: torch.Tensor
    waited: list[str] = []  # what would have waited for a GPU, in the order it was asked for

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnGpu":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=GPU,
            requires_grad=held.requires_grad)
        tensor.held = held
        return tensor

    def __repr__(self) -> str:
        return f"OnGpu({self.held})"

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        return _call(function, arguments, keywords or {})


def _call(function, arguments: tuple, keywords: dict[str, Any]) -> Any:
    """Does on the CPU what was asked of the GPU; raises RuntimeError where tensors of both are mixed."""
    name = function.__name__.split(".")[0]
    tensors = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
    asked = keywords.get("device")
    if there and name not in CROSSING:
        looked_at = tensors[:1] if name in INDEXED else tensors
        strangers = [tensor for tensor in looked_at if not isinstance(tensor, OnGpu) and tensor.dim()]
        if strangers:
            raise RuntimeError(f"{function}: expected all tensors on one device, but {len(strangers)} of "
                               f"{len(looked_at)} are on the CPU and not on {GPU}")
    if _waits(name, arguments, keywords, bool(there)):
        OnGpu.waited.append(name)
    keywords = dict(keywords)
    if asked is not None and torch.device(asked).type == "cuda":
        keywords["device"] = torch.device("cpu")
    if name == "is_pinned":
        return getattr(arguments[0], "pinned", False)
    if name == "_pin_memory":
        pinned = arguments[0].clone()
        pinned.pinned = True
        return pinned
    held = {id(tensor.held): tensor for tensor in there}
    result = function(*tree_map_only(OnGpu, lambda tensor: tensor.held, arguments),
                      **tree_map_only(OnGpu, lambda tensor: tensor.held, keywords))
    if asked is not None:
        stays = torch.device(asked).type == "cuda"
    else:
        stays = isinstance(arguments[0], OnGpu) if name in CROSSING else bool(there)
    if not stays:
        return result
    return tree_map_only(torch.Tensor, lambda tensor: held.get(id(tensor), None) if id(tensor) in held
                         else OnGpu(tensor), result)


def is_mask(index: torch.Tensor) -> bool:
    """Whether an index selects by its values, so that the result's size depends on them."""
    return index.dtype in (torch.bool, torch.uint8)


def _waits(name: str, arguments: tuple, keywords: dict[str, Any], there: bool) -> bool:
    """Would the host wait: for values, or for a copy from or into memory that is not pinned?"""
    if name in CROSSING:
        source = arguments[1] if name.startswith("copy") else arguments[0]
        target = arguments[0] if name.startswith("copy") else torch.device(keywords.get("device") or source.device)
        from_gpu = isinstance(source, OnGpu)
        to_gpu = isinstance(target, OnGpu) if name.startswith("copy") else target.type == "cuda"
        quick = keywords.get("non_blocking", False) or (name.startswith("copy") and len(arguments) > 2 and arguments[2])
        return from_gpu != to_gpu and not (quick and getattr(source, "pinned", False))
    if name in INDEXED and isinstance(arguments[0], OnGpu):
        indices = [index for index in arguments[1] if index is not None]
        return any(is_mask(index) or not isinstance(index, OnGpu) for index in indices)
    return there and name in WAITING


def _rasterize(run, vertices, *arguments):
    """`zbuffer.backends.run`, of the CPU."""
    if not isinstance(vertices, OnGpu):
        return run(vertices, *arguments)
    held = tree_map_only(OnGpu, lambda tensor: tensor.held, arguments)
    return tuple(map(OnGpu, run(vertices.held, *held)))


class _Mode(TorchDispatchMode):
    """Sees what makes new tensors, too."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        return _call(function, arguments, keywords or {})


@contextlib.contextmanager
def fake_gpu(monkeypatch) -> Iterator[torch.device]:
    """Inside, "cuda" is this GPU; `OnGpu.waited` then says what waited. The CPU's rasterizer does its work."""
    torch._C._ensureCUDADeviceGuardSet()
    if torch.cuda.is_available():
        torch.cuda.init()  # a real one, which PyTorch else takes for initialised by what is replaced below
    OnGpu.waited = []
    with monkeypatch.context() as patch, torch.backends.cudnn.flags(enabled=False), _Mode():
        patch.setattr(backends, "run", functools.partial(_rasterize, backends.run))
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # Module.to makes new parameters
        try:
            yield GPU
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
