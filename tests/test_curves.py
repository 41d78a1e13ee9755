"""Curves from TensorBoard files."""
import pytest

from engine import curves
from utils.errors import UserError


def test_scalars_of_two_parts_of_a_run_are_joined(tmp_path):
    from torch.utils.tensorboard import SummaryWriter
    for first, level in ((0, 2.0), (3, 1.0)):  # resumed at step 3, which the first part had logged too
        with SummaryWriter(str(tmp_path / "run" / f"logs{first}")) as writer:
            for step in range(first, first + 4):
                writer.add_scalar("loss/landmarks", level + step, step)
                writer.add_scalar("held_out/nme", level, step)
    found = curves.read_scalars(tmp_path / "run")
    assert found["loss/landmarks"] == ([0, 1, 2, 3, 4, 5, 6], [2, 3, 4, 4, 5, 6, 7])
    curves.main([str(tmp_path / "run"), "--output", str(tmp_path / "new" / "curves.png")])
    assert (tmp_path / "new" / "curves.png").stat().st_size > 1000


def test_runs_in_folders_of_one_name_are_all_drawn(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(curves, "read_scalars", lambda run: {"loss/image": ([1], [1.0])})
    monkeypatch.setattr(curves, "draw", lambda runs, path: drawn.extend(runs))
    curves.main(["a/encoder", "b/encoder"])
    assert drawn == ["a/encoder", "b/encoder"]


def test_a_folder_without_logs_is_named(tmp_path):
    with pytest.raises(UserError, match="no TensorBoard files"):
        curves.read_scalars(tmp_path)
