"""Several processes that hang, die, are signalled or cannot talk: all end soon, and each kind has its sentence."""
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch.distributed as dist
from PIL import Image

from helpers import ROOT, TINY, call, folders, only_run
from utils import stopping
from utils.checkpoint import read_checkpoint
from utils.distributed import ProcessGroup, process_group
from utils.errors import InputError, StepInterrupted, StoppedElsewhere

# A command whose processes have two seconds to stop, not twenty.
QUICK = "import sys; from utils import stopping; stopping.TIME_TO_STOP = 2; import train_sparse_mask as command; " \
        "from utils.cli import run_command; run_command(command.main, command.build_parser(), sys.argv[1:])"


def start(*arguments, code=QUICK, processes=2, port=None):
    """Starts the processes of a training without torchrun, which would end them itself."""
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True,
                             env={**os.environ, **world, "RANK": str(rank)},
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for rank in range(processes)]


@pytest.fixture
def training(data, tmp_path):
    """Starts a long run of two processes and waits until it trains; ends what is left of it."""
    processes = []

    def begin(*options):
        processes.extend(start("--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 4000, "--eval_interval",
                               4000, "--exp_path", tmp_path, *options))
        printed = ""
        while "loss=" not in printed:
            char = processes[0].stdout.read(1)
            assert char, printed
            printed += char
        return processes

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("hanging", [1, 0])
def test_a_process_that_hangs_does_not_hold_one_that_is_asked_to_stop(training, tmp_path, hanging):
    processes = training()
    processes[hanging].send_signal(signal.SIGSTOP)
    other = processes[1 - hanging]
    other.send_signal(signal.SIGTERM)
    printed = other.communicate(timeout=20)[0]
    assert other.returncode == stopping.STOPPED and "Traceback" not in printed
    assert printed.count("stopped without saving") == 1 and "did not end within 2 s" in printed
    if hanging == 1:
        saved = int(re.search(r"Saved at iteration (\d+). To continue:\n  python train.* --resume", printed)[1])
        assert read_checkpoint(only_run(tmp_path) / f"checkpoint_{saved}.pth.tar").content["iter"] == saved
    else:
        assert "the process of rank 1 stopped without saving" in printed


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up_after_the_time_out(training, tmp_path):
    processes = training("--timeout", 3)
    processes[1].send_signal(signal.SIGSTOP)
    printed = processes[0].communicate(timeout=20)[0]
    assert processes[0].returncode == 2 and "Traceback" not in printed
    assert printed.count("the process of rank 0 has no answer from the others (Timed out waiting 3000ms") == 1
    assert "(--timeout)" in printed
    saved = int(re.search(r"Saved at iteration (\d+). To continue", printed)[1])
    assert read_checkpoint(only_run(tmp_path) / f"checkpoint_{saved}.pth.tar").content["iter"] == saved


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_saves(training):
    processes = training()
    processes[1].send_signal(signal.SIGUSR1)
    printed = [process.communicate(timeout=20)[0] for process in processes]
    assert [process.returncode for process in processes] == [stopping.STOPPED] * 2
    assert "and saved. To continue" in printed[0] and not printed[1]


@pytest.mark.slow
def test_what_the_first_process_alone_finds_in_the_labels_ends_all(data, tmp_path):
    shutil.copytree(data / "gt", tmp_path / "gt")
    for label in (tmp_path / "gt").iterdir():
        Image.new("L", (76, 70), 7).save(label)
    processes = start("--mask_path", "fcn", *TINY, *folders(data), "--gt_path", tmp_path / "gt", "--exp_path",
                      tmp_path / "runs")
    printed = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert printed[0].count("error:") == 1 and "has the value 7" in printed[0] and not printed[1]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signals_of_one_process(number, capsys):
    before = signal.getsignal(number)
    with stopping.StopRequest(ProcessGroup()) as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and "once more stops at once" in capsys.readouterr().out
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 1)
    assert signal.getsignal(number) == before


NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3356, {} (run with NCCL_DEBUG=INFO " \
       "for details), NCCL version 2.27.5\n{}\nLast error:\n{}\nException raised from getNCCLComm at /pytorch/c.cpp:9"
CLOSED = [
    RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer "
                 "[127.0.0.1]:10895"),
    RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:589] Read error [192.168.70.92]:25266: Connection "
                 "reset by peer"),
    RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:457] writev [127.0.0.1]:3: Broken pipe"),
    dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown "
                          "or crash?"),
    dist.DistBackendError(NCCL.format(
        "remote process exited or there was a network error",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
        "socketProgress: Connection closed by remote peer node2<4711>"))]
