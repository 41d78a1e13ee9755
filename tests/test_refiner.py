"""The refined fill and the 2D baseline: what they leave alone, what they are trained on, and that training helps."""
from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from engine_samples import SmallEncoder, SmallFaces, SmallOcclusion, small_definition

from engine import build, linear_fill
from engine.image_stage import ImageStage
from engine.optimisation import face_generators
from engine.refiner_stage import REACH, FoldedPrior, RefinerStage, _smooth_error
from models.completion import FaceCompletion
from models.image_completion import ImageCompletion, ImageInpainter
from models.inpainter import Inpainter, Inpainting
from models.layers import fold_for_inference
from models.linear import LinearInpainter
from models.mixture import NETWORK_SHARE, Mixture
from models.morphable import MorphableModel, mirror_uv
from models.occlusion import OcclusionNet
from models.reduced import enlarge, reduce
from models.refiner import SOFT_EDGE, Refiner, soft_edge
from models.weights import load_image_inpainter, load_refiner
from utils import checkpoints, config
from utils.errors import UserError
from utils.images import write_image


class Constant(nn.Module):
    """Fills what is hidden with one value, and shifts what is visible."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, albedo, visible):
        return Inpainting(torch.where(visible > 0, albedo + 0.01, self.value), torch.zeros_like(visible))

    def typical_eyes(self, visible):
        return torch.zeros_like(visible).expand(-1, 3, -1, -1)


def example(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Albedo, 0 where hidden, and its visible mask."""
    generator = torch.Generator().manual_seed(0)
    visible = (torch.rand(count, 1, 192, 256, generator=generator) > 0.4).float()
    return (torch.rand(count, 3, 192, 256, generator=generator) - 0.5) * visible, visible


def picture(size: int = 256, count: int = 2):
    """Images, completions of them, a hole in each and the region where a face is drawn."""
    generator = torch.Generator().manual_seed(0)
    image, completed = (torch.rand(count, 3, size, size, generator=generator) - 0.5 for _ in range(2))
    hole, face = torch.zeros(2, count, 1, size, size, dtype=torch.bool)
    hole[..., 60:180, 80:200] = face[..., 40:160, 50:180] = True
    return image, torch.where(hole, completed, image), hole, face


def refiner_stage(refiner: Refiner, weights=None, folds=None, **options) -> RefinerStage:
    """The refiner's training on small networks; a portrait of a fold is filled with 0.5, others with 0."""
    completion = small_completion(nn.Identity())
    return RefinerStage(completion, refiner, Constant(0.0), Constant(0.0), [Constant(0.5)] * bool(folds), folds or {},
                        weights, **options)


