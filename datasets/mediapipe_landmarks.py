"""68 landmarks of aligned portraits by MediaPipe's face mesh, for ``--portrait-points``:

    python -m datasets.mediapipe_landmarks --folder PORTRAITS --output points.json

MediaPipe (Apache License 2.0, code and model) is no dependency of this project, because only this step of making the
weights uses it: install it into an environment of its own with ``pip install mediapipe==0.10.14 tqdm``.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from utils.errors import UserError
from utils.files import write_bytes
from utils.images import list_images, read_image
from utils.logging import note, progress, run_script, warning

# The face mesh's vertices at the 68 landmarks of iBUG: jaw, brows, nose, eyes, outer and inner lips.
VERTICES = [
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,
    168, 197, 5, 4, 75, 97, 2, 326, 305,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,
    78, 82, 13, 312, 308, 317, 14, 87,
]
MARGIN = 64  # pixels added around a picture in which no face was found at first: faces that fill it are missed


def detect(mesh: Any, image: np.ndarray) -> np.ndarray | None:
    """The landmarks (68, 2), (x, y) in pixels with centres at integers, of the face in an image uint8 (H, W, 3).

    mesh: MediaPipe's FaceMesh. None if no face is found.
    """
    for margin in (0, MARGIN):
        padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
        faces = mesh.process(padded).multi_face_landmarks
        if faces:
            height, width = padded.shape[:2]
            points = [faces[0].landmark[index] for index in VERTICES]
            return np.array([[point.x * width - margin - 0.5, point.y * height - margin - 0.5] for point in points])
    return None


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit status, 1 if a portrait is left out."""
    parser = argparse.ArgumentParser(description="68 landmarks of aligned portraits by MediaPipe's face mesh.")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="the aligned portraits")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON {NAME: [[x, y], ...]}")
    options = parser.parse_args(arguments)
    try:
        from mediapipe.python.solutions.face_mesh import FaceMesh
    except ImportError:
        raise UserError("MediaPipe is not installed: pip install mediapipe==0.10.14 (in an environment of its own), or "
                        "write the landmarks of another detector to the file yourself") from None
    pictures = list_images(options.folder, recursive=True)
    found, missing = {}, []
    with FaceMesh(static_image_mode=True, max_num_faces=1, refine_landmarks=True, min_detection_confidence=0.3) as mesh:
        for path in progress(pictures, "landmarks", len(pictures)):
            points = detect(mesh, read_image(path))
            if points is None:
                missing.append(path.name)
            else:
                found[path.relative_to(options.folder).with_suffix("").as_posix()] = points.round(2).tolist()
    if missing:
        warning(f"no face found in {len(missing)} of {len(pictures)}: {', '.join(missing[:10])}")
    write_bytes(options.output, json.dumps(found).encode())
    note(f"{options.output}: 68 landmarks of {len(found)} portraits")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(run_script(main))
