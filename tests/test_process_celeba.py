"""process_celeba.py: CelebA's layouts, resuming, broken files, and folders of portraits."""
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import process_celeba
from datasets.alignment import align
from datasets.faces import astronaut
from utils.images import read_image, write_image
from utils.logging import run_script

ROOT = Path(process_celeba.__file__).parent
LANDMARKS = np.array([[69, 109], [106, 113], [77, 142], [73, 152], [108, 154]])
HEADER = "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"


def _photo(index):
    return np.random.default_rng(index).integers(0, 256, (218, 178, 3), dtype=np.uint8)


def _write_celeba(root, count=3, pictures="img_celeba", annotation="Anno/list_landmarks_celeba.txt"):
    lines = [str(count), HEADER]
    for index in range(1, count + 1):
        write_image(root / pictures / f"{index:06d}.png", _photo(index))
        lines.append(f"{index:06d}.jpg  " + " ".join(str(v) for v in (LANDMARKS + index).ravel()))
    (root / annotation).parent.mkdir(parents=True, exist_ok=True)
    (root / annotation).write_text("\n".join(lines) + "\n")


def _run(*arguments):
    return run_script(process_celeba.main, [str(argument) for argument in arguments] + ["--num-workers", "1"])


@pytest.mark.parametrize("pictures, annotation", [
    ("img_celeba", "Anno/list_landmarks_celeba.txt"), ("img_celeba", "list_landmarks_celeba.txt"),
    ("img_align_celeba", "Anno/list_landmarks_align_celeba.txt"),
    ("img_align_celeba/img_align_celeba", "list_landmarks_align_celeba.txt")])
def test_every_layout_of_celeba(tmp_path, pictures, annotation, capsys):
    _write_celeba(tmp_path, 2, pictures, annotation)
    assert _run("--celeba", tmp_path, "--format", "png") == 0
    assert "2 crops written, 0 were there already, 0 pictures left out" in capsys.readouterr().out
    for index in (1, 2):
        crop = read_image(tmp_path / "celebahq_crop" / f"{index:06d}.png")
        np.testing.assert_array_equal(crop, align(_photo(index), LANDMARKS + index))


def test_comma_separated_landmarks(tmp_path):
    path = tmp_path / "list_landmarks_align_celeba.csv"
    path.write_text("image_id," + HEADER.replace(" ", ",") + "\n000001.jpg," + ",".join("1234567890") + "\n")
    assert process_celeba.read_landmarks(path) == {"000001": (1, 2, 3, 4, 5, 6, 7, 8, 9, 0)}


def test_parallel_run_gives_the_same_files(tmp_path):
    _write_celeba(tmp_path, 3)
    assert _run("--celeba", tmp_path, "--output", tmp_path / "serial") == 0
    assert process_celeba.main(["--celeba", str(tmp_path), "--num-workers", "2"]) == 0
    for index in (1, 2, 3):
        name = f"{index:06d}.jpg"
        assert (tmp_path / "serial" / name).read_bytes() == (tmp_path / "celebahq_crop" / name).read_bytes()


def test_shards_are_disjoint_and_together_the_whole(tmp_path, capsys):
    """Each picture is done, or reported as left out, by one of them; a shard too many has nothing to do."""
    _write_celeba(tmp_path, 5)
    (tmp_path / "img_celeba" / "000003.png").write_bytes(b"")
    for index in range(2):
        write_image(tmp_path / "img_celeba" / f"stranger{index}.png", _photo(9))
    whole = tmp_path / "whole"
    assert _run("--celeba", tmp_path, "--output", whole) == 1
    capsys.readouterr()
    written, left_out = [], []
    for index in (1, 2, 3):
        before = set((tmp_path / "parts").glob("*"))
        _run("--celeba", tmp_path, "--output", tmp_path / "parts", "--shard", f"{index}/3")
        new = set((tmp_path / "parts").glob("*")) - before
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if "left out" in line]
        assert f"{len(new)} crops written, 0 were there already, {len(lines)} pictures left out" in printed.out
        written, left_out = [*written, *new], [*left_out, *lines]
    assert len(written) == len(set(written)) == 4 and len(left_out) == len(set(left_out)) == 3
    for path in whole.iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()
    assert _run("--celeba", tmp_path, "--output", tmp_path / "parts", "--shard", "8/8") == 0
    assert "shard 8/8 has no pictures" in capsys.readouterr().out


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_shards_that_are_none(shard, capsys):
    with pytest.raises(SystemExit):
        process_celeba.parse_arguments([f"--shard={shard}"])
    assert "I from 1 to N" in capsys.readouterr().err


def test_resume_keeps_good_crops_and_redoes_damaged_ones(tmp_path, capsys):
    _write_celeba(tmp_path, 3)
    _run("--celeba", tmp_path)
    crops = tmp_path / "celebahq_crop"
    original = (crops / "000002.jpg").read_bytes()
    (crops / "000002.jpg").write_bytes(original[:100])
    (crops / "000003.jpg").unlink()
    kept = (crops / "000001.jpg").stat().st_mtime_ns
    assert _run("--celeba", tmp_path) == 0
    assert "2 crops written, 1 were there already" in capsys.readouterr().out
    assert (crops / "000001.jpg").stat().st_mtime_ns == kept and (crops / "000002.jpg").read_bytes() == original
    assert sorted(path.name for path in crops.iterdir()) == ["000001.jpg", "000002.jpg", "000003.jpg"]
    assert _run("--celeba", tmp_path, "--overwrite") == 0
    assert "3 crops written, 0 were" in capsys.readouterr().out


