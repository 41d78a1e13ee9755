"""engine.paste: back into the photo, only inside the hole, with the grain and sharpness of what is around it."""
from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from datasets.alignment import CROP_SIZE, Alignment
from engine.paste import Seam, paste, working_region
from models.grain import STRENGTH
from test_alignment import GEOMETRIES, LANDMARKS, _turned, _wave_photo

SKIN = np.ones((CROP_SIZE, CROP_SIZE), bool)


def _pasted(photo, alignment, crop, mask, seam=Seam(), hidden=None, seed=0):
    """(photo with the crop's mask pasted in, the hole in the photo)."""
    region = working_region(alignment, mask)
    hole = np.zeros(photo.shape[:2], bool)
    hole[region] = alignment.mask_in_photo(mask, region)
    hidden = hole if hidden is None else hidden
    result = photo.copy()
    paste(result, alignment, crop, hole[region], hidden[region], region, SKIN, seed, seam)
    return result, hole


def _block(top=60, bottom=200, left=70, right=190):
    mask = np.zeros((CROP_SIZE, CROP_SIZE), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("degrees, scale, centre", GEOMETRIES)
def test_unmodified_crop_pasted_back_returns_the_photo(degrees, scale, centre):
    side = int(max(480, 350 * scale))
    photo = _wave_photo(side, side, "paste")
    alignment = Alignment.from_landmarks(_turned(LANDMARKS, degrees, scale, centre), side, side)
    pasted, hole = _pasted(photo, alignment, alignment.crop(photo), _block())
    assert hole.any() and pasted.shape == photo.shape and pasted.dtype == np.uint8
    np.testing.assert_array_equal(pasted[~hole], photo[~hole])
    interior = hole.copy()
    interior[:3], interior[-3:], interior[:, :3], interior[:, -3:] = False, False, False, False
    difference = np.abs(pasted.astype(int) - photo)[interior]
    assert difference.mean() < 1.5 and np.percentile(difference, 99) <= 6


@pytest.mark.parametrize("degrees, scale, centre", [place for place in GEOMETRIES if place[1] < 2])
def test_only_the_hole_changes_and_hidden_pixels_do_not_matter(degrees, scale, centre):
    side = int(max(480, 350 * scale))
    photo = _wave_photo(side, side, "hidden")
    alignment = Alignment.from_landmarks(_turned(LANDMARKS, degrees, scale, centre), side, side)
    mask = np.random.default_rng(1).random((CROP_SIZE, CROP_SIZE)) < 0.1
    mask[100:150, 100:150] = True
    crop = alignment.crop(photo)
    pasted, hole = _pasted(photo, alignment, crop, mask)
    np.testing.assert_array_equal(pasted[~hole], photo[~hole])
    repainted = photo.copy()
    repainted[hole] = 255 - repainted[hole]
    np.testing.assert_array_equal(_pasted(repainted, alignment, crop, mask)[0], pasted)


def test_a_completion_of_another_brightness_meets_its_surroundings():
    photo = np.full((400, 400, 3), 120, np.uint8)
    alignment = Alignment.from_landmarks(_turned(LANDMARKS, 20, 1.2, (200, 200)), 400, 400)
    mask = _block()
    crop = alignment.crop(photo)
    crop[mask] += 30
    # The crop's hole is wider than what is pasted, as it is after Alignment.crop_mask: the step lies in visible pixels.
    inner = ndimage.binary_erosion(mask, iterations=4)
    pasted, hole = _pasted(photo, alignment, crop, inner, Seam(grain=False))
    plain, _ = _pasted(photo, alignment, crop, inner, Seam(gradient=False, grain=False))
    rim = hole & ~ndimage.binary_erosion(hole, iterations=2)
    assert np.abs(plain[rim].astype(int) - 120).mean() > 25
    assert np.abs(pasted[rim].astype(int) - 120).mean() < 5


@pytest.mark.parametrize("scale", [0.6, 1.0, 2.0])
def test_grain_is_that_of_the_surroundings(scale):
    side = int(max(360, 320 * scale))
    rng = np.random.default_rng(0)
    photo = np.clip(np.rint(120 + 9 * rng.standard_normal((side, side, 1)) + 2 * rng.standard_normal((side, side, 3))),
                    0, 255).astype(np.uint8)
    alignment = Alignment.from_landmarks(_turned(LANDMARKS, 10, scale, (side / 2, side / 2)), side, side)
    crop = alignment.crop(photo)
    mask = _block()
    crop[mask] = 120
    pasted, hole = _pasted(photo, alignment, crop, mask)
    plain, _ = _pasted(photo, alignment, crop, mask, Seam(grain=False))
    inside = ndimage.binary_erosion(hole, iterations=3)
    assert plain[inside].std() < 4
    for channel in range(3):
        assert 0.8 < pasted[inside][:, channel].std() / (STRENGTH * photo[~hole][:, channel].std()) < 1.2
    assert np.array_equal(_pasted(photo, alignment, crop, mask)[0], pasted)
    assert not np.array_equal(_pasted(photo, alignment, crop, mask, seed=1)[0], pasted)


def test_a_completion_sharper_than_a_blurred_photo_is_damped():
    rng = np.random.default_rng(0)
    photo = np.clip(ndimage.gaussian_filter(120 + 200 * rng.standard_normal((400, 400, 3)), (4, 4, 0)), 0, 255)
    photo = photo.astype(np.uint8)
    alignment = Alignment.from_landmarks(_turned(LANDMARKS, 0, 1.2, (200, 200)), 400, 400)
    crop = alignment.crop(photo)
    mask = _block()
    crop[mask] = np.clip(120 + 25 * rng.standard_normal((mask.sum(), 3)), 0, 255)

    def sharpness(picture, where):
        return (picture - ndimage.gaussian_filter(picture.astype(float), (1, 1, 0)))[where].std()

    pasted, hole = _pasted(photo, alignment, crop, mask)
    plain, _ = _pasted(photo, alignment, crop, mask, Seam(grain=False))
    inside, outside = ndimage.binary_erosion(hole, iterations=4), ~ndimage.binary_dilation(hole, iterations=4)
    assert sharpness(plain, inside) > 3 * sharpness(photo, outside)
    assert sharpness(pasted, inside) < 0.3 * sharpness(plain, inside)


def test_completion_fades_in_beside_hidden_pixels_that_are_kept():
    photo = np.full((400, 400, 3), 40, np.uint8)
    alignment = Alignment.from_landmarks(_turned(LANDMARKS, 0, 1.2, (200, 200)), 400, 400)
    crop = alignment.crop(photo)
    wide, mask = _block(), _block(right=130)
    crop[wide] = 200
    region = working_region(alignment, wide)
    hidden = np.zeros((400, 400), bool)
    hidden[region] = alignment.mask_in_photo(wide, region)
    pasted, hole = _pasted(photo, alignment, crop, mask, Seam(gradient=False, grain=False), hidden)
    np.testing.assert_array_equal(pasted[~hole], photo[~hole])
    row = pasted[200, :, 0][hole[200]]
    assert (row[3:-4] == 200).all() and 40 < row[-1] < 130


def test_nothing_hidden_changes_nothing():
    photo = _wave_photo(300, 280, "none")
    alignment = Alignment.from_landmarks(LANDMARKS, 280, 300)
    assert working_region(alignment, np.zeros((CROP_SIZE, CROP_SIZE), bool)) is None
    result = photo.copy()
    region = (slice(0, 50), slice(0, 50))
    nothing = np.zeros((50, 50), bool)
    paste(result, alignment, np.zeros((CROP_SIZE, CROP_SIZE, 3), np.uint8), nothing, nothing, region, SKIN)
    np.testing.assert_array_equal(result, photo)


def test_a_grey_photo_stays_grey():
    photo = np.repeat(_wave_photo(300, 300, "grey")[:, :, :1], 3, axis=2)
    noise = np.rint(6 * np.random.default_rng(0).standard_normal((300, 300, 1)))
    photo = np.clip(photo + noise, 0, 255).astype(np.uint8)
    alignment = Alignment.from_landmarks(_turned(LANDMARKS, 5, 1.1, (150, 150)), 300, 300)
    crop = alignment.crop(photo)
    crop[_block()] = 120
    pasted, hole = _pasted(photo, alignment, crop, _block())
    assert np.ptp(pasted[hole].astype(int), axis=1).max() <= 1
