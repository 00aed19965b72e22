"""Writes label PNGs of any kind, VOC's palette PNGs or RGB ones, as index PNGs. Run again to go on after a stop.

    python VOC12/convert_labels.py SRC LIST DST
"""
import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import run_command
from utils.errors import InputError  # noqa: E402
from utils.files import require_folder  # noqa: E402
from VOC12.index_png import is_done, make_output_folder, read_label_png, write_label_png  # noqa: E402
from VOC12.lists import read_list  # noqa: E402
from utils.parallel import add_workers_argument, report_failures, run_parallel  # noqa: E402


def convert_folder(source, names, destination, workers=None):
    """Converts source/NAME.png to destination/NAME.png for all `names` that are not there whole and current.

    Returns (written, kept, failures): two counts and a list of (path of the source file, sentence).
    Raises InputError if there is no such folder, or nowhere to write.
    """
    source, destination = require_folder(source, "labels"), Path(destination)
    if source.resolve() == destination.resolve():
        raise InputError(f"SRC and DST are the same folder, {source}; give another DST, for the source stays as it is")
    make_output_folder(destination)
    tasks = {str(source / f"{name}.png"): (source / f"{name}.png", destination / f"{name}.png") for name in names}
    results, failures = run_parallel(convert_file, tasks, "labels", workers)
    written = sum(results.values())
    return written, len(results) - written, failures


def convert_file(source, destination):
    """Converts one PNG file unless that is done. Returns whether it wrote. Raises InputError for a wrong file."""
    if is_done(destination, source):
        return False
    write_label_png(destination, read_label_png(source))
    return True


def build_parser():
    parser = argparse.ArgumentParser(description="Write label PNGs as index PNGs: palette PNGs by index, greyscale "
                                                 "ones by value, RGB ones by VOC's colours. "
                                                 "A run that was stopped goes on where it was.")
    parser.add_argument("source", metavar="SRC", help="folder of PNG labels")
    parser.add_argument("list", metavar="LIST", help="text file of names, one a line, without .png")
    parser.add_argument("destination", metavar="DST", help="folder to write to")
    add_workers_argument(parser)
    return parser


def main(args):
    written, kept, failures = convert_folder(args.source, read_list(args.list), args.destination, args.workers)
    print(f"{os.path.normpath(args.destination)}: {written} written, {kept} already there, {len(failures)} failed")
    return report_failures(failures)


if __name__ == "__main__":
    run_command(main, build_parser())
