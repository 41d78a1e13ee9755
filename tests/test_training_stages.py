"""Augmentation moves image and ground truth together; the stages' losses and measures on known cases."""
from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from engine_samples import SmallEncoder, SmallFaces, SmallInpainter, settings, small_definition
from test_config import PUBLISHED
from test_definition import write_published

from datasets.labels import FACE
from datasets.masks import random_rectangle
from datasets.synthetic import write_cache
from engine import build
from engine.augmentation import CALM, CENTRE, Similarity
from engine.encoder_stage import EncoderStage, Geometry, landmark_error, training_holes
from engine.inpainter_stage import InpainterStage
from engine.occlusion_stage import OcclusionStage, balanced_cross_entropy, boundary, dice_loss
from engine.optimisation import face_generators
from engine.report import TrainingDisplay
from engine.training_holes import Shapes, rectangles_on
from models.completion import FaceCompletion
from models.encoder import Encoder
from models.lighting import shade
from models.morphable import MorphableModel
from models.occlusion import OcclusionNet
from models.renderer import Renderer, rotation
from utils import checkpoints, config
from utils.errors import UserError


@pytest.fixture(scope="module")
def geometry():
    definition = small_definition()
    return Geometry(MorphableModel(definition), definition.coefficient_parity, definition.coefficient_mean,
                    definition.coefficient_std)


def drawn(count: int = 4) -> Similarity:
    change = Similarity.draw(face_generators((1,), range(count)), torch.device("cpu"), zoom=0.1, angle=0.2, shift=6.0)
    change.mirror = torch.arange(count) % 2 == 0
    return change


def test_points_of_the_head_stay_on_their_pixels(geometry):
    """A dot drawn where a landmark is projected is found, after the change, where the changed truth projects it."""
    change = drawn()
    generator = torch.Generator().manual_seed(0)
    shape = torch.randn(4, 228, generator=generator)
    pose = torch.cat([0.1 * torch.randn(4, 3, generator=generator), torch.zeros(4, 2)], 1)
    turn, scale, translation = rotation(pose), torch.full((4,), 6e-4), torch.full((4, 2), 112.0)
    moved_shape = torch.where(change.mirror[:, None], shape * geometry.parity + geometry.offset, shape)
    place, _ = geometry.project(geometry.head(shape)[:, :68], turn, scale, translation)
    moved, _ = geometry.project(geometry.head(moved_shape)[:, :68], *change.pose(turn, scale, translation))
    for face, landmark in ((0, 30), (1, 30), (2, 11), (3, 50)):
        x, y = place[face, landmark]
        rows, columns = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
        dot = torch.exp(-((columns - 16 - x) ** 2 + (223 - (rows - 16) - y) ** 2) / 18)
        alone = Similarity(*(getattr(change, name)[face:face + 1] for name in ("zoom", "angle", "shift", "mirror")))
        picture = alone.warp(dot[None, None])[0, 0]
        row, column = divmod(int(picture.argmax()), 224)
        # The mirrored head has the landmark's mirror vertex at this place.
        if change.mirror[face]:
            moved[face] = mirrored_landmarks(geometry, moved_shape, change.pose(turn, scale, translation))[face]
        assert abs(moved[face, landmark, 0] - column) < 1 and abs(moved[face, landmark, 1] - (223 - row)) < 1


def test_calm_faces_move_less():
    """The same change, a fixed share of it; and about as many of them as asked for."""
    def placements(calm: float, count: int = 200) -> torch.Tensor:
        change = Similarity.draw(face_generators((2,), range(count)), torch.device("cpu"), calm=calm)
        return torch.cat([change.zoom.log()[:, None], change.angle[:, None], change.shift], 1)

    wide, calm, some = placements(0.0), placements(1.0), placements(0.75)
    torch.testing.assert_close(calm, CALM * wide)
    is_calm = (some - calm).abs().amax(1) < 1e-6
    torch.testing.assert_close(some[~is_calm], wide[~is_calm])
    assert 130 < int(is_calm.sum()) < 170


def mirrored_landmarks(geometry, shape, pose):
    """The landmarks' mirror vertices on mirrored heads, projected."""
    definition = small_definition()
    vertices = MorphableModel(definition).vertices(shape)[:, definition.mirror_vertices[definition.landmarks]]
    return geometry.project(vertices, *pose)[0]


