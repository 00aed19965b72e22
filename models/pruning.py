"""Pruning: strengths -> connectivity (paper section 3.4). A pure function of arrays; no torch."""
from collections.abc import Sequence

import numpy as np

from models.connectivity import empty
from utils.errors import InputError

DEFAULT_THRESHOLD = 1e-3
COST_MARGIN = 0.05  # of the cost that a decoder shall have, where connections are left out or added to reach it
FOUND_MARGIN = 0.1  # where what the search kept is taken as it is


def prune(strengths: Sequence[np.ndarray], threshold: float = DEFAULT_THRESHOLD) -> np.ndarray:
    """Strengths -> connectivity, in three steps.

    strengths: L arrays of shape (l+1, 2), deepest first, in [0, 1]; returns bool (L, L, 2). Raises InputError for other
    shapes or values. The result may be empty, or lack an input of the finest stage: see `require_input`.
    """
    strengths = [np.asarray(p) for p in strengths]
    check_strengths(strengths, threshold)
    kept = keep_used(strengths, threshold)
    merge_duplicates(kept)
    drop_subsets(kept)
    return kept


def rank(strengths: Sequence[np.ndarray], ties: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
    """The rank of each strength among all, 0 for the weakest: integer arrays of the same shapes (l+1, 2).

    ties: numbers of the same shapes that decide between equal strengths, since p = sigmoid(x) is 1 from x = 37 on. What
    is left equal is ranked by its stage, the finer one higher, then the encoder side, then the deeper source.
    """
    values, decisive = (np.concatenate([np.asarray(a).T.ravel() for a in arrays])
                        for arrays in (strengths, strengths if ties is None else ties))
    places = np.concatenate([np.arange(p.size)[::-1] + 1000 * l for l, p in enumerate(strengths)])
    ranks = np.empty(values.size, dtype=int)
    ranks[np.lexsort((places, decisive, values))] = np.arange(values.size)
    ends = np.cumsum([p.size for p in strengths])[:-1]
    return [part.reshape(2, -1).T for part in np.split(ranks, ends)]


def prune_to_strongest(ranks: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Ranks of strengths -> connectivity with at most `count` inputs a stage, the strongest: MaskConnect's rule (Ahmed
    and Torresani 2018). The steps of `prune` follow.
    """
    return prune([(r >= np.sort(r.ravel())[-min(count, r.size)]).astype(float) for r in ranks], 0.5)


def prune_to_cost(ranks: Sequence[np.ndarray], costs: Sequence[np.ndarray], target: float,
                  num_dropped: int = 0) -> np.ndarray:
    """Ranks of strengths -> connectivity of the strongest connections that cost together about the target.

    costs: of the connections, arrays (l+1, 2), in the unit of the target. num_dropped: how many of the weakest the
    search has dropped. The others, after `prune`, are the result if their cost is within FOUND_MARGIN of the target. If
    not, the weakest of them are left out, one after the other, until it is. If it never is, the connectivity is built
    anew: the strongest connection of all stages that are used is taken next, of the finest at first, and of another
    once a connection that reads it is taken. What would cost more than the target and COST_MARGIN is left out: a single
    large connection can be a fifth of a decoder. What the search has dropped is taken only while the cost is below the
    target less COST_MARGIN.
    """
    for weakest in range(num_dropped, sum(r.size for r in ranks)):
        found = prune([(r >= weakest).astype(float) for r in ranks], 0.5)
        if abs(total_cost(found, costs) - target) <= target * FOUND_MARGIN:
            return found
    chosen, kept, cost = [np.zeros(r.shape) for r in ranks], empty(len(ranks)), 0.0
    waiting = [(int(number), l, *place) for l, r in enumerate(ranks) for place, number in np.ndenumerate(r)]
    used = {len(ranks) - 1}
    while candidates := [each for each in waiting if each[1] in used]:
        strongest = max(candidates)
        waiting.remove(strongest)
        number, l, source, side = strongest
        if number < num_dropped and cost >= target * (1 - COST_MARGIN):
            break
        chosen[l][source, side] = 1
        tried = prune(chosen, 0.5)
        new_cost = total_cost(tried, costs)
        if new_cost > target * (1 + COST_MARGIN):
            chosen[l][source, side] = 0
            continue
        kept, cost = tried, new_cost
        if side == 1 and source > 0:  # decoder-side source j is stage j - 1
            used.add(source - 1)
    return kept


def total_cost(kept: np.ndarray, costs: Sequence[np.ndarray]) -> float:
    """What a connectivity costs, given the costs of the connections, arrays (l+1, 2)."""
    return sum(float(c[kept[l, :l + 1]].sum()) for l, c in enumerate(costs))


def require_input(kept: np.ndarray, strengths: Sequence[np.ndarray], threshold: float) -> None:
    """Raises InputError if pruning left the finest stage without input: then there is no network."""
    if not kept[-1].any():
        strongest = max(float(np.max(p)) for p in strengths)
        raise InputError(f"nothing is left at the threshold {threshold:g}: the finest stage keeps no input (its "
                         f"strongest strength is {float(np.max(strengths[-1])):.3g}, the strongest of all "
                         f"{strongest:.3g}); lower the threshold, or search with a smaller weight of the sparse loss")


def check_strengths(strengths: Sequence[np.ndarray], threshold: float) -> None:
    """Raises InputError unless the strengths are L finite arrays (l+1, 2) in [0, 1] and the threshold fits them."""
    if not strengths:
        raise InputError("there are no strengths to prune; give one array (l+1, 2) for each stage l")
    check_threshold(threshold)
    for l, p in enumerate(strengths):
        if p.shape != (l + 1, 2):
            raise InputError(f"the strengths of stage {l} have the shape {p.shape}; expected {(l + 1, 2)}")
        if not (np.isfinite(p).all() and (p >= 0).all() and (p <= 1).all()):
            raise InputError(f"the strengths of stage {l} go from {p.min()} to {p.max()}; expected 0 to 1")


def keep_used(strengths: Sequence[np.ndarray], threshold: float) -> np.ndarray:
    """Step 1, finest stage first: what is above the threshold, in stages that the finest stage depends on."""
    kept = empty(len(strengths))
    used = {len(strengths) - 1}
    for l in reversed(range(len(strengths))):
        if l in used:
            kept[l, :l + 1] = strengths[l] > threshold
            used.update(np.flatnonzero(kept[l, 1:, 1]).tolist())  # decoder-side source j is stage j - 1
    return kept


def merge_duplicates(kept: np.ndarray) -> None:
    """Step 2, deepest stage first, in place: stages that read the same become one; what reads nothing is dropped."""
    finest = len(kept) - 1
    for l in range(finest):
        if not kept[l].any():
            kept[:, l + 1, 1] = False
            continue
        for other in range(l + 1, finest):
            if (kept[other] == kept[l]).all():
                kept[other] = False
                kept[:, l + 1, 1] |= kept[:, other + 1, 1]
                kept[:, other + 1, 1] = False


def drop_subsets(kept: np.ndarray) -> None:
    """Step 3, second-finest stage first, in place: a deeper stage that adds no input and no reader is dropped."""
    for l in reversed(range(len(kept) - 1)):
        for deeper in range(l):
            no_new_input = not (kept[deeper] & ~kept[l]).any()
            no_new_reader = not (kept[:, deeper + 1, 1] & ~kept[:, l + 1, 1]).any()
            if no_new_input and no_new_reader:
                kept[deeper] = False
                kept[:, deeper + 1, 1] = False


def check_threshold(threshold: float) -> None:
    """Raises InputError unless strengths, which are in [0, 1], can be above the threshold."""
    if not 0 <= threshold < 1:
        raise InputError(f"the threshold is {threshold}; strengths are between 0 and 1, so give one from 0 to below 1",
                         about="threshold")


def gap(strengths: Sequence[np.ndarray], threshold: float) -> tuple[float | None, float | None]:
    """(largest strength at or below the threshold, smallest above it); None where there is none.

    Both follow from the threshold alone: a connection above it can still be dropped, with a stage that nothing reads.
    """
    values = np.concatenate([p.ravel() for p in strengths])
    dropped, kept = values[values <= threshold], values[values > threshold]
    return (dropped.max() if len(dropped) else None), (kept.min() if len(kept) else None)
