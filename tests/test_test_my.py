"""Completing one's own photos, from the command line to the pictures, with stand-ins for the trained networks.

The way through the real FaceCompletion is taken once; the other tests have a quick one that fills holes with blue.
"""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import test_my
from datasets.detection import DetectedFace, Detector, NoFaceError
from datasets.faces import astronaut
from datasets.labels import OCCLUSION
from engine.photo import PhotoCompleter
from face_samples import StandInEncoder, StandInInpainter, StandInOcclusion, morphable
from models.completion import FaceCompletion
from models.renderer import Renderer
from utils import config, files
from utils.images import read_image, read_mask, write_image
from utils.logging import run_script

FACE_PICTURES = {"original.png", "input.png", "mask.png", "output.png", "texture_in.png", "texture_out.png",
                 "albedo_in.png", "albedo_out.png", "mesh.png"}
PICTURES = FACE_PICTURES | {"complete_output.png", "mask_photo.png", "overview.png", "faces.json", "result.json"}
ROOT = Path(__file__).resolve().parent.parent
HOLD = """
import sys, time
from utils import files
with files.held(sys.argv[1], "another run", "wait"):
    print("held", flush=True)
    time.sleep(60)
"""
RED = (255, 0, 0)  # an occluder to the stand-in


class QuickCompletion:
    """Fills holes with blue; the fields of `models.completion.Completion` that photos need."""

    occlusion, morphable = StandInOcclusion(), morphable()
    renderer = Renderer(morphable)

    def __init__(self) -> None:
        self.real = FaceCompletion(StandInEncoder(), StandInInpainter(), self.morphable, self.occlusion, iterations=1)
        self.factor, self.label, self.calls = self.real.factor, self.real.label, 0

    def predict_hole(self, image: torch.Tensor, hair: bool = True) -> torch.Tensor:
        return self.occlusion(image)[:, OCCLUSION:OCCLUSION + 1] > 0.5

    def __call__(self, image: torch.Tensor, hole: torch.Tensor) -> SimpleNamespace:
        self.calls += 1
        blue = torch.tensor([-1.0, -1.0, 1.0])[None, :, None, None]
        uv = torch.zeros(1, 3, 192, 256)
        vertices = self.morphable.mean[None]
        x, y, z = vertices.unbind(-1)
        positions = torch.stack([128 - 1e-3 * y, 128 + 1e-3 * x, z], dim=-1)
        return SimpleNamespace(output=torch.where(hole, blue, image), albedo_in=uv, uv_shade=uv + 1, texture_out=uv,
                               albedo_out=uv, uv_visible=uv[:, :1] > 0, landmarks=torch.zeros(1, 68, 2), face=None,
                               coverage=torch.ones_like(hole), vertices=vertices, positions=positions)


class RememberingDetector:
    """The real detector, asked once per picture; a picture of one colour has no face."""

    def __init__(self) -> None:
        self.detector, self.known = Detector(), {}

    def detect(self, image: np.ndarray, name: str = "") -> list[DetectedFace]:
        if image.min() == image.max():
            raise NoFaceError(f"no face found in {name}")
        key = image.tobytes()
        if key not in self.known:
            self.known[key] = self.detector.detect(image, name)
        return self.known[key]


@pytest.fixture(scope="module")
def detector():
    return RememberingDetector()


@pytest.fixture(scope="module")
def portrait(detector):
    """(photo without occluder, its face)."""
    photo = astronaut()
    return photo, detector.detect(photo)[0]


@pytest.fixture
def occluded(portrait):
    """The photo with a red bar over the mouth."""
    photo, face = portrait
    photo = photo.copy()
    x, y = face.landmarks[3:].mean(axis=0).round().astype(int)
    photo[y - 12:y + 12, x - 25:x + 25] = RED
    return photo


@pytest.fixture
def run(monkeypatch, tmp_path, detector):
    """Runs the script in an empty folder with the quick completion; returns its exit status."""
    from engine import build
    monkeypatch.setattr(build, "build_completion", lambda settings, device, grain: QuickCompletion())
    monkeypatch.setattr(build, "load_morphable", lambda settings: QuickCompletion.morphable)
    monkeypatch.setattr("datasets.detection.Detector", lambda: detector)
    monkeypatch.chdir(tmp_path)
    return lambda *argv: run_script(test_my.main, ["--ngpu", "0", *argv])


