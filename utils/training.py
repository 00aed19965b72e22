"""A search or training in progress: the steps of engine.py, with what is logged, shown and saved on the way."""
import contextlib
import functools
import math
import time

import numpy as np
import torch
from tqdm import tqdm

from models import connectivity
from utils.checkpoint import check_tensor
from utils.engine import NotFinite, Schedule, evaluate, search_losses, train_losses, train_one_epoch
from utils.errors import InputError, first_line
from utils.metrics import require_pixels, scores
from utils.pictures import colour_label
from utils.runtime import random_state, set_random_state
from VOC12.transforms import denormalize

RELEASED_ITERATIONS = 33_100  # 50 epochs of trainaug, batch 16
SHOWN_IMAGES = 4  # of the eval list, in TensorBoard
SHOW_EVERY = 0.2  # seconds between two updates of the bar's figures


def make_optimizer(network, args, iterations):
    """SGD with the encoder's learning rate, ten times that for the rest, and the strengths' own."""
    base = args.lr
    rest = args.lr * args.last_layer_lr_mult
    groups = [{"params": network.encoder_parameters(), "lr": base, "name": "encoder"},
              {"params": network.decoder_parameters(), "lr": rest, "name": "decoder"}]
    if args.search:
        multiplier = args.strength_lr_mult
        if multiplier is None:  # a short search, or the part of it after the warm-up, must move the strengths as far
            multiplier = RELEASED_ITERATIONS / (iterations * (1 - warmup_of(network, args)))
        groups.append({"params": network.strength_parameters(), "lr": rest * multiplier, "name": "strengths",
                       "weight_decay": args.decay if network.strengths.decays else 0.0})
    for group in groups:
        group["initial_lr"] = group["lr"]
    return torch.optim.SGD(groups, lr=base, momentum=args.momentum, weight_decay=args.decay, fused=True)


def warmup_of(network, args):
    """Share of a search before the strengths learn: --strength_warmup, else what suits their parameterization."""
    return network.strengths.warmup if args.strength_warmup is None else args.strength_warmup


