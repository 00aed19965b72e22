"""Random connectivities, and the other rules that make a connectivity without a search or out of one."""
import numpy as np
import pytest
import torch

from helpers import random_batch, randomize
from models import SparseMask, connectivity
from models.costs import connection_costs
from models.inference import for_inference
from models.pruning import (
    COST_MARGIN,
    DEFAULT_THRESHOLD,
    FOUND_MARGIN,
    prune,
    prune_to_cost,
    prune_to_strongest,
    rank,
)
from models.random_connectivity import as_strengths, random_connectivities
from utils.errors import InputError


@pytest.fixture(scope="module")
def costs():
    network = SparseMask(connectivity.full())
    return [connection_costs(network, kind, (65, 97)) for kind in ("parameters", "macs")]


def test_costs_are_those_of_the_convolutions(costs):
    parameters, macs = costs
    assert parameters[8, 0, 0] == parameters[8, 0, 1] == 1280 * 64 and parameters[8, 8, 0] == 32 * 64
    assert parameters[3, 2, 1] == 64 * 64 and parameters[2, 3, 0] == 0  # finer than the stage
    assert macs[8, 0, 0] == 1280 * 64 * 3 * 4 and macs[8, 0, 1] == 1280 * 64  # stride 32, and the global feature
    assert macs[8, 8, 0] == 32 * 64 * 33 * 49 and macs[8, 8, 1] == 64 * 64 * 33 * 49
    network = SparseMask(connectivity.published())
    own = connection_costs(network, "parameters", (65, 97))
    assert (own == parameters * connectivity.published()).all()
    decoder = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in network.backbone.parameters())
    assert own.sum() == decoder - 4 * 2 * 64 - 64 * 21 - 21  # BN of four stages, the head


@pytest.mark.parametrize("name", ["published", "unet"])
def test_random_connectivities_cost_what_is_asked_for(costs, name):
    targets = [(cost * connectivity.load(name)).sum() for cost in costs]
    drawn = random_connectivities(5, costs, targets, 0.1, np.random.default_rng(0))
    assert len({mask.tobytes() for mask in drawn}) == 5
    for mask in drawn:
        connectivity.check(mask, 9)
        assert (prune(as_strengths(mask)) == mask).all() and not connectivity.unread_stages(mask)
        assert all(abs((cost * mask).sum() / target - 1) <= 0.1 for cost, target in zip(costs, targets, strict=True))
    again = random_connectivities(5, costs, targets, 0.1, np.random.default_rng(0))
    assert all((one == other).all() for one, other in zip(drawn, again, strict=True))


def test_a_cost_that_nothing_has_is_refused(costs, monkeypatch):
    monkeypatch.setattr("models.random_connectivity.DRAWS", 2000)
    with pytest.raises(InputError, match="among 2,000 random connectivities, 0 have the cost.*too rare to draw"):
        random_connectivities(1, costs, [1.0, 1e9], 0.1, np.random.default_rng(0))


def test_jaccard():
    one, other = connectivity.empty(9), connectivity.empty(9)
    one[8, :3, 0] = other[8, 1:5, 0] = True
    assert connectivity.jaccard(one, other) == 2 / 5 and connectivity.jaccard(one, one) == 1


@pytest.mark.parametrize("num_stages", [1, 2, 4, 9])
def test_sparseacn_reads_powers_of_two(num_stages):
    mask = connectivity.check(connectivity.sparseacn(num_stages), num_stages)
    for l in range(num_stages):
        distances = {l + 1 - j for j in np.flatnonzero(mask[l, :, 0])}
        assert distances == {d for d in (1, 2, 4, 8) if d <= l + 1}
        assert (mask[l, :, 0] == mask[l, :, 1]).all()


def test_deeplabv3_is_an_aspp_of_its_size():
    network = SparseMask(connectivity.load("deeplabv3"), fusion="aspp")
    decoder = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in network.backbone.parameters())
    atrous, branches = 3 * 9 * 320 * 64, (320 + 1280 + 5 * 64) * 64
    assert decoder == atrous + branches + 6 * 128 + 64 * 21 + 21 == 677_973
    stage = network.decoders.stage(8)
    assert [convolution.dilation for convolution in stage.atrous] == [(3, 3), (6, 6), (9, 9)]


def test_an_aspp_trains_and_is_folded():
    network = SparseMask(connectivity.load("deeplabv3"), depth=4, num_classes=5, fusion="aspp").train()
    image, _ = random_batch()
    network(image).sum().backward()
    assert all(p.grad is not None for p in network.decoders.parameters())
    randomize(network).eval()
    with torch.no_grad():
        assert torch.allclose(for_inference(network)(image), network(image), atol=1e-4)


@pytest.mark.parametrize("mask", ["published", "fcn"])
def test_an_aspp_of_other_inputs_is_refused(mask):
    if mask == "published":
        with pytest.raises(InputError, match="ASPP stage reads one encoder tap"):
            SparseMask(connectivity.load(mask), fusion="aspp")
    else:
        SparseMask(connectivity.load(mask), fusion="aspp")  # one tap, no G: an ASPP without pooling


def test_the_strongest_inputs_of_each_stage():
    rng = np.random.default_rng(0)
    strengths = [rng.random((l + 1, 2)) for l in range(5)]
    kept = prune_to_strongest(rank(strengths), 2)
    for l in np.flatnonzero(kept.any((1, 2))):
        assert kept[l].sum() <= 2
    best = np.sort(strengths[4].ravel())[-2:]
    assert set(strengths[4][kept[4, :5]]) == set(best)
    assert (prune_to_strongest(rank(strengths), 99) == prune([np.ones_like(p) for p in strengths])).all()


