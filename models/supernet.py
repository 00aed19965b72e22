"""FullyDenseNetwork: the search space, every connection with a strength (paper section 3.2)."""
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from models import connectivity as conn
from models.folded_search import FoldedDecoder
from models.layers import BatchNorm2d, freeze_bn_affine
from models.network import SegmentationNetwork
from models.strengths import make_strengths


class FullyDenseNetwork(SegmentationNetwork):
    """The supernet: equation (1) over all connections (models/decoder.py).

    Each connection is followed by a BN of its own, which makes the strengths of different inputs comparable (without it
    the paper loses a point of mIoU). No BN has a trainable scale or shift here.

    strengths: "sigmoid", "clamp", or your own (models/strengths.py); noise: whether training disturbs them. init:
    "fan_out", as released, or "fan_in", see docs/method.md. In training, draw the strengths once per step and pass them
    to both the forward pass and the sparse loss:

        strengths = network.draw_strengths()
        loss = cross_entropy(network(image, strengths), label) + 0.01 * total_sparse_loss(strengths)

    Raises InputError for unknown names and impossible sizes.
    """

    def __init__(self, backbone: str = "mobilenet_v2", depth: int = 64, num_classes: int = 21,
                 strengths: str = "sigmoid", noise: bool = True, connection: str = "conv1x1", fusion: str = "sum",
                 head: str = "conv1x1", normalization: Sequence[Sequence[float]] | None = None,
                 init: str = "fan_out"):
        super().__init__(backbone, depth, num_classes, connection, fusion, head, normalization)
        self.parts["strengths"] = strengths
        self.strengths, self.noise = make_strengths(strengths), noise
        self.decoders = self.make_decoder(conn.full(self.num_stages), BatchNorm2d, FoldedDecoder)
        for l, stage in enumerate(self.decoders.values()):
            parameter = nn.Parameter(torch.full((l + 1, 2), self.strengths.start))
            stage.register_parameter(self.strengths.parameter_name, parameter)
        self.fc_conv = self.make_head()
        self.initialize(init)
        freeze_bn_affine(self)

    def forward(self, image: torch.Tensor, strengths: list[torch.Tensor] | None = None) -> torch.Tensor:
        """image (N, 3, H, W), normalized -> logits (N, classes, h, w) at the finest tap's resolution.

        strengths: one tensor p (l+1, 2) per stage, as draw_strengths returns them; drawn here if None.
        """
        strengths = self.draw_strengths() if strengths is None else strengths
        return self.head(self.decoders(self.backbone(image), strengths))

    def strength_parameters(self) -> list[nn.Parameter]:
        """One parameter (l+1, 2) per stage, deepest first: what `self.strengths` turns into p."""
        return [getattr(stage, self.strengths.parameter_name) for stage in self.decoders.values()]

    def draw_strengths(self) -> list[torch.Tensor]:
        """One tensor p (l+1, 2) per stage, in [0, 1]. In training with noise each call draws anew."""
        noise = self.noise and self.training
        return [self.strengths(parameter, noise) for parameter in self.strength_parameters()]

    def clean_strengths(self) -> list[torch.Tensor]:
        """The strengths without noise: one tensor p (l+1, 2) per stage."""
        return [self.strengths(parameter, noise=False) for parameter in self.strength_parameters()]

    @torch.no_grad()
    def final_strengths(self) -> list[np.ndarray]:
        """What pruning reads: the strengths without noise, one float64 array (l+1, 2) per stage."""
        return [p.double().cpu().numpy() for p in self.clean_strengths()]

    def clamp_strengths(self) -> None:
        """To be called after each optimizer step: puts the strength parameters back into their range."""
        for parameter in self.strength_parameters():
            self.strengths.after_step(parameter)
