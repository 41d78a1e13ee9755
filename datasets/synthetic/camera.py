"""What a camera and a file format do to a clean picture: tone, blur, resolution, noise, sharpening and JPEG.

Effects that are a gain per colour channel (exposure, white balance) are returned as a gain, so that the ground-truth
light can carry them; the others only touch the picture.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from .fields import LUMA


def sample_gain(rng: np.random.Generator, gray: bool) -> np.ndarray:
    """Exposure times white-balance error, (3,) float32."""
    exposure = math.exp(rng.normal(0.03, 0.12))
    if gray:
        return np.full(3, exposure, np.float32)
    warmth, green = rng.normal(0.005, 0.05), rng.normal(0, 0.015)
    return np.float32(exposure) * np.array([1 + warmth, 1 + green, 1 - warmth], np.float32)


def tone_curve(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Mild random gamma, contrast about mid-gray and soft highlights; (H, W, 3) in [0, ...] to [0, 1]."""
    gamma = math.exp(rng.normal(0, 0.08))
    contrast = math.exp(rng.normal(0.02, 0.08))
    shoulder = rng.uniform(0.75, 0.95)
    curved = np.power(np.maximum(picture, 0), gamma, dtype=np.float32)
    curved = (curved - 0.45) * contrast + 0.45
    room = 1 - shoulder
    highlights = shoulder + room * (1 - np.exp(-np.maximum(curved - shoulder, 0) / room))
    return np.clip(np.where(curved > shoulder, highlights, curved), 0, 1).astype(np.float32)


def motion_blur(picture: np.ndarray, length: float, angle: float) -> np.ndarray:
    """Blur along a straight line of `length` pixels."""
    size = 2 * int(math.ceil(length / 2)) + 1
    kernel = np.zeros((size, size), np.float32)
    centre = (size - 1) / 2
    step = 0.5 * length * np.array([math.cos(angle), math.sin(angle)])
    ends = np.round((np.array([centre, centre]) + np.stack([-step, step])) * 16).astype(int)
    cv2.line(kernel, tuple(ends[0].tolist()), tuple(ends[1].tolist()), 1.0, 1, cv2.LINE_8, 4)
    return cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


def _blur(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    chance = rng.random()
    if chance < 0.25:
        return cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 1.4))
    if chance < 0.32:
        return motion_blur(picture, rng.uniform(2, 6), rng.uniform(0, math.pi))
    return picture


def _sensor(rng: np.random.Generator, picture: np.ndarray, gray: bool) -> np.ndarray:
    """Shot and read noise, correlated a little by demosaicing, and soft colour."""
    height, width = picture.shape[:2]
    if rng.random() < 0.75:
        strength = rng.gamma(1.5, 0.006)
        sigma = strength * (0.5 + np.sqrt(np.clip(picture, 0, 1)))
        noise = rng.standard_normal((height, width, 1 if gray else 3), dtype=np.float32)
        if rng.random() < 0.6:
            noise = cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.4, 0.9)).reshape(noise.shape) * 1.6
        picture = picture + noise * sigma
    if not gray and rng.random() < 0.5:
        luma = picture @ LUMA
        colour = cv2.GaussianBlur(picture - luma[..., None], (0, 0), rng.uniform(0.5, 1.5))
        picture = luma[..., None] + colour
    return picture


def _jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])


def photograph(rng: np.random.Generator, picture: np.ndarray, gray: bool) -> np.ndarray:
    """The picture (H, W, 3) float in [0, 1] as a camera file would hold it: uint8 (H, W, 3).

    About half of the pictures pass through a lower resolution, as small faces in large photos do when they are aligned.
    """
    height, width = picture.shape[:2]
    picture = _blur(rng, picture)
    small = rng.random() < 0.55
    if small:
        scale = rng.beta(2, 1.5) * 0.65 + 0.3
        size = (max(16, int(width * scale)), max(16, int(height * scale)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    picture = _sensor(rng, picture, gray)
    if rng.random() < 0.25:
        soft = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.8, 1.6))
        picture = picture + (picture - soft) * rng.uniform(0.2, 0.9)
    stored = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    if rng.random() < 0.65:
        stored = _jpeg(stored, int(rng.integers(35, 97)))
    if small:
        method = cv2.INTER_CUBIC if rng.random() < 0.5 else cv2.INTER_LINEAR
        stored = cv2.resize(stored, (width, height), interpolation=method)
        if rng.random() < 0.5:
            stored = _jpeg(stored, int(rng.integers(75, 98)))
    if gray:
        stored = np.repeat(cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    return stored
