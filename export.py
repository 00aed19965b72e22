"""Export a trained network: ONNX (.onnx), torch.export (.pt2), or a folder as on the Hugging Face Hub."""
import argparse
import tempfile
from pathlib import Path

from torch import nn

from utils.checkpoint import EXPORTED, Checkpoint, read_checkpoint
from utils.cli import run_command
from utils.data_options import label_map_of, naming_of
from utils.engine import evaluate
from utils.errors import InputError
from utils.exported import ExportedNetwork
from utils.exporting import OUTPUTS, STORED, Deployed, export_onnx, export_torch, metadata
from utils.metrics import scores
from utils.options import (
    NO_LIST,
    HelpFormatter,
    add_model_options,
    check_size,
    class_names_of,
    padding_of,
    require_options,
)
from utils.progress import progress_bar
from utils.quantizing import choose_images, quantize
from utils.runtime import Precision, select_device
from VOC12.dataset import SegmentationDataset
from VOC12.image_files import ImageFiles, listed_images
from VOC12.loading import explain_loader_death, make_eval_loader, make_loader
from VOC12.transforms import EvalTransform

SUFFIXES = *EXPORTED, ""
FORMS = "normalized", "size", "float16", "opset", "int8"  # of a file


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="export.py", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a checkpoint of a training, or the folder of its run")
    parser.add_argument("--out", required=True,
                        help="the file; its suffix chooses: .onnx, .pt2 for torch.export, none for a folder with "
                             "config.json and model.safetensors")
    parser.add_argument("--output", choices=OUTPUTS, default="logits",
                        help="logits at the finest tap's size, logits resized to it, or the classes: their argmax")
    parser.add_argument("--class_names", metavar="FILE", help="names of the classes, one a line, for the metadata")
    add_model_options(parser.add_argument_group("model"), from_checkpoint=True)
    group = parser.add_argument_group("form")
    group.add_argument("--normalized", action="store_true",
                       help="put the normalization of the input into the file: it takes RGB in 0..255")
    group.add_argument("--size", type=int, nargs=2, metavar=("H", "W"),
                       help="for one image of this size alone, which some runtimes need")
    group.add_argument("--float16", action="store_true", help="compute in float16; input and logits stay float32")
    group.add_argument("--opset", type=int, metavar="N", help="of ONNX (default: what PyTorch writes)")
    group = parser.add_argument_group("int8 (ONNX)")
    group.add_argument("--int8", action="store_true",
                       help="quantize to 8 bits; what suffers most stays in float32, chosen by measurement")
    group.add_argument("--calibration_list", metavar="FILE", help="names of images, one a line: for the ranges of the "
                                                                  "features, and for that measurement; no labels")
    group.add_argument("--im_path", metavar="DIR", help="folder of the images")
    group.add_argument("--im_suffix", metavar="S", help="what the names of the images end with (default: the "
                                                        "training's)")
    group.add_argument("--eval_list", metavar="FILE", default=NO_LIST,
                       help="names of images with labels: mIoU in float32 and in int8 is printed")
    group.add_argument("--gt_path", metavar="DIR", help="folder of their labels")
    return parser


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for options that do not go together."""
    suffix = Path(args.out).suffix
    if suffix not in SUFFIXES:
        raise InputError(f"--out is {args.out}; give a name that ends in .onnx or .pt2, or one without a suffix for a "
                         f"folder")
    forms = [name for name in FORMS if getattr(args, name)] + ["output"] * (args.output != OUTPUTS[0])
    if not suffix and forms:
        raise InputError(f"--{forms[0]} is for .onnx and .pt2, and --out is {args.out}, a folder with the weights; "
                         f"leave it out, or give a name that ends in .onnx")
    if suffix != ".onnx" and (args.int8 or args.opset is not None):
        raise InputError(f"--{'int8' if args.int8 else 'opset'} is for ONNX, and --out is {args.out}; give a name that "
                         f"ends in .onnx")
    if args.size:
        for length in args.size:
            check_size(length, "--size")
    needed = {"calibration_list": args.calibration_list, "im_path": args.im_path}
    if args.int8 and None in needed.values():
        missing = " and ".join(f"--{name}" for name, value in needed.items() if value is None)
        raise InputError(f"--int8 needs images to find the ranges of the features; give {missing}")
    if args.int8 and args.float16:
        raise InputError("--int8 and --float16 exclude each other; give one")
    if (args.eval_list == NO_LIST) != (args.gt_path is None):
        raise InputError("labels need both --eval_list and --gt_path; give both or neither")
    if not args.int8:
        unused = [name for name in ("calibration_list", "im_path", "im_suffix", "gt_path") if getattr(args, name)]
        if unused:
            raise InputError(f"--{unused[0]} is for --int8; give that too, or leave it out")


def export_int8(args: argparse.Namespace, checkpoint: Checkpoint, module: Deployed, notes: dict) -> str:
    """Writes the int8 file. Returns lines about what it costs."""
    padding = tuple(module.size or padding_of(None, checkpoint))
    listed = listed_images(args.calibration_list, args.im_path,
                           naming_of(args.im_suffix, None, checkpoint.settings).image)
    files = choose_images([file for file, _ in listed])
    with tempfile.TemporaryDirectory() as folder, explain_loader_death():
        exact = Path(folder) / "float32.onnx"
        lines = [export_onnx(module, exact, notes, opset=args.opset)]
        loader = make_loader(ImageFiles(files, EvalTransform(padding)), 0)
        lines += quantize(exact, Path(args.out), ExportedNetwork(exact), loader, notes)
        if args.eval_list != NO_LIST:
            before, after = (m_iou(args, checkpoint, ExportedNetwork(path), padding) for path in (exact, args.out))
            lines.append(f"mIoU on {args.eval_list}: {100 * before:.2f} % in float32, {100 * after:.2f} % in int8")
    return "\n".join(lines)


def m_iou(args: argparse.Namespace, checkpoint: Checkpoint, network: nn.Module, padding: tuple[int, int]) -> float:
    """Of an exported network on the eval list."""
    dataset = SegmentationDataset(args.im_path, args.gt_path, args.eval_list, network.num_classes,
                                  EvalTransform(padding), naming=naming_of(args.im_suffix, None, checkpoint.settings),
                                  label_map=label_map_of(None, network.num_classes, checkpoint.settings), repeats=False)
    precision = Precision("float32", select_device(-1, log=lambda _: None))
    with progress_bar(total=len(dataset), unit="image", desc="evaluate") as bar:
        return scores(evaluate(precision.place(network), make_eval_loader(dataset, 0), precision,
                               lambda *_: bar.update())).require_pixels().m_iou


def main(args: argparse.Namespace) -> None:
    """Writes the network of a checkpoint as a file for another runtime, compared with PyTorch first, or as a folder."""
    check_args(args)
    path = Path(args.out)
    checkpoint = require_options(read_checkpoint(args.checkpoint).require("train"), args)
    names = class_names_of(args.class_names, checkpoint.num_classes, checkpoint.class_names)
    network = checkpoint.build().float()
    settings = {name: checkpoint.settings.get(name) for name in STORED}
    if not path.suffix:
        network.class_names = names
        network.save_pretrained(path, settings)
        print(f"written: {path}, for SparseMask.from_pretrained and for all commands that take a checkpoint")
        return
    module = Deployed(network, args.output, args.normalized, args.size, args.float16).eval()
    reference = Deployed(network, args.output, args.normalized, args.size).eval() if args.float16 else None
    notes = metadata(module, names, settings)
    if args.int8:
        checked = export_int8(args, checkpoint, module, notes)
    elif path.suffix == ".onnx":
        checked = export_onnx(module, path, notes, reference, args.opset)
    else:
        checked = export_torch(module, path, notes, reference)
    sizes = f"any batch size, images from {module.smallest}x{module.smallest} pixels" if module.size is None else \
        f"one image of {module.size[0]}x{module.size[1]} pixels (H x W)"
    print(f"written: {path} ({path.stat().st_size / 2 ** 20:.1f} MiB), {sizes}\n{checked}")


if __name__ == "__main__":
    run_command(main, build_parser())
