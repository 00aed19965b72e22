"""Lists of names -> (image, label) pairs, for PASCAL VOC or anyone's own folders."""
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset, Sampler

from utils.errors import InputError
from utils.files import require_folder
from VOC12.image_io import IMAGE_SUFFIXES, read_image
from VOC12.index_png import read_label
from VOC12.labels import VOID
from VOC12.lists import read_list
from VOC12.transforms import Sample

Key = tuple[int, int]  # epoch, index


class SegmentationDataset(Dataset):
    """The images `im_path/NAME.jpg` (or another suffix) and labels `gt_path/NAME.png` of the names in a list.

    Item (epoch, index), or index alone for epoch 0: a Sample, see VOC12/transforms.py. The augmentation is drawn from a
    generator seeded by (seed, epoch, index), so it does not depend on which worker loads the item. Raises InputError:
    when built, for a name without its files; on loading, for a broken file or a label that does not fit.

    transform: (image uint8 (H, W, 3), label uint8 (H, W), numpy's Generator) -> Sample.
    """

    def __init__(self, im_path: str | Path, gt_path: str | Path, list_path: str | Path, num_classes: int,
                 transform: Callable[[np.ndarray, np.ndarray, np.random.Generator], Sample], seed: int = 0):
        images, labels = require_folder(im_path, "images"), require_folder(gt_path, "labels")
        self.names = read_list(list_path)
        self.files = [(find_image(images, name, list_path), find_label(labels, name, list_path))
                      for name in self.names]
        if not 1 <= num_classes <= VOID:
            raise InputError(f"the number of classes is {num_classes}; give 1 to {VOID}", about="num_classes")
        self.num_classes, self.transform, self.seed = num_classes, transform, seed

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: int | Key) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image_file, label_file = self.files[index]
        image, label = read_image(image_file), read_label(label_file, self.num_classes)
        if image.shape[:2] != label.shape:
            raise InputError(f"the image {image_file} has {image.shape[1]}x{image.shape[0]} pixels but its label "
                             f"{label_file} {label.shape[1]}x{label.shape[0]}; they must be of the same size")
        return self.transform(image, label, np.random.default_rng((self.seed, epoch, index)))


def find_image(folder: Path, name: str, list_path: str | Path) -> Path:
    """The image file of a listed name, whatever its suffix. Raises InputError if there is none."""
    for suffix in (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES)):
        if os.path.isfile(folder / (name + suffix)):  # pathlib raises for a name that is too long
            return folder / (name + suffix)
    raise InputError(f"{list_path} lists {name[:100]!r}, but {folder} has no image of that name (.jpg, .png, ...); "
                     f"list one name without suffix a line, and check that the folder is the right one")


def find_label(folder: Path, name: str, list_path: str | Path) -> Path:
    """The label file of a listed name. Raises InputError if there is none."""
    path = folder / (name + ".png")
    if not os.path.isfile(path):
        raise InputError(f"{list_path} lists {name!r}, but {path} does not exist; add the label, remove the name from "
                         f"the list, or give another folder of labels")
    return path


class EpochBatches(Sampler):
    """Batches of keys (epoch, index): shuffled by (seed, epoch) alone, so that any epoch can begin at any batch.

    Set `epoch` and `start` (first batch) before iterating. The last batch may be smaller. share: list of keys -> the
    part of a batch that this process takes, where several share it; of the last one it may be empty.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int,
                 share: Callable[[list[Key]], list[Key]] = lambda keys: keys):
        self.num_samples, self.batch_size, self.seed, self.share = num_samples, batch_size, seed, share
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_samples).tolist()
        for batch in range(self.start, len(self)):
            chosen = order[batch * self.batch_size:(batch + 1) * self.batch_size]
            yield self.share([(self.epoch, index) for index in chosen])
