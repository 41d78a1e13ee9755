"""Evaluation of the encoder alone (``main.py --eval --stage encoder``): are its 68 landmarks where the face's are?

Every face is shown whole and with a hole. Errors are normalised mean errors (NME): mean distances in % of the true
outer eye distance.
"""
from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datasets.alignment import CROP_SIZE, window
from datasets.masks import MaskFolder, fixed_hole, mask_ratio
from engine import distributed, report
from engine.distributed import ALONE, World
from engine.encoder_stage import OUTER_EYES, crop_landmarks
from engine.evaluation import choose_source, given_face
from engine.loading import start_worker
from models.blending import from_uint8
from utils.errors import UserError
from utils.files import read_json
from utils.logging import note, progress

POINTS = 68
INNER = 17  # the points before are the face's outline, on which detectors and people disagree most
FAILURE = 15.0  # % of the eye distance: a face with a larger NME is lost
HIDDEN = (0.3, 0.9)  # share of the face that the holes of labelled faces hide
ATTEMPTS = 100  # rectangles that are tried for it
BATCH_SIZE = 8
SHEET_FACES, SHEET_COLUMNS = 40, 4
TRUE_COLOUR, FOUND_COLOUR = (0, 255, 0), (255, 0, 0)
ERRORS = {"nme": "no hole", "nme_inner": "inner", "nme_hole": "with hole", "nme_inner_hole": "inner"}
COLUMNS = ("name", "ratio", *ERRORS)


@dataclass
class LandmarkOptions:
    """masks: the holes; None: one rectangle each, on the labelled face, fixed by seed and name.

    regions: folder of face regions for the mask/face ratio, NAME.png. Without labels and regions the face is the convex
    hull of its true landmarks, which leaves out the forehead. world: the processes that share the faces.
    """

    seed: int = 0
    masks: MaskFolder | None = None
    regions: Path | None = None
    world: World = ALONE
    workers: int = 0
    log_type: str = "progressbar"


@dataclass
class LandmarkResults:
    """rows: as in landmarks.csv; worst: (NME with hole, caption, picture (256, 512, 3)), largest first.

    skipped: name -> why the face could not be used.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    worst: list[tuple[float, str, np.ndarray]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def values(self, column: str) -> list[Any]:
        """A column of landmarks.csv."""
        return [row[column] for row in self.rows]


class AnnotatedFaces(Dataset):
    """The items of a dataset of named crops whose landmarks are known, with these as "landmarks" (68, 2).

    dataset: has `names`; points: name, with or without its folder, -> (68, 2) in crop pixels.
    Raises UserError if no face has landmarks.
    """

    def __init__(self, dataset: Dataset, points: Mapping[str, Tensor]):
        self.dataset = dataset
        found = [points.get(name, points.get(name.rsplit("/", 1)[-1])) for name in dataset.names]
        self.items = [(index, values) for index, values in enumerate(found) if values is not None]
        if not self.items:
            raise UserError(f"--annotations has landmarks68 of none of the {len(found)} faces, such as "
                            f"{dataset.names[0]}: its names must be the pictures' without suffix")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place, points = self.items[index]
        return {**self.dataset[place], "landmarks": points}


def read_annotations(path: str | Path) -> dict[str, Tensor]:
    """Name -> 68 landmarks (68, 2), (x, y) in pixels of the 256 crop, from a JSON file.

    The file holds {name: {"landmarks68": [[x, y] * 68], ...}} or groups of such; names without it are left out.
    Raises UserError for a missing file, one that is not that, and a name with landmarks in two groups.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise UserError(f"--annotations {path}: not of the form {{\"NAME\": {{\"landmarks68\": [[x, y], ...]}}}}")
    points: dict[str, Tensor] = {}
    for name, entry in _entries(content):
        if "landmarks68" in entry:
            if name in points:
                raise UserError(f"--annotations {path}: two groups have landmarks of {name}: leave one out")
            points[name] = _points(entry["landmarks68"], f"--annotations {path}: the landmarks68 of {name}")
    return points


def _entries(content: Mapping[str, Mapping]) -> list[tuple[str, Mapping]]:
    """(name, entry) of all faces; what holds nothing but objects is a group."""
    entries: list[tuple[str, Mapping]] = []
    for name, value in content.items():
        is_group = value and all(isinstance(inner, dict) for inner in value.values())
        entries += value.items() if is_group else [(name, value)]
    return entries