def test_light_turns_with_the_picture():
    """The shade of a turned or mirrored normal under the changed light is the old shade."""
    change, generator = drawn(), torch.Generator().manual_seed(3)
    normals = torch.nn.functional.normalize(torch.randn(4, 20, 3, generator=generator), dim=-1)
    light = torch.randn(4, 27, generator=generator)
    moved = torch.where(change.mirror[:, None, None], normals * torch.tensor([-1.0, 1, 1]), normals)
    moved = moved @ change.rotation().transpose(1, 2)
    assert torch.allclose(shade(moved, change.light(light)), shade(normals, light), atol=1e-5)


def test_no_change_is_the_centre_window():
    nothing = Similarity(torch.ones(1), torch.zeros(1), torch.zeros(1, 2), torch.zeros(1, dtype=torch.bool))
    crop = torch.rand(1, 3, 256, 256)
    assert torch.allclose(nothing.warp(crop), crop[..., 16:240, 16:240], atol=1e-4)
    assert CENTRE == 111.5


def test_true_outputs_have_no_loss(geometry):
    """The encoder's losses vanish at the ground truth, so nothing pulls it away from there."""
    stage = EncoderStage(SmallEncoder(), torch.nn.Identity(), geometry)
    items = [SmallFaces(2)[index] for index in range(2)]
    truth = {key: torch.stack([item[key] for item in items]) for key in ("shape", "scale", "pose", "light")}
    code = SmallEncoder()(torch.zeros(2, 3, 224, 224))._replace(**truth)
    truth.update(rotation=rotation(truth["pose"]), translation=0.5 * (truth["pose"][:, 3:] + 1) * 224)
    assert all(float(value) == pytest.approx(0, abs=1e-4) for value in stage._geometry_losses(code, truth).values())


class OneColour(torch.nn.Module):
    """An albedo decoder that knows one albedo, in [-1, 1]."""

    def __init__(self):
        super().__init__()
        self.albedo = torch.nn.Parameter(torch.zeros(3, 1, 1))

    def forward(self, code):
        return self.albedo.expand(len(code), 3, 192, 256)


def test_faces_without_true_albedo_teach_by_their_picture(geometry):
    """The photometric loss alone: real faces have no albedo to compare with, and need none."""
    torch.manual_seed(0)
    model, decoder = MorphableModel(small_definition()), OneColour()
    stage = EncoderStage(SmallEncoder(), decoder, geometry, Renderer(model), {"render": 1.0})
    batch = next(iter(DataLoader(SmallFaces(4), batch_size=4)))
    del batch["albedo"]
    losses, _ = stage.losses(batch, face_generators((0,), range(4)), nullcontext, 0)
    assert "render" in losses and "albedo" not in losses
    losses["render"].backward()
    assert decoder.albedo.grad.abs().min() > 0
    assert stage.networks["encoder"].light_linear.weight.grad.abs().max() > 0  # light explains the picture, too


def test_portraits_teach_by_their_picture_but_have_no_true_albedo(monkeypatch, tmp_path):
    arguments = ["--stage", "encoder", "--portraits", str(tmp_path), "--loss-options"]
    monkeypatch.setattr(build, "_synthetic_training", lambda settings: (SmallFaces(2), SmallFaces(2)))
    with pytest.raises(UserError, match="portraits have no true albedo: leave albedo out"):
        build.build_training_data(config.parse([*arguments, '{"albedo": 1}'], ""))
    with pytest.raises(UserError, match="holds no"):  # goes on to the portraits, of which there are none
        build.build_training_data(config.parse([*arguments, '{"render": 1}'], ""))


