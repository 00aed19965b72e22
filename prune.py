"""Turn a search checkpoint into a connectivity: drop what is weak, and the stages that this leaves useless."""
import argparse
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from models import SparseMask, connectivity
from models.backbones import BACKBONES
from models.components import is_own
from models.connectivity import describe, source_name, unread_stages
from models.costs import cost_text
from models.pruning import (
    DEFAULT_THRESHOLD,
    gap,
    prune,
    prune_to_cost,
    prune_to_strongest,
    rank,
    require_input,
    total_cost,
)
from models.transfer import describe_encoder
from utils.checkpoint import Checkpoint, read_checkpoint
from utils.cli import run_command
from utils.errors import InputError
from utils.files import write_atomically
from utils.options import (
    HelpFormatter,
    add_class_options,
    add_device_options,
    add_model_options,
    check_numbers,
    own_part_options,
    require_options,
)
from utils.runtime import TYPES, select_device

CLEAR_GAP = 10  # smallest kept over largest dropped; below it, the threshold decides more than the search did


def build_parser() -> argparse.ArgumentParser:
    """The released command line, and what is new."""
    parser = argparse.ArgumentParser(prog="prune.py", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint of a search, or the folder of its run")
    parser.add_argument("--thres", type=float, default=DEFAULT_THRESHOLD,
                        help="weaker connections are dropped. Without this option, a search with a budget is pruned to "
                             "the budget")
    parser.add_argument("--strongest", type=int, metavar="K",
                        help="keep the K strongest inputs of each stage instead, as MaskConnect does")
    group = parser.add_argument_group("model")
    add_class_options(group, from_checkpoint=True, names=False)
    add_model_options(group, from_checkpoint=True, strengths=True)
    add_device_options(parser.add_argument_group("run"))
    return parser


def gap_lines(strengths: Sequence[np.ndarray], threshold: float) -> list[str]:
    """The gap as text, with a warning when it is narrow."""
    dropped, kept = gap(strengths, threshold)
    lines = [f"largest strength dropped {'none' if dropped is None else f'{dropped:.3e}'}, "
             f"smallest kept {'none' if kept is None else f'{kept:.3e}'}"]
    if dropped is None:
        lines.append(f"warning: every strength is above the threshold {threshold:g}: the search has not become sparse; "
                     f"train it longer")
    elif dropped > 0:
        lines[0] += f": a gap of {kept / dropped:.3g}x"
        if kept < CLEAR_GAP * dropped:
            lines.append(f"warning: the gap is less than {CLEAR_GAP}x, so another threshold may give another "
                         f"network; the search has not settled: train it longer or raise --strength_lr_mult")
    return lines


def count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())


