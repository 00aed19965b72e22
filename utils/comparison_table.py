"""The table of a comparison: from rows to figures, Markdown, and what is said below it."""
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from utils.comparison import SEARCHES
from utils.comparison_rows import THRESHOLDS, group_rows, mask_of, mean_and_spread, mean_jaccard
from utils.measuring import multiply_adds

ABLATION = "without-"  # names of entries that belong in no table
SEARCHED = re.compile(rf"({'|'.join(SEARCHES)})\d*(-|$)")  # names of entries that a search found


def summarize(content: Mapping, build: Callable[[Mapping], nn.Module], size: Sequence[int]) -> list[dict]:
    """The figures of each entry, in the order of the rows.

    m_iou, boundary (None without): (mean, standard deviation or None), as fractions; connections, parameters (of
    decoder and head), macs (of an image of `size`, (H, W)): means; seconds: None where not measured. build: row ->
    network.
    """
    entries = []
    for name, rows in group_rows(content["rows"]).items():
        if name.startswith(ABLATION):
            continue
        networks = [build(row) for row in rows]
        boundaries = [row["boundary"]["m_iou"] for row in rows if row.get("boundary")]
        entries.append({
            "entry": name, "runs": len(rows), "m_ious": [row["m_iou"] for row in rows],
            "m_iou": mean_and_spread([row["m_iou"] for row in rows]),
            "boundary": mean_and_spread(boundaries) if len(boundaries) == len(rows) else None,
            "connections": statistics.fmean(int(mask_of(row).sum()) for row in rows),
            "parameters": statistics.fmean(decoder_parameters(network) for network in networks),
            "macs": statistics.fmean(multiply_adds(network, size) for network in networks),
            "seconds": content.get("seconds", {}).get(name)})
    return entries


def decoder_parameters(network: nn.Module) -> int:
    """The parameters of decoder and head."""
    return sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in network.backbone.parameters())


def percent(figure: tuple[float, float | None] | None) -> str:
    """ "42.10 ± 0.55 %", or without the spread of a single run."""
    if figure is None:
        return "not measured"
    mean, spread = figure
    return f"{100 * mean:.2f}{'' if spread is None else f' ± {100 * spread:.2f}'} %"


