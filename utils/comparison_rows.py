"""The results of a comparison: a row for each entry and seed, kept in OUT/comparison.json, and their arithmetic."""
import hashlib
import itertools
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from models import connectivity
from models.pruning import DEFAULT_THRESHOLD, gap, prune
from utils.checkpoint import read_checkpoint
from utils.comparison import Job
from utils.errors import InputError
from utils.files import write_atomically
from VOC12.lists import read_list

FILE = "comparison.json"
THRESHOLDS = (DEFAULT_THRESHOLD, 0.1, 0.5)
# Settings that make no other comparison: where the runs compute and what they write.
FREE = {"gpu", "n_worker", "im_path", "gt_path", "timeout", "log_interval", "eval_interval", "save_interval",
        "keep_all", "compile", "cuda_graphs", "deterministic"}
LISTS, FILES = ("training_list", "eval_list"), ("pretrained_model", "class_names", "class_weights")


def describe_settings(settings: Mapping) -> dict:
    """What makes runs comparable: the settings, with the lists by their names' digest and files by their names."""
    described = {name: value for name, value in settings.items() if name not in FREE}
    for name in LISTS:
        names = read_list(settings[name])
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
        described[name] = f"{len(names)} images, {digest}"
    for name in FILES:
        if settings.get(name) is not None:
            described[name] = Path(settings[name]).name
    return described


def load(out: Path, settings: Mapping, defaults: Mapping) -> dict:
    """comparison.json of the folder, or a new one: {"settings", "rows"}.

    settings: of describe_settings. defaults: what a comparison had that did not store a setting, being older than it.
    Raises InputError if the folder has a comparison with other settings, or another file.
    """
    path = out / FILE
    if not path.exists():
        return {"settings": dict(settings), "rows": []}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stored, rows = content["settings"], content["rows"]
        known = {(row["entry"], row["seed"]) for row in rows}
        assert len(known) == len(rows)
    except (OSError, ValueError, LookupError, TypeError, AssertionError):
        raise InputError(f"{path} is no file of a comparison; give another folder, or remove it", about="out") from None
    for name in sorted({*stored, *settings}):
        value = stored.get(name, defaults.get(name))
        if value != settings.get(name):
            raise InputError(f"{out} has another comparison, whose {name} is {value!r}, not {settings.get(name)!r}; "
                             f"give another folder, or the same options", about="out")
    return {**content, "settings": dict(settings)}


def save(out: Path, content: Mapping) -> None:
    """Writes comparison.json."""
    with write_atomically(out / FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_result(path: Path) -> dict | None:
    """What an evaluation wrote; None if it is not there yet."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove it, and its evaluation is run again") from None


def collect(content: dict, jobs: Sequence[Job]) -> dict:
    """The content with the rows of those jobs that have ended. A row stays when its folder is gone."""
    rows = {(row["entry"], row["seed"]): row for row in content["rows"]}
    for job in jobs:
        result = None if (job.entry, job.seed) in rows else read_result(job.result)
        if result is not None:
            facts = {} if job.search_parts is None else search_facts(job.folder / "search", job.search_parts)
            rows[job.entry, job.seed] = {"entry": job.entry, "seed": job.seed, **result, **facts}
    return {**content, "rows": list(rows.values())}


def search_facts(run: Path, parts: Mapping) -> dict:
    """Of a search's run folder: what is kept at several thresholds, as text, and the gap. Empty if there is none.

    parts: the names of the search's parts, by kind; those of the user's own are trusted.
    """
    if not run.is_dir():
        return {}
    checkpoint = read_checkpoint(str(run)).require("search")
    checkpoint.require_parts(parts)
    strengths = checkpoint.build().final_strengths()
    dropped, kept = gap(strengths, DEFAULT_THRESHOLD)
    return {"thresholds": {f"{threshold:g}": connectivity.describe(prune(strengths, threshold))
                           for threshold in THRESHOLDS},
            "largest_dropped": dropped, "smallest_kept": kept}


def mask_of(row: Mapping) -> np.ndarray:
    """The connectivity of a row, bool (L, L, 2)."""
    return connectivity.parse(row["connectivity"])


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (of a sample, n - 1) of numbers; None for the deviation of a single one."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mean_jaccard(masks: Sequence[np.ndarray]) -> float | None:
    """The mean Jaccard index over all pairs; None for a single mask."""
    pairs = list(itertools.combinations(masks, 2))
    return statistics.fmean(connectivity.jaccard(*pair) for pair in pairs) if pairs else None


def group_rows(rows: Sequence[Mapping]) -> dict[str, list]:
    """The rows by entry, in their order. The random masks, "random 0" and so on, are one entry."""
    groups = {}
    for row in rows:
        groups.setdefault(re.sub(r"^(random\S*) \d+$", r"\1", row["entry"]), []).append(row)
    return groups
