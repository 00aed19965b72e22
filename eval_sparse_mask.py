"""Evaluate a trained network: IoU of each class, mIoU and pixel accuracy on a list of images."""
import argparse
import shlex

from utils.augmentation import add_augmentation_options, augmentation_of
from utils.checkpoint import read_checkpoint
from utils.cli import run_command
from utils.data_options import label_map_of, naming_of, warn_of_repeats
from utils.distributed import ProcessGroup, process_group
from utils.engine import evaluate
from utils.errors import InputError
from utils.hardware import warn_of_slow_type
from utils.metrics import scores, table
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
    require_options,
)
from utils.progress import progress_bar
from utils.runtime import Precision, explain_out_of_memory, select_device
from VOC12.dataset import SegmentationDataset
from VOC12.loading import explain_loader_death, make_eval_loader
from VOC12.transforms import EvalTransform

GPU_BATCH = 16  # images; a CPU gains nothing from more than one


def build_parser() -> argparse.ArgumentParser:
    """The released command line, and what is new."""
    parser = argparse.ArgumentParser(prog="eval_sparse_mask.py", description=__doc__, formatter_class=HelpFormatter)
    group = parser.add_argument_group("model")
    group.add_argument("--pretrained_model", required=True, help="a checkpoint of a training")
    group.add_argument("--mask_path", help="the connectivity; the checkpoint contains it, so this only checks it")
    add_mask_encoder_option(group)
    add_model_options(group, from_checkpoint=True)
    group = parser.add_argument_group("data")
    add_data_options(group)
    add_crop_option(group, None, "pad smaller images to this many pixels (default: as in training, "
                                 f"{RELEASED_SIZE} for a released checkpoint)")
    add_augmentation_options(parser.add_argument_group("test-time augmentation"))
    group = parser.add_argument_group("run")
    group.add_argument("--batch_size", type=int, help="images of equal size that go through the network together "
                                                      f"(default: {GPU_BATCH} on a GPU, 1 on a CPU)")
    group.add_argument("--compile", action="store_true",
                       help="torch.compile the network first: tens of seconds, up to three times, that pay on long "
                            "lists")
    add_device_options(group)
    add_timeout_option(group)
    return parser


def main(args: argparse.Namespace) -> None:
    """Evaluates, as one of the processes that torchrun started or alone."""
    with process_group(args.gpu == -1, args.timeout) as group:
        evaluate_checkpoint(args, group)


def evaluate_checkpoint(args: argparse.Namespace, group: ProcessGroup) -> None:
    """The evaluation, shared among the processes of the group; the main one prints."""
    check_numbers(args, ("batch_size",), at_least=1)
    if args.eval_list == NO_LIST:
        raise InputError("an evaluation needs images; give a file with their names, one a line", about="eval_list")
    augmentation = augmentation_of(args.scales, args.flip)
    checkpoint = require_options(read_checkpoint(args.pretrained_model).require("train"), args)
    checkpoint.require_mask(args.mask_path, args.mask_encoder)
    names = class_names_of(args.class_names, checkpoint.num_classes, checkpoint.class_names)
    device = select_device(args.gpu, print if group.is_main else lambda _: None, group.local_rank)
    if group.is_main:
        warn_of_slow_type(args.type, device)
    precision = Precision(args.type, device)
    with explain_out_of_memory("give another --gpu, or -1 for the CPU", InputError):
        network = precision.place(checkpoint.build())
    dataset = SegmentationDataset(args.im_path, args.gt_path, args.eval_list, network.num_classes,
                                  EvalTransform(padding_of(args.crop_size, checkpoint)),
                                  naming=naming_of(args.im_suffix, args.gt_suffix, checkpoint.settings),
                                  label_map=label_map_of(args.label_map, network.num_classes, checkpoint.settings),
                                  repeats=False)
    if group.is_main:
        warn_of_repeats(args.eval_list, dataset, "each counts once")
    loader = make_eval_loader(dataset, args.n_worker, device.type == "cuda", group.share)
    batch_size = args.batch_size or (GPU_BATCH if device.type == "cuda" else 1)
    with (explain_loader_death(),
          explain_out_of_memory("give a smaller --batch_size, --type bfloat16, or --gpu -1 for the CPU"),
          progress_bar(total=len(loader), unit="image", disable=not group.is_main,
                       desc="evaluate" if group.size == 1 else f"evaluate, 1 of {group.size} shares") as bar):
        try:
            confusion = evaluate(network, loader, precision, lambda _, image, *__: bar.update(len(image)), batch_size,
                                 args.compile, augmentation.wrap, group)
        except InputError as error:
            if "num_classes" not in (error.about or ""):
                raise
            start = f"train_sparse_mask.py --ft_model {shlex.quote(args.pretrained_model)} --n_class N"
            raise InputError(f"{error}. The number of classes is the checkpoint's; to have another, train from it: "
                             f"{start}", "label_map") from None
    lines = table(scores(confusion).require_pixels(), names)
    if not group.is_main:
        return
    if augmentation.description:
        print(f"multi-scale test{augmentation.description}")
    print(lines)


if __name__ == "__main__":
    run_command(main, build_parser())
