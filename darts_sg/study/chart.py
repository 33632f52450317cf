"""Charts of a study as data, drawn for a paper by matplotlib and for the page as SVG that follows its colours."""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from darts_sg.analysis.draw_comparison import dress
from darts_sg.analysis.sheet import LIGHT

Point = tuple[float, float]


class Look(NamedTuple):
    """How a series is drawn. Series differ in marker and dashes, too, so that colours are not needed."""

    light: str
    dark: str
    marker: str
    """As matplotlib calls it."""
    dashes: tuple[float, ...]


LOOKS = (
    Look("#1F62B5", "#6BA7F0", "o", ()),
    Look("#C96F00", "#F0A93B", "s", (5, 2)),
    Look("#C8102E", "#F2708A", "^", (2, 1.5)),
    Look("#2E7D32", "#6CC27F", "D", (7, 2, 2, 2)),
    Look("#7A3FA8", "#C08BEA", "v", (9, 2)),
    Look("#007A87", "#3FC1CF", "P", (4, 1.5, 1.5, 1.5)),
    Look("#8A5A3C", "#D29A76", "X", (3, 3)),
    Look("#52606D", "#A5B1BD", "p", (1.2, 1.2)),
)
MARKER_PATHS = {
    "o": "M-3.4,0a3.4,3.4 0 1,0 6.8,0a3.4,3.4 0 1,0 -6.8,0z",
    "s": "M-3,-3h6v6h-6z",
    "^": "M0,-3.8L3.7,2.8H-3.7z",
    "D": "M0,-4L4,0L0,4L-4,0z",
    "v": "M0,3.8L3.7,-2.8H-3.7z",
    "P": "M-1.3,-3.8h2.6v2.5h2.5v2.6h-2.5v2.5h-2.6v-2.5h-2.5v-2.6h2.5z",
    "X": "M-3.6,-2L-2,-3.6L0,-1.6L2,-3.6L3.6,-2L1.6,0L3.6,2L2,3.6L0,1.6L-2,3.6L-3.6,2L-1.6,0z",
    "p": "M0,-3.8L3.6,-1.2L2.2,3.1H-2.2L-3.6,-1.2z",
}
"""Each marker around (0, 0), as an SVG path."""


@dataclass(frozen=True)
class Series:
    """Points of one kind, with one entry of the legend."""

    name: str
    points: Sequence[Point]
    look: int
    """Index into LOOKS, modulo their number."""
    kind: Literal["line", "steps", "dots"] = "dots"
    titles: Sequence[str] = ()
    """What each point is, for the page; empty, or one for each point."""
    in_legend: bool = True


class Interval(NamedTuple):
    """A mean with its interval, on a row of the chart."""

    row: int
    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Chart:
    """Data of one chart. With `rows` the vertical axis has names, and the y of points and intervals is a row."""

    name: str
    """File name without its ending."""
    title: str
    caption: str
    """Data, scale, seeds and machine: all that must be quoted beside the figure."""
    x_label: str
    y_label: str = ""
    series: Sequence[Series] = ()
    rows: Sequence[str] = ()
    intervals: Sequence[Interval] = ()
    marks: Sequence[float] = field(default=())
    """Vertical lines, such as that of no difference."""

    @property
    def is_empty(self) -> bool:
        return not any(one.points for one in self.series) and not self.intervals

    @property
    def legend(self) -> list[Series]:
        """The series that the legend names, each name once."""
        named = {one.name: one for one in reversed(self.series) if one.in_legend and one.name and one.points}
        return [one for one in self.series if named.get(one.name) is one]

    def xs(self) -> list[float]:
        return [
            *(x for one in self.series for x, _ in one.points),
            *(x for one in self.intervals for x in (one.low, one.high)),
            *self.marks,
        ]

    def ys(self) -> list[float]:
        return [y for one in self.series for _, y in one.points]


def look_of(series: Series) -> Look:
    """The look of a series."""
    return LOOKS[series.look % len(LOOKS)]


# For a paper


