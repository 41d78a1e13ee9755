"""datasets.detection: MTCNN finds the astronaut, wherever and however large she is, and always the same."""
import cv2
import numpy as np
import pytest

from datasets.alignment import align
from datasets.detection import TURNS, Detector, NoFaceError, _turned
from datasets.faces import astronaut
from utils.errors import UserError

# Read off the photo by eye: left eye, right eye, nose, mouth corners.
ASTRONAUT = np.array([[204, 101], [247, 103], [225, 129], [201, 140], [245, 142]])


@pytest.fixture(scope="module")
def detector():
    return Detector(threads=1)


def test_astronaut_comes_with_the_installation():
    photo = astronaut()
    assert photo.shape == (512, 512, 3) and photo.dtype == np.uint8


def test_astronauts_face_is_found(detector):
    (face,) = detector.detect(astronaut())
    assert face.score > 0.99
    np.testing.assert_allclose(face.landmarks, ASTRONAUT, atol=4)
    left, top, right, bottom = face.box
    assert left < 200 < 250 < right and top < 90 < 150 < bottom


def test_the_crop_puts_eyes_and_mouth_where_crops_have_them(detector):
    crop = align(astronaut(), detector.detect(astronaut())[0].landmarks)
    again = detector.detect(crop)[0].landmarks
    np.testing.assert_allclose(again[:2].mean(axis=0), [128, 121], atol=6)
    assert abs(again[0, 1] - again[1, 1]) < 6 and 165 < again[3:, 1].mean() < 200


def test_same_answer_every_time_and_from_a_new_detector(detector):
    first, second = detector.detect(astronaut())[0], Detector(threads=2).detect(astronaut())[0]
    again = detector.detect(astronaut())[0]
    np.testing.assert_array_equal(first.landmarks, again.landmarks)
    np.testing.assert_allclose(first.landmarks, second.landmarks, atol=1e-2)


def test_results_are_in_the_coordinates_of_a_huge_photo(detector):
    photo = np.full((2000, 3000, 3), 90, np.uint8)
    photo[400:1936, 1000:2536] = cv2.resize(astronaut(), (1536, 1536), interpolation=cv2.INTER_CUBIC)
    face = detector.detect(photo)[0]
    np.testing.assert_allclose(face.landmarks, (ASTRONAUT + 0.5) * 3 - 0.5 + (1000, 400), atol=15)


def test_a_face_too_small_at_first_sight_is_found_at_the_second(detector):
    photo = np.full((1600, 2500, 3), 90, np.uint8)
    photo[900:1028, 1900:2028] = cv2.resize(astronaut(), (128, 128), interpolation=cv2.INTER_AREA)
    face = detector.detect(photo)[0]
    np.testing.assert_allclose(face.landmarks, (ASTRONAUT + 0.5) / 4 - 0.5 + (1900, 900), atol=3)


def test_largest_face_comes_first(detector):
    photo = np.full((300, 560, 3), 200, np.uint8)
    face = astronaut()[20:220, 120:320]
    photo[50:150, 30:130] = cv2.resize(face, (100, 100), interpolation=cv2.INTER_AREA)
    photo[50:250, 300:500] = face
    faces = detector.detect(photo)
    assert len(faces) == 2 and faces[0].area > 2 * faces[1].area and faces[0].box[0] > 300


def test_no_face_is_an_error_for_the_user(detector):
    with pytest.raises(NoFaceError, match="no face found in wall.jpg"):
        detector.detect(np.full((120, 90, 3), 128, np.uint8), "wall.jpg")
    assert issubclass(NoFaceError, UserError)


def test_detector_is_silent(capfd):
    Detector(threads=1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_faces_of_lying_photos_are_found_upright(detector, quarters):
    photo = np.ascontiguousarray(np.rot90(astronaut()[:260, 90:380], quarters))
    points = detector.detect(photo)[0].landmarks
    height, width = photo.shape[:2]
    for _ in range(4 - quarters):  # np.rot90 takes (x, y) to (y, width - 1 - x)
        points = np.stack([points[:, 1], width - 1 - points[:, 0]], axis=1)
        height, width = width, height
    np.testing.assert_allclose(points + (90, 0), ASTRONAUT, atol=5)


def test_a_turned_photo_leads_back_to_its_own_pixels():
    photo = np.zeros((90, 140, 3), np.uint8)
    photo[20:23, 100:103] = 255
    for degrees in (*TURNS, 17):
        turned, back = _turned(photo, degrees)
        row, column = np.argwhere(turned[:, :, 0] == turned.max()).mean(axis=0)
        np.testing.assert_allclose(back[:, :2] @ (column, row) + back[:, 2], (101, 21), atol=1.5)
        assert abs(int(turned.sum()) - int(photo.sum())) < 0.1 * photo.sum()
