"""Both cells of a genotype as one picture, drawn like a metro map, without graphviz.

The nodes stand in a row, one column each, between the two inputs (left) and the output (right). An edge runs
on a lane of its own above or below that row: it leaves its state vertically, follows the lane, and enters its
node vertically. Verticals stay inside the columns of their two ends, and labels inside the gaps between
columns, in the gap before the node they lead to. So no label can meet another label, a node or a foreign
edge, and no edge can run through a foreign node, whatever the genotype. Lengths are in points (1/72 inch).
"""

import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path
from matplotlib.patheffects import Normal, Stroke
from matplotlib.textpath import TextPath

from darts_sg.files import write_atomically
from darts_sg.genotype import Cell, Edge, Genotype


@dataclass(frozen=True)
class Style:
    """How the operations of one family are drawn."""

    title: str
    color: str
    tint: str
    """Background of the label."""
    text: str
    """Colour of the label's letters."""
    width: float = 1.7
    dashes: tuple[float, float] | None = None

    @property
    def arrow_scale(self) -> float:
        return 1.0 + 0.12 * (self.width - 1.7)


STYLES = {
    "sandglass": Style("sandglass", "#C8102E", "#C8102E", "#FFFFFF", width=3.6),
    "inverted_residual": Style("inverted residual", "#D98200", "#FFF0D6", "#7A4600", width=2.4),
    "sep_conv": Style("separable convolution", "#1F62B5", "#E4EEFA", "#123E75"),
    "dil_conv": Style("dilated convolution", "#7A3FA8", "#F1E7F8", "#51257A"),
    "pool": Style("pooling", "#1E8449", "#E2F3E8", "#11552E"),
    "skip": Style("skip connection", "#6B7580", "#EEF0F2", "#3C444C", dashes=(4.0, 1.8)),
    "other": Style("other operation", "#8A5A3C", "#F4EAE3", "#5C3820"),
}

INK, FAINT, FRAME = "#1F2933", "#8B97A3", "#D5DBE1"
NODE_FILL, INPUT_FILL, OUTPUT_FILL = "#FFF3C4", "#DFF0E3", "#FBE3E0"
LABEL_SIZE, STATE_SIZE, TITLE_SIZE, NAME_SIZE, CAPTION_SIZE = 8.5, 10.5, 10.0, 13.0, 9.5
LANE_STEP, LANE_FIRST = 21.0, 34.0  # between lanes; from the row of nodes to the first lane
PORT_STEP, PORT_MARGIN, CORNER = 11.0, 10.0, 7.0
NODE_HEIGHT, NODE_WIDTH, BAR_WIDTH = 26.0, 30.0, 42.0
LABEL_HEIGHT, LABEL_PAD, GAP_PAD = 14.0, 5.0, 9.0
ARROW_LENGTH, ARROW_WIDTH = 7.0, 3.2
PANEL_PAD, PANEL_TITLE, MARGIN = 14.0, 24.0, 14.0

Point = tuple[float, float]


def family(operation: str) -> str:
    """The key in STYLES of an operation's family; `other` for operations that belong to none."""
    if "_pool_" in operation:
        return "pool"
    return next((name for name in STYLES if operation.startswith(name)), "other")


def draw_genotype(genotype: Genotype, caption: str = "") -> Figure:
    """Draw the normal and the reduction cell, one above the other, with a legend of the operations used.

    Input states are c_{k-2} and c_{k-1}, nodes 0, 1, …, and the output c_k, as in the DARTS paper (figures 4
    and 5). `caption` (parameters, MACs, …) stands under the genotype's name; long captions are wrapped.
    """
    plans = [(title, plan_cell(cell)) for title, cell in genotype.cells()]
    used = {family(edge.operation) for _, cell in genotype.cells() for _, edge in cell.edges()}
    entries = [name for name in STYLES if name in used]
    width = max(
        2 * PANEL_PAD + max(plan.width for _, plan in plans),
        _text_width(genotype.name, NAME_SIZE, "bold"),
        260.0,
    )
    lines = caption_lines(caption, width)
    legend = _legend_rows(entries, width)
    panels = [panel_height(plan) for _, plan in plans]
    header = 18.0 + 14.0 * len(lines) + 8.0
    height = header + sum(panels) + 12.0 * len(panels) + 18.0 * len(legend)

    inches = ((width + 2 * MARGIN) / 72, (height + 2 * MARGIN) / 72)
    figure = Figure(figsize=inches, dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-MARGIN, width + MARGIN), ylim=(-height - MARGIN, MARGIN))
    axes.set_axis_off()
    _text(axes, 0, -7, genotype.name, NAME_SIZE, "bold", left=True)
    for i, line in enumerate(lines):
        _text(axes, 0, -25 - 14 * i, line, CAPTION_SIZE, color="#52606D", left=True)
    y = -header
    for (title, plan), panel in zip(plans, panels, strict=True):
        draw_cell_panel(axes, title, plan, y, width, panel)
        y -= panel + 12.0
    for row in legend:
        for x, name in row:
            _draw_legend_entry(axes, x, y - 6, STYLES[name])
        y -= 18.0
    return figure


