"""What several test files share: small seeded inputs, and the commands, in this process or in one of their own."""
import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PARITY = ROOT / "tests" / "parity"
# Options of a run on the images of `tiny_data`, on a CPU.
TINY = ["--pretrained_model", "none", "--gpu", "-1", "--depth", "4", "--n_class", "3", "--crop_size", "64",
        "--batch_size", "2", "--n_worker", "0", "--log_interval", "1"]
if str(ROOT) not in sys.path:  # tests, and the scripts in this folder, run from any folder
    sys.path.insert(0, str(ROOT))
# One thread, here and in the processes that tests start: the inputs are tiny, and it keeps the order of the sums.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def filled(state):
    """A state dict whose every float tensor is a pure function of its name and shape: what the parity figures use."""
    out = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            out[name] = tensor.clone()
            continue
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        leaf = name.rpartition(".")[2]
        values = rng.standard_normal(tuple(tensor.shape))
        if leaf == "_weight_":
            values = rng.uniform(0.05, 1.95, tuple(tensor.shape))
        elif tensor.ndim == 4:
            values *= np.sqrt(2.0 / np.prod(tensor.shape[1:]))
        elif leaf == "weight":
            values = 1 + 0.1 * values
        elif leaf == "running_var":
            values = 1 + 0.1 * np.abs(values)
        else:
            values *= 0.1
        out[name] = torch.from_numpy(values.astype(np.float32))
    return out


def parity_batch(figures):
    """The image (N, 3, H, W) and label (N, H, W) that the parity figures were computed on."""
    rng = np.random.default_rng(int(figures["x_seed"]))
    n, h, w = figures["shape"]
    image = rng.standard_normal((n, 3, h, w)).astype(np.float32)
    label = rng.integers(0, int(figures["classes"]), (n, h, w))
    label[rng.random((n, h, w)) < 0.1] = 255
    return torch.from_numpy(image), torch.from_numpy(label)


def random_batch(size=(33, 47), n=2, classes=5, seed=0):
    """A random normalized image (n, 3, *size) and label (n, *size) with a void corner."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, classes, (n, *size), generator=generator)
    label[:, :3, :3] = 255
    return torch.randn(n, 3, *size, generator=generator), label


def randomize(network):
    """BN statistics, scales and strengths that are not at their start, so that a slip in any of them shows."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.1)
    for parameter in network.strength_parameters():
        parameter.data.uniform_(0.1, 1.9)
    return network


def tiny_data(root):
    """Five training and two validation images of bright squares, as anyone's own data: folders and lists."""
    (root / "img").mkdir()
    (root / "gt").mkdir()
    rng = np.random.default_rng(0)
    for i in range(7):
        image, label = rng.integers(0, 60, (70, 76, 3), dtype=np.uint8), np.zeros((70, 76), np.uint8)
        for value in (1, 2):
            y, x = rng.integers(0, 50, 2)
            image[y:y + 20, x:x + 20, value] = 220
            label[y:y + 20, x:x + 20] = value
        Image.fromarray(image).save(root / "img" / f"n{i}.jpg")
        Image.fromarray(label).save(root / "gt" / f"n{i}.png")
    (root / "train.txt").write_text("".join(f"n{i}\n" for i in range(5)))
    (root / "val.txt").write_text("n5\nn6\n")
    (root / "names.txt").write_text("ground\ngreen square\nblue square\n")
    return root


def folders(data, train=True):
    """The options that name the folders and lists of `tiny_data`."""
    options = ["--im_path", data / "img", "--gt_path", data / "gt", "--eval_list", data / "val.txt"]
    return options + (["--training_list", data / "train.txt"] if train else [])


def only_run(path):
    """The one run folder in a folder of runs."""
    runs = list(path.iterdir())
    assert len(runs) == 1, runs
    return runs[0]


def run(*command, code=0):
    """A script of the repository as a process of its own; returns what it printed. Asserts its exit code."""
    result = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    return result.stdout + result.stderr


def is_network(strengths, threshold):
    """Whether the finest stage reads an encoder tap or G, itself or through other stages, above the threshold."""
    fed = []  # stages that do, deepest first
    for p in strengths:
        strong = p > threshold
        fed.append(strong[:, 0].any() or strong[0, 1] or (strong[1:, 1] & np.array(fed, bool)).any())
    return bool(fed[-1])


class Outcome(NamedTuple):
    """code: of the exit. text: what was printed to either stream, or the one sentence if it was an InputError."""
    code: int
    text: str


def call(script, *arguments):
    """A command in this process, which saves the seconds that a process of its own takes to start.

    Returns its Outcome, without lines of progress. A bug is raised, as the command's traceback would show it.
    """
    from utils.cli import explain, parse, warnings_as_lines
    from utils.errors import InputError
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen), warnings_as_lines():
        parser = module.build_parser()
        try:
            code = module.main(parse(parser, list(map(str, arguments)))) or 0
        except InputError as error:
            return Outcome(2, explain(error, parser))
        except SystemExit as exit:  # argparse: after --help, or after its usage and the sentence
            return Outcome(exit.code, screen.getvalue().rpartition("error: ")[2].strip())
    lines = (line.rpartition("\r")[2].strip() for line in screen.getvalue().splitlines())
    return Outcome(code, "\n".join(line for line in lines if line and "%|" not in line))


def scores(outcome):
    """(name, figure) of each line of an evaluation's table."""
    assert outcome.code == 0, outcome.text
    return re.findall(r"^(\S.*?) +([\d.]+|absent)$", outcome.text, re.MULTILINE)
