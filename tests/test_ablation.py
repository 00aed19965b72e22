"""What each connection is worth: the network without it, the table and the picture."""
import json

import pytest
import torch

from helpers import TINY, call, folders, random_batch, randomize
from models import SparseMask, connectivity
from models.inference import for_inference
from utils.ablation import without_each
from utils.errors import InputError


def test_a_connection_is_left_out_of_its_stage_and_nothing_else():
    network = randomize(SparseMask(connectivity.published(), depth=4, num_classes=3)).eval()
    image, _ = random_batch()
    sizes = [-(-64 // stride) for stride in network.backbone.strides]
    taps = [torch.randn(2, c, size, size) for c, size in zip(network.backbone.channels, sizes, strict=True)]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    places = []
    for place, changed in without_each(network):
        places.append(place)
        stage, source, side = place
        expected = SparseMask(connectivity.published(), depth=4, num_classes=3)
        expected.load_state_dict(network.state_dict())
        expected.decoders.stage(stage).inputs.remove((source, side))  # the sum without that term
        with torch.no_grad():
            wanted = expected.eval().decoders(taps)
            assert torch.allclose(changed.decoders(taps), wanted, atol=1e-5)
            assert not torch.allclose(network.decoders(taps), wanted, atol=1e-2)
            assert torch.allclose(for_inference(changed)(image), expected(image), atol=1e-4)
    assert len(places) == len(set(places)) == 15
    assert all((value == before[name]).all() for name, value in network.state_dict().items())


class Biased(torch.nn.Conv2d):
    """A connection that adds 1 whatever its parameters are."""

    def __init__(self, in_channels, depth):
        super().__init__(in_channels, depth, 1)

    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize("parts, mask", [({"connection": f"{__name__}:Biased"}, "fcn"),
                                         ({"fusion": "aspp"}, "deeplabv3")])
def test_what_cannot_be_left_out_is_refused(parts, mask):
    network = SparseMask(connectivity.load(mask), depth=4, num_classes=3, **parts)
    with pytest.raises(InputError, match="left out"):
        next(without_each(network))


def test_the_command(data, tmp_path):
    outcome = call("train_sparse_mask.py", "--mask_path", "unet", *TINY, *folders(data), "--max_epoch", 1,
                   "--exp_path", tmp_path, "--run_name", "run")
    assert outcome.code == 0, outcome.text
    outcome = call("eval_sparse_mask.py", "--pretrained_model", tmp_path / "run", "--gpu", -1, "--n_worker", 0,
                   *folders(data, train=False), "--without_each", "--boundary", 3, "--json", tmp_path / "worth.json")
    assert outcome.code == 0, outcome.text
    content = json.loads((tmp_path / "worth.json").read_text())
    each = content["without_each"]
    assert len(each) == 17 and {one["name"] for one in each} >= {"D[8] <- E[8]", "D[8] <- D[7]", "D[0] <- E[0]"}
    assert all(0 <= one["m_iou"] <= 1 and 0 <= one["boundary"]["m_iou"] <= 1 for one in each)
    worst = min(each, key=lambda one: one["m_iou"])
    lines = outcome.text.splitlines()
    first = lines[next(i for i, line in enumerate(lines) if line.startswith("without")) + 1]
    assert first.startswith(worst["name"]) and f"{100 * (worst['m_iou'] - content['m_iou']):+.2f}" in first
    drawn = (tmp_path / "worth.svg").read_text()
    assert "D[8]&lt;-E[8]" in drawn and (tmp_path / "worth.png").exists()
