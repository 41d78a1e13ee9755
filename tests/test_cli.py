"""The scripts as users start them: fast help, one line for an error, the exit status, the device."""
from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import main
from utils import device
from utils.errors import UserError
from utils.logging import note, progress, run_script, warn_once

ROOT = Path(__file__).resolve().parent.parent


def start(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("script", ["main.py", "test_my.py", "process_celeba.py"])
def test_help_answers_within_a_second(script):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = start("-X", "importtime", script, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert answer.returncode == 0 and "--help" in answer.stdout
    imported = {line.split("|")[-1].strip() for line in answer.stderr.splitlines()}
    assert not imported & {"torch", "skimage", "scipy", "matplotlib", "onnxruntime"}
    # Processor time, so that a busy machine does not fail the test.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("script", ["main.py", "test_my.py"])
def test_bad_option_is_one_line_and_status_1(script):
    answer = start(script, "--config", "args.txt", "--resolutoin", "[256,256]")
    assert answer.returncode == 1 and answer.stdout == ""
    expected = "error: unknown option --resolutoin; did you mean --resolution? (--help lists all)"
    assert answer.stderr.splitlines() == [expected]


def test_eval_flag_chooses_evaluation(monkeypatch):
    import engine.evaluation
    import engine.training
    called = []
    monkeypatch.setattr(engine.evaluation, "evaluate", lambda settings: called.append(("evaluate", settings.eval)))
    monkeypatch.setattr(engine.training, "train", lambda settings: called.append(("train", settings.eval)))
    usual = ["--config", str(ROOT / "args.txt"), "--ngpu", "1"]
    assert run_script(main.main, [*usual, "--resolution", "[256,256]", "--eval"]) == 0
    assert run_script(main.main, usual) == 0
    assert called == [("evaluate", True), ("train", False)]


@pytest.mark.parametrize("argv, fragments", [
    (["--mask", "a.png"], ["--mask:", "test_my.py", "--mask-dir"]), (["--image", "a.jpg"], ["--image:", "--dataroot"]),
    (["--region=eyes"], ["--region:"]),
    (["--test-count", "3", "--dataset-test", "Faces"], ["--test-count:", "built-in faces"]),
    (["--mask-is-visible"], ["--mask-is-visible:", "give --mask-dir DIR"])])
@pytest.mark.parametrize("doing", [[], ["--eval"]])
def test_options_of_own_photos_are_refused_when_they_are_typed(tmp_path, monkeypatch, capsys, doing, argv, fragments):
    """But not in a file that both programs read, nor with the value that they have anyway."""
    monkeypatch.setattr(main, "_evaluate", lambda settings: None)
    monkeypatch.setattr("engine.training.train", lambda settings: None)
    assert run_script(main.main, [*doing, *argv]) == 1
    line, = capsys.readouterr().err.splitlines()
    assert all(fragment in line for fragment in fragments)
    (tmp_path / "shared.txt").write_text("[Arguments]\nmask = a.png\nimage = a.jpg\nregion = eyes\n"
                                         "mask_is_visible = True\n")
    assert run_script(main.main, [*doing, "--config", str(tmp_path / "shared.txt"), "--background", "fill"]) == 0


@pytest.mark.parametrize("argv, fragments", [
    (["--eval", "--dataset-test", "Faces"], ["--dataroot"]),
    (["--eval", "--dataset-test", "Faces", "--dataroot", "no_such_folder"], ["no_such_folder"]),
    (["--eval", "--dataset-test", "Faces", "--dataroot", "{empty}"], ["{empty}"]),
    (["--eval", "--dataset-test", "CelebA", "--dataroot", "{empty}"], ["{empty}"]),
    (["--eval", "--dataset-test", "Faces", "--dataroot", "{faces}", "--recon-ckpt", "no_such.pth"], ["no_such.pth"]),
    (["--eval", "--dataset-test", "Faces", "--dataroot", "{faces}", "--recon-ckpt", "{foreign}"], ["{foreign}"]),
    (["--eval", "--dataset-test", "Faces", "--dataroot", "{faces}", "--mask-dir", "no_such_masks"], ["no_such_masks"]),
    (["--eval", "--dataset-test", "Faces", "--dataroot", "{faces}", "--mask-source", "file"], ["--mask-dir"]),
    (["--stage", "inpainter", "--_3dmm-ckpt", "no_such.pth", "--save-dir", "{empty}"], ["no_such.pth"]),
])
def test_missing_or_foreign_input_is_one_line_and_status_1(tmp_path, capsys, argv, fragments):
    import numpy as np

    from utils.images import write_image
    places = {"empty": tmp_path / "empty", "faces": tmp_path / "faces", "foreign": tmp_path / "foreign.pth"}
    places["empty"].mkdir()
    write_image(places["faces"] / "a.png", np.full((256, 256, 3), 90, np.uint8))
    places["foreign"].write_bytes(b"no checkpoint at all")
    capsys.readouterr()
    argv = [argument.format(**places) for argument in argv]
    assert run_script(main.main, ["--ngpu", "0", "--result-path", str(tmp_path / "results"), *argv]) == 1
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if not line.startswith("warning: ")]
    assert len(errors) == 1 and errors[0].startswith("error: ")
    for fragment in fragments:
        assert fragment.format(**places) in errors[0]


@pytest.mark.parametrize("script, options", [
    ("process_celeba.py", ["--shard=3/2"]), ("demo_app.py", ["--port=x"]), ("main.py", ["--ngpu=x"])])
def test_status_of_a_bad_option_is_argparses_unless_a_file_may_hold_it(script, options):
    answer = start(script, *options)
    assert answer.returncode == (1 if script == "main.py" else 2) and "error: " in answer.stderr


@pytest.mark.parametrize("stage", ["inpainter", "occlusion"])
def test_faces_left_out_of_an_evaluation_end_it_with_status_1(tmp_path, monkeypatch, capsys, stage):
    import torch
    from engine import build, evaluation
    from engine_samples import SmallEncoder, SmallFaces, SmallInpainter, SmallOcclusion, small_definition
    from models import weights
    from models.completion import FaceCompletion
    from models.morphable import MorphableModel
    from utils.images import write_image
    torch.manual_seed(0)
    completion = FaceCompletion(SmallEncoder(), SmallInpainter(), MorphableModel(small_definition()), SmallOcclusion(),
                                iterations=1).eval()
    monkeypatch.setattr(build, "build_completion", lambda settings, device: completion)
    monkeypatch.setattr(evaluation, "open_lpips", lambda path, device: (None, "no features"))
    monkeypatch.setattr(weights, "load_occlusion", lambda path: (SmallOcclusion().eval(), {}))
    faces, out = tmp_path / "faces", tmp_path / "out"
    write_image(faces / "whole.png", SmallFaces(1)[0]["image"].permute(1, 2, 0).numpy())
    asked = ["--ngpu", "0", "--num-workers", "0", "--eval", "--stage", stage, "--dataset-test", "Faces", "--dataroot",
             str(faces), "--output", str(out), "--log-type", "traditional", "--overwrite"]
    assert run_script(main.main, asked) == 0
    (faces / "broken.png").write_bytes(b"")
    capsys.readouterr()
    assert run_script(main.main, asked) == 1
    assert "broken.png" in capsys.readouterr().err.splitlines()[-1] and (out / "summary.json").exists()


def test_portraits_without_landmarks_end_their_detection_with_status_1(tmp_path, monkeypatch, capsys):
    import numpy as np

    from datasets import mediapipe_landmarks
    from utils.images import write_image

    package = SimpleNamespace(FaceMesh=lambda **options: contextlib.nullcontext())
    for name in ("mediapipe", "mediapipe.python", "mediapipe.python.solutions",
                 "mediapipe.python.solutions.face_mesh"):  # which need not be installed
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setattr(mediapipe_landmarks, "detect", lambda mesh, image: np.zeros((68, 2)) if image.any() else None)
    for name, grey in (("face", 90), ("wall", 0)):
        write_image(tmp_path / "in" / f"{name}.png", np.full((64, 64, 3), grey, np.uint8))
    asked = ["--folder", str(tmp_path / "in"), "--output", str(tmp_path / "points.json")]
    assert run_script(mediapipe_landmarks.main, asked) == 1
    assert "wall.png" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "points.json").read_text())) == ["face"]
    (tmp_path / "in" / "wall.png").unlink()
    assert run_script(mediapipe_landmarks.main, asked) == 0


