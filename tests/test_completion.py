"""FaceCompletion: what must hold for any networks, checked with small stand-ins that read every pixel they get."""
from __future__ import annotations

from dataclasses import fields

import face_samples
import pytest
import torch
from torch import nn

from models.completion import FaceCompletion, with_features
from models.encoder import Encoder, FaceCode
from models.inpainter import Inpainter, Inpainting
from models.lighting import to_texture
from models.morphable import mirror_uv
from models.renderer import project


def completion(encoder=None, occlusion=None, iterations=2, **options) -> FaceCompletion:
    return FaceCompletion(encoder or face_samples.StandInEncoder(), face_samples.StandInInpainter(),
                          face_samples.morphable(), occlusion, iterations, **options).eval()


def rectangle(batch=1, size=256, top=90, bottom=170, left=120, right=220):
    hole = torch.zeros(batch, 1, size, size, dtype=torch.bool)
    hole[..., top:bottom, left:right] = True
    return hole


def tensors(result, prefix=""):
    """All tensors of a completion or its factors, by name."""
    items = result._asdict().items() if isinstance(result, tuple) else \
        [(field.name, getattr(result, field.name)) for field in fields(result)]
    for name, value in items:
        if torch.is_tensor(value):
            yield prefix + name, value
        elif value is not None:
            yield from tensors(value, f"{prefix}{name}.")


def assert_identical(first, second, what=lambda tensor: tensor):
    for (name, expected), (_, found) in zip(tensors(first), tensors(second), strict=True):
        assert torch.equal(what(expected), found), name


class FixedEncoder(nn.Module):
    """The same code for every image; keeps what it was shown."""

    def __init__(self, pose=None, scale=1e-3):
        super().__init__()
        self.pose, self.scale, self.shown = face_samples.pose() if pose is None else pose, scale, []

    def forward(self, image):
        self.shown.append(image)
        batch = len(image)
        light = torch.zeros(batch, 3, 9)
        light[:, :, 0], light[:, :, 1] = 2.2, 0.4
        codes = torch.zeros(batch, 512)
        return FaceCode(torch.zeros(batch, 228), codes, codes, torch.full((batch,), self.scale),
                        self.pose.expand(batch, -1), light.flatten(1))


class GreyInpainter(nn.Module):
    def forward(self, albedo, visible):
        return Inpainting(torch.full_like(albedo, -0.3), torch.zeros_like(visible))


class DtypeRecorder(nn.Module):
    """An occlusion net that keeps what its convolution computed in."""

    def __init__(self):
        super().__init__()
        self.conv, self.seen = nn.Conv2d(3, 3, 1), []

    def forward(self, image):
        answer = self.conv(image)
        self.seen.append(answer.dtype)
        return answer.softmax(1)


# ---------------------------------------------------------------- the invariants


def test_networks_compute_in_the_wanted_precision_and_geometry_in_float32():
    image, hole = face_samples.picture(1, 256), rectangle(1, 256)
    result = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        occlusion = DtypeRecorder()
        done = completion(occlusion=occlusion, dtype=dtype)(image, hole)
        assert set(occlusion.seen) == {dtype}
        assert {part.dtype for part in (done.output, done.positions, done.albedo_in, done.face)} == {torch.float32}
        result[dtype] = done.output
    assert torch.equal(result[torch.bfloat16][~hole.bool().expand_as(image)], image[~hole.bool().expand_as(image)])
    assert (result[torch.bfloat16] - result[torch.float32]).abs().max() < 0.02


@pytest.mark.parametrize("batch, size", [(1, 224), (3, 256)])
def test_shapes_and_ranges(batch, size):
    hole = rectangle(batch, size)
    result = completion(occlusion=face_samples.StandInOcclusion())(face_samples.picture(batch, size), hole)
    expected = {
        "output": (3, size, size), "hole": (1, size, size), "vertices": (1023, 3), "positions": (1023, 3),
        "landmarks": (68, 2), "uv_shade": (3, 192, 256), "uv_visible": (1, 192, 256), "albedo_in": (3, 192, 256),
        "albedo_out": (3, 192, 256), "confidence": (1, 192, 256), "texture_out": (3, 192, 256),
        "rendered": (3, size, size), "coverage": (1, size, size), "face": (3, size, size)}
    for name, shape in expected.items():
        assert getattr(result, name).shape == (batch, *shape), name
    for name in ("output", "albedo_in", "albedo_out", "texture_out", "rendered"):
        assert getattr(result, name).abs().max() <= 1, name
    assert all(torch.isfinite(tensor).all() for _, tensor in tensors(result))
    assert result.coverage.float().mean() > 0.2 and result.uv_visible.float().mean() > 0.2


