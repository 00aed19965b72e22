"""What a network costs: multiply-adds, and seconds a call."""
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.inference import for_inference
from utils.progress import progress_bar

WARM_UP = 5  # runs, at least; and half as many as are timed


def multiply_adds(network: nn.Module, size: Sequence[int]) -> int:
    """Multiply-adds of one image (H, W): of convolutions and matrix products, which PyTorch counts."""
    return count_multiply_adds(for_inference(network), size)


def count_multiply_adds(forward: Callable, size: Sequence[int]) -> int:
    """As multiply_adds, of a module or function as it is: image (1, 3, H, W) -> anything."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(torch.zeros(1, 3, *size))
    return counter.get_total_flops() // 2


def timed(call: Callable[[], None], runs: int) -> float:
    """Median seconds of `runs` calls, after a warm-up."""
    times = []
    warm_up = max(WARM_UP, runs // 2)
    for i in progress_bar(range(warm_up + runs), unit="run", desc="measure", leave=False):
        start = time.perf_counter()
        call()
        if i >= warm_up:
            times.append(time.perf_counter() - start)
    return statistics.median(times)
