"""Bad input: a sample of the fuzzer's cases, properties of readers and rasterizer, sanitizers, large meshes."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fuzz
import numpy as np
import process_celeba
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_zbuffer_rasterize import HAS_CPU_UNIT

import zbuffer
from engine.given_faces import GivenFaces
from engine.landmark_evaluation import read_annotations
from engine.portraits import read_points
from utils import config
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
in_one_folder = hypothesis_settings(max_examples=40, deadline=None,
                                    suppress_health_check=[HealthCheck.function_scoped_fixture])
needs_compiler = pytest.mark.skipif(not HAS_CPU_UNIT, reason="no C++ compiler")


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_sampled_cases(target):
    """A few of the cases that no long run has; `python tests/fuzz.py` does as many as one likes."""
    _, findings = fuzz.fuzz(target, first=10 ** 6, cases=8 * fuzz.SHARES[target])
    assert not findings, "\n\n".join(findings)


@pytest.mark.slow
def test_twenty_thousand_cases():
    command = [sys.executable, "tests/fuzz.py", "--cases", "20000"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-5000:]


def test_the_fuzzer_finds_what_there_is_to_find(monkeypatch):
    """An exception, a crash, a hang and a hunger for memory are all findings, and the run goes on after them."""
    def broken(rng, folder):
        kind = int(rng.integers(4))
        if kind == 0:
            raise IndexError("a defect")
        if kind == 1:
            os.kill(os.getpid(), 9)
        if kind == 2:
            while True:
                pass
        bytearray(2 * fuzz.MEMORY)

    monkeypatch.setitem(fuzz.TARGETS, "meshes", broken)
    monkeypatch.setattr(fuzz, "SECONDS", 0.3)
    _, findings = fuzz.fuzz("meshes", 0, 12)
    assert len(findings) == 12
    for word in ("IndexError: a defect", "died of -9", "longer than", "MemoryError"):
        assert any(word in finding for finding in findings), word


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
                    max_leaves=30)
POINT = st.lists(st.floats() | st.integers(), min_size=2, max_size=2)
BOX_LISTS = st.lists(st.floats() | st.integers(), min_size=4, max_size=4)
POINT_LISTS = st.sampled_from([5, 68]).flatmap(lambda count: st.lists(POINT, min_size=count, max_size=count))


@hypothesis_settings(max_examples=100, deadline=None)
@given(content=JSON | BOX_LISTS | POINT_LISTS | st.dictionaries(st.text(max_size=5), JSON | BOX_LISTS, max_size=3)
       | st.fixed_dictionaries({"faces": st.lists(JSON | BOX_LISTS, max_size=3)}))
def test_any_json_for_landmarks_gives_faces_or_one_line(content):
    text = json.dumps(content)
    try:
        given = GivenFaces(text if text[0] in "[{" else f"[{text}]")
    except UserError:
        return
    assert given.of(Path("a.png")) is None or all(face.landmarks.shape == (5, 2) for face in given.of(Path("a.png")))


@in_one_folder
@given(content=JSON | st.dictionaries(st.text(max_size=5), JSON | POINT_LISTS, max_size=3)
       | st.dictionaries(st.text(max_size=5), st.dictionaries(st.just("landmarks68"), JSON | POINT_LISTS), max_size=3))
@pytest.mark.parametrize("read, sizes", [(read_points, (5, 68)), (read_annotations, (68,))])
def test_landmark_files_of_any_content(tmp_path, read, sizes, content):
    """Finite points of the right number, or one line; whatever JSON it is."""
    path = tmp_path / "points.json"
    path.write_text(json.dumps(content))
    try:
        found = read(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(points.shape in [(size, 2) for size in sizes] and points.isfinite().all()
                   for points in found.values())


@in_one_folder
@given(lines=st.lists(st.text(max_size=30) | st.lists(st.floats().map(str), min_size=9, max_size=11).map(
    lambda numbers: " ".join(["a.jpg", *numbers])), max_size=5))
def test_celeba_lists_of_any_content(tmp_path, lines):
    path = tmp_path / "list.txt"
    path.write_text("\n".join(["1", "x y", *lines]), encoding="utf-8", errors="surrogatepass")
    try:
        found = process_celeba.read_landmarks(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(len(numbers) == 10 and np.isfinite(numbers).all() for numbers in found.values())


@in_one_folder
@given(name=st.sampled_from(sorted(config.BY_NAME)), text=st.text(max_size=40))
def test_settings_of_any_text(tmp_path, name, text):
    """A value is refused in one line, or means the same after it was written and read again."""
    option = config.BY_NAME[name]
    try:
        value = config.from_text(option, text, "here")
        written = config.to_text(option, value)
    except UserError as error:
        assert str(error).startswith(("here", option.flag))
    else:
        assert config.from_text(option, written, "again") == value


COORDINATES = st.floats(width=32) | st.integers(-3, 12).map(float) | st.sampled_from([0.5, 1e-40, 3.4e38])


@needs_compiler
@hypothesis_settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_mesh_is_drawn_as_the_reference_draws_it(data):
    """NaN, Inf, huge and equal coordinates, indices beyond the vertices: the same bits, or ValueError from both."""
    count = data.draw(st.integers(0, 8))
    rows = data.draw(st.lists(st.lists(COORDINATES, min_size=3, max_size=3), min_size=count, max_size=count))
    index = st.integers(-1, count) if data.draw(st.booleans()) else st.integers(0, max(count - 1, 0))
    faces = data.draw(st.lists(st.lists(index, min_size=3, max_size=3), max_size=8))
    size = data.draw(st.tuples(st.integers(0, 10), st.integers(0, 10)))
    vertices = torch.tensor(rows, dtype=torch.float32).reshape(1, count, 3)
    triangles = torch.tensor(faces, dtype=torch.int32).reshape(-1, 3)
    results = []
    for backend in ("cpu", "reference"):
        try:
            results.append(zbuffer.rasterize(vertices, triangles, size, backend=backend))
        except ValueError as error:
            results.append(str(error))
    found, expected = results
    assert type(found) is type(expected)
    if isinstance(found, str):
        assert found == expected
    else:
        assert all(torch.equal(one, other) for one, other in zip(found, expected))


@pytest.mark.slow
@needs_compiler
def test_ten_million_triangles():
    """Small, large, empty and broken ones; twice the same result, and as many threads as one likes."""
    rng, rows, columns = np.random.default_rng(0), 2000, 1500
    row, column = np.divmod(np.arange(rows * columns), columns)
    vertices = np.stack([row * 270 / rows - 5, column * 270 / columns - 5, rng.random(len(row))], 1)
    vertices[:, :2] += rng.normal(0, 0.1, (len(row), 2))
    vertices[::1000], vertices[1::300_000] = np.nan, 3e38
    vertices = torch.from_numpy(vertices.astype(np.float32))[None]
    start = rng.integers(0, len(row) - columns - 1, 10_000_000)
    triangles = torch.from_numpy(np.stack([start, start + 1, start + rng.choice([0, columns], len(start))], 1)).int()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(zbuffer.rasterize(vertices, triangles, (256, 256), backend="cpu"))
    torch.set_num_threads(1)
    assert all(torch.equal(one, other) for one, other in zip(*results))
    assert results[0].mask.float().mean() > 0.5
    triangles[-1, 2] = rows * columns
    with pytest.raises(ValueError, match="refer to vertex 3000000"):
        zbuffer.rasterize(vertices, triangles, (256, 256), backend="cpu")


SANITIZED = """
import sys
sys.modules["zbuffer_native"] = None  # the installed one is built without
import fuzz, torch
from zbuffer import backends
if sys.argv[1] == "control":
    allocate = torch.empty
    torch.empty = lambda size, **options: allocate([*size[:-1], size[-1] // 2], **options)
    backends.run(torch.rand(1, 30, 3) * 40, torch.arange(30).reshape(10, 3), 40, 40, False, "cpu", False)
else:
    read = sum(fuzz.run_case("meshes", number) for number in range(int(sys.argv[1])))
    print(read)
"""


def run_sanitized(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """Runs Python with AddressSanitizer and UBSan in everything that is compiled; skips where there are none."""
    runtimes = [subprocess.run(["g++", f"-print-file-name={name}.so"], capture_output=True, text=True).stdout.strip()
                for name in ("libasan", "libubsan")]
    if not all(map(os.path.isabs, runtimes)):
        pytest.skip("no sanitizers")
    environment = {**os.environ, "ZBUFFER_SANITIZE": "1", "ZBUFFER_CACHE": str(folder), "CXX": "g++",
                   "LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.run([sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@needs_compiler
def test_sanitizers_find_nothing_in_the_rasterizer(tmp_path):
    """1,500 meshes under AddressSanitizer and UBSan; a buffer that is too small, as a control, must be noticed."""
    whole = run_sanitized(tmp_path, "-c", SANITIZED, "1500")
    assert whole.returncode == 0, whole.stderr[-5000:]
    assert int(whole.stdout.split()[0]) > 1000
    control = run_sanitized(tmp_path, "-c", SANITIZED, "control")
    assert control.returncode != 0 and "AddressSanitizer: heap-buffer-overflow" in control.stderr


@pytest.mark.slow
@needs_compiler
def test_sanitizers_find_nothing_in_the_kernels(tmp_path):
    """The CUDA kernels' source, run on the CPU by the tests of its interleavings."""
    run = run_sanitized(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_zbuffer_cuda.py")
    assert run.returncode == 0 and "passed" in run.stdout, (run.stdout + run.stderr)[-5000:]
