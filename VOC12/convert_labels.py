"""Writes label PNGs of any kind, VOC's palette PNGs or RGB ones, as index PNGs.

    python VOC12/convert_labels.py SRC LIST DST

Run again to continue after a stop.
"""
import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from utils.errors import InputError
from utils.files import require_folder
from utils.parallel import WORKERS_OPTION, report_failures
from VOC12.conversion import Counts, convert_files
from VOC12.index_png import read_voc_label
from VOC12.lists import read_list


def convert_folder(source: str | Path, names: list[str], destination: str | Path,
                   workers: int | None = None) -> Counts:
    """Converts source/NAME.png to destination/NAME.png for all `names` that are not there whole and current.

    Returns (written, kept, failures): two counts and a list of (path of the source file, sentence).
    Raises InputError if there is no such folder, or nowhere to write.
    """
    source, destination = require_folder(source, "labels"), Path(destination)
    if source.resolve() == destination.resolve():
        raise InputError(f"the source and the destination are the same folder, {source}; give another destination, "
                         f"because the source is not changed")
    return convert_files(read_voc_label, source, ".png", names, destination, "labels", workers)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write label PNGs as index PNGs: palette PNGs by index, greyscale "
                                                 "ones by value, RGB ones by VOC's colours. "
                                                 "A run that was stopped continues where it was.")
    parser.add_argument("source", metavar="SRC", help="folder of PNG labels")
    parser.add_argument("list", metavar="LIST", help="text file of names, one a line, without .png")
    parser.add_argument("destination", metavar="DST", help="folder to write to")
    parser.add_argument("--workers", **WORKERS_OPTION)
    return parser


def main(args: argparse.Namespace) -> int:
    """Converts, prints the counts and each failure. Returns the exit code: 1 if a file failed."""
    written, kept, failures = convert_folder(args.source, read_list(args.list), args.destination, args.workers)
    print(f"{os.path.normpath(args.destination)}: {written} written, {kept} already there, {len(failures)} failed")
    return report_failures(failures)


if __name__ == "__main__":
    from utils.cli import run_command
    run_command(main, build_parser())
