"""Image files in and out: any common picture file becomes uint8 RGB, and nothing is ever half written.

Reading is strict (a damaged file is a :class:`UserError`, never a half grey picture) and generous about
formats: EXIF orientation is applied, grey, palette, 16-bit and CMYK pictures are converted, and transparency is
composited on white. The largest picture accepted is Pillow's own guard against decompression bombs, twice
``PIL.Image.MAX_IMAGE_PIXELS`` (179 megapixels unless changed).
"""
from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .errors import UserError
from .logging import warning

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
MIN_SIDE = 16  # pixels; anything smaller is an icon or an accident, not a photo
MASK_THRESHOLD = 128  # grey values from here on are hidden
JPEG_QUALITY = 95


def list_images(folder: str | os.PathLike, recursive: bool = False) -> list[Path]:
    """Picture files of ``folder``, recognised by suffix and sorted by path; hidden files are left out.

    Raises UserError if ``folder`` is not a folder. An empty folder gives an empty list.
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {problem}: give a folder of pictures")
    found = folder.rglob("*") if recursive else folder.iterdir()
    paths = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
             and not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def read_image(path: str | os.PathLike, min_side: int = MIN_SIDE) -> np.ndarray:
    """Read a picture as uint8 RGB of shape (H, W, 3), upright according to its EXIF orientation.

    Transparent parts are composited on white; 16-bit grey values are scaled by 255/65535.
    Raises UserError if the file is missing, empty, damaged, not a picture, too large, or has a side below ``min_side``.
    """
    return _to_rgb(_open(Path(path), min_side), Path(path), background=(255, 255, 255))


def upright_rgb(image: Image.Image, name: str = "the picture") -> np.ndarray:
    """A Pillow image as :func:`read_image` gives it: uint8 RGB (H, W, 3), upright. Raises UserError, saying ``name``."""
    return _to_rgb(_upright(image, Path(name)), Path(name), background=(255, 255, 255))


def read_mask(path: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask picture as bool (H, W), True where pixels are hidden.

    Grey values of 128 and more are hidden; transparent parts are visible. With ``size`` = (height, width) a mask
    of another size is resized to it, nearest neighbour.
    Raises UserError for an unreadable file, and for one whose values are all below 128 but not all 0 (usually
    hidden pixels written as 1): it would hide nothing.
    """
    path = Path(path)
    rgb = _to_rgb(_open(path, min_side=1), path, background=(0, 0, 0))
    grey = np.asarray(Image.fromarray(rgb).convert("L"))
    if 0 < grey.max() < MASK_THRESHOLD:
        raise UserError(f"{path}: the mask's largest value is {grey.max()}, so it hides nothing: "
                        "write hidden pixels as 255 and visible ones as 0")
    if size is not None and grey.shape != tuple(size):
        grey = np.asarray(Image.fromarray(grey).resize((size[1], size[0]), Image.Resampling.NEAREST))
    return grey >= MASK_THRESHOLD


def read_colour_profile(path: str | os.PathLike) -> bytes | None:
    """The ICC profile of the colours that :func:`read_image` gives, None if there is none or if it converts them."""
    with Image.open(path) as image:
        return image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None


def write_image(path: str | os.PathLike, image: np.ndarray, colour_profile: bytes | None = None) -> None:
    """Write uint8 RGB (H, W, 3), uint8 grey (H, W) or a bool mask (H, W; True = 255) as PNG or JPEG, by suffix.

    colour_profile: ICC profile that says what the values mean. The file appears complete or not at all. Folders are made as needed. JPEG is written at quality 95 without
    chroma subsampling. Raises UserError for another suffix or if the file cannot be written.
    """
    path = Path(path)
    image = np.asarray(image)
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.ndim == 3 and image.shape[2] == 3):
        raise ValueError(f"write_image wants uint8 (H, W, 3) or (H, W), not {image.dtype} {image.shape}")
    suffix = path.suffix.lower()
    buffer = io.BytesIO()
    if suffix == ".png":
        Image.fromarray(image).save(buffer, "PNG", compress_level=4, icc_profile=colour_profile)
    elif suffix in (".jpg", ".jpeg"):
        Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, icc_profile=colour_profile)
    else:
        raise UserError(f"cannot write {path}: pictures are written as .png or .jpg")
    write_bytes(path, buffer.getvalue())


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file atomically: a temporary file beside it, then a rename. Raises UserError if that fails."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _open(path: Path, min_side: int) -> Image.Image:
    """A fully decoded, upright Pillow image of at least ``min_side`` pixels a side; UserError otherwise."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a picture file")
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes): replace or delete it")
        # Pillow warns from half its limit on; up to the limit we read without a word.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if min(image.size) < min_side:
                    raise UserError(f"{path} is only {image.width}x{image.height} pixels: "
                                    f"give a picture of at least {min_side}x{min_side}")
                image.load()
                return _upright(image, path)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the name") from error
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS // 1_000_000
        raise UserError(f"{path} is too large (the limit is {limit} megapixels): make it smaller first") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path} is not a picture that can be read: use JPEG or PNG") from error
    except Exception as error:  # decoders raise many kinds on damaged files, from OSError to struct.error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}): replace or delete it") from error


def _upright(image: Image.Image, path: Path) -> Image.Image:
    """Apply the EXIF orientation; damaged EXIF data cost only the orientation, not the picture."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # EXIF parsing raises many kinds on damaged data
        warning(f"{path}: unreadable EXIF data, orientation not applied ({type(error).__name__})")
        return image.copy()


def _to_rgb(image: Image.Image, path: Path, background: tuple[int, int, int]) -> np.ndarray:
    """uint8 (H, W, 3) from an image of any mode, transparency composited on ``background``."""
    if image.mode == "F":
        raise UserError(f"{path} holds floating-point pixels: save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey; older Pillow versions call it "I"
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, background + (255,))
        image = Image.alpha_composite(backdrop, image)
    return np.array(image.convert("RGB"))
