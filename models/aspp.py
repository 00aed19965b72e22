"""Atrous spatial pyramid pooling (DeepLab-V3, Chen et al. 2017): a rival of the searched decoders, as one stage."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from models.decoder import DECODER, ENCODER, Stage
from models.layers import BatchNorm2d
from utils.errors import InputError

RATES, RATES_STRIDE = (6, 12, 18), 16  # DeepLab-V3's, for a feature of that stride


class ASPP(Stage):
    """A stage that reads one encoder tap, and G for the pooling of the image.

    At the tap's resolution: a 1x1 convolution, which is the connection itself, three atrous 3x3 ones, and the pooling,
    which is G's connection. Each is normalized and goes through ReLU6; a 1x1 convolution makes `depth` channels of all,
    which are resized, and then normalized by the stage's BN. Raises InputError for other inputs.
    """

    def __init__(self, connections: dict, strides: dict, stride: int, depth: int):
        super().__init__(connections, strides, stride, depth)
        taps = [place for place in connections if place[1] == ENCODER]
        if len(taps) != 1 or set(connections) - {*taps, (0, DECODER)}:
            raise InputError("an ASPP stage reads one encoder tap, and G at most; give the connectivity deeplabv3 or "
                             "one like it, or another fusion", about="fusion")
        self.tap = taps[0]
        channels = getattr(connections[self.tap], "in_channels", None)
        if channels is None:
            raise InputError("an ASPP stage takes its 1x1 branch from the connection, which has to be a convolution",
                             about="connection")
        rates = [max(1, rate * RATES_STRIDE // strides[self.tap]) for rate in RATES]
        self.atrous = nn.ModuleList(nn.Conv2d(channels, depth, 3, padding=rate, dilation=rate, bias=False)
                                    for rate in rates)
        branches = len(connections) + len(rates)
        self.norms = nn.ModuleList(BatchNorm2d(depth) for _ in range(branches))
        self.project = nn.Conv2d(branches * depth, depth, 1, bias=False)

    def forward(self, features: dict, size: Sequence[int], strengths: torch.Tensor | None = None) -> torch.Tensor:
        """features: {(source, side): ReLU6 of that source (N, C, h, w)}; size: (H, W). Returns (N, depth, H, W)."""
        tap = features[self.tap]
        branches = [self.connect(place, features, strengths) for place in self.inputs]
        branches += [convolution(tap) for convolution in self.atrous]
        branches = [F.relu6(norm(branch)).expand(-1, -1, *tap.shape[2:])  # which changes G's alone, 1x1
                    for norm, branch in zip(self.norms, branches, strict=True)]
        return self.bn(self.resize(self.project(torch.cat(branches, 1)), self.strides[self.tap], size))
