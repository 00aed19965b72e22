"""What each connection of a trained network is worth: the network as it is, but without that one."""
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from models import SparseMask
from models.connectivity import source_name
from utils.errors import InputError, first_line


def connection_name(stage: int, source: int, side: int) -> str:
    """ "D[8] <- E[3]"."""
    return f"D[{stage}] <- {source_name(source, side)}"


def check_removable(network: SparseMask) -> None:
    """Raises InputError for a network whose connections are not terms of a sum, so that none can be left out."""
    if network.parts["fusion"] != "sum":
        raise InputError(f"a connection is left out of its stage's sum, and the fusion of this network is "
                         f"{network.parts['fusion']!r}; evaluate it without that")


@torch.no_grad()
def without_each(network: SparseMask) -> Iterator[tuple[tuple[int, int, int], SparseMask]]:
    """((stage, source, side), copy of the network) for each connection, which contributes 0 in the copy.

    All else stays as it was trained, statistics of BN included. Raises InputError where that cannot be done.
    """
    check_removable(network)
    for stage, source, side in np.argwhere(network.connectivity).tolist():
        changed = copy.deepcopy(network).eval()
        connection = changed.decoders.stage(stage).connection(source, side)
        for parameter in connection.parameters():
            parameter.zero_()
        probe = torch.ones(1, input_channels(network, source, side), 4, 4).to(next(network.parameters()))
        if connection(probe).any():
            raise InputError(f"the connection {connection_name(stage, source, side)} adds something even if all its "
                             f"parameters are 0, so it cannot be left out")
        yield (stage, source, side), changed


def input_channels(network: SparseMask, source: int, side: int) -> int:
    """Channels of what a connection reads."""
    if side == 0:
        return network.backbone.channels[source]
    return network.depth if source else network.backbone.channels[0]


def ablation_table(each: Sequence[Mapping], whole: Mapping) -> str:
    """What each connection is worth, the most valuable first, as lines: mIoU without it, and what that changes."""
    near = "boundary" in whole
    lines = [f"{'without':<16}  {'mIoU':>6}  change{'  near boundaries  change' if near else ''}"]
    for one in sorted(each, key=lambda one: one["m_iou"]):
        line = f"{one['name']:<16}  {100 * one['m_iou']:6.2f}  {100 * (one['m_iou'] - whole['m_iou']):+6.2f}"
        if near:
            value, before = one["boundary"]["m_iou"], whole["boundary"]["m_iou"]
            line += f"  {100 * value:15.2f}  {100 * (value - before):+6.2f}"
        lines.append(line)
    return "\n".join(lines)


def draw_worth(network: SparseMask, facts: Mapping, path: Path) -> None:
    """Draws the architecture, SVG and PNG at `path`, each connection as wide as it is worth. Needs matplotlib."""
    try:
        from utils import drawing
    except Exception as error:  # missing or broken, with errors of any type
        print(f"no picture: matplotlib cannot be used here ({first_line(error)})")
        return
    worth = {(one["stage"], one["source"], one["side"]): facts["m_iou"] - one["m_iou"] for one in facts["without_each"]}
    figure = drawing.draw_architecture(network.connectivity, network.backbone.channels, network.backbone.strides,
                                       network.depth, network.num_classes,
                                       "What mIoU loses without a connection, in points", worth)
    svg, png = drawing.save(figure, path)
    print(f"written: {svg} and {png.name}")
