"""Inference in tiles gives what a single pass gives: any encoder, connectivity and size; predict.py decides when."""
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from helpers import call, randomize
from models import SparseMask, connectivity
from models.decoder import Stage
from models.inference import TestTimeAugmentation, for_inference
from models.layers import resize
from models.tiling import TiledInference, resize_part, spans
from utils import memory, prediction
from utils.errors import InputError
from VOC12.image_files import ImageFiles
from VOC12.loading import Loaded, collate
from VOC12.transforms import EvalTransform, to_network


class SmallEncoder(nn.Module):
    """Four features; a place of the deepest depends on 15 pixels round it."""
    channels, strides = (12, 10, 8, 6), (16, 8, 4, 2)

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1)
                                    for a, b in ((3, 6), (6, 8), (8, 10), (10, 12)))

    def forward(self, image):
        features = []
        for layer in self.layers:
            image = layer(F.relu6(image))
            features.append(image)
        return features[::-1]


class Concatenation(Stage):
    """A fusion of somebody's own."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.mix = nn.Conv2d(len(self.inputs) * self.depth, self.depth, 1, bias=False)

    def forward(self, features, size, strengths=None):
        maps = [self.resize(self.connect(i, features, strengths), self.strides[i], size) for i in self.inputs]
        return self.bn(self.mix(torch.cat(maps, dim=1)))


def double(depth, num_classes):
    """A head that doubles the resolution."""
    return nn.ConvTranspose2d(depth, num_classes, 2, stride=2)


def small(name="full", **parts):
    """A network of four stages, in double precision, for rounding not to hide an error."""
    mask = connectivity.NAMED[name](4)
    return randomize(SparseMask(mask, f"{__name__}:SmallEncoder", depth=8, num_classes=5, **parts)).double().eval()


def random_image(size):
    """(1, 3, *size), and what reads a part of it. One half is much brighter: no part has the average of the whole."""
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    image[:, :, :, size[1] // 2:] += 3
    return image, lambda rows, columns: image[:, :, slice(*rows), slice(*columns)]


def joined(tiled, read, size):
    """The scores of all rectangles. Each pixel occurs once."""
    parts = list(tiled.scores(read, size))
    whole = torch.full((1, parts[0][2].shape[1], *size), torch.nan, dtype=parts[0][2].dtype)
    for rows, columns, scores in parts:
        place = whole[:, :, slice(*rows), slice(*columns)]
        assert place.isnan().all() and place.shape == scores.shape
        place.copy_(scores)
    return whole


@pytest.mark.parametrize("size", [(257, 321), (300, 211), (411, 40)])
@pytest.mark.parametrize("name", sorted(connectivity.NAMED.keys() - {"published"}))
def test_tiles_give_the_logits_of_a_single_pass(name, size):
    network = small(name)
    image, read = random_image(size)
    with torch.no_grad():
        expected = resize(network(image), size)
    tiled = TiledInference(network, 193, margin=64)
    assert torch.allclose(joined(tiled, read, size), expected, rtol=0, atol=1e-9)
    assert torch.equal(tiled(read, size), expected.argmax(1)[0].to(torch.uint8))


def test_tiles_with_a_fusion_of_one_s_own():
    network = small(fusion=f"{__name__}:Concatenation")
    image, read = random_image((270, 230))
    with torch.no_grad():
        expected = resize(network(image), (270, 230))
    assert torch.allclose(joined(TiledInference(network, 193, margin=64), read, (270, 230)), expected, atol=1e-9)


@pytest.mark.parametrize("options", [{"scales": (1.0,), "flip": True}, {"scales": (0.5, 1.0, 1.4), "flip": True}])
def test_tiles_with_test_time_augmentation(options):
    network, size = small(), (251, 310)
    image, read = random_image(size)
    expected = TestTimeAugmentation(for_inference(network), **options)(image)
    tiled = TiledInference(network, 257, margin=64, **options)
    assert torch.allclose(joined(tiled, read, size), expected, rtol=0, atol=1e-9)


def test_mobilenet_in_tiles():
    """With a margin beyond its receptive field to rounding, with the default margin nearly."""
    network, size = randomize(SparseMask(connectivity.published(), depth=8, num_classes=5)).double().eval(), (1217, 40)
    image, read = random_image(size)
    with torch.no_grad():
        expected = resize(network(image), size)
    assert torch.allclose(joined(TiledInference(network, 1025, margin=352), read, size), expected, rtol=0, atol=1e-9)
    assert torch.allclose(joined(TiledInference(network, 513), read, size), expected, rtol=0, atol=1e-2)
    assert torch.allclose(joined(TiledInference(network, 1025), read, size), expected, rtol=0, atol=1e-4)


def test_tiles_in_mixed_precision():
    network, size = small().float(), (200, 250)
    image, read = random_image(size)
    image = image.float()
    tiled = TiledInference(network, 129, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        classes = tiled(lambda *part: read(*part).float(), size)
    with torch.no_grad():
        assert (classes == resize(network(image), size).argmax(1)[0]).float().mean() > 0.95


def test_a_part_of_a_resize_is_that_part():
    x = torch.randn(1, 2, 23, 40, dtype=torch.float64)
    whole = resize(x, (57, 33))
    part = resize_part(x[:, :, 5:17, 10:35], (5, 10), (23, 40), ((15, 40), (10, 25)), (57, 33))
    assert torch.allclose(part, whole[:, :, 15:40, 10:25], atol=1e-12)


def test_spans_cover_an_axis():
    for length in (1, 100, 129, 130, 1000):
        parts = spans(length, 129, 64, 32)
        assert parts[0][0] == 0 and parts[-1][1] == length
        assert all(a[1] == b[0] and a[1] % 32 == 0 for a, b in pairwise(parts))
        assert len(parts) == 1 if length <= 129 else max(b - a for a, b in parts) <= 64 + 32


def test_what_cannot_go_in_tiles_is_refused():
    for tile in (128, 10 ** 6, -1):
        with pytest.raises(InputError, match="129 to 8193"):
            TiledInference(small(), tile)
    _, read = random_image((300, 300))
    with pytest.raises(InputError, match="the head changes the resolution"):
        TiledInference(small(head=f"{__name__}:double"), 129)(read, (300, 300))
    network = small()
    network.backbone.strides = (32, 16, 8, 4)
    with pytest.raises(InputError, match="stride"):
        TiledInference(network, 129)(read, (300, 300))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """An image of 300x260 pixels, a checkpoint, and predict.py with both: options -> (outcome, classes)."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("tiles")
    noise = np.random.default_rng(0).integers(0, 255, (13, 15, 3), dtype=np.uint8)
    for name in "ab":
        Image.fromarray(noise).resize((300, 260)).save(root / f"{name}.png")
    network = randomize(SparseMask(connectivity.published(), depth=8, num_classes=5)).eval()
    sample = collate([Loaded(ImageFiles([root / "a.png"], EvalTransform(64))[0])]).sample
    with torch.no_grad():  # the classes become about equally frequent
        network.fc_conv.bias -= network(to_network(sample, "cpu")[0]).mean((0, 2, 3))
    torch.save({"state_dict": network.state_dict(), "settings": {"crop_size": 64}}, root / "c.pth.tar")

    def predict(*options):
        outcome = call("predict.py", root / "a.png", root / "b.png", "--checkpoint", root / "c.pth.tar", "--out",
                       root / "out", "--gpu", -1, "--n_worker", 0, *options)
        return outcome, np.array(Image.open(root / "out" / "b.png")) if outcome.code == 0 else None

    return predict


