"""Evaluation end to end with small networks: what is written, what is scored, what is refused."""
from __future__ import annotations

import csv
import json
import threading
import zlib

import cv2
import numpy as np
import face_samples
import pytest
import torch

from engine_samples import SmallEncoder, SmallFaces, SmallInpainter, SmallOcclusion, settings, small_definition

from datasets.masks import MaskFolder, fixed_hole
from engine import build, evaluation, export, pretrained
from engine.evaluation import EvaluationOptions, Evaluator
from engine.metrics import psnr
from engine.report import Spread
from models.blending import from_uint8
from models.completion import FaceCompletion
from models.morphable import MorphableModel
from utils import checkpoints
from utils.errors import UserError
from utils.images import read_image, read_mask, write_image


@pytest.fixture(scope="module")
def completion():
    torch.manual_seed(0)
    model = MorphableModel(small_definition())
    return FaceCompletion(SmallEncoder(), SmallInpainter(), model, SmallOcclusion(), iterations=1).eval()


@pytest.fixture
def photos(tmp_path):
    """Three crops and the holes of two shapes, and a broken picture."""
    for index in range(3):
        picture = SmallFaces(3)[index]["image"].permute(1, 2, 0).numpy()
        write_image(tmp_path / "crops" / f"photo{index}.png", picture)
        mask = np.zeros((256, 256), np.uint8)
        mask[100:180, 60 + 10 * index:150] = 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "masks" / f"photo{index}.png"), mask)
    return tmp_path


def run(monkeypatch, completion, **values):
    monkeypatch.setattr(build, "build_completion", lambda settings, device: completion)
    monkeypatch.setattr(evaluation, "open_lpips", lambda path, device: (None, "no features"))
    return evaluation.evaluate(settings(ngpu=0, nthreads=0, log_type="traditional", **values))


def test_folder_with_masks(monkeypatch, capsys, completion, photos):
    """The documented outputs: pictures identical outside the hole, both tables, summary, landmarks, pictures."""
    out = photos / "out"
    run(monkeypatch, completion, dataset_test="Faces", dataroot=str(photos / "crops"), mask_dir=str(photos / "masks"),
        output=str(out), save_landmarks=True)
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert list(rows[0]) == ["name", "ratio", "psnr", "ssim", "lpips"]
    assert [row["name"] for row in rows] == ["photo0", "photo1", "photo2"]
    for row in rows:
        truth, output = read_image(photos / "crops" / f"{row['name']}.png"), read_image(out / f"{row['name']}.png")
        hole = cv2.imread(str(photos / "masks" / f"{row['name']}.png"), 0) > 127
        assert output.shape == (256, 256, 3) and (output[~hole] == truth[~hole]).all()
        assert (output[hole] != truth[hole]).any()
        assert float(row["psnr"]) == pytest.approx(psnr(output, truth), abs=1e-5)
        assert row["lpips"] == ""
        points = np.loadtxt(out / f"{row['name']}.txt")
        assert points.shape == (68, 2) and np.isfinite(points).all()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["images"] == 3 and summary["lpips_missing"] == "no features"
    assert summary["psnr"] == pytest.approx(np.mean([float(row["psnr"]) for row in rows]), abs=1e-5)
    assert set(summary["methods"]) == {"3DFaceFill", "Telea", "Navier-Stokes", "mirrored half"}
    assert len((out / "baselines.csv").read_text().splitlines()) == 1 + 9
    assert read_image(out / "curves.png").size and read_image(out / "examples.png").size
    printed = capsys.readouterr().out
    assert "average" in printed and "mirrored half" in printed and "LPIPS is not available" in printed


def test_masks_of_what_is_visible(monkeypatch, completion, photos):
    asked = {"dataset_test": "Faces", "dataroot": str(photos / "crops")}
    for path in (photos / "masks").iterdir():
        write_image(photos / "inverted" / path.name, 255 - cv2.imread(str(path), 0))
    run(monkeypatch, completion, **asked, mask_dir=str(photos / "masks"), output=str(photos / "out"))
    run(monkeypatch, completion, **asked, mask_dir=str(photos / "inverted"), output=str(photos / "again"),
        mask_is_visible=True)
    assert (photos / "out" / "metrics.csv").read_text() == (photos / "again" / "metrics.csv").read_text()


