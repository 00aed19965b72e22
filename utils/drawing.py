"""Drawings with matplotlib: the architecture (paper figure 3), the strengths (figure 4), and the strengths over time.

Each function returns a Figure; nothing here is global, so it works in a training run as well as in draw.py. Pictures do
not depend on the user's settings of matplotlib: not on a backend, which is for windows, nor on a matplotlibrc.
"""
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

try:  # without MPLBACKEND: a notebook sets one that only its own Python has, and then this import would fail
    backend = os.environ.pop("MPLBACKEND", None)
    import matplotlib
finally:
    if backend is not None:
        os.environ["MPLBACKEND"] = backend
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.bezier import BezierSegment
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve
from matplotlib.text import Text

from models.connectivity import source_name, summary
from models.pruning import DEFAULT_THRESHOLD
from utils.files import write_atomically

DPI = 110
INK, FAINT, BAND = "#222222", "#b5b5b5", ("#eef3f8", "#ffffff")
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#0b5345", "#bcbd22", "#17becf")
ENCODER_X, DECODER_X = 0.0, 5.2  # centres of the two columns
WIDTH, HEIGHT = 1.5, 0.56  # of a box
FEW = 40  # strengths that are written out as numbers
MARGIN = 3  # around a label, in pixels


@contextlib.contextmanager
def default_style() -> Iterator[None]:
    """Within it matplotlib has its own settings, whatever a matplotlibrc says. A decorator too."""
    defaults = matplotlib.rcParamsDefault.items()
    with matplotlib.rc_context({name: value for name, value in defaults if not name.startswith("backend")}):
        yield


def source_colour(source: int, num_sources: int) -> str | tuple:
    """A colour for each source; those beside each other differ clearly up to ten, and none is grey."""
    return COLOURS[source] if num_sources <= len(COLOURS) else matplotlib.colormaps["turbo"](source / (num_sources - 1))


@default_style()
def draw_architecture(connectivity: np.ndarray, channels: Sequence[int], strides: Sequence[int], depth: int,
                      num_classes: int | None = None, title: str | None = None,
                      worth: Mapping[tuple, float] | None = None) -> Figure:
    """The network of a connectivity bool (L, L, 2), finest stage on top.

    channels, strides: of the encoder's taps, deepest first. depth: channels of a stage. A line has its source's colour.
    worth: {(stage, source, side): fraction of mIoU}, which widens the lines and is written on them, in points.
    """
    num = len(connectivity)
    reads_global = connectivity[:, 0, 1].any()
    bottom, top = -1.5 if reads_global else -0.6, num + 0.25
    figure = Figure(figsize=(9.5, 0.72 * (top - bottom) + 0.5), layout="constrained")
    axes = figure.add_subplot()
    used = [l for l in range(num) if connectivity[l].any()]
    colours = [source_colour(j, num + 1) for j in range(num + 1)]  # E[j] and, shifted by one for G, D[j-1]
    draw_bands(axes, strides)
    for j in range(num):
        read = connectivity[:, j, 0].any()
        draw_box(axes, ENCODER_X, j, f"E[{j}]", f"{channels[j]} channels", colours[j] if read else FAINT)
        if j:
            draw_arrow(axes, (ENCODER_X, j - HEIGHT / 2), (ENCODER_X, j - 1 + HEIGHT / 2))
    for l in range(num):
        if l in used:
            draw_box(axes, DECODER_X, l, f"D[{l}]", f"{depth} channels", colours[(l + 1) % (num + 1)])
        else:
            draw_box(axes, DECODER_X, l, f"D[{l}]", "dropped", FAINT, dashed=True)
    if reads_global:
        draw_box(axes, DECODER_X, -1, "G", f"{channels[0]} channels", colours[0])
        draw_arrow(axes, (ENCODER_X + WIDTH / 2, -0.12), (DECODER_X - WIDTH / 2, -1), "global average", style="dotted")
    labels = draw_connections(axes, connectivity, colours, worth)
    draw_arrow(axes, (ENCODER_X, num - 0.28), (ENCODER_X, num - 1 + HEIGHT / 2))
    axes.text(ENCODER_X, num - 0.25, "image", ha="center", va="bottom", color=INK)
    draw_arrow(axes, (DECODER_X, num - 1 + HEIGHT / 2), (DECODER_X, num - 0.28))
    head = "1x1 convolution, logits" + (f" of {num_classes} classes" if num_classes else "")
    axes.text(DECODER_X, num - 0.25, head, ha="center", va="bottom", color=INK)
    axes.set_title(title or summary(connectivity), fontsize=11, color=INK)
    axes.set_xlim(-2.6, DECODER_X + 3.4)
    axes.set_ylim(bottom, top)
    axes.axis("off")
    if labels:
        place_on_curves(figure, labels)
    return figure


