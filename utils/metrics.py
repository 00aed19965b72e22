"""Confusion matrix, and the scores that come from it."""
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from utils.errors import InputError
from VOC12.labels import VOID


def confusion_matrix(prediction: torch.Tensor, label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """int64 (classes, classes) on the inputs' device: rows are truth, columns prediction. Void pixels are left out.

    prediction and label: integer tensors of the same shape, (N, H, W) or another of two axes or more. Nothing here
    waits for the device: selecting the pixels that count would, and so would torch.bincount, which reads its maximum.
    """
    void = num_classes ** 2  # one cell more
    cells = torch.where(label == VOID, void, label.long() * num_classes + prediction).flatten(1)
    counts = cells.new_zeros(len(cells), void + 1)  # an image a row: a GPU adds to one number one pixel at a time
    counts.scatter_add_(1, cells, cells.new_ones(()).expand_as(cells))
    return counts.sum(0)[:void].reshape(num_classes, num_classes)


@dataclass
class Scores:
    """iou: one float a class, None where the class is absent from the truth; m_iou is the mean over the others."""
    iou: list
    m_iou: float
    pixel_accuracy: float

    @property
    def absent(self) -> list[int]:
        """Classes without a single pixel in the truth: they are left out of the mean."""
        return [i for i, value in enumerate(self.iou) if value is None]

    @property
    def is_defined(self) -> bool:
        """Whether the mean is one: over a single class that occurs, of several, 100 % would mean nothing."""
        return len(self.iou) - len(self.absent) >= min(2, len(self.iou))

    def describe_m_iou(self) -> str:
        """The mIoU in words, in percent, with how many classes it is the mean of."""
        present, total = len(self.iou) - len(self.absent), len(self.iou)
        if not self.is_defined:
            return f"undefined: the labels have {present or 'none'} of {total} classes"
        return f"{100 * self.m_iou:.2f} %" + (f" of the {present} classes that occur" if self.absent else "")

    def require_pixels(self) -> "Scores":
        """Returns itself. Raises InputError if no pixel counted, since all were void: there is no score then."""
        if math.isnan(self.m_iou):
            raise InputError("the labels of the list to evaluate contain no pixel of any class, only void, so there "
                             "is nothing to score; give other labels", about="eval_list")
        return self


def scores(confusion: torch.Tensor) -> Scores:
    """Scores from a confusion matrix. Without a single counted pixel they are NaN."""
    confusion = confusion.double().cpu()
    hits, truth, predicted = confusion.diag(), confusion.sum(1), confusion.sum(0)
    present = truth > 0
    iou = hits / (truth + predicted - hits).clamp(min=1)
    return Scores(iou=[value if there else None for value, there in zip(iou.tolist(), present.tolist(), strict=True)],
                  m_iou=float(iou[present].mean()), pixel_accuracy=float(hits.sum() / truth.sum()))


def as_json(results: Sequence[Scores], class_names: Sequence[str] | None = None, boundary: int | None = None) -> dict:
    """Scores as plain values, fractions from 0 to 1. results: of all pixels, and with `boundary` of those near one.

    class_names: where there are none, the IoU of each class is left out.
    """
    whole, *near = ({"m_iou": result.m_iou, "pixel_accuracy": result.pixel_accuracy,
                     **({"iou": result.iou} if class_names else {})} for result in results)
    return {**({"classes": list(class_names)} if class_names else {}), **whole,
            **({"boundary": {"pixels": boundary, **near[0]}} if near else {})}


def table(result: Scores, class_names: Sequence[str]) -> str:
    """The scores as readable lines: IoU of each class by name, then mIoU and pixel accuracy, in percent."""
    width = max(len(name) for name in class_names)
    lines = [f"{name:<{width}}  {'absent' if iou is None else f'{100 * iou:6.2f}'}"
             for name, iou in zip(class_names, result.iou, strict=True)]
    if result.absent:
        names = ", ".join(class_names[i] for i in result.absent)
        lines.append(f"absent from the list and left out of the mean: {names}")
    m_iou = f"{100 * result.m_iou:6.2f}" if result.is_defined else result.describe_m_iou()
    lines.append(f"{'mIoU':<{width}}  {m_iou}")
    lines.append(f"{'pixel accuracy':<{width}}  {100 * result.pixel_accuracy:6.2f}")
    return "\n".join(lines)
