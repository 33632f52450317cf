"""The cells of genotypes as one picture, drawn like a metro map, without graphviz.

The nodes form a row, one column each, between the two inputs (left) and the output (right). Each edge has its own
lane above or below that row: it leaves its state vertically, follows the lane, and enters its node vertically.
Vertical lines stay within the columns of the edge's two ends, and labels in the gap before the node that their edge
enters. Hence, in any genotype, no label overlaps another label, a node or another edge, and no edge crosses a node.
Lengths are in points (1/72 inch).
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.path import Path

from darts_sg.analysis.cost import cost_caption
from darts_sg.analysis.sheet import (
    ARROW_LENGTH,
    DARK,
    LABEL_SIZE,
    LEGEND_HEIGHT,
    LIGHT,
    NAME_SIZE,
    STATE_SIZE,
    TITLE_SIZE,
    Point,
    Sheet,
    family,
    heading_height,
    legend_rows,
    new_sheet,
    short_name,
    style_of,
    text_width,
    wrap,
)
from darts_sg.files import write_atomically
from darts_sg.genotype import Cell, Edge, Genotype
from darts_sg.ops import OPERATIONS

LANE_STEP, LANE_FIRST = 21.0, 34.0  # between lanes; from the row of nodes to the first lane
PORT_STEP, PORT_MARGIN, CORNER = 11.0, 10.0, 7.0
NODE_HEIGHT, NODE_WIDTH, BAR_WIDTH = 26.0, 30.0, 42.0
LABEL_HEIGHT, LABEL_PAD, GAP_PAD = 14.0, 5.0, 7.0
PANEL_PAD, PANEL_TITLE, PANEL_GAP = 12.0, 22.0, 12.0
TITLES = {"normal": "Normal cell", "reduce": "Reduction cell"}
STRIDE_NOTE = "edges from the inputs have stride 2"


def draw_genotype(genotype: Genotype, caption: str | None = None, *, dark: bool = False) -> Figure:
    """Draw the normal and the reduction cell of one genotype; see draw_genotypes."""
    return draw_genotypes([genotype], None if caption is None else [caption], dark=dark)


def draw_genotypes(
    genotypes: Sequence[Genotype], captions: Sequence[str] | None = None, *, dark: bool = False
) -> Figure:
    """Draw genotypes one under the other, each with both cells side by side, over one legend of their operations.

    Input states are c_{k-2} and c_{k-1}, nodes 0, 1, …, and the output c_k, as in the DARTS paper (figures 4
    and 5). Captions stand under the genotypes' names, long ones wrapped; by default they are parameters and MACs in
    the papers' CIFAR shape.
    """
    theme = DARK if dark else LIGHT
    plans = [[plan_cell(cell) for _, cell in genotype.cells()] for genotype in genotypes]
    widths = [2 * PANEL_PAD + max(panel_width(title, pair[i]) for pair in plans) for i, title in enumerate(TITLES)]
    # a name longer than both panels widens the second
    widths[1] = max([widths[1], *(text_width(g.name, NAME_SIZE, "bold") - widths[0] for g in genotypes)])
    width = sum(widths) + PANEL_GAP
    wrapped = [wrap(caption, width) for caption in captions or map(_caption, genotypes)]
    panels = [max(map(panel_height, pair)) for pair in plans]
    edges = [edge for genotype in genotypes for _, cell in genotype.cells() for _, edge in cell.edges()]
    legend = legend_rows((edge.operation for edge in edges), width)
    height = sum(heading_height(lines) + panel for lines, panel in zip(wrapped, panels, strict=True))
    height += 2 * PANEL_GAP * (len(genotypes) - 1) + PANEL_GAP + LEGEND_HEIGHT * len(legend)

    figure, sheet = new_sheet(width, height, theme)
    y = 0.0
    for k, (genotype, lines) in enumerate(zip(genotypes, wrapped, strict=True)):
        sheet.heading(0, y, genotype.name, lines)
        y -= heading_height(lines)
        x = 0.0
        for i, title in enumerate(TITLES):
            prefix = f"{k}:{title}" if len(genotypes) > 1 else title
            draw_cell_panel(sheet, prefix, title, plans[k][i], (x, x + widths[i]), (y - panels[k], y))
            x += widths[i] + PANEL_GAP
        y -= panels[k] + 2 * PANEL_GAP
    sheet.legend(y + PANEL_GAP, legend)
    return figure


def _caption(genotype: Genotype) -> str:
    """The cost of the network; empty if an operation is unknown to this version."""
    known = all(edge.operation in OPERATIONS for _, cell in genotype.cells() for _, edge in cell.edges())
    return cost_caption(genotype) if known else ""


def picture_svg(figure: Figure) -> str:
    """A figure as SVG text, the same text each time."""
    return _rendered(figure, "svg").decode()


def save_figure(
    figure: Figure, path_without_suffix: FilePath, formats: Sequence[str] = ("svg", "png")
) -> list[FilePath]:
    """Write `figure` in each of `formats`, the same bytes each time; returns the paths."""
    paths = []
    for suffix in formats:
        path = path_without_suffix.with_name(f"{path_without_suffix.name}.{suffix}")
        write_atomically(path, _rendered(figure, suffix))
        paths.append(path)
    return paths


def _rendered(figure: Figure, suffix: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}.get(suffix)
    with matplotlib.rc_context({"svg.hashsalt": "darts_sg", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=suffix, dpi=160, metadata=metadata)
    return buffer.getvalue()


# Layout


@dataclass(frozen=True)
class Track:
    """The route of an edge: its `lane` is > 0 above the nodes, < 0 below, and 0 straight from node to node.

    Column 0 holds both inputs, the last column the output, and each other column a node.
    """

    edge: Edge
    start: int
    stop: int
    lane: int


class Reach(NamedTuple):
    """The lanes that the input states span, and the highest lane of all."""

    inputs: tuple[tuple[int, ...], tuple[int, ...]]
    """Lanes that leave c_{k-2} and c_{k-1}."""
    top: int


@dataclass(frozen=True)
class CellPlan:
    """The layout of a cell; x counts from the left of the cell, y from the row of nodes upwards."""

    tracks: tuple[Track, ...]
    concat: tuple[int, ...]
    """Columns of the nodes joined at the output."""
    bus: int
    """Lane of the joined output."""
    columns: tuple[tuple[float, float], ...]
    """(left, right) of each column."""
    ports: dict[tuple[int, int, bool], float]
    """(track number, or len(tracks) + position in concat; column; whether it ends there) -> x of the vertical."""
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
    """Height of a lane above the row of nodes."""
    if lane == 0:
        return 0.0
    return (LANE_FIRST + LANE_STEP * (abs(lane) - 1)) * (1 if lane > 0 else -1)


def plan_cell(cell: Cell) -> CellPlan:
    """Lay out a cell with few crossings between lanes, and none between the edges of one node."""
    return plan_cells([cell])[0]


def plan_cells(cells: Sequence[Cell]) -> list[CellPlan]:
    """Lay out cells with equally many nodes as plan_cell does, all with their states in the same places."""
    routed = []  # lanes first: they depend on each cell alone
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
    output = cells[0].num_nodes + 1  # its column
    # columns and gaps are as wide as the widest cell needs them
    gaps = [0.0] * output
    for track in tracks:
        gaps[track.stop - 1] = max(gaps[track.stop - 1], label_width(short_name(track.edge.operation)))
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
    """Offsets of the verticals from the middle of their columns (keys as CellPlan.ports), and the columns' widths."""
    # the lines to the output are routed like edges, from their node to the lane of the bus
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

    All others start above. Greedy search: flip single edges as long as that lowers the cost.
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
    """First fit, shortest edges first, so that they lie next to the nodes; edges that share a gap need two lanes."""
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
    """Number of crossings plus number of lanes: a crossing weighs as much as a lane."""
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
    """The shape of an edge or the joined output: corners of its lines, tip of its arrow, middle of its label."""

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


