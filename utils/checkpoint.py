"""Checkpoints: written whole, read without running code, recognised by content, the released ones included."""
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models import FullyDenseNetwork, SparseMask, connectivity, hub
from models.backbones import BACKBONES, MOBILENETS, make_backbone
from models.components import check_name, is_own, require_named
from models.network import (
    CONNECTIONS,
    DEFAULT_PARTS,
    FUSIONS,
    HEADS,
    MAX_CHANNELS,
    check_normalization,
    without_module_prefix,
)
from models.strengths import STRENGTHS
from models.transfer import load_for_encoder
from utils.errors import InputError
from utils.run_folder import find_last_checkpoint
from utils.tensor_files import check_tensor, load_file
from VOC12.labels import VOID

CONNECTION = re.compile(r"decoders\.Decoders_(\d{1,3})\.(down|up)_convs\.(\d{1,3})\.(.+)")
HEAD = "fc_conv."
STAGE_NORM = re.compile(r"decoders\.Decoders_\d{1,3}\.bn\.weight")
EXPORTED = ".onnx", ".pt2"
# The parts that it takes to rebuild a network, and their names of this program.
PARTS = {"backbone": BACKBONES, "connection": CONNECTIONS, "fusion": FUSIONS, "head": HEADS, "strengths": STRENGTHS}


@dataclass
class Checkpoint:
    """A network in a file: what it takes to rebuild it, and everything else the file contained in `content`."""
    path: str
    kind: str  # "search" or "train"
    state: dict
    depth: int
    num_classes: int
    parts: dict  # names of PARTS; "strengths" in a search alone
    normalization: tuple | None = None  # mean and std; None in files of older versions
    connectivity: Any = None  # bool (L, L, 2), for kind "train"
    class_names: list | None = None
    content: dict = field(default_factory=dict)
    trusted: set = field(default_factory=set)  # names of own parts that the user gave

    @property
    def settings(self) -> dict:
        """The options of the run that wrote the file, or an empty dict for a released one."""
        settings = self.content.get("settings")
        return settings if isinstance(settings, dict) else {}

    @property
    def own_parts(self) -> dict:
        """The parts, by kind, that have to be imported from a user's module."""
        return {kind: name for kind, name in self.parts.items() if is_own(name)}

    def require(self, kind: str) -> "Checkpoint":
        """Raises InputError unless the checkpoint is of this kind. Returns itself."""
        if self.kind != kind:
            names = {"search": "a search", "train": "a training"}
            raise InputError(f"the checkpoint {self.path} is of {names[self.kind]}; this needs one of {names[kind]}")
        return self

    def require_same(self, num_classes: int | None = None, depth: int | None = None) -> None:
        """Raises InputError if a number that the user gave contradicts the file. None means not given."""
        for what, given in (("num_classes", num_classes), ("depth", depth)):
            if given is not None and given != getattr(self, what):
                label = {"num_classes": "classes", "depth": "depth"}[what]
                raise InputError(f"the checkpoint {self.path} has {label} {getattr(self, what)}, but {given} was "
                                 f"given; leave the option out or give the right file", about=what)

    def require_mask(self, mask: str | None, mask_encoder: str | None = None) -> None:
        """Raises InputError if a mask was given and is not the connectivity of the checkpoint, or carried over to it.

        mask_encoder: the encoder that the mask was found on, if known, see transfer.load_for_encoder.
        """
        if mask is None:
            return
        self.require_trust()
        strides = make_backbone(self.parts["backbone"]).strides
        if not np.array_equal(load_for_encoder(mask, strides, mask_encoder)[0], self.connectivity):
            raise InputError(f"the mask {mask} is not the connectivity of {self.path}; leave it out, since the "
                             f"checkpoint contains its own", about="connectivity")

    def require_parts(self, given: Mapping[str, str | None]) -> None:
        """Raises InputError if a part that the user gave, by kind, is not the file's. None means not given.

        An own part has to be named by the user too (components.require_named), and `build` refuses what was not. The
        two layouts of MobileNetV2 count as one.
        """
        for kind, name in self.parts.items():
            wish = given.get(kind)
            require_named(f"the checkpoint {self.path}", kind, name, wish)
            if wish is not None and wish != name:
                check_name(kind, wish, PARTS[kind])
                if kind != "backbone" or not {wish, name} <= set(MOBILENETS):
                    raise InputError(f"the checkpoint {self.path} has the {kind} {name}, but {wish} was given; leave "
                                     f"the option out or give the right file", about=kind)
        self.trusted.update(self.own_parts.values())

    def require_trust(self) -> None:
        """Raises InputError for a part that would have to be imported and that the user did not name."""
        for kind, name in self.own_parts.items():
            if name not in self.trusted:
                raise InputError(f"the checkpoint {self.path} uses the {kind} {name!r}, which has to be imported; "
                                 f"name it first (require_parts)", about=kind)

    def build(self, num_classes: int | None = None, init: str = "fan_out") -> FullyDenseNetwork | SparseMask:
        """The network with its weights; for another number of classes its head starts anew, as init says.

        Raises InputError if the weights do not fit, or for a part that the user did not name.
        """
        self.require_trust()
        sizes = {"depth": self.depth, "num_classes": num_classes or self.num_classes, **self.parts,
                 "normalization": self.normalization, "init": init}
        network = FullyDenseNetwork(**sizes) if self.kind == "search" else SparseMask(self.connectivity, **sizes)
        state = self.state
        if network.num_classes != self.num_classes:
            heads = ((name, value) for name, value in network.state_dict().items() if name.startswith(HEAD))
            state = {**{name: value for name, value in state.items() if not name.startswith(HEAD)}, **dict(heads)}
        else:
            network.class_names = self.class_names
        load_weights(network, state, self.path)
        return network


