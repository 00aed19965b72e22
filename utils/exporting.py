"""A trained network as a file for other runtimes: ONNX, or torch.export's own. Each is checked before it is written."""
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models.connectivity import describe
from models.inference import folded
from utils.errors import InputError, first_line
from utils.files import write_atomically

OUTPUTS = ("logits", "resized", "classes")
EXAMPLE = (2, 97, 161)  # batch, height, width that the network is traced with
CHECKS = ((2, 97, 161), (1, 130, 75), (3, 64, 201))  # other sizes, not square, that it is compared at
ONNX_FROM = (2, 7)  # PyTorch 2.6 cannot translate a resize to an open size
TOLERANCE = 1e-4  # of the largest logit
SAME_CLASSES = 0.999  # share of pixels: where two classes tie, rounding decides


class Deployed(nn.Module):
    """image (N, 3, H, W), normalized -> logits at the finest tap's size or the image's, or classes int64 (N, H, W)."""

    def __init__(self, network: nn.Module, output: str):
        super().__init__()
        self.network, self.output = folded(network), output
        self.smallest = smallest_size(self.network)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.network(image)
        if self.output == "logits":
            return logits
        logits = F.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=True)
        return logits if self.output == "resized" else logits.argmax(1)


@torch.no_grad()
def smallest_size(network: nn.Module) -> int:
    """Pixels a side from which the deepest tap has two pixels: one alone is a special case, which a file lacks."""
    stride = network.backbone.strides[0]
    deepest = network.backbone(torch.zeros(1, 3, stride + 1, stride + 1))[0]
    return stride + 1 if min(deepest.shape[2:]) > 1 else 2 * stride


def metadata(network: nn.Module, class_names: Sequence[str], output: str) -> dict[str, str]:
    """What a user of the file has to know, as strings: classes, normalization, connectivity, input and output."""
    mean, std = network.normalization
    return {"class_names": json.dumps(class_names), "mean": json.dumps(mean), "std": json.dumps(std),
            "input": "image, float32 (N, 3, H, W): RGB / 255, minus mean, over std; at least "
                     f"{smallest_size(network)} pixels a side",
            "output": {"logits": f"logits (N, classes, h, w) at 1/{network.backbone.strides[-1]} of the image's size; "
                                 f"resize bilinearly with aligned corners",
                       "resized": "logits (N, classes, H, W)", "classes": "class indices, int64 (N, H, W)"}[output],
            "connectivity": describe(network.connectivity)}


def trace(module: Deployed) -> torch.export.ExportedProgram:
    """The module as an ExportedProgram for any batch size and any image size from module.smallest pixels.

    Raises InputError for an encoder that PyTorch cannot export for open sizes.
    """
    batch = torch.export.Dim("batch", min=1)
    height, width = (torch.export.Dim(name, min=module.smallest, max=2 ** 14) for name in ("height", "width"))
    n, h, w = EXAMPLE
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(module, (torch.zeros(n, 3, h, w),), strict=False,
                                       dynamic_shapes={"image": {0: batch, 2: height, 3: width}})
    except torch._dynamo.exc.UserError as error:  # its operations depend on the size of the image
        name = module.network.parts["backbone"]
        raise InputError(f"PyTorch {torch.__version__} cannot export the encoder {name} for images of any size "
                         f"({first_line(error)}); take another encoder", about="out") from None


class quiet(warnings.catch_warnings):
    """Keeps what the exporters log about their internals off the screen; their errors come through."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore")
        self.loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
        self.levels = [logger.level for logger in self.loggers]
        for logger in self.loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *exception):
        for logger, level in zip(self.loggers, self.levels, strict=True):
            logger.setLevel(level)
        return super().__exit__(*exception)


def require_equal(module: nn.Module, call: Callable, seed: int = 0) -> str:
    """Compares call(image) with the module at the sizes of CHECKS. Returns a line on how closely they agree.

    Raises RuntimeError if they do not: that is an error of ours or of the exporter, and nothing is written then.
    """
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for n, h, w in CHECKS:
        image = torch.randn(n, 3, h, w, generator=generator)
        with torch.no_grad():
            expected = module(image)
        got = torch.as_tensor(np.asarray(call(image)))
        if got.shape != expected.shape:
            raise RuntimeError(f"at {n}x3x{h}x{w} the exported network gives {tuple(got.shape)}, "
                               f"PyTorch {tuple(expected.shape)}")
        if expected.is_floating_point():
            difference = ((got - expected).abs().max() / expected.abs().max()).item()
        else:
            difference = (got != expected).double().mean().item()
        worst = max(worst, difference)
        limit = TOLERANCE if expected.is_floating_point() else 1 - SAME_CLASSES
        if not difference <= limit:
            raise RuntimeError(f"at {n}x3x{h}x{w} the exported network differs from PyTorch by {difference:.1e}")
    sizes = ", ".join(f"{n}x3x{h}x{w}" for n, h, w in CHECKS)
    what = "largest difference, relative to the largest logit" if expected.is_floating_point() else \
        "share of pixels with another class"
    return f"equal to PyTorch at {sizes}: {what}: {worst:.1e}"


def export_torch(module: nn.Module, path: Path, notes: Mapping[str, str]) -> str:
    """Writes torch.export's file (.pt2), the metadata in it as extra files. Returns the line of the comparison."""
    program = trace(module)
    checked = require_equal(module, program.module())
    with write_atomically(path) as temporary, quiet():
        torch.export.save(program, temporary, extra_files={f"{name}.txt": text for name, text in notes.items()})
    return checked


def export_onnx(module: nn.Module, path: Path, notes: Mapping[str, str]) -> str:
    """Writes an ONNX file with the metadata in metadata_props. Returns the line of the comparison with onnxruntime.

    Raises InputError where onnx, onnxscript or onnxruntime is not installed.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  what torch.onnx translates with
    except ImportError as error:
        raise InputError(f"ONNX needs packages that are not installed ({error}); pip install onnx onnxscript "
                         f"onnxruntime, or give the file a name that ends in .pt2", about="out") from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < ONNX_FROM:
        raise InputError(f"ONNX needs PyTorch {'.'.join(map(str, ONNX_FROM))} or newer, for its sizes stay open, and "
                         f"this is {torch.__version__}; update it, or give the file a name that ends in .pt2",
                         about="out")
    with quiet():
        model = torch.onnx.export(trace(module), dynamo=True, input_names=["image"], output_names=[module.output],
                                  verbose=False).model_proto
    onnx.helper.set_model_props(model, notes)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    checked = require_equal(module, lambda image: session.run(None, {"image": image.numpy()})[0])
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
    return f"{checked} (onnxruntime {onnxruntime.__version__})"
