"""Search a connectivity (--search), or train the network of one (--mask_path). PASCAL VOC 2012 or your own data."""
import argparse
import contextlib
import functools
import shlex
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from models import FullyDenseNetwork, SparseMask, connectivity
from models.backbones import make_backbone
from models.components import is_own
from models.layers import RELEASED_BN_MOMENTUM, freeze_bn_affine, set_bn_momentum
from models.losses import REGULARIZERS, find_regularizer
from models.strengths import ClampStrengths, SigmoidStrengths
from models.sync_bn import synchronize_bn
from utils.checkpoint import PARTS, Checkpoint, read_checkpoint
from utils.cli import run_command
from utils.distributed import ProcessGroup, process_group
from utils.engine import Trainer, search_losses, train_losses
from utils.errors import InputError, StepInterrupted
from utils.options import (HelpFormatter, add_data_options, add_device_options, add_model_options, check_numbers,
                           check_part_names, check_settings, check_size, class_names_of, given_parts, option_if_given,
                           own_part_options, require_options)
from utils.pretrained import find_encoder_weights, load_encoder
from utils.resume import checkpoint_to_resume, merge_settings
from utils.run import RELEASED_ITERATIONS, NotFinite, Schedule, TrainingState, make_optimizer
from utils.run_folder import RunFolder, new_folder
from utils.run_log import RunLog
from utils.runtime import (Precision, StopRequest, explain_out_of_memory, make_deterministic, seed_everything,
                           select_device)
from VOC12.dataset import EpochBatches, SegmentationDataset
from VOC12.loading import explain_loader_death, make_eval_loader, make_loader
from VOC12.transforms import TrainTransform


def build_parser() -> argparse.ArgumentParser:
    """The released command line, and what is new."""
    parser = argparse.ArgumentParser(prog="train_sparse_mask.py", description=__doc__, formatter_class=HelpFormatter)
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
             f"{SigmoidStrengths.warmup} for sigmoid, {ClampStrengths.warmup:g} for clamp)")
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


def check_args(args: argparse.Namespace, group: ProcessGroup) -> None:
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
    if args.batch_size < group.size:
        raise InputError(f"--batch_size is {args.batch_size}, divided among {group.size} processes; give at least one "
                         f"image for each")
    if args.search and (args.mask_path or args.ft_model is not None):
        raise InputError("--search learns a connectivity, so it takes neither --mask_path nor --ft_model; "
                         "leave out one or the other")
    if not args.search and not args.mask_path and args.ft_model is None:
        raise InputError("choose a task: --search to search a connectivity, or --mask_path FILE to train one")


def main(args: argparse.Namespace) -> int:
    """Searches or trains, as one of the processes that torchrun started or alone. Returns the exit code."""
    with process_group(on_cpu=args.gpu == -1) as group:
        return search_or_train(args, group)


def search_or_train(args: argparse.Namespace, group: ProcessGroup) -> int:
    """The steps of a run, new or resumed. Returns the exit code."""
    source, args = find_source(args)
    check_args(args, group)
    notes = []  # for the log, which is opened last: a run that cannot begin leaves no folder
    precision = prepare_device(args, group, notes)
    data = load_data(args, source, precision.device, group)
    state = build_state(args, source, len(data.train_loader.batch_sampler) * args.max_epoch, precision, group, notes)
    trainer, folder = open_run(args, source, data, state, group, notes)
    return train(args, trainer, folder, group)


def find_source(args: argparse.Namespace) -> tuple[Checkpoint | None, argparse.Namespace]:
    """Step 1. The checkpoint that --resume or --ft_model starts from, if any, and the options that the run then has."""
    if args.resume:
        checkpoint = checkpoint_to_resume(args.resume)
        parser = build_parser()
        check_settings(parser, checkpoint.settings, checkpoint.path)
        given = {name: getattr(args, name) for name in args.given}
        wish = given.pop("backbone_name", None)  # the two layouts of MobileNetV2 count as one: require_parts compares
        defaults = {action.dest: action.default for action in parser._actions if action.dest != "help"}
        settings = merge_settings(checkpoint.settings, given, defaults)
        if "class_names" not in given:
            settings["class_names"] = None  # the checkpoint contains the names; the file may be gone
        if is_own(settings["sparse_loss"]) and "sparse_loss" not in given:
            raise InputError(f"the run {checkpoint.path} uses the regularizer {settings['sparse_loss']!r}, which this "
                             f"program would have to import; if you trust it, add --sparse_loss "
                             f"{settings['sparse_loss']}")
        checkpoint.require_parts({**given_parts(args), "backbone": wish})
        return checkpoint, argparse.Namespace(**settings, given=args.given)
    if args.ft_model is None:
        return None, args
    if args.ft_model == "" and args.pretrained_model in ("imagenet", "none"):
        raise InputError("--ft_model starts from a trained network; give its checkpoint: --ft_model FILE")
    checkpoint = require_options(read_checkpoint(args.ft_model or args.pretrained_model).require("train"), args)
    checkpoint.require_mask(option_if_given(args, "mask_path"))
    parts = {"backbone_name" if kind == "backbone" else kind: name for kind, name in checkpoint.parts.items()}
    sizes = {"n_class": checkpoint.num_classes, "depth": checkpoint.depth}
    return checkpoint, argparse.Namespace(**{**vars(args), **parts, **sizes})


