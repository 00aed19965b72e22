"""Entries of a list -> the files of images and labels, whatever the spelling of the entries."""
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError
from utils.files import require_folder
from VOC12.image_io import IMAGE_SUFFIXES, LABEL_SUFFIXES
from VOC12.lists import normal_path, read_entries, relative_name

JPEG_SUFFIXES = (".jpg", ".jpeg")
COLUMN_SEPARATOR = re.compile(r"\s*[,;]\s*|\s+")


class Naming(NamedTuple):
    """What follows a name in the file names of the images and of the labels; "" for the usual suffixes, in any case."""
    image: str = ""  # for example "_leftImg8bit.png"
    label: str = ""  # for example "_gtFine_labelTrainIds.png"


USUAL = Naming()


class Pair(NamedTuple):
    """The files of an entry, and its name: a relative path without suffix."""
    image: Path
    label: Path
    name: str


def find_pairs(im_path: str | Path, gt_path: str | Path, list_path: str | Path,
               naming: Naming = USUAL) -> list[Pair]:
    """The files of each entry of a list, in its order; of an entry that stands there twice, twice.

    An entry is a name with or without suffix, or two paths (image and label), relative to the folders or to a folder
    above them. Raises InputError for an entry without its files, or one that leads out of the folders.
    """
    images = Folder(require_folder(im_path, "images"))
    labels = Folder(require_folder(gt_path, "labels"))
    return [_find_pair(images, labels, entry, where, str(list_path), naming)
            for where, entry in read_entries(list_path)]


def find_listed_images(im_path: str | Path, list_path: str | Path, image_suffix: str = "") -> list[tuple[Path, str]]:
    """As find_pairs, of the images alone: list of (file, name). Of two columns the first counts."""
    images = Folder(require_folder(im_path, "images"))
    return [find_listed(images, entry, image_suffix, IMAGE_SUFFIXES)
            or _no_image(images, entry, where, str(list_path), image_suffix)
            for where, entry in read_entries(list_path)]


def find_listed(folder: "Folder", entry: str, suffix: str, usual: Sequence[str]) -> tuple[Path, str] | None:
    """(file, name) of an entry of a list, or of the first of its columns that names a file; None if none does."""
    texts = (entry, *(text for columns in _columns(entry) for text in columns))
    return next(filter(None, (folder.find(text, suffix, usual) for text in texts)), None)


def _find_pair(images, labels, entry, where, list_path, naming):
    """The Pair of an entry. Raises InputError if a file is missing."""
    image = images.find(entry, naming.image, IMAGE_SUFFIXES)
    wanted = image and image[1]
    if image is None:
        for first, second in _columns(entry):
            image, wanted = images.find(first, naming.image, IMAGE_SUFFIXES), second
            if image:
                break
        else:
            _no_image(images, entry, where, list_path, naming.image)
    label = labels.find(wanted, naming.label, LABEL_SUFFIXES)
    if label is None:
        path = labels.path / (wanted + ("" if wanted.endswith(naming.label or ".png") else naming.label or ".png"))
        near = labels.beginning_with(wanted)
        if near and near.lower().endswith(JPEG_SUFFIXES):
            raise InputError(f"{list_path} lists {entry!r}, but its label is the JPEG {near}, which does not keep "
                             f"class indices as they were; give labels as PNG files")
        hint = f" (there is {near}: give the labels' suffix)" if near and not naming.label else ""
        raise InputError(f"{list_path} lists {entry!r}, but {path} does not exist{hint}; add the label, remove the "
                         f"name from the list, or give another folder of labels", about="gt_suffix" if hint else None)
    return Pair(image[0], label[0], image[1])


def _columns(entry: str) -> Iterator[tuple[str, str]]:
    """The ways to read an entry as two columns; names may contain blanks."""
    for separator in COLUMN_SEPARATOR.finditer(entry):
        yield entry[:separator.start()], entry[separator.end():]


def _no_image(images, entry, where, list_path, suffix):
    """Raises InputError for an entry whose image there is not."""
    relative_name(entry, where)
    near = images.beginning_with(normal_path(entry))
    hint = f" (there is {near}: give the images' suffix)" if near and not suffix else ""
    raise InputError(f"{list_path} lists {entry[:100]!r}, but {images.path} has no image of that name "
                     f"({suffix or '.jpg, .png, ...'}){hint}; list a name, or an image and its label, a line, and "
                     f"check that the folder is the right one", about="im_suffix" if hint else None)


class Folder:
    """The files below a folder by their names. Case of the suffix, kinds of blanks and composition of accents are free.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.tails = {Path(os.path.abspath(path)).parts, Path(os.path.realpath(path)).parts}
        self.listings = {}

    def find(self, name: str, suffix: str, usual: Sequence[str]) -> tuple[Path, str] | None:
        """(file, name without suffix) for a name with or without its suffix; None if there is no such file.

        suffix: what the file's name ends with; if "", one of the `usual` ones.
        """
        for relative in self.relative(normal_path(name)):
            for base in dict.fromkeys((relative, without_suffix(relative, suffix, usual))):
                for end in (suffix,) if suffix else ("", *usual):
                    file = self.file(base + end) if end or has_suffix(base, usual) else None
                    if file:
                        return file, without_suffix(base, suffix, usual)
        return None

    def relative(self, name: str) -> Iterator[str]:
        """What a name may be relative to this folder: itself, or a path that begins in a folder above."""
        parts = [part for part in name.split("/") if part]
        if ".." in parts:
            return
        if not name.startswith("/"):
            yield name
        elif parts:
            yield "/".join(parts)  # "/img/a.jpg", relative to the dataset
        for k in range(1, len(parts)):
            if any(tuple(parts[:k]) == tail[len(tail) - k:] for tail in self.tails):
                yield "/".join(parts[k:])

    def file(self, relative: str) -> Path | None:
        """The file of a relative path, or None."""
        path = self.path
        for part in relative.split("/"):
            listing = self.listing(path)
            found = listing.get(part) or listing.get(fold(part))
            if not found:
                return None
            path = path / found
        return path if os.path.isfile(path) else None

    def listing(self, path: Path) -> dict[str, str]:
        """The names in a folder, by themselves and by what is the same in them; read once."""
        if path not in self.listings:
            try:
                names = sorted(os.listdir(path))
            except OSError:
                names = []
            self.listings[path] = {**{fold(name): name for name in names}, **{name: name for name in names}}
        return self.listings[path]

    def beginning_with(self, relative: str) -> str | None:
        """The name of a file that begins as `relative` does and goes on, for a hint; else None."""
        folder, _, start = relative.rpartition("/")
        names = self.listing(self.path / folder if folder else self.path).values()
        longer = (f"{start}_", f"{start}-", f"{start}.")
        return next((name for name in names if start and name.startswith(longer)), None)


def fold(name: str) -> str:
    """What is the same in different spellings of a file name."""
    name = unicodedata.normalize("NFC", "".join(" " if character.isspace() else character for character in name))
    stem, suffix = os.path.splitext(name)
    return stem + suffix.lower()


def has_suffix(name: str, usual: Sequence[str]) -> bool:
    """Whether a name ends with one of the usual suffixes, in any case."""
    return os.path.splitext(name)[1].lower() in usual


def without_suffix(name: str, suffix: str, usual: Sequence[str]) -> str:
    """The name without `suffix`, or without a usual one if that is ""."""
    if suffix:
        return name.removesuffix(suffix) or name
    return os.path.splitext(name)[0] if has_suffix(name, usual) else name
