"""An occlusion net that tells hair from other occlusion: the same to all who do not ask, and what photos do with it."""
from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from engine_samples import SmallFaces, SmallInpainter, small_definition

from datasets.labels import BACKGROUND, FACE, OCCLUSION
from datasets.synthetic import SyntheticFaces
from engine import build
from engine.occlusion_stage import OcclusionStage, hair_loss
from engine.optimisation import face_generators
from engine.segmentation_evaluation import (SegmentationEvaluator, SegmentationOptions, format_summary,
                                            summarise)
from models.completion import FaceCompletion, occluders
from models.morphable import MorphableModel
from models.occlusion import CLASS_WEIGHTS, OcclusionNet
from models.weights import load_occlusion
from utils import checkpoints, config
from utils.errors import UserError


@torch.no_grad()
def test_heads_for_hair_change_no_label():
    torch.manual_seed(0)
    network, image = OcclusionNet(reduction=0.5).eval(), torch.rand(2, 3, 128, 96) * 2 - 1
    before = network(image)
    assert not network.knows_hair and (network.with_hair(image)[1] == -torch.inf).all()
    network.learn_hair()
    assert network.knows_hair and network.scores(image)[1].shape == (2, 1, 128, 96)
    assert torch.equal(network(image), before)


def test_weights_say_whether_hair_is_known(tmp_path):
    for knows in (False, True):
        path = tmp_path / f"{knows}.pth"
        checkpoints.save_weights(path, "occlusion", OcclusionNet(knows_hair=knows).state_dict(), {})
        found, _ = load_occlusion(path)
        assert found.knows_hair is knows and found.class_weights == CLASS_WEIGHTS


def test_built_in_faces_say_what_is_hair():
    faces = SyntheticFaces("test", 24)
    hair = other = 0
    for index in range(24):
        item = faces[index]
        assert item["hair"].dtype == torch.uint8 and item["labels"].max() <= BACKGROUND
        assert (item["labels"][item["hair"] > 0] == OCCLUSION).all()
        hair += int(item["hair"].sum())
        other += int(((item["labels"] == OCCLUSION) & (item["hair"] == 0)).sum())
    assert hair > 5000 and other > 5000
    assert not any(SyntheticFaces("test", 3, clean=True)[index]["hair"].any() for index in range(3))


def test_only_the_heads_learn_hair():
    torch.manual_seed(0)
    batch = default_collate([SmallFaces(2)[index] for index in range(2)])
    batch["labels"][:, 60:120] = OCCLUSION
    batch["hair"] = torch.zeros_like(batch["labels"])
    batch["hair"][:, 60:120, :128] = 1
    batch["image"][..., :128] //= 2  # to tell it by
    network = OcclusionNet(reduction=64 / 224, knows_hair=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stage = OcclusionStage(network, only="hair")
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), 3e-2)
    for step in range(40):
        losses, _ = stage.losses(batch, face_generators((step,), range(2)), nullcontext, step)
        optimiser.zero_grad()
        losses["hair"].backward()
        optimiser.step()
    assert list(losses) == ["hair"] and float(losses["hair"].detach()) < 0.5
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("hair_heads") for name in changed)
    assert stage.validate({"occlusion": network}, batch, [], nullcontext).shape == (9,)


