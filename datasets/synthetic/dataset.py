"""Synthetic faces as a map-style dataset."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from utils.errors import UserError

from .generator import SPLITS, FaceGenerator

_IDENTITIES_PER_SPLIT = 10 ** 9


class SyntheticFaces(Dataset):
    """`length` synthetic faces of one split, rendered on demand.

    Item `index` depends on (seed, split, index) alone, whatever the order, the worker or the length (on another kind of
    processor sums may be rounded differently); no identity occurs in two splits, and each face is its own identity.
    Items are dicts:

    image uint8 (3, 256, 256) RGB; labels uint8 (256, 256): 0 face, 1 occlusion, 2 background (also the mouth's inside);
    hair uint8 (256, 256): 1 where the occlusion is the face's own hair, else 0;
    shape float32 (228,) as the encoder gives it; scale float32 () px per um; pose float32 (5,) and light float32 (27,)
    in the encoder's conventions; landmarks float32 (68, 2) x, y crop pixels; albedo uint8 (3, 192, 256), true UV albedo
    times 255, 0 outside the face; name str; identity int.

    occluders: whether things (glasses, hands, masks, ...) may hide the face; without them its hair leaves it free too.
    clean: exactly albedo times shade, without hair, shadows, highlights and camera effects; for tests.
    Raises UserError for an unknown split or a negative seed, IndexError beyond the length.
    """

    def __init__(self, split: str, length: int, seed: int = 0, occluders: bool = True, clean: bool = False):
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r} of the synthetic faces: choose one of {', '.join(SPLITS)}")
        if int(seed) < 0:
            raise UserError(f"the seed of the synthetic faces must not be negative, but is {seed}")
        if not 0 < length <= _IDENTITIES_PER_SPLIT:
            raise UserError(f"the number of synthetic faces must be positive, not {length}")
        self.split, self.length, self.seed = split, int(length), int(seed)
        self.occluders, self.clean = occluders, clean

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        if not -self.length <= index < self.length:
            raise IndexError(index)
        index = int(index) % self.length
        face = FaceGenerator.load().generate(self.seed, self.split, index, self.occluders, self.clean)
        item = {key: torch.as_tensor(value) for key, value in face.items()}
        item["name"] = face_name(self.split, index)
        item["identity"] = face_identity(self.split, index)
        return item


def face_name(split: str, index: int) -> str:
    """File-like name of a synthetic face."""
    return f"{split}_{index:06d}"


def face_identity(split: str, index: int) -> int:
    """Number of the person on a synthetic face; unique over all splits."""
    return SPLITS.index(split) * _IDENTITIES_PER_SPLIT + index
