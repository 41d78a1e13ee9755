"""Evaluation (``main.py --eval``): complete held-out faces, score them, compare with simple methods on the holes."""
from __future__ import annotations

import contextlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.alignment import CROP_SIZE, WINDOW_OFFSET, WINDOW_SIZE
from datasets.labels import FACE
from datasets.masks import MaskFolder, fixed_hole, mask_ratio, ratio_bin
from engine import distributed, report
from engine.baselines import BASELINES
from engine.distributed import ALONE, World
from engine.encoder_stage import landmark_error
from engine.loading import start_worker
from engine.metrics import psnr, ssim
from models.blending import from_uint8, to_uint8
from models.completion import MIN_FACE
from utils import files
from utils.errors import UserError
from utils.images import read_mask, write_image
from utils.logging import note, progress, warning

METHOD = "3DFaceFill"
MEASURES = ("PSNR", "SSIM", "LPIPS")
BATCH_SIZE = {"cpu": 8, "cuda": 32}
EXAMPLES = 8  # rows of the grid of examples


class CompletesFaces(Protocol):
    """What evaluation needs of `models.completion.FaceCompletion`."""

    def __call__(self, image: Tensor, hole: Tensor) -> Any: ...
    def label(self, image: Tensor) -> Tensor: ...
    def predict_hole(self, image: Tensor) -> Tensor: ...


@dataclass
class EvaluationOptions:
    """source: "random" (fixed by seed and name), "file" (from `masks`) or "occlusion" (predicted, no scores).

    regions: folder of face regions for the mask/face ratio and random holes, NAME.png; without, the dataset's labels or
    the net's. resolution: 256, the whole aligned crop, or 224, its centre window. world: the processes that share the
    faces.
    """

    folder: Path
    source: str = "random"
    masks: MaskFolder | None = None
    regions: Path | None = None
    resolution: int = CROP_SIZE
    seed: int = 0
    world: World = ALONE
    workers: int = 0
    save_pictures: bool = True
    save_landmarks: bool = False
    save_masks: bool = False
    log_type: str = "progressbar"


@dataclass
class Results:
    """One entry per image: names, mask/face ratios, and scores as measure -> method -> values (None: not measured).

    examples: (name, pictures) of evaluated images spread evenly over the dataset. skipped: name -> why it could not be
    used.
    """

    names: list[str] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    scores: dict[str, dict[str, list[float | None]]] = field(
        default_factory=lambda: {measure: {method: [] for method in (METHOD, *BASELINES)} for measure in MEASURES})
    landmark_errors: list[float] = field(default_factory=list)
    examples: list[tuple[str, list[np.ndarray]]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, others: "Results") -> None:
        """Appends other images' results."""
        self.names += others.names
        self.ratios += others.ratios
        for measure, methods in others.scores.items():
            for method, values in methods.items():
                self.scores[measure][method] += values
        self.landmark_errors += others.landmark_errors
        self.examples += others.examples
        self.skipped.update(others.skipped)

    def rows(self, method: str) -> list[dict[str, Any]]:
        """The table's rows of one method, as in metrics.csv."""
        return [{"name": name, "ratio": ratio, "method": method,
                 **{measure.lower(): self.scores[measure][method][index] for measure in MEASURES}}
                for index, (name, ratio) in enumerate(zip(self.names, self.ratios))]


