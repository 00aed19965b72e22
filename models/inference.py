"""A trained network made fast for inference: BN folded into the convolutions, and compiled where asked.

`for_inference` is the one call that evaluation, and whoever uses the networks elsewhere, share.
"""
import contextlib
import copy
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.decoder import Stage, conv1x1
from models.encoder_folding import fold_encoder
from models.layers import BatchNorm2d, is_plain, resize
from models.mobilenet_v2 import MIN_SIZE
from models.sync_bn import SyncBatchNorm2d
from utils.errors import InputError, InputWarning, first_line

COMPILER_FAILURES = {"BackendCompilerFailed", "TritonMissing", "GPUTooOldForTriton"}  # in torch._dynamo, _inductor


def for_inference(network: nn.Module, compiled: bool = False, dtype: torch.dtype | None = None) -> Callable:
    """A callable image (N, 3, H, W) -> logits (N, classes, h, w), equal to network.eval()'s to 1e-4.

    It is a copy: training the network on does not change it. Gradients do not pass. dtype: that of the autocast
    it will be called in, if any; the weights of its convolutions are cast once, then. compiled: torch.compile, with the
    weights as constants on a CPU and as replayed CUDA graphs on a GPU; the first calls of two image sizes take tens of
    seconds each, and raise InputError where there is no compiler. On a GPU the commands set
    torch.set_float32_matmul_precision("high") before; whoever calls this alone has to choose that.
    """
    network = folded(network, dtype)
    return Compiled(network) if compiled else torch.no_grad()(network)


