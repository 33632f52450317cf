"""Writes the report of a study into its folder: report.md, report.html, tables/, figures/ and results.json."""

from collections.abc import Sequence
from pathlib import Path

from darts_sg.analysis.draw import save_figure
from darts_sg.files import write_atomically
from darts_sg.study.chart import draw_chart
from darts_sg.study.collected import StudyResults
from darts_sg.study.contents import OPEN_JOBS, Section, contents
from darts_sg.study.page import study_page
from darts_sg.study.results import collect, results_text


def write_study_report(folder: Path) -> Path:
    """Write everything that `study report` writes; return the path of report.html.

    Works on an unfinished study, too: the report then says what is missing. Raises UsageError as `collect` does.
    """
    results = collect(folder)
    sections = contents(results)
    write_atomically(folder / "results.json", results_text(results, sections))
    for suffix in ("csv", "tex"):  # the one table that goes away as the study goes on
        (folder / "tables" / f"{OPEN_JOBS}.{suffix}").unlink(missing_ok=True)
    for section in sections:
        for table in section.tables:
            write_atomically(folder / "tables" / f"{table.name}.csv", table.csv())
            write_atomically(folder / "tables" / f"{table.name}.tex", table.latex())
        for chart in section.charts:
            save_figure(draw_chart(chart), folder / "figures" / chart.name, formats=("svg", "pdf"))
    write_atomically(folder / "report.md", markdown_report(results, sections))
    page = folder / "report.html"
    write_atomically(page, study_page(results, sections))
    return page


def markdown_report(results: StudyResults, sections: Sequence[Section]) -> str:
    """The report as Markdown, with links to figures/ and to the runs."""
    parts = [f"# {results.title}", f"**{results.state}**"]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.text:
            parts.append(section.text)
        for table in section.tables:
            parts += [table.markdown(), table.note]
        for chart in section.charts:
            parts += [f"![{chart.title}](figures/{chart.name}.svg)", f"{chart.title}. {chart.caption}"]
    links = "[report.html](report.html) has the same with sortable tables, cells and mixing weights"
    parts.append(f"{links}; tables/ holds each table as CSV and LaTeX, figures/ each figure as SVG and PDF.")
    return "\n\n".join(filter(None, parts)) + "\n"
