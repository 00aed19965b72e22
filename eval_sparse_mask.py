"""Evaluate a trained network: IoU of each class, mIoU and pixel accuracy on a list of images."""
import argparse
import functools
import json
import shlex
from pathlib import Path

from torch.utils.data import DataLoader

from models import SparseMask
from models.connectivity import describe
from utils.ablation import ablation_table, check_removable, connection_name, draw_worth, without_each
from utils.augmentation import Augmentation, add_augmentation_options, augmentation_of
from utils.cli import run_command
from utils.data_options import label_map_of, naming_of, warn_of_repeats
from utils.distributed import ProcessGroup, process_group
from utils.engine import evaluate
from utils.engine_options import add_engine_option, read_trained
from utils.errors import InputError
from utils.exported import ExportedFile
from utils.files import require_writable, write_atomically
from utils.hardware import describe_device, warn_of_slow_type
from utils.metrics import Scores, as_json, scores, table
from utils.options import (
    NO_LIST,
    RELEASED_SIZE,
    HelpFormatter,
    add_crop_option,
    add_data_options,
    add_device_options,
    add_mask_encoder_option,
    add_model_options,
    add_timeout_option,
    check_numbers,
    class_names_of,
    padding_of,
)
from utils.progress import progress_bar
from utils.runtime import Precision, explain_out_of_memory, select_device
from VOC12.dataset import SegmentationDataset
from VOC12.loading import explain_loader_death, make_eval_loader
from VOC12.transforms import EvalTransform

GPU_BATCH = 16  # images; a CPU gains nothing from more than one
MAX_BOUNDARY = 1000  # pixels


def build_parser() -> argparse.ArgumentParser:
    """The released command line, and what is new."""
    parser = argparse.ArgumentParser(prog="eval_sparse_mask.py", description=__doc__, formatter_class=HelpFormatter)
    group = parser.add_argument_group("model")
    group.add_argument("--pretrained_model", required=True,
                       help="a checkpoint of a training, the folder of its run, or a file of export.py")
    group.add_argument("--mask_path", help="the connectivity; the checkpoint contains it, so this only checks it")
    add_mask_encoder_option(group)
    add_model_options(group, from_checkpoint=True)
    group = parser.add_argument_group("data")
    add_data_options(group)
    add_crop_option(group, None, "pad smaller images to this many pixels (default: as in training, "
                                 f"{RELEASED_SIZE} for a released checkpoint)")
    add_augmentation_options(parser.add_argument_group("test-time augmentation"))
    group = parser.add_argument_group("results")
    group.add_argument("--boundary", type=int, metavar="PIXELS",
                       help="also score the pixels at most this far from a boundary of the labels")
    group.add_argument("--without_each", action="store_true",
                       help="also evaluate the network without each of its connections in turn: what each is worth")
    group.add_argument("--json", metavar="FILE", help="write the scores to this file too; with --without_each, the "
                                                      "architecture with what each connection is worth is drawn beside "
                                                      "it")
    group = parser.add_argument_group("run")
    group.add_argument("--batch_size", type=int, help="images of equal size that go through the network together "
                                                      f"(default: {GPU_BATCH} on a GPU, 1 on a CPU)")
    group.add_argument("--compile", action="store_true",
                       help="torch.compile the network first: tens of seconds, up to three times, that pay on long "
                            "lists")
    add_engine_option(group)
    add_device_options(group)
    add_timeout_option(group)
    return parser


def main(args: argparse.Namespace) -> None:
    """Evaluates, as one of the processes that torchrun started or alone."""
    with process_group(args.gpu == -1, args.timeout) as group:
        evaluate_checkpoint(args, group)


def check_args(args: argparse.Namespace) -> None:
    """Raises InputError for options that are out of range, and for a file that could not be written at the end."""
    check_numbers(args, ("batch_size", "boundary"), at_least=1)
    if args.boundary is not None and args.boundary > MAX_BOUNDARY:
        raise InputError(f"--boundary is {args.boundary}; give 1 to {MAX_BOUNDARY} pixels")
    if args.eval_list == NO_LIST:
        raise InputError("an evaluation needs images; give a file with their names, one a line", about="eval_list")
    if args.json is not None:
        require_writable(args.json)


