"""Contact sheets of synthetic faces: rows of pictures, each above the same pictures with labels and landmarks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

_TINT = np.float32([[0, 0.8, 0.2], [1, 0.1, 0.1], [0.1, 0.3, 1]])  # face, occlusion, background


def overlay(item: dict) -> np.ndarray:
    """Picture (256, 256, 3) uint8 RGB with its labels as tint and its landmarks as dots."""
    picture = item["image"].numpy().transpose(1, 2, 0).astype(np.float32)
    picture = 0.7 * picture + 0.3 * 255 * _TINT[item["labels"].numpy()]
    picture = np.ascontiguousarray(picture.astype(np.uint8))
    for x, y in item["landmarks"].numpy():
        cv2.circle(picture, (int(round(float(x))), int(round(float(y)))), 1, (255, 255, 0), -1)
    return picture


def contact_sheet(faces, path: str | Path, count: int = 48, columns: int = 12, cell: int = 192) -> None:
    """Write `count` items of a dataset as a PNG."""
    items = [faces[index] for index in range(count)]
    shrink = lambda picture: cv2.resize(picture, (cell, cell), interpolation=cv2.INTER_AREA)
    bands = []
    for start in range(0, count, columns):
        row = items[start:start + columns]
        for draw in (lambda item: item["image"].numpy().transpose(1, 2, 0), overlay):
            cells = [shrink(np.ascontiguousarray(draw(item))) for item in row]
            cells += [np.zeros_like(cells[0])] * (columns - len(cells))
            bands.append(np.concatenate(cells, axis=1))
    cv2.imwrite(str(path), np.concatenate(bands)[..., ::-1])
