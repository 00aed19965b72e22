"""Loading of samples and the evaluation command, on image files, against the plain reading."""
import functools
import importlib.util
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.plain_loading import plain_train_transform
from benchmarks.timing import median_times
from demo.draw_demo import write_scene
from models import SparseMask, connectivity
from utils.errors import InputError
from utils.parallel import run_parallel
from utils.progress import progress_bar
from utils.tensor_files import save_file
from VOC12.image_io import read_image
from VOC12.index_png import read_label
from VOC12.transforms import TrainTransform

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 100  # of the list whose evaluation is timed, drawn, 500 pixels on the longer side


def scene_files(count):
    """Folder with `count` drawn scenes in VOC's layout, their list, and the names."""
    root = ROOT / "benchmarks_output" / "scenes"
    names = [f"scene_{i:03d}" for i in range(count)]
    voc = root / "VOCdevkit" / "VOC2012"
    todo = {name: (root, name, 0, i, 500, False, True) for i, name in enumerate(names)
            if not (voc / "SegmentationClass" / f"{name}.png").exists()}
    _, failures = run_parallel(write_scene, todo, "drawing")
    if failures:
        raise InputError(failures[0][1])
    listed = root / "list.txt"
    listed.write_text("\n".join(names) + "\n")
    return voc / "JPEGImages", voc / "SegmentationClass", listed, names


def loading():
    """Rows of loading one training sample, on one core."""
    images, labels, _, names = scene_files(IMAGES)
    transform, keys = TrainTransform(513), iter(range(10 ** 9))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader process

    def load(read_only, apply):
        key = next(keys) % len(names)
        image, label = read_image(images / f"{names[key]}.jpg"), read_label(labels / f"{names[key]}.png", 21)
        return None if read_only else apply(image, label, np.random.default_rng(key))

    t = median_times({"plain": lambda: load(False, functools.partial(plain_train_transform, crop_size=513)),
                      "ours": lambda: load(False, transform), "decode": lambda: load(True, None)}, 5, 20)
    torch.set_num_threads(threads)
    yield "loading a training sample, 500 pixels, JPEG + PNG, one core", t["plain"], t["ours"]
    yield "loading, floor: decoding alone", t["plain"], t["decode"]


def has_onnx():
    """Whether what --engine onnx needs is installed."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def evaluation(device):
    """Rows of a whole evaluation command."""
    images, labels, listed, names = scene_files(IMAGES)
    path = ROOT / "benchmarks_output" / "network.pth.tar"
    torch.manual_seed(0)
    network = SparseMask(connectivity.load("published"))
    save_file(path, {"iter": 0, "state_dict": network.state_dict(), "optimizer": {}})
    gpu = "0" if device.type == "cuda" else "-1"
    ours = ["eval_sparse_mask.py", "--pretrained_model", path, "--mask_path", "published", "--im_path", images,
            "--gt_path", labels, "--eval_list", listed, "--gpu", gpu]
    commands = {"plain": ["-m", "benchmarks.plain_eval", path, images, labels, listed, "--gpu", gpu], "float32": ours,
                "bfloat16": [*ours, "--type", "bfloat16"], "float32, --compile": [*ours, "--compile"],
                "floor: imports and the empty interpreter": ["-c", "import torch, eval_sparse_mask"]}
    if device.type == "cpu" and has_onnx():  # it runs there alone
        commands["float32, --engine onnx"] = [*ours, "--engine", "onnx"]
    found = {}

    def call(name):
        done = subprocess.run([sys.executable, *map(str, commands[name])], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        found[name] = [line for line in done.stdout.splitlines() if line.startswith("mIoU")]

    times = {name: [] for name in commands}
    for i in progress_bar(range(4), desc="evaluation", leave=False):
        for name in commands:
            start = time.perf_counter()
            call(name)
            if i:  # the first time files are read from the disk, and --engine onnx exports the network
                times[name].append(time.perf_counter() - start)
    scores = [float(lines[0].split()[-1]) for name, lines in found.items() if name == "plain" or "float32" in name]
    if max(scores) - min(scores) > 0.01:
        raise RuntimeError(f"the evaluations differ: {scores}")
    t = {name: statistics.median(values) for name, values in times.items()}
    for name in list(t)[1:]:
        yield f"evaluation of {len(names)} images, whole command, {name}", t["plain"], t[name]
