"""Projection, visibility, unwrapping and rendering."""
from __future__ import annotations

from dataclasses import replace

import engine_samples
import face_samples
import golden_fill
import numpy as np
import pytest
import torch

import zbuffer
from models.morphable import MorphableModel, mirror_uv
from models.renderer import Renderer, project, rotation, sample, vertex_normals

SCALE = torch.tensor([1e-3])


@pytest.fixture(scope="module")
def golden():
    return {name: torch.from_numpy(array) for name, array in np.load(golden_fill.GOLDEN / "sh.npz").items()}


@pytest.fixture(scope="module")
def renderer():
    return Renderer(face_samples.morphable())


def posed(renderer, size=256, **angles):
    """(positions, UV normals, raster) of the mean face."""
    vertices, pose = renderer.morphable.mean[None], face_samples.pose(**angles)
    positions = project(vertices, SCALE, pose, (size - 224) // 2)
    return positions, renderer.uv_normals(vertices, pose), renderer.rasterize(positions, (size, size))


def smooth_map(batch=1):
    return torch.nn.functional.interpolate(face_samples.picture(batch, 32), size=(192, 256), mode="bilinear")


# ---------------------------------------------------------------- projection


def test_rotation_and_projection_match_the_published_ones(golden):
    vertices = golden["pose/shape_full"].unflatten(1, (-1, 3))
    positions = project(vertices, golden["pose/scale"], golden["pose/pose"])
    expected = golden["pose/vertex2d"][:, :-1]
    assert torch.allclose(rotation(golden["pose/pose"]), golden["pose/rot"], atol=1e-6)
    assert (positions[..., 1] - expected[..., 0]).abs().max() < 1e-3
    assert (positions[..., 0] - (223 - expected[..., 1])).abs().max() < 1e-3
    assert (positions[..., 2] - expected[..., 2]).abs().max() < 0.1
    keypoints = torch.from_numpy(np.load(golden_fill.GOLDEN / "tables.npz")["keypoints"].astype(np.int64)) - 1
    assert (positions[:, keypoints, 0] - golden["pose/landmarks_u"]).abs().max() < 1e-3
    assert (positions[:, keypoints, 1] - golden["pose/landmarks_v"]).abs().max() < 1e-3


def test_rotation_agrees_with_pytorch3d():
    transforms = pytest.importorskip("pytorch3d.transforms")
    pose = torch.rand(20, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = transforms.euler_angles_to_matrix(pose[:, :3] * torch.pi / 2, "XYZ")
    assert torch.allclose(rotation(pose), expected, atol=1e-6)


def test_crop_offset_moves_rows_and_columns(renderer):
    vertices, pose = renderer.morphable.mean[None], face_samples.pose(yaw=20, x=100, y=120)
    window, crop = project(vertices, SCALE, pose), project(vertices, SCALE, pose, 16)
    assert torch.allclose(crop, window + torch.tensor([16.0, 16.0, 0.0]), atol=1e-4)


def test_positive_x_is_right_and_positive_y_is_up():
    vertices = torch.tensor([[[0.0, 0, 0], [1e4, 0, 0], [0, 1e4, 0]]])
    origin, right, up = project(vertices, SCALE, face_samples.pose(x=100, y=120))[0]
    assert torch.allclose(origin[:2], torch.tensor([223 - 120.0, 100.0]), atol=1e-4)
    assert torch.allclose(right - origin, torch.tensor([0.0, 10, 0]), atol=1e-4)
    assert torch.allclose(up - origin, torch.tensor([-10.0, 0, 0]), atol=1e-4)


# ---------------------------------------------------------------- normals and sampling


def test_vertex_normals_are_weighted_by_area_and_outward():
    vertices = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 3], [9, 9, 9]]])
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3]])  # areas 1/2 and 3/2, normals +z and +x
    normals = vertex_normals(vertices, triangles)[0]
    assert torch.allclose(normals[0], torch.nn.functional.normalize(torch.tensor([3.0, 0, 1]), dim=0))
    assert torch.allclose(normals[1], torch.tensor([0.0, 0, 1]))
    assert torch.allclose(normals[3], torch.tensor([1.0, 0, 0]))
    assert torch.equal(normals[4], torch.zeros(3))