def _points(values: Any, where: str) -> Tensor:
    """Landmarks as float32 (68, 2); `where` begins the message of a UserError."""
    try:
        points = torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{where} are no list of 68 points [x, y]") from None
    if points.shape != (POINTS, 2) or not points.isfinite().all():
        raise UserError(f"{where} have the shape {tuple(points.shape)}; give 68 finite points [x, y]")
    if torch.equal(points[OUTER_EYES[0]], points[OUTER_EYES[1]]):
        raise UserError(f"{where} have both outer eye corners in one place")
    return points


def point_errors(found: Tensor, truth: Tensor) -> Tensor:
    """Distance of each landmark, (B, 68) in % of the true outer eye distance; found, truth: (B, 68, 2)."""
    eyes = (truth[:, OUTER_EYES[0]] - truth[:, OUTER_EYES[1]]).norm(dim=-1, keepdim=True)
    return 100 * (found - truth).norm(dim=-1) / eyes


def partial_hole(seed: int, name: str, face: np.ndarray) -> np.ndarray:
    """A rectangle on the face that hides a share of it in HIDDEN; bool (256, 256), fixed by seed and name.

    face: bool (256, 256). It is the completion's hole of this name, or if that hides too little or too much the first
    of name#1, name#2, ... that does not.
    Raises UserError if ATTEMPTS of them fail.
    """
    for attempt in range(ATTEMPTS):
        hole = fixed_hole(seed, f"{name}#{attempt}" if attempt else name, face)
        if HIDDEN[0] <= mask_ratio(face, hole) <= HIDDEN[1]:
            return hole
    raise UserError(f"{name}: no hole that hides {HIDDEN[0]:.0%} to {HIDDEN[1]:.0%} of the face was found")


def hull(points: np.ndarray) -> np.ndarray:
    """The convex hull of points (N, 2) in crop pixels; bool (256, 256)."""
    canvas = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    cv2.fillConvexPoly(canvas, cv2.convexHull(points.round().astype(np.int32)), 1)
    return canvas.astype(bool)


class LandmarkEvaluator:
    """Finds the landmarks of a dataset's faces, whole and with a hole, and measures them.

    dataset: items {"image": uint8 (3, 256, 256), "name", "landmarks": (68, 2), optionally "labels": uint8 (256, 256)};
    encoder: windows (B, 3, 224, 224) in [-1, 1] -> FaceCode; geometry: `engine.encoder_stage.Geometry`.
    """

    def __init__(self, dataset: Dataset, encoder: nn.Module, geometry: nn.Module, options: LandmarkOptions):
        self.dataset, self.encoder, self.geometry, self.options = dataset, encoder, geometry, options
        # Of this process' faces, by their places in the dataset: rows, reasons to skip one, pictures of the worst.
        self.rows: dict[int, dict[str, Any]] = {}
        self.skipped: dict[int, tuple[str, str]] = {}
        self.worst: dict[int, tuple[float, str, np.ndarray]] = {}
        self.seen = 0

    @torch.no_grad()
    def run(self) -> LandmarkResults:
        """Goes through the dataset once; in others than the main process of several the results are empty."""
        start, world = time.monotonic(), self.options.world
        log_type = self.options.log_type if world.is_main else "none"
        loader = DataLoader(world.share(self.dataset), batch_size=BATCH_SIZE, num_workers=self.options.workers,
                            worker_init_fn=start_worker)
        for batch in progress(loader, "finding landmarks", len(loader), log_type):
            self._batch(batch)
        rows, skipped, worst = (distributed.gather(found, world) for found in (self.rows, self.skipped, self.worst))
        return LandmarkResults(list(rows.values()), list(_largest(worst).values()), dict(skipped.values()),
                               time.monotonic() - start)

    def _batch(self, batch: Mapping[str, Any]) -> None:
        places = self.options.world.places(self.seen, len(batch["name"]))
        self.seen += len(places)
        kept, holes, ratios = self._holes(batch, places)
        if not kept:
            return
        image = window(from_uint8(batch["image"][kept].to(self.options.world.device)))
        hole = window(torch.from_numpy(np.stack(holes))[:, None].to(self.options.world.device))
        truth = batch["landmarks"][kept].float()
        found = [self._landmarks(seen) for seen in (image, image * ~hole)]
        errors = [point_errors(points, truth) for points in found]
        means = torch.stack([part.mean(1) for error in errors for part in (error, error[:, INNER:])], 1).tolist()
        for place, index in enumerate(kept):
            row = {"name": batch["name"][index], "ratio": ratios[place], **dict(zip(ERRORS, means[place]))}
            self.rows[places[index]] = row
            picture = draw_faces(batch["image"][index], holes[place], truth[place], [points[place] for points in found])
            caption = f"{row['name']}: {row['nme']:.1f} %, with hole {row['nme_hole']:.1f} %"
            self.worst[places[index]] = (row["nme_hole"], caption, picture)
        self.worst = _largest(self.worst)

    def _holes(self, batch: Mapping[str, Any],
               places: Sequence[int]) -> tuple[list[int], list[np.ndarray], list[float]]:
        """(places in the batch, holes bool (256, 256), mask/face ratios) of the faces that have a usable hole."""
        kept, holes, ratios = [], [], []
        for index, name in enumerate(batch["name"]):
            try:
                face = given_face(batch, index, self.options.regions)
                face = hull(batch["landmarks"][index].numpy()) if face is None else face
                hole = (self.options.masks.hole(name, (CROP_SIZE, CROP_SIZE)) if self.options.masks
                        else partial_hole(self.options.seed, name, face))
            except UserError as error:
                self.skipped[places[index]] = (name, str(error))
                continue
            kept.append(index)
            holes.append(hole)
            ratios.append(mask_ratio(face, hole))
        return kept, holes, ratios

    def _landmarks(self, image: Tensor) -> Tensor:
        """Landmarks (B, 68, 2) in crop pixels of windows (B, 3, 224, 224), on the CPU."""
        code = self.encoder(image)
        return crop_landmarks(code.shape, code.scale, code.pose, self.geometry).cpu()


