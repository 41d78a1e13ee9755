"""--compile: the same outputs and gradients but for rounding, every network reached, no silent way around it."""
from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_samples import SmallEncoder, SmallFaces, SmallInpainter, SmallOcclusion, small_definition
from test_training_loop import all_tensors, make_stage, make_trainer
from test_zbuffer_rasterize import HAS_CPU_UNIT

from engine import build, compilation
from models.completion import FaceCompletion
from models.encoder import Encoder
from models.inpainter import Inpainter
from models.layers import fold_for_inference
from models.linear import LinearInpainter
from models.morphable import MorphableModel
from models.occlusion import OcclusionNet
from models.refiner import Refiner
from utils import config
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
needs_compiler = pytest.mark.skipif(not HAS_CPU_UNIT, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def forget():
    """Compiled code of one test's networks counts as a recompilation in the next."""
    yield
    torch._dynamo.reset()


@pytest.fixture
def asked(monkeypatch):
    """The networks that were to be compiled, without compiling them."""
    networks = []
    monkeypatch.setattr(compilation, "require_compiler", lambda device: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: networks.append(self))
    monkeypatch.setattr(torch, "compile", lambda method, **options: networks.append(method.__self__) or method)
    return networks


def settings(*arguments):
    return config.parse(["--compile", "--ngpu", "0", *arguments], "")


def completion(inpainter, refiner=None) -> FaceCompletion:
    torch.manual_seed(0)
    return FaceCompletion(SmallEncoder(), inpainter, MorphableModel(small_definition()), SmallOcclusion(),
                          refiner=refiner).eval()


def test_every_network_of_a_completion_is_compiled(asked):
    for inpainter, refiner, expected in ((SmallInpainter(), None, SmallInpainter), (LinearInpainter(2), None, None),
                                         (LinearInpainter(2), Refiner(), Refiner)):
        asked.clear()
        build._compiled(settings(), completion(inpainter, refiner))
        found = [type(network) for network in asked]
        assert found == [SmallEncoder, SmallOcclusion] + ([expected] if expected else [])
    asked.clear()
    build._compiled(config.parse([], ""), completion(SmallInpainter()))
    assert asked == []


@pytest.mark.parametrize("look", [OcclusionNet.__call__, OcclusionNet.with_hair])
def test_every_look_at_occlusion_is_compiled(monkeypatch, look):
    """Only the network's call is."""
    calls = []
    monkeypatch.setattr(compilation, "require_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", lambda call, **options: lambda *arguments, **keywords: (
        calls.append(call), call(*arguments, **keywords))[1])
    network = OcclusionNet(knows_hair=True).eval()
    compilation.compile_networks(network)
    look(network, torch.zeros(1, 3, 32, 32))
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["encoder", "occlusion", "inpainter"])
def test_every_network_that_trains_is_compiled_but_the_discriminator(asked, tmp_path, name):
    stage = make_stage(name)
    make_trainer(tmp_path, stage, compile=True)
    expected = [*stage.networks.values()] + ([stage.completion.encoder] if name == "inpainter" else [])
    assert asked == [network for network in expected if list(network.parameters())]


def test_networks_that_gradients_go_through_keep_their_memory_order_on_a_cpu(asked, monkeypatch):
    """Frozen ones too: the answers of a perceptual loss are compared."""
    given = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: given.append(options["options"]))
    monkeypatch.setattr(torch, "compile", lambda method, **options: given.append(options["options"]))
    network = SmallEncoder()
    compilation.compile_networks(network)
    compilation.compile_networks(network.requires_grad_(False), training=True)
    compilation.compile_method(network.forward)
    assert given == [None, {"layout_optimization": False}, {"layout_optimization": False}]
    assert compilation._options("cuda", True) is None


