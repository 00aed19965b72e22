"""Reading .safetensors files, without a further dependency: the length of a JSON header, the header, and raw values."""
import json
import math
import os
import re
from pathlib import Path

import torch

from utils.errors import InputError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
          "BOOL": torch.bool}
MAX_HEADER = 100_000_000  # bytes; the limit of the format's own reader


def read_safetensors(path: Path, what: str) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file by name, numbers in the names in the order of their values.

    The file itself lists its tensors alphabetically: the order of the layers is not in it. `what` names the file in
    the InputError, which is raised for a file that is damaged or has values of a type that is not in DTYPES.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER, os.path.getsize(path)):
                raise ValueError
            header = json.loads(file.read(length))
            data = bytearray(file.read())
        header.pop("__metadata__", None)
        return {name: tensor_at(data, **header[name]) for name in sorted(header, key=natural_order)}
    except KeyError as error:
        reason = f"it has values of the type {str(error)[:40]}"
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, TypeError, AttributeError, RuntimeError, RecursionError):
        reason = "it is cut short, damaged, or no .safetensors file"
    raise InputError(f"the {what} {path} cannot be read: {reason}; give a whole file of floating-point or integer "
                     f"tensors")


def tensor_at(data: bytearray, dtype: str, shape: list, data_offsets: list) -> torch.Tensor:
    """One tensor of the header. It shares the memory of `data`, so a file cannot claim more memory than it has bytes.

    Raises KeyError for an unknown dtype, ValueError, TypeError or RuntimeError if the header contradicts the data.
    """
    kind, (start, end) = DTYPES[dtype], data_offsets
    size = math.prod(shape)
    if not 0 <= start <= end <= len(data) or end - start != size * kind.itemsize or any(n < 0 for n in shape):
        raise ValueError
    if size == 0:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(data, dtype=kind, count=size, offset=start).reshape(shape)


def natural_order(name: str) -> list:
    """A sort key that puts layer.2 before layer.10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d{1,9})", name)]
