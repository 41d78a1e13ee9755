"""Getting the compiled units: on first use, by several processes at once, installed, and not at all."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_zbuffer_rasterize import HAS_CPU_UNIT

from zbuffer import build, native

ROOT = Path(__file__).resolve().parent.parent
needs_compiler = pytest.mark.skipif(not HAS_CPU_UNIT, reason="no C++ compiler")

DRAW = """
import torch, zbuffer
raster = zbuffer.rasterize(torch.tensor([[[0., 0, 1], [0, 4, 5], [4, 0, 9]]]), torch.tensor([[0, 1, 2]]), (5, 6))
zbuffer.rasterize(torch.zeros(1, 0, 3), torch.zeros(0, 3, dtype=torch.int64), (2, 2))
print(int(raster.mask.sum()))
"""


def start(code, cache, root=ROOT, new_session=False, **environment):
    """A fresh interpreter that runs CODE from ROOT, sees no installed zbuffer, and compiles into CACHE."""
    environment = {**os.environ, "PYTHONPATH": str(root), "ZBUFFER_CACHE": str(cache), **environment}
    hide = "import sys; sys.modules['zbuffer_native'] = None\n" if root == ROOT else ""
    return subprocess.Popen([sys.executable, "-c", hide + code], cwd=root, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=new_session)


@needs_compiler
def test_several_processes_compile_once_and_agree(tmp_path):
    processes = [start(DRAW, tmp_path) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [output for output, _ in outputs] == ["10\n"] * 2, outputs
    assert sum("compiling the cpu rasterizer" in errors for _, errors in outputs) == 1
    assert [path.name for path in tmp_path.glob("*.so")] == [native.library_name("cpu")]


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """A cache folder that cannot be written (not even with a superuser's rights) and the system's temporary folder."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "temporary").mkdir()

    def refuse(dir):
        raise PermissionError(dir)

    monkeypatch.setattr(native, "_installed", lambda unit: None)
    monkeypatch.setattr(native.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("ZBUFFER_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_library_in_a_read_only_cache_is_used(read_only, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    library = read_only / "cache" / native.library_name("cpu")
    library.write_bytes(b"")
    with native.find_or_build("cpu") as path:
        assert path == library


def test_where_nothing_can_be_kept_nothing_is_left(read_only, monkeypatch):
    monkeypatch.setattr(native, "build", lambda unit, folder: (folder / native.library_name(unit)).write_bytes(b""))
    with native.find_or_build("cpu") as path:
        assert path.exists() and read_only / "temporary" in path.parents
    assert not list((read_only / "temporary").iterdir())


def test_a_user_without_a_home_folder_is_served_as_one_who_cannot_write_there(read_only, monkeypatch):
    def unknown(user):
        raise KeyError(user)

    for name in ("ZBUFFER_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(native, "build", lambda unit, folder: (folder / native.library_name(unit)).write_bytes(b""))
    with native.find_or_build("cpu") as path:
        assert read_only / "temporary" in path.parents


def test_the_cache_may_be_the_current_folder(tmp_path, monkeypatch):
    """The loader looks for a name without a folder elsewhere."""
    monkeypatch.setattr(native, "_installed", lambda unit: None)
    monkeypatch.setenv("ZBUFFER_CACHE", ".")
    monkeypatch.chdir(tmp_path)
    Path(native.library_name("cpu")).write_bytes(b"")
    with native.find_or_build("cpu") as path:
        assert path.is_absolute() and path.samefile(native.library_name("cpu"))


@pytest.mark.slow
@needs_compiler
def test_a_killed_build_does_not_stop_the_next(tmp_path):
    """The lock ends with its holder, and what it left half built is not taken for a library."""
    compiler = tmp_path / "slow-compiler"
    compiler.write_text("#!/bin/sh\nfor word; do case $word in *.so) echo half > $word;; esac; done\n"
                        f"touch {tmp_path}/begun\nexec sleep 60\n")
    compiler.chmod(0o755)
    process = start(DRAW, tmp_path / "cache", CXX=str(compiler), new_session=True)
    while not (tmp_path / "begun").exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.communicate()[0] == ""
    output, errors = start(DRAW, tmp_path / "cache").communicate()
    assert output == "10\n", errors
    assert [path.name for path in (tmp_path / "cache").glob("*.so")] == [native.library_name("cpu")]


def test_without_a_compiler_the_reference_answers_after_one_warning(tmp_path):
    output, errors = start(DRAW, tmp_path, CXX="no-such-compiler").communicate()
    assert output == "10\n", errors
    assert errors.count("RuntimeWarning") == 1
    assert "PyTorch reference" in errors and "no C++ compiler was found (no-such-compiler)" in errors


@pytest.mark.parametrize("command, found", [("env g++", ["env", "g++"]), ("'env' -u 'A B'", ["env", "-u", "A B"])])
def test_the_compiler_may_be_several_words(monkeypatch, command, found):
    monkeypatch.setenv("CXX", command)
    words = native._cpu_command()[0]
    assert [Path(words[0]).name, *words[1:]] == [*found, *native.CPU_OPTIONS]


def test_a_compiler_that_is_no_command_is_told(monkeypatch):
    monkeypatch.setenv("CXX", "g++ 'unfinished")
    with pytest.raises(native.BuildError, match="CXX is no command"):
        native._cpu_command()


def test_insisting_on_a_backend_that_cannot_be_built_is_an_error(tmp_path):
    code = DRAW.replace("(5, 6))", "(5, 6), backend='cpu')")
    process = start(code, tmp_path, CXX="no-such-compiler")
    assert "BuildError: no C++ compiler was found" in process.communicate()[1]
    assert process.returncode != 0


@needs_compiler
def test_sources_that_do_not_compile_are_reported(tmp_path, monkeypatch):
    (tmp_path / "triangle.h").write_text("this is no C++\n")
    (tmp_path / "zbuffer_cpu.cpp").write_text('#include "triangle.h"\n')
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    with pytest.raises(native.BuildError, match="failed on zbuffer_cpu.cpp"):
        native.build("cpu", tmp_path)
    assert not list(tmp_path.glob("*.so"))


def test_changed_sources_or_options_mean_another_library(tmp_path, monkeypatch):
    names = {native.library_name("cpu")}
    monkeypatch.setattr(native, "CPU_OPTIONS", [*native.CPU_OPTIONS, "-g"])
    names.add(native.library_name("cpu"))
    for name in native.UNITS["cpu"]:
        (tmp_path / name).write_bytes((native.SOURCES / name).read_bytes() + b"\n")
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    names.add(native.library_name("cpu"))
    assert len(names) == 3


def test_architectures_are_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0a 12.0+PTX")
    assert native.architectures() == ["8.0", "9.0a", "12.0+PTX"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Ampere")
    with pytest.raises(native.BuildError, match="write versions like 8.0"):
        native.architectures()


@pytest.mark.parametrize("listed, capability, runs", [
    (["8.0"], (8, 0), True), (["8.0"], (8, 6), True), (["8.6"], (8, 0), False), (["8.0"], (9, 0), False),
    (["8.0+PTX"], (9, 0), True), (["9.0+PTX"], (8, 0), False), (["7.5", "9.0"], (9, 0), True),
    (["9.0a"], (9, 0), True), (["10.0a"], (10, 3), False), (["default"], (12, 0), True),
])
def test_for_which_gpus_a_library_is(listed, capability, runs):
    assert native._runs_on(listed, *capability) == runs


def test_an_installed_library_for_other_gpus_is_passed_over(tmp_path, monkeypatch):
    """It would load, and its first launch fail."""
    (tmp_path / "__init__.py").write_text("")
    spec = native.importlib.util.spec_from_file_location("zbuffer_native", tmp_path / "__init__.py")
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0")
    library = tmp_path / native.library_name("cuda")
    library.write_bytes(b"")
    for capabilities, found in (([(9, 0)], library), ([(8, 6), (9, 0)], library), ([(9, 0), (10, 0)], None)):
        monkeypatch.setattr(native, "_capabilities", lambda: capabilities)
        assert native._installed("cuda") == found
    assert native._installed("cpu") is None


def test_a_cached_cuda_library_needs_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_installed", lambda unit: None)
    monkeypatch.setattr(native, "cuda_problem", lambda: "no CUDA compiler (nvcc) was found")
    monkeypatch.setenv("ZBUFFER_CACHE", str(tmp_path))
    with pytest.raises(native.BuildError, match="no CUDA compiler"), native.find_or_build("cuda"):
        pass
    library = tmp_path / native.library_name("cuda")
    library.write_bytes(b"")
    with native.find_or_build("cuda") as path:
        assert path == library


def test_check_skips_without_cuda(monkeypatch, capsys):
    monkeypatch.setenv("ZBUFFER_CUDA", "0")
    assert build.main(["--cuda"]) == 0
    assert "skipped" in capsys.readouterr().out


@needs_compiler
def test_check_compiles_and_fails_loudly(tmp_path, monkeypatch, capsys):
    assert build.main(["--output", str(tmp_path)]) == 0
    assert "compiled and linked" in capsys.readouterr().out
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build.main([]) == 1
    assert "error: no C++ compiler" in capsys.readouterr().err


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("way", ["setup.py install", "pip install"])
def test_installed_libraries_are_used_from_the_repository_root(tmp_path, way):
    """Installs into an environment of its own; the program then needs no compiler, in the root and elsewhere."""
    sources = tmp_path / "zbuffer"
    subprocess.run(["cp", "-r", str(ROOT / "zbuffer"), str(sources)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    ours = [path for path in sys.path if path.endswith("-packages")]
    (packages / "parent.pth").write_text("\n".join(ours) + "\n")
    command = {"setup.py install": ["setup.py", "install"],
               "pip install": ["-m", "pip", "install", "--no-build-isolation", "--no-deps", "."]}[way]
    subprocess.run([python, *command], cwd=sources, check=True, capture_output=True)
    find = "from zbuffer import native\nwith native.find_or_build('cpu') as path: print(path)"
    for folder, path in ((ROOT, str(ROOT)), (tmp_path / "venv", "")):
        environment = {**os.environ, "CXX": "no-such-compiler", "ZBUFFER_CACHE": str(tmp_path), "PYTHONPATH": path}
        run = subprocess.run([python, "-W", "error::RuntimeWarning", "-c", DRAW + find], cwd=folder, env=environment,
                             capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith("10\n") and "zbuffer_native" in run.stdout
