"""engine.photo: faces, holes and the way back at every size, orientation and file type, with a quick completion."""
from __future__ import annotations

import json
import os

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from datasets.alignment import Alignment
from datasets.detection import DetectedFace, NoFaceError, box_of_landmarks, landmarks_of_box
from datasets.faces import astronaut
from engine import holes
from engine.given_faces import GivenFaces, as_faces
from engine.mesh_export import HEAD_FILES, write_head
from engine.photo import PhotoCompleter, PhotoOptions
from engine.photo_folder import Job, complete_all, complete_file, find_earlier, summary
from engine.photo_pictures import PHOTO_FILES, overview, write_pictures
from engine.photo_report import write_report
from test_test_my import QuickCompletion
from utils.errors import UserError
from utils.images import read_image, read_mask, write_image

# The astronaut's, as MTCNN gives them.
POINTS = np.array([[204.4, 102.3], [246.3, 103.6], [226.9, 128.5], [204.1, 141.1], [243.6, 142.0]])
FACE = DetectedFace(box_of_landmarks(POINTS), 1.0, POINTS)


class FixedDetector:
    """Says what it was told."""

    def __init__(self, *faces: DetectedFace):
        self.faces = faces

    def detect(self, image: np.ndarray, name: str = "") -> list[DetectedFace]:
        if not self.faces:
            raise NoFaceError(f"no face found in {name}")
        return sorted(self.faces, key=lambda face: -face.area)


def moved(x: float, y: float, scale: float = 1.0) -> DetectedFace:
    """The astronaut's face where it is after enlarging the photo and moving it."""
    points = (POINTS + 0.5) * scale - 0.5 + (x, y)
    return DetectedFace(box_of_landmarks(points), 1.0, points)


def completer(*faces: DetectedFace, **options) -> PhotoCompleter:
    return PhotoCompleter(QuickCompletion(), FixedDetector(*(faces or (FACE,))), torch.device("cpu"),
                          PhotoOptions(**options))


def hole(shape=(512, 512), top=120, bottom=150, left=200, right=250) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture
def few_pictures(monkeypatch):
    """Only the pictures that say something about the photo are written: most of the time goes into the others."""
    def write(result, folder, colour_profile=None):
        write_image(folder / "overview.png", result.faces[0].original)
        write_image(folder / "mask_photo.png", result.mask)
        write_image(folder / "complete_output.png", result.complete_output, colour_profile)
        (folder / "faces.json").write_text("{}")

    monkeypatch.setattr("engine.photo_folder.write_pictures", write)
    monkeypatch.setattr("engine.photo_folder.FACE_FILES", ())


def test_five_lines_of_python():
    result = completer().complete(Image.fromarray(astronaut()), mask=hole())
    assert isinstance(result.complete_output, np.ndarray) and result.complete_output.shape == (512, 512, 3)
    np.testing.assert_array_equal(result.mask, hole())
    assert result.faces[0].hole.any() and result.faces[0].head.vertices.shape[1] == 3


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("width, height, x, y", [(512, 512, 0, 0), (301, 447, -97, 33), (1201, 333, 500, -40),
                                                 (333, 911, -60, 500)])
def test_pixels_outside_the_hole_are_those_of_the_file(few_pictures, tmp_path, suffix, width, height, x, y):
    """Odd sizes, portrait and panorama; the face may leave the photo."""
    photo = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    left, top = max(x, 0), max(y, 0)
    part = astronaut()[top - y:height - y, left - x:width - x]
    photo[top:top + part.shape[0], left:left + part.shape[1]] = part
    write_image(tmp_path / f"a{suffix}", photo)
    decoded = read_image(tmp_path / f"a{suffix}")
    mask = np.zeros((height, width), bool)
    mask[120 + y:150 + y, 200 + x:250 + x] = True
    write_image(tmp_path / "m.png", mask)
    result = complete_file(completer(moved(x, y)), tmp_path / f"a{suffix}", tmp_path / "out", Job(tmp_path / "m.png"))
    written = read_image(tmp_path / "out/complete_output.png")
    np.testing.assert_array_equal(written, result.complete_output)
    np.testing.assert_array_equal(read_mask(tmp_path / "out/mask_photo.png"), mask)
    np.testing.assert_array_equal(written[~mask], decoded[~mask])
    assert (written != decoded).any(axis=2)[mask].mean() > 0.95


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(few_pictures, tmp_path, orientation):
    upright = Image.fromarray(astronaut()[:400, :333])
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270}
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    write_image(tmp_path / "m.png", hole((400, 333)))
    complete_file(completer(), tmp_path / "a.png", tmp_path / "out", Job(tmp_path / "m.png"))
    with Image.open(tmp_path / "out/complete_output.png") as written:
        assert 274 not in written.getexif()
        written = np.asarray(written)
    np.testing.assert_array_equal(written[~hole((400, 333))], astronaut()[:400, :333][~hole((400, 333))])