def prepare_device(args: argparse.Namespace, group: ProcessGroup, notes: list) -> Precision:
    """Step 2. The device, the type, and the random numbers."""
    device = select_device(args.gpu, notes.append, group.local_rank)
    if args.deterministic:
        make_deterministic()
    seed_everything(args.seed)
    return Precision(args.type, device)


class Data(NamedTuple):
    """The loaders of this process's shares of the training list and the eval list, and the names of the classes."""
    train_loader: DataLoader
    eval_loader: DataLoader
    class_names: list


def load_data(args: argparse.Namespace, source: Checkpoint | None, device: torch.device, group: ProcessGroup) -> Data:
    """Step 3. Finds the files of both lists. Nothing is read yet."""
    names = class_names_of(args.class_names, args.n_class, source.class_names if source else None)
    transform = TrainTransform(args.crop_size)
    train_set = SegmentationDataset(args.im_path, args.gt_path, args.training_list, args.n_class, transform, args.seed)
    sampler = EpochBatches(len(train_set), args.batch_size, args.seed, group.share)
    pin_memory = device.type == "cuda"
    return Data(make_loader(train_set, args.n_worker, sampler, pin_memory, transform.empty()),
                make_eval_loader(args.im_path, args.gt_path, args.eval_list, args.n_class, args.crop_size,
                                 args.n_worker, pin_memory, group.share), names)


def build_state(args: argparse.Namespace, source: Checkpoint | None, iterations: int, precision: Precision,
                group: ProcessGroup, notes: list) -> TrainingState:
    """Step 4. The network, new or the source's, its optimizer and its schedule; of a resumed run, where it was."""
    if args.resume and iterations != source.content["iterations"]:
        raise InputError(f"the run has {source.content['iterations']} iterations, but with the list "
                         f"{args.training_list} it would have {iterations}; resume with the list that it began with")
    with warnings.catch_warnings(record=True) as unread:  # stages that nothing reads
        warnings.simplefilter("always")
        if source:
            network = source.build()
            notes.append(f"resuming {source.path} at iteration {source.content['iter']}" if args.resume else
                         f"starting from the trained network {source.path}")
        else:
            with group.main_first():  # it may download the encoder's weights
                network = new_network(args, notes)
    notes += [f"warning: {warning.message}" for warning in unread]
    if args.freeze_bn:
        freeze_bn_affine(network)
    set_bn_momentum(network, bn_momentum_of(args, iterations))
    if args.sync_bn:
        synchronize_bn(network)
    with explain_out_of_memory("give a smaller --depth, or another --gpu", InputError):
        precision.place(network)
    if args.compile:
        network.compile()  # in place: names and checkpoints stay what they are
    warmup = args.strength_warmup
    if warmup is None:
        warmup = network.strengths.warmup if args.search else 0.0
    multiplier = args.strength_lr_mult
    if multiplier is None:  # a short search, or the part of it after the warm-up, must move the strengths as far
        multiplier = RELEASED_ITERATIONS / (iterations * (1 - warmup))
    optimizer = make_optimizer(network, args.lr, args.last_layer_lr_mult, multiplier, args.momentum, args.decay)
    state = TrainingState(network, optimizer, Schedule(iterations, args.gamma, warmup, args.beta_end), precision)
    if args.resume:
        state.load_state_dict(source.content, source.path)
    return state


def new_network(args: argparse.Namespace, notes: list) -> FullyDenseNetwork | SparseMask:
    """A network with the encoder weights that the options name; `notes` gets where they came from."""
    mask = None
    if not args.search:  # before a download: a wrong mask is found at once
        mask = connectivity.load(args.mask_path, len(make_backbone(args.backbone_name).channels))
    weights = find_encoder_weights(args.pretrained_model, args.backbone_name)
    parts = {"backbone": weights.backbone if weights else args.backbone_name, "connection": args.connection,
             "fusion": args.fusion, "head": args.head, "depth": args.depth, "num_classes": args.n_class}
    network = FullyDenseNetwork(strengths=args.strengths, **parts) if args.search else SparseMask(mask, **parts)
    notes += load_encoder(network.backbone, weights) if weights else ["encoder: random weights"]
    return network


def bn_momentum_of(args: argparse.Namespace, iterations: int) -> float:
    """The momentum of the BN statistics: what was given, else what suits the length of the run."""
    return args.bn_momentum or (RELEASED_BN_MOMENTUM if args.ft_model is not None else min(10 / iterations, 0.1))


