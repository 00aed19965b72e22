"""Several processes, started by torchrun on the CPU: the figures of one, one writer, one end for all."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from helpers import ROOT, TINY, call, folders, only_run, random_batch
from models import FullyDenseNetwork, SparseMask, connectivity
from models.layers import BatchNorm2d
from models.sync_bn import SyncBatchNorm2d, synchronize_bn
from utils.checkpoint import read_checkpoint
from utils.distributed import ProcessGroup
from utils.engine import train_losses, train_step
from utils.runtime import Precision

ENV = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def start(*command, processes=2):
    """Starts a script of the repository by torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.Popen([sys.executable, *launcher, *map(str, command)], cwd=ROOT, env=ENV, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(*command, processes=2, fails=False):
    """Runs it by torchrun to its end; returns what the processes printed."""
    process = start(*command, processes=processes)
    printed = process.communicate(timeout=300)[0]
    assert (process.returncode != 0) == fails, printed
    assert printed.count("Traceback") == fails, printed  # torchrun's own
    return printed


def curve(folder, tag):
    return [row[2] for row in json.loads((folder / "tensorboard.json").read_text())[tag]]


@pytest.fixture(scope="module", params=["search", "train"])
def pair(request, data, tmp_path_factory):
    """The same run by one process and by two: {number of processes: run folder}. The last batch is a single image."""
    out = tmp_path_factory.mktemp("pair")
    what = ["--search"] if request.param == "search" else ["--mask_path", "published"]
    command = ["train_sparse_mask.py", *what, *TINY, *folders(data), "--max_epoch", 1, "--type", "float64", "--sync_bn",
               "--exp_path"]
    assert call(*command, out / "1").code == 0
    printed = run(*command, out / "2")
    assert printed.count("search in") + printed.count("training in") == 1 and "2 processes" in printed
    assert "Warning" not in printed
    return {processes: only_run(out / str(processes)) for processes in (1, 2)}


@pytest.mark.slow
def test_two_processes_compute_what_one_does(pair):
    """In float64: in float32 rounding grows a thousandfold a step on so tiny a batch, see test_parity.py."""
    one, two = pair[1], pair[2]
    assert curve(one, "train/loss") == pytest.approx(curve(two, "train/loss"), abs=1e-5)
    assert curve(one, "train/m_iou") == pytest.approx(curve(two, "train/m_iou"), abs=1e-3)
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    a, b = (read_checkpoint(folder / "checkpoint_3.pth.tar").state for folder in (one, two))
    for name in ("backbone.conv1.weight", "backbone.bn1.running_mean", "fc_conv.weight"):
        assert torch.allclose(a[name], b[name], rtol=0, atol=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["train"], indirect=True)
def test_evaluation_shared_by_processes_gives_the_same_score(pair, data):
    command = ["eval_sparse_mask.py", "--pretrained_model", pair[2] / "checkpoint_3.pth.tar",
               *folders(data, train=False), "--gpu", -1]
    outputs = [re.findall(r"^(\S.*?) +([\d.]+|absent)$", printed, re.MULTILINE)
               for printed in (call(*command).text, run(*command), run(*command, processes=3))]
    # the list has two images: the third process has none
    assert outputs[0] == outputs[1] == outputs[2] and len(outputs[0]) == 5


def wait_for(process, text):
    """Reads what a process prints until `text` appears; returns it."""
    printed = ""
    while text not in printed:
        char = process.stdout.read(1)
        assert char, printed
        printed += char
    return printed


@pytest.mark.slow
def test_a_stopped_run_is_resumed_by_another_number_of_processes(data, tmp_path):
    process = start("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 400,
                    "--eval_interval", 400, "--exp_path", tmp_path)
    wait_for(process, "loss=")
    process.send_signal(signal.SIGINT)  # to torchrun, which sends it on
    printed = process.communicate(timeout=120)[0]
    folder = only_run(tmp_path)
    assert printed.count("and saved. To continue") == 1
    saved = int(re.search(r"stopped at iteration (\d+)", printed)[1])
    content = torch.load(folder / f"checkpoint_{saved}.pth.tar", weights_only=True)
    epochs = saved // 3 + 2  # two more at most, for the test's time
    content["iterations"], content["settings"]["max_epoch"] = 3 * epochs, epochs
    torch.save(content, folder / f"checkpoint_{saved}.pth.tar")
    code, printed = call("train_sparse_mask.py", "--resume", folder)
    assert code == 0 and f"resuming {folder}/checkpoint_{saved}.pth.tar" in printed and "done" in printed


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["train", "val"])
def test_a_broken_image_in_one_process_stops_all_with_one_sentence(data, tmp_path, broken):
    """In training the last image of the list is read by either process, in evaluation by the second."""
    shutil.copytree(data / "img", tmp_path / "img")
    (tmp_path / "img" / ("n0.jpg" if broken == "train" else "n6.jpg")).write_text("no image")
    printed = run("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--im_path", tmp_path / "img",
                  "--max_epoch", 3, "--exp_path", tmp_path / "runs", fails=True)
    assert printed.count("cannot be read") == 1
    folder = only_run(tmp_path / "runs")
    assert "cannot be read" in (folder / "log.txt").read_text()
    if broken == "val":
        assert printed.count(f"--resume {folder}") == 1 and (folder / "checkpoint_3.pth.tar").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_process_ends_the_run_and_what_was_learned_is_saved(data, tmp_path):
    process = start("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 400,
                    "--eval_interval", 400, "--exp_path", tmp_path)
    wait_for(process, "loss=")
    children = subprocess.run(["pgrep", "-P", str(process.pid)], text=True, capture_output=True).stdout.split()
    second = next(pid for pid in children if b"\0RANK=1\0" in open(f"/proc/{pid}/environ", "rb").read())
    os.kill(int(second), signal.SIGKILL)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert printed.count("another process of this run ended") == 1 and printed.count("To continue") == 1
    saved = int(re.search(r"Saved at iteration (\d+)", printed)[1])
    read_checkpoint(only_run(tmp_path) / f"checkpoint_{saved}.pth.tar")


