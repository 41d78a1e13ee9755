"""The networks as such: gradients, batches, precision, checks of their input, and spectral normalisation."""
from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import golden_fill
from models.decoders import AlbedoDecoder, ConfidenceDecoder
from models.discriminator import PatchDiscriminator, PyramidDiscriminator
from models.encoder import Encoder
from models.inpainter import Inpainter
from models.layers import SpectralConv2d, SpectralConvTranspose2d, group_norm
from models.occlusion import OcclusionNet


def _picture(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(golden_fill.smooth(name, shape))


def _inputs(name: str, batch: int) -> tuple[torch.Tensor, ...]:
    if name == "Encoder":
        return (_picture("batch/e", batch, 3, 64, 64),)
    if name.endswith("Decoder"):
        return (torch.from_numpy(golden_fill.normal("batch/d", (batch, 512))),)
    if name.startswith("UnetSelfAttn"):
        visible = (_picture("batch/v", batch, 1, 64, 96) > 0).float()
        return _picture("batch/i", batch, 3, 64, 96) * visible, visible
    return (_picture("batch/o", batch, 3, 64, 64),)


def _flat(output) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else list(output)


@pytest.mark.parametrize("name", list(golden_fill.LAYOUT))
@torch.no_grad()
def test_an_item_does_not_depend_on_its_batch(name, golden_network):
    network, inputs = golden_network(name), _inputs(name, 2)
    together = _flat(network(*inputs))
    alone = _flat(network(*(value[1:2] for value in inputs)))
    others = _flat(network(*(torch.cat([-value[:1], value[1:2]]) for value in inputs)))
    for whole, single, changed in zip(together, alone, others, strict=True):
        # Sums may be taken in another order for another batch size, so the last bits may differ.
        assert torch.allclose(whole[1:2], single, rtol=0, atol=5e-5 * float(whole.abs().max()))
        assert torch.equal(whole[1], changed[1]), "the other items of the batch leak in"


NETWORKS = {
    "encoder": (Encoder, lambda: (torch.randn(2, 3, 64, 64),)),
    "albedo decoder": (AlbedoDecoder, lambda: (torch.randn(2, 512),)),
    "confidence decoder": (ConfidenceDecoder, lambda: (torch.randn(2, 512),)),
    "occlusion": (OcclusionNet, lambda: (torch.randn(2, 3, 64, 64),)),
    "inpainter": (lambda: Inpainter(attention=True), lambda: (torch.rand(2, 3, 32, 64), torch.ones(2, 1, 32, 64))),
    "pyramid": (PyramidDiscriminator, lambda: (torch.randn(2, 3, 64, 64),)),
    "large pyramid": (lambda: PyramidDiscriminator(large=True), lambda: (torch.randn(2, 3, 64, 64),)),
    "patch": (PatchDiscriminator, lambda: (torch.randn(2, 3, 64, 64),)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_gets_a_finite_gradient_in_training(name):
    torch.manual_seed(0)
    build, make = NETWORKS[name]
    network = build().train()
    if name == "inpainter":
        nn.init.constant_(network.attention.gamma, 0.5)  # at 0, where training starts, its branch is switched off
    outputs = _flat(network(*make()))
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
        # A bias in front of a norm over exactly its channel has none, up to rounding; all others do.
        if "bias" not in key:
            assert (parameter.grad != 0).any(), key


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_fresh_networks_are_sane_in_both_modes(name):
    torch.manual_seed(1)
    build, make = NETWORKS[name]
    network, inputs = build(), make()
    for mode in (True, False):
        for output in _flat(network.train(mode)(*inputs)):
            assert torch.isfinite(output).all() and output.dtype == torch.float32


@torch.no_grad()
def test_output_ranges():
    torch.manual_seed(2)
    code = Encoder().eval()(3 * torch.randn(2, 3, 96, 96))
    assert [tuple(value.shape) for value in code] == [(2, 228), (2, 512), (2, 512), (2,), (2, 5), (2, 27)]
    assert (code.scale >= 0).all() and (code.scale <= 2e-3).all() and (code.pose.abs() <= 1).all()
    albedo = AlbedoDecoder().eval()(torch.randn(1, 512))
    assert albedo.shape == (1, 3, 192, 256) and (albedo.abs() <= 1).all()
    confidence = ConfidenceDecoder().eval()(torch.randn(1, 512))
    assert confidence.shape == (1, 1, 192, 256) and (confidence >= -10).all()
    probabilities = OcclusionNet().eval()(torch.randn(2, 3, 33, 47))
    assert probabilities.shape == (2, 3, 33, 47)
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(2, 33, 47))
    completed = Inpainter().eval()(torch.randn(1, 3, 64, 32), torch.ones(1, 1, 64, 32, dtype=torch.bool))
    assert completed.albedo.shape == (1, 3, 64, 32) and (completed.albedo.abs() <= 1).all()
    assert completed.confidence.shape == (1, 1, 64, 32)
    scores = PyramidDiscriminator()(torch.randn(1, 3, 64, 96))
    assert [tuple(value.shape) for value in scores] == [(1, 1, 16, 24), (1, 1, 8, 12), (1, 1, 4, 6), (1, 1, 2, 3)]


@pytest.mark.parametrize("call", [
    lambda: Encoder()(torch.zeros(1, 3, 60, 60)),
    lambda: Encoder()(torch.zeros(1, 3, 64, 96)),
    lambda: Encoder()(torch.zeros(1, 1, 64, 64)),
    lambda: OcclusionNet()(torch.zeros(1, 3, 16, 64)),
    lambda: Inpainter()(torch.zeros(1, 3, 60, 64), torch.zeros(1, 1, 60, 64)),
    lambda: Inpainter()(torch.zeros(2, 3, 64, 64), torch.zeros(1, 1, 64, 64)),
])
def test_inputs_of_a_wrong_shape_are_refused(call):
    with pytest.raises(ValueError, match="got"):
        call()


@torch.no_grad()
def test_inpainter_sees_the_map_and_its_mirror_alike(golden_network):
    """Exchanging the two first layers does to their features what mirroring the input does, in exchanged order."""

    def mirror(x):
        """About the middle of all columns but the last, which has no mirror."""
        return torch.cat([x[..., :-1].flip(-1), torch.zeros_like(x[..., -1:])], dim=-1)

    network = copy.deepcopy(golden_network("UnetSelfAttnConf32"))
    network.mirror = mirror
    seen = []
    network.down[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    visible = (_picture("mirror/m", 1, 1, 64, 96) > 0).float()
    visible[..., -1] = 0
    albedo = _picture("mirror/a", 1, 3, 64, 96) * visible
    network(albedo, visible)
    network.direct, network.mirrored = network.mirrored, network.direct
    network(mirror(albedo), mirror(visible))
    first, second = (value.chunk(2, dim=1) for value in seen)
    assert torch.equal(first[0], second[1]) and torch.equal(first[1], second[0])


@torch.no_grad()
def test_attention_weights_sum_to_one_and_start_switched_off():
    torch.manual_seed(3)
    plain, attending = Inpainter().eval(), Inpainter(attention=True).eval()
    attending.load_state_dict(plain.state_dict(), strict=False)
    albedo, visible = torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    assert torch.equal(plain(albedo, visible).albedo, attending(albedo, visible).albedo)
    weights = attending.attention.weights(torch.randn(2, 64, 5, 7))
    assert weights.shape == (2, 35, 35)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(2, 35))


@torch.no_grad()
@pytest.mark.parametrize("options", [{"gated": False}, {"mirrored": False}, {"width": 0.25},
                                     {"attention": True, "gated": False, "mirrored": False, "width": 0.125}])
def test_parts_can_be_left_out_and_a_file_tells_which(options):
    torch.manual_seed(5)
    network = Inpainter(**options).eval()
    albedo, visible = torch.rand(2, 3, 64, 64), torch.ones(2, 1, 64, 64)
    result = network(albedo, visible)
    assert result.albedo.shape == albedo.shape and result.confidence.shape == visible.shape
    again = Inpainter.like(network.state_dict()).eval()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(albedo, visible).albedo, result.albedo)
    if not options.get("mirrored", True):
        network.mirror = None  # nothing is mirrored
        assert torch.equal(network(albedo, visible).albedo, result.albedo)
    with pytest.raises(ValueError, match="width"):
        Inpainter(width=0.3)


@pytest.mark.parametrize("name", ["encoder", "occlusion", "inpainter"])
@torch.no_grad()
def test_half_precision_keeps_outputs_in_single(name):
    torch.manual_seed(4)
    build, make = NETWORKS[name]
    network, inputs = build().eval(), make()
    exact = _flat(network(*inputs))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = _flat(network(*inputs))
    for a, b in zip(exact, rounded):
        assert b.dtype == torch.float32
        assert float((a - b).abs().max()) <= 0.1 * max(1.0, float(a.abs().max()))


LAYERS = [lambda: SpectralConv2d(4, 6, 3, 2, 1), lambda: SpectralConvTranspose2d(4, 6, 4, 2, 1)]


@pytest.mark.parametrize("build", LAYERS)
def test_spectral_layers_have_norm_one(build):
    torch.manual_seed(5)
    layer = build().double()
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    for _ in range(200):
        layer(x)
    weight = layer.eval().normalised_weight()
    matrix = weight.movedim(layer.OUTPUT_AXIS, 0).flatten(1)
    assert float(torch.linalg.matrix_norm(matrix.detach(), ord=2)) == pytest.approx(1, abs=1e-6)
    assert float(layer.u.norm()) == pytest.approx(1) and float(layer.v.norm()) == pytest.approx(1)


@pytest.mark.parametrize("build", LAYERS)
def test_spectral_layers_pass_gradcheck(build):
    torch.manual_seed(6)
    layer = build().double().eval()

    def apply(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    x = torch.randn(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(apply, (x, layer.weight, layer.bias))


def test_two_training_passes_before_one_backward():
    """A discriminator sees real and fake before its step; the second pass must not spoil the first one's graph."""
    torch.manual_seed(7)
    together = PyramidDiscriminator().train()
    apart, pictures = copy.deepcopy(together), torch.randn(2, 1, 3, 64, 64)
    sum(value.mean() for picture in pictures for value in together(picture)).backward()
    for picture in pictures:
        sum(value.mean() for value in apart(picture)).backward()
    for ours, theirs in zip(together.parameters(), apart.parameters(), strict=True):
        assert ours.grad.abs().max() > 0
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_copies_and_state_dicts_carry_the_singular_vectors():
    torch.manual_seed(8)
    network = PyramidDiscriminator().train()
    image = torch.randn(1, 3, 64, 64)
    network(image)
    other = PyramidDiscriminator()
    other.load_state_dict(network.state_dict())
    duplicate = copy.deepcopy(network)
    with torch.no_grad():
        wanted = network.eval()(image)
        for same in (other.eval()(image), duplicate.eval()(image)):
            assert all(torch.equal(a, b) for a, b in zip(wanted, same))


def test_encoder_reduces_its_image_to_the_size_of_its_training():
    encoder = Encoder().eval()
    image = torch.rand(1, 3, 224, 224) * 2 - 1
    small = torch.nn.functional.interpolate(image, size=(96, 96), mode="area")
    with torch.no_grad():
        expected = encoder(small)
        encoder.input_size = 96
        for one, other in zip(encoder(image), expected):
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(encoder(small).shape, expected.shape)


def test_occlusion_net_scores_every_pixel_of_a_reduced_image():
    net = OcclusionNet().eval()
    image = torch.rand(1, 3, 224, 100) * 2 - 1
    with torch.no_grad():
        small = net.logits(torch.nn.functional.interpolate(image, (128, 64), mode="area"))
        net.reduction = 128 / 224
        scores = net.logits(image)
    assert scores.shape == (1, 3, 224, 100)
    torch.testing.assert_close(scores, torch.nn.functional.interpolate(small, (224, 100), mode="bilinear"))


@torch.no_grad()
def test_encoder_without_codes_says_the_same_of_the_head():
    torch.manual_seed(0)
    encoder, image = Encoder().eval(), torch.rand(2, 3, 96, 96) * 2 - 1
    state = {name: value for name, value in encoder.state_dict().items() if "albedo" not in name
             and "confidence" not in name}
    bare = Encoder.like(state).eval()
    bare.load_state_dict(state)
    assert Encoder.like(encoder.state_dict()).knows_codes and not bare.knows_codes
    one, other = encoder(image), bare(image)
    for name in ("shape", "scale", "pose", "light"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert other.albedo.shape == other.confidence.shape == (2, 0)
    bare.learn_codes()
    assert bare.knows_codes and bare(image).albedo.shape == (2, 512)
    assert set(bare.state_dict()) == set(encoder.state_dict())


@torch.no_grad()
def test_class_weights_of_the_training_are_divided_out_of_the_odds():
    torch.manual_seed(0)
    net, image = OcclusionNet(64 / 224, knows_hair=True).eval(), torch.rand(1, 3, 224, 224)
    equal, hair = net.scores(image)
    net.class_weights = (1.0, 2.0, 0.5)
    odds = net(image) / net(image)[:, :1] / (equal.softmax(1) / equal.softmax(1)[:, :1])
    torch.testing.assert_close(odds.mean((0, 2, 3)), torch.tensor([1.0, 0.5, 2.0]))
    torch.testing.assert_close(net.scores(image)[0], net.logits(image))
    assert torch.equal(net.scores(image)[1], hair)  # it is asked within occlusion
    net.train()
    trained = net.logits(image)
    net.class_weights = None
    torch.testing.assert_close(net.logits(image), trained)  # the loss weighs classes by itself


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(8, 12), (64, 64)])
def test_group_norms_of_small_maps_are_those_of_pytorch(layout, size):
    torch.manual_seed(0)
    norm, x = group_norm(16), torch.rand(2, 16, *size).to(memory_format=layout)
    norm.weight.uniform_(0.5, 1.5)
    torch.testing.assert_close(norm(x), torch.nn.functional.group_norm(x, 4, norm.weight, norm.bias))
