"""A connectivity carried over to another encoder: the rule by hand, properties, files, and the commands."""
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import TINY, call, folders, only_run
from hubconf import sparse_mask
from models import connectivity as conn
from models.mobilenet_v2 import MobileNetV2
from models.transfer import (
    PUBLISHED_ON,
    carry,
    describe_encoder,
    load_for_encoder,
    match_stages,
    match_taps,
    parse_encoder,
)
from prune import part_options
from test_properties import connectivities
from utils.checkpoint import read_checkpoint
from utils.errors import InputError

PYRAMID = ["--backbone_name", f"{__name__}:Pyramid"]
LAST = "checkpoint_2.pth.tar"
NINE, FIVE, FOUR = MobileNetV2.strides, (32, 16, 8, 4, 2), (32, 16, 8, 4)


class Pyramid(nn.Module):
    """An encoder of a convolution a tap; five taps, as ResNets have."""
    channels, strides = (10, 8, 6, 5, 4), FIVE

    def __init__(self):
        super().__init__()
        widths, strides = (3, *self.channels[::-1]), (1, *self.strides[::-1])
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=fine // coarse, padding=1) for a, b, coarse, fine in
                                    zip(widths, widths[1:], strides, strides[1:], strict=False))

    def forward(self, image):
        features = []
        for layer in self.layers:
            image = layer(image)
            features.append(image)
        return features[::-1]


class Four(Pyramid):
    """Without a tap of stride 2, as ConvNeXt and Swin are."""
    channels, strides = (10, 8, 6, 5), FOUR


class Coarse(Pyramid):
    """Without any stride that the published connectivity reads."""
    channels, strides = (6, 5), (8, 4)


@pytest.mark.parametrize("source, target, taps, stages", [
    (NINE, FIVE, [0, 0, 0, 1, 1, 2, 3, 4, 4], [0, 0, 0, 1, 1, 2, 3, 4, 4]),
    (FIVE, NINE, [0, 3, 5, 6, 7], [0, 3, 5, 6, 8]),  # the deepest of each stride, and the finest stage to the finest
    (NINE, FOUR, [0, 0, 0, 1, 1, 2, 3, None, None], [0, 0, 0, 1, 1, 2, 3, None, 3]),
    (FOUR, NINE, [0, 3, 5, 6], [0, 3, 5, 8]),
    ((8, 8, 8), (8, 8), [0, 1, 1], [0, 1, 1]),
    ((8, 8), (8, 8, 8), [0, 1], [0, 2]),
    ((16, 8), (32, 4), [None, None], [None, 1]),
    (NINE, NINE, [*range(9)], [*range(9)])])
def test_matching_by_hand(source, target, taps, stages):
    assert match_taps(source, target) == taps
    assert match_stages(source, target) == stages


@pytest.mark.parametrize("source, table, target, result, dropped", [
    (FIVE, {0: ((0,), (0,)), 1: ((1,), (0,)), 4: ((0, 1, 4), (0, 1, 2))}, NINE,
     {0: ((0,), (0,)), 3: ((3,), (0,)), 8: ((0, 3, 7), (0, 1, 4))}, "nothing"),
    # stages that become one join what they read, and do not read themselves
    (NINE, {0: ((0,), ()), 1: ((), (0, 1)), 2: ((), (2,)), 8: ((8,), (3,))}, FIVE,
     {0: ((0,), (0,)), 4: ((4,), (1,))}, "nothing"),
    # D[6] has no match: what it feeds goes, and so does D[1], which only it reads
    ((32, 16, 8, 4, 2), {1: ((1,), ()), 2: ((2,), ()), 3: ((3,), (2,)), 4: ((0,), (3, 4))}, (32, 16, 8, 2),
     {2: ((2,), ()), 3: ((0,), (3,))}, "E[3] D[3] (no tap has the stride 4), D[1] (nothing reads it)"),
    # D[2] loses its only input, and D[3] the stage that it read
    ((32, 16, 8, 4), {1: ((1,), ()), 2: ((), (2,)), 3: ((0,), (3,))}, (32, 8, 4), {2: ((0,), ())},
     "E[1] D[1] (no tap has the stride 16), D[2] (no input is left)")])
