"""Pictures of whole networks: nothing overlaps, and bars and figures are those of the anatomy."""

from collections import defaultdict

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.text import Text
from numpy.typing import NDArray

from darts_sg.analysis.compare import anatomy
from darts_sg.analysis.cost import derived_cost
from darts_sg.analysis.draw_network import draw_network, draw_networks
from darts_sg.errors import UsageError
from darts_sg.genotype import load_genotype, zoo_names


def overlaps(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(n, 4) and (m, 4) boxes to (n, m)."""
    a = a[:, None]
    return ((a[..., :2] < b[:, 2:]) & (b[:, :2] < a[..., 2:])).all(axis=-1)


def check_nothing_overlaps(figure: Figure) -> None:
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    texts = [t for t in figure.findobj(Text) if t.get_text() and t.axes is not None and t.get_visible()]
    stages = {p.get_gid(): p for p in figure.findobj(FancyBboxPatch) if p.get_gid()}
    bars = [patch for patch in figure.findobj(Rectangle) if patch.get_gid()]
    boxes = np.array([artist.get_window_extent(renderer).extents for artist in (*texts, *bars)])
    frames = np.array([stage.get_window_extent(renderer).extents for stage in stages.values()])
    words = boxes[: len(texts)]
    assert (words[:, :2] >= 0).all()
    assert (words[:, 2:] <= figure.bbox.extents[2:]).all()
    meetings = overlaps(words, boxes)
    np.fill_diagonal(meetings, False)
    assert not [(texts[i].get_text(), i, j) for i, j in np.argwhere(meetings)]
    within = [[text.get_gid() == f"{gid}:name" for gid in stages] for text in texts]
    np.testing.assert_array_equal(overlaps(words, frames), within)


@pytest.mark.slow
def test_nothing_overlaps_with_the_whole_zoo_in_one_picture() -> None:
    check_nothing_overlaps(draw_networks([load_genotype(name) for name in zoo_names()], cells=5))


def test_nothing_overlaps_in_a_wide_and_deep_network() -> None:
    check_nothing_overlaps(draw_network(load_genotype("AmoebaNet"), "imagenet", channels=512, cells=24, dark=True))


def test_bars_and_figures_are_those_of_the_anatomy() -> None:
    genotype = load_genotype("PDARTS")
    figure, parts = draw_network(genotype, channels=16, cells=8), anatomy(genotype, channels=16, cells=8)
    texts = {text.get_gid() or text.get_text(): text.get_text() for text in figure.findobj(Text)}
    lengths: dict[str, float] = defaultdict(float)
    for bar in figure.findobj(Rectangle):
        if bar.get_gid():
            lengths[bar.get_gid()] += bar.get_width()
    for view, list_of_parts in (("stage", parts.cells), ("operation", parts.operations)):
        for field in ("params", "macs"):
            counts = [getattr(part, field) for part in list_of_parts]
            drawn = [lengths[f"{view}:{i}:{field}:bar"] for i in range(len(counts))]
            assert [length / max(drawn) for length in drawn] == pytest.approx([n / max(counts) for n in counts])
            for i, count in enumerate(counts):
                assert texts[f"{view}:{i}:{field}"].startswith(f"{100 * count / sum(counts):.1f}%  ")
    assert texts["channels:3"] == "32"
    assert texts["output:3"] == "128 × 16 × 16"
    assert texts["stage:3:name"] == "cell 2 · reduction"
    cost = derived_cost(genotype, channels=16, cells=8)
    assert f" {cost.params_with_auxiliary - cost.params:,} parameters" in texts["auxiliary:cost"]
    assert f"{cost.params:,} parameters, {cost.macs / 1e6:.1f}M MACs" in " ".join(texts.values())


def test_a_network_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 3"):
        draw_network(load_genotype("DARTS_V2"), cells=2)
