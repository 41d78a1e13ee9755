"""Published and own checkpoints become networks, strictly; anything else is one clear error."""
from __future__ import annotations

import numpy as np
import pytest
import torch

import golden_fill
from models import legacy, weights
from models.discriminator import PatchDiscriminator, PyramidDiscriminator
from models.encoder import Encoder
from models.inpainter import Inpainter
from models.occlusion import CLASS_WEIGHTS, OcclusionNet
from utils import checkpoints
from utils.errors import UserError


def _tensors(state: dict, prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + key: torch.from_numpy(np.asarray(value)) for key, value in state.items()}


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def _error(action, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("prefix", ["", "module."])
def test_keys_with_and_without_module(prefix, golden_state, golden_network):
    network = legacy.build("UnetSeg", _tensors(golden_state("UnetSeg"), prefix))
    assert not network.training
    assert _same(network, golden_network("UnetSeg"))


def test_a_prefix_on_some_keys_only_is_a_misfit(golden_state):
    state = dict(golden_state("UnetSeg"))
    state["module.inc.conv.conv.0.bias"] = state.pop("inc.conv.conv.0.bias")
    message = _error(legacy.build, "UnetSeg", state)
    assert "1 missing: inc.conv.conv.0.bias" in message and "1 extra: module.inc.conv.conv.0.bias" in message


@pytest.mark.parametrize("name", list(golden_fill.LAYOUT))
def test_all_misfits_in_one_error(name, golden_state):
    state = dict(golden_state(name))
    first, second, third = list(state)[0], list(state)[1], list(state)[-1]
    del state[first]
    state[second] = state[second][None]
    state[third] = np.zeros((1, 2, 3), np.float32)
    state["stranger.weight"] = np.zeros(3, np.float32)
    message = _error(legacy.build, name, state)
    for expected in (f"1 missing: {first}", "1 extra: stranger.weight", "2 misshapen", second, third, "(1, 2, 3)"):
        assert expected in message


def test_unused_norms_of_the_discriminators_are_checked_but_not_kept(golden_state):
    state = dict(golden_state("Discriminator_localglobal"))
    state["l1.norm.weight"] = state["l1.norm.weight"] + 1
    assert _same(legacy.build("Discriminator_localglobal", state), golden_fill.network("Discriminator_localglobal"))
    del state["layers.2.norm.bias"]
    assert "layers.2.norm.bias" in _error(legacy.build, "Discriminator_localglobal", state)


def test_weights_are_copied(golden_state):
    state = _tensors({key: value.copy() for key, value in golden_state("UnetSeg").items()})
    network = legacy.build("UnetSeg", state)
    state["outc.conv.bias"].zero_()
    assert (network.output.bias != 0).all()


def test_unknown_names_and_states():
    assert "UnetSelfAttnConf32_attn" in _error(legacy.build, "VGG_16", {})
    assert "state dict" in _error(legacy.build, "Encoder", [1, 2])
    assert "missing" in _error(legacy.build, "Encoder", {})
    assert "a str instead" in _error(legacy.build, "Encoder", {"k6_m.bias": "text"})


def test_attention_weights_do_not_fit_the_plain_inpainter(golden_state):
    assert "attn.gamma" in _error(legacy.build, "UnetSelfAttnConf32", golden_state("UnetSelfAttnConf32_attn"))
    assert "attn.gamma" in _error(legacy.build, "UnetSelfAttnConf32_attn", golden_state("UnetSelfAttnConf32"))


def _networks(path):
    return legacy.build_networks(checkpoints.load(path), str(path))


def test_published_files(tmp_path, golden_state, golden_network):
    three = {"modelE": "Encoder", "modelDT": "AlbedoDecoder", "modelDC": "ConfidenceDecoder"}
    torch.save({entry: _tensors(golden_state(name), "module.") for entry, name in three.items()}, tmp_path / "3dmm.pth")
    networks = _networks(tmp_path / "3dmm.pth")
    assert list(networks) == ["encoder", "albedo_decoder", "confidence_decoder"]
    for ours, name in zip(networks, three.values()):
        assert _same(networks[ours], golden_network(name))

    encoder, metadata = weights.load_encoder(tmp_path / "3dmm.pth")
    assert _same(encoder, golden_network("Encoder")) and not encoder.training
    assert metadata["source"] == "published"
    assert "not of the inpainter" in _error(weights.load_inpainter, tmp_path / "3dmm.pth")


@pytest.mark.parametrize("inpainter, critic", [
    ("UnetSelfAttnConf32_attn", "Discriminator_localglobal"),
    pytest.param("UnetSelfAttnConf32", "PyramidGAN_large", marks=pytest.mark.slow),
    pytest.param("UnetSelfAttnConf32", "Discriminator", marks=pytest.mark.slow),
])
def test_published_reconstruction_files(tmp_path, golden_state, golden_network, inpainter, critic):
    path = tmp_path / "checkpoint_recon.pth"
    torch.save({"modelR": _tensors(golden_state(inpainter)), "discI": _tensors(golden_state(critic)),
                "optimizerR": {"state": {}, "param_groups": []}, "optimizerDI": None, "epoch": 12}, path)
    networks = _networks(path)
    assert list(networks) == ["inpainter", "discriminator"]
    assert _same(networks["discriminator"], golden_network(critic))
    assert isinstance(networks["discriminator"], (PyramidDiscriminator, PatchDiscriminator))

    def mirror(x):
        return x

    network, _ = weights.load_inpainter(path, mirror)
    assert _same(network, golden_network(inpainter)) and network.mirror is mirror


def test_published_files_that_do_not_fit(tmp_path, golden_state):
    state = dict(golden_state("UnetSeg"))
    del state["outc.conv.bias"]
    torch.save({"modelO": _tensors(state)}, tmp_path / "occ.pth")
    message = _error(weights.load_occlusion, tmp_path / "occ.pth")
    assert "occ.pth" in message and "modelO" in message and "1 missing: outc.conv.bias" in message
    torch.save({"modelR": None, "epoch": 1}, tmp_path / "empty.pth")
    assert "empty.pth" in _error(_networks, tmp_path / "empty.pth")
    torch.save({"modelO": 5}, tmp_path / "odd.pth")
    assert "not a state dict" in _error(_networks, tmp_path / "odd.pth")


def test_class_weights_come_from_the_file_but_for_published_ones(tmp_path, golden_state):
    torch.save({"modelO": _tensors(golden_state("UnetSeg"))}, tmp_path / "published.pth")
    assert weights.load_occlusion(tmp_path / "published.pth")[0].class_weights is None
    state = OcclusionNet().state_dict()
    for metadata, expected in (({}, CLASS_WEIGHTS), ({"class_weights": [1.0, 2.0, 1.0]}, (1.0, 2.0, 1.0))):
        checkpoints.save_weights(tmp_path / "own.pth", "occlusion", state, metadata)
        assert weights.load_occlusion(tmp_path / "own.pth")[0].class_weights == expected
        checkpoints.save(tmp_path / "run.pth", {"format": checkpoints.TRAINING_FORMAT, "version": checkpoints.VERSION,
                                                "networks": {"occlusion": state}, "epoch": 2, "metadata": metadata})
        assert weights.load_occlusion(tmp_path / "run.pth")[0].class_weights == expected


@pytest.mark.parametrize("name, cls, load", [
    ("occlusion", OcclusionNet, weights.load_occlusion),
    pytest.param("encoder", Encoder, weights.load_encoder, marks=pytest.mark.slow),
    pytest.param("inpainter", Inpainter, weights.load_inpainter, marks=pytest.mark.slow),
])
def test_own_weight_files_and_training_checkpoints(tmp_path, name, cls, load):
    torch.manual_seed(0)
    network, average = cls(), cls()
    checkpoints.save_weights(tmp_path / "w.pth", name, network.state_dict(), {"steps": 3}, half=False)
    loaded, metadata = load(tmp_path / "w.pth")
    assert _same(loaded, network) and not loaded.training
    assert metadata == {"steps": 3, "source": "weights"}

    training = {"format": checkpoints.TRAINING_FORMAT, "version": checkpoints.VERSION,
                "networks": {name: network.state_dict()}, "epoch": 2}
    checkpoints.save(tmp_path / "t.pth", training)
    assert _same(load(tmp_path / "t.pth")[0], network)
    checkpoints.save(tmp_path / "t.pth", {**training, "averages": {name: average.state_dict()}})
    loaded, metadata = load(tmp_path / "t.pth")
    assert _same(loaded, average), "the average is what is meant to be used"
    assert metadata["source"] == "training" and metadata["epoch"] == 2


@torch.no_grad()
def test_weight_files_in_half_precision_give_nearly_the_same_network(tmp_path, golden_network):
    network = golden_network("UnetSelfAttnConf32_attn")
    checkpoints.save_weights(tmp_path / "w.pth", "inpainter", network.state_dict(), {})
    loaded, _ = weights.load_inpainter(tmp_path / "w.pth")
    visible = torch.ones(1, 1, 64, 64)
    albedo = torch.from_numpy(golden_fill.smooth("half", (1, 3, 64, 64)))
    difference = (loaded(albedo, visible).albedo - network(albedo, visible).albedo).abs()
    assert float(difference.mean()) < 2e-3
    assert (tmp_path / "w.pth").stat().st_size < 25e6


def test_wrong_and_missing_files(tmp_path):
    message = _error(weights.load_inpainter, tmp_path / "none.pth")
    assert "--recon-ckpt" in message and "--stage inpainter" in message
    assert "none.pth" in _error(weights.load_encoder, tmp_path / "none.pth")
    assert "--occ-ckpt" in _error(weights.load_occlusion, "")
    checkpoints.save(tmp_path / "foreign.pth", {"state_dict": {}, "arch": "resnet50"})
    message = _error(weights.load_encoder, tmp_path / "foreign.pth")
    assert "foreign.pth" in message and "state_dict, arch" in message
    checkpoints.save_weights(tmp_path / "enc.pth", "encoder", {}, {})
    assert "not of the occlusion" in _error(weights.load_occlusion, tmp_path / "enc.pth")
    assert "missing" in _error(weights.load_encoder, tmp_path / "enc.pth")
    checkpoints.save(tmp_path / "train.pth", {"format": checkpoints.TRAINING_FORMAT, "version": checkpoints.VERSION,
                                              "networks": {"encoder": {}}})
    assert "training checkpoint of encoder" in _error(weights.load_inpainter, tmp_path / "train.pth")


def test_weights_that_are_no_floating_point_are_refused():
    state = {"weight": torch.ones(3, 2, dtype=torch.int64), "bias": torch.ones(3)}
    message = _error(weights._fill, lambda state: torch.nn.Linear(2, 3), state, "enc.pth")
    assert "enc.pth" in message and "another type" in message
