"""Search a connectivity (--search), or train the network of one (--mask_path). PASCAL VOC 2012 or your own data."""
import argparse
import contextlib
import functools
import shlex
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from models import FullyDenseNetwork, SparseMask, connectivity
from models.backbones import make_backbone
from models.layers import RELEASED_BN_MOMENTUM, freeze_bn_affine, set_bn_momentum
from models.losses import find_regularizer
from models.sync_bn import synchronize_bn
from utils.checkpoint import Checkpoint
from utils.cli import run_command, warnings_as_lines
from utils.distributed import ProcessGroup, process_group
from utils.engine import Trainer, search_losses, train_losses
from utils.errors import InputError, StepInterrupted
from utils.options import class_names_of, own_part_options
from utils.pretrained import find_encoder_weights, load_encoder
from utils.run import RELEASED_ITERATIONS, NotFinite, Schedule, TrainingState, make_optimizer
from utils.run_folder import RunFolder, new_folder
from utils.run_log import RunLog
from utils.runtime import (
    Precision,
    StopRequest,
    explain_out_of_memory,
    make_deterministic,
    seed_everything,
    select_device,
)
from utils.train_options import build_parser, find_source
from VOC12.dataset import EpochBatches, SegmentationDataset
from VOC12.loading import explain_loader_death, make_eval_loader, make_loader
from VOC12.transforms import TrainTransform


def main(args: argparse.Namespace) -> int:
    """Searches or trains, as one of the processes that torchrun started or alone. Returns the exit code."""
    with process_group(on_cpu=args.gpu == -1) as group:
        return search_or_train(args, group)


def search_or_train(args: argparse.Namespace, group: ProcessGroup) -> int:
    """Five steps to a run, new or resumed, and the run. Returns the exit code."""
    notes = []  # for the log, which is opened last: a run that cannot begin leaves no folder
    with warnings_as_lines(notes.append):
        source, args = find_source(args, group.size)  # --resume, --ft_model, and the options that the run then has
        precision = prepare_device(args, group, notes)
        data = load_data(args, source, precision.device, group)
        iterations = len(data.train_loader.batch_sampler) * args.max_epoch
        state = build_state(args, source, iterations, precision, group, notes)
        trainer, folder = open_run(args, source, data, state, group, notes)
    with warnings_as_lines(folder.log) if folder else contextlib.nullcontext():
        return train(args, trainer, folder, group)


def prepare_device(args: argparse.Namespace, group: ProcessGroup, notes: list) -> Precision:
    """The device, the type, and the random numbers."""
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
    """Finds the files of both lists. Nothing is read yet."""
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
    """The network, new or the source's, its optimizer and its schedule; of a resumed run, where it was."""
    if args.resume and iterations != source.content["iterations"]:
        raise InputError(f"the run has {source.content['iterations']} iterations, but with the list "
                         f"{args.training_list} it would have {iterations}; resume with the list that it began with")
    if source:
        network = source.build()
        notes.append(f"resuming {source.path} at iteration {source.content['iter']}" if args.resume else
                     f"starting from the trained network {source.path}")
    else:
        with group.main_first():  # it may download the encoder's weights
            network = new_network(args, notes)
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
    """The loop, and in the main process the run's folder."""
    settings = {name: value for name, value in vars(args).items() if name != "given"}
    losses = train_losses
    if args.search:
        regularizer = find_regularizer(args.sparse_loss, state.network.num_stages)
        losses = functools.partial(search_losses, sparse_weight=args.sparse, regularizer=regularizer)
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

    def save(state: TrainingState, is_best: bool) -> None:
        folder.save({**state.state_dict(), "class_names": data.class_names, "settings": settings}, is_best)

    group.synchronize()  # DistributedDataParallel has collectives of its own: a process that failed reports it now
    losses = functools.partial(losses, forward=group.wrap(state.network))
    return Trainer(state, losses, data.train_loader, data.eval_loader, save, args.eval_interval,
                   args.save_interval, watcher, group), folder


def train(args: argparse.Namespace, trainer: Trainer, folder: RunFolder | None, group: ProcessGroup) -> int:
    """Trains to the end or to the first stop, and logs how to continue. Returns the exit code."""
    parts = trainer.state.network.parts
    on_resume = own_part_options({**parts, "regularizer": args.sparse_loss} if args.search else parts)
    to_continue = folder and (f"To continue:\n  python train_sparse_mask.py --resume {shlex.quote(str(folder.path))}"
                              f"{on_resume}")
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
        folder.log(f"done: {last}\nnext: {next_command(args, last)}{own_part_options(parts)}")
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
