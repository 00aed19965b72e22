"""The decoder: equation (1) of the paper. The supernet and the network of one connectivity are both made of it.

Every index counts from the deepest. Stage l has the resolution of the encoder tap E[l]; D[l] is its output:

    search:  D[l] = BN( sum over inputs t of       2 p[l, t] * resize( connection[l, t]( ReLU6(t) ) ) )
    pruned:  D[l] = BN( sum over kept inputs t of              resize( connection[l, t]( ReLU6(t) ) ) )

Stage l reads E[0], ..., E[l] on its encoder side and G, D[0], ..., D[l-1] on its decoder side, where G is the global
average of E[0]. So source 0 of the decoder side is G, and source j is D[j-1].

Two optimizations rest on these equations: models/folded_search.py in the search, and the folding of a stage's BN in
models/inference.py. Each is tried against this file first, and left out where somebody has changed the equations.

The factor is 2p, not p, for a connection has the weight 1 when its strength is 0.5. There every search starts, so the
supernet starts as the plain sum, which is also what the pruned network computes.
"""
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models.layers import BatchNorm2d

ENCODER, DECODER = 0, 1  # the two sides of a stage's inputs, as in the last axis of a connectivity
SIDE_NAMES = ("down_convs", "up_convs")  # their names in the released state dicts


def conv1x1(in_channels: int, depth: int) -> nn.Conv2d:
    """The paper's connection: a 1x1 convolution without bias. In the search a BN of its own follows."""
    return nn.Conv2d(in_channels, depth, 1, bias=False)


class Stage(nn.Module):
    """One decoder stage. Another fusion of its inputs is a subclass with another `forward`, see docs/extending.md.

    connections: {(source, side): module}, one for each input, each (N, C, h, w) -> (N, depth, h, w).
    strides: {(source, side): stride}, what the encoder declares of each input; G counts as a map of E[0]'s stride.
    stride: of the stage itself.
    """

    def __init__(self, connections: dict, strides: dict, stride: int, depth: int):
        super().__init__()
        for side, name in enumerate(SIDE_NAMES):
            self.add_module(name, nn.ModuleDict({str(j): connection for (j, s), connection in connections.items()
                                                 if s == side}))
        self.inputs, self.strides, self.stride, self.depth = list(connections), strides, stride, depth
        self.bn = BatchNorm2d(depth)

    def forward(self, features: dict, size: Sequence[int], strengths: torch.Tensor | None = None) -> torch.Tensor:
        """features: {(source, side): ReLU6 of that source (N, C, h, w)}; size: (H, W) of the stage.

        strengths: p (l+1, 2) in the search, None in the pruned network. Returns D[l], (N, depth, H, W).
        """
        sums = {}  # resizing is linear, so maps of one stride are added first and resized once
        for place in self.inputs:
            y, stride = self.connect(place, features, strengths), self.strides[place]
            sums[stride] = sums[stride] + y if stride in sums else y
        coarsest, *finer = sorted(sums, reverse=True)
        total = self.resize(sums[coarsest], coarsest, size)
        for stride in finer:
            total += self.resize(sums[stride], stride, size)  # in place: it is a new map, made by the first resize
        return self.bn(total)

    def connect(self, place: tuple, features: dict, strengths: torch.Tensor | None = None) -> torch.Tensor:
        """What one connection contributes at the resolution of its source: (N, depth, h, w), times 2p in the search."""
        y = self.connection(*place)(features[place])
        return y if strengths is None else 2 * strengths[place] * y

    def resize(self, y: torch.Tensor, stride: int, size: Sequence[int]) -> torch.Tensor:
        """A map of that stride -> (N, depth, *size): bilinear, align_corners=True."""
        if stride == self.stride:
            return y.expand(-1, -1, *size)  # which changes G alone: a 1x1 map becomes a constant one
        return F.interpolate(y, size=tuple(size), mode="bilinear", align_corners=True)

    def connection(self, source: int, side: int) -> nn.Module | None:
        """The module that reads `source` on `side`, or None."""
        modules = self.up_convs if side == DECODER else self.down_convs
        return modules[str(source)] if str(source) in modules else None


class Decoder(nn.ModuleDict):
    """Stages by name `Decoders_L`, deepest first; a stage that the connectivity dropped is absent.

    channels, strides: of the encoder's features, deepest first. connectivity: bool (L, L, 2).
    make_connection(in_channels, depth) -> module; make_stage: Stage or a subclass.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], depth: int, connectivity: np.ndarray,
                 make_connection: Callable[[int, int], nn.Module] = conv1x1, make_stage: Callable = Stage):
        stages = {}
        for l, kept in enumerate(connectivity):
            connections, input_strides = {}, {}
            for source, side in np.argwhere(kept).tolist():
                if side == ENCODER:
                    in_channels, stride = channels[source], strides[source]
                elif source == 0:
                    in_channels, stride = channels[0], strides[0]
                else:
                    in_channels, stride = depth, strides[source - 1]
                connections[source, side] = make_connection(in_channels, depth)
                input_strides[source, side] = stride
            if connections:
                stages[f"Decoders_{l}"] = make_stage(connections, input_strides, strides[l], depth)
        super().__init__(stages)
        self.num_stages = len(connectivity)

    def stage(self, l: int) -> Stage | None:
        """Stage l, or None where the connectivity dropped it."""
        name = f"Decoders_{l}"
        return self[name] if name in self else None

    def readers(self, source: int, side: int) -> list[tuple[int, nn.Module]]:
        """Who reads a source: (stage index, connection module) pairs, deepest first."""
        pairs = ((l, self.stage(l)) for l in range(source, self.num_stages))
        pairs = ((l, stage.connection(source, side)) for l, stage in pairs if stage is not None)
        return [(l, connection) for l, connection in pairs if connection is not None]

    def forward(self, taps: Sequence[torch.Tensor], strengths: Sequence[torch.Tensor] | None = None,
                global_feature: torch.Tensor | None = None) -> torch.Tensor:
        """taps: L features, deepest first; strengths: p (l+1, 2) of each stage, or None.

        global_feature: G, (N, C, 1, 1), of the image that the taps show a part of; by default that of the taps.
        Returns D[L-1], (N, depth, H, W) of the finest tap.
        """
        features = {}
        output = global_average(taps[0]) if global_feature is None else global_feature
        for l, tap in enumerate(taps):
            # E[l] and D[l-1] (G for l = 0) are read by stage l first, and by finer ones
            for side, feature in ((ENCODER, tap), (DECODER, output)):
                if feature is not None and self.readers(l, side):
                    features[l, side] = F.relu6(feature)
            stage = self.stage(l)
            output = None if stage is None else stage(features, tap.shape[2:], strengths and strengths[l])
        return output


def global_average(tap: torch.Tensor) -> torch.Tensor:
    """G: the mean of a feature over the image, (N, C, h, w) -> (N, C, 1, 1). It is taken before any activation."""
    return tap.mean((2, 3), keepdim=True)
