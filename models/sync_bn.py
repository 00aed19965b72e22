"""Batch normalization over several processes: every process trains on the statistics of the whole batch.

As torch.nn.SyncBatchNorm, but on CPUs too, and where BN is folded into convolutions (models/folded_search.py).
"""
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from models.layers import BatchNorm2d, moments, pixels, update_statistics


class SyncBatchNorm2d(BatchNorm2d):
    """BatchNorm2d that trains on the batches of all processes of the default process group."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w), this process's share -> normalized by the whole batch, of the same shape."""
        if not self.training:
            return super().forward(x)
        rows = pixels(x)
        mean, var = shared_statistics([self], *moments(rows), len(rows))
        gain = self.weight * (var + self.eps).rsqrt()
        bias = self.bias - gain * mean
        return torch.addcmul(bias.view(1, -1, 1, 1), x, gain.view(1, -1, 1, 1)).to(x.dtype)


class AllReduceSum(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient, since each process's loss depends on the sum."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        if dist.is_initialized():
            dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return AllReduceSum.apply(gradient)


def shared_statistics(norms: Sequence[nn.BatchNorm2d], mean: torch.Tensor, var: torch.Tensor,
                      n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (biased) variance of the rows of all processes, from those of this one's n rows; norms are updated.

    mean, var: (len(norms) * channels). If there is only one row in all, the running statistics stand in. The sums are
    float64, because the square of the mean cancels.
    """
    wide = mean.double()
    total = AllReduceSum.apply(torch.cat([n * wide, n * (var + wide.square()), wide.new_full((1,), n)]))
    count = total[-1].clamp(min=1)
    shared_mean, square = (total[:-1] / count).chunk(2)
    shared_var = (square - shared_mean.square()).clamp(min=0)
    enough = count > 1  # a tensor: reading it would wait for the device
    old_mean, old_var = (torch.cat([getattr(norm, name) for norm in norms]).clone()
                         for name in ("running_mean", "running_var"))
    unbiased = shared_var * count / (count - 1).clamp(min=1)
    update_statistics(norms, torch.where(enough, shared_mean, old_mean).to(old_mean.dtype),
                      torch.where(enough, unbiased, old_var).to(old_var.dtype))
    return (torch.where(enough, shared_mean, old_mean).to(mean.dtype),
            torch.where(enough, shared_var, old_var).to(var.dtype))


def synchronize_bn(network: nn.Module) -> None:
    """Replaces every batch normalization, a user's own encoder's included, by a SyncBatchNorm2d, in place."""
    for module in list(network.modules()):
        for name, norm in module.named_children():
            if isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, synchronized(norm))


def synchronized(norm: nn.BatchNorm2d) -> SyncBatchNorm2d:
    """An nn.BatchNorm2d as a SyncBatchNorm2d with the same tensors."""
    ours = SyncBatchNorm2d(norm.num_features, norm.momentum)
    ours.eps, ours.training = norm.eps, norm.training
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(ours, name, getattr(norm, name))
    return ours
