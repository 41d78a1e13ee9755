"""Evaluation of the encoder and of the occlusion net alone: exact measures, what is written, what is refused."""
from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from torch import nn

from engine_samples import SmallEncoder, SmallFaces, SmallOcclusion, settings, small_definition

import main
from datasets.alignment import window
from datasets.labels import BACKGROUND, FACE, OCCLUSION
from datasets.masks import fixed_hole, mask_ratio
from engine import build, landmark_evaluation, segmentation_evaluation
from engine.encoder_stage import OUTER_EYES, Geometry, landmark_error
from engine.landmark_evaluation import LandmarkEvaluator, LandmarkOptions, partial_hole, point_errors, read_annotations
from engine.portraits import crop_landmarks
from engine.segmentation_evaluation import SegmentationEvaluator, SegmentationOptions, confusion, overlaps
from models import weights
from models.blending import from_uint8
from models.morphable import MorphableModel
from models.occlusion import N_LABELS
from utils.errors import UserError
from utils.images import read_image, write_image

QUIET = {"ngpu": 0, "nthreads": 0, "log_type": "none"}
EYE_DISTANCE = 50.0


@pytest.fixture(scope="module")
def face_finder():
    """(small encoder, geometry)."""
    torch.manual_seed(0)
    definition = small_definition()
    return SmallEncoder().eval(), Geometry(MorphableModel(definition), definition.coefficient_parity,
                                           definition.coefficient_mean, definition.coefficient_std)


@pytest.fixture
def photos(tmp_path):
    """Two crops without labels, the hole and the face of each."""
    for index in range(2):
        item = SmallFaces(2)[index]
        face = item["labels"].numpy() == FACE
        write_image(tmp_path / "crops" / f"photo{index}.png", item["image"].permute(1, 2, 0).numpy())
        write_image(tmp_path / "faces" / f"photo{index}.png", face)
        write_image(tmp_path / "masks" / f"photo{index}.png", face & (np.arange(256) < 128))
    return tmp_path


def plausible_points(seed: int = 0) -> torch.Tensor:
    """68 points with outer eye corners EYE_DISTANCE apart."""
    points = torch.from_numpy(np.random.default_rng(seed).uniform(60, 190, (68, 2))).float()
    points[OUTER_EYES[1]] = points[OUTER_EYES[0]] + torch.tensor([EYE_DISTANCE, 0])
    return points


def annotate(path, **points):
    path.write_text(json.dumps({name: {"landmarks68": values.tolist()} for name, values in points.items()}))
    return str(path)


# ---- landmarks ---------------------------------------------------------------------------------------------------

def test_point_errors():
    truth = torch.stack([plausible_points(seed) for seed in range(3)])
    assert not point_errors(truth, truth).any()
    moved = point_errors(truth + torch.tensor([3.0, -4.0]), truth)
    assert torch.allclose(moved, torch.full((3, 68), 100 * 5 / EYE_DISTANCE), atol=1e-3)
    found = truth + torch.randn(truth.shape)
    assert torch.allclose(point_errors(found, truth).mean(1), landmark_error(found, truth))


class MovedTruth(SmallFaces):
    """Faces whose true landmarks are where the encoder sees them without a hole, moved by `change`."""

    def __init__(self, length, face_finder, change):
        super().__init__(length)
        self.encoder, self.geometry = face_finder
        self.change = torch.tensor(change)

    @torch.no_grad()
    def __getitem__(self, index):
        item = super().__getitem__(index)
        code = self.encoder(window(from_uint8(item["image"][None])))
        found = crop_landmarks(code.shape, code.scale, code.pose, self.geometry)[0]
        return {**item, "landmarks": found + self.change}


@pytest.mark.parametrize("change", [(0.0, 0.0), (6.0, 8.0)])
def test_evaluator_measures_the_encoder(face_finder, change):
    """Zero for perfect landmarks, the distance for moved ones; with a hole the encoder says other things."""
    faces = MovedTruth(3, face_finder, change)
    results = LandmarkEvaluator(faces, *face_finder, LandmarkOptions(log_type="none")).run()
    assert [row["name"] for row in results.rows] == ["face_0", "face_1", "face_2"]
    for row, item in zip(results.rows, faces):
        eyes = (item["landmarks"][OUTER_EYES[0]] - item["landmarks"][OUTER_EYES[1]]).norm()
        for column in ("nme", "nme_inner"):
            assert row[column] == pytest.approx(float(100 * torch.tensor(change).norm() / eyes), abs=1e-2)
        assert 0.3 <= row["ratio"] <= 0.9 and row["nme_hole"] != pytest.approx(row["nme"], abs=1e-2)
    assert [error for error, *_ in results.worst] == sorted(results.values("nme_hole"), reverse=True)
    summary = landmark_evaluation.summarise(results)
    assert summary["nme_hole"]["mean"] == pytest.approx(np.mean(results.values("nme_hole")))
    assert sum(row["images"] for row in summary["bins"]) == summary["images"] == 3


