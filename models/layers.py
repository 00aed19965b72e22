"""Layers that the encoder and the decoders share."""
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

EPS = 1e-5
RELEASED_BN_MOMENTUM = 0.0003  # spec section 2: 10 / 33,100, right for a run of that length only


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d, same names and figures, that also trains on one value a channel.

    Such a batch has no variance of its own: the global feature of a single image, which is 1x1. The running statistics
    stand in for the batch's then, and are not updated.

    synchronized: training takes the statistics of the batches of all processes, see synchronize_bn.
    """
    synchronized = False

    def __init__(self, channels, momentum=RELEASED_BN_MOMENTUM):
        super().__init__(channels, eps=EPS, momentum=momentum)

    def forward(self, x):
        if self.training and self.synchronized:
            rows = pixels(x)
            mean, var = shared_statistics([self], *moments(rows), len(rows))
            gain = self.weight * (var + self.eps).rsqrt()
            bias = self.bias - gain * mean
            return torch.addcmul(bias.view(1, -1, 1, 1), x, gain.view(1, -1, 1, 1)).to(x.dtype)
        if self.training:
            self.num_batches_tracked.add_(1)
        training = self.training and x.shape[0] * x.shape[2] * x.shape[3] > 1
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training, self.momentum,
                            self.eps)


def pixels(x):
    """(N, C, h, w) -> (N h w, C), a row a pixel; without a copy where x is channels last."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


class Moments(torch.autograd.Function):
    """Mean (C) and covariance (C, C) of rows (n, C), in float32 at least. It keeps nothing but the rows."""

    @staticmethod
    def forward(ctx, rows):
        wide = rows if rows.dtype == torch.float64 else rows.float()
        mean = wide.mean(0)
        centred = wide - mean
        ctx.save_for_backward(rows, mean)
        return mean, centred.t() @ centred / len(rows)

    @staticmethod
    def backward(ctx, d_mean, d_covariance):
        rows, mean = ctx.saved_tensors
        slope = (d_covariance + d_covariance.t()) / len(rows)  # d covariance / d row is linear in (row - mean)
        constant = d_mean / len(rows) - mean @ slope
        return torch.addmm(constant.to(rows.dtype), rows, slope.to(rows.dtype))


def projected_moments(rows, weight):
    """Mean and variance of the outputs of rows @ weight.T, without computing them: W m and diag(W C W^T).

    rows (n, C), weight (outputs, C) -> two tensors (outputs). It is cheap where C is small and n large.
    """
    mean, covariance = Moments.apply(rows)
    return weight @ mean, ((weight @ covariance) * weight).sum(1)


def moments(rows):
    """Mean and (biased) variance (C) of rows (n, C), in float32 at least; of no rows zeros."""
    wide = rows if rows.dtype == torch.float64 else rows.float()
    if len(rows) == 0:
        return wide.sum(0), wide.sum(0)
    return torch.var_mean(wide, 0, correction=0)[::-1]


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; so is its gradient, for each process's loss depends on the sum."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        if dist.is_initialized():
            dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return SumOverProcesses.apply(gradient)


def shared_statistics(norms, mean, var, n):
    """The mean and (biased) variance of the rows of all processes, from those of this one's n rows; norms are updated.

    mean, var: (len(norms) * channels). Where all rows are a single one, the running statistics stand in. In float64,
    for the square of the mean cancels.
    """
    wide = mean.double()
    total = SumOverProcesses.apply(torch.cat([n * wide, n * (var + wide.square()), wide.new_tensor([n])]))
    count = total[-1].clamp(min=1)
    shared_mean, square = (total[:-1] / count).chunk(2)
    shared_var = (square - shared_mean.square()).clamp(min=0)
    enough = count > 1  # without asking the device, which would wait for it
    old_mean, old_var = (torch.cat([getattr(norm, name) for norm in norms]).clone()
                         for name in ("running_mean", "running_var"))
    unbiased = shared_var * count / (count - 1).clamp(min=1)
    update_statistics(norms, torch.where(enough, shared_mean, old_mean).to(old_mean.dtype),
                      torch.where(enough, unbiased, old_var).to(old_var.dtype))
    return (torch.where(enough, shared_mean, old_mean).to(mean.dtype),
            torch.where(enough, shared_var, old_var).to(var.dtype))


def synchronize_bn(network):
    """Makes every batch normalization train on the statistics of the batches of all processes, in place.

    As torch.nn.SyncBatchNorm, but on CPUs too, and where BN is folded into convolutions (supernet.py).
    """
    for module in list(network.modules()):
        for name, norm in module.named_children():
            if isinstance(norm, nn.BatchNorm2d):
                if not isinstance(norm, BatchNorm2d):  # of a user's own encoder
                    norm = replaced(norm)
                    setattr(module, name, norm)
                norm.synchronized = True


def replaced(norm):
    """An nn.BatchNorm2d as one of ours, with the same tensors."""
    ours = BatchNorm2d(norm.num_features, norm.momentum)
    ours.eps, ours.training = norm.eps, norm.training
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(ours, name, getattr(norm, name))
    return ours


@torch.no_grad()
def update_statistics(norms, mean, var):
    """What a batch of mean and (unbiased) variance (len(norms) * channels) does to the running statistics of norms."""
    channels = norms[0].num_features
    for norm, batch_mean, batch_var in zip(norms, mean.split(channels), var.split(channels)):
        norm.running_mean.lerp_(batch_mean, norm.momentum)
        norm.running_var.lerp_(batch_var, norm.momentum)
        norm.num_batches_tracked.add_(1)


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d with a filter a channel, same names and figures.

    With a stride, on a CPU, it trains in float32 under autocast: oneDNN's bfloat16 backward pass is ten times slower.
    """

    def __init__(self, channels, stride):
        super().__init__(channels, channels, 3, stride, padding=1, groups=channels, bias=False)

    def forward(self, x):
        slow = self.stride != (1, 1) and x.dtype == torch.bfloat16 and x.device.type == "cpu"
        if slow and torch.is_grad_enabled():
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)


def initialize(network):
    """Convolutions from Kaiming normal (fan_out), biases 0, BN 1 and 0: spec section 3."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def set_bn_momentum(network, momentum):
    """Sets the momentum (torch's convention: the new batch's share) of every batch normalization."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum


def freeze_bn_affine(network):
    """Keeps scale and shift of every batch normalization at their values; the running statistics still follow."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.requires_grad_(False)
            module.bias.requires_grad_(False)
