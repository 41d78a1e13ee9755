"""The aligned crop: photo and five landmarks -> oriented 256x256 face, and the way back into the photo.

This is the only place that knows the crop. The recipe is that of CelebA-HQ (Karras et al., ICLR 2018, appendix C)
as 3DFaceFill uses it. The networks see the centre window of the crop, rows and columns 16:240.

Coordinates handed in and out are pixel coordinates (x = column, y = row) in which a pixel's centre is an integer.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image

from utils.errors import UserError

CROP_SIZE = 256
WINDOW_SIZE = 224
WINDOW_OFFSET = 16
# Half the crop's side is the larger of these multiples of the eye distance and of the distance from the eyes to the
# mouth; its centre lies a tenth of the way from the eyes to the mouth.
EYE_FACTOR, MOUTH_FACTOR, CENTRE_SHIFT = 2.0, 1.8, 0.1
CROP_FOLDER = "celebahq_crop"  # of CelebA's crops, inside CelebA's folder

_SUPERSAMPLING = 4  # the quad is first sampled at this multiple of the crop's size, then reduced
_SUPERSAMPLED_SIZE = _SUPERSAMPLING * CROP_SIZE
_LOBES = 3  # of the Lanczos filter that reduces it
_STRIP, _BLOCK = 32, 4  # crop pixels that are made at a time, so that what they need stays in the cache
# Added before samples are cut to whole grey levels, that none is cut that is whole but for rounding, and before sums
# are rounded, that halves, which a symmetric filter often gives on smooth skin, are rounded up as Pillow does.
_UPWARDS = np.float32(1 / 4096)
_FARTHEST = 1e6  # photo pixels; no image is that wide, and arithmetic with far larger numbers would overflow
_MIN_FACE = 4.0  # photo pixels; a smaller quad is the product of broken landmarks


def window(crops):
    """The centre window (..., 224, 224) of aligned crops (..., 256, 256), tensors or arrays."""
    inside = slice(WINDOW_OFFSET, WINDOW_OFFSET + WINDOW_SIZE)
    return crops[..., inside, inside]


def align(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Crop the face with the five ``landmarks`` out of ``image``.

    image: uint8 (H, W, 3) RGB; landmarks: (5, 2) x, y of left eye, right eye, nose, left and right mouth corner
    (left and right as seen in the picture). Returns uint8 (256, 256, 3).
    Raises UserError if the landmarks are degenerate or far outside the image.
    """
    return Alignment.from_landmarks(landmarks, image.shape[0], image.shape[1]).crop(image)


