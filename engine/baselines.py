"""Simple completions on the same holes, to compare with: two OpenCV methods and the mirrored half of the face.

All take an aligned crop, uint8 RGB (H, W, 3), and its hole, bool (H, W), True = hidden; pixels outside the hole come
back unchanged, and no hidden pixel is read.
"""
from __future__ import annotations

import cv2
import numpy as np

INPAINT_RADIUS = 3  # pixels around a hidden pixel that OpenCV's methods look at


def telea(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Fast-marching inpainting (Telea, 2004)."""
    return _opencv(image, hole, cv2.INPAINT_TELEA)


def navier_stokes(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Navier-Stokes inpainting (Bertalmio et al., 2001)."""
    return _opencv(image, hole, cv2.INPAINT_NS)


def mirrored_half(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The crop mirrored left-right where the mirror pixel is visible (faces are upright), Telea for the rest."""
    from_mirror = hole & ~hole[:, ::-1]
    output = image.copy()
    output[from_mirror] = image[:, ::-1][from_mirror]
    return telea(output, hole & ~from_mirror)


def _opencv(image: np.ndarray, hole: np.ndarray, method: int) -> np.ndarray:
    if not hole.any():
        return image.copy()
    blank = np.where(hole[..., None], np.uint8(0), image)
    filled = cv2.inpaint(blank, hole.astype(np.uint8), INPAINT_RADIUS, method)
    return np.where(hole[..., None], filled, image)


BASELINES = {"Telea": telea, "Navier-Stokes": navier_stokes, "mirrored half": mirrored_half}
