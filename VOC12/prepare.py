"""Prepares PASCAL VOC 2012 and SBD for training, from the two archives to VOC12/data.

    python VOC12/prepare.py --root ROOT [--download]

Nothing that was downloaded is moved or changed; the new files are written beside it.
Run again to continue after a stop.
"""
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from utils.errors import InputError
from utils.parallel import WORKERS_OPTION, report_failures
from VOC12 import convert_labels, convert_mat_to_png
from VOC12.conversion import Counts
from VOC12.download import fetch, file_md5
from VOC12.join import TRAINAUG, check_data_link, link_files, make_data_link, read_lists, trainaug, verify, write_list
from VOC12.unpack import unpack

Failures = list[tuple[str, str]]  # (name or path of a file, sentence)


class Archive(NamedTuple):
    """An archive: its file's name, the folder that it unpacks to, and where to download it.

    layouts: where in ROOT the data set may be; the first is its place in `folder`. contents: what must be there.
    """
    name: str
    folder: str
    layouts: tuple[str, ...]
    contents: tuple[str, ...]
    md5: str
    addresses: tuple[str, ...]


SBD = Archive("benchmark.tgz", "benchmark_RELEASE", convert_mat_to_png.LAYOUTS, ("img", "cls", "train.txt", "val.txt"),
              "82b4d87ceb2ed10f6038a1cba92111cb",
              ("https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",))
VOC = Archive("VOCtrainval_11-May-2012.tar", "VOCdevkit/VOC2012",
              ("VOCdevkit/VOC2012", "TrainVal/VOCdevkit/VOC2012", "VOC2012"),
              ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation/train.txt",
               "ImageSets/Segmentation/val.txt"),
              "6cd6e144f989b92b3379bac3b3de84fd",
              ("http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
               "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"))


def prepare(root: str | Path, data: str | Path, download: bool = False, archives: Sequence[Archive] = (SBD, VOC),
            trainaug_count: int = TRAINAUG, workers: int | None = None) -> Failures:
    """All steps. Each prints one line, and is skipped where it is done. Returns the failures.

    root: the folder with the archives, or with the folders that they unpack to, as they are or as torchvision arranges
    them. data: the folder for the lists and the
    links img and gt. download: whether to download missing archives. Raises InputError if something is missing, or if
    something else has the name of a link.
    """
    root, data = Path(root), Path(data)
    joined = root / "joined"
    for kind in ("img", "gt"):
        check_data_link(data, kind, joined)  # before minutes of work
    sbd, voc = provide(root, archives, download)
    lists = read_lists(sbd, voc)
    names = trainaug(lists, trainaug_count)

    counts = convert_mat_to_png.convert_folder(sbd, workers)
    if _report_conversion("2 SBD's labels", sbd / "cls_png", counts):
        return counts[-1]
    voc_labels = voc / "SegmentationClass_1D"
    counts = convert_labels.convert_folder(voc / "SegmentationClass", lists["VOC train"] + lists["VOC val"],
                                           voc_labels, workers)
    if _report_conversion("3 VOC's labels", voc_labels, counts):
        return counts[-1]

    images, labels = {}, {}
    for image_folder, label_folder, keys in ((sbd / "img", sbd / "cls_png", ("SBD train", "SBD val")),
                                             (voc / "JPEGImages", voc_labels, ("VOC train", "VOC val"))):
        for name in (name for key in keys for name in lists[key]):  # VOC comes last and replaces SBD's
            images[f"{name}.jpg"] = image_folder / f"{name}.jpg"
            labels[f"{name}.png"] = label_folder / f"{name}.png"
    changed = link_files(images, joined / "img") + link_files(labels, joined / "gt")
    print(f"4 joined folders: {joined}: {changed or 'no'} new links to {len(images)} images and their labels")

    files = {"train.txt": lists["VOC train"], "val.txt": lists["VOC val"], "train_aug.txt": names}
    changed = [write_list(data / name, content) for name, content in files.items()]
    changed += [make_data_link(data, kind, joined) for kind in ("img", "gt")]
    lengths = ", ".join(f"{name} {len(content)}" for name, content in files.items())
    print(f"5 lists and links: {data}: {'written' if any(changed) else 'already there'} ({lengths})")

    listed = dict.fromkeys(name for content in files.values() for name in content)
    failures = verify(listed, data / "img", data / "gt", workers)
    print(f"verified: {len(listed) - len(failures)} of {len(listed)} listed images and labels are right")
    return failures


