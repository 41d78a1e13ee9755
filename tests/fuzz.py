"""Feeds damaged and hostile input to everything that reads files, and hostile meshes to the rasterizer:

    python tests/fuzz.py --cases 20000                  the long run, all targets
    python tests/fuzz.py --only meshes --cases 500      one target
    python tests/fuzz.py --only images --first 1234 --cases 1   a case again

A case is determined by its target and number. What may happen: the input is read and what comes out is sound, or there
is one `UserError` of one line (of the rasterizer, ValueError). Anything else is a finding: another exception, an
unsound result, a crash, more than `SECONDS` of computing or `MEMORY` more of memory. The cases run in a child process,
so a crash is a finding too, and the run goes on after it.
"""
from __future__ import annotations

import argparse
import functools
import io
import json
import math
import mmap
import os
import pickle
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path
from typing import Callable

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import process_celeba  # noqa: E402
import zbuffer  # noqa: E402
from datasets import definition as definitions  # noqa: E402
from datasets.alignment import CROP_SIZE, Alignment  # noqa: E402
from datasets.masks import MaskFolder  # noqa: E402
from engine import pretrained  # noqa: E402
from engine.landmark_evaluation import read_annotations  # noqa: E402
from engine.portraits import read_points  # noqa: E402
from engine_samples import small_definition  # noqa: E402
from models.morphable import MorphableModel  # noqa: E402
from utils import checkpoints, config, images  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.logging import progress  # noqa: E402
from zbuffer import pyramid, surface  # noqa: E402

SECONDS = 20.0  # of processor time that a case may take
PATIENCE = 10  # times as long by the clock: for cases that wait for something, on a machine that is busy
MEMORY = 3 * 2 ** 30  # bytes that the child may grow to beyond its start
MOST_PIXELS = 4_000_000  # the limit of pictures while fuzzing: larger ones only take longer
BURST = 250  # cases of one child
ROOT = Path(__file__).resolve().parent.parent
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]

SHARED = struct.Struct("qqdd")  # number of the present case, cases read, its start by the clock and in processor time
Rng = np.random.Generator


# ---- damage ----------------------------------------------------------------------------------------------------------

