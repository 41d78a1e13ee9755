"""Evaluations side by side: averages by hand, and a refusal to compare what cannot be compared."""
from __future__ import annotations

import pytest

from engine import comparison
from utils.errors import UserError
from utils.images import read_image

HEADER = "name,ratio,psnr,ssim,lpips\n"


def evaluation(folder, psnr, ratio=0.4):
    folder.mkdir()
    rows = f"a,{ratio},{psnr},0.9,0.05\nb,0.75,20.0,0.8,0.1\n"
    (folder / "metrics.csv").write_text(HEADER + rows)
    (folder / "baselines.csv").write_text("method," + HEADER + "".join(f"Telea,{row}\n" for row in rows.split()))
    return folder


def test_table_and_picture(tmp_path, capsys):
    ours, other = evaluation(tmp_path / "ours", 30.0), evaluation(tmp_path / "other", 25.0)
    comparison.main([f"ours={ours}", f"2D={other}", "--output", str(tmp_path / "out")])
    lines = (tmp_path / "out" / "comparison.md").read_text().splitlines()
    assert lines[0] == "| PSNR / SSIM / LPIPS | all (2) | 30-50 % (1) | 70-100 % (1) |"
    assert lines[2] == "| ours | 25.00 / .8500 / .0750 | 30.00 / .9000 / .0500 | 20.00 / .8000 / .1000 |"
    assert lines[3].startswith("| 2D | 22.50 ") and lines[4].startswith("| Telea | 25.00 ")
    assert read_image(tmp_path / "out" / "comparison.png").shape[1] > 800
    assert lines[2] in capsys.readouterr().out


def test_measures_that_were_not_available_are_left_out(tmp_path):
    """As LPIPS is without its features: then its cells are empty."""
    ours, other = evaluation(tmp_path / "ours", 30.0), evaluation(tmp_path / "other", 25.0)
    for name in ("metrics.csv", "baselines.csv"):
        (ours / name).write_text((ours / name).read_text().replace(",0.05\n", ",\n").replace(",0.1\n", ",\n"))
    comparison.main([f"ours={ours}", "--output", str(tmp_path / "out")])
    lines = (tmp_path / "out" / "comparison.md").read_text().splitlines()
    assert lines[0].startswith("| PSNR / SSIM | all") and lines[2].startswith("| ours | 25.00 / .8500 | ")
    comparison.main([f"ours={ours}", f"other={other}", "--output", str(tmp_path / "both")])
    lines = (tmp_path / "both" / "comparison.md").read_text().splitlines()
    assert lines[0].startswith("| PSNR / SSIM / LPIPS |") and lines[2].startswith("| ours | 25.00 / .8500 / - | ")
    assert lines[3].startswith("| other | 22.50 / .8500 / .0750 | ")


@pytest.mark.parametrize("arguments, fragment", [
    (["ours"], "NAME=FOLDER"), (["ours={0}", "ours={0}"], "NAME=FOLDER"), (["ours={1}"], "metrics.csv"),
    (["ours={0}", "other={2}"], "same images"), (["Telea={0}"], "simple method")])
def test_what_cannot_be_compared(tmp_path, arguments, fragment):
    folders = [evaluation(tmp_path / "one", 30.0), tmp_path / "none", evaluation(tmp_path / "two", 30.0, ratio=0.5)]
    with pytest.raises(UserError, match=fragment):
        comparison.main([argument.format(*folders) for argument in arguments])


def test_an_evaluation_without_truth_has_no_scores(tmp_path):
    folder = evaluation(tmp_path / "one", 30.0)
    (folder / "metrics.csv").write_text(HEADER + "a,0.4,,,\n")
    with pytest.raises(UserError, match="no scores"):
        comparison.read(folder)
    (folder / "metrics.csv").write_text(HEADER)
    with pytest.raises(UserError, match="nothing was evaluated"):
        comparison.read(folder)