def test_carrying_by_hand(source, table, target, result, dropped):
    before = conn.from_table(len(source), table)
    carried, lines = carry(before, source, target)
    assert (carried == conn.from_table(len(target), result)).all()
    assert f"dropped: {dropped}" in lines
    assert (before == conn.from_table(len(source), table)).all()


def test_the_published_connectivity_on_five_stages():
    assert PUBLISHED_ON.strides == NINE
    carried, lines = carry(conn.published(), NINE, FIVE)
    assert (carried == conn.from_table(5, {0: ((0,), (0,)), 1: ((1,), (0,)), 4: ((0, 1, 4), (0, 1, 2))})).all()
    assert lines[:4] == ["strides: 32 32 32 16 16 8 4 2 2 -> 32 16 8 4 2",
                         "taps: E[0] E[1] E[2] -> E[0], E[3] -> E[1], E[8] -> E[4]",
                         "stages: D[1] D[2] -> D[0], D[3] -> D[1], D[8] -> D[4]", "dropped: nothing"]
    assert lines[4:] == conn.describe(carried).splitlines()


def test_the_finest_stage_is_carried_to_the_finest_and_it_is_said():
    carried, lines = carry(conn.published(), NINE, FOUR)
    assert (carried == conn.from_table(4, {0: ((0,), (0,)), 1: ((1,), (0,)), 3: ((0, 1), (0, 1, 2))})).all()
    assert "dropped: E[8] (no tap has the stride 2)" in lines
    assert any("the logits have the stride 4, not 2" in line for line in lines)


def test_what_cannot_be_carried():
    with pytest.raises(InputError, match="would read no tap of the encoder"):
        carry(conn.published(), NINE, (8, 4))
    with pytest.raises(InputError, match="do not fall"):
        carry(conn.unet(2), (2, 4), (4, 2))
    with pytest.raises(InputError, match="9 stages"):
        carry(conn.published(), FIVE, NINE)


def strides_of(number):
    """Strides, deepest first, of so many taps."""
    return st.lists(st.sampled_from([2, 4, 8, 16, 32]), min_size=number, max_size=number).map(
        lambda strides: tuple(sorted(strides, reverse=True)))


@st.composite
def transfers(draw):
    """A connectivity, the strides that it was found on, and others."""
    kept = draw(connectivities())
    return kept, draw(strides_of(len(kept))), draw(st.integers(1, 9).flatmap(strides_of))


@settings(max_examples=300, deadline=None)
@given(transfers())
def test_any_connectivity_becomes_a_valid_one_or_one_sentence(transfer):
    kept, source, target = transfer
    try:
        carried, lines = carry(kept, source, target)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert (conn.check(carried, len(target)) == carried).all()
    if source == target:
        assert (carried == kept).all() and lines == []
        return
    assert carried[:, :, 0].any() and conn.unread_stages(carried) == []
    assert all(any(line.startswith(what) for line in lines) for what in ("taps:", "stages:", "dropped:"))
    taps, stages = match_taps(source, target), match_stages(source, target)
    places = taps, [0, *(None if stage is None else stage + 1 for stage in stages[:-1])]
    for l, j, side in np.argwhere(carried):  # each comes from one that was found
        assert any(kept[stage, origin, side] for stage, to in enumerate(stages) if to == l
                   for origin, place in enumerate(places[side]) if place == j)


@settings(max_examples=100, deadline=None)
@given(connectivities(), st.data())
def test_matching_keeps_the_order(kept, data):
    source, target = data.draw(strides_of(len(kept))), data.draw(strides_of(data.draw(st.integers(1, 9))))
    for matches in (match_taps(source, target), match_stages(source, target)):
        found = [match for match in matches if match is not None]
        assert found == sorted(found)


def test_the_line_that_names_the_encoder():
    line = describe_encoder("timm:convnext_tiny", FOUR)
    assert parse_encoder(f"a mask\r\n{line}\r\nD[3] E[0]") == ("timm:convnext_tiny", FOUR)
    for text in ("", "encoder source j is tap E[j]", "encoder: x, strides", "encoder: x, strides 4 two"):
        assert parse_encoder(text) is None