def open_run(args: argparse.Namespace, source: Checkpoint | None, data: Data, state: TrainingState,
             group: ProcessGroup, notes: list) -> tuple[Trainer, RunFolder | None]:
    """Step 5. The loop, and in the main process the run's folder."""
    settings = {name: value for name, value in vars(args).items() if name != "given"}
    losses = train_losses if not args.search else functools.partial(
        search_losses, sparse_weight=args.sparse, regularizer=find_regularizer(args.sparse_loss))
    folder = watcher = None
    if group.is_main and args.resume:
        folder = RunFolder(Path(source.path).parent, state.iteration, args.keep_all)
    elif group.is_main:
        folder = RunFolder(new_folder(args.exp_path), keep_all=args.keep_all)
        folder.save_settings(settings)
        folder.copy_source()
    if folder:
        sampler, iterations = data.train_loader.batch_sampler, state.schedule.iterations
        watcher = RunLog(folder, args.search, args.log_interval)
        for line in notes:
            folder.log(line)
        folder.log(f"{'search' if args.search else 'training'} in {folder.path} on {state.precision.device}"
                   f"{f', {group.size} processes' if group.size > 1 else ''}: {sampler.num_samples} images, "
                   f"{len(sampler)} iterations an epoch, {iterations} in all, BN momentum "
                   f"{bn_momentum_of(args, iterations):.2g}")

    def save(state, is_best):
        folder.save({**state.state_dict(), "class_names": data.class_names, "settings": settings}, is_best)

    group.synchronize()  # DistributedDataParallel has collectives of its own: a process that failed reports it now
    losses = functools.partial(losses, forward=group.wrap(state.network))
    return Trainer(state, losses, data.train_loader, data.eval_loader, state.precision, save, args.eval_interval,
                   args.save_interval, watcher, group), folder


def train(args: argparse.Namespace, trainer: Trainer, folder: RunFolder | None, group: ProcessGroup) -> int:
    """Step 6. Trains to the end or to the first stop, and logs how to continue. Returns the exit code."""
    own = own_part_options(trainer.state.network.parts)
    if args.search and is_own(args.sparse_loss):
        own_on_resume = f"{own} --sparse_loss {shlex.quote(args.sparse_loss)}"
    else:
        own_on_resume = own
    to_continue = folder and (f"To continue:\n  python train_sparse_mask.py --resume {shlex.quote(str(folder.path))}"
                              f"{own_on_resume}")
    with StopRequest(group) as stop:
        try:
            with (explain_loader_death(), group.explain_lost_process(),
                  explain_out_of_memory("give a smaller --batch_size or --crop_size, or --type bfloat16")):
                finished = trainer.run(lambda: stop.requested)
        except (NotFinite, InputError) as error:
            return give_up(error, trainer, folder, group, to_continue)
    if folder is None:
        return 0 if finished else 130
    if finished:
        last = shlex.quote(str(folder.path / f"checkpoint_{trainer.state.iteration}.pth.tar"))
        folder.log(f"done: {last}\nnext: {next_command(args, last)}{own}")
    else:
        folder.log("stopped before the first step: there is nothing to resume" if folder.saved_at is None else
                   f"stopped at iteration {trainer.state.iteration} and saved. {to_continue}")
    folder.close()
    return 0 if finished else 130


def next_command(args: argparse.Namespace, checkpoint: str) -> str:
    """What to run after this run."""
    if args.search:
        return f"python prune.py --checkpoint {checkpoint}"
    data = "".join(f" --{name} {shlex.quote(str(getattr(args, name)))}" for name in ("im_path", "gt_path", "eval_list"))
    return f"python eval_sparse_mask.py --pretrained_model {checkpoint}{data}"


def give_up(error: Exception, trainer: Trainer, folder: RunFolder | None, group: ProcessGroup,
            to_continue: str | None) -> int:
    """After an error in the training: reports it to the other processes, saves what can be saved, and logs that."""
    if not isinstance(error, StepInterrupted):
        group.report(error)
    if folder is None:
        raise error
    if isinstance(error, NotFinite):
        kept = sorted(str(p) for p in folder.path.glob("checkpoint_*.pth.tar"))
        folder.log(f"stopped: {error}. {'Kept ' + ', '.join(kept) if kept else 'No checkpoint was written yet'}. "
                   f"Lower --lr, or use a wider --type")
        folder.close()
        return 1
    if trainer.state.iteration != (folder.saved_at or 0):  # a broken image, a full disk: what was learned is kept
        with contextlib.suppress(InputError, NotFinite):
            trainer.save()
    folder.note(f"stopped at iteration {trainer.state.iteration}: {error}")
    if folder.saved_at is not None:
        folder.log(f"Saved at iteration {folder.saved_at}. {to_continue}")
    folder.close()
    raise error


if __name__ == "__main__":
    run_command(main, build_parser())