@torch.no_grad()
@pytest.mark.parametrize("size", [256, 224])
def test_only_the_hole_changes_and_nothing_hidden_is_read(size):
    torch.manual_seed(0)
    image, completed, hole, mesh = picture(size)
    refiner = Refiner().eval()
    refined = refiner(image, completed, hole, mesh)
    hidden = hole.expand_as(image)
    assert torch.equal(refined.picture[~hidden], image[~hidden])
    assert (refined.face - completed)[(hole & mesh).expand_as(image)].abs().mean() > 1e-4
    noise = torch.rand_like(image)
    again = refiner(torch.where(hole, noise, image), torch.where(hole & ~mesh, noise, completed), hole, mesh)
    for name in ("picture", "odds", "share"):
        assert torch.equal(torch.where(hole, getattr(again, name), 0), torch.where(hole, getattr(refined, name), 0))
    alone = refiner(image[1:], completed[1:], hole[1:], mesh[1:])
    torch.testing.assert_close(refined.picture[1:], alone.picture, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_odds_choose_between_the_face_and_what_is_beside_it():
    torch.manual_seed(0)
    image, completed, hole, mesh = picture()
    refiner, hidden = Refiner().eval(), hole.expand_as(image)
    core = -F.max_pool2d(-mesh.float(), 2 * SOFT_EDGE + 1, 1, SOFT_EDGE) > 0
    for constant, chosen in ((60.0, "face"), (-60.0, "beside")):
        refiner.beside.output.bias[3] = constant
        refined = refiner(image, completed, hole, mesh)
        wanted = torch.where(hole & core, getattr(refined, chosen), refined.beside)
        where = (hole & (core | ~mesh)).expand_as(image)
        torch.testing.assert_close(refined.picture[where], wanted[where], rtol=0, atol=1e-6)
        assert float(refined.share[~mesh].max()) == 0
    assert (refined.beside - image)[hidden].abs().mean() > 1e-3


@torch.no_grad()
def test_the_edge_is_soft_within_the_region():
    region = torch.zeros(1, 1, 20, 20, dtype=torch.bool)
    region[..., 5:15, 5:] = True
    share = soft_edge(region)[0, 0]
    assert (share[:5] == 0).all() and (share[7:13, 7:] == 1).all()
    assert 0 < share[5, 12] < share[6, 12] < 1


def test_hair_is_to_be_filled_in_and_other_occluders_teach_nothing():
    """A face whose lower end is hidden by an occluder that is hair in its left half."""
    torch.manual_seed(0)
    refiner = Refiner()
    stage = refiner_stage(refiner)
    stage.to(torch.device("cpu"))
    batch = next(iter(DataLoader(SmallFaces(2), batch_size=2)))
    examples = {}
    for kind in ("untold", "hair"):
        if kind == "hair":
            batch["hair"] = ((batch["labels"] == 1) & (torch.arange(256) < 128)).to(torch.uint8)
        examples[kind] = stage._examples(batch, face_generators((0,), range(2)), nullcontext)
    assert examples["untold"].occluder.sum() == (batch["labels"] == 1).sum()
    assert examples["hair"].occluder.sum() == (batch["labels"] == 1).sum() - batch["hair"].sum()
    losses, _ = stage.losses(batch, face_generators((0,), range(2)), nullcontext, 0)
    assert set(losses) == set(stage.weights) == {"colour", "beside", "odds"}
    (losses["beside"] + losses["odds"]).backward()
    assert refiner.network.output.weight.grad is None and (refiner.beside.output.weight.grad != 0).all()
    losses, _ = stage.losses(batch, face_generators((0,), range(2)), nullcontext, 0)
    losses["colour"].backward()
    assert refiner.network.output.weight.grad.abs().max() > 0 and refiner.gain.grad.abs().min() > 0


@pytest.mark.parametrize("only, learns", [
    ("beside", {"beside"}),
    ("decoder", {"beside", "gain", "network.up", "network.outlet", "network.output"})])
def test_only_a_part_is_trained_if_asked(only, learns):
    """Singular vectors of the rest stay, too, so that its part of a file of weights stays the same to the bit."""
    torch.manual_seed(0)
    refiner = Refiner()
    before = {name: value.clone() for name, value in refiner.state_dict().items()}
    stage = refiner_stage(refiner, only=only)
    optimiser = torch.optim.Adam([value for value in refiner.parameters() if value.requires_grad])
    refiner.train()
    losses, _ = stage.losses(next(iter(DataLoader(SmallFaces(2), batch_size=2))), face_generators((0,), range(2)),
                             nullcontext, 0)
    sum(losses.values()).backward()
    optimiser.step()
    after = refiner.state_dict()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert {".".join(name.split(".")[:1 + name.startswith("network")]) for name in changed} == learns


@torch.no_grad()
def test_starting_from_the_2d_baseline_gives_its_colours():
    """Whatever the drawn face is, since its channels begin at 0."""
    torch.manual_seed(0)
    baseline, refiner = ImageInpainter().eval(), Refiner().eval()
    refiner.start_from(baseline.state_dict())
    image, completed, hole, _ = picture()
    values, share = reduce(torch.where(hole, 0, image), (~hole).float())
    found, maps = refiner.network.with_maps(torch.cat([values, completed[..., ::2, ::2]], 1), share)
    torch.testing.assert_close(enlarge(found.albedo), baseline(torch.where(hole, 0, image), ~hole), rtol=0, atol=1e-5)
    # So does its second end, but for a sum of weights that its fourth output no longer takes part in.
    ratio = refiner.beside(maps).albedo / found.albedo
    assert 0.9 < float(ratio.quantile(0.1)) and float(ratio.quantile(0.9)) < 1.3


@torch.no_grad()
def test_a_completion_refines_its_last_iteration():
    torch.manual_seed(0)
    completion = small_completion(Constant(0.2))
    completion.iterations = 2
    image, _, hole, _ = picture()
    plain, calls = completion(image, hole).output, []

    class Recorded(Refiner):
        def forward(self, *inputs):
            calls.append(inputs)
            return super().forward(*inputs)

    completion.refiner = Recorded().eval()
    output = completion(image, hole).output
    assert len(calls) == len(image)  # one by one, each once
    assert torch.equal(output[~hole.expand_as(image)], image[~hole.expand_as(image)]) and not torch.equal(output, plain)


def test_each_portrait_is_filled_by_its_own_model():
    albedo, visible = example(3)
    filled = FoldedPrior([Constant(0.1), Constant(0.2), Constant(0.3)], [2, 0, 2])(albedo, visible).albedo
    for item, value in zip(range(3), (0.3, 0.1, 0.3)):
        hidden = (visible[item] == 0).expand(3, -1, -1)
        assert torch.equal(filled[item][~hidden], albedo[item][~hidden] + 0.01)
        assert (filled[item][hidden] == value).all()


def test_a_fold_model_has_not_seen_its_fold(monkeypatch, tmp_path):
    """Portrait k is of the constant colour k, so that the models' means tell who is in them."""
    for index in range(10):
        write_image(tmp_path / f"{index}.png", np.zeros((256, 256, 3), np.uint8))
    colours = np.repeat(np.arange(10), 2)[:, None, None, None] / 20
    maps = np.broadcast_to(colours, (20, 3, 96, 128)).astype(np.float32)
    monkeypatch.setattr(linear_fill, "collect", lambda *_: (maps, np.ones((20, 1, 96, 128), bool)))
    monkeypatch.setattr(linear_fill, "COMPONENTS", 2)
    models = linear_fill.fold_models(None, linear_fill.FolderFaces(tmp_path), "none")
    for fold, model in enumerate(models):
        others = [index for index in range(10) if linear_fill.fold_of(index) != fold]
        assert float(model.mean.mean()) == pytest.approx(np.mean(others) / 20, abs=1e-4)


def test_too_few_portraits_for_folds(tmp_path):
    write_image(tmp_path / "a.png", np.zeros((256, 256, 3), np.uint8))
    with pytest.raises(UserError, match="needs more than"):
        linear_fill.fold_models(None, linear_fill.FolderFaces(tmp_path), "none")


def small_completion(inpainter: nn.Module) -> FaceCompletion:
    return FaceCompletion(SmallEncoder(), inpainter, MorphableModel(small_definition()), SmallOcclusion(),
                          iterations=1).eval()


def improvement(stage) -> tuple[float, float]:
    """The stage's loss on two faces before and after some steps on them."""
    stage.to(torch.device("cpu"))
    batch = next(iter(DataLoader(SmallFaces(2), batch_size=2)))
    network = stage.networks[stage.name]
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    values = []
    for _ in range(7):
        losses, _ = stage.losses(batch, face_generators((0,), range(2)), nullcontext, 0)
        total = sum(stage.weights.get(name, 1.0) * value for name, value in losses.items())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        values.append(float(total.detach()))
    statistics = stage.validate(stage.networks, batch, face_generators((0,), range(2)), nullcontext)
    assert np.isfinite(list(stage.score(statistics).values())).all()
    assert stage.pictures(stage.networks, batch, face_generators((0,), range(2))).dtype == torch.uint8
    return values[0], values[-1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refiner", "inpainter2d"])
def test_training_lowers_the_loss(kind):
    torch.manual_seed(0)
    if kind == "refiner":
        stage = refiner_stage(Refiner(), folds={"face_0": 0})
        batch = {"name": ["face_0", "face_1"]}
        assert stage._inpainter(stage.networks, batch).prior.linear.choice == [0, 1]
    else:
        stage = ImageStage(ImageInpainter(), nn.Identity(), SmallOcclusion())
    before, after = improvement(stage)
    assert after < 0.95 * before


@pytest.mark.parametrize("stage", ["refiner", "inpainter"])
def test_portraits_of_one_fold_are_held_out(monkeypatch, tmp_path, capsys, stage):
    for index in range(10):
        write_image(tmp_path / f"{index}.png", np.full((256, 256, 3), 20 * index, np.uint8))
    occlusion = SmallOcclusion().eval()
    settings = config.parse(["--portraits", str(tmp_path), "--portrait-share", "0.9", "--stage", stage,
                             "--portrait-lights", "1", "--log-type", "traditional"], "")
    monkeypatch.setattr("models.weights.load_occlusion", lambda path: (occlusion, {}))
    model = MorphableModel(small_definition())
    monkeypatch.setattr(build, "_load_geometry",
                        lambda settings, completes=True: (SmallEncoder().eval(), model, small_definition()))
    monkeypatch.setattr(build, "_synthetic_training", lambda settings: (SmallFaces(6), SmallFaces(3)))
    if stage == "refiner":
        with pytest.raises(UserError, match="holds 10 portraits; .* needs more than 40"):
            build.build_training_data(settings)  # before any is labelled
        monkeypatch.setattr("engine.linear_fill.COMPONENTS", 4)
    train, held_out = build.build_training_data(settings)
    assert ("hidden_albedo is left out" in capsys.readouterr().out) == (stage == "inpainter")
    trained = {train[index]["name"] for index in range(len(train))}
    kept = {held_out[index]["name"] for index in range(len(held_out))}
    assert {"0", "5"} <= kept and not kept & {name for name in trained if name.isdigit()}
    assert trained >= {"1", "2", "9", "face_0"} and set(train[0]) == set(train[len(train) - 1])


def test_the_refiner_has_none_of_the_inpainters_losses():
    stage = refiner_stage(Refiner(), {"colour": 2.0})
    assert stage.weights == {"colour": 2.0, "beside": 0.25, "odds": 0.1} and not stage.critics


def test_the_refiner_needs_portraits():
    with pytest.raises(UserError, match="--portraits DIR"):
        build.build_stage(config.parse(["--stage", "refiner"], ""), None)


def test_only_one_part_of_the_refiner_can_be_chosen(tmp_path):
    """Before anything takes time."""
    options = ["--loss-options", '{"only_beside": 1, "only_decoder": 1}', "--portraits", str(tmp_path)]
    with pytest.raises(UserError, match="only_beside trains less than only_decoder"):
        build.build_stage(config.parse(["--stage", "refiner", *options], ""), None)


@torch.no_grad()
def test_2d_completion_reads_no_hidden_pixel_and_keeps_the_others():
    torch.manual_seed(0)
    completion = ImageCompletion(ImageInpainter(), SmallOcclusion()).eval()
    image = torch.rand(2, 3, 256, 256) * 2 - 1
    hole = torch.zeros(2, 1, 256, 256, dtype=torch.bool)
    hole[0, :, 100:180, 60:200], hole[1, :, 20:60, 20:240] = True, True
    output = completion(image, hole).output
    assert torch.equal(output[(~hole).expand_as(image)], image[(~hole).expand_as(image)])
    assert torch.equal(output, completion(torch.where(hole, torch.rand_like(image), image), hole).output)
    assert (output - image).abs()[hole.expand_as(image)].mean() > 0.01
    with pytest.raises(ValueError, match="shape"):
        completion(image, hole[..., :100])
    assert completion.predict_hole(image).shape == hole.shape


@torch.no_grad()
def test_completions_in_bfloat16():
    """All parts at once, folded: nothing meets weights of another type."""
    torch.manual_seed(0)
    occlusion = OcclusionNet(32 / 224, knows_hair=True)
    mixed = Mixture(LinearInpainter(2), Inpainter(width=0.125, mirror=mirror_uv))
    whole = FaceCompletion(SmallEncoder(), mixed, MorphableModel(small_definition()), occlusion, refiner=Refiner(),
                           grain=True, dtype=torch.bfloat16)
    image, _, hole, _ = picture(count=1)
    for completion in (whole, ImageCompletion(ImageInpainter(), occlusion, True, torch.bfloat16)):
        fold_for_inference(completion.eval(), torch.bfloat16)
        output = completion(image, hole).output
        assert output.dtype == torch.float32 and output.isfinite().all()
        assert torch.equal(output[~hole.expand_as(image)], image[~hole.expand_as(image)])
        for hair in (True, False):
            assert completion.predict_hole(image, hair=hair).dtype == torch.bool
        assert completion.label(image).dtype == torch.float32


def test_weight_files(tmp_path):
    for name, network, load in (("refiner", Refiner(), load_refiner),
                                ("inpainter2d", ImageInpainter(), load_image_inpainter)):
        file = tmp_path / f"{name}.pth"
        checkpoints.save_weights(file, name, network.state_dict(), {}, half=False)
        for one, other in zip(load(file).state_dict().values(), network.state_dict().values()):
            assert torch.equal(one, other)
        with pytest.raises(UserError, match=f"--{name}-ckpt"):
            load(tmp_path / "missing.pth")
    arguments = ["--model-type", "2d", "--inpainter2d-ckpt", str(tmp_path / "inpainter2d.pth")]
    assert isinstance(build.build_completion(config.parse(arguments, ""), torch.device("cpu")), ImageCompletion)
    checkpoints.save_weights(tmp_path / "linear.pth", "linear", LinearInpainter(2).state_dict(), {}, half=False)
    checkpoints.save_weights(tmp_path / "n.pth", "inpainter", Inpainter(width=0.125).state_dict(), {}, half=False)
    files = {"linear": "linear.pth", "refiner": "refiner.pth", "recon": "n.pth"}
    arguments = [part for name, file in files.items() for part in (f"--{name}-ckpt", str(tmp_path / file))]
    for kind, inpainter in (("3dmm_pca", Inpainter), ("mixed", Mixture), ("refined", Mixture)):
        settings = config.parse([*arguments, "--model-type", kind], "")
        found = build.build_completion(settings, torch.device("cpu"))
        assert isinstance(found.inpainter, inpainter) and isinstance(found.refiner, Refiner) == (kind == "refined")
        assert not any(part.training for part in found.modules())
    assert isinstance(found.inpainter.linear, LinearInpainter) and found.inpainter.network.mirror is mirror_uv
    with pytest.raises(UserError, match="--recon-ckpt"):
        build._load_inpainter(config.parse([*arguments, "--model-type", "linear"], ""))


@torch.no_grad()
def test_the_mixed_fill_is_a_mean_of_both():
    albedo, visible = example()
    linear, network = Constant(0.6 * NETWORK_SHARE), Constant(-0.6 * (1 - NETWORK_SHARE))
    mixed = Mixture(linear, network)(albedo, visible)
    hidden = (visible == 0).expand_as(albedo)
    torch.testing.assert_close(mixed.albedo[hidden], torch.zeros_like(mixed.albedo[hidden]))
    torch.testing.assert_close(mixed.albedo[~hidden], albedo[~hidden] + 0.01)
    assert mixed.confidence.shape == visible.shape


@torch.no_grad()
def test_typical_eyes_are_whole_in_the_mixed_fill():
    albedo, visible = example()
    visible[..., 50:90, :] = 0
    linear = LinearInpainter(2, knows_eyes=True).eval()
    linear.eyes[:, 60:80, 70:100] = linear.eyes[:, 60:80, 156:186] = 0.3
    mixed = Mixture(linear, Constant(0.0))
    eyes = linear.typical_eyes(visible)
    with_eyes = mixed(albedo, visible).albedo
    linear.eyes.zero_()
    hidden = ((visible == 0) & (eyes > 0)).expand_as(albedo)
    assert eyes.max() > 0.01
    torch.testing.assert_close((with_eyes - mixed(albedo, visible).albedo)[hidden], eyes[hidden], atol=1e-6, rtol=0)


def test_the_error_is_the_mean_of_each_images_root_mean_square():
    difference, known = torch.zeros(3, 3, 64, 64), torch.zeros(3, 1, 64, 64, dtype=torch.bool)
    known[:2, :, 16:48, 16:48] = True  # nothing is known of the third
    difference[0], difference[1, :, :, 32:], difference[1, :, :, :32], difference[2] = 0.3, 0.8, 0.0, 5.0
    smooth = _smooth_error(difference[:1], known[:1]), _smooth_error(difference[1:2], known[1:2])
    assert float(smooth[0]) == pytest.approx(0.3, abs=1e-3)
    assert 0.45 < float(smooth[1]) < 0.8 / 2 ** 0.5  # the mean magnitude would be 0.4; smoothing blurs the step
    assert float(_smooth_error(difference, known)) == pytest.approx(float(sum(smooth)) / 2, abs=1e-4)
    assert float(_smooth_error(0 * difference, known)) < 2e-3
    exact = (0 * difference).requires_grad_()
    _smooth_error(exact, known).backward()
    assert exact.grad.isfinite().all()


def test_half_of_the_rectangles_reach_beyond_the_face():
    stage = refiner_stage(Refiner())
    face = torch.zeros(200, 1, 64, 64, dtype=torch.bool)
    face[..., 20:40, 20:40] = True
    grown = stage._may_be_hidden(face, face_generators((0,), range(200)))
    beyond = (grown & ~face).flatten(1).any(1)
    assert 70 < int(beyond.sum()) < 130 and (grown & face == face).all()
    assert (grown[beyond][0, 0, 20 - REACH:40 + REACH, 30]).all() and not grown[..., :20 - REACH, :].any()


@torch.no_grad()
def test_the_correction_has_no_detail():
    torch.manual_seed(0)
    image, completed, hole, mesh = picture()
    change = (Refiner().eval()(image, completed, hole, mesh).face - completed)[..., 60:160, 80:180]
    assert change.abs().max() > 1e-4
    assert change.diff(dim=-1).abs().max() < 0.2 * change.abs().max()
