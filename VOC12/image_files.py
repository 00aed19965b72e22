"""Image files that a user names (files, folders, patterns) -> a dataset without labels, and a name for each result."""
import glob
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ImageOps
from torch.utils.data import Dataset

from utils.errors import InputError
from VOC12.image_io import IMAGE_SUFFIXES, open_image, to_rgb
from VOC12.transforms import EvalTransform, Sample

OVERLAY = "_overlay"  # the second result of an image is NAME_overlay


def find_images(arguments: Sequence[str | Path]) -> list[tuple[Path, str]]:
    """Files, folders (and their subfolders) and glob patterns -> list of (file, name of its results without suffix).

    Files given by name are taken whatever their suffix. No two names are equal, and each file is taken once.
    Raises InputError for an argument that names no image.
    """
    found = {}  # resolved file -> (file, wished name)
    for argument in arguments:
        path = Path(argument)
        if os.path.isfile(path):
            files, base = [path], path.parent
        elif os.path.isdir(path):
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            base = path
        else:
            files, base = sorted(p for p in map(Path, glob.glob(str(argument), recursive=True)) if p.is_file()), None
        if not files:
            raise InputError(f"{argument} names no image: it is not a file, a folder with images, or a pattern "
                             f"that matches a file; check the path")
        for file in files:
            folder = file.parent if base is None else base
            found.setdefault(file.resolve(), (file, file.relative_to(folder)))
    names = set()
    pairs = []
    for file, wished in found.values():
        name = wished.with_suffix("")
        for other in (wished.with_name(wished.name.replace(".", "_")),
                      *(name.with_name(f"{name.name}_{i}") for i in range(2, len(found) + 2))):
            if not names & result_names(name):
                break
            name = other
        names |= result_names(name)
        pairs.append((file, str(name)))
    return pairs


def result_names(name: str | Path) -> set[str]:
    """The names of an image's results, in lower case: some file systems do not distinguish cases."""
    return {str(name).lower(), f"{name}{OVERLAY}".lower()}


class ImageFiles(Dataset):
    """Image files -> Samples, see VOC12/transforms.py; the label is 0 everywhere but in the padding.

    The image is rotated as its EXIF orientation says. Raises InputError for a file that cannot be read.
    """

    def __init__(self, files: Sequence[Path], transform: EvalTransform):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        file = self.files[index]
        image = open_image(file, f"the image {file}", advice="replace the file or leave it out")
        image = to_rgb(ImageOps.exif_transpose(image), file)
        return self.transform(image, np.zeros(image.shape[:2], np.uint8))
