"""Labels in colour, and beside an image with a legend: for predict.py, the demo and TensorBoard."""
import functools
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from utils.colour_map import colour_map
from utils.fonts import legible
from VOC12.labels import CLASS_NAMES, VOID

OPACITY = 0.6  # of the classes over the image
ROWS = 256  # of an image that are mixed at once
LEGEND_SIZE = 12  # pixels of its text
MARGIN, SWATCH = 6, 14  # pixels of the legend
LEGEND_WIDTH = 240  # pixels, at least
BACKGROUND, INK = (255, 255, 255), (30, 30, 30)


@functools.lru_cache
def palette(num_classes: int) -> np.ndarray:
    """A colour for each label: uint8 (256, 3), void included. VOC's for 21 classes.

    Otherwise colours that lie far apart for the eye: each is the one of a grid that is farthest, in CIELAB, from all
    before.
    """
    colours = colour_map()
    if num_classes == len(CLASS_NAMES):
        return colours
    from skimage.color import rgb2lab  # here, for its import takes a second
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = rgb2lab(grid / 255.0)
    taken = rgb2lab(np.array([colours[VOID], (0, 0, 0)]) / 255.0)  # void; and black, which reads as "nothing"
    distance = np.linalg.norm(lab[:, None] - taken, axis=2).min(1)
    for label in range(min(num_classes, VOID)):
        best = distance.argmax()
        colours[label] = grid[best]
        distance = np.minimum(distance, np.linalg.norm(lab - lab[best], axis=1))
    return colours


def colour_label(label: torch.Tensor, num_classes: int) -> np.ndarray:
    """Class indices, integer tensor (H, W) -> uint8 array (3, H, W) in the palette's colours."""
    return palette(num_classes)[label.cpu().numpy().astype(np.uint8)].transpose(2, 0, 1)


def palette_image(label: np.ndarray, num_classes: int) -> Image.Image:
    """Class indices, uint8 (H, W) -> palette image whose indices they are."""
    image = Image.fromarray(label)
    image.putpalette(palette(num_classes).tobytes())
    return image


def overlay(image: np.ndarray, label: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """image uint8 (H, W, 3), label uint8 (H, W) -> picture: classes over the image, a legend of those present below."""
    colours = palette(len(class_names))
    opacity = (OPACITY * colours.any(axis=1)).astype(np.float32)  # black, VOC's background, leaves the image as it is
    mixed, counts = np.empty_like(image), np.zeros(256, np.int64)
    for start in range(0, len(image), ROWS):  # not at once: the numbers take more memory than the pixels
        rows = slice(start, start + ROWS)
        below, above = image[rows].astype(np.float32), colours[label[rows]]
        mixed[rows] = (below + opacity[label[rows]][..., None] * (above - below)).round()
        counts += np.bincount(label[rows].ravel(), minlength=256)
    present = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    entries = []
    for i in present:
        name, font = legible("void" if i == VOID else class_names[i], i, LEGEND_SIZE)
        entries.append((name, f"{100 * counts[i] / label.size:.1f} %", font, tuple(map(int, colours[i]))))
    return with_legend(Image.fromarray(mixed), entries)


def with_legend(picture: Image.Image, entries: Sequence[tuple]) -> Image.Image:
    """The picture with a legend below: entries of (name, share, font, colour), in as many columns as fit."""
    column = max(int(font.getlength(f"{name}  {share}")) for name, share, font, _ in entries) + SWATCH + 3 * MARGIN
    width = max(picture.width, LEGEND_WIDTH, column)
    columns = max(1, width // column)
    row = SWATCH + MARGIN
    height = picture.height + -(-len(entries) // columns) * row + MARGIN
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (name, share, font, colour) in enumerate(entries):
        x, y = MARGIN + i % columns * column, picture.height + MARGIN + i // columns * row
        draw.rectangle((x, y, x + SWATCH, y + SWATCH), fill=colour, outline=INK)
        x, y = x + SWATCH + MARGIN, y + SWATCH / 2
        draw.text((x, y), name, fill=INK, font=font, anchor="lm")
        # by itself, for a number that follows a name from right to left would be set before it
        draw.text((x + font.getlength(f"{name}  "), y), share, fill=INK, font=font, anchor="lm")
    return canvas


def side_by_side(rows: Sequence, titles: Sequence[str], gap: int = 8, min_width: int = 240) -> Image.Image:
    """Rows of pictures (PIL) with a title over each column -> one picture. Small ones are enlarged, pixel by pixel."""
    factor = -(-min_width // max(picture.width for row in rows for picture in row))
    rows = [[p.convert("RGB").resize((factor * p.width, factor * p.height), Image.Resampling.NEAREST) for p in row]
            for row in rows]
    width, heights = max(p.width for row in rows for p in row), [max(p.height for p in row) for row in rows]
    font, head = ImageFont.load_default(size=14), 24
    size = len(titles) * (width + gap) - gap, head + sum(heights) + gap * (len(rows) - 1)
    canvas = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for x, title in enumerate(titles):
        draw.text((x * (width + gap) + width / 2, head / 2), title, fill=INK, font=font, anchor="mm")
    top = head
    for row, height in zip(rows, heights, strict=True):
        for x, picture in enumerate(row):
            canvas.paste(picture, (x * (width + gap), top))
        top += height + gap
    return canvas
