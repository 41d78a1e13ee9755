"""Real portraits without ground truth: points in, labels out."""
from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from datasets.definition import load_builtin
from datasets.labels import FACE
from engine import portraits
from engine.encoder_stage import Geometry, crop_landmarks
from models.encoder import FaceCode
from models.morphable import MorphableModel
from utils.errors import UserError
from utils.images import write_image

MIRRORED = [*range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46, 39, 38,
            37, 36, 41, 40, *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1)]


@pytest.fixture(scope="module")
def face():
    """(morphable model, geometry)."""
    definition = load_builtin()
    model = MorphableModel(definition)
    return model, Geometry(model, definition.coefficient_parity, definition.coefficient_mean,
                           definition.coefficient_std)


def code(count: int, seed: int = 0, spread: float = 1.0) -> FaceCode:
    """Plausible random faces."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    pose = torch.cat([0.1 * normal(count, 3), 0.03 * normal(count, 2)], 1) * spread
    return FaceCode(normal(count, 228) * spread, torch.zeros(count, 512), torch.zeros(count, 512),
                    9e-4 * (0.05 * spread * normal(count)).exp(), pose, normal(count, 27))


def landmarks_of(values: FaceCode, geometry: Geometry) -> torch.Tensor:
    return crop_landmarks(values.shape, values.scale, values.pose, geometry)


class Teacher(nn.Module):
    """Always the same answer."""

    def __init__(self, answer: FaceCode):
        super().__init__()
        self.answer = answer

    def forward(self, image):
        return FaceCode(*(value[:1].expand(len(image), *value.shape[1:]) for value in self.answer))


def test_mirrored_code_is_the_mirrored_face(face):
    values = code(4)
    mirrored = landmarks_of(portraits.mirror_code(values, face[1]), face[1])
    expected = landmarks_of(values, face[1])[:, MIRRORED]
    expected[..., 0] = 255 - expected[..., 0]
    torch.testing.assert_close(mirrored, expected, atol=2e-2, rtol=0)


def test_mirroring_twice_changes_nothing(face):
    values = code(3)
    twice = portraits.mirror_code(portraits.mirror_code(values, face[1]), face[1])
    for one, other in zip(values, twice):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reduce,count,limit", [(lambda points: points, 68, 1.5),
                                                (portraits.five_points, 5, 2.0)])
def test_fit_brings_the_landmarks_to_the_points(face, reduce, count, limit):
    truth, guess = code(3, 1), code(3, 1)
    guess = guess._replace(pose=guess.pose + torch.tensor([0.0, 0.03, 0.02, 0.04, -0.03]), scale=guess.scale * 1.04,
                           shape=guess.shape * 0.5)
    points = reduce(landmarks_of(truth, face[1]))
    assert points.shape[1] == count
    fitted = portraits.fit_points(guess, list(points), face[1])
    distance = lambda values: (reduce(landmarks_of(values, face[1])) - points).norm(dim=-1).mean()
    assert distance(guess) > 4 and distance(fitted) < limit
    before, after = ((landmarks_of(values, face[1]) - landmarks_of(truth, face[1])).norm(dim=-1).mean()
                     for values in (guess, fitted))
    assert after < 0.7 * before  # and so do the landmarks that were not given


def test_fit_ends_at_its_minimum_from_far_away(face, monkeypatch):
    """A head taken for nearly frontal that is turned by 13 degrees: more steps do not change the answer."""
    truth = code(3, 1)
    guess = truth._replace(shape=truth.shape * 0.5, pose=truth.pose + torch.tensor([0.0, 0.15, 0.0, 0.0, 0.0]))
    points = list(landmarks_of(truth, face[1]))
    fitted = portraits.fit_points(guess, points, face[1])
    monkeypatch.setattr(portraits, "FIT_STEPS", 1000)
    converged = portraits.fit_points(guess, points, face[1])
    torch.testing.assert_close(fitted.pose, converged.pose, atol=3e-3, rtol=0)
    assert (fitted.pose - truth.pose)[:, 1].abs().max() < 0.03 < 0.15  # under 3 degrees left


def test_a_detector_that_sets_the_jaw_otherwise_along_its_line_does_not_turn_the_face(face):
    truth = code(2, 1, spread=0.5)
    points = landmarks_of(truth, face[1])
    slid = points.clone()
    slid[:, 1:16] = 0.4 * points[:, 2:17] + 0.6 * points[:, 1:16]  # on the line, nearly half a landmark further
    fitted = portraits.fit_points(truth, list(slid), face[1])
    moved = (landmarks_of(fitted, face[1]) - points).norm(dim=-1)
    assert (slid - points).norm(dim=-1)[:, 1:16].mean() > 5
    assert moved[:, :17].mean() < 2 and moved[:, 17:].mean() < 0.5


def test_fit_keeps_a_guess_that_agrees(face):
    guess = code(2, 3)
    fitted = portraits.fit_points(guess, list(landmarks_of(guess, face[1])), face[1])
    torch.testing.assert_close(fitted.shape, guess.shape, atol=1e-3, rtol=0)
    torch.testing.assert_close(fitted.pose, guess.pose, atol=1e-4, rtol=0)


def test_portraits_of_a_folder(face, tmp_path, capsys):
    truth = code(1, 5, spread=0.3)
    points = portraits.five_points(landmarks_of(truth, face[1]))[0] + torch.tensor([3.0, -2.0])
    for name in ("a", "b", "c"):
        write_image(tmp_path / f"{name}.png", np.full((256, 256, 3), 90, np.uint8))
    file = tmp_path / "points.json"
    file.write_text(json.dumps({name: points.tolist() for name in ("a", "b")}))
    found = portraits.load_portraits(tmp_path, file, Teacher(truth), face[1], face[0], "traditional")
    assert "1 of 3" in capsys.readouterr().err
    assert len(found) == 2 and found.names == ["a", "b"]
    item = found[1]
    assert item["image"].shape == (3, 256, 256) and item["labels"].shape == (256, 256)
    shifted = portraits.five_points(item["landmarks"][None])[0]
    assert (shifted - points).norm(dim=-1).mean() < 1.0
    inner = item["landmarks"][17:].round().long()
    assert (item["labels"][inner[:, 1], inner[:, 0]] == FACE).float().mean() > 0.8


def test_each_portrait_comes_again_with_its_head_turned(face, tmp_path):
    write_image(tmp_path / "a.png", np.full((256, 256, 3), 90, np.uint8))
    truth = code(1, 5, spread=0.3)
    (tmp_path / "points.json").write_text(json.dumps({"a": landmarks_of(truth, face[1])[0].tolist()}))
    found = portraits.load_portraits(tmp_path, tmp_path / "points.json", Teacher(truth), face[1], face[0],
                                     "traditional", turns=2)
    assert found.names == ["a", "a", "a"] and found.images.shape == (3, 3, 256, 256)
    yaw = 90 * (found.code.pose[1:, 1] - found.code.pose[0, 1])
    assert (yaw.abs() > 5).all() and (yaw.abs() < 50).all()


def test_turned_portraits_do_not_depend_on_who_turns_them(face, tmp_path):
    rng, truth = np.random.default_rng(0), code(1, 5, spread=0.3)
    for name in "abc":
        write_image(tmp_path / f"{name}.png", rng.integers(0, 256, (256, 256, 3), dtype=np.uint8))
    points = landmarks_of(truth, face[1])[0]
    (tmp_path / "points.json").write_text(json.dumps({name: (points + 3 * place).tolist()
                                                      for place, name in enumerate("abc")}))
    alone, others = (portraits.load_portraits(tmp_path, tmp_path / "points.json", Teacher(truth), face[1], face[0],
                                              "traditional", turns=2, workers=workers) for workers in (0, 2))
    assert alone.names == others.names == list("abcaabbcc")
    # Sums may differ in their last bits by the number of threads and by where in memory their terms lie.
    assert (alone.images.int() - others.images.int()).abs().max() <= 1
    differences = [(one - other).abs().float().mean() for one, other in itertools.combinations(alone.images.int(), 2)]
    assert min(differences) > 10
    for ours, theirs in zip(alone.code, others.code):
        torch.testing.assert_close(ours, theirs)


def test_mix_has_the_wanted_share():
    class Items(TensorDataset):
        def __getitem__(self, index):
            return {"image": index, "name": index, "albedo": 0}

    faces, few = Items(torch.zeros(60)), portraits.Fields(Items(torch.zeros(10)), ("image", "name"))
    mixed = portraits.mix(faces, few, 0.4)
    assert len(mixed) == 60 + 40
    assert set(mixed[0]) == set(mixed[99]) == {"image", "name"}
    many = portraits.mix(faces, portraits.Fields(Items(torch.arange(100.0)), ("image", "name")), 0.4)
    again = portraits.mix(faces, portraits.Fields(Items(torch.arange(100.0)), ("image", "name")), 0.4)
    assert len(many) == 100  # no more than 40 of them
    taken = [float(many[index]["image"]) for index in range(60, 100)]
    assert len(set(taken)) == 40 and taken == [float(again[index]["image"]) for index in range(60, 100)]
    with pytest.raises(UserError, match="portrait-share"):
        portraits.mix(faces, few, 1.0)


@pytest.mark.parametrize("content", ["[1, 2]", "{\"a\": [[1, 2]]}", "{\"a\": \"x\"}", "no json",
                                     "{\"a\": [[1, NaN], [1, 2], [1, 2], [1, 2], [1, 2]]}"])
def test_bad_points_are_named(tmp_path, content):
    file = tmp_path / "points.json"
    file.write_text(content)
    with pytest.raises(UserError, match="points.json"):
        portraits.read_points(file)


def test_no_portrait_with_points(face, tmp_path):
    write_image(tmp_path / "a.png", np.zeros((256, 256, 3), np.uint8))
    (tmp_path / "points.json").write_text("{}")
    with pytest.raises(UserError, match="names must be"):
        portraits.load_portraits(tmp_path, tmp_path / "points.json", Teacher(code(1)), face[1], face[0], "traditional")
