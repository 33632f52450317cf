"""The part of a classifier's report.md that shows its test, with its pictures."""

import io
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from darts_sg.errors import one_line
from darts_sg.files import write_atomically
from darts_sg.tasks.classified import FILE, Classified, accuracy_interval, read_classified
from darts_sg.tasks.columns import markdown_table

INK, FAINT, BLUE, ORANGE = "#1F2933", "#D5DBE1", "#1F62B5", "#D98200"
MOST_NUMBERS, MOST_NAMES = 25, 60
"""Classes up to which a confusion matrix has numbers, or names."""
MOST_ROWS, MOST_CONFUSIONS = 20, 10
"""Rows of the tables: of more classes, those with the lowest accuracy."""
LONGEST_NAME = 18
COLUMNS = 6
CLASS_HEADER = ("class", "test images", "accuracy", "95% interval")
CONFUSION_HEADER = ("class", "answer", "images")


def sections_of_test(folder: Path, data: str) -> list[str]:
    """Markdown paragraphs about the predictions in the run's folder; draws their pictures. None if there is no file."""
    if not (folder / FILE).is_file():
        return []
    found = read_classified(folder / FILE)
    shown = (
        (f"{caption}, {data}:", f"![{caption}](pictures/{name})") for name, caption in draw_test(found, folder).items()
    )
    mistakes = confusion_rows(found)
    return [
        f"### The test, image by image, {data}",
        f"All of the following is of `weights.safetensors`, the weights after the last epoch. [{FILE}]({FILE}) has the "
        "most probable classes of every image.",
        markdown_table(CLASS_HEADER, class_rows(found)),
        mean_over_classes(found),
        *(["The most frequent mistakes:", markdown_table(CONFUSION_HEADER, mistakes)] if mistakes else []),
        f"{calibration_text(found)}.",
        *chain.from_iterable(shown),
    ]


def draw_test(found: Classified, folder: Path) -> dict[str, str]:
    """Draw the pictures of a test into pictures/ in a folder; returns the caption of each by the name of its file."""
    shown = {}
    for name, (draw, caption) in PICTURES.items():
        if (figure := draw(found)) is not None:
            write_atomically(folder / "pictures" / name, _content(figure))
            shown[name] = caption
    return shown


def figures_of_test(found: Classified) -> dict[str, Any]:
    """The pictures of a test that need no images, by title."""
    drawn = {"confusion matrix": confusion_matrix, "accuracy by class": class_accuracy, "calibration": calibration}
    return {title: draw(found) for title, draw in drawn.items()}


def class_rows(found: Classified) -> list[tuple[str, ...]]:
    """Class, test images, accuracy and its interval, for CLASS_HEADER; of many classes those of the lowest accuracy."""
    shares, counts = found.class_accuracy(), found.confusion()
    totals = counts.sum(1)
    there = np.flatnonzero(totals)
    order = there if len(there) <= MOST_ROWS else there[np.argsort(shares[there], kind="stable")][:MOST_ROWS]
    rows: list[tuple[str, ...]] = []
    for k in order.tolist():
        low, high = accuracy_interval(int(counts[k, k]), int(totals[k]))
        interval = f"{100 * low:.1f}% to {100 * high:.1f}%"
        rows.append((one_line(str(found.class_names[k])), f"{totals[k]:,}", f"{100 * shares[k]:.2f}%", interval))
    return rows


def mean_over_classes(found: Classified) -> str:
    """A sentence with the mean accuracy over the classes, and how many of them a table leaves out."""
    shares = found.class_accuracy()
    number = int((~np.isnan(shares)).sum())
    few = f"; the table has the {MOST_ROWS} lowest of {number}" if number > MOST_ROWS else ""
    return f"Mean over the classes: {100 * np.nanmean(shares):.2f}%{few}."


def confusion_rows(found: Classified) -> list[tuple[str, ...]]:
    """Class, answer and images of the most frequent mistakes, for CONFUSION_HEADER."""
    counts = found.confusion()
    totals = counts.sum(1)
    np.fill_diagonal(counts, 0)
    pairs = np.argwhere(counts)
    order = np.argsort(-counts[tuple(pairs.T)], kind="stable")[:MOST_CONFUSIONS]
    return [
        (one_line(str(found.class_names[a])), one_line(str(found.class_names[b])), f"{counts[a, b]:,} of {totals[a]:,}")
        for a, b in pairs[order].tolist()
    ]


def calibration_text(found: Classified) -> str:
    """The expected calibration error and what it is."""
    return (
        f"Expected calibration error: **{100 * found.calibration().error:.2f}%** (15 bins; the mean distance between "
        "the probability that the network gives its answers and the share of them that is right)"
    )


def confusion_matrix(found: Classified) -> Any:
    """Answers by class, in shares of the images of a class."""
    counts = found.confusion()
    shares, number = counts / np.maximum(1, counts.sum(1, keepdims=True)), len(counts)
    side = min(14.0, 2.6 + 0.42 * number)
    figure = _figure(side + 0.8, side)
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if number <= MOST_NUMBERS:
        size = 7 if counts.max() < 1000 else 6
        for row, column in np.argwhere(counts).tolist():
            colour = "white" if shares[row, column] > 0.6 else INK
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=size, color=colour)
    if number <= MOST_NAMES:
        size = 8 if number <= MOST_NUMBERS else 6
        names = [_short(name) for name in found.class_names]
        axes.set_xticks(range(number), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(number), names, fontsize=size)
    axes.tick_params(length=0, colors=INK)
    axes.set_xlabel("answer", fontsize=9, color=INK)
    axes.set_ylabel("class", fontsize=9, color=INK)
    bar = figure.colorbar(image, fraction=0.046)
    bar.ax.tick_params(labelsize=8, colors=INK)
    bar.set_label("share of the row", fontsize=8, color=INK)
    return figure


