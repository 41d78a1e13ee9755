"""Smooth filling, the seam of a hole, and holes beside the face."""
from __future__ import annotations

import face_samples
import pytest
import torch

from models.blending import Box, blend, fill_beside, from_uint8, keep_grey, pull_push, to_uint8


def square_hole(size, top, bottom, left, right, batch=1):
    hole = torch.zeros(batch, 1, size, size, dtype=torch.bool)
    hole[:, :, top:bottom, left:right] = True
    return hole


def test_uint8_mapping_is_exact_both_ways():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert from_uint8(levels).min() == -1 and from_uint8(levels).max() == 1
    assert to_uint8(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]


@pytest.mark.parametrize("size", [(64, 64), (37, 50), (1, 9), (1, 1)])
def test_pull_push_keeps_what_is_known_and_a_constant(size):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 3, *size, generator=generator)
    weight = (torch.rand(2, 1, *size, generator=generator) > 0.5).float()
    weight[..., 0, 0] = 1
    filled = pull_push(values, weight)
    assert torch.equal(filled[weight.expand_as(filled) == 1], values[weight.expand_as(filled) == 1])
    assert torch.allclose(pull_push(torch.full_like(values, 0.3), weight), torch.tensor(0.3), atol=1e-6)


def test_pull_push_is_close_to_the_membrane():
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    harmonic = torch.stack([rows, columns, rows * columns])[None]
    weight = (~square_hole(64, 12, 52, 12, 52)).float()
    assert (pull_push(harmonic * weight, weight) - harmonic).abs().max() < 0.15
    assert (pull_push(harmonic * weight, weight) - harmonic).abs().mean() < 0.02


def test_pull_push_does_not_read_unknown_values_nor_other_items():
    values, weight = face_samples.picture(2, 48), (~square_hole(48, 10, 30, 5, 40, batch=2)).float()
    filled = pull_push(values, weight)
    changed = torch.where(weight == 0, 1e3, values)
    assert torch.equal(pull_push(changed, weight), filled)
    assert torch.equal(pull_push(values[1:], weight[1:]), filled[1:])


@pytest.mark.parametrize("size", [(64, 64), (61, 47), (224, 224)])
@torch.no_grad()
def test_pull_push_of_a_part_has_the_same_bits(size):
    generator = torch.Generator().manual_seed(1)
    values, weight = (torch.rand(2, channels, *size, generator=generator) for channels in (3, 1))
    weight = weight * (torch.rand(weight.shape, generator=generator) > 0.7)
    weight[..., 10:40, 12:30] = 0
    whole = pull_push(values, weight)
    for box in (Box(10, 40, 12, 30), Box(0, 1, 0, 1), Box(5, size[0], 3, size[1]), Box(33, 34, 20, 21)):
        assert torch.equal(box.of(pull_push(values, weight, box)), box.of(whole)), box


@torch.no_grad()
def test_blending_a_batch_is_blending_its_items():
    generator = torch.Generator().manual_seed(2)
    image, rendered = (torch.rand(2, 3, 64, 64, generator=generator) for _ in range(2))
    hole = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    hole[0, :, 5:20, 40:60], hole[1, :, 30:50, 2:9] = True, True
    both = blend(image, hole, rendered, torch.ones(2, 1, 64, 64))
    for index in range(2):
        item = slice(index, index + 1)
        assert torch.equal(blend(image[item], hole[item], rendered[item], torch.ones(1, 1, 64, 64)), both[item])
    with torch.enable_grad():  # the whole picture is looked at there
        assert torch.equal(blend(image, hole, rendered, torch.ones(2, 1, 64, 64)), both)
    assert torch.equal(blend(image, hole & False, rendered, torch.ones(2, 1, 64, 64)), image)


def test_the_box_around_a_region():
    region = torch.zeros(2, 1, 30, 40, dtype=torch.bool)
    region[0, 0, 4, 9], region[1, 0, 20, 3] = True, True
    assert Box.around(region) is None  # gradients may be wanted
    with torch.no_grad():
        assert Box.around(region) == (4, 21, 3, 10) and Box.around(region & False) == (0, 0, 0, 0)
        assert Box.around(region).grown(4, 24, 40) == (0, 24, 0, 14)


