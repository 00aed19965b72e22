"""The whole path on a small drawn dataset, with the real commands: `make demo`, or `python -m demo`.

Draws scenes in the layout of the two downloads, then prepares, searches, prunes, trains and evaluates, each with the
command that it prints. Everything is written to demo_output/.
"""
import argparse
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from models import connectivity, pruning
from utils.errors import InputError
from utils.metrics import confusion_matrix, scores
from utils.options import HelpFormatter
from utils.pictures import palette_image, side_by_side
from VOC12.image_io import open_image, write_png
from VOC12.index_png import read_label
from VOC12.labels import CLASS_NAMES
from VOC12.lists import read_list

SHOWN = 3  # images of the validation list in the picture of the predictions
ROOT = Path(__file__).resolve().parents[1]
COMMON = ["--pretrained_model", "none", "--batch_size", "8", "--crop_size", "128", "--n_worker", "2",
          "--log_interval", "10"]
# The encoder starts from random weights here, so its learning rate is nearer to the decoder's, which is the usual 0.05.
SEARCH_RATES = ["--lr", "0.02", "--last_layer_lr_mult", "2.5"]
TRAIN_RATES = ["--lr", "0.05", "--last_layer_lr_mult", "1"]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__.splitlines()[0],
                                     formatter_class=HelpFormatter)
    parser.add_argument("--out", default="demo_output", help="folder for everything that the demo writes")
    parser.add_argument("--search_epochs", type=int, default=20)
    parser.add_argument("--train_epochs", type=int, default=40)
    parser.add_argument("--gpu", type=int, default=0, help="index of the CUDA device, -1 for the CPU")
    return parser


def main(args: argparse.Namespace) -> None:
    """Runs all commands in turn and prints a summary."""
    start = time.monotonic()
    out, device = Path(args.out).resolve(), ["--gpu", args.gpu]
    data = out / "data"
    run("demo/draw_demo.py", "--root", out / "raw")
    run("VOC12/prepare.py", "--root", out / "raw", "--data", data, "--trainaug_count", 0)

    folders = ["--im_path", data / "img", "--gt_path", data / "gt", "--eval_list", data / "val.txt"]
    lists = [*folders, "--training_list", data / "train_aug.txt"]
    run("train_sparse_mask.py", "--search", *lists, *COMMON, *SEARCH_RATES, *device, "--max_epoch", args.search_epochs,
        "--eval_interval", 5, "--exp_path", out / "search")
    search, checkpoint = newest_run(out / "search")
    run("prune.py", "--checkpoint", checkpoint)
    mask = search / f"mask_thres_{pruning.DEFAULT_THRESHOLD:g}.npy"

    run("train_sparse_mask.py", "--mask_path", mask, *lists, *COMMON, *TRAIN_RATES, *device, "--max_epoch",
        args.train_epochs, "--eval_interval", 10, "--exp_path", out / "train")
    training, checkpoint = newest_run(out / "train")
    printed = run("eval_sparse_mask.py", "--pretrained_model", checkpoint, *folders, *device)
    m_iou = float(re.search(r"^mIoU\s+([\d.]+)", printed, re.MULTILINE)[1])

    pictures, predictions = out / "pictures", out / "predictions"
    run("draw.py", search, "--out", pictures)
    shown = read_list(data / "val.txt")[:SHOWN]
    run("predict.py", *(data / "img" / f"{name}.jpg" for name in shown), "--checkpoint", checkpoint, "--out",
        predictions, *device)
    show_predictions(data, predictions, shown, pictures / "predictions.png")

    kept = connectivity.load(mask)
    num_stages = len(kept)
    print_table((("mIoU of the network that the search found", f"{m_iou:.2f} %"),
                 ("mIoU of predicting background everywhere", f"{100 * background_m_iou(data):.2f} %"),
                 ("connections found", f"{int(kept.sum())} of {num_stages * (num_stages + 1)}, in "
                                       f"{len(connectivity.used_stages(kept))} of {num_stages} stages"),
                 ("run folder of the search", search), ("run folder of the training", training),
                 ("mask, and as text", f"{mask}, {mask.with_suffix('.txt').name}"),
                 ("predictions, overlays", predictions),
                 ("pictures", f"{pictures}: architecture, strengths, strengths_over_time, predictions"),
                 ("curves", f".venv/bin/tensorboard --logdir {out}"),
                 ("time", f"{(time.monotonic() - start) / 60:.1f} minutes")))


def run(*command: object) -> str:
    """Prints a command of this repository, runs it, and returns what it wrote to standard output.

    Raises InputError if the command fails.
    """
    command = [str(part) for part in command]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    lines = []
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    except KeyboardInterrupt:  # the command got the signal too: let it save, and show its output
        print(process.stdout.read(), end="", flush=True)
        raise
    finally:
        code = process.wait()
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise InputError(f"this command failed with exit code {code}: python {shlex.join(command)}")
    return "".join(lines)


def newest_run(folder: Path) -> tuple[Path, Path]:
    """The newest run folder, and its last checkpoint."""
    path = max((p for p in folder.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
    checkpoints = path.glob("checkpoint_[0-9]*.pth.tar")
    return path, max(checkpoints, key=lambda p: int(re.search(r"\d+", p.name)[0]))


def background_m_iou(data: Path) -> float:
    """mIoU of predicting background everywhere."""
    confusion = 0
    for name in read_list(data / "val.txt"):
        label = torch.from_numpy(read_label(data / "gt" / f"{name}.png", len(CLASS_NAMES)).astype(np.int64))
        confusion = confusion + confusion_matrix(torch.zeros_like(label), label, len(CLASS_NAMES))
    return scores(confusion).m_iou


def show_predictions(data: Path, predictions: Path, names: list[str], path: Path) -> None:
    """Writes one PNG with a row for each image: the image, its label, the prediction."""
    rows = []
    for name in names:
        truth = read_label(data / "gt" / f"{name}.png", len(CLASS_NAMES))
        rows.append([open_image(data / "img" / f"{name}.jpg", "the image"), palette_image(truth, len(CLASS_NAMES)),
                     open_image(predictions / f"{name}.png", "the prediction")])
    write_png(path, side_by_side(rows, ("image", "truth", "prediction")))


def print_table(rows: tuple[tuple[str, object], ...]) -> None:
    """Prints rows of (name, value) in two columns."""
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
