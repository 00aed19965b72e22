"""Scores against a count by hand."""
import math

import numpy as np
import pytest
import torch

from models import SparseMask, connectivity
from utils.engine import evaluate
from utils.errors import InputError
from utils.metrics import confusion_matrix, scores, table
from utils.runtime import Precision
from VOC12.loading import LoadError
from VOC12.transforms import EvalTransform, Sample


def test_confusion_matrix_counts_pixels_and_leaves_void_out():
    truth, prediction = torch.tensor([[0, 1, 255], [2, 1, 1]]), torch.tensor([[0, 2, 1], [2, 1, 0]])
    assert confusion_matrix(prediction, truth, 3).tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 1]]


def test_scores_by_hand():
    result = scores(torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 1]]))
    assert result.iou == pytest.approx([1 / 2, 1 / 3, 1 / 2])
    assert result.m_iou == pytest.approx(4 / 9) and result.pixel_accuracy == pytest.approx(3 / 5)


def test_an_absent_class_is_left_out_and_named_even_if_predicted():
    result = scores(torch.tensor([[3, 0, 1], [0, 4, 0], [0, 0, 0]]))
    assert result.absent == [2] and result.m_iou == pytest.approx((3 / 4 + 1) / 2)
    text = table(result, ["sky", "road", "tree"])
    assert "left out of the mean: tree" in text and "75.00" in text and "87.50" in text


def test_nothing_counted_is_nan_not_an_error():
    result = scores(torch.zeros(2, 2))
    assert math.isnan(result.m_iou) and result.absent == [0, 1]


def test_a_single_class_of_several_makes_no_mean():
    """Masks of 0 and 255, where 255 is void: class 0 is everywhere, and 100 % would say that all is well."""
    alone = scores(torch.tensor([[9, 0], [0, 0]]))
    assert not alone.is_defined and "100.00" not in table(alone, ["a", "b"]).splitlines()[-2]
    assert alone.describe_m_iou() == "undefined: the labels have 1 of 2 classes"
    assert scores(torch.tensor([[9]])).describe_m_iou() == "100.00 %"
    two = scores(torch.tensor([[9, 0, 0], [0, 4, 0], [0, 0, 0]]))
    assert two.describe_m_iou() == "100.00 % of the 2 classes that occur"


@pytest.mark.parametrize("batch_size", [1, 2])
def test_evaluate_counts_each_pixel_once_and_restores_the_mode(batch_size):
    network = SparseMask(connectivity.fcn(), depth=4, num_classes=5).train()
    rng = np.random.default_rng(0)
    loader = []
    for _ in range(3):
        label = rng.integers(0, 5, (40, 50), dtype=np.uint8)
        label[:3, :3] = 255
        sample = EvalTransform(44)(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8), label)
        loader.append(Sample(*(part[None] for part in sample)))
    seen = []
    confusion = evaluate(network, loader, Precision("float32", torch.device("cpu")), batch_size=batch_size,
                         on_image=lambda index, image, prediction, label: seen.append((index, tuple(prediction.shape))))
    assert confusion.sum() == 3 * (40 * 50 - 9) and network.training
    assert seen == ([(i, (1, 44, 50)) for i in range(3)] if batch_size == 1 else [(0, (2, 44, 50)), (1, (1, 44, 50))])
    by_hand = np.zeros(5)
    for sample in loader:
        by_hand += np.bincount(sample.label[sample.label != 255], minlength=5)
    assert confusion.sum(1).tolist() == by_hand.tolist()


def test_evaluate_raises_what_the_loader_found():
    network = SparseMask(connectivity.fcn(), depth=4, num_classes=5)
    with pytest.raises(ValueError, match="broken"):
        evaluate(network, [LoadError(InputError("broken file"))], Precision("float32", torch.device("cpu")))
