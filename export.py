"""Export a trained network for other runtimes: ONNX (.onnx), or torch.export (.pt2). Any batch and image size."""
import argparse
from pathlib import Path

from utils.checkpoint import read_checkpoint
from utils.cli import run_command
from utils.errors import InputError
from utils.exporting import OUTPUTS, Deployed, export_onnx, export_torch, metadata
from utils.options import HelpFormatter, add_model_options, class_names_of, require_options

WRITERS = {".onnx": export_onnx, ".pt2": export_torch}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="export.py", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint of a training, or the folder of its run")
    parser.add_argument("--out", required=True, help="the file; its suffix chooses: .onnx, or .pt2 for torch.export")
    parser.add_argument("--output", choices=OUTPUTS, default="logits",
                        help="logits at the finest tap's size, logits resized to it, or the classes: their argmax")
    parser.add_argument("--class_names", metavar="FILE", help="names of the classes, one a line, for the metadata")
    add_model_options(parser.add_argument_group("model"), from_checkpoint=True)
    return parser


def main(args: argparse.Namespace) -> None:
    """Writes the network of a checkpoint as a file for another runtime, compared with PyTorch first."""
    path = Path(args.out)
    if path.suffix not in WRITERS:
        raise InputError(f"--out is {args.out}; give a name that ends in {' or '.join(WRITERS)}")
    checkpoint = require_options(read_checkpoint(args.checkpoint).require("train"), args)
    names = class_names_of(args.class_names, checkpoint.num_classes, checkpoint.class_names)
    network = checkpoint.build().float()
    module = Deployed(network, args.output).eval()
    checked = WRITERS[path.suffix](module, path, metadata(network, names, args.output))
    print(f"written: {path} ({path.stat().st_size / 2 ** 20:.1f} MiB), any batch size, images from "
          f"{module.smallest}x{module.smallest} pixels\n{checked}")


if __name__ == "__main__":
    run_command(main, build_parser())
