"""--engine and --trusted: files of export.py in the commands that run a trained network."""
import argparse
from pathlib import Path

from utils.checkpoint import Checkpoint
from utils.errors import InputError
from utils.exported import ExportedFile, read_network
from utils.exporting import STORED, Deployed, export_onnx, metadata
from utils.options import class_names_of, require_options

ENGINES = {".pt2": "torch", ".onnx": "onnx"}  # what runs an exported file, by its suffix


def add_engine_option(parser: argparse._ActionsContainer) -> None:
    """--engine and --trusted."""
    add_trusted_option(parser)
    parser.add_argument("--engine", choices=tuple(ENGINES.values()),
                        help="onnx: run a checkpoint by onnxruntime on the CPU, from a file that is exported beside it "
                             "once (default: torch; an ONNX file always runs so)")


def add_trusted_option(parser: argparse._ActionsContainer) -> None:
    """--trusted."""
    parser.add_argument("--trusted", action="store_true",
                        help="you trust the .pt2 file: loading one can run code that is in it")


def read_trained(path: str, args: argparse.Namespace) -> Checkpoint:
    """The trained network of a checkpoint, a folder or a file of export.py, for the engine that the options choose.

    Raises InputError for options that contradict it.
    """
    checkpoint = require_options(read_network(path, args.trusted).require("train"), args)
    if isinstance(checkpoint, ExportedFile) and args.engine not in (None, ENGINES[Path(path).suffix]):
        raise InputError(f"--engine is {args.engine}, but {checkpoint.network.runtime} runs {path}; give the "
                         f"checkpoint, or leave --engine out")
    if args.engine != "onnx" and not isinstance(checkpoint, ExportedFile):
        return checkpoint
    for name in ("compile", "without_each", "tile"):
        if getattr(args, name, None):
            raise InputError(f"--{name} is for a checkpoint that PyTorch runs, and an exported network was asked for; "
                             f"leave it out, or give the checkpoint and no --engine")
    if args.type != "float32":
        raise InputError(f"--type is {args.type}, but an exported network computes in the type that it was exported "
                         f"with; leave it out, or export another file")
    return checkpoint if isinstance(checkpoint, ExportedFile) else exported_beside(checkpoint)


def exported_beside(checkpoint: Checkpoint) -> ExportedFile:
    """The ONNX file of a checkpoint, beside it: exported now, unless it is there and of the same checkpoint."""
    source = Path(checkpoint.path)
    path = source.with_name(f"{source.name.removesuffix('.tar').removesuffix('.pth')}.onnx")
    stamp = f"{source.name}, {source.stat().st_size} bytes, {source.stat().st_mtime_ns}"
    if path.exists():
        try:
            file = ExportedFile(str(path))
            if file.network.notes["checkpoint"] == stamp:
                return file
        except InputError:  # another program's, or damaged
            file = None
        if file is None or not file.network.notes["checkpoint"]:
            raise InputError(f"{path} stands where the exported network would be, and this program did not put it "
                             f"there; move it")
    module = Deployed(checkpoint.build().float(), "logits").eval()
    names = class_names_of(None, checkpoint.num_classes, checkpoint.class_names)
    notes = metadata(module, names, {name: checkpoint.settings.get(name) for name in STORED})
    try:
        export_onnx(module, path, {**notes, "checkpoint": stamp})
    except InputError as error:  # no package for it, or an encoder that cannot be exported for any size
        raise InputError(f"--engine onnx exports the network first, and {error}; or leave --engine out") from None
    return ExportedFile(str(path))
