"""Options that several commands share, their checks, and what follows from them. `args` stops here."""
import argparse
import math
import shlex
from collections.abc import Mapping, Sequence

from models.components import check_name, is_own
from models.losses import REGULARIZERS
from models.mobilenet_v2 import MIN_SIZE
from utils.checkpoint import PARTS, Checkpoint
from utils.data_options import add_file_options
from utils.distributed import TIMEOUT
from utils.errors import InputError
from utils.parallel import count_cores
from utils.runtime import TYPES
from VOC12.labels import default_class_names, load_class_names
from VOC12.transforms import size_pair

RELEASED_WORKERS = 4
RELEASED_SIZE = 513  # pixels that the released code pads validation images to
MAX_SIZE = 8192  # pixels
MAX_NUMBER = 10 ** 9
NO_LIST = "none"  # as --eval_list: no evaluation
# The option of each part that can be exchanged, and what it is called in --help.
PART_OPTIONS = {"backbone": ("backbone_name", "the encoder"), "connection": ("connection", "the connections"),
                "fusion": ("fusion", "how a stage fuses its inputs"), "head": ("head", "the head"),
                "strengths": ("strengths", "the parameterization of the strengths")}
# What --help says of --backbone_name.
ENCODERS = ("mobilenet_v2", "any of torchvision's classification networks with a pyramid of features (resnet50, ...)",
            "timm:NAME")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds "(default: ...)" to an option's help, unless there is no default or the help states it itself."""

    def _get_help_string(self, action):
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


def add_device_options(parser: argparse._ActionsContainer) -> None:
    """--gpu and --type, the same in every command."""
    parser.add_argument("--gpu", type=int, default=0,
                        help="index of the CUDA device, -1 for the CPU, which is also used where there is no CUDA; "
                             "Apple's MPS is not used")
    parser.add_argument("--type", choices=TYPES, default="float32",
                        help="float16 and bfloat16 are mixed precision (autocast); float64 computes in double")


def add_timeout_option(parser: argparse._ActionsContainer) -> None:
    """--timeout, of the commands that take several processes."""
    parser.add_argument("--timeout", type=int, metavar="SECONDS", default=TIMEOUT,
                        help="several processes: how long one waits for the others before it gives up")


def add_data_options(parser: argparse._ActionsContainer, training: bool = False) -> None:
    """Where the images, labels and lists are."""
    parser.add_argument("--im_path", default="VOC12/data/img", help="folder of the images")
    parser.add_argument("--gt_path", default="VOC12/data/gt", help="folder of the labels (class indices, PNG)")
    if training:
        parser.add_argument("--training_list", default="VOC12/data/train_aug.txt",
                            help="names of the training images, one a line")
    parser.add_argument("--eval_list", default="VOC12/data/val.txt",
                        help="names of the images to evaluate, one a line" +
                             (f"; {NO_LIST}: no evaluation, the last checkpoint is the result" if training else ""))
    add_file_options(parser, training)
    add_class_options(parser, from_checkpoint=not training)
    parser.add_argument("--n_worker", type=int, default=min(RELEASED_WORKERS, count_cores()), help="loader processes")


def add_class_options(parser: argparse._ActionsContainer, from_checkpoint: bool = False,
                      names: bool = True) -> None:
    """--n_class and --class_names. from_checkpoint: by default the checkpoint's, and None here."""
    parser.add_argument("--n_class", type=int, default=None if from_checkpoint else 21,
                        help="number of classes" + (" (default: the checkpoint's)" if from_checkpoint else ""))
    if names:
        parser.add_argument("--class_names", metavar="FILE", help="names of the classes, one a line")


def add_model_options(parser: argparse._ActionsContainer, from_checkpoint: bool = False,
                      strengths: bool = False) -> None:
    """--depth, and the parts that can be exchanged. from_checkpoint: by default the checkpoint's, and None here.

    strengths: whether --strengths is among them.
    """
    note = " (default: the checkpoint's)" if from_checkpoint else ""
    for kind, (option, meaning) in PART_OPTIONS.items():
        if kind != "strengths" or strengths:
            known = ENCODERS if kind == "backbone" else list(PARTS[kind])  # naming them all would import torchvision
            parser.add_argument(f"--{option}", metavar="NAME", default=None if from_checkpoint else known[0],
                                help=f"{meaning}: {', '.join(known)}, or your own as package.module:factory{note}")
    parser.add_argument("--depth", type=int, default=None if from_checkpoint else 64,
                        help=f"channels of a decoder stage{note}")


def add_mask_encoder_option(parser: argparse._ActionsContainer) -> None:
    """--mask_encoder: a connectivity is carried over from the encoder that it was found on."""
    parser.add_argument("--mask_encoder", metavar="NAME", help="the encoder that the mask was found on, for it to be "
                        "carried over to this one (default: what the text beside the mask says)")


def check_mask_encoder(args: argparse.Namespace) -> None:
    """Raises InputError for a --mask_encoder without a mask."""
    if getattr(args, "mask_encoder", None) and not getattr(args, "mask_path", None):
        raise InputError("--mask_encoder is the encoder that a mask was found on, and there is none; leave it out, or "
                         "give a mask")


def given_parts(args: argparse.Namespace) -> dict:
    """The parts that stood on the command line, by kind; None for the others: a default contradicts nothing."""
    return {kind: option_if_given(args, option) for kind, (option, _) in PART_OPTIONS.items()}


