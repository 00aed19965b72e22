"""What users would pick instead, where it is installed: parameters, multiply-adds and time of a prediction."""
import copy

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain import plain_forward
from models import SparseMask, connectivity
from models.inference import for_inference

CLASSES, SIZE = 21, 512


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


class Full(torch.nn.Module):
    """Logits of our network at the image's size, as the rivals give them."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return torch.nn.functional.interpolate(self.network(image), size=image.shape[2:], mode="bilinear",
                                               align_corners=True)


def rivals_table(device, median_times):
    """Rows (name, parameters, multiply-adds, seconds) at 512x512, batch 1, full-size logits, channels last."""
    torch.manual_seed(0)
    network = SparseMask(connectivity.load("published"))
    ours = Full(network).to(device, memory_format=torch.channels_last).eval()
    networks = {"SparseMask, published connectivity": ours}
    for find in (torchvision_networks, smp_networks):
        try:
            networks |= {name: n.to(device, memory_format=torch.channels_last).eval() for name, n in find().items()}
        except Exception as error:  # a torchvision that does not match torch fails with more than ImportError
            print(f"not measured: {find.__doc__.rstrip('.')} ({type(error).__name__}: {str(error).splitlines()[0]})")
    image = torch.randn(1, 3, SIZE, SIZE, device=device).to(memory_format=torch.channels_last)
    calls = {name: n for name, n in networks.items()}
    calls["SparseMask, plain reading"] = lambda x: plain_forward(network, x)
    calls["SparseMask, for_inference"] = for_inference(ours)
    for name, n in networks.items():
        calls[f"{name}, compiled"] = for_inference(copy.deepcopy(n), compiled=True)
    work = {name: torch.no_grad()(lambda call=call: call(image)) for name, call in calls.items()}
    times = median_times(work)
    for name in calls:
        base = networks.get(name.removesuffix(", compiled"), ours)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            base(image)
        yield name, sum(p.numel() for p in base.parameters()), counter.get_total_flops() // 2, times[name]
