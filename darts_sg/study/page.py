"""report.html of a study: one self-contained page, which `study watch` also serves while the study runs."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup

from darts_sg import __version__
from darts_sg.analysis.curves import CELL_TITLES, subscripted
from darts_sg.analysis.draw import plan_cell, state_boxes
from darts_sg.analysis.page import cell_shapes, state_kind
from darts_sg.analysis.run_folder import Run
from darts_sg.analysis.serving import FOLLOW_SCRIPT, POLL_MILLISECONDS
from darts_sg.analysis.sheet import STYLES, plugged_families, short_name, style_of
from darts_sg.genotype import Cell
from darts_sg.study.chart import LOOKS, Chart, Series, chart_svg, swatch_svg
from darts_sg.study.collected import StudyResults
from darts_sg.study.contents import Section
from darts_sg.study.run_records import Record, operations_by_epoch
from darts_sg.study.tables import Linked, Table

TEMPLATE = Path(__file__).with_name("study.html")
UNBROKEN = 44  # longer texts of a table are broken into lines


class Shown(NamedTuple):
    """A cell of a table."""

    text: str
    value: Any
    """What it sorts by; None for nothing, which stays at the end."""
    kind: str
    """Class of the page: number, wide (one line) or words."""
    path: str | None


def study_page(
    results: StudyResults, sections: Sequence[Section], live: bool = False, version_of_state: str = ""
) -> str:
    """The page, with everything in it; links lead to files beside it in the study's folder.

    live: the page asks its server for changes, and `version_of_state` says which state it shows.
    """
    operations = [name for run in results.runs.values() if run.genotype for name in run.genotype.operations]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=results.title,
        state=results.state,
        counts=results.counts,
        sections=sections,
        searches=[_search(results, record) for record in results.searches if record["id"] in results.runs],
        runs=[(name, _run_path(run, name)) for name, run in results.runs.items()],
        families={slug(name): style_of(name) for name in (*STYLES, *plugged_families(operations))},
        looks=LOOKS,
        rows_of=rows_of,
        figure=figure,
        live=live,
        version_of_state=version_of_state,
        interval=POLL_MILLISECONDS,
        follow_script=Markup(FOLLOW_SCRIPT.read_text(encoding="utf-8")),
        version=__version__,
    )


def rows_of(table: Table) -> Iterable[list[Shown]]:
    """The rows of a table as texts with the values that they sort by."""
    for values, texts in zip(table.rows, table.texts(), strict=True):
        row = []
        for column, value, text in zip(table.columns, values, texts, strict=True):
            kind = "number" if column.number else "wide" if column.is_interval or len(text) <= UNBROKEN else "words"
            key = value[0] if column.is_interval and value is not None else value
            key = key if isinstance(key, int | float) or key is None else text
            row.append(Shown(text, key, kind, value.path if isinstance(value, Linked) else None))
        yield row


def figure(chart: Chart, with_files: bool) -> Markup:
    """A chart with its legend and caption; `with_files`: and links to its SVG and PDF."""
    legend = chart.legend
    entries = "".join(f"<span>{swatch_svg(one)}{escape(one.name)}</span>" for one in legend)
    files = ""
    if with_files:
        links = [f'<a href="figures/{chart.name}.{kind}">{kind.upper()}</a>' for kind in ("svg", "pdf")]
        files = f'<p class="files">{" · ".join(links)}</p>'
    return Markup(  # all texts are escaped above and in chart_svg
        f'<figure class="panel"><h3>{escape(chart.title)}</h3>'
        f'{f"""<div class="legend">{entries}</div>""" if entries else ""}{chart_svg(chart)}'
        f"<figcaption>{escape(chart.caption)}</figcaption>{files}</figure>"
    )


def cell_svg(title: str, cell: Cell, operations: Sequence[str]) -> Markup:
    """A cell, drawn as search.html does, in colours of the page."""
    plan = plan_cell(cell)
    shapes = cell_shapes(plan, operations)
    says = ", ".join(edge["says"] for edge in shapes["edges"])
    parts = [
        f'<svg viewBox="-4 {-plan.top:.1f} {plan.width + 8:.1f} {plan.height:.1f}" role="img" '
        f'aria-label="{escape(f"{title}: {says}")}">'
    ]
    labels = []
    wires: list[tuple[str, Any, tuple[float, float] | None]] = [("joined", shapes["output"], None)]
    wires += [(f"f-{slug(edge['family'])}", edge, style_of(edge["family"]).dashes) for edge in shapes["edges"]]
    for kind, wire, dashes in wires:
        dashed = f' stroke-dasharray="{" ".join(f"{d:g}" for d in dashes)}"' if dashes else ""
        casing = "" if dashes else f'<path class="casing" stroke-width="5" d="{wire["line"]}"/>'
        parts.append(
            f'<g class="{kind}">{casing}<path class="wire"{dashed} d="{wire["line"]}"/>'
            f'<polygon points="{wire["head"]}"/></g>'
        )
        labels.append(
            f'<g class="{kind}"><rect class="chip" x="{wire["x"] - wire["width"] / 2:.1f}" y="{wire["y"] - 7:.1f}" '
            f'width="{wire["width"]:.1f}" height="14" rx="4"/><text class="chip-text" x="{wire["x"]:.1f}" '
            f'y="{wire["y"]:.1f}">{escape(wire["label"])}</text></g>'
        )
    for name, _, left, right, bottom, top in state_boxes(plan):
        parts.append(
            f'<rect class="state {state_kind(name)}" x="{left:.1f}" y="{-top:.1f}" width="{right - left:.1f}" '
            f'height="{top - bottom:.1f}" rx="6"/><text class="name" x="{(left + right) / 2:.1f}" '
            f'y="{-(top + bottom) / 2:.1f}">{escape(subscripted(name))}</text>'
        )
    return Markup("".join([*parts, *labels, "</svg>"]))


def slug(family: str) -> str:
    """A family of operations as part of a class name; plug-ins name theirs freely."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", family)


