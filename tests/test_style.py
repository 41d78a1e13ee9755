"""How the sources are written: no line longer than 120 characters, no tabs, no spaces at a line's end."""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("datasets", "engine", "models", "utils", "zbuffer", "benchmarks", "tests")
KINDS = {".py", ".h", ".cpp", ".cu", ".cuh"}
NOT_OURS = {"build", "dist", "__pycache__", "cache", "CelebA", "3DMM_definition"}  # built, or brought by users
LONGEST = 120


def sources(root: Path) -> Iterator[Path]:
    """Found without git, so that an unpacked archive is checked as well."""
    yield from sorted(root.glob("*.py"))
    for top in FOLDERS:
        for folder, inner, names in os.walk(root / top):
            inner[:] = sorted(name for name in inner if name not in NOT_OURS and not name.startswith("."))
            yield from (Path(folder, name) for name in sorted(names) if Path(name).suffix in KINDS)


def faults(root: Path) -> list[str]:
    found = []
    for path in sources(root):
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            where = f"{path.relative_to(root).as_posix()}:{number}"
            if len(line) > LONGEST:
                found.append(f"{where}: {len(line)} characters")
            if "\t" in line:
                found.append(f"{where}: a tab")
            if line != line.rstrip():
                found.append(f"{where}: white space at the end")
    return found


def test_sources_are_written_as_agreed():
    found = faults(ROOT)
    assert not found, "\n".join(found)


def test_every_kind_of_source_is_looked_at():
    names = {path.relative_to(ROOT).as_posix() for path in sources(ROOT)}
    assert {"main.py", "datasets/synthetic/worn.py", "engine/build.py", "zbuffer/csrc/triangle.h",
            "zbuffer/csrc/zbuffer_cuda.cu", "zbuffer/csrc/kernels.cuh", "tests/cuda_shim/shim.cpp",
            "tests/test_style.py"} <= names


@pytest.mark.parametrize("text, fault", [
    ("x = 1\n" + "#" * 121 + "\n", "2: 121 characters"), ("\n\n\tx = 1\n", "3: a tab"), ("x = 1 \n", "1: white space"),
    ("é" * 120 + "\n", None)])
def test_faults_are_named(tmp_path, text, fault):
    (tmp_path / "utils" / "build").mkdir(parents=True)
    (tmp_path / "utils" / "build" / "made.py").write_text("\t\n")
    (tmp_path / "utils" / "one.py").write_text(text, encoding="utf-8")
    found = faults(tmp_path)
    assert [line.startswith(f"utils/one.py:{fault}") for line in found] == ([True] if fault else [])
