"""Losses and strengths against their formulas, and the search's schedule."""
import math

import numpy as np
import pytest
import torch

from models import FullyDenseNetwork
from models.losses import pixel_cross_entropy, sparse_loss, sparsity_target, total_sparse_loss
from models.strengths import ClampStrengths, SigmoidStrengths
from utils.run import Schedule


def test_sparse_loss_is_the_formula():
    p, alpha = np.array([0.1, 0.8, 0.3]), 0.25
    mean = p.mean()
    entropy = (-p * np.log(p) - (1 - p) * np.log(1 - p)).mean()
    expected = entropy - alpha * np.log(mean) - (1 - alpha) * np.log(1 - mean)
    assert sparse_loss(torch.tensor(p), alpha).item() == pytest.approx(expected)


def test_sparse_loss_prefers_binary_strengths_with_the_target_mean():
    binary = sparse_loss(torch.tensor([1.0, 0, 0, 0]), 0.25)
    assert binary < sparse_loss(torch.full((4,), 0.25), 0.25)
    assert binary < sparse_loss(torch.tensor([1.0, 1, 0, 0]), 0.25)
    assert torch.isfinite(sparse_loss(torch.zeros(4), 0.25)) and torch.isfinite(sparse_loss(torch.ones(4), 0.25))


def test_sparsity_targets_of_the_stages():
    assert [sparsity_target(2 * (l + 1)) for l in (0, 1, 2, 8)] == [0.5, 0.5, 1 / 3, 1 / 9]


def test_cross_entropy_leaves_void_out_and_survives_void_alone():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    label = torch.tensor([[[0, 255], [255, 2]]])
    expected = -torch.log_softmax(logits, 1)[0, [0, 2], [0, 1], [0, 1]].mean()
    assert pixel_cross_entropy(logits, label).item() == pytest.approx(expected.item())
    nothing = pixel_cross_entropy(logits, torch.full_like(label, 255))
    nothing.backward()
    assert nothing.item() == 0 and (logits.grad == 0).all()


def test_clamp_starts_at_one_half_and_stays_in_range():
    strengths, w = ClampStrengths(), torch.tensor([-0.3, 1.0, 2.5])
    strengths.after_step(w)
    assert w.tolist() == [0, 1, 2]
    assert strengths(w, noise=False).tolist() == [0, 0.5, 1]
    noisy = strengths(torch.ones(20_000), noise=True)
    assert noisy.std().item() == pytest.approx(0.05, rel=0.05) and 0 <= noisy.min() and noisy.max() <= 1


def test_sigmoid_noise_is_the_released_deviation_at_one_half_whatever_beta():
    strengths = SigmoidStrengths()
    for progress in (0, 1):
        strengths.anneal(progress, 50)
        assert strengths(torch.zeros(20_000), noise=True).std().item() == pytest.approx(0.05, rel=0.05)


def test_annealing_is_exponential():
    strengths = SigmoidStrengths()
    betas = []
    for progress in (0, 0.5, 1):
        strengths.anneal(progress, 50)
        betas.append(strengths.beta.item())
    assert betas == pytest.approx([1, math.sqrt(50), 50])


def test_the_sparse_loss_alone_drives_strengths_apart():
    """The task's gradient aside, annealed strengths end binary; those that started lower end at 0."""
    strengths = SigmoidStrengths()
    a = torch.tensor([0.3, -0.1, -0.2, -0.3], requires_grad=True)
    optimizer = torch.optim.SGD([a], lr=0.5, momentum=0.9)
    for i in range(300):
        strengths.anneal(i / 300, 50)
        optimizer.zero_grad()
        sparse_loss(strengths(a, noise=False), 0.25).backward()
        optimizer.step()
    p = strengths(a, noise=False)
    assert p[0] > 0.99 and (p[1:] < 1e-3).all()


def test_poly_schedule_and_annealing_follow_from_the_iteration():
    network = FullyDenseNetwork(depth=2, num_classes=2)
    optimizer = torch.optim.SGD([{"params": [next(network.parameters())], "initial_lr": 0.1}], lr=0.1)
    schedule = Schedule(100, 0.9)
    schedule.apply(25, optimizer, network)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.75 ** 0.9)
    assert network.strengths.beta.item() == pytest.approx(50 ** 0.25)
    schedule.apply(100, optimizer, network)
    assert optimizer.param_groups[0]["lr"] == 0 and network.strengths.beta.item() == pytest.approx(50)


def test_strengths_stand_still_in_the_warm_up_and_have_the_rest_to_themselves():
    network = FullyDenseNetwork(depth=2, num_classes=2)
    groups = [{"params": [next(network.parameters())], "initial_lr": 0.1},
              {"params": network.strength_parameters(), "initial_lr": 2.0, "name": "strengths"}]
    optimizer, schedule, seen = torch.optim.SGD(groups, lr=0.1), Schedule(100, 1.0, warmup=0.2), []
    for iteration in (0, 19, 20, 60, 100):
        schedule.apply(iteration, optimizer, network)
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"], network.strengths.beta.item()))
    assert np.array(seen) == pytest.approx(np.array(
        [(0.1, 0, 1), (0.081, 0, 1), (0.08, 2, 1), (0.04, 1, math.sqrt(50)), (0, 0, 50)]), abs=1e-5)


def test_total_sparse_loss_sums_the_stages():
    strengths = [torch.rand(l + 1, 2) for l in range(3)]
    parts = [sparse_loss(p, min(2 / p.numel(), 0.5)) for p in strengths]
    assert total_sparse_loss(strengths).item() == pytest.approx(sum(parts).item())
