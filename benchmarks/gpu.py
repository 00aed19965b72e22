"""Does it work on your GPU, and how fast? Checks, then measures, and writes a report to paste: `make gpu`.

    python -m benchmarks.gpu [--device cpu] [--quick] [--processes N] [--only parity steps ...]

A check that fails is reported as FAILED with its figures, the rest follows, and the exit code is 1. With `--device cpu`
everything that has a meaning there is tried: two gloo processes instead of one NCCL process for each GPU, and no TF32.
"""
import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu_parity import EXPLAINED, parity_checks
from benchmarks.gpu_report import ROOT, Report, Sizes, environment
from benchmarks.gpu_runs import Runs, process_checks, run_checks
from benchmarks.gpu_speed import bench, waiting
from benchmarks.gpu_steps import compile_checks, steps_checks
from utils.cli import run_command
from utils.errors import InputError, first_line
from utils.hardware import cuda_is_available, why_no_cuda
from utils.options import HelpFormatter
from utils.runtime import keep_freed_memory

PARTS = ("parity", "steps", "compile", "resume", "processes", "speed")
QUICK, FULL = Sizes(65, 2, 4, 8, 4), Sizes(129, 4, 16, 64, 200)
MOST_ON_CPU = 8  # processes


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0],
                                     formatter_class=HelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda",
                        help="cpu: what can be tried without a GPU")
    parser.add_argument("--processes", type=int, help="processes of the checks with several (default: one for each "
                                                      "GPU; on a CPU 2)")
    parser.add_argument("--quick", action="store_true", help="small networks, few steps, no compilation on a CPU, and "
                                                             "no speed: a few minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some of the sections")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks_output" / "gpu_report.md", help="the report")
    return parser


def number_of_processes(args: argparse.Namespace) -> int:
    """--processes, or the default. Raises InputError for no usable GPU, or fewer than asked for."""
    if args.device == "cuda" and not cuda_is_available():
        raise InputError(f"{why_no_cuda()}; give --device cpu to try what has a meaning there")
    most = torch.cuda.device_count() if args.device == "cuda" else MOST_ON_CPU
    processes = args.processes if args.processes is not None else most if args.device == "cuda" else 2
    if not 1 <= processes <= most:
        raise InputError(f"--processes is {args.processes}; give 1 to {most}" +
                         (", the number of CUDA devices here" if args.device == "cuda" else ""))
    for index in range(processes if args.device == "cuda" else 0):
        try:
            torch.ones(1, device=f"cuda:{index}").sum().item()
        except RuntimeError as error:
            raise InputError(f"GPU {index} ({torch.cuda.get_device_name(index)}) cannot be used by this PyTorch "
                             f"({torch.__version__}): {first_line(error)}; install a PyTorch that is built for this "
                             f"GPU and its driver, or free the GPU if another program uses it") from None
    return processes


def command_line(args: argparse.Namespace) -> str:
    """The command, with the options that were given and change the report."""
    words = ["python -m benchmarks.gpu"]
    for name in sorted(args.given - {"out"}):
        value = getattr(args, name)
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value] * (value is not True))]
    return " ".join(words)


def main(args: argparse.Namespace) -> int:
    """Checks, measures and reports. Returns the exit code."""
    processes = number_of_processes(args)
    device, sizes = torch.device(args.device), QUICK if args.quick else FULL
    if device.type == "cpu":
        keep_freed_memory()
    report = Report(args.out)
    report.head(f"SparseMask on {'a GPU' if device.type == 'cuda' else 'a CPU'}", f"`{command_line(args)}`",
                ("what", "value"))
    for row in environment(device):
        report.row(*row)
    if "parity" in args.only:
        report.checks("One step against the CPU", EXPLAINED, parity_checks(device, sizes))
    if "steps" in args.only:
        report.checks("Many steps", "From random weights, on random batches, with noise and, in float16, loss scaling: "
                      "nothing may become infinite or NaN.", steps_checks(device, sizes))
    if "compile" in args.only and not (args.quick and device.type == "cpu"):
        report.checks("Compiled", "Inference, compiled (on a GPU: replayed CUDA graphs) against eager: relative "
                      "difference of the logits, at most what for_inference promises. A compiled step is held to the "
                      "tolerances of the eager one.", compile_checks(device, sizes))
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), device, sizes, processes)
        if "resume" in args.only:
            report.checks("Runs", "The commands, in one process.", run_checks(runs, args.quick))
        if "processes" in args.only:
            report.checks("Several processes", "The commands, started by torchrun.", process_checks(runs, args.quick))
        if "speed" in args.only and not args.quick:
            report.checks("Waiting", "Synchronizations of the host with the GPU, as torch.cuda.set_sync_debug_mode "
                          "counts them; how fast images are loaded, and how fast they are used. What could be measured "
                          "has passed.", waiting(runs))
    if "speed" in args.only and not args.quick:
        bench(report, device)
    report.write(f"\n{report.failures} checks FAILED." if report.failures else "\nNo check failed.")
    print(f"written to {args.out}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    run_command(main, build_parser())
