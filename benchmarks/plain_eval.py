"""Evaluation read plainly, as the released code does it: one image after the other.

    python -m benchmarks.plain_eval CHECKPOINT IM_PATH GT_PATH LIST [--gpu N]

It prints the mIoU. benchmarks/bench.py measures eval_sparse_mask.py against it.
"""
import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.plain import plain_forward
from utils.checkpoint import read_checkpoint
from utils.runtime import select_device
from VOC12.labels import VOID
from VOC12.lists import read_list
from VOC12.transforms import IMAGENET

SIZE = 513


def main(args):
    device = select_device(args.gpu)
    network = read_checkpoint(args.checkpoint).build().to(device).eval()
    classes = network.num_classes
    confusion = np.zeros((classes, classes), np.int64)
    mean, std = IMAGENET
    for name in read_list(args.list):
        image = (np.array(Image.open(args.im_path / f"{name}.jpg").convert("RGB")) / 255.0 - mean) / std
        label = np.array(Image.open(args.gt_path / f"{name}.png"))
        pads = [((max(SIZE - n, 0)) // 2, (max(SIZE - n, 0) + 1) // 2) for n in label.shape]
        image = np.pad(image, (*pads, (0, 0))).transpose(2, 0, 1).astype(np.float32)
        label = np.pad(label, pads, constant_values=VOID)
        with torch.no_grad():
            logits = plain_forward(network, torch.from_numpy(image)[None].to(device))
            logits = F.interpolate(logits, size=label.shape, mode="bilinear", align_corners=True)
            prediction = logits.argmax(1)[0].cpu().numpy()
        valid = label != VOID
        cells = label[valid].astype(np.int64) * classes + prediction[valid]
        confusion += np.bincount(cells, minlength=classes ** 2).reshape(classes, classes)
    hits, truth = confusion.diagonal(), confusion.sum(1)
    iou = hits / np.maximum(truth + confusion.sum(0) - hits, 1)
    print(f"mIoU {100 * iou[truth > 0].mean():.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain_eval", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("im_path", type=Path)
    parser.add_argument("gt_path", type=Path)
    parser.add_argument("list")
    parser.add_argument("--gpu", type=int, default=0)
    main(parser.parse_args())
