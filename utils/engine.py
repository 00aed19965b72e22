"""The loops: one step, one epoch, one run, one evaluation. Nothing here knows the command line."""
import contextlib
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from models.inference import for_inference
from models.losses import count_pixels, pixel_cross_entropy, resize_logits, total_sparse_loss
from utils.boundary import keep_near_boundary
from utils.distributed import ALONE, ProcessGroup
from utils.metrics import Scores, confusion_matrix, scores
from utils.run import NotFinite, TrainingState
from utils.runtime import LEAST_SCALE, Precision, start_reading, tuned_convolutions
from utils.step_graphs import StepGraphs
from VOC12.labels import VOID
from VOC12.loading import batches, join_equal


@dataclass
class Losses:
    """Scalar tensors of one step: total = task + weight * sparse; sparse is None in training."""
    total: torch.Tensor
    task: torch.Tensor
    sparse: torch.Tensor | None = None

    def all_reduced(self, group: ProcessGroup) -> torch.Tensor:
        """Those of the whole batch, stacked: each process has scaled its share so that their mean is that."""
        parts = torch.stack([part.detach() for part in (self.total, self.task, self.sparse) if part is not None])
        return group.all_reduce(parts) / group.size if group.size > 1 else parts


def search_losses(network: nn.Module, image: torch.Tensor, label: torch.Tensor, sparse_weight: float,
                  regularizer: Callable = total_sparse_loss, forward: Callable | None = None,
                  pixels: torch.Tensor | None = None,
                  class_weights: torch.Tensor | None = None) -> tuple[Losses, torch.Tensor]:
    """Forward pass and losses of the supernet. Returns (Losses, logits of the label's size).

    image (N, 3, H, W), label int64 (N, H, W). forward: what is called instead of the network, DistributedDataParallel
    around it; pixels, class_weights: see pixel_cross_entropy; regularizer: strengths -> scalar.
    """
    strengths = network.draw_strengths()  # once: the forward pass and the regularizer see the same noise
    logits = resize_logits((forward or network)(image, strengths), label)
    task, sparse = pixel_cross_entropy(logits, label, pixels, class_weights=class_weights), regularizer(strengths)
    return Losses(task + sparse_weight * sparse, task, sparse), logits


def train_losses(network: nn.Module, image: torch.Tensor, label: torch.Tensor, forward: Callable | None = None,
                 pixels: torch.Tensor | None = None,
                 class_weights: torch.Tensor | None = None) -> tuple[Losses, torch.Tensor]:
    """Forward pass and loss of a SparseMask, as in search_losses. Returns (Losses, logits of the label's size)."""
    logits = resize_logits((forward or network)(image), label)
    task = pixel_cross_entropy(logits, label, pixels, class_weights=class_weights)
    return Losses(task, task), logits


