"""Reading and writing image files: one reading of a photograph for all commands."""
import io
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from utils.errors import InputError, InputWarning
from utils.files import write_atomically

# In lower or upper case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
# Of the formats that Pillow knows only those that it decodes itself: an EPS file would run Ghostscript.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
LABEL_FORMATS = ("PNG", "BMP", "TIFF", "GIF")  # a JPEG changes the values
# What Pillow raises for files that are broken in one way or another.
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error, zlib.error,
                Image.DecompressionBombError)

GREY_DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and scanners give
TIFF_BITS, TIFF_MAX, TIFF_SMAX = 258, 281, 341  # tags: BitsPerSample, MaxSampleValue, SMaxSampleValue
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
ORIENTATION = 0x0112  # EXIF tag
TURNS = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
         6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: np.rot90}
LEAST_MISSING, MISSING_SHARE = 16, 4  # a JPEG may lack 16 rows, a row of blocks, or a quarter of its height


class Picture(NamedTuple):
    """A photograph as all commands see it. pixels: RGB uint8 (H, W, 3); missing: bool (H, W), or None for none."""
    pixels: np.ndarray
    missing: np.ndarray | None = None


def read_image(path: str | Path) -> np.ndarray:
    """The pixels of read_picture: RGB uint8 (H, W, 3)."""
    return read_picture(path).pixels


def read_picture(path: str | Path, size: Sequence[int] | None = None,
                 advice: str = "replace the file or remove its name from the list") -> Picture:
    """A photograph, turned as its EXIF orientation says, as RGB with 8 bits.

    size: (H, W) of its label; where that fits only the photograph as it is stored, it stays so. A JPEG that lacks its
    last bytes is read, and the rows that are missing are marked. A grey one of more than 8 bits is scaled by the range
    that its format declares, otherwise by the one that its values take. Each of these is an InputWarning. Raises
    InputError, naming the file, if it is no whole image or has 32 bits a pixel.
    """
    try:
        image, missing = open_image(path, f"the image {path}", IMAGE_FORMATS, advice), None
    except InputError:
        image, missing = open_cut_jpeg(path)
        if image is None:
            raise
    turn = TURNS.get(image.getexif().get(ORIENTATION), lambda array: array)
    pixels = to_rgb(image, path)
    turned = turn(pixels)
    if size is not None and turned.shape[:2] != tuple(size) == pixels.shape[:2]:
        warnings.warn(InputWarning(f"the image {path} is turned by its EXIF orientation, but its label fits the pixels "
                                   f"as they are stored; it is read as stored, and so are others like it", "stored"),
                      stacklevel=2)
        return Picture(pixels, missing)
    return Picture(np.ascontiguousarray(turned), None if missing is None else turn(missing))


def open_image(path: str | Path, what: str, formats: Sequence[str] = IMAGE_FORMATS,
               advice: str = "replace the file") -> Image.Image:
    """PIL image, its pixels decoded, if it has one of the `formats`.

    Raises InputError with a message that begins with `what`, e.g. "the image a.jpg", and ends with `advice`.
    """
    try:
        try:
            return decode(path, formats)
        except ValueError:  # Pillow refuses a PNG with megabytes of text, such as an editing history
            return decode(io.BytesIO(without_text(Path(path).read_bytes())), formats)
    except BROKEN_IMAGE as error:
        raise InputError(f"{what} cannot be read ({str(error) or type(error).__name__}); {advice}") from None


def decode(source: str | Path | BinaryIO, formats: Sequence[str]) -> Image.Image:
    """PIL image, its pixels decoded. Raises one of BROKEN_IMAGE."""
    image = Image.open(source, formats=formats)
    image.load()
    return image


def without_text(content: bytes) -> bytes:
    """A PNG file without its text and colour profile. Raises ValueError for another file."""
    if not content.startswith(PNG_START):
        raise ValueError("it is no image of a known format")
    kept, place = [PNG_START], len(PNG_START)
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place:place + 4], "big")
        if content[place + 4:place + 8] not in PNG_TEXT:
            kept.append(content[place:end])
        place = end
    return b"".join(kept)


