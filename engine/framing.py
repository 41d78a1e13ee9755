"""What an aligned crop says about the face in it before anyone has looked: where its eyes and mouth are.

The aligner puts every face into the same frame (`datasets.alignment`): the middle of the eyes, the direction and the
distance of eyes and mouth decide the crop's centre, roll and size. An encoder that guesses shape and turn of the head
well, but its place less well than the aligner knew it, gains by moving the predicted head to where the frame says. How
far (`trust`) is measured in training on held-out faces and travels with the weights; a well-trained encoder needs none.
This is no part of the paper; published weights are used without it.
"""
from __future__ import annotations

import math
from typing import Any, Mapping

import torch
from torch import Tensor, nn

from datasets.alignment import CENTRE_SHIFT, CROP_SIZE, EYE_FACTOR, MOUTH_FACTOR, WINDOW_OFFSET, WINDOW_SIZE
from models.encoder import FaceCode
from models.renderer import project, rotation


class FramedEncoder(nn.Module):
    """An encoder for centre windows (B, 3, 224, 224) of aligned crops whose heads are moved towards the frame.

    model: `models.morphable.MorphableModel`; trust: see `settle`.
    """

    def __init__(self, encoder: nn.Module, model: nn.Module, trust: float):
        super().__init__()
        self.encoder, self.trust = encoder, trust
        vertices = model.basis.unflatten(1, (-1, 3))[:, model.landmarks]
        self.register_buffer("mean", model.mean[model.landmarks], persistent=False)
        self.register_buffer("basis", vertices.flatten(1), persistent=False)

    def forward(self, image: Tensor) -> FaceCode:
        """The settled code of the images."""
        code = self.encoder(image)
        if self.trust == 0:
            return code
        code = code._replace(**{name: getattr(code, name).float() for name in ("shape", "scale", "pose")})
        with torch.autocast(image.device.type, enabled=False):
            points = self.mean + (code.shape @ self.basis).unflatten(1, (-1, 3))
            placed = project(points, code.scale, code.pose, WINDOW_OFFSET)
            return settle(code, placed[..., :2].flip(-1), self.trust)


def trust_of(metadata: Mapping[str, Any]) -> float:
    """How far a stored encoder's heads are to be moved; metadata as `models.weights.load_encoder` returns it."""
    return float(metadata.get("frame_trust", 0.0))


def settle(code: FaceCode, landmarks: Tensor, trust: float) -> FaceCode:
    """The code after a share `trust` in [0, 1] of the similarity that brings its head into the aligner's frame.

    landmarks: (B, 68, 2), (x, y) of the code in pixels of the 256 crop, y downwards. 0 changes nothing; with 1 the
    aligner would make the same crop again from the head's own eyes and mouth.
    """
    if trust == 0:
        return code
    eyes = torch.stack([landmarks[:, 36:42].mean(1), landmarks[:, 42:48].mean(1)], 1)
    eye_to_eye, middle = eyes[:, 1] - eyes[:, 0], eyes.mean(1)
    eyes_to_mouth = torch.stack([landmarks[:, 48], landmarks[:, 54]], 1).mean(1) - middle
    axis = eye_to_eye - torch.stack([-eyes_to_mouth[:, 1], eyes_to_mouth[:, 0]], 1)
    half = torch.maximum(EYE_FACTOR * eye_to_eye.norm(dim=1), MOUTH_FACTOR * eyes_to_mouth.norm(dim=1))
    centre = middle + CENTRE_SHIFT * eyes_to_mouth
    zoom = (CROP_SIZE / 2 / half.clamp(min=1.0)) ** trust
    turn = trust * torch.atan2(axis[:, 1], axis[:, 0])  # y downwards, so that undoing it is a positive turn upwards
    target = centre + trust * ((CROP_SIZE - 1) / 2 - centre)
    matrix = torch.zeros(len(turn), 3, 3, device=turn.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = turn.cos()
    matrix[:, 1, 0], matrix[:, 0, 1], matrix[:, 2, 2] = turn.sin(), -turn.sin(), 1
    shift = 0.5 * (code.pose[:, 3:] + 1) * WINDOW_SIZE - _upwards(centre)
    moved = zoom[:, None] * (matrix[:, :2, :2] @ shift[..., None])[..., 0] + _upwards(target)
    pose = torch.cat([_angles(matrix @ rotation(code.pose)) * (2 / math.pi), moved * (2 / WINDOW_SIZE) - 1], 1)
    return code._replace(scale=code.scale * zoom, pose=pose)


def _upwards(points: Tensor) -> Tensor:
    """Points (B, 2) of the crop, y downwards, in the window's coordinates with y upwards."""
    return torch.stack([points[:, 0] - WINDOW_OFFSET, WINDOW_SIZE - 1 + WINDOW_OFFSET - points[:, 1]], 1)


def _angles(matrix: Tensor) -> Tensor:
    """Angles (B, 3) with matrix (B, 3, 3) = Rx Ry Rz, the middle one within a quarter turn."""
    return torch.stack([torch.atan2(-matrix[:, 1, 2], matrix[:, 2, 2]), torch.asin(matrix[:, 0, 2].clamp(-1, 1)),
                        torch.atan2(-matrix[:, 0, 1], matrix[:, 0, 0])], 1)
