"""Complete the faces in your own photos.

    python test_my.py --config args.txt                                 every photo in inputs/, else an example photo
    python test_my.py --config args.txt --image FILE|FOLDER             what hides the face is found by itself
    python test_my.py --config args.txt --image FILE --mask MASK        white marks the hidden pixels of the photo

Writes output/NAME/ (see engine/photo.py for the pictures); earlier results of the same name are replaced.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Sequence

from utils import config
from utils.errors import UserError
from utils.logging import note, progress, run_script

INPUTS = Path("inputs")
OUTPUT = "output"
EXAMPLE = "astronaut"


def main(argv: Sequence[str]) -> int:
    """Complete the photos that the command line names; the exit status is 1 if any of them failed."""
    settings = config.parse(argv, "Complete the faces in your own photos; results go to output/NAME/.")
    example = settings.image is None and not INPUTS.is_dir()
    source = choose_source(settings, example)
    photos = {EXAMPLE: None} if example else find_photos(settings.image or INPUTS)
    from engine.photo import complete_file, write_landmarks

    completer = build_completer(settings, source)
    output = Path(settings.output or OUTPUT)
    failures = []
    for name, path in progress(photos.items(), "photos", log_type=settings.log_type if len(photos) > 1 else "none"):
        try:
            folder = output / name
            if path is None:
                result = complete_example(completer, folder)
            else:
                result = complete_file(completer, path, folder, settings.mask)
            if settings.save_landmarks:
                write_landmarks(result, folder / "landmarks.txt")
            note("; ".join([f"{path or EXAMPLE} -> {folder}/complete_output.png", *result.remarks]))
        except UserError as error:
            failures.append(str(error))
    return report(failures, len(photos))


def find_photos(path: str | Path) -> dict[str, Path]:
    """Photos by the name of their results' folder: one file, or all pictures directly inside a folder.

    A name is the file's without suffix, with it ("a_png") where two files differ in nothing else.
    Raises UserError if there is nothing.
    """
    from utils.images import list_images

    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path} does not exist: give --image a photo or a folder of photos")
        return {path.stem: path}
    paths = list_images(path)
    if not paths:
        raise UserError(f"{path} holds no pictures: put photos (.jpg, .png, ...) there, or name one with --image")
    stems = [photo.stem for photo in paths]
    return {photo.stem if stems.count(photo.stem) == 1 else photo.name.replace(".", "_"): photo for photo in paths}


def choose_source(settings: config.Settings, example: bool) -> str:
    """Where holes come from: --mask-source, else the file where --mask is given, else the occlusion net.

    The example photo has nothing in front of its face, so that it gets a fixed rectangle. Raises UserError for options
    that contradict each other.
    """
    if example and settings.mask is not None:
        raise UserError(f"--mask {settings.mask}: say to which photo it belongs with --image FILE")
    if example:
        return settings.mask_source or "random"
    source = settings.mask_source or ("file" if settings.mask is not None else "occlusion")
    if source == "file" and settings.mask is None:
        raise UserError("--mask-source file: say where the hole is with --mask FILE (white = hidden)")
    if source != "file" and settings.mask is not None:
        raise UserError(f"--mask is given, but --mask-source is {source}: leave one of them out")
    return source


def build_completer(settings: config.Settings, source: str):
    """`engine.photo.PhotoCompleter` with the networks that the settings name. Raises UserError if one is missing."""
    from datasets.detection import Detector
    from engine import build
    from engine.photo import PhotoCompleter

    device = build.choose_device(settings)
    completion = build.build_completion(settings, device)
    return PhotoCompleter(completion, Detector(), device, source, settings.resolution[0], settings.manual_seed)


def complete_example(completer, folder: Path):
    """Complete the astronaut, the one photo that every installation has, and say so."""
    from datasets.faces import astronaut
    from engine.photo import write_pictures

    hole = "a fixed rectangle" if completer.source == "random" else "what the occlusion net finds"
    note(f"No --image and no folder {INPUTS}/: completing the example photo, scikit-image's astronaut (hole: {hole}).")
    result = completer.complete(astronaut(), EXAMPLE)
    write_pictures(result, folder)
    return result


def report(failures: Sequence[str], total: int) -> int:
    """List what failed; returns the exit status. A single photo's failure is an ordinary error."""
    if not failures:
        return 0
    if total == 1:
        raise UserError(failures[0])
    print(f"error: {len(failures)} of {total} photos could not be completed:", *failures, sep="\n  ", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(run_script(main))