def test_colour_profile_of_the_photo_is_kept(tmp_path):
    Image.fromarray(astronaut()).save(tmp_path / "a.png", icc_profile=b"a profile")
    complete_file(completer(), tmp_path / "a.png", tmp_path / "out")
    with Image.open(tmp_path / "out/complete_output.png") as written:
        assert written.info["icc_profile"] == b"a profile"


def test_the_saved_mask_given_back_gives_the_same_photo(few_pictures, tmp_path):
    photo = astronaut()
    photo[130:150, 205:245] = (255, 0, 0)
    write_image(tmp_path / "a.png", photo)
    first = complete_file(completer(), tmp_path / "a.png", tmp_path / "one")
    assert first.mask.any() and (first.complete_output == (255, 0, 0)).all(axis=2).sum() == 0
    again = complete_file(completer(), tmp_path / "a.png", tmp_path / "two", Job(tmp_path / "one/mask_photo.png"))
    np.testing.assert_array_equal(again.mask, first.mask)
    np.testing.assert_array_equal(again.complete_output, first.complete_output)
    inverted = tmp_path / "inverted.png"
    write_image(inverted, ~first.mask)
    third = complete_file(completer(), tmp_path / "a.png", tmp_path / "three", Job(inverted, mask_is_visible=True))
    np.testing.assert_array_equal(third.mask, first.mask)


def test_sources_of_the_hole_add_up():
    photo = astronaut()
    photo[135:150, 205:245] = (255, 0, 0)
    mask = hole(top=95, bottom=110, left=195, right=215)
    drawn = completer().complete(photo, mask=mask)
    np.testing.assert_array_equal(drawn.mask, mask)
    found = completer().complete(photo).mask
    both = completer(source="occlusion").complete(photo, mask=mask).mask
    assert (both & mask).sum() == mask.sum() and (both & found).sum() == found.sum()
    assert both.sum() <= (mask | found).sum()
    region = completer(regions=("nose",)).complete(photo).mask
    assert region.any() and not (region & found).sum() > 0.5 * found.sum()
    joined = completer(regions=("nose",)).complete(photo, mask=mask).mask
    assert joined[mask].all() and joined.sum() > mask.sum()


@pytest.mark.parametrize("name", holes.REGIONS)
def test_parts_of_a_face(name):
    """On a face of points placed like a real one: each part holds its own points and not those of the far side."""
    angle = np.linspace(0.1, np.pi - 0.1, 17)
    points = np.zeros((68, 2))
    points[:17] = np.stack([128 - 75 * np.cos(angle), 110 + 105 * np.sin(angle)], axis=1)
    for eye, x in ((36, 96), (42, 160)):
        points[eye:eye + 6] = [x, 121] + np.array([[-12, 0], [-5, -4], [5, -4], [12, 0], [5, 4], [-5, 4]])
    points[17:22], points[22:27] = [[78 + 8 * k, 102] for k in range(5)], [[146 + 8 * k, 102] for k in range(5)]
    points[27:31], points[31:36] = [[128, 118 + 11 * k] for k in range(4)], [[118 + 5 * k, 158] for k in range(5)]
    points[48:68] = [128, 185] + 22 * np.array([[np.cos(t), 0.4 * np.sin(t)] for t in np.linspace(np.pi, -np.pi, 20)])
    y, x = np.mgrid[:256, :256]
    face = ((x - 128) / 85) ** 2 + ((y - 135) / 110) ** 2 < 1
    part = holes.part_of_face(name, points, face)
    own = {"eyes": range(36, 48), "nose": range(27, 36), "mouth": range(48, 68), "left": range(36, 42),
           "right": range(42, 48), "upper": range(36, 48), "lower": range(48, 68)}[name]
    other = {"eyes": range(48, 68), "nose": range(48, 68), "mouth": range(36, 48), "left": range(42, 48),
             "right": range(36, 42), "upper": range(48, 68), "lower": range(36, 48)}[name]

    def inside(which):
        columns, rows = np.rint(points[list(which)]).astype(int).T
        return part[rows, columns]

    assert inside(own).all() and not inside(other).any()
    if name in ("left", "upper"):
        opposite = holes.part_of_face({"left": "right", "upper": "lower"}[name], points, face)
        assert not (part & opposite).any() and ((part | opposite) == face).all()


