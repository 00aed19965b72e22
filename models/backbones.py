"""Encoders by name. An encoder is a module that turns an image (N, 3, H, W) into features, deepest first.

It publishes `channels` and `strides`, one number per feature, in the same order, and may publish `mean` and `std`: what
its images are normalized with, of RGB in 0..1 (ImageNet's by default). Your own is registered here, or named on the
command line as `package.module:factory`; the factory is called without arguments.
"""
import functools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from models import components
from models.components import TIMM
from models.library_encoders import is_torchvision_name, timm_encoder, torchvision_encoder, torchvision_names
from models.mobilenet_v2 import MobileNetV2
from utils.errors import InputError

MOBILENETS = {
    "mobilenet_v2": MobileNetV2,  # the released layout
    "mobilenet_v2_torchvision": functools.partial(MobileNetV2, expand_first=False),  # torchvision's layout
}


class Backbones(Mapping):
    """Name -> factory: MOBILENETS, torchvision's networks, and timm's as timm:NAME. It imports only what is asked for.

    Iterating gives the names but those of timm.
    """

    def __getitem__(self, name: str) -> Callable[[], nn.Module]:
        if name in MOBILENETS:
            return MOBILENETS[name]
        if name.startswith(TIMM):
            return functools.partial(timm_encoder, name)
        if is_torchvision_name(name):
            return functools.partial(torchvision_encoder, name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        yield from MOBILENETS
        yield from (name for name in torchvision_names() if name not in MOBILENETS)

    def __len__(self) -> int:
        return sum(1 for _ in self)


BACKBONES = Backbones()
PROBES = (128, 97)  # pixels a side of the images that an own encoder is tried on


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


def check_features(name: str, backbone: nn.Module) -> None:
    """Raises InputError unless the encoder returns, for small images, the features that it publishes.

    An encoder that takes no image of these sizes is not checked. The random numbers stay as they are.
    """
    for length in PROBES:
        features = features_of(backbone, length)
        if features is None:
            continue
        if not isinstance(features, (list, tuple)) or \
                not all(isinstance(feature, torch.Tensor) and feature.ndim == 4 for feature in features):
            raise InputError(f"the backbone {name!r} returns no list of features (N, C, h, w); return one for each of "
                             f"its `channels`, deepest first", about="backbone")
        channels = tuple(feature.shape[1] for feature in features)
        if channels != tuple(backbone.channels):
            raise InputError(f"the backbone {name!r} publishes the channels {tuple(backbone.channels)} but returns "
                             f"features with {channels}; both are listed deepest first", about="backbone")
        sizes = {}  # of each stride, in the order in which they are published
        for stride, feature in zip(backbone.strides, features, strict=True):
            sizes.setdefault(stride, set()).add(tuple(feature.shape[2:]))
        in_order = [size for found in sizes.values() for size in sorted(found)]
        if any(len(found) > 1 for found in sizes.values()) or in_order != sorted(in_order):
            shapes = [tuple(feature.shape[2:]) for feature in features]
            raise InputError(f"the backbone {name!r} publishes the strides {tuple(backbone.strides)} but returns, for "
                             f"an image of {length}x{length} pixels, features of {shapes}; features of one stride need "
                             f"one size, and a smaller stride a larger one", about="backbone")


@torch.no_grad()
def features_of(backbone: nn.Module, length: int) -> object:
    """What the encoder returns in evaluation mode for a black image of length x length pixels; None if it fails."""
    modes = {module: module.training for module in backbone.modules()}
    parameter = next(backbone.parameters(), torch.zeros(()))
    image = torch.zeros(1, 3, length, length, device=parameter.device, dtype=parameter.dtype)
    try:
        with torch.random.fork_rng(devices=[]):
            return backbone.eval()(image)
    except Exception:  # whatever an encoder raises for an image that is not of its size
        return None
    finally:
        for module, training in modes.items():
            module.training = training
