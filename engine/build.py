"""From settings to datasets and networks: the only place that knows which option means which object."""
from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import math
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple

import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from datasets.alignment import WINDOW_SIZE
from datasets.definition import load as load_definition
from engine.distributed import ALONE, World, in_main, is_main
from engine.stage import Stage
from models.morphable import BUILTIN_LAYOUT, MorphableModel, mirror_uv
from utils import config, device as devices, files
from utils.errors import UserError
from utils.logging import note, warning

DEFAULT_INPAINTER = "checkpoints/inpainter.pth"  # the default of --recon-ckpt
REPOSITORY = Path(__file__).resolve().parents[1]
PUBLISHED_DEFINITION = "datasets/3DMM_definition"  # of the repository, where the published program expects it
SYNTHETIC_LENGTH = 100_000  # built-in training faces of an epoch, unless --dataset-options says otherwise
SYNTHETIC_OPTIONS = ("length", "seed", "occluders", "clean")  # of --dataset-options
HELD_OUT_FACES = 48  # built-in faces that choose the best checkpoint
HELD_OUT_PORTRAITS = 48  # and portraits, where there are any, with a third as many built-in faces
PERCEPTUAL_WEIGHT = 0.1  # with --is-using-frecon, unless --loss-options says otherwise
LABELLED = ("Synthetic", "CelebAMaskHQ")
_RECIPE = ("gan_start", "hole_weight", "rectangles", "covered_occluders", "augmentation")
# Keys of --loss-options that are no losses.
NOT_LOSSES = {"inpainter": _RECIPE, "refiner": ("only_beside", "only_decoder"), "inpainter2d": _RECIPE,
              "encoder": ("albedo_every", "albedo_items"), "occlusion": ("only_hair", "only_decoder")}
# Options that count in some trainings only: those trainings in words, whether settings are of one, and the options.
_COUNT_FOR = (
    ("--stage inpainter", lambda settings: settings.stage == "inpainter",
     ("teacher_ckpt", "is_using_symmetry", "is_using_recon", "use_conf")),
    ("--stage inpainter and inpainter2d", lambda settings: settings.stage in ("inpainter", "inpainter2d"),
     ("is_using_frecon", "tex_loss", "recon_loss")),
    ("--stage encoder and occlusion", lambda settings: settings.stage in ("encoder", "occlusion"), ("train_size",)),
    ("--stage encoder", lambda settings: settings.stage == "encoder", ("portrait_points", "portrait_turns")),
    ("--dataset-train Synthetic", lambda settings: settings.dataset_train == "Synthetic", ("synthetic_cache",)),
    ("--dataset-train Synthetic and --stage refiner",
     lambda settings: settings.dataset_train == "Synthetic" or settings.stage == "refiner", ("portraits",)),
)
STAGE_MODULES = {"encoder": "encoder_stage", "occlusion": "occlusion_stage", "inpainter": "inpainter_stage",
                 "refiner": "refiner_stage", "inpainter2d": "image_stage"}  # with their losses


def choose_device(settings: Any) -> torch.device:
    """The GPU, or the CPU if there is none or --ngpu is 0."""
    return devices.choose_device(settings.ngpu)


def choose_precision(settings: Any, device: torch.device | None = None) -> str:
    """--precision; "auto" is bf16 where the processor (by default that of the settings) computes in it, else fp32."""
    if settings.precision != "auto":
        return settings.precision
    if (device or choose_device(settings)).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def completion_dtype(settings: Any, device: torch.device | None = None) -> torch.dtype:
    """What the networks of a completion compute in, as --precision says; "auto" leaves fp16 to training, which keeps
    values within its small range."""
    precision = choose_precision(settings, device)
    return devices.choose_dtype("fp32" if settings.precision == "auto" and precision == "fp16" else precision)


def run_folder(settings: Any) -> Path:
    """Where a training run's checkpoints and settings go; a resumed run stays where it is unless told otherwise.

    Raises:
        UserError: another run's checkpoint lies there already.
    """
    resumed = resume_file(settings)
    own = resumed is not None and resumed.name in ("last.pth", "best.pth")  # not a copy that lies somewhere
    home = resumed.parent if own else Path(settings.result_path) / settings.stage
    folder = Path(settings.save_dir) if settings.save_dir else home
    continues = own and folder.resolve() == home.resolve()
    if (folder / "last.pth").exists() and not (continues or settings.overwrite):
        raise UserError(f"{folder} holds a run already: continue it with --resume {folder / 'last.pth'}, replace it "
                        "with --overwrite, or choose another --save-dir")
    return folder


