"""The options of train_sparse_mask.py: the parser and the checks. For what they start from, see utils/run_source.py."""
import argparse

from models import connectivity
from models.costs import COSTS
from models.layers import INIT_MODES, RELEASED_BN_MOMENTUM
from models.losses import REGULARIZERS
from utils.checkpoint import PARTS
from utils.errors import InputError
from utils.options import (
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
)
from utils.run import RELEASED_ITERATIONS
from utils.run_length import ADAM_ITERATIONS

SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9}
DESCRIPTION = ("Search a connectivity (--search), or train the network of one (--mask_path). "
               "PASCAL VOC 2012 or your own data.")


def build_parser() -> argparse.ArgumentParser:
    """The released command line, and what is new."""
    parser = argparse.ArgumentParser(prog="train_sparse_mask.py", description=DESCRIPTION,
                                     formatter_class=HelpFormatter)
    add_task_options(parser)
    add = add_training_options(parser).add_argument
    add("--seed", type=int, default=0, help="of the initial weights, the augmentation and the order of the images")
    add("--exp_path", default="SparseMaskVOC", help="the run goes to EXP_PATH/TIMESTAMP")
    add("--run_name", metavar="NAME",
        help="the run goes to EXP_PATH/NAME instead, and continues there if it has begun: the same command starts it "
             "and, after a stop, resumes it")
    return parser


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """What a run does, and what it starts from."""
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


def add_training_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Data, network, search, optimization, and what a run writes: all that several runs can share.

    Returns the last group, for the options of a single run.
    """
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
    group.add_argument("--init", choices=INIT_MODES, default=INIT_MODES[0],
                       help="the Kaiming normal that the convolutions of decoder and head start from: fan_out, the "
                            "released one, or fan_in, which takes the number of inputs into account")
    add = parser.add_argument_group("search").add_argument
    add("--strengths", metavar="NAME", default="sigmoid",
        help=f"the parameterization: {', '.join(PARTS['strengths'])} (sigmoid is annealed, clamp is the released one), "
             "or your own as package.module:Class")
    add("--sparse", type=float, default=0.01, help="weight of the sparse loss. It sets how sparse the result is")
    add("--sparse_loss", metavar="NAME", default="sparse",
        help=f"the regularizer of the strengths: {', '.join(REGULARIZERS)}, or your own as package.module:function")
    add("--cost", choices=COSTS,
        help="weigh each connection in the sparse loss by what it costs: parameters, multiply-adds of an image of "
             "--crop_size, or latency, in milliseconds of such an image, which is measured once")
    add("--budget", type=amount, metavar="X", help="with --cost: lead the search to a decoder whose connections cost "
                                                   "this; 0.3M and 1.2G are numbers too")
    add("--strength_optimizer", choices=("sgd", "adam"),
        help="of the strengths: adam makes steps that do not depend on the scale of the gradients (default: sgd, adam "
             "with --budget)")
    add("--strength_lr_mult", type=float,
        help="times --lr times --last_layer_lr_mult, the learning rate of the strengths (default: "
             f"{RELEASED_ITERATIONS} / the iterations that they learn in; {ADAM_ITERATIONS} / them with adam)")
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
    add("--deterministic", action="store_true", help="the same digits in every run on a GPU too; on a CPU they are so "
                                                     "without")
    add("--compile", action="store_true", help="torch.compile the network: minutes at the start, meant for long runs "
                                               "on a GPU; on a CPU it gains nothing")
    add("--cuda_graphs", action="store_true", help="on a GPU: launch each step as CUDA graphs, several times faster "
                                                   "where the GPU waits for Python, as with small crops and batches")
    add_device_options(group)
    group = parser.add_argument_group("run")
    add_timeout_option(group)
    add = group.add_argument
    add("--eval_interval", type=int, default=1, help="epochs between two evaluations; the last is always evaluated")
    add("--save_interval", type=int, default=0, help="iterations between two checkpoints inside an epoch; 0: only at "
                                                     "its end")
    add("--log_interval", type=int, default=100, help="iterations between two points of the curves")
    add("--keep_all", action="store_true", help="keep every epoch's checkpoint, not only the last and the best")
    return group


def amount(text: str) -> float:
    """A word of the command line -> a number: "300000", "300k", "0.3M", "1.2G"."""
    number, factor = (text[:-1], SUFFIXES[text[-1]]) if text[-1:] in SUFFIXES else (text, 1)
    try:
        return float(number) * factor
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; give for example 300000, 300k, 0.3M or "
                                         f"1.2G") from None


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
    if args.budget is not None and args.cost is None:
        raise InputError("--budget is in the unit of --cost; give that too: parameters, macs or latency")
    if args.cost and not args.search:
        raise InputError("--cost weighs the connections of a search; leave it out, or search")
    if args.cost and args.sparse_loss != "sparse":
        raise InputError(f"--cost weighs the sparse loss of the paper, and --sparse_loss is {args.sparse_loss}; leave "
                         f"out one or the other")
    if args.budget is not None and not (args.budget > 0 and args.sparse > 0):
        raise InputError(f"--budget is {args.budget:g} and --sparse {args.sparse:g}; both have to be above 0")
    if args.cuda_graphs and args.compile:
        raise InputError("--cuda_graphs and --compile both replace how a step is launched; give one of them")
    if args.batch_size < num_processes:
        raise InputError(f"--batch_size is {args.batch_size}, divided among {num_processes} processes; give at least "
                         f"one image for each")
    if args.search and args.mask_path:
        raise InputError("--search learns a connectivity, so it does not take --mask_path; leave out one or the other")
    if not args.search and not args.mask_path and args.ft_model is None:
        raise InputError("choose a task: --search to search a connectivity, or --mask_path FILE to train one")