def save_figure(
    figure: Figure, path_without_suffix: FilePath, formats: Sequence[str] = ("svg", "png")
) -> list[FilePath]:
    """Write `figure` in each of `formats` and return the paths; the same figure gives the same bytes."""
    paths = []
    for suffix in formats:
        path = path_without_suffix.with_name(f"{path_without_suffix.name}.{suffix}")
        buffer = io.BytesIO()
        metadata = {"svg": {"Date": None}, "png": {"Software": None}}.get(suffix)
        with matplotlib.rc_context({"svg.hashsalt": "darts_sg", "svg.fonttype": "path"}):
            figure.savefig(buffer, format=suffix, dpi=160, metadata=metadata)
        write_atomically(path, buffer.getvalue())
        paths.append(path)
    return paths


# Layout


@dataclass(frozen=True)
class Track:
    """An edge on its way: along `lane` (above the nodes > 0, below < 0, straight from node to node 0).

    Columns: 0 holds both inputs, 1 and up the nodes, the last the output.
    """

    edge: Edge
    start: int
    stop: int
    lane: int


class Reach(NamedTuple):
    """The lanes that the states span, and the highest of all."""

    inputs: tuple[tuple[int, ...], tuple[int, ...]]
    """Lanes that leave c_{k-2} and c_{k-1}."""
    top: int


@dataclass(frozen=True)
class CellPlan:
    """Where everything of a cell stands; x from the left of the cell, y from the row of nodes upwards."""

    tracks: tuple[Track, ...]
    concat: tuple[int, ...]
    """Columns of the nodes joined at the output."""
    bus: int
    """Lane of the joined output."""
    columns: tuple[tuple[float, float], ...]
    """(left, right) of each column."""
    ports: dict[tuple[int, int, bool], float]
    """(track, or len(tracks) + position in concat; column; at its end) -> x of the vertical there."""
    reach: Reach

    @property
    def width(self) -> float:
        return self.columns[-1][1]

    @property
    def top(self) -> float:
        return lane_y(self.reach.top) + LABEL_HEIGHT / 2 + 4

    @property
    def bottom(self) -> float:
        return lane_y(self.bus) - LABEL_HEIGHT / 2 - 4

    @property
    def height(self) -> float:
        return self.top - self.bottom


def lane_y(lane: int) -> float:
    """Height of a lane over the row of nodes."""
    if lane == 0:
        return 0.0
    return (LANE_FIRST + LANE_STEP * (abs(lane) - 1)) * (1 if lane > 0 else -1)


def plan_cell(cell: Cell) -> CellPlan:
    """Lay a cell out: few crossings between lanes, none between the edges at one node."""
    return plan_cells([cell])[0]


