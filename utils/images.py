"""Image files in and out: any common picture file becomes uint8 RGB, and nothing is ever half written.

Reading is strict (a damaged file is a :class:`UserError`, never a half grey picture) and generous about
formats: EXIF orientation is applied, grey, palette, 16-bit and CMYK pictures are converted, and transparency is
composited on white. Limits keep a small file from filling the memory or taking hours: at most `MAX_PIXELS`, read from
the header before anything is decoded, and at most `MAX_SCANS` scans of a JPEG; a picture takes at most 8 bytes a pixel
while it is read. Only the decoders of `FORMATS` are tried (others would start programs, as that of EPS does).
"""
from __future__ import annotations

import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from .errors import UserError
from .files import write_bytes
from .logging import warning

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".gif", ".ppm", ".pgm")
MIN_SIDE = 16  # pixels; anything smaller is an icon or an accident, not a photo
MASK_THRESHOLD = 128  # grey values from here on are hidden
ASPECT_TOLERANCE = 0.02  # relative difference of the sides' ratio up to which a mask is taken to show a whole picture
JPEG_QUALITY = 95
MAX_PIXELS = 178_956_970  # 179 megapixels
MAX_BYTES = 2 ** 31  # of a file
MAX_SCANS = 100  # progressive files have about ten
FORMATS = {"JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "AVIF"}
STRIP_PIXELS = 2 ** 22  # converted at a time
# EXIF orientation -> steps along rows and columns, after rows and columns have changed places from 5 on.
UPRIGHT = 1
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # of a JPEG segment; the others occur within a scan
ORIENTATIONS = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}


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
    return _read(Path(path), min_side, "RGB", background=(255, 255, 255))


def _read(path: Path, min_side: int, mode: str, background: tuple[int, int, int]) -> np.ndarray:
    image, orientation = _open(path, min_side)
    pixels = _pixels(image, path, mode, background)
    del image  # a large picture's memory is needed for turning it
    return _upright(pixels, orientation)


def upright_rgb(image: Image.Image, name: str = "the picture") -> np.ndarray:
    """A Pillow image as :func:`read_image` gives it: uint8 RGB (H, W, 3), upright. Raises UserError, saying
    ``name``."""
    path = Path(name)
    _check_size(image, path, MIN_SIDE)
    return _upright(_pixels(image, path, "RGB", (255, 255, 255)), _orientation(image, path))


def read_mask(path: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask picture as bool (H, W), True where pixels are hidden.

    Grey values of 128 and more are hidden; transparent parts are visible. With ``size`` = (height, width), that of the
    masked picture, a mask of another size but the same shape is resized to it, nearest neighbour.
    Raises UserError for an unreadable file, for a mask of another shape, and for one whose values are all below 128 but
    not all 0 (usually hidden pixels written as 1): it would hide nothing.
    """
    path = Path(path)
    grey = _read(path, 1, "L", background=(0, 0, 0))
    if 0 < grey.max() < MASK_THRESHOLD:
        raise UserError(f"{path}: the mask's largest value is {grey.max()}, so it hides nothing: "
                        "write hidden pixels as 255 and visible ones as 0")
    if size is not None and grey.shape != tuple(size):
        _check_shape(path, grey.shape, size)
        grey = np.asarray(Image.fromarray(grey).resize((size[1], size[0]), Image.Resampling.NEAREST))
    return grey >= MASK_THRESHOLD


def _check_shape(path: Path, found: tuple[int, int], size: tuple[int, int]) -> None:
    """UserError unless a mask and its picture, both (height, width), have sides of the same ratio."""
    ratio, expected = found[1] / found[0], size[1] / size[0]
    if abs(ratio / expected - 1) > ASPECT_TOLERANCE:
        turned = abs(1 / ratio / expected - 1) <= ASPECT_TOLERANCE
        raise UserError(f"{path}: the mask is {found[1]}x{found[0]} pixels, its picture {size[1]}x{size[0]}: a mask "
                        "must show the whole picture" + (", the way up it is seen" if turned else ""))


def read_colour_profile(path: str | os.PathLike) -> bytes | None:
    """The ICC profile of the colours that :func:`read_image` gives, None if there is none or if it converts them."""
    with Image.open(path) as image:
        return image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None


def write_image(path: str | os.PathLike, image: np.ndarray, colour_profile: bytes | None = None) -> None:
    """Write uint8 RGB (H, W, 3), uint8 grey (H, W) or a bool mask (H, W; True = 255) as PNG or JPEG, by suffix.

    colour_profile: ICC profile that says what the values mean. The file appears complete or not at all. Folders are
    made as needed. JPEG is written at quality 95 without chroma subsampling. Raises UserError for another suffix or if
    the file cannot be written.
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


def _open(path: Path, min_side: int) -> tuple[Image.Image, int]:
    """A fully decoded Pillow image of at least ``min_side`` pixels a side, its orientation; UserError otherwise."""
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder: give a picture file")
    try:
        if os.path.exists(path) and not path.is_file():
            raise UserError(f"{path} is no ordinary file: give a picture file")
        size = path.stat().st_size
        if size == 0:
            raise UserError(f"{path} is empty (0 bytes): replace or delete it")
        if size > MAX_BYTES:
            raise UserError(f"{path} is too large (the limit is {MAX_BYTES // 2 ** 20} MB): make it smaller first")
        # Pillow has its own limit, and warns from half of it on; ours is checked before anything is decoded.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.init()
            # A stream and no name, for Pillow maps named files into memory, and dies if they shrink meanwhile.
            with open(path, "rb") as stream, Image.open(stream, formats=[*FORMATS & Image.OPEN.keys()]) as image:
                _check_size(image, path, min_side)
                if image.format in ("JPEG", "MPO"):
                    stream.seek(0)
                    _check_scans(path, stream.read())
                image.load()
                return image, _orientation(image, path)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check the name") from error
    except Image.DecompressionBombError as error:
        raise UserError(_too_large(path)) from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path} is not a picture that can be read: use JPEG or PNG") from error
    except Exception as error:  # decoders raise many kinds on damaged files, from OSError to struct.error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}): replace or delete it") from error


