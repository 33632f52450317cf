"""Pictures of stacked networks: each cell with its channels, size and share of the cost."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.path import Path

from darts_sg.analysis.compare import Anatomy, Part, Stage, anatomy
from darts_sg.analysis.cost import cost_text, human, shape_text
from darts_sg.analysis.draw import rounded
from darts_sg.analysis.sheet import (
    ARROW_LENGTH,
    DARK,
    LEGEND_HEIGHT,
    LIGHT,
    TITLE_SIZE,
    Point,
    Sheet,
    families,
    family,
    heading_height,
    legend_rows,
    new_sheet,
    style_of,
    wrap,
)
from darts_sg.genotype import Genotype
from darts_sg.networks.derived import NetworkShape

ROW, GAP, PAD, TABLE_HEAD = 18.0, 9.0, 14.0, 20.0
BOX = (44.0, 150.0)  # from left to right; left of it the lines of c_{k-2}
CHANNELS_X, OUTPUT_X = 186.0, 268.0  # right ends of their columns
BARS = ((286.0, 130.0), (498.0, 130.0))  # (left, length) of the bars of parameters and MACs
WIDTH = 712.0
NETWORK_GAP = 30.0


def draw_network(
    genotype: Genotype,
    network: NetworkShape = "cifar",
    channels: int | None = None,
    cells: int | None = None,
    *,
    dark: bool = False,
) -> Figure:
    """Draw the network of one genotype; see draw_networks."""
    return draw_networks([genotype], network, channels, cells, dark=dark)


def draw_networks(
    genotypes: Sequence[Genotype],
    network: NetworkShape = "cifar",
    channels: int | None = None,
    cells: int | None = None,
    *,
    dark: bool = False,
) -> Figure:
    """Draw the networks of genotypes side by side: stem, cells, auxiliary head and head with their costs.

    Each cell shows its channels C, its output (channels × height × width), and its share of the parameters and MACs,
    coloured by operation. Below the stack are the shares of the operations over all cells. The bars of all networks
    have one scale. Arguments are those of derived_cost. Raises UsageError as DerivedNetwork does.
    """
    theme = DARK if dark else LIGHT
    shape = (network, channels, cells)
    found = [anatomy(genotype, *shape) for genotype in genotypes]
    wholes = [parts.whole for parts in found]
    captions = [wrap(cost_text(whole.params, whole.macs, shape_text(*shape)), WIDTH) for whole in wholes]
    coloured = {part.name for parts in found for part in parts.operations if part.params or part.macs}
    width = WIDTH * len(genotypes) + NETWORK_GAP * (len(genotypes) - 1)
    legend = legend_rows(coloured, width)
    heading = max(heading_height(lines) for lines in captions)
    rows = len(found[0].stages) + 1  # with the auxiliary head
    stack = TABLE_HEAD + rows * (ROW + GAP) + PAD
    listing = TABLE_HEAD + max(len(parts.operations) for parts in found) * (ROW + 3) + PAD
    figure, sheet = new_sheet(width, heading + stack + 12 + listing + 12 + LEGEND_HEIGHT * len(legend), theme)
    most = [
        _most([part for parts in found for part in parts.cells]),
        _most([part for parts in found for part in parts.operations]),
    ]
    for k, (genotype, parts, lines) in enumerate(zip(genotypes, found, captions, strict=True)):
        x = k * (WIDTH + NETWORK_GAP)
        sheet.heading(x, 0, genotype.name, lines)
        prefix = f"{k}:" if len(genotypes) > 1 else ""
        top = -heading
        sheet.box((x, x + WIDTH), (top - stack, top), theme.panel, theme.frame, linewidth=0.9, zorder=0)
        _draw_stack(sheet, prefix, parts, (x, top), most[0])
        top -= stack + 12
        sheet.box((x, x + WIDTH), (top - listing, top), theme.panel, theme.frame, linewidth=0.9, zorder=0)
        _draw_operations(sheet, prefix, parts, (x, top), most[1])
    sheet.legend(-heading - stack - listing - 24, legend)
    return figure


def _most(parts: Sequence[Part]) -> tuple[int, int]:
    """The largest (parameters, MACs): the full length of the bars."""
    return max(part.params for part in parts), max(part.macs for part in parts)


def _draw_stack(sheet: Sheet, prefix: str, parts: Anatomy, corner: Point, most: tuple[int, int]) -> None:
    """Draw the stages from top to bottom, starting at `corner`, each with its inputs, numbers and bars."""
    theme, (x, top) = sheet.theme, corner
    _table_head(sheet, x, top, ("C", "output"))
    middles: list[float] = []
    y = top - TABLE_HEAD - GAP - ROW / 2
    for i, stage in enumerate(parts.stages):
        fill = {"normal": theme.node, "reduction": theme.output}.get(stage.kind, theme.input)
        name = stage.name.replace(" (normal)", "").replace(" (", " · ").rstrip(")")
        _stage_box(sheet, x, y, name, fill, f"{prefix}stage:{i}")
        if stage.C is not None:
            sheet.text(x + CHANNELS_X, y, str(stage.C), align="right", gid=f"{prefix}channels:{i}")
        sheet.text(x + OUTPUT_X, y, _output(stage), align="right", color=theme.muted, gid=f"{prefix}output:{i}")
        _bars(sheet, f"{prefix}stage:{i}", x, y, stage.parts, parts.whole, most)
        if middles:
            _arrow(sheet, x, middles[-1], y)
        if stage.kind in ("normal", "reduction"):  # c_{k-2}; the first cell has both of its inputs from the stem
            _bypass(sheet, x, middles[-2] if len(middles) > 1 else middles[-1], y, i)
        middles.append(y)
        y -= ROW + GAP
        if i == parts.auxiliary_after + 1:
            _auxiliary(sheet, prefix, x, y, parts.auxiliary_params)
            y -= ROW + GAP


def _output(stage: Stage) -> str:
    channels, size = stage.shape
    return f"{channels} classes" if stage.kind == "head" else f"{channels} × {size} × {size}"


def _stage_box(sheet: Sheet, x: float, y: float, name: str, fill: str, gid: str) -> None:
    sheet.box((x + BOX[0], x + BOX[1]), (y - ROW / 2, y + ROW / 2), fill, sheet.theme.ink, gid, corner=4, zorder=5)
    sheet.text(x + sum(BOX) / 2, y - 0.3, name, gid=f"{gid}:name")


def _arrow(sheet: Sheet, x: float, above: float, below: float) -> None:
    """Draw the arrow from the stage above to the one below."""
    middle, tip = x + sum(BOX) / 2, below + ROW / 2
    line = Path([(middle, above - ROW / 2), (middle, tip + ARROW_LENGTH - 1)])
    sheet.line(line, sheet.theme.faint, linewidth=1.3, zorder=1)
    sheet.arrow_head((middle, tip), (0, -1), sheet.theme.faint)


def _bypass(sheet: Sheet, x: float, above: float, below: float, i: int) -> None:
    """Draw the line from the stage before the previous one, left of the boxes, on two alternating lanes."""
    left, lane = x + BOX[0], x + BOX[0] - 12.0 - 11.0 * (i % 2)
    start, end = above - 4.5, below + 4.5
    corners = [(left, start), (lane, start), (lane, end), (left - ARROW_LENGTH + 1, end)]
    sheet.line(rounded(corners), sheet.theme.faint, linewidth=1.0, zorder=1)
    sheet.arrow_head((left, end), (1, 0), sheet.theme.faint, 0.8)


def _auxiliary(sheet: Sheet, prefix: str, x: float, y: float, params: int) -> None:
    """Draw the auxiliary head beside the output of the cell before it; the shares do not include it."""
    theme, middle = sheet.theme, x + sum(BOX) / 2
    left, right = middle + 22, middle + 22 + BOX[1] - BOX[0]
    line = Path([(middle, y), (left - ARROW_LENGTH + 1, y)])
    sheet.line(line, theme.faint, linewidth=1.3, zorder=1, linestyle=(0, (3, 2)))
    sheet.arrow_head((left, y), (1, 0), theme.faint)
    ys, dashes = (y - ROW / 2, y + ROW / 2), (0, (3, 2))
    sheet.box((left, right), ys, theme.panel, theme.faint, f"{prefix}auxiliary", corner=4, zorder=5, linestyle=dashes)
    sheet.text((left + right) / 2, y - 0.3, "auxiliary head", color=theme.muted, gid=f"{prefix}auxiliary:name")
    text = f"in training only: {params:,} parameters, in none of the shares"
    sheet.text(x + BARS[0][0], y, text, color=theme.muted, align="left", gid=f"{prefix}auxiliary:cost")


def _draw_operations(sheet: Sheet, prefix: str, parts: Anatomy, corner: Point, most: tuple[int, int]) -> None:
    """Draw the shares of the operations over all cells, from `corner` downwards."""
    x, top = corner
    _table_head(sheet, x, top, ("", ""), "By operation, over all cells")
    for i, part in enumerate(parts.operations):
        y = top - TABLE_HEAD - GAP - ROW / 2 - i * (ROW + 3)
        sheet.text(x + PAD, y, part.name, align="left", gid=f"{prefix}operation:{i}:name")
        _bars(sheet, f"{prefix}operation:{i}", x, y, [part], parts.whole, most)


def _table_head(sheet: Sheet, x: float, top: float, columns: tuple[str, str], title: str = "Network") -> None:
    y = top - 15
    sheet.text(x + PAD, y, title, TITLE_SIZE, "bold", align="left")
    for right, name in zip((CHANNELS_X, OUTPUT_X), columns, strict=True):
        if name:
            sheet.text(x + right, y, name, color=sheet.theme.muted, align="right")
    for (left, _), name in zip(BARS, ("parameters", "MACs"), strict=True):
        sheet.text(x + left, y, name, color=sheet.theme.muted, align="left")


def _bars(
    sheet: Sheet, gid: str, x: float, y: float, parts: Sequence[Part], whole: Part, most: tuple[int, int]
) -> None:
    """Draw a bar of parameters and one of MACs, in segments by family, with share and count beside them."""
    order = families(part.name for part in parts)
    ordered = sorted(parts, key=lambda part: order.index(family(part.name)))
    for k, field in enumerate(("params", "macs")):
        left, length = BARS[k]
        at = x + left
        for part in ordered:
            piece = length * getattr(part, field) / most[k]
            if piece > 0:
                color = style_of(family(part.name)).paint(sheet.theme).line
                sheet.bar((at, at + piece), (y - ROW / 2 + 3, y + ROW / 2 - 3), color, f"{gid}:{field}:bar")
            at += piece
        total = sum(getattr(part, field) for part in parts)
        text = f"{100 * total / getattr(whole, field):.1f}%  {human(total)}"
        sheet.text(at + 6, y, text, align="left", gid=f"{gid}:{field}")