def test_true_albedo_is_missed_before_training_in_a_cache_without_it(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.synthetic.cache.SHARD", 1)
    write_cache(tmp_path, "train", 1, albedo=False, progress=False)
    arguments = ["--stage", "encoder", "--synthetic-cache", str(tmp_path), "--loss-options"]
    with pytest.raises(UserError, match="was written without albedo: leave albedo out of --loss-options"):
        build.build_training_data(config.parse([*arguments, '{"albedo": 1}'], ""))
    assert "albedo" not in build.build_training_data(config.parse([*arguments, '{"render": 1}'], ""))[0][0]


def test_decoded_albedo_takes_an_encoder_with_codes(tmp_path):
    checkpoints.save_weights(tmp_path / "e.pth", "encoder", Encoder(codes=False).state_dict(), {}, half=False)
    arguments = ["--stage", "encoder", "--finetune", "--3dmm-ckpt", str(tmp_path / "e.pth")]
    plain = build.build_stage(config.parse(arguments, ""), None)
    assert not plain.networks["encoder"].knows_codes
    arguments += ["--loss-options", '{"render": 1, "albedo_items": 2}']
    decoding = build.build_stage(config.parse(arguments, ""), None)
    assert decoding.networks["encoder"].knows_codes and decoding.albedo_items == 2


def test_an_encoder_of_another_model_is_not_taught_by_built_in_faces(tmp_path):
    write_published(tmp_path / "3DMM_definition")
    checkpoints.save_weights(tmp_path / "e.pth", "encoder", Encoder().state_dict(),
                             {"definition": str(tmp_path / "3DMM_definition")}, half=False)
    folder, encoder = str(tmp_path / "3DMM_definition"), ["--3dmm-ckpt", str(tmp_path / "e.pth")]
    for arguments in (["--definition", folder], ["--finetune", *encoder]):
        with pytest.raises(UserError, match="learns from built-in faces.*--definition builtin"):
            build.build_stage(config.parse(["--stage", "encoder", *arguments], ""), SmallFaces(2))
    arguments = [*encoder, "--portraits", str(tmp_path), "--dataset-options", '{"length": 2}']
    with pytest.raises(UserError, match="learns from built-in faces.*--definition builtin"):
        build.build_training_data(config.parse(["--stage", "encoder", *arguments], ""))


@pytest.mark.parametrize("faces, told, weight", [([{"albedo": 0}], True, 0.0), ([{}], False, 0.2)])
def test_an_inpainter_of_another_model_leaves_out_the_built_in_albedo(monkeypatch, capsys, faces, told, weight):
    definition = small_definition()
    monkeypatch.setattr(build, "_load_geometry",
                        lambda settings: (SmallEncoder(), MorphableModel(definition), definition))
    stage = build.build_stage(config.parse([], ""), faces)
    assert ("hidden_albedo is left out" in capsys.readouterr().err) == told and stage.weights["hidden_albedo"] == weight


def test_an_inpainter_imitates_its_teacher():
    torch.manual_seed(0)
    student, teacher = SmallInpainter(), SmallInpainter().requires_grad_(False)
    batch = next(iter(DataLoader(SmallFaces(2), batch_size=2)))
    found = {}
    for name, master in (("other", teacher), ("same", copy.deepcopy(student)), ("none", None)):
        completion = FaceCompletion(SmallEncoder(), student, MorphableModel(small_definition()), iterations=1)
        stage = InpainterStage(completion, torch.nn.Identity(), {"gan": 0.0}, teacher=master)
        found[name] = stage.losses(batch, face_generators((0,), range(2)), nullcontext, 0)[0]
    assert "teacher" not in found["none"] and found["same"]["teacher"].item() == 0 < found["other"]["teacher"].item()
    assert stage.weights["teacher"] == 1
    found["other"]["teacher"].backward()
    assert student.conv.weight.grad.abs().max() > 0 and teacher.conv.weight.grad is None


def test_the_inpainter_learns_from_the_window_where_the_paper_does():
    batch = next(iter(DataLoader(SmallFaces(2), batch_size=2)))
    margin = torch.ones(256, 256, dtype=torch.bool)
    margin[16:240, 16:240] = False
    elsewhere = {**batch, "image": torch.where(margin, 255 - batch["image"], batch["image"]),
                 "labels": torch.where(margin, FACE, batch["labels"])}
    found = {}
    for windowed in (True, False):
        for name, faces in (("same", batch), ("margin", elsewhere)):
            torch.manual_seed(0)
            completion = FaceCompletion(SmallEncoder(), SmallInpainter(), MorphableModel(small_definition()),
                                        iterations=1)
            stage = InpainterStage(completion, torch.nn.Identity(), {"gan": 0.0}, windowed=windowed)
            rngs = [face_generators((0,), range(2)) for _ in range(2)]
            losses = stage.losses(faces, rngs[0], nullcontext, 0)[0]
            with torch.no_grad():
                found[windowed, name] = [*losses.values(), stage.validate(stage.networks, faces, rngs[1], nullcontext)]
            assert stage.pictures(stage.networks, faces, rngs[1]).shape[0] == 3
    close = [all(map(torch.equal, found[windowed, "same"], found[windowed, "margin"])) for windowed in (True, False)]
    assert close == [True, False]


@pytest.mark.parametrize("stage", ["refiner", "inpainter2d"])
def test_stages_that_need_the_whole_crop_say_so(stage):
    with pytest.raises(UserError, match="leave --resolution at"):
        build.build_stage(settings(stage=stage, resolution=[224, 224]), None)


def test_landmark_error_by_hand():
    truth = torch.zeros(1, 68, 2)
    truth[0, 45, 0] = 50.0  # the outer eyes are 50 px apart
    assert float(landmark_error(truth + torch.tensor([3.0, 4.0]), truth)) == pytest.approx(10.0)


def test_training_holes_keep_to_their_kind():
    face, occluder = np.zeros((2, 224, 224), bool)
    face[60:160, 60:160], occluder[0:20] = True, True
    regions = np.broadcast_to(np.stack([face, occluder]), (60, 2, 224, 224))
    holes = training_holes(face_generators((0,), range(60)), torch.from_numpy(regions.copy()))[:, 0].numpy()
    empty = [not hole.any() for hole in holes]
    on_face = [hole.any() and not (hole & ~face).any() for hole in holes]
    assert 6 < sum(empty) < 30 and sum(on_face) > 15
    assert any((hole == occluder).all() for hole in holes)


def test_perfect_and_wrong_segmentation():
    labels = torch.randint(0, 3, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    right = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float() * 40 - 20
    assert float(balanced_cross_entropy(right, labels)) < 1e-6 and float(dice_loss(right, labels)) < 1e-3
    assert float(balanced_cross_entropy(-right, labels)) > 10 and float(dice_loss(-right, labels)) > 0.5
    square = torch.zeros(1, 32, 32, dtype=torch.long)
    square[:, 10:20, 10:20] = 1
    edge = boundary(square)[0]
    assert edge[10, 15] == 1 and edge[7, 15] == 1 and edge[6, 15] == 0 and edge[15, 15] == 0


def test_mean_iou_by_hand():
    """Class 0: 8 right, 2 missed; class 1: 4 right, 2 false alarms; class 2 absent and not counted."""
    stage = OcclusionStage(torch.nn.Identity())
    scores = stage.score(torch.tensor([8.0, 2, 0, 0, 4, 0, 0, 0, 0]))
    assert scores["mean_iou"] == pytest.approx((8 / 10 + 4 / 6) / 2)


@pytest.mark.parametrize("finetune", [True, False])
def test_finetuning_starts_from_the_weights(tmp_path, finetune):
    network = OcclusionNet()
    checkpoints.save_weights(tmp_path / "o.pth", "occlusion", network.state_dict(), {}, half=False)
    arguments = ["--stage", "occlusion", "--occ-ckpt", str(tmp_path / "o.pth"), *["--finetune"] * finetune]
    started = build.build_stage(config.parse(arguments, ""), [{}]).networks["occlusion"]
    pairs = zip(started.state_dict().values(), network.state_dict().values())
    same = all(torch.equal(one, other) for one, other in pairs)
    assert same == finetune and all(parameter.requires_grad for parameter in started.parameters())


def test_speed_of_steps_that_are_told_of_together():
    """A GPU's 20 steps of 8 faces, told of every two seconds, are 80 faces a second."""
    display = TrainingDisplay(bar=False, active=False)
    for look in range(1, 12):
        for _ in range(20):
            display.update(0.1, 2.0 * look, 1, 0, 8, {})
    assert display.speed == pytest.approx(80)


def test_shapes_are_those_of_the_evaluation():
    """A drawn rectangle is the one that datasets.masks draws from the same randomness."""
    face = torch.ones(5, 1, 60, 80, dtype=torch.bool)
    drawn = rectangles_on(face, face_generators((1,), range(9)))
    expected = [random_rectangle(rng, 60, 80, evaluation=True) for rng in face_generators((1,), range(5))]
    assert np.array_equal(drawn[:, 0].numpy(), np.stack(expected))


def test_ellipses_lie_where_they_are_drawn():
    shapes = Shapes(40, 50)
    shapes._add((0, 0, 0, 0), [(10.0, 20.0, 6.0, 3.0, 0.0)])
    shapes.add_nothing()
    ellipse, nothing = shapes.draw(torch.device("cpu"))[:, 0]
    assert ellipse[10, 15] and ellipse[10, 25] and not ellipse[10, 26] and ellipse[12, 20] and not ellipse[13, 20]
    assert int(ellipse.sum()) == pytest.approx(np.pi * 6 * 3, rel=0.1) and not nothing.any()


def test_the_inpainters_parts_can_be_chosen():
    chosen = {"attention": True, "gated": False, "mirrored": False, "width": 0.25}
    network = build._new_inpainter(config.parse(["--inpainter-options", json.dumps(chosen)], ""))
    assert network.attention and network.mirrored is None and network.middle.gate is None
    assert network.output.weight.shape[1] == 8
    for wrong, message in (({"depth": 3}, "depth: there are"), ({"gated": 1}, "gated: one of True, False"),
                           ({"width": 0.3}, "width: one of"), ({"width": True}, "width: one of")):
        with pytest.raises(UserError, match=message):
            build._new_inpainter(config.parse(["--inpainter-options", json.dumps(wrong)], ""))


@pytest.mark.parametrize("stage", ["encoder", "occlusion", "inpainter", "refiner", "inpainter2d"])
def test_a_wrong_loss_is_named_before_anything_is_loaded(stage):
    settings = config.parse(["--stage", stage, "--loss-options", '{"beauty": 1}', "--synthetic-cache", "missing",
                             "--portraits", "missing"], "")
    with pytest.raises(UserError, match=f"beauty is no loss of --stage {stage}; it has"):
        build.build_training_data(settings)


def test_the_2d_baseline_needs_the_occlusion_net_alone(monkeypatch):
    monkeypatch.setattr("models.weights.load_occlusion", lambda path: (OcclusionNet(), {}))
    arguments = ["--stage", "inpainter2d", "--3dmm-ckpt", "missing", "--definition", "missing", "--loss-options"]
    stage = build.build_stage(config.parse([*arguments, '{"gan": 0.05}'], ""), None)
    assert stage.networks.keys() == {"inpainter2d"} and stage.critics.keys() == {"discriminator"}
    assert stage.weights == {"albedo": 1, "image": 1, "gan": 0.05, "perceptual": 0, "critic": 1, "penalty": 10}
    assert stage.frozen_networks() == [stage.occlusion]
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in stage.occlusion.modules())
    for loss in ("symmetry", "hidden_albedo", "teacher"):
        with pytest.raises(UserError, match=f"{loss} is no loss of --stage inpainter2d"):
            build.build_stage(config.parse([*arguments, json.dumps({loss: 0.1})], ""), None)


@pytest.mark.parametrize("arguments, told", [
    ("--stage encoder --teacher-ckpt t.pth", "--teacher-ckpt counts for --stage inpainter alone"),
    ("--dataset-train CelebA --portraits p", "--portraits counts for --dataset-train Synthetic and --stage refiner"),
    ("--dataset-train CelebA --synthetic-cache c", "--synthetic-cache counts for --dataset-train Synthetic alone"),
    ("--train-size 128", "--train-size counts for --stage encoder and occlusion alone"),
    ("--stage inpainter2d --is-using-recon False", "--is-using-recon counts for --stage inpainter alone"),
    ("--stage refiner --is-using-symmetry False", "--is-using-symmetry counts for --stage inpainter alone"),
    ("--stage refiner --use-conf False", "--use-conf counts for --stage inpainter alone"),
    ("--stage refiner --tex-loss l2", "--tex-loss counts for --stage inpainter and inpainter2d alone"),
    ("--portraits p --portrait-turns 0", "--portrait-turns counts for --stage encoder alone"),
    ("--stage refiner --dataset-train Faces --portraits p", None), ("--stage inpainter2d --recon-loss l2", None),
    ("--stage encoder --train-size 128 --portraits p --portrait-points p.json --synthetic-cache c", None),
    ("--teacher-ckpt t.pth --is-using-recon False --use-conf False --is-using-frecon", None)])
def test_options_without_effect_are_told(capsys, arguments, told):
    build.tell_ignored(config.parse(arguments.split(), ""))
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == (told is not None) and (not told or f"warning: {told}" in warnings[0])


@pytest.mark.parametrize("stage", build.STAGE_MODULES)
def test_files_with_all_options_are_no_noise(tmp_path, capsys, stage):
    (tmp_path / "published.txt").write_text(PUBLISHED)
    config.defaults().write(tmp_path / "all.txt")
    root = Path(__file__).parents[1]
    for file in (root / "args.txt", root / "args_celeba.txt", tmp_path / "published.txt", tmp_path / "all.txt"):
        settings = config.parse(["--config", str(file), "--stage", stage], "")
        capsys.readouterr()
        build.tell_ignored(settings)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["--stage", "encoder"], ["--stage", "refiner"], ["--finetune"]])
def test_parts_that_would_be_ignored_are_refused(arguments):
    with pytest.raises(UserError, match="--inpainter-options says how --stage inpainter begins"):
        build.build_stage(config.parse([*arguments, "--inpainter-options", '{"width": 0.5}'], ""), None)
