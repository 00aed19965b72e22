"""A full disk during a save; what is left of a run that has ended."""
import os
import re
import resource
import signal
import subprocess
import sys

import pytest
import torch

from helpers import ROOT, TINY, folders
from torture import start, wait_for_steps


@pytest.mark.slow
def test_a_full_disk_during_a_save_keeps_the_checkpoint_before(data, tmp_path):
    """A file-size limit stands in for the full disk: the write fails half-way in the same way."""
    command = [sys.executable, "train_sparse_mask.py", "--mask_path", "fcn", *TINY, *map(str, folders(data))]
    subprocess.run([*command, "--max_epoch", "1", "--exp_path", str(tmp_path)], cwd=ROOT, check=True,
                   capture_output=True)
    folder = next(tmp_path.iterdir())
    before = (folder / "checkpoint_3.pth.tar").read_bytes()
    content = torch.load(folder / "checkpoint_3.pth.tar", weights_only=True)
    content["iterations"], content["settings"]["max_epoch"] = 6, 2  # as if it had been stopped half-way
    torch.save(content, folder / "checkpoint_3.pth.tar")
    before = (folder / "checkpoint_3.pth.tar").read_bytes()

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))
    result = subprocess.run([sys.executable, "train_sparse_mask.py", "--resume", str(folder)], cwd=ROOT, text=True,
                            capture_output=True, preexec_fn=limit)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "checkpoint_6.pth.tar: File too large; give a folder" in result.stderr  # the system's word, not PyTorch's
    assert (folder / "checkpoint_3.pth.tar").read_bytes() == before
    assert not list(folder.glob(".*.part*")) and not (folder / "checkpoint_6.pth.tar").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_open_files_do_not_grow():
    printed = subprocess.run([sys.executable, "tests/memory.py", "--steps", "90"], cwd=ROOT, check=True, text=True,
                             capture_output=True).stdout
    rows = {name: tuple(map(int, figures)) for name, *figures in
            re.findall(r"^\| (.+?) \| (\d+) MiB \| (\d+) \| (\d+) \|$", printed, re.MULTILINE)}
    early, late, after = rows["36"], rows["90"], rows["after the run"]
    assert late[0] - early[0] < 20  # MiB; what a step works with is more
    assert late[1:] == early[1:] == (early[1], 2)  # open files; a loader process each for both lists
    assert after[1] < late[1] and after[2] == 0


@pytest.mark.slow
def test_ctrl_c_leaves_no_process(data, tmp_path):
    process = start(["train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--n_worker", 2,
                     "--max_epoch", 4, "--eval_interval", 4, "--exp_path", tmp_path / "runs"], tmp_path / "screen")
    wait_for_steps(process, tmp_path / "screen")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    assert process.wait(timeout=60) in (130, 0)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
