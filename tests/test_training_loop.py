"""The training loop: exact resuming, limits, not-a-number, averaging over processes, every stage's steps."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, default_collate

from engine_samples import (SmallDiscriminator, SmallEncoder, SmallFaces, SmallInpainter, SmallOcclusion,
                            interrupt_second_step, small_definition)

from engine.distributed import EpochSampler, World
from engine.encoder_stage import EncoderStage, Geometry
from engine.inpainter_stage import InpainterStage
from engine.occlusion_stage import OcclusionStage
from engine.optimisation import LearningRate, MovingAverage, build_optimiser, face_generators, restore_optimiser
from engine.resident import ResidentItems
from engine.training import Trainer, TrainingOptions
from models.blending import from_uint8
from models.completion import FaceCompletion, visible_face
from models.morphable import MorphableModel
from utils import checkpoints
from utils.errors import UserError

ALONE = World(0, 1, torch.device("cpu"))


def make_stage(name: str, **weights):
    """A stage with small networks, the same at every call."""
    torch.manual_seed(1)
    definition = small_definition()
    model = MorphableModel(definition)
    if name == "occlusion":
        return OcclusionStage(SmallOcclusion(), weights)
    if name == "encoder":
        geometry = Geometry(model, definition.coefficient_parity, definition.coefficient_mean,
                            definition.coefficient_std)
        return EncoderStage(SmallEncoder(), torch.nn.Identity(), geometry, weights=weights)
    completion = FaceCompletion(SmallEncoder(), SmallInpainter(), model, iterations=1)
    return InpainterStage(completion, SmallDiscriminator(), weights, gan_start=1)


def make_trainer(folder: Path, stage, faces: int = 10, **options) -> Trainer:
    options = {"batch_size": 2, "checkpoint_minutes": 1e9, "epochs": 100, "bar": False, "ema": 0.9, "seed": 3,
               **options}
    return Trainer(stage, SmallFaces(faces), SmallFaces(2), TrainingOptions(folder, **options), ALONE)


def all_tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    state, found = trainer.state.content(), {}

    def collect(prefix, value):
        if isinstance(value, torch.Tensor):
            found[prefix] = value
        elif isinstance(value, dict):
            for key, part in value.items():
                collect(f"{prefix}/{key}", part)

    for group in ("networks", "critics", "averages", "optimisers"):
        collect(group, state[group])
    return found


@pytest.mark.parametrize("stage", ["encoder", "occlusion", "inpainter"])
def test_resuming_equals_not_stopping(tmp_path, stage):
    """Seven steps in one go, or three, a new process' objects, and four more (over an epoch's end): the same bits."""
    schedule = {"accumulate": 2, "max_steps": 7, "scheduler_method": "CosineAnnealingLR"}
    whole = make_trainer(tmp_path / "whole", make_stage(stage), **schedule)
    whole.run()
    first = make_trainer(tmp_path / "parts", make_stage(stage), **schedule)
    original = first._train_step

    def stop_after_three(batches):
        original(batches)
        first.interrupted = first.state.step == 2

    first._train_step = stop_after_three
    first.run()
    assert first.state.step == 3
    torch.manual_seed(99)
    second = make_trainer(tmp_path / "parts", make_stage(stage), **schedule)
    second.restore(tmp_path / "parts" / "last.pth")
    second.run()
    place, expected_place = ((state.step, state.epoch, state.seen) for state in (second.state, whole.state))
    assert place == expected_place == (7, 3, 4)
    expected, found = all_tensors(whole), all_tensors(second)
    assert expected.keys() == found.keys() and len(expected) > 8
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    assert second.state.scores == whole.state.scores


@pytest.mark.parametrize("written", ["seen", "position"])
def test_a_run_goes_on_behind_the_faces_it_has_seen(tmp_path, written):
    """With other batches, faces and processes, and from a file that tells the batches of a process alone."""
    settings = {"batch_size": 2}
    make_trainer(tmp_path / "first", make_stage("occlusion"), faces=40, max_steps=15, settings=settings).run()
    state = checkpoints.load(tmp_path / "first" / "last.pth")
    assert (state["seen"], state["position"], state["processes"]) == (30, 15, 1)
    if written == "position":
        del state["seen"], state["processes"]
    checkpoints.save(tmp_path / "state.pth", state)
    for faces, batch_size, accumulate, epoch, seen in ((40, 2, 1, 0, 30), (40, 8, 1, 0, 30), (40, 1, 4, 0, 30),
                                                       (40, 11, 1, 1, 0), (31, 2, 1, 1, 0), (9, 2, 1, 1, 0)):
        trainer = make_trainer(tmp_path / "next", make_stage("occlusion"), faces, batch_size=batch_size,
                               accumulate=accumulate, max_steps=16)
        trainer.restore(tmp_path / "state.pth")
        assert (trainer.state.epoch, trainer.state.seen) == (epoch, seen)
        taken = []
        trainer._train_step = lambda batches: taken.extend(name for batch in batches for name in batch["name"])
        trainer.run()
        order = EpochSampler(faces, ALONE, seed=3)
        order.begin(epoch)
        assert taken == [f"face_{index}" for index in order][seen:seen + batch_size * accumulate]
        assert trainer.state.step == 16


def test_another_number_of_processes_is_told_and_no_face_comes_twice(tmp_path, capsys):
    make_trainer(tmp_path, make_stage("occlusion"), faces=40, max_steps=15).run()
    options = TrainingOptions(tmp_path, batch_size=1, bar=False, seed=3)
    again = Trainer(make_stage("occlusion"), SmallFaces(40), SmallFaces(4), options, ALONE)
    again.state.world = World(0, 4, ALONE.device)
    again.restore(tmp_path / "last.pth")
    assert again.state.seen == 32 and "4 processes (was 1)" in capsys.readouterr().err


def test_a_resident_training_set_trains_as_a_read_one(tmp_path):
    """The same batches in the same order, over an epoch's end, whoever reads them; each item is read once."""
    asked = []

    class Counted(SmallFaces):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    states, random = [], []
    for resident in (False, True):
        trainer = make_trainer(tmp_path / str(resident), make_stage("encoder"), faces=7, max_steps=5, resident=resident)
        trainer.train_set = Counted(7)
        asked.clear()
        torch.manual_seed(5)
        trainer.run()
        states.append(all_tensors(trainer))
        random.append(trainer.state.content()["random"]["torch"])
    assert asked == list(range(7))
    assert torch.equal(*random)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_resident_items_keep_all_fields_and_must_have_the_same():
    faces = SmallFaces(5)
    batch = next(ResidentItems(faces, torch.device("cpu")).batches([4, 1, 3], 2))
    expected = default_collate([faces[4], faces[1]])
    assert batch.keys() == expected.keys() and batch["name"] == expected["name"]
    assert all(torch.equal(batch[name], value) for name, value in expected.items() if isinstance(value, torch.Tensor))
    whole, plain = [{"x": torch.zeros(2), "y": torch.ones(1)}] * 64, {"x": torch.zeros(2)}
    for other in ([plain], [{**plain, "y": torch.ones(1, dtype=torch.float64)}], [{**whole[0], "z": torch.ones(1)}]):
        with pytest.raises(ValueError, match="different"):
            ResidentItems(whole + other, torch.device("cpu"))


def test_resident_parts_that_come_again_are_read_once():
    few, more = SmallFaces(2), SmallFaces(5)
    mixed = ConcatDataset([more, few, few, SmallFaces(3), few])
    items = ResidentItems(mixed, torch.device("cpu"))
    assert len(items.tensors["image"]) == 10 and len(items.others["name"]) == 10
    order = [*range(len(mixed))][::-1]
    for place, batch in zip(order, items.batches(order, 1)):
        expected = mixed[place]
        assert batch["name"] == [expected["name"]]
        assert torch.equal(batch["image"][0], torch.as_tensor(expected["image"]))


def test_a_training_set_too_large_to_be_resident_is_told(tmp_path, monkeypatch):
    empty = torch.empty

    def no_room(*size, **kind):
        if "device" in kind:
            raise RuntimeError("not enough memory")
        return empty(*size, **kind)

    trainer = make_trainer(tmp_path, make_stage("encoder"), resident=True)
    monkeypatch.setattr(torch, "empty", no_room)
    with pytest.raises(UserError, match="--resident.*GiB.*leave --resident out"):
        trainer.run()


def test_training_changes_trained_networks_only(tmp_path):
    stage = make_stage("inpainter", gan=1.0)
    frozen = {key: value.clone() for key, value in stage.completion.encoder.state_dict().items()}
    before = {key: value.clone() for key, value in stage.networks["inpainter"].state_dict().items()}
    discriminator = stage.critics["discriminator"]
    critic = {key: value.clone() for key, value in discriminator.state_dict().items()}
    make_trainer(tmp_path, stage, max_steps=3, learning_rate=1e-2).run()
    assert all(torch.equal(value, stage.completion.encoder.state_dict()[key]) for key, value in frozen.items())
    assert all(not torch.equal(value, stage.networks["inpainter"].state_dict()[key]) for key, value in before.items())
    assert any(not torch.equal(value, discriminator.state_dict()[key]) for key, value in critic.items())


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("stage", ["encoder", "occlusion", "inpainter"])
def test_batches_of_one_and_three(tmp_path, stage, count):
    trainer = make_trainer(tmp_path, make_stage(stage), batch_size=count, max_steps=2)
    trainer.run()
    assert all(np.isfinite(value) for value in trainer.state.scores.values())


