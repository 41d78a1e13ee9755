"""Reading and writing the morphable model's definition."""
from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import golden_fill
import numpy as np
import pytest
import torch

from datasets import definition as definitions
from models.morphable import MorphableModel
from utils.errors import UserError

TRIANGLES, VERTICES = 1450, 780
FLOAT_FILES = ("3DMM_shape_basis.dat", "3DMM_exp_basis.dat", "vertices_2d_u.dat", "vertices_2d_v.dat",
               "3DMM_tri_2d_barycoord.dat")
INDEX_FILES = ("3DMM_tri.dat", "3DMM_vertex_tri.dat", "3DMM_tri_2d.dat", "3DMM_keypoints.dat")


@pytest.fixture(scope="module")
def loaded():
    """What the original loaders return for the synthetic folder."""
    return np.load(golden_fill.GOLDEN / "loaders.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A synthetic 3DMM_definition of a 26 x 30 grid mesh, byte for byte the one the golden numbers come from."""
    folder = tmp_path_factory.mktemp("published") / "3DMM_definition"
    write_published(folder)
    return folder


def write_published(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tables = np.load(golden_fill.GOLDEN / "tables.npz")
    vertex_tri = definitions.vertex_triangles(tables["tri"].T - 1, VERTICES) + 1
    identity = [tables["mesh_mean"].reshape(1, -1),
                np.float32(0.02) * golden_fill.normal("basis/shape", (199, 3 * VERTICES))]
    expression = [np.float32(50) * golden_fill.normal("basis/expmean", (1, 3 * VERTICES)),
                  np.float32(0.02) * golden_fill.normal("basis/exp", (29, 3 * VERTICES))]
    for name, array, dtype in (
            ("3DMM_tri", tables["tri"], "<i4"), ("3DMM_vertex_tri", vertex_tri, "<i4"),
            ("3DMM_tri_2d", tables["tri_2d"], "<i4"), ("3DMM_keypoints", tables["keypoints"], "<i4"),
            ("3DMM_tri_2d_barycoord", tables["tri_2d_barycoord_256"] / 256, "<f4"),
            ("vertices_2d_u", tables["vertices_2d_u"], "<f4"), ("vertices_2d_v", tables["vertices_2d_v"], "<f4"),
            ("3DMM_shape_basis", np.concatenate(identity), "<f4"),
            ("3DMM_exp_basis", np.concatenate(expression), "<f4"),
            ("3DMM_const_alb_mask", tables["const_alb_mask"], "u1")):
        np.ascontiguousarray(array, dtype=dtype).tofile(folder / f"{name}.dat")
    np.save(folder.parent / "shape_para_mean.npy", np.float32(1000) * golden_fill.normal("para/mean", (228,)))
    spread = np.float32(1) + np.float32(0.1) * np.abs(golden_fill.normal("para/std", (228,)))
    np.save(folder.parent / "shape_para_std.npy", np.float32(2000) * spread)


def assert_same(first: definitions.Definition, second: definitions.Definition) -> None:
    for name in ("triangles", "mean", "identity_basis", "expression_basis", "coefficient_mean", "coefficient_std",
                 "vertex_uv", "uv_triangle", "uv_barycentrics", "landmarks", "equal_albedo_pairs"):
        expected, found = getattr(first, name), getattr(second, name)
        assert (expected is None) == (found is None), name
        if expected is not None:
            assert expected.dtype == found.dtype and expected.shape == found.shape, name
            assert np.array_equal(expected, found), name


def test_synthetic_folder_is_the_golden_one(folder):
    for name, digest in json.loads((golden_fill.GOLDEN / "dat_sha256.json").read_text()).items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


def test_original_loader_matches_published_loaders(folder, loaded):
    model = definitions.load(folder)
    none_as_count = np.where(model.uv_triangle < 0, TRIANGLES, model.uv_triangle)
    assert np.array_equal(model.triangles.T, loaded["load/tri"][:, :-1])
    assert np.array_equal(none_as_count.reshape(-1), loaded["renderer/tri_2d"])
    assert np.array_equal(model.vertex_uv[:, 0], loaded["renderer/vt2pixel_u"][:-1])
    assert np.array_equal(model.vertex_uv[:, 1], loaded["renderer/vt2pixel_v"][:-1])
    assert np.array_equal(model.landmarks, loaded["load/kpts"][:, 0])
    assert np.array_equal(model.mean.reshape(-1), loaded["load/mu_shape"] + loaded["load/mu_exp"])
    assert np.array_equal(model.identity_basis.reshape(199, -1)[:3, :30].T, loaded["load/w_shape_head"][:, :3])
    assert np.array_equal(model.expression_basis.reshape(29, -1)[:3, :30].T, loaded["load/w_exp_head"][:, :3])
    assert np.array_equal(model.equal_albedo_pairs - [0, 16], loaded["load/const_alb_mask"])
    around = definitions.vertex_triangles(model.triangles, VERTICES)
    assert np.array_equal(np.where(around < 0, TRIANGLES, around), loaded["load/vertex_tri"])


def test_uv_tables_are_padded_to_256_columns(folder):
    model = definitions.load(folder)
    tables = np.load(golden_fill.GOLDEN / "tables.npz")
    assert model.uv_triangle.shape == (192, 256) and model.uv_barycentrics.shape == (192, 256, 3)
    assert (model.uv_triangle[:, :16] == -1).all() and (model.uv_triangle[:, 240:] == -1).all()
    assert np.array_equal(model.uv_triangle[:, 16:240], tables["tri_2d"] - 1)
    assert np.array_equal(model.uv_barycentrics[:, 16:240], tables["tri_2d_barycoord_256"] / 256)


def test_vertices_outside_the_map_are_clamped(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    for name, outside in (("vertices_2d_u.dat", (-7.5, 400.0)), ("vertices_2d_v.dat", (0.25, 230.0))):
        values = np.fromfile(copy / name, "<f4")
        values[:2] = outside
        values.tofile(copy / name)
    assert definitions.load(copy).vertex_uv[:2].tolist() == [[0, 16], [191, 239]]


def test_round_trip_in_the_published_format(folder, tmp_path):
    model = definitions.load(folder)
    definitions.write_original(model, tmp_path / "again")
    assert_same(model, definitions.load(tmp_path / "again"))


def test_builtin_model_round_trips_and_fits_the_published_format(tmp_path):
    model = definitions.load("builtin")
    definitions.write_original(model, tmp_path / "builtin")
    assert_same(model, definitions.load_original(tmp_path / "builtin"))


def test_equal_albedo_table_is_optional(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    (copy / "3DMM_const_alb_mask.dat").unlink()
    assert definitions.load(copy).equal_albedo_pairs is None
    definitions.write_original(definitions.load(copy), tmp_path / "again" / "model")
    assert not (tmp_path / "again" / "model" / "3DMM_const_alb_mask.dat").exists()


def test_map_wider_than_the_format_is_an_error(folder, tmp_path):
    model = definitions.load(folder)
    uv_triangle = model.uv_triangle.copy()
    uv_triangle[50, 3] = 5
    with pytest.raises(UserError, match="224 columns"):
        definitions.write_original(replace(model, uv_triangle=uv_triangle), tmp_path / "wide")


def copy_of(folder: Path, target: Path) -> Path:
    """A copy of the folder and its parameters, whose files may be changed."""
    copy = target / "copy" / folder.name
    copy.mkdir(parents=True)
    for path in [*folder.iterdir(), *folder.parent.glob("*.npy")]:
        (copy / path.name if path.suffix == ".dat" else copy.parent / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize("name", FLOAT_FILES + INDEX_FILES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "longer"])
def test_wrong_file_is_named_with_its_sizes(folder, tmp_path, name, damage):
    copy = copy_of(folder, tmp_path)
    content = (copy / name).read_bytes()
    (copy / name).unlink()
    damaged = {"truncated": content[:-4], "empty": b"", "longer": content + bytes(4)}.get(damage)
    if damaged is not None:
        (copy / name).write_bytes(damaged)
    with pytest.raises(UserError) as error:
        definitions.load(copy)
    assert str(copy / name) in str(error.value) and "\n" not in str(error.value)
    if damaged is not None:
        assert f"{len(damaged)} bytes" in str(error.value)
        assert name == "3DMM_tri.dat" or str(len(content)) in str(error.value)


def test_triangle_file_cut_at_a_whole_triangle_is_noticed(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    content = (copy / "3DMM_tri.dat").read_bytes()
    (copy / "3DMM_tri.dat").write_bytes(content[:-1200])
    with pytest.raises(UserError, match="refers to triangle"):
        definitions.load(copy)


@pytest.mark.parametrize("name, value", [("3DMM_tri.dat", 0), ("3DMM_tri.dat", VERTICES + 1), ("3DMM_tri_2d.dat", -1),
                                         ("3DMM_tri_2d.dat", TRIANGLES + 1), ("3DMM_keypoints.dat", 0),
                                         ("3DMM_keypoints.dat", VERTICES + 1), ("3DMM_vertex_tri.dat", TRIANGLES + 1)])
def test_index_outside_the_model_is_an_error(folder, tmp_path, name, value):
    copy = copy_of(folder, tmp_path)
    values = np.fromfile(copy / name, "<i4")
    values[1] = value
    values.tofile(copy / name)
    with pytest.raises(UserError, match=rf"{name} refers to \w+ {value},"):
        definitions.load(copy)


@pytest.mark.parametrize("name", FLOAT_FILES)
def test_values_that_are_not_finite_are_an_error(folder, tmp_path, name):
    copy = copy_of(folder, tmp_path)
    values = np.fromfile(copy / name, "<f4")
    values[1] = np.nan
    values.tofile(copy / name)
    with pytest.raises(UserError, match=f"{name} holds values that are not finite"):
        definitions.load(copy)


@pytest.mark.parametrize("content", [b"", b"not numpy", None, np.zeros(227, np.float32), np.zeros(228, np.int32),
                                     np.full(228, np.inf, np.float32), np.array([{}], dtype=object)])
def test_wrong_parameter_file_is_an_error(folder, tmp_path, content):
    copy = copy_of(folder, tmp_path)
    path = copy.parent / "shape_para_std.npy"
    path.unlink()
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="shape_para_std.npy"):
        definitions.load(copy)


def test_parameters_may_lie_elsewhere_or_inside(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("shape_para_mean.npy", "shape_para_std.npy"):
        (copy.parent / name).rename(elsewhere / name)
    expected = definitions.load(folder)
    assert_same(expected, definitions.load_original(copy, elsewhere))
    for path in elsewhere.iterdir():
        path.rename(copy / path.name)
    assert_same(expected, definitions.load(copy))


def test_a_linked_folder_has_its_parameters_beside_the_link_or_beside_what_it_leads_to(folder, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    copy = copy_of(folder, tmp_path / "disk")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "3DMM_definition").symlink_to(copy, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    expected = definitions.load(folder)
    assert_same(expected, definitions.load("datasets/3DMM_definition"))
    for name in ("shape_para_mean.npy", "shape_para_std.npy"):
        (copy.parent / name).rename(tmp_path / "datasets" / name)
    assert_same(expected, definitions.load("datasets/3DMM_definition"))


def test_missing_folder_and_foreign_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        definitions.load(tmp_path / "nothing")
    with pytest.raises(UserError, match="is missing"):
        definitions.load(tmp_path)


def test_vertex_with_many_triangles_lists_eight(tmp_path):
    fan = np.array([[0, k + 1, k + 2] for k in range(11)], dtype=np.int32)
    table = definitions.vertex_triangles(fan, 14)
    assert table[:, 0].tolist() == list(range(8))
    assert table[:, 1].tolist() == [0] + [-1] * 7 and (table[:, 13] == -1).all()


def test_damaged_builtin_model_is_a_clear_error(tmp_path, monkeypatch):
    for content, message in ((None, "missing"), (b"PK\x03\x04 rubbish", "damaged")):
        path = tmp_path / "model.npz"
        if content is not None:
            path.write_bytes(content)

        def read(path=path):
            with np.load(path) as file:
                return dict(file)

        monkeypatch.setattr(definitions, "read_model", read)
        with pytest.raises(UserError, match=message):
            definitions.load_builtin()


def test_vertices_from_published_tables(folder):
    golden = np.load(golden_fill.GOLDEN / "sh.npz")
    vertices = MorphableModel(definitions.load(folder)).vertices(torch.from_numpy(golden["pose/shape_feats"]))
    assert np.abs(vertices.flatten(1).numpy() - golden["pose/shape_full"]).max() < 0.1  # micrometres
