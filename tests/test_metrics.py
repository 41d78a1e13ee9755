"""PSNR and SSIM against hand-computed values, the bins, the table and the baselines."""
from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from engine import report
from engine.baselines import BASELINES, mirrored_half
from engine.metrics import MAX_PSNR, psnr, ssim


def pattern(seed: int = 0, size: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)


def test_psnr_by_hand():
    truth = np.full((10, 10, 3), 100, np.uint8)
    assert psnr(truth + 5, truth) == pytest.approx(10 * np.log10(255 ** 2 / 25))
    one = truth.copy()
    one[0, 0, 0] = 110  # one of 300 values is off by 10
    assert psnr(one, truth) == pytest.approx(10 * np.log10(255 ** 2 / (100 / 300)))
    assert psnr(np.zeros_like(truth), np.full_like(truth, 255)) == pytest.approx(0)
    assert psnr(truth, truth) == MAX_PSNR


def test_ssim_by_hand():
    """Wang's formula written out: local means, variances and covariance under an 11x11 Gaussian of sigma 1.5."""
    first = pattern(0).astype(float)
    second = np.clip(first + 0.3 * pattern(1) - 30, 0, 255).round()
    c1, c2, channels = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for x, y in zip(first.transpose(2, 0, 1), second.transpose(2, 0, 1)):
        mean = lambda image: gaussian_filter(image, 1.5, radius=5, mode="reflect")
        mx, my = mean(x), mean(y)
        vx, vy, cov = mean(x * x) - mx ** 2, mean(y * y) - my ** 2, mean(x * y) - mx * my
        similarity = (2 * mx * my + c1) * (2 * cov + c2) / ((mx ** 2 + my ** 2 + c1) * (vx + vy + c2))
        channels.append(similarity[5:-5, 5:-5].mean())
    found = ssim(second.astype(np.uint8), first.astype(np.uint8))
    assert found == pytest.approx(np.mean(channels), abs=1e-6)
    assert ssim(pattern(), pattern()) == pytest.approx(1)


def test_bins_and_table():
    ratios = [0.0, 0.099, 0.1, 0.55, 0.99, 1.0]
    counts, means = report.by_bin(ratios, [1.0, 3.0, 5.0, None, 7.0, 9.0])
    assert counts == [2, 1, 0, 0, 0, 1, 0, 0, 0, 2]
    assert means == [2.0, 5.0, None, None, None, None, None, None, None, 8.0]
    table = report.format_table(ratios, {"PSNR": {"ours": [1.0, 3.0, 5.0, 6.0, 7.0, 9.0], "Telea": [None] * 6}})
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["PSNR", "images", "ours", "Telea"]
    assert lines[1] == ["0-10", "%", "2", "2.00", "-"] and lines[-2] == ["90-100", "%", "2", "8.00", "-"]
    assert lines[-1] == ["average", "6", "5.17", "-"]


@pytest.mark.parametrize("method", BASELINES)
def test_baselines_fill_the_hole_only_and_read_nothing_hidden(method):
    image, hole = pattern(2), np.zeros((48, 48), bool)
    hole[10:30, 5:40] = True
    output = BASELINES[method](image, hole)
    assert (output[~hole] == image[~hole]).all() and (output[hole] != image[hole]).any()
    other = image.copy()
    other[hole] = 255 - other[hole]
    assert (BASELINES[method](other, hole) == output).all()
    assert (BASELINES[method](image, np.zeros_like(hole)) == image).all()


def test_mirrored_half_takes_the_mirror_pixel():
    image, hole = pattern(3), np.zeros((48, 48), bool)
    hole[5:40, :30] = True  # columns 0..17 have visible mirror pixels, 18..29 do not
    output = mirrored_half(image, hole)
    assert (output[5:40, :18] == image[5:40, ::-1][:, :18]).all()
    assert (output[5:40, 18:30] != image[5:40, ::-1][:, 18:30]).any()


def test_csv_and_json_are_complete_or_absent(tmp_path):
    path = tmp_path / "sub" / "metrics.csv"
    report.write_csv(path, [{"name": "a,b", "ratio": 0.5, "lpips": None}], ["name", "ratio", "lpips"])
    assert path.read_text() == 'name,ratio,lpips\n"a,b",0.500000,\n'
    with pytest.raises(TypeError):
        report.write_json(tmp_path / "bad.json", {"value": object()})
    assert sorted(child.name for child in tmp_path.iterdir()) == ["sub"]
