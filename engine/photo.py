"""Completing the faces in one's own photos: find, align, choose the hole, complete, put back at full size.

    completer = load_completer()
    result = completer.complete(image)          # numpy or PIL in
    result.complete_output                      # numpy out; result.faces[0] holds what happened on the way
"""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from datasets.alignment import CROP_SIZE, WINDOW_OFFSET, WINDOW_SIZE, Alignment
from datasets.detection import DetectedFace, NoFaceError
from datasets.labels import FACE
from datasets.masks import fixed_hole
from engine import holes
from engine.given_faces import as_faces
from engine.paste import Seam, paste, working_region
from engine.report import HOLE_GREY
from models.blending import from_uint8, to_uint8
from models.completion import MIN_FACE, Completion, FaceCompletion
from models.lighting import to_texture
from utils.errors import UserError
from utils.images import MIN_SIDE, upright_rgb

ALL_HIDDEN = 0.995  # share of a face beyond which nothing of it is visible
ROUNDING = 1.0  # crop pixels by which a mask may pass the crop before it is worth a remark


class FindsFaces(Protocol):
    """What is needed of `datasets.detection.Detector`."""

    def detect(self, image: np.ndarray, name: str = "") -> list[DetectedFace]: ...


@dataclass(frozen=True)
class PhotoOptions:
    """What is completed, and how.

    source: "occlusion", the net's prediction is (part of) the hole; "given", only the mask and the regions are; "auto",
    the prediction where there is neither mask nor region; "random", a rectangle on the face fixed by (seed, name).
    regions: parts of the face that are hidden (`engine.holes.REGIONS`). face: only this one, counted from the largest,
    which is 1; all_faces: of every size; else those at least min_face pixels across, and the largest.
    background: "fill" or "keep" what is hidden beside the mesh. hair: "keep" or "fill" where the net finds the face's
    own hair in front of it. resolution: 256, the whole aligned crop is completed, or 224, its centre window. seed: of
    the random hole and of the grain.
    """

    source: str = "auto"
    regions: tuple[str, ...] = ()
    face: int | None = None
    all_faces: bool = False
    min_face: int = 48
    background: str = "fill"
    resolution: int = CROP_SIZE
    seed: int = 0
    hair: str = "keep"
    seam: Seam = field(default_factory=Seam)

    def __post_init__(self):
        if self.source not in ("auto", "occlusion", "given", "random") \
                or {self.background, self.hair} - {"fill", "keep"} \
                or self.resolution not in (CROP_SIZE, WINDOW_SIZE) or set(self.regions) - set(holes.REGIONS):
            raise ValueError(f"unknown value in {self}")


@dataclass(frozen=True)
class FittedHead:
    """The head found in a crop: vertices (V, 3) in micrometres, x right, y up, z to the camera, the head upright;
    positions (V, 3), their row, column and depth in the crop; triangles (T, 3), vertex_uv (V, 2) row and column on the
    UV map, textured (T,) bool: the triangles that the map shows, uv_mask (192, 256) bool: the texels on the face."""

    vertices: np.ndarray
    positions: np.ndarray
    triangles: np.ndarray
    vertex_uv: np.ndarray
    textured: np.ndarray
    uv_mask: np.ndarray


@dataclass(frozen=True)
class CompletedFace:
    """One face of a photo and its completion. Pictures are uint8 RGB, of the aligned 256x256 crop or of the UV map.

    number: 1 is the photo's largest face. found: where it is in the photo. hole bool (256, 256): what the networks may
    not see. landmarks (68, 2): x, y in crop pixels. texture_in, texture_out: the face's visible and its completed
    texture, albedo_in, albedo_out the same without light. hidden_share: of the fitted face, in [0, 1].
    """

    number: int
    found: DetectedFace
    alignment: Alignment
    original: np.ndarray
    hole: np.ndarray
    output: np.ndarray
    texture_in: np.ndarray
    texture_out: np.ndarray
    albedo_in: np.ndarray
    albedo_out: np.ndarray
    landmarks: np.ndarray
    head: FittedHead
    hidden_share: float

    @property
    def input(self) -> np.ndarray:
        """The face with its hole in grey, uint8 (256, 256, 3)."""
        return np.where(self.hole[:, :, None], np.uint8(HOLE_GREY), self.original)