# ---- how scripts end -------------------------------------------------------------------------------------------

def raise_(error: BaseException):
    raise error


@pytest.mark.parametrize("error, status, line", [
    (UserError("a.jpg is empty"), 1, "error: a.jpg is empty"),
    (PermissionError(13, "Permission denied", "out/x.png"), 1, "error: out/x.png: Permission denied"),
    (OSError(28, "No space left on device"), 1, "error: No space left on device"),
    (KeyboardInterrupt(), 130, "stopped"),
])
def test_what_a_user_can_put_right_is_one_line(capsys, error, status, line):
    assert run_script(lambda argv: raise_(error), []) == status
    assert capsys.readouterr().err.strip() == line


def test_defects_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(lambda argv: 1 / 0, [])
    with pytest.raises(OSError):
        run_script(lambda argv: raise_(OSError("raised by a library, without a number")), [])


def test_status_of_the_script_is_passed_on():
    assert run_script(lambda argv: None, []) == 0 and run_script(lambda argv: 3, []) == 3


# ---- messages and progress -------------------------------------------------------------------------------------

@pytest.mark.parametrize("log_type", ["progressbar", "traditional", "none"])
def test_progress_hands_every_item_on(log_type, capsys):
    seen = []
    for item in progress(range(25), "counting", log_type=log_type):
        note(f"item {item}")
        seen.append(item)
    output = capsys.readouterr()
    assert seen == list(range(25))
    assert [line for line in output.out.splitlines() if line.startswith("item")] == [f"item {item}" for item in seen]
    assert ("counting: 25/25" in output.out) == (log_type == "traditional")
    assert ("counting" in output.err) == (log_type == "progressbar")