def plan_cells(cells: Sequence[Cell]) -> list[CellPlan]:
    """Lay out cells of equally many nodes, each as plan_cell does, with all states in the same places in every one."""
    routed = []
    for cell in cells:
        runs = [(max(edge.state - 1, 0), state - 1, edge) for state, edge in cell.edges()]
        concat = tuple(sorted(state - 1 for state in cell.concat))
        routed.append((_assign_lanes(runs, _choose_sides(runs, concat)), concat))
    tracks = [track for tracks, _ in routed for track in tracks]
    bus = min([-1, *(track.lane for track in tracks)]) - 1  # lane -1 belongs to c_{k-1}
    above, below = (
        tuple(sorted({track.lane for track in tracks if track.start == 0 and track.lane * side > 0} or {side}))
        for side in (1, -1)
    )
    reach = Reach((above, below), max([1, *(track.lane for track in tracks)]))
    output = cells[0].num_nodes + 1
    gaps = [0.0] * output
    for track in tracks:
        gaps[track.stop - 1] = max(gaps[track.stop - 1], label_width(track.edge.operation))
    gaps[-1] = label_width("concat")
    placed = [_place_ports(tracks, concat, bus, output) for tracks, concat in routed]
    columns, x = [], 0.0
    for column in range(output + 1):
        column_width = max(widths[column] for _, widths in placed)
        columns.append((x, x + column_width))
        x += column_width + (gaps[column] + 2 * GAP_PAD + ARROW_LENGTH if column < output else 0)
    plans = []
    for (tracks, concat), (offsets, _) in zip(routed, placed, strict=True):
        ports = {key: sum(columns[key[1]]) / 2 + offset for key, offset in offsets.items()}
        plans.append(CellPlan(tuple(tracks), concat, bus, tuple(columns), ports, reach))
    return plans


def _place_ports(
    tracks: Sequence[Track], concat: Sequence[int], bus: int, output: int
) -> tuple[dict[tuple[int, int, bool], float], list[float]]:
    """Where the verticals stand in their columns, from the middle (keys as CellPlan.ports), and widths of columns."""
    # the lines to the output are routed like edges: out of their node to the lane of the bus
    routes = [*tracks, *(Track(Edge("", 0), column, output, bus) for column in concat)]
    offsets: dict[tuple[int, int, bool], float] = {}
    widths = [BAR_WIDTH]
    for column in range(1, output):
        most = 0
        for side in (1, -1):
            near = [(abs(r.lane), i) for i, r in enumerate(routes) if r.lane * side > 0]
            order = [(i, True) for _, i in sorted(near) if routes[i].stop == column]
            order += [(i, False) for _, i in sorted(near, reverse=True) if routes[i].start == column]
            for k, (i, at_end) in enumerate(order):
                offsets[i, column, at_end] = (k - (len(order) - 1) / 2) * PORT_STEP
            most = max(most, len(order))
        widths.append(max(NODE_WIDTH, (most - 1) * PORT_STEP + 2 * PORT_MARGIN))
    widths.append(BAR_WIDTH)
    return offsets, widths


Run = tuple[int, int, Edge]


def _choose_sides(runs: Sequence[Run], concat: Sequence[int]) -> list[int]:
    """Side of each edge: c_{k-2} above (1), c_{k-1} below (-1), the first of neighbouring nodes straight (0).

    The rest start above; single edges change sides as long as that lowers the cost.
    """
    sides, free, straight = [], [], set()
    for i, (start, stop, edge) in enumerate(runs):
        if start == 0:
            sides.append(1 if edge.state == 0 else -1)
        elif stop == start + 1 and start not in straight:
            straight.add(start)
            sides.append(0)
        else:
            free.append(i)
            sides.append(1)
    best = _cost(_assign_lanes(runs, sides), concat)
    improved = True
    while improved:
        improved = False
        for i in free:
            flipped = [*sides[:i], -sides[i], *sides[i + 1 :]]
            cost = _cost(_assign_lanes(runs, flipped), concat)
            if cost < best:
                sides, best, improved = flipped, cost, True
    return sides


def _assign_lanes(runs: Sequence[Run], sides: Sequence[int]) -> list[Track]:
    """First fit, short edges next to the nodes; two edges share a lane only if they share no gap."""
    taken: set[tuple[int, int]] = set()  # (lane, gap)
    lanes = {i: 0 for i, side in enumerate(sides) if side == 0}
    for i in sorted(range(len(runs)), key=lambda i: (runs[i][1] - runs[i][0], i)):
        start, stop, _ = runs[i]
        if i in lanes:
            continue
        lane = sides[i]
        while any((lane, gap) in taken for gap in range(start, stop)):
            lane += sides[i]
        taken.update((lane, gap) for gap in range(start, stop))
        lanes[i] = lane
    return [Track(edge, start, stop, lanes[i]) for i, (start, stop, edge) in enumerate(runs)]


