"""Plots of a run: curves over the epochs of a search or a training, and heat maps of mixing weights."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
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
TRAIN, VALIDATION, TEST, EMA = "#1F62B5", "#D98200", "#C8102E", "#3C8A3F"
NORMAL, REDUCE = "#1F62B5", "#7A3FA8"
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


PARTS = (
    ("train", "train", TRAIN),
    ("validation", "validation", VALIDATION),
    ("test", "test", TEST),
    ("ema_test", "test, EMA", EMA),
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


def search_panels(plots: Sequence[Plot]) -> tuple[Panel, ...]:
    """The panels of a search: the task's measures, skip connections, entropy, eigenvalue, and a proxy's scores."""
    return (*task_panels(plots), SKIPS, ENTROPY, EIGENVALUE, SCORE)


def augment_panels(plots: Sequence[Plot]) -> tuple[Panel, ...]:
    """The panels of a training: the task's measures, learning rate and drop path."""
    return (*task_panels(plots), RATE, DROP_PATH)


def draw_mixing_weights(
    weights: Mapping[str, NDArray[np.floating]], operations: Sequence[str], num_nodes: int
) -> Figure:
    """Heat maps of the mixing weights of both cells, with each edge's strongest operation other than `none` in bold.

    `weights["normal"]` and `weights["reduce"]` are (num_edges, num_operations), see edge_names. The edge weights of
    PC-DARTS (section 3.3), `edge_normal` and `edge_reduce`, (num_edges,), become one more column with a colour scale of
    its own.
    """
    edges = edge_names(num_nodes)
    titles = [title for title in CELL_TITLES if title in weights]
    num_columns = len(operations) + max(f"edge_{title}" in weights for title in titles)
    width, height = 1.5 + 0.62 * num_columns, 1.9 + 0.27 * len(edges)
    figure = Figure(figsize=(width * len(titles), height), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, title in zip(figure.subplots(1, len(titles), squeeze=False)[0], titles, strict=True):
        names, values = heat_map_columns(weights, title, operations)
        shades = values / column_scales(values, len(operations))
        draw_heat_map(axes, shades, names, edges, len(operations))
        choices = [j for j, name in enumerate(operations) if name != "none"]
        strongest = np.array(choices)[values[:, choices].argmax(axis=1)]  # (num_edges,)
        for (i, j), value in np.ndenumerate(values):
            color = "white" if shades[i, j] > 0.6 else INK
            weight = "bold" if j == strongest[i] else "normal"
            text = axes.text(j, i, f"{value:.3f}".lstrip("0"), ha="center", va="center", fontsize=7.5)
            text.set(color=color, fontweight=weight)
        axes.set_title(CELL_TITLES[title], fontsize=10, fontweight="bold", loc="left", color=INK)
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


def column_scales(values: NDArray[np.floating], num_operations: int) -> NDArray[np.floating]:
    """The scale of each column, (…, num_columns) to (num_columns,).

    All operations share one scale, their largest value; the edge weights have another.
    """
    parts = np.split(values.reshape(-1, values.shape[-1]), [num_operations], axis=1)
    return np.concatenate([np.full(part.shape[1], part.max(initial=1e-300)) for part in parts])


def draw_heat_map(
    axes: Axes, shades: NDArray[np.floating], names: Sequence[str], edges: Sequence[str], num_operations: int
) -> tuple[AxesImage, list[Line2D]]:
    """Draw `shades`, (num_edges, num_columns) from 0 to 1, with white lines between nodes and between the two scales.

    Returns the image and the lines.
    """
    image = axes.imshow(shades, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(edges)), edges)
    axes.tick_params(labelsize=8.5, colors=INK, length=0)
    axes.spines[:].set_visible(False)
    starts = [num_edges(node) for node in range(1, num_nodes_of(len(edges)))]
    lines = [axes.axhline(start - 0.5, color="white", linewidth=3) for start in starts]
    if len(names) > num_operations:
        lines.append(axes.axvline(num_operations - 0.5, color="white", linewidth=5))
    return image, lines


def draw_frontier(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The frontier of genotypes: share of the mixing weight kept (`share` of a row) against parameters (`params`)."""
    figure = Figure(figsize=(7.0, 4.2), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    x, y = [row["params"] / 1e6 for row in rows], [100 * row["share"] for row in rows]
    axes.step(x, y, where="post", color=NORMAL, linewidth=1.2)
    axes.plot(x, y, ".", color=NORMAL, markersize=4)
    axes.set_xlabel("parameters, M (auxiliary head excluded)")
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
    """The panels with at least one value to draw."""
    return [panel for panel in panels if any(_points(rows, column)[0] for column, _, _ in panel.curves)]


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
    axes.set_title(panel.title, fontsize=10, fontweight="bold", loc="left", color=INK)
    axes.set_xlabel("epoch", fontsize=9, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    if panel.whole:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_ylim(bottom=-0.2, top=max(axes.get_ylim()[1], 2.2))
    axes.tick_params(labelsize=8.5, colors=INK)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if any(named):
        axes.legend(fontsize=8.5, frameon=True, framealpha=0.9, edgecolor=FAINT)


def _points(rows: Sequence[MetricsRow], column: str) -> tuple[list[float], list[float]]:
    """Epochs and values of a column, without missing values."""
    found = [(row["epoch"], row[column]) for row in rows if math.isfinite(row.get(column, math.nan))]
    return [epoch for epoch, _ in found], [value for _, value in found]