class Evaluator:
    """Completes and scores the faces of a dataset; pictures and landmarks are written as they come.

    dataset: items {"image": uint8 (3, 256, 256), "name", optionally "labels" uint8 (256, 256) and "landmarks" (68, 2)}.
    lpips: a function of two uint8 images, or None where it is not available.
    """

    def __init__(self, dataset: Dataset, completion: CompletesFaces, options: EvaluationOptions,
                 lpips: Callable[[np.ndarray, np.ndarray], float] | None):
        self.dataset, self.completion, self.options, self.lpips = dataset, completion, options, lpips
        self.found: dict[int, Results] = {}  # of this process' images, by their places in the dataset
        self.examples = report.Spread(EXAMPLES, len(dataset))

    @torch.no_grad()
    def run(self) -> Results:
        """Goes through the dataset once; in others than the main process of several the results are empty."""
        start, world = time.monotonic(), self.options.world
        loader = DataLoader(world.share(self.dataset), batch_size=BATCH_SIZE[world.device.type],
                            num_workers=self.options.workers, worker_init_fn=start_worker)
        log_type = self.options.log_type if world.is_main else "none"
        with contextlib.closing(_Scoring(scoring_threads(world.device))) as scoring:
            for batch in progress(loader, "evaluating", len(loader), log_type):
                self._batch(batch, scoring)
            scoring.finish()
        results, examples = Results(), report.Spread(EXAMPLES, len(self.dataset))
        for place, found in distributed.gather(self.found, world).items():
            if found.examples and not examples.takes(place):
                found.examples.clear()
            results.add(found)
        results.skipped.update(getattr(self.dataset, "unreadable", {}))
        results.seconds = time.monotonic() - start
        return results

    def _batch(self, batch: Mapping[str, Any], scoring: "_Scoring") -> None:
        image = from_uint8(batch["image"].to(self.options.world.device))
        places = self.options.world.places(len(self.found), len(image))
        results = [self.found.setdefault(place, Results()) for place in places]
        kept, faces, holes = self._holes(image, batch, results)
        if not kept:
            return
        inside = self._inside()
        hole = torch.from_numpy(np.stack(holes))[:, None].to(image.device)
        completion = self.completion(image[torch.tensor(kept)][..., inside, inside], hole[..., inside, inside])
        outputs = to_uint8(completion.output).permute(0, 2, 3, 1).cpu().numpy()
        truths = batch["image"][kept][..., inside, inside].permute(0, 2, 3, 1).numpy()
        scoring.finish()
        for place, index in enumerate(kept):
            if self.options.save_masks:
                write_image(files.inside(self.options.folder, f"masks/{batch['name'][index]}.png"), holes[place])
            scoring.begin(self._image, results[index], batch["name"][index], truths[place],
                          holes[place][inside, inside], faces[place][inside, inside], outputs[place],
                          example=self.examples.takes(places[index]))
            if completion.landmarks is not None:  # the 2D baseline knows none
                self._landmarks(results[index], batch, index, completion.landmarks[place].cpu())

    def _inside(self) -> slice:
        offset = WINDOW_OFFSET if self.options.resolution == WINDOW_SIZE else 0
        return slice(offset, offset + self.options.resolution)

    def _holes(self, image: Tensor, batch: Mapping[str, Any],
               results: list[Results]) -> tuple[list[int], list[np.ndarray], list[np.ndarray]]:
        """(places in the batch, faces, holes) of the crops that have usable ones, bool (256, 256); the others are noted
        as skipped. Where the face is not given it is what the net finds on the unmasked image."""
        found = hidden = [None] * len(image)
        if not self.options.regions and "labels" not in batch:
            found = (self.completion.label(image)[:, FACE] >= MIN_FACE).cpu().numpy()
        if self.options.source == "occlusion":
            hidden = self.completion.predict_hole(image)[:, 0].bool().cpu().numpy()
        kept, faces, holes = [], [], []
        for index, name in enumerate(batch["name"]):
            try:
                face = given_face(batch, index, self.options.regions)
                face = found[index] if face is None else face
                hole = self._hole(name, face) if hidden[index] is None else hidden[index]
            except UserError as error:
                results[index].skipped[name] = str(error)
                continue
            kept.append(index)
            faces.append(face)
            holes.append(hole)
        return kept, faces, holes

    def _hole(self, name: str, face: np.ndarray) -> np.ndarray:
        """The hole of a crop, bool (256, 256), where it is not predicted; UserError if there is no usable mask."""
        if self.options.masks:
            return self.options.masks.hole(name, (CROP_SIZE, CROP_SIZE))
        hole, inside = np.zeros_like(face), (self._inside(),) * 2  # a share of the evaluated picture's sides
        hole[inside] = fixed_hole(self.options.seed, name, face[inside])
        return hole

    def _image(self, results: Results, name: str, truth: np.ndarray, hole: np.ndarray, face: np.ndarray,
               output: np.ndarray, *, example: bool) -> None:
        """Writes and scores one image. Where the hole is a real occluder there is no truth, and so no score."""
        output = np.where(hole[..., None], output, truth)
        scored = self.options.source != "occlusion"
        if self.options.save_pictures:
            write_image(files.inside(self.options.folder, f"{name}.png"), output)
        results.names.append(name)
        results.ratios.append(mask_ratio(face if scored else face | hole, hole))
        completed = {METHOD: output}
        if scored or example:
            completed.update({method: fill(truth, hole) for method, fill in BASELINES.items()})
        for method in (METHOD, *BASELINES):
            values = self._measure(completed[method], truth) if scored else (None, None, None)
            for measure, value in zip(MEASURES, values):
                results.scores[measure][method].append(value)
        if example:
            shown = np.where(hole[..., None], np.uint8(report.HOLE_GREY), truth)
            results.examples.append((name, [shown, *completed.values(), truth]))

    def _measure(self, output: np.ndarray, truth: np.ndarray) -> tuple[float, float, float | None]:
        return psnr(output, truth), ssim(output, truth), self.lpips(output, truth) if self.lpips else None

    def _landmarks(self, results: Results, batch: Mapping[str, Any], index: int, landmarks: Tensor) -> None:
        """Writes the 68 fitted landmarks, (68, 2) in pixels of the evaluated picture, as pixels of the crop; measures
        them where truth is known."""
        landmarks = landmarks.float() + self._inside().start
        if self.options.save_landmarks:
            with report.atomic_text(files.inside(self.options.folder, f"{batch['name'][index]}.txt")) as file:
                file.writelines(f"{x:.3f} {y:.3f}\n" for x, y in landmarks.tolist())
        if "landmarks" in batch:
            truth = batch["landmarks"][index].float()
            results.landmark_errors.append(float(landmark_error(landmarks[None], truth[None])))