def _cost(tracks: Sequence[Track], concat: Sequence[int]) -> int:
    """Crossings, plus lanes used: a crossing is worth a lane."""
    crossings = 0
    for over in tracks:
        crossings += sum(over.lane < 0 and over.start < column < over.stop for column in concat)
        for under in tracks:
            if under.lane * over.lane > 0 and abs(under.lane) < abs(over.lane):
                crossings += under.start < over.stop < under.stop
                crossings += over.start > 0 and under.start < over.start < under.stop
    lanes = [track.lane for track in tracks]
    return crossings + max([0, *lanes]) - min([0, *lanes])


# Shapes, around the row of nodes: y grows upwards


class Wire(NamedTuple):
    """An edge, or the joined output: the corners of its lines, the tip of its arrow, and the middle of its label."""

    lines: list[list[Point]]
    tip: Point
    direction: Point
    label: Point


def edge_wires(plan: CellPlan) -> list[Wire]:
    """One wire for each of the plan's tracks; its line ends inside its arrow head."""
    wires = []
    for i, track in enumerate(plan.tracks):
        points, direction = _way(plan, i)
        tip, back = points[-1], ARROW_LENGTH - 1
        points[-1] = (tip[0] - direction[0] * back, tip[1] - direction[1] * back)
        middle = (plan.columns[track.stop - 1][1] + plan.columns[track.stop][0] - ARROW_LENGTH) / 2
        wires.append(Wire([points], tip, direction, (middle, lane_y(track.lane))))
    return wires


def output_wire(plan: CellPlan) -> Wire:
    """The lines from the joined nodes, in the order of concat, to the output."""
    output = len(plan.columns) - 1
    entry, y = plan.columns[output][0], lane_y(plan.bus)
    lines = []
    for k, column in enumerate(plan.concat):
        x = plan.ports[len(plan.tracks) + k, column, False]
        lines.append([(x, -NODE_HEIGHT / 2), (x, y), (entry - ARROW_LENGTH, y)])
    middle = (plan.columns[output - 1][1] + entry - ARROW_LENGTH) / 2
    return Wire(lines, (entry, y), (1.0, 0.0), (middle, y))


def arrow_corners(tip: Point, direction: Point, scale: float = 1.0) -> list[Point]:
    """The triangle of an arrow head."""
    (x, y), (dx, dy) = tip, direction
    base, half = ARROW_LENGTH, ARROW_WIDTH * scale
    back = (x - dx * base, y - dy * base)
    return [tip, (back[0] - dy * half, back[1] + dx * half), (back[0] + dy * half, back[1] - dx * half)]


# Drawing


def caption_lines(text: str, width: float) -> list[str]:
    """The lines of a text of CAPTION_SIZE that are no wider than `width`, as matplotlib takes them literally."""
    return [piece for line in text.splitlines() for piece in _wrap(_literal(line), width)]


def panel_height(plan: CellPlan) -> float:
    """What the panel of a cell takes at least."""
    return plan.height + PANEL_TITLE + 2 * PANEL_PAD


def draw_cell_panel(axes: Axes, title: str, plan: CellPlan, top: float, width: float, height: float) -> None:
    """Draw a cell in a frame with its heading, from x = 0 and `top` downwards; axes in points."""
    box = FancyBboxPatch((0, top - height), width, height, boxstyle="round,pad=0,rounding_size=6")
    box.set(facecolor="#FFFFFF", edgecolor=FRAME, linewidth=0.9, zorder=0)
    axes.add_patch(box)
    heading = {"normal": "Normal cell", "reduce": "Reduction cell"}[title]
    _text(axes, PANEL_PAD, top - PANEL_PAD - 4, heading, TITLE_SIZE, "bold", left=True)
    if title == "reduce":
        note = "edges from the inputs have stride 2"
        x = PANEL_PAD + _text_width(heading, TITLE_SIZE, "bold") + 12
        _text(axes, x, top - PANEL_PAD - 4, note, LABEL_SIZE, color="#52606D", left=True)
    x0 = (width - plan.width) / 2
    y0 = top - PANEL_PAD - PANEL_TITLE - plan.top
    _draw_cell(axes, title, plan, x0, y0)


