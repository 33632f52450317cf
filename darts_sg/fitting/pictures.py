"""The pictures of a fit's report: confusion of the classes, accuracy of each, and images that are taken for others."""

import io
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from darts_sg.analysis.curves import FAINT, INK, TRAIN
from darts_sg.errors import one_line
from darts_sg.fitting.testing import Predicted, accuracy_interval

MOST_CELLS = 40
"""Classes up to which the confusion has numbers and names."""
MISTAKES, IN_A_ROW = 12, 6
LONGEST_NAME = 22


def shown_name(name: str) -> str:
    """A class name for a picture: on one line, cut, and without the marks of matplotlib's formulas."""
    text = one_line(name)
    return (text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…").replace("$", r"\$")


def draw_confusion(found: Predicted, names: Sequence[str]) -> Figure:
    """Images by right class (rows) and predicted class (columns), shaded by the share of the row."""
    counts = found.confusion(len(names))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    small = len(names) <= MOST_CELLS
    side = 2.2 + (0.42 * len(names) if small else 6.5)
    figure = Figure(figsize=(side + 1.0, side), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if small:
        shown = [shown_name(name) for name in names]
        axes.set_xticks(range(len(names)), shown, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(names)), shown, fontsize=8)
        for (i, j), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[i, j] > 0.6 else INK
                axes.text(j, i, str(count), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xlabel("predicted", fontsize=9, color=INK)
    axes.set_ylabel("right class", fontsize=9, color=INK)
    axes.set_title("Test images by class", fontsize=10, fontweight="bold", loc="left", color=INK)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_color(FAINT)
    return figure


def draw_classes(found: Predicted, names: Sequence[str]) -> Figure:
    """The accuracy of each class with its 95% interval, the lowest first."""
    rows = class_rows(found, names)
    figure = Figure(figsize=(7.5, 1.2 + 0.26 * len(rows)), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, (_, images, accuracy, low, high) in enumerate(reversed(rows)):
        axes.plot([low, high], [place, place], color=TRAIN, linewidth=2, alpha=0.4, solid_capstyle="round")
        axes.plot([accuracy], [place], "o", color=TRAIN, markersize=5)
        axes.text(1.02, place, f"{images}", va="center", fontsize=8, color=INK, transform=axes.get_yaxis_transform())
    top: dict[str, Any] = {"va": "bottom", "fontsize": 8, "color": INK, "transform": axes.transAxes}
    axes.text(1.02, 1.0, "images", **top)
    axes.set_yticks(range(len(rows)), [shown_name(row[0]) for row in reversed(rows)], fontsize=8)
    axes.axvline(found.accuracy, color=FAINT, linewidth=1.2, zorder=0)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_title(
        "Accuracy of each class, 95% interval, test images", fontsize=10, fontweight="bold", loc="left", color=INK
    )
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def class_rows(found: Predicted, names: Sequence[str]) -> list[tuple[str, int, float, float, float]]:
    """(class, test images, accuracy, lower and upper end of its interval), the lowest accuracy first."""
    rows = []
    for label, name in enumerate(names):
        right = found.right[found.labels == label]
        if len(right):
            rows.append((name, len(right), float(right.mean()), *accuracy_interval(int(right.sum()), len(right))))
    return sorted(rows, key=lambda row: (row[2], row[0]))


def draw_mistakes(found: Predicted, images: NDArray[np.uint8], names: Sequence[str]) -> bytes | None:
    """The wrong test images of which the network is most certain, as PNG; None if all are right.

    images: uint8 (N, H, W, 3), in the order of the predictions.
    """
    wrong = np.flatnonzero(~found.right)
    if not len(wrong):
        return None
    chosen = wrong[np.argsort(-found.scores[wrong], kind="stable")][:MISTAKES]
    rows = -(-len(chosen) // IN_A_ROW)
    figure = Figure(figsize=(12, 2.65 * rows), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes in figure.subplots(rows, IN_A_ROW, squeeze=False).flatten():
        axes.set_axis_off()
    for axes, index in zip(figure.axes, chosen.tolist(), strict=False):
        axes.imshow(images[index])
        said, right = (shown_name(names[label]) for label in (found.classes[index], found.labels[index]))
        text = f"{said} {found.scores[index]:.0%}\nright: {right}"
        axes.set_title("\n".join(textwrap.wrap(text.split("\n")[0], 28)) + "\n" + text.split("\n")[1], fontsize=8)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # letters that the font lacks become boxes
        figure.savefig(content, format="png", dpi=100)
    return content.getvalue()
