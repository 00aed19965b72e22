"""What labels mean: label maps, classes that never occur, weights of the classes; and what is said of them."""
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from helpers import TINY, call, folders, only_run, random_batch
from models.losses import pixel_cross_entropy
from utils.checkpoint import read_checkpoint
from utils.data_options import class_weights_of, label_map_of, warn_of_labels
from utils.errors import InputError
from VOC12 import dataset
from VOC12.label_map import LabelMap
from VOC12.survey import survey

TRAIN = "train_sparse_mask.py"


def labels(folder, *arrays):
    """Label files; returns their paths."""
    files = []
    for number, array in enumerate(arrays):
        files.append(folder / f"{number}.png")
        Image.fromarray(np.asarray(array)).save(files[-1])
    return files


@pytest.mark.parametrize("rules, mapping", [
    ("255:1,11:255", {255: 1, 11: 255, 0: 0, 3: 3}),
    ("0:255,1-3:0-2", {0: 255, 1: 0, 2: 1, 3: 2}),
    (" 2=0 ; 5-7 : 1 ", {2: 0, 5: 1, 6: 1, 7: 1, 1: 1}),
    ("1:2,2:1", {1: 2, 2: 1}),  # no rule sees what another has made
    ("65535:255", {65535: 255}),
])
def test_label_map(rules, mapping):
    label_map = LabelMap(rules, 4)
    assert label_map(np.array(list(mapping))).tolist() == list(mapping.values())
    assert (LabelMap(str(label_map), 4).table == label_map.table).all()


@pytest.mark.parametrize("rules, words", [
    ("3", "'3'"), ("a:b", "'a:b'"), ("1:4", "0 to 3"), ("1:256", "0 to 3"), ("1:0,1:2", "both 0 and 2"),
    ("3-1:0", "'3-1:0'"), ("1-3:0-1", "'1-3:0-1'"), ("70000:1", "65535"), (",", "no rule"), ("maps.txt", "give a file"),
])
def test_wrong_label_map(rules, words):
    with pytest.raises(InputError, match=re.escape(words)) as error:
        LabelMap(rules, 4)
    assert error.value.about == "label_map"


def test_label_map_of_a_file(tmp_path):
    (tmp_path / "map.txt").write_bytes("# ours\n255:1  # masks\n\n11 255\n".encode("utf-16"))
    assert label_map_of(str(tmp_path / "map.txt"), 2).rules == {255: 1, 11: 255}
    assert label_map_of(None, 2, {"label_map": "255:1"}).rules == {255: 1}
    assert label_map_of("none", 2, {"label_map": "255:1"}) is None


def said_of(found, names, has_map=False):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warn_of_labels(found, names, has_map)
    return [str(warning.message) for warning in said]


@pytest.mark.parametrize("values, num_classes, words", [
    ([0, 1, 2, 255], 3, []),
    ([0, 255], 2, ["class 1:", "255 is void", "--label_map 255:1"]),
    ([0, 1], 21, ["aeroplane, ...", "--n_class 2"]),
    ([1, 2, 3], 4, ["class 0", "--label_map 1-3:0-2"]),
    ([0, 2], 3, ["class 1:", "cannot be learned"]),
])
def test_classes_that_never_occur_are_said_with_the_way_out(tmp_path, values, num_classes, words):
    names = [f"class {i}" for i in range(num_classes)]
    found = survey(labels(tmp_path, np.tile(np.uint8(values), (4, 1))), num_classes)
    said = " ".join(said_of(found, names))
    assert bool(said) == bool(words)
    for word in words:
        assert word in said or word == "aeroplane, ..."


def test_labels_that_are_mostly_void(tmp_path):
    label = np.full((10, 10), 255, np.uint8)
    label[0, :2] = 0, 1
    assert "98 %" in " ".join(said_of(survey(labels(tmp_path, label), 2), ["a", "b"]))
    with pytest.raises(InputError, match="nothing to learn"):
        said_of(survey(labels(tmp_path, np.full((4, 4), 255, np.uint8)), 2), ["a", "b"])


def test_many_labels_are_sampled_and_that_is_said(tmp_path):
    files = labels(tmp_path, *[np.full((2, 2), i % 2, np.uint8) for i in range(30)])
    found = survey(files, 3, limit=10)
    assert (found.looked_at, found.total) == (10, 30) and found.classes[:2].all()
    assert said_of(found, ["a", "b", "c"])[0].startswith("the 10 training labels that were sampled, of 30, have")
    assert survey(files + files, 3, limit=None).looked_at == 30


def test_a_survey_finds_a_value_beyond_the_classes_before_the_run(tmp_path):
    with pytest.raises(InputError, match="value 7"):
        survey(labels(tmp_path, np.uint8([[0, 7]])), 3)
    assert survey(labels(tmp_path, np.uint8([[0, 7]])), 3, LabelMap("7:2", 3)).classes[[0, 2]].tolist() == [1, 1]


