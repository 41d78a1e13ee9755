"""Holes of one's own photos: what the occlusion net finds, cleaned; a picture of the hole; a part of the face.

Masks are bool, True = hidden: (256, 256) of the aligned crop, or (H, W) of the photo.
"""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from scipy import ndimage

from datasets.masks import MaskFolder
from utils.errors import UserError
from utils.images import read_mask

REGIONS = ("eyes", "nose", "mouth", "left", "right", "upper", "lower")
SPECK = 60  # crop pixels; smaller regions found by the net are dropped
ISLAND = 120  # crop pixels; smaller visible regions inside a found one are hidden as well (an eye in a slit is larger)
GAP = 3  # crop pixels; a strip up to twice as wide between two found regions is hidden as well
GROWTH = 4  # crop pixels by which a found region grows, so that no rim of the occluder remains
REGION_MARGIN = 0.12  # of the distance of the eyes, around eyes, nose and mouth


def clean(found: np.ndarray) -> np.ndarray:
    """A predicted hole of the crop without specks and gaps, slightly grown: bool (256, 256)."""
    kept = _without_specks(found, SPECK)
    # On a larger canvas, so that regions at the crop's border close against what is beyond it.
    closed = ndimage.binary_closing(np.pad(kept, 2 * GAP, mode="edge"), _disc(GAP))[2 * GAP:-2 * GAP, 2 * GAP:-2 * GAP]
    closed = ~_without_specks(~(closed | kept), ISLAND)
    return ndimage.binary_dilation(closed, _disc(GROWTH))


def _without_specks(mask: np.ndarray, size: int) -> np.ndarray:
    """The connected regions of at least so many pixels."""
    regions, count = ndimage.label(mask)
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    large = sizes >= size
    large[0] = False
    return large[regions]


def _disc(radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius:radius + 1, -radius:radius + 1]
    return x ** 2 + y ** 2 <= radius ** 2 + 1


def part_of_face(name: str, landmarks: np.ndarray, face: np.ndarray) -> np.ndarray:
    """A named part of a fitted face: bool (256, 256).

    name: one of REGIONS, left and right as seen in the picture. landmarks (68, 2): x, y in crop pixels. face: bool
    (256, 256), where the mesh is. Eyes (with brows), nose and mouth have a margin; the halves are divided by the line
    from the nose's root to the chin, and below the eyes at a third of the way from the nose's root to its base.
    """
    eyes_apart = np.hypot(*(landmarks[42:48].mean(axis=0) - landmarks[36:42].mean(axis=0)))
    points = {"eyes": landmarks[np.r_[17:27, 36:48]], "nose": landmarks[27:36], "mouth": landmarks[48:68]}
    if name in points:
        margin = max(int(round(REGION_MARGIN * eyes_apart)), 1)
        outline = cv2.convexHull(np.rint(points[name]).astype(np.int32))
        hull = cv2.fillConvexPoly(np.zeros(face.shape, np.uint8), outline, 1)
        return ndimage.binary_dilation(hull > 0, _disc(margin))
    y, x = np.mgrid[:face.shape[0], :face.shape[1]]
    root, base, chin = landmarks[27], landmarks[33], landmarks[8]
    down = (chin - root) / np.hypot(*(chin - root))
    if name in ("left", "right"):
        beside = down[1] * (x - root[0]) - down[0] * (y - root[1])  # positive to the right of the upright face
        return face & (beside < 0 if name == "left" else beside >= 0)
    if name in ("upper", "lower"):
        border = root + (base - root) / 3
        below = down[0] * (x - border[0]) + down[1] * (y - border[1])
        return face & (below < 0 if name == "upper" else below >= 0)
    raise ValueError(f"unknown region {name!r}")


def parse_regions(text: str | None) -> tuple[str, ...]:
    """--region's names. Raises UserError for an unknown one."""
    names = tuple(name.strip().lower() for name in (text or "").split(",") if name.strip())
    for name in names:
        if name not in REGIONS:
            raise UserError(f"--region {name}: there is no such part of a face; choose from {', '.join(REGIONS)}")
    return names


def read_photo_mask(mask: str | Path, photo_path: Path, size: tuple[int, int], visible: bool = False) -> np.ndarray:
    """The hole of a photo of size (height, width): bool, from a picture or from a folder with one named like the photo.

    visible: white marks what is visible instead. A mask of another size but the same shape is scaled. Raises UserError
    if it is missing, unreadable or of another shape.
    """
    mask = Path(mask)
    try:
        if mask.is_dir():
            return MaskFolder(mask, visible).hole(photo_path.stem, size)
        hole = read_mask(mask, size)
    except UserError as error:
        raise UserError(f"{photo_path}: {error}") from None
    return ~hole if visible else hole
