"""What the search network and the trained one share: encoder -> decoder -> head, and released names on loading."""
import torch.nn.functional as F
from torch import nn

from models.backbones import make_backbone
from utils.errors import InputError

MOST_CHANNELS = 4096  # of a stage or of the logits: beyond it, memory fails in less clear ways


def without_module_prefix(state):
    """A state dict whose names have lost the `module.` that nn.DataParallel put before them."""
    return {key.removeprefix("module."): value for key, value in state.items()}


class SegmentationNetwork(nn.Module):
    """Encoder and head; a subclass adds `self.decoders`. Public names: see models/__init__.py."""

    def __init__(self, backbone, depth, num_classes):
        super().__init__()
        for value, name in ((depth, "depth"), (num_classes, "number of classes")):
            if not 1 <= value <= MOST_CHANNELS:
                raise InputError(f"the {name} is {value}; it must be at least 1, at most {MOST_CHANNELS}")
        self.backbone_name, self.depth, self.num_classes = backbone, depth, num_classes
        self.backbone = make_backbone(backbone)
        self.num_stages = len(self.backbone.channels)

    def make_head(self):
        """The last 1x1 convolution, with bias; subclasses call it last, so that it follows the decoders' names."""
        return nn.Conv2d(self.depth, self.num_classes, 1)

    def head(self, x):
        """D[L-1] (N, depth, h, w) -> logits (N, classes, h, w)."""
        return self.fc_conv(F.relu6(x))

    def encoder_parameters(self):
        """Trainable parameters of the encoder."""
        return [p for p in self.backbone.parameters() if p.requires_grad]

    def decoder_parameters(self):
        """Trainable parameters outside the encoder, strengths excepted."""
        return [p for name, p in self.named_parameters()
                if p.requires_grad and not name.startswith("backbone.") and not is_strength(name)]

    def load_state_dict(self, state_dict, strict=True, assign=False):
        """As nn.Module's, with the released names, prefixed `module.` or not."""
        return super().load_state_dict(without_module_prefix(state_dict), strict, assign)


def is_strength(name):
    """Whether a parameter's name is that of a stage's strengths: `_weight_` (clamp) or `_logit_` (sigmoid)."""
    return name.endswith(("._weight_", "._logit_"))
