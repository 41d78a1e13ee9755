"""Folders of faces, CelebA's crops and CelebAMask-HQ: items, splits that never overlap, and bad files."""
import numpy as np
import pytest
import torch

from datasets.celeba import CelebACrops
from datasets.celebamask import CelebAMaskHQ, labels_from_parts
from datasets.faces import FolderFaces, split_names
from datasets.labels import BACKGROUND, FACE, OCCLUSION
from utils.errors import UserError
from utils.images import write_image


def _face(value, size=256):
    return np.full((size, size, 3), value, np.uint8)


def _write_faces(folder, count):
    for index in range(count):
        write_image(folder / f"{index:06d}.png", _face(index))


@pytest.mark.parametrize("count, percent", [(1000, 80), (7, 80), (1, 80), (50, 0.5), (11, 100)])
def test_splits_cover_everything_and_never_overlap(count, percent):
    names = [f"{index:03d}" for index in range(count)]
    splits = split_names(names[::-1], percent)
    assert splits["train"] + splits["dev"] + splits["test"] == names
    expected = count * (percent if percent <= 1 else percent / 100)
    assert abs(len(splits["train"]) + len(splits["dev"]) - expected) <= 0.5
    assert (len(splits["dev"]) >= 1) == (expected > 1)


def test_split_percentage_is_checked():
    for percent in (0, -5, 101):
        with pytest.raises(UserError, match="train_dev_percent"):
            split_names(["a"], percent)


