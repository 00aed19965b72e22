"""The steps of prepare.py after the conversions: joining SBD and VOC by links, the lists, and a check of every pair."""
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.files import write_atomically
from utils.parallel import run_parallel
from VOC12.image_io import IMAGE_FORMATS, open_image
from VOC12.index_png import check_labels
from VOC12.labels import CLASS_NAMES
from VOC12.lists import read_list

# The lengths of the published lists.
PUBLISHED = {"SBD train": 8498, "SBD val": 2857, "VOC train": 1464, "VOC val": 1449}
TRAINAUG = 10582


def read_lists(sbd: Path, voc: Path) -> dict[str, list[str]]:
    """The four lists, by the names of PUBLISHED, of SBD's folder `dataset` and VOC's folder `VOC2012`."""
    segmentation = voc / "ImageSets" / "Segmentation"
    return {"SBD train": read_list(sbd / "train.txt"), "SBD val": read_list(sbd / "val.txt"),
            "VOC train": read_list(segmentation / "train.txt"), "VOC val": read_list(segmentation / "val.txt")}


def trainaug(lists: dict[str, list[str]], trainaug_count: int = TRAINAUG) -> list[str]:
    """Sorted names: (SBD train + SBD val + VOC train) - VOC val.

    Raises InputError, with the lists that are too short, unless there are `trainaug_count` names; 0 accepts any number.
    """
    names = sorted({*lists["SBD train"], *lists["SBD val"], *lists["VOC train"]} - set(lists["VOC val"]))
    if not names:
        raise InputError("trainaug is empty: every training image is one of VOC val; check the lists")
    if trainaug_count in (0, len(names)):
        return names
    published = trainaug_count == TRAINAUG
    reasons = [f"{key} has {len(lists[key])} names" + (f" of {number}" if published else "")
               for key, number in PUBLISHED.items() if not published or len(lists[key]) != number]
    reason = ", ".join(reasons) or "the lists have the published lengths, but other names"
    raise InputError(f"trainaug has {len(names)} names instead of {trainaug_count}: {reason}; unpack the archives "
                     f"again, or give 0 for the count if this is meant to be another set", about="trainaug_count")


def link_files(sources: dict[str, Path], folder: Path) -> int:
    """Puts a relative link (a copy, where the file system has no links) to each of `sources` into `folder`.

    sources: file name -> path; those that do not exist are left out. Returns how many are new or changed.
    Raises InputError if `folder` cannot be written, or is itself a link: writing there could change the downloads.
    """
    if folder.parent.is_symlink() or folder.is_symlink():
        raise InputError(f"{folder} is a link or lies in one; remove that link, because this folder is filled "
                         f"with new files")
    changed = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = folder.resolve()
        for name, source in sources.items():
            if source.is_file():
                changed += _link(source.parent.resolve() / source.name, place / name)
    except OSError as error:
        raise InputError(f"cannot link {error.filename or folder}: {error.strerror or error}; "
                         f"check the folder's permissions and the space on the disk") from error
    return changed


def check_data_link(data: Path, kind: str, joined: Path) -> None:
    """Raises InputError if data/kind exists and is not a link to joined/kind. Changes nothing."""
    link, folder = data / kind, joined / kind
    if link.is_symlink():
        if os.path.realpath(link) != os.path.realpath(folder):
            raise InputError(f"{link} is a link to {os.path.realpath(link)}, not to {folder}; "
                             f"remove the link, or give another data folder", about="data")
    elif link.exists():
        raise InputError(f"{link} is a {'folder' if link.is_dir() else 'file'}, not a link to {folder}; "
                         f"move it away, or give another data folder", about="data")


def make_data_link(data: Path, kind: str, joined: Path) -> bool:
    """Makes data/kind a relative link to joined/kind. Returns whether it is new. Raises InputError as check_data_link.
    """
    check_data_link(data, kind, joined)
    link, folder = data / kind, joined / kind
    if link.is_symlink():
        return False
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(os.path.relpath(folder.resolve(), link.parent.resolve()), link, target_is_directory=True)
    except (OSError, NotImplementedError, ValueError) as error:
        raise InputError(f"cannot make the link {link}: {error}; "
                         f"give {folder} itself to the training commands") from error
    return True


def write_list(path: Path, names: Sequence[str]) -> bool:
    """Writes `names`, one a line. Returns whether the file was new or changed."""
    text = "".join(f"{name}\n" for name in names)
    if path.is_file() and path.read_bytes() == text.encode():
        return False
    with write_atomically(path) as temporary:
        temporary.write_bytes(text.encode())
    return True


def verify(names: Sequence[str], images: Path, labels: Path, workers: int | None = None) -> list[tuple[str, str]]:
    """Checks images/NAME.jpg and labels/NAME.png of all `names`. Returns the failures: a list of (name, sentence)."""
    tasks = {name: (images / f"{name}.jpg", labels / f"{name}.png") for name in names}
    return run_parallel(check_pair, tasks, "verify", workers)[1]


def check_pair(image_file: Path, label_file: Path) -> None:
    """Raises InputError unless both files can be decoded, have one size, and the label is an index PNG of VOC's labels.
    """
    image = _open_existing(image_file, "image", IMAGE_FORMATS)
    label = _open_existing(label_file, "label", ("PNG",))
    if label.mode not in ("P", "L"):
        raise InputError(f"the label {label_file} has colours (mode {label.mode}), not class indices; convert it first")
    if image.size != label.size:
        raise InputError(f"the image {image_file} has {image.width} x {image.height} pixels, "
                         f"but its label {label_file} has {label.width} x {label.height}; unpack the archives again")
    try:
        check_labels(np.asarray(label), len(CLASS_NAMES))
    except InputError as error:
        raise InputError(f"the label {label_file}: {error}", error.about) from None


def _open_existing(path: Path, what: str, formats: Sequence[str]) -> Image.Image:
    if not os.path.isfile(path):
        raise InputError(f"there is no {what} {path}; unpack the archive again, or correct the list")
    return open_image(path, f"the {what} {path}", formats, "unpack the archive again")


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
    except (OSError, NotImplementedError):  # no links, or no right to make them; or no writing: then the copy fails too
        with write_atomically(place) as temporary:
            shutil.copy2(source, temporary)
    return True
