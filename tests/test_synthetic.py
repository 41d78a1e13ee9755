"""The generator of synthetic faces: determinism, and ground truth that agrees with the picture."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

from datasets.synthetic import CachedFaces, SyntheticFaces, write_cache
from datasets.synthetic import cache as cache_module
from datasets.synthetic import hands, occluders
from datasets.synthetic import lighting as synthetic_lighting
from datasets.synthetic.__main__ import main
from datasets.synthetic.atlas import HEIGHT, WIDTH, Atlas, rasterize
from datasets.synthetic.clothes import sample_outfit
from datasets.synthetic.coverings import balaclava, hair_strands
from datasets.synthetic.generator import FaceGenerator, Style, sample_identity, streams
from datasets.synthetic.lighting import sample_light
from datasets.synthetic.pose import Pose, crop_pose, euler_to_matrix, matrix_to_euler, sample_rotation
from datasets.synthetic.skin import sample_complexion
from datasets.synthetic.worn import STREAKS, Canvas, HairDo, Wardrobe, put_on
from utils import files
from utils.errors import UserError
from utils.logging import run_script

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {"image": (3, 256, 256), "labels": (256, 256), "shape": (228,), "scale": (), "pose": (5,), "light": (27,),
          "landmarks": (68, 2), "albedo": (3, 192, 256)}


def is_running(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def morphable():
    from datasets.definition import load_builtin
    from models.morphable import MorphableModel

    return MorphableModel(load_builtin())


@pytest.fixture(scope="module")
def clean_faces():
    faces = SyntheticFaces("test", 100, seed=3, clean=True)
    return [faces[index] for index in range(3)]


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]) if torch.is_tensor(value) else value == second[key], key


def test_items_have_the_documented_form():
    item = SyntheticFaces("train", 5)[1]
    for key, shape in SHAPES.items():
        assert tuple(item[key].shape) == shape, key
    for key in ("image", "labels", "albedo"):
        assert item[key].dtype == torch.uint8
    for key in ("shape", "scale", "pose", "light", "landmarks"):
        assert item[key].dtype == torch.float32
        assert torch.isfinite(item[key]).all()
    assert item["labels"].max() <= 2
    assert 0 < item["scale"] < 2e-3
    assert item["pose"].abs().max() < 1
    assert isinstance(item["name"], str) and isinstance(item["identity"], int)
    assert (item["labels"] == 0).float().mean() > 0.05


def test_items_do_not_depend_on_order_length_or_worker():
    faces = SyntheticFaces("train", 4, seed=1)
    forwards = [faces[0], faces[1]]
    backwards = SyntheticFaces("train", 1000, seed=1)
    assert_same(backwards[1], forwards[1])
    assert_same(backwards[0], forwards[0])
    np.random.seed(1)
    torch.manual_seed(1)
    assert_same(faces[1], forwards[1])
    loader = torch.utils.data.DataLoader(torch.utils.data.Subset(faces, [0, 1]), batch_size=None, num_workers=1,
                                         multiprocessing_context="spawn")
    for item, expected in zip(loader, forwards):
        assert_same(item, expected)


def test_splits_and_seeds_are_different_people():
    people = np.stack([sample_identity(streams(seed, split, index)["identity"])
                       for seed in (0, 1) for split in ("train", "val", "test") for index in range(50)])
    assert len(np.unique(people, axis=0)) == len(people)
    numbers = [SyntheticFaces(split, 2)[1]["identity"] for split in ("train", "val", "test")]
    assert len(set(numbers)) == 3
    assert 0.8 < people.std() < 1.2


def test_vertices_project_onto_the_landmarks(morphable, clean_faces):
    from models.renderer import project

    for item in clean_faces:
        with torch.no_grad():
            vertices = morphable.vertices(item["shape"][None])
            placed = project(vertices, item["scale"][None], item["pose"][None], offset=16)[0]
        marks = placed[torch.as_tensor(np.asarray(morphable.landmarks)).long()][:, [1, 0]]
        assert (marks - item["landmarks"]).abs().max() < 0.1


def test_labels_cover_the_rendered_mesh(morphable, clean_faces):
    import zbuffer
    from models.renderer import project

    for item in clean_faces:
        with torch.no_grad():
            vertices = morphable.vertices(item["shape"][None])
            placed = project(vertices, item["scale"][None], item["pose"][None], offset=16)
            mesh = zbuffer.rasterize(placed, torch.as_tensor(np.asarray(morphable.triangles)).int(), (256, 256)).mask[0]
        face = item["labels"] == 0
        assert not (item["labels"] == 1).any()
        assert (face & ~mesh).sum() < 0.01 * face.sum() + 0.01 * mesh.sum()
        assert (face & mesh).sum() > 0.9 * mesh.sum()


def test_clean_picture_is_albedo_times_shade(morphable, clean_faces):
    from models.lighting import shade
    from models.renderer import Renderer, project, vertex_normals

    import zbuffer

    for item in clean_faces:
        with torch.no_grad():
            vertices = morphable.vertices(item["shape"][None])
            placed = project(vertices, item["scale"][None], item["pose"][None], offset=16)
            raster = zbuffer.rasterize(placed, torch.as_tensor(np.asarray(morphable.triangles)).int(), (256, 256))
            albedo = Renderer(morphable).render(item["albedo"][None].float() / 255, raster)[0]
            rotated = placed.clone()
            rotated[..., 0], rotated[..., 1] = -placed[..., 0], placed[..., 1]
            space = torch.stack([rotated[..., 1], rotated[..., 0], placed[..., 2] * item["scale"]], dim=-1)
            triangles = torch.as_tensor(np.asarray(morphable.triangles)).long()
            normals = zbuffer.interpolate(vertex_normals(space, triangles), triangles.int(), raster)
            light = shade(torch.nn.functional.normalize(normals, dim=-1), item["light"][None])[0].permute(2, 0, 1)
        inner = torch.nn.functional.max_pool2d((item["labels"] != 0).float()[None, None], 13, 1, 6)[0, 0] == 0
        expected = (albedo * light.clamp(min=0.12)).clamp(max=1)  # a bright picture is clipped at white
        difference = (expected - item["image"].float() / 255).abs()[:, inner]
        assert difference.mean() < 0.012
        assert difference.quantile(0.95) < 0.05


def test_light_is_the_models_light():
    from models.lighting import shade

    rng = np.random.default_rng(0)
    normals = rng.standard_normal((50, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    light = synthetic_lighting.sample_light(rng).vector
    expected = shade(torch.from_numpy(normals)[None], torch.from_numpy(light)[None])[0].numpy()
    np.testing.assert_allclose(synthetic_lighting.shade(normals, light), expected, atol=1e-5)


def test_a_directional_light_comes_from_its_side():
    light = np.tile(synthetic_lighting.directional(synthetic_lighting.from_angles(1.0, 0.0), 1.0), 3)
    right, left = synthetic_lighting.shade(np.float32([[1, 0, 0], [-1, 0, 0]]), light)[:, 0]
    assert right > 0.7 > 0.1 > left


def test_pose_of_the_crop_centres_the_face():
    atlas = Atlas.load()
    marks = atlas.mean_vertices[atlas.head.landmarks].astype(np.float64)
    rng = np.random.default_rng(0)
    eyes = []
    for _ in range(300):
        pose = crop_pose(rng, marks, sample_rotation(rng))
        if pose is not None:
            np.testing.assert_allclose(euler_to_matrix(pose.angles), pose.rotation, atol=1e-9)
            np.testing.assert_allclose(matrix_to_euler(pose.rotation), pose.angles, atol=1e-9)
            placed = pose.project(marks)
            eyes.append(placed[36:48, :2].mean(axis=0))
    assert len(eyes) > 280
    row, column = np.mean(eyes, axis=0)
    assert 105 < row < 127 and 122 < column < 133


def test_without_occluders_nothing_but_hair_hides_the_face():
    faces = SyntheticFaces("val", 100, occluders=False)
    hidden = [(faces[index]["labels"] == 1).float().mean().item() for index in range(6)]
    assert np.mean(hidden) < 0.03


def dressed(hair: int, **changes):
    """(coverage by a hair style, canvas with it) of the mean head from in front; changes: of how it is worn."""
    atlas, wardrobe = Atlas.load(), Wardrobe.load()
    pose = Pose(0.9e-3, np.eye(3), np.array([112.0, 112.0]), np.zeros(3))
    vertices, light = atlas.mean_vertices, sample_light(np.random.default_rng(0), False)
    depth = rasterize(pose.project(vertices, 1.0), atlas.head.triangles, (256, 256), cull=True)[1]
    empty = np.zeros((256, 256), bool)
    canvas = Canvas(np.ones((256, 256, 3), np.float32), depth, empty, empty, empty)
    where = (vertices.mean(axis=0), pose, 1.0, light)
    worn = wardrobe.layers["hair"][hair]
    do = HairDo(**{**dict(mirrored=False, volume=1.0, length=1.0, alpha_cut=0.2, second=np.float32([1, 1, 1]),
                          streaks=np.zeros(STREAKS, np.float32)), **changes})
    cover = put_on(canvas, worn, do.positions(worn.layer, atlas.head, vertices), *where, np.float32([0, 0, 0]), do)
    return cover, canvas


def test_behind_hair_there_is_hair_and_no_skin():
    """What is transparent at the front of an afro shows more of it."""
    style = next(number for number, worn in enumerate(Wardrobe.load().layers["hair"]) if worn.layer.name == "afro01")
    cover, _ = dressed(style)
    inside = ndimage.binary_erosion(ndimage.binary_fill_holes(cover > 0.5), iterations=6)
    crown = inside & (np.arange(256) < 60)[:, None]
    assert crown.sum() > 1000 and (cover[crown] > 0.5).mean() > 0.97


def test_one_person_wears_a_style_otherwise_than_another():
    style = next(number for number, worn in enumerate(Wardrobe.load().layers["hair"]) if worn.layer.name == "bob01")
    as_made, mirrored = (dressed(style, mirrored=side)[0] > 0.5 for side in (False, True))
    assert (as_made != mirrored[:, ::-1]).mean() < 0.02 < (as_made != mirrored).mean()
    lower = np.arange(256)[:, None] > 150
    assert ((dressed(style, length=0.5)[0] > 0.5) & lower).sum() < 0.7 * (as_made & lower).sum()
    assert (dressed(style, volume=1.3)[0] > 0.5).sum() > as_made.sum()
    assert (dressed(style, alpha_cut=0.6)[0] > 0.5).sum() < as_made.sum() - 100
    streaked = dressed(style, streaks=np.ones(STREAKS, np.float32))[1].picture
    assert streaked[as_made].mean() > dressed(style)[1].picture[as_made].mean() + 0.1


@pytest.fixture
def green_hat(monkeypatch):
    """(where a hat as bright green as nothing else is seen, labels), of the index-th face with a hair style."""
    generator = FaceGenerator.load()
    hat = generator.wardrobe.layers["hat"][0]
    green = replace(hat, texture=np.float32([0, 9, 0, 0]) + hat.texture * np.float32([0, 0, 0, 1]))
    monkeypatch.setitem(generator.wardrobe.layers, "hat", [green])
    outfit = sample_outfit(np.random.default_rng(0))

    def render(index: int, hair: int = -1, occluders: bool = False):
        rng = streams(5, "train", index)
        vertices, pose = generator._pose(rng, sample_identity(rng["identity"]))[1::2]
        light, complexion = sample_light(rng["light"], False), sample_complexion(rng["skin"], generator.atlas, False)
        picture, labels = generator._picture(rng, vertices, pose, np.zeros((HEIGHT, WIDTH, 4), np.float32), complexion,
                                             light, Style(hair, 0, -1, 0.0, outfit), occluders, False)
        return picture[..., 1] > 1, labels

    return render


def test_no_hair_comes_through_a_hat(green_hat):
    for index in range(3):
        alone = green_hat(index)[0]
        assert alone.sum() > 3000 and all(green_hat(index, hair)[0][alone].mean() > 0.98 for hair in (0, 2))


@pytest.mark.parametrize("beneath", [balaclava, hair_strands])
def test_a_hat_is_worn_over_what_covers_the_head(green_hat, monkeypatch, beneath):
    monkeypatch.setattr("datasets.synthetic.generator.sample_occluders", lambda rng, scene: [beneath(rng, scene)])
    for index in range(3):
        alone, bare = green_hat(index)
        seen, labels = green_hat(index, occluders=True)
        assert seen[alone].mean() > 0.98 and (labels == bare)[alone].mean() > 0.98  # not at its edge
        assert (labels != bare).any()  # below the hat


def test_strands_of_hair_are_beneath_a_balaclava(monkeypatch):
    """And over a medical mask; whatever order the seed drew them in."""
    kinds = {name: lambda rng, scene, name=name: name for name in ("balaclava", "medical_mask", "hair_strands")}
    monkeypatch.setattr(occluders, "OCCLUDERS", tuple((name, make, 1 / 3) for name, make in kinds.items()))
    drawn = {tuple(occluders.sample_occluders(np.random.default_rng(seed), None)) for seed in range(200)}
    assert {pair for pair in drawn if len(pair) == 2} == {
        ("hair_strands", "balaclava"), ("medical_mask", "hair_strands"), ("balaclava", "medical_mask")}


def test_hands_have_four_fingers_and_no_arm_wider_than_they_are(monkeypatch):
    """Measured across the forearm's axis, in eye distances; a palm may be widened by its thumb."""
    limbs, seen = [], []
    raise_limb = hands._capsule_relief
    monkeypatch.setattr(hands, "_capsule_relief", lambda *limb: limbs.append(limb[1:3]) or raise_limb(*limb))
    monkeypatch.setattr(hands, "_skin_patch", lambda rng, scene, *drawn: drawn)
    scene = SimpleNamespace(size=1000, eye_distance=80.0, landmarks=np.full((68, 2), 500.0))
    for seed in range(40):
        limbs.clear()
        height, _, nails, unit = hands.hand(np.random.default_rng(seed), scene)
        forearm = max(limbs, key=lambda limb: np.hypot(*(limb[1] - limb[0])))
        wrist, elbow = sorted(forearm, key=lambda end: np.hypot(*(end - 500)))
        forward = (wrist - elbow) / np.hypot(*(wrist - elbow))
        away = (np.argwhere(height > 0.3)[:, ::-1] - wrist) / unit
        along, across = away @ forward, away @ [-forward[1], forward[0]]
        arm, palm = (np.ptp(across[np.abs(along - place) < 0.05]) for place in (-0.3, 1.0))
        seen.append(len(nails))
        assert 0.8 < arm < 1.1 and 1.1 < palm < 2, seed
    assert set(seen) == {0, 1, 2, 4}  # loosely closed, pointing with one finger or two, flat


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setattr(cache_module, "SHARD", 2)
    write_cache(folder, "train", 3, seed=5, progress=False)
    yield folder
    patch.undo()


