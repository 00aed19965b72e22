"""SparseMask: the network of one connectivity, trained after the search."""
import warnings
from collections.abc import Sequence

import numpy as np
import torch

from models import connectivity as conn
from models.layers import initialize
from models.network import SegmentationNetwork
from utils.errors import InputWarning


class SparseMask(SegmentationNetwork):
    """The pruned network: equation (1) over the connections that were kept (models/decoder.py).

    connectivity: bool (L, L, 2), see models/connectivity.py. Raises InputError if no network can be built from it, and
    says which stage and source is wrong; a stage that nothing reads is only warned of.
    """

    def __init__(self, connectivity: np.ndarray, backbone: str = "mobilenet_v2", depth: int = 64, num_classes: int = 21,
                 connection: str = "conv1x1", fusion: str = "sum", head: str = "conv1x1",
                 normalization: Sequence[Sequence[float]] | None = None):
        super().__init__(backbone, depth, num_classes, connection, fusion, head, normalization)
        self.connectivity = conn.check(connectivity, self.num_stages)
        for l in conn.unread_stages(self.connectivity):
            warnings.warn(f"nothing reads stage {l} of the connectivity: it costs time and changes nothing",
                          InputWarning, stacklevel=2)
        self.decoders = self.make_decoder(self.connectivity)
        self.fc_conv = self.make_head()
        initialize(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image (N, 3, H, W), normalized -> logits (N, classes, h, w) at the finest tap's resolution.

        For MobileNetV2 that is ceil(H/2), ceil(W/2).
        """
        return self.head(self.decoders(self.backbone(image)))

    def config(self) -> dict:
        """Keyword arguments that rebuild the network; the connectivity is a bool tensor."""
        return {**super().config(), "connectivity": torch.from_numpy(self.connectivity)}