class Run:
    """A run in progress: what `main` sets up, advances epoch by epoch, and saves."""

    def __init__(self, args, folder, network, loaders, precision, iterations, class_names, team):
        self.team, self.args, self.folder, self.network, self.precision = team, args, folder, network, precision
        self.train_loader, self.eval_loader = loaders
        self.sampler = self.train_loader.batch_sampler
        self.iterations, self.class_names = iterations, class_names
        self.iteration, self.best, self.saved_at, self.evaluated_at = 0, -1.0, None, None
        # of this epoch's training images so far, for train/m_iou
        self.confusion = torch.zeros(network.num_classes, network.num_classes, dtype=torch.int64,
                                     device=precision.device)
        self.optimizer = make_optimizer(network, args, iterations)
        self.schedule = Schedule(iterations, args.gamma, warmup_of(network, args) if args.search else 0.0,
                                 args.beta_end)
        forward = team.wrap(network)
        self.compute_losses = (functools.partial(search_losses, sparse_weight=args.sparse, forward=forward)
                               if args.search else functools.partial(train_losses, forward=forward))

    def state(self):
        """The content of a checkpoint: all that rebuilds the network and continues the run."""
        network = self.network
        model = {"backbone": network.backbone_name, "depth": network.depth, "num_classes": network.num_classes}
        if self.args.search:
            model["strengths"] = network.strengths_name
        else:
            model["connectivity"] = torch.from_numpy(network.connectivity)
        return {"iter": self.iteration, "iterations": self.iterations, "model": model,
                "state_dict": network.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scaler": self.precision.scaler.state_dict(), "random_state": random_state(self.precision.device),
                "best_m_iou": self.best, "evaluated_at": self.evaluated_at,
                "train_confusion": self.confusion, "class_names": self.class_names,
                "settings": settings_of(self.args)}

    def restore(self, content):
        """Takes up a run where `state` was called; the network has its weights already.

        Raises InputError if the optimizer or another state is not of such a run.
        """
        try:
            self.restore_optimizer(content["optimizer"])
            self.precision.scaler.load_state_dict(content["scaler"])
            self.confusion.copy_(content["train_confusion"])
            set_random_state(content["random_state"], self.precision.device)
        except InputError:
            raise
        except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise InputError(f"{self.folder.path} cannot be resumed: the state of its optimizer or of its random "
                             f"numbers is damaged, or of another run ({first_line(error)}); resume another "
                             f"checkpoint") from None
        self.iteration, self.best, self.saved_at = content["iter"], content["best_m_iou"], content["iter"]
        self.evaluated_at = content.get("evaluated_at", self.iteration)  # older runs did not say

    def restore_optimizer(self, state):
        """Loads the optimizer's state. The fused SGD writes out of bounds where a momentum has another shape."""
        own = self.optimizer.state_dict()["param_groups"]  # rates and so on follow from the run's settings
        groups = [{**group, "params": saved["params"]} for group, saved in zip(own, state["param_groups"], strict=True)]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                buffer = self.optimizer.state[parameter].get("momentum_buffer")
                if buffer is not None:
                    check_tensor("momentum", buffer, parameter, self.folder.path)
                    if buffer.shape != parameter.shape:
                        raise ValueError(f"a momentum has the shape {tuple(buffer.shape)}")

    def save(self, best=False):
        """A checkpoint of this moment. Raises NotFinite if the weights are broken: the last good one stays."""
        self.schedule.apply(self.iteration, self.optimizer, self.network)  # a finished search holds its final strengths
        if not self.team.main:
            return
        for name, value in self.network.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise NotFinite(f"{name} is no longer finite after iteration {self.iteration}")
        try:
            self.folder.flush()  # the curves before the checkpoint that says that they are there
        finally:  # it matters more than they do
            self.folder.save_checkpoint(self.state(), best, self.args.keep_all)
            self.saved_at = self.iteration

    def save_if_possible(self):
        """After an error of the input: saves unless that is impossible too, or there is nothing new."""
        if self.iteration != (self.saved_at or 0):
            with contextlib.suppress(InputError, NotFinite):
                self.save()

    def train(self, stop):
        """Runs to the end or until stop.requested in any process, and saves. Returns whether the end was reached."""
        per_epoch = len(self.sampler)
        with tqdm(total=self.iterations, initial=self.iteration, unit="it", dynamic_ncols=True,
                  desc="search" if self.args.search else "train", disable=not self.team.main) as bar:
            report = Report(self, bar)
            self.evaluate_if_due()  # of a run that was killed between its last step and the evaluation
            while self.iteration < self.iterations and not self.team.exchange(stop.requested):
                self.sampler.epoch, self.sampler.start = divmod(self.iteration, per_epoch)
                if self.sampler.start == 0:
                    self.confusion.zero_()
                train_one_epoch(self.network, self.train_loader, self.iteration, self.schedule, self.compute_losses,
                                self.optimizer, self.precision, report, lambda: stop.requested, self.team)
                self.save()  # before the evaluation, which can fail: it reads other files
                self.evaluate_if_due()
        return self.iteration == self.iterations

    def evaluate_if_due(self):
        """At the end of every eval_interval-th epoch and of the run: evaluates, and saves that it has."""
        epoch, rest = divmod(self.iteration, len(self.sampler))
        last = self.iteration == self.iterations
        due = self.iteration and rest == 0 and (last or epoch % self.args.eval_interval == 0)
        if due and self.evaluated_at != self.iteration:
            best = self.evaluate(epoch)
            self.evaluated_at = self.iteration
            self.save(best)

    def evaluate(self, epoch):
        """mIoU on the eval list, curves and pictures. Returns whether it is the best so far."""
        self.team.exchange()
        self.team.share_buffers(self.network)
        confusion = evaluate(self.network, self.eval_loader, self.precision,
                             self.show_first if self.team.main else None, team=self.team)
        result = require_pixels(scores(confusion), self.args.eval_list)
        if self.team.main:
            self.log_evaluation(epoch, result)
        improved = result.m_iou > self.best
        self.best = max(self.best, result.m_iou)
        return improved

    def log_evaluation(self, epoch, result):
        """A line, the curves, and of a search the state of its strengths."""
        self.folder.scalar("val/m_iou", result.m_iou, self.iteration)
        line = f"epoch {epoch}, iteration {self.iteration}: val mIoU {100 * result.m_iou:.2f} %"
        if self.args.search:
            line += f", {self.log_strengths()} of {sum(p.numel() for p in self.network.strength_parameters())} " \
                    f"strengths above {connectivity.DEFAULT_THRESHOLD:g}"
        self.folder.histograms(self.network, self.iteration)
        self.folder.log(line)

    def show_first(self, index, image, prediction, label):
        """The first images of the eval list, with predictions and truths, as pictures; the very first has no number."""
        if index < SHOWN_IMAGES:
            number = f"_{index}" if index else ""
            classes = self.network.num_classes
            self.folder.image(f"val/input{number}", denormalize(image[0]).cpu().numpy(), self.iteration)
            self.folder.image(f"val/output{number}", colour_label(prediction[0], classes), self.iteration)
            self.folder.image(f"val/gt{number}", colour_label(label[0], classes), self.iteration)

    def log_strengths(self):
        """The strengths as pictures and as the number above the threshold, which is returned."""
        strengths = self.network.final_strengths()
        above = int(sum((p > connectivity.DEFAULT_THRESHOLD).sum() for p in strengths))
        self.folder.scalar("search/above_threshold", above, self.iteration)
        self.folder.histogram("search/strengths_histogram", np.concatenate([p.ravel() for p in strengths]),
                              self.iteration)
        self.draw("search/strengths", lambda drawing: drawing.draw_strengths(strengths))
        kept = connectivity.prune(strengths)
        if kept[-1].any():  # else there is no network yet
            self.draw("search/architecture", lambda drawing: drawing.draw_architecture(kept, **self.sizes()))
        return above

    def sizes(self):
        """What a drawing of the architecture says of the network beside its connections."""
        backbone = self.network.backbone
        return {"channels": backbone.channels, "strides": backbone.strides, "depth": self.network.depth,
                "num_classes": self.network.num_classes}

    def draw(self, tag, make):
        """make(drawing module) -> figure, as a picture in TensorBoard; nothing where matplotlib is not installed."""
        try:
            from utils import drawing
        except ImportError:
            return
        self.folder.image(tag, drawing.to_array(make(drawing)), self.iteration)

    def begin(self):
        """The first entries of a new run: strengths at the start, or the architecture that is trained."""
        if self.args.search:
            self.folder.strengths(self.network.final_strengths(), 0)
        else:
            self.draw("train/architecture", lambda drawing: drawing.draw_architecture(self.network.connectivity,
                                                                                      **self.sizes()))


