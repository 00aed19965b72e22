"""Search a connectivity (--search), or train the network of one (--mask_path). PASCAL VOC 2012 or your own data."""
import argparse
import contextlib
import functools
import shlex
import sys
from pathlib import Path

import torch

from models import FullyDenseNetwork, SparseMask
from models.backbones import make_backbone
from models.inference import explain_compiler
from models.layers import freeze_bn_affine, set_bn_momentum
from models.losses import find_regularizer
from models.sync_bn import synchronize_bn
from models.transfer import load_for_encoder
from utils.checkpoint import Checkpoint, load_weights
from utils.cli import run_command, warnings_as_lines
from utils.distributed import ProcessGroup, process_group
from utils.engine import Trainer, search_losses, train_losses
from utils.errors import InputError, StepInterrupted
from utils.hardware import warn_of_slow_type
from utils.optimizer import make_optimizer
from utils.options import NO_LIST, own_part_options
from utils.pretrained import find_encoder_weights, load_encoder
from utils.resume import continue_with, describe_changes
from utils.run import NotFinite, Schedule, TrainingState
from utils.run_folder import RunFolder, new_folder
from utils.run_length import Length, derive, describe_derived, uses_adam
from utils.run_log import RunLog
from utils.run_source import commands_after_nan, find_source, length_of_run
from utils.runtime import (
    Precision,
    explain_out_of_memory,
    make_deterministic,
    seed_everything,
    select_device,
)
from utils.search_costs import describe_cost, make_cost_loss
from utils.step_graphs import StepGraphs, why_no_graphs
from utils.stopping import STOPPED, StopRequest
from utils.train_data import Data, load_data
from utils.train_options import build_parser
from VOC12.loading import explain_loader_death
from VOC12.transforms import size_pair


def main(args: argparse.Namespace) -> int:
    """Searches or trains, as one of the processes that torchrun started or alone. Returns the exit code."""
    with process_group(args.gpu == -1, args.timeout) as group:
        return search_or_train(args, group)


def search_or_train(args: argparse.Namespace, group: ProcessGroup) -> int:
    """Five steps to a run, new or resumed, and the run. Returns the exit code."""
    notes, folder = [], None  # for the log, which is opened last: a run that cannot begin leaves no folder
    with warnings_as_lines(lambda line: folder.log(line) if folder else notes.append(line)):
        source, args = find_source(args, group.size)  # --resume, --ft_model, and the options that the run then has
        precision = prepare_device(args, group, notes)
        data = load_data(args, source, precision.device, group)
        length = length_of_run(args, source, data.train_loader.batch_sampler.num_samples)
        state = build_state(args, source, length, precision, group, notes)
        trainer, folder = open_run(args, source, data, state, group, notes)
        return train(args, trainer, folder, group)


def prepare_device(args: argparse.Namespace, group: ProcessGroup, notes: list) -> Precision:
    """The device, the type, and the random numbers."""
    device = select_device(args.gpu, notes.append, group.local_rank)
    if args.deterministic:
        make_deterministic()
    if group.is_main:
        warn_of_slow_type(args.type, device)
    seed_everything(args.seed)
    return Precision(args.type, device)


def build_state(args: argparse.Namespace, source: Checkpoint | None, length: Length, precision: Precision,
                group: ProcessGroup, notes: list) -> TrainingState:
    """The network, new or the source's, its optimizer and its schedule; of a resumed run, where it was."""
    if source:
        network = source.build(args.n_class, args.init)
        notes.append(f"resuming {source.path} at iteration {source.content['iter']}" if args.resume else
                     f"starting from the trained network {source.path}")
        if args.n_class != source.num_classes:
            notes.append(f"its head is for {source.num_classes} classes: a new one, for {args.n_class}, starts from "
                         f"random weights")
    else:
        with group.main_first():  # it may download the encoder's weights
            network = new_network(args, notes)
    if args.freeze_bn:
        freeze_bn_affine(network)
    derived = derive(args, length.iterations, network)
    set_bn_momentum(network, derived.bn_momentum)
    if args.sync_bn:
        synchronize_bn(network)
    advice = "give another --gpu, or -1 for the CPU" if source else "give a smaller --depth, or another --gpu"
    with explain_out_of_memory(advice, InputError):
        precision.place(network)
    if args.compile:
        network.compile()  # in place: names and checkpoints stay what they are
    optimizer = make_optimizer(network, args.lr, args.last_layer_lr_mult, derived.strength_lr_mult, args.momentum,
                               args.decay, uses_adam(args))
    schedule = Schedule(length.iterations, args.gamma, derived.strength_warmup, args.beta_end)
    cost_loss = make_cost_loss(network, args.cost, size_pair(args.crop_size), args.budget) if args.cost else None
    state = TrainingState(network, optimizer, schedule, precision, cost_loss)
    if args.resume:
        load_weights(network, source.state, source.path)  # again: `build` rounds those of a run in double precision
        state.load_state_dict(source.content, source.path)
        notes += continue_with(source, vars(args), length, state)
        notes += describe_derived(source, args, derived, network)
    return state