def test_hidden_pixels_change_nothing_at_all():
    image, hole = face_samples.picture(1, 256), rectangle()
    complete = completion(occlusion=face_samples.StandInOcclusion())
    expected = complete(image, hole)
    for hidden in (0.77, 255.0, torch.nan):
        assert_identical(expected, complete(torch.where(hole, hidden, image), hole))


@pytest.mark.parametrize("size", [224, 256])
def test_pixels_outside_the_hole_are_bit_identical(size):
    image, hole = face_samples.picture(2, size), rectangle(2, size)
    output = completion()(image, hole).output
    outside = ~hole.expand_as(image)
    assert torch.equal(output[outside], image[outside])
    assert not torch.equal(output, image)


def test_empty_hole_returns_the_input():
    image = face_samples.picture(2, 256)
    assert torch.equal(completion()(image, torch.zeros(2, 1, 256, 256)).output, image)


def test_one_image_alone_or_in_any_batch_gives_the_same_pixels():
    image = face_samples.picture(3, 256)
    image[2] = 1.0  # an extreme neighbour
    hole = torch.cat([rectangle(), rectangle(top=20, right=150), torch.ones(1, 1, 256, 256, dtype=torch.bool)])
    complete = completion(occlusion=face_samples.StandInOcclusion())
    together = complete(image, hole)
    for item in range(3):
        assert_identical(together, complete(image[item:item + 1], hole[item:item + 1]),
                         lambda tensor, item=item: tensor[item:item + 1])
    assert_identical(together, complete(image.flip(0), hole.flip(0)), lambda tensor: tensor.flip(0))


def test_one_at_a_time_or_as_a_batch_agree():
    image, hole = face_samples.picture(2, 224), rectangle(2, 224)
    single, batched = completion()(image, hole), completion(one_by_one=False)(image, hole)
    assert (single.output - batched.output).abs().max() < 1e-5


def test_mirrored_input_gives_the_mirrored_output():
    image, hole = face_samples.picture(1, 256), rectangle()
    complete = completion(iterations=1)
    result, mirrored = complete(image, hole), complete(image.flip(-1), hole.flip(-1))
    covered = (result.coverage & mirrored.coverage.flip(-1)).expand_as(image)  # Telea's fill beside it is not symmetric
    assert (result.output - mirrored.output.flip(-1)).abs()[covered].quantile(0.995) < 1e-3
    difference = (mirror_uv(result.albedo_out) - mirrored.albedo_out).abs() * complete.renderer.uv_mask
    assert difference.mean() < 1e-3  # visibility may differ by rounding on outlines
    assert (result.code.pose[:, 1] + mirrored.code.pose[:, 1]).abs().max() < 1e-4


# ---------------------------------------------------------------- what is read and what is hidden


def test_encoder_sees_the_masked_centre_window():
    encoder, image, hole = FixedEncoder(), face_samples.picture(1, 256), rectangle()
    completion(encoder, iterations=1)(image, hole)
    expected = torch.where(hole, 0, image)[..., 16:240, 16:240]
    assert len(encoder.shown) == 1 and torch.equal(encoder.shown[0], expected)


def test_refinement_shows_the_completed_image_to_the_encoder():
    encoder, image, hole = FixedEncoder(), face_samples.picture(1, 256), rectangle()
    complete = completion(encoder, iterations=3)
    complete(image, hole)
    first = completion(FixedEncoder(), iterations=1)(image, hole).output
    assert len(encoder.shown) == 3
    assert torch.equal(encoder.shown[1], first[..., 16:240, 16:240])


