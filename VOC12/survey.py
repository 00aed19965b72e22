"""What the label files of a dataset contain: counted before a run, so that no class is missing unnoticed."""
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.parallel import count_cores
from utils.progress import progress_bar
from VOC12.index_png import read_values, to_classes
from VOC12.label_map import MAX_VALUE, LabelMap
from VOC12.labels import VOID

SAMPLE = 500  # label files: about a second


def zeros(length: int):
    """A field of `length` counts."""
    return field(default_factory=functools.partial(np.zeros, length, np.int64))


@dataclass
class Survey:
    """Pixels of label files. `looked_at` of `total` files were read; of `only_void` of them no pixel counts.

    values: by the value in the file, int64 (65536); classes: by class, int64 (256), where 255 is void; around: by
    class, the counted pixels of the files that have it, int64 (256).
    """
    num_classes: int
    total: int
    looked_at: int = 0
    only_void: int = 0
    values: np.ndarray = zeros(MAX_VALUE + 1)
    classes: np.ndarray = zeros(VOID + 1)
    around: np.ndarray = zeros(VOID + 1)

    @property
    def is_complete(self) -> bool:
        """Whether all files were read."""
        return self.looked_at == self.total

    @property
    def absent(self) -> list[int]:
        """Classes without a pixel."""
        return [i for i in range(self.num_classes) if not self.classes[i]]

    @property
    def void_share(self) -> float:
        """Share of the pixels that are void."""
        return self.classes[VOID] / max(1, self.classes.sum())

    def balanced_weights(self) -> np.ndarray:
        """Weight of each class by median frequency balancing: float64 (classes); 1 for an absent one.

        The frequency of a class is its share of the counted pixels of the images that have it, and its weight the
        median of the frequencies divided by it (Eigen and Fergus, ICCV 2015).
        """
        pixels, around = self.classes[:self.num_classes], self.around[:self.num_classes]
        frequency = pixels / np.maximum(around, 1)
        present = pixels > 0
        median = np.median(frequency[present]) if present.any() else 1.0
        return np.where(present, median / np.where(present, frequency, 1), 1.0)


def survey(files: Sequence[Path], num_classes: int, label_map: LabelMap | None = None,
           limit: int | None = SAMPLE) -> Survey:
    """Counts the pixels of label files: of all, or of `limit` that are spread evenly.

    Raises InputError for a file that read_label refuses.
    """
    files = list(dict.fromkeys(files))
    result = Survey(num_classes, len(files))
    if limit is not None and limit < len(files):
        files = [files[i] for i in np.linspace(0, len(files) - 1, limit).round().astype(int)]
    with ThreadPoolExecutor(count_cores()) as threads:
        counts = threads.map(functools.partial(count_file, num_classes=num_classes, label_map=label_map), files)
        for values, classes in progress_bar(counts, total=len(files), desc="labels", unit="image", leave=False,
                                            disable=len(files) <= SAMPLE):
            counted = classes[:VOID].sum()
            result.looked_at += 1
            result.only_void += counted == 0
            result.values[:len(values)] += values
            result.classes += classes
            result.around += (classes > 0) * counted
    return result


def count_file(path: Path, num_classes: int, label_map: LabelMap | None) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of one file: by the value in it, int64 (largest value + 1), and by class, int64 (256)."""
    values = read_values(path)
    label = to_classes(values, path, num_classes, label_map)
    return np.bincount(values.ravel()), np.bincount(label.ravel(), minlength=VOID + 1)
