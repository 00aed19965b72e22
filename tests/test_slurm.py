"""Slurm: the batch file of docs/distributed.md, with a stand-in for its commands, and one visible GPU a process."""
import os
import re
import signal
import subprocess

import pytest
import torch

from helpers import ROOT
from utils import runtime
from utils.errors import InputError

SRUN = """#!/bin/sh
shift  # --kill-on-bad-exit=1
for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@"; code=$?; done
exit $code
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo first; echo second; else echo scontrol $*; fi
"""
# Stopped when it is new, finished when it is resumed.
PYTHON = """#!/bin/sh
echo rank $RANK of $WORLD_SIZE on $LOCAL_RANK to $MASTER_ADDR:$MASTER_PORT: $*
if [ $2 = --resume ]; then exit 0; fi
mkdir -p $4/run && touch $4/run/checkpoint_3.pth.tar && exit 130
"""


def test_the_batch_file_of_the_documentation_requeues_and_resumes(tmp_path):
    batch = re.search(r"```bash\n(.*?)```", (ROOT / "docs" / "distributed.md").read_text(), re.DOTALL)[1]
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_NTASKS": "2",
           "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "node[1-2]"}
    job = [subprocess.run(["bash", "-c", batch], cwd=tmp_path, env=env, text=True, capture_output=True)
           for _ in range(2)]
    ranks = [f"rank {rank} of 2 on 0 to first:20017: train_sparse_mask.py" for rank in (0, 1)]
    assert job[0].stdout.splitlines() == [*(f"{rank} --search --exp_path SparseMaskVOC/17" for rank in ranks),
                                          "scontrol requeue 17"]
    assert job[1].stdout.splitlines() == [f"{rank} --resume SparseMaskVOC/17/run" for rank in ranks]
    assert [each.returncode for each in job] == [130, 0] and not any(each.stderr for each in job)


def test_the_job_array_of_the_documentation_runs_its_line_and_forwards_the_signal(tmp_path):
    batch = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "distributed.md").read_text(), re.DOTALL)[1]
    lines = ["# later", "echo first; exit 3",
             "bash -c 'trap \"sleep 1; echo saved; exit 130\" USR1; echo ready; while :; do :; done' && echo"]
    (tmp_path / "jobs.txt").write_text("\n".join(lines))

    def start(task):
        return subprocess.Popen(["bash", "-c", batch], cwd=tmp_path, env={**os.environ, "SLURM_ARRAY_TASK_ID": task},
                                text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    with start("1") as job:
        assert job.communicate(timeout=60) == ("first\n", "") and job.returncode == 3
    with start("2") as job:
        assert job.stdout.readline() == "ready\n"
        job.send_signal(signal.SIGUSR1)
        assert job.communicate(timeout=60) == ("saved\n", "") and job.returncode == 130


@pytest.mark.parametrize("visible, local_rank, index", [(4, 3, 3), (1, 3, 0), (1, 0, 0), (4, None, 0)])
def test_a_process_takes_its_gpu_or_the_only_one_that_it_sees(monkeypatch, visible, local_rank, index):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    assert runtime.select_device(0, local_rank=local_rank) == torch.device("cuda", index) and chosen == [index]


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="more processes on this machine than its 2 CUDA devices"):
        runtime.select_device(0, local_rank=2)
