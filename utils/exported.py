"""Networks in files that export.py wrote, as evaluation, prediction and measuring take the others."""
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models import connectivity
from models.network import check_normalization
from utils.checkpoint import EXPORTED, Checkpoint, read_checkpoint
from utils.errors import InputError, first_line
from utils.exporting import LARGEST, OUTPUTS, SOFTWARE, quiet
from VOC12.labels import VOID

IN_JSON = "class_names", "mean", "std", "input_is_normalized", "smallest", "size", "settings"
NOTES = *IN_JSON, "software", "checkpoint", "output_kind", "connectivity"


class ExportedNetwork(nn.Module):
    """A network in a file: image (N, 3, H, W), normalized as `normalization` says, also where the file takes RGB in
    0..255 -> logits float32.

    The logits have the size that the file gives them; classes are returned as logits that are 1 or 0. It runs on the
    CPU: ONNX in onnxruntime, with as many threads as PyTorch has, and a .pt2 file in PyTorch. size: (H, W) of the only
    image size, or None. trusted: whether to read a .pt2 file, since loading one can run code that is in it.

    Raises InputError where onnxruntime is not installed, or for a file that export.py did not write.
    """

    def __init__(self, path: str | Path, trusted: bool = False):
        super().__init__()
        if not Path(path).is_file():
            raise InputError(f"the file {path} does not exist; give a file that export.py wrote")
        if Path(path).suffix == ".pt2" and not trusted:
            raise InputError(f"{path} is a file of torch.export, and loading one can run code that is in it; give "
                             f"the checkpoint or an ONNX file, or, if you trust it, say so", about="trusted")
        self.opened = (load_program if Path(path).suffix == ".pt2" else open_session)(path)
        self.path, self.notes, self.runtime = str(path), read_notes(self.opened.notes, path), self.opened.runtime
        self.num_classes, self.output = len(self.notes["class_names"]), self.notes["output_kind"]
        self.normalization = tuple(self.notes["mean"]), tuple(self.notes["std"])
        self.mean, self.std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in self.normalization)
        self.connectivity, self.parts = self.notes["connectivity"], {}
        self.size = self.notes["size"] and tuple(self.notes["size"])

    def __deepcopy__(self, memo: dict) -> "ExportedNetwork":
        return self  # it has no state that anybody changes, and a session cannot be copied

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Raises InputError for an image of a size that the file does not take."""
        batch, _, *size = image.shape
        if self.size is not None and (batch, *size) != (1, *self.size):
            raise InputError(f"the file {self.path} takes 1 image of {self.size[1]}x{self.size[0]} pixels at a time, "
                             f"and got {batch} of {size[1]}x{size[0]}; give such images, or export the network for any "
                             f"size")
        if max(size) > LARGEST:
            raise InputError(f"the file {self.path} takes images of up to {LARGEST} pixels a side, and got one of "
                             f"{size[1]}x{size[0]}; make it smaller")
        if min(size) < self.notes["smallest"]:
            raise InputError(f"the file {self.path} takes images from {self.notes['smallest']} pixels a side, and got "
                             f"one of {size[1]}x{size[0]}; pad it", about="crop_size")
        result = self.opened.run(self.as_input(image))
        if self.output == "classes":
            return F.one_hot(result, self.num_classes).permute(0, 3, 1, 2).float()
        return result.contiguous(memory_format=torch.channels_last)  # PyTorch's argmax takes a fifth of the time so

    def as_input(self, image: torch.Tensor) -> torch.Tensor:
        """What the file takes for a normalized image (N, 3, H, W)."""
        image = image.detach().to("cpu", torch.float32)
        if not self.notes["input_is_normalized"]:  # a padding of 0 becomes the mean colour so, as in PyTorch
            image = image * self.std + self.mean
        return image.contiguous()


class Opened(NamedTuple):
    """A file, ready: image -> output, its metadata, what runs it, and how many parameters it has, if that is known."""
    run: Callable
    notes: Mapping[str, str]
    runtime: str
    parameters: int | None = None


def open_session(path: str | Path) -> Opened:
    """An ONNX file in onnxruntime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"an ONNX file needs onnxruntime, which is not installed ({error}); pip install onnxruntime"
                         ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # between two calls, the threads of PyTorch and the loaders need the cores
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors: what it does to the graph is its own affair
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise InputError(f"{path} cannot be read as ONNX ({first_line(error)}); give a file that export.py wrote"
                         ) from None
    return Opened(lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0]),
                  session.get_modelmeta().custom_metadata_map, f"onnxruntime {onnxruntime.__version__}")


