"""Light that is led back to the usual one in completions."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from engine import build
from engine.usual_light import LIGHT_TRUST, UsualLight, lead_back, usual_light_of
from models.lighting import shade_maps
from utils import checkpoints, config
from utils.errors import UserError

from engine_samples import SmallEncoder

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "checkpoints" / "encoder.pth"


def test_direction_is_led_back_and_brightness_stays():
    generator = torch.Generator().manual_seed(0)
    light, usual = torch.randn(5, 27, generator=generator), torch.randn(27, generator=generator)
    led = lead_back(light, usual).unflatten(1, (3, 9))
    given, average = light.unflatten(1, (3, 9)), usual.unflatten(0, (3, 9))
    assert torch.equal(led[:, :, 0], given[:, :, 0])
    torch.testing.assert_close(led[:, :, 1:], average[:, 1:] + LIGHT_TRUST * (given - average)[:, :, 1:])
    torch.testing.assert_close(lead_back(light, usual, trust=1.0), light)


def test_shade_comes_closer_to_the_usual_one():
    normals = nn.functional.normalize(torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    usual = torch.tensor([2.8, 0.2, 0.1, 0, 0, 0, 0, 0, 0]).repeat(3)
    light = (usual + torch.tensor([0, 0, 0, 0.4, 0, 0, 0.2, 0, 0]).repeat(3))[None]
    away, led, home = (shade_maps(normals, one) for one in (light, lead_back(light, usual), usual[None]))
    assert (led - home).abs().mean() < 0.5 * (away - home).abs().mean()


@pytest.mark.skipif(not SHIPPED.exists(), reason="no shipped weights")
def test_only_completions_see_it(tmp_path):
    """The encoder that labels portraits keeps its own light; a file that knows no usual light changes nothing."""
    found = {}
    for name, metadata in (("with", {"usual_light": [0.5] * 27}), ("without", {})):
        path = tmp_path / f"{name}.pth"
        original = torch.load(SHIPPED, weights_only=True)
        kept = {key: value for key, value in original["metadata"].items() if key != "usual_light"}
        checkpoints.save_weights(path, "encoder", original["state"], {**kept, **metadata})
        settings = config.parse(["--config", str(ROOT / "args.txt"), "--3dmm-ckpt", str(path)], "test")
        for completes in (True, False):
            encoder = build._load_geometry(settings, completes=completes)[0]
            found[name, completes] = type(encoder)
            if isinstance(encoder, UsualLight):
                assert torch.equal(encoder.usual, torch.full((27,), 0.5))
    assert found["with", True] is UsualLight
    assert len({found["with", False], found["without", True], found["without", False]}) == 1


def test_wrapped_encoder_changes_light_alone():
    encoder, usual = SmallEncoder().eval(), torch.full((27,), 0.3)
    image = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        plain, wrapped = encoder(image), UsualLight(encoder, usual)(image)
    torch.testing.assert_close(wrapped.light, lead_back(plain.light, usual))
    for name in ("shape", "albedo", "confidence", "scale", "pose"):
        assert torch.equal(getattr(wrapped, name), getattr(plain, name))


def test_usual_light_is_found_in_both_kinds_of_files():
    assert usual_light_of({"source": "published"}) is None
    assert torch.equal(usual_light_of({"usual_light": [1.0] * 27}), torch.ones(27))
    for wrong in ([1.0] * 26, [float("nan")] * 27):
        with pytest.raises(UserError, match="usual_light"):
            usual_light_of({"usual_light": wrong})