def test_a_texel_with_any_hidden_pixel_in_its_sample_is_hidden():
    encoder, image = FixedEncoder(), face_samples.picture(1, 256)
    complete = completion(encoder)
    hole = torch.zeros(1, 1, 256, 256, dtype=torch.bool)
    hole[..., 130, 128] = True
    factors = complete.factor(image, hole)
    at = complete.renderer.to_uv(factors.positions)[0, :2]
    near = ((at - torch.tensor([130.0, 128])[:, None, None]).abs() < 0.999).all(0) & factors.uv_seen[0, 0]
    assert near.any() and not factors.uv_visible[0, 0][near].any()
    far = factors.uv_seen[0, 0] & ((at - torch.tensor([130.0, 128])[:, None, None]).abs() > 1.001).any(0)
    assert factors.uv_visible[0, 0][far].all()
    assert (factors.albedo_in[~factors.uv_visible.expand_as(factors.albedo_in)] == 0).all()


def test_visible_texels_are_seen_and_unhidden_and_their_albedo_is_the_image_over_the_shade():
    complete = completion(FixedEncoder(face_samples.pose(yaw=25)))
    image = face_samples.picture(1, 256)
    factors = complete.factor(image, rectangle())
    assert not (factors.uv_visible & ~factors.uv_seen).any() and (factors.uv_seen & ~factors.uv_visible).any()
    texture = complete.renderer.unwrap((image + 1) / 2, factors.positions)
    again = to_texture(factors.albedo_in, factors.uv_shade)
    chosen = factors.uv_visible.expand_as(again)
    assert (again - texture)[chosen].abs().max() < 1e-5
    assert torch.equal(complete.albedo(image, factors.positions, factors.uv_shade)[chosen], factors.albedo_in[chosen])


def test_landmarks_are_x_y_of_the_projected_vertices():
    encoder = FixedEncoder(face_samples.pose(yaw=15, x=100, y=130))
    result = completion(encoder)(face_samples.picture(1, 256), rectangle())
    model = face_samples.morphable()
    positions = project(model.mean[None], torch.tensor([1e-3]), encoder.pose, 16)
    assert torch.allclose(result.landmarks[0], positions[0, model.landmarks][:, [1, 0]], atol=1e-4)


# ---------------------------------------------------------------- results


def symmetric_face(pose):
    """A picture of a face with symmetric albedo, on a grey background, and its encoder."""
    encoder = FixedEncoder(pose)
    complete = completion(encoder, iterations=1)
    half = nn.functional.interpolate(face_samples.picture(1, 24, seed=5), size=(192, 256), mode="bilinear") * 0.5 - 0.3
    albedo = (half + mirror_uv(half)) / 2 * complete.renderer.uv_mask
    factors = complete.factor(torch.zeros(1, 3, 256, 256), torch.zeros(1, 1, 256, 256))
    rendered, coverage = complete.render_face(albedo, factors.uv_shade, factors.raster)
    return torch.where(coverage, rendered, 0.2), coverage, complete


@pytest.mark.parametrize("yaw, midline", [(0, 130), (15, 165)])
def test_hidden_half_of_a_symmetric_face_is_recovered(yaw, midline):
    image, coverage, complete = symmetric_face(face_samples.pose(yaw=yaw))
    hole = rectangle(top=100, bottom=190, left=midline + 2, right=midline + 60) & coverage
    output = complete(image, hole).output
    error = (output - image).abs()[hole.expand_as(image)]
    assert error.mean() < 0.02 and error.quantile(0.95) < 0.06  # of a range of 2


def test_no_grey_is_left_beside_the_face():
    image, coverage, complete = symmetric_face(face_samples.pose())
    hole = torch.zeros_like(coverage)
    hole[..., 60:250, 5:251] = True  # much wider than the face
    output = complete(image, hole).output
    beside = (hole & ~coverage).expand_as(output)
    assert (output[beside] != 0).all()
    assert (output[..., 60:64, 5:20] - 0.2).abs().max() < 0.1


def test_whole_face_and_whole_image_hidden():
    image, coverage, complete = symmetric_face(face_samples.pose())
    for hole in (coverage, torch.ones_like(coverage)):
        result = complete(image, hole)
        assert torch.isfinite(result.output).all() and result.output.abs().max() <= 1
        assert not result.uv_visible.any()
        assert (result.output - result.rendered)[result.coverage.expand_as(image)].abs().mean() < 0.5


