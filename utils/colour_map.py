"""PASCAL VOC's colours of the labels."""
import numpy as np


def colour_map() -> np.ndarray:
    """PASCAL VOC's colour of each label: uint8 (256, 3). Label 255, void, is (224, 224, 192).

    Bits 0, 1 and 2 of the label become the highest bits of red, green and blue, bits 3 to 5 the next ones, and so on.
    """
    labels = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= (((labels >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours
