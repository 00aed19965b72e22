"""The whole path on a small drawn dataset, with the real commands: `make demo`, or `python -m demo`.

Draws scenes in the raw layout of the two downloads, then prepare, search, prune, train and eval, each as the command
that it prints. Everything goes to demo_output/.
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
from PIL import Image

from models import connectivity
from utils.cli import run_command
from utils.errors import InputError
from utils.files import write_atomically
from utils.metrics import confusion_matrix, scores
from utils.options import HelpFormatter
from utils.pictures import palette_image, side_by_side
from VOC12.dataset import read_label
from VOC12.labels import CLASS_NAMES
from VOC12.lists import read_list

SHOWN = 3  # images of the validation list, in the picture of the predictions
ROOT = Path(__file__).resolve().parents[1]
COMMON = ["--pretrained_model", "none", "--batch_size", "8", "--crop_size", "128", "--n_worker", "2",
          "--log_interval", "10"]
# The encoder starts from random weights here, so its learning rate is nearer to the decoder's, which is the usual 0.05.
SEARCH_RATES = ["--lr", "0.02", "--last_layer_lr_mult", "2.5"]
TRAIN_RATES = ["--lr", "0.05", "--last_layer_lr_mult", "1"]


def build_parser():
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__.splitlines()[0],
                                     formatter_class=HelpFormatter)
    parser.add_argument("--out", default="demo_output", help="folder for everything that the demo writes")
    parser.add_argument("--search_epochs", type=int, default=20)
    parser.add_argument("--train_epochs", type=int, default=40)
    parser.add_argument("--gpu", type=int, default=0, help="index of the CUDA device, -1 for the CPU")
    return parser


def run(*command):
    """Prints a command of this repository, runs it, and returns what it wrote to standard output."""
    command = [str(part) for part in command]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    lines = []
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    except KeyboardInterrupt:  # it got the signal too: let it save, and show what it says
        print(process.stdout.read(), end="", flush=True)
        raise
    finally:
        code = process.wait()
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise InputError(f"this command failed with exit code {code}: python {shlex.join(command)}")
    return "".join(lines)


def newest_run(folder):
    """The run folder that was made last, and its last checkpoint."""
    path = max((p for p in folder.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
    checkpoints = path.glob("checkpoint_[0-9]*.pth.tar")
    return path, max(checkpoints, key=lambda p: int(re.search(r"\d+", p.name)[0]))


def background_m_iou(data):
    """mIoU of predicting background everywhere."""
    confusion = 0
    for name in read_list(data / "val.txt"):
        label = torch.from_numpy(read_label(data / "gt" / f"{name}.png", len(CLASS_NAMES)).astype(np.int64))
        confusion = confusion + confusion_matrix(torch.zeros_like(label), label, len(CLASS_NAMES))
    return scores(confusion).m_iou


def show_predictions(data, predictions, names, path):
    """A row an image, its truth, what was predicted: as one PNG."""
    rows = []
    for name in names:
        truth = read_label(data / "gt" / f"{name}.png", len(CLASS_NAMES))
        rows.append([Image.open(data / "img" / f"{name}.jpg"), palette_image(truth, len(CLASS_NAMES)),
                     Image.open(predictions / f"{name}.png")])
    with write_atomically(path) as temporary:
        side_by_side(rows, ("image", "truth", "prediction")).save(temporary, format="PNG")


def main(args):
    start = time.monotonic()
    out = Path(args.out).resolve()
    data = out / "data"
    run("demo/draw_demo.py", "--root", out / "raw")
    run("VOC12/prepare.py", "--root", out / "raw", "--data", data, "--trainaug_count", 0)
    device = ["--gpu", args.gpu]
    folders = ["--im_path", data / "img", "--gt_path", data / "gt", "--eval_list", data / "val.txt"]
    lists = [*folders, "--training_list", data / "train_aug.txt"]

    run("train_sparse_mask.py", "--search", *lists, *COMMON, *SEARCH_RATES, *device, "--max_epoch", args.search_epochs,
        "--eval_interval", 5, "--exp_path", out / "search")
    search, checkpoint = newest_run(out / "search")
    run("prune.py", "--checkpoint", checkpoint)
    mask = search / f"mask_thres_{connectivity.DEFAULT_THRESHOLD:g}.npy"

    run("train_sparse_mask.py", "--mask_path", mask, *lists, *COMMON, *TRAIN_RATES, *device, "--max_epoch",
        args.train_epochs, "--eval_interval", 10, "--exp_path", out / "train")
    training, checkpoint = newest_run(out / "train")
    printed = run("eval_sparse_mask.py", "--pretrained_model", checkpoint, *folders, *device)

    pictures = out / "pictures"
    run("draw.py", search, "--out", pictures)
    shown = read_list(data / "val.txt")[:SHOWN]
    run("predict.py", *(data / "img" / f"{name}.jpg" for name in shown), "--checkpoint", checkpoint, "--out",
        out / "predictions", *device)
    show_predictions(data, out / "predictions", shown, pictures / "predictions.png")

    found = float(re.search(r"^mIoU\s+([\d.]+)", printed, re.MULTILINE)[1])
    kept = connectivity.load(mask)
    rows = (("mIoU of the network that the search found", f"{found:.2f} %"),
            ("mIoU of predicting background everywhere", f"{100 * background_m_iou(data):.2f} %"),
            ("connections found", f"{int(kept.sum())} of 90, in {len(connectivity.used_stages(kept))} of 9 stages"),
            ("run folder of the search", search), ("run folder of the training", training),
            ("mask, and as text", f"{mask}, {mask.with_suffix('.txt').name}"),
            ("predictions, overlays", out / "predictions"),
            ("pictures", f"{pictures}: architecture, strengths, strengths_over_time, predictions"),
            ("curves", f".venv/bin/tensorboard --logdir {out}"),
            ("time", f"{(time.monotonic() - start) / 60:.1f} minutes"))
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    run_command(main, build_parser())
