"""The steps of prepare.py after the conversions: joining SBD and VOC by links, the lists, and a check of every pair."""
import os
import shutil

import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.files import write_atomically
from VOC12.index_png import BROKEN_IMAGE, IMAGE_FORMATS, check_labels
from VOC12.lists import read_list
from utils.parallel import run_parallel

# How many names the published lists hold.
PUBLISHED = {"SBD train": 8498, "SBD val": 2857, "VOC train": 1464, "VOC val": 1449}
TRAINAUG = 10582


def read_lists(sbd, voc):
    """The four lists, by the names of PUBLISHED, of SBD's folder `dataset` and VOC's folder `VOC2012`."""
    segmentation = voc / "ImageSets" / "Segmentation"
    return {"SBD train": read_list(sbd / "train.txt"), "SBD val": read_list(sbd / "val.txt"),
            "VOC train": read_list(segmentation / "train.txt"), "VOC val": read_list(segmentation / "val.txt")}


def trainaug(lists, count=TRAINAUG):
    """Sorted names: (SBD train + SBD val + VOC train) - VOC val.

    Raises InputError, saying which list falls short, unless there are `count` names; 0 takes any number.
    """
    names = sorted({*lists["SBD train"], *lists["SBD val"], *lists["VOC train"]} - set(lists["VOC val"]))
    if not names:
        raise InputError("trainaug comes to no name at all: every training image is one of VOC val; check the lists")
    if count in (0, len(names)):
        return names
    told = [f"{key} holds {len(lists[key])} names" + (f" of {number}" if count == TRAINAUG else "")
            for key, number in PUBLISHED.items() if count != TRAINAUG or len(lists[key]) != number]
    told = ", ".join(told) or "the lists have the published lengths, but other names"
    raise InputError(f"trainaug comes to {len(names)} names instead of {count}: {told}; unpack the archives again, "
                     f"or pass --trainaug_count 0 if this is meant to be another set")


def link_files(sources, folder):
    """Puts a relative link (a copy, where the file system has no links) to each of `sources` into `folder`.

    `sources` is a dict of file name -> path; those that do not exist are left out. Returns how many are new or changed.
    Raises InputError if `folder` is itself a link, for that could lead into what was downloaded, or is not writable.
    """
    if folder.parent.is_symlink() or folder.is_symlink():
        raise InputError(f"{folder} is a link or lies in one; remove that link, for this folder is filled anew")
    changed = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = folder.resolve()
        for name, source in sources.items():
            if source.is_file():
                changed += _link(source.parent.resolve() / source.name, place / name)
    except OSError as error:
        raise InputError(f"cannot link {error.filename or folder}: {error.strerror or error}; "
                         f"see to the folder's permissions and to the space on the disk") from error
    return changed


def check_data_link(link, folder):
    """Raises InputError if `link` is there and is not a link to `folder`. Changes nothing."""
    if link.is_symlink():
        if os.path.realpath(link) != os.path.realpath(folder):
            raise InputError(f"{link} is a link to {os.path.realpath(link)}, not to {folder}; "
                             f"remove the link, or give another --data folder")
    elif link.exists():
        kind = "folder" if link.is_dir() else "file"
        raise InputError(f"{link} is a {kind} of its own, not a link to {folder}; "
                         f"move it away, or give another --data folder")


def make_data_link(link, folder):
    """Makes `link` a relative link to `folder`. Returns whether it was new. Raises InputError as check_data_link."""
    check_data_link(link, folder)
    if link.is_symlink():
        return False
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(os.path.relpath(folder.resolve(), link.parent.resolve()), link, target_is_directory=True)
    except (OSError, NotImplementedError, ValueError) as error:
        raise InputError(f"cannot make the link {link}: {error}; "
                         f"give the training commands the folder {folder} itself") from error
    return True


def write_list(path, names):
    """Writes `names`, one a line. Returns whether the file was new or changed."""
    text = "".join(f"{name}\n" for name in names)
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    with write_atomically(path) as temporary:
        temporary.write_bytes(text.encode())
    return True


def verify(names, images, labels, workers=None):
    """Checks images/NAME.jpg and labels/NAME.png of all `names`. Returns a list of (name, sentence), the failures."""
    tasks = {name: (images / f"{name}.jpg", labels / f"{name}.png") for name in names}
    return run_parallel(check_pair, tasks, "verify", workers)[1]


def check_pair(image, label):
    """Raises InputError unless both files open, have one size, and the label is an index PNG with 0..20 and 255."""
    size, _, _ = _open(image, "image")
    label_size, mode, pixels = _open(label, "label")
    if mode not in ("P", "L"):
        raise InputError(f"the label {label} holds colours (mode {mode}), not class indices; convert it first")
    if size != label_size:
        raise InputError(f"the image {image} has {size[0]} x {size[1]} pixels, "
                         f"but its label {label} has {label_size[0]} x {label_size[1]}")
    try:
        check_labels(pixels)
    except InputError as error:
        raise InputError(f"the label {label}: {error}") from None


def _open(path, what):
    """(width, height), mode and pixels of an image file that is decoded to its end."""
    if not os.path.isfile(path):
        raise InputError(f"there is no {what} {path}")
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return image.size, image.mode, np.asarray(image)
    except BROKEN_IMAGE as error:
        raise InputError(f"the {what} {path} is broken ({error})") from error


def _link(source, place):
    """Makes `place` a relative link to `source`. Returns whether that was needed."""
    target = os.path.relpath(source, place.parent)
    if place.is_symlink():
        if os.readlink(place) == target:
            return False
        place.unlink()
    elif place.is_file():
        here, there = place.stat(), source.stat()
        if (here.st_size, int(here.st_mtime)) == (there.st_size, int(there.st_mtime)):
            return False  # a copy made where there are no links
        place.unlink()
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.symlink(target, place)
    except (OSError, NotImplementedError):  # no links here, or no right to make them; or no writing, as the copy tells
        with write_atomically(place) as temporary:
            shutil.copy2(source, temporary)
    return True
