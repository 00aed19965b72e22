"""Lists of names -> (image, label) pairs, for PASCAL VOC or anyone's own folders."""
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset, Sampler

from utils.errors import InputError
from VOC12.image_io import read_picture
from VOC12.index_png import read_label
from VOC12.label_map import LabelMap
from VOC12.labels import VOID
from VOC12.naming import USUAL, Naming, find_pairs
from VOC12.survey import SAMPLE, Survey, survey
from VOC12.transforms import Sample

Key = tuple[int, int]  # epoch, index


class SegmentationDataset(Dataset):
    """The images and labels of the entries of a list, see VOC12/naming.py.

    Item (epoch, index), or index alone for epoch 0: a Sample, see VOC12/transforms.py. The augmentation is drawn from a
    generator seeded by (seed, epoch, index), so it does not depend on which worker loads the item. Raises InputError:
    when built, for an entry without its files; on loading, for a broken file or a label that does not fit.

    transform: (image uint8 (H, W, 3), label uint8 (H, W), numpy's Generator) -> Sample. label_map: what the values in
    the label files mean. repeats: whether an image that is listed twice counts twice.
    """

    def __init__(self, im_path: str | Path, gt_path: str | Path, list_path: str | Path, num_classes: int,
                 transform: Callable[[np.ndarray, np.ndarray, np.random.Generator], Sample], seed: int = 0,
                 naming: Naming = USUAL, label_map: LabelMap | None = None, repeats: bool = True):
        if not 1 <= num_classes <= VOID:
            raise InputError(f"the number of classes is {num_classes}; give 1 to {VOID}", about="num_classes")
        pairs = find_pairs(im_path, gt_path, list_path, naming)
        self.pairs = list(dict.fromkeys(pairs))
        self.num_repeated = len(pairs) - len(self.pairs)
        if repeats:
            self.pairs = pairs
        self.num_classes, self.transform, self.seed, self.label_map = num_classes, transform, seed, label_map

    def __len__(self) -> int:
        return len(self.pairs)

    def survey(self, limit: int | None = SAMPLE) -> Survey:
        """What the labels contain, see VOC12/survey.py."""
        return survey([pair.label for pair in self.pairs], self.num_classes, self.label_map, limit)

    def __getitem__(self, key: int | Key) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        pair = self.pairs[index]
        label = read_label(pair.label, self.num_classes, self.label_map)
        image, missing = read_picture(pair.image, label.shape)
        if image.shape[:2] != label.shape:
            raise InputError(f"the image {pair.image} has {image.shape[1]}x{image.shape[0]} pixels but its label "
                             f"{pair.label} {label.shape[1]}x{label.shape[0]}; they must be of the same size")
        if missing is not None:
            label[missing] = VOID
        return self.transform(image, label, np.random.default_rng((self.seed, epoch, index)))


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