def forward_pass(network: nn.Module, compute_losses: Callable, precision: Precision, group: ProcessGroup,
                 class_weights: torch.Tensor | None, image: torch.Tensor,
                 label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The forward pass of a step, see train_step.

    Returns (loss to differentiate; Losses of the whole batch and the loss scale, in one vector; predictions).
    """
    pixels = group.loss_divisor(count_pixels(label, VOID, class_weights))
    if class_weights is not None:
        compute_losses = functools.partial(compute_losses, class_weights=class_weights)
    # An empty share runs uncompiled: the compiler's strides of the gradients are wrong for it (PyTorch 2.14, CPU).
    stance = contextlib.nullcontext() if len(image) else torch.compiler.set_stance("force_eager")
    with precision.autocast(), stance:
        losses, logits = compute_losses(network, image, label, pixels=pixels)
    scale = precision.scaler.scale(torch.ones((1,), device=image.device))
    return (precision.scaler.scale(losses.total), torch.cat([losses.all_reduced(group), scale]),
            logits.detach().argmax(1))


def train_step(network: nn.Module, image: torch.Tensor, label: torch.Tensor, compute_losses: Callable,
               optimizer: torch.optim.Optimizer, precision: Precision, group: ProcessGroup = ALONE,
               class_weights: torch.Tensor | None = None,
               graphs: StepGraphs | None = None) -> tuple[Losses, torch.Tensor]:
    """One optimizer step of all processes, each with its share of the batch.

    Returns (Losses of the whole batch, on the CPU; predictions int64 (N, H, W)). Raises NotFinite before the weights
    change. With float16 the scaler skips the update where gradients overflow: weights, strengths and momentum stay as
    they are. The statistics of BN are updated, for the forward pass was a valid one.
    """
    compute = functools.partial(forward_pass, network, compute_losses, precision, group, class_weights)
    graph = graphs and graphs.find(compute, optimizer, image, label)
    if graph:
        (values, prediction), backward = graph.forward(image, label), graph.backward
    else:
        optimizer.zero_grad(set_to_none=True)
        loss, values, prediction = compute(image, label)
        backward = loss.backward
    read = start_reading(values)
    backward()
    # Here, and nowhere else in a step, the host waits for a GPU: for the end of the forward pass, while the GPU goes on
    # with the backward pass.
    *parts, scale = read().unbind()
    whole = Losses(*parts)
    if not math.isfinite(whole.total.item()):
        raise NotFinite(f"the loss is {whole.total.item()} (cross-entropy {whole.task.item()})")
    if scale < LEAST_SCALE:
        raise NotFinite("the gradients overflow with every scale of the loss")
    precision.scaler.step(optimizer)
    precision.scaler.update()
    if hasattr(network, "clamp_strengths"):
        network.clamp_strengths()
    return whole, prediction


class Watcher:
    """What may look on while a run proceeds, and changes nothing. This one does nothing; see utils/run_log.py."""

    def on_start(self, state: TrainingState) -> None:
        """Before the first step, of a resumed run too."""

    def on_step(self, state: TrainingState, losses: Losses) -> None:
        """After each step; losses: of the whole batch, on the CPU."""

    def on_eval_image(self, state: TrainingState, index: int, image: torch.Tensor, prediction: torch.Tensor,
                      label: torch.Tensor) -> None:
        """After each batch of an evaluation; index: the number of batches before it."""

    def on_evaluation(self, state: TrainingState, epoch: int, result: Scores) -> None:
        """After each evaluation."""

    def on_end(self, state: TrainingState) -> None:
        """After the last step, or when the run stops or fails."""


class Trainer:
    """The loop of a search or a training: steps, checkpoints, evaluations. It alone advances `state.iteration`.

    compute_losses: search_losses or train_losses, with what else they need bound. save(state, is_best) writes a
    checkpoint. eval_interval: epochs between two evaluations; save_interval: iterations between two checkpoints inside
    an epoch, 0 for none. eval_loader: None for no evaluation. watcher: where there is none, nothing is displayed or
    logged. class_weights: of the loss. graphs: given if the steps run as CUDA graphs.
    """

    def __init__(self, state: TrainingState, compute_losses: Callable, train_loader: Iterable,
                 eval_loader: Iterable | None, save: Callable, eval_interval: int = 1, save_interval: int = 0,
                 watcher: Watcher | None = None, group: ProcessGroup = ALONE,
                 class_weights: torch.Tensor | None = None, graphs: StepGraphs | None = None):
        self.class_weights, self.graphs = class_weights, graphs
        self.state, self.compute_losses, self.precision, self.group = state, compute_losses, state.precision, group
        self.train_loader, self.eval_loader = train_loader, eval_loader
        self.eval_interval, self.save_interval, self.write = eval_interval, save_interval, save
        self.watcher = watcher or Watcher()
        self.epoch_length = len(train_loader.batch_sampler)

    @property
    def position(self) -> tuple[int, int]:
        """How many epochs are done, and how many iterations of the next one."""
        return divmod(self.state.iteration + self.state.shift, self.epoch_length)

    def run(self, stop: Callable[[], bool]) -> bool:
        """Runs to the end, or until stop() in any process, and saves. Returns whether the end was reached."""
        state = self.state
        self.watcher.on_start(state)
        try:
            self.evaluate_if_due()  # a run that was killed between its last step and the evaluation
            while not state.finished and not self.group.synchronize(stop()):
                self.run_epoch(stop)
                self.save()  # before the evaluation, which can fail: it reads other files
                self.evaluate_if_due()
        finally:
            self.watcher.on_end(state)
        return state.finished

    @tuned_convolutions()
    def run_epoch(self, stop: Callable[[], bool]) -> None:
        """The steps of the rest of an epoch. Raises NotFinite, naming the iteration."""
        state, sampler = self.state, self.train_loader.batch_sampler
        sampler.epoch, sampler.start = self.position
        if sampler.start == 0:
            state.train_confusion.zero_()
        state.network.train()
        for sample in batches(self.train_loader):
            if self.group.synchronize(stop()):
                break
            state.apply_schedule()
            image, label = self.precision.batch(sample)
            try:
                losses, prediction = train_step(state.network, image, label, self.compute_losses, state.optimizer,
                                                self.precision, self.group, self.class_weights, self.graphs)
            except NotFinite as error:
                raise NotFinite(f"{error} at iteration {state.iteration + 1}") from None
            state.advance()
            state.train_confusion += self.group.all_reduce(
                confusion_matrix(prediction, label, state.network.num_classes))
            self.watcher.on_step(state, losses)
            inside_epoch = self.position[1] != 0  # at its end it is saved anyway
            if self.save_interval and state.iteration % self.save_interval == 0 and inside_epoch:
                self.save()

    def save(self, is_best: bool = False) -> None:
        """A checkpoint of this moment. Raises NotFinite if the weights are broken: the last good one stays."""
        self.state.apply_schedule()  # a finished search stores its final strengths
        if self.group.is_main:
            self.state.check_finite()
            self.write(self.state, is_best)

    def evaluate_if_due(self) -> None:
        """At the end of every eval_interval-th epoch and of the run: evaluates, and saves that it has."""
        state = self.state
        epoch, rest = self.position
        due = state.iteration and rest == 0 and (state.finished or epoch % self.eval_interval == 0)
        if self.eval_loader is not None and due and state.evaluated_at != state.iteration:
            is_best = self.evaluate(epoch)
            state.evaluated_at = state.iteration
            self.save(is_best)

    def evaluate(self, epoch: int) -> bool:
        """mIoU on the eval list. Returns whether it is the best so far. Raises InputError if there is none."""
        state = self.state
        self.group.synchronize()
        self.group.broadcast_buffers(state.network)
        confusion = evaluate(state.network, self.eval_loader, self.precision,
                             lambda *image: self.watcher.on_eval_image(state, *image), group=self.group)
        result = scores(confusion).require_pixels()
        self.watcher.on_evaluation(state, epoch, result)
        is_best = result.is_defined and result.m_iou > state.best_m_iou
        state.best_m_iou = result.m_iou if is_best else state.best_m_iou
        return is_best


@torch.no_grad()
def evaluate(network: nn.Module, loader: Iterable, precision: Precision, on_image: Callable | None = None,
             batch_size: int = 1, compiled: bool = False, wrap: Callable | None = None,
             group: ProcessGroup = ALONE, boundary: int = 0) -> torch.Tensor:
    """Confusion matrix, int64 (classes, classes), over the loaders of all processes, in evaluation mode.

    The network stays as it is. boundary: if not 0, two of them, (2, classes, classes), the second of the pixels at most
    so far from a boundary of the label, see utils/boundary.py.

    on_image(index, image, prediction, label), if given, is called with each batch (tensors on the device) and the
    number of batches before it. Images of equal size go through the network batch_size at a time. Void pixels, the
    padding among them, count nowhere. compiled: see for_inference. wrap, if given, turns the network's call into what
    is called instead, as TestTimeAugmentation does.
    """
    forward = for_inference(network, compiled, precision.low)
    forward = wrap(forward) if wrap else forward
    shape = (2 if boundary else 1, network.num_classes, network.num_classes)
    confusion = torch.zeros(shape, dtype=torch.int64, device=precision.device)
    for index, sample in enumerate(join_equal(batches(loader), batch_size)):
        image, label = precision.batch(sample)
        with precision.autocast():
            prediction = resize_logits(forward(image), label).argmax(1)
        confusion[0] += confusion_matrix(prediction, label, network.num_classes)
        if boundary:
            near = keep_near_boundary(label, sample.inside, boundary)
            confusion[1] += confusion_matrix(prediction, near, network.num_classes)
        if on_image is not None:
            on_image(index, image, prediction, label)
    group.synchronize()
    confusion = group.all_reduce(confusion)
    return confusion if boundary else confusion[0]
