"""The albedo inpainter G: a gated U-Net that sees the UV albedo and its mirror image (paper section 3.2)."""
from __future__ import annotations

from typing import Callable, Mapping, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import ResidualDouble, SpectralConv2d, SpectralConvTranspose2d, group_norm

STRIDE = 32
WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)


class Inpainting(NamedTuple):
    """albedo: (B, 3, H, W) in [-1, 1]. confidence: (B, 1, H, W) log-uncertainty, unbounded."""

    albedo: torch.Tensor
    confidence: torch.Tensor


class _NormalisedConv(nn.Module):
    """Spectral convolution -> GroupNorm, without activation."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv
        self.norm = group_norm(conv.out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


def _conv(inputs: int, outputs: int, stride: int = 1) -> _NormalisedConv:
    return _NormalisedConv(SpectralConv2d(inputs, outputs, 3, stride, 1))


def _up_conv(inputs: int, outputs: int) -> _NormalisedConv:
    return _NormalisedConv(SpectralConvTranspose2d(inputs, outputs, 4, 2, 1))


def _gated(values: torch.Tensor, gate: nn.Module | None, x: torch.Tensor) -> torch.Tensor:
    """values * sigmoid(gate(x)); without a gate the values."""
    return values if gate is None else values * torch.sigmoid(gate(x))


class GatedStage(nn.Module):
    """feature(x) * sigmoid(gate(x)): (B, inputs, H, W) -> (B, outputs, H/stride, W/stride); without `gated` feature(x).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, gated: bool = True):
        super().__init__()
        self.feature = ResidualDouble(inputs, outputs, stride)
        self.gate = _conv(inputs, outputs, stride) if gated else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _gated(self.feature(x), self.gate, x)


