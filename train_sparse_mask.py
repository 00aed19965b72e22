"""Search a connectivity (--search), or train the network of one (--mask_path). PASCAL VOC 2012 or your own data."""
import argparse
import functools
import math
import shlex
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from models import FullyDenseNetwork, SparseMask, connectivity
from models.backbones import make_backbone
from models.layers import RELEASED_BN_MOMENTUM, freeze_bn_affine, set_bn_momentum
from models.pretrained import find_encoder_weights, load_encoder
from models.strengths import STRENGTHS
from utils.checkpoint import load_weights, read_checkpoint
from utils.engine import NotFinite, Schedule, evaluate, search_losses, train_losses, train_one_epoch
from utils.errors import InputError, run_command
from utils.metrics import scores
from utils.options import add_data_options, add_model_options, class_names_for, make_eval_loader, option_if_given
from utils.pictures import colour_label, strengths_grid
from utils.run_folder import RunFolder, find_last_checkpoint, new_folder
from utils.runtime import (Precision, StopRequest, add_device_options, random_state, seed_everything, select_device,
                           set_random_state)
from VOC12.dataset import EpochBatches, SegmentationDataset, make_loader
from VOC12.transforms import TrainTransform, denormalize

RELEASED_ITERATIONS = 33_100  # 50 epochs of trainaug, batch 16
FREE_ON_RESUME = {"resume", "gpu", "n_worker", "im_path", "gt_path", "training_list", "eval_list", "log_interval",
                  "eval_interval", "keep_all"}  # options that may differ without changing the run


