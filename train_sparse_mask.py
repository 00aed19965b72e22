"""Search a connectivity (--search), or train the network of one (--mask_path). PASCAL VOC 2012 or your own data."""
import argparse
import math
import shlex
import warnings
from pathlib import Path

from models import FullyDenseNetwork, SparseMask, connectivity
from models.backbones import check_backbone_name, make_backbone
from models.layers import RELEASED_BN_MOMENTUM, freeze_bn_affine, set_bn_momentum, synchronize_bn
from utils.pretrained import find_encoder_weights, load_encoder
from models.strengths import STRENGTHS, ClampStrengths, SigmoidStrengths
from utils.checkpoint import read_checkpoint
from utils.distributed import join
from utils.engine import NotFinite
from utils.cli import run_command
from utils.errors import InputError, StepInterrupted
from utils.options import (HelpFormatter, add_data_options, add_model_options, check_crop_size, class_names_for,
                           make_eval_loader, option_if_given, own_encoder)
from utils.resume import checkpoint_to_resume
from utils.run_folder import NoFolder, RunFolder, new_folder
from utils.runtime import (Precision, StopRequest, add_device_options, explain_out_of_memory, make_deterministic,
                           seed_everything, select_device)
from utils.training import RELEASED_ITERATIONS, Run, settings_of
from VOC12.dataset import EpochBatches, SegmentationDataset
from VOC12.loading import explain_loader_death, make_loader
from VOC12.transforms import TrainTransform

MANY = 10 ** 9


