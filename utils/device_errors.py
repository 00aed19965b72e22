"""What PyTorch raises where a device cannot do what is asked, in one sentence for the user."""
import os
import re

import torch

from utils.errors import first_line

GPU_MEMORY = re.compile(r"CUDA (error: )?out of memory|Triton Error \[CUDA\]: out of memory|_STATUS_\w*ALLOC\w*_FAILED")
NO_KERNELS = re.compile("no kernel image is available|device kernel image is invalid|unsupported toolchain")
DRIVER = re.compile("driver version is insufficient|driver on your system is too old|no NVIDIA driver|"
                    "forward compatibility was attempted|unsupported display driver")
TAKEN = re.compile("busy or unavailable")


def describe(error: BaseException, advice: str) -> tuple[str, str | None] | None:
    """An error of PyTorch -> (sentence, the parameter that it is about or None), or None for an error of other kinds.

    advice: what to do where memory ran out.
    """
    text, reason = str(error), first_line(error)
    build = f"PyTorch {torch.__version__}"
    cpu = "give another GPU, or -1 for the CPU"
    if isinstance(error, torch.OutOfMemoryError) or GPU_MEMORY.search(text):
        return f"the GPU ran out of memory ({reason}); {advice}", None
    if isinstance(error, MemoryError):
        return f"the memory ran out; {advice}", None
    if "DefaultCPUAllocator" in text:
        return f"the memory ran out ({reason.rpartition('DefaultCPUAllocator: ')[2]}); {advice}", None
    if "CUBLAS_WORKSPACE_CONFIG" in text:
        value = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        return (f"deterministic algorithms are impossible with the environment variable CUBLAS_WORKSPACE_CONFIG "
                f"{'unset' if value is None else f'at {value!r}'}; set it to :4096:8", "deterministic")
    if "deterministic implementation" in text:
        return (f"deterministic algorithms are impossible here ({text.split('.')[0]}); do without them, or run on the "
                f"CPU", "deterministic")
    if NO_KERNELS.search(text):
        return f"this build, {build}, has no code for this GPU ({reason}); install one that has it, or {cpu}", "gpu"
    if DRIVER.search(text):
        return (f"the NVIDIA driver is too old for {build}, or not meant for it ({reason}); update the driver, "
                f"install a PyTorch for its CUDA version, or give -1 for the CPU", "gpu")
    if TAKEN.search(text):
        return f"the GPU is taken: another process has it for itself ({reason}); {cpu}", "gpu"
    return None
