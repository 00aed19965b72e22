"""Writes label images of any kind, class indices or colours, as index PNGs.

    python VOC12/convert_labels.py SRC LIST DST [--colours FILE]

Run again to continue after a stop.
"""
import argparse
import functools
import hashlib
import os
import shlex
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

import numpy as np

from utils.errors import InputError, InputWarning
from utils.files import require_folder, write_atomically
from utils.parallel import WORKERS_OPTION, report_failures
from VOC12.colours import Colours, labels_of_colours, read_colours, voc_colours
from VOC12.conversion import Counts, Failures, Results, convert_files, counted
from VOC12.image_io import open_image
from VOC12.index_png import check_labels, stored_values
from VOC12.labels import VOID
from VOC12.lists import read_entries, relative_name
from VOC12.naming import Folder, find_listed

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".jpg", ".jpeg")  # in lower or upper case
FORMATS = ("PNG", "TIFF", "BMP", "GIF", "JPEG")
AUTO, NONE, VOC = "auto", "none", "voc"  # what colours may be instead of a list
CLASS_NAMES_FILE = "class_names.txt"


def convert_folder(source: str | Path, names: list[str], destination: str | Path, workers: int | None = None,
                   colours: Colours | str = AUTO, num_classes: int = VOID, suffix: str = "") -> Counts:
    """As convert. Returns (written, kept, failures): two counts and a list of (path of the source file, sentence)."""
    return counted(*convert(source, names, destination, workers, colours, num_classes, suffix))


def convert(source: str | Path, names: list[str], destination: str | Path, workers: int | None = None,
            colours: Colours | str = AUTO, num_classes: int = VOID, suffix: str = "") -> tuple[Results, Failures]:
    """Converts the label of each of `names` in `source` to destination/NAME.png, unless that is there and current.

    The source file is NAME + suffix, or, where that names no image format, with one of SUFFIXES. For colours and
    num_classes see read_source. Issues an InputWarning if the labels may not mean what was read.
    Raises InputError if there is no such folder, or nowhere to write.
    """
    source, destination = require_folder(source, "labels"), Path(destination)
    if source.resolve() == destination.resolve():
        raise InputError(f"the source and the destination are the same folder, {source}; give another destination, "
                         f"because the source is not changed")
    if not 1 <= num_classes <= VOID:
        raise InputError(f"the number of classes is {num_classes}; give 1 to {VOID}", about="num_classes")
    read = functools.partial(read_source, colours=colours, num_classes=num_classes)
    results, failures = convert_files(read, find_sources(source, names, suffix), destination, "labels", workers,
                                      made_by=_settings(colours, num_classes))
    if colours == AUTO:
        _compare_palettes(results)
    found = {label for labels in results.values() for label in labels or ()}
    if not isinstance(colours, Colours) and found == {0, VOID}:
        warnings.warn(f"the labels in {source} have the values 0 and {VOID} alone, and {VOID} is void; if it is a "
                      f"class, give a list of the colours 0,0,0 and 255,255,255", InputWarning, stacklevel=2)
    return results, failures


def find_sources(folder: Path, entries: list[str], suffix: str = "") -> dict[str, Path]:
    """The label file of each entry of a list, by its name; NAME + suffix + .png where there is none.

    Of several files of a name the first by SUFFIXES. Raises InputError for an entry that leads out of the folder.
    """
    files, found = Folder(folder), {}
    endings = [suffix] if suffix.lower().endswith(SUFFIXES) else [suffix + ending for ending in SUFFIXES]
    for entry in entries:
        hits = (find_listed(files, entry, ending if suffix else "", SUFFIXES) for ending in endings)
        path, name = next(filter(None, hits), (None, None))
        if path is None:
            name = relative_name(entry, str(folder))
            path = folder / (name + endings[0])
        found[name] = path
    return found


def read_source(path: str | Path, colours: Colours | str = AUTO, num_classes: int = VOID) -> np.ndarray:
    """Labels of an image file: uint8 (H, W), 0..num_classes-1 and 255. An alpha channel is ignored.

    colours: a list, by whose colours every file is read; or NONE: class indices are read, see indices_of; or AUTO:
    indices where the file stores them, and otherwise VOC's colours. AUTO reads a GIF by its colours, because programs
    that write GIFs renumber the palette.
    Raises InputError, without the path, if the file is missing or broken, a pixel is no label, or AUTO cannot decide.
    """
    if not os.path.isfile(path):
        raise InputError("there is no such file; check the list, the folder and the suffix")
    image = open_image(path, "this label", FORMATS, "get the file again")
    if isinstance(colours, Colours):
        return check_labels(labels_of_colours(_shown_colours(image), colours), num_classes)
    file_format, several = image.format, image.mode in ("RGB", "RGBA")
    if file_format == "GIF" and colours == AUTO:
        image, several = image.convert("RGB"), True
    values = stored_values(image, path)
    if values.ndim == 3 and colours == NONE:
        raise InputError("the image has colours, not class indices; give the list of its colours")
    if values.ndim == 3:
        return check_labels(labels_of_colours(values, voc_colours()), num_classes)
    if file_format == "JPEG":
        raise InputError("a JPEG file does not keep class indices as they were; save the label as a PNG")
    if several and colours == AUTO and values.max() == 128 and np.isin(values, (0, 128)).all():
        raise InputError(f"the image has only the colours black and (128, 128, 128), which can be the class indices 0 "
                         f"and 128 or VOC's background and car; give '{NONE}' for the colours if they are indices, "
                         f"'{VOC}' if they are VOC's")
    return check_labels(values, num_classes, "correct the label or the number of classes")


