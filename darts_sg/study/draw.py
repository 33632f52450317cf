"""The retrainings of a study as a picture: error against parameters."""

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from darts_sg.analysis.draw_comparison import Box, Mark, dress, place_names
from darts_sg.analysis.sheet import LIGHT, STYLES
from darts_sg.errors import UsageError
from darts_sg.study.protocol import Protocol
from darts_sg.study.records import OTHER, PUBLISHED, Experiment, Setting, Trained

BAR = 7.0  # half the width of a mean, in points
MEAN: dict[str, Any] = {
    "marker": "_",
    "color": LIGHT.ink,
    "markersize": 2 * BAR,
    "markeredgewidth": 1.8,
    "zorder": 4,
}
REACH = 4.5  # of a dot around its middle, in points


class Look(NamedTuple):
    """How a group of genotypes is drawn. Groups differ in form and filling, so that colours are not needed."""

    title: str
    marker: str
    color: str
    size: float = 6.5
    """Of a dot, in points."""


SPACE_DOTS = (("o", 6.5), ("s", 5.8), ("^", 6.5), ("P", 6.5), ("p", 6.5), ("h", 6.5))  # (marker, size)
RANDOM_DOTS = (("x", 5.5), ("+", 6.5), ("1", 6.5), ("2", 6.5), ("3", 6.5), ("4", 6.5))
BASE_FAMILIES = ("sep_conv", "dil_conv", "pool", "other")  # colours of spaces without a block of their own


def looks(protocol: Protocol) -> dict[str, Look]:
    """The look of each group of genotypes, in the order of the legend; a space has the colour of its block."""
    found, random, families = dict[str, Look](), dict[str, Look](), itertools.cycle(BASE_FAMILIES)
    dots = zip(protocol.by_importance, itertools.cycle(SPACE_DOTS), itertools.cycle(RANDOM_DOTS))
    for space, (marker, size), (random_marker, random_size) in dots:
        block = protocol.space(space).block
        colour = STYLES[block if block in STYLES else next(families)].light.line
        found[space] = Look(f"searched in {space}", marker, colour, size)
        random[f"random {space}"] = Look(f"random, {space}", random_marker, LIGHT.muted, random_size)
    published = Look("published cells", "D", LIGHT.ink, 5.5)
    return {**found, PUBLISHED: published, **random, OTHER: Look("other", "v", LIGHT.faint)}


def drawable(found: Experiment) -> list[Setting]:
    """The settings in which more than one genotype was trained."""
    return [setting for setting in found.settings if len(setting.rows) > 1]


def draw_experiment(found: Experiment) -> Figure:
    """Draw each training as a dot, and the mean of a genotype's dots as a bar; one pair of axes for each setting.

    Settings in which only one genotype was trained are left out. Raises UsageError if none remains.
    """
    settings = drawable(found)
    if not settings:
        raise UsageError("there is nothing to draw yet: no two genotypes of the study were trained in one setting")
    figure = Figure(figsize=(8.4, 5.9 * len(settings)), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(settings), 1, squeeze=False).flatten()
    for axes, setting in zip(grid, settings, strict=True):
        _draw_setting(axes, setting, found.protocol)
    figure.draw_without_rendering()  # the layout places the dots, and names go around them
    for axes, setting in zip(grid, settings, strict=True):
        named = [row for row in setting.rows if not row.is_random]
        marks = [Mark(textwrap.fill(row.title, 40), row.full_params / 1e6, row.spread.mean) for row in named]
        place_names(axes, marks, list(_boxes(axes, setting.rows, found.protocol.max_params)))
    return figure


def _draw_setting(axes: Axes, setting: Setting, protocol: Protocol) -> None:
    styles, bound = looks(protocol), protocol.max_params
    if bound is not None:
        axes.axvline(bound / 1e6, color=LIGHT.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for row in setting.rows:
        look, x = styles[row.group], row.full_params / 1e6
        errors = list(row.errors.values())
        axes.plot([x] * len(errors), errors, linestyle="none", **_dot(look, _is_hollow(row, protocol)))
        if len(errors) > 1:
            axes.plot([x, x], [min(errors), max(errors)], color=look.color, linewidth=1, alpha=0.5, zorder=2)
            axes.plot([x], [row.spread.mean], linestyle="none", **MEAN)
    axes.margins(0.14)
    title = f"Measured here on {setting.title}; {', '.join(setting.machines)}"
    dress(axes, textwrap.fill(title, 112), "parameters at C=36, 20 cells, M", "test error after the last epoch, %")
    groups = [group for group in styles if any(row.group == group for row in setting.rows)]
    entries = [Line2D([], [], linestyle="none", label=styles[g].title, **_dot(styles[g], False)) for g in groups]
    if any(_is_hollow(row, protocol) for row in setting.rows):
        hollow = _dot(styles[protocol.claimed_space]._replace(color=LIGHT.ink), True)
        label = f"hollow: steered to at most {protocol.limit}"
        entries.append(Line2D([], [], linestyle="none", label=label, **hollow))
    if any(len(row.errors) > 1 for row in setting.rows):
        entries.append(Line2D([], [], linestyle="none", label="mean over the seeds; a dot is a training", **MEAN))
    if bound is not None:
        entries.append(Line2D([], [], color=LIGHT.muted, linewidth=1, linestyle=(0, (4, 3)), label=protocol.limit))
    axes.legend(
        handles=entries, loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=3, fontsize=8.5, frameon=False,
        labelcolor=LIGHT.ink,
    )  # fmt: skip


def _is_hollow(row: Trained, protocol: Protocol) -> bool:
    """Whether a genotype is a steered one, and not at the same time the plain one of the search."""
    if protocol.max_params is None or row.group not in protocol.space_names:
        return False
    return all(protocol.limit in title for title in row.titles)


def _dot(look: Look, hollow: bool) -> dict[str, Any]:
    line = look.marker in "x+1"
    return {
        "marker": look.marker,
        "color": look.color,
        "markersize": look.size,
        "markerfacecolor": "white" if hollow else look.color,
        "markeredgecolor": look.color if hollow or line else "white",
        "markeredgewidth": 1.5 if hollow or line else 0.7,
        "zorder": 3,
    }


def _boxes(axes: Axes, rows: Sequence[Trained], bound: int | None) -> Iterator[Box]:
    """Boxes, in points, that no name may cover: dots, means, the lines between dots, and the line of the bound."""
    pixels = axes.figure.dpi / 72

    def spot(params: float, error: float) -> tuple[float, float]:
        x, y = axes.transData.transform((params / 1e6, error)) / pixels
        return float(x), float(y)

    for row in rows:
        dots = [spot(row.full_params, error) for error in row.errors.values()]
        yield from ((x - REACH, y - REACH, x + REACH, y + REACH) for x, y in dots)
        if len(dots) > 1:
            x, y = spot(row.full_params, row.spread.mean)
            heights = [y for _, y in dots]
            yield x - BAR - 1, y - 2, x + BAR + 1, y + 2
            yield x - 2, min(heights), x + 2, max(heights)
    if bound is not None:
        inside = axes.get_window_extent()
        x, _ = spot(bound, 0)
        yield x - 1, inside.y0 / pixels, x + 1, inside.y1 / pixels
