"""Lists of names -> (image, label) pairs, for PASCAL VOC or anyone's own folders."""
import os
import warnings

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, Sampler

from utils.errors import InputError
from utils.files import require_folder
from VOC12.index_png import BROKEN_IMAGE, IMAGE_FORMATS, unstretched
from VOC12.labels import VOID
from VOC12.lists import read_list

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".JPG", ".JPEG", ".PNG")


class SegmentationDataset(Dataset):
    """The images `im_path/NAME.jpg` (or another suffix) and labels `gt_path/NAME.png` of the names in a list.

    Item (epoch, index), or index alone for epoch 0: a Sample, see VOC12/transforms.py. The augmentation is drawn from a
    generator seeded by (seed, epoch, index), so it does not depend on which worker loads the item. Raises InputError,
    here for a name without its files, on loading for a file that is broken or a label that does not fit.
    """

    def __init__(self, im_path, gt_path, list_path, num_classes, transform, seed=0):
        images, labels = require_folder(im_path, "images"), require_folder(gt_path, "labels")
        self.names = read_list(list_path)
        self.files = [(find_image(images, name, list_path), find_label(labels, name, list_path))
                      for name in self.names]
        if not 1 <= num_classes <= VOID:
            raise InputError(f"the number of classes is {num_classes}; expected 1 to {VOID}")
        self.num_classes, self.transform, self.seed = num_classes, transform, seed

    def __len__(self):
        return len(self.names)

    def __getitem__(self, key):
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image_file, label_file = self.files[index]
        image, label = read_image(image_file), read_label(label_file, self.num_classes)
        if image.shape[:2] != label.shape:
            raise InputError(f"the image {image_file} has {image.shape[1]}x{image.shape[0]} pixels but its label "
                             f"{label_file} {label.shape[1]}x{label.shape[0]}; they must be of the same size")
        return self.transform(image, label, np.random.default_rng((self.seed, epoch, index)))


def find_image(folder, name, list_path):
    """The image file of a listed name, whatever its suffix."""
    for suffix in IMAGE_SUFFIXES:
        if os.path.isfile(folder / (name + suffix)):  # pathlib raises for a name that is too long
            return folder / (name + suffix)
    raise InputError(f"{list_path} lists {name[:100]!r}, but {folder} has no image of that name (.jpg, .png, ...); "
                     f"give one name without suffix a line, or mend the folder")


def find_label(folder, name, list_path):
    """The label file of a listed name."""
    path = folder / (name + ".png")
    if not os.path.isfile(path):
        raise InputError(f"{list_path} lists {name!r}, but {path} does not exist; mend the list or the folder")
    return path


def open_image(path, what, formats=IMAGE_FORMATS):
    """PIL image, its pixels decoded, if it is of one of the `formats`. Raises InputError that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=formats)
            image.load()
            return image
    except BROKEN_IMAGE as error:
        raise InputError(f"the {what} {path} cannot be read ({str(error) or type(error).__name__}); "
                         f"replace the file or take its name off the list") from None


def read_image(path):
    """RGB, uint8 (H, W, 3), as the file stores it: no rotation. Of a 16-bit grey image the high bytes."""
    return to_rgb(open_image(path, "image"), path)


def to_rgb(image, path):
    """A PIL image as RGB, uint8 (H, W, 3). Raises InputError, naming the file, for 32 bits a pixel."""
    if image.mode.startswith("I"):  # 16-bit PNGs have the mode I;16, and I in older Pillows
        values = np.array(image)
        if values.min() >= 0 and values.max() < 2 ** 16:
            image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(f"the image {path} has 32 bits a pixel (mode {image.mode}); give 8-bit or 16-bit images")
    return np.array(image.convert("RGB"))


def read_label(path, num_classes):
    """Class indices, uint8 (H, W): of a palette PNG its indices, of a grey one its values. 255 is void."""
    image = open_image(path, "label", ["PNG"])  # a JPEG changes the values
    if image.mode not in ("P", "L", "1"):
        raise InputError(f"the label {path} is a {image.mode} image; expected class indices (a palette or 8-bit grey "
                         f"PNG): VOC12/convert_labels.py converts labels in VOC's colours")
    label = unstretched(np.array(image, dtype=np.uint8), image.mode, path)
    wrong = (label >= num_classes) & (label != VOID)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(f"the label {path} has the value {label[row, column]} at row {row}, column {column}; expected "
                         f"0 to {num_classes - 1}, or 255 for void: mend the label or give the right --n_class")
    return label


class EpochBatches(Sampler):
    """Batches of keys (epoch, index): shuffled by (seed, epoch) alone, so that any epoch can begin at any batch.

    Set `epoch` and `start` (first batch) before iterating. The last batch may be smaller. share: list of keys -> the
    part of a batch that this process takes, where several share it; of the last one it may be empty.
    """

    def __init__(self, num_samples, batch_size, seed, share=lambda keys: keys):
        self.num_samples, self.batch_size, self.seed, self.share = num_samples, batch_size, seed, share
        self.epoch, self.start = 0, 0

    def __len__(self):
        """Batches in a whole epoch."""
        return -(-self.num_samples // self.batch_size)

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_samples).tolist()
        for batch in range(self.start, len(self)):
            chosen = order[batch * self.batch_size:(batch + 1) * self.batch_size]
            yield self.share([(self.epoch, index) for index in chosen])
