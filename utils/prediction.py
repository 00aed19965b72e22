"""A trained network on one image after the other: each in a single pass, or in tiles where that would not fit."""
import warnings
from collections.abc import Callable

import numpy as np
import torch

from models.inference import for_inference
from models.losses import resize_logits
from models.sparse_mask import SparseMask
from models.tiling import TiledInference, check_tile
from utils.augmentation import Augmentation
from utils.errors import InputWarning, StepInterrupted
from utils.memory import available_memory
from utils.runtime import Precision, explain_out_of_memory
from VOC12.labels import VOID
from VOC12.transforms import Sample

# What a single pass in float32 takes of each pixel, in bytes: MobileNetV2 with all connections (the published ones take
# half of it); and of each pixel and class, without test-time augmentation and with it.
PIXEL_BYTES, CLASS_BYTES, AUGMENTED_CLASS_BYTES = 600, 6, 20
TILES = (2049, 1025, 513)  # pixels a side, to choose from


class Predictor:
    """Sample of one image -> its classes, uint8 (H, W), without the padding.

    tile: None for tiles where a single pass might take more than half of the free memory, 0 for none, else the pixels
    a side beyond which an image goes in tiles of that size. compiled: of single passes only. Raises InputError for a
    tile too small or too large.
    """

    def __init__(self, network: SparseMask, precision: Precision, augmentation: Augmentation, tile: int | None = None,
                 compiled: bool = False):
        self.network, self.precision, self.augmentation = network, precision, augmentation
        self.tile = check_tile(tile) if tile else tile
        self.forward = augmentation.wrap(for_inference(network, compiled, precision.low))
        self.tiled = {}  # TiledInference by size of its tiles
        self.warned = False

    @torch.no_grad()
    def __call__(self, sample: Sample, name: str) -> np.ndarray:
        """Raises InputError if the memory does not suffice. name: of the image, for a warning."""
        size = tuple(sample.label.shape[1:])
        if self.tile is None:
            need, budget = self.bytes_needed(size), available_memory(self.precision.device) // 2
            if need <= budget:
                try:
                    with explain_out_of_memory(""):
                        classes = self.whole(sample)
                except StepInterrupted:
                    classes = None  # the estimate was too low
            if need > budget or classes is None:
                classes = self.in_tiles(sample, self.choose_tile(name, size))
        elif self.tile and max(size) > self.tile:
            classes = self.in_tiles(sample, self.tile)
        else:
            classes = self.whole(sample)
        top, left, bottom, right = sample.inside[0].tolist()
        classes = classes[top:bottom, left:right].cpu()
        missing = sample.label[0, top:bottom, left:right] == VOID  # of a damaged file
        return classes.masked_fill(missing, VOID).numpy()

    def whole(self, sample: Sample) -> torch.Tensor:
        """Classes in a single pass, uint8 (H, W)."""
        image, label = self.precision.batch(sample)
        with self.precision.autocast():
            return resize_logits(self.forward(image), label).argmax(1)[0].to(torch.uint8)

    def in_tiles(self, sample: Sample, tile: int) -> torch.Tensor:
        """Classes in tiles, uint8 (H, W)."""
        if tile not in self.tiled:
            self.tiled[tile] = TiledInference(self.network, tile, dtype=self.precision.low,
                                              scales=self.augmentation.scales, flip=self.augmentation.flip)
        with self.precision.autocast():
            return self.tiled[tile](reader(sample, self.precision), sample.label.shape[1:])

    def bytes_needed(self, size: tuple[int, int]) -> int:
        """Of a single pass over an image of that size, at most."""
        per_class = AUGMENTED_CLASS_BYTES if self.augmentation.description else CLASS_BYTES
        per_pixel = max(PIXEL_BYTES * max(1.0, *self.augmentation.scales) ** 2, per_class * self.network.num_classes)
        return int(size[0] * size[1] * per_pixel * torch.finfo(self.precision.dtype).bits / 32)

    def choose_tile(self, name: str, size: tuple[int, int]) -> int:
        """The largest size of tiles that surely fits, or the smallest. Says once that there are tiles."""
        budget = available_memory(self.precision.device) // 2
        tile = next((tile for tile in TILES if self.bytes_needed((tile, tile)) <= budget), TILES[-1])
        if not self.warned:
            self.warned = True
            warnings.warn(f"{name} has {size[1]}x{size[0]} pixels, for which a single pass may take "
                          f"{self.bytes_needed(size) / 1e9:.1f} GB, and {2 * budget / 1e9:.1f} GB are free: it goes "
                          f"in overlapping tiles of {tile} pixels a side, and so do others of such a size",
                          InputWarning, stacklevel=3)
        return tile


def reader(sample: Sample, precision: Precision) -> Callable:
    """Rows and columns, each (start, stop) -> that part of a Sample as the network's input, (1, 3, h, w)."""
    def read(rows, columns):
        corner = torch.tensor([rows[0], columns[0]] * 2)
        end = torch.tensor([rows[1], columns[1]] * 2)
        part = slice(None), slice(*rows), slice(*columns)
        inside = torch.minimum(sample.inside, end).sub(corner).clamp(min=0)
        return precision.batch(Sample(sample.image[part], sample.label[part], inside))[0]
    return read
