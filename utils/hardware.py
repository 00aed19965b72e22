"""The processor and the GPU by name, why there is no GPU, and whether a type is slow on this processor."""
import platform
import time
import warnings
from pathlib import Path

import torch

from utils.errors import InputWarning, first_line

CPUINFO = Path("/proc/cpuinfo")
# Flags in CPUINFO: the name of what computes in 16 bits, and the capability of PyTorch's kernels that goes with it.
INSTRUCTIONS = {"avx512_bf16": ("AVX512-BF16", "AVX512"), "avx512_fp16": ("AVX512-FP16", "AVX512"),
                "amx_bf16": ("AMX-BF16", "AVX512"), "amx_fp16": ("AMX-FP16", "AVX512"), "bf16": ("BF16", "")}
RUNS = 15  # of each convolution
SLOW = 3  # times as long as float32: more than any processor needs that has instructions for the type


def cpuinfo(*names: str) -> str:
    """The first value in /proc/cpuinfo under one of these names, "" where there is none."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return next((value.strip() for name, _, value in (line.partition(":") for line in lines)
                 if name.strip() in names), "")


def processor_name() -> str:
    """The model of the CPU."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_set() -> str:
    """What PyTorch's kernels use on this CPU, such as "AVX2", or "AVX512 with AVX512-BF16"."""
    capability = torch.backends.cpu.get_cpu_capability()
    flags = cpuinfo("flags", "Features").split()
    low = [name for flag, (name, needed) in INSTRUCTIONS.items() if flag in flags and capability.startswith(needed)]
    return (platform.machine() if capability == "DEFAULT" else capability) + (f" with {', '.join(low)}" if low else "")


def threads_in_words() -> str:
    """The number of threads that PyTorch computes with, such as "2 threads"."""
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count != 1 else ''}"


def describe_device(device: torch.device) -> str:
    """A device in words, such as "cuda:0 (NVIDIA H100)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"the CPU ({processor_name()}, {instruction_set()}, {threads_in_words()})"


def cuda_is_available() -> bool:
    """torch.cuda.is_available(), without PyTorch's own warning: why_no_cuda says the same in a sentence."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "CUDA initialization", UserWarning)
        return torch.cuda.is_available()


def why_no_cuda() -> str:
    """Why PyTorch sees no CUDA device here: a clause that begins a sentence."""
    if torch.backends.mps.is_available():
        return "there is no CUDA device here, and Apple's MPS is not used"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a build without CUDA
        reason = first_line(error).partition(". ")[0].rstrip(".")
        if "no NVIDIA driver" in reason:
            return "there is no CUDA device here"
        return f"this PyTorch ({torch.__version__}) can use no CUDA device here: {reason}"
    return "there is no CUDA device here"


def convolution_times(dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of a 1x1 convolution on the CPU in float32, and in dtype: the fastest of several runs, in turns.

    Neither the median nor the mean: other work on the machine makes single runs a hundred times slower. It takes well
    under a second, and draws no random numbers.
    """
    inputs = [(torch.ones(1, 64, 65, 65, dtype=each).to(memory_format=torch.channels_last),
               torch.ones(64, 64, 1, 1, dtype=each)) for each in (torch.float32, dtype)]
    times = [[], []]
    with torch.no_grad():
        for _ in range(RUNS):
            for image, weight in inputs:
                start = time.perf_counter()
                torch.conv2d(image, weight)
                times[image.dtype == dtype].append(time.perf_counter() - start)
    return min(times[0]), min(times[1])


def warn_of_slow_type(name: str, device: torch.device) -> tuple[float, float] | None:
    """Warns of a 16-bit type (float16, bfloat16) that this CPU computes in more slowly than in float32.

    Returns what was measured, see convolution_times; None, without measuring, on a GPU and for other types.
    """
    if device.type != "cpu" or name not in ("float16", "bfloat16"):
        return None
    seconds = convolution_times(getattr(torch, name))
    if seconds[1] > SLOW * seconds[0]:
        warnings.warn(f"{name} is slow on this processor ({instruction_set()}): a convolution takes "
                      f"{1000 * seconds[1]:.2g} ms, and {1000 * seconds[0]:.2g} ms in float32, which is the faster "
                      f"type here", InputWarning, stacklevel=2)
    return seconds
