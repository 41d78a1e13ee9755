"""Published checkpoints: the explicit map from their key names to this project's, and strict loading.

Nothing else in the project knows the old names (modelE, k0_1, ...). :data:`KEYS` gives, for every published network
class, each of its state-dict keys and the key here; a state dict must hold exactly those keys with exactly the shapes
of the network, otherwise one :class:`~utils.errors.UserError` lists everything that does not fit.
"""
from __future__ import annotations

from typing import Callable, Mapping

import numpy as np
import torch
from torch import nn

from models.decoders import AlbedoDecoder, ConfidenceDecoder
from models.discriminator import PatchDiscriminator, PyramidDiscriminator
from models.encoder import Encoder
from models.inpainter import Inpainter
from models.occlusion import OcclusionNet
from utils import checkpoints
from utils.errors import UserError

# Value of a key that a published checkpoint holds and its forward pass never used: (why, shape).
Unused = tuple[str, tuple[int, ...]]
KeyMap = dict[str, "str | Unused"]

_NORM = ("weight", "bias")
_BATCH_NORM = _NORM + ("running_mean", "running_var", "num_batches_tracked")
_SPECTRAL = {"weight_orig": "weight", "weight_u": "u", "weight_v": "v"}


def _plain(old: str, new: str, names: tuple[str, ...] = _NORM) -> KeyMap:
    """Keys that only the layer's name tells apart: convolutions, linear layers and norms (same two names)."""
    return {f"{old}.{name}": f"{new}.{name}" for name in names}


def _spectral(old: str, new: str, bias: bool = True) -> KeyMap:
    keys: KeyMap = {f"{old}.{name}": f"{new}.{ours}" for name, ours in _SPECTRAL.items()}
    if bias:
        keys[f"{old}.bias"] = f"{new}.bias"
    return keys


def _unit(old: str, new: str, bias: bool = True) -> KeyMap:
    """convolution + norm + ELU of the encoder and the decoders."""
    return _spectral(f"{old}.conv2d", f"{new}.conv", bias) | _plain(f"{old}.norm_layer", f"{new}.norm")


def _up_unit(old: str, new: str) -> KeyMap:
    return _spectral(f"{old}.deconv2d.1", f"{new}.conv") | _plain(f"{old}.norm", f"{new}.norm")


def _encoder_keys() -> KeyMap:
    trunk = {
        "k0_1": "0.0", "k0_2": "0.1", "k1_0": "1.0", "k1_1": "1.1", "k1_2": "1.2", "k2_0": "2.0", "k2_1": "2.1",
        "k2_2": "2.2", "k3_0": "3.0", "k3_1": "3.1", "k3_2": "3.2", "k4_0": "4.0", "k4_1": "4.1",
    }
    heads = {"k5_m": "pose_unit", "k5_il": "light_unit", "k5_shape": "shape_units.0", "k6_shape": "shape_units.1",
             "k5_tex": "albedo_unit", "k5_conf": "confidence_unit"}
    linears = {"k6_m": "pose_linear", "k6_il": "light_linear", "k7_shape": "shape_linear"}
    keys: KeyMap = {}
    for old, new in trunk.items():
        keys |= _unit(old, f"trunk.{new}", bias=False)
    for old, new in heads.items():
        keys |= _unit(old, new)
    for old, new in linears.items():
        keys |= _plain(old, new)
    return keys


def _albedo_decoder_keys() -> KeyMap:
    keys = _up_unit("h6_1", "expand") | _spectral("h6_0.conv2d", "project")
    for level, old in enumerate(("h5", "h4", "h3", "h2", "h1", "h0")):
        keys |= _up_unit(f"{old}_2", f"levels.{level}.0")
        keys |= _unit(f"{old}_1", f"levels.{level}.1")
        keys |= _unit(f"{old}_0", f"levels.{level}.2")
    return keys | _plain("final", "output")


def _confidence_decoder_keys() -> KeyMap:
    keys = _up_unit("h6", "expand")
    for level, old in enumerate(("h5", "h4", "h3", "h2", "h1", "h0")):
        keys |= _up_unit(old, f"levels.{level}")
    return keys | _plain("final", "output")


