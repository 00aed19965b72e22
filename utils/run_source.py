"""What a run starts from: --resume, --run_name and --ft_model, and the options that the run then has."""
import argparse
import functools
from pathlib import Path

from models.backbones import MOBILENETS
from models.components import is_own
from utils.checkpoint import Checkpoint, read_checkpoint
from utils.data_options import label_map_of
from utils.errors import InputError
from utils.options import PART_OPTIONS, check_settings, command_line, given_parts, option_if_given
from utils.resume import checkpoint_to_resume, merge_settings
from utils.run_folder import numbered_checkpoints
from utils.run_length import Length, resumed_length, stored_length
from utils.train_options import build_parser, check_args

# Settings that make a network of which a trained one has no part, or not all.
OTHER_NETWORK = {"search", "mask_path", "mask_encoder", "pretrained_model", "partial_weights", "strengths", "depth",
                 "init", *(option for option, _ in PART_OPTIONS.values())}


def find_source(args: argparse.Namespace, num_processes: int) -> tuple[Checkpoint | None, argparse.Namespace]:
    """What a run starts from: a checkpoint (--resume, --ft_model) or None, and the options that the run then has.

    Raises InputError if they contradict each other or are out of range.
    """
    args = find_named_run(args)
    if args.resume:
        checkpoint, args = resumed(args)
    elif args.ft_model is not None:
        checkpoint, args = fine_tuned(args)
    else:
        checkpoint = None
    check_args(args, num_processes)
    return checkpoint, args


def find_named_run(args: argparse.Namespace) -> argparse.Namespace:
    """--run_name: options that resume the run of this name, if it has begun."""
    if args.run_name is None:
        return args
    if args.resume:
        raise InputError("--resume continues a run where it is, so it does not take --run_name; leave out one or the "
                         "other")
    if Path(args.run_name).name != args.run_name or args.run_name == "..":
        raise InputError(f"{args.run_name!r} is no name of a folder; give one without slashes", about="run_name")
    folder = Path(args.exp_path) / args.run_name
    if not numbered_checkpoints(folder):
        return args
    place = {"exp_path", "run_name"}  # it may have been moved
    return argparse.Namespace(**{**vars(args), "resume": str(folder), "given": args.given - place | {"resume"}})


def resumed(args: argparse.Namespace) -> tuple[Checkpoint, argparse.Namespace]:
    """--resume: the checkpoint, and the run's settings with those that may change and were given."""
    checkpoint = checkpoint_to_resume(args.resume)
    parser = build_parser()
    check_settings(parser, checkpoint.settings, checkpoint.path)
    defaults = {action.dest: action.default for action in parser._actions if action.dest != "help"}
    stored = merge_settings(checkpoint.settings, {}, defaults)
    check_args(argparse.Namespace(**stored), 1)
    checkpoint.content["settings"] = stored  # complete: what the run did not store, being older, it had by default
    given = {name: getattr(args, name) for name in args.given}
    if given.get("label_map"):  # spelled as it is stored
        label_map = label_map_of(given["label_map"], stored["n_class"])
        given["label_map"] = label_map and str(label_map)
    if {given.get("backbone_name"), checkpoint.parts["backbone"]} <= set(MOBILENETS):
        del given["backbone_name"]  # the two layouts of MobileNetV2 count as one
    settings = merge_settings(stored, given, defaults, functools.partial(new_run_command, checkpoint))
    if is_own(settings["sparse_loss"]) and "sparse_loss" not in given:
        raise InputError(f"the run {checkpoint.path} uses the regularizer {settings['sparse_loss']!r}, which this "
                         f"program would have to import; if you trust it, add --sparse_loss {settings['sparse_loss']}")
    checkpoint.require_parts(given_parts(args))
    settings["timeout"] = args.timeout  # the processes have joined with it before the checkpoint was read
    return checkpoint, argparse.Namespace(**settings, given=args.given)