@contextlib.contextmanager
def results_folder(settings: Any, folder: Path, world: World = ALONE) -> Iterator[None]:
    """Keeps an evaluation's folder to it; what an earlier one left there is replaced only with --overwrite.

    The main process holds the folder; the others go on once it does.

    Raises:
        UserError: results lie there already, or another process is at work there.
    """
    with contextlib.ExitStack() as holding:
        def hold() -> None:
            files.refuse_overwriting(folder, ("summary.json",), settings.overwrite)
            holding.enter_context(files.held(folder, "another evaluation", "wait for it, or choose another --output"))

        in_main(hold, world)
        yield


def log_folder(settings: Any, folder: Path) -> Path:
    """Where TensorBoard's files go."""
    return Path(settings.logs_dir) if settings.logs_dir else folder / "logs"


def resume_file(settings: Any) -> Path | None:
    """The checkpoint that --resume names, itself or by its run's folder."""
    if not settings.resume:
        return None
    path = Path(settings.resume)
    return path / "last.pth" if path.is_dir() else path


def plain_settings(settings: Any) -> dict[str, Any]:
    """All options as plain values, to be stored beside results."""
    return dict(vars(settings))


def tell_ignored(settings: Any) -> None:
    """Warns of options with other values than their defaults that do not count for what is to be trained."""
    for where, counts, names in _COUNT_FOR:
        for name in names:
            if getattr(settings, name) != config.BY_NAME[name].default and not counts(settings):
                warning(f"{config.flag_of(name)} counts for {where} alone, and is ignored here")


# ---- data --------------------------------------------------------------------------------------------------------

def build_training_data(settings: Any) -> tuple[Dataset, Dataset]:
    """(training set, held-out set that chooses the best checkpoint); they share no face.

    Raises:
        UserError: the data is missing, or cannot train this stage, or --loss-options names an unknown loss.
    """
    _check_loss_options(settings)
    kind = settings.dataset_train
    if settings.stage == "encoder" and kind != "Synthetic":
        raise UserError(f"--stage encoder learns from known shapes, which --dataset-train {kind} has not: "
                        "use Synthetic")
    if settings.stage == "occlusion" and kind not in LABELLED:
        raise UserError(f"--stage occlusion learns from labelled pixels, which --dataset-train {kind} has not: "
                        f"use {' or '.join(LABELLED)}")
    if kind == "Synthetic":
        train, held_out = _synthetic_training(settings)
        if not settings.portraits:
            return train, held_out
        if settings.stage in ("inpainter", "refiner", "inpainter2d"):
            if settings.stage == "inpainter":
                note("portraits have no true albedo where they do not show it: the loss hidden_albedo is left out")
            return _with_real_faces(settings, train, held_out)
        return _with_portraits(settings, train), held_out
    return tuple(_folder_data(settings, kind, split) for split in ("train", "dev"))


def build_test_data(settings: Any) -> Dataset:
    """The faces that --eval takes: built-in ones, a dataset's test split, or a whole folder.

    Built-in faces have occluders only if these are the holes, or what --stage occlusion is to find. A folder given with
    --dataset-test Faces is evaluated as a whole, unless --dataset-train Faces learns from it, too: then its test split
    is. --dataset-options chooses another split (null: all faces).

    Raises:
        UserError: the data is missing.
    """
    kind = settings.dataset_test
    if kind == "Synthetic":
        from datasets.synthetic import SyntheticFaces
        seed = settings.dataset_options.get("seed", 0)  # others are a training's, in the same file
        return SyntheticFaces("test", settings.test_count, seed=_whole_number("seed", seed),
                              occluders="occlusion" in (settings.mask_source, settings.stage))
    usual = None if kind == "Faces" and settings.dataset_train != "Faces" else "test"
    faces = _folder_data(settings, kind, settings.dataset_options.get("split", usual))
    if is_main():
        which = "all faces are evaluated" if faces.split is None else f"the {faces.split} split is evaluated"
        note(f"{faces.root}: {which}, {len(faces)} of {faces.total}")
    return faces


