"""The linear fill: recovers what a low-dimensional model of albedo maps hides."""
from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datasets.faces import FolderFaces
from engine import linear_fill
from models import linear
from models.linear import LinearInpainter, fit_model
from models.reduced import reduce
from models.weights import load_linear
from utils import checkpoints
from utils.errors import UserError
from utils.images import write_image


@pytest.fixture(scope="module")
def world():
    """(samples (60, 3, 96, 128) of three smooth components and a little noise, known texels)."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :128] / 96
    waves = np.stack([np.cos(3 * rows), np.sin(4 * columns), np.cos(2 * rows + 5 * columns)]).astype(np.float32)
    weights = rng.standard_normal((60, 3, 3)).astype(np.float32)
    maps = 0.1 + 0.15 * np.einsum("nck,khw->nchw", weights, waves)
    maps += 0.005 * rng.standard_normal(maps.shape, dtype=np.float32)
    known = np.ones((60, 1, 96, 128), bool)
    for item in known:
        top, left = rng.integers(0, 60, 2)
        item[0, top:top + 30, left:left + 40] = False
    return maps, known


@pytest.fixture(scope="module")
def model(world) -> LinearInpainter:
    return fit_model(*world, 9)


def enlarge(maps: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.interpolate(torch.from_numpy(maps), scale_factor=2, mode="bilinear")


def test_hidden_texels_are_recovered_and_visible_ones_explained(world, model):
    truth = enlarge(world[0][:4])
    visible = torch.ones(4, 1, 192, 256)
    visible[..., 60:] = 0
    filled = model(truth * visible, visible)
    assert ((filled.albedo - truth) * visible).abs().mean() < 0.02
    hidden = (1 - visible).expand_as(truth) > 0
    error = (filled.albedo - truth)[hidden].abs().mean()
    assert error < 0.2 * (truth - enlarge(world[0]).mean(0))[hidden].abs().mean()
    assert filled.confidence.shape == visible.shape


def test_hidden_values_and_the_rest_of_the_batch_do_not_matter(world, model):
    truth = enlarge(world[0][:3])
    visible = (torch.rand(3, 1, 192, 256, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    together = model(truth * visible, visible).albedo
    alone = model((truth * visible + 9 * (1 - visible))[1:2], visible[1:2]).albedo
    torch.testing.assert_close(together[1:2], alone)


def test_a_part_of_the_texels_tells_which_to_trust(monkeypatch, world, model):
    truth = enlarge(world[0][:2])
    visible = torch.ones(2, 1, 192, 256)
    visible[..., 100:] = 0
    spoilt = truth.clone()
    spoilt[:, :, 40:80, 30:70] += 0.4  # hair
    thinned = model(spoilt * visible, visible).albedo
    monkeypatch.setattr(linear, "THINNED", 1)
    assert (thinned - model(spoilt * visible, visible).albedo).abs().mean() < 2e-3


def test_detail_is_mirrored_and_light_is_not(model):
    """A dark line that the model does not know appears on the hidden half; a darker half does not."""
    face = enlarge(model.mean[None].numpy())
    visible = torch.zeros(1, 1, 192, 256)
    visible[..., :127] = 1
    line, shadow = torch.zeros(2, 192, 256)
    line[80:84, 40:100], shadow[:, :127] = -0.2, -0.1
    plain, lined, shaded = (model((face + change) * visible, visible).albedo for change in (0.0, line, shadow))
    mirrored = (lined - plain)[0, :, 80:84, 160:210].mean()
    assert -0.2 < mirrored < -0.05
    assert (lined - plain)[0, :, 20:60, 130:].abs().max() < 0.03
    assert (shaded - plain)[0, :, 60:120, 160:210].std() < 0.01


def test_typical_eyes_stand_in_where_both_are_hidden(world, model, tmp_path):
    """Not where one of them is visible, whose detail is mirrored; and they go with the weight file."""
    seeing = LinearInpainter(9, knows_eyes=True)
    seeing.load_state_dict({**model.state_dict(), "eyes": torch.zeros(3, 192, 256)})
    seeing.eyes[:, 60:70, 80:90] = seeing.eyes[:, 60:70, 166:176] = 0.2
    checkpoints.save_weights(tmp_path / "linear.pth", "linear", seeing.state_dict(), {}, half=False)
    seeing, truth = load_linear(tmp_path / "linear.pth")[0], enlarge(world[0][:1])
    one_seen, none_seen = torch.zeros(2, 1, 1, 192, 256)
    one_seen[..., :128] = 1
    none_seen[..., 100:, :] = 1
    for visible, expected in ((one_seen, 0.0), (none_seen, linear.EYE_GAIN)):
        difference = seeing(truth * visible, visible).albedo - model(truth * visible, visible).albedo
        torch.testing.assert_close(difference, expected * seeing.eyes[None], atol=1e-5, rtol=0)
        torch.testing.assert_close(seeing.typical_eyes(visible), expected * seeing.eyes[None], atol=1e-6, rtol=0)
    assert not model.typical_eyes(none_seen).any()


def test_the_most_typical_eyes_are_found(tmp_path, monkeypatch):
    """Of portraits with the same detail in their eyes but for one, and that detail, not the odd one's, comes out."""
    for index, name in enumerate("abcde"):
        write_image(tmp_path / f"{name}.png", np.full((256, 256, 3), 100 + index, np.uint8))
    stripes = 0.3 * (torch.arange(256) // 2 % 2).float().expand(3, 192, 256)
    odd = 0.3 * (torch.arange(192) // 2 % 2).float()[:, None].expand(3, 192, 256)

    class Eyes(Halves):
        morphable = SimpleNamespace(vertex_uv=torch.zeros(68, 2), landmarks=torch.arange(68))

        @staticmethod
        def factor(image, hole, face):
            pattern = odd if round(float(image.mean() + 1) * 127.5) == 102 else stripes
            visible = torch.ones(1, 1, 192, 256, dtype=torch.bool)
            visible[..., 60:64, 80:84] = False  # a lash, say
            return SimpleNamespace(uv_visible=visible, albedo_in=torch.where(visible, pattern[None] + 0.3, 0))

    for start, centre in ((36, 80.0), (42, 175.0)):
        Eyes.morphable.vertex_uv[start:start + 6] = torch.tensor([65.0, centre]) + torch.tensor([[-5.0], [5.0]] * 3)
    found = linear_fill.find_eyes(Eyes, FolderFaces(tmp_path), LinearInpainter(2), "traditional")
    assert not found[:, 60:64, 80:84].any()  # nothing is known there, and nothing said
    inside = found[:, 64:70, 75:85]
    assert inside.std() > 0.1 and (inside - inside[:, :1]).abs().max() < 0.02  # columns differ, rows do not
    assert found[:, 150:].abs().max() < 1e-3 and found[:, 60:70, 120:135].abs().max() < 1e-3


def test_texels_that_no_map_knows_are_like_those_around_them(world):
    maps, known = world[0].copy(), world[1].copy()
    known[:, :, 40:43, 60:64] = False
    maps[:, :, 40:43, 60:64] = 1.0
    with_gap, whole = fit_model(maps, known, 9), fit_model(*world, 9)
    assert (with_gap.mean - whole.mean).abs()[:, 40:43, 60:64].max() < 0.02


def test_without_a_visible_texel_the_mean_is_returned(model):
    nothing = torch.zeros(1, 1, 192, 256)
    torch.testing.assert_close(model(torch.zeros(1, 3, 192, 256), nothing).albedo,
                               enlarge(model.mean[None].numpy()).clamp(-1, 1))


def test_reduced_maps_are_means_of_visible_texels():
    albedo, visible = torch.zeros(1, 3, 192, 256), torch.zeros(1, 1, 192, 256)
    albedo[..., 0, 0], visible[..., 0, 0] = 0.8, 1
    values, weight = reduce(albedo, visible)
    assert values[0, 0, 0, 0] == pytest.approx(0.8) and weight[0, 0, 0, 0] == 0.25 and weight.sum() == 0.25


def test_weight_file_and_its_errors(model, world, tmp_path):
    checkpoints.save_weights(tmp_path / "linear.pth", "linear", model.state_dict(), {}, half=False)
    again, _ = load_linear(tmp_path / "linear.pth")
    torch.testing.assert_close(again.components, model.components)
    with pytest.raises(UserError, match="--linear-ckpt"):
        load_linear(tmp_path / "missing.pth")
    with pytest.raises(ValueError, match="more than"):
        fit_model(world[0][:5], world[1][:5], 5)


class Halves:
    """A completion that sees the left half of every face, with the picture's mean colour as albedo."""

    class renderer:
        @staticmethod
        def unwrap(image, positions):
            return torch.ones(1, 1, 192, 256)

    @staticmethod
    def label(image):
        return torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(len(image), 3, 256, 256)

    @staticmethod
    def trusted(labels, hole):
        assert not hole.any()
        return labels[:, :1]

    @staticmethod
    def factor(image, hole, face):
        assert face.min() == 1
        visible = torch.zeros(1, 1, 192, 256, dtype=torch.bool)
        visible[..., :128] = True
        albedo = torch.where(visible, image.mean((2, 3), keepdim=True), 0)
        return SimpleNamespace(uv_visible=visible, albedo_in=albedo, positions=None)


def test_portraits_and_their_mirror_images_are_collected(tmp_path):
    for index, grey in enumerate((60, 200)):
        write_image(tmp_path / f"{index}.png", np.full((256, 256, 3), grey, np.uint8))
    maps, known = linear_fill.collect(Halves, FolderFaces(tmp_path), "traditional")
    assert maps.shape == (4, 3, 96, 128) and known.shape == (4, 1, 96, 128)
    for item in range(4):
        grey = (60, 60, 200, 200)[item] / 127.5 - 1
        assert known[item].mean() == pytest.approx(0.5, abs=0.01)
        assert np.allclose(maps[item][:, known[item, 0]], grey, atol=1e-5)
    assert known[0, 0, :, :60].all() and not known[0, 0, :, 64:].any()
    assert known[1, 0, :, 66:126].all() and not known[1, 0, :, :60].any()


def test_making_the_model_needs_portraits(tmp_path):
    with pytest.raises(UserError, match="--portraits DIR"):
        linear_fill.main([])
    write_image(tmp_path / "a.png", np.zeros((256, 256, 3), np.uint8))
    with pytest.raises(UserError, match="needs more than"):
        linear_fill.main(["--portraits", str(tmp_path)])


def test_new_eyes_leave_the_model_as_it_is(model, tmp_path, monkeypatch):
    """--finetune: mean and components of a model that cannot be made again stay, and what its file says of them."""
    write_image(tmp_path / "faces" / "a.png", np.full((256, 256, 3), 100, np.uint8))
    checkpoints.save_weights(tmp_path / "linear.pth", "linear", model.state_dict(), {"portraits": 60}, half=False)
    monkeypatch.setattr("engine.build.build_completion", lambda *_, **__: Halves)
    monkeypatch.setattr(linear_fill, "find_eyes", lambda *_: torch.full((3, 192, 256), 0.5))
    linear_fill.main(["--portraits", str(tmp_path / "faces"), "--finetune", "--ngpu", "0",
                      "--linear-ckpt", str(tmp_path / "linear.pth")])
    again, metadata = load_linear(tmp_path / "linear.pth")
    assert (again.eyes - 0.5).abs().max() < 1e-3 and metadata["portraits"] == 60 and metadata["eyes_of"] == 1
    torch.testing.assert_close(again.components, model.components, atol=1e-3, rtol=1e-3)