def test_where_nothing_can_be_compiled_one_error_says_why(monkeypatch):
    def fail(function, **options):
        raise RuntimeError("\nno working g++ was found\nand much more")

    monkeypatch.setattr(torch, "compile", fail)
    compilation.require_compiler.cache_clear()
    with pytest.raises(UserError, match=r"--compile: .*\(no working g\+\+ was found\).* leave --compile out"):
        build._compiled(settings(), completion(SmallInpainter()))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", ["occlusion", "inpainter"])
def test_compiled_training_takes_the_same_steps(tmp_path, name):
    # Adam would make steps of gradients that are zero but for rounding.
    steps = {"max_steps": 3, "optim_method": "SGD", "learning_rate": 1e-2}
    plain = make_trainer(tmp_path / "plain", make_stage(name), **steps)
    plain.run()
    compiled = make_trainer(tmp_path / "compiled", make_stage(name), **steps, compile=True)
    compiled.run()
    expected, found = all_tensors(plain), all_tensors(compiled)
    assert expected.keys() == found.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.slow
@needs_compiler
@torch.no_grad()
def test_compiled_completion_gives_the_same_in_any_batch():
    plain = completion(SmallInpainter())
    compiled = build._compiled(settings(), copy.deepcopy(plain))
    faces = SmallFaces(3)
    image = torch.stack([faces[index]["image"] for index in range(3)]).float() / 127.5 - 1
    hole = torch.zeros(3, 1, 256, 256, dtype=torch.bool)
    hole[:, :, 90:180, 70:170] = True
    for one_by_one in (True, False):
        plain.one_by_one = compiled.one_by_one = one_by_one
        for count in (1, 2, 3):
            ours, theirs = compiled(image[:count], hole[:count]), plain(image[:count], hole[:count])
            torch.testing.assert_close(ours.albedo_out, theirs.albedo_out, rtol=0, atol=1e-3)
            assert (ours.output - theirs.output).abs().mean() < 1e-3


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("create, shapes", [
    (Encoder, [(3, 64, 64)]), (OcclusionNet, [(3, 64, 64)]), (Inpainter, [(3, 64, 128), (1, 64, 128)])])
@pytest.mark.parametrize("training", [False, True])
def test_real_networks_compile_as_a_whole(create, shapes, training):
    """In training with gradients, which spectral norms change in place on the way."""
    torch.manual_seed(0)
    plain = create().train(training)
    plain = plain if training else fold_for_inference(plain)
    compiled = copy.deepcopy(plain)
    compilation.compile_networks(compiled)
    for count in (3,) if training else (1, 3):  # a batch of one is no training
        inputs = [torch.rand(count, *shape) for shape in shapes]
        results = []
        for network in (plain, compiled):
            result = network(*inputs)
            result = [result] if torch.is_tensor(result) else list(result)
            if training:
                sum(part.square().mean() for part in result).backward()
            results.append(result)
        for ours, theirs in zip(*results):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    if training:
        for (name, ours), theirs in zip(plain.named_parameters(), compiled.parameters()):
            if ours.grad is not None:  # some kernels for AMX round to bfloat16 on the way
                assert (theirs.grad - ours.grad).norm() <= 2e-2 * ours.grad.norm() + 1e-6, name
        for ours, theirs in zip(plain.buffers(), compiled.buffers()):
            torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("script, arguments", [
    ("main.py", ["--eval"]), ("main.py", ["--stage", "occlusion"]), ("test_my.py", [])])
def test_without_a_compiler_one_line_says_so(tmp_path, script, arguments):
    environment = {**os.environ, "CXX": str(tmp_path / "no-compiler"),
                   "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    answer = subprocess.run([sys.executable, script, "--config", "args.txt", "--compile", "--ngpu", "0", *arguments,
                             "--output", str(tmp_path / "output"), "--result-path", str(tmp_path / "results"),
                             "--dataset-options", '{"length": 64}' if "--stage" in arguments else "{}"],
                            cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 1
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("error: --compile: ") and "C++ compiler" in last and "leave --compile out" in last
    assert "Traceback" not in answer.stderr
