"""Weights for the encoder before a run: ImageNet's, a file's, or none."""
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from models.backbones import BACKBONES
from models.components import TIMM, is_own
from models.library_encoders import import_timm, torchvision_models
from models.mobilenet_v2 import MobileNetV2, torchvision_names
from utils.errors import InputError
from utils.tensor_files import check_tensor, load_file
from utils.weight_files import describe, find_state_dicts, size_of, some
from utils.weight_matching import Match, best_match, due_tensors

LAYOUTS = ("mobilenet_v2", "mobilenet_v2_torchvision")  # of one network: which of them a run has follows the weights


@dataclass
class EncoderWeights:
    """What a file of weights contains, where it came from, and the encoder whose layout the weights have."""
    source: str
    content: Mapping  # a state dict in any spelling, or dicts with some inside: see utils/weight_files.py
    backbone: str


def find_encoder_weights(pretrained: str, backbone: str) -> EncoderWeights | None:
    """"none", "imagenet" or a file -> EncoderWeights, or None for "none".

    The file contains the encoder alone or a network that has it, in any spelling that utils/weight_matching.py
    recognises. For MobileNetV2 the layout follows the weights: `backbone` of the result may differ from `backbone`.
    """
    if pretrained == "none":
        return None
    if pretrained == "imagenet":
        source, content = download_imagenet(backbone)
    else:
        source, content = str(pretrained), load_file(pretrained, "file of pretrained weights")
        if not find_state_dicts(content):
            raise InputError(f"{pretrained} contains no weights; give a state dict, or a file with one inside")
    if backbone in LAYOUTS:
        backbone = find_layout(backbone, content, source)
    return EncoderWeights(source, content, backbone)


def find_layout(backbone: str, content: Mapping, source: str) -> str:
    """The layout of MobileNetV2 of which the file fills most; `backbone` if it fills none."""
    filled = {}
    for name in sorted(LAYOUTS, key=lambda name: name != backbone):  # max takes the first of equals
        with torch.device("meta"):
            encoder = BACKBONES[name]()
        match = match_encoder(encoder, content, source)
        filled[name] = len(match.names) if match else 0
    return max(filled, key=filled.get)


def match_encoder(encoder: nn.Module, content: Mapping, source: str) -> Match | None:
    """The best match of the encoder in what a file contains, or None: see `best_match`."""
    other_names = torchvision_names() if isinstance(encoder, MobileNetV2) else {}
    return best_match(due_tensors(encoder), find_state_dicts(content), other_names, source)


def download_imagenet(backbone: str) -> tuple[str, Mapping]:
    """The ImageNet weights of a library's network, cached by that library: (where they come from, state dict).

    Raises InputError if there are none, or if they can be neither downloaded nor read.
    """
    if is_own(backbone):
        raise InputError(f"there are no ImageNet weights for the backbone {backbone!r}; give a file of weights, or "
                         f"none", about="pretrained")
    name = "mobilenet_v2" if backbone in LAYOUTS else backbone
    try:
        if name.startswith(TIMM):
            model = import_timm(name).create_model(name.removeprefix(TIMM), pretrained=True, features_only=True)
            return "timm's ImageNet weights", model.state_dict()
        weights = torchvision_models().get_model_weights(name)
        chosen = getattr(weights, "IMAGENET1K_V1", weights.DEFAULT)
        return "torchvision's ImageNet weights", chosen.get_state_dict(progress=True, check_hash=True,
                                                                       weights_only=True)
    except InputError:
        raise
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")  # no network, or a broken cached file
        raise InputError(f"the ImageNet weights could not be downloaded to {folder}, or read there ({error}); delete a "
                         f"broken file, give a file of weights, or none to start from random weights",
                         about="pretrained") from None


def load_encoder(encoder: nn.Module, weights: EncoderWeights, partial: bool = False) -> list[str]:
    """Copies the weights into the encoder. Returns lines on what was loaded, how it was matched, and left over.

    partial: whether some of the encoder may stay random. Raises InputError if nothing fits, and without `partial`
    unless the whole encoder is in the file: training from random weights by mistake is a day lost.
    """
    due = due_tensors(encoder)
    match = match_encoder(encoder, weights.content, weights.source)
    if match is None:
        states = find_state_dicts(weights.content)
        count = sum(len(state.tensors) for state in states)
        raise InputError(f"none of the {count} tensors in {weights.source} fits the encoder {weights.backbone}"
                         f"{f': {describe(max(states, key=lambda s: len(s.tensors)))}' if count else ''}; give weights "
                         f"of that encoder, or none", about="pretrained")
    missing = [name for name in due if name not in match.names]
    if (missing or match.inside) and not partial:
        raise InputError(explain_misfit(match, due, missing, weights), about="partial_weights")
    tensors = match.state.tensors
    for own, theirs in match.names.items():
        check_tensor(theirs, tensors[theirs], due[own], weights.source)
    encoder.load_state_dict({own: tensors[theirs] for own, theirs in match.names.items()}, strict=False)
    lines = [f"encoder {weights.backbone}: {len(match.names)} of {len(due)} tensors from {weights.source}, matched "
             f"{match}"]
    if missing:
        lines.append(f"warning: {len(missing)} tensors of the encoder were not in the file and stay random: "
                     f"{some(missing)}")
    extra = [name for name in tensors if name not in set(match.names.values())]
    if extra:
        lines.append(f"{len(extra)} tensors of the file are not the encoder's: {some(extra)}")
    return lines


def explain_misfit(match: Match, due: Mapping, missing: list, weights: EncoderWeights) -> str:
    """How much fits, what does not, and what the file looks like."""
    looks = describe(match.state)
    if not missing:
        return (f"the encoder {weights.backbone} is part of another network in {weights.source}: {looks}, of which "
                f"{len(match.inside)} within the encoder are not its own, {some(match.inside, 2)}; give weights of "
                f"that encoder, or accept that only a part is used")
    first, tensors = match.expected[missing[0]], match.state.tensors
    problem = (f"{first} is {size_of(tensors[first])} there and {size_of(due[missing[0]])} in the encoder"
               if first in tensors else f"{first} is missing")
    return (f"only {len(match.names)} of the {len(due)} tensors of the encoder {weights.backbone} are in "
            f"{weights.source}: {looks}, but {problem}; give weights of that encoder, or accept that the others stay "
            f"random")
