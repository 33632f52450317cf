"""Scatter plots of genotypes: MACs, latency, published errors and measured errors against parameters."""

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import Bbox

from darts_sg.analysis.sheet import LIGHT, Point, text_width
from darts_sg.networks.derived import NetworkShape

DOT, NAME_SIZE, NAME_HEIGHT = "#1F62B5", 8.5, 12.0
DISTANCES = (7.0, *range(14, 200, 12))  # between a name and its point, in points; tried in order
ANGLES = (0, 180, 90, 270, *(a for a in range(15, 360, 15) if a % 90))
NEAR = 9.0  # up to this distance a name needs no line to its point
ROUNDS = 4

Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in points."""


class Mark(NamedTuple):
    """A genotype in a panel."""

    name: str
    params: float
    """In millions."""
    value: float
    deviation: float | None = None


class Panel(NamedTuple):
    """A set of axes for values of one kind, whose title says what readers must know about them."""

    title: str
    label: str
    marks: list[Mark]


def draw_comparison(rows: Sequence[Mapping[str, Any]], shape: str, network: NetworkShape = "cifar") -> Figure:
    """Draw the rows of compare_genotypes; `shape` names the shape of the networks (see shape_text).

    Counted, published and measured values have axes of their own, and so has each scale of training; axes that no
    genotype has a value for are left out. Deviations are drawn as bars.
    """
    panels = list(_panels(rows, shape, network))
    num_columns = min(2, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    figure = Figure(figsize=(7.0 * num_columns, 4.8 * num_rows), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, panel)
    for axes in grid[len(panels) :]:
        axes.remove()
    figure.draw_without_rendering()  # names can only be placed once the layout has placed the points
    for axes, panel in zip(grid, panels, strict=False):
        place_names(axes, list(dict.fromkeys(panel.marks)))
    return figure


def _panels(rows: Sequence[Mapping[str, Any]], shape: str, network: NetworkShape) -> Iterator[Panel]:
    title, key = {
        "cifar": ("error on CIFAR-10", "published_cifar10_error"),
        "imagenet": ("top-1 error on ImageNet", "published_imagenet_top1_error"),
    }[network]
    quoted, measured = [], dict[str, list[Mark]]()
    for row in rows:
        params = row["params"] / 1e6
        if row[key] is not None:
            quoted.append(Mark(row["name"], params, row[key], row.get(f"{key}_deviation")))
        for score in row["measured_test_error"]:
            mark = Mark(row["name"], score.params[0] / 1e6, score.mean, score.deviation)
            measured.setdefault(f"Measured here on {score.data}: {score.scale}", []).append(mark)
    if quoted:
        yield Panel(f"Published errors; parameters counted here ({shape})", f"{title}, %", quoted)
    for setting, marks in measured.items():
        yield Panel(setting, "test error after the last epoch, %", marks)
    timed = [Mark(row["name"], row["params"] / 1e6, 1e3 * row["latency"].median) for row in rows if "latency" in row]
    if timed:
        batch, device = rows[0]["latency_batch"], rows[0]["device"]
        yield Panel(f"Measured here: {device}, batch {batch} ({shape})", "latency, ms", timed)
    counted = [Mark(row["name"], row["params"] / 1e6, row["macs"] / 1e6) for row in rows]
    yield Panel(f"Counted here ({shape}; auxiliary head excluded)", "MACs, M", counted)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for mark in panel.marks:
        if mark.deviation is not None:
            axes.errorbar(mark.params, mark.value, mark.deviation, color=LIGHT.faint, linewidth=1, capsize=3, zorder=1)
    axes.plot([m.params for m in panel.marks], [m.value for m in panel.marks], "o", color=DOT, markersize=5, zorder=3)
    axes.margins(0.18)
    dress(axes, textwrap.fill(panel.title, 80), "parameters, M", panel.label)


def dress(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Set title, labels, grid and spines of a set of axes."""
    axes.set_title(title, fontsize=9.5, loc="left", color=LIGHT.ink)
    axes.set_xlabel(x_label, fontsize=9, color=LIGHT.ink)
    axes.set_ylabel(y_label, fontsize=9, color=LIGHT.ink)
    axes.tick_params(labelsize=8.5, colors=LIGHT.ink)
    axes.grid(color=LIGHT.frame, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def place_names(axes: Axes, marks: Sequence[Mark], drawn: Sequence[Box] = ()) -> None:
    """Write each name at the nearest place where it overlaps no point, name or line.

    `drawn` is what else must not be covered. A name that does not stand right at its point is tied to it by a line.
    """
    pixels = axes.figure.dpi / 72

    def spot(mark: Mark, shift: float = 0.0) -> Point:
        x, y = axes.transData.transform((mark.params, mark.value + shift)) / pixels
        return float(x), float(y)

    spots = [spot(mark) for mark in marks]
    taken = [*drawn, *((x - 4, y - 4, x + 4, y + 4) for x, y in spots)]
    for mark, (x, _) in zip(marks, spots, strict=True):
        if mark.deviation is not None:
            (_, low), (_, high) = spot(mark, -mark.deviation), spot(mark, mark.deviation)
            taken.append((x - 3, low, x + 3, high))
    inside = axes.get_window_extent()
    frame = (inside.x0 / pixels, inside.y0 / pixels, inside.x1 / pixels, inside.y1 / pixels)
    placed: dict[int, Place] = {}
    for _ in range(ROUNDS):  # a later round resolves conflicts that an earlier one caused
        for k in sorted(range(len(marks)), key=lambda k: spots[k]):
            others = [place for i, place in placed.items() if i != k]
            if k not in placed or _conflicts(placed[k], frame, taken, others):
                found = ((p, _conflicts(p, frame, taken, others)) for p in _places(marks[k].name, spots[k]))
                placed[k] = _fewest(found)
    for k, mark in enumerate(marks):
        place = placed[k]
        axes.annotate(
            mark.name,
            (mark.params, mark.value),
            place.shift,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=NAME_SIZE,
            color=LIGHT.ink,
            zorder=4,
            in_layout=False,
        )
        if place.tie is not None:
            ends = axes.transData.inverted().transform([(x * pixels, y * pixels) for x, y in place.tie])
            axes.plot(*ends.T, color=LIGHT.faint, linewidth=0.7, zorder=2, scalex=False, scaley=False)


class Place(NamedTuple):
    """A possible place of a name: offset of its middle from the point, its box, and the connecting line, if any."""

    shift: Point
    box: Box
    tie: tuple[Point, Point] | None


def _places(name: str, at: Point) -> Iterator[Place]:
    """Places all around the point, nearest first."""
    width = text_width(name, NAME_SIZE) + 3
    for distance in DISTANCES:
        for angle in ANGLES:
            dx = math.cos(math.radians(angle)) * (distance + width / 2)
            dy = math.sin(math.radians(angle)) * (distance + NAME_HEIGHT / 2)
            left, bottom = at[0] + dx - width / 2, at[1] + dy - NAME_HEIGHT / 2
            box = (left, bottom, left + width, bottom + NAME_HEIGHT)
            edge = (min(max(at[0], box[0]), box[2]), min(max(at[1], box[1]), box[3]))
            yield Place((dx, dy), box, (at, edge) if math.dist(at, edge) > NEAR else None)


def _conflicts(place: Place, frame: Box, taken: Sequence[Box], others: Sequence[Place]) -> int:
    """Penalty of a place: highest for hidden text, lower for crossing lines."""
    box, tie = place.box, place.tie
    inside = frame[0] <= box[0] and box[2] <= frame[2] and frame[1] <= box[1] and box[3] <= frame[3]
    names, ties = [other.box for other in others], [other.tie for other in others if other.tie is not None]
    count = 20 * (not inside) + 10 * sum(_overlap(box, other) for other in (*taken, *names))
    count += 10 * sum(_meets_box(other, box) for other in ties)
    if tie is not None:
        own = (*tie[0], *tie[0])
        count += 10 * sum(_meets_box(tie, other) for other in names)
        count += sum(_meets_box(tie, dot) for dot in taken if not _overlap(dot, own))
        count += sum(
            _overlap(_around(tie), _around(t)) and Path(tie).intersects_path(Path(t), filled=False) for t in ties
        )
    return count


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _around(line: tuple[Point, Point]) -> Box:
    """The bounding box of a line, slightly enlarged so that it is never flat."""
    (x0, y0), (x1, y1) = line
    return min(x0, x1) - 0.1, min(y0, y1) - 0.1, max(x0, x1) + 0.1, max(y0, y1) + 0.1


def _meets_box(line: tuple[Point, Point], box: Box) -> bool:
    return _overlap(_around(line), box) and bool(Path(line).intersects_bbox(Bbox.from_extents(*box), filled=False))


def _fewest(found: Iterable[tuple[Place, int]]) -> Place:
    """The first place without conflicts, or else the one with the fewest."""
    best: tuple[Place, int] | None = None
    for place, conflicts in found:
        if best is None or conflicts < best[1]:
            best = place, conflicts
        if conflicts == 0:
            break
    assert best is not None
    return best[0]