def test_a_warning_is_said_once(capsys):
    warn_once("only for this test")
    warn_once("only for this test")
    assert capsys.readouterr().err == "warning: only for this test\n"


# ---- the processor ---------------------------------------------------------------------------------------------

@pytest.fixture
def machine(monkeypatch):
    """Pretends that there are that many GPUs, outside torchrun, with no warning said before."""
    import torch

    from utils import logging

    def pretend(gpus: int, **environment: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(logging, "_said", set())
        for name in ("RANK", "LOCAL_RANK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
    return pretend


def test_without_a_gpu_one_line_says_that_the_cpu_is_used(machine, capsys):
    machine(gpus=0)
    assert device.choose_device(1).type == device.choose_device(1).type == "cpu"
    assert len(capsys.readouterr().err.splitlines()) == 1
    machine(gpus=0)
    assert device.choose_device(0).type == "cpu"
    assert capsys.readouterr().err == ""


def test_gpus_are_used_where_they_are(machine, capsys):
    machine(gpus=2)
    assert str(device.choose_device(1)) == "cuda:0" and device.choose_device(0).type == "cpu"
    assert capsys.readouterr().err == ""
    machine(gpus=2)
    assert str(device.choose_device(2)) == "cuda:0"
    assert "torchrun --nproc_per_node 2" in capsys.readouterr().err
    machine(gpus=2, RANK="1", LOCAL_RANK="1")
    assert str(device.choose_device(2)) == "cuda:1"
    assert capsys.readouterr().err == ""


# ---- set-up ----------------------------------------------------------------------------------------------------

def names_of(path: Path) -> list[str]:
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line.lower() for line in lines if line]


def test_every_required_package_is_pinned_exactly_once_per_python():
    from packaging.requirements import Requirement
    pins: dict[str, list[Requirement]] = {}
    for line in names_of(ROOT / "constraints.txt"):
        requirement = Requirement(line)
        pins.setdefault(requirement.name, []).append(requirement)
    required = names_of(ROOT / "requirements.txt") + names_of(ROOT / "requirements-nodeps.txt")
    assert set(required) <= set(pins)
    for version in ("3.10", "3.11", "3.12"):
        environment = {"python_version": version, "python_full_version": f"{version}.1"}
        for name, requirements in pins.items():
            valid = [item for item in requirements if item.marker is None or item.marker.evaluate(environment)]
            assert len(valid) <= 1, f"{name} is pinned twice for Python {version}"
            assert valid or name not in required, f"{name} is not pinned for Python {version}"
            assert all(str(item.specifier).startswith("==") for item in requirements)


def test_conda_environment_installs_the_same_pins():
    import yaml
    content = yaml.safe_load((ROOT / "env.yml").read_text())
    pip = next(item["pip"] for item in content["dependencies"] if isinstance(item, dict))
    assert pip == ["-r requirements.txt", "-c constraints.txt"]
    assert "python=3.11" in content["dependencies"]


def test_installed_versions_are_the_pinned_ones():
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement
    for line in names_of(ROOT / "constraints.txt"):
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            continue
        if requirement.name not in ("setuptools", "wheel"):  # they only build, any version will have done
            assert requirement.specifier.contains(installed), f"{requirement.name} {installed}: {line}"


def test_ci_script_runs_the_tests_and_compiles_the_cuda_unit():
    script = (ROOT / ".ci/run").read_text()
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert "set -euo pipefail" in script and "make test" in script and "--cuda" in script
    assert subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT).returncode == 0