@dataclass(frozen=True)
class Alignment:
    """The steps from a photo of ``height`` x ``width`` to its aligned crop, and their exact inverse.

    The photo is resized to ``resized`` (width, height), cropped to ``box`` (left, top, right, bottom), reflect-padded
    by ``padding`` (left, top, right, bottom), and the ``quad`` (4, 2) of the result (upper left, lower left, lower
    right, upper right corner; pixel edges at integers) becomes the crop. ``matrix`` (2, 3) maps crop pixel
    coordinates (x, y, 1) to photo pixel coordinates.
    """

    height: int
    width: int
    resized: tuple[int, int]
    box: tuple[int, int, int, int]
    padding: tuple[int, int, int, int]
    quad: np.ndarray
    matrix: np.ndarray

    @classmethod
    def from_landmarks(cls, landmarks: np.ndarray, height: int, width: int) -> Alignment:
        """Plan the crop of a (height, width) photo; landmarks (5, 2) and errors as in :func:`align`."""
        quad = _oriented_square(landmarks)
        zoom = CROP_SIZE / np.hypot(*(quad[3] - quad[0]))
        shrink = int(np.floor(0.5 / zoom))
        resized = (width, height)
        if shrink > 1:
            resized = tuple(max(int(np.rint(side / shrink)), 1) for side in resized)
            quad = quad / shrink
            zoom = zoom * shrink
        border = max(int(np.rint(CROP_SIZE * 0.1 / zoom)), 3)

        low = np.floor(quad.min(axis=0)).astype(int)
        high = np.ceil(quad.max(axis=0)).astype(int)
        if low[0] >= resized[0] or low[1] >= resized[1] or high[0] <= 0 or high[1] <= 0:
            raise UserError("the face landmarks lie outside the image: check that they belong to this picture")
        box = (max(low[0] - border, 0), max(low[1] - border, 0),
               min(high[0] + border, resized[0]), min(high[1] + border, resized[1]))
        quad = quad - np.array(box[:2])

        low = np.floor(quad.min(axis=0)).astype(int)
        high = np.ceil(quad.max(axis=0)).astype(int)
        needed = np.maximum([border - low[0], border - low[1],
                             high[0] + border - (box[2] - box[0]), high[1] + border - (box[3] - box[1])], 0)
        padding = np.zeros(4, dtype=int)
        if needed.max() > border - 4:
            padding = np.maximum(needed, int(np.rint(CROP_SIZE * 0.3 / zoom)))
            quad = quad + padding[:2]
        quad = quad + 0.5

        # Pixel edges of the crop -> pixel edges of the photo, then both shifted to pixel centres.
        scale = np.array([width, height]) / resized
        offset = np.array(box[:2]) - padding[:2]
        linear = np.stack([(quad[3] - quad[0]) * scale, (quad[1] - quad[0]) * scale], axis=1) / CROP_SIZE
        origin = (quad[0] + offset) * scale
        matrix = np.concatenate([linear, (origin + linear.sum(axis=1) * 0.5 - 0.5)[:, None]], axis=1)
        return cls(height, width, resized, tuple(int(v) for v in box), tuple(int(v) for v in padding), quad, matrix)

    def crop(self, image: np.ndarray) -> np.ndarray:
        """The aligned crop, uint8 (256, 256, 3) or (256, 256), of an (H, W, 3) or (H, W) uint8 photo."""
        if image.shape[:2] != (self.height, self.width):
            raise ValueError(f"the alignment is for a {self.height}x{self.width} image, not {image.shape[:2]}")
        picture = Image.fromarray(image)
        if self.resized != picture.size:
            picture = picture.resize(self.resized, Image.Resampling.LANCZOS)
        if self.box != (0, 0) + picture.size:
            picture = picture.crop(self.box)
        pixels = np.asarray(picture)
        if any(self.padding):
            left, top, right, bottom = self.padding
            widths = ((top, bottom), (left, right), (0, 0))[:image.ndim]
            pixels = np.pad(pixels, widths, mode="reflect")
        return _sample(pixels, self.quad)

    def crop_mask(self, mask: np.ndarray) -> np.ndarray:
        """Bool (256, 256) hole of the crop from a bool (H, W) hole of the photo.

        A crop pixel is hidden as soon as hidden photo pixels change it by more than a grey level.
        """
        # Visible pixels are mid-grey, so that the negative lobes of the Lanczos filter show as well.
        return self.crop(np.where(mask, np.uint8(255), np.uint8(127))) != 127

    def to_photo(self, points: np.ndarray) -> np.ndarray:
        """Crop pixel coordinates (..., 2) -> photo pixel coordinates (..., 2)."""
        return np.asarray(points, dtype=np.float64) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def to_crop(self, points: np.ndarray) -> np.ndarray:
        """Photo pixel coordinates (..., 2) -> crop pixel coordinates (..., 2)."""
        inverse = np.linalg.inv(self.matrix[:, :2])
        return (np.asarray(points, dtype=np.float64) - self.matrix[:, 2]) @ inverse.T

    @property
    def photo_scale(self) -> float:
        """Photo pixels per crop pixel."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))

    def photo_region(self, mask: np.ndarray, margin: float = 0.0) -> tuple[slice, slice] | None:
        """Rows and columns of the photo that can show the pixels set in ``mask``, bool (256, 256) of the crop.

        margin: crop pixels added around them. None if the photo shows none of them.
        """
        if not mask.any():
            return None
        y, x = np.nonzero(mask)
        low, high = np.array([x.min(), y.min()]) - 1 - margin, np.array([x.max(), y.max()]) + 1 + margin
        corners = self.to_photo(np.array([low, (low[0], high[1]), (high[0], low[1]), high]))
        low = np.maximum(np.floor(corners.min(axis=0)).astype(int) - 1, 0)
        high = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 2, (self.width, self.height))
        if (low >= high).any():
            return None
        return slice(low[1], high[1]), slice(low[0], high[0])

    def mask_in_photo(self, mask: np.ndarray, region: tuple[slice, slice]) -> np.ndarray:
        """``mask``, bool (256, 256) of the crop, in the photo's rows and columns ``region``: bool (rows, columns).

        A photo pixel is set if the crop pixel nearest to its centre is; all is False outside the crop.
        """
        return _nearest(mask, *self._into(region)) > 0

    def resample(self, crop: np.ndarray, region: tuple[slice, slice]) -> np.ndarray:
        """The crop (256, 256, 3) seen in the photo's rows and columns ``region``: float32 (rows, columns, 3).

        Low-passed first where it is reduced; beyond the crop its border is repeated.
        """
        crop = crop.astype(np.float32)
        if self.photo_scale < 1:
            sigma = 0.5 * np.sqrt(1 / self.photo_scale ** 2 - 1)
            crop = cv2.GaussianBlur(crop, (0, 0), max(sigma, 1e-3), borderType=cv2.BORDER_REFLECT_101)
        matrix, size = self._into(region)
        return cv2.warpAffine(crop, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)

    def _into(self, region: tuple[slice, slice]) -> tuple[np.ndarray, tuple[int, int]]:
        """Matrix (2, 3) from crop pixels to those of the photo's rows and columns, and the region's (width, height)."""
        rows, columns = region
        matrix = self.matrix.copy()
        matrix[:, 2] -= (columns.start, rows.start)
        return matrix, (columns.stop - columns.start, rows.stop - rows.start)


def _sample(pixels: np.ndarray, quad: np.ndarray) -> np.ndarray:
    """The square ``quad`` (see `Alignment`) of uint8 (H, W, 3) or (H, W) pixels as a crop: uint8 of 256 x 256.

    What Pillow's bilinear ``transform`` to 1024x1024 and Lanczos ``resize`` to 256x256 give, but for single grey levels
    from rounding, in about half of the time. As there, samples are cut to whole grey levels, and what the first of the
    two reductions gives is rounded.
    """
    source = pixels.astype(np.float32) + _UPWARDS
    if pixels.ndim == 3:  # a fourth channel costs less than three: OpenCV's code for four is vectorised
        source = np.pad(source, ((0, 0), (0, 0), (0, 1)))
    # Sampled with rows and columns exchanged, so that reducing along the first axis reduces each row of the crop.
    matrix = np.stack([quad[1] - quad[0], quad[3] - quad[0]], axis=1) / _SUPERSAMPLED_SIZE
    first = quad[0] + matrix.sum(axis=1) * 0.5 - 0.5
    crop = np.empty((CROP_SIZE, CROP_SIZE) + source.shape[2:], np.float32)
    for start in range(0, CROP_SIZE, _STRIP):
        low, high = _reach(start, start + _STRIP)
        samples = cv2.warpAffine(source, np.column_stack([matrix, first + low * matrix[:, 1]]),
                                 (_SUPERSAMPLED_SIZE, high - low), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        np.floor(samples, out=samples)
        columns = cv2.transpose(_to_levels(_reduced(samples, low, start, start + _STRIP)))
        crop[:, start:start + _STRIP] = _reduced(columns, 0, 0, CROP_SIZE)
    crop = _to_levels(crop).astype(np.uint8)
    return np.ascontiguousarray(crop[..., :3]) if pixels.ndim == 3 else crop


def _reduced(samples: np.ndarray, low: int, start: int, stop: int) -> np.ndarray:
    """Crop pixels from ``start`` up to ``stop`` along the first axis, from samples (N, ...), those from ``low`` on."""
    out = np.empty((stop - start,) + samples.shape[1:], np.float32)
    samples, rows = samples.reshape(len(samples), -1), out.reshape(len(out), -1)
    for place in range(start, stop, _BLOCK):
        first, last = _reach(place, place + _BLOCK)
        np.matmul(_lanczos()[place:place + _BLOCK, first:last], samples[first - low:last - low],
                  out=rows[place - start:place - start + _BLOCK])
    return out


def _reach(start: int, stop: int) -> tuple[int, int]:
    """The samples, from and up to, that crop pixels from ``start`` up to ``stop`` are made of."""
    margin = _SUPERSAMPLING * _LOBES
    return max(_SUPERSAMPLING * start - margin, 0), min(_SUPERSAMPLING * stop + margin, _SUPERSAMPLED_SIZE)


@lru_cache(maxsize=1)
def _lanczos() -> np.ndarray:
    """Each crop pixel's weights of the samples along one axis: float32 (256, 1024)."""
    samples = (np.arange(_SUPERSAMPLED_SIZE) + 0.5) / _SUPERSAMPLING
    distance = samples - (np.arange(CROP_SIZE)[:, None] + 0.5)
    weights = np.where(np.abs(distance) < _LOBES, np.sinc(distance) * np.sinc(distance / _LOBES), 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _to_levels(values: np.ndarray) -> np.ndarray:
    """Rounds to whole numbers in 0..255, in place."""
    values += _UPWARDS
    np.rint(values, out=values)
    np.maximum(values, 0, out=values)
    return np.minimum(values, 255, out=values)


def _oriented_square(landmarks: np.ndarray) -> np.ndarray:
    """Corners (4, 2) of the face's square in the photo: upper left, lower left, lower right, upper right."""
    points = np.asarray(landmarks, dtype=np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all():
        raise UserError(f"five face landmarks (x, y) are needed, not {points.shape} values or non-finite ones")
    if np.abs(points).max() > _FARTHEST:
        raise UserError("the face landmarks lie outside the image: check that they belong to this picture")
    eyes = (points[0] + points[1]) / 2 + 0.5
    mouth = (points[3] + points[4]) / 2 + 0.5
    eye_to_eye = points[1] - points[0]
    eyes_to_mouth = mouth - eyes
    x = eye_to_eye - _quarter_turn(eyes_to_mouth)
    half = max(EYE_FACTOR * np.hypot(*eye_to_eye), MOUTH_FACTOR * np.hypot(*eyes_to_mouth))
    if np.hypot(*x) < 1e-6 or 2 * half < _MIN_FACE:
        raise UserError("the face landmarks coincide: check that they are this picture's")
    x = x / np.hypot(*x) * half
    y = _quarter_turn(x)
    centre = eyes + CENTRE_SHIFT * eyes_to_mouth
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def _quarter_turn(vector: np.ndarray) -> np.ndarray:
    """(x, y) turned by 90 degrees: (-y, x)."""
    return np.array([-vector[1], vector[0]])


def _nearest(mask: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (height, width) of ``size`` = (width, height): is the mask set at the crop pixel nearest to each pixel?"""
    inverse = cv2.invertAffineTransform(matrix)
    x, y = np.arange(size[0])[None, :], np.arange(size[1])[:, None]
    column = np.rint(inverse[0, 0] * x + (inverse[0, 1] * y + inverse[0, 2])).astype(np.int32) + 1
    row = np.rint(inverse[1, 0] * x + (inverse[1, 1] * y + inverse[1, 2])).astype(np.int32) + 1
    framed = np.pad(mask.astype(np.uint8), 1)  # a frame of visible pixels stands for everything outside the crop
    return framed[np.clip(row, 0, CROP_SIZE + 1), np.clip(column, 0, CROP_SIZE + 1)]