def scoring_threads(device: torch.device) -> int:
    """How many threads score faces while others are completed: the simple methods, SSIM and LPIPS take a core longer
    than a completion takes a GPU. Beside completions on a CPU they would only take cores from the networks."""
    return torch.get_num_threads() if device.type == "cuda" else 0


class _Scoring:
    """Scores faces in so many threads, each of which begins no further ones; with 0 at once."""

    def __init__(self, threads: int):
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) if threads else None
        self._begun: list[Future] = []

    def begin(self, work: Callable[..., None], *arguments: Any, **keywords: Any) -> None:
        """Has a thread do the work."""
        if self._pool is None:
            work(*arguments, **keywords)
        else:
            self._begun.append(self._pool.submit(work, *arguments, **keywords))

    def finish(self) -> None:
        """Waits for all work that was begun; raises what an exception ended."""
        begun, self._begun = self._begun, []
        for work in begun:
            work.result()

    def close(self) -> None:
        """Leaves undone what is not being done yet."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._threads)  # what one thread sets, PyTorch takes for later ones, too


def given_face(batch: Mapping[str, Any], index: int, regions: Path | None) -> np.ndarray | None:
    """A face's region, bool (256, 256): of the folder `regions`, else by the dataset's labels; None without both.

    Raises:
        UserError: its picture is missing or cannot be read.
    """
    if regions:
        return read_mask(regions / f"{batch['name'][index]}.png", (CROP_SIZE, CROP_SIZE))
    return (batch["labels"][index] == FACE).numpy() if "labels" in batch else None


def summarise(results: Results, settings: Mapping[str, Any], lpips_missing: str | None) -> dict[str, Any]:
    """The content of summary.json: averages and bins of every method, what was skipped, time and settings."""
    bins = [ratio_bin(ratio) for ratio in results.ratios]
    methods = {}
    for method in (METHOD, *BASELINES):
        measures = {measure: results.scores[measure][method] for measure in MEASURES}
        methods[method] = {
            "average": {measure.lower(): report.mean(values) for measure, values in measures.items()},
            "bins": [{"ratio": f"{10 * index}-{10 * index + 10} %", "images": bins.count(index),
                      **{measure.lower(): report.by_bin(results.ratios, values)[1][index]
                         for measure, values in measures.items()}} for index in sorted(set(bins))]}
    return {"images": len(results.names), **methods[METHOD]["average"], "ratio": report.mean(results.ratios),
            "methods": methods, "landmark_error_percent": report.mean(results.landmark_errors),
            "lpips_missing": lpips_missing, "skipped": results.skipped, "seconds": round(results.seconds, 1),
            "settings": dict(settings)}


def write_report(results: Results, options: EvaluationOptions, summary: Mapping[str, Any]) -> None:
    """metrics.csv, baselines.csv, summary.json, and with pictures curves.png and examples.png."""
    folder = options.folder
    columns = ["name", "ratio", "psnr", "ssim", "lpips"]
    report.write_csv(folder / "metrics.csv", results.rows(METHOD), columns)
    rows = [row for method in BASELINES for row in results.rows(method)]
    report.write_csv(folder / "baselines.csv", rows, ["method", *columns])
    report.write_json(folder / "summary.json", summary)
    if not options.save_pictures:
        return
    if options.source != "occlusion":
        report.draw_curves(folder / "curves.png", results.ratios, results.scores)
    names = [name for name, _ in results.examples]
    headings = ["input", METHOD, *BASELINES, "original"]
    report.draw_grid(folder / "examples.png", headings, [pictures for _, pictures in results.examples], names)


def choose_source(settings: Any) -> str:
    """Where the holes come from: --mask-source, else file where --mask-dir is given, else random.

    Raises:
        UserError: the options contradict each other.
    """
    source = settings.mask_source or ("file" if settings.mask_dir else "random")
    if source == "file" and not settings.mask_dir:
        raise UserError("--mask-source file: say where the holes are with --mask-dir DIR")
    if source != "file" and settings.mask_dir:
        raise UserError(f"--mask-dir is given, but --mask-source is {source}: leave one of them out")
    return source


def open_lpips(path: str | None, device: torch.device) -> tuple[Callable | None, str | None]:
    """(LPIPS, None), or (None, the reason) where its weights are not to be had: the table then does without it.

    path: the file of --alexnet-ckpt, if it is given.

    Raises:
        UserError: that file cannot be used.
    """
    from engine.metrics import Lpips
    from engine.pretrained import load_lpips_alex
    try:
        return Lpips(load_lpips_alex(path), device), None
    except UserError as error:
        if path is not None:
            raise
        warning(f"LPIPS is not available: {error}")
        return None, str(error)


def evaluate(settings: Any) -> dict[str, Any]:
    """Evaluates as the settings say, prints the table and writes everything; returns the summary.

    Of several processes (torchrun) each takes its share of the images, and the main one reports; the others return {}.

    Raises:
        UserError: weights or data are missing (before any work), or some images could not be used (after all work).
    """
    from engine import build
    source = choose_source(settings)
    folder = Path(settings.output or Path(settings.result_path) / "eval")
    with distributed.joined(build.choose_device(settings)) as world, build.results_folder(settings, folder, world):
        return _evaluate(settings, source, folder, world)


def _evaluate(settings: Any, source: str, folder: Path, world: World) -> dict[str, Any]:
    from engine import build
    masks = MaskFolder(settings.mask_dir, settings.mask_is_visible) if source == "file" else None
    dataset = build.build_test_data(settings)
    completion = build.build_completion(settings, world.device)
    lpips, lpips_missing = open_lpips(settings.alexnet_ckpt, world.device)
    options = EvaluationOptions(
        folder=folder, source=source, masks=masks, regions=build.face_folder(settings),
        resolution=settings.resolution[0], seed=settings.manual_seed, world=world, workers=settings.nthreads,
        save_pictures=settings.save_results, save_landmarks=settings.save_landmarks,
        save_masks=settings.save_masks, log_type=settings.log_type)
    results = Evaluator(dataset, completion, options, lpips).run()
    if not world.is_main:
        return {}
    if not results.names:
        reason = next(iter(results.skipped.values()), "the dataset is empty")
        raise UserError(f"no image could be evaluated; the first: {reason}")
    summary = summarise(results, build.plain_settings(settings), lpips_missing)
    write_report(results, options, summary)
    print_report(results, options, summary)
    if results.skipped:
        listed = "; ".join(results.skipped.values())
        total = len(results.skipped) + len(results.names)
        raise UserError(f"{len(results.skipped)} of {total} images were skipped: {listed}")
    return summary


def print_report(results: Results, options: EvaluationOptions, summary: Mapping[str, Any]) -> None:
    """The table and where everything is."""
    if options.source != "occlusion":
        shown = {measure: methods for measure, methods in results.scores.items()
                 if measure != "LPIPS" or summary["lpips_missing"] is None}
        note("\n" + report.format_table(results.ratios, shown))
        if summary["lpips_missing"]:
            note(f"LPIPS is not available: {summary['lpips_missing']}")
    if results.landmark_errors:
        note(f"landmark error {summary['landmark_error_percent']:.2f} % of the outer eye distance")
    note(f"\n{len(results.names)} images in {results.seconds:.0f} s; results in {options.folder}")
