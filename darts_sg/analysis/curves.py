"""Plots of a run: curves over the epochs of a search or a training, and heat maps of mixing weights."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from darts_sg.derive import num_edges, num_nodes_of
from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS, state_name
from darts_sg.records import MetricsRow
from darts_sg.tasks import Plot

INK, FAINT = "#1F2933", "#D5DBE1"
TRAIN, VALIDATION, TEST, EMA, EMA_VALIDATION = "#1F62B5", "#D98200", "#C8102E", "#3C8A3F", "#7A3FA8"
SOFT = "#52606D"
NORMAL, REDUCE = "#1F62B5", "#7A3FA8"
HEAT = LinearSegmentedColormap.from_list(
    "even", [(0.0, "#F2B36B"), (0.5, "#FFFFFF"), (0.75, "#6FA8DC"), (1.0, "#0B3C7D")]
)
"""Colours of mixing weights: orange below even ones, white, blue above. They differ for colour-blind people, too."""
DARK_SHADE = 0.78  # above it numbers are white
NEARLY_CONSTANT = 0.01  # a range of values, relative to them, for which ticks would need a common offset
SUBSCRIPTS = str.maketrans("k-12", "ₖ₋₁₂")
CELL_TITLES = {"normal": "Normal cell", "reduce": "Reduction cell"}


@dataclass(frozen=True)
class Panel:
    """One set of axes: columns of metrics.csv with the names and colours of their curves."""

    title: str
    curves: tuple[tuple[str, str, str], ...]
    """(column, name, colour)."""
    percent: bool = False
    whole: bool = False
    top: float | None = None
    """The largest possible value: the axis goes from 0 to it. None for an axis that fits the values."""
    top_name: str = ""
    """Name of the largest value, for the legend."""


PARTS = (
    ("train", "train", TRAIN),
    ("validation", "validation", VALIDATION),
    ("test", "test", TEST),
    ("ema_test", "test, EMA", EMA),
    ("ema_validation", "validation, EMA", EMA_VALIDATION),
)
"""The curves of a measure: prefix of the column, name, colour."""
SKIPS = Panel(
    "Skip connections in the derived cell",
    (("skips_normal", "normal cell", NORMAL), ("skips_reduce", "reduction cell", REDUCE)),
    whole=True,
)
ENTROPY = Panel(
    "Entropy of the mixing weights",
    (("entropy_normal", "normal cell", NORMAL), ("entropy_reduce", "reduction cell", REDUCE)),
)
EIGENVALUE = Panel("Dominant eigenvalue of ∇²L_val in the alphas", (("eigenvalue", "", VALIDATION),))
SCORE = Panel("Score of the candidates", (("score", "", TRAIN),))
RATE = Panel("Learning rate of the weights", (("learning_rate", "", TRAIN),))
DROP_PATH = Panel("Drop path probability", (("drop_path_prob", "", TRAIN),))


def task_panels(plots: Sequence[Plot]) -> tuple[Panel, ...]:
    """The panels of a task's measures, each over all parts of the data."""
    return tuple(
        Panel(
            plot.title,
            tuple((f"{prefix}_{plot.measure}", name, colour) for prefix, name, colour in PARTS),
            percent=plot.percent,
        )
        for plot in plots
    )


def search_panels(plots: Sequence[Plot], num_operations: int | None = None) -> tuple[Panel, ...]:
    """The panels of a search: the task's measures, skip connections, entropy, eigenvalue, and a proxy's scores.

    num_operations: n; the axis of the entropy then goes from 0 to ln n, which even mixing weights have.
    """
    entropy = ENTROPY
    if num_operations is not None and num_operations > 1:
        entropy = replace(ENTROPY, top=math.log(num_operations), top_name=f"even weights: ln {num_operations}")
    return (*task_panels(plots), SKIPS, entropy, EIGENVALUE, SCORE)


def augment_panels(plots: Sequence[Plot]) -> tuple[Panel, ...]:
    """The panels of a training: the task's measures, learning rate and drop path."""
    return (*task_panels(plots), RATE, DROP_PATH)