def draw_chart(chart: Chart) -> Figure:
    """The chart for print, on white. Its caption is left to the text that shows it."""
    height = 0.9 + 0.34 * len(chart.rows) if chart.rows else 3.4
    legend = chart.legend
    figure = Figure(
        figsize=(6.4, height + 0.2 * math.ceil(len(legend) / 2)), dpi=100, facecolor="white", layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for series in chart.series:
        _draw_series(axes, series, series.name if series in legend else None)
    for low, middle, high, row in ((i.low, i.middle, i.high, i.row) for i in chart.intervals):
        axes.plot([low, high], [row, row], color=LIGHT.ink, linewidth=1.4, zorder=2)
        axes.plot([middle], [row], "|", color=LIGHT.ink, markersize=11, markeredgewidth=1.8, zorder=4)
    for x in chart.marks:
        axes.axvline(x, color=LIGHT.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    dress(axes, textwrap.fill(chart.title, 86), chart.x_label, chart.y_label)
    if chart.rows:
        axes.set_yticks(range(len(chart.rows)), [textwrap.fill(row, 34) for row in chart.rows])
        axes.set_ylim(len(chart.rows) - 0.5, -0.5)
    if legend:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8.5, frameon=False, labelcolor=LIGHT.ink)
    return figure


def _draw_series(axes: Axes, series: Series, label: str | None) -> None:
    look = look_of(series)
    xs, ys = [x for x, _ in series.points], [y for _, y in series.points]
    if series.kind == "dots":
        axes.plot(
            xs, ys, look.marker, color=look.light, markersize=5.5, markeredgecolor="white", markeredgewidth=0.6,
            alpha=0.85, label=label, zorder=3,  # seeds often lie on each other
        )  # fmt: skip
        return
    (line,) = axes.plot(xs, ys, color=look.light, linewidth=1.6, label=label, zorder=2)
    line.set_drawstyle("steps-post" if series.kind == "steps" else "default")
    if look.dashes:
        line.set_linestyle((0, look.dashes))


# For the page

WIDTH, HEIGHT = 360.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 8.0, 32.0
ROW = 34.0  # a name, and its track below it


def chart_svg(chart: Chart) -> str:
    """The chart as an SVG element whose colours are classes of the page; texts are escaped."""
    left = 10.0 if chart.rows else LEFT
    height = TOP + ROW * len(chart.rows) + BOTTOM if chart.rows else HEIGHT
    x_ticks, x_of = _axis(chart.xs(), left, WIDTH - RIGHT)
    parts = [
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(chart.title)}">',
        *_vertical_lines(x_ticks, x_of, height - BOTTOM),
        f'<text class="label" x="{(left + WIDTH - RIGHT) / 2:.1f}" y="{height - 4:.1f}">{escape(chart.x_label)}</text>',
    ]
    if chart.rows:
        y_of = Scale(0, 1, TOP + 23, TOP + ROW + 23)
        parts += [_line("track", left, y_of(row), WIDTH - RIGHT, y_of(row)) for row in range(len(chart.rows))]
    else:
        y_ticks, y_of = _axis(chart.ys(), height - BOTTOM, TOP)
        for tick, text in y_ticks:
            parts.append(_line("grid", left, y_of(tick), WIDTH - RIGHT, y_of(tick)))
            parts.append(f'<text class="tick end" x="{left - 5:g}" y="{y_of(tick) + 3:.1f}">{text}</text>')
        parts.append(
            f'<text class="label" transform="translate(10 {(TOP + height - BOTTOM) / 2:.1f}) rotate(-90)">'
            f"{escape(chart.y_label)}</text>"
        )
    parts += [_line("mark", x_of(x), TOP, x_of(x), height - BOTTOM) for x in chart.marks]
    for one in chart.intervals:
        y = y_of(one.row)
        parts.append(_line("reach", x_of(one.low), y, x_of(one.high), y))
        parts.append(_line("mean", x_of(one.middle), y - 6, x_of(one.middle), y + 6))
    for series in chart.series:
        parts += _series_svg(series, [(x_of(x), y_of(y)) for x, y in series.points])
    for row, name in enumerate(chart.rows):
        parts.append(f'<text class="row" x="{left:g}" y="{TOP + ROW * row + 11:.1f}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def swatch_svg(series: Series) -> str:
    """The sign of a series in a legend."""
    look, k = look_of(series), series.look % len(LOOKS)
    if series.kind == "dots":
        return f'<svg class="sign s{k}" viewBox="-6 -6 12 12" aria-hidden="true">{_marker(look, 0, 0)}</svg>'
    dashes = f' stroke-dasharray="{" ".join(f"{d:g}" for d in look.dashes)}"' if look.dashes else ""
    line = f'<path class="line"{dashes} d="M0,6H26"/>'
    return f'<svg class="sign long s{k}" viewBox="0 0 26 12" aria-hidden="true">{line}</svg>'


def _series_svg(series: Series, points: Sequence[Point]) -> Iterable[str]:
    look, k = look_of(series), series.look % len(LOOKS)
    if not points:
        return
    if series.kind == "dots":
        titles = series.titles or [series.name] * len(points)
        for (x, y), title in zip(points, titles, strict=True):
            yield f'<g class="s{k}">{_marker(look, x, y, title)}</g>'
        return
    path = f"M{points[0][0]:.1f},{points[0][1]:.1f}"
    for x, y in points[1:]:
        path += f"H{x:.1f}V{y:.1f}" if series.kind == "steps" else f"L{x:.1f},{y:.1f}"
    dashes = f' stroke-dasharray="{" ".join(f"{d:g}" for d in look.dashes)}"' if look.dashes else ""
    title = f"<title>{escape(series.titles[0] if series.titles else series.name)}</title>"
    yield f'<path class="line s{k}"{dashes} d="{path}">{title}</path>'
    if len(points) == 1:  # a line of one point is not seen
        yield f'<g class="s{k}">{_marker(look, *points[0], series.name)}</g>'


def _marker(look: Look, x: float, y: float, title: str = "") -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    return f'<path class="dot" transform="translate({x:.1f} {y:.1f})" d="{MARKER_PATHS[look.marker]}">{inner}</path>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _vertical_lines(ticks: Iterable[tuple[float, str]], x_of: "Scale", bottom: float) -> Iterable[str]:
    for tick, text in ticks:
        yield _line("grid", x_of(tick), TOP, x_of(tick), bottom)
        yield f'<text class="tick" x="{x_of(tick):.1f}" y="{bottom + 13:.1f}">{text}</text>'


class Scale(NamedTuple):
    """A linear map from values to the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)


def _axis(values: Sequence[float], start: float, end: float) -> tuple[list[tuple[float, str]], Scale]:
    """Ticks with their texts, and the scale of an axis over `values`, with some room at both ends."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - room, high + room
    ticks = [float(t) for t in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= t <= high]
    step = ticks[1] - ticks[0] if len(ticks) > 1 else high - low
    digits = next((n for n in range(8) if abs(round(step, n) - step) < 1e-6 * step), 8)
    texts = [f"{tick + 0.0:.{digits}f}".replace("-", "−") for tick in (round(t, 10) for t in ticks)]
    return list(zip(ticks, texts, strict=True)), Scale(low, high, start, end)
