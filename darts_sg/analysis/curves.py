"""Curves of a search or a retraining, and heat maps of mixing weights, as pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from darts_sg.errors import UsageError
from darts_sg.genotype import NUM_INPUTS

Row = Mapping[str, float]

INK, FAINT = "#1F2933", "#D5DBE1"
TRAIN, VALIDATION, TEST = "#1F62B5", "#D98200", "#C8102E"
NORMAL, REDUCE = "#1F62B5", "#7A3FA8"
CELL_TITLES = {"normal": "Normal cell", "reduce": "Reduction cell"}


@dataclass(frozen=True)
class Panel:
    """One set of axes: columns of metrics.csv with the names and colours of their curves."""

    title: str
    curves: tuple[tuple[str, str, str], ...]
    """(column, name, colour)."""
    percent: bool = False
    whole: bool = False


LOSS = Panel(
    "Loss (cross-entropy)",
    (
        ("train_loss", "train", TRAIN),
        ("validation_loss", "validation", VALIDATION),
        ("test_loss", "test", TEST),
    ),
)
ACCURACY = Panel(
    "Accuracy",
    (
        ("train_accuracy", "train", TRAIN),
        ("validation_accuracy", "validation", VALIDATION),
        ("test_accuracy", "test", TEST),
    ),
    percent=True,
)
SKIPS = Panel(
    "Skip connections in the derived cell",
    (("skips_normal", "normal cell", NORMAL), ("skips_reduce", "reduction cell", REDUCE)),
    whole=True,
)
ENTROPY = Panel(
    "Entropy of the mixing weights",
    (("entropy_normal", "normal cell", NORMAL), ("entropy_reduce", "reduction cell", REDUCE)),
)
RATE = Panel("Learning rate of the weights", (("learning_rate", "", TRAIN),))
DROP_PATH = Panel("Drop path probability", (("drop_path_prob", "", TRAIN),))


def draw_search_curves(rows: Sequence[Row]) -> Figure:
    """Loss, accuracy, skip connections and entropy over the epochs of a search.

    `rows` are those of metrics.csv; a column may be missing or nan. Raises UsageError if there is none.
    """
    return _draw(rows, (LOSS, ACCURACY, SKIPS, ENTROPY))


def draw_augment_curves(rows: Sequence[Row]) -> Figure:
    """Loss, accuracy, learning rate and drop path over the epochs of a retraining; see draw_search_curves."""
    return _draw(rows, (LOSS, ACCURACY, RATE, DROP_PATH))


def draw_mixing_weights(
    weights: Mapping[str, NDArray[np.floating]], operations: Sequence[str], num_nodes: int
) -> Figure:
    """Heat maps of the mixing weights of both cells, each edge's strongest operation other than `none` bold.

    `weights["normal"]` and `weights["reduce"]` are (num_edges, num_operations); edges are ordered node by
    node, each from state 0 up; "2 ← 0" is the edge from state 0 to state 2. With edge normalisation
    (PC-DARTS, section 3.3), `edge_normal` and `edge_reduce`, (num_edges,), make one more column, shaded on a
    scale of its own. Raises UsageError for other shapes.
    """
    edges = [f"{state} ← {i}" for state in range(NUM_INPUTS, NUM_INPUTS + num_nodes) for i in range(state)]
    expected = (len(edges), len(operations))
    for name, values in weights.items():
        shape = expected[:1] if name.startswith("edge_") else expected
        if values.shape != shape:
            raise UsageError(
                f"mixing weights {name!r} have shape {values.shape}, but {num_nodes} nodes and "
                f"{len(operations)} operations need {shape}: the file belongs to another space"
            )
    titles = [title for title in CELL_TITLES if title in weights]
    num_columns = len(operations) + max(f"edge_{title}" in weights for title in titles)
    width, height = 1.1 + 0.62 * num_columns, 1.9 + 0.27 * len(edges)
    figure = Figure(figsize=(width * len(titles), height), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, title in zip(figure.subplots(1, len(titles), squeeze=False)[0], titles, strict=True):
        _draw_heat_map(axes, weights[title], weights.get(f"edge_{title}"), operations, edges)
        axes.set_title(CELL_TITLES[title], fontsize=10, fontweight="bold", loc="left", color=INK)
    return figure


def draw_frontier(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Share of the mixing weight that genotypes keep against their parameters (`share` and `params` of each row)."""
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


def _draw(rows: Sequence[Row], panels: Sequence[Panel]) -> Figure:
    if not rows:
        raise UsageError("there is no finished epoch to draw yet")
    shown = [panel for panel in panels if any(_points(rows, column)[0] for column, _, _ in panel.curves)]
    num_rows = math.ceil(len(shown) / 2)
    figure = Figure(figsize=(10.0, 3.1 * num_rows), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(num_rows, 2, squeeze=False).flatten()
    for axes, panel in zip(grid, shown, strict=False):
        _draw_panel(axes, rows, panel)
    for axes in grid[len(shown) :]:
        axes.remove()
    return figure


def _draw_panel(axes: Axes, rows: Sequence[Row], panel: Panel) -> None:
    named = []
    for k, (column, name, color) in enumerate(panel.curves):
        epochs, values = _points(rows, column)
        if epochs:
            (line,) = axes.plot(epochs, values, color=color, linewidth=1.7, label=name)
            if len(epochs) <= 30:
                line.set(marker="o", markersize=3)
            if k % 2:  # both are seen where one covers the other
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


def _points(rows: Sequence[Row], column: str) -> tuple[list[float], list[float]]:
    """(epochs, values) of a column, without its missing values."""
    found = [(row["epoch"], row[column]) for row in rows if math.isfinite(row.get(column, math.nan))]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _draw_heat_map(
    axes: Axes,
    values: NDArray[np.floating],
    edge_weights: NDArray[np.floating] | None,
    operations: Sequence[str],
    edges: Sequence[str],
) -> None:
    names, shades = list(operations), values / values.max()
    if edge_weights is not None:
        names.append("edge weight")
        values = np.column_stack([values, edge_weights])
        shades = np.column_stack([shades, edge_weights / edge_weights.max()])
    choices = [j for j, name in enumerate(operations) if name != "none"]
    strongest = np.array(choices)[values[:, choices].argmax(axis=1)]  # (num_edges,)
    axes.imshow(shades, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        color = "white" if shades[i, j] > 0.6 else INK
        weight = "bold" if j == strongest[i] else "normal"
        text = axes.text(j, i, f"{value:.3f}".lstrip("0"), ha="center", va="center", fontsize=7.5)
        text.set(color=color, fontweight=weight)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(edges)), edges)
    axes.set_ylabel("edge: state ← state", fontsize=9, color=INK)
    axes.tick_params(labelsize=8.5, colors=INK, length=0)
    axes.spines[:].set_visible(False)
    for i, edge in enumerate(edges[1:], start=1):
        if edge.endswith(" 0"):  # a new node begins
            axes.axhline(i - 0.5, color="white", linewidth=3)
    if edge_weights is not None:
        axes.axvline(len(operations) - 0.5, color="white", linewidth=5)