@pytest.fixture
def run_really(monkeypatch, run):
    """As `run`, with the real FaceCompletion around stand-in networks."""
    from engine import build
    completion = FaceCompletion(StandInEncoder(), StandInInpainter(), morphable(), StandInOcclusion(), iterations=1)
    monkeypatch.setattr(build, "build_completion", lambda settings, device, grain: completion)
    return run


def results(folder) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in folder.glob("*.png")}


def test_occluder_is_found_and_replaced_in_the_full_photo(run_really, tmp_path, occluded, capsys):
    write_image(tmp_path / "bar.png", occluded)
    assert run_really("--image", "bar.png") == 0
    assert {path.name for path in (tmp_path / "output/bar").iterdir()} == PICTURES
    found = results(tmp_path / "output/bar")
    hole = found["mask"] > 0
    assert set(np.unique(found["mask"])) == {0, 255} and 0.001 < hole.mean() < 0.2
    assert found["original"].shape == found["output"].shape == (256, 256, 3)
    assert np.array_equal(found["output"][~hole], found["original"][~hole])
    assert np.all(found["input"][hole] == 128) and np.array_equal(found["input"][~hole], found["original"][~hole])
    assert found["complete_output"].shape == occluded.shape
    changed = (found["complete_output"] != occluded).any(axis=2)
    assert 0 < changed.mean() < 0.05
    red_before, red_after = ((picture == RED).all(axis=2).sum() for picture in (occluded, found["complete_output"]))
    assert red_before > 1000 and red_after < 0.02 * red_before
    assert found["texture_in"].shape == found["texture_out"].shape == (192, 256, 3)
    assert ((found["albedo_out"] == 0).all(2) == ~QuickCompletion.renderer.uv_mask.numpy()).all()
    assert "bar.png -> output/bar/complete_output.png" in capsys.readouterr().out


def test_face_without_occluder_is_left_as_it_is(run, tmp_path, portrait, capsys):
    write_image(tmp_path / "free.png", portrait[0])
    assert run("--image", "free.png") == 0
    found = results(tmp_path / "output/free")
    assert np.array_equal(found["complete_output"], portrait[0])
    assert np.array_equal(found["output"], found["original"]) and not found["mask"].any()
    assert "nothing in front of the face" in capsys.readouterr().out


@pytest.mark.parametrize("scale, values", [(1, (0, 255)), (2, (0, 255)), (1, (20, 200))])
def test_mask_of_the_photo_is_the_hole(run, tmp_path, portrait, scale, values):
    photo, face = portrait
    x, y = face.landmarks[2].round().astype(int)
    mask = np.full(photo.shape[:2], values[0], np.uint8)
    mask[y - 20:y + 20, x - 20:x + 20] = values[1]
    write_image(tmp_path / "free.png", photo)
    write_image(tmp_path / "m.png", mask.repeat(scale, axis=0).repeat(scale, axis=1))
    assert run("--image", "free.png", "--mask", "m.png", "--output", "there") == 0
    found = results(tmp_path / "there/free")
    assert np.array_equal(found["mask_photo"] > 0, mask > 128)
    changed = (found["complete_output"] != photo).any(axis=2)
    assert changed[mask > 128].mean() > 0.9 and not changed[mask <= 128].any()


def test_masks_of_a_folder_belong_to_the_photos_of_their_name(run, tmp_path, portrait, capsys):
    photo, face = portrait
    x, y = face.landmarks[2].round().astype(int)
    mask = np.zeros(photo.shape[:2], bool)
    mask[y - 20:y + 20, x - 20:x + 20] = True
    for name in ("one", "two"):
        write_image(tmp_path / "photos" / f"{name}.jpg", photo)
    write_image(tmp_path / "masks/one.png", mask)
    assert run("--image", "photos", "--mask", "masks") == 1
    assert (tmp_path / "output/one/output.png").exists() and not (tmp_path / "output/two").exists()
    assert "no mask for two" in capsys.readouterr().err


def test_a_photo_without_its_mask_is_told_even_if_it_was_completed_without_masks(run, tmp_path, portrait, capsys):
    write_image(tmp_path / "photos/one.png", portrait[0])
    write_image(tmp_path / "masks/other.png", np.full(portrait[0].shape[:2], 255, np.uint8))
    assert run("--image", "photos") == 0
    assert run("--image", "photos", "--mask", "masks") == 1
    assert "no mask for one" in capsys.readouterr().err


