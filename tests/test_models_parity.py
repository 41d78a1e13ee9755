"""The networks give the numbers of the published ones, and their weights come in through the published keys."""
from __future__ import annotations

import numpy as np
import pytest
import torch

import golden_fill
from models import legacy
from models.layers import SpectralConv2d, SpectralConvTranspose2d

NAMES = list(golden_fill.LAYOUT)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_equal_the_published_networks(name, golden_network):
    found = golden_fill.errors(name, golden_network(name))
    assert set(found) == {key for key in golden_fill.TOLERANCES if key.startswith(f"{name}/")}
    worst = max(found, key=lambda key: found[key][0] / found[key][1])
    print(f"{name}: worst {worst}: {found[worst][0]:.2e} of {found[worst][1]:.2e}")
    assert found[worst][0] <= found[worst][1], worst


@pytest.mark.parametrize("name", NAMES)
def test_key_map_covers_exactly_the_published_keys(name):
    assert set(legacy.KEYS[name]) == set(golden_fill.LAYOUT[name]["keys"])
    ours = [new for new in legacy.KEYS[name].values() if isinstance(new, str)]
    assert len(ours) == len(set(ours))


@pytest.mark.parametrize("name", NAMES)
def test_key_map_fills_every_weight_of_the_network(name, golden_network):
    ours = {new for new in legacy.KEYS[name].values() if isinstance(new, str)}
    assert ours == set(golden_network(name).state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_golden_weights_are_the_ones_the_numbers_were_made_with(name, golden_state):
    total = sum(np.abs(value.astype(np.float64)).sum() for value in golden_state(name).values())
    assert total == pytest.approx(golden_fill.LAYOUT[name]["fill_abs_sum"], rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count(name, golden_network):
    unused = sum(int(np.prod(new[1])) for new in legacy.KEYS[name].values() if not isinstance(new, str))
    count = sum(parameter.numel() for parameter in golden_network(name).parameters())
    assert count + unused == golden_fill.LAYOUT[name]["n_parameters"]


LAYERS = {
    "conv": lambda: SpectralConv2d(5, 7, 3, 1, 1),
    "convT_4x4": lambda: SpectralConvTranspose2d(6, 6, 4, 2, 1),
    "convT_2x2": lambda: SpectralConvTranspose2d(6, 8, 2, 2),
}


def _close(found: torch.Tensor, stored: np.ndarray, relative: float) -> bool:
    return float(np.abs(found.detach().numpy() - stored).max()) <= relative * float(np.abs(stored).max())


@pytest.mark.parametrize("name", LAYERS)
def test_spectral_norm_in_evaluation_and_training(name):
    stored = np.load(golden_fill.GOLDEN / "spectral.npz")
    layer = LAYERS[name]()
    names = {"bias": "bias", "weight": "weight_orig", "u": "weight_u", "v": "weight_v"}
    layer.load_state_dict({ours: torch.from_numpy(stored[f"{name}/before/{old}"]) for ours, old in names.items()})
    x = torch.from_numpy(golden_fill.smooth(f"sn/{name}", (2, layer.in_channels, 8, 8)))

    layer.eval()
    assert _close(layer(x), stored[f"{name}/eval_out"], 1e-3)
    assert np.array_equal(layer.u.numpy(), stored[f"{name}/before/weight_u"]), "no iteration in evaluation"

    layer.train()
    out = layer(x)
    out.square().mean().backward()
    assert _close(out, stored[f"{name}/train_out1"], 1e-5)
    assert _close(layer.u, stored[f"{name}/train_u1"], 1e-5)
    assert _close(layer.v, stored[f"{name}/train_v1"], 1e-5)
    assert _close(layer.weight.grad, stored[f"{name}/train_grad1_weight_orig"], 1e-4)
    assert _close(layer(x), stored[f"{name}/train_out2"], 1e-5)
    assert _close(layer.u, stored[f"{name}/train_u2"], 1e-5)
    assert _close(layer.v, stored[f"{name}/train_v2"], 1e-5)
