"""The picture of a data set: classes, sizes and places of objects, prior boxes, and some images with their boxes."""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from darts_sg.analysis.curves import FAINT, INK, TEST, TRAIN

COLOURS = {"train": TRAIN, "test": TEST}
OTHER = "#3C8A3F"
SAMPLES_IN_A_ROW, SAMPLE_ROWS = 6, 2
SAMPLE_HEIGHT = 2.3
"""Height of a row of images in inches."""
UNEQUAL = 20
MOST_NAMED = 40
"""Classes whose bars have names."""
MOST_LEVEL = 8
"""Classes whose names fit beside each other."""
LONGEST_NAME = 18


class Sample(NamedTuple):
    """An image to show, with its objects."""

    pixels: NDArray[np.uint8]
    """(H, W, 3)."""
    boxes: NDArray[np.float32]
    """(n, 4) in pixels; none for an image of a class folder."""
    names: Sequence[str]
    """Class names of the boxes, or the one of the image."""


@dataclass(frozen=True)
class BoxPlots:
    """Figures of the boxes to plot, one entry an object; see `darts_sg.data.checking.BoxFacts`."""

    shares: NDArray[np.float32]
    side: NDArray[np.float64]
    aspect: NDArray[np.float64]
    best_prior: NDArray[np.float64] | None
    prior_iou: float


def draw_data(
    title: str,
    class_names: Sequence[str],
    counts: Mapping[str, NDArray[np.int64]],
    what: str,
    image_sides: NDArray[np.int64],
    boxes: BoxPlots | None,
    samples: Sequence[Sample],
) -> bytes:
    """The picture as PNG. `counts`: objects or images (`what`) of each class, by part; image_sides: (N, 2)."""
    plots = 5 if boxes is not None and len(boxes.side) else 1
    rows = 3 if plots > 1 else 1
    below = SAMPLE_HEIGHT * SAMPLE_ROWS if samples else 0.3  # inches
    height = 0.7 + 3.4 + 2.7 * (rows - 1) + below  # title, classes, other rows, samples
    figure = Figure(figsize=(13, height))
    FigureCanvasAgg(figure)
    figure.suptitle(title, color=INK, fontsize=12, y=1 - 0.15 / height, va="top")
    grid = figure.add_gridspec(
        rows, 6, height_ratios=[1.15] + [1] * (rows - 1), left=0.05, right=0.985, top=1 - 0.7 / height,
        bottom=(0.5 + below) / height, wspace=0.55, hspace=0.6,
    )  # fmt: skip
    _draw_classes(figure.add_subplot(grid[0, : 6 if plots > 1 else 4]), class_names, counts, what)
    if boxes is not None and plots > 1:
        _draw_sides(figure.add_subplot(grid[1, :2]), boxes)
        _draw_aspects(figure.add_subplot(grid[1, 2:4]), boxes)
        _draw_priors(figure.add_subplot(grid[1, 4:]), boxes)
        _draw_places(figure.add_subplot(grid[2, :2]), boxes)
        _draw_extents(figure.add_subplot(grid[2, 2:4]), boxes)
        _draw_image_sides(figure.add_subplot(grid[2, 4:]), image_sides)
    else:
        _draw_image_sides(figure.add_subplot(grid[0, 4:]), image_sides)
    grid = figure.add_gridspec(
        SAMPLE_ROWS, SAMPLES_IN_A_ROW, left=0.02, right=0.98, top=(below - 0.2) / height, bottom=0.02,
        wspace=0.05, hspace=0.15,
    )  # fmt: skip
    for number, sample in enumerate(samples[: SAMPLE_ROWS * SAMPLES_IN_A_ROW]):
        row, column = divmod(number, SAMPLES_IN_A_ROW)
        _draw_sample(figure.add_subplot(grid[row, column]), sample, class_names)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # letters that the font lacks become boxes
        figure.savefig(content, format="png", dpi=100)
    return content.getvalue()


