"""Options that several commands share, and what follows from them."""
import argparse

from utils.errors import InputError
from VOC12.dataset import SegmentationDataset, make_loader
from VOC12.labels import default_class_names, load_class_names
from VOC12.parallel import count_cores
from VOC12.transforms import EvalTransform

RELEASED_WORKERS = 4


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds "(default: ...)" to an option's help, unless there is no default or the help says it itself."""

    def _get_help_string(self, action):
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


def add_model_options(parser):
    """--n_class, --depth, --backbone_name."""
    parser.add_argument("--n_class", type=int, default=21, help="number of classes")
    parser.add_argument("--depth", type=int, default=64, help="channels of a decoder stage")
    parser.add_argument("--backbone_name", default="mobilenet_v2",
                        help="the encoder: a known name, or your own as package.module:factory")


def add_data_options(parser):
    """Where the images, labels and lists are."""
    parser.add_argument("--im_path", default="VOC12/data/img", help="folder of the images")
    parser.add_argument("--gt_path", default="VOC12/data/gt", help="folder of the labels (class indices, PNG)")
    parser.add_argument("--eval_list", default="VOC12/data/val.txt", help="names of the images to evaluate, one a line")
    parser.add_argument("--class_names", metavar="FILE", help="names of the classes, one a line")
    parser.add_argument("--n_worker", type=int, default=min(RELEASED_WORKERS, count_cores()), help="loader processes")


def option_if_given(args, name):
    """The option's value if it stood on the command line, else None: a default contradicts nothing."""
    return getattr(args, name) if name in args.given else None


def class_names_for(args, stored=None):
    """The names of the classes: --class_names, else those stored in a checkpoint, else VOC's or numbers."""
    if args.class_names:
        return load_class_names(args.class_names, args.n_class)
    return stored or default_class_names(args.n_class)


def make_eval_loader(args, num_classes, min_size, device):
    """The loader of the eval list: one image at a time, padded to at least min_size pixels a side."""
    if args.n_worker < 0:
        raise InputError(f"--n_worker is {args.n_worker}; give a number from 0 up")
    dataset = SegmentationDataset(args.im_path, args.gt_path, args.eval_list, num_classes, EvalTransform(min_size))
    return make_loader(dataset, args.n_worker, pin_memory=device.type == "cuda")
