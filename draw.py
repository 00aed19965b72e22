"""Draw an architecture and its strengths, as SVG and PNG: from a mask, a checkpoint of either kind, or a run folder."""
import argparse
import os
from collections.abc import Callable
from pathlib import Path

from models import connectivity
from models.backbones import make_backbone
from models.pruning import DEFAULT_THRESHOLD, check_threshold, prune
from models.transfer import load_for_encoder
from utils.checkpoint import Checkpoint, read_checkpoint
from utils.cli import run_command
from utils.errors import InputError, first_line
from utils.options import (
    HelpFormatter,
    add_mask_encoder_option,
    add_model_options,
    check_numbers,
    check_part_names,
    require_options,
)
from utils.strengths_file import STRENGTHS, read_strengths

SUFFIXES = (".pth.tar", ".pth", ".npy", ".txt")  # of a source: the pictures do not have them in their names


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="draw.py", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("source", help="a mask (.npy, .txt, or one of "
                                       f"{', '.join(connectivity.NAMED)}), a checkpoint, or the folder of a run")
    parser.add_argument("--out", help="folder for the pictures (default: beside the source)")
    parser.add_argument("--thres", type=float, default=DEFAULT_THRESHOLD,
                        help="of a search: the threshold that the architecture is pruned at")
    group = parser.add_argument_group("model (of a checkpoint: only parts of your own)")
    add_model_options(group, strengths=True)
    add_mask_encoder_option(group)
    return parser


def figures_of_checkpoint(checkpoint: Checkpoint, threshold: float, log: Callable[[str], None]) -> dict:
    """{name: figure} of a checkpoint of either kind."""
    from utils import drawing
    network = checkpoint.build()
    sizes = {"channels": network.backbone.channels, "strides": network.backbone.strides, "depth": network.depth,
             "num_classes": network.num_classes}
    if checkpoint.kind == "train":
        return {"architecture": drawing.draw_architecture(network.connectivity, **sizes)}
    strengths = network.final_strengths()
    kept = prune(strengths, threshold)
    figures = {"strengths": drawing.draw_strengths(strengths, threshold)}
    if kept[-1].any():
        figures["architecture"] = drawing.draw_architecture(kept, **sizes)
    else:
        log(f"no architecture is drawn: at the threshold {threshold:g} the finest stage keeps no input")
    return figures


def main(args: argparse.Namespace) -> None:
    """Writes the pictures of the source, and prints their names."""
    try:
        from utils import drawing
    except Exception as error:  # missing or broken, with errors of any type
        raise InputError(f"draw.py needs matplotlib, which cannot be used here ({first_line(error)}); "
                         f"pip install matplotlib, or correct that") from None
    check_threshold(args.thres)
    check_numbers(args, ("depth",), at_least=1)
    check_part_names(args)
    source = Path(args.source)
    is_run = os.path.isdir(source)
    if connectivity.is_mask(args.source):
        backbone = make_backbone(args.backbone_name)
        mask, lines = load_for_encoder(args.source, backbone.strides, args.mask_encoder)
        for line in lines:
            print(line)
        figures = {"architecture": drawing.draw_architecture(mask, backbone.channels, backbone.strides, args.depth)}
    else:
        checkpoint = require_options(read_checkpoint(source), args)
        figures = figures_of_checkpoint(checkpoint, args.thres, print)
        if is_run and (source / STRENGTHS).exists():
            names, iterations, values = read_strengths(source)
            figures["strengths_over_time"] = drawing.draw_strengths_over_time(names, iterations, values, args.thres)
    folder = Path(args.out) if args.out else source if is_run else source.parent
    stem = source.name
    for suffix in SUFFIXES:
        stem = stem.removesuffix(suffix)
    prefix = "" if is_run else f"{stem}_"
    for name, figure in figures.items():
        svg, png = drawing.save(figure, folder / f"{prefix}{name}")
        print(f"written: {svg} and {png.name}")


if __name__ == "__main__":
    run_command(main, build_parser())
