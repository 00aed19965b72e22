"""Draws the demo's dataset as the two downloads look unpacked: SBD (benchmark_RELEASE) and VOC 2012 (VOCdevkit).

    python demo/draw_demo.py --root demo_output/raw

Nothing is downloaded. The scenes are demo/scenes.py's; this file writes them as SBD and VOC would.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.cli import run_command
from utils.errors import InputError  # noqa: E402
from utils.files import write_atomically  # noqa: E402
from demo.scenes import draw_scene, void_border  # noqa: E402
from VOC12.labels import CLASS_NAMES, colour_map  # noqa: E402
from utils.parallel import add_workers_argument, run_parallel  # noqa: E402

MARKER = "drawn_demo.json"  # names the arguments that the folders beside it were drawn with
SBD, VOC = Path("benchmark_RELEASE", "dataset"), Path("VOCdevkit", "VOC2012")
FOLDERS = (SBD.parts[0], VOC.parts[0])
MIN_TRAIN, MIN_VAL, MIN_SIZE, MAX_SIZE = 8, 4, 32, 1024
MAX_IMAGES = 100_000  # names have six digits
MAT_HEADER = b"MATLAB 5.0 MAT-file, drawn by SparseMask's demo/draw_demo.py".ljust(116)


def build_parser():
    parser = argparse.ArgumentParser(description="Draw the demo's dataset in the layout of SBD and PASCAL VOC 2012.")
    parser.add_argument("--root", type=Path, required=True,
                        help=f"folder that gets {' and '.join(FOLDERS)}")
    parser.add_argument("--n_train", type=int, default=160, help="images of trainaug (default: %(default)s)")
    parser.add_argument("--n_val", type=int, default=40, help="images of VOC's val (default: %(default)s)")
    parser.add_argument("--size", type=int, default=160,
                        help="longer side of an image in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other scenes (default: %(default)s)")
    add_workers_argument(parser)
    return parser


def image_name(index):
    """The name of scene `index` in VOC's style, such as 2008_000002. Names are unique."""
    return f"{2007 + index % 5}_{index + 1:06d}"


def split_lists(n_train, n_val):
    """The five lists: {(dataset, list): sorted names}, dataset "SBD" or "VOC".

    They overlap as the real ones do: VOC's train is a small part of trainaug, a quarter of VOC's images are missing
    from SBD, and SBD's own train and val hold images of VOC's val. The set (SBD train + SBD val + VOC train) - VOC val
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


def draw_dataset(root, n_train=160, n_val=40, size=160, seed=0, workers=None):
    """Writes the two datasets below `root`, with `workers` processes (default: all cores).

    The same arguments give the same files; a run cut short can be run again. Raises InputError for numbers out of
    range, where `root` holds datasets that these arguments did not draw, and where it cannot be written.
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
    # The lists come last: a folder with lists has every image that they name.
    for (dataset, which), names in lists.items():
        folder = root / (SBD if dataset == "SBD" else VOC / "ImageSets" / "Segmentation")
        _write(folder / f"{which}.txt", "".join(f"{name}\n" for name in names).encode())


def write_scene(root, name, seed, index, size, in_sbd, in_voc):
    """Draws scene `index` and writes its files into SBD's folders, VOC's or both. Raises InputError if it cannot."""
    scene = draw_scene(seed, index, size)
    jpeg = _jpeg(scene.image)
    if in_sbd:
        _write(root / SBD / "img" / f"{name}.jpg", jpeg)
        _write(root / SBD / "cls" / f"{name}.mat", _class_mat(scene))
        _write(root / SBD / "inst" / f"{name}.mat", _instance_mat(scene))
    if in_voc:
        _write(root / VOC / "JPEGImages" / f"{name}.jpg", jpeg)
        for folder, labels in (("SegmentationClass", scene.classes), ("SegmentationObject", scene.instances)):
            _write(root / VOC / folder / f"{name}.png", _palette_png(void_border(labels, scene.instances)))


def _check_numbers(n_train, n_val, size, seed):
    if n_train < MIN_TRAIN or n_val < MIN_VAL:
        raise InputError(f"{n_train} training and {n_val} validation images are too few for every list to have some; "
                         f"give --n_train {MIN_TRAIN} and --n_val {MIN_VAL} at least")
    if n_train + n_val > MAX_IMAGES:
        raise InputError(f"{n_train + n_val} images are too many; give {MAX_IMAGES} at most")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InputError(f"--size {size} is out of range; give {MIN_SIZE} to {MAX_SIZE} pixels")
    if seed < 0:
        raise InputError(f"--seed {seed} is negative; give 0 or more")


def _claim(root, arguments):
    """Marks `root` as drawn with these arguments. Raises InputError if it holds data drawn otherwise, or real data."""
    marker = root / MARKER
    text = json.dumps(arguments, sort_keys=True) + "\n"
    try:
        found = marker.read_text(encoding="utf-8") if marker.exists() else None
        holds_data = any((root / folder).exists() or (root / folder).is_symlink() for folder in FOLDERS)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {marker}: {error}; give another --root") from error
    if holds_data and found is None:
        raise InputError(f"{root} already holds {' or '.join(FOLDERS)}, not drawn by this program; give another --root")
    if holds_data and found != text:
        raise InputError(f"{root} holds a demo drawn with other arguments ({found.strip()[:200]}); "
                         f"remove that folder or give another --root")
    _write(marker, text.encode())


def _write(path, data):
    with write_atomically(path) as temporary:
        temporary.write_bytes(data)


def _jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=94)
    return buffer.getvalue()


def _palette_png(labels):
    """A palette PNG whose indices are `labels`, uint8 (H, W), in VOC's colours."""
    image = Image.fromarray(labels)
    image.putpalette(colour_map().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
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
    """The bytes of a MATLAB 5 file that holds one struct."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {name: fields}, do_compression=True)
    # The header's text holds the hour at which scipy wrote it: the same scene would give other bytes.
    return MAT_HEADER + buffer.getvalue()[len(MAT_HEADER):]


def _class_mat(scene):
    """SBD's cls/NAME.mat. SBD's labels have no void."""
    present = np.setdiff1d(scene.classes, [0]).astype(np.float64)[:, None]
    return _mat("GTcls", {"Boundaries": _boundaries(scene.classes, len(CLASS_NAMES) - 1),
                          "Segmentation": scene.classes, "CategoriesPresent": present})


def _instance_mat(scene):
    """SBD's inst/NAME.mat: `Segmentation` numbers the objects, `Categories` gives the class of each."""
    count = int(scene.instances.max())
    categories = [scene.classes[scene.instances == number][0] for number in range(1, count + 1)]
    return _mat("GTinst", {"Boundaries": _boundaries(scene.instances, count), "Segmentation": scene.instances,
                           "Categories": np.array(categories, dtype=np.float64).reshape(-1, 1)})


def main(args):
    draw_dataset(args.root, args.n_train, args.n_val, args.size, args.seed, args.workers)
    print(f"{args.n_train} training and {args.n_val} validation images in {args.root}")


if __name__ == "__main__":
    run_command(main, build_parser())
