"""Draws the demo's dataset as the two downloads look unpacked: SBD (benchmark_RELEASE) and VOC 2012 (VOCdevkit).

    python demo/draw_demo.py --root demo_output/raw

Nothing is downloaded. demo/scenes.py draws the scenes; this file writes them in the formats of SBD and VOC.
"""
import argparse
import io
import json
import sys
from pathlib import Path

import numpy as np
import scipy.io
import scipy.sparse
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from demo.scenes import Scene, draw_scene, void_border
from utils.cli import run_command
from utils.errors import InputError
from utils.files import write_atomically
from utils.parallel import WORKERS_OPTION, run_parallel
from VOC12.index_png import write_label_png
from VOC12.labels import CLASS_NAMES

MARKER = "drawn_demo.json"  # the arguments that the folders beside it were drawn with
SBD, VOC = Path("benchmark_RELEASE", "dataset"), Path("VOCdevkit", "VOC2012")
FOLDERS = (SBD.parts[0], VOC.parts[0])
MIN_TRAIN, MIN_VAL = 8, 4  # images
MIN_LENGTH, MAX_LENGTH = 32, 1024  # pixels of an image's longer side
MAX_IMAGES = 100_000  # names have six digits
MAT_HEADER = b"MATLAB 5.0 MAT-file, drawn by SparseMask's demo/draw_demo.py".ljust(116)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw the demo's dataset in the layout of SBD and PASCAL VOC 2012.")
    parser.add_argument("--root", type=Path, required=True,
                        help=f"folder for {' and '.join(FOLDERS)}")
    parser.add_argument("--n_train", type=int, default=160, help="images of trainaug (default: %(default)s)")
    parser.add_argument("--n_val", type=int, default=40, help="images of VOC's val (default: %(default)s)")
    parser.add_argument("--size", type=int, default=160,
                        help="longer side of an image in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other scenes (default: %(default)s)")
    parser.add_argument("--workers", **WORKERS_OPTION)
    return parser


def image_name(index: int) -> str:
    """The name of scene `index` in VOC's style, such as 2008_000002. Names are unique."""
    return f"{2007 + index % 5}_{index + 1:06d}"


def split_lists(n_train: int, n_val: int) -> dict[tuple[str, str], list[str]]:
    """The five lists: {(dataset, list): sorted names}, dataset "SBD" or "VOC".

    They overlap as the real ones do: VOC's train is a small part of trainaug, a quarter of VOC's images are missing
    from SBD, and SBD's own train and val have images of VOC's val. The set (SBD train + SBD val + VOC train) - VOC val
    has `n_train` names and VOC val has `n_val`.
    """
    training = [image_name(i) for i in range(n_train)]
    voc_val = [image_name(i) for i in range(n_train, n_train + n_val)]
    voc_train = training[::4]
    voc_only = set(voc_train[::4]) | set(voc_val[::4])
    sbd = [name for name in training + voc_val if name not in voc_only]
    sbd_val = sbd[3::4]
    lists = {("SBD", "train"): set(sbd) - set(sbd_val), ("SBD", "val"): sbd_val,
             ("VOC", "train"): voc_train, ("VOC", "val"): voc_val, ("VOC", "trainval"): voc_train + voc_val}
    return {key: sorted(names) for key, names in lists.items()}


def draw_dataset(root: str | Path, n_train: int = 160, n_val: int = 40, size: int = 160, seed: int = 0,
                 workers: int | None = None) -> None:
    """Writes the two datasets below `root`, with `workers` processes (default: all cores).

    The same arguments give the same files; after a stop it can be run again. Raises InputError for numbers out of
    range, if `root` has datasets that were not drawn with these arguments, and if it cannot be written.
    """
    _check_numbers(n_train, n_val, size, seed)
    root = Path(root)
    _claim(root, {"n_train": n_train, "n_val": n_val, "size": size, "seed": seed})
    lists = split_lists(n_train, n_val)
    in_sbd, in_voc = {*lists["SBD", "train"], *lists["SBD", "val"]}, set(lists["VOC", "trainval"])
    tasks = {name: (root, name, seed, index, size, name in in_sbd, name in in_voc)
             for index, name in enumerate(map(image_name, range(n_train + n_val)))}
    _, failures = run_parallel(write_scene, tasks, "drawing", workers)
    if failures:
        raise InputError(failures[0][1])
    # The lists come last: where they exist, so do all images that they name.
    for (dataset, which), names in lists.items():
        folder = root / (SBD if dataset == "SBD" else VOC / "ImageSets" / "Segmentation")
        _write(folder / f"{which}.txt", "".join(f"{name}\n" for name in names).encode())


