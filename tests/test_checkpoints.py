"""Checkpoint files: nothing is lost in writing, and every bad file is one clear error."""
from __future__ import annotations

import hashlib
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from engine import export
from utils import checkpoints
from utils.errors import UserError


class _Command:
    def __reduce__(self):
        return os.system, ("touch should_not_exist",)


class _Breaks:
    def __reduce__(self):
        raise RuntimeError("cannot be saved")


def _error(action, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_round_trip_makes_folders(tmp_path):
    path = tmp_path / "new" / "folder" / "a.pth"
    content = {"epoch": 3, "networks": {"encoder": {"weight": torch.randn(3, 4)}},
               "settings": {"lr": 1e-4, "x": [1, None]}}
    checkpoints.save(path, content)
    loaded = checkpoints.load(path)
    assert loaded["settings"] == content["settings"] and loaded["epoch"] == 3
    assert torch.equal(loaded["networks"]["encoder"]["weight"], content["networks"]["encoder"]["weight"])
    assert [entry.name for entry in path.parent.iterdir()] == ["a.pth"]


def test_a_failed_save_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.pth"
    checkpoints.save(path, {"epoch": 1})
    with pytest.raises(RuntimeError, match="cannot be saved"):
        checkpoints.save(path, {"epoch": 2, "weights": torch.zeros(1000), "bad": _Breaks()})
    assert checkpoints.load(path) == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]