def draw_bands(axes: Axes, strides: Sequence[int]) -> None:
    """A band behind the rows of each resolution, with its name."""
    start = 0
    for index, stride in enumerate(dict.fromkeys(strides)):
        rows = [l for l, s in enumerate(strides) if s == stride]
        start, stop = rows[0] - 0.5, rows[-1] + 0.5
        axes.axhspan(start, stop, color=BAND[index % 2], zorder=0)
        axes.text(-2.5, (start + stop) / 2, f"stride {stride}", va="center", fontsize=9, color=INK)


def draw_box(axes: Axes, x: float, y: float, name: str, note: str, colour: str, dashed: bool = False) -> None:
    """A tap or a stage: its name and its channels."""
    axes.add_patch(FancyBboxPatch((x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT,
                                  boxstyle="round,pad=0,rounding_size=0.1", facecolor="white", edgecolor=colour,
                                  linewidth=1.2 if dashed else 2, zorder=3,
                                  linestyle="dashed" if dashed else "solid"))
    ink = FAINT if dashed else INK
    axes.text(x, y + 0.09, name, ha="center", va="center", fontsize=9, weight="bold", color=ink, zorder=4)
    axes.text(x, y - 0.14, note, ha="center", va="center", fontsize=6.5, color=ink, zorder=4)


def draw_arrow(axes: Axes, start: tuple, stop: tuple, note: str | None = None, style: str = "solid") -> None:
    """A thin grey arrow: what the encoder, or the head, computes on the way."""
    axes.add_patch(FancyArrowPatch(start, stop, arrowstyle="-|>", mutation_scale=7, color="#8a8a8a", linewidth=1,
                                   linestyle=style, shrinkA=0, shrinkB=0, zorder=2))
    if note:
        axes.text((start[0] + stop[0]) / 2, (start[1] + stop[1]) / 2 - 0.12, note, fontsize=8, color="#6a6a6a",
                  ha="center", va="top")


def draw_connections(axes: Axes, connectivity: np.ndarray, colours: Sequence,
                     worth: Mapping[tuple, float] | None = None) -> list[tuple[Text, BezierSegment]]:
    """A curve a connection: of the encoder side from the left, of the decoder side round the right.

    worth: see draw_architecture. The widest line is that of the greatest worth. Returns the labels, which are still at
    the ends of their curves and may cover each other, and the curves.
    """
    labels = []
    width = 1.7 if connectivity.sum() <= FEW else 0.9
    most = max([*(worth or {}).values(), 1e-9])
    for side in (0, 1):
        edges = [(int(l), int(j)) for l, j in np.argwhere(connectivity[:, :, side])]
        for l, j in edges:
            row = j - side  # decoder-side source j is D[j-1], and G, source 0, lies in row -1
            start = row + port(j, [(a, b) for a, b in edges if b == j], l, outgoing=True)
            stop = l + port(l, [(a, b) for a, b in edges if a == l], j, outgoing=False)
            if side == 0:
                left, right = ENCODER_X + WIDTH / 2, DECODER_X - WIDTH / 2
                points = [(left, start), (left + 1.5, start), (right - 1.5, stop), (right, stop)]
            else:
                edge = DECODER_X + WIDTH / 2
                bulge = 0.35 + 0.29 * (l - row)
                points = [(edge, start), (edge + bulge, start), (edge + bulge, stop), (edge, stop)]
            value = worth[l, j, side] if worth else 0.0
            curve = Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
            axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=colours[j], zorder=2,
                                     linewidth=width + 4 * max(value, 0) / most if worth else width,
                                     gid=f"D[{l}]<-{source_name(j, side)}"))
            axes.plot(*points[-1], marker="<" if side else ">", color=colours[j], markersize=4, zorder=5)
            if worth:
                points_lost = round(100 * value, 1) + 0  # + 0: no "-0.0"
                text = axes.text(*points[-1], f"{points_lost:.1f}", ha="center", va="center", fontsize=6.5, color=INK,
                                 zorder=6, bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5})
                labels.append((text, BezierSegment(points)))
    return labels


