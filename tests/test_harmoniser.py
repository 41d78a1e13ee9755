"""The network that corrects a fill's smooth colours: what it may change, what it learns, what it is fed."""
from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_samples import SmallEncoder, SmallInpainter, settings, small_definition

from engine import export
from engine.build import build_training_data, choose_harmoniser
from engine.harmoniser_examples import BUILT_IN, HELD_OUT_BUILT_IN, Examples, _Recorder, _hole
from engine.harmoniser_stage import HarmoniserStage
from engine.linear_fill import HELD_OUT_FOLD
from main import main
from models.completion import FaceCompletion
from models.harmoniser import EVIDENCE, Evidence, Harmoniser, harmonise, ramp
from models.morphable import MorphableModel
from models.weights import load_harmoniser
from utils.errors import UserError


class Constant(torch.nn.Module):
    """Adds the same everywhere."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, cells):
        return torch.full_like(cells[:, :3], self.value)


@pytest.fixture
def hole():
    hole = torch.zeros(1, 1, 256, 256, dtype=torch.bool)
    hole[..., 60:180, 80:200] = True
    return hole


def evidence(hole: torch.Tensor, seed: int = 0) -> Evidence:
    generator = torch.Generator().manual_seed(seed)
    picture = lambda channels: torch.rand(len(hole), channels, *hole.shape[2:], generator=generator) * 1.6 - 0.8
    return Evidence(picture(3), ramp(hole), (~hole).float(), picture(3), hole, picture(3) + 1)


def test_ramp_grows_from_the_border(hole):
    values = ramp(hole)
    assert values[~hole].max() == 0 and values[hole].min() > 0
    assert values[0, 0, 120, 140] == 1
    row = values[0, 0, 120, 80:96]
    assert (row[1:] > row[:-1]).all() and row[0] < 0.1


def test_ramp_at_the_pictures_border_and_of_extreme_holes():
    hole = torch.zeros(2, 1, 256, 256, dtype=torch.bool)
    hole[0] = True
    assert (ramp(hole)[0] == 1).all() and (ramp(hole)[1] == 0).all()
    beside = torch.zeros(1, 1, 256, 256, dtype=torch.bool)
    beside[..., 200:, :] = True  # nothing visible lies beyond the border
    assert ramp(beside)[0, 0, 255].min() == 1


def test_an_untrained_network_changes_nothing(hole):
    given = evidence(hole)
    torch.testing.assert_close(harmonise(Harmoniser().eval(), given), given.completed, rtol=0, atol=0)


def test_only_the_hole_changes_and_its_border_least(hole):
    given = evidence(hole)
    change = (harmonise(Constant(0.1), given) - given.completed)[0, 0]
    outside = ~hole[0, 0]
    assert (change[outside] == 0).all()
    assert change[120, 140] == pytest.approx(0.1, abs=1e-6) and 0 < change[120, 80] < 0.01


def test_detail_stays(hole):
    generator = torch.Generator().manual_seed(0)
    correction = 0.1 * torch.randn(1, 3, 32, 32, generator=generator)
    given = evidence(hole)
    given = replace(given, completed=given.completed * 0.5)
    change = harmonise(lambda cells: correction, given) - given.completed
    inside = change[..., 80:160, 100:180]  # where the ramp is 1
    largest = max((correction.diff(dim=axis)).abs().max() for axis in (2, 3))
    assert inside.abs().max() > 0.05
    assert max(inside.diff(dim=axis).abs().max() for axis in (2, 3)) < largest / 8 + 1e-5


def test_items_of_a_batch_do_not_mix(hole):
    network = Harmoniser().eval()
    torch.nn.init.normal_(network.last.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    cells = torch.cat([evidence(hole, seed).cells() for seed in range(3)])
    with torch.no_grad():
        together = network(cells)
        apart = torch.cat([network(item[None]) for item in cells])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [256, 224])
def test_completion_hands_over_all_that_is_known(size, hole):
    recorder = _Recorder()
    completion = FaceCompletion(SmallEncoder(), SmallInpainter(), MorphableModel(small_definition()), iterations=1,
                                harmoniser=recorder).eval()
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    hole = hole[..., :size, :size]
    plain = completion(image, hole).output
    assert recorder.cells.shape == (1, EVIDENCE, size // 8, size // 8) and recorder.cells.isfinite().all()
    completion.harmoniser = None
    assert torch.equal(completion(image, hole).output, plain)
    completion.harmoniser = Constant(0.2)
    changed = completion(image, hole).output
    assert torch.equal(changed[~hole.expand_as(changed)], image[~hole.expand_as(image)])
    assert (changed - plain).mean() > 0.001


def test_hidden_pixels_do_not_matter(hole):
    completion = FaceCompletion(SmallEncoder(), SmallInpainter(), MorphableModel(small_definition()), iterations=1,
                                harmoniser=Constant(0.2)).eval()
    image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = torch.where(hole, torch.rand_like(image), image)
    first, second = completion(image, hole).output, completion(other, hole).output
    assert torch.equal(first[hole.expand_as(first)], second[hole.expand_as(second)])


def example_file(path, folds, seed: int = 0):
    """Completions that are all too dark in the hole."""
    rng = np.random.default_rng(seed)
    count = len(folds)
    cells = rng.uniform(-0.5, 0.5, (count, EVIDENCE, 32, 32)).astype(np.float16)
    cells[:, 3] = 0
    cells[:, 3, 8:24, 8:24] = 1
    truth = cells[:, :3] + 0.2 * cells[:, 3:4]
    np.savez(path, cells=cells, truth=truth, fold=np.array(folds, np.int16))
    return path


def test_held_out_examples_share_no_face_with_the_others(tmp_path):
    folds = [HELD_OUT_FOLD, 1, 2, BUILT_IN, HELD_OUT_BUILT_IN, 3]
    path = example_file(tmp_path / "examples.npz", folds)
    assert len(Examples(path, held_out=False)) == 4 and len(Examples(path, held_out=True)) == 2
    item = Examples(path, held_out=True)[1]
    assert item["cells"].shape == (EVIDENCE, 32, 32) and item["truth"].shape == (3, 32, 32)
    assert item["cells"].dtype == torch.float32


@pytest.mark.parametrize("spoil,message", [("missing", "no file of completed"), ("text", "no file of completed"),
                                           ("shape", "another version"), ("empty", "no faces")])
def test_bad_example_files_are_named(tmp_path, spoil, message):
    path = tmp_path / "examples.npz"
    if spoil == "text":
        path.write_text("no array")
    elif spoil == "shape":
        np.savez(path, cells=np.zeros((2, 3, 4, 4)), truth=np.zeros((2, 3, 4, 4)), fold=np.zeros(2))
    elif spoil == "empty":
        example_file(path, [HELD_OUT_FOLD])
    with pytest.raises(UserError, match=message):
        Examples(path, held_out=False)


def test_it_learns_what_completions_get_wrong(tmp_path):
    torch.manual_seed(0)
    data = Examples(example_file(tmp_path / "examples.npz", [1] * 8), held_out=False)
    batch = {name: torch.stack([data[index][name] for index in range(8)]) for name in ("cells", "truth")}
    stage = HarmoniserStage(Harmoniser())
    optimiser = torch.optim.Adam(stage.networks["harmoniser"].parameters(), lr=3e-3)
    rngs = [np.random.default_rng(place) for place in range(8)]
    gain = lambda: stage.score(stage.validate(stage.networks, batch, rngs, torch.no_grad))["gain_db"]
    assert gain() == pytest.approx(0, abs=1e-4)

    for step in range(25):
        losses, _ = stage.losses(batch, rngs, contextlib.nullcontext, step)
        optimiser.zero_grad()
        losses["colour"].backward()
        optimiser.step()
    assert gain() > 6
    assert stage.pictures(stage.networks, batch, rngs).shape == (3, 4 * 256, 3 * 256)


def test_holes_of_examples_hide_part_of_the_face():
    rng = np.random.default_rng(0)
    face = np.zeros((256, 256), bool)
    face[50:220, 60:200] = True
    shares = [_hole(rng, face).sum() / face.sum() for _ in range(20)]
    assert 0.15 <= min(shares) and max(shares) <= 1 and np.std(shares) > 0.1
    assert _hole(rng, np.zeros((256, 256), bool)).sum() == 0


def test_trained_from_the_command_line_it_is_what_completes(tmp_path):
    examples = example_file(tmp_path / "examples.npz", [HELD_OUT_FOLD, HELD_OUT_FOLD, 1, 2, 3, 4])
    assert main(["--stage", "harmoniser", "--examples", str(examples), "--batch-size", "2", "--max-steps", "3",
                 "--learning-rate", "3e-3", "--nthreads", "0", "--log-type", "traditional", "--precision", "fp32",
                 "--save-dir", str(tmp_path / "run")]) in (None, 0)
    export.main([str(tmp_path / "run" / "last.pth"), str(tmp_path / "harmoniser.pth")])
    network = load_harmoniser(tmp_path / "harmoniser.pth")
    with torch.no_grad():
        assert network(torch.rand(1, EVIDENCE, 32, 32)).abs().max() > 0
    assert choose_harmoniser(settings(harmonise=True, model_type="linear",
                                      harmoniser_ckpt=str(tmp_path / "harmoniser.pth"))) is not None
    assert choose_harmoniser(settings(harmonise=True, model_type="3dmm_pca")) is None
    assert choose_harmoniser(settings(harmonise=False, model_type="linear")) is None
    with pytest.raises(UserError, match="--harmoniser-ckpt"):
        choose_harmoniser(settings(harmonise=True, model_type="linear", harmoniser_ckpt=str(tmp_path / "none.pth")))


def test_training_without_examples_says_how_to_make_them(tmp_path):
    with pytest.raises(UserError, match="engine.harmoniser_examples"):
        build_training_data(settings(stage="harmoniser"))
