"""The 21 classes of PASCAL VOC 2012, and the void label."""
from pathlib import Path

from utils.errors import InputError
from VOC12.lists import read_lines

VOID = 255  # the label of pixels that count neither in the loss nor in the scores

CLASS_NAMES = ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
               "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train",
               "tv/monitor")


def load_class_names(path: str | Path, num_classes: int) -> list[str]:
    """Class names, one a line, from a text file: a list of `num_classes` strings. Raises InputError otherwise."""
    names = [line for _, line in read_lines(path, "list of class names")]
    if len(names) != num_classes:
        raise InputError(f"{path} has {len(names)} class names for {num_classes} classes; give one name a line")
    return names


def default_class_names(num_classes: int) -> list[str]:
    """VOC's names for 21 classes, otherwise "class 0", "class 1", ..."""
    return list(CLASS_NAMES) if num_classes == len(CLASS_NAMES) else [f"class {i}" for i in range(num_classes)]
