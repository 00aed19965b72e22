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
from utils.colour_map import colour_map
from utils.errors import InputError, first_line
from utils.files import write_atomically

OUTPUTS = ("logits", "resized", "classes")
EXAMPLE = (2, 97, 161)  # batch, height, width that the network is traced with
CHECKS = ((2, 97, 161), (1, 130, 75), (3, 64, 201))  # other sizes, not square, that it is compared at
ONNX_FROM = (2, 7)  # PyTorch 2.6 cannot translate a resize to an open size
OPSETS = 18, 23  # what PyTorch writes without converting; onnxruntime 1.18 reads up to 21
TOLERANCE, TOLERANCE_FLOAT16 = 1e-4, 2e-2  # of the largest logit
SAME_CLASSES, SAME_CLASSES_FLOAT16 = 0.999, 0.98  # share of pixels: where two classes tie, rounding decides
STORED = "crop_size", "im_suffix", "gt_suffix", "label_map"  # settings of the training that an evaluation reads
LARGEST = 2 ** 14  # pixels a side of an image of open size
SOFTWARE = "SparseMask"  # in the metadata of a file: by this it is recognized


class Deployed(nn.Module):
    """image float32 (N, 3, H, W) -> logits at the finest tap's size or the image's, or classes int64 (N, H, W).

    output: one of OUTPUTS. normalizes: the image is RGB in 0..255, else it is normalized. size: (H, W) of the only
    image, for a batch of one, or None for any. float16: the type of weights and features; input and logits are float32.
    """

    def __init__(self, network: nn.Module, output: str, normalizes: bool = False, size: Sequence[int] | None = None,
                 float16: bool = False):
        super().__init__()
        self.network, self.output, self.normalizes, self.float16 = folded(network), output, normalizes, float16
        self.smallest = smallest_size(self.network)
        if size is not None and min(size) < self.smallest:
            raise InputError(f"the size is {size[0]}x{size[1]}; give {self.smallest} pixels or more", about="size")
        self.size = None if size is None else tuple(size)
        for name, values in zip(("mean", "std"), network.normalization, strict=True):
            self.register_buffer(name, 255 * torch.tensor(values).view(1, 3, 1, 1))
        if float16:
            self.network.half()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.normalizes:
            image = (image - self.mean) / self.std
        logits = self.network(image.half()).float() if self.float16 else self.network(image)
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


def metadata(module: Deployed, class_names: Sequence[str], settings: Mapping) -> dict[str, str]:
    """What a user of the file has to know, as strings: classes, palette, normalization, connectivity, input and output.

    settings: of the training, as far as they say how its images and labels are read.
    """
    network, output = module.network, module.output
    mean, std = network.normalization
    kind = "RGB in 0..255" if module.normalizes else "RGB / 255, minus mean, over std"
    sizes = f"at least {module.smallest} pixels a side" if module.size is None else \
        f"of {module.size[0]}x{module.size[1]}"
    return {"software": SOFTWARE, "checkpoint": "", "class_names": json.dumps(class_names),
            "palette": json.dumps(colour_map()[:len(class_names)].tolist()), "mean": json.dumps(mean),
            "std": json.dumps(std), "input_is_normalized": json.dumps(not module.normalizes),
            "smallest": json.dumps(module.smallest), "size": json.dumps(module.size),
            "output_kind": output, "settings": json.dumps(settings),
            "input": f"image, float32 (N, 3, H, W): {kind}; {sizes}",
            "output": {"logits": f"logits (N, classes, h, w) at 1/{network.backbone.strides[-1]} of the image's size; "
                                 f"resize bilinearly with aligned corners",
                       "resized": "logits (N, classes, H, W)", "classes": "class indices, int64 (N, H, W)"}[output],
            "connectivity": describe(network.connectivity)}


