"""One process against two (torchrun, gloo, CPU) with the same global batch: losses and scores, as Markdown.

    make demo
    python -m benchmarks.processes --data demo_output/data --checkpoint CHECKPOINT    (of demo_output/train)

Both have one thread a process and --sync_bn. From random weights the steps are chaotic: the last row compares one
process of one thread with one of two. So that run is in float64; from trained weights float32 shows the same.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# title: (options, steps, threads of each process of the two runs)
ENCODER = ["--pretrained_model", "CHECKPOINT", "--lr", 1e-4]
NOTHING = ["--pretrained_model", "none"]
RUNS = {"search, encoder of a trained checkpoint, float64":
            (["--search", *ENCODER, "--type", "float64"], 20, (1,), (1, 1)),
        "search, encoder of a trained checkpoint, float32": (["--search", *ENCODER], 8, (1,), (1, 1)),
        "train, from a trained checkpoint, float32": (["--ft_model", "CHECKPOINT", "--lr", 1e-4], 20, (1,), (1, 1)),
        "train, random weights, float64":
            (["--mask_path", "published", *NOTHING, "--type", "float64"], 5, (1,), (1, 1)),
        "train, random weights, float32, one process of one thread against one of two":
            (["--mask_path", "published", *NOTHING], 5, (1,), (2,))}
BATCH = 8
LISTS = ("train_aug.txt", "train.txt")


def start(threads, *command):
    """Runs a script by a process for each item of `threads`, with that number of threads. Returns what it printed."""
    processes = len(threads)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    result = subprocess.run([sys.executable, *launcher, *map(str, command)], cwd=ROOT, text=True, capture_output=True,
                            env={**os.environ, "OMP_NUM_THREADS": str(threads[0])})
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    return result.stdout


def losses_of(threads, options, out):
    """A training or search: the loss of each step."""
    start(threads, "train_sparse_mask.py", *options, "--exp_path", out)
    rows = json.loads((next(out.iterdir()) / "tensorboard.json").read_text())["train/loss"]
    return np.array([row[2] for row in rows])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with img, gt, train.txt and val.txt")
    parser.add_argument("--n_class", type=int, default=21)
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a training on that data")
    args = parser.parse_args()
    data = args.data.resolve()
    checkpoint = args.checkpoint.resolve()
    folders = ["--im_path", data / "img", "--gt_path", data / "gt", "--gpu", -1]
    print("| one process against two | largest difference of the losses | losses |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = next(data / name for name in LISTS if (data / name).exists()).read_text().split()
        for number, (title, (what, steps, *runs)) in enumerate(RUNS.items()):
            (root / "train.txt").write_text("\n".join(names[:BATCH * steps]))
            what = [checkpoint if word == "CHECKPOINT" else word for word in what]
            size = ["--n_class", args.n_class] if "--ft_model" not in what else []
            options = [*what, *folders, *size, "--training_list", root / "train.txt", "--eval_list", data / "val.txt",
                       "--crop_size", 129, "--batch_size", BATCH, "--max_epoch", 1,
                       "--log_interval", 1, "--n_worker", 1, "--sync_bn"]
            one, two = (losses_of(threads, options, root / f"{number}_{i}")
                        for i, threads in enumerate(runs))
            print(f"| {title}, {len(one)} steps | {abs(one - two).max():.1e} | {one[0]:.3f} to {one[-1]:.3f} |",
                  flush=True)
    printed = [start(threads, "eval_sparse_mask.py", "--pretrained_model", checkpoint, *folders, "--eval_list",
                     data / "val.txt") for threads in ((1,), (1, 1))]
    scores = [re.findall(r"^(mIoU|pixel accuracy) +([\d.]+)$", text, re.MULTILINE) for text in printed]
    print(f"\neval_sparse_mask.py: one process {dict(scores[0])}, two {dict(scores[1])}")


if __name__ == "__main__":
    main()