def test_the_encoder_sees_zeros_in_the_hole(face_finder):
    seen = []
    encoder = lambda image: seen.append(image) or face_finder[0](image)
    LandmarkEvaluator(SmallFaces(1), encoder, face_finder[1], LandmarkOptions(seed=3, log_type="none")).run()
    item = SmallFaces(1)[0]
    hole = window(torch.from_numpy(partial_hole(3, "face_0", item["labels"].numpy() == FACE)))
    assert not seen[1][..., hole].any()
    assert torch.equal(seen[1][..., ~hole], seen[0][..., ~hole])


def test_partial_holes_are_fixed_and_neither_small_nor_all():
    face = SmallFaces(1)[0]["labels"].numpy() == FACE
    for index in range(20):
        hole = partial_hole(0, f"name{index}", face)
        assert 0.3 <= mask_ratio(face, hole) <= 0.9 and not (hole & ~face).any()
        assert (hole == partial_hole(0, f"name{index}", face)).all()
        first = fixed_hole(0, f"name{index}", face)
        assert not 0.3 <= mask_ratio(face, first) <= 0.9 or (hole == first).all()
    with pytest.raises(UserError, match="lost"):
        partial_hole(0, "lost", np.zeros((256, 256), bool))


def test_both_layouts_of_annotations(tmp_path):
    entries = {"a": {"lm5": "1,2", "landmarks68": plausible_points().tolist()}, "b": {"lm5": "1,2"}, "c": {}}
    for layout in (entries, {"group": entries, "other": {"d": {"lm5": "3,4"}}}):
        (tmp_path / "points.json").write_text(json.dumps(layout))
        found = read_annotations(tmp_path / "points.json")
        assert list(found) == ["a"] and torch.equal(found["a"], plausible_points())


POINTS = [[float(index), 0.0] for index in range(68)]


@pytest.mark.parametrize("text, message", [
    (None, "No such file"),
    ("{", "no JSON"),
    ("[1, 2]", "not of the form"),
    ('{"a": 1}', "not of the form"),
    ('{"a": {"landmarks68": "many"}}', "landmarks68 of a"),
    ('{"a": {"landmarks68": [[1, 2], [3]]}}', "landmarks68 of a"),
    (json.dumps({"a": {"landmarks68": POINTS[:67]}}), r"\(67, 2\)"),
    (json.dumps({"a": {"landmarks68": [*POINTS[:67], [float("nan"), 0]]}}), "finite"),
    (json.dumps({"a": {"landmarks68": [[1, 1]] * 68}}), "one place"),
    (json.dumps({"one": {"a": {"landmarks68": POINTS}}, "two": {"a": {"landmarks68": POINTS}}}), "two groups"),
])
def test_bad_annotations(tmp_path, text, message):
    path = tmp_path / "points.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_photos_with_landmarks(monkeypatch, capsys, face_finder, photos):
    """The documented outputs; the ratio is of --face-dir; a face without landmarks is counted and left out."""
    monkeypatch.setattr(build, "build_encoder", lambda settings, device: face_finder)
    write_image(photos / "crops" / "unknown.png", np.zeros((256, 256, 3), np.uint8))
    annotations = annotate(photos / "points.json", photo0=plausible_points(0), photo1=plausible_points(1))
    summary = landmark_evaluation.evaluate(settings(
        **QUIET, stage="encoder", dataset_test="Faces", dataroot=str(photos / "crops"), annotations=annotations,
        mask_dir=str(photos / "masks"), face_dir=str(photos / "faces"), output=str(photos / "out")))
    rows = list(csv.DictReader((photos / "out" / "landmarks.csv").open()))
    assert list(rows[0]) == ["name", "ratio", "nme", "nme_inner", "nme_hole", "nme_inner_hole"]
    assert [row["name"] for row in rows] == ["photo0", "photo1"]
    face = read_image(photos / "faces" / "photo0.png")[..., 0] > 127
    assert float(rows[0]["ratio"]) == pytest.approx(face[:, :128].sum() / face.sum(), abs=1e-6)
    written = json.loads((photos / "out" / "summary.json").read_text())
    assert written["images"] == 2 and written["unannotated"] == 1 and written["nme"] == summary["nme"]
    assert read_image(photos / "out" / "landmarks.png").shape == (256 + 18, 2 * (512 + 2), 3)
    printed = capsys.readouterr().out
    assert "with hole" in printed and "1 faces have no landmarks68" in printed


