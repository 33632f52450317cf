"""Tables and charts of a study: the same values in every form."""

import csv
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import pytest

from darts_sg.study.chart import Chart, Interval, Series, chart_svg, draw_chart
from darts_sg.study.page import figure, rows_of
from darts_sg.study.tables import Column, Linked, Table, by_seed, fixed, interval, latex_text, p_text, whole

ROWS: Sequence[Sequence[Any]] = [
    [Linked("A_1", "runs/a/report.md"), 12.3456, (-0.5, 0.25), {0: 1.0, 2: 2.5}, 1_234_567],
    ["B & C | 50%", None, None, None, 7],
]
TABLE = Table(
    "errors",
    "Errors & more",
    [
        Column("genotype"),
        Column("mean, %", fixed(2), number=True),
        Column("interval", interval(2, sign=True), is_interval=True),
        Column("by seed", by_seed),
        Column("parameters", whole, number=True),
    ],
    ROWS,
    "Data_1, seeds 0 & 2.",
)


def test_markdown_keeps_links_and_escapes_bars() -> None:
    first, second = TABLE.markdown().splitlines()[2:]
    assert first == "| [A_1](runs/a/report.md) | 12.35 | −0.50 to +0.25 | 0: 1.00, 2: 2.50 | 1,234,567 |"
    assert second == "| B & C \\| 50% | – | – | – | 7 |"


def test_csv_has_plain_numbers_and_a_column_for_each_end() -> None:
    header, first, second = csv.reader(io.StringIO(TABLE.csv()))
    assert header == ["genotype", "mean, %", "interval, low", "interval, high", "by seed", "parameters"]
    assert first == ["A_1", "12.3456", "-0.5", "0.25", "0: 1.00, 2: 2.50", "1234567"]
    assert second == ["B & C | 50%", "", "", "", "", "7"]


def test_latex_escapes_and_states_the_setting() -> None:
    text = TABLE.latex()
    assert r"A\_1 & 12.35 & $-$0.50 to +0.25 & 0: 1.00, 2: 2.50 & 1,234,567 \\" in text
    assert r"B \& C | 50\% & -- & -- & -- & 7 \\" in text
    assert r"\begin{tabular}{lrrlr}" in text
    assert r"\footnotesize Data\_1, seeds 0 \& 2.\end{minipage}" in text
    assert latex_text("a^b~c\\{}#$") == r"a\textasciicircum{}b\textasciitilde{}c\textbackslash{}\{\}\#\$"


def test_records_are_plain() -> None:
    assert TABLE.records()[0] == {
        "genotype": "A_1",
        "mean, %": 12.3456,
        "interval": [-0.5, 0.25],
        "by seed": {"0": 1.0, "2": 2.5},
        "parameters": 1_234_567,
    }


@pytest.mark.parametrize(("p", "text"), [(3e-5, "< 0.0001"), (0.0123, "0.012"), (0.25, "0.25"), (1.0, "1.00")])
def test_p_values(p: float, text: str) -> None:
    assert p_text(p) == text


def test_the_page_sorts_by_values_not_by_texts() -> None:
    first, second = rows_of(TABLE)
    assert [cell.value for cell in first] == ["A_1", 12.3456, -0.5, "0: 1.00, 2: 2.50", 1_234_567]
    assert [cell.value for cell in second][1:4] == [None, None, None]
    assert (first[0].path, first[1].kind, first[2].kind) == ("runs/a/report.md", "number", "wide")


CHART = Chart(
    "differences",
    "Differences <1>",
    "data; scale; seeds; machine",
    "points",
    rows=["a & b", "c"],
    series=[
        Series("pairs", [(0.5, 0.0), (-0.5, 1.0)], 0, titles=["<seed 0>", "seed 1"]),
        Series("pairs", [(0.0, 1.0)], 0),
    ],
    intervals=[Interval(0, -1.0, 0.0, 1.0)],
    marks=[0.0],
)
LINES = Chart("curve", "Curve", "data", "hours", "error, %", [Series("run", [(0.0, 9.0), (1.0, 5.0)], 1, "steps")])


@pytest.mark.parametrize(
    "chart", [CHART, LINES, Chart("one", "One", "", "x", "y", [Series("a", [(1.0, 2.0)], 0, "line")])]
)
def test_the_svg_of_a_chart_is_well_formed_and_inside_its_frame(chart: Chart) -> None:
    root = ET.fromstring(chart_svg(chart))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    spots = [(float(x), float(y)) for x, y in re.findall(r"translate\(([-\d.]+) ([-\d.]+)\)\" d", chart_svg(chart))]
    lines = [each for each in root.iter() if each.tag.endswith("line")]
    spots += [(float(line.attrib[f"x{k}"]), float(line.attrib[f"y{k}"])) for line in lines for k in "12"]
    assert spots
    assert all(0 <= x <= width and 0 <= y <= height for x, y in spots)


def test_signs_stand_where_their_values_are() -> None:
    root = ET.fromstring(chart_svg(CHART))
    reach = next(each for each in root.iter() if each.get("class") == "reach")
    low, high = float(reach.attrib["x1"]), float(reach.attrib["x2"])
    spots = [
        tuple(map(float, re.findall(r"[-\d.]+", each.attrib["transform"])))
        for each in root.iter()
        if each.get("class") == "dot"
    ]
    assert [x for x, _ in spots] == pytest.approx(
        [low + 0.75 * (high - low), low + 0.25 * (high - low), (low + high) / 2], abs=0.1
    )
    assert spots[0][1] == float(reach.attrib["y1"]) < spots[1][1]


def test_a_chart_names_each_group_once_and_everything_is_escaped() -> None:
    shown = str(figure(CHART, with_files=True))
    assert shown.count("<span>") == 1
    assert "<seed 0>" not in shown
    assert "&lt;seed 0&gt;" in shown
    assert "a &amp; b" in shown
    assert 'href="figures/differences.pdf"' in shown


def test_the_figure_for_a_paper_has_the_same_data() -> None:
    (axes,) = draw_chart(CHART).axes
    drawn = [line.get_xydata().tolist() for line in axes.lines]
    assert [[0.5, 0.0], [-0.5, 1.0]] in drawn
    assert [[-1.0, 0.0], [1.0, 0.0]] in drawn
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a & b", "c"]
    (axes,) = draw_chart(LINES).axes
    assert axes.lines[0].get_drawstyle() == "steps-post"
