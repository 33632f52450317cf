"""The retrainings of the paper's experiment as a picture: error against parameters."""

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
from darts_sg.study.protocol import BOUND, DARTS, IR, SANDGLASS
from darts_sg.study.records import Experiment, Setting, Trained

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
    """How a group of genotypes is drawn: told apart by form and filling, so without colours too."""

    title: str
    marker: str
    color: str
    size: float = 6.5
    """Of a dot, in points."""


LOOKS = {
    SANDGLASS: Look("searched in darts+sandglass", "o", STYLES["sandglass"].light.line),
    DARTS: Look("searched in darts", "s", STYLES["sep_conv"].light.line, 5.8),
    IR: Look("searched in darts+ir", "^", STYLES["inverted_residual"].light.line),
    "published": Look("published cells", "D", LIGHT.ink, 5.5),
    f"random {SANDGLASS}": Look("random, darts+sandglass", "x", LIGHT.muted, 5.5),
    f"random {DARTS}": Look("random, darts", "+", LIGHT.muted, 6.5),
    f"random {IR}": Look("random, darts+ir", "1", LIGHT.muted, 6.5),
    "other": Look("other", "v", LIGHT.faint),
}


def drawable(found: Experiment) -> list[Setting]:
    """The settings in which several genotypes were trained."""
    return [setting for setting in found.settings if len(setting.rows) > 1]


def draw_experiment(found: Experiment) -> Figure:
    """Draw each training as a dot, and over the dots of a genotype their mean as a bar; axes for each setting.

    Settings in which one genotype alone was trained are left out. Raises UsageError if no other is left.
    """
    settings = drawable(found)
    if not settings:
        raise UsageError("there is nothing to draw yet: no two genotypes of the experiment were trained in one setting")
    figure = Figure(figsize=(8.4, 5.9 * len(settings)), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(settings), 1, squeeze=False).flatten()
    for axes, setting in zip(grid, settings, strict=True):
        _draw_setting(axes, setting)
    figure.draw_without_rendering()  # the names are placed where the layout puts the dots
    for axes, setting in zip(grid, settings, strict=True):
        named = [row for row in setting.rows if not row.group.startswith("random")]
        marks = [Mark(textwrap.fill(row.title, 40), row.full_params / 1e6, row.spread.mean) for row in named]
        place_names(axes, marks, list(_boxes(axes, setting.rows)))
    return figure


def _draw_setting(axes: Axes, setting: Setting) -> None:
    axes.axvline(BOUND / 1e6, color=LIGHT.muted, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for row in setting.rows:
        look, x = LOOKS[row.group], row.full_params / 1e6
        errors = list(row.errors.values())
        axes.plot([x] * len(errors), errors, linestyle="none", **_dot(look, _is_hollow(row)))
        if len(errors) > 1:
            axes.plot([x, x], [min(errors), max(errors)], color=look.color, linewidth=1, alpha=0.5, zorder=2)
            axes.plot([x], [row.spread.mean], linestyle="none", **MEAN)
    axes.margins(0.14)
    title = f"Measured here on {setting.title}; {', '.join(setting.machines)}"
    dress(axes, textwrap.fill(title, 112), "parameters at C=36, 20 cells, M", "test error after the last epoch, %")
    groups = [group for group in LOOKS if any(row.group == group for row in setting.rows)]
    entries = [Line2D([], [], linestyle="none", label=LOOKS[g].title, **_dot(LOOKS[g], False)) for g in groups]
    if any(map(_is_hollow, setting.rows)):
        hollow = _dot(LOOKS[SANDGLASS]._replace(color=LIGHT.ink), True)
        entries.append(Line2D([], [], linestyle="none", label=f"hollow: steered to at most {BOUND / 1e6:g}M", **hollow))
    if any(len(row.errors) > 1 for row in setting.rows):
        entries.append(Line2D([], [], linestyle="none", label="mean over the seeds; a dot is a training", **MEAN))
    entries.append(Line2D([], [], color=LIGHT.muted, linewidth=1, linestyle=(0, (4, 3)), label=f"{BOUND / 1e6:g}M"))
    axes.legend(
        handles=entries, loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=3, fontsize=8.5, frameon=False,
        labelcolor=LIGHT.ink,
    )  # fmt: skip


def _is_hollow(row: Trained) -> bool:
    """Whether a genotype is a steered one, and not at the same time the plain one of the search."""
    return row.group in (SANDGLASS, DARTS, IR) and all(f"{BOUND / 1e6:g}M" in title for title in row.titles)


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


def _boxes(axes: Axes, rows: Sequence[Trained]) -> Iterator[Box]:
    """What no name may cover, in points: every dot, every mean, the line between dots, and that of the bound."""
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
    inside = axes.get_window_extent()
    x, _ = spot(BOUND, 0)
    yield x - 1, inside.y0 / pixels, x + 1, inside.y1 / pixels
