"""Complete the faces in your own photos.

    python test_my.py --config args.txt                                 every photo in inputs/, else an example photo
    python test_my.py --config args.txt --image FILE|FOLDER             what hides the face is found by itself
    python test_my.py --config args.txt --image FILE --mask MASK        white marks the hidden pixels of the photo
    python test_my.py --config args.txt --image FILE --region eyes      a part of the face is hidden

Writes output/NAME/ (see engine/photo_pictures.py for the pictures). Earlier results of the same photo are replaced, but
a run over a folder leaves out the photos that an earlier run completed from the same (--overwrite: completes them
again). What belongs to another photo of that name is replaced with --overwrite alone.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Iterable, Mapping, Sequence

from utils import config, files
from utils.errors import UserError
from utils.logging import note, progress, run_script

INPUTS = Path("inputs")
OUTPUT = "output"
EXAMPLE = "astronaut"
EXAMPLE_REGION = "lower"  # what is hidden of the example, if nothing else is said


def main(argv: Sequence[str]) -> int:
    """Complete the photos that the command line names; the exit status is 1 if any of them failed."""
    settings = config.parse(argv, "Complete the faces in your own photos; results go to output/NAME/.")
    advice = {"mask_dir": "it is of main.py --eval; give the photos' masks with --mask DIR"}
    if settings.mask is None:
        advice["mask_is_visible"] = "it says what the white of --mask means: give --mask FILE"
    config.refuse_typed(argv, settings, advice)
    example = settings.image is None and not INPUTS.is_dir()
    if example and settings.region is None and settings.mask_source is None:
        settings = settings.replace(region=EXAMPLE_REGION)
    source = choose_source(settings, example)
    photos = {} if example else find_photos(settings.image or INPUTS)
    output = Path(settings.output or OUTPUT)
    with files.held(output, "another run", "wait for it, or choose another --output"):
        return complete_photos(settings, source, photos, output)


def complete_photos(settings: config.Settings, source: str, photos: Mapping[str, Path], output: Path) -> int:
    """Complete photos, or without any the example, into the held folder `output`; returns the exit status."""
    from engine import build
    from engine.given_faces import GivenFaces
    from engine.photo import build_completer
    from engine.photo_folder import RECORD, Job, complete_all, find_earlier, summary

    mask = Path(settings.mask) if settings.mask is not None else None
    landmarks = GivenFaces(settings.landmarks) if settings.landmarks is not None else None
    options = choose_options(settings, source)
    job = Job(mask, settings.mask_is_visible, landmarks, settings.save_landmarks, settings.save_mesh)
    folder = Path(settings.image or INPUTS).is_dir()
    earlier = {}
    if folder and not settings.overwrite and any((output / name / RECORD).is_file() for name in photos):
        # Loading the networks takes seconds, which are lost if nothing is left to do.
        job = replace(job, signature=signature(settings, build.load_morphable(settings)))
        earlier = find_earlier(photos, output, options, job, settings.log_type)
    left = {name: path for name, path in photos.items() if name not in earlier}
    outcomes = list(earlier.values())
    if left or not photos:
        completer = build_completer(settings, options)
        if job.signature is None:
            job = replace(job, signature=signature(settings, completer.completion.morphable))
        if not photos:
            complete_example(completer, files.output_folder(output, EXAMPLE), job, settings.overwrite)
            return 0
        outcomes += complete_noting(complete_all(
            completer, left, output, job, min(settings.nthreads, len(left)) if folder else 1, keep_going=folder,
            overwrite=settings.overwrite), len(left), settings.log_type)
    outcomes.sort(key=lambda outcome: list(photos).index(outcome.name))
    if folder:
        note(summary(outcomes))
    if settings.report and any(outcome.status != "failed" for outcome in outcomes):
        from engine.photo_report import write_report

        note(f"before and after: {write_report(outcomes, output / 'report.html')}")
    return report([outcome.error for outcome in outcomes if outcome.status == "failed"], len(photos))


def complete_noting(work: Iterable, total: int, log_type: str) -> list:
    """The outcomes of the work on so many photos, with a line for each that is completed."""
    outcomes = []
    for outcome in progress(work, "photos", total, log_type if total > 1 else "none"):
        outcomes.append(outcome)
        if outcome.status == "done":
            note("; ".join([f"{outcome.path} -> {outcome.folder}/complete_output.png", *outcome.remarks]))
    return outcomes


def find_photos(path: str | Path) -> dict[str, Path]:
    """Photos by the name of their results' folder: one file, or all pictures directly inside a folder.

    A name is the file's without suffix, with it ("a_png") where two files differ in nothing else (or in upper and lower
    case, which some file systems do not tell apart), and always one that a folder can have (`utils.files.safe_name`).
    Says how much of a folder is left out. Raises UserError if there is nothing.
    """
    from utils.images import list_images

    path = Path(path)
    if not path.is_dir():
        if not os.path.exists(path):
            raise UserError(f"{path} does not exist: give --image a photo or a folder of photos")
        return {files.safe_name(path.stem): path}
    paths = list_images(path)
    if not paths:
        raise UserError(f"{path} holds no pictures: put photos (.jpg, .png, ...) there, or name one with --image")
    others = [entry.is_dir() for entry in set(path.iterdir()) - set(paths) if not entry.name.startswith(".")]
    if others:
        note(f"{path}: {sum(others)} subfolders and {len(others) - sum(others)} files not named as pictures are left "
             "out")
    stems = Counter(photo.stem.casefold() for photo in paths)
    photos: dict[str, Path] = {}
    taken: set[str] = set()
    for photo in paths:
        alone = stems[photo.stem.casefold()] == 1
        name = files.safe_name(photo.stem if alone else photo.name.replace(".", "_"))
        while name.casefold() in taken:  # a.png, a.jpg and a_png.gif
            name += "_"
        taken.add(name.casefold())
        photos[name] = photo
    return photos


def choose_source(settings: config.Settings, example: bool) -> str:
    """`engine.photo.PhotoOptions.source`: where holes come from besides --mask and --region.

    The example photo has nothing in front of its face, so that main names a region of it. Raises UserError for options
    that contradict each other.
    """
    for option, value in (("--mask", settings.mask), ("--landmarks", settings.landmarks)):
        if example and value is not None:
            raise UserError(f"{option}: say to which photo it belongs with --image FILE")
    if example and settings.report:
        raise UserError("--report: say of which photos with --image FILE or FOLDER")
    if settings.mask_source == "file" and settings.mask is None:
        raise UserError("--mask-source file: say where the hole is with --mask FILE (white = hidden)")
    if settings.mask_source == "random" and settings.mask is not None:
        raise UserError("--mask is given, but --mask-source is random: leave one of them out")
    if settings.mask_source is None:
        return "auto"
    return "given" if settings.mask_source == "file" else settings.mask_source


def signature(settings: config.Settings, morphable) -> list:
    """What of the networks decides about a result: their settings, what they compute in, a digest of the morphable
    model, and size and time of the weights' files."""
    from engine.build import completion_dtype

    model = hashlib.sha256()
    for table in morphable.buffers():
        model.update(table.cpu().contiguous().numpy())
    named = [getattr(settings, name) for name in config.network_files()]
    weights = [Path(name) for name in named if name is not None]
    return [[getattr(settings, option.name) for option in config.OPTIONS["Networks"]],
            str(completion_dtype(settings)), model.hexdigest(),
            [[file.stat().st_size, file.stat().st_mtime_ns] for file in weights if file.is_file()]]


