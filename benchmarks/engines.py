"""The time of a prediction in each engine: of our network, and of those that users would pick instead."""
import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.plain import plain_forward
from models import SparseMask, connectivity
from models.inference import for_inference
from models.losses import resize_logits
from utils.exporting import Deployed, quiet
from utils.measuring import count_multiply_adds
from utils.progress import progress_bar
from utils.quantizing import Quiet, prepare, sensitive_nodes, write_int8

CLASSES, SIZE = 21, 512
COLUMNS = "PyTorch", "compiled", "ONNX Runtime", "ONNX Runtime, int8", "OpenVINO", "OpenVINO, int8"
PART = "SparseMask, the first four convolutions in float32"  # what export.py chose on VOC, see docs/deploy.md
OURS, PLAIN, ENCODER = "SparseMask, published connectivity", "SparseMask, plain reading", "floor: its encoder alone"
CALIBRATION = 4  # images of noise: the ranges change no time


def torchvision_networks():
    """LR-ASPP and DeepLabV3 on MobileNetV3-Large."""
    from torchvision.models import segmentation
    arguments = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
    return {"torchvision LR-ASPP, MobileNetV3": segmentation.lraspp_mobilenet_v3_large(**arguments),
            "torchvision DeepLabV3, MobileNetV3": segmentation.deeplabv3_mobilenet_v3_large(**arguments)}


def smp_networks():
    """segmentation_models.pytorch's U-Net and DeepLabV3+ on MobileNetV2."""
    import segmentation_models_pytorch as smp
    arguments = {"encoder_name": "mobilenet_v2", "encoder_weights": None, "classes": CLASSES}
    return {"segmentation_models.pytorch U-Net, MobileNetV2": smp.Unet(**arguments),
            "segmentation_models.pytorch DeepLabV3+, MobileNetV2": smp.DeepLabV3Plus(**arguments)}


class Classes(nn.Module):
    """image (N, 3, H, W) -> classes (N, H, W), of a network whose logits have the image's size."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        logits = self.network(image)
        return (logits["out"] if isinstance(logits, dict) else logits).argmax(1)  # torchvision's are in a dict


class Deepest(nn.Module):
    """The deepest tap of our encoder, for which it computes all others."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, image):
        return self.encoder(image)[0]


def rivals():
    """{name: module image -> classes}; without what is not installed, which is said."""
    found = {}
    for find in (torchvision_networks, smp_networks):
        try:
            found |= {name: Classes(module).eval() for name, module in find().items()}
        except Exception as error:  # a torchvision that does not match torch fails with more than ImportError
            print(f"not measured: {find.__doc__.rstrip('.')} ({type(error).__name__}: {str(error).splitlines()[0]})")
    return found


def engines_table(device, median_times):
    """Rows (name, parameters, multiply-adds, {column: seconds}) at 512x512, batch 1, image to classes.

    The engines outside PyTorch run on the CPU alone.
    """
    torch.manual_seed(0)
    network = SparseMask(connectivity.load("published")).eval()
    ours = Deployed(network, "classes").eval()
    modules = {OURS: ours, ENCODER: Deepest(ours.network.backbone).eval(), **rivals()}
    costs = {name: costs_of({OURS: network, ENCODER: network.backbone}.get(name, module))
             for name, module in modules.items()}
    image = torch.randn(1, 3, SIZE, SIZE)
    with tempfile.TemporaryDirectory() as folder:
        work = {} if device.type == "cuda" else outside_pytorch(modules, image, Path(folder))
        image = image.to(device, memory_format=torch.channels_last)
        network, label = network.to(device), image[:, 0]
        modules = {name: module.to(device, memory_format=torch.channels_last) for name, module in modules.items()}
        work[PLAIN, "PyTorch"] = lambda: resize_logits(plain_forward(network, image.contiguous()), label).argmax(1)
        for name, module in modules.items():
            work[name, "PyTorch"] = functools.partial(module, image)
            work[name, "compiled"] = functools.partial(for_inference(module, compiled=True), image)
        with torch.no_grad():
            times = median_times(work, 15, 2)
    for name in (PLAIN, *modules, PART):
        yield (name, *costs.get(name, costs[OURS]),
               {column: times[name, column] for column in COLUMNS if (name, column) in times})


def costs_of(module):
    """(parameters, multiply-adds) of an image."""
    return sum(p.numel() for p in module.parameters()), count_multiply_adds(module, (SIZE, SIZE))


def outside_pytorch(modules, image, folder):
    """{(name, column): function}: the modules exported to ONNX, each in the same way, where the packages are installed.

    int8: quantized as export.py does it, for OpenVINO with the channels of the last resize where they were.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  what torch.onnx translates with
    except ImportError as error:
        print(f"not measured: ONNX Runtime and OpenVINO ({error})")
        return {}
    try:
        import openvino
    except ImportError as error:
        openvino = None
        print(f"not measured: OpenVINO ({error})")
    noise = [{"image": np.random.default_rng(i).standard_normal(image.shape, np.float32)} for i in range(CALIBRATION)]
    work = {}

    def int8(exact, channels_last=True, more=False):
        prepared, path = (folder / f"{len(work)}_{kind}.onnx" for kind in ("prepared", "int8"))
        exclude = prepare(exact, prepared, channels_last)
        if more:
            exclude += sensitive_nodes(onnx.load(prepared))["the first four convolutions"]
        write_int8(prepared, path, noise, exclude)
        return path

    for i, (name, module) in enumerate(progress_bar(modules.items(), desc="export", leave=False)):
        exact = folder / f"{i}.onnx"
        with quiet(), Quiet(), torch.no_grad():
            program = torch.export.export(module, (image,), strict=False)
            torch.onnx.export(program, dynamo=True, input_names=["image"], verbose=False).save(exact)
            work[name, "ONNX Runtime"] = in_onnxruntime(onnxruntime, exact, image.numpy())
            work[name, "ONNX Runtime, int8"] = in_onnxruntime(onnxruntime, int8(exact), image.numpy())
            if name == OURS:
                work[PART, "ONNX Runtime, int8"] = in_onnxruntime(onnxruntime, int8(exact, more=True), image.numpy())
            if openvino is not None:
                work[name, "OpenVINO"] = in_openvino(openvino, exact, image.numpy())
                work[name, "OpenVINO, int8"] = in_openvino(openvino, int8(exact, channels_last=False), image.numpy())
    return work


def in_onnxruntime(onnxruntime, path, image):
    """A function that runs a file once, with as many threads as PyTorch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"image": image})


def in_openvino(openvino, path, image):
    """As in_onnxruntime; in float32, where OpenVINO would choose bfloat16 by itself."""
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    return lambda: request.infer([image])
