"""A trained network made fast for inference: BN folded into the convolutions, and compiled where asked.

`for_inference` is the one call that evaluation, and whoever uses the networks elsewhere, share.
"""
import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.decoder import Stage
from models.layers import resize
from models.mobilenet_v2 import MIN_SIZE
from utils.errors import InputError


def for_inference(network: nn.Module, compiled: bool = False, dtype: torch.dtype | None = None) -> Callable:
    """A callable image (N, 3, H, W) -> logits (N, classes, H/2, W/2), equal to network.eval()'s to 1e-4.

    It is a copy: training the network on does not change it. Gradients do not pass. dtype: that of the autocast
    it will be called in, if any; the weights of its convolutions are cast once, then. compiled: torch.compile, with the
    weights as constants on a CPU and as replayed CUDA graphs on a GPU; the first call of an image size takes tens of
    seconds, and raises InputError where there is no compiler.
    """
    network = folded(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and dtype is not None:
            module.to(dtype)
    return Compiled(network) if compiled else torch.no_grad()(network)


def folded(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose BNs are folded into the convolutions before them, where there is one."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for module in network.modules():
        if type(module) is Stage:
            fold_stage(module)
        for convolution, norm in getattr(module, "folds", ()):
            if hasattr(module, norm):
                fold(module, convolution, norm)
    return network


def fold(module: nn.Module, convolution: str, norm: str) -> None:
    """Puts the scale and shift of module.<norm> into module.<convolution>, which gets a bias."""
    conv, bn = getattr(module, convolution), getattr(module, norm)
    conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps,
                                                  bn.weight, bn.bias)
    setattr(module, norm, nn.Identity())


def fold_stage(stage: Stage) -> None:
    """Puts the BN of a stage into its connections, if all are convolutions: resizing keeps a scale and a constant."""
    convolutions, bn = [stage.connection(*place) for place in stage.inputs], stage.bn
    if not all(type(conv) is nn.Conv2d for conv in convolutions):
        return
    for i, conv in enumerate(convolutions):
        shift = bn.running_mean, bn.bias  # of the sum, so of one connection only
        mean, bias = shift if i == 0 else map(torch.zeros_like, shift)
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, mean, bn.running_var, bn.eps, bn.weight,
                                                      bias)
    stage.bn = nn.Identity()


class TestTimeAugmentation:
    """The paper's multi-scale test: image (N, 3, H, W) -> probabilities (N, classes, H, W).

    forward: image -> logits of any size. The mean of the softmax over the image at each of the `scales` and, with flip,
    of its mirror image. The sizes are round(scale * (H - 1)) + 1, which keeps aligned corners aligned, and at least
    min_size pixels a side.
    """
    __test__ = False  # not a test, for pytest

    def __init__(self, forward: Callable, scales: Sequence[float], flip: bool, min_size: int = MIN_SIZE):
        self.forward, self.scales, self.flip, self.min_size = forward, tuple(scales), flip, min_size

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        size = image.shape[2:]
        total = 0
        for scale in self.scales:
            scaled = [max(round(scale * (length - 1)) + 1, self.min_size) for length in size]
            x = resize(image, scaled)
            for mirrored in (False, True) if self.flip else (False,):
                logits = resize(self.forward(x.flip(3) if mirrored else x), size)
                p = F.softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))
                total = total + (p.flip(3) if mirrored else p)
        return total / (len(self.scales) * (1 + self.flip))


class Compiled:
    """A compiled network, as `for_inference` gives it."""

    def __init__(self, network: nn.Module):
        self.network = network
        cuda = next(network.parameters()).is_cuda
        self.call = torch.compile(network, **({"mode": "reduce-overhead"} if cuda else
                                              {"options": {"freezing": True}}))

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        try:
            # a replayed graph writes its next result to the same memory
            return self.call(image).clone() if image.is_cuda else self.call(image)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().splitlines()[0]
            raise InputError(f"the network cannot be compiled here ({reason}); install a C++ compiler (g++), or run "
                             f"it uncompiled", about="compiled") from None
