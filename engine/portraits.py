"""Real photographs for the encoder, which have no ground truth: labels guessed by a teacher, corrected by known points.

The teacher is the encoder trained so far. It sees every whole portrait and its mirror image; the mean of the two is
fitted to the points that a face detector found (five of MTCNN, or 68 of any detector), as far as a prior around the
teacher's guess allows. Training then shows the portrait with holes and other changes and asks for the same answer, so
the encoder learns real skin, hair and lenses, and to see the whole face in a part of it. Nothing here knows who is on a
picture.
"""
from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

import zbuffer
from datasets.alignment import CROP_SIZE, WINDOW_OFFSET, WINDOW_SIZE, window
from datasets.faces import FolderFaces
from datasets.labels import BACKGROUND, FACE, OCCLUSION
from engine.encoder_stage import crop_landmarks
from engine.loading import start_worker
from engine.turning import random_turn, turn_head
from models.blending import from_uint8
from models.encoder import FaceCode
from models.lighting import ODD_IN_X
from models.morphable import MorphableModel
from models.renderer import project
from utils.errors import UserError
from utils.files import read_json
from utils.logging import progress, warning

BATCH = 16
FIT_STEPS = 120
FIT_RATE = 0.2  # converges in these steps also where the guess is 15 degrees off
POINT_SIGMA = {5: 2.0, 68: 1.5}  # pixels: how far detectors are off
# Along the jaw and the brows detectors agree on the line, but not on where along it the landmarks sit.
LINES = [range(0, 17), range(17, 22), range(22, 27)]
ALONG_SIGMA = 8.0  # pixels
# How far from the teacher's guess the truth may lie: standard deviations of the prior.
SHAPE_SIGMA = {5: 0.3, 68: 1.0}
ANGLE_SIGMA = 0.04  # of pi / 2
SCALE_SIGMA = 0.05  # relative
SHIFT_SIGMA = 0.05  # of 112 px


class Portraits(Dataset):
    """Aligned portraits as training items of the encoder.

    Items as those of `datasets.synthetic.SyntheticFaces`, without "albedo" and "identity": image uint8 (3, 256, 256),
    labels uint8 (256, 256) (where the fitted face is drawn: FACE), shape (228,), scale (), pose (5,), light (27,),
    landmarks (68, 2) and name.

    images: uint8 (N, 3, 256, 256); names: N; code: FaceCode of N faces; model: the morphable model.
    """

    def __init__(self, images: Tensor, names: list[str], code: FaceCode, model: MorphableModel):
        self.images, self.names, self.code = images, names, code
        self.labels, self.landmarks = _draw(code, model)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "labels": self.labels[index], "shape": self.code.shape[index],
                "scale": self.code.scale[index], "pose": self.code.pose[index], "light": self.code.light[index],
                "landmarks": self.landmarks[index], "name": self.names[index]}


class Fields(Dataset):
    """A dataset's items with only some fields, those that other items have too, so that both fit into one batch."""

    def __init__(self, dataset: Dataset, fields: tuple[str, ...]):
        self.dataset, self.fields = dataset, fields

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        return {name: item[name] for name in self.fields}


class LabelledFaces(Dataset):
    """Real faces: {"image": uint8 (3, 256, 256), "labels", "hair": uint8 (256, 256), "name"}.

    images: uint8 (N, 3, 256, 256); labels: uint8 (N, 256, 256), the classes of `models.occlusion`; hair: uint8
    (N, 256, 256), 1 where occlusion is the face's own hair; names: N.
    """

    def __init__(self, images: Tensor, labels: Tensor, hair: Tensor, names: list[str]):
        self.images, self.labels, self.hair, self.names = images, labels, hair, names

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "labels": self.labels[index], "hair": self.hair[index],
                "name": self.names[index]}