def write_scene(root: Path, name: str, seed: int, index: int, size: int, in_sbd: bool, in_voc: bool) -> None:
    """Draws scene `index` and writes its files for SBD, VOC or both. Raises InputError if they cannot be written."""
    scene = draw_scene(seed, index, size)
    jpeg = _jpeg(scene.image)
    if in_sbd:
        _write(root / SBD / "img" / f"{name}.jpg", jpeg)
        _write(root / SBD / "cls" / f"{name}.mat", _class_mat(scene))
        _write(root / SBD / "inst" / f"{name}.mat", _instance_mat(scene))
    if in_voc:
        _write(root / VOC / "JPEGImages" / f"{name}.jpg", jpeg)
        for folder, labels in (("SegmentationClass", scene.classes), ("SegmentationObject", scene.instances)):
            write_label_png(root / VOC / folder / f"{name}.png", void_border(labels, scene.instances))


def _check_numbers(n_train, n_val, size, seed):
    if n_train < MIN_TRAIN or n_val < MIN_VAL:
        raise InputError(f"{n_train} training and {n_val} validation images are too few for every list to have some; "
                         f"give --n_train {MIN_TRAIN} and --n_val {MIN_VAL} at least")
    if n_train + n_val > MAX_IMAGES:
        raise InputError(f"{n_train + n_val} images are too many; give {MAX_IMAGES} at most")
    if not MIN_LENGTH <= size <= MAX_LENGTH:
        raise InputError(f"--size {size} is out of range; give {MIN_LENGTH} to {MAX_LENGTH} pixels")
    if seed < 0:
        raise InputError(f"--seed {seed} is negative; give 0 or more")


def _claim(root, arguments):
    """Marks `root` as drawn with these arguments. Raises InputError if it has real data, or was drawn with others."""
    marker = root / MARKER
    text = json.dumps(arguments, sort_keys=True) + "\n"
    try:
        found = marker.read_text(encoding="utf-8") if marker.exists() else None
        holds_data = any((root / folder).exists() or (root / folder).is_symlink() for folder in FOLDERS)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {marker}: {error}; give another --root") from error
    if holds_data and found is None:
        raise InputError(f"{root} already has {' or '.join(FOLDERS)}, not drawn by this program; give another --root")
    if holds_data and found != text:
        raise InputError(f"{root} has a demo drawn with other arguments ({found.strip()[:200]}); "
                         f"remove that folder or give another --root")
    _write(marker, text.encode())


def _write(path, data):
    with write_atomically(path) as temporary:
        temporary.write_bytes(data)


def _jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=94)
    return buffer.getvalue()


def _boundaries(labels, count):
    """SBD's `Boundaries`: a MATLAB cell (count, 1) of sparse logical (H, W), the edge pixels of labels 1..count."""
    cells = np.empty((count, 1), dtype=object)
    for label in range(1, count + 1):
        inside = np.pad(labels == label, 1, mode="edge")
        core = inside[1:-1, :-2] & inside[1:-1, 2:] & inside[:-2, 1:-1] & inside[2:, 1:-1]
        cells[label - 1, 0] = scipy.sparse.csc_matrix(inside[1:-1, 1:-1] & ~core)
    return cells


def _mat(name, fields):
    """The bytes of a MATLAB 5 file with one struct."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {name: fields}, do_compression=True)
    # scipy writes the time into the header: the same scene would give other bytes.
    return MAT_HEADER + buffer.getvalue()[len(MAT_HEADER):]


def _class_mat(scene: Scene) -> bytes:
    """SBD's cls/NAME.mat. SBD's labels have no void."""
    present = np.setdiff1d(scene.classes, [0]).astype(np.float64)[:, None]
    return _mat("GTcls", {"Boundaries": _boundaries(scene.classes, len(CLASS_NAMES) - 1),
                          "Segmentation": scene.classes, "CategoriesPresent": present})


def _instance_mat(scene: Scene) -> bytes:
    """SBD's inst/NAME.mat: `Segmentation` numbers the objects, `Categories` is the class of each."""
    count = int(scene.instances.max())
    categories = [scene.classes[scene.instances == number][0] for number in range(1, count + 1)]
    return _mat("GTinst", {"Boundaries": _boundaries(scene.instances, count), "Segmentation": scene.instances,
                           "Categories": np.array(categories, dtype=np.float64).reshape(-1, 1)})


def main(args: argparse.Namespace) -> None:
    """Draws the dataset."""
    draw_dataset(args.root, args.n_train, args.n_val, args.size, args.seed, args.workers)
    print(f"{args.n_train} training and {args.n_val} validation images in {args.root}")


if __name__ == "__main__":
    run_command(main, build_parser())