def draw_mixing_weights(
    weights: Mapping[str, NDArray[np.floating]], operations: Sequence[str], num_nodes: int
) -> Figure:
    """Heat maps of the mixing weights of both cells, with each edge's strongest operation other than `none` in bold.

    `weights["normal"]` and `weights["reduce"]` are (num_edges, num_operations), see edge_names. The edge weights of
    PC-DARTS (section 3.3), `edge_normal` and `edge_reduce`, (num_edges,), become one more column. Both cells share one
    scale, whose white middle are even weights.
    """
    edges = edge_names(num_nodes)
    titles = [title for title in CELL_TITLES if title in weights]
    num_columns = len(operations) + max(f"edge_{title}" in weights for title in titles)
    width, height = 1.5 + 0.62 * num_columns, 1.9 + 0.27 * len(edges)
    figure = Figure(figsize=(width * len(titles) + 0.8, height), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    columns = {title: heat_map_columns(weights, title, operations) for title in titles}
    even = {title: even_weights(values, len(operations)) for title, (_, values) in columns.items()}
    most = largest_ratio([values / even[title] for title, (_, values) in columns.items()])
    grid = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, title in zip(grid, titles, strict=True):
        names, values = columns[title]
        shades = shades_of(values / even[title], most)
        draw_heat_map(axes, shades, names, edges, len(operations))
        choices = [j for j, name in enumerate(operations) if name != "none"]
        strongest = np.array(choices)[values[:, choices].argmax(axis=1)]  # (num_edges,)
        for (i, j), value in np.ndenumerate(values):
            color = "white" if shades[i, j] > DARK_SHADE else INK
            weight = "bold" if j == strongest[i] else "normal"
            text = axes.text(j, i, f"{value:.3f}".lstrip("0"), ha="center", va="center", fontsize=7.5)
            text.set(color=color, fontweight=weight)
        axes.set_title(CELL_TITLES[title], fontsize=10, fontweight="bold", loc="left", color=INK)
    scale = figure.colorbar(ScalarMappable(Normalize(0, 1), HEAT), ax=grid.tolist(), fraction=0.02, aspect=28, pad=0.01)
    scale.set_ticks([0, 0.5, 1], labels=scale_labels(np.concatenate([e.ravel() for e in even.values()]), most))
    scale.ax.tick_params(labelsize=8.5, colors=INK, length=0)
    scale.outline.set_visible(False)
    return figure


def edge_names(num_nodes: int) -> list[str]:
    """Names of a cell's edges, by node and then by state: "node 0 ← cₖ₋₂" leads from the first state to node 0."""
    return [
        f"{state_name(state)} ← {subscripted(state_name(i))}"
        for state in range(NUM_INPUTS, NUM_INPUTS + num_nodes)
        for i in range(state)
    ]


def subscripted(state: str) -> str:
    """A state's name, such as c_{k-2}, with its index as Unicode subscripts."""
    return re.sub(r"_\{?([k12-]+)\}?", lambda match: match[1].translate(SUBSCRIPTS), state)


def heat_map_columns(
    weights: Mapping[str, NDArray[np.floating]], title: str, operations: Sequence[str]
) -> tuple[list[str], NDArray[np.floating]]:
    """Column names and values, (num_edges, num_columns), of a heat map: operations, then the edge weights if any."""
    if f"edge_{title}" not in weights:
        return list(operations), weights[title]
    return [*operations, "edge weight"], np.column_stack([weights[title], weights[f"edge_{title}"]])


def even_weights(values: NDArray[np.floating], num_operations: int) -> NDArray[np.floating]:
    """The values of a heat map, (num_edges, num_columns), if no choice were preferred, of the same shape.

    1/n for an edge with n operations whose weights sum to one (operations that an edge lacks have weight 0), and 1/2
    for weights that are independent of each other (FairDARTS). 1/n for the weight of an edge among n into its node.
    """
    weights = values[:, :num_operations]
    counts = np.maximum((weights > 0).sum(axis=1), 1)
    dependent = np.abs(weights.sum(axis=1) - 1) < 1e-3
    even = np.repeat(np.where(dependent, 1 / counts, 0.5)[:, None], num_operations, axis=1)
    if values.shape[1] == num_operations:
        return even
    into = [NUM_INPUTS + node for node in range(num_nodes_of(len(values))) for _ in range(NUM_INPUTS + node)]
    return np.column_stack([even, 1 / np.array(into)])


def largest_ratio(ratios: Sequence[NDArray[np.floating]]) -> float:
    """The upper end of the scale of heat maps, in multiples of even weights; at least 2, so that noise stays pale."""
    return max(2.0, *(float(ratio.max(initial=0.0)) for ratio in ratios))


def shades_of(ratios: NDArray[np.floating], most: float) -> NDArray[np.floating]:
    """Multiples of even weights as shades: 0 to 0, 1 to 1/2, `most` to 1."""
    return np.where(ratios <= 1, ratios / 2, 0.5 + (ratios - 1) / (2 * (most - 1)))


def scale_labels(even: NDArray[np.floating], most: float) -> list[str]:
    """Labels of a heat map's scale at the shades 0, 1/2 and 1."""
    if np.ptp(even) > 1e-9:
        return ["0", "even: 1/n", f"{most:.1f}/n"]
    middle = "even: 1/2" if even[0] == 0.5 else f"even: 1/{round(1 / even[0])}"
    return ["0", middle, f"{most * even[0]:.2f}"]


def draw_heat_map(
    axes: Axes, shades: NDArray[np.floating], names: Sequence[str], edges: Sequence[str], num_operations: int
) -> tuple[AxesImage, list[Line2D]]:
    """Draw `shades`, (num_edges, num_columns), see shades_of, with white lines between nodes and before edge weights.

    Returns the image and the lines.
    """
    image = axes.imshow(shades, cmap=HEAT, vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(edges)), edges)
    axes.tick_params(labelsize=8.5, colors=INK, length=0)
    axes.spines[:].set_visible(False)
    # thin lines tell even weights, which are white, from the page
    lines = [axes.axvline(column - 0.5, color=FAINT, linewidth=0.5) for column in range(len(names) + 1)]
    lines += [axes.axhline(row - 0.5, color=FAINT, linewidth=0.5) for row in range(len(edges) + 1)]
    starts = [num_edges(node) for node in range(1, num_nodes_of(len(edges)))]
    lines += [axes.axhline(start - 0.5, color="white", linewidth=3) for start in starts]
    if len(names) > num_operations:
        lines.append(axes.axvline(num_operations - 0.5, color="white", linewidth=5))
    return image, lines


