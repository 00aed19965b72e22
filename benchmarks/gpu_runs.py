"""Checks of benchmarks/gpu.py with the real commands: resuming, several processes, signals, a killed process."""
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.gpu_report import ROOT, Finding, Sizes
from demo.draw_demo import VOC, write_scene
from utils.checkpoint import read_checkpoint
from utils.tensor_files import load_file

TRAIN, EVALUATE = "train_sparse_mask.py", "eval_sparse_mask.py"
LIMIT = 180  # seconds that a run may take to end after a signal or a kill
START_LIMIT = 600  # seconds until its first checkpoint
END_LESS = 100_000  # epochs
TASKS = {"search": ["--search"], "train": ["--mask_path", "published"]}
SINGLE = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # in the environment of one of torchrun's processes


class Runs:
    """The commands on a device and drawn images, in a folder of its own. processes: as many as there are GPUs."""

    def __init__(self, root: Path, device: torch.device, sizes: Sizes, processes: int):
        self.root, self.device, self.sizes, self.processes = root, device, sizes, processes
        names = [f"scene_{i}" for i in range(sizes.images * processes)]
        for i, name in enumerate(names):
            write_scene(root, name, seed=0, index=i, size=sizes.side + 20, in_sbd=False, in_voc=True)
        (root / "list.txt").write_text("\n".join(names))
        self.data = ["--im_path", root / VOC / "JPEGImages", "--gt_path", root / VOC / "SegmentationClass",
                     "--eval_list", root / "list.txt", "--gpu", 0 if device.type == "cuda" else -1]
        self.training = [TRAIN, *self.data, "--training_list", root / "list.txt", "--pretrained_model", "none",
                         "--crop_size", sizes.side, "--batch_size", sizes.batch * processes, "--depth", sizes.depth,
                         "--n_worker", 0, "--log_interval", 1]

    def start(self, *command: object, processes: int = 1, mark: str = "") -> subprocess.Popen:
        """A command in one process, or by torchrun in several. mark: a word in the environment of all of them."""
        launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone",
                                              f"--nproc_per_node={processes}"]
        environment = {name: value for name, value in os.environ.items() if name not in SINGLE}
        environment["SPARSEMASK_CHECK"] = mark
        if processes > 1 and self.device.type == "cpu":
            environment["OMP_NUM_THREADS"] = str(max(torch.get_num_threads() // processes, 1))
        return subprocess.Popen([sys.executable, *launcher, *map(str, command)], cwd=ROOT, env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")

    def run(self, *command: object, processes: int = 1) -> str:
        """Runs it to its end; returns what it printed. Raises RuntimeError with the last line if it fails."""
        with self.start(*command, processes=processes) as process:
            printed = process.communicate()[0]
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}: {reason(printed)}")
        return printed

    def fresh(self, name: str) -> Path:
        """A folder for a run."""
        return Path(tempfile.mkdtemp(prefix=name, dir=self.root))


def reason(printed: str) -> str:
    """The line of an output that most likely tells why a command failed."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"error: |^\w*Error\b", line)]
    return (telling or lines or ["it printed nothing"])[0 if telling else -1][:300]


def only_run(folder: Path) -> Path:
    """The one run in a folder of runs."""
    run, = folder.iterdir()
    return run


def last_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run."""
    found = sorted(run.glob("checkpoint_*.pth.tar"), key=lambda path: int(re.findall(r"\d+", path.name)[0]))
    return found[-1] if found else None


def resumed(runs: Runs, task: str) -> Iterator[Finding]:
    """Two epochs in one go, and the second of them again from the checkpoint of the first."""
    out = runs.fresh("resume")
    runs.run(*runs.training, *TASKS[task], "--max_epoch", 2, "--eval_list", "none", "--keep_all", "--deterministic",
             "--exp_path", out)
    whole = only_run(out)
    copy = Path(shutil.copytree(whole, runs.fresh("resumed") / "run"))
    last = last_checkpoint(copy)
    last.unlink()
    runs.run(TRAIN, "--resume", copy)
    yield same_tensors(whole / last.name, copy / last.name)


def same_tensors(one: Path, other: Path) -> Finding:
    """Whether two checkpoints have the same weights, buffers and momentum, to the last bit."""
    contents = [load_file(str(path), "checkpoint") for path in (one, other)]
    tensors = [{**content["state_dict"], **{f"momentum {i}": state["momentum_buffer"]
                                            for i, state in content["optimizer"]["state"].items()}}
               for content in contents]
    different = [name for name, value in tensors[0].items() if not torch.equal(value, tensors[1][name])]
    return Finding("", not different, f"{len(different)} of {len(tensors[0])} tensors differ" +
                   (f", the first is {different[0]}" if different else ""))


def same_with_graphs(runs: Runs, task: str) -> Iterator[Finding]:
    """A run with --cuda_graphs and one without, both deterministic."""
    checkpoints = []
    for options in ([], ["--cuda_graphs"]):
        out = runs.fresh("graphs")
        runs.run(*runs.training, *TASKS[task], "--max_epoch", 2, "--eval_list", "none", "--deterministic", *options,
                 "--exp_path", out)
        checkpoints.append(last_checkpoint(only_run(out)))
    yield same_tensors(*checkpoints)


def equal_to_one(runs: Runs, task: str) -> Iterator[Finding]:
    """The losses of an epoch, and the scores, of several processes and of one."""
    out = [runs.fresh("one"), runs.fresh("several")]
    for folder, processes in zip(out, (1, runs.processes), strict=True):
        runs.run(*runs.training, *TASKS[task], "--max_epoch", 1, "--type", "float64", "--sync_bn", "--eval_list",
                 "none", "--exp_path", folder, processes=processes)
    curves = [[row[2] for row in json.loads((only_run(folder) / "tensorboard.json").read_text())["train/loss"]]
              for folder in out]
    error = max(abs(a - b) for a, b in zip(*curves, strict=True))
    yield Finding("losses", error <= 1e-5, f"{len(curves[0])} steps in float64 with --sync_bn, losses differ by "
                                           f"{error:.1e}, at most 1e-05")
    if task == "train":
        command = [EVALUATE, *runs.data, "--pretrained_model", last_checkpoint(only_run(out[0]))]
        scores = [re.findall(r"^mIoU +(\S+)", runs.run(*command, processes=n), re.M) for n in (1, runs.processes)]
        yield Finding("scores", scores[0] == scores[1] != [], f"mIoU {' and '.join(map(str, sum(scores, [])))}")


@contextlib.contextmanager
def endless(runs: Runs, processes: int) -> Iterator[tuple[subprocess.Popen, Path, str]]:
    """A training that has written a checkpoint: (process, its folder of runs, mark). Whatever is left is killed."""
    out, mark = runs.fresh("endless"), uuid.uuid4().hex
    process = runs.start(*runs.training, *TASKS["train"], "--max_epoch", END_LESS, "--eval_list", "none",
                         "--exp_path", out, processes=processes, mark=mark)
    try:
        end = time.monotonic() + START_LIMIT
        while not list(out.glob("*/checkpoint_*.pth.tar")):
            if process.poll() is not None:
                raise RuntimeError(f"it ended too early: {reason(process.communicate()[0])}")
            if time.monotonic() > end:
                raise RuntimeError(f"no checkpoint was written within {START_LIMIT} s")
            time.sleep(0.2)
        yield process, out, mark
    finally:
        process.kill()
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def marked(mark: str, rank: int | None = None) -> list[int]:
    """The processes whose environment has a mark, and a rank if one is given. Linux only; elsewhere there are none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if f"SPARSEMASK_CHECK={mark}".encode() in words and (rank is None or f"RANK={rank}".encode() in words):
                found.append(int(path.parent.name))
    return found


def ends_and_saves(process: subprocess.Popen, out: Path) -> Finding:
    """Waits for the end after a signal or a kill: in time, with a checkpoint and the command that resumes."""
    start = time.monotonic()
    try:
        printed = process.communicate(timeout=LIMIT)[0]
    except subprocess.TimeoutExpired:
        return Finding("", False, f"it had not ended after {LIMIT} s")
    seconds = time.monotonic() - start
    checkpoint = read_checkpoint(str(last_checkpoint(only_run(out))))
    figures = f"ended after {seconds:.1f} s with exit code {process.returncode}, checkpoint of iteration " \
              f"{checkpoint.content['iter']}"
    if process.returncode == 0 or "To continue" not in printed:
        return Finding("", False, f"{figures}, without the command that resumes: {reason(printed)}")
    return Finding("", True, figures)


def stopped(runs: Runs, processes: int) -> Iterator[Finding]:
    """SIGTERM to a run, or to torchrun, which passes it on."""
    with endless(runs, processes) as (process, out, _):
        process.send_signal(signal.SIGTERM)
        yield ends_and_saves(process, out)


def killed(runs: Runs) -> Iterator[Finding]:
    """SIGKILL to the last of several processes."""
    if sys.platform != "linux":
        yield Finding("", None, "it needs /proc")
        return
    with endless(runs, runs.processes) as (process, out, mark):
        for pid in marked(mark, runs.processes - 1):
            os.kill(pid, signal.SIGKILL)
        yield ends_and_saves(process, out)


def run_checks(runs: Runs, quick: bool) -> Iterator[tuple[str, Callable]]:
    """(name, check) of what one process does."""
    for task in ("search",) if quick else TASKS:
        yield f"{task} with --deterministic, resumed: bit for bit the same", functools.partial(resumed, runs, task)
    if runs.device.type == "cuda":
        for task in TASKS:
            yield f"{task} with --cuda_graphs: bit for bit as without", functools.partial(same_with_graphs, runs, task)
    if not quick:
        yield "SIGTERM to a training", functools.partial(stopped, runs, 1)


def process_checks(runs: Runs, quick: bool) -> Iterator[tuple[str, Callable]]:
    """(name, check) of what several processes do."""
    if runs.processes == 1:
        yield "several processes", lambda: [Finding("", None, "there is one GPU")]
        return
    for task in ("train",) if quick else TASKS:
        yield f"{task} by {runs.processes} processes and by one", functools.partial(equal_to_one, runs, task)
    yield f"SIGTERM to torchrun with {runs.processes} processes", functools.partial(stopped, runs, runs.processes)
    yield f"one of {runs.processes} processes killed", functools.partial(killed, runs)
