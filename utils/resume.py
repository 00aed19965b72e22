"""Resuming a run: which checkpoint, whether it has all that a run needs, which settings may change and what they do."""
import os
from collections.abc import Callable, Mapping

import torch

from utils.checkpoint import Checkpoint, read_checkpoint
from utils.errors import InputError
from utils.options import NO_LIST
from utils.run import TrainingState
from utils.run_length import Length, describe_schedule, stored_length

# Settings that may change when a run is resumed: where it computes, what it reads and writes,
FREE = {"resume", "gpu", "type", "n_worker", "im_path", "gt_path", "training_list", "eval_list", "class_names",
        "log_interval", "eval_interval", "compile", "cuda_graphs", "save_interval", "keep_all", "deterministic",
        "timeout",
        # and how it learns from here on.
        "max_epoch", "batch_size", "crop_size", "lr", "last_layer_lr_mult", "momentum", "decay", "gamma", "bn_momentum",
        "sync_bn", "sparse", "sparse_loss", "strength_lr_mult", "strength_warmup", "beta_end",
        "class_weights", "im_suffix", "gt_suffix"}
# What a checkpoint must contain, and of which type.
NEEDED = {"iter": int, "iterations": int, "optimizer": dict, "scaler": dict, "random_state": dict, "best_m_iou": float,
          "train_confusion": torch.Tensor, "settings": dict}


def checkpoint_to_resume(path: str) -> Checkpoint:
    """The checkpoint, or the last one of a run folder. Raises InputError if a run cannot continue from it."""
    checkpoint = read_checkpoint(path)
    content = checkpoint.content
    lacks = [name for name, kind in NEEDED.items() if not isinstance(content.get(name), kind)]
    if lacks:
        hint = "; start a new run from its network instead" if checkpoint.kind == "train" else ""
        raise InputError(f"{checkpoint.path} cannot be resumed: it lacks {', '.join(lacks)}, which this program's runs "
                         f"save and the released code does not{hint}", about="ft_model" if hint else None)
    if not 0 <= content["iter"] <= content["iterations"]:
        raise InputError(f"{checkpoint.path} cannot be resumed: it states the iteration {content['iter']} of "
                         f"{content['iterations']}; resume another one")
    return checkpoint


def merge_settings(stored: Mapping, given: Mapping, defaults: Mapping,
                   instead: Callable[[dict], str] = lambda changes: "") -> dict:
    """The settings of a resumed run: the stored ones, and of those given the ones that may change.

    defaults: of settings that the run did not store, since it is older. Raises InputError for a given setting that
    cannot change; instead(what changes) -> the command that the sentence advises, if there is one.
    """
    stored = {**defaults, **{name: value for name, value in stored.items() if name in defaults}}
    changes = {name: value for name, value in given.items() if name != "resume" and value != stored[name]}
    for name, value in changes.items():
        if name not in FREE:
            command = instead(changes)
            raise InputError(f"a resumed run keeps this setting, and {name} was {stored[name]}, not {value}; leave the "
                             f"option out{f', or start a new run: {command}' if command else ''}", about=name)
    return {**stored, **given}


def describe_changes(before: Mapping, after: Mapping) -> str:
    """ "lr 0.005 -> 0.001, ...": the settings that differ; an empty string if none does."""
    return ", ".join(f"{name} {' -> '.join('default' if v is None else str(v) for v in (value, after[name]))}"
                     for name, value in before.items() if name != "resume" and value != after[name])


def continue_with(checkpoint: Checkpoint, settings: Mapping, length: Length, state: TrainingState) -> list[str]:
    """Adapts a resumed state to settings that changed. Returns what the log has to say of it, nothing if none did."""
    changes, before = describe_changes(checkpoint.settings, settings), stored_length(checkpoint)
    if not changes:
        return []
    lines = [f"changed: {changes}", *describe_schedule(checkpoint, length, before, state)]
    if not same_file(settings["eval_list"], checkpoint.settings["eval_list"]):
        state.best_m_iou, state.evaluated_at = -1.0, None
        if settings["eval_list"] != NO_LIST:
            lines.append("with another eval list the search for the best mIoU starts anew")
    state.shift = length.shift
    done_before, done = ((state.iteration + each.shift) % each.epoch_length for each in (before, length))
    if done_before and not done:  # its position was rounded down to the end of the epoch before
        state.evaluated_at = state.iteration
    return lines


def same_file(path: str, other: str) -> bool:
    """Whether two paths, of files that may be gone, lead to the same place."""
    return os.path.realpath(path) == os.path.realpath(other)
