"""datasets.alignment: the published crop, and exactly the way back into the photo."""
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.alignment import CROP_SIZE, Alignment, align
from utils.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "process_celeba.npz"
CASES = ("std178", "border", "shrink3_inner")
LANDMARKS = np.array([[96.0, 121], [160, 121], [128, 150], [104, 185], [152, 185]])  # of an upright face, crop-sized


def _wave_photo(width, height, name):
    """The golden crops' photo: four plane waves per channel, their frequency per 178 pixels, seeded by the name."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"pattern/{name}".encode())))
    parameters = rng.random(3 * 4 * 3).astype(np.float32).reshape(3, 4, 3).astype(np.float64)
    row, column = 2 * np.pi * np.arange(height)[:, None] / 178.0, 2 * np.pi * np.arange(width)[None, :] / 178.0
    photo = np.zeros((height, width, 3))
    for channel in range(3):
        for frequency_y, frequency_x, phase in parameters[channel]:
            down = 4 * (frequency_y - 0.5) * row + 2 * np.pi * phase
            across = 4 * (frequency_x - 0.5) * column
            photo[..., channel] += np.sin(down) * np.cos(across) + np.cos(down) * np.sin(across)
    return np.clip(np.round(127.5 + 31.0 * photo), 0, 255).astype(np.uint8)


def _case(name):
    with np.load(GOLDEN) as golden:
        width, height = (int(side) for side in golden[f"{name}/size_wh"])
        return _wave_photo(width, height, name), golden[f"{name}/landmarks"], golden[f"{name}/out"]


def _turned(landmarks, degrees, scale, centre):
    """The standard landmarks turned, scaled and moved to ``centre``."""
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (landmarks - 128) @ rotation.T * scale + centre


@pytest.mark.parametrize("name", CASES)
def test_crop_equals_the_published_one(name):
    photo, landmarks, expected = _case(name)
    difference = np.abs(align(photo, landmarks).astype(int) - expected)
    assert difference.max() <= 1 and difference.mean() < 0.01


def test_the_golden_cases_cover_every_step():
    with np.load(GOLDEN) as golden:
        plans = {name: Alignment.from_landmarks(golden[f"{name}/landmarks"], *golden[f"{name}/size_wh"][::-1])
                 for name in CASES}
    assert plans["shrink3_inner"].resized == (667, 700)
    assert plans["border"].padding == (67, 67, 41, 41)
    assert plans["std178"].padding == (0, 0, 0, 0) and plans["std178"].box == (0, 23, 178, 208)


# Inside the photo; turned; beyond its border (padded); reduced by 3; enlarged; partly outside the photo.
GEOMETRIES = [(0, 1.0, (260, 240)), (35, 1.3, (250, 250)), (-20, 0.8, (90, 420)), (10, 3.4, (600, 560)),
              (170, 0.4, (200, 260)), (5, 1.0, (-20, 30))]


def _by_the_recipe(alignment, photo):
    """The crop as the recipe says it, by Pillow's resamplings at full size."""
    picture = Image.fromarray(photo)
    if alignment.resized != picture.size:
        picture = picture.resize(alignment.resized, Image.Resampling.LANCZOS)
    left, top, right, bottom = alignment.padding
    widths = ((top, bottom), (left, right), (0, 0))[:photo.ndim]
    picture = Image.fromarray(np.pad(np.asarray(picture.crop(alignment.box)), widths, mode="reflect"))
    picture = picture.transform((1024, 1024), Image.Transform.QUAD, alignment.quad.ravel().tolist(),
                                Image.Resampling.BILINEAR)
    return np.asarray(picture.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.LANCZOS))


def _photos(side):
    """Photos that resampling has least mercy with, of noise, of black and white noise, of one grey; waves; a mask."""
    rng = np.random.default_rng(side)
    noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    return [noise, np.where(noise < 128, np.uint8(0), np.uint8(255)), np.full_like(noise, 201),
            _wave_photo(side, side, "recipe"), noise[..., 0]]


@pytest.mark.parametrize("degrees, scale, centre", GEOMETRIES)
def test_crops_are_those_of_the_recipe_but_for_rounding(degrees, scale, centre):
    side = int(max(480, 350 * scale))
    alignment = Alignment.from_landmarks(_turned(LANDMARKS, degrees, scale, centre), side, side)
    for photo in _photos(side):
        crop, expected = alignment.crop(photo), _by_the_recipe(alignment, photo)
        assert crop.shape == expected.shape and crop.dtype == np.uint8
        difference = np.abs(crop.astype(int) - expected)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01
        if (photo == 201).all():
            assert not difference.any()


