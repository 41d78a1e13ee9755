"""datasets.masks: holes of one polarity, the same for everybody."""
import subprocess
import sys

import numpy as np
import pytest

from datasets.masks import MaskFolder, fixed_hole, mask_ratio, random_hole, random_rectangle, ratio_bin
from utils.errors import UserError
from utils.images import write_image


def _ellipse():
    y, x = np.mgrid[:256, :256]
    return ((x - 128) / 80) ** 2 + ((y - 140) / 100) ** 2 <= 1


@pytest.mark.parametrize("evaluation, least", [(False, 1 / 4), (True, 1 / 3)])
def test_random_rectangles_have_the_papers_ranges(evaluation, least):
    height, width = 192, 240
    rng = np.random.default_rng(0)
    tops, lefts, heights, widths = set(), set(), set(), set()
    for _ in range(3000):
        hole = random_rectangle(rng, height, width, evaluation)
        rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        assert hole.sum() == len(rows) * len(columns)  # one filled rectangle
        tops.add(rows[0])
        lefts.add(columns[0])
        if rows[-1] < height - 1:  # not clipped at the border
            heights.add(len(rows))
        if columns[-1] < width - 1:
            widths.add(len(columns))
    assert (min(tops), max(tops)) == (height // 4, height // 2 - 1)
    assert (min(lefts), max(lefts)) == (width // 4, width // 2 - 1)
    assert min(heights) == int(height * least) and min(widths) == int(width * least)
    assert max(heights) >= 0.7 * height and max(widths) >= 0.7 * width


def test_holes_stay_on_the_face():
    face = _ellipse()
    rng = np.random.default_rng(1)
    for _ in range(20):
        hole = random_hole(rng, face)
        assert hole.dtype == bool and hole.any() and not (hole & ~face).any()


def test_fixed_hole_depends_on_seed_and_name_alone():
    face = _ellipse()
    names = ["000001", "sub/000002", "José"]
    forward = {name: fixed_hole(0, name, face) for name in names}
    backward = {name: fixed_hole(0, name, face) for name in reversed(names)}
    for name in names:
        np.testing.assert_array_equal(forward[name], backward[name])
        assert not (forward[name] & ~face).any()
        assert (fixed_hole(1, name, face) != forward[name]).any()
    assert (forward["000001"] != forward["sub/000002"]).any()


def test_fixed_hole_is_the_same_in_another_process():
    code = ("import numpy as np; from datasets.masks import fixed_hole;"
            "h = fixed_hole(7, '000123', np.ones((256, 256), bool)); r, c = np.nonzero(h);"
            "print(r.min(), r.max(), c.min(), c.max())")
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    rows, columns = np.nonzero(fixed_hole(7, "000123", np.ones((256, 256), bool)))
    assert output.split() == [str(v) for v in (rows.min(), rows.max(), columns.min(), columns.max())]
    # Written down, so that a change of the rule, which would make published tables incomparable, does not go unnoticed.
    assert output.split() == ["115", "255", "110", "195"]


def test_mask_ratio_and_bins():
    face = np.zeros((10, 20), bool)
    face[:, :10] = True
    hole = np.zeros_like(face)
    hole[:3] = True
    assert mask_ratio(face, hole) == 0.3
    assert mask_ratio(np.zeros_like(face), hole) == 0.0
    assert [ratio_bin(k / 10) for k in range(11)] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    assert ratio_bin(0.2999) == 2


def test_mask_folder_matches_by_name_and_size(tmp_path):
    hole = np.zeros((128, 128), bool)
    hole[32:64, 32:64] = True
    write_image(tmp_path / "a.png", hole)
    write_image(tmp_path / "sub" / "b.png", ~hole)
    masks = MaskFolder(tmp_path)
    np.testing.assert_array_equal(masks.hole("a"), hole)
    np.testing.assert_array_equal(masks.hole("a", (256, 256)), np.kron(hole, np.ones((2, 2), bool)))
    np.testing.assert_array_equal(masks.hole("sub/b"), ~hole)
    np.testing.assert_array_equal(masks.hole("anywhere/a"), hole)
    assert "a" in masks and "c" not in masks and len(masks) == 2
    with pytest.raises(UserError, match="no mask for c .*c.png"):
        masks.hole("c")


def test_bad_mask_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        MaskFolder(tmp_path / "absent")
    with pytest.raises(UserError, match="no mask pictures"):
        MaskFolder(tmp_path)
    for suffix in ("png", "jpg"):
        write_image(tmp_path / f"a.{suffix}", np.zeros((8, 8), bool))
    with pytest.raises(UserError, match="two masks are called a"):
        MaskFolder(tmp_path)
