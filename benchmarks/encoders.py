"""What each encoder costs with the published connectivity, beside networks that users would pick on the same encoder.

    python -m benchmarks.encoders [--names resnet18 ...]

Parameters, multiply-adds and time of one image of 512x512, 21 classes, logits at the image's size, random weights. The
rivals are torchvision's FCN and DeepLabV3 and segmentation_models.pytorch's U-Net and DeepLabV3+, where they are
installed and have the encoder; BN is folded in ours alone, so ours is measured as it is, too.
"""
import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.engines import CLASSES, SIZE
from benchmarks.timing import machine, median_times, milliseconds, print_table
from models import SparseMask
from models.backbones import make_backbone
from models.inference import for_inference
from models.transfer import load_for_encoder

NAMES = ("mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "shufflenet_v2_x1_0", "efficientnet_b0", "regnet_y_400mf",
         "resnet18", "resnet50", "densenet121", "convnext_tiny", "vgg16_bn", "swin_t")
SMP = {"resnet18", "resnet50", "mobilenet_v2", "densenet121", "vgg16_bn"}  # under the same name
SMP_NAMES = {"efficientnet_b0": "timm-efficientnet-b0", "mobilenet_v3_large": "timm-mobilenetv3_large_100"}


class Full(torch.nn.Module):
    """Logits of our network at the image's size, as the rivals give them."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return torch.nn.functional.interpolate(self.network(image), size=image.shape[2:], mode="bilinear",
                                               align_corners=True)


def ours(name):
    """The published connectivity on an encoder, logits at the image's size."""
    mask, _ = load_for_encoder("published", make_backbone(name).strides)
    return Full(SparseMask(mask, name, num_classes=CLASSES))


def rivals(name):
    """{title: network} on the same encoder."""
    found = {}
    try:
        from torchvision.models import segmentation
        for title, prefix in (("torchvision FCN", "fcn"), ("torchvision DeepLabV3", "deeplabv3")):
            make = getattr(segmentation, f"{prefix}_{name}", None)
            if make:
                net = make(weights=None, weights_backbone=None, num_classes=CLASSES)
                found[title] = Out(net)
    except Exception as error:  # one that does not match torch fails with more than ImportError
        print(f"not measured: torchvision's networks ({type(error).__name__})")
    try:
        import segmentation_models_pytorch as smp
        encoder = name if name in SMP else SMP_NAMES.get(name)
        if encoder:
            arguments = {"encoder_name": encoder, "encoder_weights": None, "classes": CLASSES}
            found["smp U-Net"] = smp.Unet(**arguments)
            if "densenet" not in name and "vgg" not in name:  # their encoders cannot be dilated
                found["smp DeepLabV3+"] = smp.DeepLabV3Plus(**arguments)
    except ImportError as error:
        print(f"not measured: segmentation_models.pytorch ({error})")
    return found


class Out(torch.nn.Module):
    """The tensor of torchvision's dictionary of outputs."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return self.network(image)["out"]


def rows(names, rounds):
    """Rows (encoder, network, parameters, multiply-adds, seconds, seconds with BN folded or None)."""
    image = torch.randn(1, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    for name in names:
        torch.manual_seed(0)
        networks = {"SparseMask, published": ours(name), **rivals(name)}
        networks = {title: n.to(memory_format=torch.channels_last).eval() for title, n in networks.items()}
        folded = for_inference(networks["SparseMask, published"])
        calls = {**networks, "folded": folded}
        times = median_times({title: torch.no_grad()(lambda call=call: call(image)) for title, call in calls.items()},
                             rounds, 1)
        for title, network in networks.items():
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network(image)
            yield (name, title, sum(p.numel() for p in network.parameters()), counter.get_total_flops() // 2,
                   times[title], times["folded"] if title.startswith("SparseMask") else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=NAMES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine(torch.device("cpu")))
    head = ("encoder", "network", "parameters", "multiply-adds", "time", "BN folded")
    print_table(head, rows(args.names, args.rounds),
                lambda encoder, title, parameters, work, seconds, folded: (
                    encoder, title, f"{parameters / 1e6:.2f} M", f"{work / 1e9:.2f} G", milliseconds(seconds),
                    milliseconds(folded) if folded else ""))


if __name__ == "__main__":
    main()
