"""Weights for the encoder before a run: ImageNet's, a file's, or none."""
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from models.mobilenet_v2 import from_torchvision, is_torchvision
from models.network import without_module_prefix
from utils.errors import InputError
from utils.tensor_files import check_tensor, load_file

LAYOUTS = {True: "mobilenet_v2", False: "mobilenet_v2_torchvision"}  # by whether the first block has an expansion
FIRST_EXPANSION = "bottlenecks.Bottlenecks_0.LinearBottleneck0_0.conv1.weight"


@dataclass
class EncoderWeights:
    """A state dict in the encoder's own names, where it came from, and what of the source is not the encoder's."""
    source: str
    state: dict
    backbone: str  # the encoder's name, in the layout that the weights have
    left_out: list = field(default_factory=list)


def find_encoder_weights(pretrained: str, backbone: str) -> EncoderWeights | None:
    """"none", "imagenet" or a file -> EncoderWeights, or None for "none".

    The file is the released encoder file, torchvision's, or any checkpoint of this program. For MobileNetV2 the layout
    follows the weights: `backbone` of the result may differ from `backbone`.
    """
    if pretrained == "none":
        return None
    if pretrained == "imagenet":
        if backbone not in LAYOUTS.values():
            raise InputError(f"there are no ImageNet weights for the backbone {backbone!r}; give a file of weights, or "
                             f"none", about="pretrained")
        source, state = "torchvision's ImageNet weights", download_imagenet()
    else:
        source, state = str(pretrained), encoder_state(load_file(pretrained, "file of pretrained weights"), pretrained)
    left_out = []
    if is_torchvision(state):
        state, left_out = from_torchvision(state)
    if backbone in LAYOUTS.values():
        backbone = LAYOUTS[FIRST_EXPANSION in state]
    return EncoderWeights(source, state, backbone, left_out)


def encoder_state(content: Any, path: str) -> dict:
    """The encoder's tensors in a loaded file, in the encoder's own names (or torchvision's)."""
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    state = {str(key): value for key, value in state.items()} if isinstance(state, dict) else None
    if not isinstance(state, dict) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} contains no weights; give a state dict, or a file with one under 'state_dict'")
    state = {key: value for key, value in without_module_prefix(state).items() if isinstance(value, torch.Tensor)}
    inside = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    return inside or state


def download_imagenet() -> Mapping:
    """torchvision's mobilenet_v2 weights, cached in torch's hub folder."""
    try:
        from torchvision.models import MobileNet_V2_Weights
    except Exception as error:  # a torchvision that does not match torch fails with more than ImportError
        raise InputError(f"torchvision cannot be imported ({str(error).splitlines()[0]}), and the ImageNet "
                         f"weights come from it; install the torchvision that fits your torch, or give a file "
                         f"of weights, or none", about="pretrained") from None
    try:
        return MobileNet_V2_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:  # no network, or a broken cached file
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        raise InputError(f"the ImageNet weights could not be downloaded to {folder}, or read there ({error}); delete a "
                         f"broken file, give a file of weights, or none to start from random weights",
                         about="pretrained") from None


def load_encoder(encoder: nn.Module, weights: EncoderWeights) -> list[str]:
    """Copies the weights that fit into the encoder. Returns lines on what was loaded, missing, and left over.

    Raises InputError if nothing fits: training from random weights by mistake is a day lost.
    """
    expected = {name: value for name, value in encoder.state_dict().items() if not name.endswith("num_batches_tracked")}
    fitting = {name: value for name, value in weights.state.items()
               if name in expected and value.shape == expected[name].shape}
    if not fitting:
        raise InputError(f"none of the {len(weights.state)} tensors in {weights.source} fits the encoder "
                         f"{weights.backbone}; give weights of that encoder, or none")
    for name, value in fitting.items():
        check_tensor(name, value, expected[name], weights.source)
    encoder.load_state_dict(fitting, strict=False)
    missing = [name for name in expected if name not in fitting]
    extra = weights.left_out + [name for name in weights.state
                                if name not in fitting and not name.endswith("num_batches_tracked")]
    lines = [f"encoder {weights.backbone}: {len(fitting)} of {len(expected)} tensors from {weights.source}"]
    if missing:
        lines.append(f"warning: {len(missing)} tensors of the encoder were not in the file and stay random: "
                     f"{some(missing)}")
    if extra:
        lines.append(f"{len(extra)} tensors of the file are not the encoder's: {some(extra)}")
    return lines


def some(names: Sequence[str], limit: int = 4) -> str:
    """The first few names as text."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