def test_a_file_is_never_half_written(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    checkpoints.save(path, {"epoch": 1})

    def interrupted(source, target):
        assert checkpoints.load(source) == {"epoch": 2}, "the new file is complete before it takes the name"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(path, {"epoch": 2})
    assert checkpoints.load(path) == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pth"]


def test_saving_under_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in _error(checkpoints.save, tmp_path / "file" / "a.pth", {})


def test_missing_empty_and_folder(tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    assert "does not exist" in _error(checkpoints.load, tmp_path / "none.pth")
    assert "empty" in _error(checkpoints.load, tmp_path / "empty.pth")
    assert "not a file" in _error(checkpoints.load, tmp_path)


def test_any_flipped_bit_of_a_file_of_ours_is_noticed(tmp_path):
    """Also one in the middle of a tensor, where torch.load notices nothing."""
    path = tmp_path / "a.pth"
    checkpoints.save_weights(path, "encoder", {"weight": torch.randn(10, 10)}, {"steps": 3})
    whole, rng = path.read_bytes(), random.Random(0)
    values = whole.find(checkpoints.load(path)["state"]["weight"].numpy().tobytes())
    assert values > 0
    places = [values, 0, len(whole) - 1, len(whole) - 64, len(whole) - 80, *rng.sample(range(len(whole)), 100)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        assert "a.pth" in _error(checkpoints.load, path), place
    path.write_bytes(whole + b"x")
    assert "a.pth" in _error(checkpoints.load, path)
    path.write_bytes(whole)
    checkpoints.load(path)


def test_the_hash_cannot_be_left_out(tmp_path):
    path = tmp_path / "a.pth"
    checkpoints.save_weights(path, "encoder", {"weight": torch.zeros(2, 2)}, {})
    content = checkpoints.load(path)
    torch.save(content, path)
    assert "its hash is missing" in _error(checkpoints.load, path)
    torch.save({**content, "version": 1}, path)
    assert torch.equal(checkpoints.load_weights(path, "encoder")[0]["weight"], torch.zeros(2, 2))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated(tmp_path, share, zipped):
    whole, path = tmp_path / "whole.pth", tmp_path / "part.pth"
    torch.save({"weight": torch.randn(100, 100)}, whole, _use_new_zipfile_serialization=zipped)
    data = whole.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    assert "part.pth" in _error(checkpoints.load, path)


def test_text_and_picture_files(tmp_path):
    for name, data in (("a.txt", b"hello, world\n" * 10), ("a.jpg", b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4),
                       ("a.zip", b"PK\x05\x06" + bytes(18))):
        (tmp_path / name).write_bytes(data)
        assert name in _error(checkpoints.load, tmp_path / name)


@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_code_is_refused_and_not_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    if write == "torch":
        torch.save({"modelE": _Command()}, path)
    else:
        path.write_bytes(pickle.dumps({"modelE": _Command()}))
    assert "evil.pth" in _error(checkpoints.load, path)
    assert not (tmp_path / "should_not_exist").exists()


def test_a_refused_pickle_is_not_run_within_a_hashed_file_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints.save("evil.pth", {"format": checkpoints.WEIGHTS_FORMAT, "state": _Command()})
    assert "which could run code" in _error(checkpoints.load, "evil.pth")
    assert not (tmp_path / "should_not_exist").exists()


def test_nothing_in_the_program_reads_pickles_that_can_run_code():
    """torch.load stands in one place and with weights_only; numpy never with allow_pickle; no bare unpickling."""
    root = Path(checkpoints.__file__).resolve().parent.parent
    sources = {path.relative_to(root).as_posix(): path.read_text() for folder in
               ("engine", "models", "datasets", "utils", "zbuffer", "benchmarks", ".") for path in
               (root / folder).glob("*.py" if folder == "." else "**/*.py")}
    assert [name for name, text in sources.items() if "torch.load(" in text] == ["utils/checkpoints.py"]
    assert sources["utils/checkpoints.py"].count("torch.load(") == sources["utils/checkpoints.py"].count(
        "weights_only=True)\n") + 1  # the docstring's
    for name, text in sources.items():
        for word in ("pickle.load", "allow_pickle=True", "cPickle", "joblib.load", "torch.jit.load", "yaml.load("):
            assert word not in text, (name, word)


def test_files_that_would_fill_the_memory(tmp_path):
    path = tmp_path / "bomb.pth"
    torch.save({"weight": torch.zeros(10 ** 6)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    assert path.stat().st_size < 10 ** 5
    assert "compressed archive" in _error(checkpoints.load, path)
    torch.save({"weight": torch.zeros(1).expand(10 ** 9, 10 ** 3)}, path)
    assert "claims (1000000000, 1000) values" in _error(checkpoints.load, path)
    torch.save({"weight": torch.zeros(3).to_sparse()}, path)
    assert "unusual kind" in _error(checkpoints.load, path)
    nested: dict = {}
    for _ in range(100):
        nested = {"a": nested}
    torch.save(nested, path)
    assert "nested" in _error(checkpoints.load, path)


def test_a_whole_pickled_network_is_refused_with_the_reason(tmp_path):
    torch.save({"modelE": torch.nn.Linear(2, 2)}, tmp_path / "a.pth")
    assert "which could run code" in _error(checkpoints.load, tmp_path / "a.pth")


def test_other_content_than_a_dictionary(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "a.pth")
    assert "a list" in _error(checkpoints.load, tmp_path / "a.pth")


def test_weight_files_halve_kernels_and_keep_vectors(tmp_path):
    state = {"weight": torch.randn(4, 3), "u": torch.randn(4) * 1e-6, "count": torch.tensor(7),
             "big": torch.full((2, 2), 1e6)}
    path = tmp_path / "encoder.pth"
    checkpoints.save_weights(path, "encoder", state, {"steps": 5, "name": "x"})
    stored = checkpoints.load(path)["state"]
    assert stored["weight"].dtype == torch.float16 and stored["u"].dtype == torch.float32
    loaded, metadata = checkpoints.load_weights(path, "encoder")
    assert metadata == {"steps": 5, "name": "x"}
    assert loaded["weight"].dtype == torch.float32
    assert torch.allclose(loaded["weight"], state["weight"], rtol=1e-3, atol=1e-6)
    for key in ("u", "count", "big"):
        assert torch.equal(loaded[key], state[key])
    checkpoints.save_weights(path, "encoder", state, {}, half=False)
    assert torch.equal(checkpoints.load_weights(path, "encoder")[0]["weight"], state["weight"])


def test_weight_files_of_another_network_version_or_kind(tmp_path):
    path = tmp_path / "a.pth"
    checkpoints.save_weights(path, "encoder", {"weight": torch.zeros(2, 2)}, {})
    assert "not of the inpainter" in _error(checkpoints.load_weights, path, "inpainter")
    content = checkpoints.load(path)
    for version, advice in ((99, "update the program"), (0, "write it again"), ("2", "write it again")):
        checkpoints.save(path, {**content, "version": version})
        message = _error(checkpoints.load_weights, path, "encoder")
        assert f"version {version}, this program reads versions 1 and 2" in message and advice in message
    checkpoints.save(path, {**content, "state": None})
    assert "damaged" in _error(checkpoints.load_weights, path, "encoder")
    checkpoints.save(path, {"modelE": {}})
    assert "not a weight file" in _error(checkpoints.load_weights, path, "encoder")


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    path = tmp_path / "a.pth"
    state = {"weight": torch.tensor([[1.0, float("nan")]])}
    assert "not finite" in _error(checkpoints.save_weights, path, "encoder", state, {})
    assert not path.exists()


def test_all_misfits_are_listed():
    state = {"a": torch.zeros(2), "b": torch.zeros(3), "c": 5, "z": torch.zeros(1)}
    message = _error(checkpoints.check_state, "net", state, {"a": (2,), "b": (4,), "c": (1,), "d": (1,), "e": (2,)})
    assert "2 missing: d, e" in message and "1 extra: z" in message
    assert "2 misshapen: b ((3,) instead of (4,)), c (a int instead of (1,))" in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_or_of_another_type_are_not_loaded(bad):
    network = torch.nn.Linear(2, 2)
    state = {**network.state_dict(), "weight": torch.tensor([[1.0, bad], [0, 0]])}
    assert "not finite: weight" in _error(checkpoints.check_fits, network, state, "net")
    state["weight"] = torch.zeros(2, 2, dtype=torch.int64)
    assert "another type than the network's: weight" in _error(checkpoints.check_fits, network, state, "net")


def test_training_checkpoints_are_checked(tmp_path):
    whole = {name: kind() for name, kind in checkpoints._TRAINING_ENTRIES.items()}
    whole["format"] = checkpoints.TRAINING_FORMAT
    checkpoints.check_training("a.pth", whole)
    for name in checkpoints._TRAINING_ENTRIES:
        message = _error(checkpoints.check_training, "a.pth", {**whole, name: None})
        assert f"entry {name} is missing" in message
    broken = {**whole, "optimisers": {"main": {"state": {0: {"exp_avg": torch.tensor([float("inf")])}}}}}
    assert "exp_avg of the optimisers is not finite" in _error(checkpoints.check_training, "a.pth", broken)


def test_shipped_weights_match_their_sums():
    folder = Path(checkpoints.__file__).resolve().parent.parent / "checkpoints"
    sums = checkpoints.read_sums(folder)
    assert sorted(sums) == sorted(path.name for path in folder.glob("*.pth"))
    for name, accepted in sums.items():
        assert accepted == [hashlib.sha256((folder / name).read_bytes()).hexdigest()], name


def test_a_listed_file_that_differs_from_its_sum_is_refused(tmp_path):
    path, other = tmp_path / "a.pth", tmp_path / "other.pth"
    checkpoints.save_weights(path, "encoder", {"weight": torch.zeros(2, 2)}, {})
    checkpoints.save_weights(other, "encoder", {"weight": torch.ones(2, 2)}, {})
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  a.pth\n")
    checkpoints.load(path)
    checkpoints.load(other)
    path.write_bytes(other.read_bytes())
    assert "does not match its sum" in _error(checkpoints.load, path)
    (tmp_path / "SHA256SUMS").write_text("no sum a.pth\n")
    assert "line 1" in _error(checkpoints.load, path)


def test_exporting_keeps_the_sums_up_to_date(tmp_path):
    """`python -m engine.export RUN/best.pth FOLDER/X.pth` in a folder with sums; other lines stay."""
    network = torch.nn.Linear(4, 3)
    state = {name: kind() for name, kind in checkpoints._TRAINING_ENTRIES.items()}
    state |= {"format": checkpoints.TRAINING_FORMAT, "version": checkpoints.VERSION, "stage": "occlusion"}
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  z.pth\n")
    for step in (1, 2):
        weights = {key: value + step for key, value in network.state_dict().items()}
        checkpoints.save(tmp_path / "best.pth", {**state, "step": step, "networks": {"occlusion": weights}})
        export.main([str(tmp_path / "best.pth"), str(folder / "x.pth")])
        digest = hashlib.sha256((folder / "x.pth").read_bytes()).hexdigest()
        assert checkpoints.read_sums(folder) == {"x.pth": [digest], "z.pth": ["0" * 64]}
        assert checkpoints.load_weights(folder / "x.pth", "occlusion")[1]["steps"] == step


def test_a_kill_between_file_and_sums_leaves_a_readable_pair(tmp_path, monkeypatch):
    """Whichever rename is the last one that happens, the file that is there is one that the list accepts."""
    path = tmp_path / "x.pth"
    (tmp_path / "SHA256SUMS").write_text("")
    checkpoints.save_weights(path, "encoder", {"weight": torch.zeros(2, 2)}, {})
    replace = os.replace
    for allowed in range(4):
        calls = []

        def some(source, target):
            calls.append(target)
            if len(calls) > allowed:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", some)
        if allowed < 3:
            with pytest.raises(KeyboardInterrupt):
                checkpoints.save_weights(path, "encoder", {"weight": torch.ones(2, 2)}, {})
        else:
            checkpoints.save_weights(path, "encoder", {"weight": torch.ones(2, 2)}, {})
        checkpoints.load(path)
    assert len(checkpoints.read_sums(tmp_path)["x.pth"]) == 1


EXPORT = """
import sys, torch
from utils import checkpoints
from utils.errors import UserError
done = 0
while done < 20:
    try:
        checkpoints.save_weights(sys.argv[1], "encoder", {"weight": torch.full((2, 2), float(done))}, {})
        done += 1
    except UserError as error:
        assert "in use by another export" in str(error), error
"""


@pytest.mark.slow
def test_exports_at_once_do_not_spoil_the_sums(tmp_path):
    """Two processes write two files of one folder again and again; one that meets the other is told so."""
    (tmp_path / "SHA256SUMS").write_text("")
    root = Path(checkpoints.__file__).resolve().parent.parent
    processes = [subprocess.Popen([sys.executable, "-c", EXPORT, str(tmp_path / name)], cwd=root)
                 for name in ("a.pth", "b.pth")]
    assert [process.wait(120) for process in processes] == [0, 0]
    for name, accepted in checkpoints.read_sums(tmp_path).items():
        assert accepted == [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["SHA256SUMS", "a.pth", "b.pth"]
