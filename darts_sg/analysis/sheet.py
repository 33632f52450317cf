"""The drawing kit of genotype pictures: themes, the colours of operation families, text and boxes on a sheet.

Lengths are in points (1/72 inch); y counts upwards, from 0 at the top of the sheet.
"""

import functools
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import Normal, Stroke
from matplotlib.textpath import TextPath

from darts_sg.ops import OPERATIONS

LABEL_SIZE, STATE_SIZE, TITLE_SIZE, NAME_SIZE, CAPTION_SIZE = 8.5, 10.5, 10.0, 13.0, 9.5
LINE_HEIGHT, LEGEND_HEIGHT, MARGIN = 14.0, 18.0, 14.0
ARROW_LENGTH, ARROW_WIDTH = 7.0, 3.2

Point = tuple[float, float]


@dataclass(frozen=True)
class Theme:
    """The colours of everything except operations."""

    dark: bool
    background: str
    panel: str
    frame: str
    ink: str
    muted: str
    faint: str
    node: str
    input: str
    output: str


LIGHT = Theme(
    False, background="#FFFFFF", panel="#FFFFFF", frame="#D5DBE1", ink="#1F2933", muted="#52606D", faint="#7E8A96",
    node="#FFF3C4", input="#DFF0E3", output="#FBE3E0",
)  # fmt: skip
DARK = Theme(
    True, background="#12171D", panel="#1A2129", frame="#3A4550", ink="#E8ECF0", muted="#AAB6C2", faint="#8592A0",
    node="#4A3F14", input="#1F4030", output="#57302C",
)  # fmt: skip


class Paint(NamedTuple):
    """The colours of a family of operations: of its lines, and background and letters of its labels."""

    line: str
    tint: str
    text: str


@dataclass(frozen=True)
class Style:
    """How the operations of one family are drawn."""

    title: str
    light: Paint
    dark: Paint
    width: float = 1.7
    dashes: tuple[float, float] | None = None

    @property
    def arrow_scale(self) -> float:
        return 1.0 + 0.12 * (self.width - 1.7)

    def paint(self, theme: Theme) -> Paint:
        """The colours in a theme."""
        return self.dark if theme.dark else self.light


STYLES = {
    "sandglass": Style(
        "sandglass", Paint("#C8102E", "#C8102E", "#FFFFFF"), Paint("#FF5A6E", "#C8102E", "#FFFFFF"), width=3.6
    ),
    "inverted_residual": Style(
        "inverted residual", Paint("#C27400", "#FFF0D6", "#7A4600"), Paint("#FFB54A", "#3D2B0E", "#FFD79A"), width=2.4
    ),
    "sep_conv": Style(
        "separable convolution", Paint("#1F62B5", "#E4EEFA", "#123E75"), Paint("#6FA8F5", "#182C47", "#BFD9FB")
    ),
    "dil_conv": Style(
        "dilated convolution", Paint("#7A3FA8", "#F1E7F8", "#51257A"), Paint("#C08BEA", "#33204A", "#E2C9F7")
    ),
    "pool": Style("pooling", Paint("#1E8449", "#E2F3E8", "#11552E"), Paint("#4FC27F", "#143524", "#B3E8C8")),
    "skip": Style(
        "skip connection", Paint("#6B7580", "#EEF0F2", "#3C444C"), Paint("#98A4B0", "#2A333C", "#D3DAE0"),
        dashes=(4.0, 1.8),
    ),
    "other": Style("other operation", Paint("#8A5A3C", "#F4EAE3", "#5C3820"), Paint("#D29A76", "#3B2A1F", "#EBCDB9")),
    "fixed": Style(
        "stem, input layers, head", Paint("#7E8A96", "#EEF0F2", "#3C444C"), Paint("#76838F", "#2A333C", "#D3DAE0")
    ),
}  # fmt: skip
PALETTE = (
    (Paint("#007A87", "#DDF1F3", "#004E57"), Paint("#3FC1CF", "#10343A", "#B0E6EC")),
    (Paint("#B0307A", "#FBE4F1", "#7A1A52"), Paint("#F07ABF", "#431A33", "#F9C6E3")),
    (Paint("#6B7A00", "#F0F3D6", "#454F00"), Paint("#B9C94A", "#2E330F", "#E2EAA8")),
    (Paint("#4453C9", "#E6E8FA", "#2A3593"), Paint("#8E9BFF", "#1F2550", "#CBD1FF")),
    (Paint("#A8481F", "#FAE6DC", "#732D10"), Paint("#F08A5D", "#432013", "#FBCDB8")),
    (Paint("#2F6F5E", "#DFF0EB", "#1A4A3D"), Paint("#6CC2AC", "#173830", "#BFE8DD")),
)
"""Colours, light and dark, of families that have no style above: those of plug-ins."""
FIXED = ("stem", "input layers", "head")
"""The parts of a derived network that are the same for all genotypes, as `anatomy` names them."""