def folded(network: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy in evaluation mode whose BNs are folded into the convolutions before them, where that is exact.

    dtype: what the weights of its convolutions are cast to, if anything.
    """
    original, network = network, copy.deepcopy(network).eval().requires_grad_(False)
    stages = [module for module in network.modules() if is_plain(module, (Stage,))] if scales_pass_through() else []
    uses = Counter(stage.connection(*place) for stage in stages for place in stage.inputs)
    for stage in stages:
        fold_stage(stage, uses)
    if hasattr(network, "backbone"):
        fold_encoder(network.backbone, original.backbone)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and dtype is not None:
            module.to(dtype)
    return network


def fold_stage(stage: Stage, uses: Counter) -> None:
    """Puts the BN of a stage into its connections, which the sum and its resizes pass on: a scale and a constant.

    Only where all connections are convolutions that no other place uses (uses: connection -> number of places).
    """
    convolutions, bn = [stage.connection(*place) for place in stage.inputs], stage.bn
    if not is_plain(bn, (BatchNorm2d, SyncBatchNorm2d)) or \
            not all(is_plain(conv, (nn.Conv2d,)) and uses[conv] == 1 for conv in convolutions):
        return
    for i, conv in enumerate(convolutions):
        shift = bn.running_mean, bn.bias  # of the sum, so of one connection only
        mean, bias = shift if i == 0 else map(torch.zeros_like, shift)
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, bn.running_var, bn.eps, bn.weight,
                                                      bias)
    stage.bn = nn.Identity()


@functools.lru_cache(maxsize=1)
def scales_pass_through() -> bool:
    """Whether folding is exact for models/decoder.py, which somebody may have edited: tried on a small stage.

    It leaves the random numbers as they are.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        places = {(0, 0): 4, (0, 1): 4, (1, 0): 2}  # {(source, side): stride}
        stage = Stage({place: conv1x1(3, 2) for place in places}, places, 2, 2).double().eval()
        for tensor in stage.bn.running_mean, stage.bn.weight, stage.bn.bias:
            tensor.normal_()
        sizes = {(0, 0): 3, (0, 1): 1, (1, 0): 5}
        features = {place: torch.randn(2, 3, n, n, dtype=torch.float64) for place, n in sizes.items()}
        before = stage(features, (5, 5))
        fold_stage(stage, Counter(stage.connection(*place) for place in places))
        return torch.allclose(stage(features, (5, 5)), before, rtol=1e-9, atol=1e-9)


def scaled_size(size: Sequence[int], scale: float, min_size: int = MIN_SIZE) -> list[int]:
    """The size of an image at a scale: round(scale * (H - 1)) + 1, which keeps aligned corners aligned; >= min_size."""
    return [max(round(scale * (length - 1)) + 1, min_size) for length in size]


class TestTimeAugmentation:
    """The paper's multi-scale test: image (N, 3, H, W) -> probabilities (N, classes, H, W).

    forward: image -> logits of any size. The mean of the softmax over the image at each of the `scales` and, with flip,
    of its mirror image. For the sizes see scaled_size.
    """
    __test__ = False  # not a test, for pytest

    def __init__(self, forward: Callable, scales: Sequence[float], flip: bool, min_size: int = MIN_SIZE):
        self.forward, self.scales, self.flip, self.min_size = forward, tuple(scales), flip, min_size

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        size = image.shape[2:]
        total = 0
        for scale in self.scales:
            x = resize(image, scaled_size(size, scale, self.min_size))
            for mirrored in (False, True) if self.flip else (False,):
                logits = resize(self.forward(x.flip(3) if mirrored else x), size)
                p = F.softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
                total = total + (p.flip(3) if mirrored else p)
        return total / (len(self.scales) * (1 + self.flip))


@contextlib.contextmanager
def explain_compiler(kind: type[InputError] = InputError) -> Iterator[None]:
    """Turns the failure of torch.compile's compiler, where there is none or it is unfit, into an InputError."""
    try:
        yield
    except RuntimeError as error:
        # by names: not every version has them all, and importing torch._dynamo takes seconds
        names = {cls.__name__ for cls in type(error).__mro__}
        if names.isdisjoint(COMPILER_FAILURES):
            raise
        error = getattr(error, "inner_exception", error)
        reason = first_line(error)
        if isinstance(error, torch.OutOfMemoryError):
            raise error from None
        remedy = "install a C++ compiler (g++)"
        if "triton" in reason.lower():
            remedy = "its compiler is for newer GPUs" if "too old to be supported" in reason else "install triton"
        raise kind(f"the network cannot be compiled here ({reason}); {remedy}, or run it uncompiled",
                   about="compiled") from None


class Compiled:
    """A compiled network, as `for_inference` gives it.

    The first image size is compiled for itself; with the second, sizes are left open, so that one more compilation
    serves all others. Where a network of the user's own cannot be compiled so, PyTorch stops after a number of sizes:
    further ones run uncompiled, with an InputWarning.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        cuda = next(network.parameters()).is_cuda
        # replayed graphs for the first size alone: each open size would be recorded anew
        self.call = torch.compile(network, options={"triton.cudagraphs": True,
                                                    "triton.cudagraph_skip_dynamic_graphs": True} if cuda else
                                                   {"freezing": True})
        self.batches = {}  # image size -> the largest batch so far
        self.warned = False

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Raises InputError where there is no compiler."""
        number, *size = image.shape
        batch = self.batches[tuple(size)] = max(number, self.batches.get(tuple(size), 0))
        if number < batch:  # the rest of a list: padded, it needs no compilation of its own
            image = F.pad(image, (0, 0) * 3 + (0, batch - number))
        if len(self.batches) > 1:
            torch._dynamo.maybe_mark_dynamic(image, [0, 2, 3])
        try:
            with explain_compiler(), torch._dynamo.config.patch(fail_on_cache_limit_hit=True):
                logits = self.call(image)[:number]
        except Exception as error:
            if type(error).__name__ not in ("FailOnRecompileLimitHit", "FailOnCacheLimitHit"):
                raise
            if not self.warned:
                self.warned = True
                warnings.warn(f"the network was compiled for as many image sizes as PyTorch compiles, and images of "
                              f"{size[2]}x{size[1]} pixels and of further sizes run uncompiled", InputWarning,
                              stacklevel=2)
            return self.network(image)[:number]
        return logits.clone() if image.is_cuda else logits  # a replayed graph writes its next result to that memory