def build_parser():
    """The command line: spec section 8, and what is new."""
    parser = argparse.ArgumentParser(prog="train_sparse_mask.py", description=__doc__,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
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
    add("--max_epoch", type=int, default=50)
    add("--batch_size", type=int, default=16)
    add("--crop_size", type=int, default=513, help="pixels; evaluation pads smaller images to it")
    add("--momentum", type=float, default=0.9)
    add("--gamma", type=float, default=0.9, help="the learning rate falls with (1 - i/N)^gamma")
    add("--freeze_bn", action="store_true", help="keep the scale and shift of every BN (a search always does)")
    add("--bn_momentum", type=float, help="momentum of the BN statistics (default: 10 / iterations, at most 0.1; "
                                          f"{RELEASED_BN_MOMENTUM} with --ft_model)")
    add("--sparse", type=float, default=0.01, help="search: weight of the sparse loss. It sets how sparse")
    add("--strengths", choices=STRENGTHS, default="sigmoid", help="search: sigmoid with annealing, or clamp (released)")
    add("--strength_lr_mult", type=float, help="search: times --lr times --last_layer_lr_mult, the learning rate of "
                                               f"the strengths (default: {RELEASED_ITERATIONS} / iterations)")
    add("--beta_end", type=float, default=50, help="search, sigmoid: the annealing goes from 1 to this")
    add("--exp_path", default="SparseMaskVOC", help="the run goes to EXP_PATH/TIMESTAMP")
    add("--pretrained_model", default="imagenet",
        help="encoder weights: imagenet (torchvision's, downloaded once), none, or a file")
    add("--ft_model", nargs="?", const="", metavar="FILE",
        help="train: start from a whole trained network, not only its encoder: FILE, or that of --pretrained_model")
    add("--resume", metavar="RUN", help="continue a run: its folder, or a checkpoint in it")
    add("--seed", type=int, default=0)
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


def make_optimizer(network, args, iterations):
    """SGD with the encoder's learning rate, ten times that for the rest, and the strengths' own."""
    base = args.lr
    rest = args.lr * args.last_layer_lr_mult
    groups = [{"params": network.encoder_parameters(), "lr": base, "name": "encoder"},
              {"params": network.decoder_parameters(), "lr": rest, "name": "decoder"}]
    if args.search:
        multiplier = args.strength_lr_mult
        if multiplier is None:
            multiplier = RELEASED_ITERATIONS / iterations  # a short search must move the strengths as far as a long one
        groups.append({"params": network.strength_parameters(), "lr": rest * multiplier, "name": "strengths",
                       "weight_decay": args.decay if network.strengths.decays else 0.0})
    for group in groups:
        group["initial_lr"] = group["lr"]
    return torch.optim.SGD(groups, lr=base, momentum=args.momentum, weight_decay=args.decay)


class Run:
    """A run in progress: what `main` sets up, advances epoch by epoch, and saves."""

    def __init__(self, args, folder, network, loaders, precision, iterations):
        self.args, self.folder, self.network, self.precision = args, folder, network, precision
        self.train_loader, self.eval_loader = loaders
        self.sampler = self.train_loader.batch_sampler
        self.iterations = iterations
        self.iteration, self.best = 0, -1.0
        self.optimizer = make_optimizer(network, args, iterations)
        self.schedule = Schedule(iterations, args.gamma)
        self.compute_losses = (functools.partial(search_losses, sparse_weight=args.sparse) if args.search
                               else train_losses)
        self.class_names = class_names_for(args)

    def state(self):
        """The content of a checkpoint: all that rebuilds the network and continues the run."""
        network = self.network
        model = {"backbone": network.backbone_name, "depth": network.depth, "num_classes": network.num_classes}
        if self.args.search:
            model["strengths"] = network.strengths_name
        else:
            model["connectivity"] = torch.from_numpy(network.connectivity)
        return {"format": 1, "kind": "search" if self.args.search else "train", "iter": self.iteration, "model": model,
                "state_dict": network.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.precision.scaler.state_dict(), "random_state": random_state(), "best_m_iou": self.best,
                "class_names": self.class_names, "settings": settings_of(self.args)}

    def restore(self, content, path):
        """Takes up a run where `state` was called."""
        load_weights(self.network, {k.removeprefix("module."): v for k, v in content["state_dict"].items()}, path)
        self.optimizer.load_state_dict(content["optimizer"])
        self.precision.scaler.load_state_dict(content["scaler"])
        self.iteration, self.best = content["iter"], content["best_m_iou"]
        set_random_state(content["random_state"])

    def save(self, best=False):
        """A checkpoint of this moment, unless the weights are broken. Returns its path."""
        for name, value in self.network.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise NotFinite(f"{name} is no longer finite after iteration {self.iteration}")
        self.schedule.apply(self.iteration, self.optimizer, self.network)  # a finished search holds its final strengths
        path = self.folder.save_checkpoint(self.state(), best, self.args.keep_all)
        self.folder.flush()
        return path

    def train(self, stop):
        """Runs to the end or until stop.requested. Returns whether the end was reached."""
        per_epoch = len(self.sampler)
        with tqdm(total=self.iterations, initial=self.iteration, unit="it", dynamic_ncols=True,
                  desc="search" if self.args.search else "train") as bar:
            while self.iteration < self.iterations:
                self.sampler.epoch, self.sampler.start = divmod(self.iteration, per_epoch)
                report = Report(self, bar)
                self.iteration = train_one_epoch(
                    self.network, self.train_loader, self.iteration, self.schedule, self.compute_losses,
                    self.optimizer, self.precision, lambda *step: report(*step) or stop.requested)
                if self.iteration % per_epoch:
                    break  # stopped inside an epoch
                epoch = self.iteration // per_epoch
                last = self.iteration == self.iterations
                improved = False
                if last or epoch % self.args.eval_interval == 0:
                    improved = self.evaluate(epoch)
                self.save(best=improved)
                if stop.requested:
                    break
        return self.iteration == self.iterations

    def evaluate(self, epoch):
        """mIoU on the eval list, curves and pictures. Returns whether it is the best so far."""
        if self.args.search:
            self.schedule.apply(self.iteration, self.optimizer, self.network)
        result = scores(evaluate(self.network, self.eval_loader, self.precision, self.show_first))
        self.folder.scalar("val/m_iou", result.m_iou, self.iteration)
        line = f"epoch {epoch}, iteration {self.iteration}: val mIoU {100 * result.m_iou:.2f} %"
        if self.args.search:
            line += f", {self.log_strengths()} of {sum(p.numel() for p in self.network.strength_parameters())} " \
                    f"strengths above {connectivity.DEFAULT_THRESHOLD:g}"
        self.folder.histograms(self.network, self.iteration)
        self.folder.log(line)
        improved = result.m_iou > self.best
        self.best = max(self.best, result.m_iou)
        return improved

    def show_first(self, index, image, prediction, label):
        """The first image of the eval list, its prediction and truth, as pictures."""
        if index == 0:
            self.folder.image("val/input", denormalize(image[0]).cpu().numpy(), self.iteration)
            self.folder.image("val/output", colour_label(prediction[0]), self.iteration)
            self.folder.image("val/gt", colour_label(label[0]), self.iteration)

    def log_strengths(self):
        """The strengths as a picture and as the number above the threshold, which is returned."""
        strengths = final_strengths(self.network)
        above = int(sum((p > connectivity.DEFAULT_THRESHOLD).sum() for p in strengths))
        self.folder.image("search/strengths", strengths_grid(strengths), self.iteration)
        self.folder.scalar("search/above_threshold", above, self.iteration)
        return above


class Report:
    """What a step leaves behind: the bar's figures, and every log_interval a point of each curve."""

    def __init__(self, run, bar):
        self.run, self.bar = run, bar
        self.confusion = 0
        self.tags = ("train/backbone_lr", "train/decoder_lr", "train/strengths_lr") if run.args.search else \
                    ("train/base_lr", "train/last_layer_lr")

    def __call__(self, iteration, losses, confusion):
        self.confusion = self.confusion + confusion
        folder, groups = self.run.folder, self.run.optimizer.param_groups
        if iteration % self.run.args.log_interval == 0:
            folder.scalar("train/loss", losses.total.item(), iteration)
            if losses.sparse is not None:
                folder.scalar("train/loss_task", losses.task.item(), iteration)
                folder.scalar("train/loss_sparse", losses.sparse.item(), iteration)
            for tag, group in zip(self.tags, groups):
                folder.scalar(tag, group["lr"], iteration)
            folder.scalar("train/m_iou", scores(self.confusion).m_iou, iteration)
        self.bar.set_postfix(loss=f"{losses.total.item():.3f}", mIoU=f"{100 * scores(self.confusion).m_iou:.1f}%",
                             lr=f"{groups[0]['lr']:.2g}", refresh=False)
        self.bar.update()


def final_strengths(network):
    """The strengths without noise: one array (l+1, 2) a stage."""
    with torch.no_grad():
        return [network.strengths(p, noise=False).float().cpu().numpy() for p in network.strength_parameters()]


def settings_of(args):
    """The options as plain values, for the checkpoint and settings.json."""
    return {name: value for name, value in vars(args).items() if name != "given"}


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
    folder.log(f"next: python {'prune.py --checkpoint' if run.args.search else 'eval_sparse_mask.py --pretrained_model'}"
               f" {shlex.quote(str(last))}")
    folder.close()
    return 0


if __name__ == "__main__":
    run_command(main, build_parser())
