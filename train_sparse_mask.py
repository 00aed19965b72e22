"""Search a connectivity (--search), or train the network of one (--mask_path). PASCAL VOC 2012 or your own data."""
import argparse
import math
import shlex
from pathlib import Path

from models import FullyDenseNetwork, SparseMask, connectivity
from models.backbones import make_backbone
from models.layers import RELEASED_BN_MOMENTUM, freeze_bn_affine, set_bn_momentum
from models.pretrained import find_encoder_weights, load_encoder
from models.strengths import STRENGTHS, ClampStrengths, SigmoidStrengths
from utils.checkpoint import read_checkpoint
from utils.engine import NotFinite
from utils.errors import InputError, run_command
from utils.options import (HelpFormatter, add_data_options, add_model_options, class_names_for, make_eval_loader,
                           option_if_given)
from utils.run_folder import RunFolder, find_last_checkpoint, new_folder
from utils.runtime import Precision, StopRequest, add_device_options, seed_everything, select_device
from utils.training import RELEASED_ITERATIONS, Run, settings_of
from VOC12.dataset import EpochBatches, SegmentationDataset, make_loader
from VOC12.transforms import TrainTransform

FREE_ON_RESUME = {"resume", "gpu", "n_worker", "im_path", "gt_path", "training_list", "eval_list", "log_interval",
                  "eval_interval", "keep_all"}  # options that may differ without changing the run


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
    add("--batch_size", type=int, default=16, help="images")
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
    add("--log_interval", type=int, default=100, help="iterations between two points of the curves")
    add("--eval_interval", type=int, default=1, help="epochs between two evaluations; the last is always evaluated")
    add("--keep_all", action="store_true", help="keep every epoch's checkpoint, not only the last and the best")
    return parser


def check_args(args):
    """Raises InputError for options that contradict each other or are out of range."""
    for name in ("max_epoch", "batch_size", "log_interval", "eval_interval", "n_class", "depth"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}; give at least 1")
    for name in ("lr", "last_layer_lr_mult", "decay", "momentum", "gamma", "sparse", "strength_lr_mult", "n_worker",
                 "seed"):
        value = getattr(args, name)
        if value is not None and not (value >= 0 and math.isfinite(value)):
            raise InputError(f"--{name} is {value}; give a number from 0 up")
    if args.crop_size < 32:
        raise InputError(f"--crop_size is {args.crop_size}; the encoder needs at least 32")
    if args.strength_warmup is not None and not 0 <= args.strength_warmup < 1:
        raise InputError(f"--strength_warmup is {args.strength_warmup}; give a share from 0 to below 1")
    if args.bn_momentum is not None and not 0 < args.bn_momentum <= 1:
        raise InputError(f"--bn_momentum is {args.bn_momentum}; give a number above 0, at most 1")
    if not (args.beta_end >= 1 and math.isfinite(args.beta_end)):
        raise InputError(f"--beta_end is {args.beta_end}; the annealing starts at 1, so give at least 1")
    if args.search and (args.mask_path or args.ft_model is not None):
        raise InputError("--search learns a connectivity, so it takes neither --mask_path nor --ft_model; "
                         "leave out one or the other")
    if not args.search and not args.mask_path and args.ft_model is None:
        raise InputError("say what to do: --search to search a connectivity, or --mask_path FILE to train one")
    if args.ft_model == "" and args.pretrained_model in ("imagenet", "none"):
        raise InputError("--ft_model starts from a trained network; give its checkpoint: --ft_model FILE")


def build_network(args, log):
    """A new network with the weights that the options name; `log` is told where they came from."""
    if args.ft_model is not None:
        source = read_checkpoint(args.ft_model or args.pretrained_model).require("train")
        source.require_backbone(args.backbone_name)
        source.require_same(num_classes=option_if_given(args, "n_class"), depth=option_if_given(args, "depth"))
        source.require_mask(args.mask_path)
        args.n_class, args.depth, args.backbone_name = source.num_classes, source.depth, source.backbone
        log(f"starting from the trained network {source.path}")
        return source.build()
    weights = find_encoder_weights(args.pretrained_model, args.backbone_name)
    backbone = weights.backbone if weights else args.backbone_name
    if args.search:
        network = FullyDenseNetwork(backbone, args.depth, args.n_class, args.strengths)
        if args.strengths == "sigmoid":
            network.strengths.beta_end = args.beta_end
    else:
        num_stages = len(make_backbone(backbone).channels)
        network = SparseMask(connectivity.load(args.mask_path, num_stages), backbone, args.depth, args.n_class)
    for line in load_encoder(network.backbone, weights) if weights else ["encoder: random weights"]:
        log(line)
    return network


