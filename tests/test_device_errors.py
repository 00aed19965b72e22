"""What a device cannot do is one sentence: the errors are raised by hand."""
import pytest

from utils.errors import StepInterrupted
from utils.runtime import explain_out_of_memory

ERRORS = {
    "CUDA out of memory. Tried to allocate 2.00 GiB": "GPU ran out of memory .*; buy more",
    "CUDA error: out of memory\nCUDA kernel errors might be reported at some other call": "GPU ran out .*; buy more",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED": "GPU ran out of memory",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED": "GPU ran out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": "GPU ran out of memory",
    "Triton Error [CUDA]: out of memory": "GPU ran out of memory",
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9":
        "the memory ran out .can't allocate memory",
    "CUDA error: no kernel image is available for execution on the device\nSearch": "PyTorch .* no code for this GPU",
    "The NVIDIA driver on your system is too old (found version 11040).": "driver is too old for PyTorch .*update",
    "CUDA error: CUDA driver version is insufficient for CUDA runtime version": "driver is too old for PyTorch",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable": "GPU is taken",
    "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
    "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic because it uses CuBLAS "
    "and you have CUDA >= 10.2. To enable deterministic behavior in this case, you must set an environment variable "
    "before running your PyTorch application: CUBLAS_WORKSPACE_CONFIG=:4096:8 or CUBLAS_WORKSPACE_CONFIG=:16:8.":
        "CUBLAS_WORKSPACE_CONFIG at ':0:0'; set it to :4096:8",
    "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set":
        "deterministic algorithms are impossible here",
}


@pytest.mark.parametrize("message, words", ERRORS.items())
def test_what_a_gpu_refuses_is_one_sentence(monkeypatch, message, words):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(StepInterrupted, match=words) as caught, explain_out_of_memory("buy more"):
        raise RuntimeError(message)
    assert "\n" not in str(caught.value)


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="illegal memory access"), explain_out_of_memory(""):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
