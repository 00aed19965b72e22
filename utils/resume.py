"""--resume: which checkpoint, whether it has all that a run needs, and which options may differ."""
import torch

from utils.checkpoint import read_checkpoint
from utils.errors import InputError
from utils.options import option_if_given
from utils.run_folder import find_last_checkpoint

# Options that may differ without changing the run.
FREE_ON_RESUME = {"resume", "gpu", "n_worker", "im_path", "gt_path", "training_list", "eval_list", "class_names",
                  "log_interval", "eval_interval", "compile", "save_interval", "keep_all", "deterministic"}
# What a checkpoint must hold, and of which type.
NEEDED_TO_RESUME = {"iter": int, "iterations": int, "optimizer": dict, "scaler": dict, "random_state": dict,
                    "best_m_iou": float, "train_confusion": torch.Tensor, "settings": dict}


def checkpoint_to_resume(args, parser):
    """--resume: the checkpoint; the run's settings go into `args`, save for those that may differ and were given."""
    checkpoint = read_checkpoint(find_last_checkpoint(args.resume))
    content = checkpoint.content
    lacks = [name for name, kind in NEEDED_TO_RESUME.items() if not isinstance(content.get(name), kind)]
    if lacks:
        hint = f"; start a new run from it with --ft_model {checkpoint.path}" if checkpoint.kind == "train" else ""
        raise InputError(f"{checkpoint.path} cannot be resumed: it lacks {', '.join(lacks)}, which this program's runs "
                         f"save and the released code does not{hint}")
    if not 0 <= content["iter"] <= content["iterations"]:
        raise InputError(f"{checkpoint.path} cannot be resumed: it says that it is of iteration {content['iter']} of "
                         f"{content['iterations']}; resume another one")
    check_settings(checkpoint, parser)
    for name in args.given - FREE_ON_RESUME - {"backbone_name"}:
        if getattr(args, name) != checkpoint.settings.get(name):
            raise InputError(f"--resume continues with the run's own settings, and --{name} was "
                             f"{checkpoint.settings.get(name)}, not {getattr(args, name)}; leave the option out or "
                             f"start a new run")
    checkpoint.require_backbone(option_if_given(args, "backbone_name"))
    for name in set(checkpoint.settings) & set(vars(args)) - (args.given & FREE_ON_RESUME) - {"given"}:
        setattr(args, name, checkpoint.settings[name])
    if "class_names" not in args.given:
        args.class_names = None  # the checkpoint holds the names; the file may be gone
    return checkpoint


def check_settings(checkpoint, parser):
    """Raises InputError for a setting in a checkpoint that the command line would not take."""
    for action in parser._actions:
        value = checkpoint.settings.get(action.dest, action.default)
        kind = bool if isinstance(action.const, bool) else action.type or str
        fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        if not (fits and value in (action.choices or [value]) or value is None is action.default):
            raise InputError(f"{checkpoint.path} cannot be resumed: its setting {action.dest} is {value!r}, which "
                             f"--{action.dest} does not take; resume another checkpoint")