@torch.no_grad()
def label_faces(faces: FolderFaces, occlusion: nn.Module, log_type: str = "progressbar") -> LabelledFaces:
    """All faces of a folder, with the labels that the occlusion net gives them."""
    items = [faces[index] for index in range(len(faces))]
    device = next(occlusion.parameters()).device
    labels, hair = [], []
    for item in progress(items, "labelling portraits", len(items), log_type):
        probabilities, hair_odds = occlusion.with_hair(from_uint8(item["image"][None].to(device)))
        labels.append(probabilities.argmax(1)[0].to(torch.uint8).cpu())
        hair.append(((hair_odds[0, 0].cpu() > 0) & (labels[-1] == OCCLUSION)).to(torch.uint8))
    return LabelledFaces(torch.stack([item["image"] for item in items]), torch.stack(labels), torch.stack(hair),
                         [item["name"] for item in items])


def mix(faces: Dataset, portraits: Dataset, share: float) -> Dataset:
    """Faces with ground truth and portraits, which make up about `share` of all; share in (0, 1).

    Portraits are repeated, or where they are more than that, chosen at random (always the same ones).
    """
    if not 0 < share < 1:
        raise UserError(f"--portrait-share {share}: give a share between 0 and 1")
    wanted = max(1, round(len(faces) * share / (1 - share)))
    if wanted < len(portraits):
        chosen = [Subset(portraits, np.random.default_rng(0).permutation(len(portraits))[:wanted].tolist())]
    else:
        chosen = [portraits] * round(wanted / len(portraits))
    return ConcatDataset([Fields(faces, tuple(portraits[0])), *chosen])


def load_portraits(folder: str | Path, points_file: str | Path | None, teacher: nn.Module, geometry: nn.Module,
                   model: MorphableModel, log_type: str = "progressbar", turns: int = 0,
                   workers: int = 0) -> Portraits:
    """Aligned crops of a folder, labelled by `teacher` (an Encoder) and corrected to detected points.

    points_file: JSON, name -> five or 68 points, see `read_points`; None: MTCNN looks for five. A portrait without
    points is left out, with a warning that counts them. geometry: `engine.encoder_stage.Geometry`. turns: how often
    each comes again with its head turned, which `workers` processes do.

    Raises:
        UserError: no pictures, no readable points, or no portrait with points.
    """
    faces = FolderFaces(folder)
    given = read_points(points_file) if points_file else None
    images, names, points = [], [], []
    for index in progress(range(len(faces)), "portraits' landmarks", len(faces), log_type):
        item = faces[index]
        found = given.get(item["name"]) if given is not None else _detect(item["image"])
        if found is not None:
            images.append(item["image"])
            names.append(item["name"])
            points.append(found)
    if not names:
        raise UserError(f"none of the {len(faces)} portraits in {folder} has landmarks"
                        + (f" in {points_file}: its names must be the pictures' without suffix" if points_file else ""))
    if len(names) < len(faces):
        warning(f"{len(faces) - len(names)} of {len(faces)} portraits have no landmarks and are left out")
    codes = []
    chunks = [slice(start, start + BATCH) for start in range(0, len(names), BATCH)]
    for chunk in progress(chunks, "fitting portraits", len(chunks), log_type):
        guess = guess_code(teacher, torch.stack(images[chunk]), geometry)
        codes.append(fit_points(guess, points[chunk], geometry))
    code = FaceCode(*(torch.cat(parts) for parts in zip(*codes)))
    return _turned(Portraits(torch.stack(images), names, code, model), turns, model, geometry, log_type, workers)


def _turned(portraits: Portraits, turns: int, model: MorphableModel, geometry: nn.Module, log_type: str,
            workers: int) -> Portraits:
    """The portraits and, `turns` times, each with its head turned and reshaped at random."""
    if not turns:
        return portraits
    jobs = _Turns(portraits, turns, model, geometry)
    loader = DataLoader(jobs, batch_size=None, num_workers=workers, worker_init_fn=start_worker,
                        generator=torch.Generator())
    images, codes = [], [portraits.code]
    for image, code in progress(loader, "turning portraits", len(jobs), log_type):
        # Copied, since a worker's tensors hold an open file each.
        images.append(image.clone())
        codes.append(FaceCode(*(value.clone() for value in code)))
    code = FaceCode(*(torch.cat(parts) for parts in zip(*codes)))
    names = [portraits.names[index] for index in jobs.portrait]
    return Portraits(torch.cat([portraits.images, torch.stack(images)]), portraits.names + names, code, model)


