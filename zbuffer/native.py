"""Compile the rasterizer's two units: for setup.py, for first use in a process, and for ``python -m zbuffer.build``.

Libraries are plain shared objects, named after a hash of their sources and options: a changed source never meets an
old library. They are looked for in the installed package ``zbuffer_native``, then in the cache folder
(``ZBUFFER_CACHE``, else ``~/.cache/zbuffer``), and are compiled there if missing.

Environment: ``CXX`` the C++ compiler, several words if need be ("ccache g++"); ``CUDA_HOME`` the CUDA toolkit;
``TORCH_CUDA_ARCH_LIST`` the GPUs to compile for, as "8.0;9.0+PTX" (else the GPUs at hand); ``ZBUFFER_CUDA`` "0" never
builds the CUDA unit, "1" insists on it in setup.py. ``ZBUFFER_SANITIZE`` "1" builds the CPU unit with AddressSanitizer
and UBSan, for a process with their runtimes loaded (see tests/test_fuzz.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "csrc"
UNITS = {"cpu": ("zbuffer_cpu.cpp", "cpu_kernel.h", "wide_kernel.h", "wide_avx2.h", "wide_avx512.h", "triangle.h",
                 "surface.h", "pyramid.h"),
         "cuda": ("zbuffer_cuda.cu", "kernels.cuh", "triangle.h")}
CPU_OPTIONS = ["-O3", "-std=c++17", "-fPIC", "-shared", "-pthread", "-ffp-contract=off"]
CUDA_OPTIONS = ["-O3", "-std=c++20", "-shared", "--fmad=false", "--cudart=shared", "-Xcompiler=-fPIC",
                "-Xcompiler=-ffp-contract=off", "-Xlinker=-z,defs"]
SANITIZERS = []
if os.environ.get("ZBUFFER_SANITIZE") == "1":
    SANITIZERS = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined,float-cast-overflow",
                  "-fno-sanitize-recover=all"]
    CPU_OPTIONS += SANITIZERS


class BuildError(RuntimeError):
    """A unit cannot be compiled; the message says why."""


@contextlib.contextmanager
def find_or_build(unit):
    """Path of the library of UNIT, "cpu" or "cuda", compiled now if need be. Raises BuildError.

    To be loaded within the context: where it cannot be kept for other processes, its file is gone afterwards.
    """
    path = _installed(unit) or _cached(unit)
    if path is not None:
        yield path
        return
    if unit == "cuda":
        _require_cuda()
    with _writable_folder() as folder:
        path = folder / library_name(unit)
        with _locked(folder / f"{unit}.lock"):
            if not path.exists():  # another process may have built it meanwhile
                took = "a few seconds" if unit == "cpu" else "a minute or two"
                print(f"zbuffer: compiling the {unit} rasterizer, once ({took}) ...", file=sys.stderr, flush=True)
                build(unit, folder)
        yield path


def _installed(unit) -> Path | None:
    """UNIT's library in the installed package, if it is there and runs on the GPUs at hand."""
    package = importlib.util.find_spec("zbuffer_native")
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent
    if unit == "cpu":
        return next(folder.glob(library_name(unit)), None)
    for path in sorted(folder.glob(f"{_stem(unit)}-*.so")):
        listed = path.stem.removeprefix(f"{_stem(unit)}-").split("_")
        if all(_runs_on(listed, *capability) for capability in _capabilities()):
            return path
    return None


def _runs_on(listed, major, minor) -> bool:
    """Does what is compiled for the listed architectures run on a GPU of this compute capability?

    Machine code does on later GPUs of the same major version ("9.0a" on its own only), PTX on all later ones, and so
    does what the compiler makes unless told ("default").
    """
    for entry in listed:
        if entry == "default":
            return True
        version, _, ptx = entry.partition("+")
        own = tuple(int(part) for part in version.rstrip("af").split("."))
        later = (major, minor) >= own and (major == own[0] or ptx)
        if (major, minor) == own or (later and version[-1].isdigit()):
            return True
    return False


def build(unit, folder) -> Path:
    """Compile and link UNIT into FOLDER and return the library's path. Raises BuildError."""
    compiler, libraries = _cpu_command() if unit == "cpu" else _cuda_command()
    path = Path(folder) / library_name(unit)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # Linked under another name and then moved: no process ever sees half a library.
        output = Path(scratch) / path.name
        source = SOURCES / UNITS[unit][0]
        run = subprocess.run([*compiler, str(source), "-o", str(output), *libraries], capture_output=True, text=True)
        if run.returncode != 0:
            raise BuildError(f"{compiler[0]} failed on {source.name}:\n{(run.stdout + run.stderr)[-4000:]}")
        with open(output, "rb") as file:
            os.fsync(file.fileno())  # a power cut must not leave an empty library under the final name
        os.replace(output, path)
    return path


