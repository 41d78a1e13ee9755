"""Contact sheets of synthetic faces: with their labels and landmarks, or beside real ones."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from utils.images import write_image

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
    """Write `count` items of a dataset as a PNG: rows of pictures, each above the same with labels and landmarks."""
    items = [faces[index] for index in range(count)]
    bands = []
    for start in range(0, count, columns):
        row = items[start:start + columns]
        bands += [_tile([_picture(item) for item in row], columns, cell),
                  _tile([overlay(item) for item in row], columns, cell)]
    write_image(path, np.concatenate(bands))


def beside_real(faces, real, path: str | Path, count: int = 64, columns: int = 8, cell: int = 128) -> None:
    """Write a PNG of `count` synthetic faces (left) beside as many real ones (right); fewer where there are fewer."""
    halves = [_tile([_picture(data[index]) for index in range(min(count, len(data)))], columns, cell)
              for data in (faces, real)]
    height = max(half.shape[0] for half in halves)
    halves = [np.pad(half, ((0, height - half.shape[0]), (0, 0), (0, 0)), constant_values=255) for half in halves]
    write_image(path, np.concatenate([halves[0], np.full((height, cell // 8, 3), 255, np.uint8), halves[1]], axis=1))


def _picture(item: dict) -> np.ndarray:
    return np.ascontiguousarray(item["image"].numpy().transpose(1, 2, 0))


def _tile(pictures: list[np.ndarray], columns: int, cell: int) -> np.ndarray:
    """Pictures reduced to `cell` pixels, row by row; white where the last row is short."""
    cells = [cv2.resize(picture, (cell, cell), interpolation=cv2.INTER_AREA) for picture in pictures]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    return np.concatenate([np.concatenate(cells[start:start + columns], axis=1)
                           for start in range(0, len(cells), columns)])
