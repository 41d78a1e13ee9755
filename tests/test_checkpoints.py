"""Checkpoint files: nothing is lost in writing, and every bad file is one clear error."""
from __future__ import annotations

import os
import pickle

import pytest
import torch

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
    checkpoints.save(path, {**content, "version": 99})
    assert "version 99" in _error(checkpoints.load_weights, path, "encoder")
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
