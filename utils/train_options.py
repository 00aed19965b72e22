"""The options of train_sparse_mask.py: the parser, the checks, and what --resume and --ft_model make of them."""
import argparse
import functools

from models import connectivity
from models.backbones import MOBILENETS
from models.components import is_own
from models.layers import RELEASED_BN_MOMENTUM
from models.losses import REGULARIZERS
from utils.checkpoint import PARTS, Checkpoint, read_checkpoint
from utils.data_options import label_map_of
from utils.errors import InputError
from utils.options import (
    PART_OPTIONS,
    RELEASED_SIZE,
    HelpFormatter,
    add_crop_option,
    add_data_options,
    add_device_options,
    add_mask_encoder_option,
    add_model_options,
    add_timeout_option,
    check_crop_size,
    check_mask_encoder,
    check_numbers,
    check_part_names,
    check_settings,
    command_line,
    given_parts,
    option_if_given,
)
from utils.resume import checkpoint_to_resume, merge_settings
from utils.run import RELEASED_ITERATIONS
from utils.run_length import Length, resumed_length, stored_length

# Settings that make a network of which a trained one has no part, or not all.
OTHER_NETWORK = {"search", "mask_path", "mask_encoder", "pretrained_model", "partial_weights", "strengths", "depth", *(
    option for option, _ in PART_OPTIONS.values())}
DESCRIPTION = ("Search a connectivity (--search), or train the network of one (--mask_path). "
               "PASCAL VOC 2012 or your own data.")


def build_parser() -> argparse.ArgumentParser:
    """The released command line, and what is new."""
    parser = argparse.ArgumentParser(prog="train_sparse_mask.py", description=DESCRIPTION,
                                     formatter_class=HelpFormatter)
    task = parser.add_argument_group("task (one of these)")
    add = task.add_argument
    add("--search", action="store_true", help="search: train the supernet and its connection strengths")
    add("--mask_path", help=f"train: a connectivity that prune.py wrote, or one of {', '.join(connectivity.NAMED)}")
    add_mask_encoder_option(task)
    add("--ft_model", nargs="?", const="", metavar="FILE",
        help="train: start from a whole trained network, not only its encoder: FILE, or that of --pretrained_model. "
             "With another --n_class the head starts anew")
    add("--resume", metavar="RUN", help="continue a run: its folder, or a checkpoint in it. Options given with it that "
                                        "are not the network's, such as --lr and --max_epoch, change from here on")
    group = parser.add_argument_group("data")
    add_data_options(group, training=True)
    add_crop_option(group, RELEASED_SIZE, "pixels; evaluation pads smaller images to it")
    group = parser.add_argument_group("model")
    group.add_argument("--pretrained_model", default="imagenet",
                       help="encoder weights: imagenet (the network's own, downloaded once by its library), none, "
                            "or a file")
    group.add_argument("--partial_weights", action="store_true",
                       help="accept encoder weights that lack some of the encoder, which then starts from random "
                            "weights")
    add_model_options(group)
    add = parser.add_argument_group("search").add_argument
    add("--strengths", metavar="NAME", default="sigmoid",
        help=f"the parameterization: {', '.join(PARTS['strengths'])} (sigmoid is annealed, clamp is the released one), "
             "or your own as package.module:Class")
    add("--sparse", type=float, default=0.01, help="weight of the sparse loss. It sets how sparse the result is")
    add("--sparse_loss", metavar="NAME", default="sparse",
        help=f"the regularizer of the strengths: {', '.join(REGULARIZERS)}, or your own as package.module:function")
    add("--strength_lr_mult", type=float,
        help="times --lr times --last_layer_lr_mult, the learning rate of the strengths (default: "
             f"{RELEASED_ITERATIONS} / the iterations that they learn in)")
    add("--strength_warmup", type=float,
        help="share of the iterations before the strengths learn (default: "
             f"{', '.join(f'{kind.warmup:g} for {name}' for name, kind in PARTS['strengths'].items())})")
    add("--beta_end", type=float, default=50, help="sigmoid: the annealing goes from 1 to this")
    group = parser.add_argument_group("optimization")
    add = group.add_argument
    add("--max_epoch", type=int, default=50, help="how many times each image is seen")
    add("--batch_size", type=int, default=16, help="images a step, of all processes together")
    add("--lr", type=float, default=0.005, help="learning rate of the encoder")
    add("--last_layer_lr_mult", type=float, default=10, help="times --lr: the learning rate of everything else")
    add("--momentum", type=float, default=0.9, help="of the optimizer, SGD")
    add("--class_weights", metavar="FILE", help="weights of the classes in the loss: balanced (by median frequency in "
                                                "the training labels), or a file with one weight a line")
    add("--decay", type=float, default=4e-5, help="weight decay")
    add("--gamma", type=float, default=0.9, help="the learning rate falls with (1 - i/N)^gamma")
    add("--freeze_bn", action="store_true", help="keep the scale and shift of every BN (a search always does)")
    add("--bn_momentum", type=float, help="momentum of the BN statistics (default: 10 / iterations, at most 0.1; "
                                          f"{RELEASED_BN_MOMENTUM} with --ft_model)")
    add("--sync_bn", action="store_true", help="with several processes: BN takes the statistics of the whole batch, "
                                               "not of each process's share")
    add("--seed", type=int, default=0, help="of the initial weights, the augmentation and the order of the images")
    add("--deterministic", action="store_true", help="the same digits in every run on a GPU too; on a CPU they are so "
                                                     "without")
    add("--compile", action="store_true", help="torch.compile the network: minutes at the start, meant for long runs "
                                               "on a GPU; on a CPU it gains nothing")
    add_device_options(group)
    group = parser.add_argument_group("run")
    add_timeout_option(group)
    add = group.add_argument
    add("--exp_path", default="SparseMaskVOC", help="the run goes to EXP_PATH/TIMESTAMP")
    add("--eval_interval", type=int, default=1, help="epochs between two evaluations; the last is always evaluated")
    add("--save_interval", type=int, default=0, help="iterations between two checkpoints inside an epoch; 0: only at "
                                                     "its end")
    add("--log_interval", type=int, default=100, help="iterations between two points of the curves")
    add("--keep_all", action="store_true", help="keep every epoch's checkpoint, not only the last and the best")
    return parser


