"""Labels as 8-bit PNG files whose pixel values are the class indices; VOC's colours are only the palette."""
import functools
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.files import write_atomically
from VOC12.labels import CLASS_NAMES, VOID, colour_map

INDICES = (*range(len(CLASS_NAMES)), VOID)
# Of the formats that Pillow knows only those that it decodes itself: an EPS file would run Ghostscript.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
# What Pillow raises for files that are broken in one way or another.
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error,
                Image.DecompressionBombError)


def check_labels(labels):
    """Returns integer or floating `labels` (H, W) as uint8. Raises InputError unless all are 0..20 or 255."""
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "biuf":
        raise InputError(f"the labels are {labels.dtype} of shape {labels.shape}; expected numbers (height, width)")
    wrong = ~np.isin(labels, INDICES)
    if wrong.any():
        row, column = _first(wrong)
        raise InputError(f"the pixel at row {row}, column {column} holds {labels[row, column]}; "
                         f"labels are 0..{len(CLASS_NAMES) - 1}, and {VOID} for void")
    return labels.astype(np.uint8)


def read_label_png(path):
    """Labels of a PNG file: uint8 (H, W) with 0..20 and 255.

    A palette PNG is read by index whatever its palette, a greyscale one by value, an RGB one by VOC's colours; an alpha
    channel is passed over. Raises InputError if the file is missing or broken, or a pixel is no label.
    """
    if not os.path.isfile(path):
        raise InputError("there is no such file")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            mode, pixels = image.mode, np.asarray(image)
    except BROKEN_IMAGE as error:
        raise InputError(f"this is no whole PNG file ({error}); fetch it again") from error
    if mode in ("RGB", "RGBA"):
        return labels_of_colours(pixels[..., :3])
    if mode == "LA":
        pixels = pixels[..., 0]
    return check_labels(unstretched(pixels, mode, path))


def unstretched(pixels, mode, path):
    """The pixel values that a PNG holds. Pillow stretches those of grey images with 2 or 4 bits to 0..255."""
    if mode == "L":
        with open(path, "rb") as file:
            start = file.read(26)
        if start.startswith(b"\x89PNG") and start[24] in (2, 4):
            return pixels // (255 // (2 ** start[24] - 1))
    return pixels


def labels_of_colours(colours):
    """Labels (H, W), uint8, of VOC colours (H, W, 3), uint8. Raises InputError for a colour that is none of the 22."""
    levels, table = _colour_table()
    red, green, blue = (levels[colours[..., channel]] for channel in range(3))
    found = table[red, green, blue]
    wrong = found < 0
    if wrong.any():
        row, column = _first(wrong)
        colour = tuple(int(value) for value in colours[row, column])
        raise InputError(f"the pixel at row {row}, column {column} has the colour {colour}, "
                         f"which is none of VOC's {len(INDICES)}")
    return found.astype(np.uint8)


def write_label_png(path, labels):
    """Writes `labels`, uint8 (H, W), whole or not at all. Raises InputError if that fails."""
    image = Image.fromarray(labels)
    image.putpalette(colour_map().tobytes())  # all 256 colours, so that Pillow writes 8 bits a pixel
    with write_atomically(path) as temporary:
        image.save(temporary, format="PNG")


def is_done(path, source):
    """Whether `path` is a whole index PNG that is not older than `source`, from which it is made."""
    try:
        if os.stat(path).st_mtime < os.stat(source).st_mtime:
            return False
        with Image.open(path, formats=["PNG"]) as image:
            kept = image.mode in ("P", "L")
            image.verify()  # all checksums, without decoding
        return kept
    except BROKEN_IMAGE:
        return False


def make_output_folder(folder):
    """Creates `folder` and removes what a killed run left half-written in it. Raises InputError if it cannot be."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the folder {folder}: {error.strerror}; give one that can be written") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"the folder {folder} cannot be written; change its permissions")
    for leftover in folder.glob(".*.part.png"):
        if leftover.stat().st_mtime < time.time() - 60:  # a newer one may be another run's, at work
            leftover.unlink(missing_ok=True)


@functools.lru_cache(maxsize=1)
def _colour_table():
    """(levels, table): table[levels[r], levels[g], levels[b]] is a label, or -1 where no label has that colour.

    VOC's 22 colours use few values a channel, so a small table finds them without a search.
    """
    colours = colour_map()[list(INDICES)]
    values = np.unique(colours)
    levels = np.full(256, len(values), dtype=np.intp)  # one more level, for every other value
    levels[values] = np.arange(len(values))
    table = np.full((len(values) + 1,) * 3, -1, dtype=np.int16)
    table[tuple(levels[colours].T)] = INDICES
    return levels, table


def _first(wrong):
    """Row and column of the first True of a boolean array (H, W)."""
    return tuple(int(index) for index in np.unravel_index(wrong.argmax(), wrong.shape))