def test_normals_turn_with_the_face(renderer):
    vertices = renderer.morphable.mean[None]
    straight = renderer.uv_normals(vertices, face_samples.pose())
    turned = renderer.uv_normals(vertices, face_samples.pose(yaw=30, pitch=-10, roll=5))
    expected = torch.einsum("ij,bjhw->bihw", rotation(face_samples.pose(yaw=30, pitch=-10, roll=5))[0], straight)
    assert (turned - expected).abs().max() < 1e-5
    length = turned.norm(dim=1)[0]
    assert torch.allclose(length[renderer.uv_mask], torch.ones(()), atol=1e-5)
    assert (length[~renderer.uv_mask] == 0).all()


def test_sampling_has_pixel_centres_at_integers():
    image = torch.rand(1, 2, 5, 7, dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(5.0).double(), torch.arange(7.0).double(), indexing="ij")
    assert torch.allclose(sample(image, rows[None], columns[None]), image)
    between = sample(image, torch.full((1, 1, 1), 2.25).double(), torch.full((1, 1, 1), 3.5).double())[0, :, 0, 0]
    expected = 0.75 * image[0, :, 2, 3:5].mean(1) + 0.25 * image[0, :, 3, 3:5].mean(1)
    assert torch.allclose(between, expected)
    outside = sample(image, torch.full((1, 1, 1), -3.0).double(), torch.full((1, 1, 1), 99.0).double())[0, :, 0, 0]
    assert torch.allclose(outside, image[0, :, 0, 6])


# ---------------------------------------------------------------- unwrapping


def test_unwrap_samples_where_each_texel_projects(renderer):
    """Not a flat average of the triangle's vertices: a ramp image must come back as the texels' own positions."""
    positions, _, _ = posed(renderer, yaw=25, pitch=10)
    rows, columns = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    unwrapped = renderer.unwrap(torch.stack([rows, columns])[None], positions)[0]
    model = renderer.morphable
    for row, column in ((100, 40), (60, 127), (150, 200), (33, 171)):
        corners = positions[0, model.triangles[model.uv_triangle[row, column]]]
        expected = model.uv_barycentrics[row, column] @ corners
        assert torch.allclose(unwrapped[:, row, column], expected[:2], atol=1e-3)
    assert (unwrapped[:, ~renderer.uv_mask] == 0).all()
    steps = (unwrapped[1, 100, 30:220] - unwrapped[1, 100, 29:219]).abs()
    assert (steps > 0).float().mean() > 0.99  # no two neighbours share a sample


def test_mirrored_image_unwraps_to_the_mirrored_map(renderer):
    image = face_samples.picture(1, 256)
    positions, normals, raster = posed(renderer, yaw=25, roll=5, x=105)
    mirrored_positions, mirrored_normals, mirrored_raster = posed(renderer, yaw=-25, roll=-5, x=223 - 105)
    unwrapped = renderer.unwrap(image, positions)
    mirrored = renderer.unwrap(image.flip(-1), mirrored_positions)
    assert (mirror_uv(unwrapped) - mirrored).abs().max() < 1e-4
    visible = renderer.uv_visibility(positions, normals, raster)
    mirrored_visible = renderer.uv_visibility(mirrored_positions, mirrored_normals, mirrored_raster)
    assert (mirror_uv(visible) != mirrored_visible).float().mean() < 2e-3  # ties of rounding on outlines


# ---------------------------------------------------------------- visibility


def first_hit(vertices, triangles, points):
    """Depth of the nearest front face over each point (N, 3) of [row, column, depth], by testing every triangle."""
    corners = vertices[triangles].double()
    a, b, c = corners.unbind(1)
    p = points[:, None].double()

    def edge(first, second, point):
        return (second[..., 0] - first[..., 0]) * (point[..., 1] - first[..., 1]) \
            - (second[..., 1] - first[..., 1]) * (point[..., 0] - first[..., 0])

    area = edge(a, b, c)
    weights = torch.stack([edge(b, c, p), edge(c, a, p), edge(a, b, p)], dim=-1) / area[:, None]
    inside = (weights >= 0).all(-1) & (area < 0)  # rows point down, so front faces have negative area
    depth = (weights * corners[:, :, 2]).sum(-1)
    return torch.where(inside, depth, -torch.inf).amax(1)