class _Turns(Dataset):
    """Turned and reshaped portraits, (image uint8 (3, 256, 256), FaceCode of one), `turns` of each; always the same."""

    def __init__(self, portraits: Portraits, turns: int, model: MorphableModel, geometry: nn.Module):
        self.portraits, self.model, self.geometry = portraits, model, geometry
        self.portrait = [index for index in range(len(portraits)) for _ in range(turns)]
        rng, size = np.random.default_rng(0), portraits.code.shape[:1].shape
        self.changes = [(*random_turn(rng), torch.from_numpy(rng.standard_normal(size)).to(torch.float32))
                        for _ in self.portrait]

    def __len__(self) -> int:
        return len(self.portrait)

    def __getitem__(self, index: int) -> tuple[Tensor, FaceCode]:
        portrait, (yaw, pitch, other) = self.portrait[index], self.changes[index]
        one = FaceCode(*(value[portrait:portrait + 1] for value in self.portraits.code))
        return turn_head(self.portraits.images[portrait], one, yaw, pitch, self.model, self.geometry, other)


def read_points(path: str | Path) -> dict[str, Tensor]:
    """Name -> landmarks (5, 2) or (68, 2), (x, y) in pixels of the 256 crop, from a JSON file {name: [[x, y], ...]}.

    Five points are left eye, right eye, nose tip, left and right mouth corner as seen in the picture; 68 are iBUG's.
    Raises UserError for a file that is not that.
    """
    content = read_json(path)
    try:
        points = {str(name): torch.tensor(values, dtype=torch.float32) for name, values in content.items()}
    except (ValueError, AttributeError, TypeError, RuntimeError, OverflowError):
        raise UserError(f"{path}: no landmark file of the form {{\"name\": [[x, y], ...]}}: write one") from None
    for name, values in points.items():
        if values.shape not in ((5, 2), (68, 2)) or not values.isfinite().all():
            raise UserError(f"{path}: the landmarks of {name!r} have the shape {tuple(values.shape)}; give 5 or 68 "
                            "finite points (x, y)")
    return points


@lru_cache(maxsize=1)
def _detector():
    from datasets.detection import Detector
    return Detector()


def _detect(image: Tensor) -> Tensor | None:
    """MTCNN's five points (5, 2) of the largest face in a crop (3, 256, 256), None without one."""
    from datasets.detection import NoFaceError
    try:
        faces = _detector().detect(image.permute(1, 2, 0).numpy())
    except NoFaceError:
        return None
    return torch.from_numpy(faces[0].landmarks).float()


@torch.no_grad()
def guess_code(teacher: nn.Module, images: Tensor, geometry: nn.Module) -> FaceCode:
    """The teacher's mean answer to crops (B, 3, 256, 256) uint8 and, where the model is symmetric, to their mirrors."""
    seen = window(from_uint8(images))
    code = teacher(seen)
    if not geometry.can_mirror:
        return code
    mirrored = mirror_code(teacher(seen.flip(3)), geometry)
    return FaceCode(*((one + other) / 2 for one, other in zip(code, mirrored)))


def mirror_code(code: FaceCode, geometry: nn.Module) -> FaceCode:
    """What the encoder would say of the mirrored picture. The two decoders' codes stay as they are."""
    pose = code.pose * torch.tensor([1.0, -1.0, -1.0, -1.0, 1.0])
    pose[:, 3] -= 2 / WINDOW_SIZE  # column c becomes 223 - c, and the code counts halves of 224
    signs = torch.ones(9)
    signs[ODD_IN_X] = -1
    return code._replace(shape=code.shape * geometry.parity + geometry.offset, pose=pose,
                         light=code.light * signs.repeat(3))


