"""A fast pass of the search, exact, where every connection is a 1x1 convolution and a BN.

It computes equation (1) of models/decoder.py:

    D[l] = BN( sum over inputs t of  2 p[l, t] * resize( BN( W[l, t] ReLU6(t) ) ) )

without a map for each connection. BN is affine, so with the mean and the variance of W x it folds into W:

    2 p BN(W x) = a W x + b,    a = 2 p gamma / sqrt(var + eps),    b = 2 p beta - a mean

The mean and the variance of W x follow from the mean m and the covariance C of x: W m and diag(W C W^T). All readers of
x share these. The products of one resolution are then accumulated where they are made, and resized once.
"""
import functools
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.connectivity import full
from models.decoder import DECODER, ENCODER, Decoder, Stage, conv1x1, global_average
from models.layers import HOOKS, BatchNorm2d, is_plain, moments, pixels, resize, update_statistics
from models.sync_bn import SyncBatchNorm2d, shared_statistics

GLOBAL = float("inf")  # stands for the stride of what is 1x1: G, and constants
MANY_PIXELS = 8  # per output channel: from there on the statistics of W x are cheaper from those of x
class FoldedDecoder(Decoder):
    """A Decoder that takes the fast pass wherever it is exact, and its own modules everywhere else."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.exact = computes_the_equation()
        if not self.exact:
            warnings.warn("models/decoder.py computes something else than models/folded_search.py, so the search takes "
                          "the slower way, through the decoder's modules", stacklevel=2)

    def forward(self, taps: Sequence[torch.Tensor], strengths: Sequence[torch.Tensor]) -> torch.Tensor:
        """As Decoder.forward, with strengths."""
        return decode(self, taps, strengths) if self.exact and applies(self) else super().forward(taps, strengths)


@functools.lru_cache(maxsize=1)
def computes_the_equation() -> bool:
    """Whether this pass and models/decoder.py, which somebody may have edited, agree on a small decoder.

    It leaves the random numbers as they are.
    """
    channels, strides, sizes, depth = (4, 3, 2), (4, 2, 2), (3, 5, 5), 3
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        decoder = Decoder(channels, strides, depth, full(3),
                          lambda i, o: nn.Sequential(conv1x1(i, o), BatchNorm2d(o))).double()
        taps = [torch.randn(2, c, n, n, dtype=torch.float64) for c, n in zip(channels, sizes, strict=True)]
        strengths = [torch.rand(l + 1, 2, dtype=torch.float64) for l in range(3)]
        both = decode(decoder, taps, strengths), decoder(taps, strengths)
    return both[0].shape == both[1].shape and torch.allclose(*both, rtol=1e-9, atol=1e-9)


def applies(decoder: Decoder) -> bool:
    """Whether this pass computes what the decoder's own modules would, with nothing of them left out.

    That is: all stages are plain `Stage`s, all connections a 1x1 convolution without bias and a BN, of exactly these
    classes, all BNs of one kind and in one mode, and nobody has changed or hooked into a module that this pass does
    not call.
    """
    connections = [stage.connection(*place) for stage in decoder.values() for place in stage.inputs]
    return (all(is_plain(stage, (Stage,)) for stage in decoder.values()) and
            all(map(is_convolution_and_norm, connections)) and
            len({(type(norm), norm.eps, norm.training) for _, norm in connections}) == 1 and
            not any(getattr(nn.modules.module, f"_global{name}") for name in HOOKS))  # of all modules, as profilers use


def is_convolution_and_norm(connection: nn.Module) -> bool:
    """Whether a connection is the search's: a 1x1 convolution without bias, then a BN."""
    if not is_plain(connection, (nn.Sequential,)) or len(connection) != 2:
        return False
    convolution, norm = connection
    return (is_plain(convolution, (nn.Conv2d,)) and is_plain(norm, (BatchNorm2d, SyncBatchNorm2d)) and
            convolution.kernel_size == (1, 1) and convolution.stride == (1, 1) and convolution.padding == (0, 0) and
            convolution.groups == 1 and convolution.bias is None and norm.affine and norm.track_running_stats)


class Product(NamedTuple):
    """A 1x1 convolution that is not yet carried out: x (N, C, h, w) and its weight (depth, C)."""
    x: torch.Tensor
    weight: torch.Tensor


def decode(decoder: Decoder, taps: Sequence[torch.Tensor], strengths: Sequence[torch.Tensor]) -> torch.Tensor:
    """What `decoder(taps, strengths)` returns: D[L-1], (N, depth, H, W) of the finest tap."""
    summands = {l: {} for l in range(decoder.num_stages)}  # of each stage, by stride: maps and Products
    output = global_average(taps[0])
    for l, tap in enumerate(taps):
        for side, feature in ((ENCODER, tap), (DECODER, output)):
            readers = decoder.readers(l, side)
            if feature is None or not readers:
                continue
            x = F.relu6(feature)
            stride = GLOBAL if (l, side) == (0, DECODER) else decoder.stage(readers[0][0]).strides[l, side]
            for (reader, _), (part, constant) in zip(readers, project(x, readers, strengths, l, side),
                                                        strict=True):
                summands[reader].setdefault(stride, []).append(part)
                if constant is not None:
                    summands[reader].setdefault(GLOBAL, []).append(constant)
        stage = decoder.stage(l)
        output = None if stage is None else stage.bn(fuse(stage, summands.pop(l), tap.shape[2:]))
    return output