@dataclass(frozen=True)
class CompletedPhoto:
    """A photo, uint8 RGB (H, W, 3), and what became of it.

    complete_output: the photo with its faces completed, bit-identical outside mask, bool (H, W). faces: the completed
    ones, the largest first. remarks: sentences for the user about what is not as one might expect.
    """

    photo: np.ndarray
    complete_output: np.ndarray
    mask: np.ndarray
    faces: tuple[CompletedFace, ...]
    remarks: tuple[str, ...]


def load_completer(config_file: str | Path | None = None, options: PhotoOptions = PhotoOptions(),
                   **settings: Any) -> PhotoCompleter:
    """A completer with the networks that a settings file names (default: this repository's args.txt), loaded once.

    settings: options of the command line about networks and machine that replace the file's, such as ngpu=0 or
    niters=1. Files of weights and the definition's folder are looked for from the repository's folder. Raises UserError
    if one is missing or does not fit, and for an option that says how photos are completed, which is for `options`.
    """
    from engine.build import DEFAULT_INPAINTER, REPOSITORY
    from utils import config

    known = {option.name for option in config.OPTIONS["Networks"]} | {"ngpu", "precision", "compile"}
    for name in settings.keys() & config.BY_NAME.keys() - known:
        raise UserError(f"load_completer({name}=...): this does not change how networks are loaded; say what of a "
                        "photo is completed with options=PhotoOptions(...)")
    chosen = config.parse(["--config", str(config_file or REPOSITORY / "args.txt")], "").replace(**settings)
    places = {name: getattr(chosen, name) for name in config.network_files()}
    if chosen.recon_ckpt == DEFAULT_INPAINTER and chosen.model_type == "linear":
        del places["recon_ckpt"]  # unused, and known to be so by its name
    if chosen.definition not in ("auto", "builtin"):
        places["definition"] = chosen.definition
    chosen = chosen.replace(**{name: str(REPOSITORY / place) for name, place in places.items() if place is not None})
    return build_completer(chosen, options)


def build_completer(settings: Any, options: PhotoOptions) -> PhotoCompleter:
    """A completer with the networks that the settings name. Raises UserError if one is missing or does not fit."""
    from datasets.detection import Detector
    from engine import build

    if settings.model_type == "2d":
        raise UserError("--model-type 2d knows no head and is there to be compared with (main.py --eval): complete "
                        "photos with another one")
    device = build.choose_device(settings)
    return PhotoCompleter(build.build_completion(settings, device, grain=False), Detector(), device, options)


