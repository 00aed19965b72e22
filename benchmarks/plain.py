"""Equation (1) read plainly: each connection on its own, resized to its stage's resolution, weighted, added.

It shares the modules, and so the weights, of the networks in `models`; only the order of the arithmetic differs.
"""
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from models.decoder import DECODER, ENCODER
from models.supernet import FullyDenseNetwork


def plain_resize(x, size):
    """Bilinear, align_corners=True, whatever the sizes."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def plain_forward(network, image, strengths=None, recompute=False):
    """Logits of a FullyDenseNetwork or a SparseMask, one connection after the other.

    strengths: one tensor p (l+1, 2) a stage for the supernet, drawn if None. recompute: each stage is computed again in
    the backward pass, as the released code does in a search to save memory (its BN statistics then move twice).
    """
    if isinstance(network, FullyDenseNetwork) and strengths is None:
        strengths = network.draw_strengths()
    taps = network.backbone(image)
    outputs = [F.adaptive_avg_pool2d(taps[0], 1)]  # decoder-side sources: G, D[0], D[1], ...
    for l in range(network.num_stages):
        p = None if strengths is None else strengths[l]
        arguments = network.decoders.stage(l), p, taps[:l + 1], outputs[:l + 1]
        outputs.append(checkpoint(plain_stage, *arguments, use_reentrant=False) if recompute else
                       plain_stage(*arguments))
    return network.fc_conv(F.relu6(outputs[-1]))


def plain_stage(stage, p, taps, outputs):
    """D[l], from the features that stage l may read; None for a dropped stage. p: its strengths (l+1, 2)."""
    if stage is None:
        return None
    total = 0
    for side, sources in ((ENCODER, taps), (DECODER, outputs)):
        for j, source in enumerate(sources):
            connection = stage.connection(j, side)
            if connection is not None:
                y = plain_resize(connection(F.relu6(source)), taps[-1].shape[2:])
                total = total + (y if p is None else 2 * p[j, side] * y)
    return stage.bn(total)
