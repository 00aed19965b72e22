"""What each connection of the search space costs: parameters, or multiply-adds or milliseconds where it runs."""
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.decoder import DECODER
from models.network import SegmentationNetwork

UNITS = {"parameters": "parameters", "macs": "multiply-adds", "latency": "ms"}
COSTS = tuple(UNITS)
RUNS = 7  # timed, of which the median counts


def cost_text(cost: float, kind: str | None = None) -> str:
    """A cost, with its unit if its kind is given: 108,480 parameters, 0.2345 ms."""
    return f"{cost:{',.0f' if cost >= 1000 else '.4g'}}{f' {UNITS[kind]}' if kind else ''}"


def connection_costs(network: SegmentationNetwork, kind: str, size: Sequence[int]) -> np.ndarray:
    """float64 (L, L, 2), [stage, source, side]: the cost of each connection that the network has, 0 elsewhere.

    kind: one of COSTS. size: (H, W) of the image in pixels, since a connection runs at its source's resolution.
    "latency" is measured now, in milliseconds on the network's device; it includes the resize to the stage. What does
    not depend on the inputs of a stage is no connection's cost: encoder, BN of the stages, head. The convolution of the
    supernet counts without its BN, which pruning removes.
    """
    costs = np.zeros((network.num_stages, network.num_stages, 2))
    measured = {}  # connections of equal sizes take as long
    for l in range(network.num_stages):
        stage = network.decoders.stage(l)
        for source, side in stage.inputs if stage else ():
            module = stage.connection(source, side)
            module = module[0] if hasattr(network, "strengths") else module
            shape = source_shape(network, source, side, size)
            if kind == "parameters":
                costs[l, source, side] = sum(p.numel() for p in module.parameters())
            elif kind == "macs":
                costs[l, source, side] = multiply_adds(module, shape)
            else:
                target = tuple(-(-length // stage.stride) for length in size)
                if (shape, target) not in measured:
                    measured[shape, target] = milliseconds(module, shape, target)
                costs[l, source, side] = measured[shape, target]
    return costs


def source_shape(network: SegmentationNetwork, source: int, side: int, size: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width) of what a connection reads, for an image of `size`."""
    channels, strides = network.backbone.channels, network.backbone.strides
    if side == DECODER and source == 0:
        return channels[0], 1, 1  # G
    width, stride = (network.depth, strides[source - 1]) if side == DECODER else (channels[source], strides[source])
    return width, -(-size[0] // stride), -(-size[1] // stride)


def example(module: nn.Module, shape: Sequence[int]) -> torch.Tensor:
    """A map (1, C, h, w) of zeros where the module computes."""
    parameter = next(module.parameters(), None)
    return torch.zeros(1, *shape) if parameter is None else parameter.new_zeros(1, *shape)


@torch.no_grad()
def multiply_adds(module: nn.Module, shape: Sequence[int]) -> int:
    """Of one call with a map (C, h, w): those of convolutions and matrix products, which PyTorch counts."""
    with FlopCounterMode(display=False) as counter:
        module(example(module, shape))
    return counter.get_total_flops() // 2


@torch.no_grad()
def milliseconds(module: nn.Module, shape: Sequence[int], target: Sequence[int]) -> float:
    """Of one call with a map (C, h, w), and of the resize to `target`, (H, W): the median of RUNS, after a warm-up."""
    x = example(module, shape).to(memory_format=torch.channels_last)
    times = []
    for run in range(RUNS + 2):
        start = time.perf_counter()
        y = module(x)
        if 1 < y.shape[2] * y.shape[3] and tuple(y.shape[2:]) != tuple(target):  # G is broadcast
            F.interpolate(y, size=target, mode="bilinear", align_corners=True)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        if run >= 2:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)
