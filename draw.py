"""Draw an architecture and its strengths, as SVG and PNG: from a mask, a checkpoint of either kind, or a run folder."""
import argparse
import os
from pathlib import Path

from models import connectivity
from models.backbones import make_backbone
from models.connectivity import DEFAULT_THRESHOLD, prune
from utils.checkpoint import read_checkpoint
from utils.cli import run_command
from utils.errors import InputError
from utils.options import HelpFormatter, option_if_given
from utils.run_folder import find_last_checkpoint
from utils.strengths_file import STRENGTHS, read_strengths


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(prog="draw.py", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("source", help="a mask (.npy, .txt, or one of "
                                       f"{', '.join(connectivity.NAMED)}), a checkpoint, or the folder of a run")
    parser.add_argument("--out", help="folder for the pictures (default: beside the source)")
    parser.add_argument("--thres", type=float, default=DEFAULT_THRESHOLD,
                        help="of a search: the threshold that the architecture is pruned at")
    parser.add_argument("--backbone_name", default="mobilenet_v2",
                        help="the encoder of a mask; of a checkpoint if it is your own (package.module:factory)")
    parser.add_argument("--depth", type=int, default=64, help="channels of a decoder stage, of a mask")
    return parser


def figures_of_checkpoint(checkpoint, threshold, say):
    """{name: figure} of a checkpoint of either kind."""
    from utils import drawing
    backbone = make_backbone(checkpoint.backbone)
    sizes = {"channels": backbone.channels, "strides": backbone.strides, "depth": checkpoint.depth,
             "num_classes": checkpoint.num_classes}
    if checkpoint.kind == "train":
        kept = connectivity.check(checkpoint.connectivity, len(backbone.channels))
        return {"architecture": drawing.draw_architecture(kept, **sizes)}
    strengths = checkpoint.build().final_strengths()
    kept = prune(strengths, threshold)
    figures = {"strengths": drawing.draw_strengths(strengths, threshold)}
    if kept[-1].any():
        figures["architecture"] = drawing.draw_architecture(kept, **sizes)
    else:
        say(f"no architecture is drawn: at the threshold {threshold:g} the finest stage keeps no input")
    return figures


def main(args):
    try:
        from utils import drawing
    except ImportError as error:
        raise InputError(f"draw.py needs matplotlib ({error}); pip install matplotlib") from None
    if not 0 <= args.thres < 1:
        raise InputError(f"--thres is {args.thres}; strengths are between 0 and 1, so give one from 0 to below 1")
    if args.depth < 1:
        raise InputError(f"--depth is {args.depth}; give at least 1")
    given = option_if_given(args, "backbone_name")
    source = Path(args.source)
    is_run = os.path.isdir(source)
    if args.source in connectivity.NAMED or source.suffix in (".npy", ".txt"):
        backbone = make_backbone(args.backbone_name)
        mask = connectivity.load(args.source, len(backbone.channels))
        figures = {"architecture": drawing.draw_architecture(mask, backbone.channels, backbone.strides, args.depth)}
    else:
        checkpoint = read_checkpoint(find_last_checkpoint(source))
        checkpoint.require_backbone(given)
        figures = figures_of_checkpoint(checkpoint, args.thres, print)
        if is_run and (source / STRENGTHS).exists():
            names, iterations, values = read_strengths(source)
            figures["strengths_over_time"] = drawing.draw_strengths_over_time(names, iterations, values, args.thres)
    folder = Path(args.out) if args.out else source if is_run else source.parent
    prefix = "" if is_run else source.name.partition(".pth")[0].removesuffix(".npy").removesuffix(".txt") + "_"
    for name, figure in figures.items():
        svg, png = drawing.save(figure, folder / f"{prefix}{name}")
        print(f"written: {svg} and {png.name}")


if __name__ == "__main__":
    run_command(main, build_parser())
