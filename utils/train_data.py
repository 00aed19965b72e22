"""What a run reads: the loaders of its images, and what its labels mean. `args` stops here."""
import argparse
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from utils.checkpoint import Checkpoint
from utils.data_options import class_weights_of, label_map_of, naming_of, warn_of_labels, warn_of_repeats
from utils.distributed import ProcessGroup
from utils.options import NO_LIST, class_names_of, option_if_given
from VOC12.dataset import EpochBatches, SegmentationDataset
from VOC12.label_map import LabelMap
from VOC12.loading import make_eval_loader, make_loader
from VOC12.transforms import EvalTransform, TrainTransform


class Data(NamedTuple):
    """The loaders of this process's shares of the training list and the eval list, and what the labels mean."""
    train_loader: DataLoader
    eval_loader: DataLoader | None
    class_names: list
    label_map: LabelMap | None
    class_weights: list | None
    all_labels_seen: bool


def load_data(args: argparse.Namespace, source: Checkpoint | None, device: torch.device, group: ProcessGroup) -> Data:
    """Finds the files of both lists, and checks the labels: a run on labels that mean something else is lost."""
    stored = source.class_names if source and source.num_classes == args.n_class else None
    file = option_if_given(args, "class_names")  # that of a resumed run may be gone
    names = class_names_of(file, args.n_class, stored)
    transform = TrainTransform(args.crop_size)
    label_map = label_map_of(args.label_map, args.n_class)
    reading = {"naming": naming_of(args.im_suffix, args.gt_suffix), "label_map": label_map}
    train_set = SegmentationDataset(args.im_path, args.gt_path, args.training_list, args.n_class, transform, args.seed,
                                    **reading)
    eval_set = None
    if args.eval_list != NO_LIST:
        eval_set = SegmentationDataset(args.im_path, args.gt_path, args.eval_list, args.n_class,
                                       EvalTransform(args.crop_size), repeats=False, **reading)
    all_labels_seen = True
    if group.is_main:
        warn_of_repeats(args.training_list, train_set, "each counts as often as it is listed")
        found = train_set.survey()
        warn_of_labels(found, names, label_map is not None)
        all_labels_seen = found.is_complete
        if eval_set:
            warn_of_repeats(args.eval_list, eval_set, "each counts once")
            eval_set.survey()  # a label of another range, found now and not after an epoch
    group.synchronize()  # before the others read all labels for their weights
    class_weights = class_weights_of(args.class_weights, names, lambda: train_set.survey(limit=None))
    sampler = EpochBatches(len(train_set), args.batch_size, args.seed, group.share)
    pin_memory = device.type == "cuda"
    eval_loader = eval_set and make_eval_loader(eval_set, args.n_worker, pin_memory, group.share)
    return Data(make_loader(train_set, args.n_worker, sampler, pin_memory, transform.empty()), eval_loader, names,
                label_map, class_weights, all_labels_seen)