def test_a_face_without_mask_is_reported_at_the_end(monkeypatch, face_finder, photos):
    monkeypatch.setattr(build, "build_encoder", lambda settings, device: face_finder)
    (photos / "masks" / "photo1.png").unlink()
    annotations = annotate(photos / "points.json", photo0=plausible_points(0), photo1=plausible_points(1))
    with pytest.raises(UserError, match="1 of 2 faces were skipped.*photo1"):
        landmark_evaluation.evaluate(settings(
            **QUIET, dataset_test="Faces", dataroot=str(photos / "crops"), annotations=annotations,
            mask_dir=str(photos / "masks"), output=str(photos / "out")))
    assert len((photos / "out" / "landmarks.csv").read_text().splitlines()) == 1 + 1


def test_masks_of_what_is_visible(photos):
    masks = landmark_evaluation.choose_masks(settings(mask_dir=str(photos / "masks"), mask_is_visible=True))
    assert (masks.hole("photo0") != (read_image(photos / "masks" / "photo0.png")[..., 0] > 0)).all()


def test_no_common_names(photos):
    with pytest.raises(UserError, match="none of the 2 faces.*photo0"):
        landmark_evaluation.evaluate(settings(
            **QUIET, dataset_test="Faces", dataroot=str(photos / "crops"), mask_dir=str(photos / "masks"),
            annotations=annotate(photos / "points.json", other=plausible_points()), output=str(photos / "out")))


@pytest.mark.parametrize("values, message", [
    ({"annotations": "points.json"}, "leave --annotations out"),
    ({"face_dir": "faces"}, "leave --face-dir out"),
    ({"mask_source": "occlusion"}, "--mask-source occlusion"),
    ({"dataset_test": "Faces", "dataroot": "crops"}, "--mask-dir"),
    ({"dataset_test": "Faces", "dataroot": "crops", "mask_dir": "masks"}, "--annotations FILE"),
    ({"dataset_test": "Faces", "dataroot": "crops", "mask_dir": "masks", "face_dir": "nowhere"}, "nowhere"),
    ({"_3dmm_ckpt": "nowhere.pth"}, "nowhere.pth"),
])
def test_landmark_options_that_contradict_or_are_missing(monkeypatch, photos, values, message):
    monkeypatch.chdir(photos)
    with pytest.raises(UserError, match=message):
        landmark_evaluation.evaluate(settings(**QUIET, stage="encoder", **values))
    assert not (photos / "results").exists()


# ---- segmentation ------------------------------------------------------------------------------------------------

class Fixed(nn.Module):
    """Always the same labels (256, 256), as scores."""

    def __init__(self, labels):
        super().__init__()
        self.labels = labels.long()

    def forward(self, image):
        return nn.functional.one_hot(self.labels, N_LABELS).permute(2, 0, 1).float().expand(len(image), -1, -1, -1)


def test_overlaps():
    labels = torch.tensor([[FACE, FACE, OCCLUSION, BACKGROUND]])
    assert set(overlaps(confusion(labels, labels)).values()) == {1.0}
    table = confusion(labels, torch.tensor([[FACE, OCCLUSION, OCCLUSION, BACKGROUND]]))
    assert overlaps(table) == {"iou_face": 1 / 2, "iou_occlusion": 1 / 2, "iou_background": 1.0}
    nothing = torch.full((4, 4), BACKGROUND)
    assert overlaps(confusion(nothing, nothing)) == {"iou_face": None, "iou_occlusion": None, "iou_background": 1.0}


