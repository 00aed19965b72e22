"""Writes SBD's labels, cls/NAME.mat, as index PNGs, cls_png/NAME.png.

    python VOC12/convert_mat_to_png.py --sbd_path ROOT

Run again to continue after a stop.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import numpy as np
import scipy.io

from utils.errors import InputError
from utils.parallel import WORKERS_OPTION, report_failures
from VOC12.conversion import Counts, convert_files, counted
from VOC12.index_png import check_labels
from VOC12.labels import CLASS_NAMES

# Where SBD's img, cls, train.txt and val.txt may be in a folder: SBD's own layout, seen from three folders, the last of
# which is torchvision's layout too.
LAYOUTS = ("benchmark_RELEASE/dataset", "dataset", ".")


def find_labels(sbd_path: str | Path) -> Path:
    """SBD's folder `cls`. Raises InputError if there is none.

    sbd_path: the folder that the archive was unpacked in, its benchmark_RELEASE, the `dataset` in this, or the root of
    torchvision's SBDataset.
    """
    for layout in LAYOUTS:
        folder = Path(sbd_path) / layout / "cls"
        if folder.is_dir():
            return folder
    raise InputError(f"SBD's folder of labels does not exist in {sbd_path}: neither benchmark_RELEASE/dataset/cls nor "
                     f"dataset/cls nor cls; give the folder benchmark_RELEASE of SBD's archive", about="sbd_path")


def convert_folder(sbd_path: str | Path, workers: int | None = None) -> Counts:
    """Converts every .mat of SBD's folder `cls` that has no whole and current PNG in `cls_png` beside it.

    sbd_path: see find_labels. Returns (written, kept, failures): two counts and a list of (path of the .mat, sentence).
    Raises InputError if there is nothing to convert or nowhere to write.
    """
    source = find_labels(sbd_path)
    names = sorted(path.stem for path in source.glob("*.mat") if not path.name.startswith("."))
    if not names:
        raise InputError(f"{source} contains no .mat file; unpack SBD's benchmark.tgz again")
    # In processes: a damaged byte can make scipy's reader crash (seen with scipy 1.17).
    sources = {name: source / f"{name}.mat" for name in names}
    return counted(*convert_files(read_segmentation, sources, source.with_name("cls_png"), "SBD labels", workers,
                                  may_crash=True))


def read_segmentation(path: str | Path) -> np.ndarray:
    """GTcls.Segmentation of an SBD file: uint8 (H, W). Raises InputError, without the path, for any other file."""
    try:
        with open(path, "rb") as file:
            start = file.read(516)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}; check its permissions") from error
    if start.startswith(b"MATLAB 7.3") or b"\x89HDF" in (start[:4], start[512:]):
        raise InputError("this is a MATLAB 7.3 (HDF5) file, and SBD's are MATLAB 5; save it again with -v7")
    try:
        content = scipy.io.loadmat(str(path), variable_names=["GTcls"])
    except Exception as error:  # scipy lets a dozen kinds through for a file that is cut or garbled
        raise InputError(f"this is not a complete MATLAB 5 file ({type(error).__name__}: {error}); "
                         f"unpack it from SBD's benchmark.tgz again") from error
    if "GTcls" not in content:
        raise InputError("the file has no GTcls; SBD's class labels are those in dataset/cls")
    struct = _unwrap(content["GTcls"])
    if getattr(struct, "dtype", np.dtype(int)).names is None or "Segmentation" not in struct.dtype.names:
        raise InputError("GTcls is not a struct with a Segmentation; SBD's class labels are those in dataset/cls")
    return check_labels(np.asarray(_unwrap(struct["Segmentation"])), len(CLASS_NAMES))


def _unwrap(value):
    """The content of a MATLAB cell or struct array of one element, with any number of dimensions."""
    while isinstance(value, np.ndarray) and value.dtype == object and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, np.ndarray) and value.dtype.names and value.size == 1:
        value = value.reshape(-1)[0]  # one record
    return value


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write SBD's .mat labels as index PNGs beside them, in cls_png. "
                                                 "A run that was stopped continues where it was.")
    parser.add_argument("--sbd_path", required=True, metavar="FOLDER",
                        help="SBD's folder benchmark_RELEASE, the folder it is in, or the root of torchvision's "
                             "SBDataset")
    parser.add_argument("--workers", **WORKERS_OPTION)
    return parser


def main(args: argparse.Namespace) -> int:
    """Converts, prints the counts and each failure. Returns the exit code: 1 if a file failed."""
    written, kept, failures = convert_folder(args.sbd_path, args.workers)
    folder = find_labels(args.sbd_path).with_name("cls_png")
    print(f"{folder}: {written} written, {kept} already there, {len(failures)} failed")
    return report_failures(failures)


if __name__ == "__main__":
    from utils.cli import run_command
    run_command(main, build_parser())
