"""What the supernet and the trained network share: encoder -> decoder -> head, and released names on loading."""
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models import components
from models.aspp import ASPP
from models.backbones import make_backbone
from models.decoder import Decoder, Stage, conv1x1
from models.layers import INIT_MODES, initialize
from models.library_encoders import IMAGENET_MEAN, IMAGENET_STD
from utils.errors import InputError

MAX_CHANNELS = 4096  # of a stage or of the logits: beyond it, memory fails in less clear ways

CONNECTIONS = {"conv1x1": conv1x1}  # (in_channels, depth) -> module (N, C, h, w) -> (N, depth, h, w)
FUSIONS = {"sum": Stage, "aspp": ASPP}  # Stage or a subclass
HEADS = {"conv1x1": lambda depth, num_classes: nn.Conv2d(depth, num_classes, 1)}  # (N, depth, h, w) -> logits
DEFAULT_PARTS = {"connection": "conv1x1", "fusion": "sum", "head": "conv1x1"}  # those of the released networks


def without_module_prefix(state: Mapping) -> dict:
    """A state dict whose names have lost the `module.` that nn.DataParallel put before them."""
    return {key.removeprefix("module."): value for key, value in state.items()}


def check_normalization(stated: Any) -> tuple:
    """(mean, std) of RGB in 0..1, three numbers each, as a file states them. Raises InputError if it is not that."""
    fits = isinstance(stated, list | tuple) and len(stated) == 2 and all(
        isinstance(numbers, list | tuple) and len(numbers) == 3 and all(isinstance(n, int | float) and math.isfinite(n)
                                                                        for n in numbers) for numbers in stated)
    if not fits or min(stated[1]) <= 0:
        raise InputError(f"its normalization is {str(stated)[:80]}, not a mean and a positive standard deviation for "
                         f"each of three channels")
    return tuple(map(tuple, stated))


class SegmentationNetwork(nn.Module):
    """Encoder, decoder and head; the two subclasses are public, see models/__init__.py.

    backbone, connection, fusion, head: the parts by name, see models/components.py; the names are in `parts`.
    normalization: (mean, std) of RGB in 0..1 that images are normalized with, by default what the encoder publishes.
    """

    def __init__(self, backbone: str, depth: int, num_classes: int, connection: str, fusion: str, head: str,
                 normalization: Sequence[Sequence[float]] | None = None):
        super().__init__()
        for value, name in ((depth, "depth"), (num_classes, "num_classes")):
            if not 1 <= value <= MAX_CHANNELS:
                raise InputError(f"the {name.replace('num_', 'number of ')} is {value}; give 1 to {MAX_CHANNELS}",
                                 about=name)
        self.parts = {"backbone": backbone, "connection": connection, "fusion": fusion, "head": head}
        self.depth, self.num_classes = depth, num_classes
        self.backbone = make_backbone(backbone)
        self.num_stages = len(self.backbone.channels)
        mean, std = normalization or (getattr(self.backbone, "mean", IMAGENET_MEAN),
                                      getattr(self.backbone, "std", IMAGENET_STD))
        self.normalization = tuple(mean), tuple(std)
        self.class_names = None  # a list of str, where a checkpoint or a folder states them

    def make_decoder(self, connectivity: np.ndarray, normalize: type[nn.Module] | None = None,
                     kind: type[Decoder] = Decoder) -> Decoder:
        """The decoder of a connectivity, bool (L, L, 2). normalize: the class of a BN after each connection, if any."""
        def connection(in_channels, depth):
            module = components.make("connection", self.parts["connection"], CONNECTIONS, in_channels, depth)
            return nn.Sequential(module, normalize(depth)) if normalize else module

        def stage(*arguments):
            return components.make("fusion", self.parts["fusion"], FUSIONS, *arguments, expected=Stage)

        return kind(self.backbone.channels, self.backbone.strides, self.depth, connectivity, connection, stage)

    def make_head(self) -> nn.Module:
        """The head; subclasses call it after make_decoder, so that it follows the decoder's names."""
        return components.make("head", self.parts["head"], HEADS, self.depth, self.num_classes)

    def initialize(self, mode: str) -> None:
        """Random weights for all parts. mode: of the decoder's and the head's, one of INIT_MODES.

        The encoder's follow the released code, fan_out; weights that are loaded replace them.
        """
        if mode not in INIT_MODES:
            raise InputError(f"the initialization is {mode!r}; give {' or '.join(INIT_MODES)}", about="init")
        initialize(self.backbone)
        initialize(self.decoders, mode)
        initialize(self.fc_conv, mode)

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """D[L-1] (N, depth, h, w) -> logits (N, classes, h, w)."""
        return self.fc_conv(F.relu6(x))

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters of the encoder."""
        return [p for p in self.backbone.parameters() if p.requires_grad]

    def strength_parameters(self) -> list[nn.Parameter]:
        """What the strengths are made of; none outside a search."""
        return []

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters outside the encoder, strengths excepted."""
        others = set(map(id, (*self.backbone.parameters(), *self.strength_parameters())))
        return [p for p in self.parameters() if p.requires_grad and id(p) not in others]

    def config(self) -> dict:
        """Keyword arguments that rebuild the network, as plain values and tensors: what a checkpoint remembers."""
        return {**self.parts, "depth": self.depth, "num_classes": self.num_classes,
                "normalization": [list(numbers) for numbers in self.normalization]}

    def load_state_dict(self, state_dict: Mapping, strict: bool = True, assign: bool = False):
        """As nn.Module's, with the released names, prefixed `module.` or not."""
        return super().load_state_dict(without_module_prefix(state_dict), strict, assign)