def test_a_perfect_net_overlaps_wholly():
    faces = SmallFaces(3)
    results = SegmentationEvaluator(faces, Fixed(faces[0]["labels"]), SegmentationOptions(log_type="none")).run()
    summary = segmentation_evaluation.summarise(results)
    assert summary["mean_iou"] == 1 and results.table.sum() == 3 * 256 ** 2
    assert results.columns == ["name", "iou_face", "iou_occlusion", "iou_background"]
    assert all(picture.shape == (128, 256, 3) for _, picture in results.examples) and len(results.examples) == 3


def run_occlusion(monkeypatch, network, **values):
    monkeypatch.setattr(weights, "load_occlusion", lambda path: (network, {}))
    return segmentation_evaluation.evaluate(settings(**QUIET, stage="occlusion", **values))


def test_photos_without_labels(monkeypatch, capsys, photos):
    """Without --face-dir the share of the predicted head, with it of that region."""
    labels = SmallFaces(1)[0]["labels"]
    predicted = labels.clone()
    predicted[:, 128:][labels[:, 128:] == FACE] = OCCLUSION
    found = {}
    for face_dir in (None, str(photos / "faces")):
        summary = run_occlusion(monkeypatch, Fixed(predicted), dataset_test="Faces", dataroot=str(photos / "crops"),
                                face_dir=face_dir, output=str(photos / "out"), overwrite=face_dir is not None)
        found[face_dir] = summary["share"]
        rows = list(csv.DictReader((photos / "out" / "occlusion.csv").open()))
        assert [float(row["share"]) for row in rows] == pytest.approx([summary["share"]] * 2, abs=1e-6)
    head, face = (predicted != BACKGROUND).numpy(), (labels == FACE).numpy()
    assert found[None] == pytest.approx((predicted == OCCLUSION).sum().item() / head.sum())
    assert found[str(photos / "faces")] == pytest.approx(face[:, 128:].sum() / face.sum())
    assert read_image(photos / "out" / "occlusion.png").shape == (128 + 18, 2 * (256 + 2), 3)
    assert json.loads((photos / "out" / "summary.json").read_text())["images"] == 2
    assert "called occlusion" in capsys.readouterr().out


def test_a_missing_face_region_is_reported_at_the_end(monkeypatch, photos):
    (photos / "faces" / "photo1.png").unlink()
    with pytest.raises(UserError, match="1 of 2 faces were skipped.*photo1.png"):
        run_occlusion(monkeypatch, Fixed(SmallFaces(1)[0]["labels"]), dataset_test="Faces",
                      dataroot=str(photos / "crops"), face_dir=str(photos / "faces"), output=str(photos / "out"))


def test_photos_on_which_nothing_is_face(monkeypatch, capsys, photos):
    summary = run_occlusion(monkeypatch, Fixed(torch.full((256, 256), BACKGROUND)), dataset_test="Faces",
                            dataroot=str(photos / "crops"), output=str(photos / "out"))
    assert summary["share"] is None and summary["without_face"] == 2
    assert "no face on 2 of 2" in capsys.readouterr().out


# ---- the command -------------------------------------------------------------------------------------------------

def test_the_command_evaluates_the_stage(monkeypatch, face_finder, photos, capsys):
    """--stage chooses the part; results go below --result-path."""
    monkeypatch.setattr(build, "build_encoder", lambda settings, device: face_finder)
    monkeypatch.setattr(weights, "load_occlusion", lambda path: (SmallOcclusion().eval(), {}))
    kinds = []

    def build_test_data(settings):
        kinds.append(settings.stage)
        return SmallFaces(2)

    monkeypatch.setattr(build, "build_test_data", build_test_data)
    for stage in ("encoder", "occlusion"):
        main.main(["--eval", "--stage", stage, "--result-path", str(photos), "--ngpu", "0", "--nthreads", "0"])
    assert kinds == ["encoder", "occlusion"]
    assert {path.name for path in (photos / "eval_encoder").iterdir()} == {"landmarks.csv", "landmarks.png",
                                                                          "summary.json"}
    assert {path.name for path in (photos / "eval_occlusion").iterdir()} == {"occlusion.csv", "occlusion.png",
                                                                            "summary.json"}
    assert "IoU" in capsys.readouterr().out


@pytest.mark.parametrize("stage, occluders", [("encoder", False), ("occlusion", True), ("inpainter", False)])
def test_occluders_are_there_to_be_found(stage, occluders):
    assert build.build_test_data(settings(stage=stage)).occluders is occluders
