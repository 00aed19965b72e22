"""Reading and writing image files."""
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.files import write_atomically

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")  # in lower or upper case
# Of the formats that Pillow knows only those that it decodes itself: an EPS file would run Ghostscript.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
LABEL_FORMATS = ("PNG",)  # a JPEG changes the values
# What Pillow raises for files that are broken in one way or another.
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error,
                Image.DecompressionBombError)


def open_image(path: str | Path, what: str, formats: Sequence[str] = IMAGE_FORMATS,
               advice: str = "replace the file") -> Image.Image:
    """PIL image, its pixels decoded, if it has one of the `formats`.

    Raises InputError with a message that begins with `what`, e.g. "the image a.jpg", and ends with `advice`.
    """
    try:
        image = Image.open(path, formats=formats)
        image.load()
        return image
    except BROKEN_IMAGE as error:
        raise InputError(f"{what} cannot be read ({str(error) or type(error).__name__}); {advice}") from None


def read_image(path: str | Path) -> np.ndarray:
    """RGB, uint8 (H, W, 3), as the file stores it: no rotation. Of a 16-bit grey image the high bytes.

    Raises InputError, naming the file, if it is no whole image or has 32 bits a pixel.
    """
    return to_rgb(open_image(path, f"the image {path}", advice="replace the file or remove its name from the list"),
                  path)


def to_rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    """A PIL image as RGB, uint8 (H, W, 3). Raises InputError, naming the file, for 32 bits a pixel."""
    if image.mode.startswith("I"):  # 16-bit PNGs have the mode I;16, and I in older Pillows
        values = np.array(image)
        if values.min() >= 0 and values.max() < 2 ** 16:
            image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(f"the image {path} has 32 bits a pixel (mode {image.mode}); give 8-bit or 16-bit images")
    return np.array(image.convert("RGB"))


def write_png(path: str | Path, image: Image.Image) -> None:
    """Writes a PNG file, whole or not at all. Raises InputError if it cannot be written."""
    with write_atomically(path) as temporary:
        image.save(temporary, format="PNG")