def test_loss_falls(tmp_path):
    trainer = make_trainer(tmp_path, make_stage("occlusion"), learning_rate=2e-2, max_steps=40, ema=0.0)
    before = trainer.validate()["mean_iou"]
    trainer.run()
    assert trainer.state.scores["mean_iou"] > before + 0.02


def test_encoder_sees_the_masked_image_and_hidden_pixels_do_not_matter(tmp_path):
    """Changing pixels inside the hole changes neither the encoder's nor the inpainter's input."""
    stage = make_stage("inpainter")
    seen = []
    stage.completion.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    batch = {key: torch.stack([SmallFaces(2)[index][key] for index in range(2)]) for key in ("image", "labels")}
    image, face, hole, *_ = stage._examples(batch, face_generators((0,), range(2)), torch.no_grad)
    assert hole.any()
    factors = [stage.completion.factor(torch.where(hole, value, image), hole) for value in (-1.0, 1.0)]
    assert torch.equal(seen[0], seen[1]) and (seen[0][hole[..., 16:240, 16:240].expand_as(seen[0])] == 0).all()
    assert torch.equal(factors[0].albedo_in, factors[1].albedo_in)
    stage.losses(batch, face_generators((0,), range(2)), torch.no_grad, 0)
    inside = hole[..., 16:240, 16:240].expand_as(seen[2])
    assert (seen[2][inside] == 0).all()


def test_the_papers_recipe_leaves_images_as_they_are():
    """What args_celeba.txt sets: no changed colours, no mirror images, holes on the face alone."""
    stage = make_stage("inpainter")
    batch = default_collate([SmallFaces(8)[index] for index in range(8)])
    rngs = face_generators((0,), range(8))
    changed = stage._examples(batch, rngs, nullcontext)
    stage.augmentation, stage.rectangles, stage.covered_occluders = 0, 1, 0
    plain = stage._examples(batch, rngs, nullcontext)
    assert torch.equal(plain.image, from_uint8(batch["image"])) and not torch.equal(changed.image, plain.image)
    assert plain.hole.any() and not (plain.hole & ~plain.face).any()
    assert (changed.hole & ~changed.face).any()


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_hidden_texels_weigh_as_much_as_the_recipe_says(weight):
    """By hand, for an inpainter that says 0 everywhere: the mean error; hidden texels count 1 + weight times in it."""
    stage, batch = make_stage("inpainter"), default_collate([SmallFaces(4)[index] for index in range(4)])
    stage.hole_weight, stage.use_confidence = weight, False
    for parameter in stage.networks["inpainter"].parameters():
        torch.nn.init.zeros_(parameter)
    found, _ = stage.losses(batch, face_generators((0,), range(4)), nullcontext, 0)
    image, face, hole, *_ = stage._examples(batch, face_generators((0,), range(4)), nullcontext)
    factors = stage.completion.factor(image, hole, face=visible_face(face.float(), hole))
    on_face = stage.completion.renderer.unwrap(face.float(), factors.positions) > 0.99
    shown, hidden = (factors.uv_seen & on_face & part for part in (factors.uv_visible, ~factors.uv_visible))
    error = stage.completion.albedo(image, factors.positions, factors.uv_shade).abs().mean(1, keepdim=True)
    assert error[shown].mean() != error[hidden].mean()
    expected = ((error[shown].sum() + (1 + weight) * error[hidden].sum())
                / (shown.sum() + (1 + weight) * hidden.sum()))
    assert found["albedo"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_not_a_number_stops_with_step_and_loss(tmp_path):
    trainer = make_trainer(tmp_path, make_stage("occlusion"), max_steps=5)
    losses = trainer.stage.losses

    def broken(batch, rng, autocast, step):
        values, context = losses(batch, rng, autocast, step)
        return ({**values, "dice": values["dice"] * float("nan")} if step == 2 else values), context

    trainer.stage.losses = broken
    with pytest.raises(UserError, match=r"'dice' is nan at step 2"):
        trainer.run()
    assert all(torch.isfinite(value).all() for value in trainer.stage.networks["occlusion"].state_dict().values())


def test_an_overflow_in_another_process_skips_the_step_here_too(tmp_path, monkeypatch):
    """With fp16, all processes have to see the infinity that only one of them computed."""
    trainer = make_trainer(tmp_path, make_stage("occlusion"), max_steps=1, precision="fp16", batch_size=2)
    before = [parameter.detach().clone() for parameter in trainer.stage.networks["occlusion"].parameters()]
    scale = trainer.scaler.get_scale()

    def average(parameters, world):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, float("inf"))

    monkeypatch.setattr("engine.distributed.average_gradients", average)
    trainer.run()
    after = list(trainer.stage.networks["occlusion"].parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, after))
    assert trainer.scaler.get_scale() == scale / 2


