"""The picture of a latency table's check: measured against predicted latencies of random genotypes."""

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from darts_sg.analysis.curves import FAINT, INK, TRAIN, VALIDATION
from darts_sg.analysis.latency import Agreement, Checked


def draw_check(checked: Sequence[Checked], found: Agreement, subject: str, machine: str) -> Figure:
    """Draw one point a genotype, with the diagonal on which prediction and measurement agree.

    subject: space and shape; machine: the device; both stand under the title. Horizontal bars span the interquartile
    range, taken as symmetric about the median.
    """
    figure = Figure(figsize=(5.6, 6.0), dpi=100, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    predicted = [check.predicted / 1e3 for check in checked]
    measured = [check.measured / 1e3 for check in checked]
    bars = [check.measured * check.spread / 2e3 for check in checked]
    values = [*predicted, *measured, *(m + bar for m, bar in zip(measured, bars, strict=True))]
    room = 0.08 * (max(values) - min(values)) or 0.1 * max(values)
    ends = min(values) - room, max(values) + room
    axes.plot(ends, ends, color=VALIDATION, linewidth=1.2, linestyle="--", label="prediction = measurement", zorder=1)
    axes.errorbar(
        measured, predicted, xerr=bars, fmt="o", color=TRAIN, ecolor=FAINT, markersize=5, label="random genotype"
    )
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.set_xlabel("measured latency, ms", fontsize=9.5, color=INK)
    axes.set_ylabel("predicted latency, ms", fontsize=9.5, color=INK)
    axes.tick_params(labelsize=9, colors=INK)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, loc="upper left", framealpha=0.9, edgecolor=FAINT)
    title = (
        f"Spearman {found.rank_correlation:.3f}, mean absolute relative error "
        f"{100 * found.mean_absolute_relative_error:.1f}%"
    )
    figure.suptitle(title, fontsize=10, fontweight="bold", color=INK)
    axes.set_title(f"{subject}\n{machine}", fontsize=8, color=INK, loc="left")
    return figure
