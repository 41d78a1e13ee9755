"""Training of the encoder on faces with full ground truth: masked image -> shape, pose, light (paper section 3.1).

Everything is learnt from the masked image, as at inference. Shape and pose are compared where it matters: as positions
of landmarks and of some hundred vertices in the picture (pixels), their depth, and the head in its own frame
(millimetres); coefficients count by the displacement that they cause, since a plain mean over them would be ruled by
the smallest ones and shrink every face to the average.
"""
from __future__ import annotations

from typing import Any, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from datasets.alignment import CROP_SIZE, WINDOW_OFFSET, WINDOW_SIZE, window
from datasets.labels import FACE, OCCLUSION
from engine import report
from engine.augmentation import Similarity, colour_jitter
from engine.framing import settle
from engine.losses import pixel_loss
from engine.stage import Autocast, Stage
from engine.training_holes import Shapes, rectangles_on
from models.blending import from_uint8
from models.encoder import LIGHT_SIZE
from models.lighting import MIN_SHADE, ODD_IN_X
from models.morphable import mirror_uv
from models.renderer import project, rotation
from utils.device import send

VERTICES = 900  # compared besides the landmarks; all of them would only cost time
OUTER_EYES = (36, 45)  # of the 68 iBUG landmarks; their distance is the unit of the landmark error
TRUSTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of `engine.framing.settle` that validation tries
TYPICAL_SCALE = 1e-3  # half the encoder's range
HOLE_SHARES = {"none": 0.25, "rectangle": 0.5, "blobs": 0.15, "occluder": 0.1}  # of the training images
# Faces whose crops stay about as the aligner made them. Where a hole leaves little to see, the frame says most about a
# head's place: crops are off by 3 % in size, 1 degree and 1 pixel, so larger changes throughout would hide that.
CALM_SHARE = 0.75
DEFAULT_WEIGHTS = {"landmarks": 1.0, "vertices": 1.0, "depth": 0.3, "head": 0.5, "rotation": 1.0, "scale": 0.5,
                   "translation": 0.3, "coefficients": 1.0, "light": 2.0, "albedo": 0.0, "render": 0.0}