def test_mesh_outside_the_image_leaves_a_two_dimensional_fill():
    image, hole = face_samples.picture(1, 256), rectangle()
    far_away = FixedEncoder(face_samples.pose(x=0, y=0), scale=1e-9)
    result = completion(far_away)(image, hole)
    assert not result.coverage.any() or result.coverage.sum() < 5
    assert torch.isfinite(result.output).all()
    assert (result.output - image).abs()[hole.expand_as(image)].mean() < 0.5


def test_a_seam_does_not_show():
    """The rendered face is too dark by a constant; after blending the border of the hole is as smooth as the image."""
    image, coverage, complete = symmetric_face(face_samples.pose())
    brighter = torch.where(coverage, image + 0.15, image)
    complete.inpainter = GreyInpainter()
    hole = rectangle(top=110, bottom=150, left=110, right=150)
    jump = (complete(brighter, hole).output - brighter)[..., 110:150, 110].abs().mean()
    assert jump < 0.05


@pytest.mark.parametrize("iterations, labelled", [(1, 2), (2, 2), (3, 3)])
def test_the_last_of_several_iterations_is_not_labelled_again(iterations, labelled):
    shown = []
    occlusion = face_samples.StandInOcclusion()
    occlusion.register_forward_hook(lambda network, inputs, labels: shown.append((inputs[0], labels)))
    image, hole = face_samples.picture(1, 256), rectangle()
    result = completion(occlusion=occlusion, iterations=iterations)(image, hole)
    assert len(shown) == labelled
    assert torch.equal(shown[0][0], torch.where(hole, 0, image)) and torch.equal(result.face, shown[-1][1])
    before = completion(occlusion=face_samples.StandInOcclusion(), iterations=max(1, iterations - 1))(image, hole)
    torch.testing.assert_close(shown[-1][0], before.output)


# ---------------------------------------------------------------- holes from the occlusion net


def test_predicted_hole_is_the_occluder_at_the_face_slightly_grown():
    image = torch.full((2, 3, 256, 256), -1.0)
    image[:, :, 60:200, 60:200] = 0.3  # face
    red = torch.tensor([1.0, -1, -1])[:, None, None]
    image[0, :, 100:140, 100:260] = red  # reaches out of the face
    image[0, :, 10:30, 10:30] = red  # something red elsewhere
    hole = completion(occlusion=face_samples.StandInOcclusion()).predict_hole(image)
    assert hole.dtype == torch.bool and hole.shape == (2, 1, 256, 256)
    assert hole[0, 0, 100:140, 100:].all() and not hole[0, 0, :90].any() and not hole[1].any()
    assert hole[0, 0, 98, 120] and not hole[0, 0, 96, 120]


def test_predicted_hole_without_any_face_in_sight_is_every_occluder():
    image = torch.full((1, 3, 224, 224), -1.0)
    image[:, 0, 10:30, 10:30] = 1.0
    assert completion(occlusion=face_samples.StandInOcclusion()).predict_hole(image)[0, 0, 10:30, 10:30].all()


def test_predicting_a_hole_needs_the_net():
    with pytest.raises(ValueError, match="occlusion net"):
        completion().predict_hole(face_samples.picture(1, 256))


def test_hair_over_the_face_does_not_colour_the_hole():
    """With an occlusion net, pixels that are no face count neither as albedo nor for the seam's correction."""
    image, coverage, _ = symmetric_face(face_samples.pose())
    hole = rectangle(top=110, bottom=150, left=140, right=180) & coverage
    hair = image.clone()
    hair[..., 60:110, 60:200] = torch.tensor([1.0, -1, -1])[:, None, None]
    with_net, without = (completion(FixedEncoder(), net)(hair, hole) for net in (face_samples.StandInOcclusion(), None))
    hidden = hole.expand_as(image)
    error, error_without = ((result.output - image)[hidden].abs().mean() for result in (with_net, without))
    assert error < error_without / 2
    red, green = ([result.albedo_in[:, channel] for result in (with_net, without)] for channel in (0, 1))
    redness, redness_without = ((one - other).max() for one, other in zip(red, green))
    assert redness < redness_without - 0.5