def face_folder(settings: Any) -> Path | None:
    """--face-dir, the folder of face regions, if it is given.

    Raises:
        UserError: there is no such folder, or the evaluated faces bring their own labels.
    """
    if not settings.face_dir:
        return None
    if settings.dataset_test in LABELLED:
        raise UserError(f"--dataset-test {settings.dataset_test} is labelled already: leave --face-dir out")
    if not Path(settings.face_dir).is_dir():
        raise UserError(f"--face-dir {settings.face_dir}: no such folder")
    return Path(settings.face_dir)


def _synthetic_training(settings: Any) -> tuple[Dataset, Dataset]:
    from datasets.synthetic import CachedFaces, SyntheticFaces
    if not settings.synthetic_cache:
        if settings.resident:
            raise UserError("--resident reads all faces before it begins, which takes hours if they are made "
                            "meanwhile: write them with python -m datasets.synthetic and give --synthetic-cache")
        options = {"length": SYNTHETIC_LENGTH, **_synthetic_options(settings, *SYNTHETIC_OPTIONS)}
        return SyntheticFaces("train", **options), SyntheticFaces("val", HELD_OUT_FACES)
    train = CachedFaces(settings.synthetic_cache, **_synthetic_options(settings, "length"))
    if train.split != "train":
        raise UserError(f"--synthetic-cache {settings.synthetic_cache} holds faces of the {train.split} split: "
                        "training on them would spoil every measurement; write a cache with --split train")
    knows_albedo = "albedo" in train[0]
    if settings.stage == "encoder" and settings.loss_options.get("albedo", 0) > 0 and not knows_albedo:
        raise UserError(f"{settings.synthetic_cache} was written without albedo: leave albedo out of --loss-options, "
                        "or write the faces anew without --no-albedo")
    if settings.stage == "inpainter" and not knows_albedo:
        warning(f"{settings.synthetic_cache} was written without albedo: the loss hidden_albedo is left out")
    return train, SyntheticFaces("val", HELD_OUT_FACES)


def _synthetic_options(settings: Any, *known: str) -> dict[str, int]:
    """--dataset-options of built-in faces; UserError for others than the known, and for what is no number or truth."""
    for name, value in settings.dataset_options.items():
        if name not in known:
            raise UserError(f"--dataset-options {name}: of built-in faces {'from a cache ' if len(known) == 1 else ''}"
                            f"{', '.join(known)} can be given")
        if name in ("length", "seed"):
            _whole_number(name, value, least=int(name == "length"))
        elif not isinstance(value, bool):
            raise UserError(f"--dataset-options {name}: true or false, not {value!r}")
    return dict(settings.dataset_options)


def _whole_number(name: str, value: Any, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"--dataset-options {name}: a whole number from {least} on, not {value!r}")
    return value


def _with_portraits(settings: Any, faces: Dataset) -> Dataset:
    """The training faces and real portraits, labelled by the encoder that the training starts from."""
    from engine.portraits import load_portraits, mix
    if settings.stage != "encoder":
        raise UserError(f"--portraits teaches --stage encoder, not --stage {settings.stage}: leave it out")
    if settings.loss_options.get("albedo", 0) > 0:
        raise UserError("portraits have no true albedo: leave albedo out of --loss-options, or --portraits")
    observer, definition = _portrait_observer(settings)
    _require_builtin(definition)
    portraits = load_portraits(settings.portraits, settings.portrait_points, observer.encoder,
                               _geometry(observer.morphable, definition), observer.morphable, settings.log_type,
                               settings.portrait_turns, settings.nthreads)
    return mix(faces, _under_other_light(settings, portraits, portraits.images, observer), settings.portrait_share)


def _portrait_observer(settings: Any):
    """(`models.completion.FaceCompletion` that looks at faces and completes none, its model's definition)."""
    from models.completion import FaceCompletion
    from models.weights import load_occlusion
    encoder, model, definition = _load_geometry(settings, completes=False)
    occlusion = load_occlusion(settings.occ_ckpt)[0]
    observer = FaceCompletion(encoder, torch.nn.Identity(), model, occlusion, one_by_one=False,
                              dtype=completion_dtype(settings))
    return observer.eval(), definition


def _under_other_light(settings: Any, faces: Dataset, images: torch.Tensor, observer: torch.nn.Module) -> Dataset:
    """Faces and, --portrait-lights times, each under another light. images: theirs, uint8 (N, 3, 256, 256)."""
    if not settings.portrait_lights:
        return faces
    from engine.relighting import RelitFaces, fit_surfaces
    surfaces = fit_surfaces(observer.to(choose_device(settings)), images, settings.log_type)
    return RelitFaces(faces, surfaces, settings.portrait_lights)