def test_window_resolution_leaves_the_rest_of_the_crop(run, tmp_path, portrait):
    photo, face = portrait
    write_image(tmp_path / "free.png", photo)
    write_image(tmp_path / "m.png", np.full(photo.shape[:2], 255, np.uint8))
    assert run("--image", "free.png", "--mask", "m.png", "--resolution", "[224,224]") == 0
    hole = read_mask(tmp_path / "output/free/mask.png")
    assert hole[16:240, 16:240].all() and hole.sum() == 224 * 224


def test_what_the_mask_hides_changes_nothing(portrait):
    photo, face = portrait
    completion = FaceCompletion(StandInEncoder(), StandInInpainter(), morphable(), iterations=1).eval()
    # Landmarks are given: a detector may well look at what the user hides.
    known = SimpleNamespace(detect=lambda image, name: [face])
    completer = PhotoCompleter(completion, known, torch.device("cpu"))
    x, y = face.landmarks[2].round().astype(int)
    mask = np.zeros(photo.shape[:2], bool)
    mask[y - 20:y + 20, x - 20:x + 20] = True
    repainted = photo.copy()
    repainted[y - 12:y + 12, x - 12:x + 12] = 255 - repainted[y - 12:y + 12, x - 12:x + 12]
    first, second = (completer.complete(picture, "a", mask) for picture in (photo, repainted))
    assert np.array_equal(first.complete_output[mask], second.complete_output[mask])
    first, second = first.faces[0], second.faces[0]
    assert not np.array_equal(first.original, second.original)
    for name in ("input", "output", "texture_in", "texture_out", "landmarks"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def test_random_hole_is_the_same_every_time(run, tmp_path, portrait):
    write_image(tmp_path / "free.png", portrait[0])
    for folder in ("a", "b"):
        assert run("--image", "free.png", "--mask-source", "random", "--output", folder) == 0
    assert run("--image", "free.png", "--mask-source", "random", "--output", "c", "--seed", "1") == 0
    first, second, other = (results(tmp_path / folder / "free") for folder in "abc")
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert first["mask"].any() and not np.array_equal(first["mask"], other["mask"])


def test_without_photos_the_astronaut_is_completed_and_said(run, tmp_path, capsys):
    assert run() == 0
    said = capsys.readouterr().out
    assert "astronaut" in said and "inputs" in said
    found = results(tmp_path / "output/astronaut")
    assert found["mask"].any() and found["complete_output"].shape == (512, 512, 3)


def test_inputs_folder_is_the_default_and_bad_photos_do_not_stop_it(run, tmp_path, occluded, capsys):
    folder = tmp_path / "inputs"
    write_image(folder / "b_good.png", occluded)
    write_image(folder / "b_good.jpg", occluded)
    write_image(folder / "c_wall.png", np.full((300, 300, 3), 127, np.uint8))
    (folder / "a_empty.jpg").touch()
    (folder / "d_text.jpg").write_text("not a picture")
    (folder / "notes.txt").write_text("no photo, and none is expected")
    write_image(folder / "e_tiny.png", np.zeros((1, 1, 3), np.uint8))
    (folder / "f_half.jpg").write_bytes((folder / "b_good.jpg").read_bytes()[:4000])
    assert run() == 1
    output = capsys.readouterr()
    assert {path.name for path in (tmp_path / "output").iterdir()} == {"b_good_png", "b_good_jpg"}
    errors = output.err[output.err.index("error: "):].splitlines()
    assert errors[0] == "error: 5 of 7 photos could not be completed:" and len(errors) == 6
    for name, line in zip(("a_empty", "c_wall", "d_text", "e_tiny", "f_half"), errors[1:]):
        assert name in line
    assert "Traceback" not in output.err


def test_earlier_results_are_replaced_and_other_files_kept(run, tmp_path, occluded):
    write_image(tmp_path / "bar.png", occluded)
    assert run("--image", "bar.png") == 0
    (tmp_path / "output/bar/mine.txt").write_text("x")
    write_image(tmp_path / "output/bar/output.png", np.zeros((8, 8, 3), np.uint8))
    assert run("--image", "bar.png", "--save-landmarks") == 0
    assert read_image(tmp_path / "output/bar/output.png").shape == (256, 256, 3)
    expected = PICTURES | {"mine.txt", "landmarks.txt"}
    assert {path.name for path in (tmp_path / "output/bar").iterdir()} == expected
    assert len((tmp_path / "output/bar/landmarks.txt").read_text().splitlines()) == 68


@pytest.mark.parametrize("kind", ["L", "RGBA", "CMYK", "I;16", "exif"])
def test_every_kind_of_picture_is_read(run, tmp_path, portrait, kind):
    picture = Image.fromarray(portrait[0])
    path = tmp_path / {"CMYK": "a.jpg", "exif": "a.jpg"}.get(kind, "a.png")
    if kind == "exif":
        exif = Image.Exif()
        exif[274] = 6  # to be turned by 90 degrees for viewing
        picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    elif kind == "I;16":
        Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(path)
    else:
        picture.convert(kind).save(path)
    assert run("--image", str(path), "--mask-source", "random") == 0
    found = results(tmp_path / "output/a")
    assert found["complete_output"].shape == (512, 512, 3) and found["mask"].any()


def test_a_folder_ends_with_a_table_and_a_page_and_is_resumed(run, tmp_path, occluded, capsys):
    for name in ("one", "two"):
        write_image(tmp_path / "photos" / f"{name}.png", occluded)
    assert run("--image", "photos", "--report", "--save-mesh") == 0
    said = capsys.readouterr().out
    assert "2 photos: 2 completed, 0 by an earlier run, 0 failed" in said and "output/report.html" in said
    assert (tmp_path / "output/report.html").read_text().count('class="pair"') == 2
    assert (tmp_path / "output/one/head.obj").exists()
    assert run("--image", "photos", "--save-mesh") == 0
    assert "2 photos: 0 completed, 2 by an earlier run" in capsys.readouterr().out
    assert run("--image", "photos", "--save-mesh", "--overwrite") == 0
    assert "2 photos: 2 completed" in capsys.readouterr().out


def test_a_folder_that_is_done_loads_no_network(run, monkeypatch, tmp_path, occluded, capsys):
    """Nor the detector; what is left of a folder is done as ever."""
    for name in ("one", "two"):
        write_image(tmp_path / "photos" / f"{name}.png", occluded)
    assert run("--image", "photos") == 0
    built = []
    detector = sys.modules["datasets.detection"].Detector
    monkeypatch.setattr("engine.build.build_completion",
                        lambda settings, device, grain: built.append("networks") or QuickCompletion())
    monkeypatch.setattr("datasets.detection.Detector", lambda: built.append("detector") or detector())
    capsys.readouterr()
    assert run("--image", "photos", "--report") == 0 and not built
    said = capsys.readouterr().out
    assert "2 photos: 0 completed, 2 by an earlier run, 0 failed" in said and "output/report.html" in said
    write_image(tmp_path / "photos" / "one.png", occluded[:, ::-1].copy())
    write_image(tmp_path / "photos" / "a_wall.png", np.full((300, 300, 3), 127, np.uint8))
    assert run("--image", "photos") == 1 and sorted(built) == ["detector", "networks"]
    table = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split()[:2] for line in table[:3]] == [["a_wall", "failed"], ["one", "done"], ["two", "earlier"]]


