"""benchmarks/gpu.py, on the CPU: its checks pass there, a failure is reported and the rest follows, wrong input."""
import argparse
import subprocess
import warnings

import pytest
import torch

from benchmarks import gpu, gpu_parity, gpu_runs, gpu_speed
from benchmarks.gpu_report import Finding, Report, Sizes
from helpers import TINY, call, folders
from utils.errors import InputError

SCRIPT, CPU = "benchmarks/gpu.py", torch.device("cpu")
TINIEST = Sizes(33, 2, 2, 4, 3)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(gpu, "QUICK", TINIEST)


def report(tmp_path, *options, code=0):
    """The text of a report on the CPU."""
    outcome = call(SCRIPT, "--device", "cpu", "--quick", "--out", tmp_path / "report.md", *options)
    text = (tmp_path / "report.md").read_text()
    assert outcome.code == code, text
    assert f"written to {tmp_path}" in outcome.text
    return text


@pytest.mark.slow
def test_one_step_and_many_in_each_type(tmp_path):
    text = report(tmp_path, "--only", "parity", "steps")
    assert "| processor | " in text and "--device cpu --only parity steps --quick`" in text and "FAILED" not in text
    for name in ("float32", "bfloat16", "float16"):
        for what in ("logits", "losses", "gradients, encoder", "gradients, strengths", "BN means", "BN variances",
                     "change of the weights", "strengths after the step"):
            assert f"| search step, {name}: {what} | passed |" in text
        assert f"| train step, {name}: logits | passed |" in text and f"| train, {name} | passed | 3 steps" in text
    assert text.count("| not run | a CPU has no TF32 |") == 4 and text.endswith("No check failed.\n")


@pytest.mark.slow
def test_runs_of_one_process_and_of_two(tmp_path):
    text = report(tmp_path, "--only", "resume", "processes")
    assert "bit for bit the same | passed | 0 of" in text and "a killed" not in text
    for name in ("train by 2 processes and by one: losses", "train by 2 processes and by one: scores",
                 "SIGTERM to torchrun with 2 processes", "one of 2 processes killed"):
        assert f"| {name} | passed |" in text, text


def test_a_wrong_step_is_reported_with_its_figures_and_the_rest_follows(tmp_path, monkeypatch):
    right = gpu_parity.one_step

    def wrong(*arguments, **named):
        found = right(*arguments, **named)
        if "image" not in named:  # on the device, not one that it is compared with
            found["logits"] *= 1.5
        return found

    monkeypatch.setattr(gpu_parity, "one_step", wrong)
    monkeypatch.setattr(gpu_parity, "TYPES", {"float32": gpu_parity.TYPES["float32"]})
    text = report(tmp_path, "--only", "parity", code=1)
    for task in ("search", "train"):
        assert f"| {task} step, float32: logits | **FAILED** | 5.0e-01, at most " in text
        assert f"| {task} step, float32: losses | passed |" in text
    assert text.endswith("2 checks FAILED.\n")


def test_not_finite_is_a_failure(monkeypatch):
    from benchmarks import gpu_steps
    right = gpu_steps.make_batch
    monkeypatch.setattr(gpu_steps, "make_batch", lambda *arguments: (right(*arguments)[0] * torch.inf,
                                                                     right(*arguments)[1]))
    finding, = gpu_steps.many_steps("train", "float32", CPU, TINIEST)
    assert finding.passed is False and "not finite: 3 losses" in finding.figures


def test_where_a_type_does_not_determine_the_values_their_norm_is_compared(monkeypatch):
    parity = gpu_parity.Parity("train", CPU, TINIEST)
    exact = torch.eye(3).double()
    parity.exact, parity.measured = lambda: {"x": exact[0]}, lambda *_: ({"x": exact[1]}, {"x": 0.4})
    for factor, passed in ((1, True), (3, False), (0, False), (float("nan"), False)):
        monkeypatch.setattr(gpu_parity, "one_step", lambda *_, factor=factor: {"x": factor * exact[2]})
        finding, = parity.check("bfloat16")
        assert finding.passed is passed and "times the CPU's" in finding.figures