def test_predict_in_tiles(job):
    outcome, expected = job("--tile", 0)
    assert "warning" not in outcome.text and len(np.unique(expected)) > 2
    assert (job()[1] == expected).all()
    assert (job("--tile", 193)[1] != expected).mean() < 0.002
    outcome, _ = job("--tile", 100)
    assert outcome.code == 2 and "give 129 to 8193" in outcome.text and "--tile" in outcome.text
    outcome, _ = job("--tile", 193, "--compile")
    assert outcome.code == 2 and "--compile" in outcome.text


def test_predict_takes_tiles_where_a_pass_would_not_fit(job, monkeypatch):
    monkeypatch.setattr(prediction, "TILES", (193, 129))
    monkeypatch.setattr(prediction, "available_memory", lambda device: 2 * 193 * 193 * prediction.PIXEL_BYTES)
    outcome, tiles = job()
    assert outcome.code == 0 and outcome.text.count("warning: ") == 1 and "a.png has 300x260 pixels" in outcome.text
    assert "tiles of 193 pixels" in outcome.text
    assert (tiles == job("--tile", 193)[1]).all()


def test_predict_takes_tiles_after_memory_ran_out(job, monkeypatch):
    def fail(self, sample):
        raise torch.OutOfMemoryError("CUDA out of memory")
    expected = job("--tile", 193)[1]
    monkeypatch.setattr(prediction, "TILES", (193, 129))
    monkeypatch.setattr(prediction.Predictor, "whole", fail)
    outcome, tiles = job()
    assert outcome.code == 0 and outcome.text.count("warning: ") == 1
    assert (tiles == expected).all()


def test_available_memory_is_what_a_container_has_left(monkeypatch, tmp_path):
    whole = memory.available_memory(torch.device("cpu"))
    assert 2 ** 24 < whole < 2 ** 50
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available_memory(torch.device("cpu")) > 2 ** 24
    for name, text in (("max", "1000"), ("current", "400"), ("stat", "anon 150\ninactive_file 50\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory.available_memory(torch.device("cpu")) == 650  # what is only cached can be had
    (tmp_path / "memory.max").write_text("max")
    assert memory.available_memory(torch.device("cpu")) > 2 ** 24