def _shown_colours(image):
    """The colours that a viewer shows: uint8 (H, W, 3)."""
    if image.mode.startswith(("I", "F")):
        raise InputError(f"the image is grey with more than 8 bits (mode {image.mode}), which is how class indices are "
                         f"stored, not colours; give '{NONE}' for the colours")
    return np.asarray(image.convert("RGB"))


def _settings(colours, num_classes):
    """A text that differs where read_source would give another result; empty for the defaults."""
    if isinstance(colours, Colours):
        colours = hashlib.sha1(repr((colours.labels, colours.rgb.tolist())).encode()).hexdigest()
    return "" if (colours, num_classes) == (AUTO, VOID) else f"colours {colours}, {num_classes} classes"


def _compare_palettes(results):
    """Issues an InputWarning if an index that occurs has different colours in two PNGs: then it may be no class index.

    Programs that reduce an image to a palette number its colours anew in every file.
    """
    seen = {}  # index -> (colour, path)
    for path, labels in results.items():
        if labels is None or not path.lower().endswith(".png"):
            continue
        image = open_image(path, "this label")
        layout, palette = image.palette.getdata() if image.mode == "P" else (None, b"")
        for label in labels if layout == "RGB" else ():
            colour = tuple(palette[3 * label:3 * label + 3])
            other, place = seen.setdefault(label, (colour, path))
            if colour != other:
                warnings.warn(f"the index {label} has the colour {other} in {place} and {colour} in {path}; palette "
                              f"files are read by index: if their colours say what the classes are, give the list of "
                              f"colours", InputWarning, stacklevel=2)
                return


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Write label images (PNG, TIFF, BMP, GIF) as index PNGs: palette images by index; grey ones, and "
                    "RGB ones with equal channels, by value; others by VOC's colours or those of a list. A run that "
                    "was stopped continues where it was.")
    parser.add_argument("source", metavar="SRC", help="folder of labels")
    parser.add_argument("list", metavar="LIST", help="text file of names, one a line")
    parser.add_argument("destination", metavar="DST", help="folder to write to")
    parser.add_argument("--colours", default=AUTO, metavar="FILE",
                        help="read every label by its colours. FILE: lines name,R,G,B in the order of the indices, or "
                             "an annotation tool's labelmap.txt; voc: VOC's colours; none: indices only")
    parser.add_argument("--n_class", type=int, default=VOID, metavar="N",
                        help="refuse labels with other values than 0 to N-1 and 255 (default: %(default)s)")
    parser.add_argument("--gt_suffix", default="", metavar="SUFFIX",
                        help="what follows the name in the label's file name, such as _gtFine_color.png")
    parser.add_argument("--workers", **WORKERS_OPTION)
    return parser


def main(args: argparse.Namespace) -> int:
    """Converts, prints the counts, the classes and each failure. Returns the exit code: 1 if a file failed."""
    colours, destination = args.colours, os.path.normpath(args.destination)
    if colours not in (AUTO, NONE):
        colours = voc_colours() if colours == VOC else read_colours(colours)
    entries = [entry for _, entry in read_entries(args.list)]
    results, failures = convert(args.source, entries, destination, args.workers, colours, args.n_class, args.gt_suffix)
    written, kept, _ = counted(results, failures)
    print(f"{destination}: {written} written, {kept} already there, {len(failures)} failed")
    found = sorted({label for labels in results.values() for label in labels or ()})
    if isinstance(colours, Colours) and args.colours != VOC:
        names = colours.class_names()
        file = Path(destination, CLASS_NAMES_FILE)
        with write_atomically(file) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        void = [name for name, label in zip(colours.names, colours.labels, strict=True) if label == VOID]
        print("classes: " + ", ".join(f"{label} {name}" for label, name in enumerate(names))
              + (f"; {VOID} (void): {', '.join(void)}" if void else ""))
        print(f"train with: --n_class {len(names)} --class_names {shlex.quote(str(file))}")
    elif found:
        highest = max((label for label in found if label != VOID), default=0)
        print(f"values written: {', '.join(map(str, found))} ({VOID} is void); the number of classes, --n_class, must "
              f"be {highest + 1} or more")
    code = report_failures(failures)
    if failures:
        print("options for other labels: --colours, --n_class and --gt_suffix (see --help)", file=sys.stderr)
    return code


if __name__ == "__main__":
    from utils.cli import run_command
    run_command(main, build_parser())
