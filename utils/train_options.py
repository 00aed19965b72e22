"""The options of train_sparse_mask.py: the parser, the checks, and what --resume and --ft_model make of them."""
import argparse

from models import connectivity
from models.components import is_own
from models.layers import RELEASED_BN_MOMENTUM
from models.losses import REGULARIZERS
from utils.checkpoint import PARTS, Checkpoint, read_checkpoint
from utils.errors import InputError
from utils.options import (
    PART_OPTIONS,
    HelpFormatter,
    add_data_options,
    add_device_options,
    add_model_options,
    check_numbers,
    check_part_names,
    check_settings,
    check_size,
    given_parts,
    option_if_given,
    require_options,
)
from utils.resume import checkpoint_to_resume, merge_settings
from utils.run import RELEASED_ITERATIONS

DESCRIPTION = ("Search a connectivity (--search), or train the network of one (--mask_path). "
               "PASCAL VOC 2012 or your own data.")


def build_parser() -> argparse.ArgumentParser:
    """The released command line, and what is new."""
    parser = argparse.ArgumentParser(prog="train_sparse_mask.py", description=DESCRIPTION,
                                     formatter_class=HelpFormatter)
    add = parser.add_argument_group("task (one of these)").add_argument
    add("--search", action="store_true", help="search: train the supernet and its connection strengths")
    add("--mask_path", help=f"train: a connectivity that prune.py wrote, or one of {', '.join(connectivity.NAMED)}")
    add("--ft_model", nargs="?", const="", metavar="FILE",
        help="train: start from a whole trained network, not only its encoder: FILE, or that of --pretrained_model")
    add("--resume", metavar="RUN", help="continue a run: its folder, or a checkpoint in it")
    group = parser.add_argument_group("data")
    add_data_options(group, training=True)
    group.add_argument("--crop_size", type=int, default=513, help="pixels; evaluation pads smaller images to it")
    group = parser.add_argument_group("model")
    group.add_argument("--pretrained_model", default="imagenet",
                       help="encoder weights: imagenet (torchvision's, downloaded once), none, or a file")
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
    add = parser.add_argument_group("run").add_argument
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
    check_size(args.crop_size, "--crop_size")
    check_part_names(args)
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
    given = {name: getattr(args, name) for name in args.given}
    backbone = given.pop("backbone_name", None)  # the two layouts of MobileNetV2 count as one: require_parts compares
    defaults = {action.dest: action.default for action in parser._actions if action.dest != "help"}
    settings = merge_settings(checkpoint.settings, given, defaults)
    if "class_names" not in given:
        settings["class_names"] = None  # the checkpoint contains the names; the file may be gone
    if is_own(settings["sparse_loss"]) and "sparse_loss" not in given:
        raise InputError(f"the run {checkpoint.path} uses the regularizer {settings['sparse_loss']!r}, which this "
                         f"program would have to import; if you trust it, add --sparse_loss {settings['sparse_loss']}")
    checkpoint.require_parts({**given_parts(args), "backbone": backbone})
    return checkpoint, argparse.Namespace(**settings, given=args.given)


def fine_tuned(args: argparse.Namespace) -> tuple[Checkpoint, argparse.Namespace]:
    """--ft_model: the checkpoint, whose parts and sizes become the run's."""
    if args.search:
        raise InputError("--search learns a connectivity, so it does not take --ft_model; leave out one or the other")
    if args.ft_model == "" and args.pretrained_model in ("imagenet", "none"):
        raise InputError("--ft_model starts from a trained network; give its checkpoint: --ft_model FILE")
    checkpoint = require_options(read_checkpoint(args.ft_model or args.pretrained_model).require("train"), args)
    checkpoint.require_mask(option_if_given(args, "mask_path"))
    parts = {PART_OPTIONS[kind][0]: name for kind, name in checkpoint.parts.items()}
    sizes = {"n_class": checkpoint.num_classes, "depth": checkpoint.depth}
    return checkpoint, argparse.Namespace(**{**vars(args), **parts, **sizes})
