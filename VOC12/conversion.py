"""Converting many label files to index PNGs, in parallel, in runs that can be stopped and continued."""
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.parallel import run_parallel
from VOC12.image_io import BROKEN_IMAGE
from VOC12.index_png import MADE_BY, write_label_png

Results = dict[str, list[int] | None]  # path of the source -> the labels that occur, or None if the file was kept
Failures = list[tuple[str, str]]  # (path of the source, sentence)
Counts = tuple[int, int, Failures]  # files written, files kept, failures


def convert_files(read: Callable[[Path], np.ndarray], sources: dict[str, Path], destination: Path, title: str,
                  workers: int | None = None, may_crash: bool = False, made_by: str = "") -> tuple[Results, Failures]:
    """Converts the source file of each name to destination/NAME.png, unless that is there, whole and current.

    read: path of a source file -> labels uint8 (H, W); an importable function that raises InputError for a wrong file.
    made_by: the settings of `read`. A file that was made by others is not current.
    title, workers, may_crash: see run_parallel. Raises InputError if `destination` cannot be written.
    """
    make_output_folder(destination)
    tasks = {str(path): (read, path, destination / f"{name}.png", made_by) for name, path in sources.items()}
    return run_parallel(convert_file, tasks, title, workers, may_crash)


def convert_file(read: Callable[[Path], np.ndarray], source: Path, destination: Path,
                 made_by: str = "") -> list[int] | None:
    """Converts one file unless that is done. Returns the labels that occur, or None if it was done.

    Raises InputError for a wrong file.
    """
    if is_done(destination, source, made_by):
        return None
    labels = read(source)
    write_label_png(destination, labels, made_by=made_by)
    return np.flatnonzero(np.bincount(labels.ravel())).tolist()


def counted(results: Results, failures: Failures) -> Counts:
    """The counts of what convert_files returned."""
    written = sum(labels is not None for labels in results.values())
    return written, len(results) - written, failures


def is_done(path: str | Path, source: str | Path, made_by: str = "") -> bool:
    """Whether `path` is a whole index PNG, made with these settings, and not older than its `source`."""
    try:
        if os.stat(path).st_mtime < os.stat(source).st_mtime:
            return False
        with Image.open(path, formats=("PNG",)) as image:
            kept = image.mode in ("P", "L") and image.info.get(MADE_BY, "") == made_by
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