def family(operation: str) -> str:
    """The family of a registered operation; `fixed` for one of FIXED, `other` for an unknown name."""
    if operation in FIXED:
        return "fixed"
    return OPERATIONS[operation].family if operation in OPERATIONS else "other"


@functools.cache
def style_of(family: str) -> Style:
    """The style of a family: its own, or for a family of a plug-in one of the palette, always the same for a name."""
    if family in STYLES:
        return STYLES[family]
    light, dark = PALETTE[zlib.crc32(family.encode()) % len(PALETTE)]
    return Style(family.replace("_", " "), light, dark, width=2.0, dashes=(9.0, 1.2))


def families(operations: Iterable[str]) -> list[str]:
    """The families of operations, once each, in the order of legends: those of STYLES, then others by name."""
    order = list(STYLES)
    used = {family(operation) for operation in operations}
    return sorted(used, key=lambda name: (order.index(name) if name in STYLES else len(order), name))


def plugged_families(operations: Iterable[str]) -> list[str]:
    """The families of operations that have no style of their own, but one of the palette."""
    return [name for name in families(name for name in operations if name != "none") if name not in STYLES]


def short_name(operation: str) -> str:
    """The text of an operation's label: `sep 3×3`, `max 3×3`, `skip`, `sandglass 3×3 r6`."""
    return re.sub(r"(\d)x(\d)", r"\1×\2", re.sub(r"_(conv|pool|connect|residual)", "", operation)).replace("_", " ")


class Sheet:
    """Axes to draw on in points. Artists carry ids (`gid`), which an SVG keeps."""

    def __init__(self, axes: Axes, theme: Theme) -> None:
        self.axes = axes
        self.theme = theme

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = LABEL_SIZE,
        weight: str = "normal",
        color: str | None = None,
        align: Literal["left", "center", "right"] = "center",
        gid: str | None = None,
        va: Literal["center", "center_baseline"] = "center_baseline",
    ) -> None:
        """One line of text, vertically centred at `y`."""
        color = color or self.theme.ink
        self.axes.text(x, y, text, fontproperties=_font(size, weight), color=color, ha=align, va=va, zorder=7, gid=gid)

    def box(
        self, xs: Point, ys: Point, fill: str, edge: str, gid: str | None = None, corner: float = 6.0, **more: Any
    ) -> None:
        """A box with rounded corners from xs[0] to xs[1] and from ys[0] up to ys[1]."""
        box = FancyBboxPatch(
            (xs[0], ys[0]), xs[1] - xs[0], ys[1] - ys[0], boxstyle=f"round,pad=0,rounding_size={corner}"
        )
        box.set(facecolor=fill, edgecolor=edge, gid=gid, **more)
        self.axes.add_patch(box)

    def bar(self, xs: Point, ys: Point, color: str, gid: str) -> None:
        """A bar, or a segment of one."""
        corner, width, height = (xs[0], ys[0]), xs[1] - xs[0], ys[1] - ys[0]
        self.axes.add_patch(Rectangle(corner, width, height, color=color, linewidth=0, zorder=3, gid=gid))

    def line(self, path: Path, color: str, style: Style | None = None, gid: str | None = None, **more: Any) -> None:
        """A line; with a `style`, in the width and dashes of that family."""
        line = PathPatch(path, facecolor="none", edgecolor=color, capstyle="butt", gid=gid)
        line.set(**more)
        if style is not None:
            line.set_linewidth(style.width)
            if style.dashes:
                line.set_linestyle((0, style.dashes))
            else:  # a casing shows which line passes over at a crossing
                line.set_path_effects([Stroke(linewidth=style.width + 2.4, foreground=self.theme.panel), Normal()])
        self.axes.add_patch(line)

    def arrow_head(self, tip: Point, direction: Point, color: str, scale: float = 1.0) -> None:
        """The head of an arrow that points in one of the four directions, such as (1, 0)."""
        corners = arrow_corners(tip, direction, scale)
        self.axes.add_patch(Polygon(corners, closed=True, color=color, linewidth=0, zorder=4))

    def heading(self, x: float, y: float, name: str, lines: Sequence[str]) -> None:
        """A genotype's name with its caption below: `heading_height` points from `y` downwards."""
        self.text(x, y - 7, name, NAME_SIZE, "bold", align="left")
        for i, line in enumerate(lines):
            self.text(x, y - 25 - LINE_HEIGHT * i, line, CAPTION_SIZE, color=self.theme.muted, align="left")

    def legend(self, y: float, rows: Sequence[Sequence[tuple[float, str]]]) -> None:
        """The legend of the families in `rows` (see `legend_rows`), from `y` downwards."""
        for i, row in enumerate(rows):
            middle = y - 6 - LEGEND_HEIGHT * i
            for x, name in row:
                style = style_of(name)
                line = Path([(x, middle), (x + 22, middle)])
                self.line(line, style.paint(self.theme).line, style)
                self.text(x + 28, middle, style.title, align="left")