def test_a_run_without_a_scaler_goes_on_with_one_and_back(tmp_path):
    """As where a run of a GPU with bfloat16 goes on on one without."""
    for number, precision in enumerate(("fp32", "fp16", "fp32"), start=1):
        trainer = make_trainer(tmp_path, make_stage("occlusion"), max_steps=number, precision=precision, batch_size=2)
        if number > 1:
            trainer.restore(tmp_path / "last.pth")
        trainer.run()
    assert trainer.state.step == 3


def test_what_validation_measured_is_kept_when_resuming(tmp_path):
    trainer = make_trainer(tmp_path, make_stage("encoder"), max_steps=1, batch_size=2)
    trainer.run()
    trainer.stage.frame_trust, trainer.stage.usual_light = 0.75, [0.5] * 27
    checkpoints.save(tmp_path / "kept.pth", trainer.state.content())
    resumed = make_trainer(tmp_path, make_stage("encoder"), max_steps=1, batch_size=2)
    resumed.restore(tmp_path / "kept.pth")
    assert resumed.state.content()["metadata"]["frame_trust"] == 0.75
    assert resumed.state.content()["metadata"]["usual_light"] == [0.5] * 27


def test_usual_light_is_the_mean_of_what_the_encoder_says_and_of_its_mirror_image():
    class Lit(SmallEncoder):
        def forward(self, image):
            hidden = (image == 0).all(1).flatten(1).any(1)  # a masked image says 3 more
            code = super().forward(image)
            return code._replace(light=torch.arange(27.0) + 3 * hidden[:, None])

    stage = make_stage("encoder")
    stage.networks["encoder"] = Lit().eval()
    faces = SmallFaces(4)
    statistics = 0
    with torch.no_grad():
        for first in (0, 2):
            batch = default_collate([faces[first], faces[first + 1]])
            statistics = statistics + stage.validate(stage.networks, batch,
                                                     face_generators((1,), range(first, first + 2)), nullcontext)
    stage.score(statistics)
    expected = torch.arange(27.0) + 1.5
    expected[[3, 6, 7, 12, 15, 16, 21, 24, 25]] = 0
    torch.testing.assert_close(torch.tensor(stage.usual_light), expected)
    assert stage.metadata()["usual_light"] == stage.usual_light


def test_other_settings_are_told_when_resuming(tmp_path, capsys):
    make_trainer(tmp_path, make_stage("encoder"), max_steps=1, batch_size=2,
                 settings={"train_size": 128, "batch_size": 2, "learning_rate": 1.0, "nthreads": 2}).run()
    resumed = make_trainer(tmp_path, make_stage("encoder"), max_steps=1, batch_size=2,
                           settings={"train_size": 224, "batch_size": 2, "learning_rate": 2.0, "nthreads": 1})
    resumed.restore(tmp_path / "last.pth")
    told = capsys.readouterr().err
    assert "--train-size 224 (was 128)" in told and "batch" not in told and "learning" not in told


