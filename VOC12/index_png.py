"""Labels as 8-bit PNG files whose pixel values are the class indices; VOC's colours are only the palette."""
import functools
import os
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import InputError
from VOC12.image_io import LABEL_FORMATS, open_image, write_png
from VOC12.labels import CLASS_NAMES, VOID, colour_map

INDICES = (*range(len(CLASS_NAMES)), VOID)  # VOC's labels


def read_label(path: str | Path, num_classes: int) -> np.ndarray:
    """Class indices, uint8 (H, W): of a palette PNG its indices, of a grey one its values. 255 is void.

    Raises InputError, naming the file, if it is no such PNG or a pixel is neither one of the classes nor void.
    """
    image = open_image(path, f"the label {path}", LABEL_FORMATS, "replace the file or remove its name from the list")
    if image.mode not in ("P", "L", "1"):
        raise InputError(f"the label {path} has the mode {image.mode}; expected class indices (a palette or 8-bit grey "
                         f"PNG): VOC12/convert_labels.py converts labels in VOC's colours")
    label = unstretched(np.array(image, dtype=np.uint8), image.mode, path)
    wrong = (label >= num_classes) & (label != VOID)
    if wrong.any():
        row, column = _first(wrong)
        raise InputError(f"the label {path} has the value {label[row, column]} at row {row}, column {column}; expected "
                         f"0 to {num_classes - 1}, or {VOID} for void: correct the label or the number of classes",
                         about="num_classes")
    return label


def check_labels(labels: np.ndarray) -> np.ndarray:
    """Returns integer or floating `labels` (H, W) as uint8. Raises InputError unless all are 0..20 or 255."""
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "biuf":
        raise InputError(f"the labels are {labels.dtype} of shape {labels.shape}; "
                         f"expected numbers (height, width); replace the file")
    wrong = ~np.isin(labels, INDICES)
    if wrong.any():
        row, column = _first(wrong)
        raise InputError(f"the pixel at row {row}, column {column} has the value {labels[row, column]}; "
                         f"expected 0 to {len(CLASS_NAMES) - 1}, or {VOID} for void; replace the file")
    return labels.astype(np.uint8)


def read_voc_label(path: str | Path) -> np.ndarray:
    """Labels of a PNG file: uint8 (H, W) with 0..20 and 255.

    A palette PNG is read by index whatever its palette, a greyscale one by value, an RGB one by VOC's colours; an alpha
    channel is ignored. Raises InputError, without the path, if the file is missing or broken, or a pixel is no label.
    """
    if not os.path.isfile(path):
        raise InputError("there is no such file; check the list and the folder")
    image = open_image(path, "this PNG file", LABEL_FORMATS, "get it again from the archive")
    mode, pixels = image.mode, np.asarray(image)
    if mode in ("RGB", "RGBA"):
        return labels_of_colours(pixels[..., :3])
    if mode == "LA":
        pixels = pixels[..., 0]
    return check_labels(unstretched(pixels, mode, path))


def unstretched(pixels: np.ndarray, mode: str, path: str | Path) -> np.ndarray:
    """The pixel values as the PNG stores them. Pillow stretches those of grey images with 2 or 4 bits to 0..255."""
    if mode == "L":
        with open(path, "rb") as file:
            start = file.read(26)
        if start.startswith(b"\x89PNG") and start[24] in (2, 4):
            return pixels // (255 // (2 ** start[24] - 1))
    return pixels


def labels_of_colours(colours: np.ndarray) -> np.ndarray:
    """Labels (H, W), uint8, of VOC colours (H, W, 3), uint8. Raises InputError for a colour that is none of the 22."""
    levels, table = _colour_table()
    red, green, blue = (levels[colours[..., channel]] for channel in range(3))
    found = table[red, green, blue]
    wrong = found < 0
    if wrong.any():
        row, column = _first(wrong)
        colour = tuple(int(value) for value in colours[row, column])
        raise InputError(f"the pixel at row {row}, column {column} has the colour {colour}, "
                         f"which is none of VOC's {len(INDICES)}; give labels in VOC's colours or as class indices")
    return found.astype(np.uint8)


def write_label_png(path: str | Path, labels: np.ndarray, colours: np.ndarray | None = None) -> None:
    """Writes `labels`, uint8 (H, W), whole or not at all. Raises InputError if that fails.

    colours: the palette, uint8 (256, 3), by default VOC's; of all 256 colours, so that Pillow writes 8 bits a pixel.
    """
    image = Image.fromarray(labels)
    image.putpalette((colour_map() if colours is None else colours).tobytes())
    write_png(path, image)


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
