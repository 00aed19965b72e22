"""Images beyond the memory: an image goes through the network in overlapping tiles, with the result of a single pass.

What sets a tile apart from the same place of the whole image, and what is done about it:

- At its border the encoder sees padding instead of the image. A margin, which is thrown away, keeps that from what is
  wanted of the tile. A tile begins at a multiple of the largest stride, for its features to lie where those of the
  whole image do.
- G is the average over the whole image. A first pass over all tiles computes it.
- Resizes align corners, so their positions depend on the size of the whole map. They are computed from that size.

So the logits are those of a single pass, up to rounding, if the margin exceeds half of the encoder's receptive field
(MobileNetV2: 245 pixels) by what the decoder's resizes look beyond a place. docs/data.md has what smaller ones change.
"""
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F

from models.decoder import DECODER, Stage
from models.inference import folded, scaled_size
from models.network import SegmentationNetwork
from utils.errors import InputError

MIN_TILE, MAX_TILE = 129, 8193  # pixels a side
MAX_MARGIN = 256  # pixels, by default
REACH = 4  # largest strides: how far beyond a place the decoder looks, with some to spare

Span = tuple[int, int]  # start, stop
Read = Callable[[Span, Span], torch.Tensor]  # rows and columns -> that part of an image, (1, 3, h, w), normalized


def check_tile(tile: int) -> int:
    """Returns the size of tiles. Raises InputError if it is too small or too large."""
    if not MIN_TILE <= tile <= MAX_TILE:
        raise InputError(f"the tiles have {tile} pixels a side; give {MIN_TILE} to {MAX_TILE}", about="tile")
    return tile


