"""Layers that the encoder and the decoders share."""
import torch.nn.functional as F
from torch import nn

EPS = 1e-5
RELEASED_BN_MOMENTUM = 0.0003  # spec section 2: 10 / 33,100, right for a run of that length only


def batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps=EPS):
    """Batch normalization that one value a channel does not break: such a batch has no variance of its own.

    The global feature of a single image is 1x1, so a batch of one gives it one value a channel. The running statistics
    stand in for the batch's then, and are not updated.
    """
    training = training and x.shape[0] * x.shape[2] * x.shape[3] > 1
    return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d, same names and figures, that also trains on one value a channel (see `batch_norm`)."""

    def __init__(self, channels, momentum=RELEASED_BN_MOMENTUM):
        super().__init__(channels, eps=EPS, momentum=momentum)

    def forward(self, x):
        if self.training:
            self.num_batches_tracked.add_(1)
        return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
                          self.momentum, self.eps)


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
