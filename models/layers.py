"""Layers that the encoder and the decoders share."""
import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-5
RELEASED_BN_MOMENTUM = 0.0003  # spec section 2: 10 / 33,100, right for a run of that length only


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d, same names and figures, that also trains on one value a channel.

    Such a batch has no variance of its own: the global feature of a single image, which is 1x1. The running statistics
    stand in for the batch's then, and are not updated.
    """

    def __init__(self, channels, momentum=RELEASED_BN_MOMENTUM):
        super().__init__(channels, eps=EPS, momentum=momentum)

    def forward(self, x):
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