def test_the_finer_part_of_the_decoder_learns_alone():
    torch.manual_seed(0)
    batch = default_collate([SmallFaces(2)[index] for index in range(2)])
    network = OcclusionNet(reduction=64 / 224, knows_hair=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stage = OcclusionStage(network, only="decoder")
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(2):
        network.train()
        losses, _ = stage.losses({**batch, "hair": torch.zeros_like(batch["labels"])},
                                 face_generators((step,), range(2)), nullcontext, step)
        sum(losses.values()).backward()
        optimiser.step()
    changed = {name.split(".")[0] + "." + name.split(".")[1] for name, value in network.state_dict().items()
               if not torch.equal(value, before[name])}
    heads = {f"hair_heads.{number}" for number in range(5)}
    assert changed - heads == {"up.1", "up.2", "up.3", "up.4", "output.weight", "output.bias"} and changed & heads


def test_hair_is_learnt_beside_the_labels_where_items_tell_it():
    torch.manual_seed(0)
    batch = default_collate([SmallFaces(2)[index] for index in range(2)])
    stage = OcclusionStage(OcclusionNet(reduction=64 / 224, knows_hair=True))
    rngs = face_generators((0,), range(2))
    assert list(stage.losses(batch, rngs, nullcontext, 0)[0]) == ["cross_entropy", "dice"]
    batch["hair"] = torch.zeros_like(batch["labels"])
    passes = []
    stage.networks["occlusion"].inlet.register_forward_hook(lambda *_: passes.append(1))
    assert list(stage.losses(batch, rngs, nullcontext, 0)[0]) == ["cross_entropy", "dice", "hair"]
    assert len(passes) == 1  # or its norms' statistics would move twice a step


def test_hair_loss_counts_occlusion_alone():
    labels = torch.tensor([[[FACE, OCCLUSION], [OCCLUSION, BACKGROUND]]])
    hair = torch.tensor([[[0, 1], [0, 0]]])
    assert float(hair_loss(torch.tensor([[[[9.0, 9.0], [-9.0, 9.0]]]]), hair, labels)) < 1e-3
    assert float(hair_loss(torch.tensor([[[[0.0, -9.0], [9.0, 0.0]]]]), hair, labels)) > 8


def test_a_net_gets_heads_for_hair_from_faces_that_tell_it(tmp_path):
    path = tmp_path / "occlusion.pth"
    checkpoints.save_weights(path, "occlusion", OcclusionNet().state_dict(), {})
    settings = config.parse(["--stage", "occlusion", "--finetune", "--occ-ckpt", str(path)], "")
    for item, knows in (({"hair": 0}, True), ({}, False)):
        assert build.build_stage(settings, [item]).networks["occlusion"].knows_hair is knows
    settings = settings.replace(loss_options={"only_hair": 1})
    assert build.build_stage(settings, [{"hair": 0}]).only == "hair"
    with pytest.raises(UserError, match="only_hair: these faces do not tell hair"):
        build.build_stage(settings, [{}])


class Halves(nn.Module):
    """Left half: hair; a square on the right: another occluder; the rest is face."""

    def forward(self, image):
        labels = torch.full((len(image), 3, *image.shape[2:]), 0.02)
        labels[:, FACE] = 0.9
        labels[:, :, :, :60] = torch.tensor([0.02, 0.96, 0.02])[:, None, None]
        labels[:, :, 100:150, 150:200] = torch.tensor([0.02, 0.96, 0.02])[:, None, None]
        return labels

    def with_hair(self, image):
        odds = torch.full((len(image), 1, *image.shape[2:]), -5.0)
        odds[..., :60] = 5
        return self(image), odds


def test_the_hole_without_hair():
    completion = FaceCompletion(nn.Identity(), SmallInpainter(), MorphableModel(small_definition()), Halves())
    image = torch.zeros(1, 3, 256, 256)
    everything, others = completion.predict_hole(image)[0, 0], completion.predict_hole(image, hair=False)[0, 0]
    assert everything[:, :60].all() and not others[:, :140].any()
    assert torch.equal(everything[:, 100:], others[:, 100:]) and others[100:150, 150:200].all()


def test_hair_that_the_net_is_unsure_of_is_kept():
    """A tuft inside it, and a region of its own; not what is surely something else in a part of it."""
    odds = torch.full((1, 1, 90, 90), 5.0)
    odds[..., 10:20, 30:45], odds[..., 40:60, 30:45], odds[..., 70:80, 30:45] = -1, -1, -1
    odds[..., 40:45, 30:45] = -4
    probabilities = torch.zeros(1, 3, 90, 90)
    probabilities[:, FACE] = 1
    probabilities[:, :, :, :50] = torch.tensor([0.0, 1, 0])[:, None, None]
    hole = occluders(probabilities, odds)[0, 0]
    assert hole[40:60, 30:45].all() and not hole[:36].any() and not hole[64:].any()
    odds[..., 40:45, 30:45] = -1
    assert not occluders(probabilities, odds).any()


@pytest.mark.parametrize("hair", ["keep", "fill"])
def test_photos_keep_hair_unless_asked(monkeypatch, hair):
    from engine import photo
    asked = []

    def predict(image, hair=True):
        asked.append(hair)
        return torch.zeros(1, 1, 256, 256, dtype=torch.bool)

    options = photo.PhotoOptions("occlusion", hair=hair)
    completer = photo.PhotoCompleter(SimpleNamespace(predict_hole=predict), None, torch.device("cpu"), options)
    completer._crop_hole(np.zeros((256, 256, 3), np.uint8), "a", None, None)
    assert asked == [hair == "fill"]
    with pytest.raises(ValueError, match="unknown value"):
        photo.PhotoOptions(hair="cut")


def test_evaluation_says_what_of_the_occlusion_is_no_hair(tmp_path):
    class Known(Halves):
        knows_hair = True

    faces = [{"image": torch.zeros(3, 256, 256, dtype=torch.uint8), "name": "a"}]
    results = SegmentationEvaluator(faces, Known(), SegmentationOptions(log_type="none")).run()
    square, half = 50 * 50, 256 * 60
    assert results.rows[0]["share"] == pytest.approx((square + half) / 256 ** 2)
    assert results.rows[0]["share_without_hair"] == pytest.approx(square / (256 ** 2 - half))
    assert "without its hair 4.98 % of the face on average" in format_summary(summarise(results))
