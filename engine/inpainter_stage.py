"""Training of the albedo inpainter (paper sections 3.2, 3.3): masked UV albedo -> complete albedo and uncertainty.

The frozen encoder sees the masked image, as at inference. With its geometry and light the true image is unwrapped and
divided by the shade too; that is the target wherever the image shows the face. Built-in faces also know the albedo that
the photo hides (the averted cheek); with the weight `hidden_albedo` it is a target there, after its colours are matched
to those seen in the photo.
"""
from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.alignment import window
from datasets.labels import FACE, OCCLUSION
from engine import losses as L
from engine import report
from engine.augmentation import chances, colour_jitter
from engine.stage import Autocast, Stage
from engine.training_holes import Shapes, rectangles_on
from models.blending import blend, from_uint8
from models.completion import CROP_SIZE, FaceCompletion, to_uint8, visible_face
from models.morphable import mirror_uv
from utils.device import send
from utils.errors import UserError

DEFAULT_WEIGHTS = {"albedo": 1.0, "symmetry": 0.1, "image": 1.0, "gan": 0.05, "perceptual": 0.0, "hidden_albedo": 0.2,
                   "teacher": 1.0, "critic": 1.0, "penalty": 10.0}
# Departures from the paper, each of which can be set with --loss-options (args_celeba.txt has the paper's values).
HOLE_WEIGHT = 5.0  # added to the weight 1 of a texel's albedo loss where it is hidden: copying the rest is easy
RECTANGLES = 0.7  # share of rectangular holes; the others are ellipses
COVERED_OCCLUDERS = 0.5  # share of the images with occluders whose occluders are made part of the hole
AUGMENTATION = 0.7  # strength of the changes of colour; half of the images are mirrored, too, unless it is 0
GAN_START = 1000  # optimiser step from which the adversarial losses count


class Examples(NamedTuple):
    """image (B, 3, H, W) in [-1, 1]; face, hole (B, 1, H, W) bool; albedo: the true UV albedo (B, 3, 192, 256) in
    [0, 1], or None; occluder (B, 1, H, W) bool: occlusion but for the face's own hair, where that is told. H = W = 256,
    or 224 where the stage learns from windows.
    """

    image: Tensor
    face: Tensor
    hole: Tensor
    albedo: Tensor | None
    occluder: Tensor


