"""Scale, pad, crop and mirror an image and its label together: one preset for training, one for evaluation.

A transform returns a Sample of bytes; `to_network` turns a batch of them into the network's input, on the device. So a
quarter of the data is copied from the loader to the device, and the device does the arithmetic of the normalization.
"""
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from models.library_encoders import IMAGENET_MEAN, IMAGENET_STD
from VOC12.labels import VOID

IMAGENET = IMAGENET_MEAN, IMAGENET_STD
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


class Sample(NamedTuple):
    """An image and its label, or a batch of them (with a first axis N). All uint8, save `inside`.

    image (H, W, 3), RGB; label (H, W), 255 = void; inside int64 (4): top, left, bottom, right of the area without
    padding.
    """
    image: torch.Tensor
    label: torch.Tensor
    inside: torch.Tensor


def size_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """A size in pixels, one number (a square) or (height, width) -> (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def draw_offset(scaled: int, crop: int, rng: np.random.Generator) -> int:
    """Where the crop starts, in pixels: anywhere in a larger image; negative in a smaller one, padded on both sides."""
    return int(rng.integers(0, scaled - crop + 1)) if scaled > crop else -((crop - scaled) // 2)


def resize_image(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """uint8 (h, w, 3) -> (*size, 3): bilinear, no anti-aliasing, pixel centres aligned as in scikit-image.

    PyTorch's kernel for bytes rounds after each of the two axes: a pixel is off by at most one level.
    """
    if image.shape[:2] == tuple(size):
        return image
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]  # channels last, in which that kernel is fastest
    return F.interpolate(planes, size=size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()


def nearest(start: int, stop: int, length: int, scaled: int) -> np.ndarray:
    """Nearest-neighbour resizing of an axis from `length` to `scaled` pixels: the source of each pixel start..stop."""
    return np.floor((np.arange(start, stop) + 0.5) * length / scaled).astype(np.int64).clip(0, length - 1)


def place(image: np.ndarray, label: np.ndarray, size: Sequence[int], top: int, left: int) -> Sample:
    """Sample of `size` with the image and label at (top, left), and padding around them: void in the label."""
    height, width = label.shape
    if (height, width) != tuple(size):
        pads = (top, size[0] - height - top), (left, size[1] - width - left)
        image, label = np.pad(image, (*pads, (0, 0))), np.pad(label, pads, constant_values=VOID)
    image, label = map(np.ascontiguousarray, (image, label))
    return Sample(torch.from_numpy(image), torch.from_numpy(label),
                  torch.tensor([top, left, top + height, left + width]))


class TrainTransform:
    """Random scale, crop of `crop_size` pixels (see size_pair), mirror half the time: (image, label, rng) -> Sample."""

    def __init__(self, crop_size: int | Sequence[int]):
        self.crop_size = size_pair(crop_size)

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Sample:
        """image uint8 (H, W, 3), label uint8 (H, W) -> Sample of crop_size pixels."""
        scale, crop = rng.choice(SCALES), self.crop_size
        scaled = [max(1, round(scale * length)) for length in label.shape]
        offsets = [draw_offset(*lengths, rng) for lengths in zip(scaled, crop, strict=True)]
        mirrored = rng.random() < 0.5
        shown = [(max(offset, 0), min(offset + cropped, length))
                 for offset, cropped, length in zip(offsets, crop, scaled, strict=True)]
        rows, columns = (slice(*limits) for limits in shown)
        image = resize_image(image, scaled)[rows, columns]
        y, x = (nearest(*limits, old, new) for limits, old, new in zip(shown, label.shape, scaled, strict=True))
        label = label[y].take(x, axis=1)
        top, left = (max(-offset, 0) for offset in offsets)
        if mirrored:
            image, label, left = image[:, ::-1], label[:, ::-1], crop[1] - left - label.shape[1]
        return place(image, label, crop, top, left)

    def empty(self) -> Sample:
        """A batch without samples."""
        return Sample(torch.empty(0, *self.crop_size, 3, dtype=torch.uint8),
                      torch.empty(0, *self.crop_size, dtype=torch.uint8),
                      torch.empty(0, 4, dtype=torch.int64))


class EvalTransform:
    """No scaling, no cropping; padded equally on both sides to at least `min_size` pixels (see size_pair)."""

    def __init__(self, min_size: int | Sequence[int]):
        self.min_size = size_pair(min_size)

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator | None = None) -> Sample:
        """image uint8 (H, W, 3), label uint8 (H, W) -> Sample."""
        size = tuple(map(max, label.shape, self.min_size))
        return place(image, label, size, *((new - old) // 2 for new, old in zip(size, label.shape, strict=True)))


def to_network(sample: Sample, device: torch.device | str, dtype: torch.dtype = torch.float32,
               normalization: Sequence[Sequence[float]] = IMAGENET) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of Samples -> image (N, 3, H, W), normalized, channels last, and label int64 (N, H, W).

    Both are on the device. normalization: mean and std of RGB in 0..1. The padding is 0, which is the mean.
    """
    padded = padding(sample, device)
    image = sample.image.to(device, non_blocking=True).permute(0, 3, 1, 2).to(dtype)
    label = sample.label.to(device, non_blocking=True).long()
    mean, std = of_bytes(normalization, image.device, dtype)
    image.sub_(mean).div_(std)
    if padded is not None:
        image.masked_fill_(padded, 0)
    return image, label


@functools.lru_cache  # a copy to a GPU each time would wait for it
def of_bytes(normalization: tuple[tuple[float, ...], tuple[float, ...]], device: torch.device,
             dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """mean and std of RGB in 0..1 -> those of bytes, each (1, 3, 1, 1)."""
    mean, std = (torch.tensor(v, device=device, dtype=dtype).view(1, 3, 1, 1) * 255 for v in normalization)
    return mean, std


def padding(sample: Sample, device: torch.device | str = "cpu") -> torch.Tensor | None:
    """bool (N, 1, H, W) on the device, true where a batch of Samples has padding; None if it has none."""
    height, width = sample.label.shape[1:]
    if (sample.inside == torch.tensor([0, 0, height, width])).all():
        return None
    y, x = (torch.arange(length, device=device) for length in (height, width))
    inside = sample.inside.to(device, non_blocking=True)
    top, left, bottom, right = inside[:, :, None].unbind(1)  # each (N, 1)
    outside = ((y < top) | (y >= bottom))[:, :, None] | ((x < left) | (x >= right))[:, None]
    return outside[:, None]


def denormalize(image: torch.Tensor, normalization: Sequence[Sequence[float]] = IMAGENET) -> torch.Tensor:
    """Normalized (3, H, W) -> uint8 (3, H, W)."""
    mean, std = (torch.tensor(v, device=image.device).view(3, 1, 1) for v in normalization)
    return ((image.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
