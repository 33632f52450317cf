"""Picture that compares trained networks: information about the image in their features, and gradient cosines."""

import bisect
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, ScalarFormatter
from numpy.typing import NDArray

from darts_sg.analysis.information import Retained
from darts_sg.analysis.sheet import CAPTION_SIZE, LABEL_SIZE, LIGHT, STYLES, text_width, wrap

MARKERS = "^osDPX"  # by size of the features, largest first
OTHERS = ("sep_conv", "dil_conv", "pool", "other", "skip")  # families whose colours other networks take
PALEST = 0.4
BINS = 40
WIDTH, PANELS_HEIGHT, RIDGE_HEIGHT = 12.5, 5.4, 0.55  # inches
LABEL_WIDTH = 370.0  # points

Corner = Literal["lower left", "upper left", "lower right"]


class Portrait(NamedTuple):
    """A network in the picture."""

    label: str
    name: str
    """Name of the network. Those of one name, which differ in seed or epoch, share a colour."""
    block: str
    """Name of a model's blocks; empty for a genotype."""
    retained: Sequence[Retained]
    cosines: NDArray[np.floating]


def draw_diagnosis(portraits: Sequence[Portrait], setting: str) -> Figure:
    """Draw R² and channels over depth, a line a network, and distributions of the cosines; `setting` stands below."""
    caption = wrap(setting, 72 * (WIDTH - 0.3))
    height = max(PANELS_HEIGHT, 1.2 + RIDGE_HEIGHT * len(portraits))
    below = (len(caption) + 0.8) * 1.35 * CAPTION_SIZE / 72
    figure = Figure(figsize=(WIDTH, height + below), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(rect=(0, below / (height + below), 1, height / (height + below)))  # type: ignore
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1), width_ratios=(1.25, 1))
    shares = figure.add_subplot(grid[0, 0])
    channels = figure.add_subplot(grid[1, 0], sharex=shares)
    ridges = figure.add_subplot(grid[:, 1])
    colors = _colors(portraits)
    _draw_sites(shares, channels, portraits, colors)
    _draw_ridges(ridges, portraits, colors)
    for axes in (shares, channels, ridges):
        axes.tick_params(labelsize=8.5, colors=LIGHT.ink)
        axes.grid(color=LIGHT.frame, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    text = figure.text(0.01, 0.01, "\n".join(caption), fontsize=CAPTION_SIZE, color=LIGHT.muted, va="bottom")
    text.set_in_layout(False)
    return figure


def _colors(portraits: Sequence[Portrait]) -> list[tuple[str, float]]:
    """(colour, opacity) of each: its block's colour in other pictures, paler for earlier files of the same name."""
    by_title = {style.title: style.light.line for style in STYLES.values()}
    free = [STYLES[name].light.line for name in OTHERS]
    taken = dict[str, str]()
    for portrait in portraits:
        if portrait.name not in taken:
            own = by_title.get(portrait.block)
            unused = [color for color in free if color not in taken.values()] or free
            taken[portrait.name] = own if own is not None and own not in taken.values() else unused[0]
    found, seen = [], dict[str, int]()
    for portrait in portraits:
        alike = sum(other.name == portrait.name for other in portraits)
        seen[portrait.name] = seen.get(portrait.name, 0) + 1
        found.append((taken[portrait.name], PALEST + (1 - PALEST) * seen[portrait.name] / alike))
    return found


def _draw_sites(
    shares: Axes, channels: Axes, portraits: Sequence[Portrait], colors: Sequence[tuple[str, float]]
) -> None:
    sizes = sorted({site.size for portrait in portraits for site in portrait.retained}, reverse=True)
    markers = {size: MARKERS[min(i, len(MARKERS) - 1)] for i, size in enumerate(sizes)}
    for portrait, (color, opacity) in zip(portraits, colors, strict=True):
        depths = [site.depth for site in portrait.retained]
        for axes, values in (
            (shares, [site.r2 for site in portrait.retained]),
            (channels, [site.channels for site in portrait.retained]),
        ):
            axes.plot(depths, values, color=color, alpha=opacity, linewidth=1.6, zorder=2)
            for site, value in zip(portrait.retained, values, strict=True):
                axes.plot(
                    site.depth, value, markers[site.size], color=color, alpha=opacity, markersize=5.5,
                    markeredgecolor="white", markeredgewidth=0.6, zorder=3,
                )  # fmt: skip
    lowest = min(site.r2 for portrait in portraits for site in portrait.retained)
    shares.set_ylim(min(0.0, max(lowest, -0.5)) - 0.02, 1.02)  # how much worse than a constant does not matter
    shares.set_xlim(-0.02, 1.02)
    shares.set_title(
        "What the features carried on hold of the image", fontsize=10, fontweight="bold", loc="left", color=LIGHT.ink
    )
    shares.set_ylabel("R² of the linear fit to the pixels", fontsize=9, color=LIGHT.ink)
    shares.tick_params(labelbottom=False)
    keys = [Line2D([], [], color=LIGHT.muted, marker=markers[size], linestyle="", markersize=5.5) for size in sizes]
    names = [f"{size}×{size}" for size in sizes]
    style: dict[str, Any] = {"fontsize": 8.5, "title_fontsize": 8.5, "framealpha": 0.9, "edgecolor": LIGHT.frame}
    shares.add_artist(shares.legend(keys, names, title="features of", loc="upper right", **style))
    lines = {portrait.name: color for portrait, (color, _) in zip(portraits, colors, strict=True)}
    keys = [Line2D([], [], color=color, linewidth=1.6) for color in lines.values()]
    shares.legend(keys, list(lines), loc=_empty_corner(shares, portraits), **style)
    channels.set_yscale("log")
    channels.set_ylabel("channels", fontsize=9, color=LIGHT.ink)
    channels.set_xlabel("depth: share of the blocks or cells that lie before", fontsize=9, color=LIGHT.ink)
    channels.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    counts = [site.channels for portrait in portraits for site in portrait.retained]
    first, last = math.floor(math.log2(min(counts))), math.ceil(math.log2(max(counts)))
    channels.set_ylim(2**first * 0.8, 2**last * 1.25)
    step = 1 if last - first <= 4 else 2
    channels.yaxis.set_major_locator(FixedLocator([2**k for k in range(first, last + 1, step)]))
    channels.yaxis.set_minor_locator(NullLocator())
    channels.yaxis.set_major_formatter(ScalarFormatter())


def _empty_corner(shares: Axes, portraits: Sequence[Portrait]) -> Corner:
    """The corner with the fewest points of R², by thirds of the axes; the upper right has a legend already."""
    (left, right), (bottom, top) = shares.get_xlim(), shares.get_ylim()
    counts: dict[Corner, int] = {"lower left": 0, "upper left": 0, "lower right": 0}
    for site in (site for portrait in portraits for site in portrait.retained):
        across, up = (site.depth - left) / (right - left), (site.r2 - bottom) / (top - bottom)
        row = "lower" if up < 1 / 3 else "upper" if up > 2 / 3 else ""
        column = "left" if across < 1 / 3 else "right" if across > 2 / 3 else ""
        for corner in counts:
            counts[corner] += corner == f"{row} {column}"
    return min(counts, key=lambda corner: counts[corner])


def fitted(label: str) -> str:
    """Shorten a label to LABEL_WIDTH by leaving out its middle, because paths differ at their ends."""

    def shortened(kept: int) -> str:
        return f"{label[: kept - kept // 2]}…{label[len(label) - kept // 2 :]}"

    def is_wide(text: str) -> bool:
        return text_width(text, LABEL_SIZE, "bold") > LABEL_WIDTH

    if not is_wide(label):
        return label
    return shortened(bisect.bisect_left(range(len(label)), True, key=lambda kept: is_wide(shortened(kept))) - 1)


def _draw_ridges(axes: Axes, portraits: Sequence[Portrait], colors: Sequence[tuple[str, float]]) -> None:
    """Draw the distribution of each network's cosines on its own baseline, with a bar at the mean."""
    low = min(0.0, *(portrait.cosines.min() for portrait in portraits))
    high = max(0.0, *(portrait.cosines.max() for portrait in portraits))
    edges = np.linspace(low, high, BINS + 1)
    counts = [np.histogram(portrait.cosines, edges)[0] / len(portrait.cosines) for portrait in portraits]
    tallest = max(count.max() for count in counts)
    for i, (portrait, (color, opacity), count) in enumerate(zip(portraits, colors, counts, strict=True)):
        base = float(len(portraits) - 1 - i)
        axes.stairs(
            base + 0.62 * count / tallest, edges, baseline=base, fill=True, color=color, alpha=opacity, zorder=2
        )
        axes.plot([low, high], [base, base], color=LIGHT.faint, linewidth=0.7, zorder=2)
        mean, least = portrait.cosines.mean(), portrait.cosines.min()
        axes.plot([mean, mean], [base, base + 0.68], color=LIGHT.ink, linewidth=1.2, zorder=3)
        axes.plot([least], [base], "|", color=LIGHT.ink, markersize=9, markeredgewidth=1.2, zorder=4)
        name = axes.annotate(
            fitted(portrait.label), (0, base + 0.74), xycoords=("axes fraction", "data"), va="bottom",
            fontsize=LABEL_SIZE, fontweight="bold", color=color, zorder=5, in_layout=False,
        )  # fmt: skip
        name.set_parse_math(False)
        name.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})
    axes.axvline(0, color=LIGHT.muted, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    axes.set_ylim(-0.15, len(portraits) + 0.05)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title(
        "Cosines of pairs of minibatch gradients", fontsize=10, fontweight="bold", loc="left", color=LIGHT.ink
    )
    axes.set_xlabel("cosine; bar: mean, tick: minimum", fontsize=9, color=LIGHT.ink)
