"""Lists of names -> (image, label) pairs, for PASCAL VOC or anyone's own folders."""
import atexit
import contextlib
import functools
import multiprocessing
import os
import re
import signal
import warnings

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.errors import InputError, StepInterrupted
from utils.files import require_folder
from VOC12.index_png import BROKEN_IMAGE, IMAGE_FORMATS, unstretched
from VOC12.labels import VOID
from VOC12.lists import read_list
from utils.parallel import count_cores
from VOC12.transforms import Sample

WORKER_DEATH = re.compile("^DataLoader worker")
WORKER_TROUBLE = re.compile("^DataLoader worker|shared memory|/dev/shm|No space left on device|Too many open files")
WORKER_GONE = EOFError, ConnectionError, FileNotFoundError  # of the socket over which a worker hands its batch on
MANY_WORKERS = 16  # loader processes that any machine may start; more only if it has many cores
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


class LoadError:
    """An InputError on its way from a loader process: raised there, it would arrive wrapped in a traceback."""

    def __init__(self, message):
        self.message = message


class Guarded(Dataset):
    """A dataset whose InputErrors come back as items; `collate` and `batches` hand them on and raise them."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        try:
            return self.dataset[key]
        except InputError as error:
            return LoadError(str(error))


def collate(samples, empty=None):
    """List of Samples -> one Sample with a first axis N, or the first LoadError among them; of no Samples, `empty`."""
    if not samples:
        return empty
    for sample in samples:
        if isinstance(sample, LoadError):
            return sample
    return Sample(*map(torch.stack, zip(*samples)))


@functools.lru_cache(maxsize=1)
def closing_flag():
    """Shared with the loader processes: whether the main process is exiting."""
    flag = multiprocessing.Value("b", False, lock=False)
    atexit.register(setattr, flag, "value", True)  # runs before multiprocessing ends its processes with SIGTERM
    return flag


def leave_signals(closing, _):
    """In loader processes: a signal to the whole group reaches them too, but the main process decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if closing.value else None)


def make_loader(dataset, num_workers, batches=None, pin_memory=False, empty=None):
    """A DataLoader over `batches` (an EpochBatches), or over the dataset in order, one image at a time, if None.

    empty: what a batch without samples becomes.

    It has a generator of its own: loading must not consume the random numbers of training. Raises InputError for a
    number of loader processes that would only exhaust the machine.
    """
    most = max(MANY_WORKERS, 2 * count_cores())
    if not 0 <= num_workers <= most:
        raise InputError(f"--n_worker is {num_workers}; give 0 to {most} loader processes")
    order = {"batch_size": 1} if batches is None else {"batch_sampler": batches}
    return DataLoader(Guarded(dataset), **order, num_workers=num_workers, pin_memory=pin_memory,
                      collate_fn=functools.partial(collate, empty=empty),
                      worker_init_fn=functools.partial(leave_signals, closing_flag()),
                      persistent_workers=num_workers > 0, generator=torch.Generator().manual_seed(0))


@contextlib.contextmanager
def said_if_loader_dies(kind=StepInterrupted, fetching=False):
    """Turns the death of a loader process into an InputError (`kind` of it) that says what to do.

    PyTorch raises it where the main process happens to be, so a loop over batches wants this around all of it.
    fetching: the block only fetches a batch from loader processes, where more errors have that cause.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        within = lines[0].startswith("Caught")  # raised in a worker; the traceback follows
        reason = lines[-1 if within else 0]
        gone = fetching and not within and isinstance(error, WORKER_GONE)
        if not (gone or (WORKER_TROUBLE if fetching else WORKER_DEATH).search(reason)):
            raise
        with contextlib.suppress(ValueError):  # of another thread than the main one, where no handler runs
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's would raise the same again, in the midst of this
        raise kind(f"a loader process ended before its time, as happens when memory or shared memory (/dev/shm) runs "
                   f"out ({reason}); free some, or give a smaller --n_worker (0 loads in the main process)") from None


def items(loader):
    """Iterates over a loader's batches: Samples and LoadErrors. Raises InputError if a loader process dies."""
    workers, iterator = getattr(loader, "num_workers", 0), iter(loader)
    while True:
        with said_if_loader_dies(InputError, fetching=True) if workers else contextlib.nullcontext():
            item = next(iterator, None)
        if item is None:
            return
        yield item


def batches(loader):
    """Iterates over a loader's batches (Samples); an InputError of a loader process is raised here."""
    for batch in items(loader):
        if isinstance(batch, LoadError):
            raise InputError(batch.message)
        yield batch


def join_equal(samples, batch_size):
    """Batches (Samples) -> larger ones, of images of equal size: batch_size of them or more, then the rest."""
    waiting = {}
    for sample in samples:
        same = waiting.setdefault(sample.label.shape[1:], [])
        same.append(sample)
        if sum(len(part.label) for part in same) >= batch_size:
            yield Sample(*map(torch.cat, zip(*waiting.pop(sample.label.shape[1:]))))
    for same in waiting.values():
        yield Sample(*map(torch.cat, zip(*same)))