def _check_size(image: Image.Image, path: Path, min_side: int) -> None:
    """UserError for a picture, not decoded yet, that is too small or too large."""
    if min(image.size) < min_side:
        raise UserError(f"{path} is only {image.width}x{image.height} pixels: "
                        f"give a picture of at least {min_side}x{min_side}")
    if image.width * image.height > MAX_PIXELS:
        raise UserError(_too_large(path))


def _too_large(path: Path) -> str:
    return f"{path} is too large (the limit is {MAX_PIXELS // 1_000_000} megapixels): make it smaller first"


def _check_scans(path: Path, data: bytes) -> None:
    """UserError for a JPEG file that would draw the picture so often that it takes hours."""
    position, scans = 2, 0
    while (marker := _MARKER.search(data, position)) and marker[0] != b"\xff\xd9":  # the end; what follows is not drawn
        position = marker.end() + max(int.from_bytes(data[marker.end():marker.end() + 2], "big"), 2)
        scans += marker[0] == b"\xff\xda"
        if scans > MAX_SCANS:
            raise UserError(f"{path} draws the picture more than {MAX_SCANS} times over, as no camera does: save it "
                            "anew")


def _orientation(image: Image.Image, path: Path) -> int:
    """The EXIF orientation; damaged EXIF data cost only the orientation, not the picture."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception as error:  # EXIF parsing raises many kinds on damaged data
        warning(f"{path}: unreadable EXIF data, orientation not applied ({type(error).__name__})")
        return UPRIGHT
    return orientation if orientation in ORIENTATIONS else UPRIGHT


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn pixels (H, W, ...) as the EXIF orientation says."""
    if orientation == UPRIGHT:
        return pixels
    if orientation >= 5:  # rows and columns change places
        pixels = np.swapaxes(pixels, 0, 1)
    rows, columns = ORIENTATIONS[orientation]
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _pixels(image: Image.Image, path: Path, mode: str, background: tuple[int, int, int]) -> np.ndarray:
    """uint8 (H, W, 3) for mode "RGB", (H, W) for "L", from an image of any mode, transparency on ``background``.

    Strip by strip: besides the decoded picture and the result hardly any memory is needed.
    """
    if image.mode == "F":
        raise UserError(f"{path} holds floating-point pixels: save it with 8 or 16 bits")
    pixels = np.empty((image.height, image.width) + (3,) * (mode == "RGB"), np.uint8)
    rows = max(STRIP_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top:top + rows] = np.asarray(_opaque(strip, background).convert(mode))
    return pixels


def _opaque(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """An 8-bit RGB (or grey) image without transparency."""
    if image.mode.startswith("I"):  # 16-bit grey; older Pillow versions call it "I"
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, background + (255,))
        image = Image.alpha_composite(backdrop, image)
    return image.convert("RGB")