class Geometry(nn.Module):
    """The landmarks and a fixed choice of vertices of a morphable model, for cheap comparisons.

    model: `models.morphable.MorphableModel`; parity: (228,) +-1, how each coefficient's displacement behaves when the
    face is mirrored (None: unknown, then no mirror images are used); mean, std: (228,) of the raw coefficients.
    """

    def __init__(self, model: nn.Module, parity: np.ndarray | None, mean: np.ndarray, std: np.ndarray):
        super().__init__()
        count = len(model.mean)
        chosen = np.random.default_rng(0).permutation(count)[:VERTICES]
        index = torch.cat([model.landmarks.cpu(), torch.from_numpy(np.sort(chosen))])
        basis = model.basis.reshape(len(model.basis), count, 3)
        self.register_buffer("mean", model.mean[index])
        self.register_buffer("basis", basis[:, index].reshape(len(basis), -1))
        size = basis.square().sum(-1).mean(-1).sqrt()  # micrometres that one sigma moves a vertex
        self.register_buffer("importance", size / size.mean())
        self.can_mirror = parity is not None
        parity = np.ones(len(basis)) if parity is None else parity
        # mirrored normalised coefficient = parity * normalised + offset
        self.register_buffer("parity", torch.as_tensor(parity, dtype=torch.float32))
        self.register_buffer("offset", torch.as_tensor((parity - 1) * mean / std, dtype=torch.float32))

    def head(self, shape: Tensor) -> Tensor:
        """Normalised coefficients (B, 228) -> points (B, 68 + 900, 3) in micrometres, landmarks first."""
        return self.mean + (shape @ self.basis).unflatten(1, (-1, 3))

    @staticmethod
    def project(points: Tensor, turn: Tensor, scale: Tensor, translation: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (B, N, 2) in window pixels, y upwards, and depth (B, N) in micrometres."""
        seen = points @ turn.transpose(1, 2)
        return seen[..., :2] * scale[:, None, None] + translation[:, None], seen[..., 2]


class EncoderStage(Stage):
    """Encoder (and, where the albedo terms have weight, the albedo decoder)."""

    name, metric, higher_is_better = "encoder", "nme", False
    gradient_clip = 50.0

    def __init__(self, encoder: nn.Module, albedo_decoder: nn.Module, geometry: Geometry, renderer: Any = None,
                 weights: Mapping[str, float] | None = None, definition_name: str = "builtin",
                 albedo_every: int = 4, albedo_items: int = 4):
        weights = {**DEFAULT_WEIGHTS, **(weights or {})}
        self.uses_albedo = weights["albedo"] > 0 or weights["render"] > 0
        networks = {"encoder": encoder, **({"albedo_decoder": albedo_decoder} if self.uses_albedo else {})}
        frozen = {"geometry": geometry, **({"renderer": renderer} if renderer else {})}
        super().__init__(networks, weights, frozen=frozen)
        self.geometry, self.renderer, self.definition_name = geometry, renderer, definition_name
        self.albedo_every, self.albedo_items = albedo_every, albedo_items
        self.frame_trust = 0.0  # the best of TRUSTS at the last validation
        self.usual_light: list[float] | None = None  # mean over the faces of the last validation

    def metadata(self) -> dict[str, Any]:
        light = {} if self.usual_light is None else {"usual_light": self.usual_light}
        return {"definition": self.definition_name, "frame_trust": self.frame_trust, **light}

    def restore(self, metadata: Mapping[str, Any]) -> None:
        """Trust and usual light, which only validation measures."""
        self.frame_trust = float(metadata.get("frame_trust", self.frame_trust))
        self.usual_light = metadata.get("usual_light", self.usual_light)

    def losses(self, batch, rngs, autocast: Autocast, step: int):
        """Those of DEFAULT_WEIGHTS on masked windows; nothing for critics. Shapes as of `engine.stage.Stage.losses`."""
        image, truth = self._augment(batch, rngs)
        with autocast():
            code = self.networks["encoder"](image)
        losses = self._geometry_losses(code, truth)
        if self.uses_albedo and step % self.albedo_every == 0:
            losses.update(self._albedo_losses(code, truth, autocast))
        return losses, None

    def _augment(self, batch: Mapping[str, Any],
                 rngs: Sequence[np.random.Generator]) -> tuple[Tensor, dict[str, Tensor]]:
        """Masked windows (B, 3, 224, 224) and the ground truth after the same change."""
        device = batch["image"].device
        change = Similarity.draw(rngs, device, mirror=self.geometry.can_mirror, calm=CALM_SHARE)
        regions = torch.stack([batch["labels"] == FACE, batch["labels"] == OCCLUSION], 1).float()
        warped = change.warp(torch.cat([from_uint8(batch["image"]), regions], 1))
        image = colour_jitter(warped[:, :3], rngs)
        hole = training_holes(rngs, warped[:, 3:] > 0.5)
        mirror = change.mirror[:, None]
        shape = torch.where(mirror, batch["shape"] * self.geometry.parity + self.geometry.offset, batch["shape"])
        turn, scale, translation = change.pose(rotation(batch["pose"]), batch["scale"],
                                               0.5 * (batch["pose"][:, 3:] + 1) * WINDOW_SIZE)
        truth = {"shape": shape, "rotation": turn, "scale": scale, "translation": translation, "image": warped[:, :3],
                 "light": change.light(batch["light"]), "face": warped[:, 3:4] > 0.5}
        if self.weights["albedo"] > 0:
            albedo = batch["albedo"].float() / 255
            truth["albedo"] = torch.where(mirror[..., None, None], mirror_uv(albedo), albedo)
        return image * ~hole, truth

    def _geometry_losses(self, code, truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
        geometry = self.geometry
        head, true_head = geometry.head(code.shape), geometry.head(truth["shape"])
        turn, translation = rotation(code.pose), 0.5 * (code.pose[:, 3:] + 1) * WINDOW_SIZE
        place, depth = geometry.project(head, turn, code.scale, translation)
        true_place, true_depth = geometry.project(true_head, truth["rotation"], truth["scale"], truth["translation"])
        distance = (place - true_place).abs().sum(-1)
        depth, true_depth = (value - value.mean(1, keepdim=True) for value in (depth, true_depth))
        return {
            "landmarks": distance[:, :68].mean(),
            "vertices": distance.mean(),
            "depth": (depth - true_depth).abs().mean() * 1e-3,
            "head": (head - true_head).abs().sum(-1).mean() * 1e-3,
            "rotation": 10 * (turn - truth["rotation"]).abs().sum((1, 2)).mean(),
            "scale": 20 * (code.scale - truth["scale"]).abs().mean() / TYPICAL_SCALE,
            "translation": (translation - truth["translation"]).abs().sum(1).mean(),
            "coefficients": ((code.shape - truth["shape"]).square() * geometry.importance).mean(),
            "light": (code.light - truth["light"]).abs().mean(),
        }

    def _albedo_losses(self, code, truth: Mapping[str, Tensor], autocast: Autocast) -> dict[str, Tensor]:
        """Decoded against true UV albedo, and the face drawn with it against the picture, on a few items.

        The picture is enough for the second (the photometric loss of real faces): light has labels of its own.
        """
        few = slice(0, self.albedo_items)
        with autocast():
            decoded = self.networks["albedo_decoder"](code.albedo[few])
        albedo = (decoded.float() + 1) / 2
        losses = {}
        if self.weights["albedo"] > 0:
            losses["albedo"] = pixel_loss(albedo, truth["albedo"][few])
        if self.weights["render"] > 0:
            drawn, covered = draw(self.renderer, code, albedo)
            losses["render"] = pixel_loss(drawn * 2 - 1, truth["image"][few], mask=covered & truth["face"][few])
        return losses

    def validate(self, networks, batch, rngs, autocast: Autocast) -> Tensor:
        """Sums of the landmark error on whole and masked images for each of TRUSTS, of both lights, and the count."""
        image, labels = window(from_uint8(batch["image"])), window(batch["labels"][:, None])
        hole = rectangles_on(labels == FACE, rngs)
        sums, light = [], torch.zeros(LIGHT_SIZE, device=image.device)
        for masked in (image, image * ~hole):
            with autocast():
                code = networks["encoder"](masked)
            sums += [landmark_error(self._settled_landmarks(code, trust), batch["landmarks"]).sum() for trust in TRUSTS]
            light = light + code.light.float().sum(0) / 2
        return torch.cat([torch.stack(sums), light, light.new_full((1,), len(image))])

    def score(self, statistics: Tensor) -> dict[str, float]:
        """Landmark errors in % of the outer eye distance by the best of TRUSTS; keeps that and the usual light."""
        errors, light = (statistics[:-1] / statistics[-1]).split([2 * len(TRUSTS), LIGHT_SIZE])
        whole, masked = errors.reshape(2, len(TRUSTS))
        best = int((whole + masked).argmin())
        light = light.unflatten(0, (3, 9)).index_fill(1, torch.tensor(ODD_IN_X), 0.0)  # as mirror images would make it
        self.frame_trust, self.usual_light = TRUSTS[best], light.flatten().tolist()
        return {"nme": float(whole[best] + masked[best]) / 2, "nme_whole": float(whole[best]),
                "nme_masked": float(masked[best]), "frame_trust": self.frame_trust}

    def _settled_landmarks(self, code, trust: float) -> Tensor:
        """The landmarks (B, 68, 2) in crop pixels after `engine.framing.settle`."""
        settled = settle(code, crop_landmarks(code.shape, code.scale, code.pose, self.geometry), trust)
        return crop_landmarks(settled.shape, settled.scale, settled.pose, self.geometry)

    def pictures(self, networks, batch, rngs) -> Tensor:
        """Held-out faces with their true (green) and found (red) landmarks."""
        image = from_uint8(batch["image"][:8])
        code = networks["encoder"](window(image))
        found = self._settled_landmarks(code, self.frame_trust)
        for colour, points in (((-1, 1, -1), batch["landmarks"][:8]), ((1, -1, -1), found)):
            place = points.round().long().clamp(0, CROP_SIZE - 1)
            for index in range(len(image)):
                image[index, :, place[index, :, 1], place[index, :, 0]] = \
                    send(torch.tensor(colour, dtype=image.dtype), image.device)[:, None]
        return report.tile([list(image)[:4], list(image)[4:]] if len(image) == 8 else [list(image)])


def crop_landmarks(shape: Tensor, scale: Tensor, pose: Tensor, geometry: Geometry) -> Tensor:
    """The 68 landmarks (B, 68, 2), (x, y) in pixels of the 256 crop, y downwards, of what the encoder returns."""
    translation = 0.5 * (pose[:, 3:] + 1) * WINDOW_SIZE
    place, _ = geometry.project(geometry.head(shape)[:, :68], rotation(pose), scale, translation)
    return torch.stack([place[..., 0], WINDOW_SIZE - 1 - place[..., 1]], -1) + WINDOW_OFFSET


def draw(renderer: Any, code, albedo: Tensor) -> tuple[Tensor, Tensor]:
    """The first N faces of a FaceCode: picture (N, 3, 224, 224) in [0, 1] units, coverage (N, 1, 224, 224) bool.

    albedo: (N, 3, 192, 256), in [0, 1].
    """
    shape, scale, pose, light = (value[:len(albedo)] for value in (code.shape, code.scale, code.pose, code.light))
    vertices = renderer.morphable.vertices(shape)
    raster = renderer.rasterize(project(vertices, scale, pose), (WINDOW_SIZE, WINDOW_SIZE))
    shade = renderer.uv_shade(renderer.uv_normals(vertices, pose), light).clamp(min=MIN_SHADE)
    return renderer.render_covered(albedo * shade, raster)


def landmark_error(landmarks: Tensor, truth: Tensor) -> Tensor:
    """Mean distance of the landmarks (B, 68, 2) in % of the true outer eye distance, (B,)."""
    eyes = (truth[:, OUTER_EYES[0]] - truth[:, OUTER_EYES[1]]).norm(dim=-1)
    return 100 * (landmarks - truth).norm(dim=-1).mean(1) / eyes


def training_holes(rngs: Sequence[np.random.Generator], regions: Tensor) -> Tensor:
    """Random holes (B, 1, H, W) bool, of the kinds and shares of HOLE_SHARES.

    rngs: one source of randomness a face. regions: bool (B, 2, H, W), face and occluder. Rectangles lie on the face, as
    in evaluation; blobs anywhere; an occluder becomes the hole that covers it.
    """
    shapes, kinds = Shapes(*regions.shape[2:]), []
    for rng in rngs:
        kinds.append(str(rng.choice(list(HOLE_SHARES), p=list(HOLE_SHARES.values()))))
        if kinds[-1] == "rectangle":
            shapes.add_rectangle(rng)
        elif kinds[-1] == "blobs":
            shapes.add_ellipses(rng)
        else:
            shapes.add_nothing()
    is_kind = {name: send(torch.tensor([kind == name for kind in kinds]), regions.device)[:, None, None, None]
               for name in ("rectangle", "occluder")}
    holes = shapes.draw(regions.device) & (regions[:, :1] | ~is_kind["rectangle"])
    return torch.where(is_kind["occluder"], regions[:, 1:], holes)


@torch.no_grad()
def prepare_encoder(encoder: nn.Module, mean_light: Tensor, mean_translation: Tensor) -> None:
    """Starts the encoder at the average face: small last layers, light and translation at their means.

    mean_light: (27,); mean_translation: (2,) in window pixels. The other outputs start near 0: the average shape, a
    frontal head at half the largest scale.
    """
    for layer in (encoder.pose_linear, encoder.shape_linear, encoder.light_linear):
        layer.weight.mul_(0.3)
        layer.bias.zero_()
    encoder.light_linear.bias.copy_(mean_light)
    encoder.pose_linear.bias[4:].copy_(torch.atanh((mean_translation / WINDOW_SIZE * 2 - 1).clamp(-0.95, 0.95)))


def mean_ground_truth(dataset, items: int = 64) -> tuple[Tensor, Tensor]:
    """Mean light (27,) and mean translation (2,) in window pixels over some items of a dataset with ground truth."""
    chosen = [dataset[int(index)] for index in np.linspace(0, len(dataset) - 1, min(items, len(dataset)))]
    light = torch.stack([torch.as_tensor(item["light"]) for item in chosen]).mean(0)
    pose = torch.stack([torch.as_tensor(item["pose"]) for item in chosen]).mean(0)
    return light, 0.5 * (pose[3:] + 1) * WINDOW_SIZE