def test_found_holes_lose_specks_and_gaps_and_grow():
    found = np.zeros((256, 256), bool)
    found[100:150, 60:100] = found[100:150, 104:140] = True
    found[120:123, 70:73] = False
    found[20:23, 20:23] = True
    cleaned = holes.clean(found)
    assert cleaned[100:150, 60:140].all() and not cleaned[:60].any()
    assert cleaned.sum() < 60 * 90
    grown = ndimage.binary_dilation(found[90:], iterations=4)
    assert (cleaned[90:] & ~grown).sum() < 0.02 * cleaned.sum()
    assert not holes.clean(np.zeros((256, 256), bool)).any() and holes.clean(np.ones((256, 256), bool)).all()


# ---- faces -------------------------------------------------------------------------------------------------------

def two_faces() -> tuple[np.ndarray, DetectedFace, DetectedFace, DetectedFace]:
    """A photo with a large, a middle and a tiny face, all with a red bar over the mouth."""
    portrait = astronaut()
    portrait[135:150, 200:250] = (255, 0, 0)
    photo = np.zeros((520, 1000, 3), np.uint8)
    photo[:512, :512] = portrait
    photo[:307, 560:867] = cv2.resize(portrait, (307, 307), interpolation=cv2.INTER_AREA)
    photo[400:461, 900:961] = cv2.resize(portrait, (61, 61), interpolation=cv2.INTER_AREA)
    return photo, FACE, moved(560, 0, 307 / 512), moved(900, 400, 61 / 512)


@pytest.mark.parametrize("options, numbers", [({}, [1, 2]), ({"all_faces": True}, [1, 2, 3]), ({"face": 2}, [2]),
                                              ({"min_face": 70}, [1]), ({"min_face": 500}, [1])])
def test_which_faces_are_completed(options, numbers):
    photo, *faces = two_faces()
    result = completer(*faces, **{"min_face": 40, **options}).complete(photo)
    assert [face.number for face in result.faces] == numbers
    left = [(slice(0, 512), slice(0, 512)), (slice(0, 310), slice(560, 870)), (slice(400, 462), slice(900, 962))]
    for number, place in enumerate(left, start=1):
        assert (result.complete_output[place] != photo[place]).any() == (number in numbers)
    if len(numbers) == 1 and "face" not in options:
        assert any("smaller than" in remark for remark in result.remarks)


def test_a_mask_completes_the_faces_that_it_touches_alone():
    photo, *faces = two_faces()
    mask = np.zeros(photo.shape[:2], bool)
    mask[80:92, 680:710] = True
    quick = completer(*faces)
    result = quick.complete(photo, mask=mask)
    assert [face.number for face in result.faces] == [2] and quick.completion.calls == 1
    np.testing.assert_array_equal(result.complete_output[~mask], photo[~mask])


def test_where_nothing_of_a_face_is_visible_it_is_said():
    photo = astronaut()
    remarks = [completer(FACE).complete(photo, mask=mask).remarks
               for mask in (np.ones(photo.shape[:2], bool), hole())]
    assert [any("--mask-is-visible" in remark for remark in found) for found in remarks] == [True, False]


def test_faces_that_were_found_can_be_given_back_exactly(tmp_path):
    found = completer(moved(0.123456789, 0.987654321, 0.97)).complete(astronaut(), mask=hole())
    write_pictures(found, tmp_path)
    (given,) = GivenFaces(str(tmp_path / "faces.json")).for_all
    np.testing.assert_array_equal(given.landmarks, np.asarray(found.faces[0].found.landmarks, np.float64))


