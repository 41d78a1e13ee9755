"""Evaluation of the occlusion net alone (``main.py --eval --stage occlusion``).

Labelled faces give the overlap (IoU) of predicted and true labels. Photos without labels give the share of the face
that is called occlusion: near 0 where nothing hides the faces, so that what is there is a false alarm.
"""
from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datasets.labels import BACKGROUND, FACE, OCCLUSION
from engine import distributed, report
from engine.compilation import compile_networks
from engine.distributed import ALONE, World
from engine.evaluation import given_face
from engine.loading import start_worker
from engine.occlusion_stage import COLOURS, confusion, overlaps
from models.blending import from_uint8
from models.occlusion import N_LABELS
from utils.errors import UserError
from utils.logging import note, progress

BATCH_SIZE = 8
SHEET_FACES, SHEET_COLUMNS = 60, 6
CELL = 128  # pixels of a picture on the contact sheet
TINT = 0.45  # weight of a label's colour on the photo


@dataclass
class SegmentationOptions:
    """regions: folder of face regions NAME.png of unlabelled photos; None: the face is what the net takes for it.

    world: the processes that share the faces.
    """

    regions: Path | None = None
    world: World = ALONE
    workers: int = 0
    log_type: str = "progressbar"


@dataclass
class SegmentationResults:
    """rows: as in occlusion.csv; table: pixels of every (true, predicted) pair of labels, (3, 3), 0 without labels.

    examples: (caption, picture (128, 256, 3)) of evaluated faces spread evenly over the dataset.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    table: Tensor = field(default_factory=lambda: torch.zeros(N_LABELS, N_LABELS, dtype=torch.int64))
    examples: list[tuple[str, np.ndarray]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, others: "SegmentationResults") -> None:
        """Appends other faces' results."""
        self.rows += others.rows
        self.table += others.table
        self.examples += others.examples
        self.skipped.update(others.skipped)

    @property
    def columns(self) -> list[str]:
        """The columns of occlusion.csv."""
        return list(self.rows[0])


def occluded_share(predicted: np.ndarray, region: np.ndarray | None) -> float | None:
    """Share in [0, 1] of a face that is called occlusion; None if there is no face.

    predicted: labels (H, W); region: the face, bool (H, W), or None: what is predicted as face or occlusion.
    """
    region = (predicted == FACE) | (predicted == OCCLUSION) if region is None else region
    area = int(region.sum())
    return int((region & (predicted == OCCLUSION)).sum()) / area if area else None


class SegmentationEvaluator:
    """Labels the faces of a dataset and measures the labels.

    dataset: items {"image": uint8 (3, 256, 256), "name", optionally "labels": uint8 (256, 256)};
    network: images (B, 3, 256, 256) in [-1, 1] -> scores or probabilities (B, 3, 256, 256); if it knows hair
    (`models.occlusion.OcclusionNet`), what of the occlusion is none is measured, too.
    """

    def __init__(self, dataset: Dataset, network: nn.Module, options: SegmentationOptions):
        self.dataset, self.network, self.options = dataset, network, options
        self.knows_hair = getattr(network, "knows_hair", False)
        self.found: dict[int, SegmentationResults] = {}  # of this process' faces, by their places in the dataset
        self.examples = report.Spread(SHEET_FACES, len(dataset))

    @torch.no_grad()
    def run(self) -> SegmentationResults:
        """Goes through the dataset once; in others than the main process of several the results are empty."""
        start, world = time.monotonic(), self.options.world
        loader = DataLoader(world.share(self.dataset), batch_size=BATCH_SIZE, num_workers=self.options.workers,
                            worker_init_fn=start_worker)
        for batch in progress(loader, "labelling", len(loader), self.options.log_type if world.is_main else "none"):
            image = from_uint8(batch["image"].to(world.device))
            hair = None
            if self.knows_hair and "labels" not in batch:
                predicted, odds = self.network.with_hair(image)
                hair = odds[:, 0].cpu() > 0
            else:
                predicted = self.network(image)
            predicted = predicted.argmax(1).cpu()
            places = world.places(len(self.found), len(predicted))
            for index, place in enumerate(places):
                self.found[place] = self._face(place, batch, index, predicted[index],
                                               None if hair is None else hair[index])
        results, examples = SegmentationResults(), report.Spread(SHEET_FACES, len(self.dataset))
        for place, found in distributed.gather(self.found, world).items():
            if found.examples and not examples.takes(place):
                found.examples.clear()
            results.add(found)
        results.seconds = time.monotonic() - start
        return results

    def _face(self, place: int, batch: Mapping[str, Any], index: int, predicted: Tensor,
              hair: Tensor | None) -> SegmentationResults:
        name, table = batch["name"][index], None
        try:
            if "labels" in batch:
                table = confusion(batch["labels"][index], predicted)
                measures = overlaps(table)
            else:
                measures = self._share(given_face(batch, index, self.options.regions), predicted, hair)
        except UserError as error:
            return SegmentationResults(skipped={name: str(error)})
        results = SegmentationResults([{"name": name, **measures}])
        if table is not None:
            results.table += table
        if self.examples.takes(place):
            value = measures["share" if table is None else "iou_occlusion"]
            caption = f"{name}: {'-' if value is None else f'{value:.3f}'}"
            results.examples.append((caption, draw_labels(batch["image"][index], predicted)))
        return results

    @staticmethod
    def _share(region: np.ndarray | None, predicted: Tensor, hair: Tensor | None) -> dict[str, float | None]:
        """The numbers of a face without labels in occlusion.csv."""
        shares = {"share": occluded_share(predicted.numpy(), region)}
        if hair is not None:
            others = torch.where(hair & (predicted == OCCLUSION), BACKGROUND, predicted)
            shares["share_without_hair"] = occluded_share(others.numpy(), region)
        return shares


