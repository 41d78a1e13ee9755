"""Networks prepared for inference alone give the same outputs as before."""

from __future__ import annotations

import pytest
import torch

from models.encoder import Encoder
from models.inpainter import Inpainter
from models.layers import compute_in, fold_for_inference
from models.occlusion import OcclusionNet


def outputs(network, *inputs):
    with torch.no_grad():
        result = network.eval()(*inputs)
    return list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("create, shapes", [
    (Encoder, [(2, 3, 64, 64)]), (OcclusionNet, [(2, 3, 64, 64)]), (Inpainter, [(2, 3, 64, 64), (2, 1, 64, 64)])])
def test_folded_networks_give_the_same(create, shapes):
    torch.manual_seed(0)
    network = create()
    for module in network.modules():  # statistics and estimates as training leaves them, not as initialised
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
    inputs = [torch.rand(shape) for shape in shapes]
    expected = outputs(network, *inputs)
    folded = fold_for_inference(fold_for_inference(network))  # twice changes nothing more
    for ours, theirs in zip(outputs(folded, *inputs), expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert all(module.weight.is_contiguous(memory_format=torch.channels_last) for module in folded.modules()
               if isinstance(module, torch.nn.Conv2d))


@torch.no_grad()
def test_folded_to_bfloat16_an_autocast_gives_the_same_bits():
    torch.manual_seed(0)
    inputs = torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    folded, half = (fold_for_inference(Inpainter(width=0.125).eval()) for _ in range(2))
    half.load_state_dict(folded.state_dict())
    fold_for_inference(half, torch.bfloat16)
    assert half.output.weight.dtype == half.output.bias.dtype == torch.bfloat16
    assert half.direct.gate.norm.weight.dtype == torch.float32
    with compute_in(torch.bfloat16, torch.device("cpu")):
        for ours, theirs in zip(half(*inputs), folded(*inputs)):
            assert torch.equal(ours, theirs)
    with compute_in(torch.float32, torch.device("cpu")):  # leaves what is around it
        assert not torch.is_autocast_enabled("cpu")
