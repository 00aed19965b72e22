"""Labels as 8-bit PNG files whose pixel values are the class indices; VOC's colours are only the palette."""
from pathlib import Path

import numpy as np
from PIL import Image

from utils.colour_map import colour_map
from utils.errors import InputError
from VOC12.image_io import LABEL_FORMATS, TIFF_BITS, open_image, sixteen_bit_channels, write_png
from VOC12.label_map import MAX_VALUE, LabelMap
from VOC12.labels import VOID

MADE_BY = "made by"  # key of a text in the PNG


def read_label(path: str | Path, num_classes: int, label_map: LabelMap | None = None) -> np.ndarray:
    """Class indices, uint8 (H, W), of an index image, see indices_of; 255 is void. label_map: what its values mean.

    Raises InputError, naming the file, if it is no such image or a pixel is neither one of the classes nor void.
    """
    return to_classes(read_values(path), path, num_classes, label_map)


def to_classes(values: np.ndarray, path: str | Path, num_classes: int, label_map: LabelMap | None = None) -> np.ndarray:
    """The values in a label file, integers of any shape -> class indices, uint8. Raises InputError as read_label does.
    """
    label = values if label_map is None else label_map(values)
    wrong = (label >= num_classes) & (label != VOID)
    if wrong.any():
        row, column = _first(wrong)
        value = label[row, column]
        raise InputError(f"the label {path} has the value {value} at row {row}, column {column}; expected 0 to "
                         f"{num_classes - 1}, or {VOID} for void: correct the label or the number of classes, or say "
                         f"what the value means, for example {value}:{VOID} for void",
                         about=("num_classes", "label_map"))
    return label.astype(np.uint8)


def read_values(path: str | Path) -> np.ndarray:
    """The values in a label file, uint8 or wider (H, W), see indices_of. Raises InputError, naming the file."""
    image = open_image(path, f"the label {path}", LABEL_FORMATS, "replace the file or remove its name from the list")
    values = indices_of(image, path)
    if values.min() < 0 or values.max() > MAX_VALUE:
        raise InputError(f"the label {path} has values from {values.min()} to {values.max()}; expected class indices")
    return values


def check_labels(labels: np.ndarray, num_classes: int = VOID, advice: str = "replace the file") -> np.ndarray:
    """Returns integer or floating `labels` (H, W) as uint8.

    Raises InputError, without a path, unless all are 0..num_classes-1 or 255.
    """
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "biuf":
        raise InputError(f"the labels are {labels.dtype} of shape {labels.shape}; "
                         f"expected numbers (height, width); replace the file")
    wrong = ~np.isin(labels, (*range(num_classes), VOID))
    if wrong.any():
        row, column = _first(wrong)
        raise InputError(f"the pixel at row {row}, column {column} has the value {labels[row, column]}; "
                         f"expected 0 to {num_classes - 1}, or {VOID} for void; {advice}")
    return labels.astype(np.uint8)


def indices_of(image: Image.Image, path: str | Path) -> np.ndarray:
    """The class indices that an image stores: uint8, uint16 or int32 (H, W). Their range is not checked.

    image: that of the file `path`, its pixels decoded. Of a palette image the indices, of a grey one the values, of an
    RGB one whose channels are equal in every pixel their value. An alpha channel is ignored.
    Raises InputError, naming the file, for an image with colours.
    """
    try:
        values = stored_values(image, path)
    except InputError as error:
        raise InputError(f"the label {path}: {error}") from None
    if values.ndim == 3:
        row, column = _first((values != values[..., :1]).any(axis=2))
        raise InputError(f"the label {path} has the mode {image.mode} and the colour "
                         f"{tuple(values[row, column].tolist())} at row {row}, column {column}; expected class indices "
                         f"(a palette or grey image): VOC12/convert_labels.py converts labels in colours")
    return values


def stored_values(image: Image.Image, path: str | Path) -> np.ndarray:
    """As indices_of, but of an image with colours these: uint8 (H, W, 3).

    Raises InputError, without the path, for an image of any other kind.
    """
    mode, pixels = image.mode, np.asarray(image)
    if mode in ("P", "1"):
        return pixels.astype(np.uint8)
    if mode.startswith("I"):
        return pixels.astype(np.uint16 if pixels.itemsize == 2 else np.int32)
    if mode == "PA":
        return pixels[..., 0]
    if mode not in ("L", "LA", "RGB", "RGBA"):
        raise InputError(f"the mode of the image is {mode}; expected class indices or RGB: save it as a PNG")
    if _sample_bits(path) == 16:  # in several channels: Pillow reads one of 16 bits as I;16
        pixels = sixteen_bit_channels(path)
        if pixels is None:
            raise InputError("the image has several channels of 16 bits; save it as a grey PNG")
    if mode == "L":
        return unstretched(pixels, mode, path)
    if mode == "LA" or (pixels[..., :3] == pixels[..., :1]).all():
        return np.ascontiguousarray(pixels[..., 0])
    return (pixels[..., :3] if pixels.dtype == np.uint8 else pixels[..., :3] // 256).astype(np.uint8)


def unstretched(pixels: np.ndarray, mode: str, path: str | Path) -> np.ndarray:
    """The pixel values as the file stores them. Pillow stretches those of grey images with 2 or 4 bits to 0..255."""
    bits = _sample_bits(path) if mode == "L" else 8
    return pixels // (255 // (2 ** bits - 1)) if bits in (2, 4) else pixels


def _sample_bits(path):
    """Bits of a sample of a PNG or TIFF file; 8 for any other format."""
    with open(path, "rb") as file:
        start = file.read(26)
    if start.startswith(b"\x89PNG"):
        return start[24]
    if start[:2] in (b"II", b"MM"):
        with Image.open(path, formats=["TIFF"]) as image:
            return image.tag_v2.get(TIFF_BITS, (8,))[0]
    return 8


def write_label_png(path: str | Path, labels: np.ndarray, colours: np.ndarray | None = None,
                    made_by: str = "") -> None:
    """Writes `labels`, uint8 (H, W), whole or not at all. Raises InputError if that fails.

    colours: the palette, uint8 (256, 3), by default VOC's; of all 256 colours, so that Pillow writes 8 bits a pixel.
    made_by: a text to store in the file under MADE_BY.
    """
    image = Image.fromarray(labels)
    image.putpalette((colour_map() if colours is None else colours).tobytes())
    write_png(path, image, {MADE_BY: made_by} if made_by else {})


def _first(wrong):
    """Row and column of the first True of a boolean array (H, W)."""
    return tuple(int(index) for index in np.unravel_index(wrong.argmax(), wrong.shape))