def draw_labels(image: Tensor, predicted: Tensor) -> np.ndarray:
    """A face beside itself tinted by its labels (face green, occlusion red, background blue): uint8 RGB (128, 256, 3).

    image: uint8 (3, 256, 256); predicted: labels (256, 256).
    """
    photo = image.permute(1, 2, 0).numpy()
    colours = 255 * np.array(COLOURS)[predicted.numpy()]
    tinted = np.rint((1 - TINT) * photo + TINT * colours).astype(np.uint8)
    return np.concatenate([cv2.resize(picture, (CELL, CELL), interpolation=cv2.INTER_AREA)
                           for picture in (photo, tinted)], 1)


def summarise(results: SegmentationResults) -> dict[str, Any]:
    """IoU over the pixels of all faces and the table, or the mean and median share; what was skipped, and time."""
    if "share" in results.columns:
        shares = [row["share"] for row in results.rows if row["share"] is not None]
        measures = {"share": report.mean(shares), "share_median": float(np.median(shares)) if shares else None,
                    "without_face": len(results.rows) - len(shares)}
        if "share_without_hair" in results.columns:
            shares = [row["share_without_hair"] for row in results.rows if row["share_without_hair"] is not None]
            measures.update(share_without_hair=report.mean(shares),
                            share_without_hair_median=float(np.median(shares)) if shares else None)
    else:
        ious = overlaps(results.table)
        measures = {"mean_iou": report.mean(list(ious.values())), **ious,
                    "true_predicted_pixels": results.table.tolist()}
    return {"images": len(results.rows), **measures, "skipped": results.skipped, "seconds": round(results.seconds, 1)}


def format_summary(summary: Mapping[str, Any]) -> str:
    """What is printed of a summary."""
    def text(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"
    if "share" in summary:
        def percent(name: str) -> str:
            mean, median = (None if summary[key] is None else 100 * summary[key] for key in (name, f"{name}_median"))
            return f"{text(mean, 2)} % of the face on average, median {text(median, 2)} %; "
        apart = f"without its hair {percent('share_without_hair')}" if "share_without_hair" in summary else ""
        return (f"called occlusion: {percent('share')}{apart}"
                f"no face on {summary['without_face']} of {summary['images']} images")
    names = {"iou_face": "face", "iou_occlusion": "occlusion", "iou_background": "background", "mean_iou": "mean"}
    return "\n".join(["IoU" + "".join(f"{name:>12}" for name in names.values()),
                      "   " + "".join(f"{text(summary[key], 4):>12}" for key in names)])


def evaluate(settings: Any) -> dict[str, Any]:
    """Evaluates the occlusion net as the settings say, prints and writes everything; returns the summary.

    Of several processes (torchrun) each takes its share of the faces, and the main one reports; the others return {}.

    Written are occlusion.csv, summary.json and, with pictures, occlusion.png.

    Raises:
        UserError: weights or data are missing (before any work), or some images could not be used (after all work).
    """
    from engine import build
    folder = Path(settings.output or Path(settings.result_path) / "eval_occlusion")
    with distributed.joined(build.choose_device(settings)) as world, build.results_folder(settings, folder, world):
        return _evaluate(settings, folder, world)


def _evaluate(settings: Any, folder: Path, world: World) -> dict[str, Any]:
    from engine import build
    from models.weights import load_occlusion
    regions = build.face_folder(settings)
    dataset = build.build_test_data(settings)
    network = load_occlusion(settings.occ_ckpt)[0].to(world.device)
    if settings.compile:
        compile_networks(network)
    options = SegmentationOptions(regions, world, settings.nthreads, settings.log_type)
    results = SegmentationEvaluator(dataset, network, options).run()
    if not world.is_main:
        return {}
    results.skipped.update(getattr(dataset, "unreadable", {}))
    if not results.rows:
        raise UserError(f"no face could be evaluated; the first: {next(iter(results.skipped.values()))}")
    summary = {**summarise(results), "settings": build.plain_settings(settings)}
    report.write_csv(folder / "occlusion.csv", results.rows, results.columns)
    report.write_json(folder / "summary.json", summary)
    if settings.save_results:
        captions, pictures = zip(*results.examples)
        report.draw_sheet(folder / "occlusion.png", pictures, captions, SHEET_COLUMNS)
    note("\n" + format_summary(summary))
    note(f"\n{len(results.rows)} faces in {results.seconds:.0f} s; results in {folder}")
    if results.skipped:
        raise UserError(f"{len(results.skipped)} of {len(results.skipped) + len(results.rows)} faces were skipped: "
                        + "; ".join(results.skipped.values()))
    return summary
