"""Spherical-harmonics shading and the division into albedo and shade."""
from __future__ import annotations

import golden_fill
import numpy as np
import pytest
import torch

from models import lighting


@pytest.fixture(scope="module")
def golden():
    return {name: torch.from_numpy(array) for name, array in np.load(golden_fill.GOLDEN / "sh.npz").items()}


def test_basis_and_shade_match_the_published_ones(golden):
    basis, shade = lighting.sh_basis(golden["normal"]), lighting.shade(golden["normal"], golden["L"])
    assert torch.allclose(basis, golden["basis"], rtol=0, atol=1e-5 * golden["basis"].abs().max().item())
    assert torch.allclose(shade, golden["shade"], rtol=0, atol=1e-5 * golden["shade"].abs().max().item())


def test_zero_normal_gets_ambient_light_only():
    light = torch.randn(2, 27, generator=torch.Generator().manual_seed(0))
    shade = lighting.shade(torch.zeros(2, 4, 3), light)
    expected = light[:, [0, 9, 18]] / (4 * torch.pi)**0.5
    assert torch.allclose(shade, expected[:, None].expand(2, 4, 3))


def test_shade_takes_maps_and_keeps_the_batch_apart():
    generator = torch.Generator().manual_seed(1)
    normals, light = torch.randn(3, 5, 7, 3, generator=generator), torch.randn(3, 27, generator=generator)
    together = lighting.shade(normals, light)
    assert together.shape == (3, 5, 7, 3)
    for item in range(3):
        assert torch.equal(together[item], lighting.shade(normals[item:item + 1], light[item:item + 1])[0])


def test_mirrored_normals_and_light_give_the_same_shade():
    generator = torch.Generator().manual_seed(2)
    normals, light = torch.randn(1, 9, 3, generator=generator), torch.randn(1, 27, generator=generator)
    mirrored_light = light.reshape(3, 9).clone()
    mirrored_light[:, [3, 6, 7]] *= -1
    mirrored = lighting.shade(normals * torch.tensor([-1.0, 1, 1]), mirrored_light.reshape(1, 27))
    assert torch.allclose(mirrored, lighting.shade(normals, light), atol=1e-5)


def test_albedo_and_texture_are_inverse_and_in_range():
    texture = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(3))
    shade = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(4)) * 4 - 1  # some below the clamp
    albedo = lighting.to_albedo(texture, shade)
    assert albedo.min() >= -1 and albedo.max() <= 1
    assert (lighting.to_texture(albedo, shade) - texture).abs().max() < 1e-6
    dark = lighting.to_albedo(torch.ones(1), torch.tensor([-3.0]))
    assert dark.item() == 1.0  # texture 1 under the least shade of 0.5


def test_albedo_of_a_pixel_does_not_depend_on_the_others():
    texture, shade = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8) + 0.5
    changed = texture.clone()
    changed[..., 0, 0] = 100.0
    same = lighting.to_albedo(changed, shade) == lighting.to_albedo(texture, shade)
    assert same.flatten(2)[..., 1:].all()