def continue_settings(args):
    """--resume: the run's own settings, with the options that may differ taken from the command line.

    Returns (args, checkpoint content, checkpoint path).
    """
    path = find_last_checkpoint(args.resume)
    checkpoint = read_checkpoint(path)
    content = checkpoint.content
    if not isinstance(content.get("settings"), dict) or "random_state" not in content:
        raise InputError(f"{path} cannot be resumed: it does not hold the run's settings (the released code's "
                         f"checkpoints do not); start a new run with --ft_model {path}")
    settings = content["settings"]
    for name in args.given - FREE_ON_RESUME:
        if getattr(args, name) != settings.get(name):
            raise InputError(f"--resume continues with the run's own settings, and --{name} was {settings.get(name)}, "
                             f"not {getattr(args, name)}; leave the option out or start a new run")
    checkpoint.require_backbone(args.backbone_name)
    for name in set(settings) & set(vars(args)) - (args.given & FREE_ON_RESUME):
        setattr(args, name, settings[name])
    return args, content, path


def main(args):
    content = None
    if args.resume:
        args, content, path = continue_settings(args)
    check_args(args)
    device = select_device(args.gpu)
    precision = Precision(args.type, device)
    seed_everything(args.seed)
    notes = []
    if content is None:
        network = build_network(args, notes.append)
    else:
        network = read_checkpoint(path).build()
        if args.search and args.strengths == "sigmoid":
            network.strengths.beta_end = args.beta_end
        notes.append(f"resuming {path} at iteration {content['iter']}")
    train_set = SegmentationDataset(args.im_path, args.gt_path, args.training_list, args.n_class,
                                    TrainTransform(args.crop_size), args.seed)
    sampler = EpochBatches(len(train_set), args.batch_size, args.seed)
    loaders = (make_loader(train_set, args.n_worker, sampler, pin_memory=device.type == "cuda"),
               make_eval_loader(args, args.n_class, args.crop_size, device))
    class_names_for(args)
    iterations = len(sampler) * args.max_epoch
    if args.freeze_bn:
        freeze_bn_affine(network)
    momentum = args.bn_momentum or (RELEASED_BN_MOMENTUM if args.ft_model is not None else min(10 / iterations, 0.1))
    set_bn_momentum(network, momentum)
    precision.place(network)

    folder = RunFolder(new_folder(args.exp_path) if content is None else Path(path).parent,
                       None if content is None else content["iter"])
    run = Run(args, folder, network, loaders, precision, iterations)
    if content is None:
        folder.save_settings(settings_of(args))
        folder.copy_source()
    else:
        run.restore(content, path)
    for line in notes:
        folder.log(line)
    folder.log(f"{'search' if args.search else 'training'} in {folder.path} on {device}: {len(train_set)} images, "
               f"{len(sampler)} iterations an epoch, {iterations} in all, BN momentum {momentum:.2g}")
    return carry_out(run)


def carry_out(run):
    """Trains to the end, or to the first stop, and says what to do next. Returns the exit code."""
    folder = run.folder
    resume = f"python train_sparse_mask.py --resume {shlex.quote(str(folder.path))}"
    try:
        with StopRequest() as stop:
            finished = run.train(stop)
            if not finished:
                run.save()
    except NotFinite as error:
        kept = [str(p) for p in folder.path.glob("checkpoint_*.pth.tar")]
        folder.log(f"stopped: {error}. {'Kept ' + ', '.join(sorted(kept)) if kept else 'No checkpoint was written yet'}"
                   f". Lower --lr, or take a wider --type")
        return 1
    finally:
        folder.flush()
    if not finished:
        folder.log(f"stopped at iteration {run.iteration} and saved. To continue:\n  {resume}")
        folder.close()
        return 130
    last = folder.path / f"checkpoint_{run.iteration}.pth.tar"
    folder.log(f"done: {last}")
    following = "prune.py --checkpoint" if run.args.search else "eval_sparse_mask.py --pretrained_model"
    folder.log(f"next: python {following} {shlex.quote(str(last))}")
    folder.close()
    return 0


if __name__ == "__main__":
    run_command(main, build_parser())