def test_a_check_that_raises_has_failed_and_the_next_follows(tmp_path):
    def broken():
        yield Finding("first part", True, "a | b")
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    written = Report(tmp_path / "new" / "report.md")
    written.checks("Title", "Text.", [("one", broken), ("two", lambda: [Finding("", None, "no GPU")])])
    rows = written.path.read_text().splitlines()[-3:]
    assert rows == ["| one: first part | passed | a / b |",
                    "| one | **FAILED** | OutOfMemoryError after 0 s: CUDA out of memory. |",
                    "| two | not run | no GPU |"]
    assert written.failures == 1


def test_a_run_that_does_not_end_or_does_not_start_is_a_failure(tmp_path, monkeypatch):
    runs = gpu_runs.Runs(tmp_path, CPU, TINIEST, 1)
    with pytest.raises(RuntimeError, match="exit code 2: .*error: .*--lr is -1"):
        runs.run(*runs.training, *gpu_runs.TASKS["train"], "--lr", -1)
    process = subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE, text=True)
    monkeypatch.setattr(gpu_runs, "LIMIT", 0.1)
    assert gpu_runs.ends_and_saves(process, tmp_path).figures == "it had not ended after 0.1 s"
    process.kill()
    process.wait()
    process.stdout.close()


def test_synchronizations_are_counted_over_the_command(data, tmp_path, monkeypatch):
    """On a GPU PyTorch warns of each; here the copy of the loss to the host is made to."""
    class Queue:
        put = staticmethod(lambda value: counts.append(value))

    def item(tensor, original=torch.Tensor.item):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
        return original(tensor)

    counts = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr(torch.Tensor, "item", item)
    with warnings.catch_warnings():
        gpu_speed.count_synchronizations(["--mask_path", "fcn", *TINY, *folders(data), "--max_epoch", 1, "--eval_list",
                                          "none", "--exp_path", tmp_path], Queue)
    assert len(counts) == 1 and counts[0] >= 3
    finding, = gpu_speed.synchronizations(argparse.Namespace(device=CPU), "train")
    assert finding.passed is None


@pytest.mark.parametrize("code", [0, 1])
def test_the_report_contains_what_bench_prints(tmp_path, monkeypatch, code):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess(
        (), code, "| work | plain |", "Traceback\nValueError: no memory\n"))
    written = Report(tmp_path / "report.md")
    gpu_speed.bench(written, torch.device("cuda"))
    text = written.path.read_text()
    assert "`python -m benchmarks.bench --device cuda`" in text and "| work | plain |" in text
    assert ("benchmarks.bench: **FAILED**: ValueError: no memory" in text) == (written.failures == code == 1)


@pytest.mark.parametrize("options, words", [
    (["--processes", 0], "--processes is 0; give 1 to 2, the number of CUDA devices here"),
    (["--processes", 3], "--processes is 3; give 1 to 2, the number of CUDA devices here"),
    (["--device", "cpu", "--processes", 9], "--processes is 9; give 1 to 8"),
    ([], "GPU 0 (Old GPU) cannot be used by this PyTorch")])
def test_wrong_input_is_one_sentence(monkeypatch, options, words):
    def ones(*_, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with")

    monkeypatch.setattr(gpu, "cuda_is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Old GPU")
    monkeypatch.setattr(torch, "ones", ones)
    code, text = call(SCRIPT, *options)
    assert code == 2 and words in text and "\n" not in text


def test_no_cuda_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "cuda_is_available", lambda: False)
    monkeypatch.setattr(gpu, "why_no_cuda", lambda: "there is no CUDA device here")
    assert call(SCRIPT) == (2, "there is no CUDA device here; give --device cpu to try what has a meaning there")
    with pytest.raises(InputError, match="cannot"):
        (tmp_path / "file").write_text("")
        Report(tmp_path / "file" / "report.md").write("text")