def library_name(unit) -> str:
    """File name of UNIT's library, which changes with its sources, options and machine; that of the CUDA unit also with
    torch's version, and it says for which GPUs it is."""
    return f"{_stem(unit)}.so" if unit == "cpu" else f"{_stem(unit)}-{'_'.join(architectures()) or 'default'}.so"


def _stem(unit) -> str:
    digest = hashlib.sha256()
    for name in UNITS[unit]:
        if (SOURCES / name).exists():  # a missing one is for the compiler to report
            digest.update((SOURCES / name).read_bytes())
    facts = [*(CPU_OPTIONS if unit == "cpu" else CUDA_OPTIONS), sys.platform, platform.machine()]
    if unit == "cuda":
        import torch

        facts.append(torch.__version__)
    digest.update("\n".join(facts).encode())
    return f"zbuffer_{unit}-{digest.hexdigest()[:16]}"


def cuda_problem() -> str | None:
    """Why the CUDA unit cannot be compiled here, or None."""
    if os.environ.get("ZBUFFER_CUDA") == "0":
        return "ZBUFFER_CUDA is 0"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed (or hidden by pip's build isolation: use --no-build-isolation)"
    import torch

    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if _cuda_home() is None:
        return "no CUDA compiler (nvcc) was found; set CUDA_HOME"
    return None


def architectures() -> list[str]:
    """What to compile for: TORCH_CUDA_ARCH_LIST, else the GPUs at hand, as ["9.0", "8.0+PTX"]; may be empty."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    for entry in listed:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", entry):
            raise BuildError(f"TORCH_CUDA_ARCH_LIST has {entry!r}; write versions like 8.0 or 9.0+PTX")
    if listed:
        return listed
    return [f"{major}.{minor}" for major, minor in _capabilities()]


def _capabilities() -> list[tuple[int, int]]:
    """The compute capabilities of the GPUs at hand."""
    import torch

    return sorted({torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())})


def _require_cuda():
    problem = cuda_problem()
    if problem is not None:
        raise BuildError(problem)


def _cuda_home():
    compiler = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"),
              compiler and Path(compiler).resolve().parent.parent, "/usr/local/cuda"]
    for place in map(Path, filter(None, places)):
        # A lone launcher script, as in /usr/local/bin, is no toolkit.
        if (place / "bin" / "nvcc").exists() and ((place / "include" / "cuda.h").exists() or
                                                  (place / "targets").exists()):
            return place
    return None


def _cpu_command():
    """The compiler with its options, and the libraries to link."""
    try:
        words = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise BuildError(f"CXX is no command: {error}") from None
    programs = words[:1] or ["c++", "g++", "clang++"]
    compiler = next(filter(None, map(shutil.which, programs)), None)
    if compiler is None:
        raise BuildError(f"no C++ compiler was found ({', '.join(programs)})")
    return [compiler, *words[1:], *CPU_OPTIONS], []


def _cuda_command():
    """The compiler with its options, and the libraries to link."""
    _require_cuda()
    import torch

    home, inside = _cuda_home(), Path(torch.__file__).parent
    targets = []
    for entry in architectures():
        number = entry.removesuffix("+PTX").replace(".", "")
        targets.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if entry.endswith("+PTX"):
            targets.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    compiler = [str(home / "bin" / "nvcc"), *CUDA_OPTIONS, *targets, "-isystem", str(inside / "include")]
    libraries = [f"-L{inside / 'lib'}", "-lc10_cuda", "-lc10", f"-Xlinker=-rpath,{inside / 'lib'}"]
    return compiler, libraries


def _cached(unit) -> Path | None:
    """UNIT's library in the cache folder, which may be one that is only read."""
    folder = _cache_folder()
    if folder is None or not os.access(folder / library_name(unit), os.R_OK):
        return None
    return folder / library_name(unit)


def _cache_folder() -> Path | None:
    """None for a user without a home folder."""
    named = os.environ.get("ZBUFFER_CACHE")
    if named:
        return Path(named).absolute()  # the loader looks for a bare name elsewhere
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zbuffer"
    except RuntimeError:
        return None


@contextlib.contextmanager
def _writable_folder():
    """The cache folder; where nothing can be written there, one that lasts as long as the context."""
    folder = _cache_folder()
    if folder is not None and _is_writable(folder):
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="zbuffer-") as scratch:
            yield Path(scratch)


def _is_writable(folder) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _locked(path):
    """Hold an exclusive lock on a file, for processes that want to compile the same thing at the same time."""
    try:
        import fcntl
    except ImportError:
        raise BuildError("compiling needs a POSIX system") from None
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