def _with_real_faces(settings: Any, faces: Dataset, held_out: Dataset) -> tuple[Dataset, Dataset]:
    """(faces and portraits, portraits of one fold and a few held-out faces), for what completes faces."""
    from datasets.faces import FolderFaces
    from engine.linear_fill import HELD_OUT_FOLD, check_folds, fold_of
    from engine.portraits import Fields, label_faces, mix
    real = FolderFaces(settings.portraits)
    if settings.stage == "refiner":
        check_folds(real)
    observer = _portrait_observer(settings)[0].to(choose_device(settings))
    labelled = label_faces(real, observer.occlusion, settings.log_type)
    unseen = [index for index in range(len(labelled)) if fold_of(index) == HELD_OUT_FOLD]
    seen = [index for index in range(len(labelled)) if fold_of(index) != HELD_OUT_FOLD]
    unseen = unseen[:HELD_OUT_PORTRAITS]
    fields = tuple(name for name in labelled[0] if name in faces[0])
    if settings.stage == "refiner" and "hair" not in fields:
        warning("these faces do not tell hair: none is learnt to be filled in; write them anew with python -m "
                "datasets.synthetic")
    few = Subset(Fields(held_out, fields), range(min(len(held_out), max(1, len(unseen) // 3))))
    portraits = _under_other_light(settings, Subset(labelled, seen), labelled.images[seen], observer)
    return (mix(faces, Fields(portraits, fields), settings.portrait_share),
            ConcatDataset([Fields(Subset(labelled, unseen), fields), few]))


def _folder_data(settings: Any, kind: str, split: str | None) -> Dataset:
    """Faces below --dataroot; the split of --dataset-options is for evaluations alone."""
    from datasets.celeba import CelebACrops
    from datasets.celebamask import CelebAMaskHQ
    from datasets.faces import FolderFaces
    if not settings.dataroot:
        raise UserError(f"the dataset {kind} needs its folder: give --dataroot DIR")
    if not Path(settings.dataroot).is_dir():
        raise UserError(f"--dataroot {settings.dataroot}: no such folder")
    cls = {"Faces": FolderFaces, "CelebA": CelebACrops, "CelebAMaskHQ": CelebAMaskHQ}[kind]
    known = [*inspect.signature(cls).parameters][1:]  # the first is the folder
    for name in settings.dataset_options:
        if name not in known:
            raise UserError(f"--dataset-options {name}: of {kind} {', '.join(known)} can be given")
    options = {"train_dev_percent": settings.train_dev_percent, **settings.dataset_options, "split": split}
    return cls(settings.dataroot, **options)


# ---- networks ----------------------------------------------------------------------------------------------------

def load_morphable(settings: Any) -> MorphableModel:
    """The morphable model of a completion alone, on the CPU, in a third of the time that the networks take.

    Raises:
        UserError: the encoder's file, which may name the model, or the model's are missing or do not fit.
    """
    return _load_geometry(settings)[1]


def choose_definition(settings: Any, metadata: Mapping[str, Any] | None) -> str:
    """The morphable model, "builtin" or a folder: --definition, or with auto the one the encoder was trained with.

    metadata: of the encoder's file, as `models.weights.load_encoder` returns it; None if there is no encoder yet.
    """
    if settings.definition != "auto":
        return settings.definition
    if metadata is None:
        return "builtin"
    if metadata.get("source") == "published":
        return PUBLISHED_DEFINITION
    return str(metadata.get("definition") or "builtin")


def _read_definition(settings: Any, metadata: Mapping[str, Any] | None):
    """(name, `datasets.definition.Definition`) of the morphable model, see :func:`choose_definition`."""
    name = choose_definition(settings, metadata)
    published = settings.definition == "auto" and name == PUBLISHED_DEFINITION
    return name, load_definition(REPOSITORY / name if published else name)


def build_completion(settings: Any, device: torch.device | None = None, inpainter: torch.nn.Module | None = None,
                     grain: bool = True):
    """FaceCompletion with all trained networks, in evaluation mode on the device; with --model-type 2d ImageCompletion.

    inpainter: used instead of the one that the settings name, and folded in place like all networks
    (`models.layers.fold_for_inference`). grain: see `FaceCompletion`. On a GPU the images of a batch are completed
    together, on a CPU one by one.

    Raises:
        UserError: a file of weights or of the morphable model is missing or does not fit.
    """
    from models.completion import FaceCompletion
    from models.layers import fold_for_inference
    from models.weights import load_occlusion, load_refiner
    device = device or choose_device(settings)
    dtype = completion_dtype(settings, device)
    if inpainter is None and settings.model_type == "2d":
        flat = fold_for_inference(_image_completion(settings, grain, dtype).eval(), dtype)
        return _compiled(settings, flat.to(device))
    refiner, made_for = None, None
    if inpainter is None:
        made_for = _load_inpainter(settings)
        if settings.model_type == "refined":
            refiner = load_refiner(settings.refiner_ckpt)
    encoder, model, _ = _load_geometry(settings)
    inpainter = inpainter if made_for is None else made_for(model)
    occlusion, _ = load_occlusion(settings.occ_ckpt)
    completion = FaceCompletion(encoder, inpainter, model, occlusion=occlusion, iterations=settings.niters,
                                one_by_one=device.type == "cpu", grain=grain, refiner=refiner, dtype=dtype)
    fold_for_inference(completion.eval(), dtype)
    return _compiled(settings, completion.to(device))


def _compiled(settings: Any, completion: torch.nn.Module) -> torch.nn.Module:
    """A completion on its device, with its networks compiled if --compile says so."""
    if settings.compile:
        from engine.compilation import compile_networks
        from models.mixture import Mixture
        networks = [getattr(completion, name, None) for name in ("encoder", "occlusion", "inpainter", "refiner")]
        networks = [part.network if isinstance(part, Mixture) else part for part in networks]  # the linear fill is none
        compile_networks(*filter(None, networks))
    return completion


class Known(NamedTuple):
    """A trained network that completes albedo, and what is to be said if it knows another UV map."""

    network: torch.nn.Module
    metadata: Mapping[str, Any]
    file: str
    remedy: str

    def on(self, model: MorphableModel) -> torch.nn.Module:
        """The network; UserError unless it knows the UV map of this morphable model.

        Weight files from before the layout was stored know the built-in model's; of a training's nobody knows.
        """
        if self.metadata["source"] == "published":
            fits = model.uv_layout != BUILTIN_LAYOUT
        else:
            without = model.uv_layout if self.metadata["source"] == "training" else BUILTIN_LAYOUT
            fits = self.metadata.get("uv_layout", without) == model.uv_layout
        if not fits:
            raise UserError(f"{self.file} completes the UV map of another morphable model than the encoder's "
                            f"(--definition): {self.remedy}, and name that file, or use the encoder that belongs to "
                            "this one (--3dmm-ckpt)")
        return self.network


def _known_network(path: str, option: str) -> Known:
    """The trained inpainter in a file that an option names."""
    from models.weights import load_inpainter
    return Known(*load_inpainter(path, mirror_uv), f"{option} {path}", "train one for it with --stage inpainter")


def _known_linear(settings: Any) -> Known:
    """The trained linear fill."""
    from models.weights import load_linear
    return Known(*load_linear(settings.linear_ckpt), f"--linear-ckpt {settings.linear_ckpt}",
                 "make one for it with python -m engine.linear_fill")


def _load_inpainter(settings: Any) -> Callable[[MorphableModel], torch.nn.Module]:
    """What --model-type names, once it is known for which morphable model."""
    from models.mixture import Mixture
    if settings.model_type == "linear":
        if settings.recon_ckpt != DEFAULT_INPAINTER:
            raise UserError(f"--recon-ckpt {settings.recon_ckpt} is of no use with --model-type linear: choose "
                            "another, or leave it out")
        return _known_linear(settings).on
    network = _known_network(settings.recon_ckpt, "--recon-ckpt")
    if settings.model_type == "3dmm_pca":
        return network.on
    linear = _known_linear(settings)
    return lambda model: Mixture(linear.on(model), network.on(model))


def _image_completion(settings: Any, grain: bool, dtype: torch.dtype) -> torch.nn.Module:
    from models.image_completion import ImageCompletion
    from models.weights import load_image_inpainter, load_occlusion
    if settings.resolution[0] == WINDOW_SIZE:
        raise UserError("--model-type 2d completes the whole aligned crop: leave --resolution at [256,256]")
    return ImageCompletion(load_image_inpainter(settings.inpainter2d_ckpt), load_occlusion(settings.occ_ckpt)[0],
                           grain, dtype)


def build_encoder(settings: Any, device: torch.device):
    """(trained encoder in evaluation mode, `engine.encoder_stage.Geometry` that gives its landmarks), on the device.

    Raises:
        UserError: a file of weights or of the morphable model is missing or does not fit.
    """
    encoder, model, definition = _load_geometry(settings, completes=False)
    encoder = encoder.to(device)
    if settings.compile:
        from engine.compilation import compile_networks
        compile_networks(encoder)
    return encoder, _geometry(model, definition).to(device)


def _load_geometry(settings: Any, completes: bool = True):
    """(trained encoder for aligned crops, morphable model, its definition).

    completes: for completions, so with light as of `engine.usual_light`; else the encoder's own.
    """
    from engine.framing import FramedEncoder, trust_of
    from engine.usual_light import UsualLight, usual_light_of
    from models.weights import load_encoder
    encoder, metadata = load_encoder(settings._3dmm_ckpt)
    _, definition = _read_definition(settings, metadata)
    model = MorphableModel(definition)
    framed, usual = FramedEncoder(encoder, model, trust_of(metadata)), usual_light_of(metadata)
    return (framed if usual is None or not completes else UsualLight(framed, usual)).eval(), model, definition


def build_stage(settings: Any, train_set: Dataset) -> Stage:
    """The stage that is to be trained, with fresh networks and, where it needs them, trained frozen ones.

    train_set: from :func:`build_training_data`; a few of its items say where the encoder starts.

    Raises:
        UserError: --loss-options names an unknown loss, --inpainter-options would be of no use, or a frozen network's
            weights are missing.
    """
    builders = {"encoder": _encoder_stage, "occlusion": _occlusion_stage, "inpainter": _inpainter_stage,
                "refiner": _refiner_stage, "inpainter2d": _image_stage}
    _check_loss_options(settings)
    if settings.stage in ("refiner", "inpainter2d") and settings.resolution[0] == WINDOW_SIZE:
        raise UserError(f"--stage {settings.stage} learns from whole aligned crops: leave --resolution at [256,256]")
    if settings.inpainter_options and (settings.stage != "inpainter" or settings.finetune):
        raise UserError("--inpainter-options says how --stage inpainter begins; other stages have no such parts, and "
                        "with --finetune the file says: leave it out")
    return builders[settings.stage](settings, train_set)


def _check_loss_options(settings: Any) -> None:
    """Raises UserError if --loss-options names what is no loss of the stage; before anything takes time."""
    known = list(importlib.import_module(f"engine.{STAGE_MODULES[settings.stage]}").DEFAULT_WEIGHTS)
    unknown = set(settings.loss_options) - set(known) - set(NOT_LOSSES[settings.stage])
    if unknown:
        raise UserError(f"--loss-options: {', '.join(sorted(unknown))} is no loss of --stage {settings.stage}; "
                        f"it has {', '.join([*known, *NOT_LOSSES[settings.stage]])}")
    for name, value in settings.loss_options.items():
        most = 1 if name in ("rectangles", "covered_occluders") else math.inf
        if not isinstance(value, (int, float)) or not 0 <= value <= most or value == math.inf:
            raise UserError(f"--loss-options {json.dumps({name: value})}: give a number from 0 "
                            f"{'to 1' if most == 1 else 'on'}")
        if name in NOT_LOSSES["encoder"] and not (isinstance(value, int) and value >= 1):
            raise UserError(f"--loss-options {json.dumps({name: value})}: give a whole number from 1 on")


def _encoder_stage(settings: Any, train_set: Dataset) -> Stage:
    from engine.encoder_stage import EncoderStage, mean_ground_truth, prepare_encoder
    from models.decoders import AlbedoDecoder
    from models.encoder import Encoder
    from models.renderer import Renderer
    from models.weights import load_encoder
    trained = settings.portraits or settings.finetune
    encoder, metadata = load_encoder(settings._3dmm_ckpt) if trained else (Encoder(codes=False), None)
    encoder.input_size = _train_size(settings)
    decodes = any(settings.loss_options.get(name, 0) > 0 for name in ("albedo", "render"))
    if decodes and not encoder.knows_codes:
        encoder.learn_codes()
    name, definition = _read_definition(settings, metadata)
    _require_builtin(definition)
    model = MorphableModel(definition)
    if not (trained or settings.resume):
        prepare_encoder(encoder, *mean_ground_truth(train_set))
    geometry = _geometry(model, definition)
    renderer = Renderer(model) if settings.loss_options.get("render", 0) > 0 else None
    weights = dict(settings.loss_options)
    extra = {key: weights.pop(key) for key in NOT_LOSSES["encoder"] if key in weights}
    return EncoderStage(encoder, AlbedoDecoder(), geometry, renderer, weights, name, **extra)


def _require_builtin(definition: Any) -> None:
    """UserError for a definition other than that of the faces that the encoder learns from."""
    if definition.albedo_mean is None:  # known for the built-in model only
        raise UserError("--stage encoder learns from built-in faces, whose true shapes are the built-in model's: use "
                        "--definition builtin, and where it starts from an encoder (--3dmm-ckpt), one of that model")


def _geometry(model: MorphableModel, definition: Any):
    """What the encoder's stage compares of a morphable model."""
    from engine.encoder_stage import Geometry
    return Geometry(model, definition.coefficient_parity, definition.coefficient_mean, definition.coefficient_std)


def _occlusion_stage(settings: Any, train_set: Dataset) -> Stage:
    from engine.occlusion_stage import OcclusionStage
    from models.occlusion import CLASS_WEIGHTS, OcclusionNet
    from models.weights import load_occlusion
    network = load_occlusion(settings.occ_ckpt)[0] if settings.finetune else OcclusionNet()
    tells_hair = "hair" in train_set[0]
    if tells_hair and not network.knows_hair:
        network.learn_hair()
    weights = dict(settings.loss_options)
    only = _only(weights, "hair", "decoder")
    if only == "hair" and not tells_hair:
        raise UserError("--loss-options only_hair: these faces do not tell hair; write them anew with "
                        "python -m datasets.synthetic")
    network.reduction, network.class_weights = _train_size(settings) / WINDOW_SIZE, CLASS_WEIGHTS
    return OcclusionStage(network, weights, only)


def _only(weights: dict[str, Any], *parts: str) -> str:
    """Which part alone --loss-options asks to be trained, or ""; takes these options out of the weights."""
    asked = [part for part in parts if weights.pop(f"only_{part}", 0)]
    if len(asked) > 1:
        raise UserError(f"--loss-options: only_{asked[0]} trains less than only_{asked[1]}: leave one of them out")
    return "".join(asked)


def _train_size(settings: Any) -> int:
    if settings.train_size % 32:
        raise UserError(f"--train-size {settings.train_size} is no multiple of 32, which the networks need")
    return settings.train_size


def _inpainter_stage(settings: Any, train_set: Dataset) -> Stage:
    from engine.inpainter_stage import InpainterStage
    from models.completion import FaceCompletion
    from models.discriminator import PyramidDiscriminator
    from models.layers import fold_for_inference
    from models.weights import load_occlusion
    encoder, model, _ = _load_geometry(settings)
    inpainter = (_known_network(settings.recon_ckpt, "--recon-ckpt").on(model) if settings.finetune
                 else _new_inpainter(settings))
    occlusion = None
    if settings.dataset_train not in LABELLED:
        occlusion, _ = load_occlusion(settings.occ_ckpt)
    for frozen in filter(None, (encoder, occlusion)):
        fold_for_inference(frozen.eval())
    completion = FaceCompletion(encoder, inpainter, model, occlusion=occlusion, iterations=1)
    weights, options = _completion_losses(settings)
    weights = {"symmetry": 0.1 * settings.is_using_symmetry, "image": 1.0 * settings.is_using_recon, **weights}
    if model.uv_layout != BUILTIN_LAYOUT and "albedo" in train_set[0]:
        warning("the true albedo of built-in faces lies on the built-in model's UV map, not on that of this "
                "morphable model: the loss hidden_albedo is left out")
        weights["hidden_albedo"] = 0.0
    if settings.teacher_ckpt:
        options["teacher"] = fold_for_inference(_known_network(settings.teacher_ckpt, "--teacher-ckpt").on(model))
    return InpainterStage(completion, PyramidDiscriminator(), weights, use_confidence=settings.use_conf,
                          windowed=settings.resolution[0] == WINDOW_SIZE, **options)


def _new_inpainter(settings: Any) -> torch.nn.Module:
    """The paper's network, or what --inpainter-options makes of it."""
    from models.inpainter import WIDTHS, Inpainter
    options = settings.inpainter_options
    for name, value in options.items():
        allowed = WIDTHS if name == "width" else (True, False)
        if name not in ("attention", "gated", "mirrored", "width"):
            raise UserError(f"--inpainter-options {name}: there are attention, gated, mirrored and width")
        if isinstance(value, bool) is (name == "width") or value not in allowed:
            raise UserError(f"--inpainter-options {name}: one of {', '.join(map(str, allowed))}, not {value!r}")
    return Inpainter(mirror=mirror_uv, **options)


def _refiner_stage(settings: Any, train_set: Dataset) -> Stage:
    from datasets.faces import FolderFaces
    from engine.linear_fill import fold_models, fold_of
    from engine.refiner_stage import RefinerStage
    from models.completion import FaceCompletion
    from models.layers import fold_for_inference
    from models.weights import load_occlusion
    if not settings.portraits:
        raise UserError("--stage refiner corrects the mixed fill of real faces: say where they are with --portraits "
                        "DIR")
    weights = dict(settings.loss_options)
    only = _only(weights, "beside", "decoder")
    encoder, model, _ = _load_geometry(settings)
    network = fold_for_inference(_known_network(settings.recon_ckpt, "--recon-ckpt").on(model))
    prior = _known_linear(settings).on(model)
    occlusion, _ = load_occlusion(settings.occ_ckpt)
    for frozen in (encoder, occlusion):
        fold_for_inference(frozen.eval())
    device = choose_device(settings)
    completion = FaceCompletion(encoder, torch.nn.Identity(), model, occlusion=occlusion, iterations=1)
    completion = completion.eval().to(device)
    portraits = FolderFaces(settings.portraits)
    models = fold_models(completion, portraits, settings.log_type, device)
    folds = {name: fold_of(index) for index, name in enumerate(portraits.names)}
    for linear in models:
        linear.eyes = prior.eyes  # one portrait's detail, which all completions get
    return RefinerStage(completion, _new_refiner(settings), network, prior, models, folds, weights,
                        only=only)


def _new_refiner(settings: Any) -> torch.nn.Module:
    """The refiner that training starts with: with --finetune the trained one, else from the 2D baseline's network."""
    from models.refiner import Refiner
    from models.weights import load_image_inpainter, load_refiner
    if settings.finetune:
        return load_refiner(settings.refiner_ckpt)
    refiner = Refiner()
    if settings.inpainter2d_ckpt and Path(settings.inpainter2d_ckpt).exists():
        refiner.start_from(load_image_inpainter(settings.inpainter2d_ckpt).state_dict())
    else:
        warning(f"the refiner starts from nothing: it learns faster from the 2D baseline (--stage inpainter2d), "
                f"which --inpainter2d-ckpt {settings.inpainter2d_ckpt} is to be")
    return refiner


def _image_stage(settings: Any, train_set: Dataset) -> Stage:
    from engine.image_stage import ImageStage
    from models.discriminator import PyramidDiscriminator
    from models.image_completion import ImageInpainter
    from models.layers import fold_for_inference
    from models.weights import load_image_inpainter, load_occlusion
    network = load_image_inpainter(settings.inpainter2d_ckpt) if settings.finetune else ImageInpainter()
    occlusion = fold_for_inference(load_occlusion(settings.occ_ckpt)[0].eval())
    weights, options = _completion_losses(settings)
    return ImageStage(network, PyramidDiscriminator(), occlusion, weights, **options)


def _completion_losses(settings: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """(weights of the losses, other arguments of the stage) of the stages that complete faces."""
    weights = {"perceptual": PERCEPTUAL_WEIGHT * settings.is_using_frecon, **settings.loss_options}
    options = {key: weights.pop(key) for key in NOT_LOSSES["inpainter"] if key in weights}
    options.update(albedo_kind=settings.tex_loss, image_kind=settings.recon_loss)
    if weights["perceptual"] > 0:
        from engine.losses import PerceptualLoss
        from engine.pretrained import load_vgg_features
        options["perceptual"] = PerceptualLoss(load_vgg_features(settings.vgg_ckpt))
    return weights, options