def test_cache_equals_rendering(small_cache):
    cached, direct = CachedFaces(small_cache), SyntheticFaces("train", 3, seed=5)
    assert len(cached) == 3
    for index in (0, 2):
        assert_same(cached[index], direct[index])


def test_a_cache_that_is_read_holds_no_file_open(small_cache):
    cached = CachedFaces(small_cache)
    before = len(os.listdir("/dev/fd"))
    assert len({cached[index]["name"] for index in range(len(cached))}) == 3
    assert len(os.listdir("/dev/fd")) == before


def test_cache_is_resumed(small_cache, monkeypatch):
    kept = (small_cache / "shard_00000" / "image.npy").stat().st_mtime_ns
    settings = json.loads((small_cache / "cache.json").read_text())
    rendered = []
    original = cache_module._render_chunk
    monkeypatch.setattr(cache_module, "_render_chunk", lambda task: rendered.append(task[3:5]) or original(task))
    write_cache(small_cache, "train", 4, seed=5, progress=False)
    assert rendered == [(2, 4)]
    assert (small_cache / "shard_00000" / "image.npy").stat().st_mtime_ns == kept
    assert len(CachedFaces(small_cache)) == 4 and settings["count"] == 3
    write_cache(small_cache, "train", 2, seed=5, progress=False)
    assert rendered == [(2, 4)]
    assert_same(CachedFaces(small_cache)[3], SyntheticFaces("train", 4, seed=5)[3])


