"""Evaluate a trained network: IoU of each class, mIoU and pixel accuracy on a list of images."""
import argparse

from tqdm import tqdm

from utils.checkpoint import read_checkpoint
from utils.distributed import join
from utils.engine import evaluate
from utils.cli import run_command
from utils.errors import InputError
from utils.metrics import require_pixels, scores, table
from utils.options import (RELEASED_SIZE, HelpFormatter, add_data_options, add_model_options, add_averaging_options,
                           class_names_for, make_eval_loader, padding_of, averaging_of)
from utils.runtime import Precision, add_device_options, explain_out_of_memory, select_device
from VOC12.loading import explain_loader_death

GPU_BATCH = 16  # images; a CPU gains nothing from more than one


def build_parser():
    """The command line: spec section 8."""
    parser = argparse.ArgumentParser(prog="eval_sparse_mask.py", description=__doc__,
                                     formatter_class=HelpFormatter)
    parser.add_argument("--pretrained_model", required=True, help="a checkpoint of a training")
    parser.add_argument("--mask_path", help="the connectivity; the checkpoint holds it, so this only checks it")
    parser.add_argument("--crop_size", type=int, help="pad smaller images to this many pixels a side (default: as in "
                                                      f"training, {RELEASED_SIZE} for a released checkpoint)")
    parser.add_argument("--batch_size", type=int, help="images of equal size that go through the network together "
                                                       f"(default: {GPU_BATCH} on a GPU, 1 on a CPU)")
    parser.add_argument("--compile", action="store_true",
                        help="torch.compile the network first: tens of seconds that pay on long lists")
    add_averaging_options(parser)
    add_data_options(parser)
    add_model_options(parser, from_checkpoint=True)
    add_device_options(parser)
    return parser


def main(args):
    with join(args.gpu) as team:
        evaluate_checkpoint(args, team)


def evaluate_checkpoint(args, team):
    """The evaluation, shared among the processes of the team; the main one prints."""
    if args.batch_size is not None and args.batch_size < 1:
        raise InputError(f"--batch_size is {args.batch_size}; give at least 1")
    averaging = averaging_of(args)
    checkpoint = read_checkpoint(args.pretrained_model).require("train")
    checkpoint.require_backbone(args.backbone_name)
    checkpoint.require_same(num_classes=args.n_class, depth=args.depth)
    checkpoint.require_mask(args.mask_path)
    args.n_class = checkpoint.num_classes
    names = class_names_for(args, checkpoint.class_names)
    device = select_device(args.gpu, print if team.main else lambda _: None, team.local_rank)
    precision = Precision(args.type, device)
    network = precision.place(checkpoint.build())
    loader = make_eval_loader(args, network.num_classes, padding_of(args, checkpoint), device, team)
    batch_size = args.batch_size or (GPU_BATCH if device.type == "cuda" else 1)
    with (explain_loader_death(),
          explain_out_of_memory("give a smaller --batch_size, --type bfloat16, or --gpu -1 for the CPU"),
          tqdm(total=len(loader), unit="image", dynamic_ncols=True, disable=not team.main,
               desc="evaluate" if team.size == 1 else f"evaluate, 1 of {team.size} shares") as bar):
        confusion = evaluate(network, loader, precision, lambda _, image, *__: bar.update(len(image)), batch_size,
                             args.compile, averaging.wrap, team)
    lines = table(require_pixels(scores(confusion), args.eval_list), names)
    if not team.main:
        return
    if averaging.description:
        print(f"multi-scale test{averaging.description}")
    print(lines)


if __name__ == "__main__":
    run_command(main, build_parser())
