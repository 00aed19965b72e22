"""The state dicts inside a file of weights, whatever wraps them, and what they look like."""
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Components of names that say how a network was run: DistributedDataParallel, torch.compile, FSDP, checkpointing.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
COUNTER = "num_batches_tracked"  # nothing here depends on it, and older files lack it
MAX_NESTING = 5  # dicts within dicts
MAX_NAME = 500  # characters
# What a name in the file looks like -> the network that has such names.
LOOKS = ((r"decoders\.Decoders_\d", "a checkpoint of this program"),
         (r"bottlenecks\.Bottlenecks_\d", "the released MobileNetV2"),
         (r"features\.\d+\.conv\.", "a MobileNetV2 in torchvision's names or older ones"),
         (r"features\.\d+\.\d+\.block\.", "an EfficientNet or ConvNeXt in torchvision's names"),
         (r"features\.\d+\.block\.", "a MobileNetV3 in torchvision's names"),
         (r"features\.denseblock1\.", "a DenseNet"),
         (r"features\.\d+\.weight", "a VGG or an AlexNet"),
         (r"trunk_output\.", "a RegNet in torchvision's names"),
         (r"_blocks\.\d+\._depthwise_conv\.", "an EfficientNet in the names of efficientnet-pytorch"),
         (r"conv_stem\.", "an EfficientNet or a MobileNet in timm's names"),
         (r"stage2\.\d+\.branch1\.", "a ShuffleNetV2"),
         (r"patch_embed(ding)?s?\.", "a transformer"))
RESNETS = {(2, 2, 2, 2): "18", (3, 4, 6, 3): "34 or 50", (3, 4, 23, 3): "101", (3, 8, 36, 3): "152"}


@dataclass
class StateDict:
    """Tensors by name, in the order of the file, without BN counters, and with names that have lost their wrappers."""
    place: str  # "under 'state_dict'"; "" for the file itself
    tensors: dict[str, torch.Tensor]
    wrappers: list[str]  # those that the names had


def find_state_dicts(content: Any) -> list[StateDict]:
    """Every dict of tensors in what a file contains, the optimizer's state included: it matches nothing."""
    return [strip(tensors, place) for tensors, place in tensor_dicts(content, ())]


def tensor_dicts(content: Any, keys: tuple[str, ...]) -> Iterator[tuple[dict, str]]:
    """(tensors by name, place) of `content` and of the dicts within it. keys: those that lead to it."""
    if not isinstance(content, Mapping) or len(keys) > MAX_NESTING:
        return
    tensors = {str(name): value for name, value in content.items()
               if isinstance(value, torch.Tensor) and is_plain(value) and len(str(name)) <= MAX_NAME}
    if tensors:
        yield tensors, f"under {'/'.join(keys)!r}" if keys else ""
    for key, value in content.items():
        yield from tensor_dicts(value, (*keys, clip(str(key))))


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has values, in the usual form: a sparse or quantized one fills nothing."""
    return tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_meta or tensor.is_quantized)


def strip(tensors: Mapping[str, torch.Tensor], place: str) -> StateDict:
    """A StateDict of `tensors`. Where two names differ in wrappers alone, all names keep them."""
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}
    stripped = {without_wrappers(name): tensor for name, tensor in tensors.items()}
    if len(stripped) < len(tensors):
        return StateDict(place, tensors, [])
    parts = {part for name in tensors for part in name.split(".")}
    return StateDict(place, stripped, sorted(parts & WRAPPERS))


def without_wrappers(name: str) -> str:
    """`module._orig_mod.conv1.weight` -> `conv1.weight`."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def describe(state: StateDict) -> str:
    """What a state dict looks like: how many tensors, where, of which network, and the first ones."""
    names = list(state.tensors)
    wrappers = f" behind {' and '.join(state.wrappers)}" if state.wrappers else ""
    network = guess_network(names)
    first = [f"{clip(name)} {size_of(state.tensors[name])}" for name in names[:3]]
    return (f"it has {len(names)} tensors{' ' * bool(state.place)}{state.place}{wrappers}"
            f"{f' and looks like {network}' if network else ''} ({some(first, 2)})")


def guess_network(names: Sequence[str]) -> str:
    """The network that usually has such names; "" if none is known for them."""
    blocks = Counter(match[1] for match in (re.search(r"\blayer([1-4])\.\d+\.conv1\.weight$", name) for name in names)
                     if match)
    if len(blocks) == 4:
        sizes = RESNETS.get(tuple(blocks[stage] for stage in "1234"))
        if sizes == "34 or 50":
            sizes = "50" if any(name.endswith("layer1.0.conv3.weight") for name in names) else "34"
        return f"a ResNet-{sizes}" if sizes else "a ResNet"
    return next((network for pattern, network in LOOKS for name in names if re.search(rf"\b{pattern}", name)), "")


def size_of(tensor: torch.Tensor) -> str:
    """A tensor's shape as text, 64x3x7x7."""
    return "x".join(map(str, tensor.shape)) or "a number"


def clip(name: str, limit: int = 80) -> str:
    """A name from a file, not longer than a sentence bears."""
    return name if len(name) <= limit else f"{name[:limit - 3]}..."


def some(names: Sequence[str], limit: int = 4) -> str:
    """The first few names as text."""
    return ", ".join(map(clip, names[:limit])) + (", ..." if len(names) > limit else "")
