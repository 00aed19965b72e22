"""Networks in ONNX files that export.py wrote, as evaluation, prediction and measuring take the others."""
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models import connectivity
from utils.checkpoint import Checkpoint, read_checkpoint
from utils.errors import InputError, first_line
from utils.exporting import OUTPUTS, SOFTWARE
from VOC12.labels import VOID


class ExportedNetwork(nn.Module):
    """A network in an ONNX file: image (N, 3, H, W), normalized as `normalization` says, also where the file takes RGB
    in 0..255 -> logits float32.

    The logits have the size that the file gives them; classes are returned as logits that are 1 or 0. It runs in
    onnxruntime on the CPU, with as many threads as PyTorch has. size: (H, W) of the only image size, or None.

    Raises InputError where onnxruntime is not installed, or for a file that export.py did not write.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(f"an ONNX file needs onnxruntime, which is not installed ({error}); pip install "
                             f"onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors: what it does to the graph is its own affair
        if not Path(path).is_file():
            raise InputError(f"the file {path} does not exist; give an ONNX file that export.py wrote")
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class
            raise InputError(f"{path} cannot be read as ONNX ({first_line(error)}); give a file that export.py wrote"
                             ) from None
        self.path, self.notes = str(path), read_notes(self.session.get_modelmeta().custom_metadata_map, path)
        self.version = onnxruntime.__version__
        self.num_classes, self.output = len(self.notes["class_names"]), self.notes["output_kind"]
        self.normalization = tuple(self.notes["mean"]), tuple(self.notes["std"])
        self.mean, self.std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in self.normalization)
        self.connectivity, self.parts = self.notes["connectivity"], {}
        self.batch_size, _, *size = self.session.get_inputs()[0].shape  # a number, or a name of what is open
        self.size = tuple(size) if all(isinstance(length, int) for length in size) else None

    def __deepcopy__(self, memo: dict) -> "ExportedNetwork":
        return self  # it has no state that anybody changes, and a session cannot be copied

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Raises InputError for an image of a size that the file does not take."""
        batch, _, *size = image.shape
        if self.size is not None and (tuple(size) != self.size or batch != self.batch_size):
            raise InputError(f"the file {self.path} takes {self.batch_size} image of {self.size[1]}x{self.size[0]} "
                             f"pixels at a time, and got {batch} of {size[1]}x{size[0]}; give such images, or export "
                             f"the network for any size")
        if min(size) < self.notes["smallest"]:
            raise InputError(f"the file {self.path} takes images from {self.notes['smallest']} pixels a side, and got "
                             f"one of {size[1]}x{size[0]}; pad it", about="crop_size")
        result = torch.from_numpy(self.session.run(None, self.as_input(image))[0])
        if self.output == "classes":
            return F.one_hot(result, self.num_classes).permute(0, 3, 1, 2).float()
        return result

    def as_input(self, image: torch.Tensor) -> dict[str, np.ndarray]:
        """What the file's session takes for a normalized image (N, 3, H, W)."""
        image = image.detach().to("cpu", torch.float32)
        if not self.notes["input_is_normalized"]:  # a padding of 0 becomes the mean colour so, as in PyTorch
            image = image * self.std + self.mean
        return {"image": image.contiguous().numpy()}


class ExportedFile(Checkpoint):
    """An ExportedNetwork where a Checkpoint is expected."""

    def __init__(self, path: str):
        self.network = ExportedNetwork(path)
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


def read_network(path: str) -> Checkpoint:
    """A checkpoint or a run folder, as read_checkpoint reads it, or an ONNX file of export.py, by its suffix.

    torch.export's files are refused: PyTorch runs code that they contain when it loads them.
    """
    return ExportedFile(path) if Path(path).suffix == ".onnx" else read_checkpoint(path)


def read_notes(texts: Mapping[str, str], path: str | Path) -> dict[str, Any]:
    """The metadata of a file, checked. Raises InputError if they are not those that export.py writes."""
    try:
        if texts["software"] != SOFTWARE:
            raise ValueError(f"it was written by {texts['software'][:50]}")
        notes = {name: json.loads(texts[name]) for name in ("class_names", "mean", "std", "input_is_normalized",
                                                            "smallest", "settings")}
        notes |= {"checkpoint": texts["checkpoint"], "output_kind": texts["output_kind"],
                  "connectivity": connectivity.parse(texts["connectivity"])}
        names, numbers = notes["class_names"], (notes["mean"], notes["std"])
        checks = {"class_names": isinstance(names, list) and all(isinstance(name, str) for name in names)
                  and 1 <= len(names) <= VOID,
                  "mean and std": all(isinstance(three, list) and len(three) == 3 and
                                      all(isinstance(n, int | float) and math.isfinite(n) for n in three)
                                      for three in numbers) and min(notes["std"]) > 0,
                  "input_is_normalized": isinstance(notes["input_is_normalized"], bool),
                  "smallest": isinstance(notes["smallest"], int), "settings": isinstance(notes["settings"], dict),
                  "output_kind": notes["output_kind"] in OUTPUTS}
        wrong = [name for name, right in checks.items() if not right]
        if wrong:
            raise ValueError(f"its {wrong[0]} is not what this program writes")
    except (KeyError, ValueError) as error:  # InputError among them
        what = f"its metadata have no {error}" if isinstance(error, KeyError) else first_line(error)
        raise InputError(f"{path} is no file of export.py, or of an older version ({what}); export the network again"
                         ) from None
    return notes
