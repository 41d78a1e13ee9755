"""The encoder E: a (masked) face image to the coefficients of the 3D factorization (paper section 3.1)."""
from __future__ import annotations

from typing import Mapping, NamedTuple

import torch
from torch import nn

from models.layers import ConvUnit

IDENTITY_SIZE = 199
EXPRESSION_SIZE = 29
SHAPE_SIZE = IDENTITY_SIZE + EXPRESSION_SIZE
CODE_SIZE = 512
POSE_SIZE = 5
LIGHT_SIZE = 27
MAX_SCALE = 2e-3
STRIDE = 32
CODE_KEYS = ("albedo_unit.conv.weight", "confidence_unit.conv.weight")  # in states of encoders that know the codes


class FaceCode(NamedTuple):
    """What the encoder says about B faces.

    shape: (B, 228) normalised 3DMM coefficients, 199 identity then 29 expression (times std plus mean gives the raw
    ones). albedo, confidence: (B, 512) codes for the two decoders, (B, 0) of an encoder without them.
    scale: (B,) pixels per micrometre in [0, 2e-3]. pose: (B, 5) in [-1, 1], three Euler angles / (pi / 2) and two
    translations (see models.renderer).
    light: (B, 27) spherical-harmonics coefficients, nine red, nine green, nine blue.
    """

    shape: torch.Tensor
    albedo: torch.Tensor
    confidence: torch.Tensor
    scale: torch.Tensor
    pose: torch.Tensor
    light: torch.Tensor


class Encoder(nn.Module):
    """Image (B, 3, S, S) in [-1, 1], holes filled with 0, S a multiple of 32 (published: 224) -> :class:`FaceCode`.

    input_size: side to which larger images are reduced first, by averaging; None: the network sees them as they are. A
    departure from the paper for weights that were trained on smaller pictures, which costs a fraction of the time.
    codes: with the units of the decoders' codes; a completion needs none (another departure, a quarter of the size).
    """

    def __init__(self, input_size: int | None = None, codes: bool = True):
        super().__init__()
        self.input_size = input_size
        self.albedo_unit = self.confidence_unit = None

        def unit(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> ConvUnit:
            return ConvUnit(inputs, outputs, kernel, stride, bias=False)

        self.trunk = nn.Sequential(
            nn.Sequential(unit(3, 32, 7, 2), unit(32, 64)),
            nn.Sequential(unit(64, 64, stride=2), unit(64, 96), unit(96, 128)),
            nn.Sequential(unit(128, 128, stride=2), unit(128, 192), unit(192, 256)),
            nn.Sequential(unit(256, 256, stride=2), unit(256, 256), unit(256, 256)),
            nn.Sequential(unit(256, 512, stride=2), unit(512, 512)),
        )
        self.pose_unit = ConvUnit(512, 160)
        self.pose_linear = nn.Linear(160, 1 + POSE_SIZE)
        self.light_unit = ConvUnit(512, 160)
        self.light_linear = nn.Linear(160, LIGHT_SIZE)
        self.shape_units = nn.Sequential(ConvUnit(512, 512), ConvUnit(512, 512))
        self.shape_linear = nn.Linear(512, SHAPE_SIZE)
        if codes:
            self.learn_codes()

    @classmethod
    def like(cls, state: Mapping[str, torch.Tensor]) -> "Encoder":
        """With the units of a state."""
        return cls(codes=any(name in state for name in CODE_KEYS))

    def learn_codes(self) -> None:
        """Adds the units of the decoders' codes, untrained."""
        self.albedo_unit, self.confidence_unit = ConvUnit(512, CODE_SIZE), ConvUnit(512, CODE_SIZE)

    @property
    def knows_codes(self) -> bool:
        """Whether there are units of the decoders' codes."""
        return self.albedo_unit is not None

    def forward(self, image: torch.Tensor) -> FaceCode:
        """Raises ValueError if the image is not (B, 3, S, S) with S a multiple of 32."""
        if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] != image.shape[3] or image.shape[3] % STRIDE:
            raise ValueError(f"the encoder takes images (B, 3, S, S), S a multiple of {STRIDE}; "
                             f"got {tuple(image.shape)}")
        if self.input_size is not None and image.shape[3] > self.input_size:
            image = nn.functional.interpolate(image, size=(self.input_size,) * 2, mode="area")
        features = self.trunk(image)
        pooled = {
            "pose": self.pose_unit(features), "light": self.light_unit(features), "shape": self.shape_units(features),
        }
        for name, unit in (("albedo", self.albedo_unit), ("confidence", self.confidence_unit)):
            pooled[name] = features[:, :0] if unit is None else unit(features)
        # Pose and shape need full precision: half precision is coarser than a pixel.
        with torch.autocast(image.device.type, enabled=False):
            precision = self.pose_linear.weight.dtype
            pooled = {name: value.to(precision).mean(dim=(2, 3)) for name, value in pooled.items()}
            motion = torch.tanh(self.pose_linear(pooled["pose"]))
            return FaceCode(
                shape=self.shape_linear(pooled["shape"]),
                albedo=pooled["albedo"],
                confidence=pooled["confidence"],
                scale=0.5 * (motion[:, 0] + 1) * MAX_SCALE,
                pose=motion[:, 1:],
                light=self.light_linear(pooled["light"]),
            )
