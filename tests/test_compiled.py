"""--compile for images of many sizes: how often it compiles, and what it says. The compiler here is a counter."""
import functools
import warnings

import pytest
import torch
from torch import nn

from models import SparseMask, connectivity
from models.inference import COMPILER_FAILURES, Compiled, explain_compiler, for_inference
from utils.errors import InputError, InputWarning, StepInterrupted

SIZES = [(84, 79), (120, 100), (103, 119), (97, 97), (137, 123), (91, 106), (96, 139), (118, 116), (88, 100), (134, 93),
         (84, 79), (86, 91)]


@pytest.fixture
def compiled(monkeypatch):
    """The list of graphs that torch.compile has had compiled so far; none is."""
    graphs = []

    def backend(graph, inputs, **options):
        graphs.append(graph)
        return graph.forward
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    yield graphs
    torch._dynamo.reset()


def small(kind=nn.Conv2d):
    torch.manual_seed(0)
    return kind(3, 2, 1).eval().requires_grad_(False)


def images(count, height, width):
    return torch.randn(count, 3, height, width).to(memory_format=torch.channels_last)


def test_the_second_size_leaves_all_sizes_open(compiled):
    network = small()
    call = Compiled(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i, size in enumerate(SIZES):
            image = images(1, *size)
            assert torch.equal(call(image), network(image))
            assert len(compiled) == min(i + 1, 2)


def test_the_rest_of_a_list_is_padded_to_a_whole_batch(compiled):
    network = small()
    call = Compiled(network)
    for count in (4, 4, 3, 1):
        image = images(count, 20, 30)
        assert torch.equal(call(image), network(image))
    assert len(compiled) == 1


@pytest.mark.slow
def test_the_network_compiles_a_few_times_for_many_sizes(compiled):
    network = SparseMask(connectivity.published(), depth=4, num_classes=3)
    call, plain = for_inference(network, compiled=True), for_inference(network)
    for size in SIZES:
        image = images(1, *size)
        torch.testing.assert_close(call(image), plain(image))
    assert len(compiled) <= 3


def test_sizes_that_are_not_compiled_are_said_once(compiled):
    class Constant(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * int(bin(x.shape[2])[2:], 2)  # a number that PyTorch cannot leave open
    network = small(Constant)
    call = Compiled(network)
    with pytest.warns(InputWarning, match="run uncompiled") as caught:
        for height in range(10, 25):
            image = images(1, height, 30)
            assert torch.equal(call(image), network(image))
    count = len(compiled)  # about PyTorch's limit of 8
    assert len(caught) == 1 and 1 < count < 15
    call(images(1, 10, 30))
    assert len(compiled) == count


def failure(name, message, inner=None):
    """An exception of a class of that name, as torch._dynamo or torch._inductor raises it."""
    error = type(name, (RuntimeError,), {})(message)
    if inner:
        error.inner_exception = inner
    return error


@pytest.mark.parametrize("error, words", [
    (failure("TritonMissing", "Cannot find a working triton installation. Either the package"), "install triton"),
    (failure("GPUTooOldForTriton", "Found Tesla P100 which is too old to be supported by the triton GPU compiler"),
     "Tesla P100 .* is for newer GPUs"),
    (failure("BackendCompilerFailed", "backend='inductor' raised:", RuntimeError("Cannot find a working triton")),
     "install triton"),
    (failure("BackendCompilerFailed", "backend='inductor' raised:", RuntimeError("no g++\nmore")), r"\(no g\+\+\)")])
def test_a_missing_compiler_is_one_sentence(error, words):
    with pytest.raises(StepInterrupted, match=f"cannot be compiled here.*{words}.*run it uncompiled") as caught:
        with explain_compiler(StepInterrupted):
            raise error
    assert caught.value.about == "compiled" and "\n" not in str(caught.value)


def test_running_out_of_memory_while_compiling_stays_that():
    memory = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError), explain_compiler():
        raise failure("BackendCompilerFailed", "backend='inductor' raised:", memory)


def test_other_errors_are_not_about_compiling():
    with pytest.raises(RuntimeError, match="a bug") as caught, explain_compiler():
        raise RuntimeError("a bug")
    assert not isinstance(caught.value, InputError)


def test_the_names_of_the_compilers_failures_exist():
    from torch._dynamo import exc as dynamo
    from torch._inductor import exc as inductor
    found = {name for name in COMPILER_FAILURES if hasattr(dynamo, name) or hasattr(inductor, name)}
    assert "BackendCompilerFailed" in found  # others came later
    for name in found:
        assert issubclass(getattr(dynamo, name, None) or getattr(inductor, name), RuntimeError)