def new_network(args: argparse.Namespace, notes: list) -> FullyDenseNetwork | SparseMask:
    """A network with the encoder weights that the options name; `notes` gets where they came from."""
    mask = None
    if not args.search:  # before a download: a wrong mask is found at once
        mask, lines = load_for_encoder(args.mask_path, make_backbone(args.backbone_name).strides, args.mask_encoder)
        notes += lines
        if args.mask_path == "deeplabv3" and args.fusion != "aspp":
            notes.append("note: DeepLab-V3's head is this connectivity with --fusion aspp; without it, its inputs are "
                         "only added")
    weights = find_encoder_weights(args.pretrained_model, args.backbone_name)
    parts = {"backbone": weights.backbone if weights else args.backbone_name, "connection": args.connection,
             "fusion": args.fusion, "head": args.head, "depth": args.depth, "num_classes": args.n_class,
             "init": args.init}
    network = FullyDenseNetwork(strengths=args.strengths, **parts) if args.search else SparseMask(mask, **parts)
    notes += (load_encoder(network.backbone, weights, args.partial_weights) if weights else
              ["encoder: random weights"])
    return network


def open_run(args: argparse.Namespace, source: Checkpoint | None, data: Data, state: TrainingState,
             group: ProcessGroup, notes: list) -> tuple[Trainer, RunFolder | None]:
    """The loop, and in the main process the run's folder."""
    settings = {name: value for name, value in vars(args).items() if name != "given"}
    settings["label_map"] = data.label_map and str(data.label_map)  # the rules: a file may be gone later
    losses = train_losses
    if args.search:
        regularizer = state.cost_loss or find_regularizer(args.sparse_loss, state.network.num_stages)
        losses = functools.partial(search_losses, sparse_weight=args.sparse, regularizer=regularizer)
    folder = watcher = None
    if group.is_main and args.resume:
        folder = RunFolder(Path(source.path).parent, state.iteration, args.keep_all)
    elif group.is_main:
        folder = RunFolder(new_folder(args.exp_path, args.run_name), keep_all=args.keep_all)
        folder.save_settings(settings)
        folder.copy_source()

    def save(state: TrainingState, is_best: bool) -> None:
        folder.save({**state.state_dict(), "class_names": data.class_names, "settings": settings}, is_best)

    if folder:
        sampler, iterations = data.train_loader.batch_sampler, state.schedule.iterations
        watcher = RunLog(folder, args.search, args.log_interval, len(sampler),
                         None if data.all_labels_seen else data.class_names)
        for line in notes:
            folder.log(line)
        folder.log(f"{'search' if args.search else 'training'} in {folder.path} on {state.precision.device}"
                   f"{f', {group.size} processes' if group.size > 1 else ''}: {sampler.num_samples} images, "
                   f"{len(sampler)} iterations an epoch, {iterations} in all, BN momentum "
                   f"{derive(args, iterations, state.network).bn_momentum:.2g}")
        if args.resume and state.finished:
            folder.log("all its iterations are done: a larger --max_epoch prolongs it")
        if data.eval_loader is None:
            folder.log("there is no evaluation: the last checkpoint is the result")
        if args.resume and describe_changes(source.settings, settings):  # a run that is killed keeps the changes
            folder.save_settings(settings)
            state.apply_schedule()
            save(state, is_best=False)
    group.synchronize()  # DistributedDataParallel has collectives of its own: a process that failed reports it now
    weights = None if data.class_weights is None else torch.tensor(data.class_weights, dtype=state.precision.dtype,
                                                                   device=state.precision.device)
    losses = functools.partial(losses, forward=group.wrap(state.network))
    graphs = None
    if args.cuda_graphs:
        parts = [*state.network.parts.values(), args.sparse_loss]
        reason = why_no_graphs(parts, state.precision.device, group.size)
        graphs = None if reason else StepGraphs()
        if reason and folder:
            folder.log(f"note: this run uses no CUDA graphs, since {reason}")
    return Trainer(state, losses, data.train_loader, data.eval_loader, save, args.eval_interval,
                   args.save_interval, watcher, group, weights, graphs), folder


