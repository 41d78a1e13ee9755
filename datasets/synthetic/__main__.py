"""Write a cache of synthetic faces, or a contact sheet of them: python -m datasets.synthetic --help."""

from __future__ import annotations

import argparse
import sys
from typing import Sequence

from utils.logging import run_script


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m datasets.synthetic", description=__doc__.split(":")[0])
    parser.add_argument("--output", metavar="DIR", help="folder of the cache; an interrupted run is continued")
    parser.add_argument("--split", default="train", choices=("train", "val", "test"))
    parser.add_argument("--count", type=int, default=20000, help="number of faces")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-workers", type=int, default=2, help="processes; 0 renders in this one")
    parser.add_argument("--no-occluders", action="store_true", help="nothing in front of the faces")
    parser.add_argument("--no-albedo", action="store_true", help="leave out the UV albedo (a third of the size)")
    parser.add_argument("--sheet", metavar="PNG", help="write a contact sheet of the first 48 faces instead")
    parser.add_argument("--beside", metavar="DIR",
                        help="with --sheet: 64 faces beside 64 aligned real ones of a folder")
    arguments = parser.parse_args(argv)
    if not arguments.output and not arguments.sheet:
        parser.error("give --output DIR for a cache or --sheet PNG for a contact sheet")
    if arguments.beside and not arguments.sheet:
        parser.error("--beside DIR needs --sheet PNG")
    return arguments


def main(argv: Sequence[str]) -> None:
    """Write what the command line names."""
    arguments = parse_arguments(argv)

    from .cache import write_cache
    from .dataset import SyntheticFaces
    from .sheet import beside_real, contact_sheet

    if arguments.sheet:
        faces = SyntheticFaces(arguments.split, 64, arguments.seed, not arguments.no_occluders)
        if arguments.beside:
            from datasets.faces import FolderFaces
            beside_real(faces, FolderFaces(arguments.beside), arguments.sheet)
        else:
            contact_sheet(faces, arguments.sheet)
    if arguments.output:
        write_cache(arguments.output, arguments.split, arguments.count, arguments.seed, not arguments.no_occluders,
                    not arguments.no_albedo, arguments.num_workers)


if __name__ == "__main__":
    sys.exit(run_script(main))
