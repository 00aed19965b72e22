"""Device, precision, seeds and memory: what a run needs from the machine."""
import contextlib
import ctypes
import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from utils import device_errors
from utils.errors import InputError, StepInterrupted
from utils.hardware import cuda_is_available, describe_device, why_no_cuda
from VOC12.transforms import IMAGENET, Sample, to_network

START_SCALE = 2.0 ** 16  # of the loss, in float16
LEAST_SCALE = 2.0 ** -16  # gradients that overflow even with this one always do
TYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def select_device(gpu: int, log: Callable[[str], None] = print, local_rank: int | None = None) -> torch.device:
    """Index of a CUDA device -> torch.device. -1 is the CPU; a machine without CUDA uses the CPU.

    log: gets the device in words and, where it is the CPU without being asked for, why. local_rank: the process's
    number on its machine if torchrun started it, and then its GPU's; but a process that sees one GPU alone takes that.
    Raises InputError for a device that does not exist.
    """
    if gpu < -1:
        raise InputError(f"the device is {gpu}; give the index of a GPU, or -1 for the CPU", about="gpu")
    if local_rank is not None and gpu != -1 and cuda_is_available():
        if gpu > 0:
            raise InputError(f"the device is GPU {gpu}, but each of torchrun's processes takes its own GPU, counted "
                             f"from 0; leave the option out (CUDA_VISIBLE_DEVICES chooses GPUs), or give -1 for the "
                             f"CPU", about="gpu")
        if local_rank >= torch.cuda.device_count() > 1:
            raise InputError(f"there are more processes on this machine than its {torch.cuda.device_count()} CUDA "
                             f"devices; start as many as there are devices, or give -1 for the CPU", about="gpu")
        gpu = local_rank % torch.cuda.device_count()  # a batch system may show each process one GPU, its own
    if gpu == -1 or not cuda_is_available():
        device = torch.device("cpu")
        log(f"running on {describe_device(device)}" + (f"; {why_no_cuda()}" if gpu != -1 else ""))
        keep_freed_memory()
        flush_denormals()
        return device
    if gpu >= torch.cuda.device_count():
        raise InputError(f"the device is GPU {gpu}, but this machine has {torch.cuda.device_count()} CUDA devices, "
                         f"counted from 0; give one of them, or -1 for the CPU", about="gpu")
    torch.cuda.set_device(gpu)
    torch.set_float32_matmul_precision("high")  # TF32, as in convolutions: the 1x1 ones are matrix products here
    log(f"running on {describe_device(torch.device('cuda', gpu))}")
    return torch.device("cuda", gpu)


def keep_freed_memory() -> None:
    """Makes glibc keep the memory that tensors free, for the next ones, instead of returning it to the system.

    Else every map of more than 32 MB is mapped anew, page by page, in every step. Elsewhere than on glibc, nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2 ** 30)
        mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)


def flush_denormals() -> None:
    """From now on this process flushes denormal numbers (below 1.2e-38 in float32) to zero, if the processor can.

    They slow a CPU down. Near the end of a search there are many: gradients that have passed several
    connections with strengths near 0. A thread inherits the setting from the one that starts it, so call this before
    torch starts its own threads, which it does with the first large tensor.
    """
    for dtype in (np.float32, np.float64):
        np.finfo(dtype)  # NumPy 1.26 would warn about it later
    torch.set_flush_denormal(True)


def peak_of_process() -> int:
    """Bytes of memory that this process has held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # here ru_maxrss would begin at that of the process which started this one
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_of_process() -> int:
    """Forgets, on Linux, what this process held earlier and released. Returns peak_of_process, in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_of_process()


class Precision:
    """A type by name: `dtype` of the weights and images, autocast to `low`, and loss scaling for float16."""

    def __init__(self, name: str, device: torch.device):
        self.low = TYPES[name] if name in ("float16", "bfloat16") else None
        self.dtype = torch.float64 if name == "float64" else torch.float32
        self.device, self.normalization = device, IMAGENET
        self.scaler = torch.amp.GradScaler(device.type, init_scale=START_SCALE, enabled=name == "float16")

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context for a forward pass and its loss."""
        if self.low is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.low)

    def place(self, network: nn.Module) -> nn.Module:
        """The network on the device, in its type, channels last (the layout that convolutions are fastest in).

        From then on `batch` normalizes images as it wants them.
        """
        self.normalization = network.normalization
        return network.to(self.device, self.dtype, memory_format=torch.channels_last)

    def batch(self, sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch of Samples -> image and label for the network, see `to_network`."""
        return to_network(sample, self.device, self.dtype, self.normalization)


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict:
    """The state of the generators that a training step on `device` draws from: CPU tensors; "cuda" is None on a CPU."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def set_random_state(state: dict, device: torch.device) -> None:
    """Restores what `random_state` returned, on whichever GPU the run continues."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def make_deterministic() -> None:
    """From now on only algorithms that give the same digits in every run, also on a GPU, where some do not."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


@contextlib.contextmanager
def tuned_convolutions() -> Iterator[None]:
    """Within it cuDNN tries its algorithms for every new size, and keeps the fastest: for sizes that come back.

    It does not after make_deterministic.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def start_reading(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Starts to copy a tensor to the CPU. Returns a function that waits for the copy and returns it.

    It waits for nothing that the GPU was given after this call, as `tensor.item()` would.
    """
    if not tensor.is_cuda:
        return lambda: tensor
    copy = tensor.to("cpu", non_blocking=True)  # into pinned memory
    copied = torch.cuda.Event(blocking=True)  # waiting in a loop would take a core from the loader processes
    copied.record()

    def read() -> torch.Tensor:
        copied.synchronize()
        return copy
    return read


@contextlib.contextmanager
def explain_out_of_memory(advice: str, kind: type[InputError] = StepInterrupted) -> Iterator[None]:
    """Turns running out of memory into an InputError (`kind` of it) that says what to do.

    The same for the other reasons in utils/device_errors.py: a driver that does not fit, an operation without a
    deterministic algorithm after make_deterministic.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        sentence, about = device_errors.describe(error, advice) or (None, None)
        if sentence is None:
            raise
        raise kind(sentence, about) from None
