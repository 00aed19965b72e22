"""Segment images: for each a palette PNG of its classes, and an overlay with a legend."""
import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from utils.augmentation import add_augmentation_options, augmentation_of
from utils.checkpoint import Checkpoint
from utils.cli import run_command
from utils.data_options import naming_of
from utils.engine_options import add_engine_option, read_trained
from utils.errors import InputError
from utils.exported import ExportedFile
from utils.fonts import warn_of_illegible
from utils.hardware import warn_of_slow_type
from utils.options import (
    HelpFormatter,
    add_crop_option,
    add_device_options,
    add_model_options,
    class_names_of,
    padding_of,
)
from utils.parallel import count_cores
from utils.pictures import LEGEND_SIZE, overlay, palette_image
from utils.prediction import TILES, Predictor
from utils.progress import progress_bar
from utils.runtime import Precision, explain_out_of_memory, select_device
from VOC12.image_files import OVERLAY, SOFTWARE, ImageFiles, find_images, is_result, listed_images
from VOC12.image_io import write_png
from VOC12.loading import LoadError, batches_and_errors, explain_loader_death, make_loader
from VOC12.transforms import EvalTransform

RESULT = {"Software": SOFTWARE}  # text in a result, by which it is recognized
LONGEST_NAME = 255  # bytes, on the usual file systems


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="predict.py", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files, folders (with all below them) or patterns")
    parser.add_argument("--list", metavar="FILE", help="instead of IMAGE: names of images, one a line")
    parser.add_argument("--im_path", default="VOC12/data/img", help="folder of the images in --list")
    parser.add_argument("--im_suffix", metavar="S", help="what the names of the images in --list end with "
                                                         "(default: the training's)")
    parser.add_argument("--out", default="predictions", help="folder for NAME.png, whose pixel values are the classes, "
                                                             f"and NAME{OVERLAY}.png")
    parser.add_argument("--no_overlay", action="store_true", help="write NAME.png alone")
    group = parser.add_argument_group("model")
    group.add_argument("--checkpoint", required=True,
                       help="a checkpoint of a training, the folder of its run, or a file of export.py")
    group.add_argument("--class_names", metavar="FILE", help="names of the classes, one a line")
    add_model_options(group, from_checkpoint=True)
    group = parser.add_argument_group("data")
    add_crop_option(group, None, "pad smaller images to this many pixels, as eval does (default: as in training, 513 "
                                 "for a released checkpoint)")
    group.add_argument("--n_worker", type=int, default=min(2, count_cores()), help="loader processes")
    add_augmentation_options(parser.add_argument_group("test-time augmentation"))
    group = parser.add_argument_group("run")
    group.add_argument("--tile", type=int, metavar="N",
                       help="larger images go in overlapping tiles of N pixels a side; 0 for none (default: images "
                            "that may not fit into memory)")
    group.add_argument("--compile", action="store_true",
                       help="torch.compile the network first: tens of seconds for the first image size, and again "
                            "for all others")
    add_engine_option(group)
    add_device_options(group)
    return parser


def given_images(args: argparse.Namespace, checkpoint: Checkpoint, endings: Sequence[str]) -> list[tuple[Path, str]]:
    """(file, name of its results) of the images on the command line, or of the list."""
    if bool(args.images) == bool(args.list):
        raise InputError("give images, or a --list of names, and not both" if args.list else
                         "no image is given; name files, folders or patterns, or give a --list and its --im_path")
    if args.list:
        return listed_images(args.list, args.im_path, naming_of(args.im_suffix, None, checkpoint.settings).image)
    if args.given & {"im_path", "im_suffix"}:
        raise InputError("--im_path and --im_suffix are for a --list; give a list, or the folder as IMAGE")
    return find_images(args.images, args.out, endings)


def check_targets(pairs: Sequence[tuple[Path, str]], out: Path, endings: Sequence[str]) -> None:
    """Raises InputError if a result would take the place of another, or of a foreign file, or cannot be named."""
    given, owners = {file.resolve() for file, _ in pairs}, {}
    for _, name in pairs:
        for ending in endings:
            target = out / f"{name}{ending}.png"
            if len(os.fsencode(target.name)) > LONGEST_NAME:
                raise InputError(f"the result {target} would have a name of {len(os.fsencode(target.name))} bytes, and "
                                 f"{LONGEST_NAME} are possible; give the image a shorter one")
            if target.resolve() in given:
                raise InputError(f"the result {target} would take the place of an image that was given; "
                                 f"give another --out")
            if os.path.isfile(target) and not is_result(target):
                raise InputError(f"the result {target} would take the place of a file that predict.py did not write; "
                                 f"move it or give another --out")
            if owners.setdefault(target, name) != name:
                raise InputError(f"the images {owners[target]} and {name} would both have the result {target}; rename "
                                 f"one, or leave the overlays out with --no_overlay")


def main(args: argparse.Namespace) -> int:
    """Segments the images, and writes one or two pictures for each. Returns the exit code."""
    augmentation = augmentation_of(args.scales, args.flip)
    if args.compile and args.tile:
        raise InputError("--compile is for single passes, and --tile N for images in tiles; give one of them")
    endings = ("",) if args.no_overlay else ("", OVERLAY)
    out = Path(args.out)
    checkpoint = read_trained(args.checkpoint, args)
    exported = isinstance(checkpoint, ExportedFile)
    pairs = given_images(args, checkpoint, endings)
    check_targets(pairs, out, endings)
    names = class_names_of(args.class_names, checkpoint.num_classes, checkpoint.class_names)
    if not args.no_overlay:
        warn_of_illegible(names, LEGEND_SIZE)
    size = padding_of(args.crop_size, checkpoint)
    device = select_device(-1 if exported else args.gpu)
    warn_of_slow_type(args.type, device)
    precision = Precision(args.type, device)
    with explain_out_of_memory("give another --gpu, or -1 for the CPU", InputError):
        network = precision.place(checkpoint.build())
    predict = Predictor(network, precision, augmentation, 0 if exported else args.tile, args.compile)
    dataset = ImageFiles([file for file, _ in pairs], EvalTransform(size))
    loader = make_loader(dataset, min(args.n_worker, len(pairs)), pin_memory=device.type == "cuda")
    failed = 0
    with (explain_loader_death(),
          explain_out_of_memory(f"give smaller tiles (--tile {TILES[-1]}), or --gpu -1 for the CPU"),
          progress_bar(total=len(pairs), unit="image", desc="predict") as bar):
        for (file, name), sample in zip(pairs, batches_and_errors(loader), strict=True):
            if isinstance(sample, LoadError):
                failed += 1
                tqdm.write(str(sample.error), file=sys.stderr)
            else:
                label = predict(sample, str(file))
                write_png(out / f"{name}.png", palette_image(label, len(names)), RESULT)
                if not args.no_overlay:
                    top, left, bottom, right = sample.inside[0].tolist()
                    image = sample.image[0, top:bottom, left:right].numpy()
                    write_png(out / f"{name}{OVERLAY}.png", overlay(image, label, names), RESULT)
            if failed:
                bar.set_postfix(failed=failed)
            bar.update()
    done = len(pairs) - failed
    files = " and ".join(f"NAME{ending}.png" for ending in endings)
    print(f"written to {out}: {files} of {done} image{'s' if done != 1 else ''}"
          f"{augmentation.description}" + (f"; {failed} of {len(pairs)} could not be read" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main, build_parser())