def _draw_classes(axes: Axes, names: Sequence[str], counts: Mapping[str, NDArray[np.int64]], what: str) -> None:
    """Bars, on a logarithmic scale where the classes of a part differ by more than the factor UNEQUAL."""
    places = np.arange(len(names))
    width = 0.8 / len(counts)
    for number, (part, count) in enumerate(counts.items()):
        axes.bar(places + number * width, count, width, label=part, color=COLOURS.get(part, OTHER), align="edge")
    if any(count.max() > UNEQUAL * max(1, count.min()) for count in counts.values()):
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.8)
    axes.set_xlim(-0.3, len(names))
    if len(names) <= MOST_NAMED:
        short = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in names]
        turned: dict[str, Any] = {"rotation": 40, "ha": "right"} if len(names) > MOST_LEVEL else {}
        axes.set_xticks(places + 0.4, [name.replace("$", r"\$") for name in short], fontsize=8, **turned)
    else:
        axes.set_xlabel(f"{len(names)} classes")
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.98), ncols=len(counts))
    _finish(axes, f"{what.capitalize()} of each class")


def _draw_sides(axes: Axes, boxes: BoxPlots) -> None:
    axes.hist(boxes.side, bins=np.linspace(0, 1, 41).tolist(), color=TRAIN)
    axes.set_xlabel("√(area of the box / area of the image)")
    _finish(axes, f"Size of objects, median {np.median(boxes.side):.2f}")


def _draw_aspects(axes: Axes, boxes: BoxPlots) -> None:
    axes.hist(boxes.aspect.clip(1 / 8, 8), bins=np.geomspace(1 / 8, 8, 41).tolist(), color=TRAIN)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], ["≤ ⅛", "¼", "½", "1", "2", "4", "≥ 8"])
    axes.set_xlabel("width / height in pixels")
    _finish(axes, "Aspect ratio of objects")


def _draw_priors(axes: Axes, boxes: BoxPlots) -> None:
    if boxes.best_prior is None:
        axes.set_axis_off()
        return
    axes.hist(boxes.best_prior, bins=np.linspace(0, 1, 41).tolist(), color=TRAIN)
    axes.axvline(boxes.prior_iou, color=TEST, linewidth=1)
    axes.set_xlabel("IoU with the closest prior box")
    share = (boxes.best_prior >= boxes.prior_iou).mean()
    _finish(axes, f"Prior boxes: {share:.1%} of objects reach {boxes.prior_iou}")


def _draw_places(axes: Axes, boxes: BoxPlots) -> None:
    centres = (boxes.shares[:, :2] + boxes.shares[:, 2:]) / 2
    axes.hist2d(centres[:, 0], centres[:, 1], bins=24, range=[[0, 1], [0, 1]], cmap="Blues")
    axes.invert_yaxis()
    axes.set_xlabel("x / width")
    axes.set_ylabel("y / height", fontsize=8)
    _finish(axes, "Centres of objects")


def _draw_extents(axes: Axes, boxes: BoxPlots) -> None:
    extent = boxes.shares[:, 2:] - boxes.shares[:, :2]
    # small objects outnumber all others: a logarithmic scale shows these, too
    axes.hist2d(extent[:, 0], extent[:, 1], bins=24, range=[[0, 1], [0, 1]], cmap="Blues", norm="log")
    axes.set_xlabel("width of the box / of the image")
    axes.set_ylabel("height", fontsize=8)
    _finish(axes, "Width and height of objects")


def _draw_image_sides(axes: Axes, sides: NDArray[np.int64]) -> None:
    if not len(sides):
        axes.set_axis_off()
        return
    axes.scatter(sides[:, 0], sides[:, 1], s=6, alpha=0.3, color=TRAIN, linewidths=0)
    axes.set_xlim(0, 1.05 * sides[:, 0].max())
    axes.set_ylim(0, 1.05 * sides[:, 1].max())
    axes.set_xlabel("width in pixels")
    axes.set_ylabel("height", fontsize=8)
    _finish(axes, f"Sizes of {len(sides):,} images")


def _draw_sample(axes: Axes, sample: Sample, class_names: Sequence[str]) -> None:
    axes.imshow(sample.pixels)
    for (x1, y1, x2, y2), name in zip(sample.boxes.tolist(), sample.names, strict=False):
        colour = f"C{class_names.index(name) % 10}"
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.2))
    shown = list(dict.fromkeys(sample.names))
    text = ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "")
    axes.set_title(text.replace("$", r"\$")[:32] or "no objects", fontsize=8, color=INK)
    axes.set_axis_off()


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, color=FAINT)
    axes.xaxis.label.set_fontsize(8)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
