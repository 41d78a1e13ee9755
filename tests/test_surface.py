"""What is compiled besides the rasterizer gives what its definition in PyTorch gives (renderer and blending)."""
from __future__ import annotations

import copy

import engine_samples
import face_samples
import pytest
import torch

from models.blending import Box, pull_push
from models.morphable import MorphableModel
from models.renderer import Renderer, project, vertex_normals
from zbuffer import backends, native, pyramid, surface

pytestmark = pytest.mark.skipif(isinstance(backends.load("cpu"), native.BuildError), reason="no C++ compiler")
ROUNDING = 1e-4  # of texels and pixels may fall on the other side of a limit
YAWS = (-50, 0, 35)


@pytest.fixture(scope="module", params=["built-in", "small"])
def renderer(request):
    if request.param == "built-in":
        return Renderer(face_samples.morphable())
    return Renderer(MorphableModel(engine_samples.small_definition()))


@pytest.fixture(scope="module")
def scene(renderer):
    """(vertices, pose, positions, raster) of three views of the mean face."""
    mean = renderer.morphable.mean
    vertices = mean.expand(len(YAWS), -1, -1).contiguous()
    pose = torch.cat([face_samples.pose(yaw=yaw, pitch=yaw / 5) for yaw in YAWS])
    scale = (80 / mean[:, :2].abs().max()).expand(len(YAWS))
    positions = project(vertices, scale, pose, 16)
    return vertices, pose, positions, renderer.rasterize(positions, (256, 256))


def in_both_ways(monkeypatch, work):
    """(result of the compiled path, result of PyTorch); the former must have been taken."""
    taken = []

    def usable(*tensors):
        taken.append(real_usable(*tensors))
        return taken[-1]

    real_usable = backends.usable
    monkeypatch.setattr(backends, "usable", usable)
    compiled = work()
    assert taken and all(taken)
    monkeypatch.setattr(backends, "usable", lambda *tensors: False)
    return compiled, work()


def share_of_difference(ours, theirs):
    return (ours != theirs).float().mean()


def test_vertex_normals(renderer, scene, monkeypatch):
    ours, theirs = in_both_ways(monkeypatch, lambda: vertex_normals(scene[0], renderer.triangles))
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-5


def test_a_vertex_without_an_area_has_no_normal(monkeypatch):
    vertices = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0], [9, 9, 9]]])
    triangles = torch.tensor([[0, 1, 2], [0, 1, 3]])  # the second has none, the last vertex no triangle
    ours, theirs = in_both_ways(monkeypatch, lambda: vertex_normals(vertices, triangles))
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[0], torch.tensor([[0.0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]]))


def test_normals_and_shade_of_the_map(renderer, scene, monkeypatch):
    vertices, pose, *_ = scene
    ours, theirs = in_both_ways(monkeypatch, lambda: renderer.uv_normals(vertices, pose))
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-5 and (theirs[:, 2] > 0.9).any()
    assert (ours[:, :, ~renderer.uv_mask] == 0).all()
    monkeypatch.undo()
    light = torch.randn(len(YAWS), 27, generator=torch.Generator().manual_seed(0))
    ours, theirs = in_both_ways(monkeypatch, lambda: renderer.uv_shade(theirs, light))
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-5 and theirs.std() > 0.1
    assert (ours[:, :, ~renderer.uv_mask] == 1).all()


def test_a_texel_between_opposite_normals_has_none(monkeypatch):
    texels = surface.Texels(torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.tensor([[0.5, 0.5, 0], [0, 0, 1.0]]))
    normals = torch.tensor([[[0.0, 0, 1], [0, 0, -1], [0, 1, 0]]])
    maps = surface.texel_normals(normals, torch.eye(3)[None].roll(1, 1), texels, torch.tensor([5, 0]), (2, 3))
    assert maps.shape == (1, 3, 2, 3) and torch.equal(maps[0, :, 0, 0], torch.tensor([0.0, 0, 1]))
    assert torch.equal(maps[0].abs().sum(0), torch.tensor([[1.0, 0, 0], [0, 0, 0]]))


