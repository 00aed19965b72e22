"""Resuming a run: which checkpoint, whether it has all that a run needs, and which settings may change."""
from collections.abc import Mapping

import torch

from utils.checkpoint import Checkpoint, read_checkpoint
from utils.errors import InputError
from utils.run_folder import find_last_checkpoint

# Settings that may change without changing the run.
FREE = {"resume", "gpu", "n_worker", "im_path", "gt_path", "training_list", "eval_list", "class_names", "log_interval",
        "eval_interval", "compile", "save_interval", "keep_all", "deterministic"}
# What a checkpoint must contain, and of which type.
NEEDED = {"iter": int, "iterations": int, "optimizer": dict, "scaler": dict, "random_state": dict, "best_m_iou": float,
          "train_confusion": torch.Tensor, "settings": dict}


def checkpoint_to_resume(path: str) -> Checkpoint:
    """The checkpoint, or the last one of a run folder. Raises InputError if a run cannot continue from it."""
    checkpoint = read_checkpoint(find_last_checkpoint(path))
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


def merge_settings(stored: Mapping, given: Mapping, defaults: Mapping) -> dict:
    """The settings of a resumed run: the stored ones, and of those given the ones that may change.

    defaults: of settings that the run did not store, since it is older. Raises InputError for a given setting that
    would change the run.
    """
    stored = {**defaults, **{name: value for name, value in stored.items() if name in defaults}}
    for name, value in given.items():
        if name not in FREE and value != stored[name]:
            raise InputError(f"a resumed run continues with its own settings, and {name} was {stored[name]}, not "
                             f"{value}; leave the option out or start a new run", about=name)
    return {**stored, **{name: value for name, value in given.items() if name in FREE}}