def to_markdown(entries: Sequence[Mapping], boundary: int | None, published: Mapping | None = None) -> str:
    """The table. boundary: the width of the band in pixels, if it was evaluated; published: mIoU in percent by entry,
    for a column of the paper's figures.
    """
    columns = {"network": lambda e: e["entry"], "connections": lambda e: f"{e['connections']:.4g}",
               "decoder and head": lambda e: f"{e['parameters'] / 1e6:.2f} M",
               "multiply-adds": lambda e: f"{e['macs'] / 1e9:.2f} G"}
    if any(e["seconds"] for e in entries):
        columns["time"] = lambda e: f"{1000 * e['seconds']:.1f} ms" if e["seconds"] else "not measured"
    columns["mIoU"] = lambda e: percent(e["m_iou"])
    if boundary:
        columns[f"within {boundary} pixels of a boundary"] = lambda e: percent(e["boundary"])
    columns["runs"] = lambda e: str(e["runs"])
    if published:
        columns["paper"] = lambda e: f"{published[e['entry']]:.2f} %" if e["entry"] in published else ""
    lines = [columns, ["---"] * len(columns), *([column(e) for column in columns.values()] for e in entries)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def remarks(content: Mapping) -> list[str]:
    """Sentences below the table: how alike the networks of the seeds are, what the threshold changes, how a search
    stands against the other entries, and whether the runs were evaluated on devices of several kinds.
    """
    lines = []
    groups = group_rows(content["rows"])
    for name, rows in groups.items():
        if rows[0]["entry"] != name and len(rows) > 1:
            scores = [row["m_iou"] for row in rows]
            lines.append(f"{name}: {len(rows)} connectivities, the best {100 * max(scores):.2f} %, the worst "
                         f"{100 * min(scores):.2f} %.")
        if SEARCHED.match(name):
            lines += [f"{name}: {line}" for line in (*stability(rows), *standing(name, groups))]
    devices = {}
    for name, rows in groups.items():
        for row in rows:
            devices.setdefault(device_kind(row.get("device", "unknown")), []).append(name)
    if len(devices) > 1:
        where = (f"{device}: {', '.join(f'{name} ({n})' for name, n in Counter(names).items())}"
                 for device, names in devices.items())
        lines.append(f"The runs were evaluated on different devices, which alone can move a score: {'; '.join(where)}.")
    return lines


def stability(rows: Sequence[Mapping]) -> list[str]:
    """Sentences on the searches of an entry: whether seeds and thresholds give the same connections."""
    lines = []
    likeness = mean_jaccard([mask_of(row) for row in rows])
    if likeness is not None:
        lines.append(f"two seeds share {100 * likeness:.0f} % of their connections (Jaccard index, mean over the "
                     f"pairs).")
    kept = [row["thresholds"] for row in rows if "thresholds" in row]
    if kept:
        same = sum(len(set(masks.values())) == 1 for masks in kept)
        lines.append(f"the thresholds {', '.join(f'{t:g}' for t in THRESHOLDS)} give the same connectivity in {same} "
                     f"of {len(kept)} searches.")
    return lines


def standing(name: str, groups: Mapping[str, Sequence[Mapping]]) -> list[str]:
    """Sentences on a searched entry: where it stands among those without a search, and among its random ones.

    groups: the rows of all entries, of group_rows.
    """
    scores = {other: [100 * row["m_iou"] for row in group] for other, group in groups.items()}
    mine, lines = scores[name], []
    places = {"ahead of": [], "behind": [], "not told apart from": []}
    for other, group in groups.items():
        is_random = group[0]["entry"] != other
        if not (SEARCHED.match(other) or other.startswith(ABLATION) or is_random):
            places[place(mine, scores[other])].append(other)
    if any(places.values()):
        lines.append("; ".join(f"{words} {', '.join(others)}" for words, others in places.items() if others) + ".")
    random = scores.get("random" if name == "search" else f"random-{name}", [])
    if len(random) > 1:
        mean, spread = mean_and_spread(random)
        my_mean = statistics.fmean(mine)
        difference = my_mean - mean
        lines.append(f"{abs(difference):.2f} points {'above' if difference > 0 else 'below'} the mean of {len(random)} "
                     f"random connectivities of its cost, {'more' if abs(difference) > spread else 'less'} than their "
                     f"standard deviation ({spread:.2f}), and {'' if my_mean > max(random) else 'not '}"
                     f"above the best of them ({max(random):.2f} %).")
    return lines


def place(scores: Sequence[float], others: Sequence[float]) -> str:
    """Whether the mean of some scores is "ahead of" that of others, "behind" it, or "not told apart from" it.

    They are told apart if they differ by more than two standard errors of the difference, which the larger of the two
    standard deviations gives; with a single run each, never.
    """
    spreads = [spread for _, spread in map(mean_and_spread, (scores, others)) if spread is not None]
    difference = statistics.fmean(scores) - statistics.fmean(others)
    error = max(spreads, default=math.inf) * math.sqrt(1 / len(scores) + 1 / len(others))
    if abs(difference) <= 2 * error:
        return "not told apart from"
    return "ahead of" if difference > 0 else "behind"


def device_kind(device: str) -> str:
    """A device in words, without the number of a GPU and that of threads."""
    return re.sub(r"^cuda:\d+ \((.*)\)$", r"\1", re.sub(r", \d+ threads?", "", device))


def ablation_table(row: Mapping, anew: Mapping[str, float]) -> str:
    """What each connection of one network is worth, as Markdown, the most valuable first.

    anew: mIoU by the connection's name of networks that were trained without it; they get a column if there are any.
    """
    columns = ["without", "mIoU", "change", *(["trained anew", "change"] if anew else [])]
    lines = [columns, ["---"] * len(columns)]
    for each in sorted(row["without_each"], key=lambda each: each["m_iou"]):
        values = [each["m_iou"], *([anew.get(each["name"])] if anew else [])]
        line = [each["name"]]
        for value in values:
            line += ["not trained", ""] if value is None else [f"{100 * value:.2f} %",
                                                               f"{100 * (value - row['m_iou']):+.2f}"]
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
