"""Segment images: for each a palette PNG of its classes, and an overlay with a legend."""
import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from models.inference import for_inference
from models.losses import resize_logits
from utils.checkpoint import read_checkpoint
from utils.cli import run_command
from utils.errors import InputError
from utils.options import (
    HelpFormatter,
    add_augmentation_options,
    add_device_options,
    add_model_options,
    augmentation_of,
    class_names_of,
    padding_of,
    require_options,
)
from utils.parallel import count_cores
from utils.pictures import overlay, palette
from utils.runtime import Precision, explain_out_of_memory, select_device
from VOC12.image_files import OVERLAY, ImageFiles, find_images
from VOC12.image_io import write_png
from VOC12.index_png import write_label_png
from VOC12.loading import LoadError, batches_and_errors, explain_loader_death, make_loader
from VOC12.transforms import EvalTransform, Sample

LONGEST_NAME = 255  # bytes, on the usual file systems


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="predict.py", description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders (with all below them) or patterns")
    parser.add_argument("--out", default="predictions", help="folder for NAME.png, whose pixel values are the classes, "
                                                             f"and NAME{OVERLAY}.png")
    group = parser.add_argument_group("model")
    group.add_argument("--checkpoint", required=True, help="a checkpoint of a training")
    group.add_argument("--class_names", metavar="FILE", help="names of the classes, one a line")
    add_model_options(group, from_checkpoint=True)
    group = parser.add_argument_group("data")
    group.add_argument("--crop_size", type=int, help="pad smaller images to this many pixels a side, as eval does "
                                                     "(default: as in training, 513 for a released checkpoint)")
    group.add_argument("--n_worker", type=int, default=min(2, count_cores()), help="loader processes")
    add_augmentation_options(parser.add_argument_group("test-time augmentation"))
    group = parser.add_argument_group("run")
    group.add_argument("--compile", action="store_true",
                       help="torch.compile the network first: tens of seconds for each new image size")
    add_device_options(group)
    return parser


def check_targets(pairs: Sequence[tuple[Path, str]], out: Path) -> None:
    """Raises InputError if a result would take the place of an image that was given, or cannot be named."""
    given = {file.resolve() for file, _ in pairs}
    for _, name in pairs:
        for target in (out / f"{name}.png", out / f"{name}{OVERLAY}.png"):
            if len(os.fsencode(target.name)) > LONGEST_NAME:
                raise InputError(f"the result {target} would have a name of {len(os.fsencode(target.name))} bytes, and "
                                 f"{LONGEST_NAME} are possible; give the image a shorter one")
            if target.resolve() in given:
                raise InputError(f"the result {target} would take the place of an image that was given; "
                                 f"give another --out")


def main(args: argparse.Namespace) -> int:
    """Segments the images, and writes two pictures for each. Returns the exit code."""
    augmentation = augmentation_of(args.scales, args.flip)
    checkpoint = require_options(read_checkpoint(args.checkpoint).require("train"), args)
    names = class_names_of(args.class_names, checkpoint.num_classes, checkpoint.class_names)
    size = padding_of(args.crop_size, checkpoint)
    out = Path(args.out)
    pairs = find_images(args.images)
    check_targets(pairs, out)
    device = select_device(args.gpu)
    precision = Precision(args.type, device)
    forward = for_inference(precision.place(checkpoint.build()), args.compile, precision.low)
    dataset = ImageFiles([file for file, _ in pairs], EvalTransform(size))
    loader = make_loader(dataset, min(args.n_worker, len(pairs)), pin_memory=device.type == "cuda")
    failed = 0
    with (explain_loader_death(),
          explain_out_of_memory("give smaller images, --type bfloat16, or --gpu -1 for the CPU"),
          tqdm(total=len(pairs), unit="image", desc="predict", dynamic_ncols=True) as bar):
        for (_, name), sample in zip(pairs, batches_and_errors(loader), strict=True):
            if isinstance(sample, LoadError):
                failed += 1
                tqdm.write(str(sample.error), file=sys.stderr)
            else:
                label = predict(augmentation.wrap(forward), sample, precision)
                top, left, bottom, right = sample.inside[0].tolist()
                image = sample.image[0, top:bottom, left:right].numpy()
                write_label_png(out / f"{name}.png", label, palette(len(names)))
                write_png(out / f"{name}{OVERLAY}.png", overlay(image, label, names))
            bar.update()
            bar.set_postfix(failed=failed) if failed else None
    done = len(pairs) - failed
    print(f"written to {out}: NAME.png and NAME{OVERLAY}.png of {done} image{'s' if done != 1 else ''}"
          f"{augmentation.description}" + (f"; {failed} of {len(pairs)} could not be read" if failed else ""))
    return 1 if failed else 0


@torch.no_grad()
def predict(forward: Callable, sample: Sample, precision: Precision) -> np.ndarray:
    """Classes of a Sample without its padding: uint8 (H, W)."""
    image, label = precision.batch(sample)
    with precision.autocast():
        classes = resize_logits(forward(image), label).argmax(1)
    top, left, bottom, right = sample.inside[0].tolist()
    return np.ascontiguousarray(classes[0, top:bottom, left:right].to(torch.uint8).cpu().numpy())


if __name__ == "__main__":
    run_command(main, build_parser())