def _largest(worst: Mapping[int, tuple[float, str, np.ndarray]]) -> dict[int, tuple[float, str, np.ndarray]]:
    """The faces with the largest errors, as many as the sheet shows, by place; the largest first."""
    return dict(sorted(worst.items(), key=lambda item: (-item[1][0], item[0]))[:SHEET_FACES])


def draw_faces(image: Tensor, hole: np.ndarray, truth: Tensor, found: Sequence[Tensor]) -> np.ndarray:
    """A face whole and with its hole in grey, each with true and found landmarks: uint8 RGB (256, 512, 3).

    image: uint8 (3, 256, 256); hole: bool (256, 256); truth: (68, 2) in crop pixels; found: such for both pictures.
    """
    whole = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    pictures = [whole.copy(), np.where(hole[..., None], np.uint8(report.HOLE_GREY), whole)]
    for picture, points in zip(pictures, found):
        for colour, places in ((TRUE_COLOUR, truth), (FOUND_COLOUR, points)):
            for x, y in places.round().int().tolist():
                cv2.circle(picture, (x, y), 1, colour, -1)
    return np.concatenate(pictures, 1)


def summarise(results: LandmarkResults) -> dict[str, Any]:
    """Per column of landmarks.csv mean, median and share above FAILURE in %, and the means by mask/face ratio."""
    ratios = results.values("ratio")
    by_column = {column: report.by_bin(ratios, results.values(column)) for column in ERRORS}
    counts = by_column["nme"][0]
    return {
        "images": len(results.rows), "ratio": report.mean(ratios),
        **{column: {"mean": report.mean(values), "median": float(np.median(values)),
                    "failures_percent": 100 * float(np.mean(np.array(values) > FAILURE))}
           for column, values in ((column, results.values(column)) for column in ERRORS)},
        "bins": [{"ratio": f"{10 * index}-{10 * index + 10} %", "images": count,
                  **{column: means[index] for column, (_, means) in by_column.items()}}
                 for index, count in enumerate(counts) if count],
        "skipped": results.skipped, "seconds": round(results.seconds, 1)}