class GatedUp(nn.Module):
    """Joins a skip (B, inputs/2, 2H, 2W) and a deeper map (B, inputs/2, H, W) -> (B, outputs, 2H, 2W).

    The gate sees the deeper map alone.
    """

    def __init__(self, inputs: int, outputs: int, gated: bool = True):
        super().__init__()
        self.feature = ResidualDouble(inputs, outputs)
        self.gate = _up_conv(inputs // 2, outputs) if gated else None

    def forward(self, deeper: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        upsampled = F.interpolate(deeper, size=skip.shape[-2:], mode="nearest")
        return _gated(self.feature(torch.cat([skip, upsampled], dim=1)), self.gate, deeper)


class GatedOutlet(nn.Module):
    """The last doubling, without a skip: (B, inputs, H, W) -> (B, outputs, 2H, 2W)."""

    def __init__(self, inputs: int, outputs: int, gated: bool = True):
        super().__init__()
        self.up = _up_conv(inputs, outputs)
        self.refine = _conv(outputs, outputs)
        self.gate = _up_conv(inputs, outputs) if gated else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _gated(F.elu(self.refine(F.elu(self.up(x)))), self.gate, x)


class SelfAttention(nn.Module):
    """Dot-product self-attention over all positions of a map, added to it with a learnt factor that starts at 0."""

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H*W queries, H*W keys), each row summing to 1."""
        scores = self.query(x).flatten(2).transpose(1, 2) @ self.key(x).flatten(2)
        return scores.softmax(dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attended = self.value(x).flatten(2) @ self.weights(x).transpose(1, 2)
        return self.gamma * attended.view_as(x) + x


def flip(x: torch.Tensor) -> torch.Tensor:
    """Plain left-right flip of (..., H, W), as in the released code: one column beside the UV map's mirror image."""
    return x.flip(-1)


class Inpainter(nn.Module):
    """Masked UV albedo and its visible mask -> :class:`Inpainting`.

    channels: of the first input. attention: adds self-attention at 1/8 of the resolution. mirror: function that mirrors
    a map (B, C, H, W) left-right (default :func:`flip`; models.morphable.mirror_uv mirrors about the UV map's true
    axis). To see what they bring: gated: whether there are gates; mirrored: whether a branch of its own sees the mirror
    image; width: channels inside, as a share of the paper's, one of WIDTHS.
    """

    def __init__(self, attention: bool = False, mirror: Callable[[torch.Tensor], torch.Tensor] | None = None,
                 channels: int = 3, gated: bool = True, mirrored: bool = True, width: float = 1.0):
        super().__init__()
        if width not in WIDTHS:
            raise ValueError(f"the width must be one of {', '.join(map(str, WIDTHS))}, not {width}")
        self.mirror, self.channels = mirror or flip, channels
        sizes = {size: int(size * width) for size in (32, 64, 128, 256, 512)}

        def down(inputs: int, outputs: int, stride: int = 2) -> GatedStage:
            return GatedStage(sizes.get(inputs, inputs), sizes[outputs], stride, gated)

        def up(inputs: int, outputs: int) -> GatedUp:
            return GatedUp(sizes[inputs], sizes[outputs], gated)

        self.direct = down(channels + 1, 32 if mirrored else 64)
        self.mirrored = down(channels + 1, 32) if mirrored else None
        self.down = nn.ModuleList([down(64, 64), down(64, 128), down(128, 256), down(256, 512)])
        self.middle = down(512, 256, 1)
        self.up = nn.ModuleList([up(512, 128), up(256, 64), up(128, 64), up(128, 64)])
        self.attention = SelfAttention(sizes[64]) if attention else None
        self.outlet = GatedOutlet(sizes[64], sizes[32], gated)
        self.output = SpectralConv2d(sizes[32], 4, 1)

    @classmethod
    def like(cls, state: Mapping[str, torch.Tensor]) -> "Inpainter":
        """With the parts and widths of a state."""
        width = state["output.weight"].shape[1] / 32 if "output.weight" in state else 1.0
        return cls("attention.gamma" in state, gated="middle.gate.conv.weight" in state,
                   mirrored="mirrored.feature.conv1.weight" in state, width=width if width in WIDTHS else 1.0)

    def forward(self, albedo: torch.Tensor, visible: torch.Tensor) -> Inpainting:
        """albedo (B, 3, H, W) in [-1, 1], 0 where hidden; visible (B, 1, H, W), 1 where known, bool or float.

        H and W are multiples of 32 (192x256 in training), else ValueError.
        """
        return self.with_maps(albedo, visible)[0]

    def with_maps(self, albedo: torch.Tensor, visible: torch.Tensor) -> tuple[Inpainting, list[torch.Tensor]]:
        """:meth:`forward`, and the maps from which it draws at 1/16 to 1/2 of the size, the coarsest first.

        That at 1/16 is of the decoder; the others are the skips.
        """
        if (albedo.dim() != 4 or albedo.shape[1] != self.channels or albedo.shape[2] % STRIDE
                or albedo.shape[3] % STRIDE):
            raise ValueError(f"the inpainter takes albedo (B, {self.channels}, H, W), H and W multiples of {STRIDE}; "
                             f"got {tuple(albedo.shape)}")
        if visible.shape != (albedo.shape[0], 1, *albedo.shape[2:]):
            raise ValueError(f"the visible mask must be (B, 1, H, W) like the albedo {tuple(albedo.shape)}; "
                             f"got {tuple(visible.shape)}")
        x = torch.cat([albedo, visible.to(albedo.dtype)], dim=1)
        # The mirrored branch is not mirrored back: texel and mirror texel meet in the joined channels.
        first = self.direct(x)
        skips = [first if self.mirrored is None else torch.cat([first, self.mirrored(self.mirror(x))], dim=1)]
        for stage in self.down:
            skips.append(stage(skips[-1]))
        x = self.middle(skips.pop())
        x = self.up[0](x, skips.pop())
        maps = [x, *reversed(skips)]
        for index, stage in enumerate(self.up[1:], start=1):
            x = stage(x, skips.pop())
            if index == 1 and self.attention is not None:
                x = self.attention(x)
        return as_inpainting(self.output(self.outlet(x))), maps


class FinerHalf(nn.Module):
    """Draws anew from an `Inpainter`'s maps (`Inpainter.with_maps`): the finer half of its decoder, once more."""

    def __init__(self):
        super().__init__()
        self.up = nn.ModuleList([GatedUp(256, 64), GatedUp(128, 64), GatedUp(128, 64)])
        self.outlet = GatedOutlet(64, 32)
        self.output = SpectralConv2d(32, 4, 1)

    def forward(self, maps: list[torch.Tensor]) -> Inpainting:
        x, *skips = maps
        for stage, skip in zip(self.up, skips):
            x = stage(x, skip)
        return as_inpainting(self.output(self.outlet(x)))


def as_inpainting(drawn: torch.Tensor) -> Inpainting:
    """Four channels (B, 4, H, W) as albedo and confidence, in float32 also under autocast."""
    drawn = drawn.float() if drawn.dtype in (torch.float16, torch.bfloat16) else drawn
    return Inpainting(drawn[:, :3].clamp(-1, 1), drawn[:, 3:])
