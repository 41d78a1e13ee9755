"""Holes: which pixels of a face are hidden. One polarity everywhere: a mask is True (255 on disk) where HIDDEN.

Three sources: random rectangles drawn anew (training), rectangles fixed by (seed, image name) so that everybody
evaluates the same holes on the same face regions, and a folder of mask pictures.
"""
from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.images import list_images, read_mask

RATIO_BINS = 10


def rectangle_bounds(rng: np.random.Generator, height: int, width: int,
                     evaluation: bool = False) -> tuple[int, int, int, int]:
    """A random rectangle as (top, left, bottom, right), the last two exclusive; they may lie beyond the picture.

    The first row and column lie in [1/4, 1/2) of the size, height and width in [1/4, 3/4) for training and [1/3, 3/4)
    for evaluation (the paper's holes).
    """
    share = 3 if evaluation else 4
    top = int(rng.integers(height // 4, height // 2))
    left = int(rng.integers(width // 4, width // 2))
    rows = int(rng.integers(height // share, 3 * height // 4))
    columns = int(rng.integers(width // share, 3 * width // 4))
    return top, left, top + rows, left + columns


def random_rectangle(rng: np.random.Generator, height: int, width: int, evaluation: bool = False) -> np.ndarray:
    """A rectangle of `rectangle_bounds`, bool (height, width), True inside; what passes the border is clipped."""
    top, left, bottom, right = rectangle_bounds(rng, height, width, evaluation)
    hole = np.zeros((height, width), dtype=bool)
    hole[top:bottom, left:right] = True
    return hole


def random_hole(rng: np.random.Generator, face: np.ndarray, evaluation: bool = False) -> np.ndarray:
    """A random rectangle restricted to the face: bool (H, W) from the bool (H, W) face region."""
    return random_rectangle(rng, *face.shape, evaluation=evaluation) & face.astype(bool)


def fixed_hole(seed: int, name: str, face: np.ndarray) -> np.ndarray:
    """The evaluation hole of the image called ``name``: bool (H, W), inside the bool (H, W) face region.

    Its rectangle depends on the seed and the name alone, not on the order of the images, the machine or the process;
    a face region that a network found may not be the same everywhere (save such holes with --save-masks). The name is
    the image's path inside its folder, without the suffix.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
    return random_hole(rng, face, evaluation=True)


def mask_ratio(face: np.ndarray, hole: np.ndarray) -> float:
    """Hidden share of the face, in [0, 1]; face and hole bool (H, W). 0 if there is no face."""
    face = np.asarray(face).astype(bool)
    area = int(face.sum())
    return float((face & np.asarray(hole).astype(bool)).sum() / area) if area else 0.0


def ratio_bin(ratio: float) -> int:
    """Bin 0..9 of a mask/face ratio: bin b holds b * 10 % up to (not including) (b + 1) * 10 %; 100 % is in bin 9."""
    return min(max(int(np.floor(RATIO_BINS * ratio)), 0), RATIO_BINS - 1)


class MaskFolder:
    """A folder with one mask picture per image, matched by name without suffix (see ``utils.images.read_mask``).

    Masks may lie in the same subfolders as their images, or all in one flat folder.
    """

    def __init__(self, folder: str | os.PathLike, visible: bool = False) -> None:
        """visible: white marks what is visible instead. Raises UserError if the folder is missing, empty, or has two
        masks of one name."""
        self.folder, self.visible = Path(folder), visible
        self._paths: dict[str, Path] = {}
        for path in list_images(self.folder, recursive=True):
            name = path.relative_to(self.folder).with_suffix("").as_posix()
            if name in self._paths:
                raise UserError(f"two masks are called {name}: {self._paths[name]} and {path}: delete one")
            self._paths[name] = path
        if not self._paths:
            raise UserError(f"{self.folder} holds no mask pictures: put NAME.png there for each image, 255 = hidden")

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None

    def __len__(self) -> int:
        return len(self._paths)

    def hole(self, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """The hole of the image called ``name`` (its path without suffix): bool, resized to size = (height, width).

        Raises UserError naming the mask if it is missing, unreadable or of another shape.
        """
        path = self.find(name)
        if path is None:
            raise UserError(f"no mask for {name} in {self.folder}: add {self.folder / name}.png (255 = hidden)")
        mask = read_mask(path, size)
        return ~mask if self.visible else mask

    def find(self, name: str) -> Path | None:
        """The file of the mask of the image called ``name`` (its path without suffix); None if there is none."""
        return self._paths.get(name) or self._paths.get(name.rsplit("/", 1)[-1])