def test_faces_side_by_side_do_not_complete_each_others_holes():
    first, second = moved(0, 0), moved(70, 0)
    photo = astronaut()
    mask = hole(left=200, right=320)
    result = completer(first, second).complete(photo, mask=mask)
    assert len(result.faces) == 2
    np.testing.assert_array_equal(result.mask, mask)
    assert (result.complete_output[mask] != photo[mask]).any(axis=1).mean() > 0.95


@pytest.mark.parametrize("given", [
    POINTS.tolist(), POINTS.ravel().tolist(), [POINTS.tolist()], {"landmarks": POINTS.tolist()},
    {"faces": [{"number": 1, "box": FACE.box.tolist(), "landmarks": POINTS.tolist()}]}])
def test_landmarks_can_be_given_in_many_forms(given):
    (face,) = as_faces(given)
    np.testing.assert_allclose(face.landmarks, POINTS)
    text = json.dumps(given)
    np.testing.assert_allclose(GivenFaces(text).for_all[0].landmarks, POINTS)
    nobody = PhotoCompleter(QuickCompletion(), FixedDetector(), torch.device("cpu"))
    assert nobody.complete(astronaut(), mask=hole(), landmarks=given).faces[0].hole.any()
    with pytest.raises(NoFaceError):
        nobody.complete(astronaut(), mask=hole())


def test_landmarks_on_the_command_line_and_by_name(tmp_path):
    text = ",".join(str(value) for value in POINTS.ravel())
    np.testing.assert_allclose(GivenFaces(text).for_all[0].landmarks, POINTS)
    assert len(GivenFaces("[[10,10,90,90],[110,10,190,90]]").for_all) == 2
    (tmp_path / "faces.json").write_text(json.dumps({"a.jpg": POINTS.tolist(), "b": [10, 20, 30, 40]}))
    named = GivenFaces(str(tmp_path / "faces.json"))
    assert named.of(tmp_path / "a.jpg")[0].estimated is False and named.of(tmp_path / "b.png")[0].estimated
    assert named.of(tmp_path / "c.png") is None


@pytest.mark.parametrize("given", [[], [1, 2, 3], "nose", {"eyes": 1}, [[1, 2], [3]], [float("nan")] * 4, None,
                                   [5, 5, 1, 9]])
def test_other_landmarks_are_refused(given):
    with pytest.raises(UserError):
        as_faces(given)
    if given is not None:  # which says nothing about the faces
        with pytest.raises(UserError):
            completer().complete(astronaut(), mask=hole(), landmarks=given)


@pytest.mark.parametrize("text", ["[" * 100_000, f"[1{'0' * 400}, 1, 2, 3]", "x\0.json", "y" * 5000, "{", "."])
def test_texts_that_are_no_landmarks_are_one_line(text):
    with pytest.raises(UserError) as caught:
        GivenFaces(text)
    assert "\n" not in str(caught.value)


def test_box_and_landmarks_are_inverse_for_an_upright_face():
    box = np.array([10.0, 20, 110, 120])
    np.testing.assert_allclose(box_of_landmarks(landmarks_of_box(box)), box)


def test_a_box_gets_its_landmarks_from_the_mesh_that_fits_there():
    result = completer().complete(astronaut(), mask=hole(), landmarks=FACE.box)
    assert not result.faces[0].found.estimated
    expected = Alignment.from_landmarks(result.faces[0].found.landmarks, 512, 512)
    np.testing.assert_allclose(result.faces[0].alignment.matrix, expected.matrix)


def test_keep_leaves_what_lies_beside_the_mesh():
    class HalfFace(QuickCompletion):
        def __call__(self, image, hole):
            result = super().__call__(image, hole)
            result.coverage[..., 128:] = False
            return result

    photo = astronaut()
    mask = hole(left=190, right=260)
    half = PhotoCompleter(HalfFace(), FixedDetector(FACE), torch.device("cpu"), PhotoOptions(background="keep"))
    result = half.complete(photo, mask=mask)
    changed = (result.complete_output != photo).any(axis=2)
    np.testing.assert_array_equal(result.mask, mask)
    assert changed[mask & (np.arange(512) < 220)].mean() > 0.9 and not changed[:, 232:].any()