FRONTIER_AXES = {
    "params": ("parameters, M (auxiliary head excluded)", 1e-6),
    "latency_microseconds": ("predicted latency, ms", 1e-3),
}
"""Label and factor of what a frontier trades mixing weight for, by its entry of a row."""


def draw_frontier(rows: Sequence[Mapping[str, Any]], cost: str = "params") -> Figure:
    """The frontier of genotypes: share of the mixing weight kept (`share` of a row) against `cost`."""
    figure = Figure(figsize=(7.0, 4.2), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    label, factor = FRONTIER_AXES[cost]
    x, y = [factor * row[cost] for row in rows], [100 * row["share"] for row in rows]
    axes.step(x, y, where="post", color=NORMAL, linewidth=1.2)
    axes.plot(x, y, ".", color=NORMAL, markersize=4)
    axes.set_xlabel(label)
    axes.set_ylabel("mixing weight kept, % of the largest sum")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure


def draw_curves(rows: Sequence[MetricsRow], panels: Sequence[Panel]) -> Figure:
    """The panels over the epochs of `rows`, those of metrics.csv, two panels side by side.

    A column may be missing or NaN; panels without any value are left out. Raises UsageError if there is no row.
    """
    if not rows:
        raise UsageError("there is no finished epoch to draw yet")
    shown = filled(panels, rows)
    num_rows = math.ceil(len(shown) / 2)
    figure = Figure(figsize=(10.0, 3.1 * num_rows), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(num_rows, 2, squeeze=False).flatten()
    for axes, panel in zip(grid, shown, strict=False):
        draw_panel(axes, rows, panel)
    for axes in grid[len(shown) :]:
        axes.remove()
    return figure


def filled(panels: Sequence[Panel], rows: Sequence[MetricsRow]) -> list[Panel]:
    """The panels with at least one value to draw; that of drop path only if there is any."""

    def shown(panel: Panel) -> bool:
        values = [value for column, _, _ in panel.curves for value in _points(rows, column)[1]]
        return any(values) if panel is DROP_PATH else bool(values)

    return [panel for panel in panels if shown(panel)]


def draw_panel(axes: Axes, rows: Sequence[MetricsRow], panel: Panel) -> None:
    """Draw the curves of a panel over the epochs of `rows`."""
    named = []
    for k, (column, name, color) in enumerate(panel.curves):
        epochs, values = _points(rows, column)
        if epochs:
            (line,) = axes.plot(epochs, values, color=color, linewidth=1.7, label=name)
            if len(epochs) <= 30:
                line.set(marker="o", markersize=3)
            if k % 2:  # dashed, so that two curves on top of each other are both seen
                line.set_linestyle("--")
            named.append(name)
    _set_limits(axes, panel, rows)
    axes.set_title(panel.title, fontsize=10, fontweight="bold", loc="left", color=INK)
    axes.set_xlabel("epoch", fontsize=9, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    if panel.whole:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.tick_params(labelsize=8.5, colors=INK)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if any(named):
        axes.legend(fontsize=8.5, frameon=True, framealpha=0.9, edgecolor=FAINT)


def _set_limits(axes: Axes, panel: Panel, rows: Sequence[MetricsRow]) -> None:
    """Set the limits of the values: those that the panel fixes, or wide enough that ticks need no common offset."""
    values = [value for column, _, _ in panel.curves for value in _points(rows, column)[1]]
    if panel.top is not None:
        axes.axhline(panel.top, color=SOFT, linewidth=1, linestyle=(0, (2, 2)), label=panel.top_name, zorder=1)
        axes.set_ylim(0, 1.05 * max(panel.top, *values))  # weights that do not sum to one may have more
    elif panel.whole:
        axes.set_ylim(bottom=-0.2, top=max(axes.get_ylim()[1], 2.2))
    elif not panel.percent:
        axes.ticklabel_format(axis="y", useOffset=False)
        low, high = min(values), max(values)
        if high - low < NEARLY_CONSTANT * abs(high):
            room = 0.05 * abs(high)
            axes.set_ylim(low - room, high + room)


def _points(rows: Sequence[MetricsRow], column: str) -> tuple[list[float], list[float]]:
    """Epochs and values of a column, without missing values."""
    found = [(row["epoch"], row[column]) for row in rows if math.isfinite(row.get(column, math.nan))]
    return [epoch for epoch, _ in found], [value for _, value in found]
