"""Spherical-harmonics lighting and the division of a texture into albedo and shade (paper section 3.1, equation 4).

Texture is in [0, 1]; shade is clamped below at 0.5 where it is used; albedo = texture / shade is in [0, 2], and the
inpainter works on albedo - 1, in [-1, 1].
"""
from __future__ import annotations

import math

import torch

MIN_SHADE = 0.5
ODD_IN_X = [3, 6, 7]  # of the nine functions: a mirror image turns their sign
ALBEDO_CENTRE = 1.0  # subtracted from albedo to reach the inpainter's range

_BAND_0 = 1 / math.sqrt(4 * math.pi)
_BAND_1 = (2 * math.pi / 3) * math.sqrt(3 / (4 * math.pi))
_BAND_2_ZONAL = (math.pi / 4) * (1 / 2) * math.sqrt(5 / (4 * math.pi))
_BAND_2_MIXED = (math.pi / 4) * 3 * math.sqrt(5 / (12 * math.pi))
_BAND_2_DIFFERENCE = (math.pi / 4) * (3 / 2) * math.sqrt(5 / (12 * math.pi))


def sh_functions(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> list[torch.Tensor]:
    """The nine second-order basis functions H_b of unit camera-space normals (x, y, z), each of their shape."""
    return [
        torch.full_like(x, _BAND_0),
        _BAND_1 * z,
        _BAND_1 * y,
        _BAND_1 * x,
        _BAND_2_ZONAL * (2 * z * z - x * x - y * y),
        _BAND_2_MIXED * y * z,
        _BAND_2_MIXED * x * z,
        _BAND_2_MIXED * x * y,
        _BAND_2_DIFFERENCE * (x * x - y * y),
    ]


def sh_basis(normals: torch.Tensor) -> torch.Tensor:
    """The nine basis functions of unit normals: (..., 3) -> (..., 9)."""
    return torch.stack(sh_functions(*normals.unbind(-1)), dim=-1)


def shade(normals: torch.Tensor, light: torch.Tensor) -> torch.Tensor:
    """Shade H_b(n) * l, not clamped: normals (B, ..., 3), light (B, 27), nine a colour, -> (B, ..., 3)."""
    basis = sh_basis(normals)
    coefficients = light.reshape(len(light), 3, *[1] * (normals.dim() - 2), 9)
    return torch.stack([(basis * coefficients[:, channel]).sum(-1) for channel in range(3)], dim=-1)


def shade_maps(normals: torch.Tensor, light: torch.Tensor) -> torch.Tensor:
    """:func:`shade` of maps (B, 3, ...) -> (B, 3, ...), in their precision also under autocast."""
    with torch.autocast(normals.device.type, enabled=False):
        basis = torch.stack(sh_functions(*normals.unbind(1)), dim=1)
        colours = light.reshape(len(light), 3, 9).to(basis.dtype) @ basis.reshape(len(basis), 9, -1)
    return colours.reshape(normals.shape)


def shade_polynomials(light: torch.Tensor) -> torch.Tensor:
    """:func:`shade` as polynomials of the normal: light (B, 27) -> coefficients (B, 3, 10), a row a colour, of 1, x, y,
    z, x^2, y^2, z^2, xy, xz and yz."""
    constant, z, y, x, zonal, yz, xz, xy, difference = light.reshape(len(light), 3, 9).unbind(-1)
    zonal, difference = _BAND_2_ZONAL * zonal, _BAND_2_DIFFERENCE * difference
    return torch.stack([
        _BAND_0 * constant, _BAND_1 * x, _BAND_1 * y, _BAND_1 * z, difference - zonal, -difference - zonal, 2 * zonal,
        _BAND_2_MIXED * xy, _BAND_2_MIXED * xz, _BAND_2_MIXED * yz,
    ], dim=-1)


def to_albedo(texture: torch.Tensor, shade: torch.Tensor) -> torch.Tensor:
    """Texture in [0, 1] and its shade -> the inpainter's albedo in [-1, 1]; :func:`to_texture` undoes it."""
    return texture / shade.clamp(min=MIN_SHADE) - ALBEDO_CENTRE


def to_texture(albedo: torch.Tensor, shade: torch.Tensor) -> torch.Tensor:
    """The inpainter's albedo in [-1, 1] and its shade, same shapes -> texture, which may leave [0, 1]."""
    return (albedo + ALBEDO_CENTRE) * shade.clamp(min=MIN_SHADE)