@pytest.mark.parametrize("angles", [dict(), dict(yaw=40), dict(yaw=-35, pitch=15, roll=10), dict(pitch=-25)])
def test_visibility_agrees_with_casting_a_ray_per_texel(renderer, angles):
    positions, normals, raster = posed(renderer, **angles)
    visible = renderer.uv_visibility(positions, normals, raster)[0, 0]
    chosen = torch.zeros_like(renderer.uv_mask)
    chosen[::6, ::6] = renderer.uv_mask[::6, ::6]
    points = renderer.to_uv(positions)[0].permute(1, 2, 0)[chosen]
    gap = first_hit(positions[0], renderer.morphable.triangles, points) - points[:, 2]
    hidden = (gap > 3000) | (normals[0, 2][chosen] < -0.02)
    seen = (gap < 100) & (normals[0, 2][chosen] > 0.2)
    assert not visible[chosen][hidden].any()
    assert visible[chosen][seen].float().mean() > 0.96  # the rest lies on outlines


def test_nose_hides_its_cheek(renderer):
    positions, normals, raster = posed(renderer, yaw=40)
    facing = renderer.uv_mask & (normals[0, 2] > 0.2)
    hidden = facing & ~renderer.uv_visibility(positions, normals, raster)[0, 0]
    points = renderer.to_uv(positions)[0].permute(1, 2, 0)[hidden]
    gap = first_hit(positions[0], renderer.morphable.triangles, points) - points[:, 2]
    assert (gap > 4000).sum() > 100  # texels that face the camera with something far in front: the sign is not enough


def test_texels_outside_the_image_are_not_visible(renderer):
    positions, normals, raster = posed(renderer, x=20, y=200)
    visible = renderer.uv_visibility(positions, normals, raster)[0, 0]
    at = renderer.to_uv(positions)[0, :2]
    outside = ((at < 0) | (at > 255)).any(0) & renderer.uv_mask
    assert outside.any() and visible.any() and not visible[outside].any()


def test_empty_view_shows_nothing(renderer):
    vertices, pose = renderer.morphable.mean[None], face_samples.pose(x=0)
    positions = project(vertices, SCALE, pose) + torch.tensor([0.0, -5000, 0])
    raster = renderer.rasterize(positions, (224, 224))
    assert not renderer.uv_visibility(positions, renderer.uv_normals(vertices, pose), raster).any()
    assert not renderer.coverage(raster).any()
    assert (renderer.render(smooth_map(), raster) == 0).all()


def test_visibility_of_an_item_does_not_depend_on_the_batch(renderer):
    vertices = renderer.morphable.mean.expand(3, -1, -1)
    pose = torch.cat([face_samples.pose(yaw=yaw) for yaw in (-30, 0, 40)])
    positions, normals = project(vertices, SCALE.expand(3), pose, 16), renderer.uv_normals(vertices, pose)
    together = renderer.uv_visibility(positions, normals, renderer.rasterize(positions, (256, 256)))
    for item, yaw in enumerate((-30, 0, 40)):
        assert torch.equal(together[item:item + 1], renderer.uv_visibility(*posed(renderer, yaw=yaw)))


# ---------------------------------------------------------------- rendering


def test_render_shows_each_pixel_its_own_uv_coordinate(renderer):
    _, _, raster = posed(renderer, yaw=-20)
    rows, columns = torch.meshgrid(torch.arange(192.0), torch.arange(256.0), indexing="ij")
    image = renderer.render(torch.stack([rows, columns])[None], raster)[0]
    coverage = renderer.coverage(raster)[0, 0]
    expected = renderer.uv_coordinates(raster)[0].permute(2, 0, 1)
    assert torch.equal(coverage, raster.mask[0])  # all of this mesh is on its map
    assert (image - expected)[:, coverage].abs().max() < 1e-2
    assert (image[:, ~coverage] == 0).all()