def test_visible_texels(renderer, scene, monkeypatch):
    vertices, pose, positions, raster = scene
    normals = renderer.uv_normals(vertices, pose)
    ours, theirs = in_both_ways(monkeypatch, lambda: renderer.uv_visibility(positions, normals, raster))
    assert ours.dtype == torch.bool and ours.shape == theirs.shape and 0.2 < theirs.float().mean() < 0.9
    assert share_of_difference(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_places_that_are_none(renderer, scene, monkeypatch, value):
    vertices, pose, positions, _ = scene
    positions, normals = positions.clone(), renderer.uv_normals(vertices, pose)
    positions[:, ::3] = value
    raster = renderer.rasterize(positions, (256, 256))
    ours, theirs = in_both_ways(monkeypatch, lambda: renderer.uv_visibility(positions, normals, raster))
    assert share_of_difference(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("size", [(2, 2), (97, 256), (256, 3)])
def test_pictures_of_any_size(renderer, scene, monkeypatch, size):
    vertices, pose, positions, _ = scene
    raster, normals = renderer.rasterize(positions, size), renderer.uv_normals(vertices, pose)
    ours, theirs = in_both_ways(monkeypatch, lambda: renderer.uv_visibility(positions, normals, raster))
    assert share_of_difference(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("channels", [1, 5])
def test_unwrapped_images(renderer, scene, monkeypatch, channels):
    image, positions = face_samples.picture(len(YAWS), 256)[:, :1].expand(-1, channels, -1, -1), scene[2]
    ours, theirs = in_both_ways(monkeypatch, lambda: renderer.unwrap(image, positions))
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 2e-3 and theirs.abs().max() > 0.5
    beyond = positions + 200  # the border's pixels
    monkeypatch.undo()
    ours, theirs = in_both_ways(monkeypatch, lambda: renderer.unwrap(image, beyond))
    assert (ours - theirs).abs().max() < 2e-3


@pytest.mark.parametrize("channels", [0, 1, 3, 5])
def test_drawn_maps(renderer, scene, monkeypatch, channels):
    raster = scene[3]
    maps = torch.rand(len(YAWS), channels, 192, 256, generator=torch.Generator().manual_seed(0))
    (image, coverage), (image_then, coverage_then) = in_both_ways(
        monkeypatch, lambda: renderer.render_covered(maps, raster))
    assert image.shape == (len(YAWS), channels, 256, 256) and coverage.dtype == torch.bool
    assert share_of_difference(coverage, coverage_then) <= ROUNDING and 0.1 < coverage.float().mean() < 0.9
    assert (image[(~coverage).expand_as(image)] == 0).all()
    both = (coverage & coverage_then).expand_as(image)
    assert not channels or (image - image_then)[both].abs().max() < 2e-3  # white noise: rounding of the place shows


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 2), (5, 3), (64, 64), (97, 130), (256, 256)])
@pytest.mark.parametrize("known", [0.0, 0.02, 0.6])
def test_extended_pictures(monkeypatch, size, known):
    generator = torch.Generator().manual_seed(size[0])
    values = torch.rand((2, 3, *size), generator=generator) * 2 - 1
    weight = torch.rand((2, 1, *size), generator=generator)
    weight = torch.where(torch.rand((2, 1, *size), generator=generator) < known, weight.round(decimals=1), 0)
    boxes = [None, Box(size[0] // 3, size[0] // 2 + 1, size[1] // 4, size[1] // 2 + 1), Box(0, 1, 0, 1),
             Box(0, 0, 0, 0)]
    for box in boxes:
        monkeypatch.undo()
        if max(size) > 1:  # of one pixel PyTorch says what there is to say
            ours, theirs = in_both_ways(monkeypatch, lambda: pull_push(values, weight, box))
        else:
            ours, theirs = pyramid.fill(values, weight, (0, 1, 0, 1), 4), pull_push(values, weight, box)
        asked = box or Box(0, size[0], 0, size[1])
        torch.testing.assert_close(asked.of(ours), asked.of(theirs), rtol=0, atol=1e-5)


def test_an_item_does_not_depend_on_the_batch_or_the_threads(renderer, scene):
    vertices, pose, positions, raster = scene
    normals, maps = renderer.uv_normals(vertices, pose), torch.rand(len(YAWS), 3, 192, 256)
    light = torch.rand(len(YAWS), 27)
    together = (vertex_normals(vertices, renderer.triangles), renderer.uv_visibility(positions, normals, raster),
                *renderer.render_covered(maps, raster), normals, renderer.uv_shade(normals, light))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for item in range(len(YAWS)):
            part, one = slice(item, item + 1), type(raster)(*(values[item:item + 1] for values in raster))
            alone = (vertex_normals(vertices[part], renderer.triangles),
                     renderer.uv_visibility(positions[part], normals[part], one),
                     *renderer.render_covered(maps[part], one), renderer.uv_normals(vertices[part], pose[part]),
                     renderer.uv_shade(normals[part], light[part]))
            assert all(torch.equal(whole[part], single) for whole, single in zip(together, alone))
    finally:
        torch.set_num_threads(threads)


def test_what_is_left_to_pytorch():
    plain = torch.rand(2)
    assert backends.usable(plain)
    assert not backends.usable(plain, plain.double()) and not backends.usable(plain.half())
    wanted = plain.clone().requires_grad_()
    assert not backends.usable(wanted)
    with torch.no_grad():
        assert backends.usable(wanted)


@pytest.mark.parametrize("index", [3, -1, 2 ** 31 - 1, 2 ** 32])
def test_a_triangle_without_a_vertex_is_an_error(index):
    with pytest.raises(ValueError, match=f"refer to vertex {index}, but the vertices are 0 to 2"):
        surface.vertex_normals(torch.rand(1, 3, 3), torch.tensor([[0, 1, 2], [0, index, 2]]))


def test_a_weight_for_all_items_and_a_renderer_in_double_precision_are_left_to_pytorch(renderer, scene, monkeypatch):
    values, weight = torch.rand(3, 2, 20, 30), torch.rand(1, 1, 20, 30)
    expected = torch.cat([pull_push(item, weight) for item in values.split(1)])
    torch.testing.assert_close(pull_push(values, weight), expected, rtol=0, atol=1e-6)
    maps = torch.rand(len(YAWS), 3, 192, 256)
    expected = renderer.render(maps, scene[3])
    double = copy.deepcopy(renderer).double()
    torch.testing.assert_close(double.render(maps, scene[3]), expected, rtol=0, atol=2e-3)


def test_results_do_not_take_the_default_type():
    values, weight = torch.rand(1, 2, 20, 30), torch.rand(1, 1, 20, 30)
    expected = pull_push(values, weight)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(pull_push(values, weight), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_tensors_that_do_not_fit_are_errors(renderer, scene):
    """The compiled functions know nothing of sizes but what they are told."""
    vertices, pose, positions, raster = scene
    texels, cosine, tolerance = torch.rand(len(YAWS), 9, 3), torch.rand(len(YAWS), 9), surface.Tolerance(1, 1, 1)
    layout = surface.UVLayout(renderer.nearest_texel, renderer.uv_mask, renderer.corner_uv, renderer.textured)
    index, on_mesh = torch.arange(9), surface.Texels(torch.zeros(9, 3, dtype=torch.int64), torch.rand(9, 3))
    turns, on_face = torch.eye(3).expand(len(YAWS), 3, 3), torch.ones(4, 4, dtype=torch.bool)
    wrong = [
        lambda: surface.texel_normals(vertices, turns[:1], on_mesh, index, (4, 4)),
        lambda: surface.texel_normals(vertices, turns, on_mesh, index + 8, (4, 4)),
        lambda: surface.texel_normals(vertices, turns, on_mesh, index[1:], (4, 4)),
        lambda: surface.texel_normals(vertices, turns, on_mesh._replace(weights=torch.rand(9)), index, (4, 4)),
        lambda: surface.texel_normals(vertices, turns, on_mesh._replace(corners=on_mesh.corners - 1), index, (4, 4)),
        lambda: surface.texel_normals(vertices, turns, on_mesh._replace(corners=on_mesh.corners.int()), index, (4, 4)),
        lambda: surface.quadratic(torch.rand(2, 3, 4, 4), on_face[1:], torch.rand(2, 1, 10), 1),
        lambda: surface.quadratic(torch.rand(2, 3, 4, 4), on_face, torch.rand(1, 1, 10), 1),
        lambda: surface.quadratic(torch.rand(2, 3, 4, 4), on_face, torch.rand(2, 1, 9), 1),
        lambda: surface.vertex_normals(vertices[0], renderer.triangles),
        lambda: surface.vertex_normals(vertices.double(), renderer.triangles),
        lambda: surface.visible_texels(positions[:1], renderer.triangles, raster, texels, cosine, tolerance),
        lambda: surface.visible_texels(positions, renderer.triangles, raster, texels, cosine[:1], tolerance),
        lambda: surface.draw(torch.rand(1, 3, 192, 256), layout, raster),
        lambda: surface.draw(torch.rand(len(YAWS), 3, 96, 128), layout, raster),
        lambda: surface.draw(torch.rand(len(YAWS), 3, 192, 256), layout._replace(corners=layout.corners[1:]), raster),
        lambda: surface.sample(torch.rand(1, 3, 20, 20), texels, index, (4, 4)),
        lambda: surface.sample(torch.rand(len(YAWS), 3, 1, 20), texels, index, (4, 4)),
        lambda: surface.sample(torch.rand(len(YAWS), 3, 20, 20), texels, index[1:], (4, 4)),
        lambda: surface.sample(torch.rand(len(YAWS), 3, 20, 20), texels, index + 8, (4, 4)),
        lambda: surface.sample(torch.rand(len(YAWS), 3, 20, 20), texels, index - 1, (4, 4)),
        lambda: surface.draw(torch.rand(len(YAWS), 3, 192, 256), layout._replace(nearest=layout.nearest * 2), raster),
        lambda: surface.vertex_normals(vertices, renderer.triangles.float()),
        lambda: pyramid.fill(torch.rand(2, 3, 8, 8), torch.rand(1, 1, 8, 8), (0, 8, 0, 8), 4),
        lambda: pyramid.fill(torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8), (0, 8, 0, 8), -5),
        lambda: pyramid.fill(torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8), (0, 9, 0, 8), 4),
        lambda: pyramid.fill(torch.rand(2, 3, 0, 8), torch.rand(2, 1, 0, 8), (0, 0, 0, 8), 4)]
    for work in wrong:
        with pytest.raises(ValueError, match="must|does not lie"):
            work()
    with pytest.raises(TypeError):
        pyramid.fill(torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8), (0, 8, 0, 8), 4.0)
    surface.visible_texels(positions, renderer.triangles, raster, texels, cosine, tolerance)  # integers are numbers