def test_median_frequency_balancing(tmp_path):
    """By hand: frequencies 12/24, 10/24 of the images that have them, and 2/8 of the one that has it."""
    first = np.repeat(np.uint8([0, 1]), 8).reshape(4, 4)
    second = np.repeat(np.uint8([0, 1, 2, 255]), [4, 2, 2, 8]).reshape(4, 4)
    weights = survey(labels(tmp_path, first, second), 4).balanced_weights()
    median = 10 / 24
    assert weights == pytest.approx([median / (12 / 24), 1.0, median / (2 / 8), 1.0])


@pytest.mark.parametrize("text, words", [
    ("1\n2\n0.5\n", None), ("a 1\nb 2\nc 0.5\n", None), ("a,1\nb,2\nc,0.5\n", None),
    ("a\t1\nb: 2\nc ; 0.5\n", None), ("my b 1\n", "line 1"),
    ("1\n2\n", "2 weights for 3"), ("1\nx\n3\n", "line 2"), ("1\n-2\n3\n", "from 0 up"), ("b 1\na 2\nc 3\n", "order"),
    ("0\n0\n0\n", "not all of them 0"), ("1\nnan\n1\n", "from 0 up"),
])
def test_class_weights_of_a_file(tmp_path, text, words):
    (tmp_path / "weights.txt").write_text(text)
    if words is None:
        assert class_weights_of(str(tmp_path / "weights.txt"), ["a", "b", "c"], None) == [1, 2, 0.5]
        return
    with pytest.raises(InputError, match=words):
        class_weights_of(str(tmp_path / "weights.txt"), ["a", "b", "c"], None)


def test_weighted_loss_is_pytorchs_weighted_mean_and_equal_weights_change_nothing():
    _, label = random_batch()
    logits = torch.randn(2, 5, *label.shape[1:], dtype=torch.float64)
    weights = torch.tensor([1.0, 0.0, 3.0, 0.5, 2.0], dtype=torch.float64)
    assert torch.allclose(pixel_cross_entropy(logits, label, class_weights=weights),
                          F.cross_entropy(logits, label, weights, ignore_index=255))
    assert torch.allclose(pixel_cross_entropy(logits, label, class_weights=torch.full((5,), 7.0).double()),
                          pixel_cross_entropy(logits, label))
    void = torch.full_like(label, 255)
    assert pixel_cross_entropy(logits, void, class_weights=weights) == 0


@pytest.fixture
def masks(data, tmp_path):
    """The options of a dataset whose labels are masks of 0 and 255."""
    (tmp_path / "gt").mkdir()
    for file in (data / "gt").glob("*.png"):
        mask = np.where(np.array(Image.open(file)) > 0, 255, 0).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / "gt" / file.name)
    return [*TINY, *folders(data), "--gt_path", tmp_path / "gt", "--n_class", 2, "--mask_path", "fcn", "--max_epoch", 1,
            "--exp_path", tmp_path / "runs"]


def test_masks_of_0_and_255_are_said_and_make_no_score(masks):
    outcome = call(TRAIN, *masks)
    assert outcome.code == 0 and "--label_map 255:1" in outcome.text and "100.00" not in outcome.text
    assert outcome.text.index("--label_map") < outcome.text.index("iterations an epoch")
    assert "undefined" in outcome.text


def test_where_only_a_sample_was_looked_at_the_first_epoch_shows_what_does_not_occur(masks, monkeypatch):
    monkeypatch.setattr(dataset.SegmentationDataset.survey, "__defaults__", (1,))
    outcome = call(TRAIN, *masks, "--label_map", "255:1", "--n_class", 3, "--max_epoch", 2)
    assert outcome.text.count("in the first epoch no pixel of class 2 was seen") == 1


def test_a_label_map_is_kept_for_evaluation_and_resuming(masks, tmp_path):
    outcome = call(TRAIN, *masks, "--label_map", "255:1", "--max_epoch", 2)
    assert outcome.code == 0 and "warning" not in outcome.text
    run = only_run(tmp_path / "runs")
    last = run / "checkpoint_6.pth.tar"
    assert read_checkpoint(last).settings["label_map"] == "255:1"
    evaluation = ["eval_sparse_mask.py", "--pretrained_model", last, "--gpu", -1, *masks[masks.index("--im_path"):6 +
                  masks.index("--im_path")], "--gt_path", tmp_path / "gt", "--n_worker", 0]
    told = call(*evaluation)
    assert told.code == 0 and "absent" not in told.text
    assert "absent" in call(*evaluation, "--label_map", "none").text
    assert call(TRAIN, "--resume", run).code == 0


def test_balanced_class_weights_change_a_training_and_are_kept(masks, tmp_path):
    assert call(TRAIN, *masks, "--label_map", "255:1", "--class_weights", "balanced").code == 0
    assert call(TRAIN, *masks[:-1], tmp_path / "plain", "--label_map", "255:1").code == 0
    balanced, plain = (read_checkpoint(only_run(tmp_path / name) / "checkpoint_3.pth.tar")
                       for name in ("runs", "plain"))
    assert balanced.settings["class_weights"] == "balanced"
    assert not torch.equal(balanced.state["fc_conv.weight"], plain.state["fc_conv.weight"])
