"""Building blocks shared by the networks: spectrally normalised convolutions, normalised units, residual doubles.

All maps are NCHW. Every spectrally normalised layer holds its raw ``weight`` and two unit vectors ``u`` (one entry per
output channel) and ``v`` (one per remaining weight entry), the running estimate of the leading singular pair of the
weight written as a matrix whose rows are the output channels.
"""
from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SPECTRAL_EPSILON = 1e-12
INITIAL_POWER_ITERATIONS = 15
CHANNELS_PER_GROUP = 4
SMALL_MAP = 1536  # pixels


class _SpectralNorm:
    """Mixin for convolutions: divides the weight by its estimated largest singular value (Miyato et al., 2018).

    One power iteration a training forward (v first, then u), none in evaluation. ``OUTPUT_AXIS`` is the weight's axis
    of output channels.
    """

    OUTPUT_AXIS = 0
    folded = False  # see fold_for_inference

    def _register_singular_vectors(self) -> None:
        matrix = self._matrix(self.weight)
        for name, length in zip("uv", matrix.shape):
            self.register_buffer(name, torch.empty(length))
        if self.weight.is_meta:  # to be filled from a file
            return
        for vector in (self.u, self.v):
            vector.copy_(F.normalize(torch.randn(len(vector)), dim=0, eps=SPECTRAL_EPSILON))
        # A random pair gives a meaningless sigma: start from an estimate that is already close.
        for _ in range(INITIAL_POWER_ITERATIONS):
            self._power_iteration(matrix)

    def _matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as a matrix (output channels, everything else)."""
        return weight.movedim(self.OUTPUT_AXIS, 0).flatten(1)

    @torch.no_grad()
    def _power_iteration(self, matrix: torch.Tensor) -> None:
        self.v.copy_(F.normalize(matrix.t() @ self.u, dim=0, eps=SPECTRAL_EPSILON))
        self.u.copy_(F.normalize(matrix @ self.v, dim=0, eps=SPECTRAL_EPSILON))

    def normalised_weight(self) -> torch.Tensor:
        """weight / (u^T M v), differentiable in the weight; advances u and v by one iteration in training mode."""
        if self.folded:
            return self.weight
        # The estimate must not be rounded to half precision, or sigma would jitter from step to step.
        with torch.autocast(self.weight.device.type, enabled=False):
            matrix = self._matrix(self.weight)
            if self.training:
                self._power_iteration(matrix.detach())
            # Cloned because a second forward before the backward would overwrite them in place.
            u, v = self.u.clone(), self.v.clone()
            return self.weight / torch.dot(u, matrix @ v)


class SpectralConv2d(_SpectralNorm, nn.Conv2d):
    """``nn.Conv2d`` with a spectrally normalised weight."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._register_singular_vectors()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.normalised_weight(), self.bias)


class SpectralConvTranspose2d(_SpectralNorm, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` (weight (in, out, kh, kw)) with a spectrally normalised weight."""

    OUTPUT_AXIS = 1

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._register_singular_vectors()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose2d(
            x, self.normalised_weight(), self.bias, self.stride, self.padding, self.output_padding, self.groups,
            self.dilation,
        )


class _GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm``, which on a CPU is up to twenty times slower for small maps with channels last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type == "cpu" and x.shape[-2] * x.shape[-1] <= SMALL_MAP:
            x = x.contiguous()
        return super().forward(x)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with ``channels / 4`` groups."""
    return _GroupNorm(channels // CHANNELS_PER_GROUP, channels)


class ConvUnit(nn.Module):
    """Spectral convolution (odd kernel, same padding) -> GroupNorm -> ELU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = True):
        super().__init__()
        self.conv = SpectralConv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
        self.norm = group_norm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.elu(self.norm(self.conv(x)))


class UpUnit(ConvUnit):
    """Nearest upsampling by ``factor`` (rows, columns), then a :class:`ConvUnit`."""

    def __init__(self, inputs: int, outputs: int, factor: tuple[int, int] = (2, 2)):
        super().__init__(inputs, outputs)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = (x.shape[-2] * self.factor[0], x.shape[-1] * self.factor[1])
        return super().forward(F.interpolate(x, size=size, mode="nearest"))


class ResidualDouble(nn.Module):
    """conv 3x3 -> norm -> activation -> conv 3x3 -> norm, plus the input, then the activation.

    The first convolution carries the stride. Where the shape changes, the input passes a 1x1 convolution and a norm.
    ``conv``, ``norm`` and ``activation`` are the layer classes (or factories) and the function to use.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, conv=SpectralConv2d, norm=group_norm,
                 activation=F.elu):
        super().__init__()
        self.activation = activation
        self.conv1 = conv(inputs, outputs, 3, stride, 1)
        self.norm1 = norm(outputs)
        self.conv2 = conv(outputs, outputs, 3, 1, 1)
        self.norm2 = norm(outputs)
        self.shortcut = None
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride), norm(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.norm2(self.conv2(self.activation(self.norm1(self.conv1(x)))))
        return self.activation(residual + (x if self.shortcut is None else self.shortcut(x)))


def compute_in(dtype: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast to dtype; float32: nothing, so that an autocast around it goes on."""
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


@torch.no_grad()
def fold_for_inference(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Prepares a network in evaluation mode for inference alone, in place; the same outputs but for rounding.

    Spectrally normalised weights are divided by their singular values once, not in every forward; batch norms behind a
    convolution become part of it; weights of convolutions, and so their maps, are kept with channels last, which is
    faster. dtype: of these weights; what is not float32 wants an autocast to the same (:func:`compute_in`), and gives
    the same bits there without a conversion in every forward. Returns the network, which can then neither be trained
    nor saved: its state is no longer what it was.
    """
    for module in network.modules():
        if isinstance(module, _SpectralNorm) and not module.folded:
            module.weight.copy_(module.normalised_weight())
            module.folded = True
        elif isinstance(module, ResidualDouble):
            pairs = [(module, "conv1", "norm1"), (module, "conv2", "norm2")]
            if module.shortcut is not None:
                pairs.append((module.shortcut, "0", "1"))
            for parent, conv, norm in pairs:
                if isinstance(parent.get_submodule(norm), nn.BatchNorm2d):
                    fused = fuse_conv_bn_eval(parent.get_submodule(conv), parent.get_submodule(norm))
                    setattr(parent, conv, fused)
                    setattr(parent, norm, nn.Identity().eval())
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(dtype, memory_format=torch.channels_last)
    return network.requires_grad_(False)