def _occlusion_keys() -> KeyMap:
    def double(old: str, new: str, shortcut: bool = True) -> KeyMap:
        """Of a residual unit of two convolutions."""
        keys = _plain(f"{old}.conv.0", f"{new}.conv1") | _plain(f"{old}.conv.1", f"{new}.norm1", _BATCH_NORM)
        keys |= _plain(f"{old}.conv.3", f"{new}.conv2") | _plain(f"{old}.conv.4", f"{new}.norm2", _BATCH_NORM)
        if shortcut:
            keys |= _plain(f"{old}.res_conv", f"{new}.shortcut.0")
            keys |= _plain(f"{old}.res_norm", f"{new}.shortcut.1", _BATCH_NORM)
        return keys

    keys = double("inc.conv", "inlet")
    for index in range(5):
        # The two deepest stages keep their width, so their shortcut is the identity.
        keys |= double(f"down{index + 1}.mpconv.1", f"down.{index}", shortcut=index < 3)
        keys |= _plain(f"up{index + 1}.up", f"up.{index}.upsample")
        keys |= double(f"up{index + 1}.conv", f"up.{index}.join")
    return keys | _plain("outc.conv", "output")


def _inpainter_keys(attention: bool = False) -> KeyMap:
    def conv(old: str, new: str) -> KeyMap:
        return _spectral(f"{old}.conv", f"{new}.conv") | _plain(f"{old}.norm", f"{new}.norm")

    def double(old: str, new: str) -> KeyMap:
        keys = _spectral(f"{old}.conv.0", f"{new}.conv1") | _plain(f"{old}.conv.1", f"{new}.norm1")
        keys |= _spectral(f"{old}.conv.3", f"{new}.conv2") | _plain(f"{old}.conv.4", f"{new}.norm2")
        return keys | _spectral(f"{old}.res_conv", f"{new}.shortcut.0") | _plain(f"{old}.res_norm", f"{new}.shortcut.1")

    stages = {"down1": "direct", "down1_flip": "mirrored", "down2": "down.0", "down3": "down.1", "down4": "down.2",
              "down5": "down.3"}
    keys: KeyMap = {}
    for old, new in stages.items():
        keys |= double(f"{old}.feat_conv.mpconv", f"{new}.feature") | conv(f"{old}.gate_conv", f"{new}.gate")
    # No double of this network keeps both width and size, so each has a projected shortcut.
    keys |= double("interm.feat_conv", "middle.feature") | conv("interm.gate_conv", "middle.gate")
    for index in range(4):
        keys |= double(f"up{index + 1}.feat_conv.conv", f"up.{index}.feature")
        keys |= conv(f"up{index + 1}.gate_conv", f"up.{index}.gate")
    if attention:
        keys["attn.gamma"] = "attention.gamma"
        for name in ("query", "key", "value"):
            keys |= _plain(f"attn.{name}_conv", f"attention.{name}")
    keys |= _spectral("up5.feat_conv.conv.0", "outlet.up.conv") | _plain("up5.feat_conv.conv.1", "outlet.up.norm")
    keys |= _spectral("up5.feat_conv.conv.3", "outlet.refine.conv")
    keys |= _plain("up5.feat_conv.conv.4", "outlet.refine.norm")
    return keys | conv("up5.gate_conv", "outlet.gate") | _spectral("outc.conv", "output")


def _pyramid_keys(large: bool = False) -> KeyMap:
    def unit(old: str, new: str, width: int) -> KeyMap:
        why = "a GroupNorm that the published forward pass never applies"
        unused: KeyMap = {f"{old}.norm.{name}": (why, (width,)) for name in _NORM}
        return _spectral(f"{old}.conv2d", new) | unused

    keys = unit("l1", "first", 32)
    for index, width in enumerate((64, 128, 256, 512)):
        for part in range(2 if large else 1):
            old = f"layers.{index}.{part}" if large else f"layers.{index}"
            keys |= unit(old, f"levels.{index}.{part}", width)
        keys |= _spectral(f"outlayers.{index}.conv", f"heads.{index}")
    return keys


def _patch_keys() -> KeyMap:
    keys = _plain("l1.conv2d", "first")
    for index in range(4):
        keys |= _plain(f"layers.{index}.conv2d", f"convs.{index}") | _plain(f"layers.{index}.norm", f"norms.{index}")
    keys |= _plain("prefinal.conv2d", "last_conv") | _plain("prefinal.norm", "last_norm")
    return keys | _plain("final", "output")


KEYS: dict[str, KeyMap] = {
    "Encoder": _encoder_keys(),
    "AlbedoDecoder": _albedo_decoder_keys(),
    "ConfidenceDecoder": _confidence_decoder_keys(),
    "UnetSeg": _occlusion_keys(),
    "UnetSelfAttnConf32": _inpainter_keys(),
    "UnetSelfAttnConf32_attn": _inpainter_keys(attention=True),
    "Discriminator_localglobal": _pyramid_keys(),
    "PyramidGAN_large": _pyramid_keys(large=True),
    "Discriminator": _patch_keys(),
}

