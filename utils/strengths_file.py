"""strengths.csv of a search: every connection's strength over time, a line each log_interval."""
from pathlib import Path

import numpy as np

from models.connectivity import MAX_STAGES, source_name
from utils.errors import InputError
from utils.files import require_file

STRENGTHS = "strengths.csv"


def connection_names(num_stages: int) -> list[str]:
    """"D[l]<-SOURCE" of every connection that a stage can have, in the order of strengths.csv: encoder side first."""
    return [f"D[{l}]<-{source_name(j, side)}" for l in range(num_stages) for side in (0, 1) for j in range(l + 1)]


def read_whole_lines(path: Path) -> list[str]:
    """The lines of a text file that end with a line end: a run that was killed may leave half a line."""
    return [line[:-1] for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def read_strengths(folder: str | Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """strengths.csv of a search's run folder: (names, iterations (T), strengths (T, names)).

    Raises InputError if it is missing or is no such table.
    """
    path = require_file(Path(folder) / STRENGTHS, "log of the strengths")
    try:
        head, *rows = read_whole_lines(path)
        names = head.split(",")[1:]
        table = np.array([row.split(",") for row in rows], dtype=float).reshape(len(rows), len(names) + 1)
        num_stages = next(l for l in range(1, MAX_STAGES) if len(connection_names(l)) >= len(names))
        if names != connection_names(num_stages) or not np.isfinite(table).all():
            raise ValueError
    except (ValueError, OSError):
        raise InputError(f"{path} is no table of strengths; give a folder that a search wrote") from None
    if not len(rows):
        raise InputError(f"{path} contains no strengths yet; wait for the first log_interval of the search")
    return names, table[:, 0].astype(int), table[:, 1:]
