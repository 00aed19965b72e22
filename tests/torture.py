"""What a long run must survive: `make torture`.

    python tests/torture.py [--kills 20] [--steps 5000] [--seed 0]

Kills search and training, resumes, and compares with a run never killed: every other time at a random moment, else
while a checkpoint is being written. Tries all bad input (bad_inputs.py). Watches the memory (memory.py).
"""
import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import bad_inputs
from helpers import ROOT, TINY, folders, tiny_data
from utils.run_folder import BEST

EPOCHS, ITERATIONS, SAVE_INTERVAL = 4, 12, 2
LAST = f"checkpoint_{ITERATIONS}.pth.tar"
# Runs a script whose progress, in a file, has a line for each step instead of one a minute.
EVERY_STEP = ("import runpy, sys, utils.progress; utils.progress.INTERVAL = 0; del sys.argv[0]; "
              "runpy.run_path(sys.argv[0], run_name='__main__')")
KINDS = {"search": ["--search"], "train": ["--mask_path", "published"]}


def command(kind, data, out):
    """The command line of a new run."""
    return ["train_sparse_mask.py", *KINDS[kind], *TINY, *folders(data), "--max_epoch", EPOCHS, "--save_interval",
            SAVE_INTERVAL, "--eval_interval", 2, "--n_worker", 1, "--exp_path", out]


def start(arguments, screen):
    """Starts a command in a process group of its own; what it prints, progress at every step, goes to `screen`."""
    with open(screen, "w") as file:
        return subprocess.Popen([sys.executable, "-c", EVERY_STEP, *map(str, arguments)], cwd=ROOT, stdout=file,
                                stderr=file, start_new_session=True)


def shown_iteration(screen):
    """The last iteration that the progress bar showed, 0 if none."""
    return max((int(k) for k in re.findall(rf"(\d+)/{ITERATIONS} \[", screen.read_text())), default=0)


def wait_for_steps(process, screen):
    """Waits until the progress bar is there, or the process has ended."""
    while process.poll() is None and f"/{ITERATIONS} [" not in screen.read_text():
        time.sleep(0.02)


def wait_for_write(process, out):
    """Waits until the newest run in `out` writes a file, or the process has ended."""
    while process.poll() is None and not half_written(out):
        time.sleep(0.001)


def half_written(out):
    """The temporary files in the newest run folder."""
    return list(max(out.iterdir()).glob(".*.part*"))


def read_files(folder):
    """({iteration: content} of a run folder's checkpoints, number of files read). Raises if one is not whole."""
    files = {path: torch.load(path, weights_only=True) for path in folder.glob("checkpoint_*.pth.tar")}
    texts = [path for path in folder.glob("*.json") if json.loads(path.read_text())]
    return {content["iter"]: content for content in files.values()}, len(files) + len(texts)


def differences(a, b):
    """Names of the tensors in two checkpoints that are not equal, optimizer and random state included."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [""]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return ["keys"]
        return [f"{key}.{name}" for key in a for name in differences(a[key], b[key])]
    if isinstance(a, (list, tuple)):
        return [f"{i}.{name}" for i, pair in enumerate(zip(a, b, strict=True)) for name in differences(*pair)]
    return [] if a == b else ["value"]


def torture(kind, kills, rng, root):
    """One run, killed up to `kills` times. Returns the figures of a row of the table. Raises AssertionError."""
    data = root / "data"
    if not data.exists():
        data.mkdir()
        tiny_data(data)
    reference_out, out, screen = root / f"{kind}_whole", root / f"{kind}_killed", root / f"{kind}.txt"
    process = start(command(kind, data, reference_out), screen)
    wait_for_steps(process, screen)
    began = time.monotonic()
    assert process.wait() == 0, screen.read_text()
    span = time.monotonic() - began

    done = {"kills": 0, "in a write": 0, "resumes": 0, "new starts": 0, "files checked": 0, "steps lost at most": 0}
    while True:
        folder = next(iter(sorted(out.iterdir(), reverse=True)), None) if out.exists() else None
        saved = max(read_files(folder)[0], default=0) if folder else 0
        if saved:
            done["resumes"] += 1
            process = start(["train_sparse_mask.py", "--resume", folder], screen)
        else:  # killed before the first checkpoint: there is nothing to resume
            done["new starts"] += 1
            process = start(command(kind, data, out), screen)
        if done["kills"] < kills and saved < ITERATIONS:
            wait_for_steps(process, screen)
            time.sleep(rng.uniform(0, span / 3))
            if done["kills"] % 2:
                wait_for_write(process, out)
                time.sleep(rng.uniform(0, 0.02))
        else:
            process.wait()
        if process.poll() is not None:
            assert process.returncode == 0, screen.read_text()
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done["kills"] += 1
        done["in a write"] += bool(half_written(out))
        shown = shown_iteration(screen)
        folder = max(out.iterdir())
        found, files = read_files(folder)
        done["files checked"] += files
        lost = shown - max(found, default=0)
        assert lost <= SAVE_INTERVAL, (shown, list(found))
        done["steps lost at most"] = max(done["steps lost at most"], lost)
    assert not half_written(out)
    pair = max(reference_out.iterdir()), max(out.iterdir())
    for file in (LAST, BEST):
        whole, killed = (torch.load(folder / file, weights_only=True) for folder in pair)
        for name in ("iter", "state_dict", "optimizer", "random_state", "best_m_iou", "train_confusion",
                     "evaluated_at"):
            assert not differences(whole[name], killed[name]), (file, name, differences(whole[name], killed[name])[:3])
    return done


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each kind of run")
    parser.add_argument("--steps", type=int, default=5000, help="of the training whose memory is watched")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    head = ("run", "kills", "in a write", "resumes", "new starts", "files checked", "steps lost at most", "final state")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for kind in KINDS:
        rng, left, total = random.Random(args.seed), args.kills, {}
        while left > 0:  # a run ends at some time: then another one is tortured
            with tempfile.TemporaryDirectory() as root:
                row = torture(kind, left, rng, Path(root))
            left -= max(row["kills"], 1)
            total = {name: max(total.get(name, 0), value) if name.startswith("steps") else total.get(name, 0) + value
                     for name, value in row.items()}
        print(f"| {kind} | {' | '.join(map(str, total.values()))} | equal |", flush=True)
    print(flush=True)
    with tempfile.TemporaryDirectory() as root:
        bad_inputs.print_table(Path(root))
    print(flush=True)
    subprocess.run([sys.executable, Path(__file__).with_name("memory.py"), "--steps", str(args.steps)], check=True)


if __name__ == "__main__":
    main()