def check_args(args: argparse.Namespace, num_processes: int) -> None:
    """Raises InputError for options that contradict each other or are out of range."""
    check_numbers(args, ("max_epoch", "batch_size", "log_interval", "eval_interval", "n_class", "depth"), at_least=1)
    check_numbers(args, ("save_interval", "lr", "last_layer_lr_mult", "decay", "momentum", "gamma", "sparse",
                         "strength_lr_mult"), at_least=0)
    check_crop_size(args.crop_size)
    check_part_names(args)
    check_mask_encoder(args)
    if not 0 <= args.seed < 2 ** 63:
        raise InputError(f"--seed is {args.seed}; give a number from 0 to below 2^63")
    if args.strength_warmup is not None and not 0 <= args.strength_warmup < 1:
        raise InputError(f"--strength_warmup is {args.strength_warmup}; give a share from 0 to below 1")
    if args.bn_momentum is not None and not 0 < args.bn_momentum <= 1:
        raise InputError(f"--bn_momentum is {args.bn_momentum}; give a number above 0, at most 1")
    if not 1 <= args.beta_end <= 1e6:
        raise InputError(f"--beta_end is {args.beta_end}; the annealing starts at 1, so give 1 to a million")
    if args.batch_size < num_processes:
        raise InputError(f"--batch_size is {args.batch_size}, divided among {num_processes} processes; give at least "
                         f"one image for each")
    if args.search and args.mask_path:
        raise InputError("--search learns a connectivity, so it does not take --mask_path; leave out one or the other")
    if not args.search and not args.mask_path and args.ft_model is None:
        raise InputError("choose a task: --search to search a connectivity, or --mask_path FILE to train one")


def find_source(args: argparse.Namespace, num_processes: int) -> tuple[Checkpoint | None, argparse.Namespace]:
    """What a run starts from: a checkpoint (--resume, --ft_model) or None, and the options that the run then has.

    Raises InputError if they contradict each other or are out of range.
    """
    if args.resume:
        checkpoint, args = resumed(args)
    elif args.ft_model is not None:
        checkpoint, args = fine_tuned(args)
    else:
        checkpoint = None
    check_args(args, num_processes)
    return checkpoint, args


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
