"""A search finds a structure that was planted: the labels follow from one encoder tap, the other taps are noise."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import FullyDenseNetwork
from models.connectivity import check, describe
from models.layers import set_bn_momentum
from models.losses import pixel_cross_entropy, resize_logits, total_sparse_loss
from models.pruning import gap, prune
from utils.optimizer import make_optimizer
from utils.run import RELEASED_ITERATIONS, Schedule
from utils.run_length import ADAM_ITERATIONS

CLASSES, STEPS, SIZE = 3, 150, 33


class PlantedEncoder(nn.Module):
    """Tap `informative` is the image, resized; the others are noise, drawn anew for every image."""
    channels, strides = (6, 6, 6, 6), (8, 4, 4, 2)
    informative = None

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, image):
        features = []
        for tap, (channels, stride) in enumerate(zip(self.channels, self.strides, strict=True)):
            size = [-(-length // stride) for length in image.shape[2:]]
            if tap == self.informative:
                x = F.interpolate(image, size=size, mode="bilinear", align_corners=True).repeat(1, 2, 1, 1)
            else:
                x = torch.randn(len(image), channels, *size)
            features.append(self.scale * x)
        return features


def batch():
    """Labels of random squares (4, SIZE, SIZE), and images that show them: a channel for each class, with noise."""
    label = torch.randint(0, CLASSES, (4, 1, 5, 5)).float()
    label = F.interpolate(label, size=(SIZE, SIZE), mode="nearest")[:, 0].long()
    image = F.one_hot(label, CLASSES).permute(0, 3, 1, 2) * 2.0 - 1
    return image + 0.3 * torch.randn_like(image), label


def search(strengths="sigmoid", normalized=False):
    """The strengths after a search of STEPS steps with the default rates and schedule."""
    network = FullyDenseNetwork(f"{__name__}:PlantedEncoder", depth=8, num_classes=CLASSES, strengths=strengths)
    set_bn_momentum(network, 10 / STEPS)
    warmup = network.strengths.warmup
    reference = ADAM_ITERATIONS if normalized else RELEASED_ITERATIONS
    optimizer = make_optimizer(network, 0.005, 10, reference / (STEPS * (1 - warmup)), 0.9, 4e-5, normalized)
    schedule = Schedule(STEPS, 0.9, warmup)
    network.train()
    for step in range(STEPS):
        schedule.apply(step, optimizer, network)
        image, label = batch()
        strengths = network.draw_strengths()
        loss = pixel_cross_entropy(resize_logits(network(image, strengths), label), label)
        loss = loss + 0.01 * total_sparse_loss(strengths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        network.clamp_strengths()
    schedule.apply(STEPS, optimizer, network)
    return network.final_strengths()


@pytest.mark.slow
@pytest.mark.parametrize("informative", [2, 3])
@pytest.mark.parametrize("normalized", [False, True])
def test_the_tap_that_predicts_the_labels_is_kept_and_noise_is_dropped(monkeypatch, informative, normalized):
    monkeypatch.setattr(PlantedEncoder, "informative", informative)
    strengths = search(normalized=normalized)
    kept = prune(strengths)
    check(kept, 4)
    read = set(np.argwhere(kept[:, :, 0])[:, 1].tolist())
    assert read == {informative}, describe(kept)
    assert not kept[:, 0, 1].any(), describe(kept)  # G is the average of noise
    dropped, smallest = gap(strengths, 1e-3)
    assert smallest > 100 * dropped  # the threshold decides nothing
