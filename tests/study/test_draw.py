"""The picture of a study: every training is a dot, and no name covers a dot, a mean or another name."""

import itertools
from pathlib import Path

import numpy as np
from matplotlib.transforms import Bbox

from darts_sg.study.draw import draw_experiment
from darts_sg.study.protocol import load_protocol
from darts_sg.study.read import read_experiment
from tests.study.runs import ERRORS, search_runs, training_runs


def test_dots_means_and_names(tmp_path: Path) -> None:
    search_runs(tmp_path)
    training_runs(tmp_path / "retrain")
    found = read_experiment(tmp_path, load_protocol("sandglass"))
    figure = draw_experiment(found)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    dots = [line for line in axes.lines if line.get_linestyle() == "None" and line.get_marker() != "_"]
    means = [line for line in axes.lines if line.get_marker() == "_"]
    drawn = sorted(float(y) for line in dots for y in np.asarray(line.get_ydata()))
    assert drawn == sorted([*(e for _, errors in ERRORS.values() for e in errors.values()), 14.0, 16.0])
    assert len(means) == 3  # of the genotypes that were trained more than once
    rows = {row.title: row for row in found.settings[0].rows if not row.group.startswith("random")}
    assert {text.get_text() for text in axes.texts} == rows.keys()
    assert len({line.get_marker() for line in dots}) == 5  # a form for each group, told apart without colours
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    names = [text.get_window_extent(renderer) for text in axes.texts]
    reach = 3 * figure.dpi / 72
    spots = [spot for line in (*dots, *means) for spot in axes.transData.transform(line.get_xydata())]
    covered = [Bbox.from_extents(x - reach, y - reach, x + reach, y + reach) for x, y in spots]
    assert not [name for name in names for box in covered if name.overlaps(box)]
    assert not [a for a, b in itertools.combinations(names, 2) if a.overlaps(b)]
    assert all(figure.bbox.x0 <= name.x0 and name.x1 <= figure.bbox.x1 for name in names)
