"""The linear fill: recovers what a low-dimensional model of albedo maps hides."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from models.linear import LinearInpainter, fit_model, reduce
from models.weights import load_linear
from utils import checkpoints
from utils.errors import UserError


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


def test_hidden_texels_are_recovered_and_visible_ones_kept(world, model):
    truth = enlarge(world[0][:4])
    visible = torch.ones(4, 1, 192, 256)
    visible[..., 60:] = 0
    filled = model(truth * visible, visible)
    assert torch.equal(filled.albedo * visible, truth * visible)
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
    again = load_linear(tmp_path / "linear.pth")
    torch.testing.assert_close(again.components, model.components)
    with pytest.raises(UserError, match="--linear-ckpt"):
        load_linear(tmp_path / "missing.pth")
    with pytest.raises(ValueError, match="more than"):
        fit_model(world[0][:5], world[1][:5], 5)
