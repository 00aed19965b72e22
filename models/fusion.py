"""Where features of several resolutions become one: the decoder that search and trained network share.

Spec section 3, with every index deepest first. Stage l has the resolution of E[l]; D[l] is its output:

    D[l] = BN( sum over its inputs t of resize( connection[l, t]( ReLU6(t) ) ) )

Two identities make it fast and change no figure. Resizing is linear, so what shares a source resolution is summed
first and resized once. And all connections that read the same input are one convolution with more output channels.
"""
import torch
import torch.nn.functional as F
from torch import nn

from models.layers import BatchNorm2d

ENCODER, DECODER = 0, 1  # the two sides of a stage's inputs, as in the last axis of a connectivity
SIDE_NAMES = ("down_convs", "up_convs")  # their names in the released state dicts


def resize(x, size):
    """Bilinear, align_corners=True: (N, C, h, w) -> (N, C, *size). A 1x1 map becomes a constant one."""
    if x.shape[2:] == tuple(size):
        return x
    if x.shape[2:] == (1, 1):
        return x.expand(-1, -1, *size)
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class Stage(nn.Module):
    """One decoder stage's layers under their released names: `down_convs.J`, `up_convs.J`, `bn`.

    connections: {side: {source J: module}}; a missing J is a connection that the network does not have.
    """

    def __init__(self, connections, depth):
        super().__init__()
        for side, name in enumerate(SIDE_NAMES):
            self.add_module(name, nn.ModuleDict({str(j): module for j, module in connections[side].items()}))
        self.bn = BatchNorm2d(depth)

    def connection(self, source, side):
        """The module that reads `source` on `side`, or None."""
        modules = self.up_convs if side == DECODER else self.down_convs
        return modules[str(source)] if str(source) in modules else None


class Decoder(nn.ModuleDict):
    """Stages by name `Decoders_L`, deepest first; a stage that the connectivity dropped is absent.

    make_connection(in_channels, depth) builds the layers of one connection; connectivity is bool (L, L, 2).
    """

    def __init__(self, channels, depth, connectivity, make_connection):
        stages = {}
        for l, kept in enumerate(connectivity):
            inputs = [{}, {}]
            for source, side in zip(*kept.nonzero()):
                from_decoder = side == DECODER and source > 0  # decoder-side source 0 is G, with tap 8's channels
                in_channels = depth if from_decoder else channels[0 if side == DECODER else source]
                inputs[side][int(source)] = make_connection(in_channels, depth)
            if any(inputs):
                stages[f"Decoders_{l}"] = Stage(inputs, depth)
        super().__init__(stages)
        self.num_stages = len(connectivity)

    def stage(self, l):
        """Stage l, or None where the connectivity dropped it."""
        name = f"Decoders_{l}"
        return self[name] if name in self else None

    def readers(self, source, side):
        """Stages that read `source` on `side`: a list of (stage index, connection module), deepest first."""
        pairs = ((l, self.stage(l)) for l in range(source, self.num_stages))
        pairs = ((l, stage.connection(source, side)) for l, stage in pairs if stage is not None)
        return [(l, connection) for l, connection in pairs if connection is not None]

    def forward(self, taps, project):
        """taps: L features, deepest first. Returns D[L-1], (N, depth, H, W) of the finest tap, before its ReLU6.

        project(x, readers, source, side) -> one (N, depth, h, w) a reader: the connections' outputs for the input
        x = ReLU6(source), before resizing.
        """
        sums = [{} for _ in range(self.num_stages)]  # of each stage: {resolution: sum of what arrives at it}
        output = taps[0].mean((2, 3), keepdim=True)  # G, (N, C, 1, 1): decoder-side source 0, before any activation
        for l in range(self.num_stages):
            # E[l] and D[l-1] (G for l = 0) are both read by stage l first, and by finer ones: convolve for all now
            for side, feature in ((ENCODER, taps[l]), (DECODER, output)):
                readers = self.readers(l, side) if feature is not None else ()
                if readers:
                    for (reader, _), y in zip(readers, project(F.relu6(feature), readers, l, side)):
                        accumulate(sums[reader], y)
            stage = self.stage(l)
            output = None if stage is None else stage.bn(fuse(sums[l], taps[l].shape[2:]))
            sums[l] = None  # let go of the maps
        return output


def accumulate(sums, y):
    """Adds y (N, C, h, w) to the sum of its resolution."""
    size = tuple(y.shape[2:])
    sums[size] = sums[size] + y if size in sums else y


def fuse(sums, size):
    """Resizes each resolution's sum to `size` and adds them, coarsest first: (N, C, *size)."""
    maps = [sums[key] for key in sorted(sums)]
    total = resize(maps[0], size)
    for x in maps[1:]:
        total = total + resize(x, size)
    return total


def convolve_together(x, convolutions):
    """1x1 convolutions (no bias) of the same input as one: (N, C, h, w) -> (N, sum of their outputs, h, w)."""
    if len(convolutions) == 1:
        return F.conv2d(x, convolutions[0].weight)
    return F.conv2d(x, torch.cat([convolution.weight for convolution in convolutions]))
