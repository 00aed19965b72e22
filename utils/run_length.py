"""How long a run is, also when it is resumed with other epochs or batches, and what follows from its length."""
import argparse
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from models.layers import RELEASED_BN_MOMENTUM
from utils.checkpoint import Checkpoint
from utils.errors import InputError
from utils.run import RELEASED_ITERATIONS, TrainingState

ADAM_ITERATIONS = 1_000  # with so many, the strengths' learning rate under Adam is the decoder's


class Length(NamedTuple):
    """How long a run is. iterations: all of them, from the first; shift: see TrainingState."""
    epoch_length: int
    iterations: int
    shift: int = 0


def stored_length(checkpoint: Checkpoint) -> Length:
    """The length that the run had when it wrote the checkpoint. Raises InputError if what it states does not fit."""
    iterations, shift = checkpoint.content["iterations"], checkpoint.content.get("shift", 0)
    epochs = checkpoint.settings["max_epoch"]
    if not isinstance(shift, int) or epochs < 1 or iterations + shift < 1 or (iterations + shift) % epochs:
        raise InputError(f"{checkpoint.path} cannot be resumed: it states {iterations} iterations, a shift of "
                         f"{shift!r} and {epochs} epochs, which do not fit; resume another checkpoint")
    return Length((iterations + shift) // epochs, iterations, shift)


def resumed_length(checkpoint: Checkpoint, epoch_length: int, batch_size: int, max_epoch: int) -> Length:
    """The length of the resumed run, whose epochs now have `epoch_length` iterations of `batch_size` images.

    Inside an epoch it continues at the image where it was, or up to a batch before. Raises InputError if max_epoch is
    over already.
    """
    done, before = checkpoint.content["iter"], stored_length(checkpoint)
    epoch, batch = divmod(done + before.shift, before.epoch_length)
    start = batch * checkpoint.settings["batch_size"] // batch_size
    shift = epoch * epoch_length + start - done
    iterations = max_epoch * epoch_length - shift
    if done > iterations:
        inside = f" and {batch} of {before.epoch_length} iterations of the next" if batch else ""
        raise InputError(f"the run has done {epoch} epochs{inside}, so it cannot end after {max_epoch}; give at least "
                         f"{epoch + (batch > 0)}", about="max_epoch")
    return Length(epoch_length, iterations, shift)


def describe_schedule(checkpoint: Checkpoint, now: Length, before: Length, state: TrainingState) -> Iterator[str]:
    """Lines: what a changed length, learning rate or gamma means from here on."""
    settings = checkpoint.settings
    if now.epoch_length != before.epoch_length:
        yield f"an epoch now has {now.epoch_length} iterations, it had {before.epoch_length}"
    if now.iterations != before.iterations:
        yield f"the run now has {now.iterations} iterations, it had {before.iterations}"
    state.apply_schedule()
    rate = state.optimizer.param_groups[0]["lr"]
    rate_before = settings["lr"] * (1 - state.iteration / before.iterations) ** settings["gamma"]
    if f"{rate:.3g}" != f"{rate_before:.3g}":
        yield f"the learning rate goes on at {rate:.3g}, it was {rate_before:.3g}"


def uses_adam(args: argparse.Namespace) -> bool:
    """Whether the strengths are optimized by Adam: where that was asked for, or there is a budget to land on."""
    return args.search and (args.strength_optimizer or ("adam" if args.budget else "sgd")) == "adam"


class Derived(NamedTuple):
    """Options that follow from the length of the run where they were not given."""
    bn_momentum: float
    strength_warmup: float
    strength_lr_mult: float


def derive(args: argparse.Namespace, iterations: int, network: nn.Module) -> Derived:
    """What was given, and else what suits a run of so many iterations."""
    momentum = args.bn_momentum or (RELEASED_BN_MOMENTUM if args.ft_model is not None else min(10 / iterations, 0.1))
    warmup, multiplier = args.strength_warmup, args.strength_lr_mult
    if warmup is None:
        warmup = network.strengths.warmup if args.search else 0.0
    if multiplier is None:  # a short search, or the part of it after the warm-up, must move the strengths as far
        reference = ADAM_ITERATIONS if uses_adam(args) else RELEASED_ITERATIONS
        multiplier = reference / (iterations * (1 - warmup))
    return Derived(momentum, warmup, multiplier)


def describe_derived(source: Checkpoint, args: argparse.Namespace, now: Derived, network: nn.Module) -> list[str]:
    """A line about what was not given, and changes since the length of the resumed run does; or none."""
    before = derive(argparse.Namespace(**source.settings), stored_length(source).iterations, network)
    shown = ["bn_momentum"] + ["strength_lr_mult"] * args.search
    parts = [f"{name} {getattr(before, name):.3g} -> {getattr(now, name):.3g}" for name in shown
             if getattr(args, name) is None and getattr(before, name) != getattr(now, name)]
    line = f"with the length changed what follows from it: {', '.join(parts)}"
    if args.search and parts:
        line += "; the warm-up and the annealing of the strengths take their shares of the new length"
    return [line] if parts else []