def _draw_cell(axes: Axes, title: str, plan: CellPlan, x0: float, y0: float) -> None:
    """Draw a planned cell with its row of nodes at (x0, y0); artists carry ids such as `normal:edge:3`."""

    def shifted(points: Sequence[Point]) -> list[Point]:
        return [(x + x0, y + y0) for x, y in points]

    joined = output_wire(plan)
    for column, points in zip(plan.concat, joined.lines, strict=True):
        line = PathPatch(rounded(shifted(points)), facecolor="none", edgecolor=FAINT, linewidth=1.3, zorder=1)
        line.set_gid(f"{title}:concat:{column - 1}")
        axes.add_patch(line)
    _arrow_head(axes, shifted(arrow_corners(joined.tip, joined.direction)), FAINT)
    colors = ("#FFFFFF", FAINT, "#52606D")
    _label(axes, joined.label[0] + x0, joined.label[1] + y0, "concat", colors, f"{title}:label:concat")

    for i, (track, wire) in enumerate(zip(plan.tracks, edge_wires(plan), strict=True)):
        style = STYLES[family(track.edge.operation)]
        line = PathPatch(rounded(shifted(wire.lines[0])), facecolor="none", edgecolor=style.color, capstyle="butt")
        line.set(linewidth=style.width, zorder=2 + 0.01 * i, gid=f"{title}:edge:{i}")
        if style.dashes:
            line.set_linestyle((0, style.dashes))
        else:  # a white casing shows which line passes over at a crossing
            line.set_path_effects([Stroke(linewidth=style.width + 2.4, foreground="white"), Normal()])
        axes.add_patch(line)
        _arrow_head(axes, shifted(arrow_corners(wire.tip, wire.direction, style.arrow_scale)), style.color)
        colors = (style.tint, style.color, style.text)
        bold = "bold" if family(track.edge.operation) == "sandglass" else "normal"
        _label(axes, wire.label[0] + x0, wire.label[1] + y0, track.edge.operation, colors, f"{title}:label:{i}", bold)

    for name, text, left, right, bottom, top, fill in state_boxes(plan):
        _state(axes, f"{title}:state:{name}", text, (left + x0, right + x0), (bottom + y0, top + y0), fill)


def _way(plan: CellPlan, i: int) -> tuple[list[Point], Point]:
    """The corners of track `i`, and the direction in which it arrives."""
    track = plan.tracks[i]
    if track.lane == 0:
        return [(plan.columns[track.start][1], 0.0), (plan.columns[track.stop][0], 0.0)], (1.0, 0.0)
    side, y = (1.0 if track.lane > 0 else -1.0), lane_y(track.lane)
    end = plan.ports[i, track.stop, True]
    if track.start == 0:
        first: list[Point] = [(plan.columns[0][1], y)]
    else:
        start = plan.ports[i, track.start, False]
        first = [(start, side * NODE_HEIGHT / 2), (start, y)]
    return [*first, (end, y), (end, side * NODE_HEIGHT / 2)], (0.0, -side)


def state_boxes(plan: CellPlan) -> Iterator[tuple[str, str, float, float, float, float, str]]:
    """(name, text, left, right, bottom, top, fill) of every state; inputs and output span their lanes."""
    half = LABEL_HEIGHT / 2 + 3
    left, right = plan.columns[0]
    for name, spanned in zip(("c_{k-2}", "c_{k-1}"), plan.reach.inputs, strict=True):
        lanes = [lane_y(lane) for lane in spanned]
        yield name, f"${name}$", left, right, min(lanes) - half, max(lanes) + half, INPUT_FILL
    for column, (left, right) in enumerate(plan.columns[1:-1], start=1):
        yield str(column - 1), str(column - 1), left, right, -NODE_HEIGHT / 2, NODE_HEIGHT / 2, NODE_FILL
    left, right = plan.columns[-1]
    yield "c_k", "$c_k$", left, right, lane_y(plan.bus) - half, NODE_HEIGHT / 2, OUTPUT_FILL