@pytest.mark.parametrize("photo, words", [
    (np.zeros((100, 100, 3), np.float32), "uint8"), (np.zeros((100, 100, 4), np.uint8), "uint8"),
    (np.zeros((9, 100, 3), np.uint8), "100x9")])
def test_other_photos_are_refused(photo, words):
    with pytest.raises(UserError, match=words):
        completer().complete(photo)
    with pytest.raises(UserError, match="mask must show the whole photo"):
        completer().complete(astronaut(), mask=np.zeros((20, 20), bool))


# ---- files -------------------------------------------------------------------------------------------------------

def test_several_faces_have_folders_of_their_own(tmp_path):
    photo, *faces = two_faces()
    result = completer(*faces, min_face=40).complete(photo)
    write_pictures(result, tmp_path)
    assert (tmp_path / "original.png").exists() and (tmp_path / "face2/original.png").exists()
    places = json.loads((tmp_path / "faces.json").read_text())["faces"]
    assert [place["number"] for place in places] == [1, 2]
    assert overview(result).shape[0] > 512
    again = completer().complete(photo, landmarks=json.loads((tmp_path / "faces.json").read_text()))
    assert np.abs(again.complete_output.astype(int) - result.complete_output).mean() < 0.1


def read_ply(path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of the PLY that we write, by its header."""
    header, body = path.read_bytes().split(b"end_header\n", 1)
    counts = [int(line.split()[-1]) for line in header.decode().splitlines() if line.startswith("element")]
    vertex = np.dtype([("xyz", "<f4", 3), ("st", "<f4", 2), ("rgb", "u1", 3)])
    face = np.dtype([("n", "u1"), ("corners", "<i4", 3)])
    assert len(body) == counts[0] * vertex.itemsize + counts[1] * face.itemsize
    vertices = np.frombuffer(body, vertex, counts[0])
    return vertices, np.frombuffer(body, face, counts[1], counts[0] * vertex.itemsize)


def test_head_is_written_as_obj_and_ply(tmp_path):
    face = completer().complete(astronaut(), mask=hole()).faces[0]
    write_head(face, tmp_path)
    lines = [line.split() for line in (tmp_path / "head.obj").read_text().splitlines()]
    vertices = np.array([line[1:] for line in lines if line[0] == "v"], float)
    places = np.array([line[1:] for line in lines if line[0] == "vt"], float)
    corners = [[corner.split("/") for corner in line[1:]] for line in lines if line[0] == "f"]
    np.testing.assert_allclose(vertices, face.head.vertices * 1e-3, atol=1e-4)
    assert len(corners) == len(face.head.triangles) and (places >= 0).all() and (places <= 1).all()
    assert all(len(set(corner)) == 1 for triangle in corners for corner in triangle)
    assert {int(corner[0]) for triangle in corners for corner in triangle} <= set(range(1, len(vertices) + 1))
    assert read_image(tmp_path / "head_texture.png").shape == (192, 256, 3)
    assert "map_Kd head_texture.png" in (tmp_path / "head.mtl").read_text()
    ply_vertices, ply_faces = read_ply(tmp_path / "head.ply")
    np.testing.assert_allclose(ply_vertices["xyz"], vertices, atol=1e-3)
    np.testing.assert_array_equal(ply_faces["corners"], face.head.triangles)
    np.testing.assert_allclose(ply_vertices["st"], places, atol=1e-5)


def photos_of(folder, *names) -> dict:
    for name in names:
        write_image(folder / f"{name}.png", astronaut())
    return {name: folder / f"{name}.png" for name in names}


def test_a_later_run_goes_on_where_an_earlier_one_stopped(few_pictures, tmp_path):
    photos = photos_of(tmp_path, "a", "b", "c")
    quick = completer(source="random")

    def run(job=Job(), completer=quick, **changes):
        earlier = find_earlier(photos, tmp_path / "out", completer.options, job)
        left = {name: path for name, path in photos.items() if name not in earlier}
        outcomes = [*earlier.values(), *complete_all(completer, left, tmp_path / "out", job, **changes)]
        return {outcome.name: outcome.status for outcome in outcomes}

    assert run() == dict.fromkeys("abc", "done")
    assert run() == dict.fromkeys("abc", "earlier") and quick.completion.calls == 3
    record = json.loads((tmp_path / "out/b/result.json").read_text())
    (tmp_path / "out/b/result.json").write_text(json.dumps({"photo": record["photo"]}))  # as after a kill
    photo = astronaut()
    photo[:9] = 0
    write_image(photos["c"], photo)
    assert run() == {"a": "earlier", "b": "done", "c": "done"}
    assert run(Job(save_mesh=True)) == dict.fromkeys("abc", "done") and (tmp_path / "out/a/head.ply").exists()
    (tmp_path / "out/b/head.ply").unlink()
    assert run(Job(save_mesh=True)) == {"a": "earlier", "b": "done", "c": "earlier"}
    assert run(Job(save_mesh=True), completer(source="random", seed=1)) == dict.fromkeys("abc", "done")
    for damaged in ("{", "[]", '{"photo": 3}'):  # nothing says whose they are
        (tmp_path / "out/a/result.json").write_text(damaged)
        assert run(Job(save_mesh=True), completer(source="random", seed=1))["a"] == "failed"
    assert run(Job(save_mesh=True), completer(source="random", seed=1), overwrite=True)["a"] == "done"


def test_photos_that_cannot_be_looked_at_are_not_done(few_pictures, tmp_path):
    """Nor those whose folder leads elsewhere, which is refused when they are completed."""
    photos, quick, out = photos_of(tmp_path, "a", "b", "c"), completer(source="random"), tmp_path / "out"
    list(complete_all(quick, photos, out, Job()))
    assert list(find_earlier(photos, out, quick.options, Job())) == ["a", "b", "c"]
    photos["a"].unlink()
    (out / "b").rename(tmp_path / "b")
    (out / "b").symlink_to(tmp_path / "b")
    assert list(find_earlier(photos, out, quick.options, Job())) == ["c"]


def test_a_folder_of_photos_may_be_moved(few_pictures, tmp_path):
    """What was completed before the move counts, and the report finds the photos where they are now."""
    (tmp_path / "old").mkdir()
    photos, quick, out = photos_of(tmp_path / "old", "a"), completer(source="random"), tmp_path / "out"
    assert [outcome.status for outcome in complete_all(quick, photos, out, Job())] == ["done"]
    (tmp_path / "old").rename(tmp_path / "new")
    outcome, = find_earlier({"a": tmp_path / "new/a.png"}, out, quick.options, Job()).values()
    assert outcome.status == "earlier" and outcome.path == str(tmp_path / "new/a.png")
    assert write_report([outcome], out / "report.html").exists()


def test_the_random_hole_does_not_depend_on_the_folder():
    quick = completer(source="random")
    first, second = (quick.complete(astronaut(), name).mask for name in ("photos/x.jpg", "/elsewhere/x.jpg"))
    np.testing.assert_array_equal(first, second)
    assert (first != quick.complete(astronaut(), "photos/y.jpg").mask).any()


def test_wrong_landmarks_are_told_with_the_photo(few_pictures, tmp_path):
    photos = photos_of(tmp_path, "a")
    far = completer(DetectedFace(FACE.box, 1.0, POINTS + 5000))
    outcome, = complete_all(far, photos, tmp_path / "out", Job())
    assert outcome.status == "failed" and outcome.error.startswith(f"{photos['a']}: the face landmarks lie outside")


def test_nothing_stale_stays_and_nothing_of_others_goes(few_pictures, tmp_path):
    photo, *faces = two_faces()
    write_image(tmp_path / "a.png", photo)
    out = tmp_path / "out"
    (out / "face3").mkdir(parents=True)
    for name in ("head.txt", "face3/output.png"):
        (out / name).write_text("mine")
    complete_file(completer(*faces, min_face=40), tmp_path / "a.png", out, Job(save_landmarks=True, save_mesh=True))
    assert {path.name for path in (out / "face2").iterdir()} == {"landmarks.txt", *HEAD_FILES}
    (out / ".complete_output.png.x.tmp").write_text("left by a kill")
    complete_file(completer(*faces, face=1), tmp_path / "a.png", out)
    assert {path.name for path in out.iterdir()} == {*PHOTO_FILES, "head.txt", "face3", "result.json"}
    assert (out / "face3/output.png").exists()


def test_a_record_cannot_name_files_elsewhere(few_pictures, tmp_path):
    write_image(tmp_path / "a.png", astronaut())
    complete_file(completer(), tmp_path / "a.png", tmp_path / "out")
    record = json.loads((tmp_path / "out/result.json").read_text())
    (tmp_path / "head.ply").write_text("mine")
    names = ["../head.ply", str(tmp_path / "head.ply"), "face2/../../head.ply", 3]
    (tmp_path / "out/result.json").write_text(json.dumps({**record, "files": names}))
    complete_file(completer(), tmp_path / "a.png", tmp_path / "out")
    assert (tmp_path / "head.ply").exists()


def test_what_is_no_file_is_not_read(tmp_path):
    """A pipe that nobody writes into would be waited for."""
    os.mkfifo(tmp_path / "a.png")
    outcome, = complete_all(completer(), {"a": tmp_path / "a.png"}, tmp_path / "out", Job())
    assert outcome.status == "failed" and "ordinary file" in outcome.error


@pytest.mark.parametrize("workers", [1, 3])
def test_one_bad_photo_never_stops_the_rest(few_pictures, tmp_path, workers):
    photos = photos_of(tmp_path, "a", "b", "c", "d", "e")
    photos["b"].write_bytes(b"nothing")

    class Failing(QuickCompletion):
        def predict_hole(self, image, hair=True):
            if not self.calls:
                self.calls += 1
                raise ZeroDivisionError("a defect")
            return super().predict_hole(image)

    failing = PhotoCompleter(Failing(), FixedDetector(FACE), torch.device("cpu"))
    outcomes = sorted(complete_all(failing, photos, tmp_path / "out", Job(), workers), key=lambda item: item.name)
    assert [outcome.name for outcome in outcomes] == list("abcde")
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    assert len(failed) == 2 and "b.png" in failed[-1].error + failed[0].error
    defect = next(outcome for outcome in failed if "ZeroDivisionError" in outcome.error)
    assert "a defect" in (tmp_path / "out" / defect.name / "error.txt").read_text()
    table = summary(outcomes).splitlines()
    assert len(table) == 7 and table[-1] == "5 photos: 3 completed, 0 by an earlier run, 2 failed"
    page = write_report(outcomes, tmp_path / "report.html").read_text()
    assert page.count('class="pair"') == 3 and page.count('class="failed"') == 2
    for outside in ("http:", "https:", "file:", 'src="/', "<link"):
        assert outside not in page


def test_results_do_not_depend_on_the_number_of_workers(few_pictures, tmp_path):
    photos = photos_of(tmp_path, "a", "b", "c")
    for workers in (1, 3):
        list(complete_all(completer(source="random"), photos, tmp_path / str(workers), Job(), workers))
    for name in photos:
        first, second = (read_image(tmp_path / count / name / "complete_output.png") for count in "13")
        np.testing.assert_array_equal(first, second)


def test_load_completer_finds_the_weights_from_anywhere(tmp_path, monkeypatch):
    from engine import build
    from engine.build import REPOSITORY
    from engine.photo import load_completer

    asked = {}
    monkeypatch.setattr(build, "build_completion", lambda settings, device, grain: asked.update(vars(settings)))
    monkeypatch.setattr("datasets.detection.Detector", FixedDetector)
    monkeypatch.chdir(tmp_path)
    loaded = load_completer(options=PhotoOptions(seed=3), ngpu=0, niters=1)
    assert loaded.options.seed == 3 and asked["niters"] == 1
    assert asked["_3dmm_ckpt"] == str(REPOSITORY / "checkpoints/encoder.pth") and asked["definition"] == "auto"
    load_completer(definition="datasets/mine", refiner_ckpt=None, recon_ckpt=str(tmp_path / "own.pth"))
    assert asked["definition"] == str(REPOSITORY / "datasets/mine")
    assert asked["refiner_ckpt"] is None and asked["recon_ckpt"] == str(tmp_path / "own.pth")
    with pytest.raises(KeyError):
        load_completer(no_such_option=1)
    with pytest.raises(UserError, match="background=.*PhotoOptions"):
        load_completer(background="keep")
