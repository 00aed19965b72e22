"""The picture of a comparison: mIoU against multiply-adds and parameters, with the spreads over the seeds."""
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from utils.drawing import FAINT, INK, default_style, source_colour

# of a label's near corner from its point, in points; the nearest first
PLACES = sorted(((x * right, y * up) for y in range(5, 100, 9) for x in (7, 25, 50) for up in (1, -1)
                 for right in (1, -1)), key=lambda place: place[0] ** 2 + place[1] ** 2)
RADIUS = 5  # of a point, in pixels


@default_style()
def draw_comparison(entries: Sequence[Mapping], title: str) -> Figure:
    """entries: of comparison_table.summarize. A point an entry; the bar is a standard deviation to both sides."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    macs, parameters = figure.subplots(1, 2, sharey=True)
    labels = draw_points(macs, entries, [entry["macs"] / 1e9 for entry in entries])
    labels += draw_points(parameters, entries, [entry["parameters"] / 1e6 for entry in entries])
    macs.ticklabel_format(useOffset=False)  # costs that are nearly equal stay readable
    macs.set_xlabel("multiply-adds of an image (G), encoder included")
    macs.set_ylabel("mIoU (%)")
    parameters.set_xscale("log")
    parameters.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    parameters.xaxis.set_minor_locator(NullLocator())
    parameters.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    parameters.set_xlabel("parameters of decoder and head (M)")
    figure.suptitle(title, fontsize=11, color=INK)
    spread_out(figure, labels)
    return figure


def draw_points(axes: Axes, entries: Sequence[Mapping], costs: Sequence[float]) -> list[Annotation]:
    """mIoU against one kind of cost. Returns the names beside the points, which may still cover each other."""
    labels = []
    for number, (entry, x) in enumerate(zip(entries, costs, strict=True)):
        (mean, spread), colour = entry["m_iou"], source_colour(number, len(entries))
        axes.scatter([x] * len(entry["m_ious"]), [100 * value for value in entry["m_ious"]], s=10, color=colour,
                     alpha=0.5, linewidths=0, zorder=2)
        axes.errorbar(x, 100 * mean, None if spread is None else 100 * spread, fmt="o", color=colour, markersize=6,
                      capsize=3, linewidth=1.2, zorder=3)
        labels.append(axes.annotate(entry["entry"], (x, 100 * mean), xytext=PLACES[0], textcoords="offset points",
                                    fontsize=8.5, color=INK, zorder=4))
    axes.margins(x=0.15, y=0.12)
    axes.grid(color=FAINT, linewidth=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    return labels


def spread_out(figure: Figure, labels: Sequence[Annotation]) -> None:
    """Moves each label to the first of PLACES where it is in the axes and covers no point and no earlier label.

    A line joins it with its point.
    """
    figure.draw_without_rendering()  # the layout is known from here on
    points = [label.axes.transData.transform(label.xy) for label in labels]
    taken = [Bbox([point - RADIUS, point + RADIUS]) for point in points]
    for label in labels:
        for x, y in [*PLACES, PLACES[0]]:  # the first one again, if none is free
            label.set(position=(x, y), ha="left" if x > 0 else "right", va="bottom" if y > 0 else "top")
            box = label.get_window_extent()
            inside = label.axes.bbox.containsx(box.x0) and label.axes.bbox.containsx(box.x1)
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
        label.axes.annotate("", label.xy, xytext=(x, y), textcoords="offset points", zorder=2.5,  # from the near corner
                            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 1, "shrinkA": 0, "shrinkB": 0})
