"""Aligned face crops from a folder, and the one real photo that every installation has."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from utils.errors import UserError
from utils.images import list_images, read_image
from utils.logging import warning

from .alignment import CROP_SIZE

SPLITS = ("train", "dev", "test")
DEV_SHARE = 0.05  # of the faces that are not for testing


def split_names(names: list[str], train_dev_percent: float = 80) -> dict[str, list[str]]:
    """Divide ``names`` into the splits train, dev and test, which never overlap.

    The first ``train_dev_percent`` % of the sorted names (a value of at most 1 is read as a fraction) are for training
    and development, the rest for testing (the paper: 80/20). The last 5 % of the former (at least one) are the dev
    split, which chooses the best checkpoint. Raises UserError if the percentage is not in (0, 100].
    """
    if not isinstance(train_dev_percent, (int, float)) or not 0 < train_dev_percent <= 100:
        raise UserError(f"train_dev_percent is {train_dev_percent!r}: give a percentage above 0, up to 100")
    fraction = train_dev_percent if train_dev_percent <= 1 else train_dev_percent / 100
    names = sorted(names)
    held_out = int(round(len(names) * fraction))
    train = held_out - (max(int(round(held_out * DEV_SHARE)), 1) if held_out > 1 else 0)
    return {"train": names[:train], "dev": names[train:held_out], "test": names[held_out:]}


class FolderFaces(torch.utils.data.Dataset):
    """Aligned 256x256 crops of a folder and its subfolders.

    Items: {"image": uint8 (3, 256, 256) RGB tensor, "name": path inside the folder without suffix}. Square pictures of
    another size are resized. Unreadable ones are left out with a warning each and listed in ``unreadable``.

    split: "train", "dev" or "test" (see :func:`split_names`), or None for all faces.
    verify: decode every picture beforehand, so that exactly the readable ones remain. Without it (default for "train",
    where there may be 160,000) an unreadable picture is replaced by the next one when it is met.
    Raises UserError if the folder is missing or no usable picture remains.
    """

    def __init__(self, root: str | os.PathLike, split: str | None = None, train_dev_percent: float = 80,
                 verify: bool | None = None) -> None:
        if split is not None and split not in SPLITS:
            raise UserError(f"there is no split {split!r}: choose one of {', '.join(SPLITS)}")
        self.root = Path(root)
        self.split = split
        self.unreadable: dict[str, str] = {}
        self._paths = self._find_pictures()
        self.names = self._select(split, train_dev_percent)
        if not self.names:
            raise UserError(f"the {split} split of {self.root} is empty ({len(self._paths)} pictures in all): "
                            "add pictures or change train_dev_percent")
        if verify if verify is not None else split != "train":
            self._verify()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for step in range(len(self)):
            item = self._try(self.names[(index + step) % len(self)])
            if item is not None:
                return item
        raise UserError(f"{self.root} holds no usable picture: check the files")

    @property
    def total(self) -> int:
        """The number of pictures of all splits, unreadable ones included."""
        return len(self._paths)

    def path(self, name: str) -> Path:
        """The file of the face called ``name``."""
        return self._paths[name]

    def _find_pictures(self) -> dict[str, Path]:
        """Name -> file for all pictures below the root."""
        paths: dict[str, Path] = {}
        for path in list_images(self.root, recursive=True):
            name = path.relative_to(self.root).with_suffix("").as_posix()
            if name in paths:
                raise UserError(f"two pictures are called {name}: {paths[name]} and {path}: rename one")
            paths[name] = path
        if not paths:
            raise UserError(f"{self.root} holds no pictures: put aligned {CROP_SIZE}x{CROP_SIZE} faces there "
                            "(python process_celeba.py --folder DIR makes them)")
        return paths

    def _select(self, split: str | None, train_dev_percent: float) -> list[str]:
        """The sorted names of a split."""
        if split is None:
            return sorted(self._paths)
        return split_names(list(self._paths), train_dev_percent)[split]

    def _verify(self) -> None:
        """Keep the pictures that can be used."""
        self.names = [name for name in self.names if self._try(name) is not None]
        if not self.names:
            reason = next(iter(self.unreadable.values()))
            raise UserError(f"{self.root} holds no usable picture; the first: {reason}")

    def _try(self, name: str) -> dict[str, Any] | None:
        """The item called ``name``, or None, with one warning, if its files cannot be used."""
        if name in self.unreadable:
            return None
        try:
            return self._load(name)
        except UserError as error:
            self.unreadable[name] = str(error)
            warning(f"left out: {error}")
            return None

    def _load(self, name: str) -> dict[str, Any]:
        """The item called ``name``; UserError if its files cannot be used."""
        return {"image": to_tensor(read_crop(self._paths[name])), "name": name}


def read_crop(path: str | os.PathLike) -> np.ndarray:
    """An aligned face as uint8 (256, 256, 3); square pictures of another size are resized.

    Raises UserError if the picture is not square or cannot be read.
    """
    image = read_image(path)
    height, width = image.shape[:2]
    if height != width:
        raise UserError(f"{path} is {width}x{height} pixels, not an aligned square face: "
                        "align it first with process_celeba.py --folder")
    if height != CROP_SIZE:
        interpolation = cv2.INTER_AREA if height > CROP_SIZE else cv2.INTER_CUBIC
        image = cv2.resize(image, (CROP_SIZE, CROP_SIZE), interpolation=interpolation)
    return image


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 (H, W, 3) array -> uint8 (3, H, W) tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def astronaut() -> np.ndarray:
    """The portrait of Eileen Collins (NASA, public domain) from scikit-image's wheel: uint8 (512, 512, 3) RGB.

    Read from the installed package; nothing is downloaded.
    """
    import skimage

    return read_image(Path(skimage.__file__).parent / "data" / "astronaut.png")
