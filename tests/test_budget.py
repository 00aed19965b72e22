"""A search that knows what its connections cost: the loss, the expected cost, the weight that adapts, the commands."""
import itertools
import json
import re

import numpy as np
import pytest
import torch

from helpers import TINY, call, folders
from models import FullyDenseNetwork, SparseMask, connectivity
from models.budget import CostLoss
from models.costs import connection_costs
from models.losses import total_sparse_loss
from models.pruning import DEFAULT_THRESHOLD, keep_used, prune_to_cost, rank
from models.strengths import SigmoidStrengths
from utils.checkpoint import read_checkpoint
from utils.errors import InputError
from utils.optimizer import NormalizedSGD

TRAIN = "train_sparse_mask.py"


def random_strengths(num_stages, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(l + 1, 2, generator=generator, dtype=torch.float64) for l in range(num_stages)]


def random_costs(num_stages, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.uniform(1, 100, (l + 1, 2)) for l in range(num_stages)]


def test_with_equal_costs_it_is_the_sparse_loss():
    strengths = random_strengths(5)
    loss = CostLoss([np.full((l + 1, 2), 7.0) for l in range(5)])(strengths)
    assert torch.allclose(loss, total_sparse_loss(strengths), rtol=0, atol=1e-12)
    assert not torch.allclose(CostLoss(random_costs(5))(strengths), total_sparse_loss(strengths), atol=1e-3)


def test_a_connection_that_costs_more_is_pressed_more():
    p = [torch.full((1, 2), 0.9, dtype=torch.float64, requires_grad=True)]
    CostLoss([np.array([[1.0, 3.0]])])(p).backward()
    cheap, dear = p[0].grad[0]
    assert dear > cheap


@pytest.mark.parametrize("seed", range(3))
def test_the_expected_cost_of_two_stages_is_the_mean_over_all_connectivities(seed):
    """With two stages the uses are independent, so that the formula is exact before the annealing."""
    strengths, costs = [p / p.max() for p in random_strengths(2, seed)], random_costs(2, seed)
    flat = np.concatenate([p.numpy().ravel() for p in strengths])
    mean = 0.0
    for kept in itertools.product((0, 1), repeat=flat.size):
        kept = np.array(kept, float)
        masks = [kept[:2].reshape(1, 2), kept[2:].reshape(2, 2)]
        used = keep_used(masks, 0.5)
        cost = sum((costs[l] * used[l, :l + 1]).sum() for l in range(2))
        mean += np.prod(np.where(kept == 1, flat, 1 - flat)) * cost
    assert float(CostLoss(costs).expected_cost(strengths)) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_with_strengths_of_0_and_1_it_is_what_pruning_keeps(seed):
    strengths, costs = [(p > 0.6).double() for p in random_strengths(9, seed)], random_costs(9, seed)
    used = keep_used([p.numpy() for p in strengths], 0.5)
    loss = CostLoss(costs)
    assert float(loss.expected_cost(strengths)) == pytest.approx(loss.pruned_cost(used), rel=1e-12)


def test_the_scale_of_a_stage_makes_it_no_cheaper():
    """A BN follows the sum of a stage, so a network with smaller strengths computes the same."""
    strengths, loss = random_strengths(5), CostLoss(random_costs(5))
    for progress in (0.0, 0.5, 1.0):
        loss.anneal(progress)
        cost = float(loss.expected_cost(strengths))
        scaled = [p * scale for p, scale in zip(strengths, (0.1, 1.0, 0.5, 0.3, 0.01), strict=True)]
        assert float(loss.expected_cost(scaled)) == pytest.approx(cost, rel=1e-12)
        assert float(loss.expected_cost([p * 0 for p in strengths])) == 0


def test_the_annealing_ends_at_the_cost_that_pruning_keeps():
    strengths = [p.where(p > 0.4, p * 1e-7) for p in random_strengths(9)]  # undecided ones above the threshold
    loss = CostLoss(random_costs(9))
    kept = loss.pruned_cost(keep_used([p.numpy() for p in strengths], DEFAULT_THRESHOLD))
    assert float(loss.expected_cost(strengths)) < 0.8 * kept
    loss.anneal(1.0)
    assert float(loss.expected_cost(strengths)) == pytest.approx(kept, rel=0.01)


