"""The loops: one step, one epoch, one evaluation. Nothing here knows the command line."""
import contextlib
import math
from dataclasses import dataclass

import torch

from models.inference import for_inference
from models.losses import pixel_cross_entropy, resize_logits, total_sparse_loss
from utils.distributed import ALONE
from utils.metrics import confusion_matrix
from VOC12.loading import batches, join_equal
from VOC12.labels import VOID


class NotFinite(Exception):
    """The loss or the weights are no longer finite; the message says where."""


@dataclass
class Losses:
    """Scalar tensors of one step: total = task + weight * sparse; sparse is None in training."""
    total: torch.Tensor
    task: torch.Tensor
    sparse: torch.Tensor | None = None

    def of_all(self, team):
        """The whole batch's, detached: each process has scaled its share so that their mean is that."""
        parts = [part.detach() for part in (self.total, self.task, self.sparse) if part is not None]
        return Losses(*(team.sum(torch.stack(parts)) / team.size).unbind() if team.size > 1 else parts)


def search_losses(network, image, label, sparse_weight, forward=None, pixels=None):
    """Forward pass and losses of the supernet (spec section 5). Returns (Losses, logits of the label's size).

    forward: what is called instead of the network, DistributedDataParallel around it; pixels: see pixel_cross_entropy.
    """
    strengths = network.draw_strengths()  # once: the forward pass and the sparse loss see the same noise
    logits = resize_logits((forward or network)(image, strengths), label)
    task, sparse = pixel_cross_entropy(logits, label, pixels), total_sparse_loss(strengths)
    return Losses(task + sparse_weight * sparse, task, sparse), logits


def train_losses(network, image, label, forward=None, pixels=None):
    """Forward pass and loss of a SparseMask, as in search_losses. Returns (Losses, logits of the label's size)."""
    logits = resize_logits((forward or network)(image), label)
    task = pixel_cross_entropy(logits, label, pixels)
    return Losses(task, task), logits


@dataclass(frozen=True)
class Schedule:
    """"Poly" learning rate, (1 - i/N)^gamma of each group's `initial_lr`, and the strengths' annealing.

    The strengths stand still for the first `warmup` of the iterations; their poly schedule and annealing take the rest.
    All of it follows from the iteration, so a resumed run needs nothing but its number.
    """
    iterations: int
    gamma: float
    warmup: float = 0.0
    beta_end: float = 50.0

    def apply(self, iteration, optimizer, network):
        """Sets what iteration `iteration` (from 0; N after the last) runs with."""
        progress = iteration / self.iterations
        late = (progress - self.warmup) / (1 - self.warmup)
        for group in optimizer.param_groups:
            share = late if group.get("name") == "strengths" else progress
            group["lr"] = group["initial_lr"] * (1 - share) ** self.gamma if share >= 0 else 0.0
        if hasattr(network, "strengths"):
            network.strengths.anneal(max(late, 0.0), self.beta_end)


def train_step(network, image, label, compute_losses, optimizer, precision, team=ALONE):
    """One optimizer step of all processes, each with its share of the batch.

    Returns (Losses of the whole batch, predictions int64 (N, H, W)). Raises NotFinite before the weights change.
    """
    pixels = team.pixels((label != VOID).sum())
    # An empty share runs uncompiled: the compiler's strides of the gradients are wrong for it (PyTorch 2.14, CPU).
    stance = contextlib.nullcontext() if len(image) else torch.compiler.set_stance("force_eager")
    with precision.autocast(), stance:
        losses, logits = compute_losses(network, image, label, pixels=pixels)
    whole = losses.of_all(team)
    if not math.isfinite(whole.total.item()):
        raise NotFinite(f"the loss is {whole.total.item()} (cross-entropy {whole.task.item()})")
    optimizer.zero_grad(set_to_none=True)
    precision.scaler.scale(losses.total).backward()
    precision.scaler.step(optimizer)
    precision.scaler.update()
    if hasattr(network, "clamp_strengths"):
        network.clamp_strengths()
    return whole, logits.detach().argmax(1)


def train_one_epoch(network, loader, start, schedule, compute_losses, optimizer, precision, after_step,
                    stop=lambda: False, team=ALONE):
    """The steps of the rest of an epoch. start: iterations done before.

    after_step(iterations done, Losses, confusion matrix of this step); stop() -> whether to stop before the next step.
    Returns the iterations done. Raises NotFinite, naming the iteration.
    """
    network.train()
    iteration = start
    for sample in batches(loader):
        if team.exchange(stop()):
            break
        schedule.apply(iteration, optimizer, network)
        image, label = precision.batch(sample)
        try:
            losses, prediction = train_step(network, image, label, compute_losses, optimizer, precision, team)
        except NotFinite as error:
            raise NotFinite(f"{error} at iteration {iteration + 1}") from None
        iteration += 1
        after_step(iteration, losses, team.sum(confusion_matrix(prediction, label, network.num_classes)))
    return iteration


@torch.no_grad()
def evaluate(network, loader, precision, on_image=None, batch_size=1, compiled=False, wrap=None, team=ALONE):
    """Confusion matrix (classes, classes) over the loaders of all processes, in evaluation mode.

    The network stays as it is.

    on_image(index, image, prediction, label), if given, is called with each batch (tensors on the device) and the
    number of batches before it. Images of equal size go through the network batch_size at a time. Void pixels, the
    padding among them, count nowhere. compiled: see for_inference. wrap, if given, makes of the network's call
    what is called instead, as Averaged does.
    """
    forward = for_inference(network, compiled, precision.low)
    forward = wrap(forward) if wrap else forward
    confusion = torch.zeros(network.num_classes, network.num_classes, dtype=torch.int64, device=precision.device)
    for index, sample in enumerate(join_equal(batches(loader), batch_size)):
        image, label = precision.batch(sample)
        with precision.autocast():
            prediction = resize_logits(forward(image), label).argmax(1)
        confusion += confusion_matrix(prediction, label, network.num_classes)
        if on_image is not None:
            on_image(index, image, prediction, label)
    team.exchange()
    return team.sum(confusion)
