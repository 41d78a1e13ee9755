"""Evaluation by several processes: what is written is what one process writes."""
from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine_samples import SmallEncoder, SmallFaces, SmallInpainter, SmallOcclusion, settings, small_definition

from engine import build, distributed, evaluation, landmark_evaluation, segmentation_evaluation
from engine.distributed import World
from engine.encoder_stage import Geometry
from models import weights
from models.completion import FaceCompletion
from models.morphable import MorphableModel
from utils.errors import UserError
from utils.images import write_image

FACES = 11  # more than a batch of either process
WITHOUT_MASK = (2, 5)  # one of each process
SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from test_evaluation_shares import evaluate_all
evaluate_all(Path({masks!r}), Path({out!r}))
"""


class FirstFaces(SmallFaces):
    """Faces that know their names, of which one could not be read."""

    unreadable = {"broken": "broken.png is empty"}


def evaluate_all(masks: Path, out: Path) -> None:
    """All three evaluations with small networks; the first has faces without a mask, which it reports in the end."""
    torch.manual_seed(0)
    definition = small_definition()
    model, encoder, occlusion = MorphableModel(definition), SmallEncoder().eval(), SmallOcclusion().eval()
    geometry = Geometry(model, definition.coefficient_parity, definition.coefficient_mean, definition.coefficient_std)
    completion = FaceCompletion(encoder, SmallInpainter(), model, occlusion, iterations=1).eval()
    build.build_completion = lambda settings, device: completion
    build.build_test_data = lambda settings: FirstFaces(FACES)
    build.build_encoder = lambda settings, device: (encoder, geometry)
    evaluation.open_lpips = lambda path, device: (
        lambda output, truth: float(np.abs(output / 255 - truth / 255).mean()), None)
    weights.load_occlusion = lambda path: (occlusion, {})
    distributed.leave = lambda world: None  # one group of processes for all three
    common = {"ngpu": 0, "nthreads": 0, "log_type": "none"}
    try:
        evaluation.evaluate(settings(**common, output=str(out / "faces"), mask_dir=str(masks), save_landmarks=True))
    except UserError as error:
        (out / "message.txt").write_text(str(error))
    for evaluate, stage in ((landmark_evaluation.evaluate, "encoder"), (segmentation_evaluation.evaluate, "occlusion")):
        try:
            evaluate(settings(**common, output=str(out / stage), stage=stage))
        except UserError as error:
            (out / f"{stage}.txt").write_text(str(error))


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_shares_are_disjoint_and_together_all(size):
    worlds = [World(rank, size, torch.device("cpu")) for rank in range(size)]
    shares = [[item["name"] for item in map(world.share(SmallFaces(FACES)).__getitem__,
                                            range(len(world.share(SmallFaces(FACES)))))] for world in worlds]
    assert sorted(sum(shares, [])) == sorted(f"face_{index}" for index in range(FACES))
    for world, share in zip(worlds, shares):
        assert [f"face_{place}" for place in world.places(0, len(share))] == share
        assert list(world.places(1, 2)) == list(world.places(0, 3))[1:]


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path):
    """Tables, pictures, landmarks, what was skipped and the message at the end, of all three evaluations."""
    for index in set(range(FACES)) - set(WITHOUT_MASK):
        mask = np.zeros((256, 256), np.uint8)
        mask[90:180, 60 + 5 * index:170] = 255
        write_image(tmp_path / "masks" / f"face_{index}.png", mask)
    tests = Path(__file__).parent
    starts = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]}
    for name, start in starts.items():
        (tmp_path / name).mkdir()
        script = tmp_path / f"{name}.py"
        script.write_text(SCRIPT.format(root=str(tests.parent), tests=str(tests), masks=str(tmp_path / "masks"),
                                        out=str(tmp_path / name)))
        subprocess.run([sys.executable, *start, str(script)], check=True, timeout=300,
                       env={**os.environ, "OMP_NUM_THREADS": "1"})
    one, two = ({str(path.relative_to(tmp_path / name)): path
                 for path in (tmp_path / name).rglob("*") if path.is_file()} for name in starts)
    assert one.keys() == two.keys() and len(one) > 2 * FACES
    assert "3 of 12 images were skipped" in one["message.txt"].read_text()
    for name in one:
        contents = [paths[name].read_bytes() for paths in (one, two)]
        if name.endswith(".json"):
            contents = [{**json.loads(content), "seconds": 0, "settings": 0} for content in contents]
        if name.startswith("encoder"):  # whose convolutions round differently in batches of other sizes
            continue
        assert contents[0] == contents[1], name
    rows = [list(csv.DictReader(paths["encoder/landmarks.csv"].open())) for paths in (one, two)]
    assert [row["name"] for row in rows[0]] == [row["name"] for row in rows[1]]
    for first, second in zip(*rows):
        for column in ("ratio", "nme", "nme_inner", "nme_hole", "nme_inner_hole"):
            assert float(first[column]) == pytest.approx(float(second[column]), abs=1e-4)
