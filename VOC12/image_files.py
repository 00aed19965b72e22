"""Image files that a user names (files, folders, patterns, a list) -> a dataset without labels, names of results."""
import glob
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from utils.errors import InputError
from VOC12.image_io import IMAGE_SUFFIXES, read_picture
from VOC12.labels import VOID
from VOC12.naming import find_listed_images
from VOC12.transforms import EvalTransform, Sample

OVERLAY = "_overlay"  # the second result of an image is NAME_overlay
SOFTWARE = "SparseMask predict.py"  # what results carry in their PNG chunk "Software", so that they are recognised
# What photo programs, network drives, archivers and systems keep for themselves, in lower case. What begins with a dot
# (AppleDouble files, .ipynb_checkpoints, .thumbnails) is skipped too.
TOOL_NAMES = {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "#snapshot", "_vti_cnf",
              "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"}
HEAD = 4096  # bytes of a PNG file within which Pillow writes its text


def find_images(arguments: Sequence[str | Path], out: str | Path | None = None,
                endings: Sequence[str] = ("", OVERLAY)) -> list[tuple[Path, str]]:
    """Files, folders (and their subfolders) and glob patterns -> list of (file, name of its results without suffix).

    Files given by name are taken whatever their suffix. Of folders and patterns, what is hidden or a tool's own is left
    out, and so is what this program wrote: files that carry SOFTWARE, and all that lies in `out`, where that is a
    folder below the one that was given. endings: of the names of an image's results, of which no two are equal. Each
    file is taken once. Raises InputError for an argument that names no image.
    """
    out = None if out is None else Path(out).resolve()
    found, left_out = {}, 0  # resolved file -> (file, wished name)
    for argument in arguments:
        path = Path(argument)
        if os.path.isfile(path):
            candidates, base = [path], path.parent
            # A shell turns DIR/* into names, and those of earlier results are among them.
            files = [] if out in path.resolve().parents and is_result(path) else [path]
        elif os.path.isdir(path):
            candidates, base = sorted(p for p in path.rglob("*") if is_image_name(p) and p.is_file()), path
            files = [] if path.name.lower() in TOOL_NAMES else without_skipped(candidates, path, (), out)
        else:
            matches = map(Path, glob.glob(str(argument), recursive=True))
            candidates, base = sorted(p for p in matches if p.is_file()), None
            files = without_skipped(candidates, literal_folder(path), path.parts, out)
        if not candidates:
            raise InputError(f"{argument} names no image: it is not a file, a folder with images, or a pattern "
                             f"that matches a file; check the path")
        left_out += len(candidates) - len(files)
        for file in files:
            folder = file.parent if base is None else base
            found.setdefault(file.resolve(), (file, file.relative_to(folder)))
    if not found:
        raise InputError(f"{' '.join(map(str, arguments))[:200]} names no image: what is there, {left_out} in all, is "
                         f"hidden, a tool's own, or a result of this program; give other images")
    taken, pairs = set(), []
    for file, wished in found.values():
        name = wished.with_suffix("")
        for other in (wished.with_name(wished.name.replace(".", "_")),
                      *(name.with_name(f"{name.name}_{i}") for i in range(2, len(found) + 2))):
            if not taken & result_names(name, endings):
                break
            name = other
        taken |= result_names(name, endings)
        pairs.append((file, str(name)))
    return pairs


def listed_images(list_path: str | Path, im_path: str | Path, suffix: str = "") -> list[tuple[Path, str]]:
    """The entries of a list -> list of (image file, name), each once; suffix: what the names of the images end with.

    Raises InputError for an entry without an image.
    """
    return list(dict.fromkeys(find_listed_images(im_path, list_path, suffix)))


def is_image_name(path: Path) -> bool:
    """Whether a file has the suffix of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def literal_folder(pattern: Path) -> Path:
    """The folder that a glob pattern begins with: DIR of DIR/**/*.jpg."""
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts[:-1]))


def without_skipped(files: Sequence[Path], folder: Path, named: Sequence[str], out: Path | None) -> list[Path]:
    """The files below a folder without those that are hidden, a tool's own, or written by this program.

    named: parts of paths that were given as such, and so are taken. out: the folder of the results, resolved.
    """
    out_is_below = out is not None and folder.resolve() in out.parents

    def is_skipped(file):
        return (any((part.startswith(".") or part.lower() in TOOL_NAMES) and part not in named
                    for part in file.relative_to(folder).parts)
                or out_is_below and out in file.resolve().parents or is_result(file))

    return [file for file in files if not is_skipped(file)]


def is_result(file: str | Path) -> bool:
    """Whether this program wrote a file: a PNG whose chunk "Software" is SOFTWARE."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(HEAD)
    except OSError:
        return False
    return head.startswith(b"\x89PNG") and b"tEXtSoftware\0" + SOFTWARE.encode() in head


def result_names(name: str | Path, endings: Sequence[str]) -> set[str]:
    """The names of an image's results, in lower case: some file systems do not distinguish cases."""
    return {f"{name}{ending}".lower() for ending in endings}


class ImageFiles(Dataset):
    """Image files -> Samples, see VOC12/transforms.py; the label is 0 everywhere but in the padding.

    Missing pixels of a damaged file are void. Raises InputError for a file that cannot be read.
    """

    def __init__(self, files: Sequence[Path], transform: EvalTransform):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        file = self.files[index]
        image, missing = read_picture(file, advice="replace the file or leave it out")
        label = np.zeros(image.shape[:2], np.uint8)
        if missing is not None:
            label[missing] = VOID
        return self.transform(image, label)