def test_eyes_and_teeth_are_face_and_what_touches_the_hole_is_not():
    probability = torch.zeros(1, 1, 256, 256)
    probability[..., 40:220, 40:220] = 0.9
    eyes, dark_patch, beside_the_hole = ((80, 70, 15), (80, 150, 15)), (150, 60, 40), (120, 178, 10)
    for top, left, size in (*eyes, dark_patch, beside_the_hole):
        probability[..., top:top + size, left:left + size] = 0.1
    hole = rectangle(top=100, bottom=180, left=188, right=210)
    filled = with_features(probability, hole)[0, 0]
    assert (filled[80:95, 70:85] == 1).all() and (filled[80:95, 150:165] == 1).all()
    assert torch.equal(filled[110:], probability[0, 0, 110:]) and torch.equal(filled[:70], probability[0, 0, :70])


def test_a_face_that_the_net_does_not_find_is_seen_all_the_same():
    image = torch.full((1, 3, 256, 256), -0.95)  # all background
    complete, hole = completion(), rectangle()
    everything = complete.factor(image, hole).uv_visible
    assert everything.any()
    for face, same in ((0.0, True), (0.03, True), (0.9, False)):
        region = torch.zeros(1, 1, 256, 256)
        region[..., :120] = face
        assert torch.equal(complete.factor(image, hole, face=region).uv_visible, everything) == same


# ---------------------------------------------------------------- as a module


def test_wrong_shapes_are_errors():
    complete = completion()
    for image, hole in ((face_samples.picture(1, 192), rectangle(size=192)),
                        (face_samples.picture(1, 256), rectangle(size=224)),
                        (face_samples.picture(2, 256), rectangle()),
                        (face_samples.picture(1, 256)[:, :1], rectangle())):
        with pytest.raises(ValueError, match="expected"):
            complete(image, hole)
    with pytest.raises(ValueError, match="iterations"):
        completion(iterations=0)


def test_empty_batch():
    with pytest.raises(ValueError, match="empty"):
        completion()(torch.zeros(0, 3, 256, 256), torch.zeros(0, 1, 256, 256))


def test_no_global_switch_is_touched_and_nothing_is_tracked():
    assert torch.is_grad_enabled()
    complete = completion()
    assert torch.is_grad_enabled()
    result = complete(face_samples.picture(1, 256), rectangle())
    assert torch.is_grad_enabled() and not result.output.requires_grad


def test_geometry_stays_in_float32_under_autocast():
    image, hole = face_samples.picture(1, 256), rectangle()
    expected = completion().factor(image, hole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_identical(expected, completion().factor(image, hole))


def test_training_can_differentiate_through_factors_and_rendering():
    class Trained(face_samples.StandInEncoder):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, image):
            return super().forward(image * self.gain)

    encoder = Trained()
    complete = completion(encoder)
    factors = complete.factor(face_samples.picture(1, 256), rectangle())
    albedo = factors.albedo_in.detach().requires_grad_()
    rendered, coverage = complete.render_face(albedo, factors.uv_shade, factors.raster)
    rendered.square().mean().backward()
    assert encoder.gain.grad.abs() > 0 and torch.isfinite(encoder.gain.grad)
    assert (albedo.grad != 0).float().mean() > 0.2 and torch.isfinite(albedo.grad).all()


@pytest.mark.slow
def test_real_networks_keep_the_invariants():
    torch.manual_seed(0)
    complete = FaceCompletion(Encoder(), Inpainter(mirror=mirror_uv), face_samples.morphable(), iterations=1).eval()
    image, hole = face_samples.picture(2, 256), rectangle(2)
    together = complete(image, hole)
    assert_identical(together, complete(torch.where(hole, 0.5, image), hole))
    assert_identical(together, complete(image[1:2], hole[1:2]), lambda tensor: tensor[1:2])
    complete.one_by_one = False
    difference = (complete(image, hole).output - together.output).abs()
    assert difference.max() < 1.01 / 127.5  # a grey level, where rounding tips the 8-bit fill beside the face
    assert (difference > 1e-4).float().mean() < 0.01
