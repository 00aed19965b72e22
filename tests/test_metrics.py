"""Scores against a count by hand."""
import math

import numpy as np
import pytest
import torch
from conftest import random_batch

from models import SparseMask, connectivity
from utils.engine import evaluate
from utils.metrics import confusion_matrix, scores, table
from utils.runtime import Precision
from VOC12.dataset import LoadError


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


def test_evaluate_counts_each_pixel_once_and_restores_the_mode():
    network = SparseMask(connectivity.fcn(), depth=4, num_classes=5).train()
    loader = [random_batch((40, 50), n=1, seed=i) for i in range(3)]
    seen = []
    confusion = evaluate(network, loader, Precision("float32", torch.device("cpu")),
                         on_image=lambda index, image, prediction, label: seen.append((index, prediction.shape)))
    assert confusion.sum() == 3 * (40 * 50 - 9) and network.training
    assert seen == [(i, (1, 40, 50)) for i in range(3)]
    by_hand = np.zeros(5)
    for _, label in loader:
        by_hand += np.bincount(label[label != 255], minlength=5)
    assert confusion.sum(1).tolist() == by_hand.tolist()


def test_evaluate_raises_what_the_loader_found():
    network = SparseMask(connectivity.fcn(), depth=4, num_classes=5)
    with pytest.raises(ValueError, match="broken"):
        evaluate(network, [LoadError("broken file")], Precision("float32", torch.device("cpu")))