class Report:
    """What a step leaves behind: the bar's figures, and every log_interval a point of each curve."""

    def __init__(self, run, bar):
        self.run, self.bar = run, bar
        self.shown_at = 0.0  # time of the bar's figures: reading them waits for the GPU, so not at every step
        self.tags = ("train/backbone_lr", "train/decoder_lr", "train/strengths_lr") if run.args.search else \
                    ("train/base_lr", "train/last_layer_lr")

    def __call__(self, iteration, losses, confusion):
        run = self.run
        run.iteration = iteration
        run.confusion += confusion
        if run.team.main:
            self.show(iteration, losses)
        if run.args.save_interval and iteration % run.args.save_interval == 0 and iteration % len(run.sampler):
            run.save()  # at the end of an epoch it is saved anyway

    def show(self, iteration, losses):
        """The bar, a few times a second, and the curves."""
        run = self.run
        if iteration % run.args.log_interval == 0:
            self.add_points(iteration, losses)
        self.bar.update()
        if time.monotonic() - self.shown_at > SHOW_EVERY or iteration == run.iterations:
            self.shown_at = time.monotonic()
            self.bar.set_postfix(loss=f"{losses.total.item():.3f}", mIoU=f"{100 * scores(run.confusion).m_iou:.1f}%",
                                 lr=f"{run.optimizer.param_groups[0]['lr']:.2g}")

    def add_points(self, iteration, losses):
        """A point of each curve of spec section 8."""
        folder = self.run.folder
        folder.scalar("train/loss", losses.total.item(), iteration)
        if losses.sparse is not None:
            folder.strengths(self.run.network.final_strengths(), iteration)
            folder.scalar("train/loss_task", losses.task.item(), iteration)
            folder.scalar("train/loss_sparse", losses.sparse.item(), iteration)
        for tag, group in zip(self.tags, self.run.optimizer.param_groups):
            folder.scalar(tag, group["lr"], iteration)
        m_iou = scores(self.run.confusion).m_iou
        if math.isfinite(m_iou):  # an epoch may begin with void alone
            folder.scalar("train/m_iou", m_iou, iteration)


def settings_of(args):
    """The options as plain values, for the checkpoint and settings.json."""
    return {name: value for name, value in vars(args).items() if name != "given"}
