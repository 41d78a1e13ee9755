"""Completing the faces in one's own photos: find, align, choose the hole, complete, put back at full size.

Pictures written per photo (all but `complete_output` are of the aligned 256x256 crop or of the 192x256 UV map):

    original.png         the aligned face          texture_in.png       what is visible of it, on the UV map
    mask.png             its hole, 255 = hidden    texture_out.png      the completed UV map
    input.png            the face, hole in grey    complete_output.png  the photo with the completed face in its place
    output.png           the completed face        overview.png         all of them side by side
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from datasets.alignment import CROP_SIZE, WINDOW_OFFSET, WINDOW_SIZE, Alignment
from datasets.masks import MaskFolder, fixed_hole
from models.blending import from_uint8, to_uint8
from models.completion import Completion, FaceCompletion
from models.lighting import to_texture
from models.occlusion import FACE
from utils.errors import UserError
from utils.images import read_image, read_mask, write_bytes, write_image

HOLE_GREY = 128  # how a hole is shown
FACE_THRESHOLD = 0.5  # probability from which a pixel is face
ASPECT_TOLERANCE = 0.02  # relative difference of the sides' ratio up to which a mask is taken to show the whole photo
ROUNDING = 1.0  # crop pixels by which a mask may pass the crop before it is worth a remark
GAP = 4  # pixels between the pictures of an overview


class FindsFaces(Protocol):
    """What is needed of `datasets.detection.Detector`."""

    def detect(self, image: np.ndarray, name: str = "") -> list[Any]: ...


@dataclass(frozen=True)
class CompletedPhoto:
    """A photo, its face and its completion; uint8 RGB pictures, hole bool (256, 256).

    remarks: sentences for the user about what is not as one might expect.
    """

    photo: np.ndarray
    original: np.ndarray
    hole: np.ndarray
    output: np.ndarray
    complete_output: np.ndarray
    texture_in: np.ndarray
    texture_out: np.ndarray
    landmarks: np.ndarray
    remarks: tuple[str, ...]

    @property
    def input(self) -> np.ndarray:
        """The face with its hole in grey, uint8 (256, 256, 3)."""
        return np.where(self.hole[:, :, None], np.uint8(HOLE_GREY), self.original)


class PhotoCompleter:
    """Completes the largest face of a photo.

    completion: networks and geometry, in evaluation mode on `device`. resolution: 256, the whole aligned crop is
    completed, or 224, its centre window. source: where the hole comes from: "occlusion", the net's prediction; "file",
    handed over with each photo; "random", a rectangle on the face fixed by (seed, name).
    """

    def __init__(self, completion: FaceCompletion, detector: FindsFaces, device: torch.device,
                 source: str = "occlusion", resolution: int = CROP_SIZE, seed: int = 0):
        if source not in ("occlusion", "file", "random") or resolution not in (CROP_SIZE, WINDOW_SIZE):
            raise ValueError(f"unknown source {source!r} or resolution {resolution}")
        self.completion, self.detector, self.device = completion, detector, device
        self.source, self.seed = source, seed
        offset = WINDOW_OFFSET if resolution == WINDOW_SIZE else 0
        self.window = slice(offset, offset + resolution)

    @torch.no_grad()
    def complete(self, photo: np.ndarray, name: str, mask: np.ndarray | None = None) -> CompletedPhoto:
        """Complete the largest face of photo, uint8 (H, W, 3) RGB; mask bool (H, W), True = hidden, for source "file".

        name: for messages, and for the random hole. Pixels outside the hole come back bit-identical, in the crop as in
        the photo. Raises UserError if there is no face, or if the mask hides no part of it.
        """
        remarks = []
        faces = self.detector.detect(photo, name)
        if len(faces) > 1:
            remarks.append(f"{len(faces)} faces found, the largest one is completed")
        alignment = Alignment.from_landmarks(faces[0].landmarks, *photo.shape[:2])
        crop = alignment.crop(photo)
        image = from_uint8(torch.from_numpy(crop).permute(2, 0, 1)[None].to(self.device))
        hole = np.zeros(crop.shape[:2], bool)
        hole[self.window, self.window] = self._hole(image, alignment, name, mask)[self.window, self.window]
        if not hole.any():
            remarks.append(self._nothing_hidden(name))
        elif mask is not None and _reaches_beyond(mask, alignment, self.window):
            remarks.append("the mask reaches beyond the face's crop; only the part inside is completed")
        result = self.completion(image[..., self.window, self.window],
                                 torch.from_numpy(hole).to(self.device)[None, None, self.window, self.window])
        output = crop.copy()
        output[self.window, self.window] = _picture(result.output)
        output = np.where(hole[:, :, None], output, crop)
        texture_in, texture_out = _textures(result)
        landmarks = result.landmarks[0].cpu().numpy() + self.window.start
        return CompletedPhoto(photo, crop, hole, output, alignment.paste_back(photo, output, hole), texture_in,
                              texture_out, landmarks, tuple(remarks))

    def _hole(self, image: torch.Tensor, alignment: Alignment, name: str, mask: np.ndarray | None) -> np.ndarray:
        """Bool (256, 256), True = hidden."""
        if self.source == "file":
            return alignment.crop_mask(mask)
        if self.source == "occlusion":
            return self.completion.predict_hole(image)[0, 0].cpu().numpy()
        face = (self.completion.occlusion(image)[0, FACE] >= FACE_THRESHOLD).cpu().numpy()
        return fixed_hole(self.seed, name, ndimage.binary_fill_holes(face))  # an open mouth inside it is hidden as well

    def _nothing_hidden(self, name: str) -> str:
        if self.source == "file":
            raise UserError(f"{name}: the mask hides no part of the face: white must mark what is to be replaced, in "
                            "the pixels of this photo")
        if self.source == "occlusion":
            return "nothing in front of the face was found, so it is left as it is; mark it with --mask if there is"
        return "no face region was found for the random hole, so the face is left as it is"


def read_photo_mask(mask: str | Path, photo_path: Path, size: tuple[int, int]) -> np.ndarray:
    """The hole of a photo of size (height, width): bool, from a picture or from a folder with one named like the photo.

    A mask of another size but the same shape is scaled. Raises UserError if it is missing, unreadable or of another
    shape.
    """
    mask = Path(mask)
    if mask.is_dir():
        hole = MaskFolder(mask).hole(photo_path.stem)
        mask = mask / photo_path.stem
    else:
        hole = read_mask(mask)
    height, width = hole.shape
    if abs(width * size[0] / (height * size[1]) - 1) > ASPECT_TOLERANCE:
        raise UserError(f"{mask}: the mask is {width}x{height} pixels, {photo_path} is {size[1]}x{size[0]}: a "
                        "mask must show the whole photo")
    if hole.shape == tuple(size):
        return hole
    return np.asarray(Image.fromarray(hole).resize((size[1], size[0]), Image.Resampling.NEAREST))


def complete_file(completer: PhotoCompleter, path: Path, folder: Path,
                  mask: str | Path | None = None) -> CompletedPhoto:
    """Complete the photo in a file and write its pictures into a folder. Raises UserError as the steps do."""
    photo = read_image(path)
    hole = None if mask is None else read_photo_mask(mask, path, photo.shape[:2])
    result = completer.complete(photo, str(path), hole)
    write_pictures(result, folder)
    return result


def write_pictures(result: CompletedPhoto, folder: Path) -> None:
    """Write the pictures listed at the top into a folder; earlier ones of the same names are replaced."""
    for name in ("original", "input", "output", "complete_output", "texture_in", "texture_out"):
        write_image(folder / f"{name}.png", getattr(result, name))
    write_image(folder / "mask.png", result.hole)
    write_image(folder / "overview.png", overview(result))


def write_landmarks(result: CompletedPhoto, path: Path) -> None:
    """Write the 68 fitted landmarks, 'x y' in crop pixels, a line each."""
    write_bytes(path, "".join(f"{x:.3f} {y:.3f}\n" for x, y in result.landmarks).encode())


def overview(result: CompletedPhoto) -> np.ndarray:
    """Photo, face, face with hole, completed face, UV maps and completed photo side by side: uint8 (256, W, 3)."""
    pictures = [result.photo, result.original, result.input, result.output, result.texture_in, result.texture_out,
                result.complete_output]
    gap = np.full((CROP_SIZE, GAP, 3), 255, np.uint8)
    row = [part for picture in pictures for part in (_to_height(picture, CROP_SIZE), gap)]
    return np.concatenate(row[:-1], axis=1)


def _to_height(picture: np.ndarray, height: int) -> np.ndarray:
    if picture.shape[0] == height:
        return picture
    width = max(round(picture.shape[1] * height / picture.shape[0]), 1)
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def _textures(result: Completion) -> tuple[np.ndarray, np.ndarray]:
    """The visible and the completed texture on the UV map, uint8 (192, 256, 3); what is not visible is grey."""
    texture = 2 * to_texture(result.albedo_in, result.uv_shade) - 1
    visible = result.uv_visible[0, 0].cpu().numpy()[:, :, None]
    return np.where(visible, _picture(texture), np.uint8(HOLE_GREY)), _picture(result.texture_out)


def _picture(image: torch.Tensor) -> np.ndarray:
    """The first image of (B, 3, H, W) in [-1, 1] as uint8 (H, W, 3)."""
    return to_uint8(image[0].clamp(-1, 1)).permute(1, 2, 0).cpu().numpy()


def _reaches_beyond(mask: np.ndarray, alignment: Alignment, window: slice) -> bool:
    """Does the photo's mask, bool (H, W), hide pixels outside the completed window of the crop?"""
    rows, columns = np.nonzero(mask)
    points = alignment.to_crop(np.stack([columns, rows], axis=1))
    return bool((points < window.start - 0.5 - ROUNDING).any() or (points > window.stop - 0.5 + ROUNDING).any())