class PhotoCompleter:
    """Completes the faces of photos. completion: networks and geometry, in evaluation mode on `device`."""

    def __init__(self, completion: FaceCompletion, detector: FindsFaces, device: torch.device,
                 options: PhotoOptions = PhotoOptions()):
        self.completion, self.detector, self.device, self.options = completion, detector, device, options
        offset = WINDOW_OFFSET if options.resolution == WINDOW_SIZE else 0
        self.window = slice(offset, offset + options.resolution)

    @torch.no_grad()
    def complete(self, photo: np.ndarray | Image.Image, name: str = "the photo", mask: np.ndarray | None = None,
                 landmarks: Any = None) -> CompletedPhoto:
        """Complete the faces of a photo: a Pillow image, or uint8 (H, W, 3) RGB or (H, W) grey.

        mask: bool (H, W), True = hidden, of the upright photo. landmarks: where the faces are, instead of looking for
        them: five points (5, 2) or a box (4,) each. The detector looks at the whole photo, so that hidden pixels can
        move the crops; with landmarks they change nothing, unless the net is to find more of the hole. name: for
        messages, and, without folder and suffix, for the random hole. Raises UserError if there is no face, or if the
        mask hides no part of one.
        """
        photo = _as_photo(photo, name)
        if mask is not None:
            mask = np.asarray(mask).astype(bool)
            if mask.shape != photo.shape[:2]:
                raise UserError(f"{name}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels, the photo "
                                f"{photo.shape[1]}x{photo.shape[0]}: a mask must show the whole photo")
        remarks: list[str] = []
        faces = self._choose(photo, name, landmarks, remarks)
        faces = [(number, self._refined(photo, name, face, mask)) for number, face in faces]
        plans = [_align(photo, name, face) for _, face in faces]
        crops = [alignment.crop(photo) for alignment in plans]
        hidden = self._hidden(photo, name, faces, plans, crops, mask)
        owners = _owners(hidden, plans)
        result, used, completed = photo.copy(), np.zeros_like(hidden), []
        for place, ((number, face), alignment, crop) in enumerate(zip(faces, plans, crops)):
            item = self._complete_face(crop, number, face, alignment, hidden, owners, place, result, used,
                                       only_hidden=mask is not None)
            if item is not None:
                completed.append(item)
        self._remark(name, mask, plans, used, completed, remarks)
        return CompletedPhoto(photo, result, used, tuple(completed), tuple(remarks))

    def _choose(self, photo: np.ndarray, name: str, landmarks: Any,
                remarks: list[str]) -> list[tuple[int, DetectedFace]]:
        """The faces to complete and their numbers."""
        if landmarks is None:
            try:
                faces = self.detector.detect(photo, name)
            except NoFaceError as error:
                raise NoFaceError(f"{error}, or say where the face is with --landmarks") from None
        else:
            known = isinstance(landmarks, list) and landmarks and isinstance(landmarks[0], DetectedFace)
            given = landmarks if known else as_faces(landmarks, f"{name}: landmarks")
            faces = sorted(given, key=lambda face: -face.area)
        numbered = list(enumerate(faces, start=1))
        if self.options.face is not None:
            if self.options.face > len(faces):
                raise UserError(f"--face {self.options.face}: {name} shows {len(faces)} "
                                f"face{'s' if len(faces) > 1 else ''}; the largest is 1")
            return numbered[self.options.face - 1:self.options.face]
        if self.options.all_faces:
            return numbered
        chosen = [(number, face) for number, face in numbered if number == 1 or face.side >= self.options.min_face]
        if len(chosen) < len(faces):
            remarks.append(f"{len(faces) - len(chosen)} of {len(faces)} faces are smaller than {self.options.min_face} "
                           "pixels and left as they are (--all-faces completes them, too)")
        return chosen

    def _refined(self, photo: np.ndarray, name: str, face: DetectedFace, mask: np.ndarray | None) -> DetectedFace:
        """A face known by its box alone gets its landmarks from the mesh that fits there."""
        if not face.estimated:
            return face
        alignment = _align(photo, name, face)
        image = self._image(alignment.crop(photo))
        hole = np.zeros((CROP_SIZE, CROP_SIZE), bool) if mask is None else alignment.crop_mask(mask)
        points = self._fit(image, hole)[0]
        five = np.stack([points[36:42].mean(axis=0), points[42:48].mean(axis=0), points[30], points[48], points[54]])
        return DetectedFace(face.box, face.score, alignment.to_photo(five))

    def _hidden(self, photo: np.ndarray, name: str, faces: list[tuple[int, DetectedFace]], plans: list[Alignment],
                crops: list[np.ndarray], mask: np.ndarray | None) -> np.ndarray:
        """All hidden pixels of the photo, bool (H, W): of the mask, and in each face's crop of its other sources."""
        hidden = np.zeros(photo.shape[:2], bool) if mask is None else mask.copy()
        stem = Path(name).stem  # so that it does not matter from where a file is named
        for (number, _), alignment, crop in zip(faces, plans, crops):
            hole = self._crop_hole(crop, f"{stem}#{number}" if number > 1 else stem, alignment, mask)
            region = alignment.photo_region(hole)
            if region is not None:
                hidden[region] |= alignment.mask_in_photo(hole, region)
        return hidden

    def _crop_hole(self, crop: np.ndarray, name: str, alignment: Alignment, mask: np.ndarray | None) -> np.ndarray:
        """What the sources other than the mask hide of a crop: bool (256, 256)."""
        options = self.options
        hole = np.zeros((CROP_SIZE, CROP_SIZE), bool)
        predict = options.source == "occlusion" or options.source == "auto" and mask is None and not options.regions
        if not (predict or options.regions or options.source == "random"):
            return hole
        image = self._image(crop)
        if predict:
            hole |= holes.clean(self.completion.predict_hole(image, hair=options.hair == "fill")[0, 0].cpu().numpy())
        if options.source == "random":
            face = (self.completion.label(image)[0, FACE] >= MIN_FACE).cpu().numpy()
            hole |= fixed_hole(options.seed, name, ndimage.binary_fill_holes(face))  # an open mouth is hidden as well
        if options.regions:
            landmarks, coverage = self._fit(image, hole if mask is None else hole | alignment.crop_mask(mask))
            for region in options.regions:
                hole |= holes.part_of_face(region, landmarks, coverage)
        hole[:self.window.start] = hole[self.window.stop:] = False
        hole[:, :self.window.start] = hole[:, self.window.stop:] = False
        return hole

    def _fit(self, image: torch.Tensor, hole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The 68 landmarks (68, 2), x and y in crop pixels, and the pixels that show the face, bool (256, 256)."""
        factors = self.completion.factor(image, torch.from_numpy(hole).to(self.device)[None, None])
        landmarks = factors.positions[0, self.completion.morphable.landmarks, :2].flip(-1)
        return landmarks.cpu().numpy(), self.completion.renderer.coverage(factors.raster)[0, 0].cpu().numpy()

    def _image(self, crop: np.ndarray) -> torch.Tensor:
        return from_uint8(torch.from_numpy(crop).permute(2, 0, 1)[None].to(self.device))

    def _complete_face(self, crop: np.ndarray, number: int, found: DetectedFace, alignment: Alignment,
                       hidden: np.ndarray, owners: np.ndarray | None, place: int, result: np.ndarray,
                       used: np.ndarray, only_hidden: bool) -> CompletedFace | None:
        """Complete one face; its hole in `result` is replaced and marked in `used`, both of the photo's size.

        only_hidden: None instead if nothing of it is hidden.
        """
        window = np.zeros(crop.shape[:2], bool)
        window[self.window, self.window] = True
        hole = alignment.crop_mask(hidden) & window
        if only_hidden and not hole.any():
            return None
        completion = self.completion(self._image(crop)[..., self.window, self.window],
                                     torch.from_numpy(hole).to(self.device)[None, None, self.window, self.window])
        output = crop.copy()
        output[self.window, self.window] = np.where(hole[self.window, self.window, None], _picture(completion.output),
                                                    crop[self.window, self.window])
        coverage = np.zeros_like(hole)
        coverage[self.window, self.window] = ndimage.binary_fill_holes(completion.coverage[0, 0].cpu().numpy())
        region = working_region(alignment, hole)
        if region is not None:
            replaced = hidden[region] & alignment.mask_in_photo(window, region)
            if owners is not None:
                replaced &= owners[region] == place
            used[region] |= replaced
            if self.options.background == "keep":
                replaced &= alignment.mask_in_photo(coverage, region)
            paste(result, alignment, output, replaced, hidden[region], region, self._skin(completion, coverage),
                  seed=self.options.seed, seam=self.options.seam)
        maps = _uv_pictures(completion, self.completion.renderer.uv_mask)
        landmarks = completion.landmarks[0].cpu().numpy() + self.window.start
        share = float((hole & coverage).sum() / max(coverage.sum(), 1))
        return CompletedFace(number, found, alignment, crop, hole, output, *maps, landmarks, self._head(completion),
                             share)

    def _skin(self, completion: Completion, coverage: np.ndarray) -> np.ndarray:
        """The crop's pixels that show the completed face's skin: bool (256, 256)."""
        if completion.face is None:
            return coverage
        skin = np.zeros_like(coverage)
        skin[self.window, self.window] = (completion.face[0, FACE] >= MIN_FACE).cpu().numpy()
        return skin

    def _head(self, completion: Completion) -> FittedHead:
        morphable = self.completion.morphable
        positions = completion.positions[0].cpu().numpy() + [self.window.start, self.window.start, 0]
        renderer = self.completion.renderer
        arrays = (completion.vertices[0], morphable.triangles, morphable.vertex_uv, renderer.textured, renderer.uv_mask)
        vertices, *tables = (array.cpu().numpy() for array in arrays)
        return FittedHead(vertices, positions, *tables)

    def _remark(self, name: str, mask: np.ndarray | None, plans: list[Alignment], used: np.ndarray,
                completed: list[CompletedFace], remarks: list[str]) -> None:
        """Say what of the hole could not be used, or that there is none."""
        if not used.any():
            if mask is not None:
                raise UserError(f"{name}: the mask hides no part of the face: white must mark what is to be replaced, "
                                "in the pixels of this photo")
            remarks.append("no face region was found for the random hole, so the face is left as it is"
                           if self.options.source == "random" else "nothing in front of the face was found, so it is "
                           "left as it is; mark it with --mask if there is")
        elif mask is not None and _reaches_beyond(mask & ~used, plans, self.window):
            remarks.append("the mask reaches beyond the face's crop: the part outside stays as it is")
        if mask is not None and any(face.hidden_share > ALL_HIDDEN for face in completed):
            remarks.append("nothing of a face is visible, so it is invented; if white marks what is visible in this "
                           "mask, say --mask-is-visible")
        if len(completed) > 1:
            remarks.append(f"{len(completed)} faces completed")


def _as_photo(photo: np.ndarray | Image.Image, name: str) -> np.ndarray:
    """uint8 (H, W, 3)."""
    if isinstance(photo, Image.Image):
        return upright_rgb(photo, name)
    photo = np.asarray(photo)
    if photo.ndim == 2:
        photo = np.repeat(photo[:, :, None], 3, axis=2)
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        raise UserError(f"{name}: a photo is uint8 of shape (H, W, 3) or (H, W), not {photo.dtype} {photo.shape}")
    if min(photo.shape[:2]) < MIN_SIDE:
        raise UserError(f"{name} is only {photo.shape[1]}x{photo.shape[0]} pixels: give at least {MIN_SIDE}x{MIN_SIDE}")
    return photo


def _align(photo: np.ndarray, name: str, face: DetectedFace) -> Alignment:
    try:
        return Alignment.from_landmarks(face.landmarks, *photo.shape[:2])
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _owners(hidden: np.ndarray, plans: list[Alignment]) -> np.ndarray | None:
    """For each hidden pixel the index of the face it lies nearest to, in units of that face: int16 (H, W).

    None where there is one face. So that crops that overlap do not complete each other's holes.
    """
    if len(plans) < 2:
        return None
    rows, columns = np.nonzero(hidden)
    points = np.stack([columns, rows], axis=1)
    nearest, owner = np.full(len(points), np.inf), np.zeros(len(points), np.int16)
    for index, alignment in enumerate(plans):
        distance = np.abs(alignment.to_crop(points) - (CROP_SIZE - 1) / 2).max(axis=1)
        owner[distance < nearest] = index
        nearest = np.minimum(nearest, distance)
    owners = np.full(hidden.shape, -1, np.int16)
    owners[rows, columns] = owner
    return owners


def _uv_pictures(result: Completion, uv_mask: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Visible and completed texture, visible and completed albedo: uint8 (192, 256, 3).

    What is not visible is grey; where there is no face, outside uv_mask (192, 256), the completed ones are black.
    """
    albedo = torch.where(uv_mask, result.albedo_out, -1)
    visible = result.uv_visible[0, 0].cpu().numpy()[:, :, None]
    texture = 2 * to_texture(result.albedo_in, result.uv_shade) - 1
    return (np.where(visible, _picture(texture), np.uint8(HOLE_GREY)), _picture(result.texture_out),
            np.where(visible, _picture(result.albedo_in), np.uint8(HOLE_GREY)), _picture(albedo))


def _picture(image: torch.Tensor) -> np.ndarray:
    """The first image of (B, 3, H, W) in [-1, 1] as uint8 (H, W, 3)."""
    return to_uint8(image[0].clamp(-1, 1)).permute(1, 2, 0).cpu().numpy()


def _reaches_beyond(mask: np.ndarray, plans: list[Alignment], window: slice) -> bool:
    """Does the photo's mask, bool (H, W), hide pixels that lie in no completed window of a crop?"""
    rows, columns = np.nonzero(mask)
    points = np.stack([columns, rows], axis=1)[::len(rows) // 1_000_000 + 1]
    beyond = np.ones(len(points), bool)
    for alignment in plans:
        placed = alignment.to_crop(points)
        beyond &= ((placed < window.start - 0.5 - ROUNDING) | (placed > window.stop - 0.5 + ROUNDING)).any(axis=1)
    return bool(beyond.any())
