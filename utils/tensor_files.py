"""Tensors in files: written whole, read without running code, and checked before a network takes them."""
import argparse
import errno
import re
import warnings
import zipfile
from typing import Any

import torch

from utils.errors import InputError
from utils.files import require_file, write_atomically
from utils.safetensors_file import read_safetensors


def load_file(path: str, what: str) -> Any:
    """torch.load on the CPU, of tensors and plain Python types only, or the tensors of a .safetensors file.

    `what` names the file in the InputError. argparse.Namespace, which does nothing but hold values, counts as plain:
    the training scripts of torchvision and timm save their options as one.
    """
    path = require_file(path, what)
    if path.suffix.lower() == ".safetensors":
        return read_safetensors(path, what)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", ".*sparse.*invariant", UserWarning)  # check_tensor refuses them
            warnings.filterwarnings("ignore", ".*TorchScript archive", UserWarning)  # an error, below
            content = torch.load(path, map_location="cpu", weights_only=True)
        if zipfile.is_zipfile(path):  # not so in PyTorch 1.0; torch.load looks at no checksum
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():
                    raise zipfile.BadZipFile
        return content
    except Exception as error:  # broken files raise many types: UnpicklingError, EOFError, RuntimeError, KeyError, ...
        if isinstance(error, MemoryError):
            raise
        text, advice = str(error), "give a whole file that PyTorch or this program wrote"
        cut = isinstance(error, EOFError) or getattr(error, "errno", None) == errno.EINVAL  # a seek before the start
        if isinstance(error, zipfile.BadZipFile):
            reason = "its checksums do not fit, so it is damaged, or was saved without (set_crc32_options)"
        elif cut or "PytorchStreamReader" in text:
            reason = "it is cut short or damaged"
        elif re.search(r"unsupported (global|class)", text, re.IGNORECASE):
            reason = "it contains more than tensors and plain values, and loading that could run code"
            advice = "give a file with a state dict alone: torch.save(model.state_dict(), FILE)"
        elif "TorchScript" in text:
            reason = "it is a TorchScript archive"
            advice = "give its state dict: torch.save(torch.jit.load(FILE).state_dict(), OTHER)"
        elif isinstance(error, OSError):
            reason = error.strerror or text
        else:
            reason = "it is no file of PyTorch's, or damaged"
        raise InputError(f"the {what} {path} cannot be read: {reason}; {advice}") from None


def save_file(path: str, content: Any) -> None:
    """torch.save, whole or not at all."""
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer raises this of a full disk, and keeps the reason as its context
            reason = error.__context__
            raise (reason if isinstance(reason, OSError) else OSError(str(error).splitlines()[0][:200])) from None


def check_tensor(name: str, value: torch.Tensor, own: torch.Tensor, path: str) -> None:
    """Raises InputError unless `value`, a tensor from a file, can take the place of the network's tensor `own`."""
    if value.layout != torch.strided or value.is_nested or value.is_meta or value.is_quantized:
        problem = "is sparse, quantized or without values"
    elif own.is_floating_point() and not value.is_floating_point():
        problem = f"contains {str(value.dtype).removeprefix('torch.')}, not floating-point numbers"
    elif value.is_floating_point() and not torch.isfinite(value.float()).all():
        problem = "contains NaN or infinite values: the training that wrote it had diverged"
    elif name.endswith("running_var") and (value < 0).any():
        problem = "contains a negative variance"
    else:
        return
    raise InputError(f"{path} cannot be used: its {name} {problem}; give a whole file of this network")
