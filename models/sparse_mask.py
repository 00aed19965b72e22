"""SparseMask: the network of one connectivity, trained after the search."""
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from models import connectivity as conn
from models import hub
from models.network import SegmentationNetwork
from utils.errors import InputWarning


class SparseMask(SegmentationNetwork):
    """The pruned network: equation (1) over the connections that were kept (models/decoder.py).

    connectivity: bool (L, L, 2), see models/connectivity.py. Raises InputError if no network can be built from it, and
    says which stage and source is wrong; a stage that nothing reads is only warned of. init: "fan_out", as released, or
    "fan_in", see docs/method.md.
    """

    def __init__(self, connectivity: np.ndarray, backbone: str = "mobilenet_v2", depth: int = 64, num_classes: int = 21,
                 connection: str = "conv1x1", fusion: str = "sum", head: str = "conv1x1",
                 normalization: Sequence[Sequence[float]] | None = None, init: str = "fan_out"):
        super().__init__(backbone, depth, num_classes, connection, fusion, head, normalization)
        self.connectivity = conn.check(connectivity, self.num_stages)
        for l in conn.unread_stages(self.connectivity):
            warnings.warn(f"nothing reads stage {l} of the connectivity: it costs time and changes nothing",
                          InputWarning, stacklevel=2)
        self.decoders = self.make_decoder(self.connectivity)
        self.fc_conv = self.make_head()
        self.initialize(init)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image (N, 3, H, W), normalized -> logits (N, classes, h, w) at the finest tap's resolution.

        For MobileNetV2 that is ceil(H/2), ceil(W/2).
        """
        return self.head(self.decoders(self.backbone(image)))

    def config(self) -> dict:
        """Keyword arguments that rebuild the network; the connectivity is a bool tensor."""
        return {**super().config(), "connectivity": torch.from_numpy(self.connectivity)}

    def save_pretrained(self, folder: str | Path, settings: Mapping | None = None, **options) -> str | None:
        """Writes the network as a folder: model.safetensors; config.json with its parts, connectivity, class_names,
        VOC's palette and the normalization; README.md, a model card.

        settings: how images and labels were read in the training, for the commands of this program: crop_size,
        im_suffix, gt_suffix, label_map. options: of huggingface_hub's ModelHubMixin.save_pretrained;
        push_to_hub=True, repo_id=NAME uploads the folder and returns its address. Raises InputError where
        huggingface_hub or safetensors is not installed.
        """
        return hub.save(self, folder, settings, **options)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, backbone: str | None = None, connection: str | None = None,
                        fusion: str | None = None, head: str | None = None, **options) -> "SparseMask":
        """The network of a folder that save_pretrained wrote, or of a repository on the Hugging Face Hub, in evaluation
        mode.

        backbone, connection, fusion, head: its parts of your own (package.module:factory), if it has any. They are
        imported only if you name them. options: of hf_hub_download, such as revision. Raises InputError for what is
        missing, cannot be downloaded or is not such a folder.
        """
        parts = {"backbone": backbone, "connection": connection, "fusion": fusion, "head": head}
        return hub.load(cls, name, parts, options)