def project(x: torch.Tensor, readers: Sequence, strengths: Sequence[torch.Tensor], source: int,
            side: int) -> list[tuple]:
    """2p BN(W x) of all the connections that read x (N, C, h, w), as one pair (map or Product, constant) per reader.

    Where x has few pixels (the deep taps in training) one convolution and one BN for all readers is cheaper than
    folding, and there is no constant.
    """
    convolutions, norms = zip(*(connection for _, connection in readers), strict=True)
    depth, eps = norms[0].num_features, norms[0].eps
    weight = torch.cat([convolution.weight for convolution in convolutions]).flatten(1)  # (readers * depth, C)
    p = torch.stack([strengths[l][source, side] for l, _ in readers])
    gamma, beta = (joined(norms, name) * (2 * p).repeat_interleave(depth) for name in ("weight", "bias"))
    rows = pixels(x)
    n = len(rows)
    few = not (weight.shape[1] <= len(weight) and n >= MANY_PIXELS * len(weight))
    training, synchronized = norms[0].training, type(norms[0]) is SyncBatchNorm2d
    batch_statistics = training and n > 1  # one value per channel has no variance: see BatchNorm2d
    if batch_statistics and few and not synchronized:
        mean, var = torch.zeros_like(beta), torch.ones_like(beta)
        y = F.batch_norm(F.conv2d(x, weight[..., None, None]), mean, var, gamma, beta, True, 1.0, eps)
        update_statistics(norms, mean, var)
        return [(part, None) for part in y.split(depth, dim=1)]
    with torch.autocast(x.device.type, enabled=False):  # a variance needs more digits than bfloat16 has
        if training and synchronized:
            mean, var = moments(rows.to(weight.dtype) @ weight.t()) if few else projected_moments(rows, weight)
            mean, var = shared_statistics(norms, mean, var, n)
        elif batch_statistics:
            mean, var = projected_moments(rows, weight)
            update_statistics(norms, mean, var * (n / (n - 1)))
        else:
            mean, var = joined(norms, "running_mean"), joined(norms, "running_var")
        gain = gamma * (var + eps).rsqrt()
        weight, bias = gain[:, None] * weight, beta - gain * mean
    return [(Product(x, w), b.view(1, -1, 1, 1)) for w, b in zip(weight.split(depth), bias.split(depth), strict=True)]


def joined(norms: Sequence[nn.Module], name: str) -> torch.Tensor:
    """A tensor of every norm, one after the other: (len(norms) * channels)."""
    return torch.cat([getattr(norm, name) for norm in norms])


def fuse(stage: Stage, summands: dict, size: Sequence[int]) -> torch.Tensor:
    """The sum of a stage, {stride: maps and Products}, with one resize per stride: (N, depth, *size).

    A coarse sum waits for the next finer one whose grid contains its own (9 and 17 pixels, of a crop of 257): growing
    in two steps equals growing in one then, and is cheaper.
    """
    waiting = []
    for stride in sorted(summands, reverse=True):  # coarsest first
        here = size if stride == stage.stride else size_of(summands[stride][0])
        ready = [x for x in waiting if stride == stage.stride or contains(here, x.shape[2:])]
        waiting = [x for x in waiting if not any(x is y for y in ready)]
        waiting.append(add_up(summands[stride] + [grow(x, here) for x in ready]))
    return waiting[0] if len(waiting) == 1 and stage.stride in summands else add_up([grow(x, size) for x in waiting])


def size_of(summand: torch.Tensor | Product) -> torch.Size:
    """(h, w) of a map or a Product."""
    return (summand.x if isinstance(summand, Product) else summand).shape[2:]


def contains(fine: Sequence[int], coarse: Sequence[int]) -> bool:
    """Whether the grid of size `fine` has a point at each point of the grid `coarse` (both with aligned corners)."""
    return all(c == 1 or (f - 1) % (c - 1) == 0 for f, c in zip(fine, coarse, strict=True))


def grow(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """As `resize`; a 1x1 map is expanded without a copy."""
    return x.expand(-1, -1, *size) if x.shape[2:] == (1, 1) else resize(x, size)


def add_up(summands: Sequence[torch.Tensor | Product]) -> torch.Tensor:
    """Sum of maps and Products of one resolution: (N, depth, h, w), channels last."""
    if len(summands) == 1 and not isinstance(summands[0], Product):
        return summands[0]
    h, w = size_of(summands[0])
    maps = [pixels(x) for x in summands if not isinstance(x, Product)]
    products = [(pixels(x.x), x.weight.t()) for x in summands if isinstance(x, Product)]
    if products:
        total = products[0][0] @ products[0][1]
        for rows, weight in products[1:]:
            total.addmm_(rows.to(total.dtype), weight.to(total.dtype))
        for rows in maps:
            total.add_(rows)
    else:
        total = sum(maps[1:], maps[0])
    return total.reshape(-1, h, w, total.shape[1]).permute(0, 3, 1, 2)


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


def projected_moments(rows: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of the outputs of rows @ weight.T, without computing them: W m and diag(W C W^T).

    rows (n, C), weight (outputs, C) -> two tensors (outputs). It is cheap where C is small and n large. The two
    products are small, and in float64: TF32 would make variances of nearly collinear features negative.
    """
    mean, covariance = Moments.apply(rows)
    wide = weight.double()
    projected = wide @ mean.double(), ((wide @ covariance.double()) * wide).sum(1).clamp(min=0)
    return tuple(result.to(mean.dtype) for result in projected)
