"""Converting many label files to index PNGs, in parallel, in runs that can be stopped and continued."""
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.parallel import run_parallel
from VOC12.image_io import BROKEN_IMAGE, LABEL_FORMATS
from VOC12.index_png import write_label_png

Counts = tuple[int, int, list[tuple[str, str]]]  # files written, files kept, failures: (path of the source, sentence)


def convert_files(read: Callable[[Path], np.ndarray], source: Path, suffix: str, names: list[str], destination: Path,
                  title: str, workers: int | None = None, may_crash: bool = False) -> Counts:
    """Converts source/NAME.suffix to destination/NAME.png for all `names` that are not there whole and current.

    read: path of a source file -> labels uint8 (H, W); an importable function that raises InputError for a wrong file.
    title, workers, may_crash: see run_parallel. Raises InputError if `destination` cannot be written.
    """
    make_output_folder(destination)
    tasks = {}
    for name in names:
        path = source / f"{name}{suffix}"
        tasks[str(path)] = read, path, destination / f"{name}.png"
    results, failures = run_parallel(convert_file, tasks, title, workers, may_crash)
    written = sum(results.values())
    return written, len(results) - written, failures


def convert_file(read: Callable[[Path], np.ndarray], source: Path, destination: Path) -> bool:
    """Converts one file unless that is done. Returns whether it was written. Raises InputError for a wrong file."""
    if is_done(destination, source):
        return False
    write_label_png(destination, read(source))
    return True


def is_done(path: str | Path, source: str | Path) -> bool:
    """Whether `path` is a whole index PNG that is not older than `source`, from which it is made."""
    try:
        if os.stat(path).st_mtime < os.stat(source).st_mtime:
            return False
        with Image.open(path, formats=LABEL_FORMATS) as image:
            kept = image.mode in ("P", "L")
            image.verify()  # all checksums, without decoding
        return kept
    except BROKEN_IMAGE:
        return False


def make_output_folder(folder: str | Path) -> None:
    """Creates `folder` and removes what a killed run left half-written in it. Raises InputError if it cannot be."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the folder {folder}: {error.strerror}; give one that can be written") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"the folder {folder} cannot be written; change its permissions")
    for leftover in folder.glob(".*.part.png"):
        if leftover.stat().st_mtime < time.time() - 60:  # a newer one may be another run's, at work
            leftover.unlink(missing_ok=True)
