"""Thousands of tiny training and evaluation steps in one process: its memory, its open files and its workers.

    python tests/memory.py [--steps 5000]

A process of its own: in one that has done other things before, what they freed comes and goes too.
"""
import argparse
import contextlib
import gc
import os
import tempfile
from pathlib import Path
from unittest import mock

from helpers import TINY, folders, tiny_data
from train_sparse_mask import build_parser
from train_sparse_mask import main as train
from utils.cli import parse
from utils.run_log import RunLog

CHILDREN = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")


def state():
    """(resident MiB, open files, child processes) of this process now. Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (pages * os.sysconf("SC_PAGE_SIZE") / 2 ** 20, len(os.listdir("/proc/self/fd")),
            len(CHILDREN.read_text().split()))


def watch(steps, root, every):
    """Runs `steps` steps, with a checkpoint every third and an evaluation every fifteenth.

    Returns {step: (resident MiB, open files, loader processes)}, every `every` steps, and the same after the run.
    """
    data = root / "data"
    data.mkdir()
    tiny_data(data)
    seen = {}

    class Watching(RunLog):
        def on_step(self, run, losses):
            super().on_step(run, losses)
            if run.iteration % every == 0:
                seen[run.iteration] = state()

    with mock.patch("train_sparse_mask.RunLog", Watching):
        args = parse(build_parser(), list(map(str, [
            "--mask_path", "published", *TINY, *folders(data), "--max_epoch", -(-steps // 3), "--n_worker", 1,
            "--eval_interval", 5, "--log_interval", 10, "--lr", 1e-4, "--exp_path", root / "runs"])))
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            code = train(args)
    if code:
        raise RuntimeError(f"the run ended with {code}")
    gc.collect()
    return seen, state()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as root:
        seen, after = watch(steps, Path(root), max(steps // 10, 1))
    print("| steps | resident memory | open files | loader processes |\n|---|---|---|---|")
    for name, (memory, files, children) in [*seen.items(), ("after the run", after)]:
        print(f"| {name} | {memory:.0f} MiB | {files} | {children} |")


if __name__ == "__main__":
    main()
