"""--run_name: one command that starts a run and continues it, and a run that two processes would write."""
import subprocess
import sys

import pytest

from helpers import TINY, call, folders
from utils.checkpoint import read_checkpoint

TRAIN = "train_sparse_mask.py"
HOLD = """import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()"""


@pytest.fixture
def command(data, tmp_path):
    return ["--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 2, "--keep_all", "--exp_path", tmp_path,
            "--run_name", "mine"]


def test_the_same_command_starts_continues_and_finds_a_run_done(command, tmp_path):
    (tmp_path / "mine").mkdir()  # as a run leaves it that was killed before its first checkpoint
    outcome = call(TRAIN, *command)
    assert outcome.code == 0, outcome.text
    last = tmp_path / "mine" / "checkpoint_6.pth.tar"
    whole = read_checkpoint(last).state
    last.unlink()
    outcome = call(TRAIN, *command)
    assert outcome.code == 0 and "resuming" in outcome.text and "iteration 3" in outcome.text, outcome.text
    assert all((value == whole[name]).all() for name, value in read_checkpoint(last).state.items())
    written = last.stat().st_mtime_ns
    outcome = call(TRAIN, *command)
    assert outcome.code == 0 and "all its iterations are done" in outcome.text, outcome.text
    assert last.stat().st_mtime_ns == written
    moved = tmp_path / "other"
    moved.mkdir()
    (tmp_path / "mine").rename(moved / "mine")
    outcome = call(TRAIN, *command, "--exp_path", moved, "--max_epoch", 3)
    assert outcome.code == 0 and (moved / "mine" / "checkpoint_9.pth.tar").exists(), outcome.text


def test_a_named_run_keeps_its_network(command):
    assert call(TRAIN, *command).code == 0
    outcome = call(TRAIN, *command, "--mask_path", "unet")
    assert outcome.code == 2 and "a resumed run keeps this setting" in outcome.text, outcome.text


@pytest.mark.parametrize("options", [["--run_name", "a/b"], ["--run_name", ".."], ["--resume", "SparseMaskVOC/run"]])
def test_a_name_is_refused_that_is_none(command, options):
    outcome = call(TRAIN, *command, *options)
    assert outcome.code == 2 and "run_name" in outcome.text and "\n" not in outcome.text, outcome.text


def test_a_file_is_no_run(command, tmp_path):
    (tmp_path / "mine").write_text("")
    outcome = call(TRAIN, *command)
    assert outcome.code == 2 and "is a file" in outcome.text and "--run_name" in outcome.text, outcome.text


@pytest.mark.parametrize("begun", [False, True])
def test_two_processes_do_not_write_one_run(command, tmp_path, begun):
    if begun:
        assert call(TRAIN, *command).code == 0
    folder = tmp_path / "mine"
    folder.mkdir(exist_ok=True)
    with subprocess.Popen([sys.executable, "-c", HOLD, folder / "log.txt"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        before = sorted(path.name for path in folder.iterdir())
        outcome = call(TRAIN, *command, "--max_epoch", 3)
        assert outcome.code == 2 and "another process is writing the run" in outcome.text, outcome.text
        assert "\n" not in outcome.text
        assert sorted(path.name for path in folder.iterdir()) == before
        other.stdin.close()
    assert call(TRAIN, *command, "--max_epoch", 3).code == 0
