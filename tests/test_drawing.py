"""Drawings: well-formed, with every connection and name; strengths over time as the search logs them."""
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from models import connectivity
from models.mobilenet_v2 import MobileNetV2
from utils import drawing
from utils.errors import InputError
from utils.run_folder import RunFolder
from utils.strengths_file import connection_names, read_strengths

SIZES = {"channels": MobileNetV2.channels, "strides": MobileNetV2.strides, "depth": 64}


@pytest.mark.parametrize("name", connectivity.NAMED)
def test_the_drawing_has_every_connection_and_no_other(tmp_path, name):
    kept = connectivity.NAMED[name]()
    svg, png = drawing.save(drawing.draw_architecture(kept, num_classes=21, **SIZES), tmp_path / name)
    root = ElementTree.parse(svg).getroot()
    drawn = {element.get("id") for element in root.iter() if "<-" in (element.get("id") or "")}
    expected = {f"D[{l}]<-{connectivity.source_name(j, side)}" for l, j, side in np.argwhere(kept)}
    assert drawn == expected
    texts = ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"E[0]", "1280 channels", "stride 16", "D[8]", connectivity.summary(kept)} <= set(texts)
    assert texts.count("dropped") == 9 - len(connectivity.used_stages(kept))
    with Image.open(png) as image:
        assert image.format == "PNG" and min(image.size) > 500


def test_the_same_drawing_twice_is_the_same_file(tmp_path):
    first, second = (drawing.save(drawing.draw_architecture(connectivity.published(), **SIZES),
                                  tmp_path / folder / "a")[0].read_bytes() for folder in "xy")
    assert first == second


def test_other_encoders_can_be_drawn():
    kept = connectivity.full(12)
    figure = drawing.draw_architecture(kept, channels=[8] * 12, strides=[2 ** (5 - l // 3) for l in range(12)], depth=4)
    picture = drawing.to_array(figure)
    assert picture.shape[0] == 3 and len(np.unique(picture.reshape(3, -1), axis=1).T) > 10
    drawn = {artist.get_gid() for artist in figure.findobj() if "<-" in (artist.get_gid() or "")}
    assert len(drawn) == kept.sum()


@pytest.mark.parametrize("name", connectivity.NAMED)
def test_what_connections_are_worth_can_be_read(name):
    kept = connectivity.NAMED[name]()
    worth = {(l, j, side): (100 * l + 10 * j + side) / 1000 - 0.3 for l, j, side in np.argwhere(kept)}
    figure = drawing.draw_architecture(kept, worth=worth, **SIZES)
    figure.draw_without_rendering()
    axes, = figure.axes
    labels = [text for text in axes.texts if "." in text.get_text()]
    assert sorted(label.get_text() for label in labels) == sorted(f"{100 * value:.1f}" for value in worth.values())
    boxes = [label.get_window_extent() for label in labels]
    nodes = [patch.get_window_extent() for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in [*boxes[:i], *nodes])
        assert axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1)


def strengths_at(step):
    """Nine stages whose every value says where it stands."""
    return [np.array([[(100 * l + 10 * j + side) / 1000 for side in (0, 1)] for j in range(l + 1)]) * 0.9 ** step
            for l in range(9)]


def test_strengths_are_drawn_dark_where_they_are_and_not_where_nothing_is():
    strengths = [np.zeros((l + 1, 2)) for l in range(9)]
    strengths[8][3, 1] = 1.0
    figure = drawing.draw_strengths(strengths)
    decoder_side = figure.axes[1].images[0].get_array()
    assert decoder_side[8, 3] == 1 and np.ma.filled(decoder_side, -1).max() == 1
    assert np.isnan(np.ma.filled(decoder_side, np.nan)[3, 8])
    assert [text.get_text() for axes in figure.axes[:2] for text in axes.texts] == ["1.00"]


def test_strengths_over_time_are_what_was_logged(tmp_path):
    folder = RunFolder(tmp_path).curves
    for step in (0, 10, 20, 30):
        folder.strengths(strengths_at(step), step)
    folder.close()
    with open(tmp_path / "strengths.csv", "a") as file:
        file.write("40,0.5,0.")  # a kill
    names, iterations, values = read_strengths(tmp_path)
    assert names == connection_names(9) and iterations.tolist() == [0, 10, 20, 30]
    assert values[0, names.index("D[7]<-D[3]")] == pytest.approx(0.741)
    assert values[2, names.index("D[5]<-E[2]")] == pytest.approx(0.520 * 0.9 ** 20, rel=1e-4)
    figure = drawing.draw_strengths_over_time(names, iterations, values, threshold=0.03)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[7].lines}
    assert lines["D[3]"][0] == pytest.approx(0.741)
    RunFolder(tmp_path, resume_at=20).close()
    assert read_strengths(tmp_path)[1].tolist() == [0, 10, 20]


def test_a_table_that_is_none_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_strengths(tmp_path)
    (tmp_path / "strengths.csv").write_text("iteration,a\nhello,1\n")
    with pytest.raises(InputError, match="no table of strengths"):
        read_strengths(tmp_path)
    for head in ("iteration", "iteration,a", "iteration,D[0]<-E[0]"):
        (tmp_path / "strengths.csv").write_text(head + "\n")
        with pytest.raises(InputError, match="no table of strengths"):
            read_strengths(tmp_path)
    (tmp_path / "strengths.csv").write_text(",".join(["iteration", *connection_names(2)]) + "\n")
    with pytest.raises(InputError, match="no strengths yet"):
        read_strengths(tmp_path)


@pytest.mark.parametrize("parameters", [(450_000, 460_000), (300_000, 900_000), (80_000, 1_930_000)])
def test_both_axes_of_a_comparison_have_numbers(parameters):
    from utils.comparison_drawing import draw_comparison
    figure = draw_comparison([{"entry": str(i), "macs": 2e9 + 1e7 * i, "parameters": number, "m_iou": (0.5, None),
                               "m_ious": [0.5]} for i, number in enumerate(parameters)], "2 runs")
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 2


def test_the_names_in_a_comparison_cover_neither_each_other_nor_a_point():
    from utils.comparison_drawing import draw_comparison
    names = ["search", *(f"variant {number} with a long name" for number in range(10)), "unet", "published"]
    entries = [{"entry": name, "macs": 2e9 + 1e7 * i, "parameters": 5e5 + 1e4 * i, "m_iou": (0.5 + 0.001 * i, None),
                "m_ious": [0.5 + 0.001 * i]} for i, name in enumerate(names)]
    figure = draw_comparison([*entries, {"entry": "far", "macs": 3e9, "parameters": 2e6, "m_iou": (0.6, 0.01),
                                         "m_ious": [0.59, 0.61]}], "6 runs")
    figure.draw_without_rendering()
    for axes, cost in zip(figure.axes, ("macs", "parameters"), strict=True):
        labels = [text for text in axes.texts if text.get_text() in names]
        assert [label.xy[0] * (1e9 if cost == "macs" else 1e6) for label in labels] == [
            pytest.approx(entry[cost]) for entry in entries]
        ends = [text.xy for text in axes.texts if text.arrow_patch]
        assert ends[:len(labels)] == [label.xy for label in labels]  # a line from each to its point
        boxes = [label.get_window_extent() for label in labels]
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])
            assert not any(box.contains(*label.axes.transData.transform(label.xy)) for label in labels)
