"""Folding the batch normalizations of any encoder into the convolutions before them, found by running it."""
import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.layers import BatchNorm2d, is_plain
from models.sync_bn import SyncBatchNorm2d

SIZE = 64  # pixels a side of the image that it is run on
TOLERANCE = 1e-4  # of the largest value
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNorm2d, SyncBatchNorm2d)


@torch.no_grad()
def fold_encoder(encoder: nn.Module) -> nn.Module:
    """The encoder in evaluation mode with its BNs folded where that is exact; else as it is, which is slower.

    The encoder is one of a copy: it may be changed. A BN is folded if its input is what a convolution has just put out.
    Whether anything else reads that output shows by comparing the features of a random image before and after.
    """
    if not any(isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) for module in encoder.modules()):
        return encoder
    parameter = next(encoder.parameters())
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(parameter)
    result = copy.deepcopy(encoder)
    try:
        pairs = find_pairs(result, image)
        for name, convolution in pairs.items():
            fold(result, name, convolution)
        before, after = encoder(image), result(image)
    except Exception:  # an encoder that takes no image of this size
        return encoder
    equal = all(float((x - y).abs().max()) <= TOLERANCE * float(x.abs().max())
                for x, y in zip(before, after, strict=True))
    return result if equal else encoder


def find_pairs(encoder: nn.Module, image: torch.Tensor) -> dict[str, nn.Conv2d]:
    """{name of a BN: the convolution whose output it reads}, where each of them is called once."""
    made, pairs, calls, hooks = {}, {}, {}, []  # made: id of an output -> (convolution, output, kept for its id)

    def after_convolution(module, _, output):
        calls[module] = calls.get(module, 0) + 1
        made[id(output)] = module, output

    def before_norm(name, module, inputs):
        calls[module] = calls.get(module, 0) + 1
        convolution, _ = made.get(id(inputs[0]), (None, None))
        if convolution is not None:
            pairs[name] = convolution

    for name, module in encoder.named_modules():
        if is_plain(module, (nn.Conv2d,)):
            hooks.append(module.register_forward_hook(after_convolution))
        elif activation_of(module) is not None:
            hooks.append(module.register_forward_pre_hook(lambda m, x, name=name: before_norm(name, m, x)))
    try:
        encoder(image)
    finally:
        for hook in hooks:
            hook.remove()
    modules, used = dict(encoder.named_modules()), list(pairs.values())
    return {name: convolution for name, convolution in pairs.items()
            if calls[modules[name]] == calls[convolution] == used.count(convolution) == 1}


def activation_of(module: nn.Module) -> nn.Module | None:
    """What stays of a BN when it is folded: nothing, or in timm's BN with an activation that; None for other modules.
    """
    if is_plain(module, NORMS):
        return nn.Identity()
    if isinstance(module, nn.BatchNorm2d) and type(module).__name__ == "BatchNormAct2d":
        return nn.Sequential(module.drop, module.act)
    return None


def fold(encoder: nn.Module, name: str, convolution: nn.Conv2d) -> None:
    """Puts the scale and shift of the BN of that name into the convolution, which gets a bias."""
    parent, _, leaf = name.rpartition(".")
    bn = encoder.get_submodule(name)
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
    setattr(encoder.get_submodule(parent), leaf, activation_of(bn))
