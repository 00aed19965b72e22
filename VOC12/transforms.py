"""Scale, pad, crop and mirror an image and its label together: spec section 7, two named presets.

The random crop is decided first; then only what the crop shows is resampled, once. That gives the same pixels as
resizing the whole image, padding and cropping it.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from VOC12.labels import VOID

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB / 255
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


@dataclass(frozen=True)
class Axis:
    """What a crop shows of one axis. All in pixels; `source` has one entry a pixel of the crop.

    source: position in the original image's pixel index space; inside: whether that is in the image or in the padding.
    """
    source: np.ndarray
    inside: np.ndarray


def crop_axis(length, scaled, crop, offset, mirrored=False):
    """The axis of a crop of `crop` pixels that starts at `offset` of an image resized from `length` to `scaled`.

    A negative offset starts in the padding.
    """
    position = np.arange(offset, offset + crop)
    if mirrored:
        position = position[::-1]
    inside = (position >= 0) & (position < scaled)
    return Axis(source=(position + 0.5) * length / scaled - 0.5, inside=inside)


def draw_offset(scaled, crop, rng):
    """Where the crop starts: anywhere in a larger image; a smaller one is padded equally on both sides."""
    return int(rng.integers(0, scaled - crop + 1)) if scaled > crop else -((crop - scaled) // 2)


def sample_image(image, rows, columns):
    """uint8 (H, W, 3) -> normalized float32 (3, crop height, crop width), bilinear, no anti-aliasing; padding is 0.

    0 is the ImageNet mean. Pixel centres are aligned as scikit-image and F.interpolate(align_corners=False) do.
    """
    top, bottom = source_range(rows, image.shape[0])
    left, right = source_range(columns, image.shape[1])
    part = torch.from_numpy(np.ascontiguousarray(image[top:bottom, left:right])).permute(2, 0, 1)[None].float()
    y = grid_position(rows.source - top, bottom - top)
    x = grid_position(columns.source - left, right - left)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]  # (1, height, width, 2), x before y
    sampled = F.grid_sample(part, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    return normalize(sampled) * torch.from_numpy(np.outer(rows.inside, columns.inside))


def source_range(axis, length):
    """First and last + 1 original pixel that the crop's bilinear samples read."""
    shown = axis.source[axis.inside]
    return max(int(np.floor(shown.min())), 0), min(int(np.floor(shown.max())) + 2, length)


def grid_position(source, length):
    """Pixel index -> grid_sample's coordinate in [-1, 1] (align_corners=False)."""
    return torch.from_numpy((2 * source + 1) / length - 1).float()


def sample_label(label, rows, columns):
    """uint8 (H, W) -> int64 (crop height, crop width), nearest; padding is void."""
    y = np.clip(np.floor(rows.source + 0.5).astype(int), 0, label.shape[0] - 1)
    x = np.clip(np.floor(columns.source + 0.5).astype(int), 0, label.shape[1] - 1)
    sampled = label[y[:, None], x].astype(np.int64)
    sampled[~np.outer(rows.inside, columns.inside)] = VOID
    return torch.from_numpy(sampled)


def normalize(image):
    """float (3, H, W) in 0..255 -> ImageNet-normalized."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (image / 255 - mean) / std


def denormalize(image):
    """Normalized (3, H, W) -> uint8 (3, H, W)."""
    mean, std = (torch.tensor(v, device=image.device).view(3, 1, 1) for v in (MEAN, STD))
    return ((image.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


class TrainTransform:
    """Random scale, crop of crop_size x crop_size pixels, mirror half the time: (image, label, rng) -> tensors."""

    def __init__(self, crop_size):
        self.crop_size = crop_size

    def __call__(self, image, label, rng):
        scale = rng.choice(SCALES)
        height, width = label.shape
        scaled = [max(1, round(scale * length)) for length in (height, width)]
        top, left = (draw_offset(length, self.crop_size, rng) for length in scaled)
        mirrored = rng.random() < 0.5
        rows = crop_axis(height, scaled[0], self.crop_size, top)
        columns = crop_axis(width, scaled[1], self.crop_size, left, mirrored)
        return sample_image(image, rows, columns), sample_label(label, rows, columns)


class EvalTransform:
    """No scaling, no cropping; padded equally on both sides to at least min_size x min_size pixels."""

    def __init__(self, min_size):
        self.min_size = min_size

    def __call__(self, image, label, rng=None):
        height, width = label.shape
        size = [max(length, self.min_size) for length in (height, width)]
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        padded = torch.zeros(3, *size)
        padded[:, top:top + height, left:left + width] = normalize(torch.from_numpy(image).permute(2, 0, 1).float())
        truth = torch.full(size, VOID, dtype=torch.int64)
        truth[top:top + height, left:left + width] = torch.from_numpy(label.astype(np.int64))
        return padded, truth
