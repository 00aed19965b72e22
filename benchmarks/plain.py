"""Spec section 3 read plainly: each connection on its own, resized to its stage's resolution, weighted, added.

It shares the modules, and so the weights, of the networks in `models`; only the order of the arithmetic differs.
"""
import torch.nn.functional as F

from models.fusion import DECODER, ENCODER
from models.supernet import FullyDenseNetwork


def plain_resize(x, size):
    """Bilinear, align_corners=True, whatever the sizes."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def plain_forward(network, image, strengths=None):
    """Logits of a FullyDenseNetwork or a SparseMask, one connection after the other.

    strengths: one tensor p (l+1, 2) a stage for the supernet, drawn if None.
    """
    searching = isinstance(network, FullyDenseNetwork)
    if searching and strengths is None:
        strengths = network.draw_strengths()
    taps = network.backbone(image)
    outputs = [F.adaptive_avg_pool2d(taps[0], 1)]  # decoder-side sources: G, D[0], D[1], ...
    for l in range(network.num_stages):
        stage = network.decoders.stage(l)
        if stage is None:
            outputs.append(None)
            continue
        total = 0
        for side, sources in ((ENCODER, taps), (DECODER, outputs)):
            for j in range(l + 1):
                connection = stage.connection(j, side)
                if connection is not None:
                    y = plain_resize(connection(F.relu6(sources[j])), taps[l].shape[2:])
                    total = total + (2 * strengths[l][j, side] * y if searching else y)
        outputs.append(stage.bn(total))
    return network.fc_conv(F.relu6(outputs[-1]))