def open_cut_jpeg(path: str | Path) -> tuple[Image.Image | None, np.ndarray | None]:
    """A JPEG that lacks its last bytes: (image, its missing pixels: bool (H, W), or None); (None, None) for others.

    The decoder fills what is missing. What it fills depends on what follows the bytes that there are, so decoding them
    twice, with different bytes behind, shows where it begins.
    """
    try:
        content = Path(path).read_bytes()
        if not content.startswith(JPEG_START):
            return None, None
        image = decode(io.BytesIO(content + JPEG_END), ("JPEG",))
        noise = np.random.default_rng(0).integers(0, 255, 2 ** 16, np.uint8).tobytes()  # without 0xFF, a marker's start
        other = decode(io.BytesIO(content + noise + JPEG_END), ("JPEG",))
    except BROKEN_IMAGE:
        return None, None
    height = image.height
    differs = (np.asarray(image) != np.asarray(other)).reshape(height, -1).any(axis=1)
    first = int(differs.argmax()) if differs.any() else height
    if height - first > max(LEAST_MISSING, height // MISSING_SHARE):
        return None, None
    warnings.warn(InputWarning(f"the image {path} lacks its last bytes"
                               + (f": its last {height - first} rows are void" if first < height else ""),
                               f"cut {path}"), stacklevel=3)
    missing = np.zeros((height, image.width), bool)
    missing[first:] = True
    return image, missing if first < height else None


def to_rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    """A PIL image, that of the file `path`, as RGB, uint8 (H, W, 3). Raises InputError for 32 bits a pixel."""
    values = None
    if image.mode.startswith("I"):  # grey of 16 bits: I;16, or I in some formats
        values = np.array(image)
        values = values.astype(np.uint16) if values.min() >= 0 and values.max() < 2 ** 16 else None
    elif image.format == "PNG" and image.mode in ("RGB", "RGBA"):
        values = sixteen_bit_channels(path)
    if values is not None:
        image = Image.fromarray(scale(values if values.ndim == 2 else values[..., :3], image, path))
    if image.mode in ("I", "F"):
        raise InputError(f"the image {path} has 32 bits a pixel (mode {image.mode}); give 8-bit or 16-bit images")
    return np.array(image.convert("RGB"))


def sixteen_bit_channels(path: str | Path) -> np.ndarray | None:
    """The samples of an RGB or RGBA PNG with 16 bits a sample: uint16 (H, W, 3 or 4); None for any other file.

    Pillow keeps their high bytes only. To whoever takes the samples for little-endian, the low bytes are the high ones.
    """
    with open(path, "rb") as file:
        start = file.read(26)
    if not start.startswith(PNG_START) or start[24] != 16:
        return None
    with Image.open(path) as high, Image.open(path) as low:
        codec, box, offset, layout = low.tile[0]
        if layout not in ("RGB;16B", "RGBA;16B"):
            return None
        low.tile = [(codec, box, offset, layout.replace("16B", "16L"))]
        return np.asarray(high) * np.uint16(256) + np.asarray(low)


def scale(values: np.ndarray, image: Image.Image, path: str | Path) -> np.ndarray:
    """uint16 values of any shape -> uint8: the range of `image`, from which they are, becomes 0 to 255."""
    largest = int(values.max())
    white = declared_white(image)
    if white is None or largest > white:
        white = next(2 ** bits - 1 for bits in GREY_DEPTHS if largest < 2 ** bits)
        if white < 2 ** 16 - 1:
            warnings.warn(InputWarning(f"the image {path} has 16 bits a sample and values up to {largest}; it and "
                                       f"others like it are read as if {white} were white", f"white {white}"),
                          stacklevel=3)
    return np.round(values * (255 / white)).astype(np.uint8)


def declared_white(image: Image.Image) -> int | None:
    """The value that is white according to the file; None if the format does not say."""
    if image.format == "PPM":
        return 2 ** 16 - 1  # Pillow has scaled the values by the file's own maximum
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(TIFF_BITS, (16,))[0]
    declared = tags.get(TIFF_MAX) or tags.get(TIFF_SMAX) or (2 ** bits - 1 if bits < 16 else None)
    return int(np.max(declared)) if declared else None


def write_png(path: str | Path, image: Image.Image, text: Mapping[str, str] = {}) -> None:
    """Writes a PNG file, whole or not at all; text: what it carries, by keyword. Raises InputError if it cannot be
    written.
    """
    info = PngInfo()
    for keyword, value in text.items():
        info.add_text(keyword, value)
    with write_atomically(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)
