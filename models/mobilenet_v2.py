"""MobileNetV2 (Sandler et al. 2018), width 1.0, as an encoder with nine taps."""
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import BatchNorm2d, DepthwiseConv2d
from utils.errors import InputError

# (expansion t, output channels c, blocks n, stride of the first block s): Table 2 of the MobileNetV2 paper
GROUPS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
STEM_CHANNELS = 32
LAST_CHANNELS = 1280
MIN_SIZE = 32  # pixels: the deepest tap has stride 32


class LinearBottleneck(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation; a shortcut where the shapes allow it."""

    def __init__(self, in_channels, out_channels, stride, expansion, expand):
        super().__init__()
        hidden = in_channels * expansion
        if expand:
            self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
            self.bn1 = BatchNorm2d(hidden)
        self.conv2 = DepthwiseConv2d(hidden, stride)
        self.bn2 = BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(out_channels)
        self.expand = expand
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x):
        y = F.relu6(self.bn1(self.conv1(x)), inplace=True) if self.expand else x
        y = F.relu6(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """The encoder. `channels` and `strides` describe its taps, deepest first, as `forward` returns them.

    expand_first: whether the block with t = 1 has a 1x1 expansion (32 -> 32). The released weights have it
    (2,224,960 parameters), torchvision's have not (2,223,872).
    """
    channels = (LAST_CHANNELS, *(c for _, c, _, _ in reversed(GROUPS)), STEM_CHANNELS)
    strides = (32, 32, 32, 16, 16, 8, 4, 2, 2)

    def __init__(self, expand_first: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 3, stride=2, padding=1, bias=False)
        self.bn1 = BatchNorm2d(STEM_CHANNELS)
        groups, in_channels = OrderedDict(), STEM_CHANNELS
        for g, (expansion, out_channels, blocks, stride) in enumerate(GROUPS):
            group = OrderedDict()
            for i in range(blocks):
                group[f"LinearBottleneck{g}_{i}"] = LinearBottleneck(
                    in_channels, out_channels, stride if i == 0 else 1, expansion, expand_first or expansion > 1)
                in_channels = out_channels
            groups[f"Bottlenecks_{g}"] = nn.Sequential(group)
        self.bottlenecks = nn.Sequential(groups)
        self.conv_last = nn.Conv2d(in_channels, LAST_CHANNELS, 1, bias=False)
        self.bn_last = BatchNorm2d(LAST_CHANNELS)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """image (N, 3, H, W), normalized; returns nine features (N, channels[i], H/strides[i], W/strides[i])."""
        if image.ndim != 4 or image.shape[1] != 3:
            raise InputError(f"the encoder got an image of shape {tuple(image.shape)}; it reads (N, 3, H, W)")
        if image.shape[2] < MIN_SIZE or image.shape[3] < MIN_SIZE:
            raise InputError(f"the encoder got an image of {image.shape[2]}x{image.shape[3]} pixels; "
                             f"it needs at least {MIN_SIZE}x{MIN_SIZE}: enlarge or pad it")
        x = self.bn1(self.conv1(image))
        taps = [x]  # the stem and the last convolution are tapped before their ReLU6
        x = F.relu6(x)
        for group in self.bottlenecks:
            x = group(x)
            taps.append(x)
        taps.append(self.bn_last(self.conv_last(x)))
        return taps[::-1]


def torchvision_names() -> dict[str, str]:
    """Each layer of MobileNetV2(expand_first=False) -> the same layer of torchvision's mobilenet_v2."""
    names = {"conv1": "features.0.0", "bn1": "features.0.1"}
    index = 1
    for g, (expansion, _, blocks, _) in enumerate(GROUPS):
        for i in range(blocks):
            ours, theirs = f"bottlenecks.Bottlenecks_{g}.LinearBottleneck{g}_{i}", f"features.{index}.conv"
            layers = ("conv2", "bn2", "conv3", "bn3") if expansion == 1 else ("conv1", "bn1", "conv2", "bn2",
                                                                             "conv3", "bn3")
            # torchvision wraps convolution and BN in pairs, except the last pair of a block
            places = [f"{p}.{k}" for p in range(len(layers) // 2 - 1) for k in (0, 1)]
            places += [str(len(layers) // 2 - 1), str(len(layers) // 2)]
            names.update({f"{ours}.{layer}": f"{theirs}.{place}" for place, layer in zip(places, layers, strict=True)})
            index += 1
    return {**names, "conv_last": "features.18.0", "bn_last": "features.18.1"}
