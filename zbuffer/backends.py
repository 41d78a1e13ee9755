"""Choosing and calling what does the work: the compiled libraries through ctypes, or the reference."""

from __future__ import annotations

import ctypes
import threading
import warnings

import torch

from . import native, reference

BACKENDS = ("auto", "cpu", "cuda", "reference")
SUCCESS = -1  # codes of the compiled functions; a code >= 0 is the position of an index that is no vertex
OUT_OF_MEMORY = -2
CUDA_ERROR = -3

_lock = threading.Lock()
_libraries: dict[str, ctypes.CDLL | native.BuildError] = {}
_warned: set[str] = set()


def run(vertices, triangles, height, width, cull, backend, trusted):
    """Rasterize by BACKEND; arguments as :func:`zbuffer.rasterize` has checked them.

    Returns triangle (B, H, W) int64, depth (B, H, W) and barycentrics (B, H, W, 3) on the device of ``vertices``.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if backend in ("cpu", "cuda") and vertices.device.type != backend:
        raise ValueError(f"backend {backend!r} cannot work on tensors on {vertices.device}")
    if backend == "auto":
        backend = _best_backend(vertices.device.type)
    if backend == "reference":
        return _run_reference(vertices, triangles, height, width, cull)
    if vertices.device.type != backend:  # a device without a library of its own
        results = _run_compiled(backend, vertices.cpu(), triangles.cpu(), height, width, cull, trusted)
        return tuple(result.to(vertices.device) for result in results)
    return _run_compiled(backend, vertices, triangles, height, width, cull, trusted)


def _best_backend(device):
    for candidate in ("cuda", "cpu") if device == "cuda" else ("cpu",):
        library = load(candidate)
        if not isinstance(library, native.BuildError):
            return candidate
        slower = "the CPU" if candidate == "cuda" else "the slow PyTorch reference"
        _warn_once(candidate, f"zbuffer: no compiled rasterizer for {candidate}, using {slower} instead: {library}")
    return "reference"


def _warn_once(key, message):
    if key not in _warned:
        _warned.add(key)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def load(unit):
    """The loaded library "cpu" or "cuda", or the error why there is none; tried once per process."""
    with _lock:
        if unit not in _libraries:
            try:
                with native.find_or_build(unit) as path:
                    _libraries[unit] = ctypes.CDLL(str(path))
            except native.BuildError as error:
                _libraries[unit] = error
            except OSError as error:
                _libraries[unit] = native.BuildError(f"the compiled library cannot be loaded: {error}")
        return _libraries[unit]


def _run_reference(vertices, triangles, height, width, cull):
    triangles = triangles.long()
    bad = (triangles < 0) | (triangles >= vertices.shape[1])
    if bad.any():
        _raise_bad_index(int(triangles[bad][0]), vertices.shape[1])
    return reference.rasterize(vertices.detach(), triangles, height, width, cull)


def _run_compiled(unit, vertices, triangles, height, width, cull, trusted):
    library = load(unit)
    if isinstance(library, native.BuildError):
        raise library
    reported = unit == "cpu" or not trusted  # looking at a GPU's indices would wait for it
    triangles = (as_int32 if reported else as_int32_unseen)(triangles, vertices.shape[1])
    vertices = vertices.detach().contiguous()
    items = vertices.shape[0]
    triangle = torch.empty((items, height, width), dtype=torch.int64, device=vertices.device)
    depth = vertices.new_empty((items, height, width))
    barycentrics = vertices.new_empty((items, height, width, 3))
    name = f"zbuffer_rasterize_{'double' if vertices.dtype == torch.float64 else 'float'}"
    mesh = [vertices, triangles, items, vertices.shape[1], len(triangles), height, width, int(cull)]
    outputs = [triangle, depth, barycentrics]
    if unit == "cpu":
        call(name, *mesh, torch.get_num_threads(), *outputs, triangles=triangles, vertex_count=vertices.shape[1])
        return triangle, depth, barycentrics
    keys = torch.empty(items * height * width + 1, dtype=torch.int64, device=vertices.device)
    text = ctypes.create_string_buffer(1000)
    function = getattr(library, name)
    function.restype = ctypes.c_int64
    numbers = [*mesh, int(reported), vertices.device.index, keys, *outputs]
    code = function(*map(_argument, numbers), text, ctypes.c_int64(len(text)))
    _check_code(code, text.value.decode(errors="replace"), triangles, vertices.shape[1])
    return triangle, depth, barycentrics


def usable(*tensors):
    """Whether :func:`call` can work on these: float32 on the CPU, no gradient wanted (backward; forward-mode
    derivatives are none of this program's), nothing being traced, and the library compiled."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    plain = all(type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.dtype == torch.float32
                and tensor.device.type == "cpu" for tensor in tensors)
    return plain and not wanted and not isinstance(load("cpu"), native.BuildError)


def ready(what, tensor, shape, dtype=torch.float32):
    """A tensor as :func:`call` takes it, contiguous; None in `shape` stands for any length.

    Raises ValueError if it has another shape or type or does not lie in the processor's memory: the compiled functions
    would read on beyond it.
    """
    fits = tensor.dim() == len(shape) and all(wanted in (None, length) for wanted, length in zip(shape, tensor.shape))
    if not fits or tensor.dtype != dtype or tensor.device.type != "cpu":
        lengths = ", ".join("*" if length is None else str(length) for length in shape)
        raise ValueError(f"{what} must be {dtype} ({lengths}) on the CPU, not {tensor.dtype} {tuple(tensor.shape)} on "
                         f"{tensor.device}")
    return tensor.detach().contiguous()


def call(name, *arguments, triangles=None, vertex_count=0):
    """Calls a function of the CPU unit; tensors go as pointers, so they must be contiguous, numbers as int64 or float.

    triangles, vertex_count: of which an error tells, for functions that take them. Raises ValueError and MemoryError.
    """
    function = getattr(load("cpu"), name)
    function.restype = ctypes.c_int64
    _check_code(function(*map(_argument, arguments)), "", triangles, vertex_count)


def _argument(value):
    if torch.is_tensor(value):
        return _pointer(value)
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)


def as_int32(triangles, vertex_count):
    """Triangles as the compiled functions take them; ValueError where an index would wrap around."""
    if triangles.dtype != torch.int32:
        triangles = triangles.long()  # of unsigned types PyTorch knows no minimum
        if triangles.numel() and (triangles.amax() >= 2**31 or triangles.amin() < 0):
            bad = triangles[(triangles < 0) | (triangles >= 2**31)][0]
            _raise_bad_index(int(bad), vertex_count)
    return triangles.to(torch.int32).contiguous()


def as_int32_unseen(triangles, vertex_count):
    """The same without waiting for a GPU: an index that would wrap around becomes another one that is no vertex."""
    if triangles.dtype != torch.int32:
        triangles = triangles.long().clamp(-1, vertex_count)
    return triangles.to(torch.int32).contiguous()


def _pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def _check_code(code, message, triangles, vertex_count):
    if code == OUT_OF_MEMORY:
        raise MemoryError("zbuffer: not enough memory for the images")
    if code == CUDA_ERROR:
        raise RuntimeError(f"zbuffer: {message}")
    if code != SUCCESS:
        _raise_bad_index(int(triangles.reshape(-1)[code]), vertex_count)


def _raise_bad_index(index, vertex_count):
    known = f"0 to {vertex_count - 1}" if vertex_count else "none"
    raise ValueError(f"triangles refer to vertex {index}, but the vertices are {known}")
