"""The augmentation read plainly: resize the whole image with scikit-image in float64, pad, crop, mirror.

It takes the same draws in the same order as VOC12/transforms.py, which is tested and measured against it.
"""
import numpy as np
import torch
from skimage.transform import resize

from VOC12.labels import VOID
from VOC12.transforms import IMAGENET, SCALES


def plain_train_transform(image, label, rng, crop_size):
    """uint8 image (H, W, 3) and label (H, W) -> float32 (3, *crop), normalized, and int64 crop.

    crop_size: one number of pixels or (height, width).
    """
    crop_height, crop_width = crop = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    scale = rng.choice(SCALES)
    height, width = (max(1, round(scale * length)) for length in label.shape)
    image = resize(image / 255.0, (height, width), order=1, mode="edge", anti_aliasing=False)
    rows, columns = (np.floor((np.arange(new) + 0.5) * old / new).astype(int)
                     for new, old in ((height, label.shape[0]), (width, label.shape[1])))
    label = label[rows[:, None], columns]  # nearest
    offsets = [int(rng.integers(0, length - cropped + 1)) if length > cropped else None
               for length, cropped in zip((height, width), crop, strict=True)]
    pads = [(0, 0) if offset is not None else ((cropped - length) // 2, (cropped - length + 1) // 2)
            for offset, length, cropped in zip(offsets, (height, width), crop, strict=True)]
    mean, std = IMAGENET
    image = (image - mean) / std
    image = np.pad(image, (*pads, (0, 0)))  # 0 is the mean
    label = np.pad(label, pads, constant_values=VOID)
    top, left = (offset or 0 for offset in offsets)
    image = image[top:top + crop_height, left:left + crop_width]
    label = label[top:top + crop_height, left:left + crop_width]
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    return (torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)),
            torch.from_numpy(label.astype(np.int64)))