def own_part_options(parts: Mapping[str, str]) -> str:
    """What a printed command needs beside the checkpoint, where parts, by kind, are the user's own: see Checkpoint."""
    options = {**{kind: option for kind, (option, _) in PART_OPTIONS.items()}, "regularizer": "sparse_loss"}
    return "".join(f" --{options[kind]} {shlex.quote(name)}" for kind, name in parts.items() if is_own(name))


def command_line(parser: argparse.ArgumentParser, settings: Mapping) -> str:
    """The command whose options, by dest, are these settings. Those at their default are left out."""
    words = ["python", parser.prog]
    for action in parser._actions:
        value = settings.get(action.dest, action.default)
        if value is not None and value != action.default:
            values = [] if value == action.const else value if isinstance(value, list) else [value]
            words += [action.option_strings[-1], *map(str, values)]
    return shlex.join(words)


def option_if_given(args: argparse.Namespace, name: str) -> object:
    """The option's value if it stood on the command line, else None."""
    return getattr(args, name) if name in args.given else None


def require_options(checkpoint: Checkpoint, args: argparse.Namespace) -> Checkpoint:
    """Raises InputError if an option that was given contradicts the checkpoint. Returns the checkpoint."""
    check_mask_encoder(args)
    checkpoint.require_parts(given_parts(args))
    num_classes, depth = (option_if_given(args, name) for name in ("n_class", "depth"))
    checkpoint.require_same(num_classes, depth)
    return checkpoint


def check_part_names(args: argparse.Namespace) -> None:
    """Raises InputError for a part that is neither known nor named package.module:factory."""
    for kind, (option, _) in PART_OPTIONS.items():
        if getattr(args, option, None) is not None:
            check_name(kind, getattr(args, option), PARTS[kind])
    if hasattr(args, "sparse_loss"):
        check_name("regularizer", args.sparse_loss, REGULARIZERS)


def check_numbers(args: argparse.Namespace, names: Sequence[str], at_least: int) -> None:
    """Raises InputError for an option, None excepted, that is too small, not finite, or a count beyond reason."""
    for name in names:
        value = getattr(args, name)
        if value is None:
            continue
        if isinstance(value, int) and not at_least <= value <= MAX_NUMBER:
            raise InputError(f"--{name} is {value}; give {at_least} to {MAX_NUMBER:,}")
        if not (value >= at_least and math.isfinite(value)):
            raise InputError(f"--{name} is {value}; give a number from {at_least} up")


def check_size(size: int, option: str) -> int:
    """Returns a number of pixels. Raises InputError if the encoder or the memory cannot take it."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InputError(f"{option} is {size}; give {MIN_SIZE} (what the encoder needs) to {MAX_SIZE} pixels")
    return size


def check_crop_size(crop_size: int | Sequence[int]) -> tuple[int, int]:
    """--crop_size -> (height, width). Raises InputError as check_size does."""
    height, width = size_pair(crop_size)
    return check_size(height, "--crop_size"), check_size(width, "--crop_size")


def padding_of(crop_size: int | Sequence[int] | None, checkpoint: Checkpoint) -> tuple[int, int]:
    """(height, width) that smaller images are padded to: the option, else the training's, else the released one."""
    if crop_size is None:
        stored = checkpoint.settings.get("crop_size")
        crop_size = stored if fits(stored, int, several=2) else RELEASED_SIZE
    return check_crop_size(crop_size)


def class_names_of(file: str | None, num_classes: int, stored: Sequence[str] | None = None) -> list[str]:
    """The names of the classes: a file's, else those stored in a checkpoint, else VOC's or numbers."""
    if file:
        return load_class_names(file, num_classes)
    return stored or default_class_names(num_classes)


def add_crop_option(parser: argparse._ActionsContainer, default: int | None, meaning: str) -> None:
    """--crop_size: one number of pixels, a square, or height and width. An int, or a list of two that differ."""
    parser.add_argument("--crop_size", type=pixels, nargs="+", action=StoreSize, metavar=("H", "W"), default=default,
                        help=f"{meaning}; one number for a square, or height and width")


def pixels(text: str) -> int:
    """A word of the command line -> a number of pixels."""
    try:
        return int(text)
    except ValueError:  # of predict.py it may be an image, since an option takes all words up to the next one
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pixels; give one number or two, and file names "
                                         f"before the options") from None


class StoreSize(argparse.Action):
    """Stores one number as it is, two equal ones as one, and two others as a list."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) > 2:
            raise argparse.ArgumentError(self, f"{len(values)} numbers; give one (a square) or two: height and width")
        setattr(namespace, self.dest, values[0] if len(set(values)) == 1 else values)


def fits(value: object, kind: type, several: int = 1) -> bool:
    """Whether a value is of this type, or a list of `several` that are."""
    if several > 1 and isinstance(value, list):
        return len(value) == several and all(fits(each, kind) for each in value)
    return isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)


def check_settings(parser: argparse.ArgumentParser, settings: Mapping, path: str) -> None:
    """Raises InputError for a setting in a checkpoint that the command line would not take."""
    for action in parser._actions:
        value = settings.get(action.dest, action.default)
        of_size = isinstance(action, StoreSize)
        convert = action.type or str  # a function makes a number of a text such as 0.3M
        kind = bool if isinstance(action.const, bool) else int if of_size else \
            convert if isinstance(convert, type) else float
        fitting = fits(value, kind, several=2 if of_size else 1)
        if not (fitting and value in (action.choices or [value]) or value is None is action.default):
            raise InputError(f"{path} cannot be resumed: its setting {action.dest} is {value!r}, which "
                             f"--{action.dest} does not take; resume another checkpoint")
