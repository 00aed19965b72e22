"""FullyDenseNetwork: the search space, every connection with a strength (spec section 3; paper section 3.2)."""
import functools

import torch
import torch.nn.functional as F
from torch import nn

from models import connectivity as conn
from models.fusion import Decoder, Term
from models.layers import (EPS, BatchNorm2d, freeze_bn_affine, initialize, moments, pixels, projected_moments,
                           shared_statistics, update_statistics)
from models.network import SegmentationNetwork
from models.strengths import make_strengths

MANY_PIXELS = 8  # an output channel: from there on the statistics of W x are cheaper from those of x


def make_connection(in_channels, depth):
    """1x1 convolution, then BN: it makes the strengths of different inputs comparable (a point of mIoU)."""
    return nn.Sequential(nn.Conv2d(in_channels, depth, 1, bias=False), BatchNorm2d(depth))


class FullyDenseNetwork(SegmentationNetwork):
    """The supernet. `network(image)` gives the logits (N, classes, H/2, W/2) for an image (N, 3, H, W).

    strengths: "sigmoid" or "clamp"; noise: whether training disturbs them. In training, draw the strengths once a step
    and hand them to both the forward pass and the sparse loss:

        strengths = network.draw_strengths()
        loss = cross_entropy(network(image, strengths), label) + 0.01 * total_sparse_loss(strengths)

    No BN has trainable scale or shift here. Raises InputError for unknown names and impossible sizes.
    """

    def __init__(self, backbone="mobilenet_v2", depth=64, num_classes=21, strengths="sigmoid", noise=True):
        super().__init__(backbone, depth, num_classes)
        self.strengths = make_strengths(strengths)
        self.strengths_name, self.noise = strengths, noise
        self.decoders = Decoder(self.backbone.channels, depth, conn.full(self.num_stages), make_connection)
        for l in range(self.num_stages):
            parameter = nn.Parameter(torch.full((l + 1, 2), self.strengths.start))
            self.decoders.stage(l).register_parameter(self.strengths.parameter_name, parameter)
        self.fc_conv = self.make_head()
        initialize(self)
        freeze_bn_affine(self)

    def strength_parameters(self):
        """One parameter (l+1, 2) a stage, deepest first: what `self.strengths` turns into p."""
        return [getattr(self.decoders.stage(l), self.strengths.parameter_name) for l in range(self.num_stages)]

    def draw_strengths(self):
        """One tensor p (l+1, 2) a stage, in [0, 1]. In training with noise each call draws anew."""
        noise = self.noise and self.training
        return [self.strengths(parameter, noise) for parameter in self.strength_parameters()]

    @torch.no_grad()
    def final_strengths(self):
        """What pruning reads: the strengths without noise, one float64 array (l+1, 2) a stage."""
        return [self.strengths(parameter, noise=False).double().cpu().numpy()
                for parameter in self.strength_parameters()]

    def clamp_strengths(self):
        """To be called after each optimizer step: keeps the strength parameters where they may be."""
        for parameter in self.strength_parameters():
            self.strengths.after_step(parameter)

    def forward(self, image, strengths=None):
        strengths = self.draw_strengths() if strengths is None else strengths
        taps = self.backbone(image)
        return self.head(self.decoders(taps, functools.partial(self.project, strengths)))

    def project(self, strengths, x, readers, source, side):
        """2 p BN(conv(x)) of all the connections that read x (N, C, h, w) -> one list of Terms a reader.

        BN and strength are folded into the convolution: with the mean and the variance of W x,

            2 p BN(W x) = a W x + b,    a = 2 p gamma / sqrt(var + eps),    b = 2 p beta - a mean

        so a connection has no map of its own. Where x has few pixels (the deep taps in training) one convolution and
        one BN for all readers is cheaper.
        """
        weight = torch.cat([convolution.weight for _, (convolution, _) in readers]).flatten(1)  # (readers * depth, C)
        norms = [norm for _, (_, norm) in readers]
        p = torch.stack([strengths[l][source, side] for l, _ in readers])
        gamma, beta = (torch.cat([getattr(norm, name) for norm in norms]) * (2 * p).repeat_interleave(self.depth)
                       for name in ("weight", "bias"))
        rows = pixels(x)
        n = len(rows)
        few = not (weight.shape[1] <= len(weight) and n >= MANY_PIXELS * len(weight))
        together = self.training and norms[0].synchronized
        batch_statistics = self.training and n > 1  # one value a channel has no variance: see BatchNorm2d
        if batch_statistics and few and not together:
            mean, var = torch.zeros_like(beta), torch.ones_like(beta)
            y = F.batch_norm(F.conv2d(x, weight[..., None, None]), mean, var, gamma, beta, True, 1.0, EPS)
            update_statistics(norms, mean, var)
            return [[Term(part)] for part in y.split(self.depth, dim=1)]
        with torch.autocast(x.device.type, enabled=False):  # a variance needs more digits than bfloat16 has
            if together:
                mean, var = moments(rows.to(weight.dtype) @ weight.t()) if few else projected_moments(rows, weight)
                mean, var = shared_statistics(norms, mean, var, n)
            elif batch_statistics:
                mean, var = projected_moments(rows, weight)
                update_statistics(norms, mean, var * (n / (n - 1)))
            else:
                mean, var = (torch.cat([getattr(norm, name) for norm in norms])
                             for name in ("running_mean", "running_var"))
            gain = gamma * (var + EPS).rsqrt()
            weight, bias = gain[:, None] * weight, beta - gain * mean
        return [[Term(x, w), Term(b.view(1, -1, 1, 1))]  # a constant stays 1x1 until the sum grows
                for w, b in zip(weight.split(self.depth), bias.split(self.depth))]