@pytest.mark.slow
def test_options_that_do_not_fit_are_said_once(data, tmp_path):
    printed = run("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--batch_size", 1,
                  "--exp_path", tmp_path, fails=True)
    assert printed.count("--batch_size is 1, divided among 2 processes") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_folder_that_only_the_first_process_needs_is_said_once(data, tmp_path):
    (tmp_path / "file").write_text("")
    printed = run("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--exp_path", tmp_path / "file",
                  fails=True)
    assert printed.count("give a folder that can be written (--exp_path)") == 1


def test_shares_are_complete_and_without_repetition():
    for length in range(9):
        for size in (1, 2, 3, 5):
            shares = [ProcessGroup(rank, size).share(list(range(length))) for rank in range(size)]
            assert sum(shares, []) == list(range(length))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("world", ["1", "2"])
def test_a_bug_keeps_its_traceback(world):
    program = "import argparse\nfrom utils.cli import run_command\n" \
              "run_command(lambda args: 1 / 0, argparse.ArgumentParser())"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env={**ENV, "WORLD_SIZE": world}, text=True,
                            capture_output=True)
    assert result.returncode == 1 and result.stderr.count("Traceback") == 1
    assert result.stderr.rstrip().endswith("ZeroDivisionError: division by zero")


def test_an_empty_share_runs_uncompiled():
    """The last batch of an epoch may leave a process without images; compiled, that ended the run."""
    compiled = []
    network = SparseMask(connectivity.fcn(), depth=4, num_classes=5)
    network.compile(backend=lambda graph, inputs: compiled.append(graph) or graph.forward)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    image, label = random_batch()
    steps = []
    for count in (0, len(image)):
        losses, prediction = train_step(network, image[:count], label[:count], train_losses, optimizer,
                                        Precision("float32", torch.device("cpu")))
        steps.append(len(compiled))
        assert prediction.shape == label[:count].shape and losses.total.isfinite()
    assert steps[0] == 0 < steps[1]


def test_synchronized_bn_of_one_process_is_bn():
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    outputs = []
    for synchronized in (False, True):
        torch.manual_seed(0)
        norm = (SyncBatchNorm2d if synchronized else BatchNorm2d)(5, momentum=0.3).double()
        torch.nn.init.normal_(norm.weight)
        leaf = x.clone().requires_grad_()
        y = norm(leaf)
        (y * x.flip(2)).sum().backward()
        norm(x[:1, :, :1, :1])  # a single value has no variance
        outputs.append((y, leaf.grad, norm.weight.grad, norm.running_mean, norm.running_var, norm.num_batches_tracked))
    for one, other in zip(*outputs, strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=0, atol=1e-12)


def test_synchronized_supernet_of_one_process_is_the_supernet():
    image, _ = random_batch((65, 97))
    results = []
    for synchronized in (False, True):
        torch.manual_seed(0)
        network = FullyDenseNetwork(depth=4, num_classes=3, noise=False).double()
        if synchronized:
            synchronize_bn(network)
        logits = network(image.double())
        logits.square().sum().backward()
        results.append((logits, network.strength_parameters()[8].grad, network.fc_conv.weight.grad,
                        network.decoders.stage(8).down_convs["0"][1].running_var))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-9)


def test_a_users_own_bn_is_synchronized_too():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4, momentum=0.2, eps=1e-3))
    before = network.state_dict()
    synchronize_bn(network)
    assert isinstance(network[1], SyncBatchNorm2d) and network[1].eps == 1e-3
    assert network[1].momentum == 0.2 and all(torch.equal(before[k], v) for k, v in network.state_dict().items())
