"""Train a part of 3DFaceFill, or evaluate face completion or a part of it (--eval).

    python main.py --config args.txt                    train on the built-in faces
    python main.py --config args.txt --eval             the tables: PSNR, SSIM, LPIPS by size of the hole
    python main.py --config args.txt --eval --stage encoder    a part alone: landmarks, or with occlusion the labels
    python main.py --config args_celeba.txt             the paper's recipe on CelebA
"""

from __future__ import annotations

import sys
from typing import Sequence

from utils import config
from utils.logging import run_script

FOR_PHOTOS = "it is test_my.py's; here faces come by --dataset-test Faces --dataroot DIR, holes by --mask-dir DIR"


def main(argv: Sequence[str]) -> None:
    """Parse the command line, then train or evaluate."""
    settings = config.parse(argv, "Train a part of 3DFaceFill (--stage), or evaluate face completion or a part of it "
                            "(--eval).")
    advice = {option.name: FOR_PHOTOS for option in config.OPTIONS[config.PHOTO_OPTIONS]} | {"mask": FOR_PHOTOS}
    if not settings.mask_dir:
        advice["mask_is_visible"] = "it says what the white of --mask-dir means: give --mask-dir DIR"
    if settings.dataset_test != "Synthetic":
        advice["test_count"] = ("it counts built-in faces; of a folder all are evaluated: copy a few into one of their "
                                "own")
    config.refuse_typed(argv, settings, advice)
    if settings.eval:
        _evaluate(settings)
    else:
        from engine.training import train

        train(settings)


def _evaluate(settings: config.Settings) -> None:
    if settings.stage == "encoder":
        from engine.landmark_evaluation import evaluate
    elif settings.stage == "occlusion":
        from engine.segmentation_evaluation import evaluate
    else:
        from engine.evaluation import evaluate
    evaluate(settings)


if __name__ == "__main__":
    sys.exit(run_script(main))
