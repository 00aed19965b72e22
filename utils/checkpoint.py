"""Checkpoints: written whole, read without running code, recognised by content, the released ones included."""
import errno
import re
import warnings
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from models import FullyDenseNetwork, SparseMask, connectivity
from models.backbones import BACKBONES, check_backbone_name
from models.connectivity import MAX_STAGES
from utils.errors import InputError
from utils.files import require_file, write_atomically
from VOC12.labels import VOID

CONNECTION = re.compile(r"decoders\.Decoders_(\d{1,3})\.(down|up)_convs\.(\d{1,3})\.(0\.)?weight")


def load_file(path, what):
    """torch.load on the CPU, of tensors and plain Python types only. `what` names the file in the InputError."""
    path = require_file(path, what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", ".*sparse.*invariant", UserWarning)  # check_tensor refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
        if zipfile.is_zipfile(path):  # not so in PyTorch 1.0; torch.load looks at no checksum
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():
                    raise zipfile.BadZipFile
        return content
    except Exception as error:  # broken files raise many types: UnpicklingError, EOFError, RuntimeError, KeyError, ...
        if isinstance(error, MemoryError):
            raise
        text = str(error)
        cut = isinstance(error, EOFError) or getattr(error, "errno", None) == errno.EINVAL  # a seek before the start
        if isinstance(error, zipfile.BadZipFile):
            reason = "its checksums do not fit, so it is damaged, or was saved without (set_crc32_options)"
        elif cut or "PytorchStreamReader" in text:
            reason = "it is cut short or damaged"
        elif re.search(r"unsupported (global|class)", text, re.IGNORECASE):
            reason = "it holds more than tensors and plain values, and loading that could run code"
        elif isinstance(error, OSError):
            reason = error.strerror or text
        else:
            reason = "it is no file of PyTorch's, or damaged"
        raise InputError(f"the {what} {path} cannot be read: {reason}; give a whole file that PyTorch or this program "
                         f"wrote") from None


def save_file(path, content):
    """torch.save, whole or not at all."""
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer raises this of a full disk, and keeps the reason as its context
            reason = error.__context__
            raise (reason if isinstance(reason, OSError) else OSError(str(error).splitlines()[0][:200])) from None


@dataclass
class Checkpoint:
    """A network in a file: what it takes to rebuild it, and everything else the file held in `content`."""
    path: str
    kind: str  # "search" or "train"
    state: dict
    backbone: str
    depth: int
    num_classes: int
    strengths: str | None = None  # parameterization, for kind "search"
    connectivity: Any = None  # bool (L, L, 2), for kind "train"
    class_names: list | None = None
    content: dict = field(default_factory=dict)

    @property
    def settings(self):
        """The options of the run that wrote the file, or an empty dict for a released one."""
        settings = self.content.get("settings")
        return settings if isinstance(settings, dict) else {}

    def require(self, kind):
        """Raises InputError unless the checkpoint is of this kind. Returns itself."""
        if self.kind != kind:
            names = {"search": "a search (train_sparse_mask.py --search)", "train": "training (train_sparse_mask.py)"}
            raise InputError(f"the checkpoint {self.path} is of {names[self.kind]}; this needs one of {names[kind]}")
        return self

    def require_same(self, **given):
        """Raises InputError if an option that the user gave contradicts the file. None means not given."""
        for name, value in given.items():
            if value is not None and value != getattr(self, name):
                label = {"num_classes": "classes", "depth": "depth"}[name]
                raise InputError(f"the checkpoint {self.path} has {label} {getattr(self, name)}, but {value} was "
                                 f"given; leave the option out or give the right file")

    def require_mask(self, mask_path):
        """Raises InputError if a mask was given and is not the connectivity that the file holds."""
        if mask_path and (connectivity.load(mask_path, len(self.connectivity)) != self.connectivity).any():
            raise InputError(f"the mask {mask_path} is not the connectivity of {self.path}; leave out --mask_path, for "
                             f"the checkpoint holds its own")

    def require_backbone(self, given):
        """Raises InputError if the backbone that the user gave, or None, is not the file's; layouts are one family.

        An encoder that has to be imported runs code, so a file alone must not choose it: the user names it too.
        """
        if ":" in self.backbone and given != self.backbone:
            raise InputError(f"the checkpoint {self.path} uses the encoder {self.backbone!r}, which this program would "
                             f"import; if you trust it, add --backbone_name {self.backbone}")
        if given is not None and given != self.backbone:
            check_backbone_name(given)
            if not {given, self.backbone} <= set(BACKBONES):
                raise InputError(f"the checkpoint {self.path} has the backbone {self.backbone}, but {given} was given; "
                                 f"leave --backbone_name out or give the right file")

    def build(self):
        """The network with its weights: FullyDenseNetwork or SparseMask. Raises InputError if they do not fit."""
        if self.kind == "search":
            network = FullyDenseNetwork(self.backbone, self.depth, self.num_classes, self.strengths)
        else:
            network = SparseMask(self.connectivity, self.backbone, self.depth, self.num_classes)
        load_weights(network, self.state, self.path)
        return network


def load_weights(network, state, path):
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


def check_tensor(name, value, own, path):
    """Raises InputError unless `value`, a tensor from a file, can take the place of the network's tensor `own`."""
    if value.layout != torch.strided or value.is_nested or value.is_meta or value.is_quantized:
        problem = "is sparse, quantized or without values"
    elif own.is_floating_point() and not value.is_floating_point():
        problem = f"holds {str(value.dtype).removeprefix('torch.')}, not floating-point numbers"
    elif value.is_floating_point() and not torch.isfinite(value.float()).all():
        problem = "holds NaN or infinite values: the training that wrote it had diverged"
    elif name.endswith("running_var") and (value < 0).any():
        problem = "holds a negative variance"
    else:
        return
    raise InputError(f"{path} cannot be used: its {name} {problem}; give a whole file of this network")


def read_checkpoint(path):
    """Reads a checkpoint of this program or of the released code (search or trained), recognised by content."""
    content = load_file(path, "checkpoint")
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    state = state if isinstance(state, dict) else {}
    state = {str(name).removeprefix("module."): value for name, value in state.items()
             if isinstance(value, torch.Tensor)}
    connections = [(match, value) for match, value in ((CONNECTION.fullmatch(k), v) for k, v in state.items()) if match]
    head = state.get("fc_conv.weight")
    if not connections or head is None or head.ndim != 4:
        hint = "it looks like encoder weights" if "conv1.weight" in state else "it holds no network of this program"
        raise InputError(f"{path} is no checkpoint of a search or a training: {hint}; "
                         f"give a checkpoint_ITER.pth.tar that train_sparse_mask.py wrote")
    if not (head.shape[0] <= VOID and connections[0][1].ndim == 4 and connections[0][1].shape[0] == head.shape[1]):
        raise InputError(f"{path} is no checkpoint of this program: its head has {head.shape[0]} classes and "
                         f"{head.shape[1]} channels, which do not fit its decoder; give a whole file")
    model = content.get("model") if isinstance(content.get("model"), dict) else {}
    searching = all(match[4] for match, _ in connections)  # a BN follows each convolution, so the convolution is `.0`
    return Checkpoint(
        path=str(path), kind="search" if searching else "train", state=state,
        backbone=str(model.get("backbone") or mobilenet_layout(state)),
        depth=head.shape[1], num_classes=head.shape[0],
        strengths=strengths_of(state, path) if searching else None,
        connectivity=None if searching else connectivity_of(connections),
        class_names=class_names_of(content, head.shape[0]), content=content)


def mobilenet_layout(state):
    """The name of the MobileNetV2 whose layout a released state dict has."""
    first = "backbone.bottlenecks.Bottlenecks_0.LinearBottleneck0_0.conv1.weight"
    return "mobilenet_v2" if first in state else "mobilenet_v2_torchvision"


def strengths_of(state, path):
    """The parameterization whose parameters a search's state dict has."""
    for leaf, name in (("._weight_", "clamp"), ("._logit_", "sigmoid")):
        if any(key.endswith(leaf) for key in state):
            return name
    raise InputError(f"the search checkpoint {path} holds no strengths; give one that train_sparse_mask.py wrote")


def connectivity_of(connections):
    """The connectivity that the names of a trained state dict spell: a kept connection has a weight.

    connections: (match of CONNECTION, tensor) pairs. The finest stage is always kept, so it gives the size.
    """
    places = [(int(match[1]), int(match[3]), int(match[2] == "up")) for match, _ in connections]
    num_stages = max(stage for stage, _, _ in places) + 1
    if num_stages > MAX_STAGES:
        raise InputError(f"the checkpoint names a stage {num_stages - 1}; it is no checkpoint of this program")
    connectivity = np.zeros((num_stages, num_stages, 2), dtype=bool)
    for stage, source, side in places:
        if source > stage:
            raise InputError(f"the checkpoint names a connection of stage {stage} to source {source}, which is finer "
                             f"than the stage; it is no checkpoint of this program")
        connectivity[stage, source, side] = True
    return connectivity


def class_names_of(content, num_classes):
    """The class names in a checkpoint, if it holds as many as there are classes."""
    names = content.get("class_names")
    return [str(name) for name in names] if isinstance(names, list) and len(names) == num_classes else None
