"""Pictures of comparisons: no name covers a point or another name; kinds of figures have axes of their own."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from darts_sg.analysis.compare import Latency
from darts_sg.analysis.cost import derived_cost
from darts_sg.analysis.draw_comparison import draw_comparison
from darts_sg.analysis.measured import Score
from darts_sg.genotype import load_genotype, zoo_names

FOUND = sorted((Path(__file__).parent.parent.parent / "results").glob("sandglass/pilot/search*_s0/genotype.yaml"))


def row(name: str, params: float, macs: float, error: float | None = None, **more: Any) -> dict[str, Any]:
    published = {"published_cifar10_error": error, "published_imagenet_top1_error": None}
    return {"name": name, "params": params, "macs": macs, **published, "measured_test_error": [], **more}


def check_nothing_overlaps(figure: Figure) -> None:
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for axes in figure.axes:
        names = [(text.get_text(), text.get_window_extent(renderer)) for text in axes.texts]
        dots = next(line for line in axes.lines if line.get_marker() == "o")
        for x, y in axes.transData.transform(dots.get_xydata()):
            dot = Bbox.from_extents(x - 3, y - 3, x + 3, y + 3)
            assert not [name for name, box in names if box.overlaps(dot)]
        for (a, box), (b, other) in itertools.combinations(names, 2):
            assert not box.overlaps(other), (a, b)
        for name, box in names:
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, name


@pytest.mark.parametrize("network", ["cifar", "imagenet"])
def test_nothing_overlaps_in_the_zoo(network: str) -> None:
    rows = []
    for genotype in (load_genotype(name) for name in (*zoo_names(), *FOUND)):
        cost, published = derived_cost(genotype, network, 16, 3), genotype.provenance.get("published") or {}
        errors = {f"published_{key}": published.get(key) for key in ("cifar10_error", "imagenet_top1_error")}
        errors["published_cifar10_error_deviation"] = published.get("cifar10_error_deviation")
        rows.append(row(genotype.name, cost.params, cost.macs) | errors)
    figure = draw_comparison(rows, "a shape", network)
    assert len(figure.axes) == 2
    check_nothing_overlaps(figure)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(10, 50), st.integers(10, 50)), min_size=1, max_size=9, unique=True))
def test_nothing_overlaps_anywhere(points: Sequence[tuple[int, int]]) -> None:
    rows = [row(f"a_genotype_{i}", 1e5 * x, 1e7 * y) for i, (x, y) in enumerate(points)]
    figure = draw_comparison(rows, "a shape")
    check_nothing_overlaps(figure)
    dots = next(line for line in figure.axes[0].lines if line.get_marker() == "o")
    np.testing.assert_allclose(dots.get_xydata(), [(x / 10, 10.0 * y) for x, y in points])


def test_measured_latencies_have_axes_that_name_the_device() -> None:
    found = {"latency_batch": 4, "device": "cpu (a processor)", "threads": 1}
    rows = [row(f"G{i}", 1e6 * i, 1e8, latency=Latency(4, 0.01 * i, 0.0, 1.0, 9, 0.1), **found) for i in (1, 2)]
    latency, _ = draw_comparison(rows, "a shape").axes
    assert latency.get_ylabel() == "latency, ms"
    assert latency.get_title(loc="left") == "Measured here: cpu (a processor), batch 4 (a shape)"
    np.testing.assert_allclose(latency.lines[0].get_xydata(), [(1, 10), (2, 20)])


def test_published_and_measured_errors_never_share_axes() -> None:
    def score(errors: tuple[float, ...], scale: str) -> Score:
        return Score(errors, tuple(range(len(errors))), (250_000,) * len(errors), "noted data", scale, ("a machine",))

    small, large = score((14.0, 15.0), "C=16"), score((5.0,), "C=36")
    rows = [
        row("A", 3e6, 5e8, 2.5, measured_test_error=[small, large]),
        row("B", 4e6, 6e8, measured_test_error=[score((16.0,), "C=16")]),
        row("A", 3e6, 5e8, 2.5, measured_test_error=[small, large]),  # the same once more
    ]
    figure = draw_comparison(rows, "CIFAR, C=36, 20 cells")
    names = {axes.get_title(loc="left").replace("\n", " "): [t.get_text() for t in axes.texts] for axes in figure.axes}
    assert names == {
        "Published errors; parameters counted here (CIFAR, C=36, 20 cells)": ["A"],
        "Measured here on noted data: C=16": ["A", "B"],
        "Measured here on noted data: C=36": ["A"],
        "Counted here (CIFAR, C=36, 20 cells; auxiliary head excluded)": ["A", "B"],
    }
    check_nothing_overlaps(figure)