# Drawing


def panel_height(plan: CellPlan) -> float:
    """Minimum height of the panel of a cell."""
    return plan.height + PANEL_TITLE + 2 * PANEL_PAD


def panel_width(title: str, plan: CellPlan) -> float:
    """Minimum width of the panel of a cell, without padding."""
    note = text_width(STRIDE_NOTE, LABEL_SIZE) + 12 if title == "reduce" else 0.0
    return max(plan.width, text_width(TITLES[title], TITLE_SIZE, "bold") + note)


def draw_cell_panel(sheet: Sheet, prefix: str, title: str, plan: CellPlan, xs: Point, ys: Point) -> None:
    """Draw a cell in a frame with its heading, from xs[0] to xs[1] and ys[0] to ys[1]."""
    theme = sheet.theme
    sheet.box(xs, ys, theme.panel, theme.frame, linewidth=0.9, zorder=0)
    x, y = xs[0] + PANEL_PAD, ys[1] - PANEL_PAD - 4
    sheet.text(x, y, TITLES[title], TITLE_SIZE, "bold", align="left")
    if title == "reduce":
        x += text_width(TITLES[title], TITLE_SIZE, "bold") + 12
        sheet.text(x, y, STRIDE_NOTE, color=theme.muted, align="left")
    spare = (ys[1] - ys[0] - PANEL_TITLE - 2 * PANEL_PAD - plan.height) / 2
    _draw_cell(sheet, prefix, plan, (sum(xs) - plan.width) / 2, ys[1] - PANEL_PAD - PANEL_TITLE - spare - plan.top)


