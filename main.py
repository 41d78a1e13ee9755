"""Train a part of 3DFaceFill, or evaluate face completion (--eval).

    python main.py --config args.txt                    train on the built-in faces
    python main.py --config args.txt --eval             the tables: PSNR, SSIM, LPIPS by size of the hole
    python main.py --config args_celeba.txt             the paper's recipe on CelebA
"""

from __future__ import annotations

import sys
from typing import Sequence

from utils import config
from utils.logging import run_script


def main(argv: Sequence[str]) -> None:
    """Parse the command line, then train or evaluate."""
    settings = config.parse(argv, "Train a part of 3DFaceFill (--stage), or evaluate face completion (--eval).")
    if settings.eval:
        from engine.evaluation import evaluate

        evaluate(settings)
    else:
        from engine.training import train

        train(settings)


if __name__ == "__main__":
    sys.exit(run_script(main))