class FillingStage(Stage):
    """A network that fills holes, and the discriminator that it is trained against: what its kinds have in common.

    occlusion: the frozen net that labels data without labels, or None. weights: of all losses. hole_weight, rectangles,
    covered_occluders, augmentation, gan_start: see the constants (with weight gan 0 adversarial losses never count).
    albedo_kind, image_kind: "l1", "l2" or "l21". perceptual: `engine.losses.PerceptualLoss`, if its weight is not 0.
    windowed: learn from the centre 224 px window of each crop, as the paper does, instead of all of it.
    """

    metric, higher_is_better = "psnr", True
    validation_items = 64
    gradient_clip = 10.0

    def __init__(self, network: nn.Module, discriminator: nn.Module, occlusion: nn.Module | None,
                 weights: Mapping[str, float], *, frozen: Mapping[str, nn.Module], albedo_kind: str = "l1",
                 image_kind: str = "l1", gan_start: int = GAN_START, hole_weight: float = HOLE_WEIGHT,
                 rectangles: float = RECTANGLES, covered_occluders: float = COVERED_OCCLUDERS,
                 augmentation: float = AUGMENTATION, perceptual: nn.Module | None = None, windowed: bool = False):
        critics = {"discriminator": discriminator} if weights["gan"] > 0 else {}
        super().__init__({self.name: network}, weights, critics=critics, frozen=frozen)
        if perceptual is not None:
            self.frozen["perceptual"] = perceptual
        self.occlusion, self.perceptual, self.gan_start = occlusion, perceptual, gan_start
        self.hole_weight, self.rectangles = hole_weight, rectangles
        self.covered_occluders, self.augmentation = covered_occluders, augmentation
        self.albedo_kind, self.image_kind, self.windowed = albedo_kind, image_kind, windowed

    def frozen_networks(self) -> list[nn.Module]:
        features = None if self.perceptual is None else self.perceptual.features
        return [network for network in (self.occlusion, features) if network is not None]

    def _judge(self, losses: dict[str, Tensor], completed: Tensor, image: Tensor, face: Tensor, autocast: Autocast,
               step: int):
        """Adds what networks say of the completed image; the second result is what the discriminator learns from."""
        if self.weights["perceptual"] > 0:
            with autocast():
                losses["perceptual"] = self.perceptual(completed, image, face).float()
        if not self._adversarial(step):
            return losses, None
        with autocast():
            scores = self.critics["discriminator"](completed)
        losses["gan"] = L.guard_gan(L.hinge_generator_loss([score.float() for score in scores]))
        return losses, (image, completed.detach())

    def _adversarial(self, step: int) -> bool:
        return self.weights["gan"] > 0 and step >= self.gan_start

    def critic_losses(self, context: Any, rngs: Sequence[np.random.Generator],
                      autocast: Autocast) -> dict[str, Tensor]:
        """Hinge loss and gradient penalty of the discriminator; the penalty in float32, for its second derivatives."""
        if context is None:
            return {}
        discriminator = self.critics["discriminator"]
        real, fake = context
        with autocast():
            real_scores, fake_scores = ([score.float() for score in discriminator(picture)] for picture in context)
        alpha = send(torch.tensor([rng.random() for rng in rngs], dtype=torch.float32), real.device)
        return {"critic": L.guard_gan(L.hinge_discriminator_loss(real_scores, fake_scores)),
                "penalty": L.guard_gan(L.gradient_penalty(discriminator, real, fake, alpha))}

    def _examples(self, batch: Mapping[str, Any], rngs: Sequence[np.random.Generator],
                  autocast: Autocast) -> Examples:
        """Half of them are mirrored, and their colours vary, as far as augmentation is wanted."""
        image, labels = self._pictures(batch, autocast)
        mirror = chances(rngs, 0.5 * (self.augmentation > 0), image.device)[:, None, None, None]
        image = colour_jitter(torch.where(mirror, image.flip(3), image), rngs, self.augmentation)
        labels = torch.where(mirror, labels.flip(3), labels)
        albedo = None
        if "albedo" in batch:
            albedo = batch["albedo"].float() / 255
            albedo = torch.where(mirror, mirror_uv(albedo), albedo)
        face, occluder = labels == FACE, labels == OCCLUSION
        hole = training_holes(rngs, self._may_be_hidden(face, rngs), self.rectangles)
        covered = chances(rngs, self.covered_occluders, image.device)[:, None, None, None]
        hole |= occluder & covered
        if "hair" in batch:
            hair = self._part(batch["hair"][:, None] > 0)
            occluder &= ~torch.where(mirror, hair.flip(3), hair)
        return Examples(image, face, hole, albedo, occluder)

    def _may_be_hidden(self, face: Tensor, rngs: Sequence[np.random.Generator]) -> Tensor:
        """Where rectangular holes lie, (B, 1, H, W) bool."""
        return face

    def _pictures(self, batch: Mapping[str, Any], autocast: Autocast) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] and labels (B, 1, H, W) from the dataset, else from the occlusion net."""
        image = from_uint8(self._part(batch["image"]))
        if "labels" in batch:
            return image, self._part(batch["labels"][:, None]).long()
        with torch.no_grad(), autocast():
            return image, self.occlusion(image).argmax(1, keepdim=True)

    def _part(self, crops: Tensor) -> Tensor:
        """What is learnt from of aligned crops (B, C, 256, 256)."""
        return window(crops) if self.windowed else crops

    def _inpainter(self, networks: Mapping[str, nn.Module], batch: Mapping[str, Any]) -> nn.Module:
        """What fills the holes of this batch: what `_complete` takes."""
        return networks[self.name]

    def _complete(self, inpainter: Any, image: Tensor, hole: Tensor) -> Any:
        """The whole completion with what `_inpainter` returns; its `output` is the picture."""
        raise NotImplementedError

    def _held_out(self, batch, rngs: Sequence[np.random.Generator], autocast: Autocast) -> tuple[Tensor, Tensor]:
        """Whole images and the holes of evaluation: rectangles on the face."""
        image, labels = self._pictures(batch, autocast)
        return image, rectangles_on(labels == FACE, rngs)

    def validate(self, networks, batch, rngs, autocast: Autocast) -> Tensor:
        """Sum of the PSNR of the completed images (whole image, 8 bits), sum of the absolute error in holes, counts."""
        image, hole = self._held_out(batch, rngs, autocast)
        with autocast():
            output = self._complete(self._inpainter(networks, batch), image, hole).output
        difference = to_uint8(output).double() - self._part(batch["image"]).double()
        error = difference.square().mean((1, 2, 3)).clamp(min=1e-5)
        inside = (difference.abs() * hole).sum() / 3
        values = (10 * torch.log10(255 ** 2 / error)).sum(), inside, hole.sum(), len(image)
        return torch.tensor([float(value) for value in values])

    def score(self, statistics: Tensor) -> dict[str, float]:
        psnr, error, hidden, images = statistics.tolist()
        return {"psnr": psnr / images, "hole_error": error / max(hidden, 1)}


class InpainterStage(FillingStage):
    """The inpainter of the albedo.

    completion: FaceCompletion with the frozen encoder, the inpainter to be trained and, for data without labels, the
    frozen occlusion net. use_confidence: weigh pixel losses by the predicted uncertainty.
    teacher: a trained inpainter that this one imitates (after Hinton et al., "Distilling the Knowledge in a Neural
    Network", 2015): a narrow one learns from it what it would take much longer to learn from pictures.
    Other arguments as of `FillingStage`.
    """

    name = "inpainter"

    def __init__(self, completion: FaceCompletion, discriminator: nn.Module,
                 weights: Mapping[str, float] | None = None, *, use_confidence: bool = True,
                 teacher: nn.Module | None = None, **options: Any):
        inpainter, completion.inpainter = completion.inpainter, nn.Identity()
        completion.one_by_one = False
        frozen = {"completion": completion, **({} if teacher is None else {"teacher": teacher})}
        super().__init__(inpainter, discriminator, completion.occlusion, {**DEFAULT_WEIGHTS, **(weights or {})},
                         frozen=frozen, **options)
        self.completion, self.use_confidence, self.teacher = completion, use_confidence, teacher

    def metadata(self):
        return {"uv_layout": self.completion.morphable.uv_layout}

    def restore(self, metadata):
        """Raises UserError if the checkpoint is of an inpainter of another UV map."""
        if metadata.get("uv_layout") not in (None, self.completion.morphable.uv_layout):
            raise UserError("this run began with another morphable model: resume with its encoder (--3dmm-ckpt) and "
                            "--definition")

    def losses(self, batch, rngs, autocast: Autocast, step: int):
        """Those of DEFAULT_WEIGHTS with a weight and a truth; second, what the discriminator learns from."""
        image, face, hole, albedo, _ = self._examples(batch, rngs, autocast)
        with torch.no_grad(), autocast():
            factors = self.completion.factor(image, hole, face=visible_face(face.float(), hole))
            target = self.completion.albedo(image, factors.positions, factors.uv_shade)
            on_face = self.completion.renderer.unwrap(face.float(), factors.positions) > 0.99
        visible, known = factors.uv_visible.float(), factors.uv_seen & on_face
        with autocast():
            inpainted = self._inpainter(self.networks, batch)(factors.albedo_in, visible)
        output, confidence = inpainted.albedo.float(), inpainted.confidence.float() if self.use_confidence else None
        weight = known * (1 + self.hole_weight * (1 - visible))
        losses = {"albedo": L.guard_pixel(L.albedo_loss(output, target, weight, confidence, self.albedo_kind))}
        if self.weights["symmetry"] > 0:
            losses["symmetry"] = L.guard_pixel(L.symmetry_loss(output, visible, mirror_uv, confidence))
        if self.teacher is not None:
            with torch.no_grad(), autocast():
                wanted = self.teacher(factors.albedo_in, visible).albedo.float()
            everywhere = self.completion.renderer.uv_mask * (1 + self.hole_weight * (1 - visible))
            losses["teacher"] = L.guard_pixel(L.pixel_loss(output, wanted, mask=everywhere))
        if self.weights["hidden_albedo"] > 0 and albedo is not None:
            losses["hidden_albedo"] = L.guard_pixel(self._hidden_albedo_loss(output, target, known, albedo))
        return self._image_losses(losses, output, factors, image, face, hole, autocast, step)

    def _image_losses(self, losses: dict[str, Tensor], output: Tensor, factors: Any, image: Tensor, face: Tensor,
                      hole: Tensor, autocast: Autocast, step: int):
        """Adds what is measured on the completed image; the second result is what the discriminator learns from.

        Not weighted by the uncertainty (the paper's pixel losses are): it belongs to texels, and weighs them already.
        """
        if not (self._adversarial(step) or self.weights["image"] > 0 or self.weights["perceptual"] > 0):
            return losses, None
        rendered, coverage = self.completion.render_face(output, factors.uv_shade, factors.raster)
        completed = blend(image, hole & coverage, rendered, (coverage & face & ~hole).float())
        if self.weights["image"] > 0:
            losses["image"] = L.guard_pixel(L.image_loss(completed, image, face, self.image_kind))
        return self._judge(losses, completed, image, face, autocast, step)

    def frozen_networks(self) -> list[nn.Module]:
        others = [self.completion.encoder, *([] if self.teacher is None else [self.teacher])]
        return [*super().frozen_networks(), *others]

    def _hidden_albedo_loss(self, output: Tensor, target: Tensor, known: Tensor, albedo: Tensor) -> Tensor:
        """L1 to the true albedo (B, 3, 192, 256), in [0, 1], on the face's texels that the photo does not show."""
        area = known.sum((2, 3), keepdim=True)
        seen = ((target + 1) * known).sum((2, 3), keepdim=True)
        gain = seen / (albedo * known).sum((2, 3), keepdim=True).clamp(min=1e-3)
        usable = (area > 0.05 * known[0].numel()) & self.completion.renderer.uv_mask
        wanted = (albedo * gain.clamp(0.2, 5) - 1).clamp(-1, 1)
        return L.pixel_loss(output, wanted, mask=usable & ~known)

    def _complete(self, inpainter: nn.Module, image: Tensor, hole: Tensor):
        """The whole completion with this inpainter."""
        self.completion.inpainter = inpainter
        try:
            return self.completion(image, hole)
        finally:
            self.completion.inpainter = nn.Identity()

    def pictures(self, networks, batch, rngs) -> Tensor:
        """Held-out faces: masked, albedo in, albedo out, completed, original."""
        few = {name: value[:4] for name, value in batch.items()}
        image, hole = self._held_out(few, rngs, torch.no_grad)
        done = self._complete(self._inpainter(networks, few), image, hole)
        parts = (torch.where(hole, 0, image), done.albedo_in, done.albedo_out, done.output, image)
        rows = zip(*map(_squared, parts))
        return report.tile([list(row) for row in rows])


def _squared(maps: Tensor) -> Tensor:
    """Maps or pictures (B, C, H, W) in the middle of black squares of a crop's size."""
    rows, columns = (CROP_SIZE - side for side in maps.shape[-2:])
    return F.pad(maps, (columns // 2, columns // 2, rows // 2, rows // 2), value=-1.0)


def training_holes(rngs: Sequence[np.random.Generator], face: Tensor, rectangles: float = RECTANGLES) -> Tensor:
    """Random holes: rectangles on the face, else ellipses anywhere. face and result bool (B, 1, H, W).

    rectangles: share of the former, in [0, 1].
    """
    shapes, on_face = Shapes(*face.shape[2:]), []
    for rng in rngs:
        on_face.append(rng.random() < rectangles)
        shapes.add_rectangle(rng) if on_face[-1] else shapes.add_ellipses(rng)
    return shapes.draw(face.device) & (face | ~send(torch.tensor(on_face), face.device)[:, None, None, None])