@pytest.mark.parametrize("degrees, scale, centre", GEOMETRIES)
def test_affine_agrees_with_the_pixels_of_the_crop(degrees, scale, centre):
    """A bright dot of the photo appears in the crop where the matrix says, to a tenth of a pixel."""
    side = int(max(480, 350 * scale))
    alignment = Alignment.from_landmarks(_turned(LANDMARKS, degrees, scale, centre), side, side)
    row, column = np.mgrid[:side, :side]
    tested = 0
    for place in ((70, 75), (180, 66), (120, 128), (76, 190), (185, 182)):
        x, y = np.rint(alignment.to_photo(place))
        if min(x, y) < 20 * scale or max(x, y) > side - 20 * scale:
            continue
        width = 4 * max(alignment.photo_scale, 1)
        dot = 255 * np.exp(-((column - x) ** 2 + (row - y) ** 2) / (2 * width ** 2))
        crop = alignment.crop(np.rint(dot).astype(np.uint8)).astype(float)
        v, u = np.mgrid[:CROP_SIZE, :CROP_SIZE]
        expected = alignment.to_crop((x, y))
        # The padding shows mirror images of the dot, farther away.
        crop *= np.hypot(u - expected[0], v - expected[1]) < 4.5 * width / alignment.photo_scale
        centroid = np.array([(u * crop).sum(), (v * crop).sum()]) / crop.sum()
        np.testing.assert_allclose(centroid, expected, atol=0.1)
        tested += 1
    assert tested >= 1


@pytest.mark.parametrize("degrees, scale, centre", GEOMETRIES)
def test_points_go_there_and_back(degrees, scale, centre):
    alignment = Alignment.from_landmarks(_turned(LANDMARKS, degrees, scale, centre), 1300, 1250)
    points = np.random.default_rng(0).uniform(-50, 300, (40, 2))
    np.testing.assert_allclose(alignment.to_crop(alignment.to_photo(points)), points, atol=1e-9)


def _hole_in_photo(alignment, mask):
    """The definition of the hole in the photo, pixel by pixel: is the nearest crop pixel hidden?"""
    y, x = np.mgrid[:alignment.height, :alignment.width]
    nearest = np.rint(alignment.to_crop(np.stack([x, y], axis=-1))).astype(int)
    inside = ((nearest >= 0) & (nearest < CROP_SIZE)).all(axis=-1)
    hole = np.zeros(inside.shape, bool)
    hole[inside] = mask[nearest[inside][:, 1], nearest[inside][:, 0]]
    return hole


@pytest.mark.parametrize("degrees, scale, centre", GEOMETRIES)
def test_a_mask_of_the_crop_in_the_photo_is_that_of_the_nearest_pixels(degrees, scale, centre):
    side = int(max(480, 350 * scale))
    alignment = Alignment.from_landmarks(_turned(LANDMARKS, degrees, scale, centre), side, side)
    mask = np.zeros((CROP_SIZE, CROP_SIZE), bool)
    mask[40:200, 50:190] = np.random.default_rng(1).random((160, 140)) < 0.3
    expected = _hole_in_photo(alignment, mask)
    region = alignment.photo_region(mask, margin=5)
    found = np.zeros_like(expected)
    found[region] = alignment.mask_in_photo(mask, region)
    assert expected.any()
    np.testing.assert_array_equal(found, expected)


def test_a_mask_outside_the_photo_has_no_region_there():
    alignment = Alignment.from_landmarks(LANDMARKS - 120, 300, 300)
    mask = np.zeros((CROP_SIZE, CROP_SIZE), bool)
    assert alignment.photo_region(mask) is None
    mask[20:40, 20:40] = True
    assert alignment.photo_region(mask) is None


def test_crop_mask_hides_whatever_a_hidden_pixel_reaches():
    photo = np.full((400, 380, 3), 100, np.uint8)
    hidden = np.zeros((400, 380), bool)
    hidden[150:220, 160:230] = True
    alignment = Alignment.from_landmarks(_turned(LANDMARKS, 25, 1.1, (200, 190)), 400, 380)
    hole = alignment.crop_mask(hidden)
    changed = photo.copy()
    changed[hidden] = 255
    difference = np.abs(alignment.crop(changed).astype(int) - alignment.crop(photo))[~hole]
    assert difference.max() <= 1
    assert hole.sum() < 1.5 * hidden.sum() / alignment.photo_scale ** 2


@pytest.mark.parametrize("landmarks, words", [
    (np.zeros((5, 2)), "coincide"), (np.full((5, 2), np.nan), "non-finite"), (LANDMARKS + 5000, "outside the image"),
    (LANDMARKS[:4], "five face landmarks")])
def test_impossible_landmarks_are_clear_errors(landmarks, words):
    with pytest.raises(UserError, match=words):
        align(np.zeros((300, 300, 3), np.uint8), landmarks)


def test_a_photo_of_one_row_does_not_crash():
    assert align(np.full((1, 300, 3), 7, np.uint8), LANDMARKS * (1, 0.01)).shape == (256, 256, 3)