def test_ties_of_saturated_strengths_are_decided_by_their_logits():
    strengths = [np.ones((l + 1, 2)) for l in range(3)]
    ties = [np.zeros((l + 1, 2)) for l in range(3)]
    ties[2][1, 0], ties[2][2, 0] = 5, 7
    kept = prune_to_strongest(rank(strengths, ties), 2)
    assert set(map(tuple, np.argwhere(kept[2]))) == {(1, 0), (2, 0)}
    kept = prune_to_strongest(rank(strengths), 2)
    assert set(map(tuple, np.argwhere(kept[2]))) == {(0, 0), (1, 0)}  # the encoder side, the deeper source


def test_ranks_are_a_permutation_in_the_order_of_the_strengths():
    rng = np.random.default_rng(0)
    strengths = [rng.random((l + 1, 2)) for l in range(6)]
    ranks = np.concatenate([r.ravel() for r in rank(strengths)])
    assert (np.sort(ranks) == np.arange(42)).all()
    assert (np.argsort(ranks) == np.argsort(np.concatenate([p.ravel() for p in strengths]))).all()


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("num_dropped, margin", [(0, FOUND_MARGIN), (90, COST_MARGIN)])
def test_the_strongest_connections_of_a_cost(costs, share, which, num_dropped, margin):
    rng = np.random.default_rng(1)
    strengths = [rng.random((l + 1, 2)) for l in range(9)]
    each = [costs[which][l, :l + 1] for l in range(9)]
    target = share * costs[which].sum()
    kept = connectivity.check(prune_to_cost(rank(strengths), each, target, num_dropped))
    assert abs((costs[which] * kept).sum() / target - 1) <= margin
    assert (prune(as_strengths(kept)) == kept).all()


def test_what_is_strong_comes_before_what_is_weak():
    strengths = [np.full((l + 1, 2), 0.1) for l in range(3)]
    strengths[2][:, 0] = 0.9, 0.8, 0.7
    kept = prune_to_cost(rank(strengths), [np.ones((l + 1, 2)) for l in range(3)], 2)
    assert np.argwhere(kept).tolist() == [[2, 0, 0], [2, 1, 0]]
    dear = [np.ones((l + 1, 2)) for l in range(3)]
    dear[2][1, 0] = 5  # too dear: the next one is taken
    kept = prune_to_cost(rank(strengths), dear, 2)
    assert np.argwhere(kept).tolist() == [[2, 0, 0], [2, 2, 0]]


def test_what_the_search_kept_is_taken_as_long_as_it_fits():
    """One dear connection is nearly the budget; the cheap ones that the search kept as well still fit."""
    strengths = [np.full((l + 1, 2), 1e-8) for l in range(3)]
    strengths[2][:, 0] = 0.9, 0.8, 0.7
    costs = [np.ones((l + 1, 2)) for l in range(3)]
    costs[2][0, 0] = 97
    num_dropped = sum(int((p <= DEFAULT_THRESHOLD).sum()) for p in strengths)
    kept = prune_to_cost(rank(strengths), costs, 100, num_dropped)
    assert np.argwhere(kept).tolist() == [[2, 0, 0], [2, 1, 0], [2, 2, 0]]
    costs[2][0, 0] = 2  # what the search kept costs 4: the weak ones fill up to the budget of 5
    kept = prune_to_cost(rank(strengths), costs, 5, num_dropped)
    assert np.argwhere(kept).tolist() == [[2, 0, 0], [2, 0, 1], [2, 1, 0], [2, 2, 0]]


@pytest.mark.parametrize("dear, taken", [(83, [0, 1, 2]), (102, [0, 1, 2]), (103, [0, 1]), (107, [0]),
                                         (81, [0, 1, 2, 3])])
def test_what_the_search_kept_is_taken_whole_within_a_tenth_of_the_budget(dear, taken):
    """Otherwise its weakest are left out first. It is filled up with what the search dropped only below the tenth."""
    strengths = [np.full((l + 1, 2), 1e-8) for l in range(4)]
    strengths[3][:, 0] = 1, 0.9, 0.8, 1e-7
    costs = [np.full((l + 1, 2), 50.0) for l in range(4)]
    costs[3][:, 0] = dear, 4, 4, 10
    num_dropped = sum(int((p <= DEFAULT_THRESHOLD).sum()) for p in strengths)
    kept = prune_to_cost(rank(strengths), costs, 100, num_dropped)
    assert np.argwhere(kept).tolist() == [[3, source, 0] for source in taken]


@pytest.mark.parametrize("dear, taken", [(90, [0, 1, 2, 3]), (91, [0, 2, 3]), (100, [0, 2, 3]), (101, [1, 2, 3])])
def test_where_the_budget_is_exceeded_the_weakest_go_first(dear, taken):
    """A dear connection stays if the cost is within a tenth of the budget without a weaker one."""
    strengths = [np.full((l + 1, 2), 1e-8) for l in range(4)]
    strengths[3][:, 0] = 0.8, 0.5, 0.9, 0.95
    costs = [np.full((l + 1, 2), 1000.0) for l in range(4)]  # what was dropped does not fit
    costs[3][:, 0] = dear, 10, 5, 5
    num_dropped = sum(int((p <= DEFAULT_THRESHOLD).sum()) for p in strengths)
    kept = prune_to_cost(rank(strengths), costs, 100, num_dropped)
    assert np.argwhere(kept)[:, 1].tolist() == taken
