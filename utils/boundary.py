"""The pixels near a boundary of the label, where a decoder shows what it gains by fusing resolutions."""
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from VOC12.labels import VOID


def keep_near_boundary(label: torch.Tensor, inside: torch.Tensor, radius: int) -> torch.Tensor:
    """The label with all pixels void but those near a boundary: int64 (N, H, W) -> the same.

    A pixel is near a boundary if the square of `radius` pixels around it, which is cut off at the image's border, has
    two different values. Void is a value: around VOC's objects it marks the boundary. This is the trimap of DeepLab
    (Chen et al. 2018, section 4.3) and of Krähenbühl and Koltun (2011). inside: int64 (N, 4), on the CPU, where the
    images are in their padding, see VOC12.transforms.Sample.
    """
    kept = torch.full_like(label, VOID)
    for each, target, (top, left, bottom, right) in zip(label, kept, inside.tolist(), strict=True):
        area = each[top:bottom, left:right]
        values = area[None, None].float()
        near = spread(values, radius) != -spread(-values, radius)
        target[top:bottom, left:right] = torch.where(near[0, 0], area, VOID)
    return kept


def spread(values: torch.Tensor, radius: int) -> torch.Tensor:
    """The maximum over the square around each pixel, first along the rows: (1, 1, H, W) -> the same."""
    for axis in (0, 1):
        values = F.max_pool2d(values, along(axis, 2 * radius + 1, 1), stride=1, padding=along(axis, radius, 0))
    return values


def along(axis: int, length: int, other: int) -> Sequence[int]:
    """(height, width) of which one is `length`."""
    return (other, length) if axis else (length, other)
