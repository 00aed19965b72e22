"""Random connectivities of a given cost: the control that a search has to beat."""
from collections.abc import Sequence

import numpy as np

from models.pruning import prune
from utils.errors import InputError

DRAWS = 200_000  # at most
BATCH = 1000  # draws
MAX_DENSITY = 0.5  # share of the connections; with more, nearly all stages read all there is


def random_connectivities(count: int, costs: Sequence[np.ndarray], targets: Sequence[float], tolerance: float,
                          rng: np.random.Generator) -> list[np.ndarray]:
    """Draws `count` different connectivities, bool (L, L, 2), that pruning accepts and that cost what is asked for.

    A draw takes a density, uniform up to MAX_DENSITY, then each connection with that probability, and prunes the
    result. It is accepted if the sum of each of `costs`, float (L, L, 2), over its connections differs from its target
    by at most the share `tolerance`. Raises InputError if there are not enough among DRAWS draws.
    """
    num_stages, found = len(costs[0]), {}
    possible = np.array([[j <= l] * 2 for l in range(num_stages) for j in range(num_stages)])
    possible = possible.reshape(num_stages, num_stages, 2)
    for _ in range(DRAWS // BATCH):
        density = rng.uniform(0, MAX_DENSITY, (BATCH, 1, 1, 1))
        draws = (rng.random((BATCH, num_stages, num_stages, 2)) < density) & possible
        enough = [(draws * cost).sum((1, 2, 3)) >= target * (1 - tolerance)
                  for cost, target in zip(costs, targets, strict=True)]  # pruning never raises it
        for draw in draws[np.logical_and.reduce(enough)]:
            kept = prune(as_strengths(draw))
            near = all(abs((kept * cost).sum() - target) <= tolerance * target
                       for cost, target in zip(costs, targets, strict=True))
            if near and kept[-1].any() and (prune(as_strengths(kept)) == kept).all():
                found[kept.tobytes()] = kept
                if len(found) == count:
                    return list(found.values())
    raise InputError(f"among {DRAWS:,} random connectivities, {len(found)} have the cost of "
                     f"{' and '.join(f'{target:.3g}' for target in targets)}, {count} are needed; "
                     f"{'ask for fewer' if found else 'such a cost is too rare to draw, so ask for another one'}")


def as_strengths(connectivity: np.ndarray) -> list[np.ndarray]:
    """A connectivity as strengths of 0 and 1, for pruning: one array (l+1, 2) a stage."""
    return [connectivity[l, :l + 1].astype(float) for l in range(len(connectivity))]