def learn(costs, budget, seed, steps=500):
    """The strengths of a search in which each connection has a value of its own, seen through noise."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(l + 1, 2, generator=generator) * 0.004 for l in range(9)]
    strengths, loss = SigmoidStrengths(), CostLoss(costs, budget)
    logits = [torch.nn.Parameter(torch.zeros(l + 1, 2)) for l in range(9)]
    optimizer = NormalizedSGD([{"params": logits, "normalized": True, "dampening": 0.9}], lr=0.1, momentum=0.9)
    for step in range(steps):
        strengths.anneal(step / steps, 50)
        loss.anneal(step / steps)
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps) ** 0.9
        p = [strengths(x, noise=False) for x in logits]
        task = sum(((v + 0.01 * torch.randn(v.shape, generator=generator)) * q).sum()
                   for v, q in zip(values, p, strict=True))
        optimizer.zero_grad()
        (task + 0.01 * loss(p)).backward()
        optimizer.step()
        loss.adapt([strengths(x, noise=False) for x in logits], steps)
    strengths.anneal(1.0, 50)
    return [strengths(x, noise=False).detach().double().numpy() for x in logits], loss


@pytest.mark.parametrize("kind, shares", [("parameters", (0.15, 0.3, 0.6)), ("macs", (0.1, 0.3, 0.6))])
def test_a_search_lands_on_its_budget(kind, shares):
    costs = connection_costs(SparseMask(connectivity.full()), kind, (257, 257))
    landed = []
    for share in shares:
        budget = share * costs.sum()
        strengths, loss = learn([c[:l + 1] for l, c in enumerate(costs)], budget, seed=0)
        expected = float(loss.expected_cost([torch.from_numpy(p) for p in strengths]))
        found = loss.pruned_cost(prune_to_cost(rank(strengths), [c.numpy() for c in loss.costs], budget))
        landed += [expected / budget, found / budget]
    assert all(abs(each - 1) <= 0.1 for each in landed), landed


def test_latency_is_measured_where_a_connection_runs():
    costs = connection_costs(FullyDenseNetwork(depth=8), "latency", (129, 129))
    assert (costs[connectivity.full()] > 0).all() and costs[2, 3, 0] == 0
    assert costs[7, 7, 0] == costs[8, 7, 0]  # of equal sizes, measured once
    assert costs[8, 8, 1] > costs[8, 0, 1]  # the finest map, and one pixel


@pytest.mark.parametrize("budget", [0.5, 1e9])
def test_a_budget_that_no_decoder_has_is_refused(budget):
    with pytest.raises(InputError, match="the cheapest connection of the finest stage costs"):
        CostLoss(random_costs(3), budget)


# ---- the command

@pytest.fixture
def command(data, tmp_path):
    return [TRAIN, "--search", *TINY, *folders(data), "--max_epoch", 4, "--keep_all", "--exp_path", tmp_path]


@pytest.mark.parametrize("options", [["--cost", "parameters"], ["--cost", "latency", "--budget", 0.2]])
def test_a_resumed_search_is_the_uninterrupted_one(command, tmp_path, options):
    outcome = call(*command, *options, "--run_name", "run")
    assert outcome.code == 0 and "at the threshold 0.001 the connections cost" in outcome.text, outcome.text
    assert ("of the budget" in outcome.text) == ("--budget" in options)
    last = tmp_path / "run" / "checkpoint_12.pth.tar"
    whole = read_checkpoint(last)
    for iteration in (9, 12):
        (tmp_path / "run" / f"checkpoint_{iteration}.pth.tar").unlink()
    assert call(*command, *options, "--run_name", "run").code == 0
    again = read_checkpoint(last)
    assert all((value == whole.state[name]).all() for name, value in again.state.items())
    for name in ("weight", "integral"):
        assert again.content["cost_loss"][name] == whole.content["cost_loss"][name]
    assert (whole.content["cost_loss"]["weight"] != 0) == ("--budget" in options)
    curves = json.loads((tmp_path / "run" / "tensorboard.json").read_text())
    assert {"train/cost", "train/cost_weight"} <= curves.keys()


def test_a_search_with_a_budget_is_pruned_to_it(command, tmp_path):
    assert call(*command, "--cost", "parameters", "--budget", "30k", "--run_name", "run").code == 0
    outcome = call("prune.py", "--checkpoint", tmp_path / "run")
    assert outcome.code == 0 and "to the budget of the search, 30,000 parameters" in outcome.text, outcome.text
    mask = connectivity.load(tmp_path / "run" / "mask_budget.npy")
    network = SparseMask(mask, depth=4, num_classes=3)
    assert abs(connection_costs(network, "parameters", (64, 64)).sum() / 30_000 - 1) <= 0.1
    assert "the threshold" not in (tmp_path / "run" / "mask_budget.txt").read_text()
    said = re.search(r"the search kept (\d+) connections, \d+ % of the budget: (\d+) of them are taken"
                     r"(?:, and (\d+) that it did not keep)?\n", outcome.text)
    kept, taken, added = (int(number or 0) for number in said.groups())
    assert taken <= kept and taken + added == mask.sum()
    outcome = call("prune.py", "--checkpoint", tmp_path / "run", "--thres", 0.3)
    assert outcome.code == 0 and (tmp_path / "run" / "mask_thres_0.3.npy").exists(), outcome.text


@pytest.mark.parametrize("options, words", [
    (["--budget", "1M"], "give that too"), (["--cost", "parameters", "--budget", "x"], "is no number"),
    (["--cost", "parameters", "--budget", "1"], "cheapest connection"), (["--cost", "macs", "--budget", "9G"], "all"),
    (["--cost", "parameters", "--sparse_loss", "l1"], "--sparse_loss is l1"), (["--cost", "watts"], "invalid choice"),
    (["--cost", "parameters", "--budget", "1k", "--sparse", 0], "have to be above 0")])
def test_options_of_a_cost_that_do_not_fit(command, options, words):
    outcome = call(*command, *options)
    assert outcome.code == 2 and words in outcome.text and "\n" not in outcome.text, outcome.text


def test_a_cost_belongs_to_a_search(command):
    outcome = call(*(word for word in command if word != "--search"), "--mask_path", "fcn", "--cost", "parameters")
    assert outcome.code == 2 and "of a search" in outcome.text, outcome.text