def provide(root: Path, archives: Sequence[Archive], download: bool) -> list[Path]:
    """Unpacks each of `archives` in `root` if its data set is not there, downloading it first if `download`.

    Returns the folders of the data sets. Raises InputError if one is missing.
    """
    if root.is_file():
        raise InputError(f"{root} is a file; give the folder that the archives are in", about="root")
    missing = [archive for archive in archives
               if find_unpacked(root, archive) is None and not (root / archive.name).is_file()]
    if missing and not download:
        sources = "; ".join(f"{archive.name} (or, unpacked, {archive.folder}) from {archive.addresses[0]}"
                            for archive in missing)
        raise InputError(f"{root} {'lacks archives' if root.is_dir() else 'does not exist'}: put there {sources}; "
                         f"or let this command download the archives", about="download")
    places = []
    for archive in archives:
        file, folder = root / archive.name, find_unpacked(root, archive)
        done = folder is not None
        if not done:
            if download and not file.is_file():
                fetch(archive.addresses, file, archive.md5)
            elif download and file_md5(file) != archive.md5:
                raise InputError(f"{file} is not the archive expected, or only a part of it (its md5 is not "
                                 f"{archive.md5}); move it away, and run again to download it")
            unpack(file, root / archive.folder)
            folder = root / archive.layouts[0]
        lacks = [path for path in archive.contents if not (folder / path).exists()]
        if lacks:
            raise InputError(f"{folder} lacks {', '.join(lacks)}: it was unpacked in part, or from another archive; "
                             f"move {root / archive.folder} away, and run again to unpack {archive.name} again")
        print(f"1 archive: {folder}: {'already there' if done else 'unpacked'}")
        places.append(folder)
    return places


def find_unpacked(root: Path, archive: Archive) -> Path | None:
    """The folder of an archive's data set, even if it was unpacked in part, or None if there is none."""
    for layout in archive.layouts:
        if all((root / layout / path).exists() for path in archive.contents):
            return root / layout
    return root / archive.layouts[0] if (root / archive.folder).exists() else None


def _report_conversion(step: str, folder: Path, counts: Counts) -> bool:
    """Prints a conversion's counts. Returns whether any file failed."""
    written, kept, failures = counts
    print(f"{step}: {folder}: {written} written, {kept} already there, {len(failures)} failed")
    return bool(failures)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Prepare VOC 2012 and SBD for training: unpack, convert, join, write "
                                                 "the lists, verify. A run that was stopped continues where it was.")
    parser.add_argument("--root", required=True, metavar="ROOT",
                        help=f"folder with {SBD.name} and {VOC.name}, or what they unpack to; all is made in it")
    parser.add_argument("--download", action="store_true", help="fetch the archives that are missing (3.3 GB)")
    parser.add_argument("--sbd_url", metavar="URL", help=f"with --download: where to fetch {SBD.name}")
    parser.add_argument("--voc_url", metavar="URL", help=f"with --download: where to fetch {VOC.name}")
    parser.add_argument("--data", default=str(Path(__file__).resolve().parent / "data"), metavar="FOLDER",
                        help="folder for the lists and the links img and gt (default: VOC12/data)")
    parser.add_argument("--trainaug_count", type=_count, default=TRAINAUG, metavar="N",
                        help="how many names train_aug.txt must come to; 0: any number (default: %(default)s)")
    parser.add_argument("--workers", **WORKERS_OPTION)
    return parser


def main(args: argparse.Namespace) -> int:
    """Prepares the data. Returns the exit code: 1 if a file failed."""
    if (args.sbd_url or args.voc_url) and not args.download:
        raise InputError("--sbd_url and --voc_url say where to download from; pass --download too")
    archives = (SBD._replace(addresses=(args.sbd_url,)) if args.sbd_url else SBD,
                VOC._replace(addresses=(args.voc_url,)) if args.voc_url else VOC)
    return report_failures(prepare(args.root, args.data, args.download, archives, args.trainaug_count, args.workers))


def _count(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


if __name__ == "__main__":
    from utils.cli import run_command
    run_command(main, build_parser())
