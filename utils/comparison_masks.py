"""The masks that a comparison derives from what was found: random ones of its cost, and it without each connection."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models import SparseMask, connectivity
from models.costs import connection_costs
from models.pruning import prune
from models.random_connectivity import as_strengths, random_connectivities
from utils.ablation import connection_name
from utils.files import write_atomically

TOLERANCE = 0.1  # of a random network's cost


def random_masks(folder: Path, number: int, found: Sequence[np.ndarray], network: SparseMask,
                 size: Sequence[int]) -> list[Path]:
    """Files of random masks, whose parameters and multiply-adds are near the mean of those of `found`.

    network: one with all connections; size: (H, W) of the image that multiply-adds are those of. Files that are there
    stay, though more seeds may have changed the mean.
    """
    paths = [folder / f"mask_{i}.txt" for i in range(number)]
    if not all(path.exists() for path in paths):
        costs = [connection_costs(network, kind, size) for kind in ("parameters", "macs")]
        targets = [float(np.mean([(cost * mask).sum() for mask in found])) for cost in costs]
        drawn = random_connectivities(number, costs, targets, TOLERANCE, np.random.default_rng(0))
        for path, mask in zip(paths, drawn, strict=True):
            write_mask(path, mask)
    return paths


def masks_without(folder: Path, mask: np.ndarray) -> dict[str, Path]:
    """{name of a connection: file of the mask without it}, for each whose removal leaves a network.

    The result is pruned, for a stage may be left without input or without reader.
    """
    files = {}
    for stage, source, side in np.argwhere(mask).tolist():
        without = mask.copy()
        without[stage, source, side] = False
        without = prune(as_strengths(without), 0.5)
        if without[-1].any():
            path = folder / f"retrained_{stage}_{source}_{side}.txt"
            files[connection_name(stage, source, side)] = write_mask(path, without)
    return files


def write_mask(path: Path, mask: np.ndarray) -> Path:
    """Writes a connectivity as text, unless the file is there. Returns the path."""
    if not path.exists():
        with write_atomically(path) as temporary:
            temporary.write_text(connectivity.describe(mask) + "\n", encoding="utf-8")
    return path
