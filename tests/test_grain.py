"""Grain and sharpness of a fill: as around it, the same every time, nothing else touched."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from models.grain import STRENGTH, _bands, _spectra, match_detail, match_grain, nonnegative


def grainy(strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A grey picture with grain, smooth in its hole, and the hole."""
    hole = torch.zeros(1, 1, 128, 128, dtype=torch.bool)
    hole[..., 40:90, 40:90] = True
    noise = strength * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    return torch.where(hole, 0.1, 0.1 + noise), hole


def test_a_smooth_fill_gets_the_grain_around_it():
    image, hole = grainy(0.1)
    matched = match_grain(image, hole, torch.ones_like(hole))
    assert torch.equal(torch.where(hole, 0, matched), torch.where(hole, 0, image))
    inside = matched[hole.expand_as(matched)]
    assert 0.05 < inside.std() < 0.12 and abs(inside.mean() - 0.1) < 0.01
    assert torch.equal(matched, match_grain(image, hole, torch.ones_like(hole)))


@pytest.mark.parametrize("sigma", [0.0, 0.6, 1.0])
def test_every_band_gets_its_share(sigma):
    """Grain of photographs is correlated, by demosaicing, JPEG and scaling: white noise would be too fine."""
    noise = np.random.default_rng(0).standard_normal((256, 256, 1), dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigma)[..., None] if sigma else noise
    hole = np.zeros((256, 256), bool)
    hole[60:190, 60:190] = True
    picture = np.where(hole[..., None], 120, 120 + 6 * noise / noise.std()).repeat(3, axis=2).astype(np.float32)
    matched = match_detail(picture, hole, hole, np.ones_like(hole), 1.0, 0)
    for band in _bands(matched, 2):
        assert band[75:175, 75:175].std() / band[:45].std() == pytest.approx(STRENGTH, rel=0.06)


def test_no_grain_is_added_to_a_clean_picture_and_items_do_not_mix():
    image, hole = grainy(0.0)
    assert (match_grain(image, hole, torch.ones_like(hole)) - image).abs().max() < 1e-3
    rough, _ = grainy(0.1)
    skin = torch.ones_like(hole).repeat(2, 1, 1, 1)
    both = match_grain(torch.cat([image, rough]), hole.repeat(2, 1, 1, 1), skin)
    assert torch.equal(both[1:], match_grain(rough, hole, skin[:1]))


def test_eyes_and_brows_are_no_grain():
    """Clean skin of which less than half is flat: the rest are stripes as fine as grain."""
    image, hole = grainy(0.0)
    stripes = 0.2 * (torch.arange(128) % 2).float().expand(1, 3, 128, 128)
    busy = (torch.arange(128) < 80)[:, None] & ~hole
    image = torch.where(busy, image + stripes, image)
    skin = torch.ones_like(hole)
    assert float(busy.sum() / (~hole).sum()) > 0.5
    change = (match_grain(image, hole, skin) - image)[hole.expand_as(image)]
    assert change.std() < 0.01


def test_a_grey_picture_gets_grey_grain():
    image, hole = grainy(0.1)
    image = image[:, :1].expand(-1, 3, -1, -1)
    matched = match_grain(image, hole, torch.ones_like(hole))
    assert (matched.amax(1) - matched.amin(1)).max() < 1e-3


def test_a_picture_without_a_hole_stays():
    """As evaluation has it where the occlusion net finds nothing."""
    image, hole = grainy(0.1)
    skin, none = torch.ones_like(hole).repeat(2, 1, 1, 1), torch.zeros_like(hole)
    both = match_grain(image.repeat(2, 1, 1, 1), torch.cat([none, hole]), skin)
    assert torch.equal(both[:1], image) and torch.equal(both[1:], match_grain(image, hole, skin[:1]))


def test_least_squares_without_negatives_are_at_their_optimum():
    """Nothing is gained by raising an unknown, nor by changing one that is not 0 (Karush, Kuhn and Tucker); also where
    there are more unknowns than equations, as of the kinds of noise."""
    rng = np.random.default_rng(0)
    for trial in range(600):
        matrix = (_spectra(1 + trial % 5), rng.normal(size=(4, 3)), rng.random((3, 5)))[trial % 3].astype(float)
        target = rng.normal(size=len(matrix)) * 10 ** rng.uniform(-3, 3)
        target = np.maximum(target, 0) if trial % 2 else target
        found = nonnegative(matrix, target)
        pull = matrix.T @ (target - matrix @ found)
        scale = 1e-9 * np.abs(matrix).sum() * np.linalg.norm(target)
        assert (found >= 0).all() and (pull <= scale).all() and (np.abs(pull[found > 0]) <= scale).all()
    assert not nonnegative(np.ones((2, 2)), np.zeros(2)).any()
