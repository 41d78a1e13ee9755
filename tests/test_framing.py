"""Moving predicted heads into the aligner's frame."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from datasets.alignment import CROP_SIZE, _oriented_square
from datasets.definition import load_builtin
from engine.encoder_stage import Geometry, crop_landmarks
from engine.framing import FramedEncoder, settle, trust_of
from models.encoder import FaceCode
from models.morphable import MorphableModel


@pytest.fixture(scope="module")
def face():
    definition = load_builtin()
    model = MorphableModel(definition)
    return model, Geometry(model, definition.coefficient_parity, definition.coefficient_mean,
                           definition.coefficient_std)


def code(count: int = 4) -> FaceCode:
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    pose = torch.cat([0.12 * normal(count, 3), 0.06 * normal(count, 2)], 1)
    return FaceCode(normal(count, 228), torch.zeros(count, 512), torch.zeros(count, 512),
                    9e-4 * (0.1 * normal(count)).exp(), pose, normal(count, 27))


def landmarks_of(values: FaceCode, geometry: Geometry) -> torch.Tensor:
    return crop_landmarks(values.shape, values.scale, values.pose, geometry)


def squares(landmarks: torch.Tensor):
    """The aligner's square around each settled head, from its eyes and mouth corners."""
    for points in landmarks.double().numpy():
        five = [points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]]
        yield torch.from_numpy(_oriented_square(five))


def test_a_settled_head_would_be_cropped_the_same_again(face):
    values = code()
    settled = settle(values, landmarks_of(values, face[1]), 1.0)
    wanted = torch.tensor([[0, 0], [0, 1], [1, 1], [1, 0]], dtype=torch.float64) * CROP_SIZE
    for square in squares(landmarks_of(settled, face[1])):
        torch.testing.assert_close(square, wanted, atol=0.05, rtol=0)


def test_settling_only_moves_turns_and_zooms_the_picture(face):
    values = code()
    before, after = (landmarks_of(item, face[1]) for item in
                     (values, settle(values, landmarks_of(values, face[1]), 0.6)))
    for old, new in zip(before.double(), after.double()):
        far = torch.pdist(old) > 10  # pixels
        zoom = torch.pdist(new)[far] / torch.pdist(old)[far]
        torch.testing.assert_close(zoom, zoom.mean().expand(len(zoom)), atol=2e-4, rtol=0)


def test_no_trust_changes_nothing_and_more_trust_comes_closer(face):
    values = code()
    landmarks = landmarks_of(values, face[1])
    assert settle(values, landmarks, 0.0) is values
    error = []
    for trust in (0.0, 0.3, 0.6, 1.0):
        places = landmarks_of(settle(values, landmarks, trust), face[1])
        error.append(sum(float((square.mean(0) - CROP_SIZE / 2).norm()) for square in squares(places)))
    assert error == sorted(error, reverse=True) and error[-1] < 0.1 < error[0]


def test_framed_encoder_settles_what_its_encoder_says(face):
    class Fixed(nn.Module):
        def forward(self, image):
            return code(len(image))

    found = FramedEncoder(Fixed(), face[0], 0.7)(torch.zeros(3, 3, 224, 224))
    values = code(3)
    expected = settle(values, landmarks_of(values, face[1]), 0.7)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_trust_is_found_in_both_kinds_of_files():
    assert trust_of({"frame_trust": 0.5}) == 0.5
    assert trust_of({"source": "published"}) == 0.0