def main(args: argparse.Namespace) -> None:
    """Prints the connectivity that a search found, and writes it beside the checkpoint."""
    check_numbers(args, ("strongest",), at_least=1)
    if args.strongest and "thres" in args.given:
        raise InputError("--strongest keeps a number of inputs, whatever their strengths, so it does not take --thres; "
                         "leave out one or the other")
    device = select_device(args.gpu, log=lambda _: None)  # a few numbers: which device it is makes no difference
    checkpoint = require_options(read_checkpoint(args.checkpoint).require("search"), args)
    supernet = checkpoint.build()
    strengths = supernet.to(device, TYPES[args.type]).final_strengths()
    ranks = rank(strengths, [parameter.detach().double().cpu().numpy() for parameter in supernet.strength_parameters()])
    budget = None if args.strongest or "thres" in args.given else budget_of(checkpoint)
    if args.strongest:
        kept, rule = prune_to_strongest(ranks, args.strongest), f"strongest_{args.strongest}"
        how = f"the {args.strongest} strongest inputs of each stage"
        notes = [how]
    elif budget:
        num_dropped = sum(int((p <= DEFAULT_THRESHOLD).sum()) for p in strengths)
        kept, rule = prune_to_cost(ranks, *budget, num_dropped), "budget"
        cost, kind = total_cost(kept, budget[0]), checkpoint.settings["cost"]
        how = (f"pruned to the budget of the search, {cost_text(budget[1], kind)}: the connections cost "
               f"{cost_text(cost, kind)}, {100 * cost / budget[1]:.0f} % of it")
        notes = [how, *budget_lines(prune(strengths), kept, *budget)]
    else:
        kept, rule = prune_at(args.thres, strengths, checkpoint.path), f"thres_{shortest(args.thres)}"
        how = f"at the threshold {args.thres:g}"
        notes = threshold_lines(strengths, args.thres, kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unread stage is reported below
        parts = {kind: name for kind, name in checkpoint.parts.items() if kind != "strengths"}
        network = SparseMask(kept, depth=checkpoint.depth, num_classes=checkpoint.num_classes, **parts)
    lines = [describe(kept), *(f"warning: nothing reads D[{l}]" for l in unread_stages(kept)), *notes]
    before, after = count(supernet), count(network)
    lines.append(f"parameters: {before:,} in the supernet, {after:,} pruned "
                 f"({count(network.backbone):,} encoder, {after - count(network.backbone):,} decoder and head)")
    print("\n".join(lines))
    path = Path(checkpoint.path).parent / f"mask_{rule}.npy"
    origin = [f"from {checkpoint.path} {how}", describe_encoder(parts["backbone"], network.backbone.strides)]
    write(path, kept, strengths, origin, lines)
    print(f"written: {path}, and {path.with_suffix('.txt').name} beside it\n"
          f"next: python train_sparse_mask.py --mask_path {shlex.quote(str(path))}{part_options(parts)}")


def budget_of(checkpoint: Checkpoint) -> tuple[list, float] | None:
    """(costs of the connections, budget) of a search that had one."""
    budget, state = checkpoint.settings.get("budget"), checkpoint.content.get("cost_loss")
    if not budget or not isinstance(state, dict):
        return None
    return [cost.double().cpu().numpy() for cost in state["costs"]], float(budget)


def prune_at(threshold: float, strengths: Sequence[np.ndarray], path: str) -> np.ndarray:
    """The connectivity at a threshold. Raises InputError, naming the checkpoint, if there is no network."""
    try:
        kept = prune(strengths, threshold)
        require_input(kept, strengths, threshold)
    except InputError as error:
        raise InputError(f"{path}: {error}", error.about) from None
    return kept


def threshold_lines(strengths: Sequence[np.ndarray], threshold: float, kept: np.ndarray) -> list[str]:
    """What the threshold did, as text."""
    above = sum(int((p > threshold).sum()) for p in strengths)
    return [f"{above} of {sum(p.size for p in strengths)} strengths are above {threshold:g}; {above - int(kept.sum())} "
            f"of them belonged to stages that pruning found useless", *gap_lines(strengths, threshold)]


def budget_lines(found: np.ndarray, kept: np.ndarray, costs: Sequence[np.ndarray], budget: float) -> list[str]:
    """How the decoder `kept` differs from what the search kept, `found`, as text; nothing where it does not.

    found, kept: bool (L, L, 2). costs: of the connections, arrays (l+1, 2); budget: in the same unit.
    """
    if (found == kept).all():
        return []
    added = int((kept & ~found).sum())
    return [f"the search kept {int(found.sum())} connections, {100 * total_cost(found, costs) / budget:.0f} % of the "
            f"budget: {int((kept & found).sum())} of them are taken" +
            (f", and {added} that it did not keep" if added else "")]


def shortest(threshold: float) -> str:
    """A threshold in a file's name: of six digits; one with more has a name, and so a file, of its own."""
    short = f"{threshold:g}"
    return short if float(short) == threshold else repr(threshold)


def part_options(parts: Mapping[str, str]) -> str:
    """What the training needs beside the mask: the parts, by kind, that are the user's own, and another encoder."""
    backbone = parts["backbone"]
    other = not is_own(backbone) and backbone != next(iter(BACKBONES))  # the first is the default
    return f"{f' --backbone_name {backbone}' if other else ''}{own_part_options(parts)}"


def write(path: Path, kept: np.ndarray, strengths: Sequence[np.ndarray], origin: Sequence[str],
          lines: Sequence[str]) -> None:
    """The mask, and beside it as text what the numbers alone do not show: axes, origin (lines), result, strengths."""
    connectivity.save(path, kept)
    rows = [f"D[{l}] <- {source_name(j, side):<5} {p[j, side]:.6e}{'  kept' if kept[l, j, side] else ''}"
            for l, p in enumerate(strengths) for side in (0, 1) for j in range(l + 1)]
    text = [f"{path.name}: bool {kept.shape}, [stage, source, 0 = encoder | 1 = decoder side], deepest first;",
            "encoder source j is tap E[j], decoder-side source 0 the global feature G, source j is D[j-1]",
            *origin, "", *lines, "", "strengths:", *rows, ""]
    with write_atomically(path.with_suffix(".txt")) as temporary:
        temporary.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    run_command(main, build_parser())
