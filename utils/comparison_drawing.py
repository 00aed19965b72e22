"""The picture of a comparison: mIoU against multiply-adds, with the spreads over the seeds."""
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from utils.drawing import FAINT, INK, default_style, source_colour


@default_style()
def draw_comparison(entries: Sequence[Mapping], title: str) -> Figure:
    """entries: of comparison_table.summarize. A point an entry; the bar is a standard deviation to both sides."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for number, entry in enumerate(entries):
        mean, spread = entry["m_iou"]
        x, colour = entry["macs"] / 1e9, source_colour(number, len(entries))
        axes.scatter([x] * len(entry["m_ious"]), [100 * value for value in entry["m_ious"]], s=10, color=colour,
                     alpha=0.5, linewidths=0, zorder=2)
        axes.errorbar(x, 100 * mean, None if spread is None else 100 * spread, fmt="o", color=colour, markersize=6,
                      capsize=3, linewidth=1.2, zorder=3)
        axes.annotate(entry["entry"], (x, 100 * mean), xytext=(7, 5), textcoords="offset points", fontsize=8.5,
                      color=INK, zorder=4)
    axes.ticklabel_format(useOffset=False)  # costs that are nearly equal stay readable
    axes.set_xlabel("multiply-adds of an image (G), encoder included")
    axes.set_ylabel("mIoU (%)")
    axes.margins(x=0.15, y=0.12)
    axes.grid(color=FAINT, linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11, color=INK)
    return figure