def _search(results: StudyResults, record: Record) -> dict[str, Any]:
    """What the page shows of a search beside the tables."""
    run = results.runs[record["id"]]
    cells = []
    if run.genotype is not None:
        for name, cell in run.genotype.cells():
            title = CELL_TITLES[name]
            cells.append({"title": title, "svg": cell_svg(title, cell, run.genotype.operations)})
    epoch = "" if run.genotype_epoch is None else f"; cell of epoch {run.genotype_epoch}, not final"
    error = record.get("validation_error")
    measured = "" if error is None else f", validation error of the supernet {error:.2f}%"
    return {
        "id": record["id"],
        "says": f"{record['space']} · {record['method']}, seed {record['seed']}{measured}{epoch}",
        "cells": cells,
        "charts": _operation_charts(run, record),
        "links": [
            (text, f"runs/{record['id']}/{name}")
            for text, name in (
                ("report", "report.md"), ("every epoch", "search.html"), ("metrics.csv", "metrics.csv"),
                ("genotype", "genotype.yaml"), ("options", "config.yaml"),
            )
            if (run.folder / name).is_file()
        ],
    }  # fmt: skip


def _operation_charts(run: Run, record: Record) -> list[Chart]:
    charts = []
    for cell, epochs in operations_by_epoch(run).items():
        names = list(epochs[-1][1])
        series = [
            Series(short_name(name), [(epoch, means[name]) for epoch, means in epochs if name in means], i, "line")
            for i, name in enumerate(names)
        ]
        charts.append(
            Chart(
                name=f"operations_{record['id']}_{cell}",
                title=f"{CELL_TITLES[cell]}: mixing weights by epoch",
                caption=f"{record['setting']}; seed {record['seed']}; {record['machine']}.",
                x_label="epoch",
                y_label="mixing weight, averaged over the edges",
                series=series,
            )
        )
    return charts


def _run_path(run: Run, name: str) -> str:
    report = run.folder / "report.md"
    return f"runs/{name}/report.md" if report.is_file() else f"runs/{name}/config.yaml"