def test_unreadable_and_unmasked_images_are_listed_at_the_end(monkeypatch, completion, photos):
    (photos / "crops" / "broken.png").write_bytes(b"")
    (photos / "masks" / "photo1.png").unlink()
    out = photos / "out"
    with pytest.raises(UserError, match=r"2 of 4 images were skipped.*photo1.*broken") as caught:
        run(monkeypatch, completion, dataset_test="Faces", dataroot=str(photos / "crops"),
            mask_dir=str(photos / "masks"), output=str(out))
    assert "\n" not in str(caught.value)
    assert [row["name"] for row in csv.DictReader((out / "metrics.csv").open())] == ["photo0", "photo2"]


def test_examples_are_of_faces_that_could_be_evaluated(monkeypatch, completion, photos):
    monkeypatch.setattr(evaluation, "EXAMPLES", 1)
    (photos / "masks" / "photo0.png").unlink()
    out = photos / "out"
    with pytest.raises(UserError, match="1 of 3 images were skipped.*photo0"):
        run(monkeypatch, completion, dataset_test="Faces", dataroot=str(photos / "crops"),
            mask_dir=str(photos / "masks"), output=str(out))
    truth = read_image(photos / "crops" / "photo1.png")
    assert (read_image(out / "examples.png")[-258:-2, -258:-2] == truth).all() and (out / "summary.json").exists()