def train(args: argparse.Namespace, trainer: Trainer, folder: RunFolder | None, group: ProcessGroup) -> int:
    """Trains to the end or to the first stop, and logs how to continue. Returns the exit code."""
    parts = trainer.state.network.parts
    on_resume = own_part_options({**parts, "regularizer": args.sparse_loss} if args.search else parts)
    resume = folder and f"python train_sparse_mask.py --resume {shlex.quote(str(folder.path))}{on_resume}"

    def last_words(sentence: str) -> None:
        """Logs why the run is ended from outside, since a process does not answer, and how to continue it."""
        if folder:
            folder.log(f"{sentence}. " + ("No checkpoint was written yet" if folder.saved_at is None else
                                          f"Saved at iteration {folder.saved_at}. To continue:\n  {resume}"))
        else:
            print(f"the process of rank {group.rank} {sentence}", file=sys.stderr)

    with StopRequest(group, last_words) as stop:
        try:
            with (explain_loader_death(), group.explain_lost_process(), explain_compiler(StepInterrupted),
                  explain_out_of_memory("give a smaller --batch_size or --crop_size, or --type bfloat16")):
                finished = trainer.run(lambda: stop.requested)
        except (NotFinite, InputError) as error:
            return give_up(error, args, trainer, folder, group, resume)
    if folder is None:
        return 0 if finished else STOPPED
    if finished:
        if trainer.state.cost_loss is not None:
            folder.log(describe_cost(trainer.state, args.cost))
        last = shlex.quote(str(folder.path / f"checkpoint_{trainer.state.iteration}.pth.tar"))
        folder.log(f"done: {last}\nnext: {next_command(args, last, own_part_options(parts))}")
    else:
        folder.log("stopped before the first step: there is nothing to resume" if folder.saved_at is None else
                   f"stopped at iteration {trainer.state.iteration} and saved. To continue:\n  {resume}")
    folder.close()
    return 0 if finished else STOPPED


def next_command(args: argparse.Namespace, checkpoint: str, parts: str) -> str:
    """What to run after this run. parts: the options of own parts."""
    if args.search:
        return f"python prune.py --checkpoint {checkpoint}{parts}"
    listed = args.eval_list != NO_LIST
    data = "".join(f" --{name} {shlex.quote(str(getattr(args, name)))}"
                   for name in ("im_path", "gt_path", *["eval_list"] * listed))
    command = f"python eval_sparse_mask.py --pretrained_model {checkpoint}{data}{parts}"
    return command if listed else f"{command} --eval_list LIST\nLIST: a file with the names of images to evaluate"


def give_up(error: Exception, args: argparse.Namespace, trainer: Trainer, folder: RunFolder | None,
            group: ProcessGroup, resume: str | None) -> int:
    """After an error in the training: reports it to the other processes, saves what can be saved, and logs that."""
    if not isinstance(error, StepInterrupted):
        group.report(error)
    if folder is None:
        raise error
    if isinstance(error, NotFinite):
        kept = sorted(str(p) for p in folder.path.glob("checkpoint_*.pth.tar"))
        folder.log(f"stopped: {error}. {'Kept ' + ', '.join(kept) if kept else 'No checkpoint was written yet'}. "
                   f"{commands_after_nan(args, resume if kept else None)}")
        folder.close()
        return 1
    if trainer.state.iteration != (folder.saved_at or 0):  # a broken image, a full disk: what was learned is kept
        with contextlib.suppress(InputError, NotFinite):
            trainer.save()
    folder.note(f"stopped at iteration {trainer.state.iteration}: {error}")
    if folder.saved_at is not None:
        folder.log(f"Saved at iteration {folder.saved_at}. To continue:\n  {resume}")
    folder.close()
    raise error


if __name__ == "__main__":
    run_command(main, build_parser())