@pytest.mark.parametrize("angles", [dict(), dict(yaw=30), dict(yaw=-20, pitch=-15, roll=8)])
def test_unwrapping_a_rendered_map_returns_it_where_visible(renderer, angles):
    positions, normals, raster = posed(renderer, **angles)
    uv_map = smooth_map()
    visible = renderer.uv_visibility(positions, normals, raster)
    error = (renderer.unwrap(renderer.render(uv_map, raster), positions) - uv_map).abs().amax(1, keepdim=True)
    assert visible.float().mean() > 0.3
    assert error[visible].mean() < 0.01 and error[visible].quantile(0.99) < 0.08  # of a range of 2


def test_no_zeros_bleed_in_at_the_edge_of_the_map(renderer):
    _, _, raster = posed(renderer)
    ones = renderer.uv_mask.float().expand(1, 3, -1, -1)
    image = renderer.render(ones, raster)
    assert torch.allclose(image, renderer.coverage(raster).float().expand_as(image), atol=1e-5)


def test_triangles_clamped_to_the_border_of_the_map_are_not_covered():
    definition = face_samples.definition()
    vertex_uv, uv_triangle = definition.vertex_uv.copy(), definition.uv_triangle.copy()
    vertex_uv[:, 1] = np.clip(vertex_uv[:, 1], 60, 194)
    uv_triangle[:, :60] = uv_triangle[:, 195:] = -1
    renderer = Renderer(MorphableModel(replace(definition, vertex_uv=vertex_uv, uv_triangle=uv_triangle)))
    _, _, raster = posed(renderer)
    column = face_samples.definition().vertex_uv[:, 1][definition.triangles]
    outside = torch.from_numpy((column.max(1) < 56) | (column.min(1) > 198))
    inside = torch.from_numpy((column.min(1) > 62) & (column.max(1) < 192))
    assert not renderer.textured[outside].any() and renderer.textured[inside].all()
    shown = raster.triangle[0]
    coverage = renderer.coverage(raster)[0, 0]
    assert not coverage[raster.mask[0] & outside[shown.clamp(min=0)]].any()
    assert coverage[raster.mask[0] & inside[shown.clamp(min=0)]].all()


# ---------------------------------------------------------------- gradients


def tiny():
    """A renderer in float64 whose mesh is two triangles."""
    definition = face_samples.definition()
    triangle = np.full((192, 256), -1, dtype=np.int32)
    weights = np.zeros((192, 256, 3), dtype=np.float32)
    for row in range(40, 60):
        for column in range(40, 60):
            v, u = (row - 40) / 19, (column - 40) / 19
            triangle[row, column] = int(u + v > 1)
            weights[row, column] = (1 - v, 1 - u, u + v - 1) if u + v > 1 else (1 - u - v, v, u)
    mean = np.array([[-60, 60, 5], [-60, -60, 0], [60, 60, 0], [60, -60, 20]], dtype=np.float32) * 1000
    small = replace(
        definition, triangles=np.array([[0, 1, 2], [2, 1, 3]], dtype=np.int32), mean=mean,
        identity_basis=np.zeros((199, 4, 3), np.float32), expression_basis=np.zeros((29, 4, 3), np.float32),
        vertex_uv=np.array([[40, 40], [59, 40], [40, 59], [59, 59]], np.float32), uv_triangle=triangle,
        uv_barycentrics=weights, landmarks=np.zeros(68, np.int32))
    return Renderer(MorphableModel(small)).double()


def test_gradients_of_unwrapping():
    renderer = tiny()
    generator = torch.Generator().manual_seed(0)
    positions = project(renderer.morphable.mean[None], SCALE.double(), face_samples.pose(x=30.3, y=190.7).double())
    image = torch.rand(1, 2, 80, 80, generator=generator, dtype=torch.float64)
    cotangent = torch.rand(1, 2, 192, 256, generator=generator, dtype=torch.float64)

    def unwrap(brightness, positions):
        return (renderer.unwrap(image.pow(2) * brightness, positions)[..., ::7, ::7] * cotangent[..., ::7, ::7]).sum()

    brightness = torch.rand(1, 2, 1, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unwrap, (brightness, positions.detach().requires_grad_()), atol=1e-5)