def mutate(rng: Rng, data: bytes, others: list[bytes] = []) -> bytes:
    """One to four kinds of damage: flipped bits (often in the header), extreme fields, cuts, copies, foreign parts."""
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not damaged:
            break
        place = int(rng.integers(len(damaged)))
        header = int(rng.integers(min(len(damaged), 64)))
        length = int(rng.integers(1, 64))
        kind = rng.integers(9)
        if kind <= 1:
            damaged[header if kind else place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            for spot in rng.integers(len(damaged), size=16):
                damaged[spot] = int(rng.integers(256))
        elif kind == 3:
            size = int(rng.choice([1, 2, 4]))
            value = int(rng.choice(EXTREMES)) & (256 ** size - 1)
            spot = header if rng.random() < 0.7 else place
            damaged[spot:spot + size] = value.to_bytes(size, "big" if rng.random() < 0.5 else "little")
        elif kind == 4:
            del damaged[place:]
        elif kind == 5:
            del damaged[place:place + length]
        elif kind == 6:
            damaged[place:place] = damaged[place:place + length] * int(rng.integers(1, 20))
        elif kind == 7:
            damaged[place:place] = rng.bytes(length)
        elif others:
            other = others[rng.integers(len(others))]
            start = int(rng.integers(len(other)))
            damaged[place:place + length] = other[start:start + length]
    return bytes(damaged)


def repair_png(data: bytes) -> bytes:
    """Right checksums for a damaged PNG file's chunks, so that the damage reaches the decoder."""
    repaired, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place:place + 4], "big")
        body = data[place + 4:place + 8 + length]
        repaired += data[place:place + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        place += 12 + length
    return bytes(repaired)


# ---- pictures --------------------------------------------------------------------------------------------------------

@functools.cache
def pictures() -> list[bytes]:
    """Small whole files of every format and of many kinds of pixels."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((48, 40), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a face"
    alpha = smooth.copy()
    alpha.putalpha(90)
    deep = Image.fromarray((np.asarray(smooth)[..., 0].astype(np.uint16) << 8) + 7)
    kinds = [
        (smooth, "JPEG", {"exif": exif}), (smooth, "JPEG", {"progressive": True}), (smooth.convert("L"), "JPEG", {}),
        (smooth.convert("CMYK"), "JPEG", {}), (smooth, "PNG", {"exif": exif}), (alpha, "PNG", {}), (deep, "PNG", {}),
        (smooth.quantize(16), "PNG", {"transparency": 0}), (smooth.convert("1"), "PNG", {}), (smooth, "WEBP", {}),
        (alpha, "WEBP", {"lossless": True}),
        (smooth, "WEBP", {"exif": exif, "save_all": True, "append_images": [alpha]}), (smooth, "TIFF", {}),
        (smooth, "TIFF", {"compression": "tiff_lzw"}), (alpha, "TIFF", {"compression": "tiff_deflate"}),
        (smooth, "TIFF", {"compression": "jpeg"}), (deep, "TIFF", {}),
        (smooth.convert("1"), "TIFF", {"compression": "group4"}),
        (smooth.quantize(16), "GIF", {}), (smooth, "BMP", {}), (smooth, "PPM", {})]
    whole = []
    for picture, form, options in kinds:
        buffer = io.BytesIO()
        picture.save(buffer, form, **options)
        whole.append(buffer.getvalue())
    return whole


def damaged_picture(rng: Rng) -> bytes:
    base = pictures()[rng.integers(len(pictures()))]
    data = mutate(rng, base, pictures())
    return repair_png(data) if base.startswith(b"\x89PNG") and rng.random() < 0.7 else data


def fuzz_images(rng: Rng, folder: Path) -> None:
    path = folder / f"photo{rng.choice(images.IMAGE_SUFFIXES)}"
    path.write_bytes(damaged_picture(rng))
    images.MAX_PIXELS = MOST_PIXELS
    pixels = images.read_image(path)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and min(pixels.shape[:2]) >= 16
    assert pixels.flags.c_contiguous and pixels.flags.writeable


def fuzz_masks(rng: Rng, folder: Path) -> None:
    (folder / "masks").mkdir()
    (folder / "masks" / "face.png").write_bytes(damaged_picture(rng))
    images.MAX_PIXELS = MOST_PIXELS
    hole = MaskFolder(folder / "masks").hole("face", (20, 24))  # half of what `pictures` are
    assert hole.dtype == bool and hole.shape == (20, 24)


# ---- text ------------------------------------------------------------------------------------------------------------

WORDS = [b"NaN", b"Infinity", b"-1e999", b"null", b"[]", b"{}", b"true", b'"\\ud800"', b"1e308", b"\xff\xfe", b"\0",
         b"{", b"99999999999999999999999999", b'"a":', b",", b"0x10", b"1_000", b"\xe2\x80\xae", b"[" * 2000, b"\n\n",
         b"=", b"%("]


def damaged_text(rng: Rng, text: bytes) -> bytes:
    """Damage as of any file, or values replaced by what parsers stumble over."""
    if rng.random() < 0.3:
        return mutate(rng, text)
    parts = text.split(b" ")
    for _ in range(rng.integers(1, 4)):
        parts[rng.integers(len(parts))] = WORDS[rng.integers(len(WORDS))]
    return b" ".join(parts)


@functools.cache
def landmark_texts() -> tuple[bytes, bytes, bytes]:
    points = np.random.default_rng(0).uniform(40, 210, (68, 2)).round(1).tolist()
    return (json.dumps({"a": points, "b": points[:5]}).encode(),
            json.dumps({"group": {"a": {"landmarks68": points}, "b": {"landmarks68": points}}}).encode(),
            b"2\nx y x y x y x y x y\n000001.jpg 69 109 106 113 77 142 73 152 108 154\n"
            b"000002.jpg 69 110 107 112 81 135 70 151 108 153\n")


def fuzz_landmarks(rng: Rng, folder: Path) -> None:
    kind = rng.integers(3)
    path = folder / "points.json"
    path.write_bytes(damaged_text(rng, landmark_texts()[kind]))
    if kind == 0:
        for points in read_points(path).values():
            assert points.shape in ((5, 2), (68, 2)) and points.isfinite().all()
    elif kind == 1:
        for points in read_annotations(path).values():
            assert points.shape == (68, 2) and points.isfinite().all()
    else:
        for numbers in process_celeba.read_landmarks(path).values():
            assert len(numbers) == 10 and all(map(math.isfinite, numbers))
            Alignment.from_landmarks(np.array(numbers).reshape(5, 2), 218, 178)


def fuzz_alignment(rng: Rng, folder: Path) -> None:
    """Landmarks of any size and place: a crop, or a UserError."""
    height, width = (int(side) for side in rng.integers(16, 300, 2))
    landmarks = np.array([[69, 109], [106, 113], [77, 142], [73, 152], [108, 154]], float)
    landmarks = landmarks * 10.0 ** rng.uniform(-3, 3) + rng.normal(0, 10.0 ** rng.uniform(-3, 4), 2)
    for _ in range(rng.integers(3)):
        landmarks[rng.integers(5), rng.integers(2)] = rng.choice([0, -1e9, 1e18, 1e300, np.nan, np.inf, -np.inf, 50])
    alignment = Alignment.from_landmarks(landmarks, height, width)
    photo = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    crop = alignment.crop(photo)
    assert crop.shape == (CROP_SIZE, CROP_SIZE, 3) and crop.dtype == np.uint8
    assert not alignment.crop_mask(np.zeros((height, width), bool)).any()
    hole = rng.random((CROP_SIZE, CROP_SIZE)) < 0.01
    region = alignment.photo_region(hole)
    if region is not None:
        assert alignment.mask_in_photo(hole, region).shape == photo[region].shape[:2]
        assert alignment.resample(crop, region).shape == photo[region].shape


def fuzz_settings(rng: Rng, folder: Path) -> None:
    base = (ROOT / rng.choice(["args.txt", "args_celeba.txt"])).read_bytes()
    lines = base.split(b"\n")
    if rng.random() < 0.6:
        for _ in range(rng.integers(1, 4)):
            name = rng.choice([*config.BY_NAME, *config.OBSOLETE, *config.ALIASES, "nonsense"])
            value = WORDS[rng.integers(len(WORDS))]
            lines.insert(int(rng.integers(len(lines) + 1)), str(name).encode() + b" = " + value)
        data = b"\n".join(lines)
    else:
        data = damaged_text(rng, base)
    (folder / "args.txt").write_bytes(data)
    found = config.parse(["--config", str(folder / "args.txt")], "fuzz")
    found.write(folder / "again.txt")
    assert config.parse(["--config", str(folder / "again.txt")], "fuzz") == found


def fuzz_command_lines(rng: Rng, folder: Path) -> None:
    names = [config.flag_of(name) for name in config.BY_NAME] + ["--", "-", "--config", "--=", "--stage=", "[", "]"]
    values = [word.decode(errors="surrogateescape") for word in WORDS] + ["True", "256", "[256,256]", "inpainter", "-5"]
    words = [str(rng.choice(names if rng.random() < 0.5 else values)) for _ in range(rng.integers(1, 8))]
    found = config.parse(words, "fuzz")
    assert set(vars(found)) == set(config.BY_NAME)


# ---- models and checkpoints ------------------------------------------------------------------------------------------

@functools.cache
def model_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        definitions.write_original(small_definition(), Path(scratch) / "model")
        return {path.relative_to(scratch).as_posix(): path.read_bytes() for path in Path(scratch).rglob("*")
                if path.is_file()}


def fuzz_models(rng: Rng, folder: Path) -> None:
    """One or two files of a 3DMM_definition damaged; what is loaded must be a model that can be used."""
    files = dict(model_files())
    for name in rng.choice(sorted(files), rng.integers(1, 3), replace=False):
        data = files[str(name)]
        if rng.random() < 0.5:  # damage that keeps the size
            spot = 4 * int(rng.integers(len(data) // 4 or 1))
            value = struct.pack("<i", int(rng.choice([-2 ** 31, -1, 0, 2 ** 31 - 1, 10 ** 6, 0x7FC00000, 0x7F800000])))
            files[str(name)] = data[:spot] + value + data[spot + 4:]
        else:
            files[str(name)] = mutate(rng, data)
    (folder / "model").mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    found = definitions.load_original(folder / "model")
    vertices = len(found.mean)
    assert found.triangles.min() >= 0 and found.triangles.max() < vertices
    assert found.uv_triangle.min() >= -1 and found.uv_triangle.max() < len(found.triangles)
    assert found.landmarks.min() >= 0 and found.landmarks.max() < vertices
    with torch.no_grad():
        positions = MorphableModel(found).vertices(torch.zeros(1, 228))
    assert positions.shape == (1, vertices, 3)


@functools.cache
def checkpoint_files() -> list[tuple[bool, bytes]]:
    """(has a hash, content) of this project's files and of foreign ones in torch's two formats."""
    torch.manual_seed(0)
    state = torch.nn.Conv2d(3, 4, 3).state_dict()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "a.pth"
        checkpoints.save_weights(path, "encoder", state, {"steps": 3})
        whole = [(True, path.read_bytes())]
        checkpoints.save(path, {"format": checkpoints.TRAINING_FORMAT, "version": 2, "networks": {"encoder": state},
                                "random": {"python": [3, list(range(50)), None]}, "settings": {"a": [1, "b", None]}})
        whole.append((True, path.read_bytes()))
        for zipped in (True, False):
            torch.save({"modelE": state, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
            whole.append((False, path.read_bytes()))
    return whole


def fuzz_checkpoints(rng: Rng, folder: Path) -> None:
    hashed, data = checkpoint_files()[rng.integers(4)]
    damaged = mutate(rng, data, [content for _, content in checkpoint_files()])
    (folder / "a.pth").write_bytes(damaged)
    content = checkpoints.load(folder / "a.pth")
    assert isinstance(content, dict)
    assert not hashed or damaged == data or content.get("format") not in (
        checkpoints.WEIGHTS_FORMAT, checkpoints.TRAINING_FORMAT), "a damaged file of ours was read"


def fuzz_pickles(rng: Rng, folder: Path) -> None:
    """The file of AlexNet's features, a pickle of numpy arrays."""
    layers = {f"Conv_{index}": {"kernel": np.zeros((3, 3, 2, 2), np.float32), "bias": np.zeros(2, np.float32)}
              for index in range(5)}
    (folder / "alexnet.ckpt").write_bytes(mutate(rng, pickle.dumps({"params": layers}, int(rng.integers(2, 5)))))
    for kernel, bias in pretrained.load_convolutions("alexnet", folder / "alexnet.ckpt"):
        assert kernel.dtype == bias.dtype == torch.float32


# ---- meshes ----------------------------------------------------------------------------------------------------------

NUMBERS = [0.0, -0.0, 0.5, 1.0, 7.0, -3.0, 39.0, 1e-40, 1e-300, 1e6, -1e6, 2.0 ** 31, 1e18, -1e20, 1e22, 1e30, -1e38,
           3.4028234e38, 1e300, math.inf, -math.inf, math.nan]


def random_mesh(rng: Rng) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int], bool]:
    """vertices, triangles, size, cull: anything between a sound mesh and nonsense."""
    items, count, faces = int(rng.integers(1, 4)), int(rng.integers(0, 40)), int(rng.integers(0, 60))
    size = tuple(int(side) for side in rng.integers(0, 40, 2))
    vertices = rng.uniform(-5, 45, (items, count, 3))
    if rng.random() < 0.4:
        vertices = vertices.round()  # edges through pixel centres, equal depths
    if rng.random() < 0.3:
        vertices = vertices * 10.0 ** rng.uniform(-6, 24)
    if count and rng.random() < 0.5:
        bad = rng.random(vertices.shape) < rng.choice([0.02, 0.3])
        vertices[bad] = rng.choice(NUMBERS, bad.sum())
    triangles = rng.integers(0, max(count, 1), (faces, 3))
    if rng.random() < 0.3 and faces:
        triangles[rng.integers(faces)] = triangles[rng.integers(faces), 0]  # no area
    if rng.random() < 0.2 and faces:
        triangles[rng.integers(faces), rng.integers(3)] = rng.choice(
            [-1, count, count + 1, 2 ** 31 - 1, -2 ** 31, 2 ** 31, 2 ** 32, 2 ** 62, -2 ** 62])
    numbers = torch.from_numpy(vertices).to([torch.float32, torch.float64, torch.float16][rng.integers(3)])
    wide = np.abs(triangles).max(initial=0) >= 2 ** 31
    indices = torch.from_numpy(triangles).to(torch.int64 if wide or rng.random() < 0.5 else torch.int32)
    return numbers, indices, size, bool(rng.random() < 0.5)


