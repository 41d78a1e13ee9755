"""Check that a unit compiles and links:

    python -m zbuffer.build            the CPU unit
    python -m zbuffer.build --cuda     the CUDA unit (skipped, with a message and status 0, if it cannot be built here)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from . import native


def main(arguments=None) -> int:
    """The command line above; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m zbuffer.build",
                                     description="Compile and link a unit of the rasterizer, as a check.")
    parser.add_argument("--cuda", action="store_true", help="the CUDA unit (else the CPU unit)")
    parser.add_argument("--output", help="keep the library in this folder (else it is thrown away)")
    options = parser.parse_args(arguments)
    unit = "cuda" if options.cuda else "cpu"
    problem = native.cuda_problem() if options.cuda else None
    if problem is not None:
        print(f"skipped: the CUDA unit is not compiled: {problem}")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.output or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            path = native.build(unit, folder)
        except native.BuildError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(f"compiled and linked {path.name} ({path.stat().st_size // 1024} KiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