def test_examples_do_not_depend_on_the_number_of_processes():
    """Each process asks about its own usable faces, then the main one about all that were taken."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        usable = np.flatnonzero(rng.random(40) < rng.uniform(0.05, 1)).tolist()
        alone = Spread(5, 40)
        expected = [place for place in usable if alone.takes(place)]
        shares = [Spread(5, 40) for _ in range(3)]
        taken = [place for place in usable if shares[place % 3].takes(place)]
        together = Spread(5, 40)
        assert [place for place in taken if together.takes(place)] == expected
        assert len(expected) <= 5 and bool(expected) == bool(usable)
    everything = Spread(5, 40)
    assert [place for place in range(40) if everything.takes(place)] == [0, 10, 20, 29, 39]


def test_window_resolution(monkeypatch, completion, photos):
    out = photos / "out"
    run(monkeypatch, completion, dataset_test="Faces", dataroot=str(photos / "crops"), mask_dir=str(photos / "masks"),
        output=str(out), resolution=[224, 224], save_landmarks=True)
    truth = read_image(photos / "crops" / "photo0.png")[16:240, 16:240]
    hole = cv2.imread(str(photos / "masks" / "photo0.png"), 0)[16:240, 16:240] > 127
    assert (read_image(out / "photo0.png")[~hole] == truth[~hole]).all()
    image = from_uint8(torch.from_numpy(truth.transpose(2, 0, 1).copy())[None])
    with torch.no_grad():
        landmarks = completion(image, torch.from_numpy(hole)[None, None]).landmarks[0].numpy()
    np.testing.assert_allclose(np.loadtxt(out / "photo0.txt"), landmarks + 16, atol=0.01)  # in pixels of the crop


def test_random_holes_are_fixed_by_seed_and_name(tmp_path, completion):
    """The same holes whatever the order; the ratio is that of hole and labelled face."""
    class Reversed(SmallFaces):
        def __getitem__(self, index):
            return super().__getitem__(self.length - 1 - index)

    found = []
    for dataset in (SmallFaces(3), Reversed(3)):
        options = EvaluationOptions(tmp_path, seed=4, save_pictures=False, log_type="traditional")
        results = Evaluator(dataset, completion, options, None).run()
        found.append(dict(zip(results.names, zip(results.ratios, results.scores["PSNR"]["Telea"]))))
    assert found[0] == found[1]
    face = SmallFaces(3)[1]["labels"].numpy() == 0
    expected = (fixed_hole(4, "face_1", face) & face).sum() / face.sum()
    assert found[0]["face_1"][0] == pytest.approx(expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("resolution", [[256, 256], [224, 224]])
def test_saved_holes_are_those_that_mask_dir_reads(monkeypatch, completion, photos, resolution):
    """Whatever the net that found the faces says by then."""
    asked = {"dataset_test": "Faces", "dataroot": str(photos / "crops"), "resolution": resolution}
    monkeypatch.setattr(completion, "label", lambda image: torch.full_like(image, 1))
    run(monkeypatch, completion, **asked, output=str(photos / "first"), save_masks=True)
    for name in ("photo0", "photo1", "photo2"):
        saved, margin = read_mask(photos / "first" / "masks" / f"{name}.png"), (256 - resolution[0]) // 2
        assert (saved == np.pad(fixed_hole(0, name, np.ones(resolution, bool)), margin)).all()
    run(monkeypatch, completion, **asked, output=str(photos / "again"), mask_dir=str(photos / "first" / "masks"))
    tables = [(photos / folder / "metrics.csv").read_text() for folder in ("first", "again")]
    assert tables[0] == tables[1] and not (photos / "again" / "masks").exists()


def test_predicted_occluders_have_no_truth(tmp_path, completion):
    options = EvaluationOptions(tmp_path, source="occlusion", log_type="traditional")
    results = Evaluator(SmallFaces(2), completion, options, lambda a, b: 1 / 0).run()
    assert results.scores["PSNR"]["3DFaceFill"] == [None, None]
    assert (tmp_path / "face_0.png").exists()


def test_lpips_is_used_where_it_is_available(tmp_path, completion):
    options = EvaluationOptions(tmp_path, save_pictures=False, log_type="traditional")
    results = Evaluator(SmallFaces(1), completion, options, lambda output, truth: 0.25).run()
    assert results.scores["LPIPS"]["3DFaceFill"] == [0.25]


def test_faces_are_scored_while_others_are_completed_and_errors_end_it(tmp_path, monkeypatch, completion):
    """With a GPU, scores of a batch run in threads beside the next one's completion; what goes wrong there goes wrong
    here."""
    assert evaluation.scoring_threads(torch.device("cuda")) >= 1 and not evaluation.scoring_threads(torch.device("cpu"))
    monkeypatch.setattr(evaluation, "scoring_threads", lambda device: 1)
    monkeypatch.setattr(evaluation, "BATCH_SIZE", {"cpu": 1})
    main, begun, beside = threading.current_thread(), threading.Event(), []

    def complete(image, hole):
        beside.append(begun.wait(30) if beside else True)  # the second waits for the first one's score to be under way
        return completion(image, hole)

    def score(output, truth):
        begun.set()
        assert threading.current_thread() is not main and torch.get_num_threads() == 1
        return 0.25

    class Slow:
        label, predict_hole = completion.label, completion.predict_hole
        __call__ = staticmethod(complete)

    results = Evaluator(SmallFaces(3), Slow(), EvaluationOptions(tmp_path), score).run()
    assert beside == [True] * 3 and results.scores["LPIPS"]["3DFaceFill"] == [0.25] * 3

    def fail(output, truth):
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="disk is full"):
        Evaluator(SmallFaces(3), completion, EvaluationOptions(tmp_path), fail).run()


def test_features_of_a_named_file_are_used_or_it_is_an_error(monkeypatch, completion, photos):
    """Without a name LPIPS is left out where there are none."""
    asked = []

    def load(path):
        asked.append(path)
        raise UserError("no features")

    monkeypatch.setattr(pretrained, "load_lpips_alex", load)
    assert evaluation.open_lpips(None, torch.device("cpu")) == (None, "no features")
    monkeypatch.setattr(build, "build_completion", lambda settings, device: completion)
    with pytest.raises(UserError, match="no features"):
        evaluation.evaluate(settings(ngpu=0, dataset_test="Faces", dataroot=str(photos / "crops"),
                                     output=str(photos / "out"), alexnet_ckpt="own.pth"))
    monkeypatch.setattr(pretrained, "load_vgg_features", load)
    with pytest.raises(UserError, match="no features"):
        build._completion_losses(settings(is_using_frecon=True, vgg_ckpt="vgg.pth"))
    assert asked == [None, "own.pth", "vgg.pth"]


@pytest.mark.parametrize("values, message", [
    ({"mask_source": "file"}, "--mask-dir"),
    ({"mask_source": "random", "mask_dir": "masks"}, "--mask-dir"),
    ({"mask_dir": "no-such-folder"}, "no-such-folder"),
    ({"dataset_test": "Faces"}, "--dataroot"),
    ({"dataset_test": "CelebA", "dataroot": "no-such-folder"}, "no-such-folder"),
])
def test_contradictions_and_missing_data(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        evaluation.evaluate(settings(ngpu=0, output=str(tmp_path), **values))


def test_missing_inpainter_weights_refuse_to_run(photos):
    """Nothing is completed with random weights."""
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        evaluation.evaluate(settings(ngpu=0, dataset_test="Faces", dataroot=str(photos / "crops"),
                                     recon_ckpt=str(photos / "nowhere.pth"), output=str(photos / "out")))
    assert not (photos / "out").exists()


@pytest.mark.parametrize("values, message", [
    ({"stage": "encoder", "dataset_train": "CelebA"}, "Synthetic"),
    ({"stage": "occlusion", "dataset_train": "Faces"}, "CelebAMaskHQ"),
    ({"stage": "inpainter", "dataset_train": "Faces"}, "--dataroot"),
    ({"dataset_options": {"lenght": 3}}, "lenght.*length, seed"),
    ({"dataset_options": {"length": "many"}}, "whole number"),
    ({"loss_options": {"image": "x"}}, "give a number"),
    ({"loss_options": {"image": -1}}, "give a number"),
    ({"loss_options": {"rectangles": 70}}, "from 0 to 1"),
    ({"loss_options": {"hole_wieght": 0}}, "hole_weight"),
    ({"stage": "encoder", "loss_options": {"albedo": 1, "albedo_every": 0}}, "albedo_every.*whole number from 1"),
    ({"stage": "encoder", "loss_options": {"albedo": 1, "albedo_items": 1.5}}, "albedo_items.*whole number from 1"),
    ({"dataset_options": {"length": True}}, "whole number"),
])
def test_data_that_cannot_train_a_stage(values, message):
    with pytest.raises(UserError, match=message):
        build.build_training_data(settings(**values))


@pytest.mark.parametrize("values, expected, line", [
    ({"dataset_train": "Synthetic"}, range(10), "all faces are evaluated, 10 of 10"),
    ({"dataset_train": "Faces"}, range(8, 10), "the test split is evaluated, 2 of 10"),
    ({"dataset_train": "Faces", "dataset_options": {"split": "dev"}}, [7], "the dev split is evaluated, 1 of 10"),
    ({"dataset_train": "Faces", "dataset_options": {"split": None}}, range(10), "all faces are evaluated, 10 of 10"),
])
def test_faces_that_were_trained_on_are_evaluated_only_when_asked(tmp_path, capsys, values, expected, line):
    """The published args.txt names Faces for both. Whatever is evaluated, trainings share no face."""
    for index in range(10):
        write_image(tmp_path / f"{index}.png", np.full((256, 256, 3), index, np.uint8))
    chosen = settings(dataset_test="Faces", dataroot=str(tmp_path), train_dev_percent=0.8, **values)
    assert build.build_test_data(chosen).names == [str(index) for index in expected]
    assert capsys.readouterr().out == f"{tmp_path}: {line}\n"
    if chosen.dataset_train == "Faces":
        train, dev = build.build_training_data(chosen)
        assert train.names == [str(index) for index in range(7)] and dev.names == ["7"]


def test_options_of_a_folder_are_those_of_its_dataset(tmp_path, monkeypatch):
    """And a defect of the dataset is not taken for one of them."""
    folder = {"dataset_train": "Faces", "dataroot": str(tmp_path)}
    for options, message in (({"size": 3}, "--dataset-options size: of Faces split, train_dev_percent, verify can be"),
                             ({"root": "x"}, "--dataset-options root: of Faces"),
                             ({"train_dev_percent": "80"}, "train_dev_percent is '80'")):
        write_image(tmp_path / "a.png", np.zeros((256, 256, 3), np.uint8))
        with pytest.raises(UserError, match=message):
            build.build_training_data(settings(**folder, dataset_options=options))
    monkeypatch.setattr("datasets.faces.split_names", lambda names, percent: None + 1)
    with pytest.raises(TypeError):
        build.build_training_data(settings(**folder))


def test_a_run_is_not_overwritten(tmp_path):
    (tmp_path / "last.pth").write_bytes(b"x")
    with pytest.raises(UserError, match="--resume"):
        build.run_folder(settings(save_dir=str(tmp_path)))
    assert build.run_folder(settings(save_dir=str(tmp_path), overwrite=True)) == tmp_path


def test_a_resumed_run_stays_in_its_folder_and_replaces_no_other(tmp_path):
    for name in ("encoder", "encoder_b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.pth").write_bytes(b"x")
    mine, other = tmp_path / "encoder_b", tmp_path / "encoder"
    for resumed in (mine, mine / "last.pth"):
        chosen = settings(stage="encoder", result_path=str(tmp_path), resume=str(resumed))
        assert build.run_folder(chosen) == mine and build.run_folder(chosen.replace(save_dir=str(mine))) == mine
    with pytest.raises(UserError, match="holds a run already"):
        build.run_folder(chosen.replace(save_dir=str(other)))
    with pytest.raises(UserError, match="holds a run already"):  # a copy of one run beside another's checkpoints
        build.run_folder(chosen.replace(resume=str(mine / "copy.pth")))
    assert build.run_folder(chosen.replace(save_dir=str(tmp_path / "new"))) == tmp_path / "new"


@pytest.mark.parametrize("model_type, option", [("3dmm_pca", "recon_ckpt"), ("linear", "linear_ckpt")])
def test_albedo_of_another_uv_map_is_refused(tmp_path, model_type, option):
    mine, chosen = MorphableModel(small_definition()), settings(model_type=model_type)
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')} .* of another morphable model"):
        build._load_inpainter(chosen)(mine)
    network = "linear" if model_type == "linear" else "inpainter"
    state, metadata = checkpoints.load_weights(getattr(chosen, option), network)
    assert "uv_layout" not in metadata  # from before it was stored, when there was the built-in model's alone
    checkpoints.save_weights(tmp_path / "mine.pth", network, state, {"uv_layout": mine.uv_layout})
    chosen = chosen.replace(**{option: tmp_path / "mine.pth"})
    build._load_inpainter(chosen)(mine)
    with pytest.raises(UserError, match="of another morphable model"):
        build._load_inpainter(chosen)(face_samples.morphable())


@pytest.mark.parametrize("metadata, fits", [
    ({"source": "weights"}, False), ({"source": "published"}, True), ({"source": "training"}, True),
    ({"source": "training", "uv_layout": "another"}, False)])
def test_what_is_known_of_a_files_uv_map(metadata, fits):
    known = build.Known(torch.nn.Identity(), metadata, "a.pth", "train one")
    if fits:
        assert known.on(MorphableModel(small_definition())) is known.network
    else:
        with pytest.raises(UserError, match="a.pth completes the UV map of another"):
            known.on(MorphableModel(small_definition()))


def test_definition_follows_the_encoder():
    auto = settings()
    assert build.choose_definition(auto, None) == "builtin"
    assert build.choose_definition(auto, {"source": "published"}) == build.PUBLISHED_DEFINITION
    assert build.choose_definition(auto, {"source": "weights", "definition": "my/model"}) == "my/model"
    assert build.choose_definition(settings(definition="other"), {"source": "published"}) == "other"


def test_the_published_definition_is_the_repositorys_from_anywhere(monkeypatch):
    read = []
    monkeypatch.setattr(build, "load_definition", lambda folder: read.append(str(folder)))
    assert build._read_definition(settings(), {"source": "published"})[0] == build.PUBLISHED_DEFINITION
    build._read_definition(settings(definition=build.PUBLISHED_DEFINITION), {"source": "published"})
    assert read == [str(build.REPOSITORY / build.PUBLISHED_DEFINITION), build.PUBLISHED_DEFINITION]


def test_rounded_weights_are_near_compress_well_and_leave_vectors():
    generator = torch.Generator().manual_seed(0)
    kernel, bias = torch.randn(64, 32, 3, 3, generator=generator), torch.randn(64, generator=generator)
    kernel = kernel.sign() * kernel.abs().clamp(min=1e-3)  # float16 has all its bits from 6e-5 on
    assert torch.equal(export.rounded(bias, 4), bias)
    assert torch.equal(export.rounded(torch.zeros(2, 2), 4), torch.zeros(2, 2))
    sizes = []
    for bits in (10, 7, 4):
        near = export.rounded(kernel, bits)
        assert ((near - kernel).abs() <= kernel.abs() * 2.0 ** -(bits + 1)).all()
        assert torch.equal(near.half().float(), near) and torch.equal(export.rounded(near, bits), near)
        sizes.append(len(zlib.compress(near.half().numpy().tobytes())))
    assert sizes[2] < 0.75 * sizes[0] and sizes[2] < sizes[1] < sizes[0]


def test_export(tmp_path):
    """The averaged weights arrive in half precision, with the story of their training."""
    network = torch.nn.Linear(4, 3)
    averaged = {key: value + 1 for key, value in network.state_dict().items()}
    state = {"format": checkpoints.TRAINING_FORMAT, "version": 1, "stage": "occlusion", "step": 10, "elapsed": 120.0,
             "networks": {"occlusion": network.state_dict()}, "averages": {"occlusion": averaged}, "metadata": {},
             "critics": {}, "optimisers": {}, "rates": {}, "scaler": {}, "random": {}, "epoch": 0, "position": 0,
             "scores": {"mean_iou": 0.5}, "settings": {"batch_size": 4, "accumulate": 2, "dataroot": "/private"}}
    checkpoints.save(tmp_path / "best.pth", state)
    export.export(tmp_path / "best.pth", tmp_path / "weights.pth")
    found, metadata = checkpoints.load_weights(tmp_path / "weights.pth", "occlusion")
    assert torch.allclose(found["weight"], averaged["weight"], atol=1e-3)
    assert metadata["steps"] == 10 and metadata["images_per_process"] == 80 and metadata["minutes"] == 2
    assert "dataroot" not in metadata["settings"]
    export.export(tmp_path / "best.pth", tmp_path / "rounded.pth", bits=2)
    coarse, metadata = checkpoints.load_weights(tmp_path / "rounded.pth", "occlusion")
    assert torch.equal(coarse["weight"], export.rounded(averaged["weight"], 2)) and metadata["bits"] == 2
    assert torch.equal(coarse["bias"], averaged["bias"])
    averaged["weight"] = averaged["weight"].half().float()
    checkpoints.save(tmp_path / "best.pth", state)
    checkpoints.save_weights(tmp_path / "before.pth", "occlusion", averaged, {})
    with pytest.raises(UserError, match="--keep says what is not rounded"):
        export.export(tmp_path / "best.pth", tmp_path / "before.pth", keep=True)
    for keep, expected in ((True, averaged["weight"]), (False, export.rounded(averaged["weight"], 2))):
        export.export(tmp_path / "best.pth", tmp_path / "before.pth", bits=2, keep=keep)
        assert torch.equal(checkpoints.load_weights(tmp_path / "before.pth", "occlusion")[0]["weight"], expected)
    with pytest.raises(UserError, match="albedo_decoder"):
        export.export(tmp_path / "best.pth", tmp_path / "weights.pth", "albedo_decoder")
    with pytest.raises(UserError, match="not a training checkpoint"):
        export.export(tmp_path / "weights.pth", tmp_path / "again.pth")


def test_masks_beside_another_size(tmp_path, completion):
    cv2.imwrite(str(tmp_path / "face_0.png"), np.full((64, 64), 255, np.uint8))
    options = EvaluationOptions(tmp_path / "out", source="file", masks=MaskFolder(tmp_path), log_type="traditional")
    results = Evaluator(SmallFaces(1), completion, options, None).run()
    assert results.ratios == [1.0]


def test_ratio_and_random_holes_are_of_the_given_regions(tmp_path, completion):
    region = np.zeros((256, 256), np.uint8)
    region[100:180, 90:170] = 255
    for name in ("face_0", "face_1"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), region)
    given = EvaluationOptions(tmp_path / "out", regions=tmp_path, log_type="traditional")
    plain = EvaluationOptions(tmp_path / "plain", log_type="traditional")
    found, before = (Evaluator(SmallFaces(2), completion, options, None).run() for options in (given, plain))
    holes = [fixed_hole(0, name, region > 0) for name in found.names]
    assert found.ratios == [pytest.approx((hole & (region > 0)).sum() / (region > 0).sum()) for hole in holes]
    assert found.ratios != before.ratios


def test_faces_without_a_usable_region_are_listed_at_the_end(monkeypatch, completion, photos):
    (photos / "faces").mkdir()
    write_image(photos / "faces" / "photo1.png", np.ones((256, 256), bool))
    (photos / "faces" / "photo2.png").write_bytes(b"broken")
    out = photos / "out"
    with pytest.raises(UserError, match="2 of 3 images were skipped.*photo0.png.*photo2.png"):
        run(monkeypatch, completion, dataset_test="Faces", dataroot=str(photos / "crops"),
            face_dir=str(photos / "faces"), output=str(out))
    assert [row["name"] for row in csv.DictReader((out / "metrics.csv").open())] == ["photo1"]


def test_the_2d_baseline_refuses_the_window():
    """224 pixels are no multiple of what its network needs."""
    with pytest.raises(UserError, match="--resolution"):
        build.build_completion(settings(model_type="2d", resolution=[224, 224], ngpu=0))


@pytest.mark.parametrize("asked, fast, dtype", [
    ("auto", "bf16", torch.bfloat16), ("auto", "fp32", torch.float32), ("auto", "fp16", torch.float32),
    ("fp32", "bf16", torch.float32), ("fp16", "bf16", torch.float16)])
def test_faces_are_completed_in_the_precision_that_is_asked_for_or_fast(monkeypatch, asked, fast, dtype):
    choose = build.choose_precision
    monkeypatch.setattr(build, "choose_precision", lambda given, _: fast if asked == "auto" else choose(given))
    assert build.completion_dtype(settings(precision=asked, ngpu=0)) == dtype
