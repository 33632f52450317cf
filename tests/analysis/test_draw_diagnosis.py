"""The picture of a diagnosis draws what was measured, and tells the networks apart."""

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.legend import Legend

from darts_sg.analysis.draw_diagnosis import LABEL_WIDTH, Portrait, draw_diagnosis, fitted
from darts_sg.analysis.information import Retained
from darts_sg.analysis.sheet import LABEL_SIZE, STYLES, text_width


def portrait(label: str, name: str, block: str, seed: int) -> Portrait:
    rng = np.random.default_rng(seed)
    sites = [Retained(f"cells.{i}", i / 3, 32 >> i, 16 << i, 1 << i, rng.uniform(0.1, 1)) for i in range(3)]
    return Portrait(label, name, block, sites, rng.uniform(-0.5, 0.5, 28))


def test_the_picture_draws_what_was_measured() -> None:
    portraits = [
        portrait("sandglass early", "mobilenext_0.5", "sandglass", 0),
        portrait("sandglass late", "mobilenext_0.5", "sandglass", 1),
        portrait("wider sandglass", "mobilenext_1.0", "sandglass", 2),
        portrait("cells", "DARTS_V2", "", 3),
    ]
    figure = draw_diagnosis(portraits, "the setting in words, " * 20)
    figure.draw_without_rendering()
    shares, channels, ridges = figure.axes
    for axes, field in ((shares, "r2"), (channels, "channels")):
        lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
        for line, shown in zip(lines, portraits, strict=True):
            expected = [(site.depth, getattr(site, field)) for site in shown.retained]
            np.testing.assert_allclose(line.get_xydata(), expected)
    colors = [(to_hex(line.get_color()), line.get_alpha()) for line in shares.lines if len(line.get_xdata()) == 3]
    red = STYLES["sandglass"].light.line.lower()
    assert colors[0] == (red, 0.7)  # the earlier of two files
    assert colors[1] == (red, 1.0)
    assert len({color for color, _ in colors}) == 3
    legends = [child for child in shares.get_children() if isinstance(child, Legend)]
    assert [[text.get_text() for text in legend.get_texts()] for legend in legends] == [
        ["32×32", "16×16", "8×8"], ["mobilenext_0.5", "mobilenext_1.0", "DARTS_V2"],
    ]  # fmt: skip
    assert [text.get_text() for text in ridges.texts] == [shown.label for shown in portraits]
    heights = [patch.get_data() for patch in ridges.patches]
    assert len(heights) == 4
    areas = [np.sum(data.values - data.baseline) for data in heights]
    np.testing.assert_allclose(areas, areas[0])  # all have as many pairs
    caption = figure.texts[0].get_window_extent()
    assert caption.y0 >= 0
    assert caption.x1 <= figure.bbox.x1
    assert all(caption.y1 < axes.get_tightbbox().y0 for axes in (channels, ridges))


def test_of_a_long_label_both_ends_are_kept() -> None:
    label = f"mobilenext_0.59, seed 0 ({'a_folder/' * 8}weights_best.safetensors)"
    short = fitted(label)
    assert 0.95 * LABEL_WIDTH < text_width(short, LABEL_SIZE, "bold") <= LABEL_WIDTH
    start, end = short.split("…")
    assert label.startswith(start)
    assert start.startswith("mobilenext_0.59, seed 0 (")
    assert label.endswith(end)
    assert end.endswith("/weights_best.safetensors)")
    assert fitted("short") == "short"
