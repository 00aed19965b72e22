"""SparseMask: the network of one connectivity (spec section 3, "pruned"), trained after the search."""
import warnings

from torch import nn

from models import connectivity as conn
from models.fusion import Decoder, Term
from models.layers import initialize
from models.network import SegmentationNetwork


def make_connection(in_channels, depth):
    """A 1x1 convolution without bias; the stage's BN follows the sum."""
    return nn.Conv2d(in_channels, depth, 1, bias=False)


class SparseMask(SegmentationNetwork):
    """`network(image)` gives the logits (N, classes, H/2, W/2) for an image (N, 3, H, W).

    connectivity: bool (L, L, 2), see models/connectivity.py. Raises InputError if no network can be built from it, and
    says which stage and source is wrong; a stage that nothing reads is only warned of.
    """

    def __init__(self, connectivity, backbone="mobilenet_v2", depth=64, num_classes=21):
        super().__init__(backbone, depth, num_classes)
        self.connectivity = conn.check(connectivity, self.num_stages)
        for l in conn.unread_stages(self.connectivity):
            warnings.warn(f"nothing reads stage {l} of the connectivity: it costs time and changes nothing",
                          stacklevel=2)
        self.decoders = Decoder(self.backbone.channels, depth, self.connectivity, make_connection)
        self.fc_conv = self.make_head()
        initialize(self)

    def forward(self, image):
        return self.head(self.decoders(self.backbone(image), self.project))

    @staticmethod
    def project(x, readers, source, side):
        """x (N, C, h, w) -> for each reader the one term of its connection."""
        return [[Term(x, connection.weight.flatten(1))] for _, connection in readers]