HOLD = """
import sys, time
from utils import files
with files.held(sys.argv[1], "another writer of faces", "wait"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_faces_of_two_generators_do_not_mix(small_cache, monkeypatch):
    monkeypatch.setattr(cache_module, "generator_digest", lambda: "0123456789abcdef")
    with pytest.raises(UserError, match="another version of the generator"):
        write_cache(small_cache, "train", 5, seed=5, progress=False)
    assert len(CachedFaces(small_cache)) >= 3


def test_two_writers_of_one_cache_do_not_mix(tmp_path, monkeypatch):
    """The second is refused before it changes anything; once the first is gone, however it ended, it may write."""
    monkeypatch.setattr(cache_module, "SHARD", 1)
    folder = tmp_path / "cache"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by another writer of faces .process {first.pid}"):
            write_cache(folder, "train", 1, progress=False)
        assert [path.name for path in folder.iterdir()] == [files.LOCK_FILE]
    finally:
        first.kill()
        first.communicate()
    write_cache(folder, "train", 1, progress=False)
    assert {path.name for path in folder.iterdir()} == {"cache.json", "shard_00000"}
    assert len(CachedFaces(folder)) == 1


def die(task):
    """In place of rendering: what the system does to a process for lack of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_ends_the_writing_in_one_line(tmp_path, monkeypatch):
    def hang(number, frame):
        raise TimeoutError

    monkeypatch.setattr(cache_module, "_render_chunk", die)
    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(120)
    try:
        with pytest.raises(UserError, match="died.*run the command again.*--num-workers"):
            write_cache(tmp_path, "train", 1, num_workers=1, progress=False)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_workers_end_with_a_writer_that_is_killed(tmp_path):
    command = [sys.executable, "-m", "datasets.synthetic", "--output", str(tmp_path), "--count", "200"]
    writer = subprocess.Popen([*command, "--num-workers", "1"], cwd=ROOT, stderr=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL)
    workers = lambda: [int(line) for line in Path(f"/proc/{writer.pid}/task/{writer.pid}/children").read_text().split()]
    while not list(tmp_path.glob("*.partial/image.npy")):
        time.sleep(0.1)
    time.sleep(2)
    started = workers()
    writer.kill()
    writer.wait()
    deadline = time.monotonic() + 20
    while any(is_running(worker) for worker in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert started and not any(is_running(worker) for worker in started)


def test_workers_render_what_the_main_process_renders(small_cache, tmp_path):
    write_cache(tmp_path, "train", 3, seed=5, num_workers=2, progress=False)
    for index in range(3):
        assert_same(CachedFaces(tmp_path)[index], CachedFaces(small_cache)[index])


def test_a_full_disk_is_met_before_a_shard_is_rendered(tmp_path, monkeypatch, capsys):
    def full(file, start, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(cache_module, "_render_chunk", lambda task: pytest.fail("a face was rendered"))
    command = ["--output", str(tmp_path), "--count", "1", "--num-workers", "0"]
    assert run_script(main, command) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"error: cannot write .*image.npy: No space left on device; make room.*", message)


def test_cache_refuses_what_does_not_fit(small_cache, tmp_path):
    with pytest.raises(UserError, match="other settings"):
        write_cache(small_cache, "train", 4, seed=6, progress=False)
    with pytest.raises(UserError, match="must not be negative"):
        write_cache(tmp_path, "train", 4, seed=-1, progress=False)
    with pytest.raises(UserError, match="python -m datasets.synthetic"):
        CachedFaces(tmp_path)
    with pytest.raises(UserError, match="fewer than the 9"):
        CachedFaces(small_cache, length=9)
    with pytest.raises(UserError, match="train, val, test"):
        SyntheticFaces("dev", 3)
    with pytest.raises(IndexError):
        SyntheticFaces("train", 3)[3]
