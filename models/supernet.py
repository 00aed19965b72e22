"""FullyDenseNetwork: the search space, every connection with a strength (spec section 3; paper section 3.2)."""
import functools

import torch
from torch import nn

from models import connectivity as conn
from models.fusion import Decoder, convolve_together
from models.layers import BatchNorm2d, batch_norm, freeze_bn_affine, initialize
from models.network import SegmentationNetwork
from models.strengths import make_strengths


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
        """2 p BN(conv(x)) of all the connections that read x: one convolution, one BN, p folded into the BN's affine.

        x (N, C, h, w) -> one (N, depth, h, w) a reader.
        """
        y = convolve_together(x, [convolution for _, (convolution, _) in readers])
        norms = [norm for _, (_, norm) in readers]
        p = torch.stack([strengths[l][source, side] for l, _ in readers])
        gamma, beta, mean, var = (torch.cat([getattr(norm, name) for norm in norms])
                                  for name in ("weight", "bias", "running_mean", "running_var"))
        scale = (2 * p).repeat_interleave(self.depth)
        y = batch_norm(y, mean, var, gamma * scale, beta * scale, self.training, norms[0].momentum)
        if self.training:
            for norm, new_mean, new_var in zip(norms, mean.split(self.depth), var.split(self.depth)):
                norm.running_mean.copy_(new_mean)
                norm.running_var.copy_(new_var)
                norm.num_batches_tracked.add_(1)
        return y.split(self.depth, dim=1)