def evaluate_checkpoint(args: argparse.Namespace, group: ProcessGroup) -> None:
    """The evaluation, shared among the processes of the group; the main one prints."""
    check_args(args)
    augmentation = augmentation_of(args.scales, args.flip)
    checkpoint = read_trained(args.pretrained_model, args)
    checkpoint.require_mask(args.mask_path, args.mask_encoder)
    names = class_names_of(args.class_names, checkpoint.num_classes, checkpoint.class_names)
    gpu = -1 if isinstance(checkpoint, ExportedFile) else args.gpu
    device = select_device(gpu, print if group.is_main else lambda _: None, group.local_rank)
    if group.is_main:
        warn_of_slow_type(args.type, device)
    precision = Precision(args.type, device)
    with explain_out_of_memory("give another --gpu, or -1 for the CPU", InputError):
        network = precision.place(checkpoint.build())
    if args.without_each:
        check_removable(network)
    dataset = SegmentationDataset(args.im_path, args.gt_path, args.eval_list, network.num_classes,
                                  EvalTransform(padding_of(args.crop_size, checkpoint)),
                                  naming=naming_of(args.im_suffix, args.gt_suffix, checkpoint.settings),
                                  label_map=label_map_of(args.label_map, network.num_classes, checkpoint.settings),
                                  repeats=False)
    if group.is_main:
        warn_of_repeats(args.eval_list, dataset, "each counts once")
    loader = make_eval_loader(dataset, args.n_worker, device.type == "cuda", group.share)
    scored = functools.partial(score, args, loader, precision, augmentation, group)

    result = scored(network, "evaluate")
    result[0].require_pixels()
    facts = {"checkpoint": checkpoint.path, "iteration": checkpoint.content.get("iter"), "images": len(dataset),
             "connectivity": describe(network.connectivity), "parts": network.parts, "type": args.type,
             "device": describe_device(device), "scales": list(augmentation.scales), "flip": augmentation.flip,
             **as_json(result, names, args.boundary)}
    if group.is_main:
        if augmentation.description:
            print(f"multi-scale test{augmentation.description}")
        print(table(result[0], names))
        if args.boundary:
            print(f"within {args.boundary} pixels of a boundary: mIoU {result[1].describe_m_iou()}, pixel accuracy "
                  f"{100 * result[1].pixel_accuracy:.2f} %")
    if args.without_each:
        facts["without_each"] = [
            {"stage": stage, "source": source, "side": side, "name": connection_name(stage, source, side),
             **as_json(scored(changed, f"without {connection_name(stage, source, side)}"), None, args.boundary)}
            for (stage, source, side), changed in without_each(network)]
        if group.is_main:
            print(ablation_table(facts["without_each"], facts))
    if group.is_main and args.json:
        with write_atomically(args.json) as temporary:
            temporary.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if args.without_each:
            draw_worth(network, facts, Path(args.json).with_suffix(""))


def score(args: argparse.Namespace, loader: DataLoader, precision: Precision, augmentation: Augmentation,
          group: ProcessGroup, network: SparseMask, what: str) -> list[Scores]:
    """The scores of all pixels, and of those near a boundary if they are asked for. what: beside the bar."""
    batch_size = args.batch_size or (GPU_BATCH if precision.device.type == "cuda" else 1)
    what += "" if group.size == 1 else f", 1 of {group.size} shares"
    with (explain_loader_death(),
          explain_out_of_memory("give a smaller --batch_size, --type bfloat16, or --gpu -1 for the CPU"),
          progress_bar(total=len(loader), unit="image", disable=not group.is_main, desc=what) as bar):
        try:
            confusion = evaluate(network, loader, precision, lambda _, image, *__: bar.update(len(image)), batch_size,
                                 args.compile, augmentation.wrap, group, args.boundary or 0)
        except InputError as error:
            if "num_classes" not in (error.about or ""):
                raise
            start = f"train_sparse_mask.py --ft_model {shlex.quote(args.pretrained_model)} --n_class N"
            raise InputError(f"{error}. The number of classes is the checkpoint's; to have another, train from it: "
                             f"{start}", "label_map") from None
    return [scores(part) for part in (confusion if args.boundary else confusion[None])]


if __name__ == "__main__":
    run_command(main, build_parser())