SILENT = [
    RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 600000ms for "
                 "recv operation to complete"),
    RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:144] Application timeout caused pair closure"),
    dist.DistStoreError("wait timeout after 600000ms, keys: /default_pg/0//cpu//0/rank_1 of gloo")]
OTHER = [
    (dist.DistBackendError(NCCL.format("unhandled cuda error", "ncclUnhandledCudaError: Call to CUDA function failed.",
                                       "Cuda failure 2 'out of memory'")),
     "(unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5; ncclUnhandledCudaError: Call "
     "to CUDA function failed.; Cuda failure 2 'out of memory'); use smaller batches"),
    (dist.DistBackendError(NCCL.format("invalid usage", "ncclInvalidUsage: This usually reflects invalid usage of NCCL "
                                       "library.", "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device "
                                       "1000")),
     "both on CUDA device 1000); start at most one process per GPU"),
    (dist.DistBackendError(NCCL.format("unhandled system error", "ncclSystemError: System call (e.g. socket, malloc) "
                                       "or external library call failed or device error.", "socketStartConnect: "
                                       "Connect to 10.0.0.2<43211> failed : No route to host")),
     "Connect to 10.0.0.2<43211> failed : No route to host); correct that"),
    (RuntimeError("Gloo connectFullMesh failed with [../third_party/gloo/gloo/transport/tcp/pair.cc:144] no route to "
                  "host"), "(Gloo connectFullMesh failed with no route to host)"),
    (dist.DistNetworkError("The server socket has failed to listen on any local network address. port: 29500, "
                           "useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"),
     "message: address already in use)")]


def explained(error, rank=0):
    """What becomes of a collective's error in one of two processes."""
    group = ProcessGroup(rank, 2)
    with pytest.raises((InputError, StoppedElsewhere)) as caught, group.explain_lost_process():
        raise error
    assert group.failed and group.ending.is_set() and "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("error", CLOSED, ids=str)
def test_a_closed_connection_is_a_lost_process(error):
    assert str(explained(error)).startswith("another process of this run ended unexpectedly (")
    assert isinstance(explained(error, rank=1), StoppedElsewhere)


@pytest.mark.parametrize("error", SILENT, ids=str)
def test_a_time_out_is_a_process_that_hangs(error):
    for rank in (0, 1):
        sentence = explained(error, rank)
        assert str(sentence).startswith(f"the process of rank {rank} has no answer from the others (")
        assert sentence.about == "timeout" and not isinstance(sentence, StepInterrupted)


@pytest.mark.parametrize("error, words", OTHER, ids=str)
def test_any_other_error_of_communication_has_its_reason(error, words):
    for rank in (0, 1):
        sentence = explained(error, rank)
        assert isinstance(sentence, StepInterrupted) and words in str(sentence)
        assert str(sentence).startswith(f"the process of rank {rank} cannot communicate with the others (")


def test_an_error_of_another_kind_keeps_its_traceback():
    for group, error in ((ProcessGroup(0, 2), RuntimeError("mat1 and mat2 shapes cannot be multiplied")),
                         (ProcessGroup(), CLOSED[0])):
        with pytest.raises(RuntimeError) as caught, group.explain_lost_process():
            raise error
        assert caught.value is error and not group.failed


@pytest.mark.parametrize("address, port", [("no-such-machine.invalid", "29500"), ("127.0.0.1", "0x")])
def test_processes_that_cannot_be_reached(monkeypatch, address, port):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="cannot join the other processes of the run .*MASTER_ADDR"):
        with process_group(on_cpu=True, timeout=1):
            pass


def test_a_port_that_is_taken(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost",
                            "MASTER_PORT": taken.getsockname()[1]}.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(InputError, match="address already in use"), process_group(on_cpu=True, timeout=1):
            pass


@pytest.mark.parametrize("script", ["train_sparse_mask.py", "eval_sparse_mask.py"])
def test_a_time_out_that_is_none(script):
    options = ["--mask_path", "fcn"] if script == "train_sparse_mask.py" else ["--pretrained_model", "file"]
    outcome = call(script, *options, "--timeout", 0)
    assert outcome.code == 2 and "the time-out is 0" in outcome.text and "(--timeout)" in outcome.text