def trace(module: Deployed) -> torch.export.ExportedProgram:
    """The module as an ExportedProgram for any batch size and any image size from module.smallest pixels, or for
    module.size alone.

    Raises InputError for an encoder that PyTorch cannot export for open sizes.
    """
    if module.size is not None:
        with torch.no_grad(), quiet():
            return torch.export.export(module, (torch.zeros(1, 3, *module.size),), strict=False)
    batch = torch.export.Dim("batch", min=1)
    height, width = (torch.export.Dim(name, min=module.smallest, max=LARGEST) for name in ("height", "width"))
    n, h, w = EXAMPLE
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(module, (torch.zeros(n, 3, h, w),), strict=False,
                                       dynamic_shapes={"image": {0: batch, 2: height, 3: width}})
    except torch._dynamo.exc.UserError as error:  # its operations depend on the size of the image
        name = module.network.parts["backbone"]
        raise InputError(f"PyTorch {torch.__version__} cannot export the encoder {name} for images of any size "
                         f"({first_line(error)}); give the one size that you need, or take another encoder",
                         about=("size", "out")) from None


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


def require_equal(module: Deployed, call: Callable, reference: nn.Module | None = None, seed: int = 0) -> str:
    """Compares call(image) with the module at the sizes of CHECKS, or at its own. Returns a line on how closely they
    agree.

    reference: the module in float32, to compare a module in float16 with. Raises RuntimeError if they differ: that is
    an error of ours or of the exporter, and nothing is written then.
    """
    generator = torch.Generator().manual_seed(seed)
    checks = CHECKS if module.size is None else ((1, *module.size),)
    tolerance, same = (TOLERANCE_FLOAT16, SAME_CLASSES_FLOAT16) if module.float16 else (TOLERANCE, SAME_CLASSES)
    worst = 0.0
    for n, h, w in checks:
        image = torch.randn(n, 3, h, w, generator=generator)
        if module.normalizes:
            image = (64 * image + 128).clamp(0, 255)
        with torch.no_grad():
            expected = (reference or module)(image)
        got = torch.as_tensor(np.asarray(call(image)))
        if got.shape != expected.shape:
            raise RuntimeError(f"at {n}x3x{h}x{w} the exported network gives {tuple(got.shape)}, "
                               f"PyTorch {tuple(expected.shape)}")
        if expected.is_floating_point():
            difference = ((got - expected).abs().max() / expected.abs().max()).item()
        else:
            difference = (got != expected).double().mean().item()
        worst = max(worst, difference)
        limit = tolerance if expected.is_floating_point() else 1 - same
        if not difference <= limit:
            raise RuntimeError(f"at {n}x3x{h}x{w} the exported network differs from PyTorch by {difference:.1e}")
    sizes = ", ".join(f"{n}x3x{h}x{w}" for n, h, w in checks)
    what = "largest difference, relative to the largest logit" if expected.is_floating_point() else \
        "share of pixels with another class"
    return f"{'near' if module.float16 else 'equal to'} PyTorch at {sizes}: {what}: {worst:.1e}"


def export_torch(module: Deployed, path: Path, notes: Mapping[str, str], reference: nn.Module | None = None) -> str:
    """Writes torch.export's file (.pt2), the metadata in it as extra files. Returns the line of the comparison."""
    program = trace(module)
    checked = require_equal(module, program.module(), reference)
    with write_atomically(path) as temporary, quiet():
        torch.export.save(program, temporary, extra_files={f"{name}.txt": text for name, text in notes.items()})
    return checked


def export_onnx(module: Deployed, path: Path, notes: Mapping[str, str], reference: nn.Module | None = None,
                opset: int | None = None) -> str:
    """Writes an ONNX file with the metadata in metadata_props. Returns the line of the comparison with onnxruntime.

    opset: the version of ONNX's operators, by default what this PyTorch writes. Raises InputError where onnx,
    onnxscript or onnxruntime is not installed, or for an opset that they cannot write or run.
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
    if opset is not None and not OPSETS[0] <= opset <= OPSETS[1]:
        raise InputError(f"the opset is {opset}; give {OPSETS[0]} to {OPSETS[1]}", about="opset")
    with quiet():
        model = torch.onnx.export(trace(module), dynamo=True, input_names=["image"], output_names=[module.output],
                                  opset_version=opset, verbose=False).model_proto
    onnx.helper.set_model_props(model, notes)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        if opset is None:
            raise
        raise InputError(f"onnxruntime {onnxruntime.__version__} cannot run opset {opset} ({first_line(error)}); give "
                         f"a lower one", about="opset") from None
    checked = require_equal(module, lambda image: session.run(None, {"image": image.numpy()})[0], reference)
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
    return f"{checked} (onnxruntime {onnxruntime.__version__}, opset {model.opset_import[0].version})"