def load_weights(network: nn.Module, state: Mapping, path: str) -> None:
    """Loads a whole state dict; raises InputError with the names that do not fit. BN counters may be missing."""
    own = network.state_dict()
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked") or name in own}
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in own]
    shapes = [name for name in state if name in own and own[name].shape != state[name].shape]
    for names, problem in ((missing, "lacks"), (extra, "has, beyond the network,"), (shapes, "has in another shape")):
        if names:
            raise InputError(f"the checkpoint {path} {problem} {len(names)} tensors, {names[0]} first; "
                             f"give the checkpoint of this network")
    for name, value in state.items():
        check_tensor(name, value, own[name], path)
    network.load_state_dict(state, strict=False)


def read_checkpoint(path: str) -> Checkpoint:
    """Reads a checkpoint of this program or of the released code (search or trained), recognised by content.

    path: of the file, of a run's folder, whose last checkpoint is read, or of a folder of SparseMask.save_pretrained.
    """
    if Path(path).suffix in EXPORTED:
        raise InputError(f"{path} is an exported network, and this needs a checkpoint; give the one that it was "
                         f"exported from")
    if (Path(path) / hub.CONFIG).is_file():
        content = content_of_folder(path)
    else:
        path = find_last_checkpoint(path)
        content = load_file(path, "checkpoint")
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    state = state if isinstance(state, dict) else {}
    state = without_module_prefix({str(name): value for name, value in state.items()
                                   if isinstance(value, torch.Tensor)})
    connections = [match for match in map(CONNECTION.fullmatch, state) if match]
    model = content.get("model") if isinstance(content, dict) else None
    model = model if isinstance(model, dict) else {}
    if not connections or not any(name.startswith(HEAD) for name in state):
        hint = "it looks like encoder weights" if "conv1.weight" in state else "it contains no network of this program"
        raise InputError(f"{path} is no checkpoint of a search or a training: {hint}; "
                         f"give a checkpoint_ITER.pth.tar that train_sparse_mask.py wrote")
    depth, num_classes = sizes_of(model, state, path)
    names = {kind: name for kind, name in model.items() if kind in PARTS and isinstance(name, str) and name}
    parts = {**DEFAULT_PARTS, "backbone": mobilenet_layout(state), **names}
    for kind, name in parts.items():
        if not is_own(name) and name not in PARTS[kind]:
            raise InputError(f"{path} names the {kind} {name!r}, which this program does not have; known are "
                             f"{', '.join(itertools.islice(PARTS[kind], 8))}")
    strengths = parts.pop("strengths", None) or strengths_of(state)
    if strengths:
        parts["strengths"] = strengths
    elif "model" not in content and any(match[4] == "0.weight" for match in connections):  # a BN follows
        raise InputError(f"the search checkpoint {path} contains no strengths; give one that train_sparse_mask.py "
                         f"wrote")
    return Checkpoint(path=str(path), kind="search" if strengths else "train", state=state, depth=depth,
                      num_classes=num_classes, parts=parts,
                      connectivity=None if strengths else connectivity_of(model, connections, path),
                      normalization=normalization_of(model, path),
                      class_names=class_names_of(content, num_classes), content=content)


