"""ONNX files of the networks: in onnxruntime they give PyTorch's numbers, and stand in a completion's place."""
from __future__ import annotations

import importlib.util

import pytest
import torch
from engine_samples import SmallEncoder, SmallInpainter, SmallOcclusion, small_definition
from torch import nn

from engine import build, onnx_export
from engine.onnx_export import Part, compare, export_network, parts_of
from models.completion import FaceCompletion
from models.encoder import FaceCode
from models.image_completion import ImageCompletion, ImageInpainter
from models.inpainter import Inpainter, Inpainting
from models.layers import fold_for_inference
from models.linear import LinearInpainter
from models.mixture import Mixture
from models.morphable import MorphableModel, mirror_uv
from models.refiner import Refiner
from utils import config
from utils.errors import UserError
from utils.logging import run_script

LACKING = [name for name in (*onnx_export.PACKAGES, "onnxruntime") if importlib.util.find_spec(name) is None]
exports = pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")


class InOnnxruntime(nn.Module):
    """An exported network in the place of the one it was exported from."""

    def __init__(self, part: Part, make):
        super().__init__()
        import onnxruntime
        self.session = onnxruntime.InferenceSession(export_network(part), providers=["CPUExecutionProvider"])
        self.names, self.make = [item.name for item in self.session.get_inputs()], make

    def forward(self, *inputs):
        fed = dict(zip(self.names, (value.contiguous().numpy() for value in inputs), strict=True))
        return self.make(*map(torch.from_numpy, self.session.run(None, fed)))


def small_completion() -> FaceCompletion:
    torch.manual_seed(0)
    return FaceCompletion(SmallEncoder(), SmallInpainter(), MorphableModel(small_definition()), SmallOcclusion(),
                          one_by_one=False).eval()


@exports
@torch.no_grad()
def test_exported_networks_complete_in_the_place_of_their_own():
    completion = small_completion()
    parts = {part.name: part for part in parts_of(completion, "3dmm_pca", 224)}
    assert list(parts) == ["occlusion", "encoder", "inpainter"]
    assert all(compare(part, export_network(part)).error < 1e-5 for part in parts.values())
    exported = FaceCompletion(
        InOnnxruntime(parts["encoder"], FaceCode), InOnnxruntime(parts["inpainter"], Inpainting),
        completion.morphable, InOnnxruntime(parts["occlusion"], lambda labels: labels), one_by_one=False).eval()
    image = torch.rand(3, 3, 224, 224) * 2 - 1
    hole = torch.zeros(3, 1, 224, 224, dtype=torch.bool)
    hole[:, :, 60:150, 60:160] = True
    ours, theirs = completion(image, hole), exported(image, hole)
    torch.testing.assert_close(ours.albedo_out, theirs.albedo_out, rtol=0, atol=1e-3)
    assert (ours.output - theirs.output).abs().mean() < 1e-3
    torch.testing.assert_close(ours.landmarks, theirs.landmarks, rtol=0, atol=1e-2)


@exports
def test_another_networks_numbers_fail_the_check():
    part = parts_of(small_completion(), "linear", 256)[0]
    model = export_network(part)
    part.network.norm.running_mean[0] += 0.01
    with pytest.raises(UserError, match=r"occlusion\.onnx: onnxruntime's probabilities differs .* 1e-04 is allowed"):
        compare(part, model)


def test_parts_are_what_the_model_type_completes_with():
    completion = small_completion()
    assert [part.name for part in parts_of(completion, "linear", 256)] == ["occlusion", "encoder"]
    assert parts_of(completion, "3dmm_pca", 256)[2].network is completion.inpainter
    completion.inpainter, completion.refiner = Mixture(LinearInpainter(2), completion.inpainter), Refiner()
    assert [part.name for part in parts_of(completion, "mixed", 256)] == ["occlusion", "encoder", "inpainter"]
    parts = parts_of(completion, "refined", 256)
    assert parts[2].network is completion.inpainter.network and parts[3].network is completion.refiner
    flat = ImageCompletion(ImageInpainter(), SmallOcclusion())
    assert [part.name for part in parts_of(flat, "2d", 256)] == ["occlusion", "inpainter2d"]
    for part in [*parts_of(completion, "refined", 224), *parts_of(flat, "2d", 256)]:
        assert all(len(value) == 5 for value in part.inputs(5).values()), part.name


@pytest.mark.parametrize("lacking", ["onnx", "onnxscript"])
def test_without_the_packages_one_error_names_them(monkeypatch, lacking):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == lacking else object())
    with pytest.raises(UserError, match=rf"needs the package {lacking}, .*pip install -r requirements\.txt"):
        export_network(parts_of(small_completion(), "linear", 256)[0])


@exports
def test_command_line(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(build, "build_completion",
                        lambda settings, device: asked.append(settings.precision) or small_completion())
    arguments = ["--model-type", "linear", "--output", str(tmp_path), "--log-type", "traditional"]
    assert run_script(onnx_export.main, [*arguments, "--check"]) == 0
    told = capsys.readouterr().out
    assert "the linear fill is no network" in told and told.count("of the largest value (allowed 1e-04)") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"encoder.onnx", "occlusion.onnx"} and asked == ["fp32"]
    assert run_script(onnx_export.main, arguments) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run_script(onnx_export.main, []) == 1
    assert "--output DIR" in capsys.readouterr().err


@pytest.mark.slow
@exports
def test_shipped_networks(tmp_path):
    settings = config.defaults().replace(model_type="refined", output=str(tmp_path), ngpu=0)
    paths = onnx_export.export(settings, check=True)
    assert sorted(path.stem for path in paths) == ["encoder", "inpainter", "occlusion", "refiner"]


@pytest.mark.slow
@exports
@pytest.mark.parametrize("model_type", ["3dmm_pca", "2d"])
@torch.no_grad()
def test_networks_of_real_size(model_type):
    torch.manual_seed(0)
    if model_type == "2d":
        completion = ImageCompletion(ImageInpainter(), SmallOcclusion())
    else:
        completion = small_completion()
        completion.inpainter = Inpainter(attention=True, mirror=mirror_uv)
    part = parts_of(fold_for_inference(completion.eval()), model_type, 256)[-1]
    assert compare(part, export_network(part)).error < onnx_export.TOLERANCE
