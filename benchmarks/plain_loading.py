"""The augmentation read plainly: resize the whole image with scikit-image in float64, pad, crop, mirror.

It takes the same draws in the same order as VOC12/transforms.py, which is tested and measured against it.
"""
import numpy as np
import torch
from skimage.transform import resize

from VOC12.labels import VOID
from VOC12.transforms import MEAN, SCALES, STD


def plain_train_transform(image, label, rng, crop_size):
    """uint8 image (H, W, 3) and label (H, W) -> float32 (3, crop, crop), normalized, and int64 (crop, crop)."""
    scale = rng.choice(SCALES)
    height, width = (max(1, round(scale * length)) for length in label.shape)
    image = resize(image / 255.0, (height, width), order=1, mode="edge", anti_aliasing=False)
    rows, columns = (np.floor((np.arange(new) + 0.5) * old / new).astype(int)
                     for new, old in ((height, label.shape[0]), (width, label.shape[1])))
    label = label[rows[:, None], columns]  # nearest
    offsets = [int(rng.integers(0, length - crop_size + 1)) if length > crop_size else None
               for length in (height, width)]
    pads = [(0, 0) if offset is not None else ((crop_size - length) // 2, (crop_size - length + 1) // 2)
            for offset, length in zip(offsets, (height, width), strict=True)]
    image = (image - MEAN) / STD
    image = np.pad(image, (*pads, (0, 0)))  # 0 is the mean
    label = np.pad(label, pads, constant_values=VOID)
    top, left = (offset or 0 for offset in offsets)
    image = image[top:top + crop_size, left:left + crop_size]
    label = label[top:top + crop_size, left:left + crop_size]
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return (torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)),
            torch.from_numpy(label.astype(np.int64)))