def content_of_folder(path: str) -> dict:
    """What SparseMask.save_pretrained wrote, as a checkpoint has it."""
    config = hub.read_config(path)
    return {"model": hub.model_of(config, path), "class_names": config.get("class_names"),
            "settings": config.get("settings"), "state_dict": load_file(str(Path(path) / hub.WEIGHTS), "checkpoint")}


def sizes_of(model: Mapping, state: Mapping, path: str) -> tuple[int, int]:
    """(depth, number of classes): as the file states them, else from the released head, a 1x1 convolution."""
    head = state.get("fc_conv.weight")
    shape = head.shape if head is not None and head.ndim == 4 else (None, None)
    num_classes, depth = (model.get(name, size) for name, size in zip(("num_classes", "depth"), shape[:2], strict=True))
    for size, most in ((num_classes, VOID), (depth, MAX_CHANNELS)):
        if type(size) is not int or not 1 <= size <= most:
            raise InputError(f"{path} is no checkpoint of this program: it states {num_classes} classes and a depth of "
                             f"{depth}; give a whole file")
    widths = {len(value) for name, value in state.items() if STAGE_NORM.fullmatch(name) and value.ndim}
    if widths - {depth}:  # a number in a file must not make tensors of any size
        raise InputError(f"{path} is no checkpoint of this program: its stages have {sorted(widths)} channels and its "
                         f"depth is {depth}; give a whole file")
    return depth, num_classes


def normalization_of(model: Mapping, path: str) -> tuple | None:
    """mean and std, as the file states them; None if it does not."""
    stated = model.get("normalization")
    if stated is None:
        return None
    try:
        return check_normalization(stated)
    except InputError as error:
        raise InputError(f"{path} is no checkpoint of this program: {error}; give a whole file") from None


def mobilenet_layout(state: Mapping) -> str:
    """The name of the MobileNetV2 whose layout a released state dict has."""
    first = "backbone.bottlenecks.Bottlenecks_0.LinearBottleneck0_0.conv1.weight"
    return "mobilenet_v2" if first in state else "mobilenet_v2_torchvision"


def strengths_of(state: Mapping) -> str | None:
    """The name of a released search's parameterization, by its parameters. None for a training."""
    return next((name for name, kind in STRENGTHS.items()
                 if any(key.endswith(f".{kind.parameter_name}") for key in state)), None)


def connectivity_of(model: Mapping, connections: list, path: str) -> np.ndarray:
    """The connectivity of a training: as the file states it, else spelled by the names, since a kept connection has a
    weight.

    connections: matches of CONNECTION. The finest stage is always kept, so it gives the size.
    """
    stated = model.get("connectivity")
    if isinstance(stated, torch.Tensor) and stated.dtype == torch.bool and stated.layout == torch.strided and \
            stated.device.type == "cpu" and stated.ndim == 3:
        try:
            return connectivity.check(stated.numpy())
        except InputError as error:
            raise InputError(f"{path} is no checkpoint of this program: {error}") from None
    places = {(int(match[1]), int(match[3]), int(match[2] == "up")) for match in connections}
    num_stages = max(stage for stage, _, _ in places) + 1
    if num_stages > connectivity.MAX_STAGES:
        raise InputError(f"{path} is no checkpoint of this program: it names a stage {num_stages - 1}")
    found = connectivity.empty(num_stages)
    for stage, source, side in places:
        if source > stage:
            raise InputError(f"{path} is no checkpoint of this program: it names a connection of stage {stage} to "
                             f"source {source}, which is finer than the stage")
        found[stage, source, side] = True
    return found


def class_names_of(content: Mapping, num_classes: int) -> list | None:
    """The class names in a checkpoint, if there are as many as classes."""
    names = content.get("class_names")
    return [str(name) for name in names] if isinstance(names, list) and len(names) == num_classes else None
