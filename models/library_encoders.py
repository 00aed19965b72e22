"""Classification networks of torchvision and timm as encoders: one tap for each resolution, deepest first.

A tap is the last feature of its resolution, as the paper restricts itself (section 3.1.1): the stem's, and the end of
each stage. The classifier is left out. Both libraries are imported only where one of their networks is asked for.
"""
import difflib
import functools
import re
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import nn

from models.components import TIMM
from utils.errors import InputError, first_line

PROBES = (128, 97)  # pixels a side of the images that the strides are read from
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1
# Attributes of torchvision's networks: what follows the features, and what contains a chain of them.
CLASSIFIERS = ("avgpool", "classifier", "fc", "head", "heads", "permute", "flatten", "dropout", "AuxLogits", "aux1",
               "aux2")
FAMILIES = re.compile(r"(resnet|resnext|wide_resnet|vgg|densenet|mobilenet_v3|mnasnet|efficientnet|regnet|convnext|"
                      r"shufflenet|swin)[\d_]\w*|googlenet")
CONTAINERS = ("features", "layers", "trunk_output")


class LibraryEncoder(nn.Module):
    """`net`, whose parameters keep the library's names, as an encoder.

    chain: names of the modules of `net` that follow each other; None if `net` itself returns its features, shallow
    first. height_axis: of the features, 2, or 1 where they are (N, h, w, C). mean, std: what its ImageNet weights want
    RGB in 0..1 normalized with. `channels` and `strides` are those of the taps, deepest first. Raises InputError if
    the features are no pyramid.
    """

    def __init__(self, name: str, net: nn.Module, chain: Sequence[str] | None = None, height_axis: int = 2,
                 mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
        super().__init__()
        self.net, self.chain, self.height_axis = net, chain, height_axis
        self.mean, self.std = tuple(mean), tuple(std)
        self.kept, self.channels, self.strides = pyramid(name, self)  # kept: places among the features, shallow first

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """image (N, 3, H, W), normalized -> taps (N, channels[i], h, w), deepest first."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise InputError(f"the encoder got an image of shape {tuple(image.shape)}; it reads (N, 3, H, W)")
        least = self.strides[0]
        if min(image.shape[2:]) < least:
            raise InputError(f"the encoder got an image of {image.shape[2]}x{image.shape[3]} pixels; it needs at least "
                             f"{least}x{least}: enlarge or pad it")
        return self.features(image, self.kept)[::-1]

    def features(self, x: torch.Tensor, places: Sequence[int] | None = None) -> list[torch.Tensor]:
        """The features (N, C, h, w) at these places, shallow first; all if None."""
        if self.chain is None:
            outputs = self.net(x)
            found = [outputs[i] for i in (range(len(outputs)) if places is None else places)]
        else:
            found = []
            for i, name in enumerate(self.chain):
                x = self.net.get_submodule(name)(x)
                if places is None or i in places:
                    found.append(x)
        return [y.permute(0, 3, 1, 2) for y in found] if self.height_axis == 1 else found


@torch.no_grad()
def pyramid(name: str, encoder: LibraryEncoder) -> tuple[list[int], tuple[int, ...], tuple[int, ...]]:
    """The taps of an encoder: (places among its features, shallow first; channels and strides, deepest first).

    The last feature of each resolution below the image's. Raises InputError if a resolution is not the image's by a
    power of two. The random numbers stay as they are.
    """
    modes = {module: module.training for module in encoder.modules()}
    taps = []
    try:
        with torch.random.fork_rng(devices=[]):
            for length in PROBES:
                last = {}  # of each size, in the order of the features
                for i, feature in enumerate(encoder.eval().features(torch.zeros(1, 3, length, length))):
                    last[tuple(feature.shape[2:])] = i, feature.shape[1]
                taps.append(last)
    except Exception as error:  # whatever a network raises whose modules are no chain, or that wants one size
        raise no_pyramid(name, first_line(error)) from None
    finally:
        for module, training in modes.items():
            module.training = training
    sizes = [size for size in taps[0] if size != (PROBES[0],) * 2]
    strides = [PROBES[0] // size[0] for size in sizes]
    others = [size for size in taps[1] if size != (PROBES[1],) * 2]
    expected = [2 ** k for k in range(strides[0].bit_length() - 1, strides[-1].bit_length())] if strides else []
    fits = strides == expected and len(strides) >= 3 and len(others) == len(sizes) and all(
        size == (PROBES[0] // stride,) * 2 and abs(other[0] - PROBES[1] / stride) < 1 and other[0] == other[1]
        for size, other, stride in zip(sizes, others, strides, strict=True))
    if not fits:
        raise no_pyramid(name, f"an image of {PROBES[0]}x{PROBES[0]} gives features of "
                               f"{', '.join('x'.join(map(str, size)) for size in taps[0])}")
    places, channels = zip(*(taps[0][size] for size in sizes), strict=True)
    return list(places), channels[::-1], tuple(strides[::-1])


def no_pyramid(name: str, reason: str) -> InputError:
    """The error for a network that cannot be an encoder here."""
    return InputError(f"the backbone {name!r} has no pyramid of features, each of half the resolution of the one "
                      f"before ({reason}); give another one, for example resnet50", about="backbone")


def torchvision_encoder(name: str) -> LibraryEncoder:
    """A network of torchvision.models, with random weights. Raises InputError if it has no pyramid."""
    models = torchvision_models()
    net = models.get_model(name, weights=None,
                           **({"init_weights": False} if name in ("googlenet", "inception_v3") else {}))
    features = nn.Module()  # a bare one: MNASNet's own class refuses state dicts without a version
    for child, module in net.named_children():
        if child not in CLASSIFIERS:
            features.add_module(child, module)
    chain = [f"{child}.{inner}" if child in CONTAINERS else child for child, module in features.named_children()
             for inner in (dict(module.named_children()) if child in CONTAINERS else ("",))]
    mean, std = torchvision_normalization(models, name)
    return LibraryEncoder(name, features, chain, 1 if name.startswith("swin") else 2, mean, std)


def torchvision_normalization(models: ModuleType, name: str) -> tuple[Sequence[float], Sequence[float]]:
    """mean and std of the images that torchvision's ImageNet weights of a network were trained on."""
    preset = models.get_model_weights(name).DEFAULT.transforms()
    return getattr(preset, "mean", IMAGENET_MEAN), getattr(preset, "std", IMAGENET_STD)


def timm_encoder(name: str) -> LibraryEncoder:
    """A network of timm with features_only, with random weights; name: with "timm:" before it."""
    timm = import_timm(name)
    try:
        if not timm.is_model(name.removeprefix(TIMM)):  # create_model would also download what a hub's name leads to
            raise ValueError("there is no model of that name")
        net = timm.create_model(name.removeprefix(TIMM), pretrained=False, features_only=True)
    except Exception as error:  # timm's own, RuntimeError, AttributeError, ...
        near = difflib.get_close_matches(name.removeprefix(TIMM), timm.list_models())
        hint = f"; did you mean {', '.join(TIMM + other for other in near)}?" if near else ""
        raise InputError(f"timm cannot make the backbone {name!r} ({first_line(error)}){hint}",
                         about="backbone") from None
    config = timm.get_pretrained_cfg(name.removeprefix(TIMM), allow_unregistered=True)
    axis = 1 if str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC") else 2
    return LibraryEncoder(name, net, None, axis, config.mean if config else IMAGENET_MEAN,
                          config.std if config else IMAGENET_STD)


def import_timm(name: str) -> ModuleType:
    """The module timm. Raises InputError, with what to install, where there is none."""
    try:
        import timm
        return timm
    except Exception as error:  # one that does not match torch fails with more than ImportError
        raise InputError(f"the backbone {name!r} needs the package timm, which cannot be imported "
                         f"({first_line(error)}); install it: pip install timm", about="backbone") from None


def torchvision_models() -> ModuleType:
    """The module torchvision.models. Raises InputError, with what to install, where there is none."""
    try:
        from torchvision import models
        return models
    except Exception as error:  # one that does not match torch fails with more than ImportError
        raise InputError(f"torchvision cannot be imported ({first_line(error)}); install the one that fits your torch, "
                         f"or take the backbone mobilenet_v2", about="backbone") from None


def is_torchvision_name(name: str) -> bool:
    """Whether torchvision has a classification network of that name; where it cannot be imported, whether it may."""
    known = torchvision_names()
    return name in known if known else bool(FAMILIES.fullmatch(name))


@functools.cache
def torchvision_names() -> tuple[str, ...]:
    """The names of torchvision's classification networks; none where it cannot be imported."""
    try:
        models = torchvision_models()
    except InputError:
        return ()
    return tuple(models.list_models(module=models))
