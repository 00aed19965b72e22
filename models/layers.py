"""Layers and operations that the encoder and the decoders share."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-5
RELEASED_BN_MOMENTUM = 0.0003  # 10 / 33,100: right for a run of that length only


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d, same names and values, that also trains on one value per channel.

    Such a batch has no variance of its own: the global feature of a single image, which is 1x1. The running statistics
    stand in for the batch's then, and are not updated.
    """

    def __init__(self, channels: int, momentum: float = RELEASED_BN_MOMENTUM):
        super().__init__(channels, eps=EPS, momentum=momentum)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) -> normalized, of the same shape."""
        if self.training:
            self.num_batches_tracked.add_(1)
        training = self.training and x.shape[0] * x.shape[2] * x.shape[3] > 1
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training, self.momentum,
                            self.eps)


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(module: nn.Module, kinds: Sequence[type]) -> bool:
    """Whether a call of the module does what one of these classes does, and nothing else.

    That is: it is of exactly such a class, no hook is registered, and no method is set on the instance. Whatever
    computes a module's result without calling it has to ask this first.
    """
    return (type(module) in kinds and not any(getattr(module, name) for name in HOOKS) and
            not any(map(callable, vars(module).values())))


@torch.no_grad()
def update_statistics(norms: Sequence[nn.BatchNorm2d], mean: torch.Tensor, var: torch.Tensor) -> None:
    """Updates the running statistics of several norms by a batch of mean and (unbiased) variance.

    mean, var: (len(norms) * channels).
    """
    channels = norms[0].num_features
    for norm, batch_mean, batch_var in zip(norms, mean.split(channels), var.split(channels), strict=True):
        norm.running_mean.lerp_(batch_mean, norm.momentum)
        norm.running_var.lerp_(batch_var, norm.momentum)
        norm.num_batches_tracked.add_(1)


def resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bilinear, align_corners=True: (N, C, h, w) -> (N, C, *size)."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def pixels(x: torch.Tensor) -> torch.Tensor:
    """(N, C, h, w) -> (N h w, C), a row for each pixel; without a copy where x is channels last."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (biased) variance (C) of rows (n, C), in float32 at least; zeros if there are no rows."""
    wide = rows if rows.dtype == torch.float64 else rows.float()
    if len(rows) == 0:
        return wide.sum(0), wide.sum(0)
    return torch.var_mean(wide, 0, correction=0)[::-1]


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d with a filter a channel, same names and figures.

    With a stride, on a CPU, it trains in float32 under autocast: oneDNN's bfloat16 backward pass is ten times slower.
    """

    def __init__(self, channels: int, stride: int):
        super().__init__(channels, channels, 3, stride, padding=1, groups=channels, bias=False)

    def forward(self, x):
        slow = self.stride != (1, 1) and x.dtype == torch.bfloat16 and x.device.type == "cpu"
        if slow and torch.is_grad_enabled():
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)


INIT_MODES = ("fan_out", "fan_in")  # of Kaiming's normal distribution; the released one first


def initialize(network: nn.Module, mode: str = INIT_MODES[0]) -> None:
    """Convolutions from Kaiming normal, biases 0, BN 1 and 0. mode: one of INIT_MODES."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def set_bn_momentum(network: nn.Module, momentum: float) -> None:
    """Sets the momentum (torch's convention: the new batch's share) of every batch normalization."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


def freeze_bn_affine(network: nn.Module) -> None:
    """Keeps scale and shift of every batch normalization at their values; the running statistics still follow."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.requires_grad_(False)
            module.bias.requires_grad_(False)