def _draw_cell(sheet: Sheet, title: str, plan: CellPlan, x0: float, y0: float) -> None:
    """Draw a planned cell with its row of nodes at (x0, y0); artists carry ids such as `normal:edge:3`."""
    theme = sheet.theme

    def shifted(points: Sequence[Point]) -> list[Point]:
        return [(x + x0, y + y0) for x, y in points]

    joined = output_wire(plan)
    for column, points in zip(plan.concat, joined.lines, strict=True):
        gid = f"{title}:concat:{column - 1}"
        sheet.line(rounded(shifted(points)), theme.faint, gid=gid, linewidth=1.3, zorder=1)
    sheet.arrow_head(shifted([joined.tip])[0], joined.direction, theme.faint)
    colors = (theme.panel, theme.faint, theme.muted)
    _label(sheet, joined.label[0] + x0, joined.label[1] + y0, "concat", colors, f"{title}:label:concat")

    for i, (track, wire) in enumerate(zip(plan.tracks, edge_wires(plan), strict=True)):
        style = style_of(family(track.edge.operation))
        paint = style.paint(theme)
        sheet.line(rounded(shifted(wire.lines[0])), paint.line, style, gid=f"{title}:edge:{i}", zorder=2 + 0.01 * i)
        sheet.arrow_head(shifted([wire.tip])[0], wire.direction, paint.line, style.arrow_scale)
        colors = (paint.tint, paint.line, paint.text)
        bold = "bold" if family(track.edge.operation) == "sandglass" else "normal"
        text = short_name(track.edge.operation)
        _label(sheet, wire.label[0] + x0, wire.label[1] + y0, text, colors, f"{title}:label:{i}", bold)

    for name, text, left, right, bottom, top in state_boxes(plan):
        fill = theme.output if name == "c_k" else theme.input if name.startswith("c_") else theme.node
        _state(sheet, f"{title}:state:{name}", text, (left + x0, right + x0), (bottom + y0, top + y0), fill)


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


def state_boxes(plan: CellPlan) -> Iterator[tuple[str, str, float, float, float, float]]:
    """(name, text, left, right, bottom, top) of every state; inputs and output span their lanes."""
    half = LABEL_HEIGHT / 2 + 3
    left, right = plan.columns[0]
    for name, spanned in zip(("c_{k-2}", "c_{k-1}"), plan.reach.inputs, strict=True):
        lanes = [lane_y(lane) for lane in spanned]
        yield name, f"${name}$", left, right, min(lanes) - half, max(lanes) + half
    for column, (left, right) in enumerate(plan.columns[1:-1], start=1):
        yield str(column - 1), str(column - 1), left, right, -NODE_HEIGHT / 2, NODE_HEIGHT / 2
    left, right = plan.columns[-1]
    yield "c_k", "$c_k$", left, right, lane_y(plan.bus) - half, NODE_HEIGHT / 2


def rounded(points: Sequence[Point]) -> Path:
    """A line through `points` with rounded corners."""
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


def _label(
    sheet: Sheet, x: float, y: float, text: str, colors: tuple[str, str, str], gid: str, weight: str = "normal"
) -> None:
    fill, edge, letters = colors
    half, ys = label_width(text) / 2, (y - LABEL_HEIGHT / 2, y + LABEL_HEIGHT / 2)
    sheet.box((x - half, x + half), ys, fill, edge, f"{gid}:box", corner=4, linewidth=0.8, zorder=6)
    sheet.text(x, y - 0.3, text, LABEL_SIZE, weight, letters, gid=gid)


def _state(sheet: Sheet, gid: str, text: str, xs: Point, ys: Point, fill: str) -> None:
    sheet.box(xs, ys, fill, sheet.theme.ink, gid, linewidth=1.1, zorder=5)
    x, y = sum(xs) / 2, sum(ys) / 2
    if text.startswith("$"):
        sheet.text(x, y, text, STATE_SIZE + 1.5, gid=f"{gid}:name", va="center")
    else:
        sheet.text(x, y - 0.3, text, STATE_SIZE, gid=f"{gid}:name")


def label_width(text: str) -> float:
    """Width of the label of an edge."""
    return text_width(text, LABEL_SIZE, "bold") + 2 * LABEL_PAD
