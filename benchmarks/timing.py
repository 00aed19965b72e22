"""What the benchmarks share: medians of several runs, in turns; the machine in words; Markdown tables."""
import os
import platform
import statistics
import time

import torch

from utils.hardware import instruction_set, processor_name, threads_in_words
from utils.progress import progress_bar


def median_times(work, rounds=5, repeats=3, synchronize=lambda: None):
    """{name: function} -> {name: median seconds}. Each round runs every function `repeats` times, after a warm-up."""
    times = {name: [] for name in work}
    for _ in progress_bar(range(rounds), desc=", ".join(map(str, work))[:60], leave=False):
        for name, function in work.items():
            for repeat in range(repeats + 2):
                synchronize()
                start = time.perf_counter()
                function()
                synchronize()
                if repeat >= 2:
                    times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def machine(device):
    """One line that describes where the figures come from."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU used"
    return (f"{os.cpu_count()} cores of {processor_name()} ({instruction_set()}), {threads_in_words()}, "
            f"{name}, Python {platform.python_version()}, PyTorch {torch.__version__}")


def print_table(head, rows, form):
    """A Markdown table; every row is printed as soon as it is known."""
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(form(*row))} |", flush=True)


def milliseconds(seconds):
    """As text."""
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
