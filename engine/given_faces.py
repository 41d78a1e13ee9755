"""Faces that the user points at: five landmarks or a box each, from the command line or a JSON file."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from datasets.detection import DetectedFace, box_of_landmarks, landmarks_of_box
from utils.errors import UserError
from utils.files import read_text

FORMS = "give five points x,y,x,y,... or a box left,top,right,bottom in the photo's pixels"


def as_face(place: Any, where: str = "landmarks") -> DetectedFace:
    """A face from five points (5, 2) or 10 numbers, a box of 4 numbers, or a dictionary with "landmarks" or "box".

    Raises UserError, beginning with ``where``, for anything else.
    """
    if isinstance(place, dict):
        place = place.get("landmarks", place.get("box"))
    try:
        values = np.asarray(place, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):  # a whole number may be larger than any float
        values = np.empty(0)
    if not np.isfinite(values).all() or values.size not in (4, 10):
        raise UserError(f"{where}: {FORMS}")
    if values.size == 4:
        return DetectedFace(values.ravel(), 1.0, landmarks_of_box(values.ravel()), estimated=True)
    points = values.reshape(5, 2)
    return DetectedFace(box_of_landmarks(points), 1.0, points)


def as_faces(places: Any, where: str = "landmarks") -> list[DetectedFace]:
    """One place as for :func:`as_face`, or a list of several."""
    if isinstance(places, dict) and "faces" in places:
        places = places["faces"]
    if isinstance(places, dict) or _is_one(places):
        return [as_face(places, where)]
    if not isinstance(places, (Sequence, np.ndarray)) or not len(places):
        raise UserError(f"{where}: {FORMS}")
    return [as_face(place, where) for place in places]


def _is_one(places: Any) -> bool:
    """Four or ten numbers, or five pairs of them."""
    try:
        shape = np.asarray(places, dtype=np.float64).shape
    except (TypeError, ValueError, OverflowError):
        return False
    return shape in ((4,), (10,), (5, 2))


class GivenFaces:
    """What --landmarks says: the same places for every photo, or places by the photo's name, with or without suffix.
    """

    def __init__(self, text: str):
        """Raises UserError if the text is neither numbers, nor JSON, nor a readable JSON file."""
        self.where = f"--landmarks {text if len(text) < 60 else text[:60] + '...'}"
        content = _read(text, self.where)
        named = isinstance(content, dict) and not {"landmarks", "box", "faces"} & set(content)
        self.by_name = {name: as_faces(places, f"{self.where}: {name}") for name, places in content.items()} \
            if named else None
        self.for_all = None if named else as_faces(content, self.where)

    def of(self, path: Path) -> list[DetectedFace] | None:
        """The faces given for a photo; None if nothing is said about it, so that they are to be found."""
        if self.by_name is None:
            return self.for_all
        return self.by_name.get(path.name, self.by_name.get(path.stem))


def _read(text: str, where: str) -> Any:
    if text.lstrip()[:1] in ("[", "{"):
        return _parse(text, where)
    try:
        return [float(number) for number in text.replace(",", " ").split()]
    except ValueError:
        pass
    if not os.path.exists(text):
        raise UserError(f"{where}: there is no such file; {FORMS}, or a JSON file of them")
    return _parse(read_text(text), where)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError(f"{where}: is nested too deeply; {FORMS}") from None
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({error})") from None