def new_run_command(checkpoint: Checkpoint, changes: dict) -> str:
    """The command of a new run with the settings of the checkpoint's run and these changes, which resuming refuses.

    Where it can, it starts from the trained network. Empty if no command line makes that run. Raises InputError for
    changes that no run can have.
    """
    if changes.keys() == {"exp_path"} or changes.get("ft_model") == "":  # the option has to be left out
        return ""
    settings = {**checkpoint.settings, "resume": None, **changes}
    trained = checkpoint.kind == "train" and not changes.keys() & OTHER_NETWORK
    if "ft_model" not in changes:
        settings["ft_model"] = checkpoint.path if trained else None
    if settings["ft_model"] is not None:  # the file has these
        known = {name for kind, (name, _) in PART_OPTIONS.items() if not is_own(settings[name])}
        known |= {"search", "mask_path", "mask_encoder", "pretrained_model", "partial_weights", "depth", "n_class",
                  "class_names"}
        if "n_class" not in changes:  # its head stays
            known.add("init")
        settings = {name: value for name, value in settings.items() if name in changes or name not in known}
    elif changes.get("mask_path"):
        settings["search"] = False
        settings["mask_encoder"] = changes.get("mask_encoder")
    elif settings["search"]:
        settings["mask_path"] = settings["mask_encoder"] = None
    elif not settings["mask_path"]:
        return ""  # the run began from a trained network: its connectivity is in no file
    if "n_class" in changes and "class_names" not in changes:
        settings["class_names"] = None
    parser = build_parser()
    check_args(parser.parse_args([], argparse.Namespace(**settings)), 1)
    return command_line(parser, settings)


def length_of_run(args: argparse.Namespace, source: Checkpoint | None, num_images: int) -> Length:
    """The length of a run, new or resumed, over a training list of so many images.

    Raises InputError if a resumed run began with a list of another length.
    """
    epoch_length = -(-num_images // args.batch_size)
    if not args.resume:
        return Length(epoch_length, args.max_epoch * epoch_length)
    stored = stored_length(source)
    with_list = -(-num_images // source.settings["batch_size"])
    if with_list != stored.epoch_length:
        changes = {name: getattr(args, name) for name in args.given - {"resume"}
                   if getattr(args, name) != source.settings[name]}
        raise InputError(f"the run has {stored.iterations} iterations, {stored.epoch_length} an epoch, but with the "
                         f"list {args.training_list} an epoch would have {with_list}; resume with the list that it "
                         f"began with, or start a new run: {new_run_command(source, changes)}", about="training_list")
    return resumed_length(source, epoch_length, args.batch_size, args.max_epoch)


def fine_tuned(args: argparse.Namespace) -> tuple[Checkpoint, argparse.Namespace]:
    """--ft_model: the checkpoint, whose parts and sizes become the run's. A number of classes that was given stays."""
    if args.search:
        raise InputError("--search learns a connectivity, so it does not take --ft_model; leave out one or the other")
    if args.ft_model == "" and args.pretrained_model in ("imagenet", "none"):
        raise InputError("--ft_model starts from a trained network; give its checkpoint: --ft_model FILE")
    checkpoint = read_checkpoint(args.ft_model or args.pretrained_model).require("train")
    checkpoint.require_parts(given_parts(args))
    checkpoint.require_same(depth=option_if_given(args, "depth"))
    checkpoint.require_mask(option_if_given(args, "mask_path"), args.mask_encoder)
    parts = {PART_OPTIONS[kind][0]: name for kind, name in checkpoint.parts.items()}
    num_classes = option_if_given(args, "n_class")
    sizes = {"n_class": checkpoint.num_classes if num_classes is None else num_classes, "depth": checkpoint.depth}
    if "init" in args.given and sizes["n_class"] == checkpoint.num_classes:
        raise InputError(f"the trained network {checkpoint.path} keeps its weights, those of its head too, so nothing "
                         f"is initialized; leave the option out", about="init")
    return checkpoint, argparse.Namespace(**{**vars(args), **parts, **sizes})


def commands_after_nan(args: argparse.Namespace, resume: str | None) -> str:
    """What to run after a loss that was not finite. resume: the command that resumes, None without a checkpoint."""
    ways = [("lr", f"{args.lr / 10:g}", "with a tenth of the learning rate")] if args.lr else []
    if args.type in ("float16", "bfloat16"):
        ways.append(("type", "float32", "in a wider type"))
    parser = build_parser()
    lines = [f"To {'go on' if resume else 'start again'} {how}:\n  " +
             (f"{resume} --{name} {value}" if resume else command_line(parser, {**vars(args), name: value}))
             for name, value, how in ways]
    return "\n".join(lines)