def arrow_corners(tip: Point, direction: Point, scale: float = 1.0) -> list[Point]:
    """The triangle of an arrow head."""
    (x, y), (dx, dy) = tip, direction
    base, half = ARROW_LENGTH, ARROW_WIDTH * scale
    back = (x - dx * base, y - dy * base)
    return [tip, (back[0] - dy * half, back[1] + dx * half), (back[0] + dy * half, back[1] - dx * half)]


def new_sheet(width: float, height: float, theme: Theme) -> tuple[Figure, Sheet]:
    """A figure of this size plus a margin, with a sheet over all of it; (0, 0) is the top left corner."""
    inches = ((width + 2 * MARGIN) / 72, (height + 2 * MARGIN) / 72)
    figure = Figure(figsize=inches, dpi=100, facecolor=theme.background)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-MARGIN, width + MARGIN), ylim=(-height - MARGIN, MARGIN))
    axes.set_axis_off()
    return figure, Sheet(axes, theme)


def heading_height(lines: Sequence[str]) -> float:
    """Height of a name with the lines of its caption."""
    return 26.0 + LINE_HEIGHT * len(lines)


def legend_rows(operations: Iterable[str], width: float) -> list[list[tuple[float, str]]]:
    """(x, family) of a legend of the families of `operations`, broken into rows no wider than `width`."""
    rows: list[list[tuple[float, str]]] = []
    x = width
    for name in families(operations):
        needed = 28 + text_width(style_of(name).title, LABEL_SIZE)
        if x + needed > width:
            rows.append([])
            x = 0.0
        rows[-1].append((x, name))
        x += needed + 18
    return rows


def wrap(text: str, width: float) -> list[str]:
    """Break a caption between words into lines no wider than `width`; dollar signs are literal."""
    lines = []
    for line in text.replace("$", r"\$").splitlines():
        lines.append("")
        for word in line.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and text_width(longer, CAPTION_SIZE) > width:
                lines.append(word)
            else:
                lines[-1] = longer
    return lines


@functools.lru_cache(maxsize=1024)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of a text in points."""
    return float(TextPath((0, 0), text, prop=_font(size, weight)).get_extents().width)


def _font(size: float, weight: str) -> FontProperties:
    """The font that matplotlib brings along, so that pictures look the same everywhere."""
    return FontProperties(family="DejaVu Sans", size=size, weight=weight)