def rounded(points: Sequence[Point]) -> Path:
    """A line through `points` whose corners are rounded off."""
    vertices, codes = [points[0]], [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        for toward, code in ((before, Path.LINETO), (after, Path.CURVE3)):
            length = abs(toward[0] - corner[0]) + abs(toward[1] - corner[1])  # all lines are axis-parallel
            share = min(CORNER, length / 2) / length
            if code == Path.CURVE3:
                vertices.append(corner)
                codes.append(code)
            vertices.append((corner[0] + share * (toward[0] - corner[0]), corner[1] + share * (toward[1] - corner[1])))
            codes.append(code)
    return Path([*vertices, points[-1]], [*codes, Path.LINETO])


def _arrow_head(axes: Axes, corners: Sequence[Point], color: str) -> None:
    axes.add_patch(Polygon(corners, closed=True, color=color, linewidth=0, zorder=4))


def _label(
    axes: Axes, x: float, y: float, text: str, colors: tuple[str, str, str], gid: str, weight: str = "normal"
) -> None:
    fill, edge, letters = colors
    width = label_width(text)
    corner = (x - width / 2, y - LABEL_HEIGHT / 2)
    box = FancyBboxPatch(corner, width, LABEL_HEIGHT, boxstyle="round,pad=0,rounding_size=4")
    box.set(facecolor=fill, edgecolor=edge, linewidth=0.8, zorder=6, gid=f"{gid}:box")
    axes.add_patch(box)
    _text(axes, x, y - 0.3, text, LABEL_SIZE, weight, letters, gid=gid)


def _state(axes: Axes, gid: str, text: str, xs: Point, ys: Point, fill: str) -> None:
    corner, width, height = (xs[0], ys[0]), xs[1] - xs[0], ys[1] - ys[0]
    box = FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=6")
    box.set(facecolor=fill, edgecolor=INK, linewidth=1.1, zorder=5, gid=gid)
    axes.add_patch(box)
    x, y = sum(xs) / 2, sum(ys) / 2
    if text.startswith("$"):
        _text(axes, x, y, text, STATE_SIZE + 1.5, gid=f"{gid}:name", va="center")
    else:
        _text(axes, x, y - 0.3, text, STATE_SIZE, gid=f"{gid}:name")


def _draw_legend_entry(axes: Axes, x: float, y: float, style: Style) -> None:
    line = PathPatch(Path([(x, y), (x + 22, y)]), edgecolor=style.color, linewidth=style.width)
    if style.dashes:
        line.set_linestyle((0, style.dashes))
    axes.add_patch(line)
    _text(axes, x + 28, y, style.title, LABEL_SIZE, left=True)


def _legend_rows(entries: Sequence[str], width: float) -> list[list[tuple[float, str]]]:
    """(x, family) of the legend's entries, broken into rows no wider than `width`."""
    rows: list[list[tuple[float, str]]] = []
    x = width
    for name in entries:
        needed = 28 + _text_width(STYLES[name].title, LABEL_SIZE)
        if x + needed > width:
            rows.append([])
            x = 0.0
        rows[-1].append((x, name))
        x += needed + 18
    return rows


def _text(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    size: float,
    weight: str = "normal",
    color: str = INK,
    left: bool = False,
    gid: str | None = None,
    va: Literal["center", "center_baseline"] = "center_baseline",
) -> None:
    font = _font(size, weight)
    alignment = "left" if left else "center"
    axes.text(x, y, text, fontproperties=font, color=color, ha=alignment, va=va, zorder=7, gid=gid)


def _font(size: float, weight: str) -> FontProperties:
    """The font that comes with matplotlib, so that pictures look the same everywhere."""
    return FontProperties(family="DejaVu Sans", size=size, weight=weight)


@functools.lru_cache(maxsize=1024)
def _text_width(text: str, size: float, weight: str = "normal") -> float:
    return float(TextPath((0, 0), text, prop=_font(size, weight)).get_extents().width)


def label_width(operation: str) -> float:
    """Width of the label of an edge."""
    return _text_width(operation, LABEL_SIZE, "bold") + 2 * LABEL_PAD


def _literal(text: str) -> str:
    """`text` with its dollar signs kept from being read as mathematics."""
    return text.replace("$", r"\$")


def _wrap(text: str, width: float) -> list[str]:
    """Break `text` between words into lines no wider than `width`."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _text_width(longer, CAPTION_SIZE) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