def choose_options(settings: config.Settings, source: str):
    """The settings as `engine.photo.PhotoOptions`. Raises UserError for options that contradict each other."""
    from engine.holes import parse_regions
    from engine.photo import PhotoOptions

    if settings.face is not None and settings.all_faces:
        raise UserError("--face and --all-faces contradict each other: leave one of them out")
    return PhotoOptions(source, parse_regions(settings.region), settings.face, settings.all_faces, settings.min_face,
                        settings.background, settings.resolution[0], settings.manual_seed, settings.hair)


def complete_example(completer, folder: Path, job, overwrite: bool) -> None:
    """Complete the astronaut, the one photo that every installation has, and say so."""
    from datasets.faces import astronaut
    from engine.photo_folder import Source, refuse_another, write_result

    source = Source("scikit-image's astronaut", "")
    refuse_another(folder, source, overwrite)
    hole = {"random": "a fixed rectangle", "occlusion": "what the occlusion net finds"}
    regions = ", ".join(completer.options.regions)
    note(f"No --image and no folder {INPUTS}/: completing the example photo, scikit-image's astronaut "
         f"(hole: {hole.get(completer.options.source, regions)}).")
    result = completer.complete(astronaut(), EXAMPLE)
    write_result(result, folder, source, job)
    note("; ".join([f"{EXAMPLE} -> {folder}/complete_output.png", *result.remarks]))


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
