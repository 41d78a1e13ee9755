"""CelebAMask-HQ (Lee et al., CVPR 2020): faces with the labels face, occlusion, background for the occlusion net.

Layout as downloaded: <root>/CelebA-HQ-img/0.jpg ... 29999.jpg (1024x1024, the crop of ``datasets.alignment``) and
<root>/CelebAMask-HQ-mask-anno/<index // 2000>/00000_skin.png ... (512x512, one picture per part that is present).

How the 19 annotated parts become the three labels:

* face: skin, l_brow, r_brow, l_eye, r_eye, nose, u_lip, l_lip;
* background: mouth (its inside is not part of the mesh), l_ear, r_ear, neck and everything not annotated;
* occlusion: eye_g (glasses, with what is seen through them); hat, hair, cloth, ear_r and neck_l (jewellery) where they
  lie inside the convex hull of the face parts and glasses, for elsewhere they hide no face; and unannotated areas of at
  least 0.1 % of the picture that face and glasses enclose (hands, microphones). Smaller enclosed gaps between parts are
  face.
"""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from utils.errors import UserError
from utils.images import list_images, read_mask

from .alignment import CROP_SIZE
from .faces import FolderFaces
from .labels import BACKGROUND, FACE, OCCLUSION

IMAGE_FOLDER = "CelebA-HQ-img"
ANNOTATION_FOLDER = "CelebAMask-HQ-mask-anno"
FACE_PARTS = ("skin", "l_brow", "r_brow", "l_eye", "r_eye", "nose", "u_lip", "l_lip")
GLASSES = ("eye_g",)
OCCLUDER_PARTS = ("hat", "hair", "cloth", "ear_r", "neck_l")
MOUTH = ("mouth",)
_MIN_ENCLOSED = 0.001  # of the picture; a smaller enclosed gap is between parts, not an occluder
_IMAGES_PER_FOLDER = 2000


class CelebAMaskHQ(FolderFaces):
    """Items {"image": uint8 (3, 256, 256), "labels", "hair": uint8 (256, 256), "name"}; splits as in FolderFaces.

    hair: 1 where the occlusion is annotated as hair and as no other occluder, else 0.

    root: the folder that holds CelebA-HQ-img and CelebAMask-HQ-mask-anno. Pictures without a skin annotation are
    unreadable in FolderFaces' sense. Raises UserError if one of the two folders is missing.
    """

    def __init__(self, root: str | os.PathLike, split: str | None = None, train_dev_percent: float = 80,
                 verify: bool | None = None) -> None:
        self._annotations = Path(root) / ANNOTATION_FOLDER
        for folder in (Path(root) / IMAGE_FOLDER, self._annotations):
            if not folder.is_dir():
                raise UserError(f"{folder} does not exist: give the unpacked CelebAMask-HQ as --dataroot")
        super().__init__(Path(root) / IMAGE_FOLDER, split, train_dev_percent, verify)

    def _find_pictures(self) -> dict[str, Path]:
        paths = {path.stem.zfill(5): path for path in list_images(self.root)}
        if not paths:
            raise UserError(f"{self.root} holds no pictures: give the unpacked CelebAMask-HQ as --dataroot")
        return paths

    def _load(self, name: str) -> dict[str, Any]:
        labels, hair = (torch.from_numpy(values) for values in self.labels(name))
        return {**super()._load(name), "labels": labels, "hair": hair}

    def labels(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Of the face called ``name`` ("00000") FACE, OCCLUSION and BACKGROUND, and hair: both uint8 (256, 256).

        Raises UserError if the skin annotation is missing or an annotation cannot be read.
        """
        skin = self._part_file(name, "skin")
        if skin is None:
            raise UserError(f"{self._paths[name]} has no annotation {name}_skin.png: unpack all of {ANNOTATION_FOLDER}")
        parts = {"skin": read_mask(skin)}
        for part in (*FACE_PARTS[1:], *GLASSES, *OCCLUDER_PARTS, *MOUTH):
            path = self._part_file(name, part)
            if path is not None:
                parts[part] = read_mask(path, size=parts["skin"].shape)
        labels = labels_from_parts(parts)
        others = _union(parts, (*GLASSES, *(part for part in OCCLUDER_PARTS if part != "hair")), labels.shape)
        hair = (labels == OCCLUSION) & _union(parts, ("hair",), labels.shape) & ~others
        labels, hair = (cv2.resize(values, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_NEAREST)
                        for values in (labels, hair.astype(np.uint8)))
        return labels, hair

    def _part_file(self, name: str, part: str) -> Path | None:
        """The annotation of a part, in its numbered subfolder or in the annotation folder itself."""
        file = f"{name}_{part}.png"
        folders = [self._annotations]
        if name.isdigit():
            folders.insert(0, self._annotations / str(int(name) // _IMAGES_PER_FOLDER))
        return next((folder / file for folder in folders if (folder / file).is_file()), None)


def labels_from_parts(parts: dict[str, np.ndarray]) -> np.ndarray:
    """The module's mapping: bool (H, W) masks of the annotated parts, "skin" among them -> uint8 (H, W) labels."""
    shape = parts["skin"].shape
    face, glasses, occluders, mouth = (_union(parts, names, shape)
                                       for names in (FACE_PARTS, GLASSES, OCCLUDER_PARTS, MOUTH))
    labels = np.full(shape, BACKGROUND, dtype=np.uint8)
    labels[face] = FACE
    labels[mouth] = BACKGROUND
    hidden = glasses | occluders & _convex_hull(face | glasses)
    labels[hidden] = OCCLUSION
    large, small = _enclosed(face | glasses | mouth)
    labels[large] = OCCLUSION
    labels[small & ~hidden] = FACE
    return labels


def _union(parts: dict[str, np.ndarray], names: tuple[str, ...], shape: tuple[int, int]) -> np.ndarray:
    result = np.zeros(shape, dtype=bool)
    for name in names:
        if name in parts:
            result |= parts[name]
    return result


def _convex_hull(mask: np.ndarray) -> np.ndarray:
    """bool (H, W), the convex hull of the mask's pixels."""
    hull = np.zeros(mask.shape, dtype=np.uint8)
    points = np.argwhere(mask)[:, ::-1].astype(np.int32)
    if len(points):
        cv2.fillConvexPoly(hull, cv2.convexHull(points), 1)
    return hull > 0


def _enclosed(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas outside the mask from which no path leads to the picture's border, the large and the small: bool (H, W)."""
    count, component, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    border = np.unique(np.concatenate([component[0], component[-1], component[:, 0], component[:, -1]]))
    is_enclosed = ~np.isin(np.arange(count), border)
    is_enclosed[0] = False  # component 0 is the mask itself
    is_large = stats[:, cv2.CC_STAT_AREA] >= _MIN_ENCLOSED * mask.size
    return (is_enclosed & is_large)[component], (is_enclosed & ~is_large)[component]
