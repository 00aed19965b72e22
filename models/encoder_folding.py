"""Folding the batch normalizations of any encoder into the convolutions before them, found by running it."""
import copy
from collections import Counter
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.layers import BatchNorm2d, DepthwiseConv2d, is_plain
from models.sync_bn import SyncBatchNorm2d

SIZE = 64  # pixels a side of the image that it is run on
TOLERANCE = 1e-9  # of the largest value, in double precision: rounding is far below, and a wrong fold far above
CONVOLUTIONS = (nn.Conv2d, DepthwiseConv2d)
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNorm2d, SyncBatchNorm2d)
FOUND = WeakKeyDictionary()  # encoder -> what foldable_pairs found


def fold_encoder(encoder: nn.Module, original: nn.Module) -> None:
    """Folds the BNs of an encoder in evaluation mode where that is exact; the others stay, which is slower.

    original: the encoder that `encoder` is a copy of. What can be folded is found once for each.
    """
    if original not in FOUND:
        FOUND[original] = foldable_pairs(encoder)
    modules = dict(encoder.named_modules())
    fold(encoder, {norm: convolution for norm, convolution in FOUND[original].items()  # as far as nobody has changed it
                   if is_plain(modules.get(convolution), CONVOLUTIONS)
                   and activation_of(modules.get(norm)) is not None})


@torch.no_grad()
def foldable_pairs(encoder: nn.Module) -> dict[str, str]:
    """{name of a BN: name of the convolution that it can be folded into}, found by running a copy of the encoder.

    A BN can be folded if its input is what a convolution has just put out. Whether anything else reads that output
    shows by comparing the features of a random image before and after, with random weights: so nothing waits for a
    GPU, and a BN that happens to change nothing proves nothing. No pair if they differ, or if the copy cannot be run.
    """
    if not any(isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) for module in encoder.modules()):
        return {}
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    try:
        trial = randomized_copy(encoder, generator)
        pairs, before = find_pairs(trial, image)
        fold(trial, pairs)
        after = trial(image)
    except Exception:  # an encoder that takes no image of this size or type
        return {}
    equal = all(float((x - y).abs().max()) <= TOLERANCE * float(x.abs().max())
                for x, y in zip(before, after, strict=True))
    return pairs if equal else {}


def randomized_copy(encoder: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy on the CPU, in double precision, whose parameters and buffers have random values of a usual size."""
    trial = copy.deepcopy(encoder).to_empty(device="cpu").double()
    for name, tensor in trial.state_dict().items():
        if not tensor.is_floating_point():
            tensor.zero_()
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
        else:
            tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=generator)
    return trial


def find_pairs(encoder: nn.Module, image: torch.Tensor) -> tuple[dict[str, str], list[torch.Tensor]]:
    """Runs the encoder. Returns ({name of a BN: name of the convolution whose output it reads}, the features).

    Only pairs of which each is called once.
    """
    made, pairs, calls, hooks = {}, {}, Counter(), []  # made: id of an output -> (name, output, kept for its id)

    def after_convolution(name, output):
        calls[name] += 1
        made[id(output)] = name, output

    def before_norm(name, x):
        calls[name] += 1
        if id(x) in made:
            pairs[name] = made[id(x)][0]

    for name, module in encoder.named_modules():
        if is_plain(module, CONVOLUTIONS):
            hooks.append(module.register_forward_hook(lambda _, __, y, name=name: after_convolution(name, y)))
        elif activation_of(module) is not None:
            hooks.append(module.register_forward_pre_hook(lambda _, x, name=name: before_norm(name, x[0])))
    try:
        features = encoder(image)
    finally:
        for hook in hooks:
            hook.remove()
    used = Counter(pairs.values())
    return {norm: convolution for norm, convolution in pairs.items()
            if calls[norm] == calls[convolution] == used[convolution] == 1}, features


def activation_of(module: nn.Module) -> nn.Module | None:
    """What stays of a BN when it is folded: nothing, or in timm's BN with an activation that; None for other modules.
    """
    if is_plain(module, NORMS):
        return nn.Identity()
    if isinstance(module, nn.BatchNorm2d) and type(module).__name__ == "BatchNormAct2d":
        return nn.Sequential(module.drop, module.act)
    return None


def fold(encoder: nn.Module, pairs: Mapping[str, str]) -> None:
    """Puts the scale and shift of each BN into its convolution, which gets a bias. pairs: see find_pairs."""
    for norm, convolution in pairs.items():
        bn, conv = encoder.get_submodule(norm), encoder.get_submodule(convolution)
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps,
                                                      bn.weight, bn.bias)
        parent, _, leaf = norm.rpartition(".")
        setattr(encoder.get_submodule(parent), leaf, activation_of(bn))
