"""The device that a command uses and says, and the warning of a type that is slow on this processor."""
import argparse

import pytest
import torch

from helpers import TINY, call, folders, only_run, run
from utils import hardware
from utils.options import add_device_options
from utils.runtime import select_device

CPU = torch.device("cpu")


@pytest.fixture
def slow(monkeypatch):
    """A processor without instructions for 16 bits."""
    monkeypatch.setattr(hardware, "convolution_times", lambda dtype: (0.001, 0.02))
    monkeypatch.setattr(hardware, "instruction_set", lambda: "AVX2")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The checkpoint of one epoch."""
    out = tmp_path_factory.mktemp("run")
    outcome = call("train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 1, "--exp_path",
                   out)
    assert outcome.code == 0 and "warning" not in outcome.text, outcome.text
    assert "running on the CPU (" in (only_run(out) / "log.txt").read_text()
    return only_run(out) / "checkpoint_3.pth.tar"


def test_every_command_says_at_once_that_a_type_is_slow(slow, data, trained, tmp_path):
    evaluate = ["eval_sparse_mask.py", "--pretrained_model", trained, *folders(data, train=False)]
    commands = [["train_sparse_mask.py", "--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 1, "--exp_path",
                 tmp_path / "runs"], evaluate,
                ["predict.py", data / "img" / "n5.jpg", "--checkpoint", trained, "--out", tmp_path / "predictions"],
                ["measure.py", trained, "--size", 33, 33, "--runs", 1]]
    for command in commands:
        code, text = call(*command, "--gpu", -1, "--type", "bfloat16")
        assert code == 0 and text.count("warning: bfloat16 is slow on this processor (AVX2): a convolution takes 20 "
                                        "ms, and 1 ms in float32, which is the faster type here") == 1, text
        assert ("convolution    1 ms in float32, 20 ms in bfloat16" in text) == (command[0] == "measure.py")
    assert "warning: bfloat16 is slow" in (only_run(tmp_path / "runs") / "log.txt").read_text()
    assert "warning" not in call(*evaluate, "--gpu", -1, "--type", "float32").text


def test_a_type_that_is_fast_or_wide_is_not_warned_of(monkeypatch, recwarn):
    monkeypatch.setattr(hardware, "convolution_times", lambda dtype: (0.001, 0.002))
    assert hardware.warn_of_slow_type("bfloat16", CPU) == (0.001, 0.002)
    monkeypatch.setattr(hardware, "convolution_times", None)  # nothing else is measured
    for name, device in (("float32", CPU), ("float64", CPU), ("float16", torch.device("cuda"))):
        assert hardware.warn_of_slow_type(name, device) is None
    assert not recwarn.list


def test_measuring_leaves_the_random_numbers_as_they_are():
    before = torch.get_rng_state()
    assert all(seconds > 0 for seconds in hardware.convolution_times(torch.bfloat16))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("capability, flags, expected", [
    ("AVX2", "avx2", "AVX2"), ("AVX2", "avx2 avx512_bf16", "AVX2"),  # as ATEN_CPU_CAPABILITY=avx2 makes it
    ("AVX512", "avx512f avx512_bf16 amx_bf16", "AVX512 with AVX512-BF16, AMX-BF16"), ("DEFAULT", "", "arm64")])
def test_instruction_sets(monkeypatch, tmp_path, capability, flags, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(hardware.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    if flags:
        hardware.CPUINFO.write_text(f"processor\t: 0\nmodel name\t: A: CPU\nflags\t\t: fpu {flags}\n")
        assert hardware.processor_name() == "A: CPU"
    assert hardware.instruction_set() == expected


@pytest.mark.parametrize("reason, said", [
    (RuntimeError("Found no NVIDIA driver on your system. Please check ..."), "; there is no CUDA device here"),
    (AssertionError("Torch not compiled with CUDA enabled"), "no CUDA device here: Torch not compiled with CUDA"),
    (RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update ..."),
     "no CUDA device here: The NVIDIA driver on your system is too old (found version 11040)"),
    ("mps", "Apple's MPS is not used")])
def test_the_log_says_why_it_is_the_cpu(monkeypatch, reason, said):
    def init():
        raise reason

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: reason == "mps")
    lines = []
    assert select_device(0, lines.append) == CPU
    assert len(lines) == 1 and lines[0].startswith("running on the CPU (") and said in lines[0]
    assert select_device(-1, lines.append) == CPU and "; " not in lines[1]


PROBE = """
import torch
from models.losses import total_sparse_loss

def probe(strengths):
    if strengths[0].requires_grad:  # in a step, and not while the options are checked
        a = torch.full((2 ** 20,), 1e-30, requires_grad=True)
        (a * 1e-10 * 1e-32).sum().backward()
        print("probe:", torch.get_num_threads(), int((a * 1e-10).count_nonzero()), int(a.grad.count_nonzero()))
    return total_sparse_loss(strengths)
"""


def test_a_search_on_a_cpu_flushes_denormal_numbers_in_every_thread(data, tmp_path, monkeypatch):
    """They would make its last steps, where strengths are nearly 0, many times slower."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush them")
    (tmp_path / "probing.py").write_text(PROBE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    printed = run("train_sparse_mask.py", "--search", *TINY, *folders(data), "--max_epoch", 1, "--sparse_loss",
                  "probing:probe", "--exp_path", tmp_path / "runs")
    probes = [line for line in printed.splitlines() if "probe:" in line]
    assert probes and all(line.endswith("probe: 2 0 0") for line in probes), printed


def test_help_says_that_mps_is_not_used():
    parser = argparse.ArgumentParser()
    add_device_options(parser)
    assert "Apple's MPS is not used" in " ".join(parser.format_help().split())