def format_summary(summary: Mapping[str, Any]) -> str:
    """The two tables that are printed: all faces, and by mask/face ratio."""
    lines = ["landmark error in % of the outer eye distance",
             f"{'':<22}{'mean':>9}{'median':>9}{f'> {FAILURE:.0f} %':>10}"]
    for column, points in (("nme", "68 points"), ("nme_inner", "inner 51"), ("nme_hole", "68 points"),
                           ("nme_inner_hole", "inner 51")):
        numbers = summary[column]
        seen = "with hole" if column.endswith("hole") else "no hole"
        lines.append(f"{seen:<11}{points:<11}{numbers['mean']:>9.2f}{numbers['median']:>9.2f}"
                     f"{numbers['failures_percent']:>8.1f} %")
    lines += ["", f"{'mask/face':<12}{'images':>8}" + "".join(f"{heading:>11}" for heading in ERRORS.values())]
    lines += [f"{row['ratio']:<12}{row['images']:>8}" + "".join(f"{row[column]:>11.2f}" for column in ERRORS)
              for row in summary["bins"]]
    return "\n".join(lines)


def build_data(settings: Any) -> tuple[Dataset, int]:
    """(faces with landmarks, number of faces without, which are left out).

    Raises:
        UserError: the data or their annotations are missing, or not needed.
    """
    from engine import build
    if settings.dataset_test == "Synthetic":
        if settings.annotations:
            raise UserError("--dataset-test Synthetic knows its landmarks: leave --annotations out")
        return build.build_test_data(settings), 0
    if not settings.annotations:
        raise UserError(f"--dataset-test {settings.dataset_test} has no true landmarks: give --annotations FILE")
    points = read_annotations(settings.annotations)
    faces = build.build_test_data(settings)
    annotated = AnnotatedFaces(faces, points)
    return annotated, len(faces) - len(annotated)


def choose_masks(settings: Any) -> MaskFolder | None:
    """The folder of holes, None for rectangles on labelled faces.

    Raises:
        UserError: the options contradict each other, or the faces are not labelled and have no masks.
    """
    from engine.build import LABELLED
    source = choose_source(settings)
    if source == "occlusion":
        raise UserError("--mask-source occlusion: the encoder is evaluated on holes of mask files or random ones")
    if source == "random" and settings.dataset_test not in LABELLED:
        raise UserError(f"--dataset-test {settings.dataset_test} is not labelled: give the holes with --mask-dir DIR")
    return MaskFolder(settings.mask_dir, settings.mask_is_visible) if source == "file" else None


def evaluate(settings: Any) -> dict[str, Any]:
    """Evaluates the encoder as the settings say, prints the tables and writes everything; returns the summary.

    Of several processes (torchrun) each takes its share of the faces, and the main one reports; the others return {}.

    Written are landmarks.csv, summary.json and, with pictures, landmarks.png with the worst faces.

    Raises:
        UserError: weights or data are missing (before any work), or some images could not be used (after all work).
    """
    from engine import build
    folder = Path(settings.output or Path(settings.result_path) / "eval_encoder")
    with distributed.joined(build.choose_device(settings)) as world, build.results_folder(settings, folder, world):
        return _evaluate(settings, folder, world)


def _evaluate(settings: Any, folder: Path, world: World) -> dict[str, Any]:
    from engine import build
    masks, regions = choose_masks(settings), build.face_folder(settings)
    dataset, unannotated = build_data(settings)
    encoder, geometry = build.build_encoder(settings, world.device)
    options = LandmarkOptions(settings.manual_seed, masks, regions, world, settings.nthreads, settings.log_type)
    results = LandmarkEvaluator(dataset, encoder, geometry, options).run()
    if not world.is_main:
        return {}
    results.skipped.update(getattr(getattr(dataset, "dataset", dataset), "unreadable", {}))
    if not results.rows:
        raise UserError(f"no face could be evaluated; the first: {next(iter(results.skipped.values()))}")
    summary = {**summarise(results), "unannotated": unannotated, "settings": build.plain_settings(settings)}
    report.write_csv(folder / "landmarks.csv", results.rows, COLUMNS)
    report.write_json(folder / "summary.json", summary)
    if settings.save_results:
        _, captions, pictures = zip(*results.worst)
        report.draw_sheet(folder / "landmarks.png", pictures, captions, SHEET_COLUMNS)
    note("\n" + format_summary(summary))
    if unannotated:
        note(f"{unannotated} faces have no landmarks68 and were left out")
    note(f"\n{len(results.rows)} faces in {results.seconds:.0f} s; results in {folder}")
    if results.skipped:
        raise UserError(f"{len(results.skipped)} of {len(results.skipped) + len(results.rows)} faces were skipped: "
                        + "; ".join(results.skipped.values()))
    return summary