def test_unreadable_pictures_are_reported_and_the_others_done(tmp_path, capsys):
    _write_celeba(tmp_path, 4)
    (tmp_path / "img_celeba" / "000002.png").write_bytes(b"")
    data = (tmp_path / "img_celeba" / "000003.png").read_bytes()
    (tmp_path / "img_celeba" / "000003.png").write_bytes(data[:len(data) // 2])
    write_image(tmp_path / "img_celeba" / "stranger.png", _photo(9))
    assert _run("--celeba", tmp_path) == 1
    printed = capsys.readouterr()
    assert "2 crops written, 0 were there already, 3 pictures left out" in printed.out
    for words in ("000002.png is empty", "000003.png cannot be read", "stranger.png has no landmarks"):
        assert words in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("error, words", [(MemoryError(), "not enough memory"),
                                          (cv2.error("resize failed\nin a file"), "resize failed in a file")])
def test_a_picture_that_cannot_be_aligned_does_not_end_the_run(tmp_path, monkeypatch, capsys, error, words):
    _write_celeba(tmp_path, 2)

    def aligned(image, landmarks):
        if np.array_equal(image, _photo(1)):
            raise error
        return align(image, landmarks)

    monkeypatch.setattr("datasets.alignment.align", aligned)
    assert _run("--celeba", tmp_path) == 1
    printed = capsys.readouterr()
    assert "1 crops written" in printed.out and f"000001.png: {words}" in printed.err


def test_nothing_done_is_a_failure(tmp_path, capsys):
    _write_celeba(tmp_path, 1)
    (tmp_path / "img_celeba" / "000001.png").write_bytes(b"")
    assert _run("--celeba", tmp_path) == 1
    assert "error: no picture could be aligned" in capsys.readouterr().err


def _remove_annotation(root):
    (root / "Anno" / "list_landmarks_celeba.txt").unlink()


def _spoil_annotation(root):
    with open(root / "Anno" / "list_landmarks_celeba.txt", "a") as file:
        file.write("000009.jpg 1 2 three\n")


def _remove_pictures(root):
    for path in (root / "img_celeba").iterdir():
        path.unlink()
    (root / "img_celeba").rmdir()


@pytest.mark.parametrize("damage, words", [
    (_remove_annotation, "not Anno/list_landmarks_celeba.txt"), (_spoil_annotation, "line 5: expected a name and 10"),
    (_remove_pictures, "neither img_celeba/ nor img_align_celeba/")])
def test_incomplete_celeba_is_one_clear_line(tmp_path, capsys, damage, words):
    _write_celeba(tmp_path, 2)
    damage(tmp_path)
    assert _run("--celeba", tmp_path) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1


def test_plain_command_without_celeba_says_what_to_do(tmp_path):
    result = subprocess.run([sys.executable, ROOT / "process_celeba.py"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("error: datasets/CelebA does not exist") and result.stderr.count("\n") == 1


def test_help_imports_nothing_heavy():
    code = ("import sys, process_celeba\n"
            "try:\n    process_celeba.main(['--help'])\n"
            "except SystemExit:\n    print({'torch', 'cv2', 'numpy', 'PIL', 'onnxruntime'} & set(sys.modules))")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.rstrip().endswith("set()") and "--folder" in result.stdout


def test_folder_of_portraits(tmp_path, capsys):
    portraits = tmp_path / "portraits"
    write_image(portraits / "sub" / "eileen.png", astronaut())
    write_image(portraits / "wall.png", np.full((100, 100, 3), 128, np.uint8))
    write_image(portraits / "double.png", astronaut()[:220, 100:340])
    write_image(portraits / "double.jpg", astronaut()[:220, 100:340])
    assert _run("--folder", portraits) == 1
    printed = capsys.readouterr()
    crops = tmp_path / "portraits_aligned"
    written = sorted(path.relative_to(crops).as_posix() for path in crops.rglob("*.*"))
    assert written == ["double.jpg", "sub/eileen.jpg"]
    assert "no face found in" in printed.err and "wall.png" in printed.err
    assert "double.png would replace the crop of" in printed.err
    assert read_image(crops / "sub" / "eileen.jpg").shape == (256, 256, 3)


def test_bad_folders(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert _run("--folder", tmp_path / "empty") == 1
    assert "holds no pictures" in capsys.readouterr().err
    assert _run("--folder", tmp_path / "absent") == 1
    assert "does not exist" in capsys.readouterr().err
    write_image(tmp_path / "in" / "a.png", _photo(1))
    assert _run("--folder", tmp_path / "in", "--output", tmp_path / "in") == 1
    assert "give another one" in capsys.readouterr().err
    write_image(tmp_path / "in" / "out" / "b.png", _photo(1))
    (tmp_path / "in" / "a.png").unlink()
    assert _run("--folder", tmp_path / "in", "--output", tmp_path / "in" / "out") == 1
    assert "no pictures but those in the output" in capsys.readouterr().err


def test_crops_may_go_above_the_pictures(tmp_path):
    write_image(tmp_path / "in" / "portraits" / "a.png", astronaut())
    assert _run("--folder", tmp_path / "in" / "portraits", "--output", tmp_path) == 0
    assert (tmp_path / "a.jpg").exists()
