"""Figures of benchmarks/gpu.py: synchronizations a step, loading against computing, and benchmarks/bench.py."""
import contextlib
import functools
import io
import multiprocessing
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.bench import make_step
from benchmarks.files import IMAGES, scene_files
from benchmarks.gpu_report import ROOT, Finding, Report
from benchmarks.gpu_runs import TASKS, Runs, reason
from benchmarks.timing import median_times, milliseconds
from utils.options import RELEASED_WORKERS
from utils.parallel import count_cores
from utils.runtime import Precision
from VOC12.dataset import EpochBatches, SegmentationDataset
from VOC12.loading import batches, make_loader
from VOC12.transforms import TrainTransform

SYNC_EPOCHS = (2, 7)  # of the two runs whose difference is counted
ON_CPU = ("steps", "inference")  # tables of bench.py that take minutes on a CPU, not an hour


def count_synchronizations(command: Sequence, queue) -> None:
    """In a process of its own: how often a training waits for the GPU where PyTorch knows it (sync_debug_mode)."""
    import train_sparse_mask as train
    from utils.cli import parse
    seen = []
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *_: seen.append("synchronizing CUDA operation" in str(message))
    torch.cuda.set_sync_debug_mode("warn")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train.main(parse(train.build_parser(), list(map(str, command))))
    torch.cuda.set_sync_debug_mode("default")
    queue.put(sum(seen))


def synchronizations(runs: Runs, task: str) -> Iterator[Finding]:
    """Per step of the command: what a longer run has more than a shorter one."""
    if runs.device.type == "cpu":
        yield Finding("", None, "a CPU has none")
        return
    counts, context = [], multiprocessing.get_context("spawn")
    for epochs in SYNC_EPOCHS:
        queue = context.SimpleQueue()
        command = [*runs.training[1:], *TASKS[task], "--max_epoch", epochs, "--eval_list", "none", "--log_interval",
                   10 ** 6, "--exp_path", runs.fresh("syncs")]
        process = context.Process(target=count_synchronizations, args=(command, queue))
        process.start()
        process.join()
        if queue.empty():
            raise RuntimeError(f"the run failed with exit code {process.exitcode}")
        counts.append(queue.get())
    steps = (SYNC_EPOCHS[1] - SYNC_EPOCHS[0]) * -(-runs.sizes.images // runs.sizes.batch)
    each = (counts[1] - counts[0]) / steps
    yield Finding("", True, f"{each:.1f} a step, the ends of epochs included")


def loading_against_step(device: torch.device) -> Iterator[Finding]:
    """In which time the loader gives a batch, and a step uses one."""
    size, batch = (513, 16) if device.type == "cuda" else (257, 2)
    images, labels, listed, names = scene_files(IMAGES)
    workers = min(RELEASED_WORKERS, count_cores())
    dataset = SegmentationDataset(images, labels, listed, 21, TrainTransform(size))
    loader = make_loader(dataset, workers, EpochBatches(len(names), batch, 0), device.type == "cuda")
    precision, times = Precision("float32", device), []
    for _ in range(2):
        start = time.perf_counter()
        for sample in batches(loader):
            precision.batch(sample)
            times.append(time.perf_counter() - start)
            start = time.perf_counter()
    yield Finding(f"a batch of {batch}, {size}x{size}, by {workers} loader processes", True,
                  milliseconds(statistics.median(times[len(times) // 2:])))
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work = {f"{task} step, {name}": make_step(task, device, size, batch, name)
            for task in TASKS for name in ("float32", "bfloat16")}
    for name, seconds in median_times(work, 3, 3, wait).items():
        yield Finding(name, True, milliseconds(seconds))


def waiting(runs: Runs) -> Iterator[tuple[str, Callable]]:
    """(name, check) of what is measured here; a check passes if it can be measured."""
    for task in TASKS:
        yield f"synchronizations, {task}", functools.partial(synchronizations, runs, task)
    yield "loading and computing", functools.partial(loading_against_step, runs.device)


def bench(report: Report, device: torch.device) -> None:
    """All that benchmarks/bench.py prints for this device; on a CPU a part of it."""
    report.write("\n## Speed and memory\n")
    command = ["-m", "benchmarks.bench", "--device", device.type, *([] if device.type == "cuda" else
                                                                   ["--only", *ON_CPU])]
    report.write(f"`python {' '.join(command)}`:\n")
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    report.write(done.stdout.strip())
    if done.returncode:
        report.fail("benchmarks.bench", reason(done.stderr))
