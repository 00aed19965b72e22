"""Image files that a user names (files, folders, patterns) -> a dataset without labels, and a name for each result."""
import glob
import os
from pathlib import Path

import numpy as np
from PIL import ImageOps
from torch.utils.data import Dataset

from utils.errors import InputError
from VOC12.dataset import IMAGE_SUFFIXES, open_image, to_rgb

OVERLAY = "_overlay"  # the second result of an image is NAME_overlay
SUFFIXES = {suffix.lower() for suffix in IMAGE_SUFFIXES}


def find_images(arguments):
    """Files, folders (with what is below them) and glob patterns -> list of (file, name of its results without suffix).

    Files given by name are taken whatever their suffix. No two names are equal, and each file is taken once.
    Raises InputError for an argument that names nothing.
    """
    found = {}  # resolved file -> (file, wished name)
    for argument in arguments:
        path = Path(argument)
        if os.path.isfile(path):
            files, base = [path], path.parent
        elif os.path.isdir(path):
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            base = path
        else:
            files, base = sorted(p for p in map(Path, glob.glob(str(argument), recursive=True)) if p.is_file()), None
        if not files:
            raise InputError(f"{argument} names no image: no such file, no image in such a folder, nothing that fits "
                             f"it as a pattern; check the path")
        for file in files:
            folder = file.parent if base is None else base
            found.setdefault(file.resolve(), (file, file.relative_to(folder)))
    names = set()
    pairs = []
    for file, wished in found.values():
        name = wished.with_suffix("")
        for other in (wished.with_name(wished.name.replace(".", "_")),
                      *(name.with_name(f"{name.name}_{i}") for i in range(2, len(found) + 2))):
            if not names & results_of(name):
                break
            name = other
        names |= results_of(name)
        pairs.append((file, str(name)))
    return pairs


def results_of(name):
    """The names that an image's results take, in lower case: some file systems do not tell cases apart."""
    return {str(name).lower(), f"{name}{OVERLAY}".lower()}


class ImageFiles(Dataset):
    """Image files -> Samples, see VOC12/transforms.py; the label is 0 everywhere but in the padding.

    A camera's note of how it was held (EXIF orientation) is followed. Raises InputError for a file that cannot be read.
    """

    def __init__(self, files, transform):
        self.files, self.transform = files, transform

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        file = self.files[index]
        image = to_rgb(ImageOps.exif_transpose(open_image(file, "image")), file)
        return self.transform(image, np.zeros(image.shape[:2], np.uint8))