def test_gradients_of_rendering():
    renderer = tiny()
    generator = torch.Generator().manual_seed(1)
    positions = project(renderer.morphable.mean[None], SCALE.double(), face_samples.pose(x=14.3, y=207.7).double())
    positions = positions * torch.tensor([0.2, 0.2, 1.0])
    rows, columns = torch.meshgrid(torch.arange(192.0).double(), torch.arange(256.0).double(), indexing="ij")
    cotangent = torch.rand(1, 1, 24, 24, generator=generator, dtype=torch.float64)

    def render(colours, positions):
        uv_map = (colours[0] * rows + colours[1] * columns)[None, None] / 50
        raster = renderer.rasterize(positions, (24, 24))
        covered = raster.mask & (raster.barycentrics.detach() > 0.05).all(-1)  # gradients jump where coverage does
        return (renderer.render(uv_map, raster) * cotangent * covered[:, None]).sum()

    colours = torch.rand(2, generator=generator, dtype=torch.float64, requires_grad=True)
    positions = positions.detach().requires_grad_()
    assert render(colours, positions) != 0
    assert torch.autograd.gradcheck(render, (colours, positions), eps=1e-6, atol=1e-5)


def test_gradients_reach_shape_pose_and_light(renderer):
    shape = torch.zeros(1, 228, requires_grad=True)
    pose = face_samples.pose(yaw=10).requires_grad_()
    light = torch.rand(1, 27, requires_grad=True)
    vertices = renderer.morphable.vertices(shape)
    raster = renderer.rasterize(project(vertices, SCALE, pose, 16), (256, 256))
    shade = renderer.uv_shade(renderer.uv_normals(vertices, pose), light)
    renderer.render(smooth_map() * shade, raster).square().sum().backward()
    for gradient in (shape.grad[:, [0, 199]], pose.grad, light.grad):
        assert torch.isfinite(gradient).all() and (gradient != 0).all()


def test_normals_have_a_finite_gradient_without_area():
    vertices = torch.zeros(1, 3, 3, requires_grad=True)
    vertex_normals(vertices, torch.tensor([[0, 1, 2]])).sum().backward()
    assert torch.isfinite(vertices.grad).all()


def test_reference_backend_renders_the_same(renderer):
    positions, _, raster = posed(renderer, size=224, yaw=15)
    reference = zbuffer.rasterize(positions, renderer.morphable.triangles, (224, 224), cull=True, backend="reference")
    assert torch.equal(renderer.render(smooth_map(), raster), renderer.render(smooth_map(), reference))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1e30])
def test_positions_that_are_no_places_are_not_visible(value):
    """As of an encoder whose training has failed: no error, and on a GPU no access beyond the picture."""
    model = MorphableModel(engine_samples.small_definition())
    renderer, positions = Renderer(model), model.mean[None] * 60 / model.mean.abs().max()
    positions[..., :2] += 120
    normals = torch.zeros(1, 3, 192, 256)
    normals[:, 2] = 1
    seen = renderer.uv_visibility(positions, normals, renderer.rasterize(positions, (256, 256)))
    positions[0, ::2] = value
    broken = renderer.uv_visibility(positions, normals, renderer.rasterize(positions, (256, 256)))
    assert broken.sum() < seen.sum()
    positions[:] = value
    assert not renderer.uv_visibility(positions, normals, renderer.rasterize(positions, (256, 256))).any()


@pytest.mark.parametrize("index", [-1, 100_000])
def test_a_mesh_with_a_triangle_of_no_vertices_is_refused(index):
    morphable = MorphableModel(engine_samples.small_definition())
    morphable.triangles[5, 1] = index
    with pytest.raises(ValueError, match="triangles refer to vertices"):
        Renderer(morphable)
