"""Encoders by name. An encoder is a module that turns an image (N, 3, H, W) into features, deepest first.

It publishes `channels` and `strides`, one number a feature, in the same order. To bring one's own, register it here or
name it on the command line as `package.module:factory`; the factory is called without arguments.
"""
import functools
import importlib

from models.mobilenet_v2 import MobileNetV2
from utils.errors import InputError

BACKBONES = {
    "mobilenet_v2": MobileNetV2,  # the released layout
    "mobilenet_v2_torchvision": functools.partial(MobileNetV2, expand_first=False),  # torchvision's layout
}


def check_backbone_name(name):
    """Raises InputError unless the name is known or that of an own encoder, package.module:factory."""
    if name not in BACKBONES and ":" not in name:
        raise InputError(f"unknown backbone {name!r}; known are {', '.join(BACKBONES)}, "
                         f"and your own is named package.module:factory")


def make_backbone(name):
    """Name -> encoder. Raises InputError if it is unknown, cannot be imported, or does not say its channels."""
    if name in BACKBONES:
        return BACKBONES[name]()
    check_backbone_name(name)
    module_name, _, factory_name = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # TypeError: a relative name
        raise InputError(f"the backbone {name!r} cannot be imported ({error}); "
                         f"check the name and that its module is on PYTHONPATH") from error
    try:
        backbone = factory()
    except TypeError as error:
        raise InputError(f"the backbone {name!r} cannot be called without arguments ({error}); "
                         f"name a factory that can") from error
    channels, strides = getattr(backbone, "channels", ()), getattr(backbone, "strides", ())
    if not channels or len(channels) != len(strides):
        raise InputError(f"the backbone {name!r} must publish `channels` and `strides`, one number a feature, "
                         f"deepest first; it has {channels!r} and {strides!r}")
    return backbone