def build_parser():
    """The command line: spec section 8, and what is new."""
    parser = argparse.ArgumentParser(prog="train_sparse_mask.py", description=__doc__,
                                     formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--search", action="store_true", help="search: train the supernet and its connection strengths")
    add("--mask_path", help="train: a connectivity that prune.py wrote, or one of "
                            f"{', '.join(connectivity.NAMED)}")
    add_model_options(parser)
    add_data_options(parser)
    add("--training_list", default="VOC12/data/train_aug.txt", help="names of the training images, one a line")
    add_device_options(parser)
    add("--lr", type=float, default=0.005, help="learning rate of the encoder")
    add("--last_layer_lr_mult", type=float, default=10, help="times --lr: the learning rate of everything else")
    add("--decay", type=float, default=4e-5, help="weight decay")
    add("--max_epoch", type=int, default=50, help="how many times each image is seen")
    add("--batch_size", type=int, default=16, help="images a step, of all processes together")
    add("--crop_size", type=int, default=513, help="pixels; evaluation pads smaller images to it")
    add("--momentum", type=float, default=0.9, help="of the optimizer, SGD")
    add("--gamma", type=float, default=0.9, help="the learning rate falls with (1 - i/N)^gamma")
    add("--freeze_bn", action="store_true", help="keep the scale and shift of every BN (a search always does)")
    add("--bn_momentum", type=float, help="momentum of the BN statistics (default: 10 / iterations, at most 0.1; "
                                          f"{RELEASED_BN_MOMENTUM} with --ft_model)")
    add("--sparse", type=float, default=0.01, help="search: weight of the sparse loss. It sets how sparse")
    add("--strengths", choices=STRENGTHS, default="sigmoid", help="search: sigmoid with annealing, or clamp (released)")
    add("--strength_lr_mult", type=float, help="search: times --lr times --last_layer_lr_mult, the learning rate of "
                                               f"the strengths (default: {RELEASED_ITERATIONS} / the iterations that "
                                               "they learn in)")
    add("--strength_warmup", type=float, help="search: share of the iterations before the strengths learn (default: "
                                              f"{SigmoidStrengths.warmup} for sigmoid, {ClampStrengths.warmup:g} for "
                                              "clamp)")
    add("--beta_end", type=float, default=50, help="search, sigmoid: the annealing goes from 1 to this")
    add("--exp_path", default="SparseMaskVOC", help="the run goes to EXP_PATH/TIMESTAMP")
    add("--pretrained_model", default="imagenet",
        help="encoder weights: imagenet (torchvision's, downloaded once), none, or a file")
    add("--ft_model", nargs="?", const="", metavar="FILE",
        help="train: start from a whole trained network, not only its encoder: FILE, or that of --pretrained_model")
    add("--resume", metavar="RUN", help="continue a run: its folder, or a checkpoint in it")
    add("--seed", type=int, default=0, help="of the initial weights, the augmentation and the order of the images")
    add("--deterministic", action="store_true", help="the same digits in every run on a GPU too; on a CPU they are so "
                                                     "without")
    add("--sync_bn", action="store_true", help="with several processes: BN takes the statistics of the whole batch, "
                                               "not of each process's share")
    add("--compile", action="store_true", help="torch.compile the network: minutes at the start, meant for long runs "
                                               "on a GPU; on a CPU it gains nothing")
    add("--log_interval", type=int, default=100, help="iterations between two points of the curves")
    add("--eval_interval", type=int, default=1, help="epochs between two evaluations; the last is always evaluated")
    add("--save_interval", type=int, default=0, help="iterations between two checkpoints inside an epoch; 0: only at "
                                                     "its end")
    add("--keep_all", action="store_true", help="keep every epoch's checkpoint, not only the last and the best")
    return parser


def check_args(args):
    """Raises InputError for options that contradict each other or are out of range."""
    for name in ("max_epoch", "batch_size", "log_interval", "eval_interval", "n_class", "depth"):
        if not 1 <= getattr(args, name) <= MANY:
            raise InputError(f"--{name} is {getattr(args, name)}; give at least 1, at most {MANY:,}")
    for name in ("save_interval", "lr", "last_layer_lr_mult", "decay", "momentum", "gamma", "sparse",
                 "strength_lr_mult", "seed"):
        value = getattr(args, name)
        if value is not None and not (value >= 0 and math.isfinite(value)):
            raise InputError(f"--{name} is {value}; give a number from 0 up")
    check_crop_size(args.crop_size)
    check_backbone_name(args.backbone_name)
    if args.seed >= 2 ** 63:
        raise InputError(f"--seed is {args.seed}; give a number below 2^63")
    if args.strength_warmup is not None and not 0 <= args.strength_warmup < 1:
        raise InputError(f"--strength_warmup is {args.strength_warmup}; give a share from 0 to below 1")
    if args.bn_momentum is not None and not 0 < args.bn_momentum <= 1:
        raise InputError(f"--bn_momentum is {args.bn_momentum}; give a number above 0, at most 1")
    if not 1 <= args.beta_end <= 1e6:
        raise InputError(f"--beta_end is {args.beta_end}; the annealing starts at 1, so give 1 to a million")
    if args.search and (args.mask_path or args.ft_model is not None):
        raise InputError("--search learns a connectivity, so it takes neither --mask_path nor --ft_model; "
                         "leave out one or the other")
    if not args.search and not args.mask_path and args.ft_model is None:
        raise InputError("say what to do: --search to search a connectivity, or --mask_path FILE to train one")
    if args.ft_model == "" and args.pretrained_model in ("imagenet", "none"):
        raise InputError("--ft_model starts from a trained network; give its checkpoint: --ft_model FILE")


def trained_source(args):
    """--ft_model: the checkpoint to start from, whose sizes become the run's; None without that option."""
    if args.ft_model is None:
        return None
    source = read_checkpoint(args.ft_model or args.pretrained_model).require("train")
    source.require_backbone(option_if_given(args, "backbone_name"))
    source.require_same(num_classes=option_if_given(args, "n_class"), depth=option_if_given(args, "depth"))
    source.require_mask(args.mask_path)
    args.n_class, args.depth, args.backbone_name = source.num_classes, source.depth, source.backbone
    return source


def new_network(args, log):
    """A network with the encoder weights that the options name; `log` is told where they came from."""
    mask = None
    if not args.search:  # before a download: a wrong mask is found at once
        mask = connectivity.load(args.mask_path, len(make_backbone(args.backbone_name).channels))
    weights = find_encoder_weights(args.pretrained_model, args.backbone_name)
    backbone = weights.backbone if weights else args.backbone_name
    if args.search:
        network = FullyDenseNetwork(backbone, args.depth, args.n_class, args.strengths)
    else:
        network = SparseMask(mask, backbone, args.depth, args.n_class)
    for line in load_encoder(network.backbone, weights) if weights else ["encoder: random weights"]:
        log(line)
    return network


def main(args):
    with join(args.gpu) as team:
        return search_or_train(args, team)


def search_or_train(args, team):
    """Sets up the run, new or resumed, and carries it out. Returns the exit code."""
    resumed = checkpoint_to_resume(args, build_parser()) if args.resume else None
    check_args(args)
    if args.batch_size < team.size:
        raise InputError(f"--batch_size is {args.batch_size}, divided among {team.size} processes; give at least one "
                         f"image for each")
    notes = []
    device = select_device(args.gpu, notes.append, team.local_rank)
    if args.deterministic:
        make_deterministic()
    precision = Precision(args.type, device)
    seed_everything(args.seed)
    source = resumed or trained_source(args)
    names = class_names_for(args, stored=source.class_names if source else None)
    transform = TrainTransform(args.crop_size)
    train_set = SegmentationDataset(args.im_path, args.gt_path, args.training_list, args.n_class, transform, args.seed)
    sampler = EpochBatches(len(train_set), args.batch_size, args.seed, team.share)
    loaders = (make_loader(train_set, args.n_worker, sampler, device.type == "cuda", transform.empty()),
               make_eval_loader(args, args.n_class, args.crop_size, device, team))
    iterations = len(sampler) * args.max_epoch
    if resumed and iterations != resumed.content["iterations"]:
        raise InputError(f"the run has {resumed.content['iterations']} iterations, but with the list "
                         f"{args.training_list} of {len(train_set)} images it would have {iterations}; resume with the "
                         f"list that it began with")
    with warnings.catch_warnings(record=True) as unread:  # stages that nothing reads
        warnings.simplefilter("always")
        if source:
            network = source.build()
            notes.append(f"resuming {source.path} at iteration {source.content['iter']}" if resumed else
                         f"starting from the trained network {source.path}")
        else:
            with team.main_first():  # it may download the encoder's weights
                network = new_network(args, notes.append)
    notes += [f"warning: {warning.message}" for warning in unread]
    if args.freeze_bn:
        freeze_bn_affine(network)
    momentum = args.bn_momentum or (RELEASED_BN_MOMENTUM if args.ft_model is not None else min(10 / iterations, 0.1))
    set_bn_momentum(network, momentum)
    if args.sync_bn:
        synchronize_bn(network)
    with explain_out_of_memory("give a smaller --depth, or another --gpu", InputError):
        precision.place(network)
    if args.compile:
        network.compile()  # in place: names and checkpoints stay what they are

    if not team.main:
        folder = NoFolder()
    elif resumed:
        folder = RunFolder(Path(resumed.path).parent, resumed.content["iter"])
    else:
        folder = RunFolder(new_folder(args.exp_path))
    team.exchange()  # DistributedDataParallel has collectives of its own: who failed until here says so now
    run = Run(args, folder, network, loaders, precision, iterations, names, team)
    if resumed:
        run.restore(resumed.content)
    else:
        folder.save_settings(settings_of(args))
        folder.copy_source()
        if team.main:
            run.begin()
    for line in notes:
        folder.log(line)
    folder.log(f"{'search' if args.search else 'training'} in {folder.path} on {device}"
               f"{f', {team.size} processes' if team.size > 1 else ''}: {len(train_set)} images, "
               f"{len(sampler)} iterations an epoch, {iterations} in all, BN momentum {momentum:.2g}")
    return carry_out(run)


def carry_out(run):
    """Trains to the end, or to the first stop, and says what to do next. Returns the exit code."""
    folder = run.folder
    encoder = own_encoder(run.network.backbone_name)
    to_continue = f"To continue:\n  python train_sparse_mask.py --resume {shlex.quote(str(folder.path))}{encoder}"
    with StopRequest(run.team) as stop:
        try:
            with (explain_loader_death(), run.team.lost_is_said(),
                  explain_out_of_memory("give a smaller --batch_size or --crop_size, or --type bfloat16")):
                finished = run.train(stop)
        except (NotFinite, InputError) as error:
            return give_up(run, error, to_continue)
    if not finished:
        folder.log("stopped before the first step: there is nothing to resume" if run.saved_at is None else
                   f"stopped at iteration {run.iteration} and saved. {to_continue}")
        folder.close()
        return 130
    last = shlex.quote(str(folder.path / f"checkpoint_{run.iteration}.pth.tar"))
    if run.args.search:
        following = f"python prune.py --checkpoint {last}{encoder}"
    else:
        data = "".join(f" --{name} {shlex.quote(str(getattr(run.args, name)))}"
                       for name in ("im_path", "gt_path", "eval_list"))
        following = f"python eval_sparse_mask.py --pretrained_model {last}{data}{encoder}"
    folder.log(f"done: {last}\nnext: {following}")
    folder.close()
    return 0


def give_up(run, error, to_continue):
    """After an error in the training: tells the other processes, saves what can be saved, and says so."""
    folder = run.folder
    if not isinstance(error, StepInterrupted):
        run.team.announce(error)
    if isinstance(error, NotFinite):
        kept = sorted(str(p) for p in folder.path.glob("checkpoint_*.pth.tar"))
        folder.log(f"stopped: {error}. {'Kept ' + ', '.join(kept) if kept else 'No checkpoint was written yet'}. "
                   f"Lower --lr, or take a wider --type")
        folder.close()
        return 1
    run.save_if_possible()  # a broken image, a full disk: what was learned until then is worth keeping
    folder.note(f"stopped at iteration {run.iteration}: {error}")
    if run.saved_at is not None:
        folder.log(f"Saved at iteration {run.saved_at}. {to_continue}")
    folder.close()
    raise error


if __name__ == "__main__":
    run_command(main, build_parser())