def class_accuracy(found: Classified) -> Any:
    """Each class from the highest accuracy to the lowest, and their mean: bars with intervals, or a curve for many."""
    shares = found.class_accuracy()
    there = np.flatnonzero(~np.isnan(shares))
    order = there[np.argsort(-shares[there], kind="stable")]
    named = len(order) <= MOST_NAMES
    figure = _figure(7.5, 1.2 + 0.24 * len(order) if named else 4.0)
    axes = figure.add_subplot()
    mean = 100 * float(shares[there].mean())
    if named:
        counts = found.confusion()
        ends = [accuracy_interval(int(counts[k, k]), int(counts[k].sum())) for k in order.tolist()]
        reach = abs(100 * np.array(ends).T - 100 * shares[order])  # (2, classes): to the left and to the right
        error = {"ecolor": INK, "elinewidth": 1.0}
        bars = axes.barh(range(len(order)), 100 * shares[order], xerr=reach, error_kw=error, color=BLUE, height=0.7)
        axes.bar_label(bars, fmt="%.1f", fontsize=7.5, color=INK, padding=3)
        axes.set_yticks(range(len(order)), [_short(found.class_names[k]) for k in order])
        axes.invert_yaxis()
        axes.set_xlim(0, 112)
        axes.set_xlabel("accuracy, %", fontsize=9, color=INK)
        axes.axvline(mean, color=ORANGE, linestyle="--", linewidth=1.4, label=f"mean {mean:.1f}%")
    else:
        axes.plot(100 * shares[order], color=BLUE)
        axes.set_xlabel("classes, from the highest accuracy to the lowest", fontsize=9, color=INK)
        axes.set_ylabel("accuracy, %", fontsize=9, color=INK)
        axes.axhline(mean, color=ORANGE, linestyle="--", linewidth=1.4, label=f"mean {mean:.1f}%")
    figure.legend(loc="outside upper right", fontsize=8.5, frameon=False)
    _finish(axes, "x" if named else "both")
    return figure


def calibration(found: Classified) -> Any:
    """The reliability diagram of Guo et al. (2017), figure 1, above the histogram of the confidences."""
    counts, accuracy, confidence, error = found.calibration()
    edges = np.linspace(0, 1, len(counts) + 1)
    figure = _figure(5.2, 6.0)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    there = counts > 0
    above.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1.2, label="perfectly calibrated")
    width = 1 / len(counts)
    above.bar(edges[:-1][there], accuracy[there], width, align="edge", color=BLUE, edgecolor="white", label="accuracy")
    above.plot(
        confidence[there],
        accuracy[there],
        "o",
        color=ORANGE,
        markersize=4,
        label="mean confidence and accuracy of a bin",
    )
    above.set_ylim(0, 1)
    above.set_ylabel("accuracy", fontsize=9, color=INK)
    above.set_title(f"Expected calibration error {100 * error:.2f}%", fontsize=10, loc="left", color=INK)
    above.legend(fontsize=8, loc="upper left", framealpha=0.9, edgecolor=FAINT)
    below.bar(edges[:-1], counts / max(1, counts.sum()), width, align="edge", color=BLUE, edgecolor="white")
    below.set_ylabel("share of images", fontsize=9, color=INK)
    below.set_xlabel("confidence: probability of the answer", fontsize=9, color=INK)
    below.set_xlim(0, 1)
    for axes in (above, below):
        _finish(axes, "both")
    return figure


def worst_images(found: Classified) -> Any:
    return _sheet(found, found.worst())


def confident_mistakes(found: Classified) -> Any:
    return _sheet(found, found.most_confident_mistakes())


def _sheet(found: Classified, wanted: np.ndarray) -> Any:
    """The images with their true classes and the answers; None if there is no picture of them."""
    place = {int(image): i for i, image in enumerate(found.images)}
    there = [int(image) for image in wanted if int(image) in place]
    if not there:
        return None
    num_rows = -(-len(there) // COLUMNS)
    figure = _figure(1.65 * COLUMNS, 2.15 * num_rows)
    grid = figure.subplots(num_rows, COLUMNS, squeeze=False).flatten()
    for axes, image in zip(grid, there, strict=False):
        pixels = found.pixels[place[image]]
        axes.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)
        answer = f"{_short(found.class_names[found.answers[image]])} {100 * found.confidences[image]:.0f}%"
        colour = "#1E6B3A" if found.right[image] else "#A80D26"
        axes.set_title(_short(found.class_names[found.labels[image]]), fontsize=8, color=INK, pad=4)
        axes.set_xlabel(f"→ {answer}", fontsize=8, color=colour)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(FAINT)
    for axes in grid[len(there) :]:
        axes.remove()
    return figure


PICTURES = {
    "confusion.png": (confusion_matrix, "Answers by class, in shares of the images of a class"),
    "class_accuracy.png": (class_accuracy, "Accuracy by class, with its 95% interval by the choice of the test images"),
    "calibration.png": (calibration, "Accuracy against confidence, and how often each confidence occurs"),
    "worst.png": (worst_images, "The images with the highest loss: true class, then the answer with its probability"),
    "mistakes.png": (confident_mistakes, "The wrong answers with the highest probability"),
}
"""The function that draws each picture, and its caption."""


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finish(axes: Any, grid: str) -> None:
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(axis=grid, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _content(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def _short(name: Any) -> str:
    """A class name that fits beside a picture, without the dollar signs that matplotlib reads as formulas."""
    text = one_line(str(name))
    text = text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
    return text.replace("$", r"\$")
