"""How the columns of metrics.csv are shown: in the line that ends an epoch, and in the tables of report.md.

A format is registered under the name of a measure. It serves all columns of that measure: `loss` those of train_loss
and ema_test_loss, `skips` those of skips_normal and skips_reduce. Tasks register the measures that they define.
`markdown_table` is the form of all tables in reports.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from darts_sg.registry import Registry


@dataclass(frozen=True)
class ColumnFormat:
    """The two texts of a value, as format strings with the fields `name` (column name with spaces) and `value`."""

    line: str = ""
    """In the line of an epoch; columns without a text are left out of it."""
    cell: str = "{value:.4g}"
    """In a table."""
    factor: float = 1.0
    """The value is multiplied by this before it is formatted: 100 for a share that is shown in percent."""

    def in_line(self, column: str, value: float) -> str:
        return self.line.format(name=column.replace("_", " "), value=self.factor * value)

    def in_cell(self, value: float) -> str:
        return self.cell.format(value=self.factor * value)


class DurationFormat(ColumnFormat):
    """Seconds, as h:mm:ss in the line of an epoch."""

    def in_line(self, column: str, value: float) -> str:
        return clock(value)


PERCENT = ColumnFormat("{name} {value:.2f}%", "{value:.2f}%", 100)
COUNT = ColumnFormat("{name} {value:.0f}", "{value:,.0f}")
OTHER = ColumnFormat()

FORMATS: Registry[ColumnFormat] = Registry("format of a column")
FORMATS.add("loss", ColumnFormat("{name} {value:.4f}"))
FORMATS.add("skips", COUNT)
FORMATS.add("frozen_operations", COUNT)
FORMATS.add("decisions", COUNT)
FORMATS.add("candidate", COUNT)
FORMATS.add("stage", COUNT)
FORMATS.add("score", ColumnFormat("{name} {value:.4g}"))
FORMATS.add("expected", ColumnFormat(cell="{value:,.0f}"))
FORMATS.add("expected_latency_ms", ColumnFormat(cell="{value:.4g}"))
FORMATS.add("eigenvalue", ColumnFormat("{name} {value:.4g}"))
FORMATS.add("images_per_second", ColumnFormat("{value:.1f} images/s", "{value:,.0f}"))
FORMATS.add("seconds", DurationFormat("h:mm:ss"))


def format_of(column: str) -> ColumnFormat:
    """The format of a column: that of the measure with the longest name that the column begins or ends with."""
    found = [name for name in FORMATS if column == name or column.endswith(f"_{name}") or column.startswith(f"{name}_")]
    return FORMATS[max(found, key=len)] if found else OTHER


def summary(row: Mapping[str, float]) -> str:
    """The row of an epoch in one line for people."""
    shown = [(column, value, format_of(column)) for column, value in row.items() if not math.isnan(value)]
    return ", ".join(form.in_line(column, value) for column, value, form in shown if form.line)


def cell(column: str, value: float | None) -> str:
    """A value in a table; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else format_of(column).in_cell(value)


def clock(seconds: float) -> str:
    """A duration in seconds as h:mm:ss."""
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{s:02d}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a cell is one line, whatever a note in it holds."""
    cells = [header, ["---"] * len(header), *rows]
    lines = ([" ".join(cell.splitlines()).replace("|", "\\|") for cell in row] for row in cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
