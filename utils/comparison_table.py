"""The table of a comparison: from rows to figures, Markdown, and what is said below it."""
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from utils.comparison_rows import THRESHOLDS, group_rows, mask_of, mean_and_spread, mean_jaccard
from utils.measuring import multiply_adds

ABLATION = "without-"  # names of entries that belong in no table


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
    """Sentences below the table: how alike the networks of the seeds are, what the threshold changes, and whether the
    runs were evaluated on devices of several kinds.
    """
    lines = []
    for name, rows in group_rows(content["rows"]).items():
        searched = [row for row in rows if "thresholds" in row]
        if rows[0]["entry"] != name and len(rows) > 1:
            scores = [row["m_iou"] for row in rows]
            lines.append(f"{name}: {len(rows)} connectivities, the best {100 * max(scores):.2f} %, the worst "
                         f"{100 * min(scores):.2f} %.")
        if not searched or name.startswith(ABLATION):
            continue
        likeness = mean_jaccard([mask_of(row) for row in searched])
        if likeness is not None:
            lines.append(f"{name}: two seeds share {100 * likeness:.0f} % of their connections (Jaccard index, mean "
                         f"over the pairs).")
        same = sum(len(set(row["thresholds"].values())) == 1 for row in searched)
        lines.append(f"{name}: the thresholds {', '.join(f'{t:g}' for t in THRESHOLDS)} give the same connectivity in "
                     f"{same} of {len(searched)} searches.")
    devices = {}
    for name, rows in group_rows(content["rows"]).items():
        for row in rows:
            devices.setdefault(device_kind(row.get("device", "unknown")), []).append(name)
    if len(devices) > 1:
        where = (f"{device}: {', '.join(f'{name} ({n})' for name, n in Counter(names).items())}"
                 for device, names in devices.items())
        lines.append(f"The runs were evaluated on different devices, which alone can move a score: {'; '.join(where)}.")
    return lines


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
