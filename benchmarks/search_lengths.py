"""The search at several lengths: is each result binary, and does it span stages? Prints a Markdown table.

    python -m benchmarks.search_lengths --data ../shared/camvid --n_class 11 --out benchmarks_output/lengths

`--data` contains img, gt, train.txt and val.txt. 200 images in batches of 4 are 50 iterations
an epoch, so that 300, 1,000 and 3,000 iterations are whole epochs. A run that exists is not repeated.
"""
import argparse
from pathlib import Path

from demo.walk import run
from models import connectivity
from models.pruning import DEFAULT_THRESHOLD, gap, prune
from utils.checkpoint import read_checkpoint
from utils.cli import run_command
from utils.errors import InputError
from utils.options import HelpFormatter
from VOC12.lists import read_list

IMAGES, BATCH = 200, 4
LENGTHS = (300, 1000, 3000)
THRESHOLDS = (0.001, 0.1, 0.5)


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_lengths", description=__doc__.splitlines()[0],
                                     formatter_class=HelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with img, gt, train.txt and val.txt")
    parser.add_argument("--n_class", type=int, required=True, help="number of classes")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--crop_size", type=int, default=96, help="pixels")
    parser.add_argument("--gpu", type=int, default=0, help="index of the CUDA device, -1 for the CPU")
    return parser


def search(args, iterations):
    """The last checkpoint of a search of that length, which is run unless it is there."""
    folder = args.out / str(iterations)
    found = sorted(folder.glob(f"*/checkpoint_{iterations}.pth.tar"))
    if found:
        return found[-1]
    names = read_list(args.data / "train.txt")
    if len(names) < IMAGES:
        raise InputError(f"{args.data / 'train.txt'} contains {len(names)} names; this needs {IMAGES}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text("".join(f"{name}\n" for name in names[:IMAGES]))
    run("train_sparse_mask.py", "--search", "--im_path", args.data / "img", "--gt_path", args.data / "gt",
        "--training_list", folder / "train.txt", "--eval_list", args.data / "val.txt", "--n_class", args.n_class,
        "--pretrained_model", "none", "--lr", 0.02, "--last_layer_lr_mult", 2.5, "--batch_size", BATCH,
        "--crop_size", args.crop_size, "--gpu", args.gpu, "--max_epoch", iterations * BATCH // IMAGES,
        "--eval_interval", 10_000, "--exp_path", folder)
    return sorted(folder.glob(f"*/checkpoint_{iterations}.pth.tar"))[-1]


def row(iterations, checkpoint):
    """One line of the table."""
    strengths = read_checkpoint(checkpoint).build().final_strengths()
    cells = [f"{iterations:,}"]
    for threshold in THRESHOLDS:
        kept = prune(strengths, threshold)
        cells.append(f"{int(kept.sum())} in {len(connectivity.used_stages(kept))}")
    dropped, kept = gap(strengths, DEFAULT_THRESHOLD)
    cells += [f"{value:.1e}" if value is not None else "none" for value in (dropped, kept)]
    return f"| {' | '.join(cells)} |"


def main(args):
    paths = {"data": args.data.resolve(), "out": args.out.resolve()}  # the commands run in the repository's folder
    args = argparse.Namespace(**{**vars(args), **paths})
    rows = [row(iterations, search(args, iterations)) for iterations in LENGTHS]
    print("| iterations | " + " | ".join(f"connections, stages at {t:g}" for t in THRESHOLDS) +
          " | largest p dropped | smallest p kept |")
    print("|" + "---|" * (len(THRESHOLDS) + 3))
    print("\n".join(rows))


if __name__ == "__main__":
    run_command(main, build_parser())