def test_folder_items_flat_and_nested(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    write_image(tmp_path / "b.png", image)
    write_image(tmp_path / "person" / "a.jpg", _face(90))
    write_image(tmp_path / "large.png", _face(7, 512))
    faces = FolderFaces(tmp_path)
    assert faces.names == ["b", "large", "person/a"] and len(faces) == 3
    item = faces[0]
    assert item["name"] == "b" and item["image"].dtype == torch.uint8
    np.testing.assert_array_equal(item["image"].numpy(), image.transpose(2, 0, 1))
    assert faces[1]["image"].shape == (3, 256, 256) and (faces[1]["image"] == 7).all()
    assert faces.path("person/a") == tmp_path / "person" / "a.jpg"


def test_folder_items_load_in_worker_processes(tmp_path):
    _write_faces(tmp_path, 6)
    loader = torch.utils.data.DataLoader(FolderFaces(tmp_path), batch_size=4, num_workers=1)
    assert [name for batch in loader for name in batch["name"]] == [f"{index:06d}" for index in range(6)]


def _spoil(folder):
    (folder / "000001.png").write_bytes(b"")
    write_image(folder / "000003.png", np.zeros((100, 200, 3), np.uint8))


def test_bad_files_are_left_out_with_one_warning_each(tmp_path, capsys):
    _write_faces(tmp_path, 5)
    _spoil(tmp_path)
    faces = FolderFaces(tmp_path)
    assert faces.names == ["000000", "000002", "000004"] and set(faces.unreadable) == {"000001", "000003"}
    messages = sorted(capsys.readouterr().err.splitlines())
    assert len(messages) == 2 and "is empty" in messages[0] and "200x100 pixels, not an aligned" in messages[1]


def test_in_training_a_bad_file_is_replaced_when_met(tmp_path, capsys):
    _write_faces(tmp_path, 5)
    _spoil(tmp_path)
    faces = FolderFaces(tmp_path, verify=False)
    assert faces[1]["name"] == faces[1]["name"] == "000002" and len(faces) == 5
    assert capsys.readouterr().err.count("000001.png is empty") == 1


def test_unusable_folders_are_clear_errors(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        FolderFaces(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no pictures"):
        FolderFaces(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="no usable picture; the first: .*a.png is empty"):
        FolderFaces(tmp_path)
    with pytest.raises(UserError, match="no usable picture"):
        FolderFaces(tmp_path, verify=False)[0]
    with pytest.raises(UserError, match="no split 'validation': choose one of train, dev, test"):
        FolderFaces(tmp_path, split="validation")
    with pytest.raises(UserError, match="test split .* is empty"):
        FolderFaces(tmp_path, split="test", train_dev_percent=100)


def test_celeba_official_partition(tmp_path, capsys):
    _write_faces(tmp_path / "celebahq_crop", 6)
    (tmp_path / "Eval").mkdir()
    with pytest.raises(UserError, match="no Eval/list_eval_partition.txt.*official_partition"):
        CelebACrops(tmp_path, "test", official_partition=True)
    (tmp_path / "Eval" / "list_eval_partition.txt").write_text("\ufeff" + "".join(
        f"{index:06d}.jpg {part}\n" for index, part in enumerate([2, 0, 0, 1, 0])), encoding="utf-8")
    splits = {split: CelebACrops(tmp_path, split, official_partition=True).names for split in ("train", "dev", "test")}
    assert "1 crops, such as 000005" in capsys.readouterr().err
    assert splits == {"train": ["000001", "000002", "000004"], "dev": ["000003"], "test": ["000000"]}
    # The folder of crops itself is as good a root.
    assert CelebACrops(tmp_path / "celebahq_crop", "dev", official_partition=True).names == ["000003"]


def test_celeba_is_divided_80_20_unless_the_partition_is_asked_for(tmp_path):
    _write_faces(tmp_path / "celebahq_crop", 10)
    (tmp_path / "list_eval_partition.txt").write_text("000000.jpg 2\n")
    assert CelebACrops(tmp_path, "test").names == ["000008", "000009"]
    assert len(CelebACrops(tmp_path)) == 10


def test_celeba_malformed_partition_and_missing_crops(tmp_path):
    (tmp_path / "img_celeba").mkdir()
    with pytest.raises(UserError, match="run python process_celeba.py"):
        CelebACrops(tmp_path)
    _write_faces(tmp_path / "celebahq_crop", 2)
    (tmp_path / "list_eval_partition.txt").write_text("000000.jpg 0\n000001.jpg 5\n")
    with pytest.raises(UserError, match="line 2: .*000001.jpg 5"):
        CelebACrops(tmp_path, "train", official_partition=True)


def _disc(y, x, radius, size=512):
    rows, columns = np.mgrid[:size, :size]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius ** 2


def _annotated_tree(root):
    """Two CelebAMask-HQ faces: 0 with every kind of part, 2001 (in folder 1) with skin alone; 3 without annotation."""
    parts = {"skin": _disc(256, 256, 150) & ~_disc(320, 200, 20), "mouth": _disc(340, 256, 12),
             "u_lip": _disc(320, 256, 10), "eye_g": _disc(220, 200, 40), "hat": _disc(20, 256, 60),
             "hair": _disc(106, 256, 30), "neck": _disc(440, 256, 40)}
    for part, mask in parts.items():
        write_image(root / "CelebAMask-HQ-mask-anno" / "0" / f"00000_{part}.png", mask)
    write_image(root / "CelebAMask-HQ-mask-anno" / "1" / "02001_skin.png", _disc(256, 256, 100))
    for name in ("0", "2001", "3"):
        write_image(root / "CelebA-HQ-img" / f"{name}.jpg", _face(80, 1024))


def test_celebamask_labels(tmp_path, capsys):
    _annotated_tree(tmp_path)
    faces = CelebAMaskHQ(tmp_path)
    assert "3.jpg has no annotation 00003_skin.png" in capsys.readouterr().err
    assert faces.names == ["00000", "02001"]
    item = faces[0]
    assert item["image"].shape == (3, 256, 256) and item["labels"].shape == (256, 256)
    assert item["labels"].dtype == torch.uint8
    labels = item["labels"].numpy()
    where = {"cheek": (130, 160), "lip": (159, 128), "mouth": (172, 128), "glasses": (110, 100), "hat": (10, 128),
             "fringe": (58, 128), "hair above": (42, 128), "neck": (225, 128), "hand on cheek": (160, 100)}
    found = {what: labels[place] for what, place in where.items()}
    assert found == {"cheek": FACE, "lip": FACE, "mouth": BACKGROUND, "glasses": OCCLUSION, "hat": BACKGROUND,
                     "fringe": OCCLUSION, "hair above": BACKGROUND, "neck": BACKGROUND, "hand on cheek": OCCLUSION}
    assert {what for what, place in where.items() if item["hair"][place]} == {"fringe"}
    assert set(np.unique(faces[1]["labels"].numpy())) == {FACE, BACKGROUND} and not faces[1]["hair"].any()


def test_celebamask_small_gaps_between_parts_are_face():
    skin = _disc(256, 256, 150)
    skin[250:253, 250:253] = False
    assert labels_from_parts({"skin": skin})[251, 251] == FACE


def test_celebamask_damaged_annotation_is_left_out(tmp_path, capsys):
    _annotated_tree(tmp_path)
    (tmp_path / "CelebAMask-HQ-mask-anno" / "0" / "00000_hair.png").write_bytes(b"")
    assert CelebAMaskHQ(tmp_path).names == ["02001"]
    assert "00000_hair.png is empty" in capsys.readouterr().err


def test_celebamask_missing_folder(tmp_path):
    with pytest.raises(UserError, match="CelebA-HQ-img does not exist"):
        CelebAMaskHQ(tmp_path)