def test_a_mask_whose_text_names_its_encoder(tmp_path):
    mask = tmp_path / "mask.npy"
    conn.save(mask, conn.published())
    with pytest.raises(InputError, match="name the encoder") as error:
        load_for_encoder(mask, FIVE)
    assert error.value.about == "mask_encoder"
    assert (load_for_encoder(mask, NINE)[0] == conn.published()).all()
    by_name, by_option = load_for_encoder("published", FIVE), load_for_encoder(mask, FIVE, "mobilenet_v2")
    mask.with_suffix(".txt").write_text(f"{describe_encoder('mobilenet_v2', NINE)}\n{conn.describe(conn.published())}")
    by_text, text_alone = load_for_encoder(mask, FIVE), load_for_encoder(mask.with_suffix(".txt"), FIVE)
    for carried, lines in (by_option, by_text, text_alone):
        assert (carried == by_name[0]).all() and lines[1:] == by_name[1][1:]
        assert "found on mobilenet_v2" in lines[0]
    assert load_for_encoder(mask, NINE)[1] == []
    with pytest.raises(InputError, match="mask.txt, not on") as error:
        load_for_encoder(mask, FIVE, f"{__name__}:Pyramid")
    mask.with_suffix(".txt").write_text("encoder: resnet50, strides 32 16 8 4 2")
    with pytest.raises(InputError, match="9 stages"):
        load_for_encoder(mask, FIVE)
    mask.with_suffix(".txt").write_bytes(b"\xff\xfe\x00")  # of something else
    assert (load_for_encoder(mask, NINE)[0] == conn.published()).all()


def test_names_are_the_same_for_every_encoder():
    for name in ("fcn", "unet", "full"):
        carried, lines = load_for_encoder(name, FIVE)
        assert (carried == conn.NAMED[name](5)).all() and lines == []
    with pytest.raises(InputError, match="leave it out"):
        load_for_encoder("unet", FIVE, "mobilenet_v2")


def test_hub(tmp_path):
    network = sparse_mask("published", depth=4, backbone=f"{__name__}:Pyramid")
    assert (network.connectivity == carry(conn.published(), NINE, FIVE)[0]).all()
    conn.save(tmp_path / "mask.npy", conn.published())
    network = sparse_mask(tmp_path / "mask.npy", depth=4, backbone=f"{__name__}:Pyramid", mask_encoder="mobilenet_v2")
    assert network.connectivity.sum() == 10


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """What a training of the published connectivity on another encoder printed, and its run."""
    out = tmp_path_factory.mktemp("runs")
    printed = call("train_sparse_mask.py", "--mask_path", "published", *PYRAMID, *TINY, *folders(data), "--max_epoch",
                   1, "--batch_size", 3, "--keep_all", "--save_interval", 1, "--exp_path", out)
    assert printed.code == 0, printed.text
    return printed.text, only_run(out)


def test_a_training_says_what_it_carries(trained):
    printed, run = trained
    log = (run / "log.txt").read_text()
    assert all(line in printed and line in log for line in load_for_encoder("published", FIVE)[1])
    assert (read_checkpoint(run / LAST).connectivity == carry(conn.published(), NINE, FIVE)[0]).all()


def test_evaluation_carries_what_it_compares(trained, data, tmp_path):
    evaluation = ["eval_sparse_mask.py", "--pretrained_model", trained[1] / LAST, *folders(data, train=False), *PYRAMID,
                  "--gpu", -1, "--n_worker", 0]
    conn.save(tmp_path / "mask.npy", conn.published())
    for mask in (["published"], [tmp_path / "mask.npy", "--mask_encoder", "mobilenet_v2"]):
        evaluated = call(*evaluation, "--mask_path", *mask)
        assert evaluated.code == 0 and "mIoU" in evaluated.text
    refused = call(*evaluation, "--mask_path", "unet")
    assert refused.code == 2 and "not the connectivity" in refused.text
    refused = call(*evaluation, "--mask_path", tmp_path / "mask.npy")
    assert refused.code == 2 and refused.text.endswith("(--mask_encoder)")
    assert "there is none" in call(*evaluation, "--mask_encoder", "mobilenet_v2").text