def place_on_curves(figure: Figure, labels: Sequence[tuple[Text, BezierSegment]]) -> None:
    """Moves each label along its curve to where it covers no box, no arrow head, no other label and no other curve.

    labels: each with its curve, in data coordinates. Of several such places it takes the nearest to the end of the
    curve, and where there is none the one that covers least.
    """
    figure.draw_without_rendering()  # the layout is known from here on
    axes = labels[0][0].axes
    taken = [patch.get_window_extent().extents for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    taken += [line.get_window_extent().extents for line in axes.lines]
    positions = np.stack([curve(np.linspace(1, 0, 100)) for _, curve in labels])  # (labels, 100, 2)
    pixels = axes.transData.transform(positions.reshape(-1, 2)).reshape(positions.shape)
    for number, (text, _) in enumerate(labels):
        half = text.get_window_extent().size / 2 + MARGIN
        low, high = pixels[number] - half, pixels[number] + half
        boxes = np.array(taken)
        overlaps = (low[:, None] < boxes[:, 2:]) & (high[:, None] > boxes[:, :2])
        others = np.delete(pixels, number, axis=0).reshape(-1, 2)
        covered = (low[:, None] < others) & (high[:, None] > others)
        best = np.lexsort((covered.all(2).sum(1), overlaps.all(2).sum(1)))[0]
        text.set_position(positions[number, best])
        taken.append(np.concatenate([low[best], high[best]]))


def port(here: int, edges: Sequence[tuple], other: int, outgoing: bool) -> float:
    """Where on a box's side, from its middle, the line to `other` ends: spread in the order of their far ends."""
    ends = sorted(a if outgoing else b for a, b in edges)
    if len(ends) == 1:
        return 0.0
    return (ends.index(other) / (len(ends) - 1) - 0.5) * HEIGHT * 0.75


@default_style()
def draw_strengths(strengths: Sequence[np.ndarray], threshold: float = DEFAULT_THRESHOLD,
                   title: str | None = None) -> Figure:
    """The strengths, L arrays (l+1, 2): a row a stage, a column a source, dark is 1; numbers where few are left."""
    num = len(strengths)
    above = sum(int((p > threshold).sum()) for p in strengths)
    figure = Figure(figsize=(1.2 * num + 1.5, 0.5 * num + 1.3), layout="constrained")
    panels = figure.subplots(1, 2)
    for side, axes in enumerate(panels):
        grid = np.full((num, num), np.nan)
        for l, p in enumerate(strengths):
            grid[l, :l + 1] = p[:, side]
        axes.set_facecolor("#e4e4e4")  # what does not exist
        shown = axes.imshow(grid, cmap="Blues", vmin=0, vmax=1, aspect="equal")
        axes.set_xticks(range(num), [source_name(j, side) for j in range(num)], fontsize=8, rotation=45)
        axes.set_yticks(range(num), [f"D[{l}]" for l in range(num)], fontsize=8)
        axes.set_title(("encoder side", "decoder side")[side], fontsize=10)
        for l, j in np.argwhere(grid > threshold) if above <= FEW else ():
            p = grid[l, j]
            axes.text(j, l, f"{p:.2f}".lstrip("0") if p >= 0.005 else f"{p:.0e}", ha="center", va="center",
                      fontsize=7 if p >= 0.005 else 5, color="white" if p > 0.5 else INK)
        axes.set_xticks(np.arange(num + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(num + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1)
        axes.tick_params(which="both", length=0)
    figure.colorbar(shown, ax=panels, shrink=0.8, label="strength p")
    total = sum(p.size for p in strengths)
    figure.suptitle(title or f"{above} of {total} strengths above {threshold:g}", fontsize=11)
    return figure


@default_style()
def draw_strengths_over_time(names: Sequence[str], iterations: np.ndarray, values: np.ndarray,
                             threshold: float = DEFAULT_THRESHOLD, title: str | None = None) -> Figure:
    """How each strength went: a panel a stage. names: "D[l]<-SOURCE", values (T, names), as in strengths.csv.

    What ends above the threshold is coloured and named, the rest grey; dotted are the sources of the decoder side.
    """
    stages = {}
    for column, name in enumerate(names):
        stages.setdefault(name.partition("<-")[0], []).append(column)
    columns = min(3, len(stages))
    rows = -(-len(stages) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.0 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.ravel()[len(stages):]:
        axes.axis("off")
    for axes, (stage, members) in zip(panels.ravel(), stages.items(), strict=False):
        for column in sorted(members, key=lambda c: values[-1, c]):
            source = names[column].partition("<-")[2]
            number = 0 if source == "G" else int(source[2:-1]) + source.startswith("D")
            stays = values[-1, column] > threshold
            axes.plot(iterations, values[:, column], linewidth=1.6 if stays else 0.8, zorder=3 if stays else 2,
                      color=source_colour(number, len(members) // 2 + 1) if stays else FAINT,
                      linestyle="dotted" if source == "G" or source.startswith("D") else "solid",
                      label=source if stays else None)
        axes.set_title(stage, fontsize=9, loc="left")
        axes.set_ylim(-0.04, 1.04)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if any(values[-1, c] > threshold for c in members):
            axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handlelength=1.6)
    above = int((values[-1] > threshold).sum())
    figure.suptitle(title or f"Strengths during the search: {above} of {len(names)} end above {threshold:g}",
                    fontsize=11)
    figure.supxlabel("iteration", fontsize=9)
    figure.supylabel("strength p", fontsize=9)
    return figure


@default_style()
def to_array(figure: Figure) -> np.ndarray:
    """The figure as a picture: uint8 (3, H, W)."""
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].transpose(2, 0, 1).copy()


@default_style()
def save(figure: Figure, path: Path) -> list[Path]:
    """The figure as SVG, its text as text, and as PNG: `path` without suffix. Returns both paths."""
    paths = [path.with_name(path.name + suffix) for suffix in (".svg", ".png")]
    for target in paths:
        with write_atomically(target) as temporary, \
                matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
            figure.savefig(temporary, dpi=DPI * 1.5, metadata={"Date": None} if target.suffix == ".svg" else None)
    return paths