_CLASSES: dict[str, Callable[[], nn.Module]] = {
    "Encoder": Encoder,
    "AlbedoDecoder": AlbedoDecoder,
    "ConfidenceDecoder": ConfidenceDecoder,
    "UnetSeg": OcclusionNet,
    "UnetSelfAttnConf32": Inpainter,
    "UnetSelfAttnConf32_attn": lambda: Inpainter(attention=True),
    "Discriminator_localglobal": PyramidDiscriminator,
    "PyramidGAN_large": lambda: PyramidDiscriminator(large=True),
    "Discriminator": PatchDiscriminator,
}


def strip_module(state: Mapping[str, object]) -> dict[str, object]:
    """Removes the "module." that data-parallel training puts before every key, if every key has it."""
    prefix = "module."
    if state and all(isinstance(key, str) and key.startswith(prefix) for key in state):
        return {key[len(prefix):]: value for key, value in state.items()}
    return dict(state)


def convert(name: str, state: Mapping[str, object], network: nn.Module | None = None) -> dict[str, torch.Tensor]:
    """State dict of the published class ``name`` -> state dict of our network (float32, on the CPU).

    state: values are tensors or numpy arrays, keys with or without "module.". Raises UserError for an unknown name and
    for missing, extra or misshapen keys, all listed.
    """
    if name not in KEYS:
        raise UserError(f"no published network is called {name!r}; known: {', '.join(KEYS)}")
    if not isinstance(state, Mapping):
        raise UserError(f"{name}: expected a state dict (key -> tensor), got {type(state).__name__}")
    state = strip_module(state)
    ours = (network or _CLASSES[name]()).state_dict()
    expected = {old: new[1] if isinstance(new, tuple) else tuple(ours[new].shape) for old, new in KEYS[name].items()}
    checkpoints.check_state(f"published network {name}", state, expected)
    converted = {}
    for old, new in KEYS[name].items():
        if isinstance(new, str):
            converted[new] = _tensor(state[old]).to("cpu", ours[new].dtype)
    return converted


def _tensor(value: object) -> torch.Tensor:
    """A copy of a tensor or numpy array."""
    return value.detach().clone() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))


def build(name: str, state: Mapping[str, object]) -> nn.Module:
    """The network that the published class ``name`` was, with the weights ``state``, in evaluation mode.

    Arguments and errors as for :func:`convert`. Inpainters are called with (albedo, visible mask).
    """
    if name not in KEYS:
        raise UserError(f"no published network is called {name!r}; known: {', '.join(KEYS)}")
    network = _CLASSES[name]()
    network.load_state_dict(convert(name, state, network))
    return network.eval()


def _class_of(entry: str, state: Mapping[str, object]) -> str | None:
    """The published class stored under ``entry`` of a checkpoint, None if the entry is no network."""
    keys = strip_module(state)
    if entry == "modelR":
        return "UnetSelfAttnConf32_attn" if "attn.gamma" in keys else "UnetSelfAttnConf32"
    if entry == "discI":
        if "prefinal.conv2d.weight" in keys:
            return "Discriminator"
        return "PyramidGAN_large" if "layers.0.0.conv2d.weight_orig" in keys else "Discriminator_localglobal"
    return {"modelE": "Encoder", "modelDT": "AlbedoDecoder", "modelDC": "ConfidenceDecoder",
            "modelO": "UnetSeg"}.get(entry)


NETWORKS = {"modelE": "encoder", "modelDT": "albedo_decoder", "modelDC": "confidence_decoder", "modelO": "occlusion",
            "modelR": "inpainter", "discI": "discriminator"}


def is_published(checkpoint: object) -> bool:
    """Whether a loaded checkpoint holds networks under their published names."""
    return isinstance(checkpoint, Mapping) and any(entry in checkpoint for entry in NETWORKS)


def build_networks(checkpoint: Mapping[str, object], source: str) -> dict[str, nn.Module]:
    """Loaded published checkpoint -> {our network name: network in evaluation mode}; other entries are left out.

    source: what errors call the file. Raises UserError if no network is in it or one does not fit.
    """
    networks = {}
    for entry, ours in NETWORKS.items():
        state = checkpoint.get(entry)
        if state is None:
            continue
        if not isinstance(state, Mapping):
            raise UserError(f"{source}: entry {entry} is {type(state).__name__}, not a state dict")
        try:
            networks[ours] = build(_class_of(entry, state), state)
        except UserError as error:
            raise UserError(f"{source}: entry {entry}: {error}") from None
    if not networks:
        raise UserError(f"{source}: holds none of the published networks {', '.join(NETWORKS)}; check the file")
    return networks