def test_a_training_resumes(trained, data, tmp_path):
    stopped = shutil.copytree(trained[1], tmp_path / "run")
    (stopped / LAST).unlink()
    resumed = call("train_sparse_mask.py", "--resume", stopped, *PYRAMID)
    assert resumed.code == 0 and "at iteration 1" in resumed.text
    whole, again = (read_checkpoint(folder / LAST).state for folder in (trained[1], stopped))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    refused = call("train_sparse_mask.py", "--resume", stopped, *PYRAMID, "--mask_encoder", "mobilenet_v2")
    assert refused.code == 2 and "--mask_encoder" in refused.text
    tuned = call("train_sparse_mask.py", "--ft_model", stopped / LAST, "--mask_path", "published", *PYRAMID, *TINY,
                 *folders(data), "--max_epoch", 1, "--batch_size", 5, "--exp_path", tmp_path / "tuned")
    assert tuned.code == 0, tuned.text


def test_a_mask_that_was_found_is_carried_as_its_text_says(data, tmp_path):
    """A search on another encoder, pruned; the printed command trains it there, and MobileNetV2 gets it carried."""
    searched = call("train_sparse_mask.py", "--search", *PYRAMID, *TINY, *folders(data), "--max_epoch", 1,
                    "--batch_size", 5, "--exp_path", tmp_path / "search")
    assert searched.code == 0, searched.text
    pruned = call("prune.py", "--checkpoint", only_run(tmp_path / "search") / "checkpoint_1.pth.tar", *PYRAMID)
    *command, flag, backbone = shlex.split(pruned.text.rpartition("next: python ")[2])
    assert pruned.code == 0 and [flag, backbone] == PYRAMID
    mask = command[-1]
    assert f"encoder: {backbone}, strides 32 16 8 4 2" in Path(mask).with_suffix(".txt").read_text().splitlines()
    trained = call(*command, flag, backbone, *TINY, *folders(data), "--max_epoch", 1, "--batch_size", 5, "--exp_path",
                   tmp_path / "train")
    assert trained.code == 0 and "carried" not in trained.text
    drawn = call("draw.py", mask, "--out", tmp_path)
    assert drawn.code == 0 and f"found on {backbone}, is carried over" in drawn.text
    assert "strides: 32 16 8 4 2 -> 32 32 32 16 16 8 4 2 2" in drawn.text


def test_pruning_names_an_encoder_that_is_not_the_default():
    assert part_options({"backbone": "mobilenet_v2", "head": "conv1x1"}) == ""
    assert part_options({"backbone": "resnet50", "head": "heads:x"}) == " --backbone_name resnet50 --head heads:x"
    assert part_options({"backbone": "my:Encoder", "head": "conv1x1"}) == " --backbone_name my:Encoder"


def test_drawing_and_measuring(tmp_path):
    drawn = call("draw.py", "published", "--backbone_name", f"{__name__}:Four", "--out", tmp_path)
    assert drawn.code == 0 and "9 connections in 3 of 4 stages" in drawn.text
    measured = call("measure.py", "published", *PYRAMID, "--size", 64, 64, "--runs", 1, "--gpu", -1)
    assert measured.code == 0 and "10 connections in 3 of 5 stages" in measured.text
    assert measured.text.count("is carried over") == 1
    refused = call("draw.py", "published", "--backbone_name", f"{__name__}:Coarse", "--out", tmp_path)
    assert refused.code == 2 and "no tap of the encoder" in refused.text


def test_an_encoder_of_the_mask_that_cannot_be(data, tmp_path):
    new = ["train_sparse_mask.py", *PYRAMID, *TINY]
    conn.save(tmp_path / "mask.npy", conn.published())
    for options, *words in ((["--mask_path", tmp_path / "mask.npy"], "9 stages", "(--mask_encoder)"),
                            (["--search", "--mask_encoder", "mobilenet_v2"], "there is none"),
                            (["--mask_path", tmp_path / "mask.npy", "--mask_encoder", "mobilnet"], "(--mask_encoder)"),
                            (["--mask_path", tmp_path / "mask.npy", "--mask_encoder", f"{__name__}:Four"], "9 stages",
                             "(--mask_encoder)"),
                            (["--mask_path", "published", "--mask_encoder", "mobilenet_v2"], "leave it out")):
        refused = call(*new, *folders(data), *options)
        assert refused.code == 2 and all(word in refused.text for word in words), refused.text