def load_program(path: str | Path) -> Opened:
    """A .pt2 file in PyTorch. It can run code that is in the file."""
    texts = dict.fromkeys((f"{name}.txt" for name in NOTES), "")
    try:
        with quiet():
            module = torch.export.load(path, extra_files=texts).module()
    except Exception as error:  # whatever is in it
        raise InputError(f"{path} cannot be read as a file of torch.export ({first_line(error)}); give one that "
                         f"export.py wrote") from None
    notes = {name: texts[f"{name}.txt"] for name in NOTES}
    return Opened(torch.no_grad()(module), notes, f"PyTorch {torch.__version__}",
                  sum(p.numel() for p in module.parameters()))


class ExportedFile(Checkpoint):
    """An ExportedNetwork where a Checkpoint is expected."""

    def __init__(self, path: str, trusted: bool = False):
        self.network = ExportedNetwork(path, trusted)
        settings = self.network.notes["settings"]
        if self.network.size is not None:
            settings = {**settings, "crop_size": list(self.network.size)}  # smaller images are padded to it
        super().__init__(path=path, kind="train", state={}, depth=None, num_classes=self.network.num_classes, parts={},
                         normalization=self.network.normalization, connectivity=self.network.connectivity,
                         class_names=self.network.notes["class_names"],
                         content={"settings": settings})

    def require_parts(self, given: Mapping[str, str | None]) -> None:
        """Raises InputError if a part was given: the file has them all."""
        for kind, name in given.items():
            if name is not None:
                raise InputError(f"{self.path} contains the whole network, and the {kind} {name} was given; leave the "
                                 f"option out", about=kind)

    def require_mask(self, mask: str | None, mask_encoder: str | None = None) -> None:
        """Raises InputError if a mask was given and is not the connectivity of the file."""
        if mask is not None and not np.array_equal(connectivity.load(mask, len(self.connectivity)), self.connectivity):
            raise InputError(f"the mask {mask} is not the connectivity of {self.path}; leave it out, since the file "
                             f"contains its own", about="connectivity")

    def build(self, num_classes: int | None = None) -> ExportedNetwork:
        """The network."""
        return self.network


def read_network(path: str, trusted: bool = False) -> Checkpoint:
    """A checkpoint or a run folder, as read_checkpoint reads it, or a file of export.py, by its suffix.

    trusted: see ExportedNetwork.
    """
    return ExportedFile(path, trusted) if Path(path).suffix in EXPORTED else read_checkpoint(path)


def read_notes(texts: Mapping[str, str], path: str | Path) -> dict[str, Any]:
    """The metadata of a file, checked. Raises InputError if they are not those that export.py writes."""
    try:
        if texts["software"] != SOFTWARE:
            raise ValueError(f"it was written by {texts['software'][:50] or 'another program'}")
        notes = {name: json.loads(texts[name]) for name in IN_JSON}
        notes |= {"checkpoint": texts["checkpoint"], "output_kind": texts["output_kind"],
                  "connectivity": connectivity.parse(texts["connectivity"])}
        check_normalization((notes["mean"], notes["std"]))
        names = notes["class_names"]
        checks = {"class_names": isinstance(names, list) and all(isinstance(name, str) for name in names)
                  and 1 <= len(names) <= VOID,
                  "input_is_normalized": isinstance(notes["input_is_normalized"], bool),
                  "smallest": isinstance(notes["smallest"], int),
                  "size": notes["size"] is None or isinstance(notes["size"], list) and len(notes["size"]) == 2
                  and all(isinstance(length, int) for length in notes["size"]),
                  "settings": isinstance(notes["settings"], dict),
                  "output_kind": notes["output_kind"] in OUTPUTS}
        wrong = [name for name, right in checks.items() if not right]
        if wrong:
            raise ValueError(f"its {wrong[0]} is not what this program writes")
    except (KeyError, ValueError) as error:  # InputError among them
        what = f"its metadata have no {error}" if isinstance(error, KeyError) else first_line(error)
        raise InputError(f"{path} is no file of export.py, or of an older version ({what}); export the network again"
                         ) from None
    return notes
