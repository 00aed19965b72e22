"""The loops: one step, one epoch, one evaluation. Nothing here knows the command line."""
import math
from dataclasses import dataclass

import torch

from models.inference import for_inference
from models.losses import pixel_cross_entropy, resize_logits, total_sparse_loss
from utils.metrics import confusion_matrix
from VOC12.dataset import batches, join_equal


class NotFinite(Exception):
    """The loss or the weights are no longer finite; the message says where."""


@dataclass
class Losses:
    """Scalar tensors of one step: total = task + weight * sparse; sparse is None in training."""
    total: torch.Tensor
    task: torch.Tensor
    sparse: torch.Tensor | None = None


def search_losses(network, image, label, sparse_weight):
    """Forward pass and losses of the supernet (spec section 5). Returns (Losses, logits of the label's size)."""
    strengths = network.draw_strengths()  # once: the forward pass and the sparse loss see the same noise
    logits = resize_logits(network(image, strengths), label)
    task, sparse = pixel_cross_entropy(logits, label), total_sparse_loss(strengths)
    return Losses(task + sparse_weight * sparse, task, sparse), logits


def train_losses(network, image, label):
    """Forward pass and loss of a SparseMask. Returns (Losses, logits of the label's size)."""
    logits = resize_logits(network(image), label)
    task = pixel_cross_entropy(logits, label)
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


def train_step(network, image, label, compute_losses, optimizer, precision):
    """One optimizer step. Returns (Losses, predictions int64 (N, H, W)). Raises NotFinite before the weights change."""
    with precision.autocast():
        losses, logits = compute_losses(network, image, label)
    if not math.isfinite(losses.total.item()):
        raise NotFinite(f"the loss is {losses.total.item()} (cross-entropy {losses.task.item()})")
    optimizer.zero_grad(set_to_none=True)
    precision.scaler.scale(losses.total).backward()
    precision.scaler.step(optimizer)
    precision.scaler.update()
    if hasattr(network, "clamp_strengths"):
        network.clamp_strengths()
    return losses, logits.detach().argmax(1)


def train_one_epoch(network, loader, start, schedule, compute_losses, optimizer, precision, after_step):
    """The steps of the rest of an epoch. start: iterations done before.

    after_step(iterations done, Losses, confusion matrix of this step) -> whether to stop here.
    Returns the iterations done. Raises NotFinite, naming the iteration.
    """
    network.train()
    iteration = start
    for sample in batches(loader):
        schedule.apply(iteration, optimizer, network)
        image, label = precision.batch(sample)
        try:
            losses, prediction = train_step(network, image, label, compute_losses, optimizer, precision)
        except NotFinite as error:
            raise NotFinite(f"{error} at iteration {iteration + 1}") from None
        iteration += 1
        if after_step(iteration, losses, confusion_matrix(prediction, label, network.num_classes)):
            break
    return iteration


@torch.no_grad()
def evaluate(network, loader, precision, on_image=None, batch_size=1, compiled=False, wrap=None):
    """Confusion matrix (classes, classes) over a loader, in evaluation mode; the network stays as it is.

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
    return confusion