@pytest.mark.skipif(not (ROOT / "checkpoints" / "encoder.pth").exists(), reason="no shipped weights")
def test_the_morphable_model_alone_is_that_of_the_networks():
    from engine import build
    asked = config.parse(["--config", str(ROOT / "args.txt"), "--ngpu", "0"], "")
    alone, loaded = build.load_morphable(asked), build.build_completion(asked).morphable
    assert test_my.signature(asked, alone) == test_my.signature(asked, loaded)


def test_results_of_other_arithmetic_or_another_head_are_made_again(run, tmp_path, occluded, monkeypatch, capsys):
    write_image(tmp_path / "photos" / "one.png", occluded)

    def earlier(*argv):
        assert run("--image", "photos", *argv) == 0
        return "1 by an earlier run" in capsys.readouterr().out

    assert [earlier("--precision", name) for name in ("bf16", "bf16", "fp32")] == [False, True, False]
    monkeypatch.setattr("engine.build.choose_precision", lambda settings, device=None: "fp32")
    assert earlier("--precision", "auto")
    monkeypatch.setitem(QuickCompletion.morphable._buffers, "mean", QuickCompletion.morphable.mean + 1)
    assert not earlier("--precision", "fp32")


def test_weights_set_to_none_are_asked_for(monkeypatch, tmp_path, portrait, capsys):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "free.png", portrait[0])
    argv = ["--image", "free.png", "--model-type", "linear", "--linear-ckpt", "none", "--ngpu", "0"]
    assert run_script(test_my.main, argv) == 1
    assert "name a file with --linear-ckpt" in capsys.readouterr().err


