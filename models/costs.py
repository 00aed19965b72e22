"""What each connection of the search space costs: parameters, or multiply-adds where the connection runs."""
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.decoder import DECODER
from models.network import SegmentationNetwork

COSTS = ("parameters", "macs")


def connection_costs(network: SegmentationNetwork, kind: str, size: Sequence[int]) -> np.ndarray:
    """float64 (L, L, 2), [stage, source, side]: the cost of each connection that the network has, 0 elsewhere.

    kind: one of COSTS. size: (H, W) of the image in pixels, for "macs": a connection runs at its source's resolution.
    What does not depend on the connectivity, or on a stage's inputs, is no connection's cost: encoder, BN of the
    stages, head. The convolution of the supernet counts without its BN, which pruning removes.
    """
    costs = np.zeros((network.num_stages, network.num_stages, 2))
    for l in range(network.num_stages):
        stage = network.decoders.stage(l)
        for source, side in stage.inputs if stage else ():
            module = stage.connection(source, side)
            module = module[0] if hasattr(network, "strengths") else module
            costs[l, source, side] = (sum(p.numel() for p in module.parameters()) if kind == "parameters" else
                                      multiply_adds(module, source_shape(network, source, side, size)))
    return costs


def source_shape(network: SegmentationNetwork, source: int, side: int, size: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width) of what a connection reads, for an image of `size`."""
    channels, strides = network.backbone.channels, network.backbone.strides
    if side == DECODER and source == 0:
        return channels[0], 1, 1  # G
    width, stride = (network.depth, strides[source - 1]) if side == DECODER else (channels[source], strides[source])
    return width, -(-size[0] // stride), -(-size[1] // stride)


@torch.no_grad()
def multiply_adds(module: nn.Module, shape: Sequence[int]) -> int:
    """Of one call with a map (C, h, w): those of convolutions and matrix products, which PyTorch counts."""
    parameter = next(module.parameters(), None)
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *shape) if parameter is None else parameter.new_zeros(1, *shape))
    return counter.get_total_flops() // 2
