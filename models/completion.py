"""Completing a face: factorise, inpaint the albedo, render (the paper's figure 2 as code).

This is the one way an image is completed. Images are (B, 3, H, W) in [-1, 1], either the aligned 256 px crop or its
centre 224 px window; holes (B, 1, H, W), 1 or True = hidden. Nothing reads a hidden pixel: they become 0 first of all.
"""
from __future__ import annotations

import contextlib
from dataclasses import dataclass, fields

import cv2
import numpy as np
import torch
from scipy import ndimage
from torch import nn

import zbuffer
from datasets.labels import FACE, OCCLUSION
from models import lighting
from models.blending import blend, fill_beside, from_uint8, keep_grey, least_around, to_uint8
from models.encoder import FaceCode
from models.grain import match_grain
from models.layers import compute_in
from models.morphable import MorphableModel
from models.renderer import WINDOW_SIZE, Renderer, project
from utils.threads import map_items

__all__ = ["Completion", "FaceCompletion", "Factors", "from_uint8", "to_uint8"]

CROP_SIZE = 256
FACE_REACH = 8  # pixels between a face and an occluder that belongs to it
OCCLUSION_MARGIN = 2  # pixels by which a predicted occluder grows, to take its soft outline along
MIN_OCCLUSION = 0.5  # probability
SURELY_NO_HAIR = -3.0  # log odds that occlusion is hair from which there is no doubt
SURE_SHARE = 0.2  # of a region without which it is hair
FACE_RIM = 1  # pixels along the outline of the visible face whose colours are not trusted: hair and skin mix there
MIN_FACE = 0.5  # probability from which a pixel is face
TRUST_POWER = 4  # of the probability that a pixel shows the face: much hair with a little probability must not add up
MIN_TRUST = MIN_FACE ** TRUST_POWER  # from which a pixel says something about the face's albedo
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))  # a pixel and its neighbours
FEATURE = 600  # pixels of an eye or an open mouth at most
FEW_TEXELS = 30  # of the UV map; a face of fewer is no face that the occlusion net found
MIN_FACING = 0.3  # cosine to the camera from which a surface is looked at: beyond, light and albedo are hardly known


@dataclass(frozen=True)
class Factors:
    """The 3D factorization of B images, everything before the inpainter.

    code: the encoder's :class:`~models.encoder.FaceCode`, in float32. vertices (B, V, 3) micrometres; positions
    (B, V, 3) [row, column, depth] in the image; raster: the mesh's :class:`zbuffer.Rasterization` there.
    UV maps: uv_normals (B, 3, 192, 256) unit; uv_shade (B, 3, 192, 256), not clamped; uv_seen (B, 1, 192, 256) bool:
    the camera sees the texel, as far as the geometry goes; uv_visible bool: seen, not too much from the side
    (MIN_FACING), and no hidden pixel in its sample;
    albedo_in (B, 3, 192, 256) in the inpainter's range [-1, 1], 0 where not visible.
    """

    code: FaceCode
    vertices: torch.Tensor
    positions: torch.Tensor
    raster: zbuffer.Rasterization
    uv_normals: torch.Tensor
    uv_shade: torch.Tensor
    uv_seen: torch.Tensor
    uv_visible: torch.Tensor
    albedo_in: torch.Tensor


@dataclass(frozen=True)
class Completion:
    """A completed batch and how it came about (from the last refinement iteration).

    output (B, 3, H, W) in [-1, 1], bit-identical to the input outside the hole; hole (B, 1, H, W) bool.
    code, vertices, positions, uv_shade, uv_visible, albedo_in: as in :class:`Factors`. landmarks (B, 68, 2): x
    (column), y (row) in image pixels. albedo_out (B, 3, 192, 256) in [-1, 1] and confidence (B, 1, 192, 256)
    log-uncertainty: the inpainter's output. texture_out (B, 3, 192, 256) in [-1, 1]: albedo_out under uv_shade, -1
    outside the face. rendered (B, 3, H, W): the rendered face in [-1, 1] before blending, 0 outside coverage
    (B, 1, H, W) bool.
    face (B, 3, H, W): label probabilities of the completed image, with several iterations of the one that the last
    iteration started from; None without an occlusion net.
    """

    output: torch.Tensor
    hole: torch.Tensor
    code: FaceCode
    vertices: torch.Tensor
    positions: torch.Tensor
    landmarks: torch.Tensor
    uv_shade: torch.Tensor
    uv_visible: torch.Tensor
    albedo_in: torch.Tensor
    albedo_out: torch.Tensor
    confidence: torch.Tensor
    texture_out: torch.Tensor
    rendered: torch.Tensor
    coverage: torch.Tensor
    face: torch.Tensor | None