def fuzz_meshes(rng: Rng, folder: Path) -> None:
    vertices, triangles, size, cull = random_mesh(rng)
    torch.set_num_threads(int(rng.integers(1, 4)))
    sound = not triangles.numel() or bool(((triangles >= 0) & (triangles < vertices.shape[1])).all())
    try:
        found = zbuffer.rasterize(vertices, triangles, size, cull=cull, backend="cpu")
        if vertices.dtype == torch.float32:
            ask_surface(rng, vertices, triangles, found)
    except ValueError:
        assert not sound
        raise UserError("a triangle refers to a vertex that does not exist") from None
    finally:
        torch.set_num_threads(1)
    assert sound
    expected = zbuffer.rasterize(vertices, triangles, size, cull=cull, backend="reference")
    for name in ("triangle", "depth", "barycentrics", "mask"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert not found.barycentrics.isnan().any() and not found.depth.isnan().any()


def ask_surface(rng: Rng, vertices: torch.Tensor, triangles: torch.Tensor, raster: zbuffer.Rasterization) -> None:
    """What the renderer asks of a mesh besides, with texels anywhere."""
    normals = surface.vertex_normals(vertices, triangles)
    lengths = normals.norm(dim=-1)
    assert ((lengths < 1 + 1e-3) | ~normals.isfinite().all(-1)).all()  # less only of tiny triangles
    texels = rng.uniform(-5, 45, (len(vertices), 30, 3))
    bad = rng.random(texels.shape) < 0.1
    texels[bad] = rng.choice(NUMBERS, bad.sum())
    texels, cosine = torch.from_numpy(texels).float(), torch.from_numpy(rng.uniform(-1, 1, (len(vertices), 30))).float()
    if min(raster.mask.shape[1:]) > 1:
        visible = surface.visible_texels(vertices, triangles, raster, texels, cosine, surface.Tolerance(1, 0.25, 1e-3))
        assert not visible[(cosine <= 0) | ~texels.isfinite().all(-1)].any()
    corners = torch.from_numpy(rng.uniform(-3, 12, (len(triangles), 6))).float()
    layout = surface.UVLayout(torch.arange(80), torch.from_numpy(rng.random((8, 10)) < 0.7), corners,
                              torch.from_numpy(rng.random(len(triangles)) < 0.8))
    count = 30 if vertices.shape[1] else 0
    between = surface.Texels(torch.from_numpy(rng.integers(0, max(vertices.shape[1], 1), (count, 3))),
                             torch.from_numpy(rng.random((count, 3))).float())
    turns, places = torch.eye(3).repeat(len(vertices), 1, 1), torch.from_numpy(rng.permutation(35)[:count])
    lengths = surface.texel_normals(normals, turns, between, places, (5, 7)).norm(dim=1)
    assert ((lengths < 1 + 1e-3) | ~lengths.isfinite()).all()
    on_face = torch.from_numpy(rng.random((5, 7)) < 0.5)
    shade = surface.quadratic(torch.ones(len(vertices), 3, 5, 7), on_face, torch.ones(len(vertices), 2, 10), 0)
    assert torch.equal(shade, 10 * on_face.float().expand_as(shade))
    maps = torch.ones(len(vertices), int(rng.integers(0, 6)), 8, 10)
    unwrapped = surface.sample(maps, texels, torch.from_numpy(rng.permutation(35)[:30]), (5, 7))
    assert ((unwrapped - 1).abs().amax(0).sum(dim=(1, 2)) < 5 + 1e-3).all()  # but for the five texels without a place
    image, coverage = surface.draw(maps, layout, raster)
    assert not (coverage[:, 0] & ~raster.mask).any()
    edges = np.sort(rng.integers(0, 9, (2, 2)), axis=1)
    weight = np.maximum(rng.random((len(vertices), 1, 8, 10)) - 0.5, 0)
    weight[..., 0, 0] = 0.1
    filled = pyramid.fill(maps, torch.from_numpy(weight).float(),
                          (*edges[0].tolist(), *edges[1].tolist()), int(rng.integers(0, 6)))
    assert ((filled[:, :, edges[0, 0]:edges[0, 1], edges[1, 0]:edges[1, 1]] - 1).abs() < 1e-4).all()
    assert ((image - coverage.float()).abs() < 1e-5).all()


TARGETS: dict[str, Callable[[Rng, Path], None]] = {
    "images": fuzz_images, "masks": fuzz_masks, "landmarks": fuzz_landmarks, "alignment": fuzz_alignment,
    "settings": fuzz_settings, "command_lines": fuzz_command_lines, "models": fuzz_models,
    "checkpoints": fuzz_checkpoints, "pickles": fuzz_pickles, "meshes": fuzz_meshes}
# Shares of the cases: what comes from strangers most.
SHARES = {"images": 8, "masks": 2, "landmarks": 2, "alignment": 1, "settings": 2, "command_lines": 1, "models": 2,
          "checkpoints": 3, "pickles": 1, "meshes": 4}


# ---- running cases ---------------------------------------------------------------------------------------------------

def run_case(target: str, number: int) -> bool:
    """Was the input read (False: refused)? Whatever else happens is raised."""
    rng = np.random.default_rng([list(TARGETS).index(target), number])
    with tempfile.TemporaryDirectory() as scratch:
        try:
            TARGETS[target](rng, Path(scratch))
        except UserError as error:
            assert "\n" not in str(error) and str(error), f"an error of several lines: {error}"
            return False
    return True


def child(target: str, first: int, last: int, shared: mmap.mmap) -> None:
    """Runs cases; tells the number of the present one, how many were read, and whether an exception ended them."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    torch.set_num_threads(1)  # a fork has no copy of its parent's thread pool, and would wait for it for ever
    read = 0
    for number in range(first, last):
        tell(shared, number, read)
        read += run_case(target, number)
    tell(shared, last, read)


def tell(shared: mmap.mmap, number: int, read: int) -> None:
    """Puts the state into the shared memory in one go (`pack_into` would clear it first, which a reader may see)."""
    shared[:] = SHARED.pack(number, read, time.monotonic(), time.process_time())


def processor_seconds(process: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_burst(target: str, first: int, last: int) -> tuple[int, int, str | None]:
    """(cases done, cases read, what was found); the last case done is the finding's."""
    shared = mmap.mmap(-1, SHARED.size)
    shared[:] = SHARED.pack(first, 0, time.monotonic(), 0.0)
    sys.stdout.flush()
    with tempfile.TemporaryFile("w+") as report:
        process = os.fork()
        if process == 0:
            status = 1
            try:
                # Warnings about damaged pictures are what they are for; nobody wants 20,000 of them.
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                child(target, first, last, shared)
                status = 0
            except BaseException:
                report.write(traceback.format_exc())
                report.flush()
            finally:
                os._exit(status)
        while not (ended := os.waitpid(process, os.WNOHANG))[0]:
            number, read, begun, used = SHARED.unpack_from(shared)
            if (processor_seconds(process) - used > SECONDS
                    or time.monotonic() - begun > PATIENCE * SECONDS):
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                return number + 1 - first, read, f"longer than {SECONDS:.0f} s"
            time.sleep(0.02)
        number, read, *_ = SHARED.unpack_from(shared)
        if ended[1] == 0:
            return last - first, read, None
        report.seek(0)
        what = report.read() or f"the process died of {os.waitstatus_to_exitcode(ended[1])}"
        return number + 1 - first, read, what


def fuzz(target: str, first: int, cases: int) -> tuple[int, list[str]]:
    """(cases that were read, findings) of cases first .. first + cases - 1 of a target."""
    read, findings, last = 0, [], first + cases
    while first < last:
        done, accepted, found = run_burst(target, first, min(first + BURST, last))
        first, read = first + done, read + accepted
        if found is not None:
            findings.append(f"{target} case {first - 1}: {found}")
    return read, findings


def main() -> int:
    """The command line; the exit status is 1 if there were findings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000, help="in all")
    parser.add_argument("--only", choices=[*TARGETS], help="one target instead of all")
    parser.add_argument("--first", type=int, default=0, help="number of each target's first case")
    options = parser.parse_args()
    shares = {options.only: 1} if options.only else SHARES
    torch.set_num_threads(1)
    all_findings, total, begun = [], 0, time.monotonic()
    for target, share in progress(shares.items(), "targets", len(shares)):
        cases = -(-options.cases * share // sum(shares.values()))
        start = time.monotonic()
        read, findings = fuzz(target, options.first, cases)
        total += cases
        all_findings += findings
        print(f"{target}: {cases} cases, {read} read, {cases - read - len(findings)} refused, {len(findings)} findings,"
              f" {time.monotonic() - start:.0f} s", flush=True)
    print(f"{total} cases, {len(all_findings)} findings, {time.monotonic() - begun:.0f} s")
    print(*all_findings, sep="\n\n", file=sys.stderr)
    return 1 if all_findings else 0


if __name__ == "__main__":
    sys.exit(main())
