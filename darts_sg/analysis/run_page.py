"""The page of one run, search or training, which `report RUN_DIR --watch` serves while the run goes on."""

import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from darts_sg import __version__
from darts_sg.analysis.curves import Panel, augment_panels, filled, search_panels
from darts_sg.analysis.report import duration
from darts_sg.analysis.run_folder import Run, read_run
from darts_sg.analysis.serving import FOLLOW_SCRIPT, POLL_MILLISECONDS, LivePage, state_of_files
from darts_sg.records import MetricsRow
from darts_sg.tasks.columns import cell

TEMPLATE = Path(__file__).with_name("run.html")
WATCHED = ("config.yaml", "metrics.csv", "result.json", "genotype.yaml", "genotypes/*.yaml", "log.txt", "pictures/*")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 230, 52, 10, 8, 26
"""Size of a chart and its margins, in units of its viewBox."""
LAST_LINES, LONGEST_LOG = 12, 2**16
"""Lines of log.txt that the page shows, from its last bytes."""
MOST_DOTS = 60
PICTURES = {
    "cells.svg": "The cells", "mixing_weights.svg": "Mixing weights", "confusion.png": "Answers by class",
    "class_accuracy.png": "Accuracy by class", "calibration.png": "Accuracy against confidence",
    "worst.png": "Images with the highest loss", "mistakes.png": "The most confident mistakes",
}  # fmt: skip


class RunPage(LivePage):
    """The page of a run, made again after each epoch."""

    kind = "run"

    def state(self) -> str:
        found = state_of_files(path for pattern in WATCHED for path in self.folder.glob(pattern))
        return hashlib.sha256(found.encode()).hexdigest()[:16]

    def make(self, version: str) -> str:
        return run_page(read_run(self.folder), version)


def run_page(run: Run, version_of_state: str) -> str:
    """The page as HTML: state, figures of the last epoch, curves, pictures and the end of the log."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    if run.job == "search":
        panels = search_panels(run.task.plots, None if run.genotype is None else len(run.genotype.operations))
    else:
        panels = augment_panels(run.task.plots)
    done, planned = (int(run.rows[-1]["epoch"]) if run.rows else 0), run.planned or 0
    last = run.rows[-1] if run.rows else {}
    return template.render(
        title=run.title,
        state=_state(run, done, planned),
        share=min(1.0, done / planned) if planned else 0.0,
        finished=run.finished,
        figures=[(name.replace("_", " "), cell(name, value)) for name, value in last.items() if name != "epoch"],
        done=done,
        result=_result(run),
        charts=[(panel.title, chart(run.rows, panel)) for panel in filled(panels, run.rows)],
        pictures=[(name, text) for name, text in PICTURES.items() if (run.folder / "pictures" / name).is_file()],
        has_pages={name: (run.folder / name).is_file() for name in ("report.md", "search.html", "metrics.csv")},
        log=_end_of_log(run.folder / "log.txt"),
        version_of_state=version_of_state,
        interval=POLL_MILLISECONDS,
        follow_script=Markup(FOLLOW_SCRIPT.read_text(encoding="utf-8")),
        version=__version__,
    )


def _state(run: Run, done: int, planned: int) -> str:
    spent = f" in {duration(run.rows[-1]['seconds'])}" if run.rows and "seconds" in run.rows[-1] else ""
    if run.finished and run.stopped is not None:
        return f"Stopped early: {done} of {planned} epochs{spent}, because {run.stopped['reason']}."
    if run.finished:
        return f"Finished: {done} epochs{spent}."
    left = ""
    if run.rows and done and "seconds" in run.rows[-1]:
        left = f", about {duration(run.rows[-1]['seconds'] / done * max(0, planned - done))} left if it is running"
    return f"Not finished: {done} of {planned} epochs{spent}{left}."


def _result(run: Run) -> list[tuple[str, str]]:
    """The figures of a finished training."""
    if run.result is None:
        return []
    rows = []
    for kind, of in (("", ""), ("ema_", " of the EMA weights")):
        for figure in run.task.figures:
            key = f"{kind}{figure.key('test')}_last"
            if key in run.result:
                rows.append((f"{figure.title}{of}, last epoch", figure.text.format(run.result[key])))
    return [*rows, ("parameters", f"{run.result['params']:,}"), ("MACs", f"{run.result['macs']:,}")]


def _end_of_log(path: Path) -> str:
    """The last lines of a log; empty if there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LONGEST_LOG))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(lines[-LAST_LINES:])


def chart(rows: Sequence[MetricsRow], panel: Panel) -> Markup:
    """A panel as SVG with a legend; colours come from the page's style sheet, so that they suit light and dark."""
    series = []
    for number, (column, name, _) in enumerate(panel.curves):
        points = [(row["epoch"], row[column]) for row in rows if column in row and abs(row[column]) < float("inf")]
        if points:
            series.append((number, name, points))
    xs = [x for _, _, points in series for x, _ in points]
    ys = [y for _, _, points in series for _, y in points]
    marks = ticks_of(min(ys), max(ys), panel)
    low, high = marks[0], marks[-1]
    first, last = min(xs), max(max(xs), min(xs) + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(panel.title)}">']
    for value in marks:
        y = at(first, value)[1]
        text = f"{100 * value:.6g}%" if panel.percent else f"{value:.6g}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 3:.1f}">{text}</text>')
    ticks = sorted({round(first + (last - first) * k / 4) for k in range(5)})
    parts += [f'<text class="tick" x="{at(x, low)[0]:.1f}" y="{HEIGHT - 12}">{x}</text>' for x in ticks]
    parts.append(f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 1}">epoch</text>')
    if panel.top is not None:
        y = at(first, panel.top)[1]
        parts.append(f'<line class="top" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for number, name, points in series:
        corners = [at(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        dashed = " dashed" if number % 2 else ""
        parts.append(f'<g class="s{number}"><polyline class="line{dashed}" points="{path}"/>')
        if len(points) <= MOST_DOTS:
            for (x, y), (epoch, value) in zip(corners, points, strict=True):
                says = f"{name or panel.title}, epoch {epoch:.0f}: {value:.4g}"
                parts.append(
                    f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.6"><title>{escape(says)}</title></circle>'
                )
        parts.append("</g>")
    parts.append("</svg>")
    legend = "".join(
        f'<span class="s{number}"><i class="{"dashed" if number % 2 else ""}"></i>{escape(name)}</span>'
        for number, name, _ in series
        if name
    )
    if panel.top is not None:
        legend += f'<span class="top"><i class="dotted"></i>{escape(panel.top_name)}</span>'
    return Markup(f'<div class="legend">{legend}</div>{"".join(parts)}')


def ticks_of(low: float, high: float, panel: Panel) -> list[float]:
    """Round values whose first and last are the ends of a panel's axis for values from `low` to `high`."""
    if panel.top is not None:
        low, high = 0.0, panel.top
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = (0.0, 1.0) if low == 0 else (low - abs(low) / 2, low + abs(low) / 2)
    locator = MaxNLocator(nbins=4, integer=panel.whole, steps=[1, 2, 2.5, 5, 10], min_n_ticks=2)
    return [float(value) for value in locator.tick_values(low, high)]
