"""utils.files: whole files or none, names that stay in their folder, folders of one process."""
from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from pathlib import Path, PureWindowsPath

import pytest
from engine_samples import settings
from hypothesis import given
from hypothesis import strategies as st

from engine import build, report
from utils import checkpoints, config, files, images
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = ["..", ".", "", "/etc/passwd", "../../x", "a/b", "a\\b", "C:\\x", "con", "NUL.txt", "com1.tar.gz", "LPT¹",
           " x. ", "a\0b", "a\nb", "-rf", "~", "x" * 1000, "é" * 500, "\u202egnp.exe", "\ud800", "名前" * 100,
           ".hidden", "..."]


@pytest.mark.parametrize("good", ["me", "my photo", "IMG_0001", "a.b-c", "José", "名前", "(1)", "конец"])
def test_good_names_stay(good):
    assert files.safe_name(good) == good


@given(st.one_of(st.text(max_size=300), st.sampled_from(HOSTILE)))
def test_safe_names_are_safe_everywhere(name):
    safe = files.safe_name(name)
    assert safe and len(safe.encode()) <= files.LONGEST_NAME
    assert Path(safe).name == safe and PureWindowsPath(safe).name == safe and not PureWindowsPath(safe).is_reserved()
    assert not safe.startswith(".") and safe == safe.strip(" .")
    assert not any(unicodedata.category(character)[0] == "C" for character in safe)
    assert files.safe_name(safe) == safe


@given(st.sets(st.text(max_size=8, alphabet="ab./\\:. \0") | st.sampled_from(HOSTILE), min_size=2, max_size=6))
def test_different_names_stay_different(names):
    assert len({files.safe_name(name) for name in names}) == len(names)


def test_hostile_names_stay_in_the_output_folder(tmp_path):
    for number, name in enumerate(HOSTILE):
        folder = files.output_folder(tmp_path / "out", name)
        assert folder.parent == tmp_path / "out", name
        files.write_bytes(folder / "a.txt", b"%d" % number)
    assert len(list((tmp_path / "out").iterdir())) == len(HOSTILE)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["/etc/x.png", "../x.png", "a/../../x.png", "", "a\0.png"])
def test_paths_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="outside"):
        files.inside(tmp_path, name)


def test_links_are_not_followed_out(tmp_path):
    """A linked folder leads out and is refused; a linked file is replaced, not written through."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    (out / "sub").mkdir(parents=True)
    elsewhere.mkdir()
    (out / "me").symlink_to(elsewhere)
    (out / "inner").symlink_to(out / "sub")
    with pytest.raises(UserError, match="link"):
        files.output_folder(out, "me")
    with pytest.raises(UserError, match="link"):
        files.inside(out, "me/a.png")
    assert files.inside(out, "inner/a.png") == out / "inner" / "a.png"
    (elsewhere / "secret").write_text("old")
    (out / "a.txt").symlink_to(elsewhere / "secret")
    files.write_bytes(files.inside(out, "a.txt"), b"new")
    assert (elsewhere / "secret").read_text() == "old" and not (out / "a.txt").is_symlink()


def test_the_longest_names_can_be_written(tmp_path):
    for name in ("x" * 251 + ".png", "é" * 125 + ".png"):
        files.write_bytes(tmp_path / name, b"data")
    assert len(list(tmp_path.iterdir())) == 2


def test_threads_leave_the_permissions_of_new_files_alone(tmp_path):
    """To read the process' umask is to change it for a moment, for all threads."""
    code = f"""
import os, sys, threading
os.umask(0o027)
from utils import files
real, os.umask = os.umask, lambda mask: sys.exit("the umask was changed")
threads = [threading.Thread(target=files.write_bytes, args=(f"{{i}}.txt", b"x")) for i in range(4)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o640] * 4


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(28, "No space left on device")])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    files.write_bytes(tmp_path / "a.txt", b"old")
    with pytest.raises(UserError if isinstance(error, OSError) else error):
        with files.atomic(tmp_path / "a.txt") as stream:
            stream.write(b"half")
            raise error
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.txt", b"old")]


def test_tables_with_names_that_are_no_text(tmp_path):
    """A file name of bytes that are no UTF-8, as an old archive may hold."""
    name = os.fsdecode(b"caf\xe9")
    report.write_csv(tmp_path / "a.csv", [{"name": name}], ["name"])
    assert (tmp_path / "a.csv").read_bytes() == b"name\ncaf\\udce9\n"
    run = subprocess.run([sys.executable, "-c", "import os\nfrom utils.logging import note, run_script\n"
                          "run_script(lambda _: note(os.fsdecode(b'caf\\xe9')), [])"], cwd=ROOT, capture_output=True,
                         env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    assert run.stdout == b"caf\\udce9\n", run.stderr
    with pytest.raises(UserError, match="UTF-8"):
        settings(dataroot=name).write(tmp_path / "args.txt")


@pytest.mark.parametrize("name", ["x" * 1000, "a\0b", "absent", "."])
def test_names_that_no_file_can_have_are_one_line(tmp_path, name):
    for read in (files.read_text, files.read_json, checkpoints.load, images.read_image, config.read_ini):
        with pytest.raises(UserError) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_results_are_replaced_only_when_asked(tmp_path):
    with build.results_folder(settings(), tmp_path / "eval"):
        files.write_bytes(tmp_path / "eval" / "summary.json", b"{}")
    with pytest.raises(UserError, match="summary.json.*--overwrite"):
        with build.results_folder(settings(), tmp_path / "eval"):
            raise AssertionError("it went on")
    with build.results_folder(settings(overwrite=True), tmp_path / "eval"):
        pass
    with build.results_folder(settings(), tmp_path / "new" / "eval"):
        pass
    assert not (tmp_path / "new").exists()


HOLD = """
import sys
from utils import files
from utils.errors import UserError
for _ in range(40):
    try:
        with files.held(sys.argv[1], "x", "wait"):
            with open(sys.argv[2], "x"):
                pass
            import os; os.unlink(sys.argv[2])
    except UserError:
        pass
"""


def test_a_held_folder_has_one_holder(tmp_path):
    """Three processes take and leave a folder in a hurry: never are two inside (a file made by both would fail)."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "held"), str(tmp_path / "inside")]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