class TiledInference:
    """A trained network that takes an image tile by tile.

    network: it is copied, and its BN folded. tile: pixels a side, at most. margin: pixels of a tile on each side that
    only serve what is within, rounded up to the largest stride; by default a quarter of the tile, at most MAX_MARGIN.
    dtype: that of the autocast it will be called in, if any. scales, flip: test-time augmentation, as in
    TestTimeAugmentation. Raises InputError for a tile too small or too large.
    """

    def __init__(self, network: SegmentationNetwork, tile: int, margin: int | None = None,
                 dtype: torch.dtype | None = None, scales: Sequence[float] = (1.0,), flip: bool = False):
        self.network, self.scales, self.flip = folded(network, dtype), tuple(scales), flip
        self.tile, self.step = check_tile(tile), math.lcm(*network.backbone.strides)
        margin = min(tile // 4, MAX_MARGIN) if margin is None else margin
        self.margin = -(-margin // self.step) * self.step
        self.core = max((tile - 2 * self.margin) // self.step, 1) * self.step  # pixels a side that a tile is good for
        # Of each stride, where the tile's maps begin in those of the image, and the size of those. That is an attribute
        # because the forward of a fusion, which may be the user's, would not pass it on.
        self.starts, self.sizes = {}, {}
        for stage in self.network.decoders.values():
            if type(stage).resize is Stage.resize:
                stage.resize = functools.partial(self.resize, stage)

    def resize(self, stage: Stage, y: torch.Tensor, stride: int, size: Sequence[int]) -> torch.Tensor:
        """Stage.resize within a tile."""
        if stride == stage.stride:
            return y.expand(-1, -1, *size)
        part = [(start, start + length) for start, length in zip(self.starts[stage.stride], size, strict=True)]
        return resize_part(y, self.starts[stride], self.sizes[stride], part, self.sizes[stage.stride])

    @torch.no_grad()
    def __call__(self, read: Read, size: Sequence[int]) -> torch.Tensor:
        """Classes of an image: uint8 (H, W), on the CPU. read: gives a part of it; size: (H, W).

        Raises InputError if the encoder or the head does not compute the same in a part of an image.
        """
        classes = torch.empty(tuple(size), dtype=torch.uint8)
        for rows, columns, scores in self.scores(read, size):
            classes[slice(*rows), slice(*columns)] = scores[0].argmax(0)
        return classes

    @torch.no_grad()
    def scores(self, read: Read, size: Sequence[int]) -> Iterator[tuple[Span, Span, torch.Tensor]]:
        """Yields (rows, columns, scores (1, classes, h, w)) of rectangles that make up the image.

        Scores are logits, or with test-time augmentation the mean of the probabilities.
        """
        views = [View(self, read, tuple(size), scale, mirrored)
                 for scale in self.scales for mirrored in ((False, True) if self.flip else (False,))]
        shrunk = max(1.0, *self.scales)  # so that the largest scale has tiles of the size that was asked for
        for rows in spans(size[0], int(self.tile / shrunk), int(self.core / shrunk)):
            for columns in spans(size[1], int(self.tile / shrunk), int(self.core / shrunk)):
                if len(views) == 1:
                    yield rows, columns, views[0].logits(rows, columns)
                    continue
                total = 0
                for view in views:
                    logits = view.logits(rows, columns)
                    total = total + F.softmax(logits, 1, torch.promote_types(logits.dtype, torch.float32))
                yield rows, columns, total / len(views)


class View:
    """An image at one scale, mirrored or not, in tiles: its G, and the logits of any rectangle of the image."""

    def __init__(self, tiled: TiledInference, read: Read, size: Span, scale: float, mirrored: bool):
        self.tiled, self.read_image, self.image_size, self.mirrored = tiled, read, size, mirrored
        self.size = scaled_size(size, scale)
        self.sizes = {}  # of the maps of the whole view, by stride
        self.global_feature = self.average()

    def read(self, rows: Span, columns: Span) -> torch.Tensor:
        """A part of the view, (1, 3, h, w)."""
        if self.mirrored:
            columns = mirror(columns, self.size[1])
        needed = [source_span(span, self.image_size[axis], self.size[axis])
                  for axis, span in enumerate((rows, columns))]
        part = resize_part(self.read_image(*needed), [start for start, _ in needed], self.image_size, (rows, columns),
                           self.size)
        return part.flip(3) if self.mirrored else part

    def encode(self, wanted: Sequence[Span], reach: int) -> tuple[list[torch.Tensor], dict]:
        """The features of the tile round `wanted` (pixels, rows and columns), cut off at `reach` pixels beyond it.

        Returns (taps, {stride: (first row, first column) in the map of the whole view}).
        """
        tiled = self.tiled
        tile = [(max(start - tiled.margin, 0) // tiled.step * tiled.step, min(stop + tiled.margin, length))
                for (start, stop), length in zip(wanted, self.size, strict=True)]
        taps, starts = tiled.network.backbone(self.read(*tile)), {}
        for i, (tap, stride) in enumerate(zip(taps, tiled.network.backbone.strides, strict=True)):
            first = [start // stride for start, _ in tile]
            for (start, stop), cells in zip(tile, tap.shape[2:], strict=True):
                if abs(cells - (stop - start) / stride) > 2:
                    raise InputError(f"the encoder makes {cells} places of {stop - start} pixels where it publishes "
                                     f"the stride {stride}, so images cannot go in tiles; give 0 for none",
                                     about="tile")
            if all(stop == length for (_, stop), length in zip(tile, self.size, strict=True)):
                self.sizes[stride] = [start + cells for start, cells in zip(first, tap.shape[2:], strict=True)]
            kept = [(max(start - reach, 0) // stride, -(-(stop + reach) // stride) if stop < length else None)
                    for (start, stop), length in zip(wanted, self.size, strict=True)]
            kept = [slice(max(start - offset, 0), stop and stop - offset)
                    for (start, stop), offset in zip(kept, first, strict=True)]
            taps[i] = tap[:, :, kept[0], kept[1]]
            starts[stride] = [offset + cut.start for offset, cut in zip(first, kept, strict=True)]
        return taps, starts

    def average(self) -> torch.Tensor | None:
        """G of the whole view, (1, C, 1, 1), if a stage reads it. It also sets `sizes`."""
        tiled = self.tiled
        tiles = [(rows, columns) for rows in spans(self.size[0], tiled.tile, tiled.core, tiled.step)
                 for columns in spans(self.size[1], tiled.tile, tiled.core, tiled.step)]
        if not tiled.network.decoders.readers(0, DECODER):
            self.encode(tiles[-1], 0)
            return None
        total, count = 0, 0
        for tile in tiles:
            deepest = self.encode(tile, 0)[0][0]
            total, count = total + deepest.double().sum((2, 3), keepdim=True), count + deepest[0, 0].numel()
        return (total / count).to(deepest.dtype)

    def logits(self, rows: Span, columns: Span) -> torch.Tensor:
        """Logits (1, classes, h, w) of a rectangle of the image."""
        if self.mirrored:
            columns = mirror(columns, self.image_size[1])
        tiled, network = self.tiled, self.tiled.network
        wanted = [source_span(span, self.size[axis], self.image_size[axis])
                  for axis, span in enumerate((rows, columns))]
        taps, tiled.starts = self.encode(wanted, REACH * tiled.step)
        tiled.sizes = self.sizes
        output = network.decoders(taps, global_feature=self.global_feature)
        logits, stride = network.head(output), network.backbone.strides[-1]
        if logits.shape[2:] != output.shape[2:]:
            raise InputError("the head changes the resolution, so images cannot go in tiles; give 0 for none",
                             about="tile")
        logits = resize_part(logits, tiled.starts[stride], self.sizes[stride], (rows, columns), self.image_size)
        return logits.flip(3) if self.mirrored else logits


def spans(length: int, tile: int, core: int, step: int = 1) -> list[Span]:
    """Parts of an axis, of `core` pixels at most and of about one size; one part if it fits into a tile.

    All but the last end at multiples of `step`.
    """
    count = 1 if length <= tile else -(-length // core)
    ends = [0, *(round(i * length / count / step) * step for i in range(1, count)), length]
    return list(zip(ends, ends[1:], strict=False))


def mirror(span: Span, length: int) -> Span:
    """Where a span lies in the mirrored axis."""
    return length - span[1], length - span[0]


def source_span(span: Span, source: int, target: int) -> Span:
    """What of an axis of `source` pixels a resize to `target` pixels reads for a span of the result."""
    positions = source_positions(span, source, target)
    return int(positions[0].floor()), min(int(positions[-1].ceil()) + 1, source)


def source_positions(span: Span, source: int, target: int) -> torch.Tensor:
    """Where in an axis of `source` pixels those of a span lie, if corners are aligned: float64."""
    return torch.arange(*span, dtype=torch.float64) * ((source - 1) / max(target - 1, 1))


def resize_part(x: torch.Tensor, starts: Sequence[int], source: Sequence[int], part: Sequence[Span],
                target: Sequence[int]) -> torch.Tensor:
    """A rectangle of what models/layers.py's resize makes of a whole map: (N, C, h, w) -> (N, C, *part).

    x: the part of the map, of size `source` as a whole, that begins at `starts`. part: rows and columns of the result,
    of size `target` as a whole.
    """
    for axis, (start, span) in enumerate(zip(starts, part, strict=True)):
        if source[axis] == target[axis]:
            x = x.narrow(axis + 2, span[0] - start, span[1] - span[0])
            continue
        last = x.shape[axis + 2] - 1
        positions = (source_positions(span, source[axis], target[axis]) - start).clamp(0, last)
        below = positions.long()
        weight = (positions - below).to(x.dtype).view(-1, 1) if axis == 0 else (positions - below).to(x.dtype)
        below, weight = below.to(x.device), weight.to(x.device)
        x = torch.lerp(x.index_select(axis + 2, below), x.index_select(axis + 2, (below + 1).clamp(max=last)), weight)
    return x