def test_pull_push_of_nothing_is_zero():
    assert (pull_push(torch.rand(1, 3, 20, 20), torch.zeros(1, 1, 20, 20)) == 0).all()


def test_pull_push_gradient():
    values = torch.rand(1, 1, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = (torch.rand(1, 1, 5, 4, generator=torch.Generator().manual_seed(0)) > 0.4).double()
    assert torch.autograd.gradcheck(lambda x: pull_push(x, weight), values)


def test_blend_removes_a_difference_in_brightness_and_keeps_the_rest():
    image = face_samples.picture(1, 64) * 0.4
    hole = square_hole(64, 20, 44, 20, 44)
    blended = blend(image, hole, image - 0.5, torch.ones(1, 1, 64, 64))
    assert (blended - image).abs().max() < 1e-5
    assert torch.equal(blended[~hole.expand_as(blended)], image[~hole.expand_as(image)])


def test_blend_is_clamped_in_the_hole_and_ignores_what_is_unknown():
    image, hole = torch.full((1, 3, 32, 32), 0.9), square_hole(32, 8, 24, 8, 24)
    known = torch.zeros(1, 1, 32, 32)
    blended = blend(image, hole, torch.full_like(image, 1.7), known)
    assert (blended[hole.expand_as(blended)] == 1).all()
    known[..., :4, :] = 1
    changed = torch.where(known > 0, image, -1)
    rendered = torch.full_like(image, 0.2)
    inside = hole.expand_as(image)
    assert torch.equal(blend(changed, hole, rendered, known)[inside], blend(image, hole, rendered, known)[inside])


def test_fill_beside_the_face_takes_the_surroundings_and_a_soft_outline():
    face = square_hole(96, 30, 66, 30, 66)
    image = torch.where(face, 0.8, -0.6).expand(1, 3, 96, 96)
    hole = square_hole(96, 10, 86, 10, 86) & ~face
    filled = fill_beside(torch.where(hole, torch.nan, image), hole, face)
    assert torch.equal(filled[~hole.expand_as(filled)], image[~hole.expand_as(image)])
    away = square_hole(96, 10, 24, 10, 86).expand_as(image)
    assert (filled[away] + 0.6).abs().max() < 8 / 127.5  # no skin six pixels away from the face
    rim = filled[0, 0, 48, 66:70]
    assert (rim[:-1] >= rim[1:] - 0.05).all() and -0.7 < rim.min() and rim.max() < 0.85


@pytest.mark.parametrize("box", [(9, 40, 12, 30), (0, 1, 0, 1), (5, 56, 3, 56), (0, 0, 0, 0)])
def test_fill_beside_looks_at_the_hole_alone_where_no_gradient_is_wanted(box):
    torch.manual_seed(0)
    image, face = torch.rand(2, 3, 56, 56) * 2 - 1, square_hole(56, 10, 30, 20, 50, batch=2)
    hole = square_hole(56, *box, batch=2)
    everywhere = fill_beside(image, hole, face)
    with torch.no_grad():
        assert torch.equal(fill_beside(image, hole, face), everywhere)


def test_fill_beside_continues_the_face_where_nothing_else_is_visible():
    face = square_hole(64, 20, 44, 20, 44)
    filled = fill_beside(torch.where(face, 0.5, 0.0).expand(1, 3, 64, 64), ~face, face)
    assert (filled - 0.5).abs().max() < 12 / 127.5
    nothing = torch.zeros_like(face)
    assert (fill_beside(torch.ones(1, 3, 64, 64), ~nothing, nothing) == 0).all()


def test_grey_photographs_stay_grey_and_others_as_they_are():
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    hole = square_hole(32, 8, 24, 8, 24, batch=2)
    image[0] = torch.where(hole[0], image[0], image[0, :1])  # grey but for what fills its hole
    kept = keep_grey(image, hole)
    assert torch.equal(kept[1], image[1])
    assert torch.equal(kept[0], kept[0, :1].expand(3, -1, -1))
    assert torch.equal(torch.where(hole, 0, kept), torch.where(hole, 0, image))
    assert (kept[0, 0] - image[0].mean(0))[hole[0, 0]].abs().mean() < 0.3
