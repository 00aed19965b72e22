"""Where features of several resolutions become one: the decoder that search and trained network share.

Spec section 3, with every index deepest first. Stage l has the resolution of E[l]; D[l] is its output:

    D[l] = BN( sum over its inputs t of resize( connection[l, t]( ReLU6(t) ) ) )

Three identities make it fast and change no figure. Resizing is linear, so what shares a resolution is summed first and
resized once. A 1x1 convolution is a matrix product over the pixels, so the products of one resolution are summed where
they are made: no connection has a map of its own. And where a finer grid holds all points of a coarser one (9 and 17
pixels, of a crop of 257), growing in two steps is growing in one.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import BatchNorm2d, pixels

ENCODER, DECODER = 0, 1  # the two sides of a stage's inputs, as in the last axis of a connectivity
SIDE_NAMES = ("down_convs", "up_convs")  # their names in the released state dicts


def same(size, other):
    """Whether two sizes are equal. While torch.export keeps them open: whether they are equal for every image."""
    if all(isinstance(length, int) for length in (*size, *other)):
        return tuple(size) == tuple(other)
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # here, for its import takes a second
    return all(statically_known_true(a == b) for a, b in zip(size, other))


def resize(x, size):
    """Bilinear, align_corners=True: (N, C, h, w) -> (N, C, *size). A 1x1 map becomes a constant one."""
    if same(x.shape[2:], size):
        return x
    if same(x.shape[2:], (1, 1)):
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

        project(x, readers, source, side) -> one list of Terms a reader: what the connections make of x = ReLU6(source).
        """
        inputs = [[] for _ in range(self.num_stages)]  # of each stage: the terms of its sum
        output = taps[0].mean((2, 3), keepdim=True)  # G, (N, C, 1, 1): decoder-side source 0, before any activation
        for l in range(self.num_stages):
            # E[l] and D[l-1] (G for l = 0) are both read by stage l first, and by finer ones
            for side, feature in ((ENCODER, taps[l]), (DECODER, output)):
                readers = self.readers(l, side) if feature is not None else ()
                if readers:
                    x = F.relu6(feature, inplace=side == DECODER)  # only the decoder reads G and D[l]
                    for (reader, _), terms in zip(readers, project(x, readers, l, side)):
                        inputs[reader] += terms
            stage = self.stage(l)
            output = None if stage is None else stage.bn(fuse(inputs[l], taps[l].shape[2:]))
            inputs[l] = None  # let go of the maps
        return output


class Term(NamedTuple):
    """One term of a stage's sum: the map x (N, C, h, w), or with a weight (depth, C) its 1x1 convolution."""
    x: torch.Tensor
    weight: torch.Tensor | None = None


def fuse(terms, size):
    """Sum of the terms, each resized to `size`: (N, depth, *size)."""
    if any(isinstance(length, torch.SymInt) for length in size):
        return fuse_any_size(terms, size)
    by_size = {}
    for term in terms:
        by_size.setdefault(tuple(term.x.shape[2:]), []).append(term)
    coarser = []  # sums that wait for a grid that holds theirs, at the latest the last one
    for here in sorted(set(by_size) - {tuple(size)}) + [tuple(size)]:
        ready = [x for x in coarser if here == tuple(size) or holds(here, x.shape[2:])]
        coarser = [x for x in coarser if not any(x is y for y in ready)]
        coarser.append(add_up(by_size.get(here, []) + [Term(resize(x, here)) for x in ready]))
    return coarser[0]


def fuse_any_size(terms, size):
    """`fuse` for torch.export, which keeps sizes open: one resize a resolution, as which grid holds which is open."""
    groups = []
    for term in terms:
        group = next((group for group in groups if same(group[0].x.shape[2:], term.x.shape[2:])), None)
        if group is None:
            groups.append([term])
        else:
            group.append(term)
    return add_up([Term(resize(add_up(group), size)) for group in groups])


def add_up(terms):
    """Sum of terms of one resolution: (N, depth, h, w), channels last."""
    if len(terms) == 1 and terms[0].weight is None:
        return terms[0].x
    h, w = terms[0].x.shape[2:]
    maps = [pixels(x) for x, weight in terms if weight is None]
    products = [(pixels(x), weight.t()) for x, weight in terms if weight is not None]
    if products:
        total = products[0][0] @ products[0][1]
        for rows, weight in products[1:]:
            total.addmm_(rows.to(total.dtype), weight.to(total.dtype))
        for rows in maps:
            total.add_(rows)
    else:
        total = sum(maps[1:], maps[0])
    return total.reshape(-1, h, w, total.shape[1]).permute(0, 3, 1, 2)


def holds(fine, coarse):
    """Whether the grid of size `fine` has a point at each point of the grid `coarse` (both with aligned corners)."""
    return all(c == 1 or (f - 1) % (c - 1) == 0 for f, c in zip(fine, coarse))