def fit_points(guess: FaceCode, points: list[Tensor], geometry: nn.Module) -> FaceCode:
    """The most probable shape and pose given points and a normal prior around a guess, by gradient descent.

    points: per face (5, 2) or (68, 2) in crop pixels (x, y), y downwards. The energy is the sum of squared distances
    over POINT_SIGMA (of 68 points along LINES over ALONG_SIGMA) plus squared deviations from the guess over the
    prior's sigmas. Light and codes stay.
    """
    start = [value.detach() for value in (guess.shape, guess.scale, guess.pose)]
    shape_change, scale_change, pose_change = change = [torch.zeros_like(value).requires_grad_() for value in start]
    few, many = ([index for index, values in enumerate(points) if len(values) == size] for size in (5, 68))
    shape_sigma = torch.tensor([SHAPE_SIGMA[len(values)] for values in points])[:, None]
    pose_sigma = torch.tensor([ANGLE_SIGMA] * 3 + [SHIFT_SIGMA] * 2)
    optimiser = torch.optim.Adam(change, lr=FIT_RATE)

    def current() -> tuple[Tensor, Tensor, Tensor]:
        return (start[0] + shape_change * shape_sigma, start[1] * (scale_change * SCALE_SIGMA).exp(),
                (start[2] + pose_change * pose_sigma).clamp(-1, 1))

    for _ in range(FIT_STEPS):
        landmarks = crop_landmarks(*current(), geometry)
        energy = sum(value.square().sum() for value in change)
        if few:
            wanted = torch.stack([points[index] for index in few])
            energy = energy + ((five_points(landmarks[few]) - wanted) / POINT_SIGMA[5]).square().sum()
        if many:
            wanted = torch.stack([points[index] for index in many])
            energy = energy + _off_lines(landmarks[many] - wanted, wanted)
        optimiser.zero_grad()
        energy.backward()
        optimiser.step()
    shape, scale, pose = (value.detach() for value in current())
    return guess._replace(shape=shape, scale=scale, pose=pose)


def _off_lines(error: Tensor, points: Tensor) -> Tensor:
    """The energy of errors (B, 68, 2) of 68 points (B, 68, 2): along LINES a difference counts little."""
    sigma = torch.full_like(error, POINT_SIGMA[68])
    error = error.clone()
    for line in LINES:
        index = list(line)
        neighbours = points[:, [index[0], *index, index[-1]]]
        along = nn.functional.normalize(neighbours[:, 2:] - neighbours[:, :-2], dim=-1)
        across = torch.stack([-along[..., 1], along[..., 0]], -1)
        part = error[:, index]
        error[:, index] = torch.stack([(part * along).sum(-1), (part * across).sum(-1)], -1)
        sigma[:, index, 0] = ALONG_SIGMA
    return (error / sigma).square().sum()


def five_points(landmarks: Tensor) -> Tensor:
    """MTCNN's points (B, 5, 2) from 68 landmarks (B, 68, 2): eye centres, nose tip, mouth corners."""
    return torch.stack([landmarks[:, 36:42].mean(1), landmarks[:, 42:48].mean(1), landmarks[:, 30], landmarks[:, 48],
                        landmarks[:, 54]], 1)


@torch.no_grad()
def _draw(code: FaceCode, model: MorphableModel) -> tuple[Tensor, Tensor]:
    """Labels uint8 (N, 256, 256) and landmarks (N, 68, 2) of fitted faces."""
    labels, landmarks = [], []
    for index in range(len(code.shape)):
        one = slice(index, index + 1)
        positions = project(model.vertices(code.shape[one]), code.scale[one], code.pose[one], WINDOW_OFFSET)
        covered = zbuffer.rasterize(positions, model.triangles, (CROP_SIZE, CROP_SIZE)).triangle[0] >= 0
        labels.append(torch.where(covered, FACE, BACKGROUND).to(torch.uint8))
        landmarks.append(positions[0, model.landmarks, :2].flip(-1))
    return torch.stack(labels), torch.stack(landmarks)