class FaceCompletion(nn.Module):
    """Completes masked faces with an encoder E, an albedo inpainter G and a morphable model.

    encoder: image (B, 3, 224, 224) -> FaceCode. inpainter: (albedo, visible) -> Inpainting; it should mirror with
    `models.morphable.mirror_uv`. occlusion: image -> label probabilities: which of the visible pixels show the face,
    and for :meth:`predict_hole` the hole; without it all visible pixels of the mesh count as face.
    iterations: refinements; from the second on E sees the completed image (paper section 3.3).
    refiner: `models.refiner.Refiner`, corrects the colours of the drawn face in the last iteration and fills in what is
    beside it (no part of the paper). grain: give the fill the sharpness and grain of the visible pixels (no part of the
    paper).
    one_by_one: complete the images of a batch one after another, so that an image's pixels do not depend on the batch
    in a single bit (libraries choose other convolution algorithms for other batch sizes); False is faster on a GPU and
    agrees but for rounding, which can tip a pixel by a grey level.
    dtype: what the networks compute in; below float32 under autocast, which wants convolutions of float32 or of this
    (`models.layers.fold_for_inference`).

    Put it in evaluation mode before completing. Geometry and light are computed in float32 whatever the networks are.
    """

    def __init__(self, encoder: nn.Module, inpainter: nn.Module, morphable: MorphableModel,
                 occlusion: nn.Module | None = None, iterations: int = 2, one_by_one: bool = True,
                 grain: bool = False, refiner: nn.Module | None = None, dtype: torch.dtype = torch.float32):
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        self.encoder = encoder
        self.inpainter = inpainter
        self.refiner = refiner
        self.morphable = morphable
        self.renderer = Renderer(morphable)
        self.occlusion = occlusion
        self.iterations = iterations
        self.one_by_one = one_by_one
        self.grain = grain
        self.dtype = dtype

    @torch.no_grad()
    def forward(self, image: torch.Tensor, hole: torch.Tensor) -> Completion:
        """Complete image (B, 3, H, W) in [-1, 1] inside its hole (B, 1, H, W); H = W = 256 or 224.

        Raises ValueError if a shape is wrong.
        """
        check_images(image, hole)
        hole = hole > 0.5
        if not self.one_by_one:
            return self._complete(image, hole)
        return _concatenate([self._complete(image[i:i + 1], hole[i:i + 1]) for i in range(len(image))])

    def factor(self, image: torch.Tensor, hole: torch.Tensor, seen: torch.Tensor | None = None,
               face: torch.Tensor | None = None) -> Factors:
        """Factorise image (B, 3, H, W) around its hole (B, 1, H, W).

        seen (B, 3, H, W): what E looks at instead of the masked image, such as an earlier completion. face (B, 1, H, W)
        from :func:`visible_face`: texels that show hair or glasses are not visible then, unless hardly any texel
        remains. Differentiable unless the caller says otherwise. Raises ValueError if a shape is wrong.
        """
        check_images(image, hole)
        hole = hole > 0.5
        image = torch.where(hole, 0, image)
        offset = (image.shape[-1] - WINDOW_SIZE) // 2
        window = slice(offset, offset + WINDOW_SIZE)
        with self._networks():
            code = self.encoder((image if seen is None else seen)[..., window, window])
        code = type(code)(*(part.float() for part in code))
        vertices = self.morphable.vertices(code.shape)
        positions = project(vertices, code.scale, code.pose, offset)
        raster = self.renderer.rasterize(positions, image.shape[-2:])
        normals = self.renderer.uv_normals(vertices, code.pose)
        uv_shade = self.renderer.uv_shade(normals, code.light)
        seen_texels = self.renderer.uv_visibility(positions, normals, raster)
        maps = [image, hole.to(image.dtype)] + ([] if face is None else [face.to(image.dtype)])
        unwrapped = self.renderer.unwrap(torch.cat(maps, dim=1), positions)
        visible = seen_texels & ~(unwrapped[:, 3:4] > 0) & (normals[:, 2:3] >= MIN_FACING)
        if face is not None:
            on_face = visible & (unwrapped[:, 4:] >= MIN_TRUST)
            enough = on_face.sum((1, 2, 3), keepdim=True) >= FEW_TEXELS
            visible = torch.where(enough, on_face, visible)
        albedo = torch.where(visible, lighting.to_albedo((unwrapped[:, :3] + 1) / 2, uv_shade), 0)
        return Factors(code, vertices, positions, raster, normals, uv_shade, seen_texels, visible, albedo)

    def albedo(self, image: torch.Tensor, positions: torch.Tensor, uv_shade: torch.Tensor) -> torch.Tensor:
        """Unwrap an image with given geometry and divide it by its shade: (B, 3, 192, 256) in [-1, 1], 0 off the face.

        With the unmasked image and the geometry of the masked one this is the inpainter's target where `uv_seen`.
        """
        albedo = lighting.to_albedo((self.renderer.unwrap(image, positions) + 1) / 2, uv_shade)
        return torch.where(self.renderer.uv_mask, albedo, 0)

    def render_face(self, albedo: torch.Tensor, uv_shade: torch.Tensor,
                    raster: zbuffer.Rasterization) -> tuple[torch.Tensor, torch.Tensor]:
        """Albedo (B, 3, 192, 256) in [-1, 1] under its shade -> image (B, 3, H, W) around [-1, 1], 0 outside its
        coverage (B, 1, H, W) bool. Differentiable."""
        texture, coverage = self.renderer.render_covered(lighting.to_texture(albedo.float(), uv_shade), raster)
        return torch.where(coverage, 2 * texture - 1, 0), coverage

    @torch.no_grad()
    def predict_hole(self, image: torch.Tensor, hair: bool = True) -> torch.Tensor:
        """The occluders in front of the faces in image (B, 3, H, W): (B, 1, H, W) bool.

        Regions of the occlusion class (probability >= 0.5) that come within FACE_REACH pixels of the face class, grown
        by OCCLUSION_MARGIN; where no face is seen at all, all such regions. hair: whether the face's own hair counts as
        occluder, where the net can tell. Raises ValueError without an occlusion net.
        """
        if self.occlusion is None:
            raise ValueError("predicting the hole needs an occlusion net")
        if hair:
            return occluders(self.label(image))
        items = image.split(1) if self.one_by_one else [image]
        with self._networks():
            labels, hair_odds = (torch.cat(parts) for parts in zip(*map(self.occlusion.with_hair, items)))
        return occluders(labels.float(), hair_odds)

    @torch.no_grad()
    def label(self, image: torch.Tensor) -> torch.Tensor:
        """Label probabilities (B, 3, H, W) of image (B, 3, H, W), by the occlusion net, which must be there."""
        items = image.split(1) if self.one_by_one else [image]
        with self._networks():
            return torch.cat([self.occlusion(item).float() for item in items])

    def _networks(self) -> contextlib.AbstractContextManager:
        """In which networks are called."""
        return compute_in(self.dtype, self.renderer.uv_mask.device)

    def trusted(self, labels: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
        """How far the pixels around the hole show the face, (B, 1, H, W), for label probabilities (B, 3, H, W)."""
        return visible_face(with_features(labels[:, FACE:FACE + 1], hole), hole)

    def _complete(self, image: torch.Tensor, hole: torch.Tensor) -> Completion:
        masked = torch.where(hole, 0, image)
        seen, face = None, None if self.occlusion is None else self.label(masked)
        for iteration in range(self.iterations):
            known = None if face is None else self.trusted(face, hole)
            factors = self.factor(image, hole, seen, known)
            with self._networks():
                inpainted = self.inpainter(factors.albedo_in, factors.uv_visible.to(image.dtype))
            rendered, coverage = self.render_face(inpainted.albedo, factors.uv_shade, factors.raster)
            surface = coverage * (~hole if known is None else known)
            covered = blend(masked, hole & coverage, rendered, surface.to(image.dtype))
            if self.refiner is not None and iteration + 1 == self.iterations:
                with self._networks():
                    filled = self.refiner(masked, covered, hole, coverage).picture.float()
            else:
                filled = fill_beside(covered, hole & ~coverage, coverage)
            seen = keep_grey(filled, hole)
            # What a last iteration of several changes is too little to be labelled again (docs/speed.md).
            if self.occlusion is not None and (iteration == 0 or iteration + 1 < self.iterations):
                face = self.label(seen)
        if self.grain:
            skin = coverage if face is None else face[:, FACE:FACE + 1] >= MIN_FACE
            seen = match_grain(seen, hole, skin)
        texture = lighting.to_texture(inpainted.albedo.float(), factors.uv_shade)
        return Completion(
            output=torch.where(hole, seen, image), hole=hole, code=factors.code, vertices=factors.vertices,
            positions=factors.positions, landmarks=factors.positions[:, self.morphable.landmarks, :2].flip(-1),
            uv_shade=factors.uv_shade, uv_visible=factors.uv_visible, albedo_in=factors.albedo_in,
            albedo_out=inpainted.albedo.float(), confidence=inpainted.confidence.float(),
            texture_out=torch.where(self.renderer.uv_mask, (2 * texture - 1).clamp(-1, 1), -1),
            rendered=rendered.clamp(-1, 1), coverage=coverage,
            face=face)


def check_images(image: torch.Tensor, hole: torch.Tensor) -> None:
    """Raises ValueError unless these are aligned images and their holes."""
    if image.dim() != 4 or image.shape[1] != 3 or tuple(image.shape[2:]) not in ((CROP_SIZE,) * 2, (WINDOW_SIZE,) * 2):
        raise ValueError(f"expected aligned images (B, 3, {CROP_SIZE}, {CROP_SIZE}) or their (B, 3, {WINDOW_SIZE}, "
                         f"{WINDOW_SIZE}) windows, got {tuple(image.shape)}")
    if not len(image):
        raise ValueError("the batch is empty")
    if hole.shape != (len(image), 1, *image.shape[2:]):
        raise ValueError(f"expected a hole of shape {(len(image), 1, *image.shape[2:])}, got {tuple(hole.shape)}")


def visible_face(probability: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """How far each pixel may be trusted to show the face's colours, in [0, 1]: (B, 1, H, W).

    probability (B, 1, H, W) that it is face; hole (B, 1, H, W) bool. Its least value at the pixel and its neighbours
    (the outlines of face and hole are mixed with hair, glasses and background), to the power TRUST_POWER.
    """
    least = least_around(probability * ~hole, FACE_RIM)
    return least.square() ** (TRUST_POWER / 2)  # PyTorch has fast squares, but no fast fourth power


def with_features(probability: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """The probability (B, 1, H, W) that a pixel is face, 1 in small islands inside the face: eyes and teeth.

    The segmentation net is unsure of them, or takes the mouth's inside for background. Islands that touch the hole
    (B, 1, H, W) bool, or have more than FEATURE pixels, stay as they are.
    """
    face, hidden = (part[:, 0].cpu().numpy() for part in (probability >= MIN_FACE, hole))
    islands = torch.from_numpy(np.stack(map_items(_islands, face, hidden)))
    return probability.masked_fill(islands[:, None].to(probability.device), 1)


def _islands(face: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """The islands of :func:`with_features`, bool (H, W), between what is face and what is hidden, bool (H, W)."""
    count, regions, boxes, _ = cv2.connectedComponentsWithStats((~(face | hidden)).astype(np.uint8), connectivity=4)
    left, top, width, height, size = boxes.T
    kept = (left > 0) & (top > 0) & (left + width < face.shape[1]) & (top + height < face.shape[0])
    kept &= size <= FEATURE
    kept[0] = False  # face and hole
    kept[regions[cv2.dilate(hidden.astype(np.uint8), CROSS) > 0]] = False
    islands = np.zeros_like(face)
    for island in np.flatnonzero(kept):
        box = (slice(top[island], top[island] + height[island]), slice(left[island], left[island] + width[island]))
        islands[box] |= regions[box] == island
    return islands


def occluders(probabilities: torch.Tensor, hair_odds: torch.Tensor | None = None) -> torch.Tensor:
    """The hole, (B, 1, H, W) bool, for label probabilities (B, 3, H, W); see `FaceCompletion.predict_hole`.

    hair_odds (B, 1, H, W): log odds that occlusion is the face's own hair, which then is no part of the hole.
    """
    found = (probabilities[:, OCCLUSION] >= MIN_OCCLUSION).cpu().numpy()
    face = (probabilities.argmax(1) == FACE).cpu().numpy()
    if hair_odds is not None:
        found = map_items(_no_hair, found, hair_odds[:, 0].cpu().numpy())
    holes = np.stack(map_items(_occluders, found, face))
    return torch.from_numpy(holes[:, None]).to(probabilities.device)


def _no_hair(occluded: np.ndarray, hair_odds: np.ndarray) -> np.ndarray:
    """Of `occluded` (H, W) bool the connected regions that are rather something else, and surely so in some part: tufts
    of hair that the net is unsure of are hair. hair_odds (H, W): log odds."""
    regions, count = ndimage.label(occluded & (hair_odds <= 0))
    sure = ndimage.sum_labels(hair_odds < SURELY_NO_HAIR, regions, np.arange(count + 1))
    kept = sure >= SURE_SHARE * np.bincount(regions.ravel(), minlength=count + 1)
    kept[0] = False
    return kept[regions]


def _occluders(occluded: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Connected regions of `occluded` (H, W) bool near the face (H, W) bool, slightly grown."""
    if face.any():
        regions, _ = ndimage.label(occluded)
        reachable = ndimage.distance_transform_edt(~face) <= FACE_REACH
        occluded = occluded & np.isin(regions, np.unique(regions[reachable & occluded]))
    return ndimage.binary_dilation(occluded, iterations=OCCLUSION_MARGIN)


def _concatenate(items: list[Completion]) -> Completion:
    def join(values: list):
        if values[0] is None:
            return None
        if isinstance(values[0], tuple):
            return type(values[0])(*(join(list(parts)) for parts in zip(*values)))
        return torch.cat(values)

    names = [field.name for field in fields(Completion)]
    return Completion(**{name: join([getattr(item, name) for item in items]) for name in names})
