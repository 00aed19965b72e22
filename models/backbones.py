"""Encoders by name. An encoder is a module that turns an image (N, 3, H, W) into features, deepest first.

It publishes `channels` and `strides`, one number per feature, in the same order. Your own is registered here, or named
on the command line as `package.module:factory`; the factory is called without arguments.
"""
import functools

import torch
from torch import nn

from models import components
from models.mobilenet_v2 import MobileNetV2
from utils.errors import InputError

BACKBONES = {
    "mobilenet_v2": MobileNetV2,  # the released layout
    "mobilenet_v2_torchvision": functools.partial(MobileNetV2, expand_first=False),  # torchvision's layout
}
PROBE = 128  # pixels a side of the image that an own encoder is tried on


def make_backbone(name: str) -> nn.Module:
    """Name -> encoder. Raises InputError if it cannot be made, or is not what it publishes."""
    backbone = components.make("backbone", name, BACKBONES)
    if components.is_own(name):
        check_published(name, backbone)
        check_features(name, backbone)
    return backbone


def check_published(name: str, backbone: nn.Module) -> None:
    """Raises InputError unless `channels` and `strides` are numbers, one per feature, deepest first."""
    channels, strides = (tuple(getattr(backbone, what, ())) for what in ("channels", "strides"))
    if not channels or len(channels) != len(strides) or \
            not all(isinstance(number, int) and number > 0 for number in (*channels, *strides)):
        raise InputError(f"the backbone {name!r} must publish `channels` and `strides`, one positive integer per "
                         f"feature, deepest first; it has {channels!r} and {strides!r}", about="backbone")
    if list(strides) != sorted(strides, reverse=True):
        raise InputError(f"the backbone {name!r} publishes the strides {strides}, which do not fall; features, "
                         f"channels and strides are listed deepest first, so reverse them", about="backbone")


@torch.no_grad()
def check_features(name: str, backbone: nn.Module) -> None:
    """Raises InputError unless the encoder returns, for a small image, the features that it publishes."""
    training = backbone.training
    parameter = next(backbone.parameters(), torch.zeros(()))
    image = torch.zeros(1, 3, PROBE, PROBE, device=parameter.device, dtype=parameter.dtype)
    features = backbone.eval()(image)
    backbone.train(training)
    shapes = [tuple(feature.shape) for feature in features]
    if [shape[1] for shape in shapes] != list(backbone.channels):
        raise InputError(f"the backbone {name!r} publishes the channels {tuple(backbone.channels)} but returns "
                         f"features with {tuple(shape[1] for shape in shapes)}; both are listed deepest first",
                         about="backbone")
    sizes = {}
    for stride, shape in zip(backbone.strides, shapes, strict=True):
        sizes.setdefault(stride, set()).add(shape[2:])
    in_order = [size for found in sizes.values() for size in sorted(found)]
    if any(len(found) > 1 for found in sizes.values()) or in_order != sorted(in_order):
        raise InputError(f"the backbone {name!r} publishes the strides {tuple(backbone.strides)} but returns, for an "
                         f"image of {PROBE}x{PROBE} pixels, features of {[shape[2:] for shape in shapes]}; features of "
                         f"one stride have one size, and a smaller stride gives a larger one", about="backbone")