def test_interrupt_saves(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(tmp_path, make_stage("occlusion"), max_steps=50)
    interrupt_second_step(trainer)
    trainer.run()
    state = checkpoints.load(tmp_path / "last.pth")
    assert state["step"] == trainer.state.step < 50
    assert signal.getsignal(signal.SIGINT) is before


def test_limits(tmp_path):
    trainer = make_trainer(tmp_path / "a", make_stage("occlusion"), epochs=2)
    trainer.run()
    assert (trainer.state.epoch, trainer.state.step) == (2, 10)
    trainer = make_trainer(tmp_path / "b", make_stage("occlusion"), max_minutes=0.0)
    trainer.run()
    assert trainer.state.step == 0


def test_best_is_chosen_on_held_out_data(tmp_path):
    """best.pth keeps the checkpoint of the best score, also after worse ones and after a resume."""
    trainer = make_trainer(tmp_path, make_stage("occlusion"), checkpoint_minutes=0.0, max_steps=4)
    scores = iter([0.5, 0.9, 0.7, 0.6, 0.1])
    trainer.stage.score = lambda statistics: {"mean_iou": next(scores)}
    trainer.run()
    assert checkpoints.load(tmp_path / "best.pth")["step"] == 2
    assert checkpoints.load(tmp_path / "last.pth")["best"] == 0.9


def test_checkpoint_of_another_stage_or_file_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, make_stage("occlusion"), max_steps=1)
    trainer.run()
    with pytest.raises(UserError, match="not of --stage encoder"):
        make_trainer(tmp_path, make_stage("encoder")).restore(tmp_path / "last.pth")
    checkpoints.save(tmp_path / "foreign.pth", {"state_dict": {}})
    with pytest.raises(UserError, match="not a training checkpoint"):
        trainer.restore(tmp_path / "foreign.pth")


def test_too_few_images_for_a_batch(tmp_path):
    with pytest.raises(UserError, match="--batch-size"):
        make_trainer(tmp_path, make_stage("occlusion"), faces=3, batch_size=4)


def test_sampler_resumes_and_covers():
    sampler = EpochSampler(11, ALONE, seed=1)
    sampler.begin(4)
    whole = list(sampler)
    assert sorted(whole) == list(range(11))
    sampler.begin(4, skip=6)
    assert list(sampler) == whole[6:] and len(sampler) == 5
    sampler.begin(5)
    assert list(sampler) != whole
    shares = []
    for rank in range(3):
        share = EpochSampler(11, World(rank, 3, torch.device("cpu")), seed=1)
        share.begin(4)
        shares.append(list(share))
    assert {len(share) for share in shares} == {4} and set(sum(shares, [])) == set(range(11))


def test_learning_rates():
    published = LearningRate("ExponentialLR", {"gamma": 0.98})
    assert published.factor(1e-4, 5, 0, 0.0) == 1
    assert published.factor(1e-4, 5, 10, 0.0) == pytest.approx(0.98 ** 10)
    assert 1e-4 * published.factor(1e-4, 5, 499, 0.0) == pytest.approx(1e-7)
    cosine = LearningRate("CosineAnnealingLR", {"gamma": 0.98, "warmup": 10, "floor": 0.0})
    assert cosine.factor(1e-4, 0, 0, 0.0) == pytest.approx(0.1)
    assert cosine.factor(1e-4, 100, 0, 0.5) == pytest.approx(0.5)
    assert cosine.factor(1e-4, 100, 0, 1.0) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(UserError, match="decay"):
        LearningRate("CosineAnnealingLR", {"decay": 1})


def test_published_optimiser():
    optimiser = build_optimiser("Adam", {}, [torch.nn.Parameter(torch.zeros(1))], 1e-4)
    assert optimiser.defaults["betas"] == (0.5, 0.999) and optimiser.defaults["weight_decay"] == 4e-5
    with pytest.raises(UserError, match="lr: the learning rate is what --learning-rate says"):
        build_optimiser("Adam", {"lr": 1}, [torch.nn.Parameter(torch.zeros(1))], 1e-4)
    with pytest.raises(UserError, match="optim-options"):
        build_optimiser("Adam", {"momentum": 1}, [torch.nn.Parameter(torch.zeros(1))], 1e-4)


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": False}])
def test_an_optimiser_stays_as_fused_as_it_is_made(options):
    """Whatever the run that it goes on with was: a gradient scaler looks at how it was made."""
    parameter = torch.nn.Parameter(torch.ones(3))
    states = []
    for given in ({"fused": False}, options):
        optimiser = build_optimiser("Adam", given, [parameter], 1e-4)
        if states:
            restore_optimiser(optimiser, states[0])
        parameter.grad = torch.ones(3)
        optimiser.step()
        states.append(optimiser.state_dict())
    assert bool(states[1]["param_groups"][0]["fused"]) is (not options) and states[1]["state"][0]["step"] == 2
    for groups in ([], 2 * states[0]["param_groups"]):
        with pytest.raises(ValueError):
            restore_optimiser(optimiser, {**states[0], "param_groups": groups})