def test_weights_that_are_not_needed_may_be_none(run, tmp_path, portrait):
    write_image(tmp_path / "free.png", portrait[0])
    assert run("--image", "free.png", "--refiner-ckpt", "none") == 0


def test_another_photo_of_the_same_name_is_replaced_only_when_asked(run, tmp_path, portrait, capsys):
    write_image(tmp_path / "a/me.png", portrait[0])
    write_image(tmp_path / "b/me.png", portrait[0][:, ::-1].copy())
    hidden = ("--mask-source", "random")
    assert run("--image", "a/me.png", *hidden) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "output/me").iterdir()}
    capsys.readouterr()
    assert run("--image", "b/me.png", *hidden) == 1
    line, = capsys.readouterr().err.splitlines()
    assert "another photo" in line and "a/me.png" in line and "b/me.png" in line and "--overwrite" in line
    assert {path.name: path.read_bytes() for path in (tmp_path / "output/me").iterdir()} == before
    assert run("--image", "b", *hidden) == 1 and "another photo" in capsys.readouterr().err
    assert run("--image", "b/me.png", *hidden, "--overwrite") == 0
    assert json.loads((tmp_path / "output/me/result.json").read_text())["photo"][0] == str(tmp_path / "b/me.png")


def test_the_example_is_repeated_but_replaces_nobodys_photo(run, tmp_path, capsys):
    assert run() == 0 and run() == 0
    write_image(tmp_path / "astronaut.png", np.full((300, 300, 3), 127, np.uint8))
    capsys.readouterr()
    assert run("--image", "astronaut.png") == 1
    assert "scikit-image's astronaut" in capsys.readouterr().err
    (tmp_path / "output/astronaut/result.json").unlink()
    assert run() == 1 and "--overwrite" in capsys.readouterr().err


def test_names_of_photos_stay_in_the_output_folder_and_apart(tmp_path):
    for name in ("a.png", "a.jpg", "a_png.gif", "con.png", " x .png", "y\\z.png"):
        (tmp_path / name).touch()
    found = test_my.find_photos(tmp_path)
    assert sorted(path.name for path in found.values()) == sorted(path.name for path in tmp_path.iterdir())
    assert all(files.output_folder(tmp_path / "out", name) == tmp_path / "out" / name for name in found)
    for name in ("..png", "...", ".hidden", "-.png"):
        (tmp_path / "odd" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "odd" / name).touch()
        folder, = test_my.find_photos(tmp_path / "odd" / name)
        assert files.output_folder(tmp_path / "out", folder).parent == tmp_path / "out" and not folder.startswith(".")


def test_names_that_differ_in_case_alone_are_kept_apart(tmp_path, capsys):
    """As on file systems that do not tell upper from lower case. What is no picture is counted."""
    for name in ("IMG.JPG", "img.png", "Img_png.gif", "other.png", "notes.txt", "a.heic", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    found = test_my.find_photos(tmp_path)
    assert {path.name for path in found.values()} == {"IMG.JPG", "img.png", "Img_png.gif", "other.png"}
    assert len({name.casefold() for name in found}) == 4 and "other" in found
    line, = capsys.readouterr().out.splitlines()
    assert "2 files" in line and "1 subfolders" in line


def test_a_linked_folder_of_results_is_refused(run, tmp_path, portrait, capsys):
    write_image(tmp_path / "free.png", portrait[0])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "output").mkdir()
    (tmp_path / "output/free").symlink_to(tmp_path / "elsewhere")
    assert run("--image", "free.png") == 1
    assert "link" in capsys.readouterr().err and not list((tmp_path / "elsewhere").iterdir())


def test_two_runs_in_one_output_folder_do_not_mix(run, tmp_path, portrait, capsys):
    write_image(tmp_path / "free.png", portrait[0])
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "output")], cwd=ROOT, stdout=subprocess.PIPE,
                             text=True)
    try:
        assert first.stdout.readline() == "held\n"
        assert run("--image", "free.png") == 1
        assert f"in use by another run (process {first.pid})" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "output").iterdir()] == [files.LOCK_FILE]
    finally:
        first.kill()
        first.communicate()
    assert run("--image", "free.png") == 0


