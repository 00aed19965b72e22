"""The scores near boundaries, and the scores as a file."""
import json

import numpy as np
import pytest
import torch

from helpers import TINY, call, folders
from utils.boundary import keep_near_boundary
from VOC12.labels import VOID


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The folder of a training."""
    out = tmp_path_factory.mktemp("boundary")
    outcome = call("train_sparse_mask.py", "--mask_path", "published", *TINY, *folders(data), "--max_epoch", 1,
                   "--exp_path", out, "--run_name", "run")
    assert outcome.code == 0, outcome.text
    return out / "run"


def plain(label, inside, radius):
    """The definition, a pixel after the other."""
    top, left, bottom, right = inside
    kept = np.full_like(label, VOID)
    for y in range(top, bottom):
        for x in range(left, right):
            rows = slice(max(top, y - radius), min(bottom, y + radius + 1))
            around = label[rows, max(left, x - radius):min(right, x + radius + 1)]
            if len(np.unique(around)) > 1:
                kept[y, x] = label[y, x]
    return kept


@pytest.mark.parametrize("radius", [1, 3, 40])
def test_the_band_is_what_its_definition_says(radius):
    generator = torch.Generator().manual_seed(radius)
    label = torch.zeros(2, 21, 30, dtype=torch.int64)
    for each in label:
        for value in (1, 2, VOID):
            y, x = (int(torch.randint(0, 15, (), generator=generator)) for _ in range(2))
            each[y:y + 5, x:x + 7] = value
    inside = torch.tensor([[0, 0, 21, 30], [2, 3, 20, 25]])
    label[1, :2] = label[1, 20:] = VOID
    label[1, :, :3] = label[1, :, 25:] = VOID
    kept = keep_near_boundary(label, inside, radius)
    for one, original, area in zip(kept.numpy(), label.numpy(), inside.tolist(), strict=True):
        assert (one == plain(original, area, radius)).all()
    assert (kept[0] != VOID).any() and (kept[1, :2] == VOID).all()


def test_padding_makes_no_boundary():
    label = torch.full((1, 12, 12), VOID)
    label[:, 3:9, 3:9] = 1
    assert (keep_near_boundary(label, torch.tensor([[3, 3, 9, 9]]), 2) == VOID).all()
    assert (keep_near_boundary(label, torch.tensor([[0, 0, 12, 12]]), 2) == 1).sum() == 36 - 4


def test_the_scores_are_written(trained, data, tmp_path):
    file = tmp_path / "new" / "scores.json"
    options = ["--pretrained_model", trained, "--gpu", -1, "--n_worker", 0, *folders(data, train=False), "--json", file]
    outcome = call("eval_sparse_mask.py", *options, "--boundary", 2, "--flip")
    assert outcome.code == 0 and "within 2 pixels of a boundary: mIoU" in outcome.text, outcome.text
    content = json.loads(file.read_text())
    assert f" {100 * content['m_iou']:.2f}\n" in outcome.text
    assert content["iteration"] == 3 and content["images"] == 2 and content["flip"] and content["scales"] == [1.0]
    assert len(content["iou"]) == len(content["classes"]) == 3 and "15 connections" in content["connectivity"]
    assert content["boundary"]["pixels"] == 2 and f"mIoU {100 * content['boundary']['m_iou']:.2f} %" in outcome.text
    again = call("eval_sparse_mask.py", *options, "--boundary", 2, "--flip", "--batch_size", 2)
    assert again.code == 0 and json.loads(file.read_text())["boundary"] == content["boundary"]
    assert call("eval_sparse_mask.py", *options).code == 0 and "boundary" not in json.loads(file.read_text())


@pytest.mark.parametrize("options, words", [
    (["--boundary", 0], "--boundary is 0"), (["--boundary", 5000], "--boundary is 5000"), (["--json", "."], "a folder"),
    (["--json", "/dev/null/x.json"], "cannot write")])
def test_wrong_options_of_an_evaluation(trained, data, options, words):
    outcome = call("eval_sparse_mask.py", "--pretrained_model", trained, "--gpu", -1, *folders(data, train=False),
                   *options)
    assert outcome.code == 2 and words in outcome.text and "\n" not in outcome.text, outcome.text


def test_a_run_folder_stands_for_its_last_checkpoint(trained, data, tmp_path):
    outcome = call("measure.py", trained, "--gpu", -1, "--size", 64, 64, "--runs", 1)
    assert outcome.code == 0 and "15 connections" in outcome.text, outcome.text
    outcome = call("predict.py", data / "img" / "n5.jpg", "--checkpoint", trained, "--out", tmp_path, "--gpu", -1)
    assert outcome.code == 0 and (tmp_path / "n5.png").exists(), outcome.text
    (tmp_path / "empty").mkdir()
    for command in (["prune.py", "--checkpoint"], ["eval_sparse_mask.py", "--pretrained_model"]):
        outcome = call(*command, tmp_path / "empty")
        assert outcome.code == 2 and "contains no checkpoint_ITER.pth.tar" in outcome.text, outcome.text