def test_moving_average():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    average = MovingAverage({"layer": layer}, 0.5)
    torch.nn.init.ones_(layer.weight)
    average.update({"layer": layer}, 0)
    assert average.networks["layer"].weight.item() == pytest.approx(0.9)
    average.update({"layer": layer}, 100)
    assert average.networks["layer"].weight.item() == pytest.approx(0.95)


def test_what_is_validated_has_the_statistics_of_all_processes(tmp_path, monkeypatch):
    """Beside another process whose buffers are larger by 2, the moving average has the mean of both, too."""
    trainer, validated = make_trainer(tmp_path, make_stage("occlusion"), max_steps=1), {}
    trainer.run()
    network, averaged = trainer.stage.networks["occlusion"], trainer.average.networks["occlusion"]
    own = network.norm.running_mean.clone()
    trainer.validate = lambda: validated.update(mean=averaged.norm.running_mean.clone()) or {"mean_iou": 0.5}
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(tensor + 2))
    trainer.world = World(0, 2, ALONE.device)
    trainer._validate_and_save()
    torch.testing.assert_close(validated["mean"], own + 1)
    saved = checkpoints.load(tmp_path / "last.pth")
    assert torch.equal(saved["networks"]["occlusion"]["norm.running_mean"], validated["mean"])
    assert torch.equal(saved["averages"]["occlusion"]["norm.running_mean"], validated["mean"])


WORKER = """
import sys, torch
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from engine import distributed
from test_training_loop import STAGES, train_in
world = distributed.join(torch.device("cpu"))
for stage in STAGES:
    torch.save(train_in(world, Path({folder!r}) / stage, stage), Path({folder!r}) / f"{{stage}}{{world.rank}}.pth")
distributed.leave(world)
"""
STAGES = {"encoder": {}, "occlusion": {}, "inpainter": {"gan": 1.0}}


def train_in(world: World, folder: Path, name: str) -> dict:
    """Four steps of four faces, over an epoch's end: losses of each step, held-out scores and the networks' weights.

    Plain gradient descent, since Adam turns the rounding of a vanishing gradient into a step.
    """
    stage = make_stage(name, **STAGES[name])
    if name == "occlusion":
        stage.networks[name].norm = torch.nn.Identity()  # whose statistics are each process' own
    options = TrainingOptions(folder, batch_size=4 // world.size, max_steps=4, bar=False, seed=3, optim_method="SGD",
                              scheduler_method="Constant", learning_rate=1e-2)
    trainer = Trainer(stage, SmallFaces(11), SmallFaces(5), options, world)
    losses = []
    trainer._log = lambda step, values: losses.append(dict(values))
    weights = {key: value for networks in (stage.networks, stage.critics) for network in networks.values()
               for key, value in network.state_dict().items()}
    before = {key: value.clone() for key, value in weights.items()}
    scores = trainer.run()
    return {"losses": losses, "scores": scores, "weights": weights, "before": before}


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    """torchrun with two CPU processes: both end with the same bits, and with what one process learns, up to rounding.

    Losses that are means over masked pixels or over scores of the whole batch are among them.
    """
    tests = Path(__file__).parent
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(root=str(tests.parent), tests=str(tests), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for stage in STAGES:
        first, second = (torch.load(tmp_path / f"{stage}{rank}.pth", weights_only=True) for rank in (0, 1))
        assert all(torch.equal(first["weights"][key], second["weights"][key]) for key in first["weights"])
        assert first["losses"] == second["losses"] and first["scores"] == second["scores"]
        assert checkpoints.load(tmp_path / stage / "last.pth")["step"] == 4
        alone = train_in(ALONE, tmp_path / "alone" / stage, stage)
        assert len(alone["losses"]) == 4 and [*map(set, alone["losses"])] == [*map(set, first["losses"])]
        for found, expected in zip([*first["losses"], first["scores"]], [*alone["losses"], alone["scores"]]):
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
        for key, expected in alone["weights"].items():
            learnt = (expected - alone["before"][key]).norm()
            assert (first["weights"][key] - expected).norm() <= 1e-3 * learnt + 1e-6, key
