"""The aligned CelebA crops that process_celeba.py writes."""
from __future__ import annotations

import os
from pathlib import Path

from utils.errors import UserError
from utils.files import read_text
from utils.logging import note, warning

from .alignment import CROP_FOLDER
from .faces import FolderFaces

PARTITION_FILES = ("list_eval_partition.txt", "list_eval_partition.csv")
_PARTITIONS = {"0": "train", "1": "dev", "2": "test"}


class CelebACrops(FolderFaces):
    """Crops <celeba>/celebahq_crop/NAME.jpg; items as in :class:`datasets.faces.FolderFaces`.

    root: CelebA's folder or the folder of crops itself. The sorted names are divided 80/20 as in the paper, or, with
    official_partition, as list_eval_partition.txt in CelebA's folder or in its Eval/ or Anno/ says (0 train, 1 dev, 2
    test). Raises UserError if there are no crops, or not that file.
    """

    def __init__(self, root: str | os.PathLike, split: str | None = None, train_dev_percent: float = 80,
                 verify: bool | None = None, official_partition: bool = False) -> None:
        root, self.official_partition = Path(root), official_partition
        crops = root / CROP_FOLDER if (root / CROP_FOLDER).is_dir() else root
        self.celeba = crops.parent if crops.name == CROP_FOLDER else root
        if (self.celeba / "img_celeba").is_dir() or (self.celeba / "img_align_celeba").is_dir():
            if crops == self.celeba:
                raise UserError(f"{root} has no {CROP_FOLDER}: run python process_celeba.py --celeba {root} first")
        super().__init__(crops, split, train_dev_percent, verify)

    def _select(self, split: str | None, train_dev_percent: float) -> list[str]:
        partition = find_partition(self.celeba)
        if split is None or not self.official_partition:
            if split == "train" and partition:
                note(f"{self.celeba}: the crops are divided 80/20 as in the paper; CelebA's own partition, which is "
                     "there, is taken with --dataset-options '{\"official_partition\": true}'")
            return super()._select(split, train_dev_percent)
        if partition is None:
            raise UserError(f"{self.celeba} has no Eval/{PARTITION_FILES[0]}: put it there, or leave "
                            "official_partition out of --dataset-options")
        split_of = read_partition(partition)
        unlisted = [name for name in self._paths if name not in split_of]
        if unlisted:
            warning(f"{len(unlisted)} crops, such as {min(unlisted)}, are not in {partition} and are left out")
        return sorted(name for name in self._paths if split_of.get(name) == split)


def find_partition(celeba: Path) -> Path | None:
    """The official partition file in CelebA's folder, its Eval/ or its Anno/; None if there is none."""
    candidates = (celeba / folder / name for folder in ("", "Eval", "Anno") for name in PARTITION_FILES)
    return next((path for path in candidates if path.is_file()), None)


def read_partition(path: Path) -> dict[str, str]:
    """Name without suffix -> "train", "dev" or "test" from lines "000001.jpg 0" (or comma-separated with a header).

    Raises UserError naming the malformed line.
    """
    split_of: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields = line.replace(",", " ").split()
        if not fields or fields[0] == "image_id":
            continue
        if len(fields) != 2 or fields[1] not in _PARTITIONS:
            raise UserError(f"{path}, line {number}: expected 'NAME.jpg 0|1|2', found {line[:60]!r}")
        split_of[Path(fields[0]).stem] = _PARTITIONS[fields[1]]
    return split_of
