"""Options that several commands share, and what follows from them."""
import argparse
import shlex
from typing import NamedTuple

from torch.utils.data import Subset

from models.inference import Averaged
from utils.errors import InputError
from VOC12.dataset import SegmentationDataset
from VOC12.labels import default_class_names, load_class_names
from VOC12.loading import make_loader
from utils.parallel import count_cores
from VOC12.transforms import EvalTransform

RELEASED_WORKERS = 4
RELEASED_SIZE = 513  # pixels that the released code pads validation images to
MAX_CROP = 8192  # pixels
MIN_SCALE, MAX_SCALE = 0.1, 4.0


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds "(default: ...)" to an option's help, unless there is no default or the help says it itself."""

    def _get_help_string(self, action):
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


def add_model_options(parser, from_checkpoint=False):
    """--n_class, --depth, --backbone_name. from_checkpoint: by default they are the checkpoint's, and None here."""
    def default(value):
        return None if from_checkpoint else value

    note = " (default: the checkpoint's)" if from_checkpoint else ""
    parser.add_argument("--n_class", type=int, default=default(21), help="number of classes" + note)
    parser.add_argument("--depth", type=int, default=default(64), help="channels of a decoder stage" + note)
    parser.add_argument("--backbone_name", default=default("mobilenet_v2"),
                        help="the encoder: a known name, or your own as package.module:factory" + note)


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


def check_crop_size(size):
    """Returns the size in pixels. Raises InputError if the encoder or the memory cannot take it."""
    if not 32 <= size <= MAX_CROP:
        raise InputError(f"--crop_size is {size}; give 32 (what the encoder needs) to {MAX_CROP} pixels")
    return size


def padding_of(args, checkpoint):
    """The size that smaller images are padded to: the option, else the training's, else the released one."""
    if args.crop_size is not None:
        return check_crop_size(args.crop_size)
    size = checkpoint.settings.get("crop_size", RELEASED_SIZE)
    return check_crop_size(size) if isinstance(size, int) else RELEASED_SIZE


def add_averaging_options(parser):
    """--scales and --flip, the averaging of the paper's test protocol."""
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], metavar="S",
                        help="average the probabilities over these image sizes (paper: 0.5 0.75 1 1.25 1.5 1.75)")
    parser.add_argument("--flip", action="store_true", help="average over the mirrored image too")


class Averaging(NamedTuple):
    """What --scales and --flip ask for; `description` is empty for a plain single pass."""
    scales: tuple
    flip: bool

    @property
    def description(self):
        """The averaging in words, to stand beside a result."""
        parts = [f"the scales {' '.join(f'{s:g}' for s in self.scales)}"] if self.scales != (1.0,) else []
        parts += ["the mirrored image"] if self.flip else []
        return f" (probabilities averaged over {' and '.join(parts)})" if parts else ""

    def wrap(self, forward):
        """The callable that averages, or `forward` itself where there is nothing to average."""
        return Averaged(forward, self.scales, self.flip) if self.description else forward


def averaging_of(args):
    """--scales and --flip, checked."""
    for scale in args.scales:
        if not MIN_SCALE <= scale <= MAX_SCALE:
            raise InputError(f"--scales has {scale:g}; give numbers from {MIN_SCALE} to {MAX_SCALE}")
    return Averaging(tuple(dict.fromkeys(args.scales)), args.flip)


def own_encoder(backbone):
    """What a printed command needs beside the checkpoint, when the encoder is the user's own: see Checkpoint."""
    return f" --backbone_name {shlex.quote(backbone)}" if ":" in backbone else ""


def make_eval_loader(args, num_classes, min_size, device, team):
    """The loader of this process's share of the eval list: one image at a time, padded to at least min_size pixels."""
    dataset = SegmentationDataset(args.im_path, args.gt_path, args.eval_list, num_classes, EvalTransform(min_size))
    if team.size > 1:
        dataset = Subset(dataset, team.share(range(len(dataset))))
    return make_loader(dataset, args.n_worker, pin_memory=device.type == "cuda")
