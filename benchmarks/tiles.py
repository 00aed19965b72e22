"""What inference in tiles changes: `python -m benchmarks.tiles CHECKPOINT IMAGE...`, a mosaic of the images as one.

For each overlap the largest and the mean difference from a single pass, and the share of pixels with another class.
"""
import argparse
import math

import numpy as np
import torch

from models.inference import for_inference
from models.layers import resize
from models.tiling import TiledInference
from utils.checkpoint import read_checkpoint
from VOC12.image_io import read_image
from VOC12.loading import Loaded, collate
from VOC12.transforms import EvalTransform, resize_image, to_network

OVERLAPS = (32, 64, 128, 192, 256, 320, 384)
USED = 512  # pixels a side of a tile, without the overlaps
PLACE = (375, 500)  # rows and columns of an image in the mosaic


def mosaic(files: list[str]) -> np.ndarray:
    """The first n * n images side by side: uint8 (H, W, 3)."""
    n = math.isqrt(len(files))
    images = [resize_image(read_image(file), PLACE) for file in files[:n * n]]
    return np.concatenate([np.concatenate(images[i:i + n], axis=1) for i in range(0, n * n, n)])


@torch.no_grad()
def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiles", description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("images", nargs="+")
    args = parser.parse_args()
    network, image = read_checkpoint(args.checkpoint).require("train").build(), mosaic(args.images)
    x, label = to_network(collate([Loaded(EvalTransform(1)(image, np.zeros(image.shape[:2], np.uint8)))]).sample, "cpu")
    size = label.shape[1:]
    single = resize(for_inference(network)(x), size)
    print(f"{size[1]}x{size[0]} pixels\n| overlap | logits, max | mean | probabilities, max | mean | other class |")
    for overlap in OVERLAPS:
        tiles = torch.empty_like(single)
        tiled = TiledInference(network, USED + 2 * overlap + 1, overlap)
        for rows, columns, logits in tiled.scores(lambda *part: x[:, :, slice(*part[0]), slice(*part[1])], size):
            tiles[:, :, slice(*rows), slice(*columns)] = logits
        differences = ((tiles - single).abs(), (tiles.softmax(1) - single.softmax(1)).abs())
        other = (tiles.argmax(1) != single.argmax(1)).double().mean()
        numbers = " | ".join(f"{d.max():.1e} | {d.mean():.1e}" for d in differences)
        print(f"| {overlap} | {numbers} | {100 * other:.5f} % |", flush=True)


if __name__ == "__main__":
    main()