def test_a_region_of_a_face_given_by_hand(run, tmp_path, portrait):
    photo, face = portrait
    write_image(tmp_path / "free.png", photo)
    places = ",".join(f"{value:.1f}" for value in face.landmarks.ravel())
    assert run("--image", "free.png", "--landmarks", places, "--region", "eyes,mouth", "--background", "keep") == 0
    assert results(tmp_path / "output/free")["mask"].any()


def test_a_defect_with_a_single_photo_keeps_its_traceback(run, monkeypatch, tmp_path, portrait):
    write_image(tmp_path / "free.png", portrait[0])
    monkeypatch.setattr(QuickCompletion, "predict_hole", lambda self, image, hair: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("--image", "free.png")


@pytest.mark.parametrize("argv, fragments", [
    (["--image", "missing.jpg"], ["missing.jpg", "does not exist"]),
    (["--image", "nothing"], ["nothing", "no pictures"]),
    (["--image", "wall.png"], ["wall.png", "no face", "--landmarks"]),
    (["--image", "free.png", "--mask", "missing.png"], ["missing.png"]),
    (["--image", "free.png", "--mask", "black.png"], ["free.png", "hides no part"]),
    (["--image", "free.png", "--mask", "ones.png"], ["ones.png", "255"]),
    (["--image", "free.png", "--mask", "wide.png"], ["wide.png", "200x100", "512x512"]),
    (["--image", "free.png", "--mask", "black.png", "--mask-source", "random"], ["--mask", "--mask-source"]),
    (["--image", "free.png", "--mask-is-visible"], ["--mask FILE"]),
    (["--image", "free.png", "--mask-dir", "nothing"], ["--mask-dir", "--mask DIR"]),
    (["--image", "free.png", "--region", "ear"], ["ear", "eyes, nose"]),
    (["--image", "free.png", "--model-type", "2d"], ["--model-type 2d"]),
    (["--image", "free.png", "--face", "7"], ["--face 7", "1 face"]),
    (["--image", "free.png", "--face", "1", "--all-faces"], ["--all-faces"]),
    (["--image", "free.png", "--landmarks", "1,2,3"], ["--landmarks 1,2,3", "box"]),
    (["--image", "free.png", "--landmarks", "nowhere.json"], ["nowhere.json", "no such file"]),
    (["--image", "free.png", "--landmarks", "[1, 2"], ["JSON"]),
    (["--image", "free.png", "--landmarks", "9,9,5,5"], ["box"]),
    (["--image", "free.png", "--mask-source", "file"], ["--mask FILE"]),
    (["--mask", "black.png"], ["--image"]), (["--report"], ["--report", "--image"]),
])
def test_bad_input_is_one_line_and_status_1(run, tmp_path, portrait, capsys, argv, fragments):
    (tmp_path / "nothing").mkdir()
    write_image(tmp_path / "free.png", portrait[0])
    write_image(tmp_path / "wall.png", np.full((300, 300, 3), 127, np.uint8))
    write_image(tmp_path / "black.png", np.zeros((512, 512), np.uint8))
    write_image(tmp_path / "ones.png", np.ones((512, 512), np.uint8))
    write_image(tmp_path / "wide.png", np.full((100, 200), 255, np.uint8))
    capsys.readouterr()
    assert run(*argv) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    for fragment in fragments:
        assert fragment in lines[0]
    assert not (tmp_path / "output").exists()


def test_masks_of_evaluations_in_a_shared_file_are_let_pass(run, tmp_path, portrait):
    write_image(tmp_path / "free.png", portrait[0])
    (tmp_path / "shared.txt").write_text("[Arguments]\nmask_dir = nothing\nmask_is_visible = True\n")
    assert run("--config", "shared.txt", "--image", "free.png") == 0


def test_without_inpainter_weights_it_refuses_and_names_the_file(monkeypatch, tmp_path, portrait, capsys):
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "free.png", portrait[0])
    assert run_script(test_my.main, ["--image", "free.png", "--recon-ckpt", "none/inpainter.pth", "--ngpu", "0"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "none/inpainter.pth" in error
    assert not (tmp_path / "output").exists()
